//! Transposing words, AVX-512 and AVX2: what panels are made with.

use std::arch::x86_64::*;

/// Transposes a 16 × 16 matrix of words: `rows` are the starts of its rows; row i of the result goes to `to` + i · `step`.
///
/// # Safety
/// There are 64 bytes at each.
#[inline(always)]
pub(super) unsafe fn transpose(rows: &[*const u8; 16], to: *mut u8, step: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut a = [_mm512_setzero_si512(); 16];
        let mut b = a;
        let mut i = 0;
        while i < 16 {
            a[i] = _mm512_loadu_si512(rows[i].cast());
            i += 1;
        }
        i = 0;
        while i < 16 {
            b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
            b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
            i += 2;
        }
        i = 0;
        while i < 16 {
            a[i] = _mm512_unpacklo_epi64(b[i], b[i + 2]);
            a[i + 1] = _mm512_unpackhi_epi64(b[i], b[i + 2]);
            a[i + 2] = _mm512_unpacklo_epi64(b[i + 1], b[i + 3]);
            a[i + 3] = _mm512_unpackhi_epi64(b[i + 1], b[i + 3]);
            i += 4;
        }
        i = 0;
        while i < 4 {
            b[i] = _mm512_shuffle_i32x4::<0x88>(a[i], a[i + 4]);
            b[i + 4] = _mm512_shuffle_i32x4::<0xdd>(a[i], a[i + 4]);
            b[i + 8] = _mm512_shuffle_i32x4::<0x88>(a[i + 8], a[i + 12]);
            b[i + 12] = _mm512_shuffle_i32x4::<0xdd>(a[i + 8], a[i + 12]);
            i += 1;
        }
        i = 0;
        while i < 8 {
            let (low, high) =
                (_mm512_shuffle_i32x4::<0x88>(b[i], b[i + 8]), _mm512_shuffle_i32x4::<0xdd>(b[i], b[i + 8]));
            _mm512_storeu_si512(to.add(i * step).cast(), low);
            _mm512_storeu_si512(to.add((i + 8) * step).cast(), high);
            i += 1;
        }
    }
}

/// Transposes an 8 × 8 matrix of words, AVX2.
///
/// # Safety
/// The processor has AVX2.
#[inline(always)]
pub(super) unsafe fn transposed_8(a: [__m256i; 8]) -> [__m256i; 8] {
    // SAFETY: the caller's promise.
    unsafe {
        let (mut b, mut c) = (a, a);
        let mut i = 0;
        while i < 8 {
            b[i] = _mm256_unpacklo_epi32(a[i], a[i + 1]);
            b[i + 1] = _mm256_unpackhi_epi32(a[i], a[i + 1]);
            i += 2;
        }
        i = 0;
        while i < 8 {
            c[i] = _mm256_unpacklo_epi64(b[i], b[i + 2]);
            c[i + 1] = _mm256_unpackhi_epi64(b[i], b[i + 2]);
            c[i + 2] = _mm256_unpacklo_epi64(b[i + 1], b[i + 3]);
            c[i + 3] = _mm256_unpackhi_epi64(b[i + 1], b[i + 3]);
            i += 4;
        }
        i = 0;
        while i < 4 {
            b[i] = _mm256_permute2x128_si256::<0x20>(c[i], c[i + 4]);
            b[i + 4] = _mm256_permute2x128_si256::<0x31>(c[i], c[i + 4]);
            i += 1;
        }
        b
    }
}

/// [`transposed_8`]; row i of the result goes to `to` + i · `step`.
///
/// # Safety
/// The processor has AVX2; there are 32 bytes at each place that is written.
#[inline(always)]
pub(super) unsafe fn transpose_8(a: [__m256i; 8], to: *mut u8, step: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        for (i, row) in transposed_8(a).into_iter().enumerate() {
            _mm256_storeu_si256(to.add(i * step).cast(), row);
        }
    }
}
