//! J of what is stored.

use super::grid::{Grid, Row};
use super::outputs::normalised;
use super::{BAND, Form, Problem};
use crate::runtime::kernels::gemm::{View, times};
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
            let Problem { rows, cols, metric, .. } = *problem;
            let bands = pool.map(rows.div_ceil(BAND), |band| {
                let own = band * BAND..rows.min((band + 1) * BAND);
                let images = image(&errors[own.start * cols..own.end * cols], metric.hessian(), cols);
                let weights: Vec<f32> = outputs[own.start * rows..own.end * rows].iter().map(|&g| g as f32).collect();
                let mut mixed = vec![0.0; own.len() * cols];
                let (left, right) = (View::new(&weights, own.len(), rows, rows), View::new(errors, rows, cols, cols));
                times(left, right, &mut Tile::whole(&mut mixed, cols));
                dot(&images, &mixed)
            });
            0.5 * bands.into_iter().sum::<f64>()
        }
    }
}

/// ½ e (H + δI) eᵀ of each row of errors.
pub fn of_rows(problem: &Problem<'_>, errors: &[f32], pool: &Pool) -> Vec<f64> {
    let cols = problem.cols;
    let bands = pool.map(errors.len().div_ceil(BAND * cols), |band| {
        let errors = &errors[band * BAND * cols..errors.len().min((band + 1) * BAND * cols)];
        let images = image(errors, problem.metric.hessian(), cols);
        let rows = errors.chunks_exact(cols).zip(images.chunks_exact(cols));
        rows.map(|(e, he)| 0.5 * dot(e, he)).collect::<Vec<_>>()
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

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
}
