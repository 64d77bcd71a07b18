//! The inverse of a metric.

use super::Metric;
use crate::runtime::kernels::gemm::{View, times, times_transposed};
use crate::runtime::kernels::tiles::Tile;
use crate::threads::Pool;

/// Rows of a band; a fixed number, so that products of bands do not depend on the threads.
const BAND: usize = 64;

impl Metric {
    /// B (H + δI)⁻¹, by the factor U of the inverse: B Uᵀ U.
    pub fn solve(&self, b: &[f32], pool: &Pool) -> Vec<f32> {
        let n = self.cols();
        let mut out = vec![0f32; b.len()];
        pool.for_each_chunk(&mut out, BAND * n, |band, out| {
            let rows = out.len() / n;
            let mut half = vec![0f32; out.len()];
            let (b, u) = (View::new(&b[band * BAND * n..], rows, n, n), View::new(self.factor(), n, n, n));
            times_transposed(b, u, 1.0, &mut Tile::whole(&mut half, n));
            times(View::new(&half, rows, n, n), u, &mut Tile::whole(out, n));
        });
        out
    }
}
