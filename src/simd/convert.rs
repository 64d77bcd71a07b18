//! Half-precision numbers, as bytes lie in a file, to f32 and back. To f32 is exact; back is to nearest, ties to even, and
//! beyond the largest number to infinity.

use std::sync::OnceLock;

use super::{Isa, Kernel, Simd, Task, dispatch};

/// Converts as many numbers as `out` has room for.
type Widen = unsafe fn(&[u8], &mut [f32]);

/// Converts as many numbers as there are.
type Narrow = unsafe fn(&[f32], &mut [u8]);

static WIDEN: &[Kernel<Widen>] = &[
    #[cfg(target_arch = "x86_64")]
    Kernel { name: "avx512", isa: Isa::Avx512, supported: super::has_avx512, function: x86::widen_avx512 },
    #[cfg(target_arch = "x86_64")]
    Kernel { name: "avx2 f16c", isa: Isa::Avx2, supported: super::has_avx2, function: x86::widen_f16c },
    #[cfg(target_arch = "aarch64")]
    Kernel { name: "neon", isa: Isa::Neon, supported: super::has_neon, function: neon::widen },
    Kernel { name: "scalar", isa: Isa::Scalar, supported: || true, function: widen_all },
];

static NARROW: &[Kernel<Narrow>] = &[
    #[cfg(target_arch = "x86_64")]
    Kernel { name: "avx512", isa: Isa::Avx512, supported: super::has_avx512, function: x86::narrow_avx512 },
    #[cfg(target_arch = "x86_64")]
    Kernel { name: "avx2 f16c", isa: Isa::Avx2, supported: super::has_avx2, function: x86::narrow_f16c },
    #[cfg(target_arch = "aarch64")]
    Kernel { name: "neon", isa: Isa::Neon, supported: super::has_neon, function: neon::narrow },
    Kernel { name: "scalar", isa: Isa::Scalar, supported: || true, function: narrow_all },
];

fn widening() -> &'static Kernel<Widen> {
    static CHOSEN: OnceLock<&'static Kernel<Widen>> = OnceLock::new();
    CHOSEN.get_or_init(|| super::choose(WIDEN))
}

fn narrowing() -> &'static Kernel<Narrow> {
    static CHOSEN: OnceLock<&'static Kernel<Narrow>> = OnceLock::new();
    CHOSEN.get_or_init(|| super::choose(NARROW))
}

/// The name of the chosen version.
pub fn f16_kernel() -> &'static str {
    widening().name
}

/// IEEE half-precision numbers, little-endian, at any alignment, to f32.
///
/// # Panics
/// If `bytes` is not two bytes for each number of `out`.
pub fn f16_to_f32(bytes: &[u8], out: &mut [f32]) {
    assert_eq!(bytes.len(), 2 * out.len(), "two bytes a number");
    // SAFETY: `choose` only returns what the processor supports, and there are two bytes for each number.
    unsafe { (widening().function)(bytes, out) }
}

/// The nearest half-precision numbers, little-endian, at any alignment.
///
/// # Panics
/// If `out` is not two bytes for each number.
pub fn f32_to_f16(numbers: &[f32], out: &mut [u8]) {
    assert_eq!(out.len(), 2 * numbers.len(), "two bytes a number");
    // SAFETY: `choose` only returns what the processor supports, and there are two bytes for each number.
    unsafe { (narrowing().function)(numbers, out) }
}

/// bfloat16 numbers, little-endian, at any alignment, to f32.
///
/// # Panics
/// If `bytes` is not two bytes for each number of `out`.
pub fn bf16_to_f32(bytes: &[u8], out: &mut [f32]) {
    assert_eq!(bytes.len(), 2 * out.len(), "two bytes a number");
    dispatch(WidenBf16(bytes, out));
}

/// The nearest bfloat16 numbers, little-endian, at any alignment.
///
/// # Panics
/// If `out` is not two bytes for each number.
pub fn f32_to_bf16(numbers: &[f32], out: &mut [u8]) {
    assert_eq!(out.len(), 2 * numbers.len(), "two bytes a number");
    dispatch(NarrowBf16(numbers, out));
}

