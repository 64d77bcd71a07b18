//! Q2_K to Q6_K: super-blocks of 256. Each sub-block's scale (and minimum) is searched alone; these are then rounded to
//! small multiples of the super-block's, and the codes are chosen anew for the rounded ones.

use half::f16;

use super::fit::{self, Affine, NOTHING, Steps};
use super::lanes::{clamp_to, columns, from_f16, importance, map, sum, times, to_f16};
use super::{Row, sum_of_squares};
use crate::encoding::ggml::k::{
    pack_q2_k, pack_q3_k, pack_q4_k, pack_q5_k, pack_q6_k, pack_scales_and_mins, scales_and_mins,
};
use crate::simd::lanes::{W, nearest};
use crate::simd::{Lanes, Simd};

/// The super-blocks of a row, with their weights if there are any, and their blocks: as many at once as have [`W`] sub-blocks
/// of `N` elements.
fn each_group<const N: usize, const B: usize>(
    simd: impl Simd,
    row: &Row,
    out: &mut [[u8; B]],
    quantize: impl Fn(&[[f32; 256]], Option<&[[f32; 256]]>, &mut [[u8; B]]),
) {
    let x = row.blocks();
    assert_eq!(x.len(), out.len(), "as many blocks");
    let weights = row.weight_blocks();
    let size = W * N / 256;
    simd.run(
        #[inline(always)]
        || {
            for (i, (x, out)) in x.chunks(size).zip(out.chunks_mut(size)).enumerate() {
                quantize(x, weights.map(|weights| &weights[i * size..][..x.len()]), out);
            }
        },
    );
}

/// The sub-blocks of `N` elements of super-blocks.
#[inline(always)]
fn sub_blocks<const N: usize>(x: &[[f32; 256]]) -> &[[f32; N]] {
    x.as_flattened().as_chunks().0
}

/// A super-block's scale and minimum, the small multiples of them that are the sub-blocks', and the codes.
struct Super<const J: usize> {
    d: f16,
    dmin: f16,
    scales: [u8; J],
    mins: [u8; J],
    codes: [u8; 256],
}

/// Scales and minima for the `J` sub-blocks of `N` elements of up to `W / J` super-blocks; `pack` is given each with its
/// number. `plain` tells how to search without weights, `top` is the largest multiple, `spread` what σ² is of the mean square.
/// `store` gives the multiples that are read back: where rounding made a scale negative, ggml stores some of its bits, and
/// chooses the codes for what it then reads.
#[inline(always)]
fn affine<S: Simd, const N: usize, const J: usize>(
    simd: S,
    x: &[[f32; 256]],
    weights: Option<&[[f32; 256]]>,
    plain: Steps,
    (top, spread): (u8, f32),
    store: impl Fn([u8; J], [u8; J]) -> ([u8; J], [u8; J]),
    mut pack: impl FnMut(usize, Super<J>),
) {
    let turned = columns::<S, N>(simd, sub_blocks(x));
    let (w, steps) = match weights {
        Some(weights) => {
            let mut sigma2 = [0.0; W];
            for (sigma2, x) in sigma2.chunks_mut(J).zip(x) {
                sigma2.fill(spread * sum_of_squares(x) / 256.0);
            }
            let w = importance::<S, N>(&turned, &columns(simd, sub_blocks(weights)), simd.load(&sigma2));
            (w, Steps::weighted(plain.most as u8))
        }
        None => {
            let offset = if plain.absolute {
                simd.splat(0.0)
            } else {
                (sum(simd, &times::<S, N>(&turned, &turned)) / simd.splat(N as f32)).sqrt()
            };
            let mut w = turned;
            for w in &mut w {
                *w = offset + w.abs();
            }
            (w, plain)
        }
    };
    let fit = fit::affine(simd, &turned, &w, steps);
    let importances = sum(simd, &w).store();
    for (p, x) in x.iter().enumerate() {
        let own = |lanes: &[f32; W]| lanes.as_chunks::<J>().0[p];
        let (scale, min, importances) = (own(&fit.scale), own(&fit.min), own(&importances));
        let ((d, scales), (dmin, mins)) = match weights {
            Some(_) => (fit::positive(&scale, &importances, top), fit::positive(&min, &importances, top)),
            None => (multiples(&scale, top), multiples(&min, top)),
        };
        let (d, dmin) = (to_f16(d), to_f16(dmin));
        let (scales, mins) = store(scales, mins);
        let codes = affine_codes::<N, J>(x, &fit, p * J, [d, dmin], &scales, &mins);
        pack(p, Super { d, dmin, scales, mins, codes });
    }
}

