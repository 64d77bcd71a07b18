//! Expanding rows 32 codes at a time; what remains, and rarer types, as on every processor.

use std::arch::x86_64::*;

use formats::Dtype;

use super::super::Operands;
use super::super::expand::{self, Row, six_bits};
use super::SPAN;
use crate::encoding::Form;
use crate::encoding::ggml::nonlinear::LEVELS;

/// How far ahead of the loads the stored rows are asked for.
const AHEAD: usize = 1536;

/// A form, expanded [`SPAN`] columns at a time, so that expanding and multiplying take turns and memory is never idle.
pub(super) trait Spans {
    /// Codes of a run.
    const RUN: usize;
    /// Whether runs have minima.
    const MINIMA: bool;
    /// The bits that codes have, raised.
    const BITS: u32;

    /// Expands `count` columns of row `i`, whose bytes are `row`, from column `first` on to their places in `out`. `count` is
    /// [`SPAN`] but for the last ones.
    ///
    /// # Safety
    /// The processor has AVX2, FMA and F16C; `out` was made for the row's k columns, of which these are some.
    unsafe fn expand(o: &Operands<'_>, i: usize, row: &[u8], first: usize, count: usize, out: &mut Row);
}

/// Blocks of 32.
pub(super) trait Block {
    /// Bytes of a block.
    const BYTES: usize;
    /// Whether an f16 minimum follows the scale.
    const MINIMUM: bool;
    /// The bits that codes have, raised.
    const BITS: u32;

    /// The codes of the block at `at`.
    ///
    /// # Safety
    /// There is a block.
    unsafe fn codes(at: *const u8) -> __m256i;
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
        unsafe { _mm256_xor_si256(_mm256_loadu_si256(at.add(2).cast()), _mm256_set1_epi8(-128)) }
    }
}

impl Block for Q4_0 {
    const BYTES: usize = 18;
    const MINIMUM: bool = false;
    const BITS: u32 = 4;
    #[inline(always)]
    unsafe fn codes(at: *const u8) -> __m256i {
        // SAFETY: the caller's promise.
        unsafe { nibbles(at.add(2)) }
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
}

impl Block for Q5_0 {
    const BYTES: usize = 22;
    const MINIMUM: bool = false;
    const BITS: u32 = 5;
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
        // SAFETY: the caller's promise; there are 16 levels.
        unsafe {
            let levels = _mm256_broadcastsi128_si256(_mm_loadu_si128(LEVELS.as_ptr().cast()));
            _mm256_xor_si256(_mm256_shuffle_epi8(levels, nibbles(at.add(2))), _mm256_set1_epi8(-128))
        }
    }
}

/// The f16 numbers `at` and every `step` bytes on: `count` of them, at most 8, and zeros.
#[inline(always)]
unsafe fn halves(at: *const u8, step: usize, count: usize) -> __m256 {
    // SAFETY: the caller's promise.
    unsafe {
        let half = |i: usize| at.add(i * step).cast::<u16>().read_unaligned();
        if count == 8 {
            let mut all = _mm_cvtsi32_si128(i32::from(half(0)));
            all = _mm_insert_epi16::<1>(all, i32::from(half(1)));
            all = _mm_insert_epi16::<2>(all, i32::from(half(2)));
            all = _mm_insert_epi16::<3>(all, i32::from(half(3)));
            all = _mm_insert_epi16::<4>(all, i32::from(half(4)));
            all = _mm_insert_epi16::<5>(all, i32::from(half(5)));
            all = _mm_insert_epi16::<6>(all, i32::from(half(6)));
            return _mm256_cvtph_ps(_mm_insert_epi16::<7>(all, i32::from(half(7))));
        }
        let mut some = [0u16; 8];
        let mut i = 0;
        while i < count {
            some[i] = half(i);
            i += 1;
        }
        _mm256_cvtph_ps(_mm_loadu_si128(some.as_ptr().cast()))
    }
}

impl<B: Block> Spans for B {
    const RUN: usize = 32;
    const MINIMA: bool = B::MINIMUM;
    const BITS: u32 = B::BITS;

