//! Reading rows 32 codes at a time where they are stored; what is left as on every processor.

use std::arch::x86_64::*;

use formats::Dtype;

use super::super::Operands;
use super::super::expand::{self, Row, six_bits};
use super::SPAN;
use crate::encoding::Form;
use crate::encoding::ggml::nonlinear::LEVELS;

/// Where [`SPAN`] columns of a row are.
#[derive(Clone, Copy)]
pub(super) struct At {
    /// As they are stored.
    bytes: *const u8,
    /// What [`Spans::prepare`] made of them.
    codes: *const u8,
    scales: *const f32,
}

impl At {
    /// The columns from a multiple of [`SPAN`] on.
    #[inline(always)]
    pub(super) fn columns<F: Spans>(self, first: usize) -> Self {
        Self {
            bytes: self.bytes.wrapping_add(first / SPAN * F::BYTES),
            codes: self.codes.wrapping_add(first),
            scales: self.scales.wrapping_add(first / F::RUN),
        }
    }

    /// A copy in `to` of the next columns, of which there are `count`, and zeros.
    ///
    /// # Safety
    /// There are such columns; N is at least [`Spans::BYTES`].
    #[inline(always)]
    pub(super) unsafe fn copied<F: Spans, const N: usize>(self, count: usize, to: &mut [u8; N]) -> Self {
        let stored = F::BYTES / (SPAN / 32) * (count / 32);
        // SAFETY: the caller's promise.
        unsafe { std::ptr::copy_nonoverlapping(self.bytes, to[..stored].as_mut_ptr(), stored) };
        to[stored..].fill(0);
        Self { bytes: to.as_ptr(), ..self }
    }

    /// Asks for what lies `ahead` of the next columns of this form.
    #[inline(always)]
    pub(super) fn ask<F: Spans>(self, ahead: usize) {
        let mut line = 0;
        while line < F::BYTES {
            // SAFETY: the instruction set is there; a prefetch may point anywhere.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(self.bytes.wrapping_add(ahead + line).cast()) };
            line += 64;
        }
    }
}

/// A form, read [`SPAN`] columns at a time and 32 columns of those.
pub(super) trait Spans {
    /// Codes of a run.
    const RUN: usize;
    /// Whether runs have minima.
    const MINIMA: bool;
    /// The bits of codes. Those of less than 8 bits are raised and not signed, those of 8 are signed and not raised.
    const BITS: u32;
    /// The logarithm of what codes of less than 8 bits are raised by, or 0 if they are not.
    const BIAS: u32 = 0;
    /// Whether codes of 8 bits meet activations that are never −128.
    const SMALL: bool = false;
    /// Whether [`Spans::pair`] parts columns of even and of odd number, and not halves.
    const EVEN: bool = false;
    /// Bytes of [`SPAN`] columns.
    const BYTES: usize;
    /// Whether rows have to be prepared.
    const PREPARED: bool = false;

    /// Writes to `row` what cannot be read where it is stored.
    ///
    /// # Safety
    /// The processor has AVX2, FMA and F16C; `row` was made for as many columns as row `i` of the matrix has.
    #[inline(always)]
    unsafe fn prepare<T>(_o: &Operands<'_, T>, _i: usize, _row: &mut Row) {}

    /// The scales of `count` columns' runs: of up to 8, or of 8 and 8 more. Those that there are not are zeros.
    ///
    /// # Safety
    /// The processor has AVX2, FMA and F16C, and there are so many columns.
    unsafe fn scales(at: At, count: usize) -> [__m256; 2];

    /// The minima likewise.
    ///
    /// # Safety
    /// As [`Spans::scales`].
    #[inline(always)]
    unsafe fn minima(_at: At, _count: usize) -> __m256 {
        // SAFETY: the caller's promise.
        unsafe { _mm256_setzero_ps() }
    }

    /// The codes of columns 32 · STEP and on.
    ///
    /// # Safety
    /// As [`Spans::scales`].
    unsafe fn codes<const STEP: usize>(at: At) -> __m256i;

    /// The codes of two such steps, the second the fourth after the first, a half of each in a half of each vector.
    ///
    /// # Safety
    /// As [`Spans::scales`].
    #[inline(always)]
    unsafe fn pair<const A: usize, const B: usize>(at: At) -> [__m256i; 2] {
        // SAFETY: the caller's promise.
        unsafe { halved(Self::codes::<A>(at), Self::codes::<B>(at)) }
    }
}

/// The first halves of two vectors, and the second ones.
#[inline(always)]
pub(super) unsafe fn halved(a: __m256i, b: __m256i) -> [__m256i; 2] {
    // SAFETY: the instruction set is there.
    unsafe { [_mm256_permute2x128_si256::<0x20>(a, b), _mm256_permute2x128_si256::<0x31>(a, b)] }
}

/// Row `i`, which was prepared if it had to be.
#[inline(always)]
pub(super) fn at<T>(o: &Operands<'_, T>, i: usize, row: &Row) -> At {
    At { bytes: o.weights.row(i).as_ptr(), codes: row.codes.as_ptr(), scales: row.scales.as_ptr() }
}

/// Blocks of 32.
pub(super) trait Block {
    /// Bytes of a block.
    const BYTES: usize;
    /// Whether an f16 minimum follows the scale.
    const MINIMUM: bool;
    /// The bits of codes, as [`Spans::BITS`].
    const BITS: u32;
    /// As [`Spans::BIAS`].
    const BIAS: u32 = 0;

