//! A few rows of x: each row of weights is expanded and multiplied at once.

use std::arch::x86_64::*;

use super::super::Operands;
use super::super::expand::Row;
use super::SPAN;
use super::expand::{self, Spans};
use crate::runtime::kernels::tiles::Tile;

/// What M rows of x, one after the other, have.
#[derive(Clone, Copy)]
struct Rows {
    codes: *const i8,
    quads: *const i32,
    scales: *const f32,
    sums: *const f32,
    k: usize,
}

/// Of 8 runs of 16, the two whose codes are in a vector of 32: the one of each lane of sums.
static LANES: [[i32; 8]; 4] =
    [[0, 0, 0, 0, 1, 1, 1, 1], [2, 2, 2, 2, 3, 3, 3, 3], [4, 4, 4, 4, 5, 5, 5, 5], [6, 6, 6, 6, 7, 7, 7, 7]];

/// Up to 8 numbers, and zeros.
///
/// # Safety
/// There are `count` of them.
#[inline(always)]
unsafe fn some(at: *const f32, count: usize) -> __m256 {
    // SAFETY: the caller's promise.
    unsafe {
        if count >= 8 {
            return _mm256_loadu_ps(at);
        }
        let lanes = _mm256_set_epi32(7, 6, 5, 4, 3, 2, 1, 0);
        _mm256_maskload_ps(at, _mm256_cmpgt_epi32(_mm256_set1_epi32(count as i32), lanes))
    }
}

/// 16 codes as signed 16-bit numbers.
#[inline(always)]
unsafe fn signed(codes: *const u8, bias: __m256i) -> __m256i {
    // SAFETY: the caller's promise: 16 codes.
    unsafe { _mm256_sub_epi16(_mm256_cvtepu8_epi16(_mm_loadu_si128(codes.cast())), bias) }
}

/// 16 numbers of x as 16-bit ones.
#[inline(always)]
unsafe fn wide(x: *const i8) -> __m256i {
    // SAFETY: the caller's promise: 16 numbers.
    unsafe { _mm256_cvtepi8_epi16(_mm_loadu_si128(x.cast())) }
}

