//! Fits a linear layer to data by regularised least squares, with the code that refits pruned layers: load, split,
//! initialise, minimise, evaluate.

mod data;
mod error;

use formats::Dtype;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use rand_distr::{Distribution, StandardNormal};
use serde::Serialize;

use crate::encoding::plain;
use crate::job::Job;
use crate::pruner::least_squares::{Moments, Problem};
use crate::pruner::{Fraction, Solver};

pub use data::Data;
pub use error::{Error, Result};

/// How a layer is fitted.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Options {
    /// λ.
    pub ridge: f64,
    /// The share of the rows that is fitted to; on the others the layer is evaluated.
    pub split: Fraction,
    /// Which rows these are, and where descent begins.
    pub seed: u64,
    /// How the minimum is looked for.
    pub solver: Solver,
}

/// A fitted layer.
#[derive(Debug, Clone)]
pub struct Fitted {
    /// W `[targets, features]`.
    pub weights: Vec<f32>,
    /// J on the rows that were fitted to, at the beginning and at the end.
    pub loss: Loss,
    /// The rows that were fitted to.
    pub train: Data,
    /// The others.
    pub held_out: Data,
}

/// J = 1/2m Σ ‖y − W x‖² + λ/2 ‖W‖².
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Loss {
    /// Of small random weights.
    pub before: f64,
    /// Of the fitted ones.
    pub after: f64,
}

/// How well a layer predicts.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Evaluation {
    /// Rows.
    pub rows: usize,
    /// Mean of (y − ŷ)² over all targets of all rows.
    pub mse: f64,
    /// 1 − Σ (y − ŷ)² / Σ (y − ȳ)²; `None` if all targets are alike.
    pub r2: Option<f64>,
}

impl Fitted {
    /// The weights as bytes of a safetensors file.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; 4 * self.weights.len()];
        plain::encode(&self.weights, Dtype::F32, &mut bytes);
        bytes
    }
}

/// Fits a layer.
///
/// # Errors
/// No row to fit to, more features than the memory budget has room for, a fit that is not finite, an interruption.
pub fn fit(data: &Data, options: &Options, job: &Job) -> Result<Fitted> {
    let (d, k) = (data.features, data.targets);
    let needed = 8 * (d as u64) * (d as u64) * 3;
    if needed > job.memory {
        return Err(Error::Memory { features: d, needed, memory: job.memory });
    }
    let mut rng = ChaCha8Rng::seed_from_u64(options.seed);
    let (train, held_out) = split(data, options.split, &mut rng);
    if train.rows() == 0 {
        return Err(Error::NothingToFit { rows: data.rows() });
    }
    job.cancel.check()?;
    let moments = Moments::of(&train.x, &train.y, d, k);
    let problem = Problem { moments: &moments, ridge: options.ridge };
    let mut w: Vec<f64> = StandardNormal.sample_iter(&mut rng).take(d * k).map(|x: f64| 0.01 * x).collect();
    let before = problem.loss(&w, &job.pool);
    problem.minimise(&mut w, &vec![true; d * k], options.solver, &job.pool);
    job.cancel.check()?;
    let weights: Vec<f32> = w.iter().map(|w| *w as f32).collect();
    if weights.iter().any(|w| !w.is_finite()) {
        return Err(Error::NotFinite);
    }
    let after = problem.loss(&w, &job.pool);
    Ok(Fitted { weights, loss: Loss { before, after }, train, held_out })
}

/// Draws the rows that are fitted to. Both parts keep the order of the rows.
fn split(data: &Data, share: Fraction, rng: &mut ChaCha8Rng) -> (Data, Data) {
    let rows = data.rows();
    let mut order: Vec<usize> = (0..rows).collect();
    // Fisher and Yates.
    for i in (1..rows).rev() {
        order.swap(i, (rng.next_u64() % (i as u64 + 1)) as usize);
    }
    let (train, held_out) = order.split_at_mut(share.of(rows as u64) as usize);
    train.sort_unstable();
    held_out.sort_unstable();
    (data.some(train), data.some(held_out))
}