    /// The codes of the block at `at`.
    ///
    /// # Safety
    /// There is a block.
    unsafe fn codes(at: *const u8) -> __m256i;

    /// Those of two blocks, as [`Spans::pair`].
    ///
    /// # Safety
    /// There are the blocks.
    #[inline(always)]
    unsafe fn pair(a: *const u8, b: *const u8) -> [__m256i; 2] {
        // SAFETY: the caller's promise.
        unsafe { halved(Self::codes(a), Self::codes(b)) }
    }
}

/// 16 bytes of nibbles: their low ones, then their high ones.
#[inline(always)]
unsafe fn nibbles(at: *const u8) -> __m256i {
    // SAFETY: the caller's promise: 16 bytes.
    unsafe {
        let both = _mm256_broadcastsi128_si256(_mm_loadu_si128(at.cast()));
        let shifted = _mm256_srlv_epi64(both, _mm256_set_epi64x(4, 4, 0, 0));
        _mm256_and_si256(shifted, _mm256_set1_epi8(15))
    }
}

/// The levels that nibbles stand for.
#[inline(always)]
unsafe fn levels(nibbles: __m256i) -> __m256i {
    // SAFETY: there are 16 levels.
    unsafe {
        let levels = _mm256_broadcastsi128_si256(_mm_loadu_si128(LEVELS.as_ptr().cast()));
        _mm256_shuffle_epi8(levels, nibbles)
    }
}

/// 16 bytes of nibbles in each half: their low ones, and their high ones.
#[inline(always)]
unsafe fn two_nibbles(a: *const u8, b: *const u8) -> [__m256i; 2] {
    // SAFETY: the caller's promise: 16 bytes each.
    unsafe {
        let both = _mm256_castsi128_si256(_mm_loadu_si128(a.cast()));
        let both = _mm256_inserti128_si256::<1>(both, _mm_loadu_si128(b.cast()));
        let fifteen = _mm256_set1_epi8(15);
        [_mm256_and_si256(both, fifteen), _mm256_and_si256(_mm256_srli_epi16::<4>(both), fifteen)]
    }
}

/// 16 for each bit of 4 bytes that is set.
#[inline(always)]
unsafe fn sixteens(at: *const u8) -> __m256i {
    // SAFETY: the caller's promise: 4 bytes.
    unsafe {
        let bits = _mm256_set1_epi32(at.cast::<i32>().read_unaligned());
        let (a, b) = (0x0101_0101_0101_0101, 0x0202_0202_0202_0202);
        let bytes = _mm256_shuffle_epi8(bits, _mm256_set_epi64x(a | b, b, a, 0));
        let bit = _mm256_set1_epi64x(0x8040_2010_0804_0201u64 as i64);
        let set = _mm256_cmpeq_epi8(_mm256_and_si256(bytes, bit), bit);
        _mm256_and_si256(set, _mm256_set1_epi8(16))
    }
}

pub(super) struct Q8_0;
pub(super) struct Q4_0;
pub(super) struct Q4_1;
pub(super) struct Q5_0;
pub(super) struct Q5_1;
pub(super) struct Iq4Nl;

impl Block for Q8_0 {
    const BYTES: usize = 34;
    const MINIMUM: bool = false;
    const BITS: u32 = 8;
    #[inline(always)]
    unsafe fn codes(at: *const u8) -> __m256i {
        // SAFETY: the caller's promise.
        unsafe { _mm256_loadu_si256(at.add(2).cast()) }
    }
}

impl Block for Q4_0 {
    const BYTES: usize = 18;
    const MINIMUM: bool = false;
    const BITS: u32 = 4;
    const BIAS: u32 = 3;
    #[inline(always)]
    unsafe fn codes(at: *const u8) -> __m256i {
        // SAFETY: the caller's promise.
        unsafe { nibbles(at.add(2)) }
    }
    #[inline(always)]
    unsafe fn pair(a: *const u8, b: *const u8) -> [__m256i; 2] {
        // SAFETY: the caller's promise.
        unsafe { two_nibbles(a.add(2), b.add(2)) }
    }
}

impl Block for Q4_1 {
    const BYTES: usize = 20;
    const MINIMUM: bool = true;
    const BITS: u32 = 4;
    #[inline(always)]
    unsafe fn codes(at: *const u8) -> __m256i {
        // SAFETY: the caller's promise.
        unsafe { nibbles(at.add(4)) }
    }
    #[inline(always)]
    unsafe fn pair(a: *const u8, b: *const u8) -> [__m256i; 2] {
        // SAFETY: the caller's promise.
        unsafe { two_nibbles(a.add(4), b.add(4)) }
    }
}

impl Block for Q5_0 {
    const BYTES: usize = 22;
    const MINIMUM: bool = false;
    const BITS: u32 = 5;
    const BIAS: u32 = 4;
    #[inline(always)]
    unsafe fn codes(at: *const u8) -> __m256i {
        // SAFETY: the caller's promise.
        unsafe { _mm256_or_si256(nibbles(at.add(6)), sixteens(at.add(2))) }
    }
}

impl Block for Q5_1 {
    const BYTES: usize = 24;
    const MINIMUM: bool = true;
    const BITS: u32 = 5;
    #[inline(always)]
    unsafe fn codes(at: *const u8) -> __m256i {
        // SAFETY: the caller's promise.
        unsafe { _mm256_or_si256(nibbles(at.add(8)), sixteens(at.add(4))) }
    }
}

impl Block for Iq4Nl {
    const BYTES: usize = 18;
    const MINIMUM: bool = false;
    const BITS: u32 = 8;
    #[inline(always)]
    unsafe fn codes(at: *const u8) -> __m256i {
        // SAFETY: the caller's promise.
        unsafe { levels(nibbles(at.add(2))) }
    }
}

/// The f16 numbers `at` and every `step` bytes on: `count` of them, at most 8, and zeros.
///
/// # Safety
/// There are `count` blocks of `step` bytes, at least 18, the first one at `at` or at most 4 bytes before.
#[inline(always)]
unsafe fn halves(at: *const u8, step: usize, count: usize) -> __m256 {
    // SAFETY: the caller's promise.
    unsafe {
        if count == 8 {
            // Number i of 16 bytes that begin 2 · i before it is it: a load and a blend for each.
            let from = |i: usize| _mm_loadu_si128(at.add(i * (step - 2)).cast());
            let first = _mm_blend_epi16::<0b0000_0010>(from(0), from(1));
            let first = _mm_blend_epi16::<0b0000_1100>(first, _mm_blend_epi16::<0b0000_1000>(from(2), from(3)));
            let second = _mm_blend_epi16::<0b0010_0000>(from(4), from(5));
            let second = _mm_blend_epi16::<0b1100_0000>(second, _mm_blend_epi16::<0b1000_0000>(from(6), from(7)));
            return _mm256_cvtph_ps(_mm_blend_epi16::<0b1111_0000>(first, second));
        }
        let mut some = [0u16; 8];
        let mut i = 0;
        while i < count {
            some[i] = at.add(i * step).cast::<u16>().read_unaligned();
            i += 1;
        }
        _mm256_cvtph_ps(_mm_loadu_si128(some.as_ptr().cast()))
    }
}

impl<B: Block> Spans for B {
    const RUN: usize = 32;
    const MINIMA: bool = B::MINIMUM;
    const BITS: u32 = B::BITS;
    const BIAS: u32 = B::BIAS;
    // The activations of blocks have a scale for each 32, by which the largest of them is 127.
    const SMALL: bool = B::BITS == 8;
    const BYTES: usize = SPAN / 32 * B::BYTES;

