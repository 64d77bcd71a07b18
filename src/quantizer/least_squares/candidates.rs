//! Scales and minima that are tried for a sub-block.

use super::grid::{Grid, Levels, Minima, Row};
use crate::simd::Simd;
use crate::simd::lanes::W;

/// A scale and a minimum as the form stores them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Candidate {
    /// `d` and `dmin` of a form of single scales; of others those of the block.
    pub d: f32,
    pub dmin: f32,
    /// Multiples of these.
    pub scale: i32,
    pub min: i32,
}

impl Candidate {
    /// The factor of the levels, and what is taken from their products.
    #[inline(always)]
    pub fn of(&self) -> (f32, f32) {
        (self.d * self.scale as f32, self.dmin * self.min as f32)
    }

    /// Those of sub-block `j` of a row.
    pub fn at(grid: &Grid, row: &Row, j: usize) -> Self {
        let b = j / grid.per;
        Self { d: row.d[b], dmin: row.dmin[b], scale: row.scales[j], min: row.mins[j] }
    }

    /// Makes them those of sub-block `j` of a row.
    pub fn store(&self, grid: &Grid, row: &mut Row, j: usize) {
        (row.scales[j], row.mins[j]) = (self.scale, self.min);
        if grid.per == 1 {
            (row.d[j], row.dmin[j]) = (self.d, self.dmin);
        }
    }
}

/// Candidates of one sub-block; each once.
#[derive(Debug, Default)]
pub struct Candidates(Vec<Candidate>);

/// What is tried in the first place: how far the ends of a sub-block's numbers are cut off, few levels more than many.
struct Cuts {
    /// Of symmetric levels: the least and the greatest multiple of the scale that just holds the largest number.
    factors: (f32, f32),
    /// Of others: the share of the range that is cut off at an end, at most.
    share: f32,
}

impl Cuts {
    fn of(levels: Levels) -> Self {
        let (factors, share) = match levels {
            Levels::Integers(low, high) => match (high - low) as u32 {
                0..=3 => ((0.4, 1.15), 0.3),
                4..=7 => ((0.5, 1.15), 0.2),
                8..=15 => ((0.65, 1.1), 0.15),
                16..=31 => ((0.75, 1.06), 0.1),
                32..=63 => ((0.8, 1.03), 0.08),
                _ => ((0.9, 1.01), 0.05),
            },
            Levels::Nonlinear => ((0.65, 1.1), 0.15),
            Levels::Fp8 => ((0.5, 1.0), 0.0),
        };
        Self { factors, share }
    }
}

/// Scales of symmetric levels that are tried.
const SYMMETRIC: usize = 2 * W;
/// Shares that are tried of the upper end and of the lower.
const AFFINE: (usize, usize) = (8, 6);

/// The number of largest magnitude, the first of equals.
pub fn extreme(x: &[f32]) -> f32 {
    x.iter().fold(0.0, |extreme: f32, &x| if x.abs() > extreme.abs() { x } else { extreme })
}

fn spread(i: usize, count: usize, (first, last): (f32, f32)) -> f32 {
    first + (last - first) * i as f32 / (count - 1) as f32
}

impl Candidates {
    /// Removes all.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// Adds one, if there is no equal and fewer than `most`, and the form can store it.
    pub fn add(&mut self, candidate: Candidate, grid: &Grid, most: usize) {
        let (a, _) = candidate.of();
        let possible = a.is_finite() && candidate.dmin.is_finite() && (a > 0.0 || (grid.signed && a < 0.0));
        if possible && self.0.len() < most && !self.0.contains(&candidate) {
            self.0.push(candidate);
        }
    }

    /// Those that hold more or less of some numbers. `d` and `dmin` are the block's, where scales are multiples of them.
    pub fn around(&mut self, grid: &Grid, x: &[f32], block: (f32, f32)) {
        let cuts = Cuts::of(grid.levels);
        let [low_level, high_level] = grid.levels.ends();
        match grid.minima {
            Minima::None => {
                let extreme = extreme(x);
                let count = if grid.signed { SYMMETRIC / 2 } else { SYMMETRIC };
                for i in 0..count {
                    let factor = spread(i, count, cuts.factors);
                    if grid.signed {
                        self.add(grid.candidate(extreme / low_level * factor, 0.0, block), grid, SYMMETRIC);
                        self.add(grid.candidate(-extreme / low_level * factor, 0.0, block), grid, SYMMETRIC);
                    } else {
                        self.add(grid.candidate(-extreme.abs() / low_level * factor, 0.0, block), grid, SYMMETRIC);
                    }
                }
            }
            Minima::Free | Minima::Multiples(_) => {
                let mut low = x.iter().copied().fold(f32::INFINITY, f32::min);
                let high = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                if grid.minima != Minima::Free {
                    low = low.min(0.0);
                }
                let range = high - low;
                for i in 0..AFFINE.0 {
                    for k in 0..AFFINE.1 {
                        let bounds = (-0.1 * cuts.share, cuts.share);
                        let top = high - range * spread(i, AFFINE.0, bounds);
                        let bottom = low + range * spread(k, AFFINE.1, bounds);
                        let scale = (top - bottom) / (high_level - low_level);
                        self.add(grid.candidate(scale, -bottom, block), grid, AFFINE.0 * AFFINE.1);
                    }
                }
            }
        }
    }

    /// Sixteen at a time: the last of them again where fewer are left.
    pub fn groups(&self) -> impl Iterator<Item = [Candidate; W]> {
        self.0.chunks(W).map(|some| std::array::from_fn(|lane| some[lane.min(some.len() - 1)]))
    }
}

/// The factors and the subtrahends of sixteen candidates.
#[inline(always)]
pub fn load<S: Simd>(simd: S, group: &[Candidate; W]) -> (S::Lanes, S::Lanes, S::Lanes) {
    let (mut a, mut b, mut inverse) = ([0.0; W], [0.0; W], [0.0; W]);
    for (lane, candidate) in group.iter().enumerate() {
        (a[lane], b[lane]) = candidate.of();
        inverse[lane] = reciprocal(a[lane]);
    }
    (simd.load(&a), simd.load(&b), simd.load(&inverse))
}

/// 1 / x, or 0 where that is infinite.
#[inline(always)]
pub fn reciprocal(x: f32) -> f32 {
    let inverse = 1.0 / x;
    if inverse.is_finite() { inverse } else { 0.0 }
}

impl Grid {
    /// The candidate nearest to a scale and a minimum. `d` and `dmin` are the block's, where scales are multiples of them.
    pub fn candidate(&self, scale: f32, min: f32, (d, dmin): (f32, f32)) -> Candidate {
        if self.per == 1 {
            let free = self.minima == Minima::Free;
            let dmin = if free { self.stored(min) } else { 0.0 };
            return Candidate { d: self.stored(scale), dmin, scale: 1, min: free.into() };
        }
        let multiple = |x: f32, d: f32, [low, high]: [i32; 2]| {
            (x * reciprocal(d)).max(low as f32).min(high as f32).round_ties_even() as i32
        };
        let most = if let Minima::Multiples(most) = self.minima { most } else { 0 };
        Candidate { d, dmin, scale: multiple(scale, d, self.scales), min: multiple(min, dmin, [0, most]) }
    }
}