    #[inline(always)]
    unsafe fn expand(_: &Operands<'_>, _: usize, row: &[u8], first: usize, count: usize, out: &mut Row) {
        let (first, count) = (first / 32, count / 32);
        let bytes = row[first * B::BYTES..][..count * B::BYTES].as_ptr();
        // SAFETY: blocks are read below `count`; there is room for 8 runs from a multiple of 8 on.
        unsafe {
            _mm256_storeu_ps(out.scales.as_mut_ptr().add(first), halves(bytes, B::BYTES, count));
            if B::MINIMUM {
                // They are added, and are to be taken off.
                let minima = _mm256_sub_ps(_mm256_setzero_ps(), halves(bytes.add(2), B::BYTES, count));
                _mm256_storeu_ps(out.minima.as_mut_ptr().add(first), minima);
            }
            let codes = out.codes.as_mut_ptr().add(32 * first);
            let mut block = 0;
            while block < count {
                let at = bytes.add(block * B::BYTES);
                _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(AHEAD).cast());
                _mm256_storeu_si256(codes.add(32 * block).cast(), B::codes(at));
                block += 1;
            }
        }
    }
}

/// An f16 in all lanes.
#[inline(always)]
unsafe fn half(at: *const u8) -> __m256 {
    // SAFETY: the caller's promise: 2 bytes.
    unsafe { _mm256_cvtph_ps(_mm_set1_epi16(at.cast::<i16>().read_unaligned())) }
}

/// 8 bytes as numbers.
#[inline(always)]
unsafe fn numbers(bytes: [u8; 8]) -> __m256 {
    // SAFETY: the instruction set is there.
    unsafe { _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_cvtsi64_si128(i64::from_le_bytes(bytes)))) }
}

/// Q4_K, or Q5_K if FIVE.
pub(super) struct Affine<const FIVE: bool>;

impl<const FIVE: bool> Spans for Affine<FIVE> {
    const RUN: usize = 32;
    const MINIMA: bool = true;
    const BITS: u32 = if FIVE { 5 } else { 4 };

    #[inline(always)]
    unsafe fn expand(_: &Operands<'_>, _: usize, row: &[u8], first: usize, _: usize, out: &mut Row) {
        let bytes = if FIVE { 176 } else { 144 };
        let block = &row[first / SPAN * bytes..][..bytes];
        let (own_scales, own_minima) = six_bits(&block[4..16]);
        let block = block.as_ptr();
        // SAFETY: there is a block, and room for its 256 codes and 8 scales and minima.
        unsafe {
            let codes = out.codes.as_mut_ptr().add(first);
            let scales = _mm256_mul_ps(numbers(own_scales), half(block));
            _mm256_storeu_ps(out.scales.as_mut_ptr().add(first / 32), scales);
            let minima = _mm256_mul_ps(numbers(own_minima), half(block.add(2)));
            _mm256_storeu_ps(out.minima.as_mut_ptr().add(first / 32), minima);
            let low = block.add(if FIVE { 48 } else { 16 });
            let fifteen = _mm256_set1_epi8(15);
            let mut high = if FIVE { _mm256_loadu_si256(block.add(16).cast()) } else { _mm256_setzero_si256() };
            let mut s = 0;
            while s < 4 {
                let at = low.add(32 * s);
                _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(AHEAD).cast());
                let both = _mm256_loadu_si256(at.cast());
                let mut first = _mm256_and_si256(both, fifteen);
                let mut second = _mm256_and_si256(_mm256_srli_epi64::<4>(both), fifteen);
                if FIVE {
                    let (one, two) = (_mm256_set1_epi8(1), _mm256_set1_epi8(2));
                    first = _mm256_or_si256(first, _mm256_slli_epi64::<4>(_mm256_and_si256(high, one)));
                    second = _mm256_or_si256(second, _mm256_slli_epi64::<3>(_mm256_and_si256(high, two)));
                    high = _mm256_srli_epi64::<2>(high);
                }
                _mm256_storeu_si256(codes.add(64 * s).cast(), first);
                _mm256_storeu_si256(codes.add(64 * s + 32).cast(), second);
                s += 1;
            }
        }
    }
}

/// Q6_K.
pub(super) struct Q6K;

impl Spans for Q6K {
    const RUN: usize = 16;
    const MINIMA: bool = false;
    const BITS: u32 = 6;