    #[inline(always)]
    unsafe fn scales(at: At, count: usize) -> [__m256; 2] {
        // SAFETY: the caller's promise.
        unsafe { [halves(at.bytes, B::BYTES, count / 32), _mm256_setzero_ps()] }
    }

    #[inline(always)]
    unsafe fn minima(at: At, count: usize) -> __m256 {
        // SAFETY: the caller's promise. Minima are added, and are to be taken off.
        unsafe { _mm256_sub_ps(_mm256_setzero_ps(), halves(at.bytes.add(2), B::BYTES, count / 32)) }
    }

    #[inline(always)]
    unsafe fn codes<const STEP: usize>(at: At) -> __m256i {
        // SAFETY: the caller's promise.
        unsafe { B::codes(at.bytes.add(STEP * B::BYTES)) }
    }

    #[inline(always)]
    unsafe fn pair<const FIRST: usize, const SECOND: usize>(at: At) -> [__m256i; 2] {
        // SAFETY: the caller's promise.
        unsafe { B::pair(at.bytes.add(FIRST * B::BYTES), at.bytes.add(SECOND * B::BYTES)) }
    }
}

/// An f16 in all lanes.
#[inline(always)]
unsafe fn half(at: *const u8) -> __m256 {
    // SAFETY: the caller's promise: 2 bytes.
    unsafe { _mm256_cvtph_ps(_mm_set1_epi16(at.cast::<i16>().read_unaligned())) }
}

/// 16 signed bytes as numbers, times `d`.
#[inline(always)]
unsafe fn signed(bytes: __m128i, d: __m256) -> [__m256; 2] {
    // SAFETY: the instruction set is there.
    unsafe {
        let (low, high) = (_mm256_cvtepi8_epi32(bytes), _mm256_cvtepi8_epi32(_mm_srli_si128::<8>(bytes)));
        [_mm256_mul_ps(_mm256_cvtepi32_ps(low), d), _mm256_mul_ps(_mm256_cvtepi32_ps(high), d)]
    }
}

/// 8 bytes as numbers.
#[inline(always)]
unsafe fn numbers(bytes: [u8; 8]) -> __m256 {
    // SAFETY: the instruction set is there.
    unsafe { _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_cvtsi64_si128(i64::from_le_bytes(bytes)))) }
}

