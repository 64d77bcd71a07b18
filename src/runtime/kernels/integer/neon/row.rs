//! A few rows of x: codes of four rows of weights come into registers and are multiplied at once.

use std::arch::aarch64::*;

use super::super::Operands;
use super::codes::{ByRun, Codes, Four, Row, Visitor};
use super::{FOUR, SPAN};
use crate::runtime::kernels::neon::{dot, totals};
use crate::runtime::kernels::tiles::Tile;

/// The products of four rows of weights and M rows of x from row `first` on.
///
/// # Safety
/// As [`super::multiply`]; there are M rows.
unsafe fn products<C: Codes, const PRODUCT: bool, const M: usize>(
    o: &Operands<'_>,
    rows: &[Row<'_>; FOUR],
    first: usize,
) -> [float32x4_t; M] {
    let runs = o.k / 32;
    // SAFETY: what is read lies below k columns of the rows, and of M rows of x.
    unsafe {
        let x = o.x.codes.as_ptr().add(first * o.k);
        let (x_scales, x_sums) = (&o.x.scales[first * runs..][..M * runs], &o.x.sums[first * runs..][..M * runs]);
        let zero = vdupq_n_s32(0);
        let mut by_run = ByRun::new();
        let mut sums = [vdupq_n_f32(0.0); M];
        for span in 0..o.k.div_ceil(SPAN) {
            let count = SPAN.min(o.k - span * SPAN);
            by_run.take::<C>(rows, span, count);
            let mut starts = [x.cast::<u8>(); FOUR];
            for (start, row) in starts.iter_mut().zip(rows) {
                *start = row.span::<C>(span, count);
            }
            for j in 0..count / 32 {
                let mut codes = [[vdupq_n_s8(0); 2]; FOUR];
                for (codes, start) in codes.iter_mut().zip(starts) {
                    *codes = C::codes(start, j);
                }
                let run = span * (SPAN / 32) + j;
                for (i, sum) in sums.iter_mut().enumerate() {
                    let x = x.add(i * o.k + 32 * run);
                    let x = [vld1q_s8(x), vld1q_s8(x.add(16))];
                    let mut halves = [[zero; FOUR]; 2];
                    for (lane, codes) in codes.iter().enumerate() {
                        halves[0][lane] = dot::<PRODUCT>(zero, codes[0], x[0]);
                        let before = if C::RUN == 32 { halves[0][lane] } else { zero };
                        halves[1][lane] = dot::<PRODUCT>(before, codes[1], x[1]);
                    }
                    let scale = x_scales[i * runs + run];
                    if C::RUN == 16 {
                        let product = vmulq_n_f32(vcvtq_f32_s32(totals(halves[0])), scale);
                        *sum = vfmaq_f32(*sum, product, vld1q_f32(by_run.scales[2 * j].as_ptr()));
                    }
                    let product = vmulq_n_f32(vcvtq_f32_s32(totals(halves[1])), scale);
                    let own = if C::RUN == 16 { 2 * j + 1 } else { j };
                    *sum = vfmaq_f32(*sum, product, vld1q_f32(by_run.scales[own].as_ptr()));
                    if C::MINIMA {
                        let x_sum = vdupq_n_f32(x_sums[i * runs + run]);
                        *sum = vfmsq_f32(*sum, vld1q_f32(by_run.minima[j].as_ptr()), x_sum);
                    }
                }
            }
        }
        sums
    }
}

/// The tile.
pub(super) struct Few<'a, 'b, const PRODUCT: bool>(pub &'a mut Tile<'b>);

impl<const PRODUCT: bool> Visitor for Few<'_, '_, PRODUCT> {
    unsafe fn visit<C: Codes>(self, o: &Operands<'_>) {
        let tile = self.0;
        let mut four = Four::new(o);
        for j in (0..tile.cols()).step_by(FOUR) {
            let count = FOUR.min(tile.cols() - j);
            four.take(o, tile.first_col() + j, count);
            let mut i = 0;
            while i < tile.rows() {
                macro_rules! group {
                    ($m:literal) => {{
                        // SAFETY: the caller's promise: the tile lies within the operands.
                        let sums = unsafe { products::<C, PRODUCT, $m>(o, &four.rows(), tile.first_row() + i) };
                        for (at, sums) in sums.into_iter().enumerate() {
                            let mut all = [0.0; FOUR];
                            // SAFETY: there is room for four numbers.
                            unsafe { vst1q_f32(all.as_mut_ptr(), sums) };
                            tile.row(i + at)[j..j + count].copy_from_slice(&all[..count]);
                        }
                        i += $m;
                    }};
                }
                match tile.rows() - i {
                    1 => group!(1),
                    2 => group!(2),
                    3 => group!(3),
                    _ => group!(4),
                }
            }
        }
    }
}
