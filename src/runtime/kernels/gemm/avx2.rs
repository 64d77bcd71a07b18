//! Many rows of x, AVX2. Of [`COLUMNS`] columns of x, up to [`HIGH`] rows are put by groups of six, and of as many rows of w up
//! to [`WIDE`] columns into panels: both stay in the second cache, a panel in the first.

use std::arch::x86_64::*;
use std::cell::RefCell;

use super::{Product, View};
use crate::runtime::activations::SIX;
use crate::runtime::kernels::six_avx2::{COLUMNS, Out, PANEL, rows};
use crate::runtime::kernels::tiles::Tile;
use crate::runtime::kernels::transpose::transpose_8;

/// Rows of x that are multiplied together.
const HIGH: usize = 42 * SIX;

/// Columns of w that are multiplied together.
const WIDE: usize = 8 * PANEL;

thread_local! {
    static BUFFERS: RefCell<(Vec<f32>, Vec<f32>)> = RefCell::default();
}

/// # Safety
/// The processor has AVX2 and FMA; the shapes fit one another and the tile's, and none is empty.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn multiply(product: &Product<'_>, out: &mut Tile<'_>) {
    let Product { x, w, factor, add } = *product;
    let stride = out.stride();
    BUFFERS.with_borrow_mut(|(sixes, panels)| {
        sixes.resize(HIGH * COLUMNS, 0.0);
        panels.resize(WIDE * COLUMNS, 0.0);
        for first in (0..x.cols).step_by(COLUMNS) {
            let columns = COLUMNS.min(x.cols - first);
            let (x, w) = (x.some_cols(first, columns), w.some_rows(first, columns));
            for down in (0..x.rows).step_by(HIGH) {
                let high = HIGH.min(x.rows - down);
                by_six(x.some_rows(down, high), factor, sixes);
                for side in (0..w.cols).step_by(WIDE) {
                    let wide = WIDE.min(w.cols - side);
                    into_panels(w.some_cols(side, wide), panels);
                    for at in (0..wide).step_by(PANEL) {
                        let panel = panels[at * columns..].as_ptr();
                        for i in (0..high).step_by(SIX) {
                            let count = SIX.min(high - i);
                            let numbers = &sixes[i * columns..][..count * columns];
                            // SAFETY: the caller's promise; rows and columns are taken below the tile's.
                            unsafe {
                                let to = out.start().add((down + i) * stride + side + at);
                                let begun = add || first > 0;
                                let to = Out { at: to, stride, width: PANEL.min(wide - at), begun };
                                rows(panel, numbers, count, None, to);
                            }
                        }
                    }
                }
            }
        }
    });
}

/// Rows by groups of [`SIX`], of which the last may have fewer, times `factor`: of each group, the numbers of a column together.
#[inline(always)]
fn by_six(x: View<'_>, factor: f32, out: &mut [f32]) {
    for first in (0..x.rows).step_by(SIX) {
        let count = SIX.min(x.rows - first);
        let out = &mut out[first * x.cols..][..count * x.cols];
        let data = &x.data[first * x.stride..];
        if count == SIX && x.stride == 1 {
            for (q, out) in out.as_chunks_mut::<SIX>().0.iter_mut().enumerate() {
                out.iter_mut().zip(&data[q * x.step..][..SIX]).for_each(|(out, x)| *out = x * factor);
            }
        } else if count == SIX && x.step == 1 {
            let rows: [&[f32]; SIX] = std::array::from_fn(|i| &data[i * x.stride..][..x.cols]);
            for (q, out) in out.as_chunks_mut::<SIX>().0.iter_mut().enumerate() {
                out.iter_mut().zip(rows).for_each(|(out, row)| *out = row[q] * factor);
            }
        } else {
            for (q, out) in out.chunks_exact_mut(count).enumerate() {
                out.iter_mut().enumerate().for_each(|(i, out)| *out = data[i * x.stride + q * x.step] * factor);
            }
        }
    }
}

/// Columns into panels one after the other, the last one filled up with zeros: of each, the numbers of a row together.
#[target_feature(enable = "avx2,fma")]
fn into_panels(w: View<'_>, out: &mut [f32]) {
    for first in (0..w.cols).step_by(PANEL) {
        let width = PANEL.min(w.cols - first);
        let panel = &mut out[first * w.rows..][..PANEL * w.rows];
        let data = &w.data[first * w.step..];
        if w.step == 1 {
            for (q, out) in panel.as_chunks_mut::<PANEL>().0.iter_mut().enumerate() {
                let row = &data[q * w.stride..][..width];
                if let Ok(row) = <&[f32; PANEL]>::try_from(row) {
                    *out = *row;
                } else {
                    out[..width].copy_from_slice(row);
                    out[width..].fill(0.0);
                }
            }
            continue;
        }
        let turned = if width == PANEL && w.stride == 1 { w.rows / 8 * 8 } else { 0 };
        for q in (0..turned).step_by(8) {
            for eight in [0, 8] {
                let to = &mut panel[q * PANEL + eight..][..7 * PANEL + 8];
                let words = std::array::from_fn(|j| data[(eight + j) * w.step + q..][..8].as_ptr());
                // SAFETY: the caller's processor; 8 numbers are read from each, and 8 written to each of 8 rows.
                unsafe {
                    let words = words.map(|at: *const f32| _mm256_loadu_si256(at.cast()));
                    transpose_8(words, to.as_mut_ptr().cast(), 4 * PANEL);
                }
            }
        }
        for (q, out) in panel.as_chunks_mut::<PANEL>().0.iter_mut().enumerate().skip(turned) {
            out.fill(0.0);
            out.iter_mut().take(width).enumerate().for_each(|(j, out)| *out = data[j * w.step + q * w.stride]);
        }
    }
}