/// Numbers that are mostly positive as multiples 0 … top of their largest / top.
#[inline(always)]
fn multiples<const J: usize>(numbers: &[f32; J], top: u8) -> (f32, [u8; J]) {
    let largest = numbers.iter().fold(0.0, |most, &x| if x > most { x } else { most });
    if largest > 0.0 {
        let inverse = f32::from(top) / largest;
        (largest / f32::from(top), numbers.map(|x| nearest(inverse * x) as u8))
    } else {
        (0.0, [0; J])
    }
}

/// The codes for rounded scales and minima of the sub-blocks whose fits are the lanes from `first` on; where the scale became
/// zero, those of the search remain.
#[inline(always)]
fn affine_codes<const N: usize, const J: usize>(
    x: &[f32; 256],
    fit: &Affine,
    first: usize,
    [d, dmin]: [f16; 2],
    scales: &[u8; J],
    mins: &[u8; J],
) -> [u8; 256] {
    let most = fit.most;
    let mut codes = [0; 256];
    let sub_blocks = x.as_chunks::<N>().0.iter().zip(codes.as_chunks_mut::<N>().0);
    for (j, (x, codes)) in sub_blocks.enumerate() {
        let d = from_f16(d) * f32::from(scales[j]);
        let m = from_f16(dmin) * f32::from(mins[j]);
        *codes = if d == 0.0 {
            map(x, |x| fit.code(first + j, x))
        } else {
            map(x, |x| clamp_to(nearest((x + m) / d), 0, most) as u8)
        };
    }
    codes
}

pub fn q2_k(simd: impl Simd, row: &Row, out: &mut [[u8; 84]]) {
    let plain = Steps { most: 3.0, first: -0.5, step: 0.1, count: 15, absolute: true };
    let store = |scales: [u8; 16], mins: [u8; 16]| {
        let both: [u8; 16] = std::array::from_fn(|j| scales[j] | mins[j] << 4);
        (both.map(|both| both & 15), both.map(|both| both >> 4))
    };
    each_group::<16, 84>(
        simd,
        row,
        out,
        #[inline(always)]
        |x, weights, out| {
            affine::<_, 16, 16>(
                simd,
                x,
                weights,
                plain,
                (15, 1.0),
                store,
                #[inline(always)]
                |p, found| {
                    let Super { d, dmin, scales, mins, codes } = found;
                    pack_q2_k(d, dmin, &scales, &mins, &codes, &mut out[p]);
                },
            );
        },
    );
}

/// The scales and minima that are read back of those stored in six bits.
fn store(scales: [u8; 8], mins: [u8; 8]) -> ([u8; 8], [u8; 8]) {
    scales_and_mins(&pack_scales_and_mins(&scales, &mins))
}

/// Multiples that are at most the largest of six bits.
fn limit(multiples: [u8; 8]) -> [u8; 8] {
    multiples.map(|multiple| multiple.min(63))
}

pub fn q4_k(simd: impl Simd, row: &Row, out: &mut [[u8; 144]]) {
    let plain = Steps { most: 15.0, first: -1.0, step: 0.1, count: 20, absolute: false };
    let weighted = row.weights.is_some();
    let store = |scales, mins| match weighted {
        true => store(scales, mins),
        false => store(limit(scales), limit(mins)),
    };
    each_group::<32, 144>(
        simd,
        row,
        out,
        #[inline(always)]
        |x, weights, out| {
            affine::<_, 32, 8>(
                simd,
                x,
                weights,
                plain,
                (63, 2.0),
                store,
                #[inline(always)]
                |p, found| {
                    let Super { d, dmin, scales, mins, codes } = found;
                    pack_q4_k(d, dmin, &scales, &mins, &codes, &mut out[p]);
                },
            );
        },
    );
}

pub fn q5_k(simd: impl Simd, row: &Row, out: &mut [[u8; 176]]) {
    let plain = Steps { most: 31.0, first: -0.5, step: 0.1, count: 15, absolute: false };
    let store = |scales, mins| store(limit(scales), limit(mins));
    each_group::<32, 176>(
        simd,
        row,
        out,
        #[inline(always)]
        |x, weights, out| {
            affine::<_, 32, 8>(
                simd,
                x,
                weights,
                plain,
                (63, 2.0),
                store,
                #[inline(always)]
                |p, found| {
                    let Super { d, dmin, scales, mins, codes } = found;
                    pack_q5_k(d, dmin, &scales, &mins, &codes, &mut out[p]);
                },
            );
        },
    );
}

