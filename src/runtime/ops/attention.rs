//! Scaled dot-product attention (Vaswani et al., 2017), with fewer key heads than query heads (Ainslie et al., 2023) and a
//! sliding window (Beltagy et al., 2020) where the model has them.

use super::softmax::softmax;
use crate::runtime::kernels::gemm::{View, times, times_transposed};
use crate::runtime::kernels::tiles::{self, Tile};
use crate::runtime::{Cache, Scratch};
use crate::threads::Pool;

/// The shape of attention in a layer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Attention {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Factor of q · k.
    pub scale: f32,
    /// Whether a position sees only itself and earlier ones.
    pub causal: bool,
    /// The number of latest positions that a position sees, itself included.
    pub window: Option<usize>,
}

/// Queries of a tile, so that scores of a long sequence stay small.
pub(super) const QUERIES: usize = 64;

impl Attention {
    /// out `[rows, heads · head_dim]` = softmax(scale · q · kᵀ) · v for each head of each sequence. q is like out, k and v are
    /// `[rows, kv_heads · head_dim]`. `starts` are the rows at which sequences begin, and the number of rows.
    ///
    /// # Panics
    /// If the lengths do not fit.
    pub fn apply(
        &self,
        q: &[f32],
        k: &[f32],
        v: &[f32],
        starts: &[usize],
        out: &mut [f32],
        scratch: &Scratch,
        pool: &Pool,
    ) {
        let width = self.heads * self.head_dim;
        // Tiles end where sequences do.
        let mut cuts = vec![0];
        for sequence in starts.windows(2) {
            cuts.extend((sequence[0]..sequence[1]).step_by(QUERIES).skip(1));
            cuts.push(sequence[1]);
        }
        tiles::for_each(pool, out, width, &cuts, self.head_dim, |mut tile| {
            let next = starts.partition_point(|start| *start <= tile.first_row());
            let (start, end) = (starts[next - 1], starts[next]);
            if tile.rows() > 0 {
                self.tile(q, k, v, start, end, &mut tile, scratch);
            }
        });
    }

    /// A few queries of one head of the sequence in rows `start .. end`.
    fn tile(&self, q: &[f32], k: &[f32], v: &[f32], start: usize, end: usize, out: &mut Tile<'_>, scratch: &Scratch) {
        let dim = self.head_dim;
        let (first, rows) = (out.first_row(), out.rows());
        let head = out.first_col() / dim;
        let kv_head = head / (self.heads / self.kv_heads);
        // What any of the queries sees.
        let (from, to) = (self.sees(first, start, end).0, self.sees(first + rows - 1, start, end).1);
        let seen = to - from;
        let queries = head_view(q, first, rows, self.heads, head, dim);
        let keys = head_view(k, from, seen, self.kv_heads, kv_head, dim);
        let values = head_view(v, from, seen, self.kv_heads, kv_head, dim);
        scratch.floats(rows * seen, |scores| {
            times_transposed(queries, keys, self.scale, &mut Tile::whole(scores, seen));
            self.weigh(scores, seen, from, |i| self.sees(first + i, start, end));
            times(View::new(scores, rows, seen, seen), values, out);
        });
    }

    /// As [`Attention::apply`], with the keys and values of each sequence in its cache, those of the rows themselves as the
    /// last ones. Causal.
    ///
    /// # Panics
    /// If the lengths do not fit.
    pub fn apply_cached(
        &self,
        q: &[f32],
        caches: &[Cache],
        starts: &[usize],
        out: &mut [f32],
        scratch: &Scratch,
        pool: &Pool,
    ) {
        let group = self.heads / self.kv_heads;
        let mut cuts = vec![0];
        for sequence in starts.windows(2) {
            cuts.extend((sequence[0]..sequence[1]).step_by(QUERIES).skip(1));
            cuts.push(sequence[1]);
        }
        // A tile is as wide as the heads that share keys and values, so that these are unpacked once.
        tiles::for_each(pool, out, self.heads * self.head_dim, &cuts, group * self.head_dim, |mut tile| {
            let sequence = starts.partition_point(|start| *start <= tile.first_row()) - 1;
            if tile.rows() > 0 {
                let first = caches[sequence].len() + tile.first_row() - starts[sequence + 1];
                self.cached_tile(q, &caches[sequence], first, &mut tile, scratch);
            }
        });
    }

