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
            row::multiply(o, tile);
        } else {
            panel::multiply(o, tile);
        }
    }
}