/// The codes −zero … zero − 1, plus zero, for 16 scales; where a scale is zero, `kept`'s remain.
#[inline(always)]
fn symmetric_codes(x: &[f32; 256], scales: &[f32; 16], zero: i32, kept: impl Fn(usize, usize, f32) -> u8) -> [u8; 256] {
    let mut codes = [0; 256];
    let sub_blocks = x.as_chunks::<16>().0.iter().zip(codes.as_chunks_mut::<16>().0);
    for (j, (x, codes)) in sub_blocks.enumerate() {
        let d = scales[j];
        *codes = if d == 0.0 {
            std::array::from_fn(|i| kept(j, i, x[i]))
        } else {
            map(x, |x| (clamp_to(nearest(x / d), -zero, zero - 1) + zero) as u8)
        };
    }
    codes
}

/// The number of largest magnitude, the first of equals.
fn extreme(numbers: &[f32; 16]) -> f32 {
    numbers.iter().fold(0.0, |extreme: f32, &x| if x.abs() > extreme.abs() { x } else { extreme })
}

pub fn q3_k(simd: impl Simd, row: &Row, out: &mut [[u8; 110]]) {
    each_group::<16, 110>(
        simd,
        row,
        out,
        #[inline(always)]
        |x, weights, out| match weights {
            None => q3_k_plain(simd, &x[0], &mut out[0]),
            Some(weights) => q3_k_weighted(simd, &x[0], &weights[0], &mut out[0]),
        },
    );
}

/// The scales of Q3_K's sub-blocks: multiples of d, 32 more than their value.
fn q3_k_scales(d: f16, scales: &[u8; 16]) -> [f32; 16] {
    scales.map(|scale| from_f16(d) * (f32::from(scale) - 32.0))
}

#[inline(always)]
fn q3_k_plain(simd: impl Simd, x: &[f32; 256], out: &mut [u8; 110]) {
    let (found, refined) = fit::refine(simd, &columns::<_, 16>(simd, x.as_chunks().0), 4);
    let extreme = extreme(&found);
    let (d, scales) = if extreme == 0.0 {
        (0.0, [0; 16])
    } else {
        let inverse = -32.0 / extreme;
        (1.0 / inverse, found.map(|scale| (clamp_to(nearest(inverse * scale), -32, 31) + 32) as u8))
    };
    let d = to_f16(d);
    let codes = symmetric_codes(x, &q3_k_scales(d, &scales), 4, |j, i, _| refined[i][j]);
    pack_q3_k(d, &scales, &codes, out);
}

#[inline(always)]
fn q3_k_weighted<S: Simd>(simd: S, x: &[f32; 256], weights: &[f32; 256], out: &mut [u8; 110]) {
    let sigma2 = 2.0 * sum_of_squares(x) / 256.0;
    let turned = columns::<_, 16>(simd, x.as_chunks().0);
    let w = importance::<S, 16>(&turned, &columns(simd, weights.as_chunks().0), simd.splat(sigma2));
    let fit = fit::symmetric(simd, &turned, &w, 4);
    let importances = sum(simd, &w).store();
    // The same search once more, for the scales themselves.
    let of_scales = fit::symmetric::<_, 16>(simd, &columns(simd, &[fit.scale]), &columns(simd, &[importances]), 32);
    let (d, scales) = (to_f16(of_scales.scale[0]), fit.scale.map(|scale| of_scales.code(0, scale)));
    let codes = symmetric_codes(x, &q3_k_scales(d, &scales), 4, |j, _, x| fit.code(j, x));
    pack_q3_k(d, &scales, &codes, out);
}

pub fn q6_k<S: Simd>(simd: S, row: &Row, out: &mut [[u8; 210]]) {
    each_group::<16, 210>(
        simd,
        row,
        out,
        #[inline(always)]
        |x, weights, out| {
            let (x, out) = (&x[0], &mut out[0]);
            let turned = columns::<_, 16>(simd, x.as_chunks().0);
            // The plain weights are the numbers' own squares; given ones are taken as they are.
            let w = match weights {
                Some(weights) => columns(simd, weights[0].as_chunks().0),
                None => times::<S, 16>(&turned, &turned),
            };
            let fit = fit::symmetric(simd, &turned, &w, 32);
            let extreme = extreme(&fit.scale);
            if extreme.abs() < NOTHING {
                *out = [0; 210];
                return;
            }
            let inverse = -128.0 / extreme;
            let d = to_f16(1.0 / inverse);
            let scales = fit.scale.map(|scale| nearest(inverse * scale).min(127) as i8);
            let rounded = scales.map(|scale| from_f16(d) * f32::from(scale));
            let codes = symmetric_codes(x, &rounded, 32, |j, _, x| fit.code(j, x));
            pack_q6_k(d, &scales, &codes, out);
        },
    );
}
