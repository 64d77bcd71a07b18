//! What errors of the weights of a row cost together.

use crate::linear_algebra::inverse_factor_on;
use crate::threads::Pool;

/// H + δI, which matrices of one input share.
#[derive(Debug)]
pub struct Metric {
    cols: usize,
    /// H + δI `[cols, cols]`, symmetric.
    h: Vec<f32>,
    /// U `[cols, cols]`, upper triangular, with (H + δI)⁻¹ = Uᵀ U.
    u: Vec<f32>,
}

impl Metric {
    /// From H = XᵀX / m `[cols, cols]`, symmetric; δ is `damping` times the mean of its diagonal. `None` if it says nothing:
    /// all inputs were zero, or are no numbers.
    pub fn new(hessian: Vec<f64>, cols: usize, damping: f64, pool: &Pool) -> Option<Self> {
        assert_eq!(hessian.len(), cols * cols, "a symmetric matrix");
        let mean = (0..cols).map(|i| hessian[i * cols + i]).sum::<f64>() / cols.max(1) as f64;
        if !(mean > 0.0 && mean.is_finite()) {
            return None;
        }
        // What rounding of the sums made indefinite becomes definite with a little more of the identity.
        let mut delta = damping.max(1e-7) * mean;
        let u = loop {
            match inverse_factor_on(&hessian, cols, delta, pool) {
                Some(u) if u.iter().all(|u| u.is_finite()) => break u,
                _ if delta < mean => delta *= 10.0,
                _ => return None,
            }
        };
        let mut h: Vec<f32> = hessian.iter().map(|&x| x as f32).collect();
        for i in 0..cols {
            h[i * cols + i] = (hessian[i * cols + i] + delta) as f32;
        }
        Some(Self { cols, h, u: u.into_iter().map(|u| u as f32).collect() })
    }

    /// Columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// A row of H + δI.
    pub(super) fn h(&self, i: usize) -> &[f32] {
        &self.h[i * self.cols..(i + 1) * self.cols]
    }

    /// H + δI, row by row.
    pub(super) fn hessian(&self) -> &[f32] {
        &self.h
    }

    /// A row of U.
    pub(super) fn u(&self, i: usize) -> &[f32] {
        &self.u[i * self.cols..(i + 1) * self.cols]
    }

    /// U, row by row.
    pub(super) fn factor(&self) -> &[f32] {
        &self.u
    }
}
