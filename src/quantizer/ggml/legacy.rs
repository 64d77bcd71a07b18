//! Q8_0, Q4_0, Q4_1, Q5_0, Q5_1: blocks of 32. Without weights their scale is that of the extreme number, or of the range;
//! with weights it is searched.

use half::f16;

use super::fit::{self, Steps};
use super::lanes::{Columns, byte, columns, importance, map, round, to_f16};
use super::{Row, sum_of_squares};
use crate::encoding::ggml::legacy::{pack_q4_0, pack_q4_1, pack_q5_0, pack_q5_1, pack_q8_0};
use crate::simd::Simd;
use crate::simd::lanes::W;

/// The largest float below ½: adding it and dropping the fraction rounds half away from zero, as C's `roundf` does.
const BELOW_HALF: f32 = 0.499_999_97;

/// 1 / d, or 0 for 0. For subnormal d, whose inverse is infinite, NaN: ggml's conversion of infinite products to integers
/// gives 0, and so does [`truncate`] of NaN.
#[inline(always)]
fn inverse(d: f32) -> f32 {
    let inverse = 1.0 / d;
    if d == 0.0 {
        0.0
    } else if inverse.is_infinite() {
        f32::NAN
    } else {
        inverse
    }
}

/// The integer part of 0 ≤ x < 2²², as a float.
#[inline(always)]
fn truncate(x: f32) -> f32 {
    let nearest = round(x);
    nearest - if nearest > x { 1.0 } else { 0.0 }
}

/// The largest magnitude. As integers, since those may be compared in any order: the bits of positive floats are in the
/// order of their values.
#[inline(always)]
fn magnitude(x: &[f32; 32]) -> f32 {
    f32::from_bits(x.iter().fold(0, |most, x| most.max(x.to_bits() as i32 & i32::MAX)) as u32)
}

/// d = largest magnitude / 127.
pub fn q8_0(simd: impl Simd, x: &[[f32; 32]], out: &mut [[u8; 34]]) {
    assert_eq!(x.len(), out.len(), "as many blocks");
    simd.run(
        #[inline(always)]
        || {
            for (x, out) in x.iter().zip(out) {
                let d = magnitude(x) / 127.0;
                let inverse = inverse(d);
                let codes = map(x, |x| {
                    let x = x * inverse;
                    byte(truncate(x.abs() + BELOW_HALF).copysign(x)) as i8
                });
                pack_q8_0(to_f16(d), &codes, out);
            }
        },
    );
}

/// The least and the greatest number, of which −0 is less than 0: compared as integers.
#[inline(always)]
fn least_and_greatest(x: &[f32; 32]) -> (f32, f32) {
    let key = |x: f32| {
        let bits = x.to_bits() as i32;
        bits ^ (bits >> 31 & i32::MAX)
    };
    let number = |key: i32| f32::from_bits((key ^ (key >> 31 & i32::MAX)) as u32);
    let least = x.iter().fold(i32::MAX, |least, &x| least.min(key(x)));
    let greatest = x.iter().fold(i32::MIN, |greatest, &x| greatest.max(key(x)));
    (number(least), number(greatest))
}

/// The number of largest magnitude, the first of equals; 0 if all are zero.
#[inline(always)]
fn extreme(x: &[f32; 32]) -> f32 {
    let (low, high) = least_and_greatest(x);
    if low == 0.0 && high == 0.0 {
        0.0
    } else if low == -high {
        x.iter().copied().find(|x| x.abs() == high).unwrap_or(high)
    } else if high > -low {
        high
    } else {
        low
    }
}

/// The least number (of zeros of both signs the first), and how far the greatest is from it.
#[inline(always)]
fn range(x: &[f32; 32]) -> (f32, f32) {
    let (low, high) = least_and_greatest(x);
    let least = if low == 0.0 { x.iter().copied().find(|&x| x == 0.0).unwrap_or(low) } else { low };
    (least, if high == low { 0.0 } else { high - low })
}

/// `x` or `most`, whichever is less; NaN stays.
#[inline(always)]
fn at_most(x: f32, most: f32) -> f32 {
    if x > most { most } else { x }
}

/// The scale that maps the extreme number to the lowest of 2 · zero codes, and the codes.
#[inline(always)]
fn by_extreme(x: &[f32; 32], zero: u8) -> (f16, [u8; 32]) {
    let d = extreme(x) / -f32::from(zero);
    let inverse = inverse(d);
    let (half, most) = (f32::from(zero) + 0.5, f32::from(2 * zero - 1));
    (to_f16(d), map(x, |x| byte(at_most(truncate(x * inverse + half), most))))
}

