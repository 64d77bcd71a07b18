//! Which weights are removed. A pruner decides by a weight's own numbers, or by what calibration knows of its inputs; the
//! quantizer then rounds what is left, zeros among it, as it rounds everything else.
//!
//! - [`sparsity`]: what can be asked for.
//! - [`mask`]: the weights that each row, or each group of a row, does without.
//! - [`cut`]: the weights that a whole matrix, or a model, does without: where exactly among all sizes the cut lies.
//! - [`sparsegpt`]: removes weights and changes those that stay.
//! - [`least_squares`]: refits what is left.

pub mod cut;
pub mod least_squares;
pub mod mask;
pub mod parts;
pub mod sparsegpt;
pub mod sparsity;

#[cfg(test)]
mod tests;

use crate::encoding::plain::Real;

pub use cut::Cut;
pub use least_squares::{Refit, Solver};
pub use sparsity::{Fraction, Method, Pattern, Scope, Sparsity};

/// How the numbers of one matrix are pruned, band by band.
#[derive(Debug, Clone, PartialEq)]
pub enum Mask {
    /// Each row by itself.
    Rows(Pattern),
    /// Whatever is not above a cut that was found among all numbers of the matrix or the model.
    Cut(Cut),
    /// What is removed is not known yet: a pass over the numbers, or over a calibration text, has to find it.
    Undecided,
    /// The numbers that are read have been pruned before.
    Done,
}

impl Mask {
    /// Sets what is removed of some rows to zero. The result does not depend on how a matrix is cut into bands of rows.
    pub fn apply<T: Real>(&self, first_row: u64, cols: usize, numbers: &mut [T]) {
        match self {
            Self::Rows(pattern) => mask::rows(numbers, cols, *pattern, None),
            Self::Cut(cut) => cut.apply(first_row * cols as u64, numbers),
            Self::Done => {}
            Self::Undecided => unreachable!("the pipeline decides before it applies"),
        }
    }
}

/// How what is left of pruned layers is refitted to the outputs of the original ones.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Recovery {
    /// λ: how much large weights are held against the fit.
    pub ridge: f64,
    /// How the minimum is looked for.
    pub solver: Solver,
}
