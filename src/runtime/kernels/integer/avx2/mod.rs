//! AVX2. 256 columns at a time: 8 runs of 32, or 16 of 16.

mod expand;
mod panel;
mod row;

use super::{FEW, Operands};
use crate::runtime::kernels::tiles::Tile;

/// Columns that are expanded at a time.
const SPAN: usize = 256;

/// # Safety
/// The processor has AVX2, FMA and F16C. Weights and x have k columns, a multiple of 32, and the tile lies within them.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn avx2(o: &Operands<'_>, tile: &mut Tile<'_>) {
    // SAFETY: the caller's promise.
    unsafe {
        if tile.rows() < FEW {
            expand::dispatch(o, row::Few(tile));
        } else {
            expand::dispatch(o, panel::Many(tile));
        }
    }
}

/// The same for activations in int16. Only in steps of a session have few rows an order of sums of their own.
///
/// # Safety
/// As [`avx2`]; the weights are integers without blocks.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn wide(o: &Operands<'_, i16>, steps: bool, tile: &mut Tile<'_>) {
    // SAFETY: the caller's promise.
    unsafe {
        if tile.rows() >= FEW || !steps {
            expand::dispatch_wide::<true>(o, panel::Many(tile));
        } else {
            expand::dispatch_wide::<false>(o, row::Few(tile));
        }
    }
}

/// Activations as they may lie.
trait Code: Copy {
    /// Whether they have 16 bits.
    const WIDE: bool;

    /// The same in 16 bits.
    fn wide(self) -> i16;

    /// The upper, signed one of two bytes; or the number, if it has 8 bits.
    fn coarse(self) -> i8;
}

impl Code for i8 {
    const WIDE: bool = false;

    #[inline(always)]
    fn wide(self) -> i16 {
        i16::from(self)
    }

    #[inline(always)]
    fn coarse(self) -> i8 {
        self
    }
}

impl Code for i16 {
    const WIDE: bool = true;

    #[inline(always)]
    fn wide(self) -> i16 {
        self
    }

    #[inline(always)]
    fn coarse(self) -> i8 {
        (self >> 8) as i8
    }
}