/// Compares predictions `[rows, targets]` with the data's targets; `None` if there is no row.
pub fn evaluate(data: &Data, predictions: &[f32]) -> Option<Evaluation> {
    let rows = data.rows();
    if rows == 0 {
        return None;
    }
    let errors = data.y.iter().zip(predictions).map(|(y, p)| (y - f64::from(*p)).powi(2));
    let error: f64 = errors.sum();
    let mut spread = 0.0;
    for target in 0..data.targets {
        let of = || data.y.iter().skip(target).step_by(data.targets);
        let mean = of().sum::<f64>() / rows as f64;
        spread += of().map(|y| (y - mean).powi(2)).sum::<f64>();
    }
    Some(Evaluation { rows, mse: error / data.y.len() as f64, r2: (spread > 0.0).then(|| 1.0 - error / spread) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Data {
        let x = vec![1., 2., 2., 3., 3., 4., 4., 5.];
        Data { x, y: vec![1., 2., 3., 4.], features: 2, targets: 1 }
    }

    fn options(ridge: f64, solver: Solver) -> Options {
        Options { ridge, split: "0.75".parse().unwrap(), seed: 3, solver }
    }

    #[test]
    fn the_example_predicts_five_in_closed_form_and_by_descent() {
        let job = Job::new(1);
        for solver in [Solver::Auto, Solver::Descent { steps: 20_000 }] {
            let fitted = fit(&example(), &options(0.0, solver), &job).unwrap();
            assert_eq!((fitted.train.rows(), fitted.held_out.rows()), (3, 1));
            let prediction = 5.0 * fitted.weights[0] + 6.0 * fitted.weights[1];
            assert!((prediction - 5.0).abs() < 1e-3, "{solver:?}: {prediction}");
            assert!(fitted.loss.after < 1e-9 && fitted.loss.before > 0.1);
        }
    }

    #[test]
    fn descent_never_gets_worse_and_a_ridge_makes_weights_smaller() {
        let job = Job::new(1);
        let after = |steps| fit(&example(), &options(0.1, Solver::Descent { steps }), &job).unwrap().loss.after;
        let losses: Vec<f64> = [1, 2, 3, 5, 10, 50, 1000].map(after).to_vec();
        assert!(losses.is_sorted_by(|a, b| a > b), "{losses:?}");
        let size = |ridge| {
            let weights = fit(&example(), &options(ridge, Solver::Auto), &job).unwrap().weights;
            weights.iter().map(|w| w * w).sum::<f32>()
        };
        assert!(size(1.0) < size(0.1) && size(0.1) < size(0.0));
    }

    #[test]
    fn more_features_than_rows_still_have_a_fit() {
        let x: Vec<f64> = (0..20).map(|i| f64::from((i * 7919) % 13) - 6.0).collect();
        let data = Data { x, y: vec![1.0, -2.0], features: 10, targets: 1 };
        let all = Options { split: "1".parse().unwrap(), ..options(0.0, Solver::Auto) };
        let fitted = fit(&data, &all, &Job::new(1)).unwrap();
        assert!(fitted.loss.after < 1e-6, "{:?}", fitted.loss);
        assert!(evaluate(&fitted.held_out, &[]).is_none());
    }

    #[test]
    fn the_seed_decides_which_rows_are_held_out() {
        let x: Vec<f64> = (0..100).map(f64::from).collect();
        let data = Data { y: x.clone(), x, features: 1, targets: 1 };
        let held = |seed| split(&data, "0.75".parse().unwrap(), &mut ChaCha8Rng::seed_from_u64(seed)).1.y;
        assert_eq!(held(1), held(1));
        assert_ne!(held(1), held(2));
        assert_eq!(held(1).len(), 25);
    }

    #[test]
    fn what_cannot_be_fitted_is_refused() {
        let job = Job { memory: 90, ..Job::new(1) };
        assert!(matches!(fit(&example(), &options(0.0, Solver::Auto), &job), Err(Error::Memory { features: 2, .. })));
        let none = Options { split: "0.1".parse().unwrap(), ..options(0.0, Solver::Auto) };
        assert!(matches!(fit(&example(), &none, &Job::new(1)), Err(Error::NothingToFit { rows: 4 })));
        let evaluation = evaluate(&example(), &[1.0, 2.0, 3.0, 5.0]).unwrap();
        assert_eq!((evaluation.rows, evaluation.mse, evaluation.r2), (4, 0.25, Some(0.8)));
    }
}
