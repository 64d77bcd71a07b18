//! GPTQ (Frantar et al., 2022): columns one after the other; what rounding one did is taken over, as well as it can be, by the
//! columns that follow.

use super::Metric;
use super::grid::{Grid, Row};
use crate::quantizer::{Band, Numbers};
use crate::runtime::kernels::gemm::{View, times};
use crate::runtime::kernels::tiles::Tile;

/// Columns of a batch: within one, the columns that follow are corrected at once, all others when the batch is done.
const BATCH: usize = 128;

/// Columns of a batch that is whole blocks, or, where rows are one block, of a part of it.
fn batch(grid: &Grid) -> usize {
    match grid.block() {
        block if block <= 2 * BATCH => (BATCH / block).max(1) * block,
        _ => BATCH,
    }
}

/// Quantizes some rows as the paper has it.
pub fn plain(grid: &Grid, target: &[f32], metric: &Metric) -> Vec<Row> {
    let cols = grid.cols();
    let mut w = target.to_vec();
    let mut rows = vec![grid.empty(); w.len() / cols];
    let batch = batch(grid);
    let mut errors = vec![0.0; rows.len() * batch];
    for first in (0..cols).step_by(batch) {
        let last = cols.min(first + batch);
        let width = last - first;
        for (i, (row, w)) in rows.iter_mut().zip(w.chunks_exact_mut(cols)).enumerate() {
            for b in (0..cols / grid.block()).filter(|b| (first..last).contains(&(b * grid.block()))) {
                nearest_scales(grid, row, w, b);
            }
            for j in first..last {
                let u = metric.u(j);
                let (a, b) = grid.of(row, j / grid.sub);
                let level = if a == 0.0 { row.levels[j] } else { grid.levels.nearest((w[j] + b) / a) };
                row.levels[j] = level;
                let error = (w[j] - (a * level - b)) / u[j];
                errors[i * width + j - first] = error;
                w[j + 1..last].iter_mut().zip(&u[j + 1..last]).for_each(|(w, u)| *w -= error * u);
            }
        }
        correct(&mut w, cols, first..last, &errors, metric);
    }
    rows
}

/// Takes what the errors of a batch of columns do to those after it from these.
fn correct(w: &mut [f32], cols: usize, batch: std::ops::Range<usize>, errors: &[f32], metric: &Metric) {
    let (rows, rest) = (w.len() / cols, cols - batch.end);
    if rest == 0 {
        return;
    }
    let mut shift = vec![0.0; rows * rest];
    let right = &metric.factor()[batch.start * cols + batch.end..];
    times(
        View::new(errors, rows, batch.len(), batch.len()),
        View::new(right, batch.len(), rest, cols),
        &mut Tile::whole(&mut shift, rest),
    );
    for (w, shift) in w.chunks_exact_mut(cols).zip(shift.chunks_exact(rest)) {
        w[batch.end..].iter_mut().zip(shift).for_each(|(w, shift)| *w -= shift);
    }
}

/// The scales of rounding to nearest what block `b` of a row has become.
fn nearest_scales(grid: &Grid, row: &mut Row, w: &[f32], b: usize) {
    let own = Grid::new(grid.form(), grid.dtype(), grid.block());
    let numbers = &w[b * grid.block()..(b + 1) * grid.block()];
    let band = Band { numbers: Numbers::F32(numbers), first_row: 0, cols: numbers.len(), dtype: grid.dtype() };
    let mut parts: Vec<Vec<u8>> = own.row_bytes().into_iter().map(|n| vec![0; n]).collect();
    grid.form().quantizer(false).encode(band, &mut parts);
    let found = own.read(&parts.iter().map(Vec::as_slice).collect::<Vec<_>>());
    (row.d[b], row.dmin[b]) = (found.d[0], found.dmin[0]);
    row.scales[b * grid.per..(b + 1) * grid.per].copy_from_slice(&found.scales);
    row.mins[b * grid.per..(b + 1) * grid.per].copy_from_slice(&found.mins);
}
