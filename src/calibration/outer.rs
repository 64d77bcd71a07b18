//! Sums of outer products: Σ a bᵀ over pairs of rows.

use crate::runtime::activations::SIX;
use crate::runtime::kernels::gemm::{View, times};
use crate::runtime::kernels::tiles::Tile;
use crate::threads::Pool;

/// Rows whose products are added together: within these in f32, over all in f64. A fixed number, so that sums depend neither
/// on the threads nor on how many rows the memory budget lets come at a time.
pub const RUN: usize = 1024;

/// Rows of the sums that are a piece of work, if they are long and if not: fewer, and preparing what they are multiplied by would
/// take a good part of the time.
const HEIGHT: [usize; 2] = [21 * SIX, 11 * SIX];

/// Columns of long rows.
const LONG: usize = 1024;

/// Columns of the sums that are computed together.
const WIDTH: usize = 512;

/// Which sums are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// All.
    Whole,
    /// Those on the diagonal and below it, at least: what is above is undefined.
    Lower,
}

/// Rows, one after the other: `(numbers, width)`.
pub type RowsOf<'a> = (&'a [f32], usize);

/// sums `[left, right]` += Σ a bᵀ over rows a of `left` and b of `right`.
///
/// # Panics
/// If the lengths do not fit.
pub fn add_products(sums: &mut [f64], left: RowsOf<'_>, right: RowsOf<'_>, part: Part, pool: &Pool) {
    let ((left, left_width), (right, width)) = (left, right);
    let rows = left.len() / left_width.max(1);
    if rows == 0 {
        return;
    }
    assert!(sums.len() == left_width * width && right.len() == rows * width, "lengths fit");
    let most = if width >= LONG { HEIGHT[0] } else { HEIGHT[1] };
    pool.for_each_chunk(sums, most * width, |band, sums| {
        let (first, height) = (band * most, sums.len() / width);
        let columns_of_left = View::new(&left[first..], rows, height, left_width).transposed();
        let end = if part == Part::Lower { width.min(first + height) } else { width };
        let mut product = vec![0f32; height * WIDTH.min(end)];
        for column in (0..end).step_by(WIDTH) {
            let wide = WIDTH.min(end - column);
            let product = &mut product[..height * wide];
            times(columns_of_left, View::new(&right[column..], rows, wide, width), &mut Tile::whole(product, wide));
            for (sums, product) in sums.chunks_exact_mut(width).zip(product.chunks_exact(wide)) {
                let sums = &mut sums[column..column + wide];
                sums.iter_mut().zip(product).for_each(|(sum, x)| *sum += f64::from(*x));
            }
        }
    });
}
