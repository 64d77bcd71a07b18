//! The inverse of a metric.

use super::Metric;
use crate::runtime::kernels::gemm::{View, times, times_transposed};
use crate::runtime::kernels::tiles;
use crate::threads::Pool;

/// Rows of a tile of a product, and the most columns: by these a triangle is as well as used. Fixed, so that products do not
/// depend on the threads.
const TILE: (usize, usize) = (256, 512);

impl Metric {
    /// B (H + δI)⁻¹, by the factor U of the inverse: B Uᵀ U.
    pub fn solve(&self, b: &[f32], pool: &Pool) -> Vec<f32> {
        let (n, u) = (self.cols(), self.factor());
        let cuts = tiles::cuts(b.len() / n, TILE.0);
        let width = (n / 4).clamp(64, TILE.1);
        let mut half = vec![0f32; b.len()];
        tiles::for_each(pool, &mut half, n, &cuts, width, |mut tile| {
            // U is zero before its diagonal.
            let (first, rows, from) = (tile.first_row(), tile.rows(), tile.first_col());
            let b = View::new(&b[first * n + from..], rows, n - from, n);
            times_transposed(b, View::new(&u[from * n + from..], tile.cols(), n - from, n), 1.0, &mut tile);
        });
        let mut out = vec![0f32; b.len()];
        tiles::for_each(pool, &mut out, n, &cuts, width, |mut tile| {
            let (first, rows, end) = (tile.first_row(), tile.rows(), tile.first_col() + tile.cols());
            let u = View::new(&u[tile.first_col()..], end, tile.cols(), n);
            times(View::new(&half[first * n..], rows, end, n), u, &mut tile);
        });
        out
    }
}
