//! A few rows of x: each row of weights is expanded and multiplied at once.

use std::arch::x86_64::*;

use super::super::Operands;
use super::super::expand::Row;
use super::expand::{self, Form16};
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

/// The lane of 16 runs' scales for each lane of sums, at each step of 64 codes.
static LANES: [[[i32; 16]; 8]; 2] = {
    let mut lanes = [[[0; 16]; 8]; 2];
    let mut step = 0;
    while step < 8 {
        let mut lane = 0;
        while lane < 16 {
            lanes[0][step][lane] = (4 * (step % 4) + lane / 4) as i32;
            lanes[1][step][lane] = (2 * step + lane / 8) as i32;
            lane += 1;
        }
        step += 1;
    }
    lanes
};

/// The products of row `i` of the matrix and M rows of x.
///
/// # Safety
/// The row has k columns, and so have the rows of x, with the padding of [`crate::runtime::activations::Int8Runs`] behind
/// the last. BIASED says whether codes are raised, by 2^`bias`.
#[inline(always)]
unsafe fn dot<F: Form16, const M: usize>(o: &Operands<'_>, j: usize, row: &mut Row, x: Rows) -> [f32; M] {
    let bias = o.shape.bias;
    let bytes = o.weights.row(j);
    let runs = x.k / F::RUN;
    // SAFETY: scales of x are read below its runs, under a mask; codes and quads may be read 512 beyond, where the row's
    // scales are zero.
    unsafe {
        let shift = _mm_cvtsi32_si128(bias.unwrap_or(0) as i32);
        let mut sums = [[_mm512_setzero_ps(); 2]; M];
        let mut less = [_mm512_setzero_ps(); M];
        let mut first = 0;
        while first < runs {
            let count = (runs - first).min(16);
            F::expand(o, j, bytes, first, count, row);
            let own = _mm512_loadu_ps(row.scales.as_ptr().add(first));
            let mut scales = [own; M];
            let mut i = 0;
            while i < M {
                let at = i * (x.k / 32) + first * F::RUN / 32;
                let x_scales = if F::RUN == 32 {
                    let mask = ((1u32 << count) - 1) as __mmask16;
                    if F::MINIMA {
                        let minima = _mm512_loadu_ps(row.minima.as_ptr().add(first));
                        less[i] = _mm512_fmadd_ps(minima, _mm512_maskz_loadu_ps(mask, x.sums.add(at)), less[i]);
                    }
                    _mm512_maskz_loadu_ps(mask, x.scales.add(at))
                } else {
                    let mask = ((1u32 << (count / 2)) - 1) as __mmask16;
                    let half = _mm512_maskz_loadu_ps(mask, x.scales.add(at));
                    _mm512_permutexvar_ps(_mm512_set_epi32(7, 7, 6, 6, 5, 5, 4, 4, 3, 3, 2, 2, 1, 1, 0, 0), half)
                };
                scales[i] = _mm512_mul_ps(own, x_scales);
                i += 1;
            }
            let mut step = 0;
            while step < F::RUN / 4 {
                let at = first * F::RUN + 64 * step;
                let codes = _mm512_loadu_si512(row.codes.as_ptr().add(at).cast());
                let lanes = _mm512_loadu_si512(LANES[F::RUN / 32][step].as_ptr().cast());
                let mut i = 0;
                while i < M {
                    let zero = match bias {
                        Some(_) => _mm512_sll_epi32(_mm512_loadu_si512(x.quads.add((i * x.k + at) / 4).cast()), shift),
                        None => _mm512_setzero_si512(),
                    };
                    let x = _mm512_loadu_si512(x.codes.add(i * x.k + at).cast());
                    let products = _mm512_cvtepi32_ps(_mm512_dpbusd_epi32(zero, codes, x));
                    let scale = _mm512_permutexvar_ps(lanes, scales[i]);
                    sums[i][step % 2] = _mm512_fmadd_ps(products, scale, sums[i][step % 2]);
                    i += 1;
                }
                step += 1;
                if 64 * step >= (runs - first) * F::RUN {
                    break;
                }
            }
            first += 16;
        }
        let mut totals = [0.0; M];
        let mut i = 0;
        while i < M {
            let all = _mm512_sub_ps(_mm512_add_ps(sums[i][0], sums[i][1]), less[i]);
            totals[i] = _mm512_reduce_add_ps(all);
            i += 1;
        }
        totals
    }
}

struct Few<'a, 'b>(&'a mut Tile<'b>);

impl expand::Visitor for Few<'_, '_> {
    #[inline(always)]
    unsafe fn visit<F: Form16>(self, o: &Operands<'_>) {
        // SAFETY: the caller's promise; the row is for k columns.
        Row::with(o.k, |row| unsafe { all::<F>(o, self.0, row) });
    }
}

/// # Safety
/// As [`super::avx512_vnni`].
#[inline(always)]
pub(super) unsafe fn multiply(o: &Operands<'_>, tile: &mut Tile<'_>) {
    // SAFETY: the caller's promise.
    unsafe { expand::dispatch(o, Few(tile)) }
}

/// # Safety
/// As [`super::avx512_vnni`], with a row for k columns.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn all<F: Form16>(o: &Operands<'_>, tile: &mut Tile<'_>, row: &mut Row) {
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
