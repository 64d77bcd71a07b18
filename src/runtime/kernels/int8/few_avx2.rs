//! Few rows of x, AVX2: rows of weights are read where they lie, and both sides become 16 bits wide, whose products hold any
//! pair's sum exactly in 32.

use std::arch::x86_64::*;
use std::cell::RefCell;

use super::Operands;
use super::panel_avx2::{sixteen, widen};
use crate::runtime::kernels::avx2::{STREAMS, across_integers};

/// The most rows of x.
const MOST: usize = 3;

/// How far ahead of the loads a row is asked for.
const AHEAD: usize = 1024;

thread_local! {
    /// Rows of x.
    static ROWS: RefCell<Vec<i16>> = RefCell::default();
}

/// Whether rows are multiplied here.
pub(super) fn suits(o: &Operands<'_>) -> bool {
    o.m <= MOST && o.k > 0
}

/// # Safety
/// The operands' lengths fit their shape, which [`suits`]; `out` has m · n elements; the processor has AVX2.
#[target_feature(enable = "avx2")]
pub(super) unsafe fn multiply(o: Operands<'_>, out: &mut [i32]) {
    let width = o.k.next_multiple_of(16);
    ROWS.with_borrow_mut(|rows| {
        rows.resize(o.m * width, 0);
        for (row, wide) in o.x.chunks_exact(o.k).zip(rows.chunks_exact_mut(width)) {
            // SAFETY: the processor has AVX2.
            unsafe { widen(row, wide) };
        }
        // SAFETY: the caller's promise; there are m rows of x.
        unsafe {
            match o.m {
                1 => all::<1>(o, rows, width, out),
                2 => all::<2>(o, rows, width, out),
                _ => all::<MOST>(o, rows, width, out),
            }
        }
    });
}

/// # Safety
/// As [`multiply`]; there are M rows of x, of `width` numbers.
#[target_feature(enable = "avx2")]
unsafe fn all<const M: usize>(o: Operands<'_>, x: &[i16], width: usize, out: &mut [i32]) {
    let step = o.n.div_ceil(STREAMS);
    for j in 0..step {
        // Rows that there are not are the last one again, and are not stored.
        let rows: [&[i8]; STREAMS] =
            std::array::from_fn(|stream| &o.weights[(j + stream * step).min(o.n - 1) * o.k..][..o.k]);
        // SAFETY: the caller's promise.
        let sums = unsafe { dots::<M>(rows, x, width) };
        for (stream, sums) in sums.into_iter().enumerate() {
            for (i, sum) in sums.into_iter().enumerate() {
                if j + stream * step < o.n {
                    out[i * o.n + j + stream * step] = sum;
                }
            }
        }
    }
}

/// The products of rows of weights and M rows of x.
///
/// # Safety
/// The processor has AVX2; there are M rows of x, of `width` numbers, the rows' columns and zeros.
#[inline(always)]
unsafe fn dots<const M: usize>(rows: [&[i8]; STREAMS], x: &[i16], width: usize) -> [[i32; M]; STREAMS] {
    // SAFETY: columns are read below the rows' length; the last ones, if they are fewer than 16, from a copy.
    unsafe {
        let k = rows[0].len();
        let mut sums = [[_mm256_setzero_si256(); M]; STREAMS];
        macro_rules! add {
            ($stream:ident, $weights:expr, $at:expr) => {
                let mut i = 0;
                while i < M {
                    let numbers = _mm256_loadu_si256(x.as_ptr().add(i * width + $at).cast());
                    let pairs = _mm256_madd_epi16($weights, numbers);
                    sums[$stream][i] = _mm256_add_epi32(sums[$stream][i], pairs);
                    i += 1;
                }
            };
        }
        let mut at = 0;
        while at + 64 <= k {
            let mut stream = 0;
            while stream < STREAMS {
                let row = rows[stream].as_ptr().add(at);
                _mm_prefetch::<_MM_HINT_T0>(row.wrapping_add(AHEAD));
                let mut part = 0;
                while part < 4 {
                    let weights = _mm256_cvtepi8_epi16(_mm_loadu_si128(row.add(16 * part).cast()));
                    add!(stream, weights, at + 16 * part);
                    part += 1;
                }
                stream += 1;
            }
            at += 64;
        }
        while at < k {
            let mut stream = 0;
            while stream < STREAMS {
                add!(stream, sixteen(rows[stream], at), at);
                stream += 1;
            }
            at += 16;
        }
        let mut totals = [[0; M]; STREAMS];
        for (totals, sums) in totals.iter_mut().zip(sums) {
            for (total, sum) in totals.iter_mut().zip(sums) {
                *total = across_integers(sum);
            }
        }
        totals
    }
}