/// Q4_K, or Q5_K if FIVE.
pub(super) struct Affine<const FIVE: bool>;

impl<const FIVE: bool> Affine<FIVE> {
    /// The scales and minima of 8 runs, without what multiplies them.
    ///
    /// # Safety
    /// There is a block.
    #[inline(always)]
    unsafe fn six_bits(at: At) -> ([u8; 8], [u8; 8]) {
        // SAFETY: 12 bytes are read.
        six_bits(unsafe { &*at.bytes.add(4).cast::<[u8; 12]>() })
    }
}

impl<const FIVE: bool> Spans for Affine<FIVE> {
    const RUN: usize = 32;
    const MINIMA: bool = true;
    const BITS: u32 = if FIVE { 5 } else { 4 };
    const BYTES: usize = if FIVE { 176 } else { 144 };

    #[inline(always)]
    unsafe fn scales(at: At, _: usize) -> [__m256; 2] {
        // SAFETY: the caller's promise.
        unsafe { [_mm256_mul_ps(numbers(Self::six_bits(at).0), half(at.bytes)), _mm256_setzero_ps()] }
    }

    #[inline(always)]
    unsafe fn minima(at: At, _: usize) -> __m256 {
        // SAFETY: the caller's promise.
        unsafe { _mm256_mul_ps(numbers(Self::six_bits(at).1), half(at.bytes.add(2))) }
    }

    #[inline(always)]
    unsafe fn codes<const STEP: usize>(at: At) -> __m256i {
        // SAFETY: the caller's promise.
        unsafe {
            let low = at.bytes.add(if FIVE { 48 } else { 16 } + 32 * (STEP / 2));
            let both = _mm256_loadu_si256(low.cast());
            let nibble = if STEP.is_multiple_of(2) { both } else { _mm256_srli_epi16::<4>(both) };
            let low = _mm256_and_si256(nibble, _mm256_set1_epi8(15));
            if !FIVE {
                return low;
            }
            let fifth = _mm256_and_si256(_mm256_loadu_si256(at.bytes.add(16).cast()), _mm256_set1_epi8(1 << STEP));
            // To bit 4 of its byte.
            let fifth = if STEP < 4 {
                _mm256_sll_epi16(fifth, _mm_cvtsi32_si128(4 - STEP as i32))
            } else {
                _mm256_srl_epi16(fifth, _mm_cvtsi32_si128(STEP as i32 - 4))
            };
            _mm256_or_si256(low, fifth)
        }
    }

