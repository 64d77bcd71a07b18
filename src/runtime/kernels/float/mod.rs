//! Products of f32 with stored rows whose numbers are taken as floating-point ones: plain numbers, and codes that become
//! f32 in registers, next to the multiply. Decoding reads each row once, where it lies.

#[cfg(target_arch = "x86_64")]
mod nibbles;
mod portable;
#[cfg(target_arch = "x86_64")]
mod x86;

use std::sync::OnceLock;

use super::tiles::Tile;
use super::{Isa, Kernel};
use crate::encoding::Stored;
use crate::runtime::Activations;

pub use portable::{fits, unpack};

/// What a version multiplies. Lengths were checked.
struct Operands<'a> {
    weights: &'a Stored<'a>,
    x: &'a Activations<'a>,
    /// Columns.
    k: usize,
}

/// The tile of x · Wᵀ.
type Rows = unsafe fn(&Operands<'_>, &mut Tile<'_>);

static TABLE: &[Kernel<Rows>] = &[
    #[cfg(target_arch = "x86_64")]
    Kernel { name: "avx512", isa: Isa::Avx512, supported: super::has_avx512, function: x86::avx512 },
    #[cfg(target_arch = "x86_64")]
    Kernel { name: "avx2", isa: Isa::Avx2, supported: super::has_avx2, function: portable::avx2 },
    Kernel { name: "scalar", isa: Isa::Scalar, supported: || true, function: portable::scalar },
];

/// A version that this processor can run.
#[derive(Debug, Clone, Copy)]
pub struct RowKernel(&'static Kernel<Rows>);

/// The best version.
pub fn kernel() -> RowKernel {
    static CHOSEN: OnceLock<RowKernel> = OnceLock::new();
    *CHOSEN.get_or_init(|| RowKernel(super::choose(TABLE)))
}

/// The most rows of x for which rows of weights are read where they lie; more are faster with unpacked ones.
pub const FEW: usize = 8;

impl RowKernel {
    /// Every version that this processor can run.
    pub fn supported() -> impl Iterator<Item = RowKernel> {
        TABLE.iter().filter(|kernel| kernel.is_supported()).map(RowKernel)
    }

    /// The name in reports.
    pub fn name(self) -> &'static str {
        self.0.name
    }

    /// A tile of x · Wᵀ.
    ///
    /// # Panics
    /// If the tile reaches beyond the operands, or rows are not as long as their form says.
    pub fn multiply(self, weights: &Stored<'_>, x: &Activations<'_>, tile: &mut Tile<'_>) {
        let k = x.cols();
        assert!(tile.first_row() + tile.rows() <= x.rows(), "x has the tile's rows");
        assert!(fits(weights, k), "rows have x's columns");
        if tile.rows() > 0 && tile.cols() > 0 {
            // SAFETY: a `RowKernel` is only made of a version that the processor supports. Versions take rows of weights by
            // `Stored::row`, which checks its bounds; that rows are long enough for k columns was just checked.
            unsafe { (self.0.function)(&Operands { weights, x, k }, tile) }
        }
    }
}

#[cfg(test)]
mod tests;
