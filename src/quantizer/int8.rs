//! Symmetric int8 with one scale for each row, as compressed-tensors' min-max observer computes it (its
//! `calculate_qparams` and `quantize`), in the weight's own dtype.
//!
//! scale = amax / 127.5, or the dtype's epsilon for a row of zeros; code = clamp(round(w / scale), −128, 127), ties to even.
//! In f16 and bf16 the scale and the quotient are each rounded to the dtype before the next step.

use formats::Dtype;
use half::f16;

use super::{Band, Notes, Numbers, Quantizer};
use crate::encoding::Encoding;
use crate::encoding::plain::{self, Real, bf16_bits};
use crate::simd::{Simd, Task, dispatch};

/// (q_max − q_min) / 2 for eight bits.
const HALF_RANGE: f64 = 127.5;

/// Round-to-nearest int8, a scale for each row.
#[derive(Debug, Clone, Copy)]
pub struct Int8Rows;

impl Quantizer for Int8Rows {
    fn encoding(&self, input: Dtype) -> Encoding {
        Encoding::Int8Rows { scale: input }
    }

    fn encode(&self, band: Band<'_>, parts: &mut [Vec<u8>]) -> Notes {
        let [codes, scales] = parts else { unreachable!("int8 has codes and scales") };
        match (band.numbers, band.dtype) {
            (Numbers::F64(numbers), dtype) => encode(numbers, band.cols, dtype, codes, scales, Double),
            (Numbers::F32(numbers), Dtype::F16) => encode(numbers, band.cols, Dtype::F16, codes, scales, Half),
            (Numbers::F32(numbers), Dtype::BF16) => encode(numbers, band.cols, Dtype::BF16, codes, scales, Brain),
            (Numbers::F32(numbers), dtype) => encode(numbers, band.cols, dtype, codes, scales, Single),
        }
    }
}

fn encode<T: Real, A: Arithmetic<T>>(
    numbers: &[T],
    cols: usize,
    dtype: Dtype,
    codes: &mut [u8],
    scales: &mut [u8],
    arithmetic: A,
) -> Notes {
    dispatch(Rows { numbers, cols, dtype, codes, scales, arithmetic })
}

/// The arithmetic of one dtype.
trait Arithmetic<T> {
    /// amax / 127.5 in the dtype, and its epsilon in place of zero.
    fn scale(&self, amax: T) -> T;
    /// Codes of a row.
    fn codes(&self, row: &[T], scale: T, out: &mut [u8]);
}

/// A band's rows to be encoded.
struct Rows<'a, T, A> {
    numbers: &'a [T],
    cols: usize,
    dtype: Dtype,
    codes: &'a mut [u8],
    scales: &'a mut [u8],
    arithmetic: A,
}

impl<T: Real, A: Arithmetic<T>> Task for Rows<'_, T, A> {
    type Output = Notes;

    fn run<S: Simd>(self, simd: S) -> Notes {
        let Self { numbers, cols, dtype, codes, scales, arithmetic } = self;
        let mut notes = Notes::default();
        let width = (dtype.block_bits() / 8) as usize;
        if cols == 0 {
            return notes;
        }
        for (r, row) in numbers.chunks_exact(cols).enumerate() {
            let (amax, finite) = simd.run(
                #[inline(always)]
                || amax(row),
            );
            if !finite && notes.non_finite.is_none() {
                notes.non_finite = super::first_non_finite(row).map(|at| r * cols + at);
            }
            let scale = arithmetic.scale(amax);
            plain::encode(&[scale], dtype, &mut scales[r * width..][..width]);
            let codes = &mut codes[r * cols..][..cols];
            simd.run(
                #[inline(always)]
                || arithmetic.codes(row, scale, codes),
            );
        }
        notes
    }
}

/// The largest absolute value, and whether all are finite. In sixteen lanes, so that it compiles to vector instructions.
#[inline(always)]
fn amax<T: Real>(row: &[T]) -> (T, bool) {
    const LANES: usize = 16;
    let mut largest = [T::default(); LANES];
    let mut finite = true;
    let (runs, rest) = row.as_chunks::<LANES>();
    for run in runs {
        for (most, &x) in largest.iter_mut().zip(run) {
            let size = x.abs();
            *most = if size > *most { size } else { *most };
            finite &= size <= T::MAX;
        }
    }
    for (most, &x) in largest.iter_mut().zip(rest) {
        let size = x.abs();
        *most = if size > *most { size } else { *most };
        finite &= size <= T::MAX;
    }
    (largest.into_iter().fold(T::default(), |most, x| if x > most { x } else { most }), finite)
}

/// 1.5 · 2²³: f32 numbers of this size are the integers, so that adding it to |x| < 2²² rounds to the nearest, ties to even,
/// and leaves the integer in the last bits. That compiles to a vector addition, where a conversion that saturates does not.
const MAGIC: f32 = 12_582_912.0;

