//! AVX-512 with VNNI, and AMX beside it.

mod amx;
mod expand;
mod panel;
mod row;

use super::{FEW, Operands};
use crate::runtime::kernels::tiles::Tile;

/// # Safety
/// The processor has AVX-512 F, BW, VL and VNNI. Weights and x have k columns, a multiple of 32, and the tile lies within
/// them.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
pub(super) unsafe fn avx512_vnni(o: &Operands<'_>, tile: &mut Tile<'_>) {
    // SAFETY: the caller's promise.
    unsafe {
        if tile.rows() < FEW {
            row::multiply(o, tile);
        } else {
            panel::multiply(o, tile);
        }
    }
}

/// # Safety
/// As [`avx512_vnni`], and the processor has AMX, which the process may use.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
pub(super) unsafe fn amx(o: &Operands<'_>, tile: &mut Tile<'_>) {
    // SAFETY: the caller's promise.
    unsafe {
        if tile.rows() < FEW {
            row::multiply(o, tile);
        } else {
            amx::multiply(o, tile);
        }
    }
}
