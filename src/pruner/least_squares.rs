//! Regularised least squares for the rows of a matrix, some of whose weights are kept at zero:
//!
//! J(W) = 1/2m Σ ‖y − W x‖² + λ/2 ‖W‖² = Σ over rows of ½ w H w − b w + c + λ/2 w w,
//!
//! with H = XᵀX / m, a row of B = YᵀX / m for b, and c = Σ y² / 2m. Nothing else of X and Y is needed.

use crate::linear_algebra::{add_product, largest_eigenvalue, solve};
use crate::threads::Pool;

/// How the minimum is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Solver {
    /// In closed form, by a Cholesky decomposition for each set of kept weights; by descent where there is none, or where that
    /// would take very long.
    Auto,
    /// By gradient descent: W ← W − η ((W H − B) + λ W), with η = 1 / (largest eigenvalue of H + λ), which cannot diverge.
    Descent {
        /// How many steps.
        steps: usize,
    },
}

/// Steps of descent where nothing else is asked for.
pub const DEFAULT_STEPS: usize = 200;

/// Multiplications that the closed form may take for a matrix before descent takes its place: some minutes.
const MOST_MULTIPLICATIONS: f64 = 4e12;

/// What is added to the diagonal in the closed form, as a share of its mean: where inputs depend on each other, and λ is 0, it
/// picks the least of many equal minima instead of one with huge weights.
const JITTER: f64 = 1e-11;

/// Rows of a band; a fixed number, so that products of bands do not depend on the threads.
const BAND: usize = 64;

/// What of X and Y the loss depends on.
#[derive(Debug, Clone, PartialEq)]
pub struct Moments {
    /// H = XᵀX / m `[cols, cols]`.
    pub hessian: Vec<f64>,
    /// B = YᵀX / m `[rows, cols]`.
    pub products: Vec<f64>,
    /// Σ y² / 2m over all rows of W.
    pub constant: f64,
    /// Columns.
    pub cols: usize,
}

impl Moments {
    /// Of data: `x` `[m, cols]`, `y` `[m, rows]`.
    pub fn of(x: &[f64], y: &[f64], cols: usize, rows: usize) -> Self {
        let m = x.len() / cols.max(1);
        let share = 1.0 / m.max(1) as f64;
        let turned = |data: &[f64], width: usize| -> Vec<f64> {
            (0..width).flat_map(|j| (0..m).map(move |i| (i, j))).map(|(i, j)| data[i * width + j]).collect()
        };
        let (mut hessian, mut products) = (vec![0.0; cols * cols], vec![0.0; rows * cols]);
        add_product(&mut hessian, cols, &turned(x, cols), (x, cols), (cols, m, cols), share);
        add_product(&mut products, cols, &turned(y, rows), (x, cols), (rows, m, cols), share);
        Self { hessian, products, constant: 0.5 * share * y.iter().map(|y| y * y).sum::<f64>(), cols }
    }

    /// Of a layer `original` `[rows, cols]` whose outputs are the targets: B = W₀ H.
    pub fn of_layer(original: &[f64], hessian: Vec<f64>, cols: usize, pool: &Pool) -> Self {
        let mut moments = Self { hessian, products: Vec::new(), constant: 0.0, cols };
        moments.retarget(original, pool);
        moments
    }

    /// The same inputs, with the outputs of another layer for targets.
    pub fn retarget(&mut self, original: &[f64], pool: &Pool) {
        let (cols, hessian) = (self.cols, &self.hessian);
        let mut products = vec![0.0; original.len()];
        pool.for_each_chunk(&mut products, BAND * cols, |band, out| {
            let w = &original[band * BAND * cols..][..out.len()];
            add_product(out, cols, w, (hessian, cols), (out.len() / cols, cols, cols), 1.0);
        });
        self.constant = 0.5 * original.iter().zip(&products).map(|(w, b)| w * b).sum::<f64>();
        self.products = products;
    }
}

/// A problem without its unknowns.
#[derive(Debug, Clone, Copy)]
pub struct Problem<'a> {
    /// What is known of the data.
    pub moments: &'a Moments,
    /// λ.
    pub ridge: f64,
}

