//! Blocks of the least squared error. ggml's encoders choose scales by rules of thumb and round them afterwards; here the
//! scales as they are stored are what is searched, by the error of the values that a reader gets back. The format and the
//! size are the same, and a block that is not better than ggml's own is not taken.
//!
//! Every type is seen alike: sub-blocks of values `d · scale · level − dmin · min`, where `d` and `dmin` are f16, scales and
//! minima small integers, and a level one of a few numbers that codes stand for. Types of a single scale have one sub-block
//! with scale 1, and Q4_1 and Q5_1 a minimum 1, whose `dmin` may have either sign.

use formats::Dtype;
use half::f16;

use super::fit::{self, Steps};
use super::lanes::{clamp, columns, round};
use super::{QuantizeRow, Row, blocks, nonlinear};
use crate::encoding::ggml::{k, legacy, nonlinear as table, unpack};
use crate::simd::lanes::{W, nearest};
use crate::simd::{Simd, Task, dispatch};

/// Like [`quantize_row`], with the least squared error that a search of the scales finds, weighted by the columns' weights
/// if there are any. In no block is that error greater than after [`quantize_row`]. It takes several times as long.
///
/// # Panics
/// As [`quantize_row`].
pub fn quantize_row_search(dtype: Dtype, x: &[f32], weights: Option<&[f32]>, out: &mut [u8]) {
    dispatch(SearchRow { dtype, x, weights, out });
}

/// What [`quantize_row_search`] does.
pub(super) struct SearchRow<'a> {
    pub dtype: Dtype,
    pub x: &'a [f32],
    pub weights: Option<&'a [f32]>,
    pub out: &'a mut [u8],
}

impl Task for SearchRow<'_> {
    type Output = ();

    fn run<I: Simd>(self, simd: I) {
        let Self { dtype, x, weights, out } = self;
        QuantizeRow { dtype, row: Row::new(x, weights), out: &mut *out }.run(simd);
        let ones;
        let w = match weights {
            Some(weights) => weights,
            None => {
                ones = vec![1.0; x.len()];
                &ones
            }
        };
        match dtype {
            Dtype::Q8_0 => {
                improve(simd, dtype, x, w, blocks(out), |x, w, block| {
                    let (shape, codes) = one_scale(simd, x, w, Range { low: -128.0, high: 127.0 });
                    legacy::pack_q8_0(shape.d, &codes.map(|code| code.wrapping_sub(128) as i8), block);
                });
            }
            Dtype::Q4_0 => improve(simd, dtype, x, w, blocks(out), |x, w, block| {
                let (shape, codes) = one_scale(simd, x, w, Range { low: -8.0, high: 7.0 });
                legacy::pack_q4_0(shape.d, &codes, block);
            }),
            Dtype::Q5_0 => improve(simd, dtype, x, w, blocks(out), |x, w, block| {
                let (shape, codes) = one_scale(simd, x, w, Range { low: -16.0, high: 15.0 });
                legacy::pack_q5_0(shape.d, &codes, block);
            }),
            Dtype::IQ4_NL => improve(simd, dtype, x, w, blocks(out), |x, w, block| {
                let (shape, codes) = one_scale(simd, x, w, Table);
                table::pack_iq4_nl(shape.d, &codes, block);
            }),
            Dtype::Q4_1 => improve(simd, dtype, x, w, blocks(out), |x, w, block| {
                let (shape, codes) = one_range(simd, x, w, Range { low: 0.0, high: 15.0 });
                legacy::pack_q4_1(shape.d, -shape.dmin, &codes, block);
            }),
            Dtype::Q5_1 => improve(simd, dtype, x, w, blocks(out), |x, w, block| {
                let (shape, codes) = one_range(simd, x, w, Range { low: 0.0, high: 31.0 });
                legacy::pack_q5_1(shape.d, -shape.dmin, &codes, block);
            }),
            Dtype::Q2_K => improve(simd, dtype, x, w, blocks(out), |x, w, block| {
                let (shape, codes) = affine::<_, 16, 16>(simd, x, w, 3, 15);
                k::pack_q2_k(shape.d, shape.dmin, &bytes(shape.scales), &bytes(shape.mins), &codes, block);
            }),
            Dtype::Q4_K => improve(simd, dtype, x, w, blocks(out), |x, w, block| {
                let (shape, codes) = affine::<_, 32, 8>(simd, x, w, 15, 63);
                k::pack_q4_k(shape.d, shape.dmin, &bytes(shape.scales), &bytes(shape.mins), &codes, block);
            }),
            Dtype::Q5_K => improve(simd, dtype, x, w, blocks(out), |x, w, block| {
                let (shape, codes) = affine::<_, 32, 8>(simd, x, w, 31, 63);
                k::pack_q5_k(shape.d, shape.dmin, &bytes(shape.scales), &bytes(shape.mins), &codes, block);
            }),
            Dtype::Q3_K => improve(simd, dtype, x, w, blocks(out), |x, w, block| {
                let found = symmetric_scales(simd, x, w, 4);
                let (shape, codes) = symmetric::<_, _, 16, 16>(simd, x, w, Range { low: -4.0, high: 3.0 }, &found, 32);
                k::pack_q3_k(shape.d, &bytes(shape.scales.map(|scale| scale + 32)), &codes, block);
            }),
            Dtype::Q6_K => improve(simd, dtype, x, w, blocks(out), |x, w, block| {
                let found = symmetric_scales(simd, x, w, 32);
                let (shape, codes) =
                    symmetric::<_, _, 16, 16>(simd, x, w, Range { low: -32.0, high: 31.0 }, &found, 128);
                k::pack_q6_k(shape.d, &shape.scales.map(|scale| scale as i8), &codes, block);
            }),
            Dtype::IQ4_XS => improve(simd, dtype, x, w, blocks(out), |x, w, block| {
                let found = simd
                    .run(|| nonlinear::scales(simd, &columns(simd, x.as_chunks().0), &columns(simd, w.as_chunks().0)));
                let found = &found.as_chunks().0[0];
                let (shape, codes) = symmetric::<_, _, 32, 8>(simd, x, w, Table, found, 32);
                table::pack_iq4_xs(shape.d, &bytes(shape.scales.map(|scale| scale + 32)), &codes, block);
            }),
            _ => unreachable!("quantize_row refused it"),
        }
    }
}