    #[inline(always)]
    unsafe fn pair<const A: usize, const B: usize>(at: At) -> [__m256i; 2] {
        // SAFETY: the caller's promise.
        unsafe {
            // 64 bytes have four runs.
            let half = |part: usize| {
                let low = at.bytes.add(if FIVE { 48 } else { 16 } + 32 * (A / 2) + 16 * part);
                let both = _mm256_castsi128_si256(_mm_loadu_si128(low.cast()));
                let both = _mm256_inserti128_si256::<1>(both, _mm_loadu_si128(low.add(64).cast()));
                let nibble = if A.is_multiple_of(2) { both } else { _mm256_srli_epi16::<4>(both) };
                let low = _mm256_and_si256(nibble, _mm256_set1_epi8(15));
                if !FIVE {
                    return low;
                }
                let fifth = _mm256_broadcastsi128_si256(_mm_loadu_si128(at.bytes.add(16 + 16 * part).cast()));
                let fifth = _mm256_srlv_epi64(fifth, _mm256_set_epi64x(4, 4, 0, 0));
                let fifth = _mm256_and_si256(fifth, _mm256_set1_epi8(1 << A));
                // To bit 4 of its byte.
                _mm256_or_si256(low, _mm256_sll_epi16(fifth, _mm_cvtsi32_si128(4 - A as i32)))
            };
            [half(0), half(1)]
        }
    }
}

/// Q6_K.
pub(super) struct Q6K;

impl Spans for Q6K {
    const RUN: usize = 16;
    const MINIMA: bool = false;
    const BITS: u32 = 6;
    const BIAS: u32 = 5;
    const BYTES: usize = 210;

    #[inline(always)]
    unsafe fn scales(at: At, _: usize) -> [__m256; 2] {
        // SAFETY: the caller's promise.
        unsafe { signed(_mm_loadu_si128(at.bytes.add(192).cast()), half(at.bytes.add(208))) }
    }

    #[inline(always)]
    unsafe fn codes<const STEP: usize>(at: At) -> __m256i {
        // SAFETY: the caller's promise.
        unsafe {
            let (half, quarter) = (STEP / 4, STEP % 4);
            let low = _mm256_loadu_si256(at.bytes.add(64 * half + 32 * (quarter % 2)).cast());
            let nibble = if quarter < 2 { low } else { _mm256_srli_epi16::<4>(low) };
            let high = _mm256_loadu_si256(at.bytes.add(128 + 32 * half).cast());
            // To bits 4 and 5 of its byte.
            let upper = match quarter {
                0 => _mm256_slli_epi16::<4>(high),
                1 => _mm256_slli_epi16::<2>(high),
                2 => high,
                _ => _mm256_srli_epi16::<2>(high),
            };
            let upper = _mm256_and_si256(upper, _mm256_set1_epi8(0x30));
            _mm256_or_si256(_mm256_and_si256(nibble, _mm256_set1_epi8(15)), upper)
        }
    }
}

/// Q3_K.
pub(super) struct Q3K;

impl Spans for Q3K {
    const RUN: usize = 16;
    const MINIMA: bool = false;
    // One less would do, and save nothing.
    const BITS: u32 = 4;
    const BIAS: u32 = 2;
    const BYTES: usize = 110;

    #[inline(always)]
    unsafe fn scales(at: At, _: usize) -> [__m256; 2] {
        // SAFETY: the caller's promise.
        unsafe {
            let own = at.bytes.add(96);
            // The low four bits of the first eight, and of the others; then of each four the upper two.
            let low = _mm_loadl_epi64(own.cast());
            let low = _mm_unpacklo_epi64(low, _mm_srli_epi16::<4>(low));
            let high = _mm_set1_epi32(own.add(8).cast::<i32>().read_unaligned());
            let high = _mm_and_si128(_mm_srlv_epi32(high, _mm_set_epi32(6, 4, 2, 0)), _mm_set1_epi8(3));
            let own = _mm_or_si128(_mm_and_si128(low, _mm_set1_epi8(15)), _mm_slli_epi16::<4>(high));
            signed(_mm_sub_epi8(own, _mm_set1_epi8(32)), half(at.bytes.add(108)))
        }
    }

