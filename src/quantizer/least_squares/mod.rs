//! Codes of the least squared error of a layer's outputs. With E = Q − W, the error of what is stored against a target W,
//!
//! J(Q) = ½ tr(G E (H + δI) Eᵀ),
//!
//! where H = XᵀX / m says what errors of the weights of a row cost together, and G what errors of output features do (the
//! identity where nothing is known). Rounding to nearest minimises it as if H and G were diagonal; here they are not.
//!
//! - [`metric`]: H + δI and what is derived from it, which matrices of one input share.
//! - [`grid`]: what a form can store, every form alike.

mod candidates;
mod descent;
mod gptq;
mod grid;
mod inverse;
mod levels;
mod loss;
mod metric;
mod outputs;
mod rows;
mod values;

#[cfg(test)]
mod tests;

use formats::Dtype;

use super::{Blocks, Codes, Fp8Rows, Int8Rows, PackedInt, Quantizer, Searched};
use crate::threads::Pool;

use grid::Grid;
pub use loss::{dot, loss};
pub use metric::Metric;
pub use values::values;

/// How a matrix is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// int8 with a scale for each row.
    Int8Rows,
    /// Packed integers in groups.
    Packed {
        /// Bits of a code: 4 or 8.
        bits: u8,
        /// Columns that share a scale; divides the columns.
        group: u64,
    },
    /// FP8 with a scale for each row.
    Fp8Rows,
    /// ggml's blocks of a type that is quantized to.
    Blocks(Dtype),
}

impl Form {
    /// What rounds to this form without looking at any input: to nearest, or with a search of scales.
    pub fn quantizer(self, search: bool) -> Box<dyn Quantizer> {
        fn scaled<Q: Quantizer + 'static>(
            nearest: Q,
            codes: Codes,
            group: Option<u64>,
            search: bool,
        ) -> Box<dyn Quantizer> {
            match search {
                true => Box::new(Searched { nearest, codes, group }),
                false => Box::new(nearest),
            }
        }
        match self {
            Self::Int8Rows => scaled(Int8Rows, Codes::Int8, None, search),
            Self::Packed { bits, group } => scaled(PackedInt { bits, group }, Codes::Packed(bits), Some(group), search),
            Self::Fp8Rows => scaled(Fp8Rows, Codes::Fp8, None, search),
            Self::Blocks(dtype) => Box::new(Blocks { dtype, search, importance: None }),
        }
    }
}

/// A matrix to be stored.
#[derive(Debug, Clone, Copy)]
pub struct Problem<'a> {
    /// W `[rows, cols]`, finite: what the stored matrix should be, or, where it makes up for errors before it, should be like.
    pub target: &'a [f32],
    /// Output features.
    pub rows: usize,
    /// Input features.
    pub cols: usize,
    /// The dtype of the weight, which scales of the forms other than blocks have.
    pub dtype: Dtype,
    /// H + δI.
    pub metric: &'a Metric,
    /// G `[rows, rows]`, symmetric, without negative eigenvalues, in any unit: its mean diagonal is made 1 and a little of the
    /// identity added. The identity if absent.
    pub outputs: Option<&'a [f64]>,
}

/// How codes are looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// GPTQ as its paper has it (Frantar et al., 2022): columns in their order, each rounded to nearest and its error made up
    /// for by the columns after it. The scales of a group are those of rounding to nearest what the group has become when it
    /// is reached.
    Gptq,
    /// The least loss that is found.
    Best(Effort),
}

/// How long one looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Effort {
    /// How often coordinate descent goes over all columns.
    pub sweeps: usize,
    /// Whether J of rounding to nearest and of a search of scales is computed too, so that it is nowhere above.
    pub compared: bool,
}

impl Default for Effort {
    fn default() -> Self {
        Self { sweeps: 3, compared: true }
    }
}

/// What was found.
#[derive(Debug, Clone, PartialEq)]
pub struct Solution {
    /// The bytes of the whole matrix, as [`Quantizer::encode`] fills them: codes and, but for blocks, scales.
    pub parts: Vec<Vec<u8>>,
    /// J.
    pub loss: f64,
}

/// Rows of a band. Each row is quantized by itself; a fixed number, so that products of bands do not depend on the threads.
const BAND: usize = 64;

/// Finds codes. With [`Method::Best`], if it compares, J is nowhere above that of rounding to nearest or of a search of scales:
/// of each row, or, where there is a G, of the matrix.
///
/// # Panics
/// If the form cannot hold so many columns, or numbers are missing.
pub fn solve(form: Form, problem: &Problem<'_>, method: Method, pool: &Pool) -> Solution {
    let Problem { target, rows, cols, .. } = *problem;
    assert!(target.len() == rows * cols && problem.metric.cols() == cols, "a number for each row and column");
    let outputs = problem.outputs.and_then(|outputs| outputs::normalised(outputs, rows));
    let problem = Problem { outputs: outputs.as_deref(), ..*problem };
    let grid = Grid::new(form, problem.dtype, cols);
    let (found, loss) = match (method, problem.outputs) {
        (Method::Best(effort), Some(_)) => outputs::best(&grid, &problem, effort, pool),
        (_, outputs) => {
            let found = rows::each_band(&grid, &problem, pool, |rows| rows.solve(method));
            let (found, losses): (Vec<_>, Vec<_>) = found.into_iter().unzip();
            let loss = if outputs.is_some() {
                loss::of_rows_found(&grid, &problem, &found, pool)
            } else {
                losses.iter().sum()
            };
            (found, loss)
        }
    };
    let mut parts: Vec<Vec<u8>> = grid.row_bytes().into_iter().map(|n| Vec::with_capacity(n * rows)).collect();
    found.iter().for_each(|row| grid.write(row, &mut parts));
    Solution { parts, loss }
}