/// Replaces each block for which `search` packs a better one.
fn improve<const N: usize, const B: usize>(
    simd: impl Simd,
    dtype: Dtype,
    x: &[f32],
    w: &[f32],
    out: &mut [[u8; B]],
    search: impl Fn(&[f32; N], &[f32; N], &mut [u8; B]),
) {
    let error = |x: &[f32; N], w: &[f32; N], block: &[u8; B]| {
        let mut y = [0.0; N];
        unpack(dtype, block, &mut y);
        simd.run(
            #[inline(always)]
            || (0..N).map(|i| f64::from(w[i]) * (f64::from(x[i]) - f64::from(y[i])).powi(2)).sum::<f64>(),
        )
    };
    for ((x, w), out) in x.as_chunks().0.iter().zip(w.as_chunks().0).zip(out) {
        let mut block = [0; B];
        search(x, w, &mut block);
        // A NaN is what ggml's scales beyond f16 give.
        let (new, old) = (error(x, w, &block), error(x, w, out));
        if new < old || (old.is_nan() && new.is_finite()) {
            *out = block;
        }
    }
}

fn bytes<const J: usize>(numbers: [i32; J]) -> [u8; J] {
    numbers.map(|number| number as u8)
}

/// The numbers that codes stand for.
trait Levels: Copy {
    /// The level nearest to a number.
    fn nearest(self, x: f32) -> f32;
    /// The code of the level nearest to a number.
    fn code(self, x: f32) -> u8;
    /// The levels at the ends.
    fn ends(self) -> [f32; 2];
}

/// Consecutive integers; the first has the code 0.
#[derive(Clone, Copy)]
struct Range {
    low: f32,
    high: f32,
}

