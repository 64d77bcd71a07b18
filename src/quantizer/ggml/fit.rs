//! The searches for a sub-block's scale, step for step those of ggml's `ggml-quants.c`: `make_qx_quants` is [`symmetric`],
//! `make_q3_quants` [`refine`], `make_qkx2_quants` and `make_qkx3_quants` [`affine`], `make_qp_quants` [`positive`].

use super::lanes::{Columns, byte, clamp_to, sum, times};
use crate::simd::lanes::{W, nearest};
use crate::simd::{Lanes, Mask, Simd};

/// Sub-blocks whose largest magnitude is below this are all zero to ggml (`GROUP_MAX_EPS`).
pub const NOTHING: f32 = 1e-15;

/// The nearest integer, ties to even, of |x| < 2²²: two additions, where [`Lanes::nearest`] is four operations.
#[inline(always)]
fn round<S: Simd>(simd: S, x: S::Lanes) -> S::Lanes {
    let magic = simd.splat(12_582_912.0);
    (x + magic) - magic
}

/// What a symmetric search found for each sub-block.
pub struct Symmetric {
    /// value ≈ scale · (code − `zero`).
    pub scale: [f32; W],
    /// code = nearest(x · inverse) + `zero`; 0 where the sub-block is nothing.
    inverse: [f32; W],
    nothing: [bool; W],
    zero: i32,
}

impl Symmetric {
    /// The code of a number of a sub-block, 0 to 2 · zero − 1.
    #[inline(always)]
    pub fn code(&self, lane: usize, x: f32) -> u8 {
        let code = clamp_to(nearest(self.inverse[lane] * x), -self.zero, self.zero - 1) + self.zero;
        if self.nothing[lane] { 0 } else { code as u8 }
    }
}

/// The number of largest magnitude in each sub-block, the first of equals.
#[inline(always)]
pub fn extreme<S: Simd, const N: usize>(simd: S, x: &Columns<S, N>) -> S::Lanes {
    let (mut most, mut extreme) = (simd.splat(0.0), simd.splat(0.0));
    for &x in x {
        let more = most.lt(x.abs());
        most = x.abs().or(more, most);
        extreme = x.or(more, extreme);
    }
    extreme
}

/// Scales of codes −zero … zero − 1: the scale that maps the extreme number to −zero, and 18 near it; of all the one for
/// which the least-squares scale, weighted by `w`, explains most.
#[inline(always)]
pub fn symmetric<S: Simd, const N: usize>(simd: S, x: &Columns<S, N>, w: &Columns<S, N>, zero: i32) -> Symmetric {
    let none = simd.splat(0.0);
    let extreme = extreme(simd, x);
    let nothing = extreme.abs().lt(simd.splat(NOTHING));
    let wx = times::<S, N>(w, x);
    let top = zero as f32;
    let mut inverse = none.or(nothing, simd.splat(-top) / extreme);
    let (sum_lx, sum_l2) = symmetric_sums(simd, x, w, &wx, inverse, zero);
    let mut scale = none.or(sum_l2.equals(none), sum_lx / sum_l2);
    let mut best = scale * sum_lx;
    for step in (-9..=9).filter(|&step| step != 0) {
        let trial = none.or(nothing, simd.splat(-(top + 0.1 * step as f32)) / extreme);
        let (sum_lx, sum_l2) = symmetric_sums(simd, x, w, &wx, trial, zero);
        let better = none.lt(sum_l2) & (best * sum_l2).lt(sum_lx * sum_lx);
        let new = sum_lx / sum_l2;
        scale = new.or(better, scale);
        best = (new * sum_lx).or(better, best);
        inverse = trial.or(better, inverse);
    }
    let nothing = extreme.store().map(|x| x.abs() < NOTHING);
    Symmetric { scale: scale.store(), inverse: inverse.store(), nothing, zero }
}

