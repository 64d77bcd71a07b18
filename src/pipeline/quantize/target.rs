//! What a matrix should be stored like so that the model with codes gives what the original gives. With the sums of
//! [`pairs`](crate::calibration::pairs), x being the inputs that the codes before it leave, and x₀ and h₀ the original's:
//!
//! J(V) = 1/2m Σ ‖W x₀ + h₀ − (V x + h)‖² = ½ tr(E H Eᵀ) − tr(E Bᵀ) + c,   E = V − W,   B = W D + R,
//!
//! with H = Σ x xᵀ / m, D = Σ (x₀ − x) xᵀ / m and R = Σ (h₀ − h) xᵀ / m. Where the stream's error counts, B is summed as it is, token
//! by token, else made of W and D. Without the constraint of codes the minimum is V = W + B H⁻¹. H and B are estimates, so that
//! only a share α of that step is taken: the one with the least J on tokens that were held back.

use crate::calibration::{Pair, Sums};
use crate::quantizer::least_squares::{Metric, dot};
use crate::runtime::kernels::gemm::{View, times_on};
use crate::threads::Pool;

/// The most rows that a matrix is judged by on tokens that were held back.
const JUDGED: usize = 1024;

/// Means over tokens.
struct Moments {
    /// D `[cols, cols]`.
    drift: Option<Vec<f32>>,
    /// B `[rows, cols]`.
    lacking: Option<Vec<f32>>,
}

/// What is known of an input that matrices share.
pub struct Known {
    cols: usize,
    /// H of the tokens that are learned from.
    pub metric: Metric,
    /// How many these are.
    pub tokens: u64,
    learned: Moments,
    /// H of the tokens that are held back, and the rest.
    held: Option<(Vec<f32>, Moments)>,
}

/// What a matrix is stored like.
pub struct Target {
    /// W + α B H⁻¹.
    pub weights: Vec<f32>,
    /// α.
    pub share: f64,
}

/// How good a stored matrix is on tokens that were held back: by some of its rows, evenly spaced.
pub struct Judge<'a> {
    hessian: &'a [f32],
    cols: usize,
    /// From one of these rows to the next.
    step: usize,
    /// W of these rows.
    weights: Vec<f32>,
    /// B of these rows, zero if empty.
    products: Vec<f32>,
}

/// To f32.
pub fn narrow(numbers: Vec<f64>) -> Vec<f32> {
    numbers.into_iter().map(|x| x as f32).collect()
}

impl Moments {
    /// H, and the rest.
    fn of(sums: Sums, pool: &Pool) -> Option<(Vec<f64>, Self)> {
        let rows = sums.inputs.rows;
        let [drift, lacking] = [sums.drift, sums.lacking].map(|sums| sums.map(|sums| narrow(sums.mean(rows, pool))));
        Some((sums.inputs.hessian(pool)?, Self { drift, lacking }))
    }

    /// B of some rows of a matrix, W being these; `None` if nothing is known but H.
    fn products(&self, w: &[f32], rows: impl Iterator<Item = usize>, cols: usize, pool: &Pool) -> Option<Vec<f32>> {
        match &self.lacking {
            Some(lacking) => Some(picked(lacking, rows, cols)),
            None => Some(product(w, self.drift.as_ref()?, cols, pool)),
        }
    }
}

/// Some rows of a matrix.
fn picked(matrix: &[f32], rows: impl Iterator<Item = usize>, cols: usize) -> Vec<f32> {
    rows.flat_map(|row| &matrix[row * cols..(row + 1) * cols]).copied().collect()
}

/// The share of the mean of H's diagonal that is added to it: the fewer tokens for each input, the more.
fn damping(tokens: u64, cols: usize) -> f64 {
    (5.0 * cols as f64 / tokens.max(1) as f64).clamp(0.01, 0.25)
}

