//! Keys and values of the positions that a model has seen, so that no position is computed twice.

use half::f16;
use half::slice::HalfFloatSliceExt;

/// One layer's keys and values of one sequence, in f16, head by head.
#[derive(Debug, Clone)]
pub struct Cache {
    head_dim: usize,
    /// Of each key head: `[positions, head_dim]`.
    keys: Vec<Vec<f16>>,
    values: Vec<Vec<f16>>,
}

impl Cache {
    /// An empty cache for `kv_heads` heads of `head_dim`, with room for `positions`. Memory is taken as it fills.
    pub fn new(kv_heads: usize, head_dim: usize, positions: usize) -> Self {
        let heads = || (0..kv_heads).map(|_| Vec::with_capacity(positions * head_dim)).collect();
        Self { head_dim, keys: heads(), values: heads() }
    }

    /// Positions that it holds.
    pub fn len(&self) -> usize {
        self.keys.first().map_or(0, |head| head.len() / self.head_dim.max(1))
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds positions: k and v are `[rows, kv_heads · head_dim]`. They are rounded to the nearest f16.
    pub fn push(&mut self, k: &[f32], v: &[f32]) {
        let dim = self.head_dim;
        for (heads, rows) in [(&mut self.keys, k), (&mut self.values, v)] {
            let width = heads.len() * dim;
            for row in rows.chunks_exact(width.max(1)) {
                for (head, numbers) in heads.iter_mut().zip(row.chunks_exact(dim)) {
                    let start = head.len();
                    head.resize(start + dim, f16::ZERO);
                    head[start..].convert_from_f32_slice(numbers);
                }
            }
        }
    }

    /// The keys of a head from position `first` on, as many as `out` has room for.
    pub fn keys(&self, head: usize, first: usize, out: &mut [f32]) {
        self.keys[head][first * self.head_dim..][..out.len()].convert_to_f32_slice(out);
    }

    /// The values of a head from position `first` on, as many as `out` has room for.
    pub fn values(&self, head: usize, first: usize, out: &mut [f32]) {
        self.values[head][first * self.head_dim..][..out.len()].convert_to_f32_slice(out);
    }
}