    #[inline(always)]
    unsafe fn codes<const STEP: usize>(at: At) -> __m256i {
        // SAFETY: the caller's promise.
        unsafe {
            let two = _mm256_loadu_si256(at.bytes.add(32 + 32 * (STEP / 4)).cast());
            let two = _mm256_srl_epi16(two, _mm_cvtsi32_si128(2 * (STEP as i32 % 4)));
            let third = _mm256_and_si256(_mm256_loadu_si256(at.bytes.cast()), _mm256_set1_epi8(1 << STEP));
            // To bit 2 of its byte.
            let third = if STEP < 2 {
                _mm256_sll_epi16(third, _mm_cvtsi32_si128(2 - STEP as i32))
            } else {
                _mm256_srl_epi16(third, _mm_cvtsi32_si128(STEP as i32 - 2))
            };
            _mm256_or_si256(_mm256_and_si256(two, _mm256_set1_epi8(3)), third)
        }
    }
}

/// IQ4_XS.
pub(super) struct Iq4Xs;

impl Spans for Iq4Xs {
    const RUN: usize = 32;
    const MINIMA: bool = false;
    const BITS: u32 = 8;
    const SMALL: bool = true;
    const BYTES: usize = 136;

    #[inline(always)]
    unsafe fn scales(at: At, _: usize) -> [__m256; 2] {
        // SAFETY: the caller's promise.
        unsafe {
            let low = _mm256_set1_epi32(at.bytes.add(4).cast::<i32>().read_unaligned());
            let low = _mm256_srlv_epi32(low, _mm256_set_epi32(28, 24, 20, 16, 12, 8, 4, 0));
            let high = _mm256_set1_epi32(i32::from(at.bytes.add(2).cast::<u16>().read_unaligned()));
            let high = _mm256_srlv_epi32(high, _mm256_set_epi32(14, 12, 10, 8, 6, 4, 2, 0));
            let high = _mm256_slli_epi32::<4>(_mm256_and_si256(high, _mm256_set1_epi32(3)));
            let own = _mm256_or_si256(_mm256_and_si256(low, _mm256_set1_epi32(15)), high);
            let own = _mm256_cvtepi32_ps(_mm256_sub_epi32(own, _mm256_set1_epi32(32)));
            [_mm256_mul_ps(own, half(at.bytes)), _mm256_setzero_ps()]
        }
    }

    #[inline(always)]
    unsafe fn codes<const STEP: usize>(at: At) -> __m256i {
        // SAFETY: the caller's promise.
        unsafe { levels(nibbles(at.bytes.add(8 + 16 * STEP))) }
    }
}

/// What a row has been prepared with: up to 8 scales.
///
/// # Safety
/// A row's scales are filled up with zeros to a multiple of 32.
#[inline(always)]
unsafe fn prepared(at: At) -> __m256 {
    // SAFETY: the caller's promise.
    unsafe { _mm256_loadu_ps(at.scales) }
}

/// The scales of row `i`, one for each 32 columns: as [`expand::integer_scales`], without a call for every row.
///
/// # Safety
/// The processor has AVX2 and F16C; `row` was made for as many columns as the matrix has.
#[inline(always)]
unsafe fn integer_scales<T>(o: &Operands<'_, T>, i: usize, row: &mut Row) {
    let Form::Packed { group, scales, .. } = &o.weights.form else {
        return expand::integer_scales(o.weights, i, o.k, row);
    };
    let (runs, count) = (group / 32, o.k / group);
    let first = o.weights.position(i) * scales.per_row;
    let eights = match scales.dtype {
        // 8 numbers are read at a time, and 8 runs of each written.
        Dtype::F16 | Dtype::BF16 if matches!(runs, 1 | 2 | 4) => count / 8,
        _ => return expand::integer_scales(o.weights, i, o.k, row),
    };
    let stored = &scales.bytes[2 * first..][..2 * count];
    for (stored, to) in stored.as_chunks::<16>().0.iter().zip(row.scales.chunks_exact_mut(8 * runs)) {
        // SAFETY: 16 bytes are read; 8 · runs numbers written.
        unsafe {
            let stored = _mm_loadu_si128(stored.as_ptr().cast());
            let eight = match scales.dtype {
                Dtype::F16 => _mm256_cvtph_ps(stored),
                _ => _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(stored))),
            };
            let lane = _mm256_set_epi32(7, 6, 5, 4, 3, 2, 1, 0);
            for (part, to) in to.as_chunks_mut::<8>().0.iter_mut().enumerate() {
                let places = _mm256_add_epi32(lane, _mm256_set1_epi32(8 * part as i32));
                let places = _mm256_srl_epi32(places, _mm_cvtsi32_si128(runs.ilog2() as i32));
                _mm256_storeu_ps(to.as_mut_ptr(), _mm256_permutevar8x32_ps(eight, places));
            }
        }
    }
    // What is not a whole eight.
    let mut own = [0.0; 8];
    let rest = &mut own[..count - 8 * eights];
    scales.read_some(o.weights.position(i), 8 * eights, rest);
    for (to, scale) in row.scales[8 * eights * runs..].chunks_exact_mut(runs).zip(rest) {
        to.fill(*scale);
    }
}

