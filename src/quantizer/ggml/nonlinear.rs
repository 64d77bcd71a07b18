//! IQ4_NL and IQ4_XS: codes that stand for the levels of a table.

use half::f16;

use super::lanes::{Columns, Lanes, W, clamp_to, columns, each, importance, map, nearest};
use super::{Row, fit, sum_of_squares};
use crate::encoding::ggml::nonlinear::{LEVELS, pack_iq4_nl, pack_iq4_xs};

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
pub fn scales(x: &Columns<32>, w: &Columns<32>) -> Lanes {
    let lowest = f32::from(LEVELS[0]);
    let extreme = fit::extreme(x);
    let nothing = extreme.map(|x| x.abs() < fit::NOTHING);
    let start = each(|lane| if nothing[lane] { 0.0 } else { 1.0 / (-extreme[lane] / lowest) });
    let (sum_qx, sum_q2) = sums(x, w, &start);
    let mut scale = each(|lane| if sum_q2[lane] > 0.0 { sum_qx[lane] / sum_q2[lane] } else { 0.0 });
    let mut best = each(|lane| scale[lane] * sum_qx[lane]);
    for shift in -7..=7 {
        let trial = each(|lane| if nothing[lane] { 0.0 } else { (shift as f32 + lowest) / extreme[lane] });
        let (sum_qx, sum_q2) = sums(x, w, &trial);
        for lane in 0..W {
            let better = (sum_q2[lane] > 0.0) & (sum_qx[lane] * sum_qx[lane] > best[lane] * sum_q2[lane]);
            let new = sum_qx[lane] / sum_q2[lane];
            scale[lane] = if better { new } else { scale[lane] };
            best[lane] = if better { new * sum_qx[lane] } else { best[lane] };
        }
    }
    each(|lane| if nothing[lane] { 0.0 } else { scale[lane] })
}

/// Σ w·q·x and Σ w·q² for the levels q nearest to x · inverse.
#[inline(never)]
fn sums(x: &Columns<32>, w: &Columns<32>, inverse: &Lanes) -> (Lanes, Lanes) {
    let (mut sum_qx, mut sum_q2) = ([0.0; W], [0.0; W]);
    for i in 0..32 {
        for lane in 0..W {
            let q = level(inverse[lane] * x[i][lane]);
            let wq = w[i][lane] * q;
            sum_qx[lane] += wq * x[i][lane];
            sum_q2[lane] += wq * q;
        }
    }
    (sum_qx, sum_q2)
}

/// The weights of up to [`W`] sub-blocks; `sigma2` is twice the mean square of what ggml takes as their surroundings.
fn weigh(x: &Columns<32>, weights: Option<&[[f32; 32]]>, sigma2: &Lanes) -> Columns<32> {
    match weights {
        Some(weights) => importance(x, &columns(weights), sigma2),
        None => x.map(|x| x.map(|x| x * x)),
    }
}

pub fn iq4_nl(row: &Row, out: &mut [[u8; 18]]) {
    let x = row.blocks::<32>();
    assert_eq!(x.len(), out.len(), "as many blocks");
    let weights = row.weight_blocks();
    for (g, (x, out)) in x.chunks(W).zip(out.chunks_mut(W)).enumerate() {
        let columns = columns(x);
        let sigma2 =
            super::lanes::sum::<32>(|i, lane| columns[i][lane] * columns[i][lane]).map(|sum| sum * (2.0 / 32.0));
        let weights = weights.map(|weights| &weights[g * W..][..x.len()]);
        let scales = scales(&columns, &weigh(&columns, weights, &sigma2));
        for (lane, (x, out)) in x.iter().zip(out).enumerate() {
            let inverse = inverse(scales[lane]);
            pack_iq4_nl(f16::from_f32(scales[lane]), &map(x, |x| code(inverse * x)), out);
        }
    }
}

pub fn iq4_xs(row: &Row, out: &mut [[u8; 136]]) {
    let x = row.blocks::<256>();
    assert_eq!(x.len(), out.len(), "as many blocks");
    let weights = row.weight_blocks::<256>();
    for (i, (x, out)) in x.iter().zip(out).enumerate() {
        let sub_blocks = x.as_chunks::<32>().0;
        let columns = columns(sub_blocks);
        let sigma2 = sum_of_squares(x) * (2.0 / 256.0);
        let weights = weights.map(|weights| weights[i].as_chunks().0);
        let scales = scales(&columns, &weigh(&columns, weights, &[sigma2; W]));
        let extreme = scales.iter().fold(0.0, |extreme: f32, &x| if x.abs() > extreme.abs() { x } else { extreme });
        let d = -extreme / 32.0;
        let multiples = scales.map(|scale| clamp_to(nearest(inverse(d) * scale), -32, 31));
        let mut codes = [0; 256];
        for (j, (x, codes)) in sub_blocks.iter().zip(codes.as_chunks_mut::<32>().0).enumerate() {
            let inverse = inverse(d * multiples[j] as f32);
            *codes = map(x, |x| code(inverse * x));
        }
        pack_iq4_xs(f16::from_f32(d), &multiples.map(|multiple| (multiple + 32) as u8), &codes, out);
    }
}