/// Σ w·x·l and Σ w·l² for the codes l.
#[inline(always)]
fn symmetric_sums<S: Simd, const N: usize>(
    simd: S,
    x: &Columns<S, N>,
    w: &Columns<S, N>,
    wx: &Columns<S, N>,
    inverse: S::Lanes,
    zero: i32,
) -> (S::Lanes, S::Lanes) {
    let (low, high) = (simd.splat(-zero as f32), simd.splat((zero - 1) as f32));
    let (mut sum_lx, mut sum_l2) = (simd.splat(0.0), simd.splat(0.0));
    for i in 0..N {
        let l = round(simd, inverse * x[i]).clamp(low, high);
        sum_lx = sum_lx + wx[i] * l;
        sum_l2 = sum_l2 + w[i] * l * l;
    }
    (sum_lx, sum_l2)
}

/// How an affine search tries scales.
#[derive(Clone, Copy)]
pub struct Steps {
    /// The largest code.
    pub most: f32,
    /// Trial i maps the range to `most + first + i · step` codes.
    pub first: f32,
    pub step: f32,
    pub count: u32,
    /// Whether the error is a sum of magnitudes instead of squares.
    pub absolute: bool,
}

impl Steps {
    /// The trials where an importance matrix gives the weights.
    pub fn weighted(most: u8) -> Self {
        Self { most: most.into(), first: -0.9, step: 0.05, count: 36, absolute: false }
    }
}

/// What an affine search found for each sub-block.
pub struct Affine {
    /// value ≈ scale · code − min, and min ≥ 0.
    pub scale: [f32; W],
    pub min: [f32; W],
    /// code = nearest(inverse · (x − base)); 0 where the sub-block has one value.
    inverse: [f32; W],
    base: [f32; W],
    flat: [bool; W],
    pub most: i32,
}

impl Affine {
    /// The code of a number of a sub-block.
    #[inline(always)]
    pub fn code(&self, lane: usize, x: f32) -> u8 {
        let code = clamp_to(nearest(self.inverse[lane] * (x - self.base[lane])), 0, self.most);
        if self.flat[lane] { 0 } else { code as u8 }
    }
}

/// Scales and minima of codes 0 … most: for each trial scale the codes, for these the least-squares scale and minimum
/// weighted by `w`, and of all the pair with the least error. A better minimum is the base of the trials after it.
#[inline(always)]
pub fn affine<S: Simd, const N: usize>(simd: S, x: &Columns<S, N>, w: &Columns<S, N>, steps: Steps) -> Affine {
    let (none, one, most) = (simd.splat(0.0), simd.splat(1.0), simd.splat(steps.most));
    let (mut lowest, mut highest) = (x[0], x[0]);
    for &x in &x[1..] {
        lowest = x.least(lowest);
        highest = x.greatest(highest);
    }
    let (sum_w, sum_x) = (sum(simd, w), sum(simd, &times::<S, N>(w, x)));
    let least_min = none.or(none.lt(lowest), lowest);
    let flat = highest.equals(least_min);
    let mut codes = [none; N];
    let range = one.or(flat, highest - least_min);
    let mut inverse = most / range;
    affine_sums(simd, x, w, inverse, least_min, [lowest, highest, most], &mut codes);
    let mut scale = one / inverse;
    let (mut min, mut base) = (least_min, least_min);
    let mut best = error(simd, x, w, &codes, scale, min, steps.absolute);
    for i in 0..=steps.count {
        // The scale that maps the numbers from `min` up to so many codes.
        let count = simd.splat(steps.first + steps.step * i as f32 + steps.most);
        let new_inverse = count / one.or(flat, highest - min);
        let [sum_l, sum_l2, sum_xl] = affine_sums(simd, x, w, new_inverse, min, [lowest, highest, most], &mut codes);
        // The weighted least-squares scale and minimum for these codes, the minimum at most zero; the determinant must be
        // positive for them to mean anything.
        let det = sum_w * sum_l2 - sum_l * sum_l;
        let new_min = (sum_l2 * sum_x - sum_l * sum_xl) / det;
        let above = none.lt(new_min);
        let new_scale = (sum_xl / sum_l2).or(above, (sum_w * sum_xl - sum_x * sum_l) / det);
        let new_min = none.or(above, new_min);
        let errors = error(simd, x, w, &codes, new_scale, new_min, steps.absolute);
        let better = none.lt(det) & errors.lt(best);
        best = errors.or(better, best);
        scale = new_scale.or(better, scale);
        base = min.or(better, base);
        min = new_min.or(better, min);
        inverse = new_inverse.or(better, inverse);
    }
    let scale = none.or(flat, scale).store();
    let min = highest.or(flat, min).store().map(|min| -min);
    let (highest, least_min) = (highest.store(), least_min.store());
    let flat = std::array::from_fn(|lane| highest[lane] == least_min[lane]);
    Affine { scale, min, inverse: inverse.store(), base: base.store(), flat, most: steps.most as i32 }
}