impl Levels for Range {
    #[inline(always)]
    fn nearest(self, x: f32) -> f32 {
        round(clamp(x, self.low, self.high))
    }
    fn code(self, x: f32) -> u8 {
        (self.nearest(x) - self.low) as u8
    }
    fn ends(self) -> [f32; 2] {
        [self.low, self.high]
    }
}

/// The levels of IQ4_NL.
#[derive(Clone, Copy)]
struct Table;

impl Levels for Table {
    #[inline(always)]
    fn nearest(self, x: f32) -> f32 {
        nonlinear::level(x)
    }
    fn code(self, x: f32) -> u8 {
        nonlinear::code(x)
    }
    fn ends(self) -> [f32; 2] {
        [f32::from(table::LEVELS[0]), f32::from(table::LEVELS[15])]
    }
}

/// The scales of a block of `J` sub-blocks.
#[derive(Debug, Clone, Copy)]
struct Shape<const J: usize> {
    d: f16,
    dmin: f16,
    scales: [i32; J],
    mins: [i32; J],
}

impl<const J: usize> Shape<J> {
    /// The factor of the levels of a sub-block, and what is taken from their products.
    fn of(&self, j: usize) -> (f32, f32) {
        (self.d.to_f32() * self.scales[j] as f32, self.dmin.to_f32() * self.mins[j] as f32)
    }
}

/// A scale as it is stored: the nearest f16, or the largest.
fn stored(x: f32) -> f16 {
    f16::from_f32(x.clamp(-f16::MAX.to_f32(), f16::MAX.to_f32()))
}

/// 1 / x, or 0 where that is infinite.
fn inverse(x: f32) -> f32 {
    let inverse = 1.0 / x;
    if inverse.is_finite() { inverse } else { 0.0 }
}

/// The least error of a sub-block of values a · level − b.
#[inline(always)]
fn error<const S: usize>(x: &[f32; S], w: &[f32; S], levels: impl Levels, (a, b): (f32, f32)) -> f32 {
    let inverse = inverse(a);
    const LANES: usize = 8;
    let mut sums = [0.0; LANES];
    for (x, w) in x.as_chunks::<LANES>().0.iter().zip(w.as_chunks::<LANES>().0) {
        for lane in 0..LANES {
            let difference = x[lane] - (a * levels.nearest((x[lane] + b) * inverse) - b);
            sums[lane] += w[lane] * (difference * difference);
        }
    }
    sums.iter().sum()
}

/// The sub-blocks of a block.
struct Problem<'a, I, const S: usize, L> {
    simd: I,
    x: &'a [[f32; S]],
    w: &'a [[f32; S]],
    levels: L,
    /// The scales and minima that the type can store.
    scales: [i32; 2],
    mins: [i32; 2],
}

