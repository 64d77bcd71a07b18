//! Many rows of x. A panel is 32 rows of weights, codes in fours of columns: the bytes of columns 4·q … 4·q + 3 of all 32
//! rows, then those of the next four. A lane of a register is a row of weights, and no sum goes across lanes.

use std::arch::x86_64::*;
use std::cell::RefCell;

use super::super::expand::Row;
use super::super::{Operands, PANEL};
use super::expand::{self, Form16};
use crate::runtime::kernels::amx::{Line, bytes_of};
use crate::runtime::kernels::tiles::Tile;
use crate::runtime::kernels::transpose::transpose;

/// Columns that are multiplied before the next ones are: their codes stay in the first cache while all of x passes.
pub(super) const COLUMNS: usize = 1024;

/// A panel.
#[derive(Default)]
pub(super) struct Panel {
    rows: Vec<Row>,
    k: usize,
    /// `[k / 4, PANEL, 4]`
    pub codes: Vec<Line>,
    /// `[runs, PANEL]`
    pub scales: Vec<f32>,
    /// `[runs, PANEL]`
    pub minima: Vec<f32>,
    /// `[rows of x, runs]`: what sums begin with, for codes that are raised.
    zeros: Vec<i32>,
}

thread_local! {
    pub(super) static PANELS: RefCell<Panel> = RefCell::default();
}

impl Panel {
    /// Expands and transposes the rows of weights in the tile's columns.
    ///
    /// # Safety
    /// As [`multiply`].
    #[inline(always)]
    pub unsafe fn fill<F: Form16>(&mut self, o: &Operands<'_>, tile: &Tile<'_>) {
        let (k, runs) = (o.k, o.k / o.shape.run);
        if self.k != k {
            *self = Self { k, rows: (0..16).map(|_| Row::new(k)).collect(), ..Self::default() };
        }
        // Whole 64 columns are written.
        self.codes.resize(k.next_multiple_of(64) * PANEL / 64, Line([0; 64]));
        self.scales.resize(runs * PANEL, 0.0);
        self.minima.resize(runs * PANEL, 0.0);
        for half in 0..2 {
            let first = tile.first_col() + 16 * half;
            let count = (tile.first_col() + tile.cols()).saturating_sub(first).min(16);
            for (j, row) in self.rows.iter_mut().enumerate() {
                if j < count {
                    // SAFETY: the caller's promise; the row was made for k columns.
                    unsafe { expand::row::<F>(o, first + j, row) };
                }
                // Columns that the tile does not have keep whatever codes there are and count nothing.
                for run in 0..runs {
                    let at = run * PANEL + 16 * half + j;
                    self.scales[at] = if j < count { row.scales[run] } else { 0.0 };
                    if o.shape.minima {
                        self.minima[at] = if j < count { row.minima[run] } else { 0.0 };
                    }
                }
            }
            for at in (0..k).step_by(64) {
                let starts = std::array::from_fn(|j| self.rows[j].codes[at..at + 64].as_ptr());
                let to = &mut bytes_of(&mut self.codes)[(at * PANEL) + 64 * half..];
                // SAFETY: 64 codes of each row; 16 steps of 128 bytes end with the buffer, or 64 bytes before.
                unsafe { transpose(&starts, to.as_mut_ptr(), 4 * PANEL) };
            }
        }
    }

    /// What sums of the tile begin with.
    #[inline(always)]
    fn begin(&mut self, o: &Operands<'_>, tile: &Tile<'_>) {
        let (k, runs) = (o.k, o.k / o.shape.run);
        self.zeros.clear();
        if let Some(bias) = o.shape.bias {
            let quads = &o.x.quads[tile.first_row() * k / 4..][..tile.rows() * k / 4];
            if o.shape.run == 16 {
                self.zeros.extend(quads.as_chunks::<4>().0.iter().map(|quads| quads.iter().sum::<i32>() << bias));
            } else {
                self.zeros.extend(quads.as_chunks::<8>().0.iter().map(|quads| quads.iter().sum::<i32>() << bias));
            }
        } else {
            self.zeros.resize(tile.rows() * runs, 0);
        }
    }
}

/// R rows of x, from the same column on as the panel.
struct Rows {
    codes: *const i8,
    /// What sums begin with.
    zeros: *const i32,
    scales: *const f32,
    sums: *const f32,
    k: usize,
    runs: usize,
}

