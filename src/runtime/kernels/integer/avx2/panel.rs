//! Many rows of x. A panel is 16 rows of weights, codes in fours of columns (in pairs, as 16-bit numbers, where they have 8
//! bits): a lane of a register is a row of weights, and no sum goes across lanes.
//!
//! Products of codes of up to 6 bits are added in 16 bits for as many columns as fit, and then in 32; no sum saturates, since
//! x is at least −128.

use std::arch::x86_64::*;
use std::cell::RefCell;
use std::ops::Range;

use super::super::expand::Row;
use super::super::{Operands, PANEL as TILE};
use super::Code;
use super::expand::{self, Spans};
use crate::runtime::kernels::tiles::Tile;
use crate::runtime::kernels::transpose::transpose_8;

/// Rows of weights in a panel.
const PANEL: usize = 16;

/// Rows of x that use each load of weights.
const ROWS: usize = 6;

/// Columns that are multiplied before the next ones are: panels of them stay in the first cache while all of x passes.
const COLUMNS: usize = 256;

/// Panels as wide as a tile, and rows of x.
#[derive(Default)]
struct Panels {
    rows: Vec<Row>,
    k: usize,
    /// `[TILE / PANEL, k / 4, PANEL, 4]` bytes, or `[TILE / PANEL, k / 2, PANEL, 2]` 16-bit numbers.
    codes: Vec<u8>,
    /// `[TILE / PANEL, runs, PANEL]`
    scales: Vec<f32>,
    /// Likewise.
    minima: Vec<f32>,
    /// `[ROWS, runs of COLUMNS]`: what sums begin with, for codes that are raised.
    zeros: Vec<i32>,
    /// `[ROWS, COLUMNS]`
    wide: Vec<i16>,
}

thread_local! {
    static PANELS: RefCell<Panels> = RefCell::default();
}

/// Bytes of a code in a panel.
const fn size<F: Spans>() -> usize {
    if F::BITS < 8 { 1 } else { 2 }
}

impl Panels {
    /// Expands and transposes the rows of weights in the tile's columns.
    ///
    /// # Safety
    /// As [`multiply`].
    #[inline(always)]
    unsafe fn fill<F: Spans, T>(&mut self, o: &Operands<'_, T>, tile: &Tile<'_>) {
        let (k, runs) = (o.k, o.k / F::RUN);
        if self.k != k {
            *self = Self { k, rows: (0..8).map(|_| Row::new(k)).collect(), ..Self::default() };
        }
        let bytes = PANEL * k * size::<F>();
        self.codes.resize(TILE / PANEL * bytes, 0);
        self.scales.resize(TILE * runs, 0.0);
        self.minima.resize(TILE * runs, 0.0);
        self.zeros.resize(ROWS * (COLUMNS / F::RUN), 0);
        self.wide.resize(ROWS * COLUMNS, 0);
        for half in 0..tile.cols().div_ceil(8) {
            let (first, panel, lane) = (8 * half, 8 * half / PANEL, 8 * half % PANEL);
            for (j, row) in self.rows.iter_mut().enumerate() {
                // Columns that the tile does not have are those of the last row again, and are not stored.
                let at = tile.first_col() + (first + j).min(tile.cols() - 1);
                // SAFETY: the caller's promise; the row was made for k columns.
                unsafe { expand::row::<F, T>(o, at, row) };
                let scales = self.scales[panel * runs * PANEL..].chunks_exact_mut(PANEL);
                scales.zip(&row.scales[..runs]).for_each(|(scales, scale)| scales[lane + j] = *scale);
                if o.shape.minima {
                    let minima = self.minima[panel * runs * PANEL..].chunks_exact_mut(PANEL);
                    minima.zip(&row.minima[..runs]).for_each(|(minima, minimum)| minima[lane + j] = *minimum);
                }
            }
            let codes = &mut self.codes[panel * bytes..][..bytes];
            let step = 32 / size::<F>();
            for at in (0..k).step_by(step) {
                let to = &mut codes[at * PANEL * size::<F>() + 4 * lane..][..7 * 4 * PANEL + 32];
                // SAFETY: rows have `step` codes from here on, since k is a multiple of 32; 8 words are written every PANEL.
                unsafe {
                    let mut words = [_mm256_setzero_si256(); 8];
                    for (word, row) in words.iter_mut().zip(&self.rows) {
                        let codes = row.codes[at..at + step].as_ptr();
                        *word = if F::BITS < 8 {
                            _mm256_loadu_si256(codes.cast())
                        } else {
                            _mm256_cvtepi8_epi16(_mm_loadu_si128(codes.cast()))
                        };
                    }
                    transpose_8(words, to.as_mut_ptr(), 4 * PANEL);
                }
            }
        }
    }

