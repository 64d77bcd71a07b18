//! What the rooms' loops for few rows share on AVX2.

use std::arch::x86_64::*;

/// Rows of weights that are read in turn, each with as many rows between it and the next: memory gives more to several
/// readers than to one, but not if they share a page.
pub(super) const STREAMS: usize = 4;

/// The sum of a register's numbers.
///
/// # Safety
/// The processor has AVX2.
#[inline(always)]
pub(super) unsafe fn across(all: __m256) -> f32 {
    // SAFETY: the caller's promise.
    unsafe {
        let four = _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps::<1>(all));
        let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
    }
}

/// The sums of four registers' numbers.
///
/// # Safety
/// The processor has AVX2.
#[inline(always)]
pub(super) unsafe fn across_four(all: [__m256; 4]) -> [f32; 4] {
    // SAFETY: the caller's promise.
    unsafe {
        let (low, high) = (_mm256_hadd_ps(all[0], all[1]), _mm256_hadd_ps(all[2], all[3]));
        let both = _mm256_hadd_ps(low, high);
        let four = _mm_add_ps(_mm256_castps256_ps128(both), _mm256_extractf128_ps::<1>(both));
        let mut sums = [0.0; 4];
        _mm_storeu_ps(sums.as_mut_ptr(), four);
        sums
    }
}

/// The sum of a register's integers.
///
/// # Safety
/// The processor has AVX2.
#[inline(always)]
pub(super) unsafe fn across_integers(all: __m256i) -> i32 {
    // SAFETY: the caller's promise.
    unsafe {
        let four = _mm_add_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256::<1>(all));
        let two = _mm_add_epi32(four, _mm_shuffle_epi32::<0b00_00_11_10>(four));
        _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32::<0b00_00_00_01>(two)))
    }
}
