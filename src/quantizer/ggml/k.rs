//! Q2_K to Q6_K: super-blocks of 256. Each sub-block's scale (and minimum) is searched alone; these are then rounded to
//! small multiples of the super-block's, and the codes are chosen anew for the rounded ones.

use half::f16;

use super::fit::{self, Affine, NOTHING, Steps};
use super::lanes::{Lanes, W, clamp_to, columns, each, importance, map, nearest, sum};
use super::{Row, sum_of_squares};
use crate::encoding::ggml::k::{
    pack_q2_k, pack_q3_k, pack_q4_k, pack_q5_k, pack_q6_k, pack_scales_and_mins, scales_and_mins,
};

/// Super-blocks with their weights, if there are any, and their blocks.
fn each_block<const B: usize>(
    row: &Row,
    out: &mut [[u8; B]],
    mut quantize: impl FnMut(&[f32; 256], Option<&[f32; 256]>, &mut [u8; B]),
) {
    let x = row.blocks();
    assert_eq!(x.len(), out.len(), "as many blocks");
    let weights = row.weight_blocks();
    for (i, (x, out)) in x.iter().zip(out).enumerate() {
        quantize(x, weights.map(|weights| &weights[i]), out);
    }
}

/// The `i`th [`W`] sub-blocks of `S` elements of a super-block.
fn group<const S: usize>(x: &[f32; 256], i: usize) -> &[[f32; S]] {
    &x.as_chunks().0[i * W..(i + 1) * W]
}

/// A super-block's scale and minimum, the small multiples of them that are the sub-blocks', and the codes.
struct Super<const J: usize> {
    d: f16,
    dmin: f16,
    scales: [u8; J],
    mins: [u8; J],
    codes: [u8; 256],
}

/// Scales and minima for the `J` sub-blocks of `S` elements. `plain` tells how to search without weights, `top` is the
/// largest multiple, `spread` what σ² is of the mean square. `store` gives the multiples that are read back: where rounding
/// made a scale negative, ggml stores some of its bits, and chooses the codes for what it then reads.
fn affine<const S: usize, const J: usize>(
    x: &[f32; 256],
    weights: Option<&[f32; 256]>,
    plain: Steps,
    top: u8,
    spread: f32,
    store: impl Fn([u8; J], [u8; J]) -> ([u8; J], [u8; J]),
) -> Super<J> {
    let (mut scale, mut min, mut importances) = ([0.0; J], [0.0; J], [0.0; J]);
    let mut fits = Vec::with_capacity(J / W);
    let sigma2 = weights.map(|_| spread * sum_of_squares(x) / 256.0);
    for i in 0..J / W {
        let columns_of = columns::<S>(group(x, i));
        let fit = match (weights, sigma2) {
            (Some(weights), Some(sigma2)) => {
                let w = importance(&columns_of, &columns::<S>(group(weights, i)), &[sigma2; W]);
                importances[i * W..][..W].copy_from_slice(&sum::<S>(|i, lane| w[i][lane]));
                fit::affine(&columns_of, &w, Steps::weighted(plain.most as u8))
            }
            _ => {
                let offset = if plain.absolute {
                    [0.0; W]
                } else {
                    sum::<S>(|i, lane| columns_of[i][lane] * columns_of[i][lane]).map(|sum| (sum / S as f32).sqrt())
                };
                let w = columns_of.map(|x| each(|lane| offset[lane] + x[lane].abs()));
                fit::affine(&columns_of, &w, plain)
            }
        };
        scale[i * W..][..W].copy_from_slice(&fit.scale);
        min[i * W..][..W].copy_from_slice(&fit.min);
        fits.push(fit);
    }
    let ((d, scales), (dmin, mins)) = match weights {
        Some(_) => (fit::positive(&scale, &importances, top), fit::positive(&min, &importances, top)),
        None => (multiples(&scale, top), multiples(&min, top)),
    };
    let (d, dmin) = (f16::from_f32(d), f16::from_f32(dmin));
    let (scales, mins) = store(scales, mins);
    let codes = affine_codes::<S, J>(x, &fits, d, dmin, &scales, &mins);
    Super { d, dmin, scales, mins, codes }
}

