//! NEON. A lane is a row of weights, for few rows of x as for many, and a total goes through runs one by one, so that its bits
//! depend on nothing but the row's.

mod codes;
mod panel;
mod row;

use super::{FEW, Operands};
use crate::runtime::kernels::tiles::Tile;

/// Columns whose scales are taken up at a time: 8 runs of 32, or 16 of 16.
const SPAN: usize = 256;

/// Rows of weights that are taken up together.
const FOUR: usize = 4;

/// PRODUCT says whether there is an instruction for four products.
///
/// # Safety
/// Weights and x have k columns, a multiple of 32, and the tile lies within them; the processor has NEON, with what PRODUCT says.
pub(super) unsafe fn multiply<const PRODUCT: bool>(o: &Operands<'_>, tile: &mut Tile<'_>) {
    // SAFETY: the caller's promise.
    unsafe {
        if tile.rows() < FEW {
            codes::dispatch(o, row::Few::<PRODUCT>(tile));
        } else {
            codes::dispatch(o, panel::Many::<PRODUCT>(tile));
        }
    }
}
