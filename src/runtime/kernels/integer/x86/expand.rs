//! Expanding rows 64 codes at a time; what remains, and rarer types, as on every processor.

use std::arch::x86_64::*;

use formats::Dtype;

use super::super::Operands;
use super::super::expand::{self, Row};
use crate::encoding::Form;
use crate::encoding::ggml::nonlinear::LEVELS;

/// How far ahead of the loads the stored rows are asked for.
const AHEAD: usize = 1536;

/// A form, expanded 16 runs at a time, so that expanding and multiplying take turns and memory is never idle.
pub(super) trait Form16 {
    /// Codes of a run.
    const RUN: usize;
    /// Whether runs have minima.
    const MINIMA: bool;

    /// Expands runs `first .. first + count` of row `i`, whose bytes are `row`, to their places in `out`. `count` is 16 but
    /// for the last ones.
    ///
    /// # Safety
    /// The processor has AVX-512 F, BW and VL; `out` was made for the row's k columns, of which these are some.
    unsafe fn expand(o: &Operands<'_>, i: usize, row: &[u8], first: usize, count: usize, out: &mut Row);
}

/// Blocks of 32: two at a time make 64 codes.
pub(super) trait Pair {
    /// Their type.
    const DTYPE: Dtype;
    /// Bytes of a block.
    const BYTES: usize;
    /// Whether an f16 minimum follows the scale.
    const MINIMUM: bool;

    /// The codes of the blocks at `at` and `at + BYTES`.
    ///
    /// # Safety
    /// There are two blocks.
    unsafe fn codes(at: *const u8) -> __m512i;
}

/// 16 bytes of nibbles at each of two places: 32 low and high ones of the first, then of the second.
#[inline(always)]
unsafe fn nibbles(first: *const u8, second: *const u8) -> __m512i {
    // SAFETY: the caller's promise: 16 bytes at each.
    unsafe {
        let first = _mm256_broadcastsi128_si256(_mm_loadu_si128(first.cast()));
        let second = _mm256_broadcastsi128_si256(_mm_loadu_si128(second.cast()));
        let both = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(first), second);
        let shifted = _mm512_srlv_epi64(both, _mm512_set_epi64(4, 4, 0, 0, 4, 4, 0, 0));
        _mm512_and_si512(shifted, _mm512_set1_epi8(15))
    }
}

/// 16 where a bit is set.
#[inline(always)]
unsafe fn add_sixteens(codes: __m512i, bits: u64) -> __m512i {
    // SAFETY: the instruction set is there.
    unsafe { _mm512_mask_add_epi8(codes, bits, codes, _mm512_set1_epi8(16)) }
}

#[inline(always)]
unsafe fn two_words(first: *const u8, second: *const u8) -> u64 {
    // SAFETY: the caller's promise: 4 bytes at each.
    unsafe { u64::from(first.cast::<u32>().read_unaligned()) | u64::from(second.cast::<u32>().read_unaligned()) << 32 }
}

pub(super) struct Q8_0;
pub(super) struct Q4_0;
pub(super) struct Q4_1;
pub(super) struct Q5_0;
pub(super) struct Q5_1;
pub(super) struct Iq4Nl;

impl Pair for Q8_0 {
    const DTYPE: Dtype = Dtype::Q8_0;
    const BYTES: usize = 34;
    const MINIMUM: bool = false;
    #[inline(always)]
    unsafe fn codes(at: *const u8) -> __m512i {
        // SAFETY: the caller's promise.
        unsafe {
            let first = _mm512_castsi256_si512(_mm256_loadu_si256(at.add(2).cast()));
            let both = _mm512_inserti64x4::<1>(first, _mm256_loadu_si256(at.add(36).cast()));
            _mm512_xor_si512(both, _mm512_set1_epi8(-128))
        }
    }
}

impl Pair for Q4_0 {
    const DTYPE: Dtype = Dtype::Q4_0;
    const BYTES: usize = 18;
    const MINIMUM: bool = false;
    #[inline(always)]
    unsafe fn codes(at: *const u8) -> __m512i {
        // SAFETY: the caller's promise.
        unsafe { nibbles(at.add(2), at.add(20)) }
    }
}

impl Pair for Q4_1 {
    const DTYPE: Dtype = Dtype::Q4_1;
    const BYTES: usize = 20;
    const MINIMUM: bool = true;
    #[inline(always)]
    unsafe fn codes(at: *const u8) -> __m512i {
        // SAFETY: the caller's promise.
        unsafe { nibbles(at.add(4), at.add(24)) }
    }
}

