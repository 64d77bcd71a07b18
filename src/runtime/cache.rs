//! Keys and values of the positions that a model has seen, so that no position is computed twice.

use half::f16;
use half::slice::HalfFloatSliceExt;

/// How a cache holds its numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Precision {
    /// Rounded to f16: half the memory, and an error of up to 2⁻¹¹ of each number.
    #[default]
    F16,
    /// As they were computed.
    F32,
}

/// One layer's keys and values of one sequence, head by head.
#[derive(Debug, Clone)]
pub struct Cache {
    head_dim: usize,
    /// Of each key head.
    keys: Vec<Numbers>,
    values: Vec<Numbers>,
}

/// `[positions, head_dim]`
#[derive(Debug, Clone)]
enum Numbers {
    F16(Vec<f16>),
    F32(Vec<f32>),
}

impl Numbers {
    fn new(precision: Precision, room: usize) -> Self {
        match precision {
            Precision::F16 => Self::F16(Vec::with_capacity(room)),
            Precision::F32 => Self::F32(Vec::with_capacity(room)),
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::F16(all) => all.len(),
            Self::F32(all) => all.len(),
        }
    }

    fn clear(&mut self) {
        match self {
            Self::F16(all) => all.clear(),
            Self::F32(all) => all.clear(),
        }
    }

    fn push(&mut self, numbers: &[f32]) {
        match self {
            Self::F16(all) => {
                let start = all.len();
                all.resize(start + numbers.len(), f16::ZERO);
                all[start..].convert_from_f32_slice(numbers);
            }
            Self::F32(all) => all.extend_from_slice(numbers),
        }
    }

    fn read(&self, start: usize, out: &mut [f32]) {
        match self {
            Self::F16(all) => all[start..][..out.len()].convert_to_f32_slice(out),
            Self::F32(all) => out.copy_from_slice(&all[start..][..out.len()]),
        }
    }
}

impl Cache {
    /// An empty cache for `kv_heads` heads of `head_dim`, with room for `positions`. Memory is taken as it fills.
    pub fn new(precision: Precision, kv_heads: usize, head_dim: usize, positions: usize) -> Self {
        let heads = || (0..kv_heads).map(|_| Numbers::new(precision, positions * head_dim)).collect();
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

    /// Forgets all positions. Memory is kept.
    pub fn clear(&mut self) {
        self.keys.iter_mut().chain(&mut self.values).for_each(Numbers::clear);
    }

    /// Adds positions: k and v are `[rows, kv_heads · head_dim]`.
    pub fn push(&mut self, k: &[f32], v: &[f32]) {
        let dim = self.head_dim;
        for (heads, rows) in [(&mut self.keys, k), (&mut self.values, v)] {
            let width = heads.len() * dim;
            for row in rows.chunks_exact(width.max(1)) {
                heads.iter_mut().zip(row.chunks_exact(dim)).for_each(|(head, numbers)| head.push(numbers));
            }
        }
    }

    /// The keys of a head from position `first` on, as many as `out` has room for.
    pub fn keys(&self, head: usize, first: usize, out: &mut [f32]) {
        self.keys[head].read(first * self.head_dim, out);
    }

    /// The values of a head from position `first` on, as many as `out` has room for.
    pub fn values(&self, head: usize, first: usize, out: &mut [f32]) {
        self.values[head].read(first * self.head_dim, out);
    }
}
