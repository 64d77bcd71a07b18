//! Symmetric codes with a scale for each row or group, as compressed-tensors' min-max observer computes them (its
//! `calculate_qparams` and `quantize`), in the weight's own dtype.
//!
//! scale = amax / h, or the dtype's epsilon for zeros only, where h is half of the codes' range; code = clamp(w / scale),
//! rounded to nearest, ties to even. In f16 and bf16 the scale and the quotient are each rounded to the dtype before the next
//! step.

use std::marker::PhantomData;

use formats::Dtype;
use half::{bf16, f16};

use super::{Band, Notes, Numbers, Quantizer};
use crate::encoding::plain::{self, Real, bf16_bits};
use crate::encoding::{Encoding, fp8};
use crate::simd::{Simd, Task, dispatch};

/// Round-to-nearest int8, a scale for each row.
#[derive(Debug, Clone, Copy)]
pub struct Int8Rows;

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

impl Quantizer for Int8Rows {
    fn encoding(&self, input: Dtype) -> Encoding {
        Encoding::Int8Rows { scale: input }
    }

    fn encode(&self, band: Band<'_>, parts: &mut [Vec<u8>]) -> Notes {
        encode::<Integers<-128, 0>>(band, band.cols, parts)
    }
}

impl Quantizer for PackedInt {
    fn encoding(&self, input: Dtype) -> Encoding {
        Encoding::PackedInt { bits: self.bits, group: self.group, scale: input }
    }

    fn encode(&self, band: Band<'_>, parts: &mut [Vec<u8>]) -> Notes {
        match self.bits {
            4 => encode::<Integers<-8, -8>>(band, self.group as usize, parts),
            _ => encode::<Integers<-128, -128>>(band, self.group as usize, parts),
        }
    }
}

impl Quantizer for Fp8Rows {
    fn encoding(&self, input: Dtype) -> Encoding {
        Encoding::Fp8Rows { scale: input }
    }

    fn encode(&self, band: Band<'_>, parts: &mut [Vec<u8>]) -> Notes {
        encode::<Fp8>(band, band.cols, parts)
    }
}

/// A set of codes.
trait Codes {
    /// Half of the range that they cover.
    const HALF_RANGE: f64;
    /// Whether two share a byte, the first in its low bits; a row is whole bytes.
    const PAIRED: bool = false;

    /// The code of a quotient.
    fn single(quotient: f32) -> u8;
    /// The code of a quotient in f64.
    fn double(quotient: f64) -> u8;
}

/// Integers from `LOW` to `−LOW − 1`, as codes counted from `FIRST`.
struct Integers<const LOW: i16, const FIRST: i16>;

impl<const LOW: i16, const FIRST: i16> Codes for Integers<LOW, FIRST> {
    const HALF_RANGE: f64 = -(LOW as f64) - 0.5;
    const PAIRED: bool = LOW == -8;

    #[inline(always)]
    fn single(quotient: f32) -> u8 {
        // f32 numbers of this size are the integers, so that adding it to |x| < 2²² rounds to the nearest, ties to even, and
        // leaves the integer in the last bits. That compiles to a vector addition, where a conversion that saturates does not.
        const MAGIC: f32 = 12_582_912.0;
        let bits = (quotient.clamp(f32::from(LOW), f32::from(-LOW - 1)) + MAGIC).to_bits() as u8;
        bits.wrapping_sub(FIRST as u8)
    }
    #[inline(always)]
    fn double(quotient: f64) -> u8 {
        const MAGIC: f64 = 6_755_399_441_055_744.0;
        let bits = (quotient.clamp(f64::from(LOW), f64::from(-LOW - 1)) + MAGIC).to_bits() as u8;
        bits.wrapping_sub(FIRST as u8)
    }
}

/// Eight bits of floating point.
struct Fp8;

impl Codes for Fp8 {
    const HALF_RANGE: f64 = fp8::MAX as f64;

    #[inline(always)]
    fn single(quotient: f32) -> u8 {
        fp8::encode(quotient)
    }
    #[inline(always)]
    fn double(quotient: f64) -> u8 {
        fp8::encode(quotient as f32)
    }
}

/// The arithmetic of int8 for one number at a time.
pub(super) mod int8 {
    use super::{Arithmetic, Brain, Codes as _, Double, Dtype, Half, Integers, Single};

    type Int8 = Integers<-128, 0>;

