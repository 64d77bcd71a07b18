//! Activations, and the forms of them that linear layers multiply.

use std::sync::OnceLock;

/// The inputs of linear layers: a row for each token. Each form is made when it is first asked for, once, and all layers
/// with the same input share it.
#[derive(Debug)]
pub struct Activations<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    int8: OnceLock<Int8Activations>,
    by_nibble: OnceLock<Vec<f32>>,
}

/// Columns of int4 codes in 16 words of 32 bits.
pub const NIBBLES: usize = 128;

/// Activations in int8, symmetric, with a scale for each token: value ≈ code · scale.
#[derive(Debug, Clone, PartialEq)]
pub struct Int8Activations {
    /// `[rows, cols]`
    pub codes: Vec<i8>,
    /// `[rows]`
    pub scales: Vec<f32>,
    /// `[rows]`: the sum of each row's codes, which kernels for unsigned weights take off.
    pub sums: Vec<i32>,
}

impl<'a> Activations<'a> {
    /// `data` is a whole number of rows of `cols` columns; what remains after the last whole row is left out.
    pub fn new(data: &'a [f32], cols: usize) -> Self {
        let rows = data.len().checked_div(cols).unwrap_or(0);
        Self { data: &data[..rows * cols], rows, cols, int8: OnceLock::new(), by_nibble: OnceLock::new() }
    }

    /// Tokens.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Features.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// `[rows, cols]`, row-major.
    pub fn f32(&self) -> &'a [f32] {
        self.data
    }

    /// The f32 form in the order in which int4 codes come out of vectors of 16 words: of each [`NIBBLES`] columns, those of
    /// the words' first codes, then those of their second ones, and so on. Rows are filled up with zeros.
    pub fn by_nibble(&self) -> &[f32] {
        self.by_nibble.get_or_init(|| {
            let width = self.cols.div_ceil(NIBBLES) * NIBBLES;
            let mut out = vec![0.0; self.rows * width];
            for (x, out) in self.data.chunks_exact(self.cols.max(1)).zip(out.chunks_exact_mut(width.max(1))) {
                for (x, out) in x.chunks(NIBBLES).zip(out.chunks_exact_mut(NIBBLES)) {
                    for (at, x) in x.iter().enumerate() {
                        out[at % 8 * 16 + at / 8] = *x;
                    }
                }
            }
            out
        })
    }

    /// The int8 form, as compressed-tensors' dynamic per-token quantization computes it: scale = max |x| / 127.5 (the f32
    /// epsilon for a row of zeros), code = x / scale rounded half to even and clamped to −128 … 127.
    pub fn int8(&self) -> &Int8Activations {
        self.int8.get_or_init(|| {
            let mut codes = vec![0; self.data.len()];
            let mut scales = Vec::with_capacity(self.rows);
            let mut sums = Vec::with_capacity(self.rows);
            for i in 0..self.rows {
                let (row, codes) = (&self.data[i * self.cols..][..self.cols], &mut codes[i * self.cols..][..self.cols]);
                let scale = match row.iter().fold(0.0, |most: f32, x| most.max(x.abs())) / 127.5 {
                    0.0 => f32::EPSILON,
                    scale => scale,
                };
                for (code, x) in codes.iter_mut().zip(row) {
                    *code = round_half_even(x / scale).clamp(-128.0, 127.0) as i8;
                }
                scales.push(scale);
                sums.push(codes.iter().map(|&code| i32::from(code)).sum());
            }
            Int8Activations { codes, scales, sums }
        })
    }
}

/// As `round_ties_even`, in a form that compilers vectorise, for |x| < 2²².
fn round_half_even(x: f32) -> f32 {
    // Adding 1.5 · 2²³ leaves no bits for a fraction.
    const SHIFT: f32 = 12_582_912.0;
    (x + SHIFT) - SHIFT
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn int8_is_symmetric_per_row_and_rounds_half_to_even() {
        let data = [0.0, 0.0, 0.0, 0.0, 127.5, -127.5, 0.5, 1.5, -2.5, 3.0, -6.0, 0.0];
        let x = Activations::new(&data, 4);
        let int8 = x.int8();
        assert_eq!(int8.scales, [f32::EPSILON, 1.0, 6.0 / 127.5]);
        assert_eq!(int8.codes, [0, 0, 0, 0, 127, -128, 0, 2, -53, 64, -128, 0]);
        assert_eq!(int8.sums, [0, 1, -117]);
    }

    #[test]
    fn rounding_is_that_of_the_standard_library() {
        for i in -4000..4000 {
            let x = i as f32 / 16.0;
            assert_eq!(round_half_even(x), x.round_ties_even(), "{x}");
        }
    }
}
