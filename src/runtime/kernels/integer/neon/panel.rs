//! Many rows of x. A panel is 8 rows of weights, codes in fours of columns: a lane of a register is a row of weights, and no sum
//! goes across lanes. 4 rows of x lie as they are; each instruction takes four columns of one of them from a lane.

use std::arch::aarch64::*;
use std::cell::Cell;

use super::super::{Operands, PANEL as TILE};
use super::codes::{ByRun, Codes, Four, Visitor};
use super::{FOUR, SPAN};
use crate::runtime::kernels::neon::{dot_lane, transposed};
use crate::runtime::kernels::tiles::Tile;

/// Rows of weights in a panel.
const PANEL: usize = 8;

/// Rows of x that use each load of weights: with a panel, 8 sums of a run, 8 totals, 4 registers of x and 2 of weights.
const ROWS: usize = 4;

/// Panels as wide as a tile.
#[derive(Default)]
struct Panels {
    /// `[TILE / PANEL, k / 4, PANEL, 4]`
    codes: Vec<i8>,
    /// `[TILE / PANEL, runs, PANEL]`
    scales: Vec<f32>,
    /// Likewise.
    minima: Vec<f32>,
}

thread_local! {
    static PANELS: Cell<Panels> = const { Cell::new(Panels { codes: Vec::new(), scales: Vec::new(), minima: Vec::new() }) };
}

impl Panels {
    /// Lays out the rows of weights in the tile's columns.
    ///
    /// # Safety
    /// As [`super::multiply`].
    unsafe fn fill<C: Codes>(&mut self, o: &Operands<'_>, tile: &Tile<'_>) {
        let (k, runs) = (o.k, o.k / C::RUN);
        self.codes.resize(TILE * k, 0);
        self.scales.resize(TILE * runs, 0.0);
        self.minima.resize(if C::MINIMA { TILE * runs } else { 0 }, 0.0);
        let mut four = Four::new(o);
        let mut by_run = ByRun::new();
        for first in (0..tile.cols()).step_by(FOUR) {
            four.take(o, tile.first_col() + first, FOUR.min(tile.cols() - first));
            let (rows, panel, lane) = (four.rows(), first / PANEL, first % PANEL);
            let codes = &mut self.codes[panel * PANEL * k..][..PANEL * k];
            let scales = &mut self.scales[panel * PANEL * runs..][..PANEL * runs];
            for span in 0..k.div_ceil(SPAN) {
                let count = SPAN.min(k - span * SPAN);
                // SAFETY: rows have these columns; 8 steps of 32 codes are written for each 32 columns of a panel.
                unsafe {
                    by_run.take::<C>(&rows, span, count);
                    for (run, own) in by_run.scales.iter().take(count / C::RUN).enumerate() {
                        scales[(span * SPAN / C::RUN + run) * PANEL + lane..][..FOUR].copy_from_slice(own);
                    }
                    if C::MINIMA {
                        let minima = &mut self.minima[panel * PANEL * runs..][..PANEL * runs];
                        for (run, own) in by_run.minima.iter().take(count / C::RUN).enumerate() {
                            minima[(span * SPAN / C::RUN + run) * PANEL + lane..][..FOUR].copy_from_slice(own);
                        }
                    }
                    for j in 0..count / 32 {
                        let mut words = [[vdupq_n_s32(0); FOUR]; 2];
                        for (i, row) in rows.iter().enumerate() {
                            let [low, high] = C::codes(row.span::<C>(span, count), j);
                            (words[0][i], words[1][i]) = (vreinterpretq_s32_s8(low), vreinterpretq_s32_s8(high));
                        }
                        let to = &mut codes[(span * SPAN + 32 * j) * PANEL..][..32 * PANEL];
                        for (half, words) in words.into_iter().enumerate() {
                            for (q, four) in transposed(words).into_iter().enumerate() {
                                let to = &mut to[(FOUR * half + q) * 4 * PANEL + 4 * lane..][..16];
                                vst1q_s8(to.as_mut_ptr(), vreinterpretq_s8_s32(four));
                            }
                        }
                    }
                }
            }
        }
    }
}

/// R rows of x.
struct Rows {
    codes: *const i8,
    scales: *const f32,
    sums: *const f32,
    k: usize,
}

/// Adds to sums what 16 columns of a panel, from `codes` on, and R rows of x give.
///
/// # Safety
/// There are so many; as [`super::multiply`].
#[inline(always)]
unsafe fn add<const PRODUCT: bool, const R: usize>(
    sums: &mut [[int32x4_t; 2]; R],
    codes: *const i8,
    x: *const i8,
    stride: usize,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut quads = [vdupq_n_s8(0); R];
        for (i, quads) in quads.iter_mut().enumerate() {
            *quads = vld1q_s8(x.add(i * stride));
        }
        macro_rules! step {
            ($q:literal) => {{
                let at = codes.add($q * 4 * PANEL);
                let weights = [vld1q_s8(at), vld1q_s8(at.add(16))];
                for (sums, quads) in sums.iter_mut().zip(quads) {
                    sums[0] = dot_lane::<PRODUCT, $q>(sums[0], weights[0], quads);
                    sums[1] = dot_lane::<PRODUCT, $q>(sums[1], weights[1], quads);
                }
            }};
        }
        step!(0);
        step!(1);
        step!(2);
        step!(3);
    }
}