impl Problem<'_> {
    /// J(W). Summed in the order of rows.
    pub fn loss(&self, w: &[f64], pool: &Pool) -> f64 {
        let d = self.moments.cols;
        let bands = w.len().div_ceil(BAND * d);
        let of_band = |band: usize| {
            let w = &w[band * BAND * d..w.len().min((band + 1) * BAND * d)];
            let products = &self.moments.products[band * BAND * d..][..w.len()];
            let image = self.image(w);
            let terms = w.iter().zip(&image).zip(products);
            terms.map(|((w, hw), b)| w * (0.5 * (hw + self.ridge * w) - b)).sum::<f64>()
        };
        self.moments.constant + pool.map(bands, of_band).into_iter().sum::<f64>()
    }

    /// W H for some rows.
    fn image(&self, w: &[f64]) -> Vec<f64> {
        let (d, rows) = (self.moments.cols, w.len() / self.moments.cols);
        let mut image = vec![0.0; w.len()];
        add_product(&mut image, d, w, (&self.moments.hessian, d), (rows, d, d), 1.0);
        image
    }

    /// Moves `w` `[rows, cols]` to the minimum, or towards it, among matrices that are zero where `kept` is `false`.
    pub fn minimise(&self, w: &mut [f64], kept: &[bool], solver: Solver, pool: &Pool) {
        let d = self.moments.cols;
        let cubes = kept.chunks_exact(d).map(|row| (row.iter().filter(|kept| **kept).count() as f64).powi(3) / 3.0);
        let (steps, exact) = match solver {
            Solver::Auto => (DEFAULT_STEPS, cubes.sum::<f64>() <= MOST_MULTIPLICATIONS),
            Solver::Descent { steps } => (steps, false),
        };
        let rate = 1.0 / (largest_eigenvalue(&self.moments.hessian, d) + self.ridge);
        pool.for_each_chunk(w, BAND * d, |band, w| {
            let kept = &kept[band * BAND * d..][..w.len()];
            let products = &self.moments.products[band * BAND * d..][..w.len()];
            if !(exact && self.solve(w, kept, products)) {
                self.descend(w, kept, products, rate, steps);
            }
        });
    }

    /// The closed form: of the kept weights S of a row, (H_SS + λI) w_S = b_S. Rows that follow one another with the same
    /// weights kept share a decomposition. `false` if some system cannot be solved.
    fn solve(&self, w: &mut [f64], kept: &[bool], products: &[f64]) -> bool {
        let d = self.moments.cols;
        let masks: Vec<&[bool]> = kept.chunks_exact(d).collect();
        let mut solved = vec![0.0; w.len()];
        let mut first = 0;
        for alike in masks.chunk_by(|a, b| a == b) {
            let set: Vec<usize> = (0..d).filter(|&j| alike[0][j]).collect();
            let n = set.len();
            let mut a = vec![0.0; n * n];
            for (a, &i) in a.chunks_exact_mut(n.max(1)).zip(&set) {
                a.iter_mut().zip(&set).for_each(|(a, &j)| *a = self.moments.hessian[i * d + j]);
            }
            let mean = (0..n).map(|i| a[i * n + i]).sum::<f64>() / n.max(1) as f64;
            (0..n).for_each(|i| a[i * n + i] += self.ridge + JITTER * mean);
            let rows = first..first + alike.len();
            let mut b: Vec<f64> = rows.clone().flat_map(|r| set.iter().map(move |&j| products[r * d + j])).collect();
            if !solve(&a, n, &mut b) || b.iter().any(|x| !x.is_finite()) {
                return false;
            }
            for (r, b) in rows.zip(b.chunks_exact(n.max(1))) {
                set.iter().zip(b).for_each(|(&j, &x)| solved[r * d + j] = x);
            }
            first += alike.len();
        }
        w.copy_from_slice(&solved);
        true
    }

    fn descend(&self, w: &mut [f64], kept: &[bool], products: &[f64], rate: f64, steps: usize) {
        if !rate.is_finite() {
            return;
        }
        for _ in 0..steps {
            let image = self.image(w);
            for (((w, hw), b), kept) in w.iter_mut().zip(&image).zip(products).zip(kept) {
                if *kept {
                    *w -= rate * (hw - b + self.ridge * *w);
                }
            }
        }
    }
}

/// What refitting a layer found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Refit {
    /// J of the pruned weights as they were.
    pub before: f64,
    /// J of what is left now: less, or the same if they were left as they were.
    pub after: f64,
    /// Whether the refitted weights were taken.
    pub taken: bool,
}

/// Refits what is left of `pruned` to give the outputs of the original layer; a refit that would be worse is not taken.
pub fn refit(problem: &Problem<'_>, pruned: &mut [f64], solver: Solver, pool: &Pool) -> Refit {
    let before = problem.loss(pruned, pool);
    let kept: Vec<bool> = pruned.iter().map(|w| *w != 0.0).collect();
    let mut fitted = pruned.to_vec();
    problem.minimise(&mut fitted, &kept, solver, pool);
    let after = problem.loss(&fitted, pool);
    // Not a number is worse, too.
    let taken = after < before;
    if taken {
        pruned.copy_from_slice(&fitted);
    }
    Refit { before, after: if taken { after } else { before }, taken }
}
