//! SparseGPT (Frantar and Alistarh, 2023): columns one after the other; what a removed weight did is taken over, as well as it
//! can be, by the columns that follow.

use super::{Pattern, Scope, Sparsity};
use crate::linear_algebra::{add_product, inverse_factor};
use crate::threads::Pool;

/// Columns of a block: within one, the columns that follow are corrected at once, all others when the block is done.
const BLOCK: usize = 128;

/// What is added to the diagonal of H, as a share of its mean.
const DAMP: f64 = 0.01;

/// Rows of a band. Each row is pruned by itself; a fixed number, so that products of bands do not depend on the threads.
const BAND: usize = 64;

/// What SparseGPT needs to know of an input, which matrices may share.
#[derive(Debug)]
pub struct Factor {
    /// Upper triangular, with (H + δI)⁻¹ = Uᵀ U.
    u: Vec<f64>,
    cols: usize,
}

impl Factor {
    /// From H = XᵀX / m `[cols, cols]`; `None` if that is of no use: all inputs were zero.
    pub fn new(hessian: &[f64], cols: usize) -> Option<Self> {
        let mean = (0..cols).map(|i| hessian[i * cols + i]).sum::<f64>() / cols.max(1) as f64;
        Some(Self { u: inverse_factor(hessian, cols, DAMP * mean)?, cols })
    }
}

/// Removes weights of `w` `[rows, cols]` so that Σ ‖(w − ŵ) x‖² stays small; changes those that stay.
///
/// With the scope [`Scope::Row`] a fraction is removed of every row; otherwise of every block of columns across rows, as in
/// the paper, where masks are chosen block by block.
pub fn prune(w: &mut [f64], factor: &Factor, sparsity: &Sparsity, pool: &Pool) {
    let Factor { u, cols } = factor;
    let cols = *cols;
    let block = match sparsity.pattern {
        // Groups do not straddle blocks.
        Pattern::Groups { m, .. } => (BLOCK / m).max(1) * m,
        Pattern::Fraction(_) => BLOCK,
    };
    for first in (0..cols).step_by(block) {
        let last = cols.min(first + block);
        let block = Block { u, cols, first, last };
        let chosen = match sparsity.pattern {
            Pattern::Fraction(fraction) if sparsity.scope != Scope::Row => {
                let width = (last - first) as u64;
                let rows = (w.len() / cols) as u64;
                Chosen::Among(block.least(w, fraction.of(rows * width) as usize))
            }
            // So many of each row up to here, that ends of blocks lose none.
            Pattern::Fraction(fraction) => {
                Chosen::Count((fraction.of(last as u64) - fraction.of(first as u64)) as usize)
            }
            Pattern::Groups { n, m } => Chosen::Groups { n, m },
        };
        pool.for_each_chunk(w, BAND * cols, |band, w| block.prune(w, band * BAND, &chosen));
    }
}

/// Which weights of a block go.
enum Chosen {
    /// So many of each row.
    Count(usize),
    /// All but n of m of each row.
    Groups { n: usize, m: usize },
    /// Those whose score and place are not above these.
    Among(Option<(u64, usize)>),
}

/// Columns `first .. last`.
struct Block<'a> {
    u: &'a [f64],
    cols: usize,
    first: usize,
    last: usize,
}

impl Block<'_> {
    /// What the loss grows by, but for a factor, if a weight goes and the others make up for it: w² / [H⁻¹]ⱼⱼ of what is left.
    /// Bits have the order of the numbers.
    fn score(&self, w: f64, j: usize) -> u64 {
        let e = w / self.u[j * self.cols + j];
        (e * e).to_bits()
    }

    /// The score and place, `row · width + column`, of the last of the `count` least.
    fn least(&self, w: &[f64], count: usize) -> Option<(u64, usize)> {
        let width = self.last - self.first;
        let mut scores: Vec<(u64, usize)> = Vec::with_capacity(w.len() / self.cols * width);
        for (i, row) in w.chunks_exact(self.cols).enumerate() {
            let of = |(k, w): (usize, &f64)| (self.score(*w, self.first + k), i * width + k);
            scores.extend(row[self.first..self.last].iter().enumerate().map(of));
        }
        let last = count.checked_sub(1)?;
        Some(*scores.select_nth_unstable(last).1)
    }

    /// Prunes a band of rows in these columns, and corrects all columns after them.
    fn prune(&self, w: &mut [f64], first_row: usize, chosen: &Chosen) {
        let (cols, first, last) = (self.cols, self.first, self.last);
        let (width, rows) = (last - first, w.len() / cols);
        let mut errors = vec![0.0; rows * width];
        let mut removed = vec![false; width];
        for (i, row) in w.chunks_exact_mut(cols).enumerate() {
            match chosen {
                Chosen::Count(count) => self.choose(row, first..last, *count, &mut removed),
                Chosen::Among(limit) => removed.iter_mut().enumerate().for_each(|(k, removed)| {
                    let place = (self.score(row[first + k], first + k), (first_row + i) * width + k);
                    *removed = limit.is_some_and(|limit| place <= limit);
                }),
                Chosen::Groups { .. } => {}
            }
            for j in first..last {
                if let Chosen::Groups { n, m } = chosen
                    && (j - first) % m == 0
                {
                    let end = last.min(j + m);
                    self.choose(row, j..end, (end - j).saturating_sub(*n), &mut removed[j - first..end - first]);
                }
                if removed[j - first] {
                    let u = &self.u[j * cols..(j + 1) * cols];
                    let error = row[j] / u[j];
                    row[j..last].iter_mut().zip(&u[j..last]).for_each(|(w, u)| *w -= error * u);
                    row[j] = 0.0;
                    errors[i * width + j - first] = error;
                }
            }
        }
        if last < cols {
            let shape = (rows, width, cols - last);
            add_product(&mut w[last..], cols, &errors, (&self.u[first * cols + last..], cols), shape, -1.0);
        }
    }

    /// Marks the `count` columns of a range that have the least scores; of equals the first.
    fn choose(&self, row: &[f64], range: std::ops::Range<usize>, count: usize, removed: &mut [bool]) {
        removed.fill(false);
        let Some(last) = count.checked_sub(1) else { return };
        let start = range.start;
        let mut scores: Vec<(u64, usize)> = range.map(|j| (self.score(row[j], j), j - start)).collect();
        scores.select_nth_unstable(last);
        scores[..count].iter().for_each(|&(_, k)| removed[k] = true);
    }
}
