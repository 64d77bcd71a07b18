//! IQ4_NL and IQ4_XS: codes that stand for the levels of a table.

use super::lanes::{Columns, clamp_to, columns, importance, map, sum, times, to_f16};
use super::{Row, fit, sum_of_squares};
use crate::encoding::ggml::nonlinear::{LEVELS, pack_iq4_nl, pack_iq4_xs};
use crate::simd::lanes::{W, nearest};
use crate::simd::{Lanes, Simd};

/// Midway between neighbouring levels: from there on the upper one is nearest.
const MIDDLES: [f32; 15] = {
    let mut middles = [0.0; 15];
    let mut i = 0;
    while i < 15 {
        middles[i] = (LEVELS[i] as f32 + LEVELS[i + 1] as f32) / 2.0;
        i += 1;
    }
    middles
};

/// The nearest level: a sum over all of them, which needs neither branch nor table.
#[inline(always)]
pub fn level(x: f32) -> f32 {
    let mut level = f32::from(LEVELS[0]);
    for (i, middle) in MIDDLES.iter().enumerate() {
        let step = f32::from(i16::from(LEVELS[i + 1]) - i16::from(LEVELS[i]));
        level += if x >= *middle { step } else { 0.0 };
    }
    level
}

/// The code of the nearest level; NaN (0 times the infinite inverse of next to nothing) gets the last.
#[inline(always)]
pub fn code(x: f32) -> u8 {
    MIDDLES.iter().fold(0, |code, &middle| if x < middle { code } else { code + 1 })
}

/// 1 / x, or 0 for 0.
fn inverse(x: f32) -> f32 {
    if x == 0.0 { 0.0 } else { 1.0 / x }
}

/// The scales of sub-blocks of 32: of the one that maps the extreme number to the lowest level and 15 near it, the one for
/// which the least-squares scale, weighted by `w`, explains most.
#[inline(always)]
pub fn scales<S: Simd>(simd: S, x: &Columns<S, 32>, w: &Columns<S, 32>) -> [f32; W] {
    let none = simd.splat(0.0);
    let lowest = f32::from(LEVELS[0]);
    let extreme = fit::extreme(simd, x);
    let nothing = extreme.abs().lt(simd.splat(fit::NOTHING));
    let (sum_qx, sum_q2) =
        sums(simd, x, w, none.or(nothing, simd.splat(1.0) / (simd.splat(-1.0) * extreme / simd.splat(lowest))));
    let mut scale = (sum_qx / sum_q2).or(none.lt(sum_q2), none);
    let mut best = scale * sum_qx;
    for shift in -7..=7 {
        let (sum_qx, sum_q2) = sums(simd, x, w, none.or(nothing, simd.splat(shift as f32 + lowest) / extreme));
        let better = none.lt(sum_q2) & (best * sum_q2).lt(sum_qx * sum_qx);
        let new = sum_qx / sum_q2;
        scale = new.or(better, scale);
        best = (new * sum_qx).or(better, best);
    }
    none.or(nothing, scale).store()
}

/// Σ w·q·x and Σ w·q² for the levels q nearest to x · inverse.
#[inline(always)]
fn sums<S: Simd>(simd: S, x: &Columns<S, 32>, w: &Columns<S, 32>, inverse: S::Lanes) -> (S::Lanes, S::Lanes) {
    let (mut sum_qx, mut sum_q2) = (simd.splat(0.0), simd.splat(0.0));
    for i in 0..32 {
        let q = levels(simd, inverse * x[i]);
        let wq = w[i] * q;
        sum_qx = sum_qx + wq * x[i];
        sum_q2 = sum_q2 + wq * q;
    }
    (sum_qx, sum_q2)
}

/// [`level`] of each lane.
#[inline(always)]
pub fn levels<S: Simd>(simd: S, x: S::Lanes) -> S::Lanes {
    let mut level = simd.splat(f32::from(LEVELS[15]));
    for (i, &middle) in MIDDLES.iter().enumerate().rev() {
        level = simd.splat(f32::from(LEVELS[i])).or(x.lt(simd.splat(middle)), level);
    }
    level
}