/// The products of row `j` of the matrix and M rows of x.
///
/// # Safety
/// The row has k columns, and so have the rows of x.
#[inline(always)]
unsafe fn dot<F: Spans, const M: usize>(o: &Operands<'_>, j: usize, row: &mut Row, x: Rows) -> [f32; M] {
    let bytes = o.weights.row(j);
    let raised = o.shape.bias.map_or(0, |bits| 1i16 << bits);
    // SAFETY: what is read of x lies below k columns of M rows.
    unsafe {
        let shift = _mm_cvtsi32_si128(o.shape.bias.unwrap_or(0) as i32);
        let (bias, ones) = (_mm256_set1_epi16(raised), _mm256_set1_epi16(1));
        let mut sums = [[_mm256_setzero_ps(); 2]; M];
        let mut less = [_mm256_setzero_ps(); M];
        let mut first = 0;
        while first < x.k {
            let count = (x.k - first).min(SPAN);
            F::expand(o, j, bytes, first, count, row);
            // For each row of x, the scales of runs of 32, or of 16.
            let mut scales = [[_mm256_setzero_ps(); 2]; M];
            let own = row.scales.as_ptr().add(first / F::RUN);
            let mut i = 0;
            while i < M {
                let at = i * (x.k / 32) + first / 32;
                let x_scales = some(x.scales.add(at), count / 32);
                if F::RUN == 32 {
                    scales[i][0] = _mm256_mul_ps(_mm256_loadu_ps(own), x_scales);
                    if F::MINIMA {
                        let minima = _mm256_loadu_ps(row.minima.as_ptr().add(first / 32));
                        less[i] = _mm256_fmadd_ps(minima, some(x.sums.add(at), count / 32), less[i]);
                    }
                } else {
                    let low = _mm256_permutevar8x32_ps(x_scales, _mm256_set_epi32(3, 3, 2, 2, 1, 1, 0, 0));
                    let high = _mm256_permutevar8x32_ps(x_scales, _mm256_set_epi32(7, 7, 6, 6, 5, 5, 4, 4));
                    scales[i] =
                        [_mm256_mul_ps(_mm256_loadu_ps(own), low), _mm256_mul_ps(_mm256_loadu_ps(own.add(8)), high)];
                }
                i += 1;
            }
            let mut step = 0;
            while 32 * step < count {
                let at = first + 32 * step;
                let codes = row.codes.as_ptr().add(at);
                let mut i = 0;
                while i < M {
                    let numbers = x.codes.add(i * x.k + at);
                    let scale = if F::RUN == 32 {
                        _mm256_permutevar8x32_ps(scales[i][0], _mm256_set1_epi32(step as i32))
                    } else {
                        let lanes = _mm256_loadu_si256(LANES[step % 4].as_ptr().cast());
                        _mm256_permutevar8x32_ps(scales[i][step / 4], lanes)
                    };
                    if F::BITS < 8 {
                        // The codes of a lane are those of one quad of x, and so of one run.
                        let codes = _mm256_loadu_si256(codes.cast());
                        let pairs = _mm256_maddubs_epi16(codes, _mm256_loadu_si256(numbers.cast()));
                        let mut products = _mm256_madd_epi16(pairs, ones);
                        if raised != 0 {
                            let quads = _mm256_loadu_si256(x.quads.add((i * x.k + at) / 4).cast());
                            products = _mm256_add_epi32(products, _mm256_sll_epi32(quads, shift));
                        }
                        sums[i][step % 2] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(products), scale, sums[i][step % 2]);
                    } else {
                        let low = _mm256_madd_epi16(signed(codes, bias), wide(numbers));
                        let high = _mm256_madd_epi16(signed(codes.add(16), bias), wide(numbers.add(16)));
                        if F::RUN == 32 {
                            let products = _mm256_cvtepi32_ps(_mm256_add_epi32(low, high));
                            sums[i][step % 2] = _mm256_fmadd_ps(products, scale, sums[i][step % 2]);
                        } else {
                            let first = _mm256_permute2f128_ps::<0x00>(scale, scale);
                            let second = _mm256_permute2f128_ps::<0x11>(scale, scale);
                            sums[i][0] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(low), first, sums[i][0]);
                            sums[i][1] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(high), second, sums[i][1]);
                        }
                    }
                    i += 1;
                }
                step += 1;
            }
            first += SPAN;
        }
        let mut totals = [0.0; M];
        let mut i = 0;
        while i < M {
            let all = _mm256_sub_ps(_mm256_add_ps(sums[i][0], sums[i][1]), less[i]);
            let four = _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps::<1>(all));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            totals[i] = _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)));
            i += 1;
        }
        totals
    }
}

struct Few<'a, 'b>(&'a mut Tile<'b>);

impl expand::Visitor for Few<'_, '_> {
    #[inline(always)]
    unsafe fn visit<F: Spans>(self, o: &Operands<'_>) {
        // SAFETY: the caller's promise; the row is for k columns.
        Row::with(o.k, |row| unsafe { all::<F>(o, self.0, row) });
    }
}

/// # Safety
/// As [`super::avx2`].
#[inline(always)]
pub(super) unsafe fn multiply(o: &Operands<'_>, tile: &mut Tile<'_>) {
    // SAFETY: the caller's promise.
    unsafe { expand::dispatch(o, Few(tile)) }
}

/// # Safety
/// As [`super::avx2`], with a row for k columns.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn all<F: Spans>(o: &Operands<'_>, tile: &mut Tile<'_>, row: &mut Row) {
    let (m, stride) = (tile.rows(), tile.stride());
    let out = tile.start();
    for j in 0..tile.cols() {
        // SAFETY: the caller's promise: the tile lies within the operands.
        unsafe {
            let mut i = 0;
            while i < m {
                let at = tile.first_row() + i;
                let x = Rows {
                    codes: o.x.codes.as_ptr().add(at * o.k),
                    quads: o.x.quads.as_ptr().add(at * o.k / 4),
                    scales: o.x.scales.as_ptr().add(at * o.k / 32),
                    sums: o.x.sums.as_ptr().add(at * o.k / 32),
                    k: o.k,
                };
                macro_rules! group {
                    ($m:literal) => {{
                        let totals = dot::<F, $m>(o, tile.first_col() + j, row, x);
                        let mut at = 0;
                        while at < $m {
                            *out.add((i + at) * stride + j) = totals[at];
                            at += 1;
                        }
                        i += $m;
                    }};
                }
                match m - i {
                    1 => group!(1),
                    2 => group!(2),
                    3 => group!(3),
                    _ => group!(4),
                }
            }
        }
    }
}