    /// Prepares these columns of `count` rows of x.
    #[inline(always)]
    fn take<F: Spans, T: Code>(&mut self, o: &Operands<'_, T>, first: usize, count: usize, columns: Range<usize>) {
        let rows = (0..count).map(|i| (i, (first + i) * o.k));
        if F::BITS == 8 {
            for (i, at) in rows {
                let x = &o.x.codes[at..][columns.clone()];
                self.wide[i * COLUMNS..].iter_mut().zip(x).for_each(|(wide, x)| *wide = x.wide());
            }
        } else if let Some(bias) = o.shape.bias {
            for (i, at) in rows {
                let quads = &o.x.quads[at / 4..][columns.start / 4..columns.end / 4];
                let zeros = &mut self.zeros[i * (COLUMNS / F::RUN)..];
                if F::RUN == 16 {
                    let runs = zeros.iter_mut().zip(quads.as_chunks::<4>().0);
                    runs.for_each(|(zero, quads)| *zero = quads.iter().sum::<i32>() << bias);
                } else {
                    let runs = zeros.iter_mut().zip(quads.as_chunks::<8>().0);
                    runs.for_each(|(zero, quads)| *zero = quads.iter().sum::<i32>() << bias);
                }
            }
        }
    }
}

/// What R rows of x have.
struct Rows {
    codes: *const i8,
    wide: *const i16,
    /// What sums begin with.
    zeros: *const i32,
    scales: *const f32,
    sums: *const f32,
    k: usize,
}

/// Where products go.
#[derive(Clone, Copy)]
struct Out {
    at: *mut f32,
    /// From a row to the next.
    stride: usize,
    /// Columns: at most a panel's.
    width: usize,
}

/// # Safety
/// The panel has the runs, as have R rows of x; `out` has R rows, and the totals of the runs before, if there are any.
#[inline(always)]
unsafe fn tile<F: Spans, const R: usize>(
    (mut codes, mut scales, mut minima): (*const u8, *const f32, *const f32),
    x: &Rows,
    these: Range<usize>,
    raised: bool,
    out: Out,
) {
    // Quads whose products 16 bits have room for: a pair of them is at most 2 · 128 · (2ᵇ − 1).
    let quads = match F::BITS {
        ..=4 => 8,
        5 => 4,
        _ => 2,
    };
    // SAFETY: the caller's promise.
    unsafe {
        let ones = _mm256_set1_epi16(1);
        let mut totals = [[_mm256_setzero_ps(); 2]; R];
        if these.start > 0 {
            for (i, totals) in totals.iter_mut().enumerate() {
                let (mut at, mut some) = (out.at.add(i * out.stride), [0.0; PANEL]);
                if out.width < PANEL {
                    std::ptr::copy_nonoverlapping(at, some.as_mut_ptr(), out.width);
                    at = some.as_mut_ptr();
                }
                *totals = [_mm256_loadu_ps(at), _mm256_loadu_ps(at.add(8))];
            }
        }
        let mut run = these.start;
        while run < these.end {
            let mut sums = [[_mm256_setzero_si256(); 2]; R];
            if F::BITS < 8 {
                if raised {
                    let mut i = 0;
                    while i < R {
                        let zero = _mm256_set1_epi32(*x.zeros.add(i * (COLUMNS / F::RUN) + run - these.start));
                        sums[i] = [zero, zero];
                        i += 1;
                    }
                }
                let mut first = 0;
                while first < F::RUN / 4 {
                    let mut short = [[_mm256_setzero_si256(); 2]; R];
                    let mut q = first;
                    while q < first + quads && q < F::RUN / 4 {
                        let weights = [_mm256_loadu_si256(codes.cast()), _mm256_loadu_si256(codes.add(32).cast())];
                        let mut i = 0;
                        while i < R {
                            let quad = x.codes.add(i * x.k + run * F::RUN + 4 * q).cast::<i32>().read_unaligned();
                            let quad = _mm256_set1_epi32(quad);
                            short[i][0] = _mm256_add_epi16(short[i][0], _mm256_maddubs_epi16(weights[0], quad));
                            short[i][1] = _mm256_add_epi16(short[i][1], _mm256_maddubs_epi16(weights[1], quad));
                            i += 1;
                        }
                        codes = codes.add(4 * PANEL);
                        q += 1;
                    }
                    let mut i = 0;
                    while i < R {
                        sums[i][0] = _mm256_add_epi32(sums[i][0], _mm256_madd_epi16(short[i][0], ones));
                        sums[i][1] = _mm256_add_epi32(sums[i][1], _mm256_madd_epi16(short[i][1], ones));
                        i += 1;
                    }
                    first += quads;
                }
            } else {
                let mut q = 0;
                while q < F::RUN {
                    let weights = [_mm256_loadu_si256(codes.cast()), _mm256_loadu_si256(codes.add(32).cast())];
                    let mut i = 0;
                    while i < R {
                        let pair =
                            x.wide.add(i * COLUMNS + (run - these.start) * F::RUN + q).cast::<i32>().read_unaligned();
                        let pair = _mm256_set1_epi32(pair);
                        sums[i][0] = _mm256_add_epi32(sums[i][0], _mm256_madd_epi16(weights[0], pair));
                        sums[i][1] = _mm256_add_epi32(sums[i][1], _mm256_madd_epi16(weights[1], pair));
                        i += 1;
                    }
                    codes = codes.add(4 * PANEL);
                    q += 2;
                }
            }
            let scale = [_mm256_loadu_ps(scales), _mm256_loadu_ps(scales.add(8))];
            scales = scales.add(PANEL);
            let minimum = [_mm256_loadu_ps(minima), _mm256_loadu_ps(minima.add(8))];
            minima = minima.add(PANEL);
            let mut i = 0;
            while i < R {
                let at = i * (x.k / 32) + run * F::RUN / 32;
                let x_scale = _mm256_set1_ps(*x.scales.add(at));
                let mut v = 0;
                while v < 2 {
                    let product = _mm256_mul_ps(_mm256_cvtepi32_ps(sums[i][v]), x_scale);
                    totals[i][v] = _mm256_fmadd_ps(product, scale[v], totals[i][v]);
                    if F::MINIMA {
                        let sum = _mm256_set1_ps(*x.sums.add(at));
                        totals[i][v] = _mm256_fnmadd_ps(minimum[v], sum, totals[i][v]);
                    }
                    v += 1;
                }
                i += 1;
            }
            run += 1;
        }
        for (i, totals) in totals.into_iter().enumerate() {
            let (to, mut some) = (out.at.add(i * out.stride), [0.0; PANEL]);
            let at = if out.width < PANEL { some.as_mut_ptr() } else { to };
            _mm256_storeu_ps(at, totals[0]);
            _mm256_storeu_ps(at.add(8), totals[1]);
            if out.width < PANEL {
                std::ptr::copy_nonoverlapping(at, to, out.width);
            }
        }
    }
}

