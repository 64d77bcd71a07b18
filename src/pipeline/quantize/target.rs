//! What a matrix should be stored like so that the model with codes gives what the original gives. With the sums of
//! [`pairs`](crate::calibration::pairs), x being the inputs that the codes before it leave, and x₀ and h₀ the original's:
//!
//! J(V) = 1/2m Σ ‖W x₀ + h₀ − (V x + h)‖² = ½ tr(E H Eᵀ) − tr(E Bᵀ) + c,   E = V − W,   B = W D + R,
//!
//! with H = Σ x xᵀ / m, D = Σ (x₀ − x) xᵀ / m and R = Σ (h₀ − h) xᵀ / m. Without the constraint of codes the minimum is
//! V = W + B H⁻¹. H and B are estimates, so that only a share α of that step is taken: the one with the least J on tokens that
//! were held back.

use crate::calibration::{Pair, Sums};
use crate::quantizer::least_squares::{Metric, dot};
use crate::runtime::kernels::gemm::{View, times};
use crate::runtime::kernels::tiles::Tile;
use crate::threads::Pool;

/// Rows of a band; a fixed number, so that products of bands do not depend on the threads.
const BAND: usize = 64;

/// Means over tokens.
struct Moments {
    /// D `[cols, cols]`.
    drift: Option<Vec<f32>>,
    /// R `[rows, cols]`.
    residual: Option<Vec<f32>>,
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

/// How good a stored matrix is on tokens that were held back.
pub struct Judge<'a> {
    hessian: &'a [f32],
    cols: usize,
    /// B `[rows, cols]`, zero if empty.
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
        let [drift, residual] = [sums.drift, sums.residual].map(|sums| sums.map(|sums| narrow(sums.mean(rows, pool))));
        Some((sums.inputs.hessian(pool)?, Self { drift, residual }))
    }

    /// B of a matrix; `None` if nothing is known but H.
    fn products(&self, w: &[f32], cols: usize, pool: &Pool) -> Option<Vec<f32>> {
        let mut products = product(w, self.drift.as_ref()?, cols, pool);
        if let Some(residual) = &self.residual {
            products.iter_mut().zip(residual).for_each(|(b, r)| *b += r);
        }
        Some(products)
    }
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
        Some(Self { cols, metric, tokens, learned: Moments { drift: None, residual: None }, held: None })
    }

    /// What W `[rows, cols]` is stored like.
    pub fn target(&self, w: &[f32], pool: &Pool) -> Target {
        let mut target = Target { weights: w.to_vec(), share: 0.0 };
        let Some(products) = self.learned.products(w, self.cols, pool) else { return target };
        let step = self.metric.solve(&products, pool);
        // Without tokens to judge by, a cautious half.
        target.share = self.judge(w, pool).map_or(0.5, |judge| judge.share(&step, pool));
        target.weights.iter_mut().zip(&step).for_each(|(w, step)| *w += target.share as f32 * step);
        target
    }

    /// What judges stored forms of W `[rows, cols]`, if tokens were held back.
    pub fn judge(&self, w: &[f32], pool: &Pool) -> Option<Judge<'_>> {
        let (hessian, moments) = self.held.as_ref()?;
        Some(Judge { hessian, cols: self.cols, products: moments.products(w, self.cols, pool).unwrap_or_default() })
    }
}

impl Judge<'_> {
    /// The share of a step with the least J, from 0 to 1.
    fn share(&self, step: &[f32], pool: &Pool) -> f64 {
        let share = dot(&self.products, step) / dot(step, &product(step, self.hessian, self.cols, pool));
        if share.is_finite() { share.clamp(0.0, 1.0) } else { 0.0 }
    }

    /// J of Q in W's place, but for the constant c, which may be more than all the rest.
    pub fn loss(&self, q: &[f32], w: &[f32], pool: &Pool) -> f64 {
        let errors: Vec<f32> = q.iter().zip(w).map(|(q, w)| q - w).collect();
        let square = dot(&errors, &product(&errors, self.hessian, self.cols, pool));
        0.5 * square - if self.products.is_empty() { 0.0 } else { dot(&errors, &self.products) }
    }
}

/// a · b: a is `[rows, cols]`, b `[cols, cols]`.
pub fn product(a: &[f32], b: &[f32], cols: usize, pool: &Pool) -> Vec<f32> {
    let mut out = vec![0f32; a.len()];
    pool.for_each_chunk(&mut out, BAND * cols, |band, out| {
        let rows = out.len() / cols;
        let left = View::new(&a[band * BAND * cols..], rows, cols, cols);
        times(left, View::new(b, cols, cols, cols), &mut Tile::whole(out, cols));
    });
    out
}