impl Pair for Q5_0 {
    const DTYPE: Dtype = Dtype::Q5_0;
    const BYTES: usize = 22;
    const MINIMUM: bool = false;
    #[inline(always)]
    unsafe fn codes(at: *const u8) -> __m512i {
        // SAFETY: the caller's promise.
        unsafe { add_sixteens(nibbles(at.add(6), at.add(28)), two_words(at.add(2), at.add(24))) }
    }
}

impl Pair for Q5_1 {
    const DTYPE: Dtype = Dtype::Q5_1;
    const BYTES: usize = 24;
    const MINIMUM: bool = true;
    #[inline(always)]
    unsafe fn codes(at: *const u8) -> __m512i {
        // SAFETY: the caller's promise.
        unsafe { add_sixteens(nibbles(at.add(8), at.add(32)), two_words(at.add(4), at.add(28))) }
    }
}

impl Pair for Iq4Nl {
    const DTYPE: Dtype = Dtype::IQ4_NL;
    const BYTES: usize = 18;
    const MINIMUM: bool = false;
    #[inline(always)]
    unsafe fn codes(at: *const u8) -> __m512i {
        // SAFETY: the caller's promise; there are 16 levels.
        unsafe {
            let levels = _mm512_broadcast_i32x4(_mm_loadu_si128(LEVELS.as_ptr().cast()));
            let codes = _mm512_shuffle_epi8(levels, nibbles(at.add(2), at.add(20)));
            _mm512_xor_si512(codes, _mm512_set1_epi8(-128))
        }
    }
}

/// The f16 numbers at the starts of up to 16 blocks, and those that follow them, negated.
#[inline(always)]
unsafe fn heads(at: *const u8, bytes: usize, count: usize) -> (__m512, __m512) {
    // SAFETY: the caller's promise: `count` blocks of `bytes`, which is at least 4.
    unsafe {
        let lanes = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
        let offsets = _mm512_mullo_epi32(lanes, _mm512_set1_epi32(bytes as i32));
        let mask = ((1u32 << count) - 1) as __mmask16;
        let words = _mm512_mask_i32gather_epi32::<1>(_mm512_setzero_si512(), mask, offsets, at.cast());
        let low = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(words));
        let high = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(words)));
        (low, _mm512_sub_ps(_mm512_setzero_ps(), high))
    }
}

impl<P: Pair> Form16 for P {
    const RUN: usize = 32;
    const MINIMA: bool = P::MINIMUM;

    #[inline(always)]
    unsafe fn expand(_: &Operands<'_>, _: usize, row: &[u8], first: usize, count: usize, out: &mut Row) {
        let bytes = &row[first * P::BYTES..][..count * P::BYTES];
        // SAFETY: blocks are read below `count`; there is room for 16 runs from a multiple of 16 on, of which a single last
        // block is written by checked code.
        unsafe {
            let start = bytes.as_ptr();
            let (scale, minimum) = heads(start, P::BYTES, count);
            _mm512_storeu_ps(out.scales.as_mut_ptr().add(first), scale);
            if P::MINIMUM {
                _mm512_storeu_ps(out.minima.as_mut_ptr().add(first), minimum);
            }
            let codes = out.codes.as_mut_ptr().add(32 * first);
            let mut pair = 0;
            while pair + 2 <= count {
                let at = start.add(pair * P::BYTES);
                _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(AHEAD).cast());
                _mm512_storeu_si512(codes.add(32 * pair).cast(), P::codes(at));
                pair += 2;
            }
        }
        if count % 2 == 1 {
            let (mut scale, mut minimum) = (0.0, 0.0);
            let codes = &mut out.codes[32 * (first + count - 1)..][..32];
            expand::block_of_32(P::DTYPE, &bytes[(count - 1) * P::BYTES..], codes, &mut scale, &mut minimum);
        }
    }
}

/// The 6-bit scales and minima of Q4_K and Q5_K as two vectors of bytes, by operations on whole words.
#[inline(always)]
unsafe fn six_bits(at: *const u8) -> (u64, u64) {
    // SAFETY: the caller's promise: 12 bytes.
    unsafe {
        let word = |i: usize| at.add(4 * i).cast::<u32>().read_unaligned();
        let (a, b, c) = (word(0), word(1), word(2));
        let (low, high) = (0x3f3f_3f3fu32, 0x0f0f_0f0fu32);
        let upper = |word: u32| (word >> 6 & 0x0303_0303) << 4;
        let scales = u64::from(a & low) | u64::from(c & high | upper(a)) << 32;
        let minima = u64::from(b & low) | u64::from(c >> 4 & high | upper(b)) << 32;
        (scales, minima)
    }
}

/// An f16.
#[inline(always)]
unsafe fn half(at: *const u8) -> f32 {
    // SAFETY: the caller's promise: 2 bytes.
    unsafe { _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(i32::from(at.cast::<u16>().read_unaligned())))) }
}

