//! How gradients go back through a matrix: y = x · Wᵀ + b, so that x's is y's times W.

use super::Back;
use crate::runtime::activations::SIX;
use crate::runtime::kernels::{float, tiles};
use crate::runtime::model::Projection;
use crate::runtime::{Activations, Linear, Scratch};
use crate::threads::Pool;

/// The most numbers of a band of unpacked rows.
const BAND: usize = 1 << 20;

/// Rows and columns of a tile of the result: fixed, so that sums do not depend on the threads.
const TILE: (usize, usize) = (21 * SIX, 256);

impl Projection {
    /// Tells the observer the gradient `g` `[rows, out_features]` of what the matrix gives and adds that of its input to `out`
    /// `[rows, in_features]`.
    pub(super) fn gradient(&self, g: &[f32], out: &mut [f32], back: &mut Back<'_>) {
        back.observer.output(self.place, self.out_features(), g);
        gradient(&*self.linear, g, out, back.scratch, back.pool);
    }
}

/// out `[rows, in_features]` += g `[rows, out_features]` · W. The result does not depend on the number of threads.
pub(super) fn gradient(linear: &dyn Linear, g: &[f32], out: &mut [f32], scratch: &Scratch, pool: &Pool) {
    let (n, k) = (linear.out_features(), linear.in_features());
    let rows = g.len() / n.max(1);
    if k == 0 {
        return;
    }
    let x = Activations::new(g, n);
    x.lay_out(float::add_times_layout(), pool);
    let height = (BAND / k).clamp(1, n.max(1));
    scratch.floats(height * k, |buffer| {
        for first in (0..n).step_by(height) {
            let count = height.min(n - first);
            let band = &mut buffer[..count * k];
            pool.for_each_chunk(band, k, |i, row| linear.row(first + i, row));
            let band = &*band;
            tiles::for_each(pool, out, k, &tiles::cuts(rows, TILE.0), TILE.1, |mut tile| {
                float::add_times(&x, first..first + count, &band[tile.first_col()..], k, &mut tile);
            });
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::linear::from_rows;
    use crate::runtime::testing::{Matrix, Noise, close};
    use std::sync::Arc;

    #[test]
    fn it_is_the_product_with_the_matrix_for_any_number_of_threads() {
        let mut noise = Noise::new(11);
        for (m, n, k) in [(1, 1, 1), (3, 70, 257), (130, 5, 300), (2, 4, BAND / 2 - 1)] {
            let (g, w) = (noise.vec(m * n), noise.vec(n * k));
            let linear = from_rows(Arc::new(Matrix::packed(&w, k)));
            let sum = |at: usize| -> f64 {
                let (i, j) = (at / k, at % k);
                (0..n).map(|l| f64::from(g[i * n + l]) * f64::from(w[l * k + j])).sum::<f64>() + 1.0
            };
            let expected: Vec<f64> = (0..m * k).map(sum).collect();
            for threads in [1, 3] {
                let mut out = vec![1.0; m * k];
                gradient(&*linear, &g, &mut out, &Scratch::default(), &Pool::new(threads));
                close(&out, &expected, 1e-4);
            }
        }
    }
}