/// The product by many rows of x.
pub(super) struct Many<'a, 'b>(pub &'a mut Tile<'b>);

impl<T: Code> expand::Visitor<T> for Many<'_, '_> {
    #[inline(always)]
    unsafe fn visit<F: Spans>(self, o: &Operands<'_, T>) {
        assert!(self.0.cols() <= TILE, "a tile is as wide as its panels");
        // SAFETY: the caller's promise.
        PANELS.with_borrow_mut(|panels| unsafe { all::<F, T>(panels, o, self.0) });
    }
}

/// # Safety
/// As [`super::avx2`].
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn all<F: Spans, T: Code>(panels: &mut Panels, o: &Operands<'_, T>, out: &mut Tile<'_>) {
    let (k, m, stride, runs) = (o.k, out.rows(), out.stride(), o.k / F::RUN);
    // SAFETY: the caller's promise.
    unsafe { panels.fill::<F, T>(o, out) };
    let start = out.start();
    for first_run in (0..runs).step_by(COLUMNS / F::RUN) {
        let these = first_run..runs.min(first_run + COLUMNS / F::RUN);
        let begins = first_run * F::RUN;
        let mut i = 0;
        while i < m {
            let (row, count) = (out.first_row() + i, ROWS.min(m - i));
            panels.take::<F, T>(o, row, count, begins..these.end * F::RUN);
            for first in (0..out.cols()).step_by(PANEL) {
                // SAFETY: rows of x and of the tile are taken below m, columns below the tile's.
                unsafe {
                    let x = Rows {
                        codes: o.x.codes.as_ptr().add(row * k).cast(),
                        wide: panels.wide.as_ptr(),
                        zeros: panels.zeros.as_ptr(),
                        scales: o.x.scales.as_ptr().add(row * k / 32),
                        sums: o.x.sums.as_ptr().add(row * k / 32),
                        k,
                    };
                    let weights = (
                        panels.codes.as_ptr().add((first * k + PANEL * begins) * size::<F>()),
                        panels.scales.as_ptr().add(first * runs + PANEL * first_run),
                        panels.minima.as_ptr().add(first * runs + PANEL * first_run),
                    );
                    let width = PANEL.min(out.cols() - first);
                    let to = Out { at: start.add(i * stride + first), stride, width };
                    let (these, raised) = (these.clone(), o.shape.bias.is_some());
                    match count {
                        1 => tile::<F, 1>(weights, &x, these, raised, to),
                        2 => tile::<F, 2>(weights, &x, these, raised, to),
                        3 => tile::<F, 3>(weights, &x, these, raised, to),
                        4 => tile::<F, 4>(weights, &x, these, raised, to),
                        5 => tile::<F, 5>(weights, &x, these, raised, to),
                        _ => tile::<F, ROWS>(weights, &x, these, raised, to),
                    }
                }
            }
            i += count;
        }
    }
}
