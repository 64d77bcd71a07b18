//! A few rows of x: rows of weights are read where they are stored and multiplied at once. Of 256 columns, the products with
//! four vectors of codes are added up across each other, so that a lane has the whole sum of a run, and a conversion and an FMA
//! serve 8 runs.

use std::arch::x86_64::*;
use std::cell::RefCell;

use super::super::Operands;
use super::super::expand::Row;
use super::expand::{self, At, Spans, for_each_pair, for_each_step};
use super::{Code, SPAN};
use crate::runtime::kernels::avx2::{STREAMS, across_four};
use crate::runtime::kernels::tiles::Tile;

/// How far ahead of the loads a row is asked for.
const AHEAD: usize = 1024;

/// What M rows of x, one after the other, have, filled up with zeros to whole spans.
#[derive(Clone, Copy)]
struct Rows {
    /// Of 8 bits. For codes of less than 8 bits and runs of 32, in the order of [`Spans::pair`].
    codes: *const i8,
    /// Those of 16 bits are 256 · `codes` and these, which have no sign.
    fine: *const u8,
    /// Of 16 bits, in the place of both where the weights' codes have 8.
    wide: *const i16,
    /// What the sums of runs begin with, if codes are raised, in the order in which they are added up.
    zeros: *const i32,
    scales: *const f32,
    sums: *const f32,
    /// Columns, filled up.
    width: usize,
}

/// What [`Rows`] point to, and rows that have to be prepared.
#[derive(Default)]
struct Buffers {
    codes: Vec<i8>,
    fine: Vec<u8>,
    wide: Vec<i16>,
    zeros: Vec<i32>,
    scales: Vec<f32>,
    sums: Vec<f32>,
    rows: [Row; STREAMS],
    k: usize,
}

/// Bytes of the longest span.
const LAST: usize = 272;

thread_local! {
    static BUFFERS: RefCell<Buffers> = RefCell::default();
}

/// Sums of a row of weights and a row of x, lane by lane.
#[derive(Clone, Copy)]
struct Sums {
    products: __m256,
    /// Of minima.
    less: __m256,
}

impl Sums {
    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: the instruction set is there.
        unsafe { Self { products: _mm256_setzero_ps(), less: _mm256_setzero_ps() } }
    }
}

/// The sums across the lanes' numbers of 16 bits: of each half of `v[0]`, of `v[1]` and so on, twice 16 bits each.
///
/// # Safety
/// The processor has AVX2.
#[inline(always)]
unsafe fn fold_16(v: [__m256i; 4]) -> __m256i {
    // SAFETY: the caller's promise.
    unsafe {
        let a = _mm256_add_epi16(_mm256_unpacklo_epi32(v[0], v[1]), _mm256_unpackhi_epi32(v[0], v[1]));
        let b = _mm256_add_epi16(_mm256_unpacklo_epi32(v[2], v[3]), _mm256_unpackhi_epi32(v[2], v[3]));
        _mm256_add_epi16(_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b))
    }
}

/// The same of 32 bits, once each.
///
/// # Safety
/// The processor has AVX2.
#[inline(always)]
unsafe fn fold_32(v: [__m256i; 4]) -> __m256i {
    // SAFETY: the caller's promise.
    unsafe {
        let a = _mm256_add_epi32(_mm256_unpacklo_epi32(v[0], v[1]), _mm256_unpackhi_epi32(v[0], v[1]));
        let b = _mm256_add_epi32(_mm256_unpacklo_epi32(v[2], v[3]), _mm256_unpackhi_epi32(v[2], v[3]));
        _mm256_add_epi32(_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b))
    }
}

/// Sums of 8 runs, each in one lane of 32 bits, by way of 4 vectors for each of two times four.
///
/// # Safety
/// The processor has AVX2.
#[inline(always)]
unsafe fn fold_8(v: [__m256i; 8]) -> __m256i {
    // SAFETY: the caller's promise.
    unsafe {
        let (low, high) = (fold_32([v[0], v[1], v[2], v[3]]), fold_32([v[4], v[5], v[6], v[7]]));
        let halves = _mm256_permute2x128_si256::<0x20>(low, high);
        _mm256_add_epi32(halves, _mm256_permute2x128_si256::<0x31>(low, high))
    }
}