/// The code of a quotient as a byte.
#[inline(always)]
fn code(quotient: f32) -> u8 {
    (quotient.clamp(-128.0, 127.0) + MAGIC).to_bits() as u8
}

struct Single;

impl Arithmetic<f32> for Single {
    fn scale(&self, amax: f32) -> f32 {
        or_epsilon(amax / HALF_RANGE as f32, f32::EPSILON)
    }
    #[inline(always)]
    fn codes(&self, row: &[f32], scale: f32, out: &mut [u8]) {
        for (to, x) in out.iter_mut().zip(row) {
            *to = code(x / scale);
        }
    }
}

struct Brain;

#[inline(always)]
fn to_bf16(x: f32) -> f32 {
    f32::from_bits(u32::from(bf16_bits(x)) << 16)
}

impl Arithmetic<f32> for Brain {
    fn scale(&self, amax: f32) -> f32 {
        or_epsilon(to_bf16(amax / HALF_RANGE as f32), half::bf16::EPSILON.to_f32())
    }
    #[inline(always)]
    fn codes(&self, row: &[f32], scale: f32, out: &mut [u8]) {
        for (to, x) in out.iter_mut().zip(row) {
            *to = code(to_bf16(x / scale));
        }
    }
}

struct Half;

impl Arithmetic<f32> for Half {
    fn scale(&self, amax: f32) -> f32 {
        or_epsilon(f16::from_f32(amax / HALF_RANGE as f32).to_f32(), f16::EPSILON.to_f32())
    }
    #[inline(always)]
    fn codes(&self, row: &[f32], scale: f32, out: &mut [u8]) {
        for (to, x) in out.iter_mut().zip(row) {
            *to = code(to_f16_small(x / scale));
        }
    }
}

/// Rounds a quotient to f16's eleven bits of precision. Quotients here are at most some 130 in size, so f16's range does not
/// matter; below 2⁻¹⁴, where f16 has fewer bits, every quotient becomes code 0 either way.
#[inline(always)]
fn to_f16_small(x: f32) -> f32 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x0fff + ((bits >> 13) & 1)) & !0x1fff;
    f32::from_bits(rounded)
}

struct Double;

impl Arithmetic<f64> for Double {
    fn scale(&self, amax: f64) -> f64 {
        let scale = amax / HALF_RANGE;
        if scale == 0.0 { f64::EPSILON } else { scale }
    }
    #[inline(always)]
    fn codes(&self, row: &[f64], scale: f64, out: &mut [u8]) {
        const MAGIC: f64 = 6_755_399_441_055_744.0;
        for (to, x) in out.iter_mut().zip(row) {
            let quotient = (x / scale).clamp(-128.0, 127.0);
            *to = (quotient + MAGIC).to_bits() as u8;
        }
    }
}

fn or_epsilon(scale: f32, epsilon: f32) -> f32 {
    if scale == 0.0 { epsilon } else { scale }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fast_roundings_are_the_exact_ones() {
        for i in 0..2_000_000u32 {
            let x = (i as f32 - 1_000_000.0) * 0.000_131;
            assert_eq!(code(x), x.clamp(-128.0, 127.0).round_ties_even() as i32 as u8, "{x}");
            let exact = f16::from_f32(x).to_f32();
            assert_eq!(code(to_f16_small(x)), code(exact), "{x}");
        }
        for tie in [0.5f32, 1.5, -0.5, -2.5, 126.5, 127.5, -127.5, -128.5] {
            assert_eq!(code(tie), tie.clamp(-128.0, 127.0).round_ties_even() as i32 as u8);
        }
    }

    #[test]
    fn a_row_of_zeros_gets_the_dtypes_epsilon() {
        for (dtype, bytes) in [
            (Dtype::F32, f32::EPSILON.to_le_bytes().to_vec()),
            (Dtype::BF16, half::bf16::EPSILON.to_le_bytes().to_vec()),
            (Dtype::F16, f16::EPSILON.to_le_bytes().to_vec()),
        ] {
            let mut parts = vec![vec![1; 3], vec![0; bytes.len()]];
            let band = Band { numbers: Numbers::F32(&[0.0, -0.0, 0.0]), first_row: 0, cols: 3, dtype };
            assert_eq!(Int8Rows.encode(band, &mut parts), Notes::default());
            assert_eq!(parts, [vec![0; 3], bytes]);
        }
    }

    #[test]
    fn non_finite_numbers_are_found() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for at in [0, 17, 39] {
                let mut numbers = [1.0; 40];
                numbers[at] = bad;
                let mut parts = vec![vec![0; 40], vec![0; 8]];
                let band = Band { numbers: Numbers::F32(&numbers), first_row: 0, cols: 20, dtype: Dtype::F32 };
                assert_eq!(Int8Rows.encode(band, &mut parts).non_finite, Some(at));
            }
        }
    }
}