/// 32 bytes, twice, the second half shifted right by one or four bits more.
#[inline(always)]
unsafe fn twice(at: *const u8) -> __m512i {
    // SAFETY: the caller's promise: 32 bytes.
    unsafe { _mm512_broadcast_i64x4(_mm256_loadu_si256(at.cast())) }
}

/// Q4_K, or Q5_K if FIVE.
pub(super) struct Affine<const FIVE: bool>;

impl<const FIVE: bool> Form16 for Affine<FIVE> {
    const RUN: usize = 32;
    const MINIMA: bool = true;

    #[inline(always)]
    unsafe fn expand(_: &Operands<'_>, _: usize, row: &[u8], first: usize, count: usize, out: &mut Row) {
        let bytes = if FIVE { 176 } else { 144 };
        let row = &row[first / 8 * bytes..][..count / 8 * bytes];
        // SAFETY: blocks are read below count / 8; each writes 256 codes and 8 scales and minima.
        unsafe {
            let codes = out.codes.as_mut_ptr().add(32 * first);
            let (scales, minima) = (out.scales.as_mut_ptr().add(first), out.minima.as_mut_ptr().add(first));
            for b in 0..count / 8 {
                let block = row.as_ptr().add(b * bytes);
                q4_or_q5_k::<FIVE>(block, codes.add(256 * b), scales.add(8 * b), minima.add(8 * b));
            }
        }
    }
}

/// # Safety
/// There is a block of Q4_K, or of Q5_K, and room for its codes, scales and minima.
#[inline(always)]
unsafe fn q4_or_q5_k<const FIVE: bool>(block: *const u8, codes: *mut u8, scales: *mut f32, minima: *mut f32) {
    // SAFETY: the caller's promise.
    unsafe {
        let (d, dmin) = (half(block), half(block.add(2)));
        let (own_scales, own_minima) = six_bits(block.add(4));
        let numbers = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_cvtsi64_si128(own_scales as i64)));
        _mm256_storeu_ps(scales, _mm256_mul_ps(numbers, _mm256_set1_ps(d)));
        let numbers = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_cvtsi64_si128(own_minima as i64)));
        _mm256_storeu_ps(minima, _mm256_mul_ps(numbers, _mm256_set1_ps(dmin)));
        let low = block.add(if FIVE { 48 } else { 16 });
        let high = if FIVE { twice(block.add(16)) } else { _mm512_setzero_si512() };
        let mut bit = _mm512_inserti64x4::<1>(_mm512_set1_epi8(1), _mm256_set1_epi8(2));
        let mut s = 0;
        while s < 4 {
            let at = low.add(32 * s);
            _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(AHEAD).cast());
            let shifted = _mm512_srlv_epi64(twice(at), _mm512_set_epi64(4, 4, 4, 4, 0, 0, 0, 0));
            let mut now = _mm512_and_si512(shifted, _mm512_set1_epi8(15));
            if FIVE {
                now = add_sixteens(now, _mm512_test_epi8_mask(high, bit));
                bit = _mm512_slli_epi64::<2>(bit);
            }
            _mm512_storeu_si512(codes.add(64 * s).cast(), now);
            s += 1;
        }
    }
}

/// Q6_K.
pub(super) struct Q6K;

impl Form16 for Q6K {
    const RUN: usize = 16;
    const MINIMA: bool = false;

    #[inline(always)]
    unsafe fn expand(_: &Operands<'_>, _: usize, row: &[u8], first: usize, _: usize, out: &mut Row) {
        let block = row[first / 16 * 210..][..210].as_ptr();
        // SAFETY: there is a block, and room for its 256 codes and 16 scales.
        unsafe {
            let (codes, scales) = (out.codes.as_mut_ptr().add(16 * first), out.scales.as_mut_ptr().add(first));
            let own = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(block.add(192).cast())));
            _mm512_storeu_ps(scales, _mm512_mul_ps(own, _mm512_set1_ps(half(block.add(208)))));
            let mut h = 0;
            while h < 2 {
                let low = _mm512_loadu_si512(block.add(64 * h).cast());
                let high = twice(block.add(128 + 32 * h));
                _mm_prefetch::<_MM_HINT_T0>(block.wrapping_add(AHEAD + 64 * h).cast());
                _mm_prefetch::<_MM_HINT_T0>(block.wrapping_add(AHEAD + 128 + 32 * h).cast());
                let to = codes.add(128 * h);
                let upper = _mm512_srlv_epi64(high, _mm512_set_epi64(2, 2, 2, 2, 0, 0, 0, 0));
                let upper = _mm512_slli_epi64::<4>(_mm512_and_si512(upper, _mm512_set1_epi8(3)));
                let lower = _mm512_and_si512(low, _mm512_set1_epi8(15));
                _mm512_storeu_si512(to.cast(), _mm512_or_si512(lower, upper));
                let upper = _mm512_srlv_epi64(high, _mm512_set_epi64(6, 6, 6, 6, 4, 4, 4, 4));
                let upper = _mm512_slli_epi64::<4>(_mm512_and_si512(upper, _mm512_set1_epi8(3)));
                let lower = _mm512_and_si512(_mm512_srli_epi64::<4>(low), _mm512_set1_epi8(15));
                _mm512_storeu_si512(to.add(64).cast(), _mm512_or_si512(lower, upper));
                h += 1;
            }
        }
    }
}