impl<I: Simd, const S: usize, L: Levels> Problem<'_, I, S, L> {
    fn error_of(&self, j: usize, at: (f32, f32)) -> f32 {
        self.simd.run(
            #[inline(always)]
            || error(&self.x[j], &self.w[j], self.levels, at),
        )
    }

    fn error<const J: usize>(&self, shape: &Shape<J>) -> f32 {
        (0..J).map(|j| self.error_of(j, shape.of(j))).sum()
    }

    /// Moves each scale and minimum to its best neighbour, then `d` and `dmin` to the least squares for the codes, as long
    /// as that helps.
    fn descend<const J: usize>(&self, mut shape: Shape<J>) -> Shape<J> {
        let mut best = f32::INFINITY;
        for _ in 0..6 {
            let mut settled = shape;
            let error = (0..J).map(|j| self.settle(&mut settled, j)).sum::<f32>();
            if error < best {
                (best, shape) = (error, settled);
            } else {
                break;
            }
            let moved = self.least_squares(&shape);
            let error = self.error(&moved);
            if error < best {
                (best, shape) = (error, moved);
            } else {
                break;
            }
        }
        shape
    }

    /// Moves the scale and the minimum of a sub-block to the best of their neighbours; the error with them.
    fn settle<const J: usize>(&self, shape: &mut Shape<J>, j: usize) -> f32 {
        let near = |at: i32, [low, high]: [i32; 2]| (at - 1).max(low)..=(at + 1).min(high);
        let (scales, mins) = (near(shape.scales[j], self.scales), near(shape.mins[j], self.mins));
        let mut best = f32::INFINITY;
        let mut found = (shape.scales[j], shape.mins[j]);
        let mut trial = *shape;
        for scale in scales {
            for min in mins.clone() {
                (trial.scales[j], trial.mins[j]) = (scale, min);
                let error = self.error_of(j, trial.of(j));
                if error < best {
                    best = error;
                    found = (scale, min);
                }
            }
        }
        (shape.scales[j], shape.mins[j]) = found;
        best
    }

    /// `d` and `dmin` of the least squared error for the codes, scales and minima of a shape.
    fn least_squares<const J: usize>(&self, shape: &Shape<J>) -> Shape<J> {
        // Values d · p − dmin · m.
        let (mut pp, mut pm, mut mm, mut px, mut mx) = (0.0f64, 0.0f64, 0.0f64, 0.0f64, 0.0f64);
        for j in 0..J {
            let (a, b) = shape.of(j);
            let inverse = inverse(a);
            let m = f64::from(shape.mins[j]);
            for (&x, &w) in self.x[j].iter().zip(&self.w[j]) {
                let p = f64::from(shape.scales[j]) * f64::from(self.levels.nearest((x + b) * inverse));
                let (x, w) = (f64::from(x), f64::from(w));
                pp += w * p * p;
                pm += w * p * m;
                mm += w * m * m;
                px += w * p * x;
                mx += w * m * x;
            }
        }
        let det = pp * mm - pm * pm;
        let (d, dmin) = if mm > 0.0 && det > 1e-9 * pp * mm {
            ((px * mm - mx * pm) / det, (px * pm - mx * pp) / det)
        } else if pp > 0.0 {
            ((px + f64::from(shape.dmin.to_f32()) * pm) / pp, f64::from(shape.dmin.to_f32()))
        } else {
            return *shape;
        };
        Shape { d: stored(d as f32), dmin: stored(dmin as f32), ..*shape }
    }

    fn codes<const J: usize, const N: usize>(&self, shape: &Shape<J>) -> [u8; N] {
        let mut codes = [0; N];
        for (j, codes) in codes.as_chunks_mut::<S>().0.iter_mut().enumerate() {
            let (a, b) = shape.of(j);
            let inverse = inverse(a);
            for (code, x) in codes.iter_mut().zip(&self.x[j]) {
                *code = self.levels.code((x + b) * inverse);
            }
        }
        codes
    }

    /// The best of some shapes, after descending from it.
    fn solve<const J: usize, const N: usize>(&self, starts: impl Iterator<Item = Shape<J>>) -> (Shape<J>, [u8; N]) {
        let zero = Shape { d: f16::ZERO, dmin: f16::ZERO, scales: [self.scales[1]; J], mins: [self.mins[0]; J] };
        let (mut best, mut found) = (f32::INFINITY, zero);
        for start in starts {
            let error = self.error(&start);
            if error < best {
                (best, found) = (error, start);
            }
        }
        let shape = self.descend(found);
        let codes = self.codes(&shape);
        (shape, codes)
    }
}

/// One scale: the starts map the number of largest magnitude to somewhat more or less than a level at an end.
fn one_scale<L: Levels>(simd: impl Simd, x: &[f32; 32], w: &[f32; 32], levels: L) -> (Shape<1>, [u8; 32]) {
    let problem = Problem { simd, x: &[*x], w: &[*w], levels, scales: [1, 1], mins: [0, 0] };
    let extreme = x.iter().fold(0.0, |extreme: f32, &x| if x.abs() > extreme.abs() { x } else { extreme });
    let starts = levels.ends().into_iter().flat_map(|end| (0..16).map(move |i| end * (0.88 + 0.02 * i as f32)));
    problem.solve(starts.map(|end| Shape { d: stored(extreme / end), dmin: f16::ZERO, scales: [1], mins: [0] }))
}

