//! Many rows of x, AMX: 32 rows of x and a panel of 32 rows of weights are four tiles of sums. Tiles multiply signed numbers, so
//! nothing is raised, and x is loaded where it lies. Fewer rows are multiplied as on AVX-512.

use std::arch::x86_64::*;
use std::cell::RefCell;

use super::panel::{PANEL, fill};
use super::{Operands, x86};
use crate::runtime::kernels::amx::{self, Line, ROWS, Sums, Tiles};

/// Columns that are multiplied before the next ones are: their codes stay in the first cache while all of x passes.
const COLUMNS: usize = 1024;

/// Columns of a tile.
const STEP: usize = 64;

thread_local! {
    static CODES: RefCell<Vec<Line>> = RefCell::default();
}

/// # Safety
/// The operands' lengths fit their shape; `out` has m · n elements; the processor has AMX, AVX-512 F, BW, VL and VNNI, and the
/// process may use them.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
pub(super) unsafe fn amx(o: Operands<'_>, out: &mut [i32]) {
    // SAFETY: the caller's promise.
    unsafe { if o.m >= 8 && o.k >= 16 { multiply(o, out) } else { x86::avx512_vnni(o, out) } }
}

/// # Safety
/// As [`amx`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn multiply(o: Operands<'_>, out: &mut [i32]) {
    CODES.with_borrow_mut(|codes| {
        codes.resize(COLUMNS * PANEL / 64, Line([0; 64]));
        let mut tiles = Tiles::new(amx::DEPTH);
        for first in (0..o.n).step_by(PANEL) {
            let columns = PANEL.min(o.n - first);
            for at in (0..o.k).step_by(COLUMNS) {
                let width = COLUMNS.min(o.k - at);
                // SAFETY: the caller's promise; rows are taken below n and m, columns below k, and the buffer holds a panel.
                unsafe {
                    fill(o, first, columns, at..at + width, amx::bytes_of(codes));
                    for i in (0..o.m).step_by(ROWS) {
                        let rows = ROWS.min(o.m - i);
                        tiles.shape(rows);
                        let x = &o.x[i * o.k + at..];
                        let out = &mut out[i * o.n + first..];
                        if rows > ROWS / 2 {
                            block::<true>(x, o.k, width, codes, (rows, columns, o.n), at > 0, out);
                        } else {
                            block::<false>(x, o.k, width, codes, (rows, columns, o.n), at > 0, out);
                        }
                    }
                }
            }
        }
    });
}

/// Sets `rows` × `columns` sums, or adds to them if they are begun. Rows of x are `k` apart, those of `out` `stride`.
///
/// # Safety
/// As [`amx`]; tiles have the shapes for so many rows, and the panel has `width` columns.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn block<const TWO: bool>(
    x: &[i8],
    k: usize,
    width: usize,
    panel: &[Line],
    (rows, columns, stride): (usize, usize, usize),
    begun: bool,
    out: &mut [i32],
) {
    let second = if TWO { ROWS / 2 } else { 0 };
    let mut last = [Line([0; 64]); ROWS];
    let mut sums = Sums([[0i32; PANEL]; ROWS]);
    // SAFETY: whole steps of x end below its `width` columns, and there are as many of the panel; the last columns are copied,
    // and zeros behind them.
    unsafe {
        amx::zero::<TWO>();
        let (start, panel) = (x.as_ptr().cast::<u8>(), panel.as_ptr().cast::<u8>());
        let mut at = 0;
        while at + STEP <= width {
            let x = start.add(at);
            amx::add_int8::<TWO>([x, x.add(second * k)], k, panel.add(at * PANEL));
            at += STEP;
        }
        if at < width {
            for (i, last) in last.iter_mut().enumerate().take(rows) {
                let row = &x[i * k + at..i * k + width];
                last.0[..row.len()].copy_from_slice(bytemuck::cast_slice(row));
            }
            let x = last.as_ptr();
            amx::add_int8::<TWO>([x.cast(), x.add(second).cast()], 64, panel.add(at * PANEL));
        }
        amx::store::<_, TWO>(&mut sums);
    }
    let mask = |columns: usize| ((1u32 << columns.min(16)) - 1) as __mmask16;
    let masks = [mask(columns), mask(columns.saturating_sub(16))];
    for (i, sums) in sums.0.iter().enumerate().take(rows) {
        let out = out[i * stride..][..columns].as_mut_ptr();
        for (half, mask) in masks.into_iter().enumerate() {
            // SAFETY: of a row of `out`, its columns are read and written under a mask.
            unsafe {
                let to = out.wrapping_add(16 * half);
                let mut new = _mm512_loadu_si512(sums.as_ptr().add(16 * half).cast());
                if begun {
                    new = _mm512_add_epi32(new, _mm512_maskz_loadu_epi32(mask, to));
                }
                _mm512_mask_storeu_epi32(to, mask, new);
            }
        }
    }
}