/// [`bf16_to_f32`]: shifts, of which the compiler makes vector instructions.
struct WidenBf16<'a>(&'a [u8], &'a mut [f32]);

impl Task for WidenBf16<'_> {
    type Output = ();

    fn run<S: Simd>(self, simd: S) {
        let Self(bytes, out) = self;
        simd.run(
            #[inline(always)]
            || {
                for (value, pair) in out.iter_mut().zip(bytes.as_chunks().0) {
                    *value = f32::from_bits(u32::from(u16::from_le_bytes(*pair)) << 16);
                }
            },
        );
    }
}

/// [`f32_to_bf16`]
struct NarrowBf16<'a>(&'a [f32], &'a mut [u8]);

impl Task for NarrowBf16<'_> {
    type Output = ();

    fn run<S: Simd>(self, simd: S) {
        let Self(numbers, out) = self;
        simd.run(
            #[inline(always)]
            || {
                for (pair, value) in out.as_chunks_mut().0.iter_mut().zip(numbers) {
                    *pair = bf16_bits(*value).to_le_bytes();
                }
            },
        );
    }
}

/// The bits of the nearest bf16, ties to even; NaN stays NaN.
#[inline(always)]
pub fn bf16_bits(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1));
    let nan = (bits & 0x7fff_ffff) > 0x7f80_0000;
    (if nan { bits | 0x0040_0000 } else { rounded } >> 16) as u16
}

/// The value of the bits of a half-precision number. Without branches, so that loops over it become vector instructions.
#[inline(always)]
pub fn widen(bits: u16) -> f32 {
    let size = u32::from(bits & 0x7fff) << 13;
    let sign = u32::from(bits & 0x8000) << 16;
    // 127 − 15 more in the exponent; for subnormals, a number whose last bits these are, less that number.
    let subnormal = (f32::from_bits(size + (113 << 23)) - f32::from_bits(113 << 23)).to_bits();
    let special = (size + (224 << 23)) | if size > 0x1f << 23 { 1 << 22 } else { 0 };
    let finite = if size < 1 << 23 { subnormal } else { size + (112 << 23) };
    f32::from_bits(sign | if size >= 0x1f << 23 { special } else { finite })
}

/// The bits of the nearest half-precision number. Without branches, as [`widen`].
#[inline(always)]
pub fn narrow(x: f32) -> u16 {
    let sign = (x.to_bits() >> 16 & 0x8000) as u16;
    let size = x.to_bits() & 0x7fff_ffff;
    // Adding a number whose unit in the last place is f16's smallest rounds to that.
    let subnormal = (f32::from_bits(size) + 0.5).to_bits().wrapping_sub(0.5f32.to_bits());
    let normal = size.wrapping_add((size >> 13 & 1) + 0xfff).wrapping_sub(112 << 23) >> 13;
    let special = if size > 0x7f80_0000 { 0x7e00 | (size >> 13 & 0x1ff) } else { 0x7c00 };
    let finite = if size < 113 << 23 { subnormal } else { normal };
    sign | if size >= 143 << 23 { special } else { finite } as u16
}

fn widen_all(bytes: &[u8], out: &mut [f32]) {
    for (value, pair) in out.iter_mut().zip(bytes.as_chunks().0) {
        *value = widen(u16::from_le_bytes(*pair));
    }
}