    /// A few queries of the heads that share a key head; the first query is at position `first` of its sequence.
    fn cached_tile(&self, q: &[f32], cache: &Cache, first: usize, out: &mut Tile<'_>, scratch: &Scratch) {
        let (dim, group, rows) = (self.head_dim, self.heads / self.kv_heads, out.rows());
        let kv_head = out.first_col() / (group * dim);
        let sees = |i: usize| self.sees(first + i, 0, first + i + 1);
        let (from, to) = (sees(0).0, sees(rows - 1).1);
        let seen = to - from;
        scratch.floats(2 * seen * dim + rows * (seen + dim), |buffer| {
            let (keys, rest) = buffer.split_at_mut(seen * dim);
            let (values, rest) = rest.split_at_mut(seen * dim);
            let (scores, result) = rest.split_at_mut(rows * seen);
            let (keys, values) = (cache.keys(kv_head, from, keys), cache.values(kv_head, from, values));
            for head in 0..group {
                let queries = head_view(q, out.first_row(), rows, self.heads, kv_head * group + head, dim);
                let mut tile = Tile::whole(scores, seen);
                times_transposed(queries, View::new(keys, seen, dim, dim), self.scale, &mut tile);
                self.weigh(scores, seen, from, sees);
                let weights = View::new(scores, rows, seen, seen);
                times(weights, View::new(values, seen, dim, dim), &mut Tile::whole(result, dim));
                for (i, result) in result.chunks_exact(dim).enumerate() {
                    out.row(i)[head * dim..(head + 1) * dim].copy_from_slice(result);
                }
            }
        });
    }

    /// Scores `[rows, seen]` of positions from `from` on become weights; 0 outside of what each row sees.
    pub(super) fn weigh(&self, scores: &mut [f32], seen: usize, from: usize, sees: impl Fn(usize) -> (usize, usize)) {
        for (i, scores) in scores.chunks_exact_mut(seen).enumerate() {
            let (own_from, own_to) = sees(i);
            scores[..own_from - from].fill(0.0);
            scores[own_to - from..].fill(0.0);
            softmax(&mut scores[own_from - from..own_to - from]);
        }
    }

    /// The rows that the query in row `row` sees, of the sequence in `start .. end`.
    pub(super) fn sees(&self, row: usize, start: usize, end: usize) -> (usize, usize) {
        let from = self.window.map_or(start, |window| start.max((row + 1).saturating_sub(window.max(1))));
        (from, if self.causal { row + 1 } else { end })
    }
}

/// Some rows of one head of `[rows, heads · dim]`.
pub(super) fn head_view(data: &[f32], first: usize, rows: usize, heads: usize, head: usize, dim: usize) -> View<'_> {
    View::new(&data[(first * heads + head) * dim..], rows, dim, heads * dim)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::testing::{Noise, close};

    #[test]
    fn it_equals_plain_loops_for_every_kind_of_attention() {
        let mut noise = Noise::new(8);
        let starts = [0, 1, 1, 6, 136];
        let rows = 136;
        for (heads, kv_heads, head_dim) in [(1, 1, 1), (4, 2, 8), (3, 1, 5)] {
            for (causal, window) in [(true, None), (true, Some(7)), (true, Some(1000)), (false, None)] {
                let a = Attention { heads, kv_heads, head_dim, scale: 0.7, causal, window };
                let (q, k) = (noise.vec(rows * heads * head_dim), noise.vec(rows * kv_heads * head_dim));
                let v = noise.vec(rows * kv_heads * head_dim);
                let mut out = vec![f32::NAN; q.len()];
                a.apply(&q, &k, &v, &starts, &mut out, &Scratch::default(), &Pool::new(2));
                close(&out, &oracle(&a, &q, &k, &v, &starts), 1e-5);
            }
        }
    }

    fn oracle(a: &Attention, q: &[f32], k: &[f32], v: &[f32], starts: &[usize]) -> Vec<f64> {
        let mut out = vec![0.0; q.len()];
        for sequence in starts.windows(2) {
            for i in sequence[0]..sequence[1] {
                for head in 0..a.heads {
                    let row = |data: &[f32], row: usize, heads: usize, head: usize| -> Vec<f64> {
                        data[(row * heads + head) * a.head_dim..][..a.head_dim].iter().map(|x| f64::from(*x)).collect()
                    };
                    let kv = head * a.kv_heads / a.heads;
                    let query = row(q, i, a.heads, head);
                    let seen = (sequence[0]..sequence[1])
                        .filter(|j| !a.causal || (*j <= i && a.window.is_none_or(|window| i - j < window)));
                    let weights: Vec<(usize, f64)> = seen
                        .map(|j| {
                            let dot: f64 = query.iter().zip(row(k, j, a.kv_heads, kv)).map(|(q, k)| q * k).sum();
                            (j, (dot * f64::from(a.scale)).exp())
                        })
                        .collect();
                    let total: f64 = weights.iter().map(|(_, w)| w).sum();
                    for (j, weight) in weights {
                        for (d, value) in row(v, j, a.kv_heads, kv).into_iter().enumerate() {
                            out[(i * a.heads + head) * a.head_dim + d] += weight / total * value;
                        }
                    }
                }
            }
        }
        out
    }
}
