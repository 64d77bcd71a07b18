//! Against plain numpy in float64: `fixtures/pruning/make.py`.

use std::path::Path;

use safetensors::SafeTensors;

use super::least_squares::{Moments, Problem, Solver, refit};
use super::{Method, Scope, Sparsity, mask, sparsegpt};
use crate::calibration::{Inputs, Wanted};
use crate::threads::Pool;

/// The fixture's layer: outputs 12, inputs 160, tokens 220.
const COLS: usize = 160;

struct Layer(Vec<u8>);

impl Layer {
    fn read() -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/pruning/layer.safetensors");
        Self(std::fs::read(path).unwrap())
    }

    fn get(&self, name: &str) -> Vec<f64> {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        let tensor = file.tensor(name).unwrap();
        match tensor.dtype() {
            safetensors::Dtype::F32 => {
                tensor.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b).into()).collect()
            }
            _ => tensor.data().as_chunks::<8>().0.iter().map(|b| f64::from_le_bytes(*b)).collect(),
        }
    }

    fn inputs(&self) -> Inputs {
        let x: Vec<f32> = self.get("x").into_iter().map(|x| x as f32).collect();
        let mut inputs = Inputs::new(COLS, Wanted::Products);
        x.chunks(70 * COLS).for_each(|x| inputs.add(x, &Pool::new(2)));
        inputs
    }
}

/// ½ tr((w − v) H (w − v)ᵀ).
fn error(w: &[f64], v: &[f64], h: &[f64]) -> f64 {
    let mut sum = 0.0;
    for (w, v) in w.chunks(COLS).zip(v.chunks(COLS)) {
        let e: Vec<f64> = w.iter().zip(v).map(|(w, v)| w - v).collect();
        let dot = |row: &[f64]| row.iter().zip(&e).map(|(h, e)| h * e).sum::<f64>();
        sum += h.chunks(COLS).zip(&e).map(|(row, e)| e * dot(row)).sum::<f64>();
    }
    0.5 * sum
}

fn zeros(w: &[f64]) -> Vec<usize> {
    (0..w.len()).filter(|&i| w[i] == 0.0).collect()
}

#[test]
fn wanda_removes_what_the_plain_reference_removes() {
    let layer = Layer::read();
    let norms = layer.inputs().norms();
    for (pattern, name) in [("0.5", "wanda-0.5"), ("2:4", "wanda-2-4")] {
        let mut w = layer.get("w");
        mask::rows(&mut w, COLS, pattern.parse().unwrap(), Some(&norms));
        assert_eq!(w, layer.get(name), "{name}");
    }
}

#[test]
fn sparsegpt_is_the_reference_in_float64() {
    let layer = Layer::read();
    let h = layer.inputs().hessian(&Pool::new(1)).unwrap();
    let factor = sparsegpt::Factor::new(&h, COLS).unwrap();
    let original = layer.get("w");
    for (pattern, scope, name) in [
        ("0.5", Scope::Row, "sparsegpt-0.5"),
        ("0.5", Scope::Tensor, "sparsegpt-0.5-tensor"),
        ("2:4", Scope::Row, "sparsegpt-2-4"),
    ] {
        let sparsity = Sparsity::new(pattern.parse().unwrap(), Method::SparseGpt, scope).unwrap();
        let pruned = |threads| {
            let mut w = original.clone();
            sparsegpt::prune(&mut w, &factor, &sparsity, &Pool::new(threads));
            w
        };
        let ours = pruned(1);
        assert_eq!(ours, pruned(2), "threads change nothing");
        let reference = layer.get(name);
        let (found, expected) = (error(&original, &ours, &h), error(&original, &reference, &h));
        assert!((found / expected - 1.0).abs() < 0.01, "{name}: {found} {expected}");
        // Rounding of H may turn a choice between two that are as good.
        let (found, expected) = (zeros(&ours), zeros(&reference));
        let common = found.iter().filter(|i| expected.binary_search(i).is_ok()).count();
        assert!(found.len() == expected.len() && common * 1000 >= found.len() * 995, "{name}: {common}");
    }
    assert!(sparsegpt::Factor::new(&vec![0.0; COLS * COLS], COLS).is_none());
}

#[test]
fn refitting_finds_the_minimum_over_the_kept_weights_and_descent_goes_there() {
    let layer = Layer::read();
    let h = layer.inputs().hessian(&Pool::new(1)).unwrap();
    let original = layer.get("w");
    let pool = Pool::new(2);
    let moments = Moments::of_layer(&original, h.clone(), COLS, &pool);
    let mut pruned = original.clone();
    mask::rows(&mut pruned, COLS, "0.5".parse().unwrap(), None);
    for (ridge, name) in [(0.0, "refit-0.5"), (0.1, "refit-0.5-ridge-0.1")] {
        let problem = Problem { moments: &moments, ridge };
        let norm = |w: &[f64]| 0.5 * ridge * w.iter().map(|w| w * w).sum::<f64>();
        let mut fitted = pruned.clone();
        let found = refit(&problem, &mut fitted, Solver::Auto, &pool);
        assert!((found.before / (error(&original, &pruned, &h) + norm(&pruned)) - 1.0).abs() < 1e-9);
        let reference = layer.get(name);
        let expected = error(&original, &reference, &h) + norm(&reference);
        assert!(found.taken && (found.after / expected - 1.0).abs() < 1e-6, "{name}: {found:?} {expected}");
        assert_eq!(zeros(&fitted), zeros(&pruned));
        let mut last = found.before;
        for steps in [1, 10, 100, 1000] {
            let mut descended = pruned.clone();
            let found = refit(&problem, &mut descended, Solver::Descent { steps }, &pool);
            assert!(found.after < last && found.after >= expected * (1.0 - 1e-6), "{steps}: {found:?}");
            assert_eq!(zeros(&descended), zeros(&pruned));
            last = found.after;
        }
        assert!(last < 1.05 * expected, "{last} {expected}");
    }
}

#[test]
fn a_layer_that_would_get_worse_is_left_as_it_was() {
    let layer = Layer::read();
    let h = layer.inputs().hessian(&Pool::new(1)).unwrap();
    let mut w = layer.get("w");
    let pool = Pool::new(1);
    let moments = Moments::of_layer(&w, h, COLS, &pool);
    let problem = Problem { moments: &moments, ridge: 0.0 };
    // Nothing was removed: there is no better layer.
    let before = w.clone();
    let found = refit(&problem, &mut w, Solver::Descent { steps: 3 }, &pool);
    assert!(!found.taken && found.before == found.after || found.after < found.before);
    assert!(w.iter().zip(&before).all(|(a, b)| (a - b).abs() < 1e-9));
}
