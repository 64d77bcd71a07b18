//! What tests of this room share.

use formats::Dtype;

use crate::encoding::{Form, Inputs, Rows, Scales, Stored};

/// Reproducible noise (splitmix64).
#[derive(Clone)]
pub struct Noise(u64);

impl Noise {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in −1 … 1.
    pub fn next_f32(&mut self) -> f32 {
        (self.next_u64() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    pub fn vec(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.next_f32()).collect()
    }
}

/// Fails where `found` is further than `tolerance` from `expected`.
#[track_caller]
pub fn close(found: &[f32], expected: &[f64], tolerance: f64) {
    assert_eq!(found.len(), expected.len());
    for (at, (f, e)) in found.iter().zip(expected).enumerate() {
        assert!((f64::from(*f) - e).abs() <= tolerance, "at {at}: found {f}, expected {e}");
    }
}

/// A matrix in one of the encodings that linear layers tell apart.
pub struct Matrix {
    cols: usize,
    plain: Vec<f32>,
    kind: Encoding,
}

enum Encoding {
    Plain,
    Packed,
    Int8 { codes: Vec<i8>, scales: Vec<f32>, activations: bool },
}

impl Matrix {
    /// f32 that can be multiplied in place.
    pub fn plain(data: &[f32], cols: usize) -> Self {
        Self { cols, plain: data.to_vec(), kind: Encoding::Plain }
    }

    /// Only to be had by unpacking.
    pub fn packed(data: &[f32], cols: usize) -> Self {
        Self { kind: Encoding::Packed, ..Self::plain(data, cols) }
    }

    /// Rounded to int8, a scale for each row.
    pub fn int8(data: &[f32], cols: usize, activations: bool) -> Self {
        let scales: Vec<f32> =
            data.chunks(cols).map(|row| row.iter().fold(1e-9, |most: f32, x| most.max(x.abs())) / 127.5).collect();
        let round = |at: usize, x: f32| (x / scales[at / cols]).round_ties_even().clamp(-128.0, 127.0) as i8;
        let codes = data.iter().enumerate().map(|(at, x)| round(at, *x)).collect();
        Self::from_int8(codes, scales, cols, activations)
    }

    /// These codes and scales.
    pub fn from_int8(codes: Vec<i8>, scales: Vec<f32>, cols: usize, activations: bool) -> Self {
        let plain = codes.iter().enumerate().map(|(at, q)| f32::from(*q) * scales[at / cols]).collect();
        Self { cols, plain, kind: Encoding::Int8 { codes, scales, activations } }
    }

    pub fn is_w8a8(&self) -> bool {
        matches!(self.kind, Encoding::Int8 { activations: true, .. })
    }
}

impl Rows for Matrix {
    fn rows(&self) -> usize {
        self.plain.len() / self.cols
    }

    fn cols(&self) -> usize {
        self.cols
    }

    fn read(&self, first: usize, out: &mut [f32]) {
        out.copy_from_slice(&self.plain[first * self.cols..][..out.len()]);
    }

    fn stored(&self) -> Option<Stored<'_>> {
        let (form, bytes, size, inputs): (_, &[u8], _, _) = match &self.kind {
            Encoding::Plain => (Form::Plain(Dtype::F32), bytemuck::cast_slice(&self.plain), 4, Inputs::Float),
            Encoding::Int8 { codes, scales, activations } => {
                let scales = Scales { dtype: Dtype::F32, bytes: bytemuck::cast_slice(scales), per_row: 1 };
                let inputs = if *activations { Inputs::Int8 } else { Inputs::Float };
                (Form::Int8(scales), bytemuck::cast_slice(codes), 1, inputs)
            }
            Encoding::Packed => return None,
        };
        Some(Stored { form, bytes, row_bytes: size * self.cols, order: None, inputs })
    }
}