/// # Safety
/// The panel has k columns, as have R rows of x; `out` has R rows, `stride` apart, of `columns` columns; and as
/// [`super::dot_product`] or [`super::plain`].
unsafe fn tile<C: Codes, const PRODUCT: bool, const R: usize>(
    (mut codes, mut scales, mut minima): (*const i8, *const f32, *const f32),
    x: &Rows,
    out: *mut f32,
    stride: usize,
    columns: usize,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let zero = [vdupq_n_s32(0); 2];
        let mut totals = [[vdupq_n_f32(0.0); 2]; R];
        let mut run = 0;
        while run < x.k / C::RUN {
            let mut sums = [zero; R];
            let first = run * C::RUN;
            add::<PRODUCT, R>(&mut sums, codes, x.codes.add(first), x.k);
            codes = codes.add(16 * PANEL);
            if C::RUN == 32 {
                add::<PRODUCT, R>(&mut sums, codes, x.codes.add(first + 16), x.k);
                codes = codes.add(16 * PANEL);
            }
            let scale = [vld1q_f32(scales), vld1q_f32(scales.add(4))];
            scales = scales.add(PANEL);
            for (i, (totals, sums)) in totals.iter_mut().zip(sums).enumerate() {
                let x_scale = *x.scales.add(i * (x.k / 32) + first / 32);
                for ((total, sums), scale) in totals.iter_mut().zip(sums).zip(scale) {
                    *total = vfmaq_f32(*total, vmulq_n_f32(vcvtq_f32_s32(sums), x_scale), scale);
                }
            }
            if C::MINIMA {
                let minimum = [vld1q_f32(minima), vld1q_f32(minima.add(4))];
                minima = minima.add(PANEL);
                for (i, totals) in totals.iter_mut().enumerate() {
                    let sum = vdupq_n_f32(*x.sums.add(i * (x.k / 32) + run));
                    totals[0] = vfmsq_f32(totals[0], minimum[0], sum);
                    totals[1] = vfmsq_f32(totals[1], minimum[1], sum);
                }
            }
            run += 1;
        }
        for (i, totals) in totals.into_iter().enumerate() {
            let mut all = [0.0; PANEL];
            vst1q_f32(all.as_mut_ptr(), totals[0]);
            vst1q_f32(all.as_mut_ptr().add(4), totals[1]);
            std::ptr::copy_nonoverlapping(all.as_ptr(), out.add(i * stride), columns);
        }
    }
}

/// The tile.
pub(super) struct Many<'a, 'b, const PRODUCT: bool>(pub &'a mut Tile<'b>);

impl<const PRODUCT: bool> Visitor for Many<'_, '_, PRODUCT> {
    unsafe fn visit<C: Codes>(self, o: &Operands<'_>) {
        let out = self.0;
        assert!(out.cols() <= TILE, "a tile is as wide as its panels");
        let (k, m, stride, runs) = (o.k, out.rows(), out.stride(), o.k / C::RUN);
        let mut panels = PANELS.take();
        // SAFETY: the caller's promise.
        unsafe { panels.fill::<C>(o, out) };
        let start = out.start();
        for i in (0..m).step_by(ROWS) {
            let row = out.first_row() + i;
            for first in (0..out.cols()).step_by(PANEL) {
                let columns = PANEL.min(out.cols() - first);
                // SAFETY: rows of x and of the tile are taken below m, columns below the tile's.
                unsafe {
                    let x = Rows {
                        codes: o.x.codes.as_ptr().add(row * k),
                        scales: o.x.scales.as_ptr().add(row * k / 32),
                        sums: o.x.sums.as_ptr().add(row * k / 32),
                        k,
                    };
                    let weights = (
                        panels.codes.as_ptr().add(first * k),
                        panels.scales.as_ptr().add(first * runs),
                        panels.minima.as_ptr().wrapping_add(first * runs),
                    );
                    let to = start.add(i * stride + first);
                    match m - i {
                        1 => tile::<C, PRODUCT, 1>(weights, &x, to, stride, columns),
                        2 => tile::<C, PRODUCT, 2>(weights, &x, to, stride, columns),
                        3 => tile::<C, PRODUCT, 3>(weights, &x, to, stride, columns),
                        _ => tile::<C, PRODUCT, ROWS>(weights, &x, to, stride, columns),
                    }
                }
            }
        }
        PANELS.set(panels);
    }
}
