//! Watching a model while it runs.

use super::Activations;
use super::weights::Place;

/// Is told what flows through a model. Called from one thread, in the order of computing.
pub trait Observer {
    /// `x` is about to be multiplied by the matrix at `place` of the model with this number in the walk. Matrices with the
    /// same input (query, key and value; gate and up) are told one after the other with the same `x`.
    fn input(&mut self, model: usize, place: Place, x: &Activations<'_>) {
        let _ = (model, place, x);
    }

    /// These hidden states `[rows, hidden]`, of some windows, are about to go into half of a block: see [`super::Walk::half`].
    fn half_begins(&mut self, model: usize, hidden: &[f32]) {
        let _ = (model, hidden);
    }

    /// A block is about to be applied to these hidden states `[tokens, hidden]` of all windows.
    fn block_begins(&mut self, model: usize, layer: usize, hidden: &[f32]) {
        let _ = (model, layer, hidden);
    }

    /// A block was applied, with these hidden states as result.
    fn block_ends(&mut self, model: usize, layer: usize, hidden: &[f32]) {
        let _ = (model, layer, hidden);
    }
}

/// Nobody watches.
#[derive(Debug, Clone, Copy, Default)]
pub struct Unobserved;

impl Observer for Unobserved {}
