//! A few rows of activations in int16 and rows of packed int4. 16 words of 16 bits hold 64 codes, four to a word: shifted and
//! masked, they are multiplied by x, which lies in the same order. A lane's codes are those of 8 columns that follow one
//! another, so that one half of the lanes has one run of 32, the other half the next.

use std::arch::x86_64::*;
use std::cell::RefCell;

use super::super::Operands;
use super::super::expand::{self, Row};
use crate::encoding::Form;
use crate::runtime::kernels::avx2::{STREAMS, across};
use crate::runtime::kernels::tiles::Tile;

/// Columns whose codes are read at a time.
const COLUMNS: usize = 64;

/// How far ahead of the loads a row is asked for.
const AHEAD: usize = 1024;

/// What is made of x and of the scales of weights.
#[derive(Default)]
struct Buffers {
    k: usize,
    /// `[rows, k / 64, 4, 16]`: of 64 columns, those of the words' first codes, then those of their second ones, and so on.
    x: Vec<i16>,
    /// `[rows, k / 8]`: what sums of 8 begin with, since codes are raised by 8.
    zeros: Vec<i32>,
    /// Of each stream.
    rows: [Row; STREAMS],
}

thread_local! {
    static BUFFERS: RefCell<Buffers> = RefCell::default();
}

/// Whether rows are multiplied here.
pub(super) fn suits(o: &Operands<'_, i16>) -> bool {
    matches!(o.weights.form, Form::Packed { bits: 4, .. }) && o.k.is_multiple_of(COLUMNS)
}

/// # Safety
/// As [`super::wide`], for what [`suits`].
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn multiply(o: &Operands<'_, i16>, tile: &mut Tile<'_>) {
    BUFFERS.with_borrow_mut(|buffers| {
        let (first, m, k) = (tile.first_row(), tile.rows(), o.k);
        let x = &o.x.codes[first * k..][..m * k];
        buffers.x.resize(m * k, 0);
        buffers.zeros.clear();
        buffers.zeros.extend(x.as_chunks::<8>().0.iter().map(|x| -8 * x.iter().map(|x| i32::from(*x)).sum::<i32>()));
        for (x, to) in x.as_chunks::<COLUMNS>().0.iter().zip(buffers.x.as_chunks_mut::<COLUMNS>().0) {
            x.iter().enumerate().for_each(|(at, x)| to[at % 4 * 16 + at / 4] = *x);
        }
        if buffers.k != k {
            buffers.k = k;
            buffers.rows = std::array::from_fn(|_| Row::new(k));
        }
        let mut i = 0;
        while i < m {
            // SAFETY: the caller's promise.
            unsafe {
                match m - i {
                    1 => columns::<1>(o, tile, i, buffers),
                    _ => columns::<2>(o, tile, i, buffers),
                }
            }
            i += 2;
        }
    });
}

/// M rows of the tile, from row `i` on.
///
/// # Safety
/// As [`multiply`].
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn columns<const M: usize>(o: &Operands<'_, i16>, tile: &mut Tile<'_>, i: usize, buffers: &mut Buffers) {
    let (k, first, cols) = (o.k, tile.first_col(), tile.cols());
    let (x, zeros) = (&buffers.x[i * k..], &buffers.zeros[i * k / 8..]);
    let x_scales = &o.x.scales[(tile.first_row() + i) * k / 32..];
    let step = cols.div_ceil(STREAMS);
    for j in 0..step {
        // Columns that there are not are the last one again, and are not stored.
        let at = |stream: usize| first + (j + stream * step).min(cols - 1);
        for (stream, row) in buffers.rows.iter_mut().enumerate() {
            expand::integer_scales(o.weights, at(stream), k, row);
        }
        let codes: [&[u8]; STREAMS] = std::array::from_fn(|stream| &o.weights.row(at(stream))[..k / 2]);
        let scales: [&[f32]; STREAMS] = std::array::from_fn(|stream| &buffers.rows[stream].scales[..k / 32]);
        // SAFETY: rows of weights and of x have k columns.
        let totals = unsafe { dots::<M>(codes, scales, (x, zeros, x_scales), k) };
        for (column, totals) in (j..cols).step_by(step).zip(totals) {
            totals.into_iter().enumerate().for_each(|(at, total)| tile.row(i + at)[column] = total);
        }
    }
}

/// The products of rows of codes and M rows of x.
///
/// # Safety
/// The processor has AVX2 and FMA; rows have k columns, a multiple of [`COLUMNS`].
#[inline(always)]
unsafe fn dots<const M: usize>(
    codes: [&[u8]; STREAMS],
    scales: [&[f32]; STREAMS],
    (x, zeros, x_scales): (&[i16], &[i32], &[f32]),
    k: usize,
) -> [[f32; M]; STREAMS] {
    // SAFETY: what is read lies below column k of M rows.
    unsafe {
        let (x, zeros, x_scales) = (x.as_ptr(), zeros.as_ptr(), x_scales.as_ptr());
        let fifteen = _mm256_set1_epi16(15);
        let halves = _mm256_set_epi32(1, 1, 1, 1, 0, 0, 0, 0);
        let mut sums = [[_mm256_setzero_ps(); M]; STREAMS];
        let mut at = 0;
        while at < k {
            let mut stream = 0;
            while stream < STREAMS {
                let row = codes[stream].as_ptr().add(at / 2);
                if at % 128 == 0 {
                    _mm_prefetch::<_MM_HINT_T0>(row.wrapping_add(AHEAD).cast());
                }
                let words = _mm256_loadu_si256(row.cast());
                let parts = [
                    _mm256_and_si256(words, fifteen),
                    _mm256_and_si256(_mm256_srli_epi16::<4>(words), fifteen),
                    _mm256_and_si256(_mm256_srli_epi16::<8>(words), fifteen),
                    _mm256_srli_epi16::<12>(words),
                ];
                // The scales of two runs.
                let own = _mm_castpd_ps(_mm_load_sd(scales[stream].as_ptr().add(at / 32).cast()));
                let mut i = 0;
                while i < M {
                    let numbers = x.add(i * k + at);
                    let mut products = _mm256_loadu_si256(zeros.add((i * k + at) / 8).cast());
                    let mut part = 0;
                    while part < 4 {
                        let numbers = _mm256_loadu_si256(numbers.add(16 * part).cast());
                        products = _mm256_add_epi32(products, _mm256_madd_epi16(parts[part], numbers));
                        part += 1;
                    }
                    let both = _mm_castpd_ps(_mm_load_sd(x_scales.add((i * k + at) / 32).cast()));
                    let scale = _mm256_castps128_ps256(_mm_mul_ps(own, both));
                    let scale = _mm256_permutevar8x32_ps(scale, halves);
                    sums[stream][i] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(products), scale, sums[stream][i]);
                    i += 1;
                }
                stream += 1;
            }
            at += COLUMNS;
        }
        let mut totals = [[0.0; M]; STREAMS];
        for (totals, sums) in totals.iter_mut().zip(sums) {
            for (total, all) in totals.iter_mut().zip(sums) {
                *total = across(all);
            }
        }
        totals
    }
}
