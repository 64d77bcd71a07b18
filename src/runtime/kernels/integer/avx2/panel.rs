//! Many rows of x. A panel is 16 rows of weights, codes in fours of columns (in pairs, as 16-bit numbers, where they have 8
//! bits): a lane of a register is a row of weights, and no sum goes across lanes.
//!
//! Products of codes of up to 6 bits are added in 16 bits for as many columns as fit, and then in 32; no sum saturates, since
//! x is at least −128.

use std::arch::x86_64::*;
use std::cell::RefCell;

use super::super::expand::Row;
use super::super::{Operands, PANEL as TILE};
use super::expand::{self, Spans};
use crate::runtime::kernels::tiles::Tile;
use crate::runtime::kernels::transpose::transpose_8;

/// Rows of weights in a panel.
const PANEL: usize = 16;

/// Rows of x that use each load of weights.
const ROWS: usize = 6;

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
    /// `[ROWS, runs]`: what sums begin with, for codes that are raised.
    zeros: Vec<i32>,
    /// `[ROWS, k]`
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
    unsafe fn fill<F: Spans>(&mut self, o: &Operands<'_>, tile: &Tile<'_>) {
        let (k, runs) = (o.k, o.k / F::RUN);
        if self.k != k {
            *self = Self { k, rows: (0..8).map(|_| Row::new(k)).collect(), ..Self::default() };
        }
        let bytes = PANEL * k * size::<F>();
        self.codes.resize(TILE / PANEL * bytes, 0);
        self.scales.resize(TILE * runs, 0.0);
        self.minima.resize(TILE * runs, 0.0);
        self.zeros.resize(ROWS * runs, 0);
        self.wide.resize(ROWS * k, 0);
        let raised = o.shape.bias.map_or(0, |bits| 1i16 << bits);
        for half in 0..tile.cols().div_ceil(8) {
            let (first, panel, lane) = (8 * half, 8 * half / PANEL, 8 * half % PANEL);
            for (j, row) in self.rows.iter_mut().enumerate() {
                // Columns that the tile does not have are those of the last row again, and are not stored.
                let at = tile.first_col() + (first + j).min(tile.cols() - 1);
                // SAFETY: the caller's promise; the row was made for k columns.
                unsafe { expand::row::<F>(o, at, row) };
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
                    let bias = _mm256_set1_epi16(raised);
                    let mut words = [_mm256_setzero_si256(); 8];
                    for (word, row) in words.iter_mut().zip(&self.rows) {
                        let codes = row.codes[at..at + step].as_ptr();
                        *word = if F::BITS < 8 {
                            _mm256_loadu_si256(codes.cast())
                        } else {
                            _mm256_sub_epi16(_mm256_cvtepu8_epi16(_mm_loadu_si128(codes.cast())), bias)
                        };
                    }
                    transpose_8(words, to.as_mut_ptr(), 4 * PANEL);
                }
            }
        }
    }

    /// Prepares `count` rows of x.
    #[inline(always)]
    fn take<F: Spans>(&mut self, o: &Operands<'_>, first: usize, count: usize) {
        if F::BITS == 8 {
            let x = &o.x.codes[first * o.k..][..count * o.k];
            self.wide.iter_mut().zip(x).for_each(|(wide, x)| *wide = i16::from(*x));
        } else if let Some(bias) = o.shape.bias {
            let quads = &o.x.quads[first * o.k / 4..][..count * o.k / 4];
            if F::RUN == 16 {
                let runs = self.zeros.iter_mut().zip(quads.as_chunks::<4>().0);
                runs.for_each(|(zero, quads)| *zero = quads.iter().sum::<i32>() << bias);
            } else {
                let runs = self.zeros.iter_mut().zip(quads.as_chunks::<8>().0);
                runs.for_each(|(zero, quads)| *zero = quads.iter().sum::<i32>() << bias);
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

/// # Safety
/// The panel has k columns, as have R rows of x; `out` has R rows, `stride` apart, of `columns` columns.
#[inline(always)]
unsafe fn tile<F: Spans, const R: usize>(
    (mut codes, mut scales, mut minima): (*const u8, *const f32, *const f32),
    x: &Rows,
    raised: bool,
    out: *mut f32,
    stride: usize,
    columns: usize,
) {
    // Quads whose products 16 bits have room for: a pair of them is at most 2 · 128 · (2ᵇ − 1).
    let quads = match F::BITS {
        ..=4 => 8,
        5 => 4,
        _ => 2,
    };
    let runs = x.k / F::RUN;
    // SAFETY: the caller's promise.
    unsafe {
        let ones = _mm256_set1_epi16(1);
        let mut totals = [[_mm256_setzero_ps(); 2]; R];
        let mut run = 0;
        while run < runs {
            let mut sums = [[_mm256_setzero_si256(); 2]; R];
            if F::BITS < 8 {
                if raised {
                    let mut i = 0;
                    while i < R {
                        let zero = _mm256_set1_epi32(*x.zeros.add(i * runs + run));
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
                        let pair = x.wide.add(i * x.k + run * F::RUN + q).cast::<i32>().read_unaligned();
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
            let mut all = [0.0; PANEL];
            _mm256_storeu_ps(all.as_mut_ptr(), totals[0]);
            _mm256_storeu_ps(all.as_mut_ptr().add(8), totals[1]);
            std::ptr::copy_nonoverlapping(all.as_ptr(), out.add(i * stride), columns);
        }
    }
}

/// # Safety
/// As [`super::avx2`].
#[inline(always)]
pub(super) unsafe fn multiply(o: &Operands<'_>, tile: &mut Tile<'_>) {
    assert!(tile.cols() <= TILE, "a tile is as wide as its panels");
    // SAFETY: the caller's promise.
    unsafe { expand::dispatch(o, Many(tile)) }
}

struct Many<'a, 'b>(&'a mut Tile<'b>);

impl expand::Visitor for Many<'_, '_> {
    #[inline(always)]
    unsafe fn visit<F: Spans>(self, o: &Operands<'_>) {
        // SAFETY: the caller's promise.
        PANELS.with_borrow_mut(|panels| unsafe { all::<F>(panels, o, self.0) });
    }
}

/// # Safety
/// As [`super::avx2`].
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn all<F: Spans>(panels: &mut Panels, o: &Operands<'_>, out: &mut Tile<'_>) {
    let (k, m, stride, runs) = (o.k, out.rows(), out.stride(), o.k / F::RUN);
    // SAFETY: the caller's promise.
    unsafe { panels.fill::<F>(o, out) };
    let start = out.start();
    let mut i = 0;
    while i < m {
        let (row, count) = (out.first_row() + i, ROWS.min(m - i));
        panels.take::<F>(o, row, count);
        for first in (0..out.cols()).step_by(PANEL) {
            let columns = PANEL.min(out.cols() - first);
            // SAFETY: rows of x and of the tile are taken below m, columns below the tile's.
            unsafe {
                let x = Rows {
                    codes: o.x.codes.as_ptr().add(row * k),
                    wide: panels.wide.as_ptr(),
                    zeros: panels.zeros.as_ptr(),
                    scales: o.x.scales.as_ptr().add(row * k / 32),
                    sums: o.x.sums.as_ptr().add(row * k / 32),
                    k,
                };
                let weights = (
                    panels.codes.as_ptr().add(first * k * size::<F>()),
                    panels.scales.as_ptr().add(first * runs),
                    panels.minima.as_ptr().add(first * runs),
                );
                let (to, raised) = (start.add(i * stride + first), o.shape.bias.is_some());
                match count {
                    1 => tile::<F, 1>(weights, &x, raised, to, stride, columns),
                    2 => tile::<F, 2>(weights, &x, raised, to, stride, columns),
                    3 => tile::<F, 3>(weights, &x, raised, to, stride, columns),
                    4 => tile::<F, 4>(weights, &x, raised, to, stride, columns),
                    5 => tile::<F, 5>(weights, &x, raised, to, stride, columns),
                    _ => tile::<F, ROWS>(weights, &x, raised, to, stride, columns),
                }
            }
        }
        i += count;
    }
}
