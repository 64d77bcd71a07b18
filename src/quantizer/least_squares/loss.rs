//! J of what is stored.

use std::ops::Range;

use super::grid::{Grid, Row};
use super::outputs::normalised;
use super::{BAND, Form, Problem};
use crate::runtime::kernels::gemm::{View, times, times_on};
use crate::runtime::kernels::tiles::Tile;
use crate::threads::Pool;

/// J of parts as [`Quantizer::encode`](crate::quantizer::Quantizer::encode) fills them, whatever found them.
///
/// # Panics
/// If the parts are not those of the problem's matrix in this form.
pub fn loss(form: Form, problem: &Problem<'_>, parts: &[Vec<u8>], pool: &Pool) -> f64 {
    let outputs = problem.outputs.and_then(|outputs| normalised(outputs, problem.rows));
    let problem = Problem { outputs: outputs.as_deref(), ..*problem };
    let grid = Grid::new(form, problem.dtype, problem.cols);
    let rows = pool.map(problem.rows, |r| {
        let sizes = grid.row_bytes();
        let bytes: Vec<&[u8]> = sizes.iter().zip(parts).map(|(&n, part)| &part[r * n..(r + 1) * n]).collect();
        grid.read(&bytes)
    });
    of_rows_found(&grid, &problem, &rows, pool)
}

/// J of rows as they are stored.
pub fn of_rows_found(grid: &Grid, problem: &Problem<'_>, rows: &[Row], pool: &Pool) -> f64 {
    let cols = problem.cols;
    let mut all = vec![0.0; rows.len() * cols];
    pool.for_each_chunk(&mut all, BAND * cols, |band, out| {
        let first = band * BAND;
        let count = out.len() / cols;
        let target = &problem.target[first * cols..][..out.len()];
        out.copy_from_slice(&errors(grid, &rows[first..first + count], target));
    });
    of_errors(problem, &all, pool)
}

/// E = W − Q of some rows.
pub fn errors(grid: &Grid, rows: &[Row], target: &[f32]) -> Vec<f32> {
    let mut errors = vec![0.0; target.len()];
    for ((errors, target), row) in errors.chunks_exact_mut(grid.cols()).zip(target.chunks_exact(grid.cols())).zip(rows)
    {
        grid.values(row, errors);
        errors.iter_mut().zip(target).for_each(|(error, target)| *error = target - *error);
    }
    errors
}

/// J of the errors E. The terms of a row are summed in their order, rows in theirs.
pub fn of_errors(problem: &Problem<'_>, errors: &[f32], pool: &Pool) -> f64 {
    match problem.outputs {
        None => of_rows(problem, errors, pool).into_iter().sum(),
        Some(outputs) => {
            const BAND: usize = 256;
            let Problem { rows, cols, metric, .. } = *problem;
            let mut images = vec![0.0; errors.len()];
            image_on(errors, metric.hessian(), cols, &mut images, pool);
            // G is symmetric: of its parts those behind the diagonal count twice.
            let each = (0..rows).step_by(BAND).map(|first| {
                let end = rows.min(first + BAND);
                let own = &errors[first * cols..end * cols];
                let mut mixed = vec![0.0; own.len()];
                let mut part = |others: Range<usize>, share: f64| {
                    let line = |r: usize| outputs[r * rows + others.start..r * rows + others.end].iter();
                    let weights: Vec<f32> = (first..end).flat_map(line).map(|&g| g as f32).collect();
                    let left = View::new(&weights, end - first, others.len(), others.len());
                    let right = View::new(&images[others.start * cols..], others.len(), cols, cols);
                    times_on(left, right, &mut mixed, pool);
                    share * dot(own, &mixed)
                };
                part(first..end, 0.5) + part(end..rows, 1.0)
            });
            each.sum()
        }
    }
}

/// ½ e (H + δI) eᵀ of each row of errors. H is symmetric: of its tiles those above the diagonal count twice.
pub fn of_rows(problem: &Problem<'_>, errors: &[f32], pool: &Pool) -> Vec<f64> {
    const TILE: usize = 512;
    let (cols, hessian) = (problem.cols, problem.metric.hessian());
    let bands = pool.map(errors.len().div_ceil(BAND * cols), |band| {
        let errors = &errors[band * BAND * cols..errors.len().min((band + 1) * BAND * cols)];
        let rows = errors.len() / cols;
        let mut sums = vec![0.0; rows];
        let mut image = vec![0.0; rows * TILE.min(cols)];
        for first in (0..cols).step_by(TILE) {
            let width = TILE.min(cols - first);
            let image = &mut image[..rows * width];
            for (above, factor) in [(0..first, 1.0), (first..first + width, 0.5)] {
                let left = View::new(&errors[above.start..], rows, above.len(), cols);
                let right = View::new(&hessian[above.start * cols + first..], above.len(), width, cols);
                times(left, right, &mut Tile::whole(image, width));
                for ((sum, e), he) in sums.iter_mut().zip(errors.chunks_exact(cols)).zip(image.chunks_exact(width)) {
                    *sum += factor * dot(&e[first..first + width], he);
                }
            }
        }
        sums
    });
    bands.into_iter().flatten().collect()
}

/// E (H + δI) for some rows.
pub fn image(errors: &[f32], hessian: &[f32], cols: usize) -> Vec<f32> {
    let rows = errors.len() / cols;
    let mut image = vec![0.0; errors.len()];
    let (left, right) = (View::new(errors, rows, cols, cols), View::new(hessian, cols, cols, cols));
    times(left, right, &mut Tile::whole(&mut image, cols));
    image
}

/// [`image`], on all threads.
pub fn image_on(errors: &[f32], hessian: &[f32], cols: usize, out: &mut [f32], pool: &Pool) {
    let rows = errors.len() / cols;
    times_on(View::new(errors, rows, cols, cols), View::new(hessian, cols, cols, cols), out, pool);
}

/// Σ a b, in f64.
pub fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
}