/// Adds to `out` what `runs` runs give, or sets it if they are the first.
///
/// # Safety
/// The panel and R rows of x have these runs from here on; `out` has R rows, `stride` apart, of as many columns as `masks` say.
#[inline(always)]
unsafe fn tile<const R: usize, const RUN: usize, const MINIMA: bool>(
    (mut codes, mut scales, mut minima): (*const u8, *const f32, *const f32),
    x: &Rows,
    runs: usize,
    first: bool,
    out: *mut f32,
    stride: usize,
    masks: [__mmask16; 2],
) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut totals = [[_mm512_setzero_ps(); 2]; R];
        if !first {
            let mut i = 0;
            while i < R {
                totals[i][0] = _mm512_maskz_loadu_ps(masks[0], out.add(i * stride));
                totals[i][1] = _mm512_maskz_loadu_ps(masks[1], out.add(i * stride + 16));
                i += 1;
            }
        }
        let mut run = 0;
        while run < runs {
            let mut sums = [[_mm512_setzero_si512(); 2]; R];
            let mut i = 0;
            while i < R {
                let zero = _mm512_set1_epi32(*x.zeros.add(i * x.runs + run));
                sums[i] = [zero, zero];
                i += 1;
            }
            let mut q = 0;
            while q < RUN / 4 {
                let weights = [_mm512_loadu_si512(codes.cast()), _mm512_loadu_si512(codes.add(64).cast())];
                let mut i = 0;
                while i < R {
                    let quad = x.codes.add(i * x.k + run * RUN + 4 * q).cast::<i32>().read_unaligned();
                    let quad = _mm512_set1_epi32(quad);
                    sums[i][0] = _mm512_dpbusd_epi32(sums[i][0], weights[0], quad);
                    sums[i][1] = _mm512_dpbusd_epi32(sums[i][1], weights[1], quad);
                    i += 1;
                }
                codes = codes.add(4 * PANEL);
                q += 1;
            }
            let scale = [_mm512_loadu_ps(scales), _mm512_loadu_ps(scales.add(16))];
            scales = scales.add(PANEL);
            let mut i = 0;
            while i < R {
                let x_scale = _mm512_set1_ps(*x.scales.add(i * (x.k / 32) + run * RUN / 32));
                let mut v = 0;
                while v < 2 {
                    let product = _mm512_mul_ps(_mm512_cvtepi32_ps(sums[i][v]), x_scale);
                    totals[i][v] = _mm512_fmadd_ps(product, scale[v], totals[i][v]);
                    v += 1;
                }
                i += 1;
            }
            if MINIMA {
                let minimum = [_mm512_loadu_ps(minima), _mm512_loadu_ps(minima.add(16))];
                minima = minima.add(PANEL);
                let mut i = 0;
                while i < R {
                    let sum = _mm512_set1_ps(*x.sums.add(i * (x.k / 32) + run));
                    totals[i][0] = _mm512_fnmadd_ps(minimum[0], sum, totals[i][0]);
                    totals[i][1] = _mm512_fnmadd_ps(minimum[1], sum, totals[i][1]);
                    i += 1;
                }
            }
            run += 1;
        }
        let mut i = 0;
        while i < R {
            _mm512_mask_storeu_ps(out.add(i * stride), masks[0], totals[i][0]);
            _mm512_mask_storeu_ps(out.add(i * stride + 16), masks[1], totals[i][1]);
            i += 1;
        }
    }
}

/// # Safety
/// As [`super::avx512_vnni`].
#[inline(always)]
pub(super) unsafe fn multiply(o: &Operands<'_>, tile: &mut Tile<'_>) {
    assert!(tile.cols() <= PANEL, "a tile is as wide as a panel");
    // SAFETY: the caller's promise.
    unsafe { expand::dispatch(o, Many(tile)) }
}

struct Many<'a, 'b>(&'a mut Tile<'b>);

impl expand::Visitor for Many<'_, '_> {
    #[inline(always)]
    unsafe fn visit<F: Form16>(self, o: &Operands<'_>) {
        // SAFETY: the caller's promise.
        PANELS.with_borrow_mut(|panel| unsafe { run_all::<F>(panel, o, self.0) });
    }
}

/// # Safety
/// As [`super::avx512_vnni`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn run_all<F: Form16>(panel: &mut Panel, o: &Operands<'_>, tile: &mut Tile<'_>) {
    // SAFETY: the caller's promise.
    unsafe {
        panel.fill::<F>(o, tile);
        panel.begin(o, tile);
        match (F::RUN, F::MINIMA) {
            (16, _) => all::<16, false>(panel, o, tile),
            (_, false) => all::<32, false>(panel, o, tile),
            (_, true) => all::<32, true>(panel, o, tile),
        }
    }
}

#[inline(always)]
unsafe fn all<const RUN: usize, const MINIMA: bool>(panel: &Panel, o: &Operands<'_>, out: &mut Tile<'_>) {
    let (k, m, stride) = (o.k, out.rows(), out.stride());
    let mask = |columns: usize| ((1u32 << columns.min(16)) - 1) as __mmask16;
    let masks = [mask(out.cols()), mask(out.cols().saturating_sub(16))];
    let start = out.start();
    for at in (0..k).step_by(COLUMNS) {
        let runs = COLUMNS.min(k - at) / RUN;
        let mut i = 0;
        while i < m {
            let row = out.first_row() + i;
            // SAFETY: rows of x and of the tile are taken below m, runs below k.
            unsafe {
                let x = Rows {
                    codes: o.x.codes.as_ptr().add(row * k + at),
                    zeros: panel.zeros.as_ptr().add(i * (k / RUN) + at / RUN),
                    scales: o.x.scales.as_ptr().add((row * k + at) / 32),
                    sums: o.x.sums.as_ptr().add((row * k + at) / 32),
                    k,
                    runs: k / RUN,
                };
                let weights = (
                    panel.codes.as_ptr().cast::<u8>().add(at * PANEL),
                    panel.scales.as_ptr().add(at / RUN * PANEL),
                    panel.minima.as_ptr().add(at / RUN * PANEL),
                );
                let out = start.add(i * stride);
                macro_rules! group {
                    ($r:literal) => {{
                        tile::<$r, RUN, MINIMA>(weights, &x, runs, at == 0, out, stride, masks);
                        i += $r;
                    }};
                }
                match m - i {
                    1 => group!(1),
                    2 | 3 => group!(2),
                    4 | 5 => group!(4),
                    _ => group!(6),
                }
            }
        }
    }
}