/// The sums of a span's runs for row `i` of x: of 8, or of runs of 16 those of even number among the first 8, of odd number,
/// and so of the second 8.
///
/// # Safety
/// The processor has AVX2; there are a span at `at` and x's columns from `column` on.
#[inline(always)]
unsafe fn totals<F: Spans, T: Code>(at: At, x: Rows, i: usize, column: usize) -> [__m256i; 2] {
    // SAFETY: the caller's promise.
    unsafe {
        let none = _mm256_setzero_si256();
        let ones = _mm256_set1_epi16(1);
        let first = i * x.width + column;
        let codes = |offset: usize| _mm256_loadu_si256(x.codes.add(first + offset).cast());
        if F::BITS < 8 && F::RUN == 32 {
            let mut pairs = [none; 4];
            macro_rules! pair {
                ($j:literal, $other:literal) => {
                    let own = F::pair::<$j, $other>(at);
                    // At most 4 · 31 · 128.
                    pairs[$j] = _mm256_add_epi16(
                        _mm256_maddubs_epi16(own[0], codes(64 * $j)),
                        _mm256_maddubs_epi16(own[1], codes(64 * $j + 32)),
                    );
                    if T::WIDE {
                        let fine = |offset: usize| _mm256_loadu_si256(x.fine.add(first + offset).cast());
                        // Codes of 4 bits are signed bytes too. At most 4 · 15 · 255.
                        let fine = _mm256_add_epi16(
                            _mm256_maddubs_epi16(fine(64 * $j), own[0]),
                            _mm256_maddubs_epi16(fine(64 * $j + 32), own[1]),
                        );
                        let coarse = _mm256_madd_epi16(pairs[$j], _mm256_set1_epi16(256));
                        pairs[$j] = _mm256_add_epi32(coarse, _mm256_madd_epi16(fine, ones));
                    } else if F::BITS > 4 {
                        pairs[$j] = _mm256_madd_epi16(pairs[$j], ones);
                    }
                };
            }
            for_each_pair!(pair);
            // Half a run is at most 16 · 15 · 128.
            let all = if T::WIDE || F::BITS > 4 { fold_32(pairs) } else { _mm256_madd_epi16(fold_16(pairs), ones) };
            if F::BIAS == 0 {
                return [all, none];
            }
            return [_mm256_add_epi32(all, _mm256_loadu_si256(x.zeros.add(first / 32).cast())), none];
        }
        let mut steps = [none; 8];
        macro_rules! step {
            ($step:literal) => {
                let own = F::codes::<$step>(at);
                steps[$step] = if F::BITS < 8 {
                    _mm256_madd_epi16(_mm256_maddubs_epi16(own, codes(32 * $step)), ones)
                } else if F::SMALL && !T::WIDE {
                    let signed = _mm256_sign_epi8(codes(32 * $step), own);
                    // A pair is at most 2 · 128 · 127.
                    _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_abs_epi8(own), signed), ones)
                } else {
                    let numbers = x.wide.add(first + 32 * $step);
                    let low = _mm256_cvtepi8_epi16(_mm256_castsi256_si128(own));
                    let high = _mm256_cvtepi8_epi16(_mm256_extracti128_si256::<1>(own));
                    let low = _mm256_madd_epi16(low, _mm256_loadu_si256(numbers.cast()));
                    let high = _mm256_madd_epi16(high, _mm256_loadu_si256(numbers.add(16).cast()));
                    _mm256_add_epi32(low, high)
                };
            };
        }
        for_each_step!(step);
        if F::RUN == 32 {
            return [fold_8(steps), none];
        }
        let mut both =
            [fold_32([steps[0], steps[1], steps[2], steps[3]]), fold_32([steps[4], steps[5], steps[6], steps[7]])];
        if F::BIAS > 0 {
            let zeros = x.zeros.add(first / 16);
            both[0] = _mm256_add_epi32(both[0], _mm256_loadu_si256(zeros.cast()));
            both[1] = _mm256_add_epi32(both[1], _mm256_loadu_si256(zeros.add(8).cast()));
        }
        both
    }
}

