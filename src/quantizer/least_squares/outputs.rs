//! Rows that are quantized together, because errors of output features cost something together.

use std::ops::Range;

use super::grid::{Grid, Row};
use super::loss::{dot, errors, image_on, of_rows_found};
use super::rows::{Rows, each_band};
use super::{Effort, Problem};
use crate::runtime::kernels::gemm::{View, times_on};
use crate::threads::Pool;

/// What is added of the identity to a G of mean diagonal 1: how little is known of output features that G finds worthless.
const SHARE_OF_IDENTITY: f64 = 0.05;

/// Rows that are improved by one thread, each after the other.
const BAND: usize = 128;

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

/// The rows of the least J that is found, and that: rows by themselves, then together.
pub fn best(grid: &Grid, problem: &Problem<'_>, effort: Effort, pool: &Pool) -> (Vec<Row>, f64) {
    let mut best = each_band(grid, problem, pool, |rows| rows.feedback());
    let mut together = Together::new(grid, problem, best.clone(), pool);
    let mut least = f64::NAN;
    for sweep in 0..effort.sweeps {
        let [before, after] = together.sweep(pool);
        if sweep == 0 {
            least = before;
        }
        if after < least || least.is_nan() {
            (least, best) = (after, together.rows.clone());
        } else {
            break;
        }
    }
    if effort.sweeps == 0 {
        least = of_rows_found(grid, problem, &best, pool);
    }
    for search in [true, false].into_iter().filter(|_| effort.compared) {
        let other = each_band(grid, problem, pool, |rows| rows.encoded(search));
        let loss = of_rows_found(grid, problem, &other, pool);
        if loss <= least || (least.is_nan() && !loss.is_nan()) {
            (least, best) = (loss, other);
        }
    }
    (best, least)
}

/// Rows that are improved together. P = G E (H + δI) of some rows is the product of their rows of G with E (H + δI), which is kept:
/// so a sweep takes, for each row, its products with all rows and one product with H.
struct Together<'a> {
    grid: &'a Grid,
    problem: &'a Problem<'a>,
    /// G `[rows, rows]`.
    outputs: Vec<f32>,
    rows: Vec<Row>,
    /// E (H + δI) `[rows, cols]`.
    images: Vec<f32>,
}

impl<'a> Together<'a> {
    fn new(grid: &'a Grid, problem: &'a Problem<'a>, rows: Vec<Row>, pool: &Pool) -> Self {
        let Problem { target, cols, metric, .. } = *problem;
        let outputs = problem.outputs.unwrap_or_default().iter().map(|&g| g as f32).collect();
        let mut images = vec![0.0; target.len()];
        for first in (0..rows.len()).step_by(TOGETHER * BAND) {
            let own = first..rows.len().min(first + TOGETHER * BAND);
            let numbers = own.start * cols..own.end * cols;
            let errors = errors(grid, &rows[own.clone()], &target[numbers.clone()]);
            image_on(&errors, metric.hessian(), cols, &mut images[numbers], pool);
        }
        Self { grid, problem, outputs, rows, images }
    }

    /// Goes once over all rows. J before and after.
    fn sweep(&mut self, pool: &Pool) -> [f64; 2] {
        let Problem { target, rows: count, cols, metric, .. } = *self.problem;
        let (mut before, mut change) = (0.0, 0.0);
        for first in (0..count).step_by(TOGETHER * BAND) {
            let own = first..count.min(first + TOGETHER * BAND);
            let numbers = own.start * cols..own.end * cols;
            let old = errors(self.grid, &self.rows[own.clone()], &target[numbers.clone()]);
            let mut p = vec![0.0; old.len()];
            let mut part = vec![0.0; old.len()];
            // Rows that are still to come are as they were when the sweep began: of each pair of rows J is seen once.
            for (others, share) in [(own.end..count, 1.0), (own.clone(), 0.5), (0..own.start, 0.0)] {
                self.mix(&own, &others, &mut part, pool);
                if share > 0.0 {
                    before += share * dot(&old, &part);
                }
                p.iter_mut().zip(&part).for_each(|(p, part)| *p += part);
            }
            let bands: Vec<_> = (own.start..own.end).step_by(BAND).map(|at| at..own.end.min(at + BAND)).collect();
            let improved = pool.map(bands.len(), |i| {
                let own = bands[i].clone();
                let among: Vec<f32> = own.clone().flat_map(|r| &self.row_of_outputs(r)[own.clone()]).copied().collect();
                let mut band = self.rows[own.clone()].to_vec();
                let mut p = p[(own.start - first) * cols..(own.end - first) * cols].to_vec();
                let target = &target[own.start * cols..own.end * cols];
                Rows { grid: self.grid, problem: self.problem, target }.descend(&mut band, &mut p, Some(&among));
                band
            });
            self.rows.splice(own.clone(), improved.into_iter().flatten());
            let mut moved = errors(self.grid, &self.rows[own.clone()], &target[numbers.clone()]);
            moved.iter_mut().zip(&old).for_each(|(new, old)| *new -= old);
            image_on(&moved, metric.hessian(), cols, &mut part, pool);
            self.images[numbers].iter_mut().zip(&part).for_each(|(image, moved)| *image += moved);
            change += dot(&moved, &p);
            let among: Vec<f32> = own.clone().flat_map(|r| &self.row_of_outputs(r)[own.clone()]).copied().collect();
            let (among, images) =
                (View::new(&among, own.len(), own.len(), own.len()), View::new(&part, own.len(), cols, cols));
            times_on(among, images, &mut p, pool);
            change += 0.5 * dot(&moved, &p);
        }
        [before, before + change]
    }

    fn row_of_outputs(&self, r: usize) -> &[f32] {
        let count = self.rows.len();
        &self.outputs[r * count..(r + 1) * count]
    }

    /// What `others` contribute to P of the rows `own`.
    fn mix(&self, own: &Range<usize>, others: &Range<usize>, out: &mut [f32], pool: &Pool) {
        let (count, cols) = (self.rows.len(), self.problem.cols);
        let outputs = &self.outputs[own.start * count + others.start..];
        let images = &self.images[others.start * cols..];
        let images = View::new(images, others.len(), cols, cols);
        times_on(View::new(outputs, own.len(), others.len(), count), images, out, pool);
    }
}
