//! What codes stand for.

use formats::Dtype;

use super::Form;
use super::grid::Grid;
use crate::threads::Pool;

/// The numbers `[rows, cols]` that parts stand for.
///
/// # Panics
/// If the parts are not those of a matrix of this form.
pub fn values(form: Form, dtype: Dtype, cols: usize, parts: &[Vec<u8>], pool: &Pool) -> Vec<f32> {
    let grid = Grid::new(form, dtype, cols);
    let sizes = grid.row_bytes();
    let mut values = vec![0.0; parts[0].len() / sizes[0] * cols];
    pool.for_each_chunk(&mut values, cols, |r, values| {
        let bytes: Vec<&[u8]> = sizes.iter().zip(parts).map(|(&n, part)| &part[r * n..(r + 1) * n]).collect();
        grid.values(&grid.read(&bytes), values);
    });
    values
}
