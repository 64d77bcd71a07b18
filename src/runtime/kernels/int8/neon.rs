//! NEON. Both sides are multiplied as they lie: a lane of a sum has the products of every fourth 4 columns, and lanes are added
//! at the end of a row.

use std::arch::aarch64::*;

use super::Operands;
use super::tile::{Vector, tile};
use crate::runtime::kernels::neon;

/// Rows of x in a tile. With [`COLS`], 24 sums, 4 registers of weights and one of x.
const ROWS: usize = 6;

/// Rows of weights in a tile.
const COLS: usize = 4;

/// 16 columns at a time. PRODUCT says whether there is an instruction for four products.
struct Neon<const PRODUCT: bool>;

impl<const PRODUCT: bool> Vector for Neon<PRODUCT> {
    const LANES: usize = 16;
    type Row = int8x16_t;
    type Sums = int32x4_t;

    #[inline(always)]
    unsafe fn x(at: *const i8) -> int8x16_t {
        // SAFETY: LANES bytes at `at`.
        unsafe { vld1q_s8(at) }
    }
    #[inline(always)]
    unsafe fn weight(at: *const i8) -> int8x16_t {
        // SAFETY: the same.
        unsafe { vld1q_s8(at) }
    }
    #[inline(always)]
    unsafe fn zero() -> int32x4_t {
        // SAFETY: the instruction set is there.
        unsafe { vdupq_n_s32(0) }
    }
    #[inline(always)]
    unsafe fn add(sums: int32x4_t, weight: int8x16_t, x: int8x16_t) -> int32x4_t {
        // SAFETY: the instruction set is there.
        unsafe { neon::dot::<PRODUCT>(sums, weight, x) }
    }
    #[inline(always)]
    unsafe fn total(sums: int32x4_t, _: i32) -> i32 {
        // SAFETY: the instruction set is there.
        unsafe { vaddvq_s32(sums) }
    }
}

/// The products of M rows of x, from row `i` on, with all rows of weights.
///
/// # Safety
/// As [`dot`].
unsafe fn strip<const PRODUCT: bool, const M: usize>(o: Operands<'_>, i: usize, out: &mut [i32]) {
    let whole = o.n - o.n % COLS;
    // SAFETY: rows are taken below m and n.
    unsafe {
        let (x, sums) = (o.x.as_ptr().add(i * o.k), o.x_sums.as_ptr().add(i));
        let (w, out) = (o.weights.as_ptr(), out.as_mut_ptr().add(i * o.n));
        for j in (0..whole).step_by(COLS) {
            tile::<Neon<PRODUCT>, M, COLS>(w.add(j * o.k), x, sums, o.k, out.add(j), o.n);
        }
        for j in whole..o.n {
            tile::<Neon<PRODUCT>, M, 1>(w.add(j * o.k), x, sums, o.k, out.add(j), o.n);
        }
    }
}

/// All products. PRODUCT says whether there is an instruction for four of them.
///
/// # Safety
/// The operands' lengths fit their shape, `out` has m · n elements, and the processor has NEON, with what PRODUCT says.
pub(super) unsafe fn dot<const PRODUCT: bool>(o: Operands<'_>, out: &mut [i32]) {
    for i in (0..o.m).step_by(ROWS) {
        // SAFETY: the caller's promise; rows are taken below m.
        unsafe {
            match o.m - i {
                1 => strip::<PRODUCT, 1>(o, i, out),
                2 => strip::<PRODUCT, 2>(o, i, out),
                3 => strip::<PRODUCT, 3>(o, i, out),
                4 => strip::<PRODUCT, 4>(o, i, out),
                5 => strip::<PRODUCT, 5>(o, i, out),
                _ => strip::<PRODUCT, ROWS>(o, i, out),
            }
        }
    }
}
