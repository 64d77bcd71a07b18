//! How long codes are looked for: what the arithmetic that a model and a text take leaves room for. It is estimated from shapes,
//! never measured, so that the same codes are chosen everywhere.

use crate::calibration::{Costs, fisher};
use crate::family::Transformer;
use crate::quantizer::least_squares;

/// Multiplications that may be taken: a little less than an hour on two cores with AVX2.
const LIMIT: f64 = 160e12;

/// What a multiplication counts where codes are looked for: beside products, there is a choice for each weight.
const SEARCH: f64 = 1.7;

/// What is done.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Effort {
    /// How the metric of outputs is found; without it if absent.
    pub fisher: Option<fisher::Options>,
    /// How codes are looked for.
    pub codes: least_squares::Effort,
    /// Estimated multiplications.
    pub estimate: f64,
    /// Of everything.
    pub thorough: f64,
}

/// From the most to the least: tokens of the metric of outputs, sweeps of descent, and whether other codes are compared.
const LEVELS: [(usize, usize, bool); 7] = [
    (usize::MAX, 3, true),
    (8192, 3, false),
    (4096, 3, false),
    (4096, 2, false),
    (2048, 1, false),
    (0, 2, false),
    (0, 1, false),
];

impl Effort {
    /// The most of which the limit allows, by so many tokens.
    pub fn of(t: &Transformer, tokens: usize) -> Self {
        let all = LEVELS.map(|level| Self::at(t, tokens, level));
        let chosen = all.iter().find(|effort| effort.estimate <= LIMIT).unwrap_or(&all[all.len() - 1]);
        Self { thorough: all[0].estimate, ..*chosen }
    }

    fn at(t: &Transformer, tokens: usize, (most, sweeps, compared): (usize, usize, bool)) -> Self {
        let metric = fisher::Options::affordable(t, tokens);
        let metric = fisher::Options { tokens: metric.tokens.min(most), ..metric };
        let fisher = (metric.tokens > 0).then_some(metric);
        let costs = Costs::of(t, metric.samples);
        // Both models, and experts of one again; feedback, target and judgement.
        let passes = if t.experts.is_some() { 2.6 } else { 2.0 };
        let mut search = (4.0 + sweeps as f64) * costs.rows;
        if fisher.is_some() {
            search += sweeps as f64 * (costs.together + 0.5 * costs.rows);
        }
        if compared {
            search += 2.0 * costs.rows + if fisher.is_some() { costs.together } else { 0.0 };
        }
        let walk = tokens as f64 * (passes * costs.forward + costs.inputs);
        let estimate = walk + metric.tokens as f64 * costs.backward + costs.factors + SEARCH * search;
        Self { fisher, codes: least_squares::Effort { sweeps, compared }, estimate, thorough: estimate }
    }

    /// What was left out, for people; `None` if nothing was.
    pub fn note(&self) -> Option<String> {
        let trillions = |x: f64| format!("{:.0}", (x / 1e12).max(1.0));
        let metric = match self.fisher {
            Some(metric) => format!("errors of outputs weighed by {} tokens", metric.tokens),
            None => "errors of outputs not weighed".to_owned(),
        };
        let sweeps = match self.codes.sweeps {
            1 => "1 sweep".to_owned(),
            n => format!("{n} sweeps"),
        };
        (self.estimate < self.thorough).then(|| {
            format!(
                "calibration takes about {} trillion multiplications instead of {}: {metric}, {sweeps} of descent",
                trillions(self.estimate),
                trillions(self.thorough)
            )
        })
    }
}
