//! How gradients go back through attention.
//!
//! With S = scale · Q Kᵀ, P = softmax(S) and O = P V, and G the gradient of O: that of V is Pᵀ G, that of S is
//! P ∘ (G Vᵀ − rowsum(G ∘ O)), from which those of Q and K follow.

use super::attention::{Attention, QUERIES, head_view};
use crate::runtime::Scratch;
use crate::runtime::kernels::gemm::{View, add_times, times, times_transposed};
use crate::runtime::kernels::tiles::Tile;
use crate::threads::Pool;

/// Gradients of queries, keys and values, laid out as these are.
#[derive(Debug, Clone, PartialEq)]
pub struct Gradients {
    /// `[rows, heads · head_dim]`
    pub q: Vec<f32>,
    /// `[rows, kv_heads · head_dim]`
    pub k: Vec<f32>,
    /// `[rows, kv_heads · head_dim]`
    pub v: Vec<f32>,
}

/// Gradients of the heads that share a key head.
struct Shared {
    /// `[rows, group · head_dim]`
    q: Vec<f32>,
    /// `[rows, head_dim]`
    k: Vec<f32>,
    /// `[rows, head_dim]`
    v: Vec<f32>,
}

impl Attention {
    /// The gradients of one sequence's queries, keys and values, given what attention made of it, `out`, and that one's
    /// gradient, `g`: both `[rows, heads · head_dim]`, as q; k and v are `[rows, kv_heads · head_dim]`.
    ///
    /// # Panics
    /// If the lengths do not fit.
    pub fn gradient(
        &self,
        q: &[f32],
        k: &[f32],
        v: &[f32],
        out: &[f32],
        g: &[f32],
        scratch: &Scratch,
        pool: &Pool,
    ) -> Gradients {
        let (dim, group) = (self.head_dim, self.heads / self.kv_heads);
        let parts = pool.map(self.kv_heads, |kv_head| self.shared(q, k, v, out, g, kv_head, scratch));
        let mut all = Gradients { q: vec![0.0; q.len()], k: vec![0.0; k.len()], v: vec![0.0; v.len()] };
        for (kv_head, part) in parts.iter().enumerate() {
            scatter(&part.q, &mut all.q, group * dim, kv_head, self.kv_heads);
            scatter(&part.k, &mut all.k, dim, kv_head, self.kv_heads);
            scatter(&part.v, &mut all.v, dim, kv_head, self.kv_heads);
        }
        all
    }

    fn shared(
        &self,
        q: &[f32],
        k: &[f32],
        v: &[f32],
        out: &[f32],
        g: &[f32],
        kv_head: usize,
        scratch: &Scratch,
    ) -> Shared {
        let (dim, group) = (self.head_dim, self.heads / self.kv_heads);
        let end = q.len() / (self.heads * dim).max(1);
        let mut part = Shared { q: vec![0.0; end * group * dim], k: vec![0.0; end * dim], v: vec![0.0; end * dim] };
        for first in (0..end).step_by(QUERIES) {
            let rows = QUERIES.min(end - first);
            let (from, to) = (self.sees(first, 0, end).0, self.sees(first + rows - 1, 0, end).1);
            let seen = to - from;
            let keys = head_view(k, from, seen, self.kv_heads, kv_head, dim);
            let values = head_view(v, from, seen, self.kv_heads, kv_head, dim);
            for own in 0..group {
                let head = kv_head * group + own;
                let view = |data| head_view(data, first, rows, self.heads, head, dim);
                let (queries, gradient) = (view(q), view(g));
                scratch.floats(rows * (2 * seen + dim), |buffer| {
                    let (weights, rest) = buffer.split_at_mut(rows * seen);
                    let (scores, q_part) = rest.split_at_mut(rows * seen);
                    times_transposed(queries, keys, self.scale, &mut Tile::whole(weights, seen));
                    self.weigh(weights, seen, from, |i| self.sees(first + i, 0, end));
                    times_transposed(gradient, values, 1.0, &mut Tile::whole(scores, seen));
                    for (i, (weights, scores)) in
                        weights.chunks_exact(seen).zip(scores.chunks_exact_mut(seen)).enumerate()
                    {
                        let at = ((first + i) * self.heads + head) * dim;
                        let mean: f32 = out[at..at + dim].iter().zip(&g[at..at + dim]).map(|(o, g)| o * g).sum();
                        scores.iter_mut().zip(weights).for_each(|(s, weight)| *s = weight * (*s - mean) * self.scale);
                    }
                    let weights = View::new(weights, rows, seen, seen).transposed();
                    let scores = View::new(scores, rows, seen, seen);
                    times(scores, keys, &mut Tile::whole(q_part, dim));
                    for (i, row) in q_part.chunks_exact(dim).enumerate() {
                        part.q[((first + i) * group + own) * dim..][..dim].copy_from_slice(row);
                    }
                    let seen = from * dim..to * dim;
                    add_times(weights, gradient, 1.0, &mut Tile::whole(&mut part.v[seen.clone()], dim));
                    add_times(scores.transposed(), queries, 1.0, &mut Tile::whole(&mut part.k[seen], dim));
                });
            }
        }
        part
    }
}

/// Writes `[rows, width]` to the columns of one of `count` heads.
fn scatter(part: &[f32], all: &mut [f32], width: usize, head: usize, count: usize) {
    for (part, all) in part.chunks_exact(width).zip(all.chunks_exact_mut(width * count)) {
        all[head * width..(head + 1) * width].copy_from_slice(part);
    }
}
