//! Half-precision numbers, as bytes lie in a file, to f32. Exact.

use std::sync::OnceLock;

use super::{Isa, Kernel};

/// Converts as many numbers as `out` has room for.
type Convert = unsafe fn(&[u8], &mut [f32]);

static F16: &[Kernel<Convert>] = &[
    #[cfg(target_arch = "x86_64")]
    Kernel { name: "avx2 f16c", isa: Isa::Avx2, supported: super::has_avx2, function: f16c },
    Kernel { name: "scalar", isa: Isa::Scalar, supported: || true, function: f16_scalar },
];

fn f16_chosen() -> &'static Kernel<Convert> {
    static CHOSEN: OnceLock<&'static Kernel<Convert>> = OnceLock::new();
    CHOSEN.get_or_init(|| super::choose(F16))
}

/// The name of the chosen version.
pub fn f16_kernel() -> &'static str {
    f16_chosen().name
}

/// IEEE half-precision numbers, little-endian, at any alignment, to f32.
///
/// # Panics
/// If `bytes` is not two bytes for each number of `out`.
pub fn f16_to_f32(bytes: &[u8], out: &mut [f32]) {
    assert_eq!(bytes.len(), 2 * out.len(), "two bytes a number");
    // SAFETY: `choose` only returns what the processor supports, and there are two bytes for each number.
    unsafe { (f16_chosen().function)(bytes, out) }
}

/// bfloat16 numbers, little-endian, at any alignment, to f32.
///
/// # Panics
/// If `bytes` is not two bytes for each number of `out`.
pub fn bf16_to_f32(bytes: &[u8], out: &mut [f32]) {
    assert_eq!(bytes.len(), 2 * out.len(), "two bytes a number");
    // A shift, which compilers vectorise on every instruction set.
    for (value, pair) in out.iter_mut().zip(bytes.chunks_exact(2)) {
        *value = f32::from_bits(u32::from(u16::from_le_bytes([pair[0], pair[1]])) << 16);
    }
}

fn f16_scalar(bytes: &[u8], out: &mut [f32]) {
    for (value, pair) in out.iter_mut().zip(bytes.chunks_exact(2)) {
        *value = half::f16::from_le_bytes([pair[0], pair[1]]).to_f32_const();
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,f16c")]
fn f16c(bytes: &[u8], out: &mut [f32]) {
    use std::arch::x86_64::{_mm_loadu_si128, _mm256_cvtph_ps, _mm256_storeu_ps};
    let whole = out.len() / 8 * 8;
    let (out, last) = out.split_at_mut(whole);
    let (bytes, last_bytes) = bytes.split_at(2 * whole);
    for (values, pairs) in out.chunks_exact_mut(8).zip(bytes.chunks_exact(16)) {
        // SAFETY: 16 bytes are read and 8 numbers written, which is what the chunks hold; neither needs alignment.
        unsafe { _mm256_storeu_ps(values.as_mut_ptr(), _mm256_cvtph_ps(_mm_loadu_si128(pairs.as_ptr().cast()))) }
    }
    f16_scalar(last_bytes, last);
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
        for kernel in F16.iter().filter(|kernel| kernel.is_supported()) {
            covered.push(kernel.name);
            // SAFETY: supported, and two bytes a number.
            unsafe { (kernel.function)(&bytes[1..], &mut out) };
            for (code, value) in codes.iter().zip(&out) {
                assert_eq!(value.to_bits(), half::f16::from_bits(*code).to_f32_const().to_bits(), "{code:04x}");
            }
        }
        println!("f16 to f32: covered {}", covered.join(", "));
        bf16_to_f32(&bytes[1..], &mut out);
        for (code, value) in codes.iter().zip(&out) {
            assert_eq!(value.to_bits(), u32::from(*code) << 16);
        }
        f16_to_f32(&[], &mut []);
    }
}
