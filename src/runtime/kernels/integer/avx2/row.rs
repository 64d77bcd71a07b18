//! A few rows of x: rows of weights are read where they are stored and multiplied at once.

use std::arch::x86_64::*;
use std::cell::RefCell;

use super::super::Operands;
use super::super::expand::Row;
use super::expand::{self, Spans, for_each_pair, for_each_step};
use super::{Code, SPAN};
use crate::runtime::kernels::avx2::{STREAMS, across};
use crate::runtime::kernels::tiles::Tile;

/// How far ahead of the loads a row is asked for.
const AHEAD: usize = 1024;

/// What M rows of x, one after the other, have.
#[derive(Clone, Copy)]
struct Rows {
    /// Of 8 bits, if the weights' codes have fewer: for runs of 32, of two runs the first halves, then the second ones.
    codes: *const i8,
    /// Of 16 bits, if the weights' codes have 8.
    wide: *const i16,
    /// What the sums of fours begin with, if codes are raised; for runs of 32, those of 8, four in each half.
    zeros: *const i32,
    /// Numbers from one row of `codes` or `wide` to the next.
    width: usize,
    scales: *const f32,
    sums: *const f32,
    k: usize,
}

/// Codes of x in 8 and 16 bits, and what sums begin with.
type Buffers = (Vec<i8>, Vec<i16>, Vec<i32>);

thread_local! {
    static BUFFERS: RefCell<Buffers> = RefCell::default();
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

/// Sums of a row of weights and a row of x, lane by lane.
#[derive(Clone, Copy)]
struct Sums {
    /// Of the columns' even and odd steps of 32.
    products: [__m256; 2],
    /// Of minima.
    less: __m256,
}

impl Sums {
    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: the instruction set is there.
        unsafe { Self { products: [_mm256_setzero_ps(); 2], less: _mm256_setzero_ps() } }
    }

    #[inline(always)]
    unsafe fn total(self) -> f32 {
        // SAFETY: the instruction set is there.
        unsafe {
            let all = _mm256_sub_ps(_mm256_add_ps(self.products[0], self.products[1]), self.less);
            across(all)
        }
    }
}

