//! Which codes to store. A quantizer sees a band of a weight's rows and fills the same band of the encoding's physical
//! tensors; it depends on nothing but those numbers, so neither the number of threads nor the size of bands can change
//! the result.

mod blocks;
mod cast;
mod columns;
pub mod ggml;
pub mod imatrix;
mod scales;
mod symmetric;

use encoding::plain::Real;
use formats::Dtype;

use crate::encoding::{self, Encoding};
use crate::simd::{Simd, Task, dispatch};

pub use blocks::{Blocks, Columns};
pub use cast::Cast;
pub use columns::{Columnar, Int8Cols};
pub use scales::{Codes, Searched};
pub use symmetric::{Fp8Rows, Int8Rows, PackedInt};

/// The numbers of a band, in the precision that the quantizer's arithmetic is defined in.
#[derive(Debug, Clone, Copy)]
pub enum Numbers<'a> {
    /// Weights stored as f32, f16 or bf16.
    F32(&'a [f32]),
    /// Weights stored as f64.
    F64(&'a [f64]),
}

/// A run of whole rows.
#[derive(Debug, Clone, Copy)]
pub struct Band<'a> {
    /// Row after row.
    pub numbers: Numbers<'a>,
    /// The number of its first row in the weight.
    pub first_row: u64,
    /// Numbers in a row.
    pub cols: usize,
    /// The dtype in which they were stored.
    pub dtype: Dtype,
}

impl Band<'_> {
    /// Number of rows.
    pub fn rows(&self) -> usize {
        let count = match self.numbers {
            Numbers::F32(numbers) => numbers.len(),
            Numbers::F64(numbers) => numbers.len(),
        };
        count / self.cols.max(1)
    }
}

/// What a quantizer has to say about a band beside its codes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Notes {
    /// Finite numbers that became infinite.
    pub overflowed: u64,
    /// Numbers other than zero that became zero because the dtype has nothing so small.
    pub vanished: u64,
    /// The index within the band of the first number that is NaN or infinite.
    pub non_finite: Option<usize>,
    /// Of a weight that was pruned: its zeros.
    pub zeros: u64,
    /// Those of them that the encoding made other numbers of.
    pub zeros_lost: u64,
}

impl Notes {
    /// Both bands' notes; `non_finite` is left to the caller, who knows where the bands lie.
    pub fn add(&mut self, other: &Notes) {
        self.overflowed += other.overflowed;
        self.vanished += other.vanished;
        self.zeros += other.zeros;
        self.zeros_lost += other.zeros_lost;
    }
}

/// Chooses codes.
pub trait Quantizer: Send + Sync {
    /// The encoding of a weight stored as `input`.
    fn encoding(&self, input: Dtype) -> Encoding;

    /// Fills `parts`, the bytes of this band in each of the encoding's physical tensors.
    fn encode(&self, band: Band<'_>, parts: &mut [Vec<u8>]) -> Notes;
}

/// The index of the first number that is NaN or infinite.
pub fn first_non_finite<T: Real>(numbers: &[T]) -> Option<usize> {
    struct Scan<'a, T>(&'a [T]);

    impl<T: Real> Task for Scan<'_, T> {
        type Output = Option<usize>;

        fn run<S: Simd>(self, simd: S) -> Option<usize> {
            const RUN: usize = 512;
            // Without an early exit within a run, the loop is one of vector instructions.
            let found = self.0.chunks(RUN).position(|run| {
                !simd.run(
                    #[inline(always)]
                    || run.iter().fold(true, |ok, x| ok & (x.abs() <= T::MAX)),
                )
            })?;
            let at = self.0[found * RUN..].iter().position(|x| !x.to_f64().is_finite())?;
            Some(found * RUN + at)
        }
    }

    dispatch(Scan(numbers))
}