/// The weights of up to [`W`] sub-blocks; `sigma2` is twice the mean square of what ggml takes as their surroundings.
#[inline(always)]
fn weigh<S: Simd>(simd: S, x: &Columns<S, 32>, weights: Option<&[[f32; 32]]>, sigma2: S::Lanes) -> Columns<S, 32> {
    match weights {
        Some(weights) => importance::<S, 32>(x, &columns(simd, weights), sigma2),
        None => times::<S, 32>(x, x),
    }
}

pub(super) fn iq4_nl<S: Simd>(simd: S, row: &Row, out: &mut [[u8; 18]]) {
    let x = row.blocks::<32>();
    assert_eq!(x.len(), out.len(), "as many blocks");
    let weights = row.weight_blocks();
    simd.run(
        #[inline(always)]
        || {
            for (g, (x, out)) in x.chunks(W).zip(out.chunks_mut(W)).enumerate() {
                let turned = columns::<_, 32>(simd, x);
                let sigma2 = sum(simd, &times::<S, 32>(&turned, &turned)) * simd.splat(2.0 / 32.0);
                let weights = weights.map(|weights| &weights[g * W..][..x.len()]);
                let scales = scales(simd, &turned, &weigh(simd, &turned, weights, sigma2));
                for (lane, (x, out)) in x.iter().zip(out).enumerate() {
                    let inverse = inverse(scales[lane]);
                    pack_iq4_nl(to_f16(scales[lane]), &map(x, |x| code(inverse * x)), out);
                }
            }
        },
    );
}

pub(super) fn iq4_xs(simd: impl Simd, row: &Row, out: &mut [[u8; 136]]) {
    /// Super-blocks that are handled at once, and sub-blocks of one.
    const GROUP: usize = W / SUB;
    const SUB: usize = 8;

    let x = row.blocks::<256>();
    assert_eq!(x.len(), out.len(), "as many blocks");
    let weights = row.weight_blocks::<256>();
    simd.run(
        #[inline(always)]
        || {
            for (g, (x, out)) in x.chunks(GROUP).zip(out.chunks_mut(GROUP)).enumerate() {
                let turned = columns::<_, 32>(simd, x.as_flattened().as_chunks().0);
                let mut sigma2 = [0.0; W];
                for (sigma2, x) in sigma2.chunks_mut(SUB).zip(x) {
                    sigma2.fill(sum_of_squares(x) * (2.0 / 256.0));
                }
                let weights = weights.map(|weights| weights[g * GROUP..][..x.len()].as_flattened().as_chunks().0);
                let scales = scales(simd, &turned, &weigh(simd, &turned, weights, simd.load(&sigma2)));
                for ((x, out), scales) in x.iter().zip(out).zip(scales.as_chunks::<SUB>().0) {
                    iq4_xs_block(x, scales, out);
                }
            }
        },
    );
}

/// The codes of a super-block whose sub-blocks have these scales.
#[inline(always)]
fn iq4_xs_block(x: &[f32; 256], scales: &[f32; 8], out: &mut [u8; 136]) {
    let extreme = scales.iter().fold(0.0, |extreme: f32, &x| if x.abs() > extreme.abs() { x } else { extreme });
    let d = -extreme / 32.0;
    let multiples = scales.map(|scale| clamp_to(nearest(inverse(d) * scale), -32, 31));
    let mut codes = [0; 256];
    for (j, (x, codes)) in x.as_chunks::<32>().0.iter().zip(codes.as_chunks_mut::<32>().0).enumerate() {
        let inverse = inverse(d * multiples[j] as f32);
        *codes = map(x, |x| code(inverse * x));
    }
    pack_iq4_xs(to_f16(d), &multiples.map(|multiple| (multiple + 32) as u8), &codes, out);
}
