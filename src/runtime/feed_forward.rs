//! The feed-forward part of a block: dense, or a mixture of experts (Shazeer et al., 2017).

use super::Activations;
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
    /// out `[rows, hidden]` = f(x).
    pub fn forward(&self, x: &Activations<'_>, out: &mut [f32], context: &mut Context<'_>) {
        match self {
            FeedForward::Dense(dense) => dense.forward(x, out, context),
            FeedForward::Mixture(mixture) => mixture.forward(x, out, context),
        }
    }
}

impl Dense {
    fn forward(&self, x: &Activations<'_>, out: &mut [f32], context: &mut Context<'_>) {
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
                gate.forward(x, &mut gated, context);
                self.up.forward(x, &mut up, context);
                activation::gate(self.activation, &mut gated, &up, context.pool);
                gated
            }
        };
        self.down.forward(&Activations::new(&middle, width), out, context);
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

    fn forward(&self, x: &Activations<'_>, out: &mut [f32], context: &mut Context<'_>) {
        let width = x.cols();
        let Routes { seen, .. } = self.route(x, context);
        out.fill(0.0);
        for (Expert(expert), seen) in self.experts.iter().zip(&seen) {
            if seen.is_empty() {
                continue;
            }
            let rows = seen.iter().flat_map(|(token, _)| &x.f32()[token * width..(token + 1) * width]);
            let gathered: Vec<f32> = rows.copied().collect();
            let mut result = vec![0.0; gathered.len()];
            expert.forward(&Activations::new(&gathered, width), &mut result, context);
            for ((token, weight), row) in seen.iter().zip(result.chunks_exact(width)) {
                let sum = &mut out[token * width..(token + 1) * width];
                sum.iter_mut().zip(row).for_each(|(y, x)| *y += weight * x);
            }
        }
    }
}