/// The codes l = nearest((x − min) · inverse), from 0 to the last, and their sums Σ w·l, Σ w·l², Σ w·l·x.
#[inline(always)]
fn affine_sums<S: Simd, const N: usize>(
    simd: S,
    x: &Columns<S, N>,
    w: &Columns<S, N>,
    inverse: S::Lanes,
    min: S::Lanes,
    [lowest, highest, most]: [S::Lanes; 3],
    codes: &mut Columns<S, N>,
) -> [S::Lanes; 3] {
    let (none, limit) = (simd.splat(0.0), simd.splat(4e6));
    // Sub-blocks of next to nothing have huge or infinite inverses; there only ggml's own bit trick gives its codes.
    let tame = (inverse * (lowest - min)).abs().lt(limit) & (inverse * (highest - min)).abs().lt(limit);
    if tame.all() {
        for i in 0..N {
            codes[i] = round(simd, inverse * (x[i] - min)).clamp(none, most);
        }
    } else {
        for i in 0..N {
            codes[i] = (inverse * (x[i] - min)).nearest().clamp(none, most);
        }
    }
    let [mut sum_l, mut sum_l2, mut sum_xl] = [none; 3];
    for i in 0..N {
        let (l, wl) = (codes[i], w[i] * codes[i]);
        sum_l = sum_l + wl;
        sum_l2 = sum_l2 + wl * l;
        sum_xl = sum_xl + wl * x[i];
    }
    [sum_l, sum_l2, sum_xl]
}

/// Σ w · |scale · code + min − x|, or of the square.
#[inline(always)]
fn error<S: Simd, const N: usize>(
    simd: S,
    x: &Columns<S, N>,
    w: &Columns<S, N>,
    codes: &Columns<S, N>,
    scale: S::Lanes,
    min: S::Lanes,
    absolute: bool,
) -> S::Lanes {
    let mut sum = simd.splat(0.0);
    for i in 0..N {
        let difference = scale * codes[i] + min - x[i];
        let error = if absolute { difference.abs() } else { difference * difference };
        sum = sum + w[i] * error;
    }
    sum
}

