//! ggml's block types as `llama-quantize` fills them, byte for byte: the arithmetic of ggml's `ggml-quants.c` in its own
//! order, as its x86-64 baseline build does it (no fused multiply-add), without and with an importance matrix.
//!
//! The searches see sixteen sub-blocks at once (see `lanes`), with the best instruction set that the processor has. Neither
//! changes a bit.

pub(super) mod fit;
mod k;
pub(super) mod lanes;
mod legacy;
pub mod mixture;
pub(super) mod nonlinear;
mod search;

#[cfg(test)]
mod tests;

use formats::Dtype;

pub use search::quantize_row_search;

use crate::simd::{Simd, Task, dispatch};

/// Whether [`quantize_row`] writes a type.
pub fn writes(dtype: Dtype) -> bool {
    matches!(
        dtype,
        Dtype::Q8_0
            | Dtype::Q4_0
            | Dtype::Q4_1
            | Dtype::Q5_0
            | Dtype::Q5_1
            | Dtype::Q2_K
            | Dtype::Q3_K
            | Dtype::Q4_K
            | Dtype::Q5_K
            | Dtype::Q6_K
            | Dtype::IQ4_NL
            | Dtype::IQ4_XS
    )
}

/// Quantizes a row. `x` is all of it: some types weigh a number against the whole row's. `weights` is the importance of
/// each column (mean of the squared inputs that met it); without it the result is that of ggml's reference encoders. `out`
/// is the row's blocks.
///
/// # Panics
/// If the type is not one of [`writes`], the row is not whole blocks, or `weights` or `out` have another length.
pub fn quantize_row(dtype: Dtype, x: &[f32], weights: Option<&[f32]>, out: &mut [u8]) {
    dispatch(QuantizeRow { dtype, row: Row::new(x, weights), out });
}

/// What [`quantize_row`] does.
struct QuantizeRow<'a> {
    dtype: Dtype,
    row: Row<'a>,
    out: &'a mut [u8],
}

impl Task for QuantizeRow<'_> {
    type Output = ();

    fn run<S: Simd>(self, simd: S) {
        let Self { dtype, row, out } = self;
        match dtype {
            Dtype::Q8_0 => legacy::q8_0(simd, row.blocks(), blocks(out)),
            Dtype::Q4_0 => legacy::q4_0(simd, &row, blocks(out)),
            Dtype::Q4_1 => legacy::q4_1(simd, &row, blocks(out)),
            Dtype::Q5_0 => legacy::q5_0(simd, &row, blocks(out)),
            Dtype::Q5_1 => legacy::q5_1(simd, &row, blocks(out)),
            Dtype::Q2_K => k::q2_k(simd, &row, blocks(out)),
            Dtype::Q3_K => k::q3_k(simd, &row, blocks(out)),
            Dtype::Q4_K => k::q4_k(simd, &row, blocks(out)),
            Dtype::Q5_K => k::q5_k(simd, &row, blocks(out)),
            Dtype::Q6_K => k::q6_k(simd, &row, blocks(out)),
            Dtype::IQ4_NL => nonlinear::iq4_nl(simd, &row, blocks(out)),
            Dtype::IQ4_XS => nonlinear::iq4_xs(simd, &row, blocks(out)),
            _ => panic!("{dtype} is not a type that is quantized to"),
        }
    }
}

/// The blocks of a row, as bytes.
fn blocks<const B: usize>(out: &mut [u8]) -> &mut [[u8; B]] {
    let (blocks, rest) = out.as_chunks_mut();
    assert!(rest.is_empty(), "the output is whole blocks");
    blocks
}

/// A row and the importance of its columns.
pub(super) struct Row<'a> {
    x: &'a [f32],
    weights: Option<&'a [f32]>,
}

impl<'a> Row<'a> {
    fn new(x: &'a [f32], weights: Option<&'a [f32]>) -> Self {
        assert!(weights.is_none_or(|weights| weights.len() == x.len()), "a weight for each number");
        Self { x, weights }
    }

    /// The numbers, in blocks of `N`.
    fn blocks<const N: usize>(&self) -> &'a [[f32; N]] {
        let (blocks, rest) = self.x.as_chunks();
        assert!(rest.is_empty(), "the row is whole blocks");
        blocks
    }

    /// The weights, if there are any, in blocks of `N`.
    fn weight_blocks<const N: usize>(&self) -> Option<&'a [[f32; N]]> {
        self.weights.map(|weights| weights.as_chunks().0)
    }
}

/// Σ x², from the first number to the last.
fn sum_of_squares(x: &[f32]) -> f32 {
    x.iter().fold(0.0, |sum, x| sum + x * x)
}
