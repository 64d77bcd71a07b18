//! Few bits with a scale for each group of a row, and FP8 with a scale for each row, as compressed-tensors' min-max observer
//! computes them, in the weight's own dtype.
//!
//! scale = amax / h, or the dtype's epsilon for zeros only, where h is half of the codes' range: 7.5 for int4, 127.5 for int8,
//! 448 for FP8. code = clamp(w / scale), rounded to nearest, ties to even.

use formats::Dtype;
use half::{bf16, f16};

use super::{Band, Notes, Numbers, Quantizer};
use crate::encoding::plain::{self, Real};
use crate::encoding::{Encoding, fp8};

/// Packed integers: `bits` each, a scale for each `group` of a row.
#[derive(Debug, Clone, Copy)]
pub struct PackedInt {
    /// Bits of a code: 4 or 8.
    pub bits: u8,
    /// Numbers that share a scale.
    pub group: u64,
}

/// FP8 E4M3, a scale for each row.
#[derive(Debug, Clone, Copy)]
pub struct Fp8Rows;

impl Quantizer for PackedInt {
    fn encoding(&self, input: Dtype) -> Encoding {
        Encoding::PackedInt { bits: self.bits, group: self.group, scale: input }
    }

    fn encode(&self, band: Band<'_>, parts: &mut [Vec<u8>]) -> Notes {
        let [packed, scales, ..] = parts else { unreachable!("packed integers have codes and scales") };
        let half = f64::from((1u16 << self.bits) - 1) / 2.0;
        let low = -f64::from(1u16 << (self.bits - 1));
        let bytes = packed.len() / band.rows().max(1);
        packed.fill(0);
        // The form counts codes from zero.
        let code = |x: f64| (x.clamp(low, -low - 1.0).round_ties_even() - low) as u8;
        let put = |row: usize, at: usize, x: f64| match self.bits {
            4 => packed[row * bytes + at / 2] |= code(x) << (4 * (at % 2)),
            _ => packed[row * bytes + at] = code(x),
        };
        encode(band, self.group as usize, half, scales, put)
    }
}

impl Quantizer for Fp8Rows {
    fn encoding(&self, input: Dtype) -> Encoding {
        Encoding::Fp8Rows { scale: input }
    }

    fn encode(&self, band: Band<'_>, parts: &mut [Vec<u8>]) -> Notes {
        let [codes, scales] = parts else { unreachable!("FP8 has codes and scales") };
        let put = |row: usize, at: usize, x: f64| codes[row * band.cols + at] = fp8::encode(x as f32);
        encode(band, band.cols, f64::from(fp8::MAX), scales, put)
    }
}

fn width(dtype: Dtype) -> usize {
    (dtype.block_bits() / 8) as usize
}

/// Scales each group and hands on every quotient: its row, its column and itself.
fn encode(band: Band<'_>, group: usize, half: f64, scales: &mut [u8], put: impl FnMut(usize, usize, f64)) -> Notes {
    match band.numbers {
        Numbers::F32(numbers) => groups(numbers, band, group, half, scales, put),
        Numbers::F64(numbers) => groups(numbers, band, group, half, scales, put),
    }
}

fn groups<T: Real>(
    numbers: &[T],
    band: Band<'_>,
    group: usize,
    half: f64,
    scales: &mut [u8],
    mut put: impl FnMut(usize, usize, f64),
) -> Notes {
    if let Some(at) = super::first_non_finite(numbers) {
        return Notes { non_finite: Some(at), ..Notes::default() };
    }
    for (row, line) in numbers.chunks_exact(band.cols.max(1)).enumerate() {
        for (g, (part, place)) in line
            .chunks(group)
            .zip(scales[row * line.len().div_ceil(group) * width(band.dtype)..].chunks_exact_mut(width(band.dtype)))
            .enumerate()
        {
            let amax = part.iter().fold(0f64, |most, x| most.max(x.abs().to_f64()));
            let scale = match divide(amax, half, band.dtype) {
                0.0 => epsilon(band.dtype),
                scale => scale,
            };
            plain::encode(&[scale], band.dtype, place);
            for (i, x) in part.iter().enumerate() {
                put(row, g * group + i, divide(x.to_f64(), scale, band.dtype));
            }
        }
    }
    Notes::default()
}

/// The quotient as the dtype's own arithmetic rounds it. Division in f64 rounded to f32 is division in f32; half types divide
/// in f32 and round once more.
fn divide(a: f64, b: f64, dtype: Dtype) -> f64 {
    match dtype {
        Dtype::F64 => a / b,
        Dtype::F16 => f16::from_f32((a / b) as f32).to_f64(),
        Dtype::BF16 => bf16::from_f32((a / b) as f32).to_f64(),
        _ => f64::from((a / b) as f32),
    }
}

fn epsilon(dtype: Dtype) -> f64 {
    match dtype {
        Dtype::F64 => f64::EPSILON,
        Dtype::F16 => f16::EPSILON.to_f64(),
        Dtype::BF16 => bf16::EPSILON.to_f64(),
        _ => f64::from(f32::EPSILON),
    }
}
