//! Which weights are removed. A pruner decides by a weight's own numbers, or by what calibration knows of its inputs; the
//! quantizer then rounds what is left, zeros among it, as it rounds everything else.
//!
//! - [`sparsity`]: what can be asked for.
//! - [`mask`]: the weights that each row, or each group of a row, does without.
//! - [`cut`]: the weights that a whole matrix, or a model, does without: where exactly among all sizes the cut lies.

pub mod cut;
pub mod mask;
pub mod sparsity;

use crate::encoding::plain::Real;

pub use cut::Cut;
pub use sparsity::{Fraction, Method, Pattern, Scope, Sparsity};

/// How the numbers of one matrix are pruned, band by band.
#[derive(Debug, Clone, PartialEq)]
pub enum Mask {
    /// Each row by itself.
    Rows(Pattern),
    /// Whatever is not above a cut that was found among all numbers of the matrix or the model.
    Cut(Cut),
    /// What is removed is not known yet: a pass over the numbers has to find the cut.
    Undecided,
}

impl Mask {
    /// Sets what is removed of some rows to zero. The result does not depend on how a matrix is cut into bands of rows.
    pub fn apply<T: Real>(&self, first_row: u64, cols: usize, numbers: &mut [T]) {
        match self {
            Self::Rows(pattern) => mask::rows(numbers, cols, *pattern, None),
            Self::Cut(cut) => cut.apply(first_row * cols as u64, numbers),
            Self::Undecided => unreachable!("the pipeline decides before it applies"),
        }
    }
}
