//! Many rows of x, AVX2. A panel is 16 rows of weights as 16-bit numbers, in pairs of columns: a lane of a register is a row of
//! weights, so that no sum goes across lanes, and 6 rows of x use each load. Products of 8-bit numbers would need fewer
//! instructions, but their pairs don't fit 16 bits where both are −128.

use std::arch::x86_64::*;
use std::cell::RefCell;
use std::ops::Range;

use super::Operands;
use crate::runtime::kernels::transpose::transpose_8;

/// Rows of weights in a panel.
const PANEL: usize = 16;

/// Panels for which the rows of x are widened once.
const PANELS: usize = 4;

/// Rows of x that use each load of weights.
const ROWS: usize = 6;

/// Columns that are multiplied before the next ones are: a panel of them stays in the first cache while all of x passes.
const COLUMNS: usize = 256;

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
    BUFFERS.with_borrow_mut(|(panels, rows)| {
        panels.resize(PANELS * PANEL * COLUMNS, 0);
        rows.resize(o.m * COLUMNS, 0);
        for (band, first) in
            (0..o.n).step_by(PANELS * PANEL).flat_map(|band| (0..o.k).step_by(COLUMNS).map(move |first| (band, first)))
        {
            let columns = first..o.k.min(first + COLUMNS);
            let width = columns.len().next_multiple_of(16);
            for (row, wide) in rows.chunks_exact_mut(width).enumerate().take(o.m) {
                // SAFETY: the processor has AVX2.
                unsafe { widen(&o.x[row * o.k..][columns.clone()], wide) };
            }
            for (panel, at) in panels.chunks_exact_mut(PANEL * COLUMNS).zip((band..o.n).step_by(PANEL)) {
                let panel = &mut panel[..PANEL * width];
                // SAFETY: the processor has AVX2.
                unsafe { fill(o, at, columns.clone(), panel) };
                for (i, rows) in rows[..o.m * width].chunks(ROWS * width).enumerate() {
                    let begins = ROWS * i * o.n + at;
                    let to = Out { all: &mut out[begins..], stride: o.n, width: PANEL.min(o.n - at), begun: first > 0 };
                    // SAFETY: the panel and the rows have `width` columns; the rows of `out`, of n each, do not end before
                    // as many more as the panel has rows.
                    unsafe {
                        match rows.len() / width {
                            1 => tile::<1>(panel, rows, width, to),
                            2 => tile::<2>(panel, rows, width, to),
                            3 => tile::<3>(panel, rows, width, to),
                            4 => tile::<4>(panel, rows, width, to),
                            5 => tile::<5>(panel, rows, width, to),
                            _ => tile::<ROWS>(panel, rows, width, to),
                        }
                    }
                }
            }
        }
    });
}

/// Where sums go.
struct Out<'a> {
    /// From the first one on.
    all: &'a mut [i32],
    /// From a row to the next.
    stride: usize,
    /// Columns: at most a panel's.
    width: usize,
    /// Whether they are added to what is there.
    begun: bool,
}

/// A row as 16-bit numbers, filled up with zeros.
///
/// # Safety
/// The processor has AVX2.
#[target_feature(enable = "avx2")]
pub(super) unsafe fn widen(row: &[i8], out: &mut [i16]) {
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
pub(super) unsafe fn sixteen(row: &[i8], at: usize) -> __m256i {
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
unsafe fn fill(o: Operands<'_>, first: usize, columns: Range<usize>, panel: &mut [i16]) {
    for half in 0..2 {
        // Columns that there are not are those of the last row again, and are not stored.
        let start = |j: usize| &o.weights[(first + 8 * half + j).min(o.n - 1) * o.k..][columns.clone()];
        let rows: [&[i8]; 8] = std::array::from_fn(start);
        for at in (0..columns.len()).step_by(16) {
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
/// The panel has `width` columns, an even number, `x` R rows of as many; `out` has R rows.
#[target_feature(enable = "avx2")]
unsafe fn tile<const R: usize>(panel: &[i16], x: &[i16], width: usize, out: Out<'_>) {
    debug_assert!(panel.len() == PANEL * width && x.len() >= R * width);
    debug_assert!(out.all.len() >= (R - 1) * out.stride + out.width);
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
            let to = &mut out.all[i * out.stride..][..out.width];
            let mut some = [0; PANEL];
            let whole = to.len() == PANEL;
            if out.begun && !whole {
                some[..to.len()].copy_from_slice(to);
            }
            let all = if whole { to.as_mut_ptr() } else { some.as_mut_ptr() };
            let mut half = 0;
            while half < 2 {
                let at = all.add(8 * half).cast::<__m256i>();
                let before = if out.begun { _mm256_loadu_si256(at) } else { _mm256_setzero_si256() };
                _mm256_storeu_si256(at, _mm256_add_epi32(sums[half], before));
                half += 1;
            }
            if !whole {
                to.copy_from_slice(&some[..to.len()]);
            }
        }
    }
}