/// Numbers that are mostly positive as multiples 0 … top of their largest / top.
fn multiples<const J: usize>(numbers: &[f32; J], top: u8) -> (f32, [u8; J]) {
    let largest = numbers.iter().fold(0.0, |most, &x| if x > most { x } else { most });
    if largest > 0.0 {
        let inverse = f32::from(top) / largest;
        (largest / f32::from(top), numbers.map(|x| nearest(inverse * x) as u8))
    } else {
        (0.0, [0; J])
    }
}

/// The codes for rounded scales and minima; where the scale became zero, those of the search remain.
fn affine_codes<const S: usize, const J: usize>(
    x: &[f32; 256],
    fits: &[Affine],
    d: f16,
    dmin: f16,
    scales: &[u8; J],
    mins: &[u8; J],
) -> [u8; 256] {
    let most = fits[0].most;
    let mut codes = [0; 256];
    let sub_blocks = x.as_chunks::<S>().0.iter().zip(codes.as_chunks_mut::<S>().0);
    for (j, (x, codes)) in sub_blocks.enumerate() {
        let d = d.to_f32() * f32::from(scales[j]);
        let m = dmin.to_f32() * f32::from(mins[j]);
        *codes = if d == 0.0 {
            map(x, |x| fits[j / W].code(j % W, x))
        } else {
            map(x, |x| clamp_to(nearest((x + m) / d), 0, most) as u8)
        };
    }
    codes
}

pub fn q2_k(row: &Row, out: &mut [[u8; 84]]) {
    let plain = Steps { most: 3.0, first: -0.5, step: 0.1, count: 15, absolute: true };
    let store = |scales: [u8; 16], mins: [u8; 16]| {
        let both: [u8; 16] = std::array::from_fn(|j| scales[j] | mins[j] << 4);
        (both.map(|both| both & 15), both.map(|both| both >> 4))
    };
    each_block(row, out, |x, weights, out| {
        let Super { d, dmin, scales, mins, codes } = affine::<16, 16>(x, weights, plain, 15, 1.0, store);
        pack_q2_k(d, dmin, &scales, &mins, &codes, out);
    });
}

/// The scales and minima that are read back of those stored in six bits.
fn store(scales: [u8; 8], mins: [u8; 8]) -> ([u8; 8], [u8; 8]) {
    scales_and_mins(&pack_scales_and_mins(&scales, &mins))
}

/// Multiples that are at most the largest of six bits.
fn limit(multiples: [u8; 8]) -> [u8; 8] {
    multiples.map(|multiple| multiple.min(63))
}

pub fn q4_k(row: &Row, out: &mut [[u8; 144]]) {
    let plain = Steps { most: 15.0, first: -1.0, step: 0.1, count: 20, absolute: false };
    let weighted = row.weights.is_some();
    each_block(row, out, |x, weights, out| {
        let Super { d, dmin, scales, mins, codes } =
            affine::<32, 8>(x, weights, plain, 63, 2.0, |scales, mins| match weighted {
                true => store(scales, mins),
                false => store(limit(scales), limit(mins)),
            });
        pack_q4_k(d, dmin, &scales, &mins, &codes, out);
    });
}

pub fn q5_k(row: &Row, out: &mut [[u8; 176]]) {
    let plain = Steps { most: 31.0, first: -0.5, step: 0.1, count: 15, absolute: false };
    each_block(row, out, |x, weights, out| {
        let Super { d, dmin, scales, mins, codes } =
            affine::<32, 8>(x, weights, plain, 63, 2.0, |scales, mins| store(limit(scales), limit(mins)));
        pack_q5_k(d, dmin, &scales, &mins, &codes, out);
    });
}

