//! How gradients go back through the feed-forward part.

use super::Back;
use crate::runtime::Activations;
use crate::runtime::feed_forward::{Dense, Expert, FeedForward, Mixture, Routes};
use crate::runtime::model::Context;
use crate::runtime::ops::activation;

/// What a feed-forward part computed on its way forward.
pub(super) enum Record {
    Dense(Middle),
    Mixture {
        routes: Routes,
        /// Of each expert that saw tokens: what it computed, and its result `[tokens, hidden]`.
        experts: Vec<Option<(Middle, Vec<f32>)>>,
    },
}

/// What comes before the activation.
pub(super) struct Middle {
    /// What goes through the activation.
    active: Vec<f32>,
    /// What it is multiplied by.
    up: Option<Vec<f32>>,
}

impl FeedForward {
    /// Computes f(x) once more and keeps what is needed on the way back; the result only if `wanted`.
    pub(super) fn record(
        &self,
        x: &Activations<'_>,
        wanted: bool,
        context: &mut Context<'_>,
    ) -> (Record, Option<Vec<f32>>) {
        match self {
            FeedForward::Dense(dense) => {
                let middle = dense.middle(x, context);
                let result = wanted.then(|| dense.result(&middle, context));
                (Record::Dense(middle), result)
            }
            FeedForward::Mixture(mixture) => {
                let routes = mixture.route(x, context);
                let expert = |(Expert(dense), seen): (&Expert, &Vec<(usize, f32)>)| {
                    (!seen.is_empty()).then(|| {
                        let gathered = gather(x.f32(), x.cols(), seen);
                        let middle = dense.middle(&Activations::new(&gathered, x.cols()), context);
                        let result = dense.result(&middle, context);
                        (middle, result)
                    })
                };
                let experts: Vec<_> = mixture.experts.iter().zip(&routes.seen).map(expert).collect();
                let result = wanted.then(|| {
                    let mut sum = vec![0.0; x.f32().len()];
                    for (expert, seen) in experts.iter().zip(&routes.seen) {
                        if let Some((_, result)) = expert {
                            add(result, seen, x.cols(), &mut sum);
                        }
                    }
                    sum
                });
                (Record::Mixture { routes, experts }, result)
            }
        }
    }

    /// Adds the gradient of x to `out`, given that of the result: both `[rows, hidden]`.
    pub(super) fn gradient(&self, record: &Record, g: &[f32], out: &mut [f32], back: &mut Back<'_>) {
        match (self, record) {
            (FeedForward::Dense(dense), Record::Dense(middle)) => dense.gradient(middle, g, out, back),
            (FeedForward::Mixture(mixture), Record::Mixture { routes, experts }) => {
                mixture.gradient(routes, experts, g, out, back);
            }
            // A record is of the part that made it.
            _ => {}
        }
    }
}

impl Dense {
    fn middle(&self, x: &Activations<'_>, context: &mut Context<'_>) -> Middle {
        let size = x.rows() * self.up.out_features();
        let mut up = vec![0.0; size];
        self.up.forward(x, &mut up, context);
        match &self.gate {
            None => Middle { active: up, up: None },
            Some(gate) => {
                let mut active = vec![0.0; size];
                gate.forward(x, &mut active, context);
                Middle { active, up: Some(up) }
            }
        }
    }

    fn result(&self, middle: &Middle, context: &mut Context<'_>) -> Vec<f32> {
        let width = self.up.out_features();
        let mut x = middle.active.clone();
        match &middle.up {
            None => activation::apply(self.activation, &mut x, context.pool),
            Some(up) => activation::gate(self.activation, &mut x, up, context.pool),
        }
        let mut result = vec![0.0; x.len() / width.max(1) * self.down.out_features()];
        self.down.forward(&Activations::new(&x, width), &mut result, context);
        result
    }

    fn gradient(&self, middle: &Middle, g: &[f32], out: &mut [f32], back: &mut Back<'_>) {
        let mut inner = vec![0.0; middle.active.len()];
        self.down.gradient(g, &mut inner, back);
        match (&self.gate, &middle.up) {
            (Some(gate), Some(up)) => {
                let mut up = up.clone();
                activation::gate_gradient(self.activation, &middle.active, &mut up, &mut inner, back.pool);
                gate.gradient(&inner, out, back);
                self.up.gradient(&up, out, back);
            }
            _ => {
                activation::gradient(self.activation, &middle.active, &mut inner, back.pool);
                self.up.gradient(&inner, out, back);
            }
        }
    }
}

impl Mixture {
    fn gradient(
        &self,
        routes: &Routes,
        experts: &[Option<(Middle, Vec<f32>)>],
        g: &[f32],
        out: &mut [f32],
        back: &mut Back<'_>,
    ) {
        let (count, width) = (self.experts.len(), self.router.in_features());
        let mut weights = vec![0.0; routes.shares.len()];
        for (number, ((Expert(dense), seen), expert)) in self.experts.iter().zip(&routes.seen).zip(experts).enumerate()
        {
            let Some((middle, result)) = expert else { continue };
            let mut own = gather(g, width, seen);
            for (((token, weight), g), result) in
                seen.iter().zip(own.chunks_exact_mut(width)).zip(result.chunks_exact(width))
            {
                weights[token * count + number] = g.iter().zip(result).map(|(g, y)| g * y).sum();
                g.iter_mut().for_each(|g| *g *= weight);
            }
            let mut gradient = vec![0.0; own.len()];
            dense.gradient(middle, &own, &mut gradient, back);
            for ((token, _), row) in seen.iter().zip(gradient.chunks_exact(width)) {
                let sum = &mut out[token * width..(token + 1) * width];
                sum.iter_mut().zip(row).for_each(|(y, x)| *y += x);
            }
        }
        // Weights are probabilities, or probabilities of the chosen ones among themselves, which is the softmax of their scores.
        let mut chosen = vec![0.0; routes.shares.len()];
        for (expert, seen) in routes.seen.iter().enumerate() {
            seen.iter().for_each(|(token, weight)| chosen[token * count + expert] = *weight);
        }
        let shares = if self.normalise { &chosen } else { &routes.shares };
        for ((g, chosen), shares) in
            weights.chunks_exact_mut(count).zip(chosen.chunks_exact(count)).zip(shares.chunks_exact(count))
        {
            let mean: f32 = g.iter().zip(chosen).map(|(g, weight)| g * weight).sum();
            g.iter_mut().zip(shares).for_each(|(g, share)| *g = share * (*g - mean));
        }
        self.router.gradient(&weights, out, back);
    }
}

/// The rows of tokens.
fn gather(x: &[f32], width: usize, seen: &[(usize, f32)]) -> Vec<f32> {
    seen.iter().flat_map(|(token, _)| &x[token * width..(token + 1) * width]).copied().collect()
}

/// Adds weighted rows to those of their tokens.
fn add(rows: &[f32], seen: &[(usize, f32)], width: usize, out: &mut [f32]) {
    for ((token, weight), row) in seen.iter().zip(rows.chunks_exact(width)) {
        let sum = &mut out[token * width..(token + 1) * width];
        sum.iter_mut().zip(row).for_each(|(y, x)| *y += weight * x);
    }
}