/// Packed int4.
pub(super) struct Packed4;

impl Spans for Packed4 {
    const RUN: usize = 32;
    const MINIMA: bool = false;
    const BITS: u32 = 4;
    const BIAS: u32 = 3;
    const EVEN: bool = true;
    const BYTES: usize = SPAN / 2;
    const PREPARED: bool = true;

    #[inline(always)]
    unsafe fn prepare<T>(o: &Operands<'_, T>, i: usize, row: &mut Row) {
        // SAFETY: the caller's promise.
        unsafe { integer_scales(o, i, row) };
    }

    #[inline(always)]
    unsafe fn scales(at: At, _: usize) -> [__m256; 2] {
        // SAFETY: the caller's promise.
        unsafe { [prepared(at), _mm256_setzero_ps()] }
    }

    #[inline(always)]
    unsafe fn codes<const STEP: usize>(at: At) -> __m256i {
        // SAFETY: the caller's promise: 16 bytes.
        unsafe {
            // A byte's two codes become two bytes.
            let wide = _mm256_cvtepu8_epi16(_mm_loadu_si128(at.bytes.add(16 * STEP).cast()));
            _mm256_and_si256(_mm256_or_si256(wide, _mm256_slli_epi16::<4>(wide)), _mm256_set1_epi8(15))
        }
    }

    #[inline(always)]
    unsafe fn pair<const A: usize, const B: usize>(at: At) -> [__m256i; 2] {
        // SAFETY: the caller's promise.
        unsafe { two_nibbles(at.bytes.add(16 * A), at.bytes.add(16 * B)) }
    }
}

/// Packed int4, its codes signed.
pub(super) struct Signed4;

impl Spans for Signed4 {
    const RUN: usize = 32;
    const MINIMA: bool = false;
    const BITS: u32 = 8;
    const BYTES: usize = SPAN / 2;
    const PREPARED: bool = true;

    #[inline(always)]
    unsafe fn prepare<T>(o: &Operands<'_, T>, i: usize, row: &mut Row) {
        // SAFETY: the caller's promise.
        unsafe { integer_scales(o, i, row) };
    }

    #[inline(always)]
    unsafe fn scales(at: At, count: usize) -> [__m256; 2] {
        // SAFETY: the caller's promise.
        unsafe { Packed4::scales(at, count) }
    }

    #[inline(always)]
    unsafe fn codes<const STEP: usize>(at: At) -> __m256i {
        // SAFETY: the caller's promise.
        unsafe { _mm256_sub_epi8(Packed4::codes::<STEP>(at), _mm256_set1_epi8(8)) }
    }
}

/// int8, signed or RAISED by 128.
pub(super) struct Signed8<const RAISED: bool>;

impl<const RAISED: bool> Spans for Signed8<RAISED> {
    const RUN: usize = 32;
    const MINIMA: bool = false;
    const BITS: u32 = 8;
    const BYTES: usize = SPAN;
    const PREPARED: bool = true;

    #[inline(always)]
    unsafe fn prepare<T>(o: &Operands<'_, T>, i: usize, row: &mut Row) {
        // SAFETY: the caller's promise.
        unsafe { integer_scales(o, i, row) };
    }

    #[inline(always)]
    unsafe fn scales(at: At, _: usize) -> [__m256; 2] {
        // SAFETY: the caller's promise.
        unsafe { [prepared(at), _mm256_setzero_ps()] }
    }

    #[inline(always)]
    unsafe fn codes<const STEP: usize>(at: At) -> __m256i {
        // SAFETY: the caller's promise: 32 codes.
        unsafe {
            let codes = _mm256_loadu_si256(at.bytes.add(32 * STEP).cast());
            if RAISED { _mm256_xor_si256(codes, _mm256_set1_epi8(-128)) } else { codes }
        }
    }
}

/// What is left, prepared as on every processor.
pub(super) struct Portable;

impl Spans for Portable {
    const RUN: usize = 32;
    const MINIMA: bool = false;
    const BITS: u32 = 8;
    const BYTES: usize = 0;
    const PREPARED: bool = true;