    /// The scale of numbers of a dtype of which this is the largest.
    pub fn scale(amax: f64, dtype: Dtype) -> f64 {
        match dtype {
            Dtype::F64 => Double::scale(amax, Int8::HALF_RANGE),
            Dtype::F16 => f64::from(Half::scale(amax as f32, Int8::HALF_RANGE)),
            Dtype::BF16 => f64::from(Brain::scale(amax as f32, Int8::HALF_RANGE)),
            _ => f64::from(Single::scale(amax as f32, Int8::HALF_RANGE)),
        }
    }

    /// The code of a quotient.
    #[inline(always)]
    pub fn single(quotient: f32) -> u8 {
        Int8::single(quotient)
    }

    /// The code of a quotient in f64.
    #[inline(always)]
    pub fn double(quotient: f64) -> u8 {
        Int8::double(quotient)
    }
}

/// Encodes a band with a scale for each `group` of a row, in the band's dtype. The first part gets the codes, the second the
/// scales.
fn encode<C: Codes>(band: Band<'_>, group: usize, parts: &mut [Vec<u8>]) -> Notes {
    let [codes, scales, ..] = parts else { unreachable!("these encodings have codes and scales") };
    let parts = Parts { cols: band.cols, group, dtype: band.dtype, codes, scales };
    match (band.numbers, band.dtype) {
        (Numbers::F64(numbers), _) => dispatch(Rows::<_, Double, C>::new(numbers, parts)),
        (Numbers::F32(numbers), Dtype::F16) => dispatch(Rows::<_, Half, C>::new(numbers, parts)),
        (Numbers::F32(numbers), Dtype::BF16) => dispatch(Rows::<_, Brain, C>::new(numbers, parts)),
        (Numbers::F32(numbers), _) => dispatch(Rows::<_, Single, C>::new(numbers, parts)),
    }
}

/// Where codes and scales go.
struct Parts<'a> {
    cols: usize,
    group: usize,
    dtype: Dtype,
    codes: &'a mut [u8],
    scales: &'a mut [u8],
}

/// A band's rows to be encoded.
struct Rows<'a, T, A, C> {
    numbers: &'a [T],
    parts: Parts<'a>,
    kinds: PhantomData<(A, C)>,
}

impl<'a, T, A, C> Rows<'a, T, A, C> {
    fn new(numbers: &'a [T], parts: Parts<'a>) -> Self {
        Self { numbers, parts, kinds: PhantomData }
    }
}

impl<T: Real, A: Arithmetic<T>, C: Codes> Task for Rows<'_, T, A, C> {
    type Output = Notes;

    fn run<S: Simd>(self, simd: S) -> Notes {
        let Self { numbers, parts: Parts { cols, group, dtype, codes, scales }, .. } = self;
        let mut notes = Notes::default();
        if cols == 0 {
            return notes;
        }
        let rows = numbers.len() / cols;
        let width = (dtype.block_bits() / 8) as usize * cols.div_ceil(group);
        let mut row_scales = Vec::with_capacity(cols.div_ceil(group));
        let mut loose = vec![0; if C::PAIRED { cols } else { 0 }];
        let lines = codes.chunks_exact_mut(codes.len() / rows.max(1)).zip(scales.chunks_exact_mut(width));
        for (r, (row, (codes, scales))) in numbers.chunks_exact(cols).zip(lines).enumerate() {
            row_scales.clear();
            let into = if C::PAIRED { &mut loose[..] } else { &mut *codes };
            for (part, into) in row.chunks(group).zip(into.chunks_mut(group)) {
                simd.run(
                    #[inline(always)]
                    || {
                        let (amax, finite) = amax(part);
                        if !finite && notes.non_finite.is_none() {
                            notes.non_finite = super::first_non_finite(row).map(|at| r * cols + at);
                        }
                        let scale = A::scale(amax, C::HALF_RANGE);
                        row_scales.push(scale);
                        for (to, &x) in into.iter_mut().zip(part) {
                            *to = A::code::<C>(x, scale);
                        }
                    },
                );
            }
            plain::encode(&row_scales, dtype, scales);
            if C::PAIRED {
                simd.run(
                    #[inline(always)]
                    || pair(&loose, codes),
                );
            }
        }
        notes
    }
}