/// Packed int4.
pub(super) struct Packed4;

impl Form16 for Packed4 {
    const RUN: usize = 32;
    const MINIMA: bool = false;

    #[inline(always)]
    unsafe fn expand(o: &Operands<'_>, i: usize, row: &[u8], first: usize, count: usize, out: &mut Row) {
        if first == 0 {
            expand::integer_scales(o.weights, i, o.k, out);
        }
        let bytes = &row[16 * first..][..16 * count];
        // SAFETY: bytes are read below those of `count` runs, the last ones under a mask; there is room for 16 runs.
        unsafe {
            let codes = out.codes.as_mut_ptr().add(32 * first);
            let mut run = 0;
            while run < count {
                let mask = if run + 2 <= count { u32::MAX } else { 0xffff };
                let at = bytes.as_ptr().add(16 * run);
                _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(AHEAD).cast());
                // A byte's two codes become two bytes.
                let wide = _mm512_cvtepu8_epi16(_mm256_maskz_loadu_epi8(mask, at.cast()));
                let both = _mm512_or_si512(wide, _mm512_slli_epi16::<4>(wide));
                _mm512_storeu_si512(codes.add(32 * run).cast(), _mm512_and_si512(both, _mm512_set1_epi8(15)));
                run += 2;
            }
        }
    }
}

/// Rarer forms, as on every processor: the whole row with its first runs.
pub(super) struct Portable<const RUN: usize>;

impl<const RUN: usize> Form16 for Portable<RUN> {
    const RUN: usize = RUN;
    const MINIMA: bool = false;

    #[inline(always)]
    unsafe fn expand(o: &Operands<'_>, i: usize, _: &[u8], first: usize, _: usize, out: &mut Row) {
        if first == 0 {
            expand::row(o.weights, i, o.k, out);
        }
    }
}

/// Expands row `i` of the matrix.
///
/// # Safety
/// The processor has AVX-512 F, BW and VL; `out` was made for k columns.
#[inline(always)]
pub(super) unsafe fn row<F: Form16>(o: &Operands<'_>, i: usize, out: &mut Row) {
    let bytes = o.weights.row(i);
    let runs = o.k / F::RUN;
    let mut first = 0;
    while first < runs {
        // SAFETY: the caller's promise.
        unsafe { F::expand(o, i, bytes, first, (runs - first).min(16), out) };
        first += 16;
    }
}

/// What works on any form.
pub(super) trait Visitor {
    /// Works on this one.
    ///
    /// # Safety
    /// As [`super::avx512_vnni`].
    unsafe fn visit<F: Form16>(self, o: &Operands<'_>);
}

/// Runs `visitor` on the operands' form.
///
/// # Safety
/// As [`super::avx512_vnni`].
#[inline(always)]
pub(super) unsafe fn dispatch(o: &Operands<'_>, visitor: impl Visitor) {
    // SAFETY: the caller's promise.
    unsafe {
        match o.weights.form {
            Form::Blocks(Dtype::Q8_0) => visitor.visit::<Q8_0>(o),
            Form::Blocks(Dtype::Q4_0) => visitor.visit::<Q4_0>(o),
            Form::Blocks(Dtype::Q4_1) => visitor.visit::<Q4_1>(o),
            Form::Blocks(Dtype::Q5_0) => visitor.visit::<Q5_0>(o),
            Form::Blocks(Dtype::Q5_1) => visitor.visit::<Q5_1>(o),
            Form::Blocks(Dtype::IQ4_NL) => visitor.visit::<Iq4Nl>(o),
            Form::Blocks(Dtype::Q4_K) => visitor.visit::<Affine<false>>(o),
            Form::Blocks(Dtype::Q5_K) => visitor.visit::<Affine<true>>(o),
            Form::Blocks(Dtype::Q6_K) => visitor.visit::<Q6K>(o),
            Form::Packed { bits: 4, .. } => visitor.visit::<Packed4>(o),
            _ if o.shape.run == 16 => visitor.visit::<Portable<16>>(o),
            _ => visitor.visit::<Portable<32>>(o),
        }
    }
}