    #[inline(always)]
    unsafe fn prepare<T>(o: &Operands<'_, T>, i: usize, row: &mut Row) {
        expand::row(o.weights, i, o.k, row);
        let raised = o.shape.bias.map_or(0, |bits| 1 << bits);
        row.codes[..o.k].iter_mut().for_each(|code| *code = code.wrapping_sub(raised));
    }

    #[inline(always)]
    unsafe fn scales(at: At, _: usize) -> [__m256; 2] {
        // SAFETY: the caller's promise.
        unsafe { [prepared(at), _mm256_setzero_ps()] }
    }

    #[inline(always)]
    unsafe fn codes<const STEP: usize>(at: At) -> __m256i {
        // SAFETY: a row's codes are filled up with zeros to a multiple of 512.
        unsafe { _mm256_loadu_si256(at.codes.add(32 * STEP).cast()) }
    }
}

/// Does the same for each two steps of 32 columns that are four apart.
macro_rules! for_each_pair {
    ($do:ident) => {
        $do!(0, 4);
        $do!(1, 5);
        $do!(2, 6);
        $do!(3, 7);
    };
}
pub(super) use for_each_pair;

/// Does the same for each step of 32 columns.
macro_rules! for_each_step {
    ($do:ident) => {
        $do!(0);
        $do!(1);
        $do!(2);
        $do!(3);
        $do!(4);
        $do!(5);
        $do!(6);
        $do!(7);
    };
}
pub(super) use for_each_step;

/// How far ahead of the loads the stored rows are asked for.
const AHEAD: usize = 1536;

/// Expands row `i` of the matrix.
///
/// # Safety
/// The processor has AVX2, FMA and F16C; `out` was made for k columns.
#[inline(always)]
pub(super) unsafe fn row<F: Spans, T>(o: &Operands<'_, T>, i: usize, out: &mut Row) {
    // SAFETY: the caller's promise; a row has room for whole spans.
    unsafe {
        F::prepare(o, i, out);
        let mut first = 0;
        while first < o.k {
            let count = (o.k - first).min(SPAN);
            let at = at(o, i, out).columns::<F>(first);
            at.ask::<F>(AHEAD);
            let scales = F::scales(at, count);
            let to = out.scales.as_mut_ptr().add(first / F::RUN);
            _mm256_storeu_ps(to, scales[0]);
            if F::RUN == 16 {
                _mm256_storeu_ps(to.add(8), scales[1]);
            }
            if F::MINIMA {
                _mm256_storeu_ps(out.minima.as_mut_ptr().add(first / 32), F::minima(at, count));
            }
            let codes = out.codes.as_mut_ptr().add(first);
            macro_rules! store {
                ($step:literal) => {
                    if 32 * $step < count {
                        _mm256_storeu_si256(codes.add(32 * $step).cast(), F::codes::<$step>(at));
                    }
                };
            }
            for_each_step!(store);
            first += SPAN;
        }
    }
}

/// What works on any form.
pub(super) trait Visitor<T> {
    /// Works on this one.
    ///
    /// # Safety
    /// As [`super::avx2`].
    unsafe fn visit<F: Spans>(self, o: &Operands<'_, T>);
}

/// Runs `visitor` on the operands' form.
///
/// # Safety
/// As [`super::avx2`].
#[inline(always)]
pub(super) unsafe fn dispatch(o: &Operands<'_>, visitor: impl Visitor<i8>) {
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
            Form::Blocks(Dtype::Q3_K) => visitor.visit::<Q3K>(o),
            Form::Blocks(Dtype::IQ4_XS) => visitor.visit::<Iq4Xs>(o),
            Form::Packed { bits: 4, .. } => visitor.visit::<Packed4>(o),
            _ => visitor.visit::<Portable>(o),
        }
    }
}

/// The same for activations in int16, which meet codes of 4 bits either as they are or, SIGNED, in 8 bits.
///
/// # Safety
/// As [`super::wide`].
#[inline(always)]
pub(super) unsafe fn dispatch_wide<const SIGNED: bool>(o: &Operands<'_, i16>, visitor: impl Visitor<i16>) {
    // SAFETY: the caller's promise.
    unsafe {
        match o.weights.form {
            Form::Packed { bits: 4, .. } if SIGNED => visitor.visit::<Signed4>(o),
            Form::Packed { bits: 4, .. } => visitor.visit::<Packed4>(o),
            Form::Int8(_) => visitor.visit::<Signed8<false>>(o),
            _ => visitor.visit::<Signed8<true>>(o),
        }
    }
}