/// Adds the products of the span at `at`, from `column` on, and M rows of x.
///
/// # Safety
/// The processor has AVX2, FMA and F16C; there are such columns.
#[inline(always)]
unsafe fn span<F: Spans, T: Code, const M: usize>(at: At, column: usize, x: Rows, sums: &mut [Sums; M]) {
    // SAFETY: the caller's promise.
    unsafe {
        at.ask::<F>(AHEAD);
        let mut own = F::scales(at, SPAN);
        let minima = F::minima(at, SPAN);
        if F::RUN == 16 {
            // Runs of even number, runs of odd number.
            let order = _mm256_set_epi32(7, 5, 3, 1, 6, 4, 2, 0);
            own = [_mm256_permutevar8x32_ps(own[0], order), _mm256_permutevar8x32_ps(own[1], order)];
        }
        let mut i = 0;
        while i < M {
            let run = (i * x.width + column) / 32;
            let all = totals::<F, T>(at, x, i, column);
            let products = &mut sums[i].products;
            if F::RUN == 32 {
                let scales = _mm256_mul_ps(own[0], _mm256_loadu_ps(x.scales.add(run)));
                *products = _mm256_fmadd_ps(_mm256_cvtepi32_ps(all[0]), scales, *products);
            } else {
                let four = |at: usize| _mm256_broadcast_ps(&*x.scales.add(run + at).cast());
                *products = _mm256_fmadd_ps(_mm256_cvtepi32_ps(all[0]), _mm256_mul_ps(own[0], four(0)), *products);
                *products = _mm256_fmadd_ps(_mm256_cvtepi32_ps(all[1]), _mm256_mul_ps(own[1], four(4)), *products);
            }
            if F::MINIMA {
                sums[i].less = _mm256_fmadd_ps(minima, _mm256_loadu_ps(x.sums.add(run)), sums[i].less);
            }
            i += 1;
        }
    }
}

/// The products of rows of the matrix and M rows of x.
///
/// # Safety
/// The rows have k columns, and so have the rows of x.
#[inline(always)]
unsafe fn dots<F: Spans, T: Code, const M: usize>(
    o: &Operands<'_, T>,
    numbers: [usize; STREAMS],
    rows: &mut [Row; STREAMS],
    x: Rows,
) -> [[f32; M]; STREAMS] {
    // SAFETY: the caller's promise.
    unsafe {
        let mut sums = [[Sums::zero(); M]; STREAMS];
        if F::PREPARED {
            rows.iter_mut().zip(numbers).for_each(|(row, i)| F::prepare(o, i, row));
        }
        let starts: [At; STREAMS] = std::array::from_fn(|r| expand::at(o, numbers[r], &rows[r]));
        let mut first = 0;
        while first + SPAN <= o.k {
            let mut r = 0;
            while r < STREAMS {
                span::<F, T, M>(starts[r].columns::<F>(first), first, x, &mut sums[r]);
                r += 1;
            }
            first += SPAN;
        }
        if first < o.k {
            let mut copy = [0; LAST];
            for (start, sums) in starts.into_iter().zip(&mut sums) {
                let at = start.columns::<F>(first).copied::<F, LAST>(o.k - first, &mut copy);
                span::<F, T, M>(at, first, x, sums);
            }
        }
        let mut totals = [[0.0; M]; STREAMS];
        let mut i = 0;
        while i < M {
            let lanes = |sums: Sums| if F::MINIMA { _mm256_sub_ps(sums.products, sums.less) } else { sums.products };
            let four = across_four([lanes(sums[0][i]), lanes(sums[1][i]), lanes(sums[2][i]), lanes(sums[3][i])]);
            totals.iter_mut().zip(four).for_each(|(totals, total)| totals[i] = total);
            i += 1;
        }
        totals
    }
}

/// The product by a few rows of x.
pub(super) struct Few<'a, 'b>(pub &'a mut Tile<'b>);

impl<T: Code> expand::Visitor<T> for Few<'_, '_> {
    #[inline(always)]
    unsafe fn visit<F: Spans>(self, o: &Operands<'_, T>) {
        // SAFETY: the caller's promise.
        BUFFERS.with_borrow_mut(|buffers| unsafe { all::<F, T>(o, self.0, buffers) });
    }
}