/// The codes −zero … zero − 1, plus zero, for 16 scales; where a scale is zero, `kept`'s remain.
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

/// One lane's numbers of two groups.
fn both(groups: &[Lanes; 2]) -> [f32; 16] {
    std::array::from_fn(|j| groups[j / W][j % W])
}

pub fn q3_k(row: &Row, out: &mut [[u8; 110]]) {
    each_block(row, out, |x, weights, out| match weights {
        None => q3_k_plain(x, out),
        Some(weights) => q3_k_weighted(x, weights, out),
    });
}

/// The scales of Q3_K's sub-blocks: multiples of d, 32 more than their value.
fn q3_k_scales(d: f16, scales: &[u8; 16]) -> [f32; 16] {
    scales.map(|scale| d.to_f32() * (f32::from(scale) - 32.0))
}

fn q3_k_plain(x: &[f32; 256], out: &mut [u8; 110]) {
    let fits = [0, 1].map(|i| fit::refine(&columns::<16>(group(x, i)), 4));
    let found = both(&[fits[0].0, fits[1].0]);
    let extreme = extreme(&found);
    let (d, scales) = if extreme == 0.0 {
        (0.0, [0; 16])
    } else {
        let inverse = -32.0 / extreme;
        (1.0 / inverse, found.map(|scale| (clamp_to(nearest(inverse * scale), -32, 31) + 32) as u8))
    };
    let d = f16::from_f32(d);
    let codes = symmetric_codes(x, &q3_k_scales(d, &scales), 4, |j, i, _| fits[j / W].1[i][j % W]);
    pack_q3_k(d, &scales, &codes, out);
}

fn q3_k_weighted(x: &[f32; 256], weights: &[f32; 256], out: &mut [u8; 110]) {
    let sigma2 = 2.0 * sum_of_squares(x) / 256.0;
    let groups = [0, 1].map(|i| {
        let x = columns::<16>(group(x, i));
        let w = importance(&x, &columns::<16>(group(weights, i)), &[sigma2; W]);
        (fit::symmetric(&x, &w, 4), sum::<16>(|i, lane| w[i][lane]))
    });
    let found = both(&[groups[0].0.scale, groups[1].0.scale]);
    let importances = both(&[groups[0].1, groups[1].1]);
    // The same search once more, for the scales themselves.
    let fit = fit::symmetric(&columns(&[found]), &columns(&[importances]), 32);
    let (d, scales) = (f16::from_f32(fit.scale[0]), found.map(|scale| fit.code(0, scale)));
    let codes = symmetric_codes(x, &q3_k_scales(d, &scales), 4, |j, _, x| groups[j / W].0.code(j % W, x));
    pack_q3_k(d, &scales, &codes, out);
}

pub fn q6_k(row: &Row, out: &mut [[u8; 210]]) {
    each_block(row, out, |x, weights, out| {
        let fits = [0, 1].map(|i| {
            let columns_of = columns::<16>(group(x, i));
            // The plain weights are the numbers' own squares; given ones are taken as they are.
            let w = match weights {
                Some(weights) => columns(group(weights, i)),
                None => columns_of.map(|x| x.map(|x| x * x)),
            };
            fit::symmetric(&columns_of, &w, 32)
        });
        let found = both(&[fits[0].scale, fits[1].scale]);
        let extreme = extreme(&found);
        if extreme.abs() < NOTHING {
            *out = [0; 210];
            return;
        }
        let inverse = -128.0 / extreme;
        let d = f16::from_f32(1.0 / inverse);
        let scales = found.map(|scale| nearest(inverse * scale).min(127) as i8);
        let rounded = scales.map(|scale| d.to_f32() * f32::from(scale));
        let codes = symmetric_codes(x, &rounded, 32, |j, _, x| fits[j / W].code(j % W, x));
        pack_q6_k(d, &scales, &codes, out);
    });
}