/// Adds the products of columns `first ..` of a row of weights, of which there are `count`, at most [`SPAN`], and M rows of x.
///
/// # Safety
/// The processor has AVX2, FMA and F16C; there are such columns.
#[inline(always)]
unsafe fn span<F: Spans, const M: usize>(
    at: expand::At,
    (first, count): (usize, usize),
    x: Rows,
    sums: &mut [Sums; M],
) {
    // SAFETY: the caller's promise.
    unsafe {
        at.ask::<F>(AHEAD);
        let ones = _mm256_set1_epi16(1);
        let own = F::scales(at, count);
        let minima = F::minima(at, count);
        // For each row of x, the scales of runs of 32, those of the even ones first; or of runs of 16.
        let mut scales = [[_mm256_setzero_ps(); 2]; M];
        let mut i = 0;
        while i < M {
            let here = i * (x.k / 32) + first / 32;
            let x_scales = some(x.scales.add(here), count / 32);
            if F::RUN == 32 {
                let products = _mm256_mul_ps(own[0], x_scales);
                scales[i][0] = _mm256_permutevar8x32_ps(products, _mm256_set_epi32(7, 5, 3, 1, 6, 4, 2, 0));
            } else {
                let low = _mm256_permutevar8x32_ps(x_scales, _mm256_set_epi32(3, 3, 2, 2, 1, 1, 0, 0));
                let high = _mm256_permutevar8x32_ps(x_scales, _mm256_set_epi32(7, 7, 6, 6, 5, 5, 4, 4));
                scales[i] = [_mm256_mul_ps(own[0], low), _mm256_mul_ps(own[1], high)];
            }
            if F::MINIMA {
                sums[i].less = _mm256_fmadd_ps(minima, some(x.sums.add(here), count / 32), sums[i].less);
            }
            i += 1;
        }
        if F::BITS < 8 && F::RUN == 32 {
            macro_rules! pair {
                ($a:literal, $b:literal) => {
                    if 32 * $a < count {
                        let codes = if 32 * $b < count {
                            F::pair::<$a, $b>(at)
                        } else {
                            expand::halved(F::codes::<$a>(at), _mm256_setzero_si256())
                        };
                        let mut i = 0;
                        while i < M {
                            let column = i * x.width + first + 32 * $a;
                            let low = _mm256_maddubs_epi16(codes[0], _mm256_loadu_si256(x.codes.add(column).cast()));
                            let high = _mm256_loadu_si256(x.codes.add(column + 32).cast());
                            // At most 4 · 31 · 128.
                            let low = _mm256_add_epi16(low, _mm256_maddubs_epi16(codes[1], high));
                            let mut eight = _mm256_madd_epi16(low, ones);
                            if F::BIAS > 0 {
                                eight = _mm256_add_epi32(eight, _mm256_loadu_si256(x.zeros.add(column / 8).cast()));
                            }
                            let scale = _mm256_permute_ps::<{ $a / 2 * 0b01_01_01_01 }>(scales[i][0]);
                            let sum = &mut sums[i].products[$a / 2 % 2];
                            *sum = _mm256_fmadd_ps(_mm256_cvtepi32_ps(eight), scale, *sum);
                            i += 1;
                        }
                    }
                };
            }
            for_each_pair!(pair);
            return;
        }
        macro_rules! step {
            ($step:literal) => {
                if 32 * $step < count {
                    let codes = F::codes::<$step>(at);
                    let mut i = 0;
                    while i < M {
                        let column = i * x.width + first + 32 * $step;
                        let scale = if F::RUN == 32 {
                            let four = _mm256_permute_ps::<{ $step / 2 * 0b01_01_01_01 }>(scales[i][0]);
                            _mm256_permute2f128_ps::<{ $step % 2 * 0x11 }>(four, four)
                        } else {
                            let lanes = _mm256_loadu_si256(LANES[$step % 4].as_ptr().cast());
                            _mm256_permutevar8x32_ps(scales[i][$step / 4], lanes)
                        };
                        let products = &mut sums[i].products;
                        if F::BITS < 8 {
                            // The codes of a lane are those of one quad of x, and so of one run.
                            let numbers = _mm256_loadu_si256(x.codes.add(column).cast());
                            let mut four = _mm256_madd_epi16(_mm256_maddubs_epi16(codes, numbers), ones);
                            if F::BIAS > 0 {
                                four = _mm256_add_epi32(four, _mm256_loadu_si256(x.zeros.add(column / 4).cast()));
                            }
                            products[$step % 2] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(four), scale, products[$step % 2]);
                        } else {
                            let numbers = x.wide.add(column);
                            let low = _mm256_cvtepi8_epi16(_mm256_castsi256_si128(codes));
                            let high = _mm256_cvtepi8_epi16(_mm256_extracti128_si256::<1>(codes));
                            let low = _mm256_madd_epi16(low, _mm256_loadu_si256(numbers.cast()));
                            let high = _mm256_madd_epi16(high, _mm256_loadu_si256(numbers.add(16).cast()));
                            if F::RUN == 32 {
                                let pairs = _mm256_cvtepi32_ps(_mm256_add_epi32(low, high));
                                products[$step % 2] = _mm256_fmadd_ps(pairs, scale, products[$step % 2]);
                            } else {
                                let first = _mm256_permute2f128_ps::<0x00>(scale, scale);
                                let second = _mm256_permute2f128_ps::<0x11>(scale, scale);
                                products[0] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(low), first, products[0]);
                                products[1] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(high), second, products[1]);
                            }
                        }
                        i += 1;
                    }
                }
            };
        }
        for_each_step!(step);
    }
}

/// The products of R rows of the matrix and M rows of x.
///
/// # Safety
/// The rows have k columns, and so have the rows of x. R is 1 if rows have to be prepared.
#[inline(always)]
unsafe fn dots<F: Spans, T, const M: usize, const R: usize>(
    o: &Operands<'_, T>,
    rows: [usize; R],
    row: &mut Row,
    x: Rows,
) -> [[f32; M]; R] {
    // SAFETY: the caller's promise.
    unsafe {
        let mut sums = [[Sums::zero(); M]; R];
        if F::PREPARED {
            F::prepare(o, rows[0], row);
        }
        let starts: [expand::At; R] = std::array::from_fn(|r| expand::at(o, rows[r], row));
        let mut first = 0;
        while first + SPAN <= x.k {
            let mut r = 0;
            while r < R {
                span::<F, M>(starts[r].columns::<F>(first), (first, SPAN), x, &mut sums[r]);
                r += 1;
            }
            first += SPAN;
        }
        if first < x.k {
            for (start, sums) in starts.into_iter().zip(&mut sums) {
                span::<F, M>(start.columns::<F>(first), (first, x.k - first), x, sums);
            }
        }
        let mut totals = [[0.0; M]; R];
        for (totals, sums) in totals.iter_mut().zip(sums) {
            for (total, sums) in totals.iter_mut().zip(sums) {
                *total = sums.total();
            }
        }
        totals
    }
}

/// The product by a few rows of x.
pub(super) struct Few<'a, 'b>(pub &'a mut Tile<'b>);

impl<T: Code> expand::Visitor<T> for Few<'_, '_> {
    #[inline(always)]
    unsafe fn visit<F: Spans>(self, o: &Operands<'_, T>) {
        BUFFERS.with_borrow_mut(|buffers| {
            // SAFETY: the caller's promise; the row is for k columns.
            Row::with(o.k, |row| unsafe { all::<F, T>(o, self.0, row, buffers) });
        });
    }
}

