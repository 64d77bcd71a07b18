//! The feed-forward part of a block: dense, or a mixture of experts (Shazeer et al., 2017).

use super::Activations;
use super::block::Goal;
use super::model::{Context, Projection};
use super::ops::{activation, softmax::softmax};
use crate::family::Activation;

/// The feed-forward part.
pub(super) enum FeedForward {
    Dense(Dense),
    Mixture(Mixture),
}

/// down(act(gate(x)) · up(x)), or down(act(up(x))) without a gate.
pub(super) struct Dense {
    pub activation: Activation,
    pub gate: Option<Projection>,
    pub up: Projection,
    pub down: Projection,
}

/// One of a mixture.
pub(super) struct Expert(pub Dense);

/// The router's choice of experts for each token, weighted by its probabilities.
pub(super) struct Mixture {
    pub router: Projection,
    pub experts: Vec<Expert>,
    pub per_token: usize,
    pub normalise: bool,
}

impl FeedForward {
    /// f(x) `[rows, hidden]`, unless the goal is before its end.
    pub fn forward(&self, x: &Activations<'_>, goal: Goal, context: &mut Context<'_>) -> Option<Vec<f32>> {
        match self {
            FeedForward::Dense(dense) => dense.forward(x, goal, context),
            FeedForward::Mixture(mixture) => mixture.forward(x, goal, context),
        }
    }
}

impl Dense {
    fn forward(&self, x: &Activations<'_>, goal: Goal, context: &mut Context<'_>) -> Option<Vec<f32>> {
        if goal == Goal::First {
            self.gate.iter().chain([&self.up]).for_each(|matrix| matrix.tell(x, context));
            return None;
        }
        let width = self.up.out_features();
        let mut up = vec![0.0; x.rows() * width];
        let middle = match &self.gate {
            None => {
                self.up.forward(x, &mut up, context);
                activation::apply(self.activation, &mut up, context.pool);
                up
            }
            Some(gate) => {
                let mut gated = vec![0.0; x.rows() * width];
                Projection::forward_all([(gate, &mut gated), (&self.up, &mut up)], x, context);
                activation::gate(self.activation, &mut gated, &up, context.pool);
                gated
            }
        };
        let middle = Activations::new(&middle, width);
        if goal == Goal::Last {
            self.down.tell(&middle, context);
            return None;
        }
        let mut out = vec![0.0; x.rows() * self.down.out_features()];
        self.down.forward(&middle, &mut out, context);
        Some(out)
    }
}

/// Which tokens go to which experts.
pub(super) struct Routes {
    /// The probability of each expert for each token, `[rows, experts]`.
    pub shares: Vec<f32>,
    /// For each expert, the tokens that it sees and the weight of its result.
    pub seen: Vec<Vec<(usize, f32)>>,
}

impl Mixture {
    /// Chooses experts for each token.
    pub fn route(&self, x: &Activations<'_>, context: &mut Context<'_>) -> Routes {
        let mut shares = vec![0.0; x.rows() * self.experts.len()];
        self.router.forward(x, &mut shares, context);
        let mut seen: Vec<Vec<(usize, f32)>> = vec![Vec::new(); self.experts.len()];
        for (token, shares) in shares.chunks_exact_mut(self.experts.len()).enumerate() {
            softmax(shares);
            let mut order: Vec<usize> = (0..shares.len()).collect();
            order.sort_by(|a, b| shares[*b].total_cmp(&shares[*a]));
            order.truncate(self.per_token);
            let total = if self.normalise { order.iter().map(|expert| shares[*expert]).sum() } else { 1.0 };
            order.into_iter().for_each(|expert| seen[expert].push((token, shares[expert] / total)));
        }
        Routes { shares, seen }
    }

    fn forward(&self, x: &Activations<'_>, goal: Goal, context: &mut Context<'_>) -> Option<Vec<f32>> {
        let width = x.cols();
        let Routes { seen, .. } = self.route(x, context);
        let mut out = vec![0.0; x.rows() * width];
        for (Expert(expert), seen) in self.experts.iter().zip(&seen) {
            if seen.is_empty() {
                continue;
            }
            let rows = seen.iter().flat_map(|(token, _)| &x.f32()[token * width..(token + 1) * width]);
            let gathered: Vec<f32> = rows.copied().collect();
            let result = expert.forward(&Activations::new(&gathered, width), goal, context).unwrap_or_default();
            for ((token, weight), row) in seen.iter().zip(result.chunks_exact(width)) {
                let sum = &mut out[token * width..(token + 1) * width];
                sum.iter_mut().zip(row).for_each(|(y, x)| *y += weight * x);
            }
        }
        (goal == Goal::Through).then_some(out)
    }
}
