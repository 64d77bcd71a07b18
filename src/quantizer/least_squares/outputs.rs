//! Rows that are quantized together, because errors of output features cost something together.

use super::grid::{Grid, Row};
use super::loss::{errors, image, of_errors, of_rows_found};
use super::rows::{Rows, SWEEPS, each_band};
use super::{BAND, Problem};
use crate::runtime::kernels::gemm::{View, times};
use crate::runtime::kernels::tiles::Tile;
use crate::threads::Pool;

/// What is added of the identity to a G of mean diagonal 1: how little is known of output features that G finds worthless.
const SHARE_OF_IDENTITY: f64 = 0.05;

/// Bands that are improved at the same time, whatever the number of threads. Two steps that each lower a convex quadratic as
/// far as they can alone do not raise it together; of more that is not sure.
const TOGETHER: usize = 2;

/// G with a mean diagonal of 1, and a little of the identity; `None` if it says nothing.
///
/// # Panics
/// If it is not `[rows, rows]`.
pub fn normalised(outputs: &[f64], rows: usize) -> Option<Vec<f64>> {
    assert_eq!(outputs.len(), rows * rows, "a number for each pair of output features");
    let mean = (0..rows).map(|i| outputs[i * rows + i]).sum::<f64>() / rows.max(1) as f64;
    if !(mean > 0.0 && outputs.iter().all(|x| x.is_finite())) {
        return None;
    }
    let mut normalised: Vec<f64> = outputs.iter().map(|x| x / mean).collect();
    (0..rows).for_each(|i| normalised[i * rows + i] += SHARE_OF_IDENTITY);
    Some(normalised)
}

/// The least loss that is found: rows by themselves, then together.
pub fn best(grid: &Grid, problem: &Problem<'_>, pool: &Pool) -> Vec<Row> {
    let Problem { target, rows: count, cols, .. } = *problem;
    let outputs: Vec<f32> = problem.outputs.unwrap_or_default().iter().map(|&g| g as f32).collect();
    let mut best = each_band(grid, problem, pool, |rows| rows.feedback());
    let mut least = of_rows_found(grid, problem, &best, pool);
    let mut rows = best.clone();
    let mut all = errors(grid, &rows, target);
    for sweep in 0..SWEEPS {
        for first in (0..count).step_by(TOGETHER * BAND) {
            let starts: Vec<usize> = (first..count.min(first + TOGETHER * BAND)).step_by(BAND).collect();
            let moved = pool.map(starts.len(), |i| {
                let own = starts[i]..count.min(starts[i] + BAND);
                let mut mixed = vec![0.0; own.len() * cols];
                let left = View::new(&outputs[own.start * count..own.end * count], own.len(), count, count);
                times(left, View::new(&all, count, cols, cols), &mut Tile::whole(&mut mixed, cols));
                let mut p = image(&mixed, problem.metric.hessian(), cols);
                let among: Vec<f32> = own.clone().flat_map(|r| &outputs[r * count..][own.clone()]).copied().collect();
                let mut band = rows[own.clone()].to_vec();
                let target = &target[own.start * cols..own.end * cols];
                Rows { grid, problem, target }.descend(&mut band, &mut p, Some(&among), sweep == 0);
                let errors = errors(grid, &band, target);
                (band, errors)
            });
            for (start, (band, errors)) in starts.into_iter().zip(moved) {
                all[start * cols..][..errors.len()].copy_from_slice(&errors);
                rows[start..start + band.len()].clone_from_slice(&band);
            }
        }
        let loss = of_errors(problem, &all, pool);
        if loss < least || least.is_nan() {
            (least, best) = (loss, rows.clone());
        } else {
            break;
        }
    }
    for search in [true, false] {
        let other = each_band(grid, problem, pool, |rows| rows.encoded(search));
        let loss = of_rows_found(grid, problem, &other, pool);
        if loss <= least || (least.is_nan() && !loss.is_nan()) {
            (least, best) = (loss, other);
        }
    }
    best
}
