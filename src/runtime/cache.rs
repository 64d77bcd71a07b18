//! Keys and values of the positions that a model has seen, so that no position is computed twice.

/// How a cache holds its numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Precision {
    /// Whole numbers of 16 bits, with a scale for each key and value of a head: as small as f16, which has an error of up to 2⁻¹²
    /// of each number; here it is up to 2⁻¹⁶ of the largest. The latest positions, to which attention goes most, stay as
    /// they were computed (as in Liu et al., KIVI, 2024).
    #[default]
    Int16,
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

/// So many of the latest positions are never rounded. When there are twice as many, the older half is.
const LATEST: usize = 128;

/// `[positions, head_dim]`: the earlier ones rounded, with a scale for each, the latest as they came.
#[derive(Debug, Clone)]
struct Numbers {
    precision: Precision,
    codes: Vec<i16>,
    scales: Vec<f32>,
    latest: Vec<f32>,
}

impl Numbers {
    fn new(precision: Precision, positions: usize, head_dim: usize) -> Self {
        let (rounded, latest) = match precision {
            Precision::Int16 => (positions.saturating_sub(LATEST), positions.min(2 * LATEST)),
            Precision::F32 => (0, positions),
        };
        Self {
            precision,
            codes: Vec::with_capacity(rounded * head_dim),
            scales: Vec::with_capacity(rounded),
            latest: Vec::with_capacity(latest * head_dim),
        }
    }

    fn clear(&mut self) {
        self.codes.clear();
        self.scales.clear();
        self.latest.clear();
    }

    /// Adds the numbers of one position.
    fn push(&mut self, numbers: &[f32]) {
        self.latest.extend_from_slice(numbers);
        let half = LATEST * numbers.len();
        if self.precision == Precision::F32 || self.latest.len() < 2 * half {
            return;
        }
        for numbers in self.latest.drain(..half).as_slice().chunks_exact(numbers.len()) {
            let largest = numbers.iter().fold(0.0f32, |most, x| most.max(x.abs()));
            let scale = largest / f32::from(i16::MAX);
            let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
            self.scales.push(scale);
            self.codes.extend(numbers.iter().map(|x| (x * inverse).round_ties_even() as i16));
        }
    }

    /// The numbers of as many positions from `first` on as `out` has room for: where they lie, or unpacked there.
    fn read<'a>(&'a self, first: usize, head_dim: usize, out: &'a mut [f32]) -> &'a [f32] {
        let start = first * head_dim;
        if start >= self.codes.len() {
            return &self.latest[start - self.codes.len()..][..out.len()];
        }
        let rounded = (self.codes.len() - start).min(out.len());
        let (early, late) = out.split_at_mut(rounded);
        let rows = self.codes[start..].chunks_exact(head_dim).zip(&self.scales[first..]);
        for (out, (codes, scale)) in early.chunks_exact_mut(head_dim).zip(rows) {
            out.iter_mut().zip(codes).for_each(|(out, code)| *out = f32::from(*code) * scale);
        }
        late.copy_from_slice(&self.latest[..late.len()]);
        out
    }
}

impl Cache {
    /// An empty cache for `kv_heads` heads of `head_dim`, with room for `positions`. Memory is taken as it fills.
    pub fn new(precision: Precision, kv_heads: usize, head_dim: usize, positions: usize) -> Self {
        let heads = || (0..kv_heads).map(|_| Numbers::new(precision, positions, head_dim)).collect();
        Self { head_dim, keys: heads(), values: heads() }
    }

    /// Positions that it holds.
    pub fn len(&self) -> usize {
        self.keys.first().map_or(0, |head| head.scales.len() + head.latest.len() / self.head_dim.max(1))
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

    /// The keys of a head from position `first` on, as many as `buffer` has room for: where they lie, or unpacked in `buffer`.
    pub fn keys<'a>(&'a self, head: usize, first: usize, buffer: &'a mut [f32]) -> &'a [f32] {
        self.keys[head].read(first, self.head_dim, buffer)
    }

    /// The values of a head likewise.
    pub fn values<'a>(&'a self, head: usize, first: usize, buffer: &'a mut [f32]) -> &'a [f32] {
        self.values[head].read(first, self.head_dim, buffer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_positions_are_exact_and_earlier_ones_nearly_so() {
        let (heads, dim, positions) = (2, 8, 5 * LATEST + 7);
        let k: Vec<f32> = (0..positions * heads * dim).map(|i| (i * 7919 % 1009) as f32 - 504.0).collect();
        let v: Vec<f32> = k.iter().map(|x| -x / 3.0).collect();
        for precision in [Precision::Int16, Precision::F32] {
            let mut cache = Cache::new(precision, heads, dim, positions);
            for _ in 0..2 {
                cache.clear();
                for (k, v) in k.chunks(3 * heads * dim).zip(v.chunks(3 * heads * dim)) {
                    cache.push(k, v);
                }
                assert_eq!(cache.len(), positions);
                for (first, count) in [(0, positions), (0, 3), (4 * LATEST - 2, 9), (positions - LATEST, LATEST)] {
                    let (mut keys, mut values) = (vec![f32::NAN; count * dim], vec![f32::NAN; count * dim]);
                    let (keys, values) = (cache.keys(1, first, &mut keys), cache.values(1, first, &mut values));
                    assert_eq!((keys.len(), values.len()), (count * dim, count * dim));
                    for (i, (found_k, found_v)) in keys.iter().zip(values).enumerate() {
                        let at = ((first + i / dim) * heads + 1) * dim + i % dim;
                        let exact = precision == Precision::F32 || first + i / dim + LATEST >= positions;
                        let limit = if exact { 0.0 } else { 504.0 / 65_000.0 };
                        assert!((found_k - k[at]).abs() <= limit && (found_v - v[at]).abs() <= limit / 3.0, "{i}");
                    }
                }
            }
        }
    }
}
