//! The searches for a sub-block's scale, step for step those of ggml's `ggml-quants.c`: `make_qx_quants` is [`symmetric`],
//! `make_q3_quants` [`refine`], `make_qkx2_quants` and `make_qkx3_quants` [`affine`], `make_qp_quants` [`positive`].

use super::lanes::{Columns, Lanes, W, clamp, clamp_to, each, greatest, least, nearest, round, sum};

/// Sub-blocks whose largest magnitude is below this are all zero to ggml (`GROUP_MAX_EPS`).
pub const NOTHING: f32 = 1e-15;

/// What a symmetric search found for each sub-block.
pub struct Symmetric {
    /// value ≈ scale · (code − `zero`).
    pub scale: Lanes,
    /// code = nearest(x · inverse) + `zero`; 0 where the sub-block is nothing.
    inverse: Lanes,
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
pub fn extreme<const N: usize>(x: &Columns<N>) -> Lanes {
    let (mut most, mut extreme) = ([0.0; W], [0.0; W]);
    for column in x {
        for lane in 0..W {
            let magnitude = column[lane].abs();
            let more = magnitude > most[lane];
            most[lane] = if more { magnitude } else { most[lane] };
            extreme[lane] = if more { column[lane] } else { extreme[lane] };
        }
    }
    extreme
}

/// Scales of codes −zero … zero − 1: the scale that maps the extreme number to −zero, and 18 near it; of all the one for
/// which the least-squares scale, weighted by `w`, explains most.
pub fn symmetric<const N: usize>(x: &Columns<N>, w: &Columns<N>, zero: i32) -> Symmetric {
    let extreme = extreme(x);
    let nothing = extreme.map(|x| x.abs() < NOTHING);
    let mut wx = *w;
    for (wx, x) in wx.iter_mut().zip(x) {
        for lane in 0..W {
            wx[lane] *= x[lane];
        }
    }
    let start = |shift: f32| each(|lane| if nothing[lane] { 0.0 } else { -(zero as f32 + shift) / extreme[lane] });
    let (low, high) = (-zero as f32, (zero - 1) as f32);
    let sums = |inverse: &Lanes, shift: f32| match shift < 0.45 {
        // The extreme number does not get below −zero, so one bound is enough.
        true => symmetric_sums(x, w, &wx, inverse, |l| least(round(l), high)),
        false => symmetric_sums(x, w, &wx, inverse, |l| clamp(round(l), low, high)),
    };
    let mut inverse = start(0.0);
    let (sum_lx, sum_l2) = sums(&inverse, 0.0);
    let mut scale = each(|lane| if sum_l2[lane] != 0.0 { sum_lx[lane] / sum_l2[lane] } else { 0.0 });
    let mut best = each(|lane| scale[lane] * sum_lx[lane]);
    for step in (-9..=9).filter(|&step| step != 0) {
        let shift = 0.1 * step as f32;
        let trial = start(shift);
        let (sum_lx, sum_l2) = sums(&trial, shift);
        for lane in 0..W {
            let better = (sum_l2[lane] > 0.0) & (sum_lx[lane] * sum_lx[lane] > best[lane] * sum_l2[lane]);
            let new = sum_lx[lane] / sum_l2[lane];
            scale[lane] = if better { new } else { scale[lane] };
            best[lane] = if better { new * sum_lx[lane] } else { best[lane] };
            inverse[lane] = if better { trial[lane] } else { inverse[lane] };
        }
    }
    Symmetric { scale, inverse, nothing, zero }
}

/// Σ w·x·l and Σ w·l² for the codes l = `code`(x · inverse). Alone in a function because the compiler then makes the best of
/// the loop.
#[inline(never)]
fn symmetric_sums<const N: usize>(
    x: &Columns<N>,
    w: &Columns<N>,
    wx: &Columns<N>,
    inverse: &Lanes,
    code: impl Fn(f32) -> f32,
) -> (Lanes, Lanes) {
    let (mut sum_lx, mut sum_l2) = ([0.0; W], [0.0; W]);
    for i in 0..N {
        for lane in 0..W {
            let l = code(inverse[lane] * x[i][lane]);
            sum_lx[lane] += wx[i][lane] * l;
            sum_l2[lane] += w[i][lane] * l * l;
        }
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
    pub scale: Lanes,
    pub min: Lanes,
    /// code = nearest(inverse · (x − base)); 0 where the sub-block has one value.
    inverse: Lanes,
    base: Lanes,
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
pub fn affine<const N: usize>(x: &Columns<N>, w: &Columns<N>, steps: Steps) -> Affine {
    let (lowest, highest) = range(x);
    let sum_w = sum::<N>(|i, lane| w[i][lane]);
    let sum_x = sum::<N>(|i, lane| w[i][lane] * x[i][lane]);
    let mut min = lowest.map(|x| if x > 0.0 { 0.0 } else { x });
    let flat = std::array::from_fn(|lane| highest[lane] == min[lane]);
    // The inverse of a scale that maps the numbers from `min` up to `codes` codes.
    let inverse_of =
        |codes: f32, min: &Lanes| each(|lane| codes / if flat[lane] { 1.0 } else { highest[lane] - min[lane] });
    let most = steps.most;
    let mut codes = [[0.0; W]; N];
    let trial = |min: &Lanes, inverse: &Lanes, codes: &mut Columns<N>| {
        // How far the scaled numbers reach. Mostly not above the last code, so that one bound is enough. Sub-blocks of
        // next to nothing have huge or infinite inverses; there only ggml's own bit trick gives its codes.
        let (mut tame, mut below) = (true, true);
        for lane in 0..W {
            let (a, b) = (inverse[lane] * (lowest[lane] - min[lane]), inverse[lane] * (highest[lane] - min[lane]));
            tame &= (a.abs() < 4e6) & (b.abs() < 4e6);
            below &= (a < most + 0.45) & (b < most + 0.45);
        }
        match (tame, below) {
            (true, true) => affine_sums(x, w, inverse, min, codes, |l| greatest(round(l), 0.0)),
            (true, false) => affine_sums(x, w, inverse, min, codes, |l| clamp(round(l), 0.0, most)),
            (false, _) => affine_sums(x, w, inverse, min, codes, |l| clamp(nearest(l) as f32, 0.0, most)),
        }
    };

    let inverse = inverse_of(most, &min);
    let scale = inverse.map(|inverse| 1.0 / inverse);
    trial(&min, &inverse, &mut codes);
    let best = error(x, w, &codes, &scale, &min, steps.absolute);
    let mut found = Found { best, scale, min, inverse, base: min };
    for i in 0..=steps.count {
        min = found.min;
        let inverse = inverse_of(steps.first + steps.step * i as f32 + most, &min);
        let sums = trial(&min, &inverse, &mut codes);
        let (det, scale, new_min) = solve(&sum_w, &sum_x, &sums);
        let errors = error(x, w, &codes, &scale, &new_min, steps.absolute);
        found.keep_better(&det, &errors, &scale, &new_min, &inverse);
    }
    for lane in 0..W {
        if flat[lane] {
            found.scale[lane] = 0.0;
            found.min[lane] = highest[lane];
        }
    }
    let Found { scale, min, inverse, base, .. } = found;
    Affine { scale, min: min.map(|min| -min), inverse, base, flat, most: most as i32 }
}

/// The weighted least-squares scale and minimum for given codes, the minimum at most zero; and the determinant, which must
/// be positive for them to mean anything.
#[inline(never)]
fn solve(sum_w: &Lanes, sum_x: &Lanes, [sum_l, sum_l2, sum_xl]: &[Lanes; 3]) -> (Lanes, Lanes, Lanes) {
    let det = each(|lane| sum_w[lane] * sum_l2[lane] - sum_l[lane] * sum_l[lane]);
    let scale = each(|lane| (sum_w[lane] * sum_xl[lane] - sum_x[lane] * sum_l[lane]) / det[lane]);
    let min = each(|lane| (sum_l2[lane] * sum_x[lane] - sum_l[lane] * sum_xl[lane]) / det[lane]);
    let above = each(|lane| sum_xl[lane] / sum_l2[lane]);
    let scale = each(|lane| if min[lane] > 0.0 { above[lane] } else { scale[lane] });
    (det, scale, min.map(|min| if min > 0.0 { 0.0 } else { min }))
}

/// The best of the trials so far.
struct Found {
    best: Lanes,
    scale: Lanes,
    min: Lanes,
    inverse: Lanes,
    /// The minimum with which the codes were chosen.
    base: Lanes,
}

impl Found {
    #[inline(never)]
    fn keep_better(&mut self, det: &Lanes, errors: &Lanes, scale: &Lanes, min: &Lanes, inverse: &Lanes) {
        for lane in 0..W {
            let better = (det[lane] > 0.0) & (errors[lane] < self.best[lane]);
            self.best[lane] = if better { errors[lane] } else { self.best[lane] };
            self.scale[lane] = if better { scale[lane] } else { self.scale[lane] };
            self.base[lane] = if better { self.min[lane] } else { self.base[lane] };
            self.min[lane] = if better { min[lane] } else { self.min[lane] };
            self.inverse[lane] = if better { inverse[lane] } else { self.inverse[lane] };
        }
    }
}

/// The least and the greatest number of each sub-block.
fn range<const N: usize>(x: &Columns<N>) -> (Lanes, Lanes) {
    let (mut lowest, mut highest) = (x[0], x[0]);
    for column in &x[1..] {
        for lane in 0..W {
            lowest[lane] = if column[lane] < lowest[lane] { column[lane] } else { lowest[lane] };
            highest[lane] = if column[lane] > highest[lane] { column[lane] } else { highest[lane] };
        }
    }
    (lowest, highest)
}

/// The codes l = `code`((x − min) · inverse), and their sums Σ w·l, Σ w·l², Σ w·l·x. Alone in a function because the compiler
/// then makes the best of the loop.
#[inline(never)]
fn affine_sums<const N: usize>(
    x: &Columns<N>,
    w: &Columns<N>,
    inverse: &Lanes,
    min: &Lanes,
    codes: &mut Columns<N>,
    code: impl Fn(f32) -> f32,
) -> [Lanes; 3] {
    let mut sums = [[0.0; W]; 3];
    for i in 0..N {
        for lane in 0..W {
            let l = code(inverse[lane] * (x[i][lane] - min[lane]));
            codes[i][lane] = l;
            let wl = w[i][lane] * l;
            sums[0][lane] += wl;
            sums[1][lane] += wl * l;
            sums[2][lane] += wl * x[i][lane];
        }
    }
    sums
}

/// Σ w · |scale · code + min − x|, or of the square.
fn error<const N: usize>(
    x: &Columns<N>,
    w: &Columns<N>,
    codes: &Columns<N>,
    scale: &Lanes,
    min: &Lanes,
    absolute: bool,
) -> Lanes {
    let difference = |i: usize, lane: usize| scale[lane] * codes[i][lane] + min[lane] - x[i][lane];
    match absolute {
        true => sum::<N>(|i, lane| w[i][lane] * difference(i, lane).abs()),
        false => sum::<N>(|i, lane| {
            let difference = difference(i, lane);
            w[i][lane] * (difference * difference)
        }),
    }
}

/// Scales and codes −zero … zero − 1, plus zero: the codes of the scale that maps the extreme number to −zero, then up to
/// five rounds in which each code in turn moves to the one that is best while the others stay. The weights are x².
pub fn refine<const N: usize>(x: &Columns<N>, zero: i32) -> (Lanes, [[u8; W]; N]) {
    let (low, high) = (-zero as f32, (zero - 1) as f32);
    let extreme = extreme(x);
    let nothing = extreme.map(|x| x.abs() < NOTHING);
    let inverse = each(|lane| if nothing[lane] { 0.0 } else { low / extreme[lane] });
    let mut codes = [[0.0; W]; N];
    let mut sums = Sums { lx: [0.0; W], l2: [0.0; W] };
    for i in 0..N {
        for lane in 0..W {
            let x = x[i][lane];
            let l = clamp(round(inverse[lane] * x), low, high);
            let w = x * x;
            codes[i][lane] = l;
            sums.lx[lane] += w * x * l;
            sums.l2[lane] += w * l * l;
        }
    }
    for _ in 0..5 {
        let mut changed = false;
        for (x, codes) in x.iter().zip(&mut codes) {
            changed |= sums.improve(x, codes, zero);
        }
        if !changed {
            break;
        }
    }
    let scale = each(|lane| if sums.l2[lane] > 0.0 { sums.lx[lane] / sums.l2[lane] } else { 0.0 });
    let code = |l: f32, lane: usize| if nothing[lane] { 0 } else { (l as i32 + zero) as u8 };
    (scale, codes.map(|l| std::array::from_fn(|lane| code(l[lane], lane))))
}

/// Σ w·x·l and Σ w·l² of each sub-block.
struct Sums {
    lx: Lanes,
    l2: Lanes,
}

impl Sums {
    /// Moves the codes of one element of each sub-block to better ones, where there are any.
    #[inline(never)]
    fn improve(&mut self, x: &Lanes, codes: &mut Lanes, zero: i32) -> bool {
        let mut changed = 0;
        for lane in 0..W {
            let (x, l) = (x[lane], codes[lane]);
            let (w, lx, l2) = (x * x, self.lx[lane], self.l2[lane]);
            let rest_lx = lx - w * x * l;
            let rest_l2 = l2 - w * l * l;
            let new = clamp_to(nearest(x * rest_l2 / rest_lx), -zero, zero - 1) as f32;
            let new_lx = rest_lx + w * x * new;
            let new_l2 = rest_l2 + w * new * new;
            let better = (rest_lx > 0.0) & (new != l) & (new_l2 > 0.0) & (new_lx * new_lx * l2 > lx * lx * new_l2);
            codes[lane] = if better { new } else { l };
            self.lx[lane] = if better { new_lx } else { lx };
            self.l2[lane] = if better { new_l2 } else { l2 };
            changed |= i32::from(better);
        }
        changed != 0
    }
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