fn narrow_all(numbers: &[f32], out: &mut [u8]) {
    for (pair, value) in out.as_chunks_mut().0.iter_mut().zip(numbers) {
        *pair = narrow(*value).to_le_bytes();
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{narrow_all, widen_all};

    #[target_feature(enable = "avx2,f16c")]
    pub fn widen_f16c(bytes: &[u8], out: &mut [f32]) {
        let (runs, rest) = out.as_chunks_mut::<8>();
        let (run_bytes, rest_bytes) = bytes.split_at(16 * runs.len());
        for (values, pairs) in runs.iter_mut().zip(run_bytes.as_chunks::<16>().0) {
            // SAFETY: 16 bytes are read and 8 numbers written, which is what the chunks hold; neither needs alignment.
            unsafe { _mm256_storeu_ps(values.as_mut_ptr(), _mm256_cvtph_ps(_mm_loadu_si128(pairs.as_ptr().cast()))) }
        }
        widen_all(rest_bytes, rest);
    }

    #[target_feature(enable = "avx2,avx512f")]
    pub fn widen_avx512(bytes: &[u8], out: &mut [f32]) {
        let (runs, rest) = out.as_chunks_mut::<16>();
        let (run_bytes, rest_bytes) = bytes.split_at(32 * runs.len());
        for (values, pairs) in runs.iter_mut().zip(run_bytes.as_chunks::<32>().0) {
            // SAFETY: 32 bytes are read and 16 numbers written, which is what the chunks hold; neither needs alignment.
            unsafe { _mm512_storeu_ps(values.as_mut_ptr(), _mm512_cvtph_ps(_mm256_loadu_si256(pairs.as_ptr().cast()))) }
        }
        widen_all(rest_bytes, rest);
    }

    #[target_feature(enable = "avx2,f16c")]
    pub fn narrow_f16c(numbers: &[f32], out: &mut [u8]) {
        let (runs, rest) = numbers.as_chunks::<8>();
        let (run_bytes, rest_bytes) = out.split_at_mut(16 * runs.len());
        for (values, pairs) in runs.iter().zip(run_bytes.as_chunks_mut::<16>().0) {
            // SAFETY: 8 numbers are read and 16 bytes written, which is what the chunks hold; neither needs alignment.
            unsafe {
                let values = _mm256_loadu_ps(values.as_ptr());
                _mm_storeu_si128(pairs.as_mut_ptr().cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(values));
            }
        }
        narrow_all(rest, rest_bytes);
    }

    #[target_feature(enable = "avx2,avx512f")]
    pub fn narrow_avx512(numbers: &[f32], out: &mut [u8]) {
        let (runs, rest) = numbers.as_chunks::<16>();
        let (run_bytes, rest_bytes) = out.split_at_mut(32 * runs.len());
        for (values, pairs) in runs.iter().zip(run_bytes.as_chunks_mut::<32>().0) {
            // SAFETY: 16 numbers are read and 32 bytes written, which is what the chunks hold; neither needs alignment.
            unsafe {
                let values = _mm512_loadu_ps(values.as_ptr());
                _mm256_storeu_si256(pairs.as_mut_ptr().cast(), _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(values));
            }
        }
        narrow_all(rest, rest_bytes);
    }
}

#[cfg(target_arch = "aarch64")]
mod neon {
    use std::arch::aarch64::*;

    use super::{narrow_all, widen_all};

    #[target_feature(enable = "neon")]
    pub fn widen(bytes: &[u8], out: &mut [f32]) {
        let (runs, rest) = out.as_chunks_mut::<8>();
        let (run_bytes, rest_bytes) = bytes.split_at(16 * runs.len());
        for (values, pairs) in runs.iter_mut().zip(run_bytes.as_chunks::<16>().0) {
            // SAFETY: 16 bytes are read and 8 numbers written, which is what the chunks hold; neither needs alignment.
            unsafe {
                let halves = vreinterpretq_f16_u8(vld1q_u8(pairs.as_ptr()));
                vst1q_f32(values.as_mut_ptr(), vcvt_f32_f16(vget_low_f16(halves)));
                vst1q_f32(values[4..].as_mut_ptr(), vcvt_high_f32_f16(halves));
            }
        }
        widen_all(rest_bytes, rest);
    }

    #[target_feature(enable = "neon")]
    pub fn narrow(numbers: &[f32], out: &mut [u8]) {
        let (runs, rest) = numbers.as_chunks::<8>();
        let (run_bytes, rest_bytes) = out.split_at_mut(16 * runs.len());
        for (values, pairs) in runs.iter().zip(run_bytes.as_chunks_mut::<16>().0) {
            // SAFETY: 8 numbers are read and 16 bytes written, which is what the chunks hold; neither needs alignment.
            unsafe {
                let low = vcvt_f16_f32(vld1q_f32(values.as_ptr()));
                let halves = vcvt_high_f16_f32(low, vld1q_f32(values[4..].as_ptr()));
                vst1q_u8(pairs.as_mut_ptr(), vreinterpretq_u8_f16(halves));
            }
        }
        narrow_all(rest, rest_bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_f16_and_bf16_converts_exactly() {
        // Odd, so that a tail remains, and from an odd address.
        let codes: Vec<u16> = (0..=u16::MAX).chain([1, 2, 3]).collect();
        let mut bytes = vec![0];
        bytes.extend(codes.iter().flat_map(|code| code.to_le_bytes()));
        let mut out = vec![0.0; codes.len()];
        let mut covered = Vec::new();
        for kernel in WIDEN.iter().filter(|kernel| kernel.is_supported()) {
            covered.push(kernel.name);
            // SAFETY: supported, and two bytes a number.
            unsafe { (kernel.function)(&bytes[1..], &mut out) };
            for (code, value) in codes.iter().zip(&out) {
                assert_eq!(value.to_bits(), half::f16::from_bits(*code).to_f32_const().to_bits(), "{code:04x}");
            }
        }
        println!("f16 to f32: covered {}", covered.join(", "));
        #[cfg(target_arch = "aarch64")]
        assert_eq!(covered.contains(&"neon"), super::super::has_neon());
        bf16_to_f32(&bytes[1..], &mut out);
        for (code, value) in codes.iter().zip(&out) {
            assert_eq!(value.to_bits(), u32::from(*code) << 16);
        }
        f16_to_f32(&[], &mut []);
    }

    #[test]
    fn rounding_to_f16_is_that_of_the_library() {
        let scattered = (0..1_000_003u32).map(|i| i.wrapping_mul(2_654_435_761));
        // Around every f16: itself, the middle to the next, and their neighbours.
        let near = (0..=u16::MAX).flat_map(|code| {
            let bits = half::f16::from_bits(code).to_f32_const().to_bits();
            [0, 1, 0xfff, 0x1000, 0x1001].map(|more| bits.wrapping_add(more))
        });
        let below = [0x3300_0000u32, 0x3300_0001, 0x32ff_ffff, 0x477f_efff, 0x477f_f000, 1, 0x8000_0000];
        let numbers: Vec<f32> = scattered.chain(near).chain(below).map(f32::from_bits).collect();
        let mut out = vec![0; 2 * numbers.len()];
        let mut covered = Vec::new();
        for kernel in NARROW.iter().filter(|kernel| kernel.is_supported()) {
            covered.push(kernel.name);
            // SAFETY: supported, and two bytes a number.
            unsafe { (kernel.function)(&numbers, &mut out) };
            for (x, pair) in numbers.iter().zip(out.as_chunks::<2>().0) {
                let (found, expected) = (half::f16::from_le_bytes(*pair), half::f16::from_f32_const(*x));
                let same = found.to_bits() == expected.to_bits() || (found.is_nan() && expected.is_nan());
                assert!(same, "{}: {x:e} gives {:04x}, not {:04x}", kernel.name, found.to_bits(), expected.to_bits());
            }
        }
        println!("f32 to f16: covered {}", covered.join(", "));
        #[cfg(target_arch = "aarch64")]
        assert_eq!(covered.contains(&"neon"), super::super::has_neon());
        f32_to_bf16(&numbers, &mut out);
        for (x, pair) in numbers.iter().zip(out.as_chunks::<2>().0) {
            assert!(x.is_nan() || half::bf16::from_le_bytes(*pair) == half::bf16::from_f32(*x), "{x:e}");
        }
        f32_to_f16(&[], &mut []);
    }
}