/// One scale and one minimum: the starts map more or less of the range to the codes.
fn one_range(simd: impl Simd, x: &[f32; 32], w: &[f32; 32], levels: Range) -> (Shape<1>, [u8; 32]) {
    let problem = Problem { simd, x: &[*x], w: &[*w], levels, scales: [1, 1], mins: [1, 1] };
    let low = x.iter().copied().fold(f32::INFINITY, f32::min);
    let high = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    problem.solve((0..16).map(|i| {
        let cut = (high - low) * (0.01 * i as f32 - 0.02);
        let d = (high - low - 2.0 * cut) / levels.high;
        Shape { d: stored(d), dmin: stored(-(low + cut)), scales: [1], mins: [1] }
    }))
}

/// How far the starts of super-blocks take `d` from the least that holds all scales.
const STRETCH: [f32; 5] = [1.0, 0.97, 0.94, 1.03, 1.06];

/// Scales and minima of sub-blocks of `S` elements.
fn affine<I: Simd, const S: usize, const J: usize>(
    simd: I,
    x: &[f32; 256],
    w: &[f32; 256],
    most: u8,
    top: u8,
) -> (Shape<J>, [u8; 256]) {
    let levels = Range { low: 0.0, high: most.into() };
    let range = [0, i32::from(top)];
    let problem =
        Problem { simd, x: x.as_chunks::<S>().0, w: w.as_chunks::<S>().0, levels, scales: range, mins: range };
    let fit = simd.run(
        #[inline(always)]
        || fit::affine(simd, &columns(simd, problem.x), &columns(simd, problem.w), Steps::weighted(most)),
    );
    let (scales, mins) = (&fit.scale.as_chunks::<J>().0[0], &fit.min.as_chunks::<J>().0[0]);
    let start = |numbers: &[f32; J], stretch: f32| {
        let largest = numbers.iter().fold(0.0, |largest: f32, &x| largest.max(x));
        let d = stored(largest / f32::from(top) * stretch);
        (d, multiples(numbers, d, range))
    };
    problem.solve(STRETCH.into_iter().flat_map(|a| STRETCH.map(|b| (a, b))).map(|(a, b)| {
        let ((d, scales), (dmin, mins)) = (start(scales, a), start(mins, b));
        Shape { d, dmin, scales, mins }
    }))
}

/// Numbers as multiples of `d` within a range.
fn multiples<const J: usize>(numbers: &[f32; J], d: f16, [low, high]: [i32; 2]) -> [i32; J] {
    let inverse = inverse(d.to_f32());
    numbers.map(|x| nearest(clamp(x * inverse, low as f32, high as f32)))
}

/// The least-squares scales of a super-block's 16 sub-blocks for codes −zero … zero − 1.
fn symmetric_scales(simd: impl Simd, x: &[f32; 256], w: &[f32; 256], zero: i32) -> [f32; W] {
    let (x, w) = (x.as_chunks().0, w.as_chunks().0);
    simd.run(
        #[inline(always)]
        || fit::symmetric::<_, 16>(simd, &columns(simd, x), &columns(simd, w), zero),
    )
    .scale
}

/// Scales of sub-blocks of `S` elements, multiples −top … top − 1 of `d`, near those found.
fn symmetric<I: Simd, L: Levels, const S: usize, const J: usize>(
    simd: I,
    x: &[f32; 256],
    w: &[f32; 256],
    levels: L,
    found: &[f32; J],
    top: i32,
) -> (Shape<J>, [u8; 256]) {
    let range = [-top, top - 1];
    let problem =
        Problem { simd, x: x.as_chunks::<S>().0, w: w.as_chunks::<S>().0, levels, scales: range, mins: [0, 0] };
    let extreme = found.iter().fold(0.0, |extreme: f32, &x| if x.abs() > extreme.abs() { x } else { extreme });
    problem.solve(STRETCH.into_iter().map(|stretch| {
        let d = stored(extreme / -top as f32 * stretch);
        Shape { d, dmin: f16::ZERO, scales: multiples(found, d, range), mins: [0; J] }
    }))
}