/// Puts rows of x in the order in which they are multiplied.
///
/// # Safety
/// The processor has AVX2.
#[target_feature(enable = "avx2")]
unsafe fn arrange<F: Spans, T: Code>(o: &Operands<'_, T>, first: usize, m: usize, width: usize, to: &mut Buffers) {
    let k = o.k;
    let in_wide = F::BITS == 8 && (T::WIDE || !F::SMALL);
    refill(&mut to.codes, if in_wide { 0 } else { m * width });
    refill(&mut to.fine, if !in_wide && T::WIDE { m * width } else { 0 });
    refill(&mut to.wide, if in_wide { m * width } else { 0 });
    refill(&mut to.zeros, if F::BITS < 8 && F::BIAS > 0 { m * width / F::RUN } else { 0 });
    refill(&mut to.scales, m * width / 32);
    refill(&mut to.sums, m * width / 32);
    for i in 0..m {
        let (x, row) = (&o.x.codes[(first + i) * k..][..k], i * width);
        let runs = (first + i) * k / 32..(first + i + 1) * k / 32;
        to.scales[row / 32..][..k / 32].copy_from_slice(&o.x.scales[runs.clone()]);
        to.sums[row / 32..][..k / 32].copy_from_slice(&o.x.sums[runs.clone()]);
        if in_wide {
            to.wide[row..][..k].iter_mut().zip(x).for_each(|(to, x)| *to = x.wide());
        } else if F::RUN == 32 && F::BITS < 8 {
            for (run, x) in x.as_chunks::<32>().0.iter().enumerate() {
                // Of runs j and j + 4, the first parts of both, then the second ones.
                let at = row + run / 8 * SPAN + run % 4 * 64 + run % 8 / 4 * 16;
                let places = |i: usize| if F::EVEN { (2 * i, 2 * i + 1) } else { (i, 16 + i) };
                let codes = &mut to.codes[at..][..48];
                for i in 0..16 {
                    (codes[i], codes[32 + i]) = (x[places(i).0].coarse(), x[places(i).1].coarse());
                }
                if T::WIDE {
                    let fine = &mut to.fine[at..][..48];
                    for i in 0..16 {
                        (fine[i], fine[32 + i]) = (x[places(i).0].wide() as u8, x[places(i).1].wide() as u8);
                    }
                }
            }
        } else {
            to.codes[row..][..k].iter_mut().zip(x).for_each(|(to, x)| *to = x.coarse());
        }
        if F::BITS < 8 && F::BIAS > 0 {
            let zeros = &mut to.zeros[row / F::RUN..];
            for (run, quads) in o.x.quads[8 * runs.start..8 * runs.end].as_chunks::<8>().0.iter().enumerate() {
                let half = |from: usize| quads[from..][..4].iter().sum::<i32>() << F::BIAS;
                if F::RUN == 32 {
                    zeros[run] = half(0) + half(4);
                } else {
                    let at = run / 4 * 8 + run % 4;
                    (zeros[at], zeros[at + 4]) = (half(0), half(4));
                }
            }
        }
    }
}

/// So many zeros.
fn refill<N: Clone + Default>(numbers: &mut Vec<N>, count: usize) {
    numbers.clear();
    numbers.resize(count, N::default());
}

/// # Safety
/// As [`super::avx2`].
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn all<F: Spans, T: Code>(o: &Operands<'_, T>, tile: &mut Tile<'_>, buffers: &mut Buffers) {
    let (m, first, width) = (tile.rows(), tile.first_row(), o.k.next_multiple_of(SPAN));
    // SAFETY: the caller's promise.
    unsafe { arrange::<F, T>(o, first, m, width, buffers) };
    if F::PREPARED && buffers.k != o.k {
        buffers.k = o.k;
        buffers.rows = std::array::from_fn(|_| Row::new(o.k));
    }
    let mut i = 0;
    while i < m {
        let x = Rows {
            codes: buffers.codes.as_ptr().wrapping_add(i * width),
            fine: buffers.fine.as_ptr().wrapping_add(i * width),
            wide: buffers.wide.as_ptr().wrapping_add(i * width),
            zeros: buffers.zeros.as_ptr().wrapping_add(i * width / F::RUN),
            scales: buffers.scales.as_ptr().wrapping_add(i * width / 32),
            sums: buffers.sums.as_ptr().wrapping_add(i * width / 32),
            width,
        };
        macro_rules! group {
            ($m:literal) => {{
                // SAFETY: the caller's promise: the tile lies within the operands; the rows of x were arranged.
                unsafe { columns::<F, T, $m>(o, tile, i, &mut buffers.rows, x) };
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

/// M rows of the tile, from row `i` on.
///
/// # Safety
/// As [`all`].
#[inline(always)]
unsafe fn columns<F: Spans, T: Code, const M: usize>(
    o: &Operands<'_, T>,
    tile: &mut Tile<'_>,
    i: usize,
    rows: &mut [Row; STREAMS],
    x: Rows,
) {
    let (first, cols) = (tile.first_col(), tile.cols());
    let step = cols.div_ceil(STREAMS);
    for j in 0..step {
        // Columns that there are not are the last one again, and are not stored.
        let numbers = std::array::from_fn(|r| first + (j + r * step).min(cols - 1));
        // SAFETY: the caller's promise.
        let totals = unsafe { dots::<F, T, M>(o, numbers, rows, x) };
        for (r, totals) in totals.into_iter().enumerate() {
            for (at, total) in totals.into_iter().enumerate() {
                if j + r * step < cols {
                    tile.row(i + at)[j + r * step] = total;
                }
            }
        }
    }
}