/// Puts rows of x in the order in which they are multiplied.
///
/// # Safety
/// The processor has AVX2.
#[target_feature(enable = "avx2")]
unsafe fn arrange<F: Spans, T: Code>(o: &Operands<'_, T>, first: usize, m: usize, width: usize, to: &mut Buffers) {
    let (codes, wide, zeros) = to;
    let x = || o.x.codes[first * o.k..][..m * o.k].chunks_exact(o.k);
    let quads = || o.x.quads[first * o.k / 4..][..m * o.k / 4].chunks_exact(o.k / 4);
    if F::BITS == 8 {
        wide.clear();
        wide.extend(x().flatten().map(|code| code.wide()));
    } else if F::RUN == 32 {
        codes.resize(m * width, 0);
        zeros.resize(m * width / 8, 0);
        let to = codes.chunks_exact_mut(width).zip(zeros.chunks_exact_mut(width / 8));
        for ((x, quads), (codes, zeros)) in x().zip(quads()).zip(to) {
            let (x, last) = x.as_chunks::<64>();
            let (pairs, alone) = codes.split_at_mut(64 * x.len());
            for (x, to) in x.iter().zip(pairs.as_chunks_mut::<64>().0) {
                for i in 0..16 {
                    (to[i], to[16 + i]) = (x[i].wide() as i8, x[32 + i].wide() as i8);
                    (to[32 + i], to[48 + i]) = (x[16 + i].wide() as i8, x[48 + i].wide() as i8);
                }
            }
            // The last run may have no other beside it.
            alone.fill(0);
            for (i, x) in last.iter().enumerate() {
                alone[i / 16 * 32 + i % 16] = x.wide() as i8;
            }
            for (quads, zeros) in quads.as_chunks::<8>().0.iter().zip(zeros.as_chunks_mut::<4>().0) {
                zeros.iter_mut().enumerate().for_each(|(i, zero)| *zero = (quads[i] + quads[i + 4]) << F::BIAS);
            }
        }
    } else {
        codes.clear();
        zeros.clear();
        codes.extend(x().flatten().map(|code| code.wide() as i8));
        zeros.extend(quads().flatten().map(|quad| quad << F::BIAS));
    }
}

/// # Safety
/// As [`super::avx2`], with a row for k columns.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn all<F: Spans, T: Code>(o: &Operands<'_, T>, tile: &mut Tile<'_>, row: &mut Row, buffers: &mut Buffers) {
    let (m, first, k) = (tile.rows(), tile.first_row(), o.k);
    let by_pair = F::BITS < 8 && F::RUN == 32;
    let width = if by_pair { k.next_multiple_of(64) } else { k };
    // SAFETY: the caller's promise.
    unsafe { arrange::<F, T>(o, first, m, width, buffers) };
    let (codes, wide, zeros) = buffers;
    let mut i = 0;
    while i < m {
        // SAFETY: the caller's promise: the tile lies within the operands.
        unsafe {
            let x = Rows {
                codes: codes.as_ptr().wrapping_add(i * width),
                wide: wide.as_ptr().wrapping_add(i * width),
                zeros: zeros.as_ptr().wrapping_add(i * width / if by_pair { 8 } else { 4 }),
                width,
                scales: o.x.scales.as_ptr().add((first + i) * k / 32),
                sums: o.x.sums.as_ptr().add((first + i) * k / 32),
                k,
            };
            macro_rules! group {
                ($m:literal) => {{
                    if F::PREPARED {
                        columns::<F, T, $m, 1>(o, tile, i, row, x);
                    } else {
                        columns::<F, T, $m, STREAMS>(o, tile, i, row, x);
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

/// M rows of the tile, from row `i` on.
///
/// # Safety
/// As [`all`].
#[inline(always)]
unsafe fn columns<F: Spans, T, const M: usize, const R: usize>(
    o: &Operands<'_, T>,
    tile: &mut Tile<'_>,
    i: usize,
    row: &mut Row,
    x: Rows,
) {
    let (first, cols) = (tile.first_col(), tile.cols());
    let step = cols.div_ceil(R);
    for j in 0..step {
        // Columns that there are not are the last one again, and are not stored.
        let rows = std::array::from_fn(|r| first + (j + r * step).min(cols - 1));
        // SAFETY: the caller's promise.
        let totals = unsafe { dots::<F, T, M, R>(o, rows, row, x) };
        for (r, totals) in totals.into_iter().enumerate() {
            for (at, total) in totals.into_iter().enumerate() {
                if j + r * step < cols {
                    tile.row(i + at)[j + r * step] = total;
                }
            }
        }
    }
}
