//! Many rows of x, AVX2. A panel is 16 rows of weights as 16-bit numbers, in pairs of columns: a lane of a register is a row of
//! weights, so that no sum goes across lanes, and 6 rows of x use each load. Products of 8-bit numbers would need fewer
//! instructions, but their pairs don't fit 16 bits where both are −128.

use std::arch::x86_64::*;
use std::cell::RefCell;

use super::Operands;
use crate::runtime::kernels::transpose::transpose_8;

/// Rows of weights in a panel.
const PANEL: usize = 16;

/// Panels that share the widened rows of x.
const PANELS: usize = 4;

/// Rows of x that use each load of weights.
const ROWS: usize = 6;

thread_local! {
    /// Panels, and rows of x.
    static BUFFERS: RefCell<(Vec<i16>, Vec<i16>)> = RefCell::default();
}

/// Whether panels are worth being made.
pub(super) fn suits(o: &Operands<'_>) -> bool {
    o.m >= 8 && o.k > 0
}

/// # Safety
/// The operands' lengths fit their shape, which [`suits`]; `out` has m · n elements; the processor has AVX2.
#[target_feature(enable = "avx2")]
pub(super) unsafe fn multiply(o: Operands<'_>, out: &mut [i32]) {
    let width = o.k.next_multiple_of(16);
    BUFFERS.with_borrow_mut(|(panels, rows)| {
        panels.resize(PANELS * PANEL * width, 0);
        rows.resize(ROWS * width, 0);
        for first in (0..o.n).step_by(PANELS * PANEL) {
            let columns = (PANELS * PANEL).min(o.n - first);
            for (p, panel) in panels.chunks_exact_mut(PANEL * width).enumerate().take(columns.div_ceil(PANEL)) {
                // SAFETY: the processor has AVX2.
                unsafe { fill(o, first + p * PANEL, panel) };
            }
            for i in (0..o.m).step_by(ROWS) {
                let count = ROWS.min(o.m - i);
                for (row, wide) in rows.chunks_exact_mut(width).enumerate().take(count) {
                    // SAFETY: the processor has AVX2.
                    unsafe { widen(&o.x[(i + row) * o.k..][..o.k], wide) };
                }
                for (p, panel) in panels.chunks_exact(PANEL * width).enumerate().take(columns.div_ceil(PANEL)) {
                    let at = first + p * PANEL;
                    let columns = PANEL.min(o.n - at);
                    let out = &mut out[i * o.n + at..];
                    // SAFETY: the panel and the rows have `width` columns; the rows of `out`, of n each, do not end before
                    // `columns` more.
                    unsafe {
                        match count {
                            1 => tile::<1>(panel, rows, width, out, o.n, columns),
                            2 => tile::<2>(panel, rows, width, out, o.n, columns),
                            3 => tile::<3>(panel, rows, width, out, o.n, columns),
                            4 => tile::<4>(panel, rows, width, out, o.n, columns),
                            5 => tile::<5>(panel, rows, width, out, o.n, columns),
                            _ => tile::<ROWS>(panel, rows, width, out, o.n, columns),
                        }
                    }
                }
            }
        }
    });
}

/// A row as 16-bit numbers, filled up with zeros.
///
/// # Safety
/// The processor has AVX2.
#[target_feature(enable = "avx2")]
unsafe fn widen(row: &[i8], out: &mut [i16]) {
    for (at, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        // SAFETY: 16 numbers are written.
        unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), sixteen(row, 16 * at)) };
    }
}

/// 16 numbers of a row, and zeros behind its end.
///
/// # Safety
/// The processor has AVX2.
#[inline(always)]
unsafe fn sixteen(row: &[i8], at: usize) -> __m256i {
    let mut last = [0; 16];
    let whole = row.get(at..at + 16).unwrap_or_else(|| {
        last[..row.len() - at].copy_from_slice(&row[at..]);
        &last
    });
    // SAFETY: 16 numbers are read.
    unsafe { _mm256_cvtepi8_epi16(_mm_loadu_si128(whole.as_ptr().cast())) }
}

/// # Safety
/// The processor has AVX2.
#[target_feature(enable = "avx2")]
unsafe fn fill(o: Operands<'_>, first: usize, panel: &mut [i16]) {
    for half in 0..2 {
        // Columns that there are not are those of the last row again, and are not stored.
        let start = |j: usize| &o.weights[(first + 8 * half + j).min(o.n - 1) * o.k..][..o.k];
        let rows: [&[i8]; 8] = std::array::from_fn(start);
        for at in (0..o.k).step_by(16) {
            // SAFETY: the instruction set is there; 8 steps of 16 pairs end with the panel, or 8 pairs before.
            unsafe {
                let mut words = [_mm256_setzero_si256(); 8];
                for (word, row) in words.iter_mut().zip(rows) {
                    *word = sixteen(row, at);
                }
                let to = &mut panel[at * PANEL + 16 * half..][..7 * 2 * PANEL + 16];
                transpose_8(words, to.as_mut_ptr().cast(), 4 * PANEL);
            }
        }
    }
}

/// # Safety
/// The panel has `width` columns, an even number, `x` R rows of as many; `out` has R rows, `stride` apart, of `columns` columns.
#[target_feature(enable = "avx2")]
unsafe fn tile<const R: usize>(panel: &[i16], x: &[i16], width: usize, out: &mut [i32], stride: usize, columns: usize) {
    debug_assert!(panel.len() == PANEL * width && x.len() >= R * width && out.len() >= (R - 1) * stride + columns);
    // SAFETY: the caller's promise.
    unsafe {
        let (panel, x) = (panel.as_ptr(), x.as_ptr());
        let mut sums = [[_mm256_setzero_si256(); 2]; R];
        let mut q = 0;
        while q < width {
            let weights =
                [_mm256_loadu_si256(panel.add(PANEL * q).cast()), _mm256_loadu_si256(panel.add(PANEL * q + 16).cast())];
            let mut i = 0;
            while i < R {
                let pair = _mm256_set1_epi32(x.add(i * width + q).cast::<i32>().read_unaligned());
                sums[i][0] = _mm256_add_epi32(sums[i][0], _mm256_madd_epi16(weights[0], pair));
                sums[i][1] = _mm256_add_epi32(sums[i][1], _mm256_madd_epi16(weights[1], pair));
                i += 1;
            }
            q += 2;
        }
        for (i, sums) in sums.into_iter().enumerate() {
            let mut all = [0; PANEL];
            _mm256_storeu_si256(all.as_mut_ptr().cast(), sums[0]);
            _mm256_storeu_si256(all.as_mut_ptr().add(8).cast(), sums[1]);
            out[i * stride..][..columns].copy_from_slice(&all[..columns]);
        }
    }
}