/// Scales and codes −zero … zero − 1, plus zero: the codes of the scale that maps the extreme number to −zero, then up to
/// five rounds in which each code in turn moves to the one that is best while the others stay. The weights are x².
#[inline(always)]
pub fn refine<S: Simd, const N: usize>(simd: S, x: &Columns<S, N>, zero: i32) -> ([f32; W], [[u8; W]; N]) {
    let none = simd.splat(0.0);
    let (low, high) = (simd.splat(-zero as f32), simd.splat((zero - 1) as f32));
    let extreme = extreme(simd, x);
    let inverse = none.or(extreme.abs().lt(simd.splat(NOTHING)), low / extreme);
    let mut codes = [none; N];
    // Σ w·x·l and Σ w·l² of each sub-block.
    let (mut sum_lx, mut sum_l2) = (none, none);
    for (&x, code) in x.iter().zip(&mut codes) {
        let l = round(simd, inverse * x).clamp(low, high);
        let w = x * x;
        *code = l;
        sum_lx = sum_lx + w * x * l;
        sum_l2 = sum_l2 + w * l * l;
    }
    for _ in 0..5 {
        let mut changed = false;
        for (&x, code) in x.iter().zip(&mut codes) {
            let (l, w) = (*code, x * x);
            let rest_lx = sum_lx - w * x * l;
            let rest_l2 = sum_l2 - w * l * l;
            let new = (x * rest_l2 / rest_lx).nearest().clamp(low, high);
            let new_lx = rest_lx + w * x * new;
            let new_l2 = rest_l2 + w * new * new;
            let better = none.lt(rest_lx)
                & none.lt((new - l).abs())
                & none.lt(new_l2)
                & (sum_lx * sum_lx * new_l2).lt(new_lx * new_lx * sum_l2);
            *code = new.or(better, l);
            sum_lx = new_lx.or(better, sum_lx);
            sum_l2 = new_l2.or(better, sum_l2);
            changed |= better.any();
        }
        if !changed {
            break;
        }
    }
    let scale = (sum_lx / sum_l2).or(none.lt(sum_l2), none);
    let nothing = extreme.store().map(|x| x.abs() < NOTHING);
    let mut out = [[0; W]; N];
    for (out, codes) in out.iter_mut().zip(&codes) {
        let codes = codes.store();
        for lane in 0..W {
            out[lane] = if nothing[lane] { 0 } else { byte(codes[lane] + zero as f32) };
        }
    }
    (scale.store(), out)
}

/// Numbers that are mostly positive as multiples 0 … top of a common scale: the least weighted squared error of nine
/// scales, then up to five rounds as in [`refine`]. Returns the scale and the multiples.
pub fn positive<const J: usize>(x: &[f32; J], w: &[f32; J], top: u8) -> (f32, [u8; J]) {
    let most = f32::from(top);
    let largest = x.iter().fold(0.0, |largest, &x| if largest > x { largest } else { x });
    if largest < NOTHING {
        return (0.0, [0; J]);
    }
    let limit = |l: i32| l.min(top.into());
    let error = |inverse: f32, limit: &dyn Fn(i32) -> i32| {
        let scale = 1.0 / inverse;
        x.iter().zip(w).fold(0.0, |sum, (&x, &w)| {
            let difference = x - scale * limit(nearest(inverse * x)) as f32;
            sum + w * difference * difference
        })
    };
    let mut inverse = most / largest;
    let mut best = error(inverse, &|l| i32::from(l as u8));
    for step in (-4..=4).filter(|&step| step != 0) {
        let trial = (0.1 * step as f32 + most) / largest;
        let error = error(trial, &limit);
        if error < best {
            best = error;
            inverse = trial;
        }
    }
    let mut codes = [0; J];
    let (mut sum_lx, mut sum_l2) = (0.0, 0.0);
    for ((&x, &w), code) in x.iter().zip(w).zip(&mut codes) {
        let l = limit(nearest(inverse * x));
        *code = l as u8;
        sum_lx += w * x * l as f32;
        sum_l2 += w * l as f32 * l as f32;
    }
    for _ in 0..5 {
        let mut changed = false;
        for ((&x, &w), code) in x.iter().zip(w).zip(&mut codes) {
            let l = f32::from(*code);
            let (rest_lx, rest_l2) = (sum_lx - w * x * l, sum_l2 - w * l * l);
            if !(rest_lx > 0.0 && rest_l2 > 0.0) {
                continue;
            }
            let new = limit(nearest(x * rest_l2 / rest_lx));
            if new == i32::from(*code) {
                continue;
            }
            let l = new as f32;
            let (new_lx, new_l2) = (rest_lx + w * x * l, rest_l2 + w * l * l);
            if new_lx * new_lx * sum_l2 > sum_lx * sum_lx * new_l2 {
                (*code, sum_lx, sum_l2) = (new as u8, new_lx, new_l2);
                changed = true;
            }
        }
        if !changed {
            break;
        }
    }
    (if sum_l2 > 0.0 { sum_lx / sum_l2 } else { 0.0 }, codes)
}