/// Two codes in each byte.
#[inline(always)]
fn pair(loose: &[u8], codes: &mut [u8]) {
    let (pairs, rest) = loose.as_chunks::<2>();
    for (to, [low, high]) in codes.iter_mut().zip(pairs) {
        *to = low | high << 4;
    }
    if let ([last], Some(to)) = (rest, codes.last_mut()) {
        *to = *last;
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

/// The arithmetic of one dtype.
trait Arithmetic<T> {
    /// amax / half in the dtype, and its epsilon in place of zero.
    fn scale(amax: T, half: f64) -> T;
    /// The code of a number.
    fn code<C: Codes>(x: T, scale: T) -> u8;
}

struct Single;

impl Arithmetic<f32> for Single {
    #[inline(always)]
    fn scale(amax: f32, half: f64) -> f32 {
        or_epsilon(amax / half as f32, f32::EPSILON)
    }
    #[inline(always)]
    fn code<C: Codes>(x: f32, scale: f32) -> u8 {
        C::single(x / scale)
    }
}

struct Brain;

#[inline(always)]
fn to_bf16(x: f32) -> f32 {
    f32::from_bits(u32::from(bf16_bits(x)) << 16)
}

impl Arithmetic<f32> for Brain {
    #[inline(always)]
    fn scale(amax: f32, half: f64) -> f32 {
        or_epsilon(to_bf16(amax / half as f32), bf16::EPSILON.to_f32())
    }
    #[inline(always)]
    fn code<C: Codes>(x: f32, scale: f32) -> u8 {
        C::single(to_bf16(x / scale))
    }
}

struct Half;

impl Arithmetic<f32> for Half {
    #[inline(always)]
    fn scale(amax: f32, half: f64) -> f32 {
        or_epsilon(f16::from_f32(amax / half as f32).to_f32(), f16::EPSILON.to_f32())
    }
    #[inline(always)]
    fn code<C: Codes>(x: f32, scale: f32) -> u8 {
        C::single(to_f16_small(x / scale))
    }
}

/// Rounds a quotient to f16's eleven bits of precision. Quotients here are at most some 450 in size, so f16's range does not
/// matter; below 2⁻¹⁴, where f16 has fewer bits, every quotient becomes code 0 either way.
#[inline(always)]
fn to_f16_small(x: f32) -> f32 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x0fff + ((bits >> 13) & 1)) & !0x1fff;
    f32::from_bits(rounded)
}

struct Double;

impl Arithmetic<f64> for Double {
    #[inline(always)]
    fn scale(amax: f64, half: f64) -> f64 {
        let scale = amax / half;
        if scale == 0.0 { f64::EPSILON } else { scale }
    }
    #[inline(always)]
    fn code<C: Codes>(x: f64, scale: f64) -> u8 {
        C::double(x / scale)
    }
}

#[inline(always)]
fn or_epsilon(scale: f32, epsilon: f32) -> f32 {
    if scale == 0.0 { epsilon } else { scale }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Int8 = Integers<-128, 0>;
    type Int4 = Integers<-8, -8>;

    #[test]
    fn the_fast_roundings_are_the_exact_ones() {
        for i in 0..2_000_000u32 {
            let x = (i as f32 - 1_000_000.0) * 0.000_131;
            assert_eq!(Int8::single(x), x.clamp(-128.0, 127.0).round_ties_even() as i32 as u8, "{x}");
            assert_eq!(Int4::single(x), (x.clamp(-8.0, 7.0).round_ties_even() + 8.0) as u8, "{x}");
            assert_eq!(Int4::double(f64::from(x)), Int4::single(x), "{x}");
            let exact = f16::from_f32(x).to_f32();
            assert_eq!(Int8::single(to_f16_small(x)), Int8::single(exact), "{x}");
            assert_eq!(fp8::encode(to_f16_small(3.5 * x)), fp8::encode(f16::from_f32(3.5 * x).to_f32()), "{x}");
        }
        for tie in [0.5f32, 1.5, -0.5, -2.5, 126.5, 127.5, -127.5, -128.5] {
            assert_eq!(Int8::single(tie), tie.clamp(-128.0, 127.0).round_ties_even() as i32 as u8);
        }
    }

    #[test]
    fn zeros_get_the_dtypes_epsilon() {
        for (dtype, bytes) in [
            (Dtype::F32, f32::EPSILON.to_le_bytes().to_vec()),
            (Dtype::BF16, bf16::EPSILON.to_le_bytes().to_vec()),
            (Dtype::F16, f16::EPSILON.to_le_bytes().to_vec()),
        ] {
            let band = Band { numbers: Numbers::F32(&[0.0, -0.0, 0.0]), first_row: 0, cols: 3, dtype };
            let all: [(&dyn Quantizer, Vec<u8>); 3] = [
                (&Int8Rows, vec![0; 3]),
                (&PackedInt { bits: 4, group: 3 }, vec![0x88, 0x08]),
                (&Fp8Rows, vec![0, 0x80, 0]),
            ];
            for (quantizer, codes) in all {
                let mut parts = vec![vec![1; codes.len()], vec![0; bytes.len()]];
                assert_eq!(quantizer.encode(band, &mut parts), Notes::default());
                assert_eq!(parts, [codes, bytes.clone()]);
            }
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