    #[inline(always)]
    unsafe fn expand(_: &Operands<'_>, _: usize, row: &[u8], first: usize, _: usize, out: &mut Row) {
        let block = row[first / SPAN * 210..][..210].as_ptr();
        // SAFETY: there is a block, and room for its 256 codes and 16 scales.
        unsafe {
            let (codes, scales) = (out.codes.as_mut_ptr().add(first), out.scales.as_mut_ptr().add(first / 16));
            let d = half(block.add(208));
            let mut h = 0;
            while h < 2 {
                let own = _mm_loadl_epi64(block.add(192 + 8 * h).cast());
                let own = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(own));
                _mm256_storeu_ps(scales.add(8 * h), _mm256_mul_ps(own, d));
                let mut high = _mm256_loadu_si256(block.add(128 + 32 * h).cast());
                let low = block.add(64 * h);
                _mm_prefetch::<_MM_HINT_T0>(low.wrapping_add(AHEAD).cast());
                _mm_prefetch::<_MM_HINT_T0>(block.wrapping_add(AHEAD + 128 + 32 * h).cast());
                let low = [_mm256_loadu_si256(low.cast()), _mm256_loadu_si256(low.add(32).cast())];
                let (fifteen, three) = (_mm256_set1_epi8(15), _mm256_set1_epi8(3));
                let mut s = 0;
                while s < 4 {
                    let nibble = if s < 2 { low[s] } else { _mm256_srli_epi64::<4>(low[s - 2]) };
                    let upper = _mm256_slli_epi64::<4>(_mm256_and_si256(high, three));
                    let code = _mm256_or_si256(_mm256_and_si256(nibble, fifteen), upper);
                    _mm256_storeu_si256(codes.add(128 * h + 32 * s).cast(), code);
                    high = _mm256_srli_epi64::<2>(high);
                    s += 1;
                }
                h += 1;
            }
        }
    }
}

/// Packed int4.
pub(super) struct Packed4;

impl Spans for Packed4 {
    const RUN: usize = 32;
    const MINIMA: bool = false;
    const BITS: u32 = 4;

    #[inline(always)]
    unsafe fn expand(o: &Operands<'_>, i: usize, row: &[u8], first: usize, count: usize, out: &mut Row) {
        if first == 0 {
            expand::packed_scales(o.weights, i, o.k, out);
        }
        let bytes = &row[first / 2..][..count / 2];
        // SAFETY: 16 bytes are read below those of `count` columns, and 32 codes written for each.
        unsafe {
            let codes = out.codes.as_mut_ptr().add(first);
            let mut at = 0;
            while at < bytes.len() {
                let here = bytes.as_ptr().add(at);
                _mm_prefetch::<_MM_HINT_T0>(here.wrapping_add(AHEAD).cast());
                // A byte's two codes become two bytes.
                let wide = _mm256_cvtepu8_epi16(_mm_loadu_si128(here.cast()));
                let both = _mm256_or_si256(wide, _mm256_slli_epi16::<4>(wide));
                _mm256_storeu_si256(codes.add(2 * at).cast(), _mm256_and_si256(both, _mm256_set1_epi8(15)));
                at += 16;
            }
        }
    }
}

/// Rarer forms, as on every processor: the whole row with its first columns.
pub(super) struct Portable<const RUN: usize>;

impl<const RUN: usize> Spans for Portable<RUN> {
    const RUN: usize = RUN;
    const MINIMA: bool = false;
    const BITS: u32 = 8;

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
/// The processor has AVX2, FMA and F16C; `out` was made for k columns.
#[inline(always)]
pub(super) unsafe fn row<F: Spans>(o: &Operands<'_>, i: usize, out: &mut Row) {
    let bytes = o.weights.row(i);
    let mut first = 0;
    while first < o.k {
        // SAFETY: the caller's promise.
        unsafe { F::expand(o, i, bytes, first, (o.k - first).min(SPAN), out) };
        first += SPAN;
    }
}

/// What works on any form.
pub(super) trait Visitor {
    /// Works on this one.
    ///
    /// # Safety
    /// As [`super::avx2`].
    unsafe fn visit<F: Spans>(self, o: &Operands<'_>);
}

/// Runs `visitor` on the operands' form.
///
/// # Safety
/// As [`super::avx2`].
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
