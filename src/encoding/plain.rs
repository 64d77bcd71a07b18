//! Plain numbers: f64, f32, f16, bf16 and int8 from and to little-endian bytes.

use formats::Dtype;
use half::{bf16, f16};

pub use crate::simd::convert::bf16_bits;
use crate::simd::convert::{bf16_to_f32, f16_to_f32, f32_to_bf16, f32_to_f16};
use crate::simd::{Simd, Task, dispatch};

/// A type to compute in: f32, or f64 for weights that are stored so.
pub trait Real: Copy + Send + Sync + Default + PartialOrd + 'static {
    /// Converts plain little-endian numbers. `bytes` holds exactly `out.len()` of them; the dtype is one of
    /// f64, f32, f16 and bf16.
    fn decode(dtype: Dtype, bytes: &[u8], out: &mut [Self]);
    /// Widens or narrows from f32.
    fn from_f32(x: f32) -> Self;
    /// The nearest f32.
    fn to_f32(self) -> f32;
    /// The value as f64.
    fn to_f64(self) -> f64;
    /// The size.
    fn abs(self) -> Self;
    /// The largest finite number.
    const MAX: Self;
}

fn each<const N: usize, T>(bytes: &[u8], out: &mut [T], convert: impl Fn([u8; N]) -> T) {
    let (numbers, rest) = bytes.as_chunks::<N>();
    assert!(numbers.len() == out.len() && rest.is_empty(), "as many bytes as numbers");
    for (to, from) in out.iter_mut().zip(numbers) {
        *to = convert(*from);
    }
}

impl Real for f32 {
    fn decode(dtype: Dtype, bytes: &[u8], out: &mut [f32]) {
        match dtype {
            Dtype::F32 => each(bytes, out, f32::from_le_bytes),
            Dtype::F16 => f16_to_f32(bytes, out),
            Dtype::BF16 => bf16_to_f32(bytes, out),
            Dtype::F64 => each(bytes, out, |b| f64::from_le_bytes(b) as f32),
            _ => unreachable!("{dtype} is not a plain floating-point dtype"),
        }
    }
    fn from_f32(x: f32) -> f32 {
        x
    }
    fn to_f32(self) -> f32 {
        self
    }
    fn to_f64(self) -> f64 {
        f64::from(self)
    }
    fn abs(self) -> f32 {
        f32::abs(self)
    }
    const MAX: f32 = f32::MAX;
}

impl Real for f64 {
    fn decode(dtype: Dtype, bytes: &[u8], out: &mut [f64]) {
        match dtype {
            Dtype::F64 => each(bytes, out, f64::from_le_bytes),
            Dtype::F32 => each(bytes, out, |b| f64::from(f32::from_le_bytes(b))),
            Dtype::F16 => each(bytes, out, |b| f16::from_le_bytes(b).to_f64()),
            Dtype::BF16 => each(bytes, out, |b| bf16::from_le_bytes(b).to_f64()),
            _ => unreachable!("{dtype} is not a plain floating-point dtype"),
        }
    }
    fn from_f32(x: f32) -> f64 {
        f64::from(x)
    }
    fn to_f32(self) -> f32 {
        self as f32
    }
    fn to_f64(self) -> f64 {
        self
    }
    fn abs(self) -> f64 {
        f64::abs(self)
    }
    const MAX: f64 = f64::MAX;
}

/// Writes numbers as little-endian bytes of a plain dtype. f32 numbers that a narrower dtype cannot hold must have been
/// rounded by a quantizer before; here the nearest is taken, ties to even.
pub fn encode<T: Real>(numbers: &[T], dtype: Dtype, out: &mut [u8]) {
    fn each<const N: usize, T: Copy>(numbers: &[T], out: &mut [u8], convert: impl Fn(T) -> [u8; N]) {
        let (places, rest) = out.as_chunks_mut::<N>();
        assert!(places.len() == numbers.len() && rest.is_empty(), "as many bytes as numbers");
        for (to, &from) in places.iter_mut().zip(numbers) {
            *to = convert(from);
        }
    }
    /// Narrowed by way of f32, so many at a time that they stay in the first-level cache.
    fn halves<T: Real>(numbers: &[T], out: &mut [u8], narrow: impl Fn(&[f32], &mut [u8])) {
        const RUN: usize = 1024;
        assert!(out.len() == 2 * numbers.len(), "as many bytes as numbers");
        let mut wide = [0f32; RUN];
        for (from, to) in numbers.chunks(RUN).zip(out.chunks_mut(2 * RUN)) {
            let wide = &mut wide[..from.len()];
            for (w, x) in wide.iter_mut().zip(from) {
                *w = x.to_f32();
            }
            narrow(wide, to);
        }
    }
    match dtype {
        Dtype::F64 => each(numbers, out, |x| x.to_f64().to_le_bytes()),
        Dtype::F32 => each(numbers, out, |x| x.to_f32().to_le_bytes()),
        Dtype::F16 => halves(numbers, out, f32_to_f16),
        Dtype::BF16 => halves(numbers, out, f32_to_bf16),
        _ => unreachable!("{dtype} is not a plain floating-point dtype"),
    }
}

