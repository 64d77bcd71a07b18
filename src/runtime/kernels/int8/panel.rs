//! Many rows of x, AVX-512 with VNNI. A panel is 32 rows of weights, raised by 128, in fours of columns: a lane of a
//! register is a row of weights, so that no sum goes across lanes, and 12 rows of x use each load.

use std::arch::x86_64::*;
use std::cell::RefCell;
use std::ops::Range;

use super::Operands;
use crate::runtime::kernels::transpose::transpose;

/// Rows of weights in a panel.
pub(super) const PANEL: usize = 32;

thread_local! {
    static CODES: RefCell<Vec<u8>> = RefCell::default();
}

/// Whether panels can be made of such rows, and are worth it.
pub(super) fn suits(o: &Operands<'_>) -> bool {
    o.m >= 8 && o.k.is_multiple_of(4) && o.k > 0
}

/// # Safety
/// The operands' lengths fit their shape, which [`suits`]; `out` has m · n elements; the processor has AVX-512 F, BW, VL and
/// VNNI.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
pub(super) unsafe fn multiply(o: Operands<'_>, out: &mut [i32]) {
    CODES.with_borrow_mut(|codes| {
        codes.resize(o.k.next_multiple_of(64) * PANEL, 0);
        for first in (0..o.n).step_by(PANEL) {
            let columns = PANEL.min(o.n - first);
            // SAFETY: the caller's promise; rows are taken below n, and the buffer holds a panel.
            unsafe {
                fill(o, first, columns, 0..o.k, codes);
                codes.iter_mut().for_each(|code| *code ^= 128);
                all(o, codes, first, columns, out);
            }
        }
    });
}

/// Makes a panel of `columns` rows of weights from `first` on, not raised: of their codes in `range`, and zeros up to a multiple
/// of 64.
///
/// # Safety
/// The processor has AVX-512 F, BW and VL; the range lies below k, and `codes` has a panel of it.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(super) unsafe fn fill(o: Operands<'_>, first: usize, columns: usize, range: Range<usize>, codes: &mut [u8]) {
    for half in 0..2 {
        let start = |j: usize| {
            // Columns that there are not are those of the last row again, and are not stored.
            let row = (first + 16 * half + j).min(first + columns - 1);
            &o.weights[row * o.k..][range.clone()]
        };
        let rows: [&[i8]; 16] = std::array::from_fn(start);
        for at in (0..range.len()).step_by(64) {
            let to = codes[at * PANEL + 64 * half..].as_mut_ptr();
            let mut last = [[0i8; 64]; 16];
            let starts: [*const u8; 16] = if at + 64 <= range.len() {
                std::array::from_fn(|j| rows[j][at..at + 64].as_ptr().cast())
            } else {
                last.iter_mut().zip(rows).for_each(|(last, row)| last[..row.len() - at].copy_from_slice(&row[at..]));
                std::array::from_fn(|j| last[j].as_ptr().cast())
            };
            // SAFETY: 64 codes of each row; 16 steps of 128 bytes end with the buffer, or 64 bytes before.
            unsafe { transpose(&starts, to, 4 * PANEL) };
        }
    }
}

/// # Safety
/// The panel has k / 4 steps, x R rows of k codes and sums; `out` has R rows, `stride` apart, of as many columns as `masks` say.
#[inline(always)]
unsafe fn tile<const R: usize>(
    codes: *const u8,
    x: *const i8,
    x_sums: *const i32,
    k: usize,
    out: *mut i32,
    stride: usize,
    masks: [__mmask16; 2],
) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut sums = [[_mm512_setzero_si512(); 2]; R];
        let mut i = 0;
        while i < R {
            let zero = _mm512_set1_epi32((*x_sums.add(i)).wrapping_mul(-128));
            sums[i] = [zero, zero];
            i += 1;
        }
        let mut q = 0;
        while q < k / 4 {
            let weights = [
                _mm512_loadu_si512(codes.add(4 * PANEL * q).cast()),
                _mm512_loadu_si512(codes.add(4 * PANEL * q + 64).cast()),
            ];
            let mut i = 0;
            while i < R {
                let quad = _mm512_set1_epi32(x.add(i * k + 4 * q).cast::<i32>().read_unaligned());
                sums[i][0] = _mm512_dpbusd_epi32(sums[i][0], weights[0], quad);
                sums[i][1] = _mm512_dpbusd_epi32(sums[i][1], weights[1], quad);
                i += 1;
            }
            q += 1;
        }
        let mut i = 0;
        while i < R {
            _mm512_mask_storeu_epi32(out.add(i * stride), masks[0], sums[i][0]);
            _mm512_mask_storeu_epi32(out.wrapping_add(i * stride + 16), masks[1], sums[i][1]);
            i += 1;
        }
    }
}

/// # Safety
/// As [`multiply`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn all(o: Operands<'_>, codes: &[u8], first: usize, columns: usize, out: &mut [i32]) {
    let mask = |columns: usize| ((1u32 << columns.min(16)) - 1) as __mmask16;
    let masks = [mask(columns), mask(columns.saturating_sub(16))];
    let mut i = 0;
    while i < o.m {
        // SAFETY: rows are taken below m, columns below n.
        unsafe {
            let (x, sums) = (o.x.as_ptr().add(i * o.k), o.x_sums.as_ptr().add(i));
            let to = out.as_mut_ptr().add(i * o.n + first);
            macro_rules! group {
                ($r:literal) => {{
                    tile::<$r>(codes.as_ptr(), x, sums, o.k, to, o.n, masks);
                    i += $r;
                }};
            }
            match o.m - i {
                1 => group!(1),
                2 | 3 => group!(2),
                4..8 => group!(4),
                8..12 => group!(8),
                _ => group!(12),
            }
        }
    }
}