impl Known {
    /// From sums; `None` if they say nothing. `share` of the mean of H's diagonal is added to it, or as much as
    /// the number of tokens asks for.
    pub fn new(pair: Pair, share: Option<f64>, pool: &Pool) -> Option<Self> {
        let (cols, tokens) = (pair.learned.inputs.cols, pair.learned.inputs.rows);
        let (hessian, learned) = Moments::of(pair.learned, pool)?;
        let share = share.unwrap_or_else(|| damping(tokens, cols));
        let metric = Metric::new(hessian, cols, share, pool)?;
        let held = Moments::of(pair.held, pool).map(|(hessian, moments)| (narrow(hessian), moments));
        Some(Self { cols, metric, tokens, learned, held })
    }

    /// By what errors are measured where no input is known but the outputs `[cols, cols]` of what is looked up.
    pub fn of_outputs(outputs: Vec<f64>, cols: usize, tokens: u64, pool: &Pool) -> Option<Self> {
        const DAMPING: f64 = 0.01;
        let metric = Metric::new(outputs, cols, DAMPING, pool)?;
        Some(Self { cols, metric, tokens, learned: Moments { drift: None, lacking: None }, held: None })
    }

    /// What W `[rows, cols]` is stored like.
    pub fn target(&self, w: &[f32], judge: Option<&Judge<'_>>, pool: &Pool) -> Target {
        let mut target = Target { weights: w.to_vec(), share: 0.0 };
        let Some(products) = self.learned.products(w, 0..w.len() / self.cols, self.cols, pool) else { return target };
        let step = self.metric.solve(&products, pool);
        // Without tokens to judge by, a cautious half.
        target.share = judge.map_or(0.5, |judge| judge.share(&step, pool));
        target.weights.iter_mut().zip(&step).for_each(|(w, step)| *w += target.share as f32 * step);
        target
    }

    /// What judges stored forms of W `[rows, cols]`, if tokens were held back.
    pub fn judge(&self, w: &[f32], pool: &Pool) -> Option<Judge<'_>> {
        let (hessian, moments) = self.held.as_ref()?;
        let (cols, rows) = (self.cols, w.len() / self.cols);
        let step = rows.div_ceil(JUDGED).max(1);
        let weights = picked(w, (0..rows).step_by(step), cols);
        let products = moments.products(&weights, (0..rows).step_by(step), cols, pool).unwrap_or_default();
        Some(Judge { hessian, cols, step, weights, products })
    }
}

impl Judge<'_> {
    /// The rows of a matrix that it is judged by.
    fn picked(&self, matrix: &[f32]) -> Vec<f32> {
        picked(matrix, (0..matrix.len() / self.cols).step_by(self.step), self.cols)
    }

    /// The share of a step with the least J, from 0 to 1.
    fn share(&self, step: &[f32], pool: &Pool) -> f64 {
        let step = self.picked(step);
        let share = dot(&self.products, &step) / dot(&step, &product(&step, self.hessian, self.cols, pool));
        if share.is_finite() { share.clamp(0.0, 1.0) } else { 0.0 }
    }

    /// J of Q in W's place, but for the constant c, which may be more than all the rest.
    pub fn loss(&self, q: &[f32], pool: &Pool) -> f64 {
        let mut errors = self.picked(q);
        errors.iter_mut().zip(&self.weights).for_each(|(q, w)| *q -= w);
        let square = dot(&errors, &product(&errors, self.hessian, self.cols, pool));
        0.5 * square - if self.products.is_empty() { 0.0 } else { dot(&errors, &self.products) }
    }
}

/// a · b: a is `[rows, cols]`, b `[cols, cols]`.
pub fn product(a: &[f32], b: &[f32], cols: usize, pool: &Pool) -> Vec<f32> {
    let mut out = vec![0f32; a.len()];
    times_on(View::new(a, a.len() / cols, cols, cols), View::new(b, cols, cols, cols), &mut out, pool);
    out
}