/// Whether a run of plain floating-point bytes holds NaN or infinity, and where: the index of the first.
pub fn first_non_finite(dtype: Dtype, bytes: &[u8]) -> Option<usize> {
    struct Scan<'a, const N: usize, F>(&'a [u8], F);

    impl<const N: usize, F: Fn([u8; N]) -> bool> Task for Scan<'_, N, F> {
        type Output = Option<usize>;

        fn run<S: Simd>(self, simd: S) -> Option<usize> {
            const BLOCK: usize = 512;
            let Self(bytes, bad) = self;
            let (numbers, _) = bytes.as_chunks::<N>();
            // Without an early exit within a block, the loop is one of vector instructions.
            let found = numbers.chunks(BLOCK).position(|block| {
                simd.run(
                    #[inline(always)]
                    || block.iter().fold(false, |any, &b| any | bad(b)),
                )
            })?;
            let at = numbers[found * BLOCK..].iter().position(|&b| bad(b))?;
            Some(found * BLOCK + at)
        }
    }

    match dtype {
        Dtype::F64 => dispatch(Scan(bytes, |b| u64::from_le_bytes(b) & 0x7ff0_0000_0000_0000 == 0x7ff0_0000_0000_0000)),
        Dtype::F32 => dispatch(Scan(bytes, |b| u32::from_le_bytes(b) & 0x7f80_0000 == 0x7f80_0000)),
        Dtype::F16 => dispatch(Scan(bytes, |b| u16::from_le_bytes(b) & 0x7c00 == 0x7c00)),
        Dtype::BF16 => dispatch(Scan(bytes, |b| u16::from_le_bytes(b) & 0x7f80 == 0x7f80)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_types_agree_with_the_library_for_every_code() {
        let codes: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
        let mut out = vec![0f32; 1 << 16];
        f32::decode(Dtype::F16, &codes, &mut out);
        for (code, &x) in (0..=u16::MAX).zip(&out) {
            let expected = f16::from_bits(code).to_f32();
            assert!(x == expected || (x.is_nan() && expected.is_nan()), "{code:x}");
        }
        f32::decode(Dtype::BF16, &codes, &mut out);
        for (code, &x) in (0..=u16::MAX).zip(&out) {
            assert_eq!(x.to_bits(), u32::from(code) << 16);
            assert!(x.is_nan() || bf16_bits(x) == code);
        }
    }

    #[test]
    fn rounding_to_half_types_is_to_nearest_even() {
        let numbers: Vec<f32> = (0..200_000u32).map(|i| f32::from_bits(i.wrapping_mul(2_654_435_761))).collect();
        let mut out = vec![0u8; 2 * numbers.len()];
        encode(&numbers, Dtype::BF16, &mut out);
        for (x, b) in numbers.iter().zip(out.as_chunks::<2>().0) {
            assert!(x.is_nan() || bf16::from_le_bytes(*b) == bf16::from_f32(*x), "{x}");
        }
        encode(&numbers, Dtype::F16, &mut out);
        for (x, b) in numbers.iter().zip(out.as_chunks::<2>().0) {
            assert!(x.is_nan() || f16::from_le_bytes(*b) == f16::from_f32(*x), "{x}");
        }
    }

    #[test]
    fn non_finite_numbers_are_found_in_every_dtype() {
        for dtype in [Dtype::F64, Dtype::F32, Dtype::F16, Dtype::BF16] {
            for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
                let mut numbers = vec![1.5f64; 700];
                let mut bytes = vec![0; dtype.bytes_of(700).unwrap() as usize];
                encode(&numbers, dtype, &mut bytes);
                assert_eq!(first_non_finite(dtype, &bytes), None);
                numbers[513] = bad;
                encode(&numbers, dtype, &mut bytes);
                assert_eq!(first_non_finite(dtype, &bytes), Some(513), "{dtype}");
            }
        }
    }
}