/// The scale that maps the range to the codes 0 … most, the minimum, and the codes.
#[inline(always)]
fn by_range(x: &[f32; 32], most: u8) -> (f16, f16, [u8; 32]) {
    let (low, range) = range(x);
    let d = range / f32::from(most);
    let (inverse, most) = (inverse(d), f32::from(most));
    let codes = map(x, |x| byte(at_most(truncate((x - low) * inverse + 0.5), most)));
    (to_f16(d), to_f16(low), codes)
}

/// Runs `fit` on up to [`W`] blocks of a row at once, which lie side by side with the weights of their numbers, and `pack` on
/// each of them with its lane.
fn by_groups<S: Simd, T, const B: usize>(
    simd: S,
    row: &Row,
    weights: &[[f32; 32]],
    out: &mut [[u8; B]],
    fit: impl Fn(&Columns<S, 32>, &Columns<S, 32>) -> T,
    pack: impl Fn(&T, usize, &[f32; 32], &mut [u8; B]),
) {
    let sigma2 = sum_of_squares(row.x) / row.x.len() as f32;
    simd.run(
        #[inline(always)]
        || {
            for ((x, weights), out) in row.blocks().chunks(W).zip(weights.chunks(W)).zip(out.chunks_mut(W)) {
                let turned = columns(simd, x);
                let w = importance::<S, 32>(&turned, &columns(simd, weights), simd.splat(sigma2));
                let fit = fit(&turned, &w);
                for (lane, (x, out)) in x.iter().zip(out).enumerate() {
                    pack(&fit, lane, x, out);
                }
            }
        },
    );
}

fn symmetric<S: Simd, const B: usize>(
    simd: S,
    row: &Row,
    zero: u8,
    out: &mut [[u8; B]],
    pack: impl Fn(f16, &[u8; 32], &mut [u8; B]),
) {
    assert_eq!(row.blocks::<32>().len(), out.len(), "as many blocks");
    match row.weight_blocks() {
        None => simd.run(
            #[inline(always)]
            || {
                for (x, out) in row.blocks().iter().zip(out) {
                    let (d, codes) = by_extreme(x, zero);
                    pack(d, &codes, out);
                }
            },
        ),
        Some(weights) => by_groups(
            simd,
            row,
            weights,
            out,
            #[inline(always)]
            |x, w| fit::symmetric(simd, x, w, zero.into()),
            #[inline(always)]
            |fit, lane, x, out| pack(to_f16(fit.scale[lane]), &map(x, |x| fit.code(lane, x)), out),
        ),
    }
}

fn affine<S: Simd, const B: usize>(
    simd: S,
    row: &Row,
    most: u8,
    out: &mut [[u8; B]],
    pack: impl Fn(f16, f16, &[u8; 32], &mut [u8; B]),
) {
    assert_eq!(row.blocks::<32>().len(), out.len(), "as many blocks");
    match row.weight_blocks() {
        None => simd.run(
            #[inline(always)]
            || {
                for (x, out) in row.blocks().iter().zip(out) {
                    let (d, m, codes) = by_range(x, most);
                    pack(d, m, &codes, out);
                }
            },
        ),
        Some(weights) => by_groups(
            simd,
            row,
            weights,
            out,
            #[inline(always)]
            |x, w| fit::affine(simd, x, w, Steps::weighted(most)),
            #[inline(always)]
            |fit, lane, x, out| {
                let (d, m) = (to_f16(fit.scale[lane]), to_f16(-fit.min[lane]));
                pack(d, m, &map(x, |x| fit.code(lane, x)), out);
            },
        ),
    }
}

pub fn q4_0(simd: impl Simd, row: &Row, out: &mut [[u8; 18]]) {
    symmetric(simd, row, 8, out, pack_q4_0);
}

pub fn q5_0(simd: impl Simd, row: &Row, out: &mut [[u8; 22]]) {
    symmetric(simd, row, 16, out, pack_q5_0);
}

pub fn q4_1(simd: impl Simd, row: &Row, out: &mut [[u8; 20]]) {
    affine(simd, row, 15, out, pack_q4_1);
}

pub fn q5_1(simd: impl Simd, row: &Row, out: &mut [[u8; 24]]) {
    affine(simd, row, 31, out, pack_q5_1);
}
