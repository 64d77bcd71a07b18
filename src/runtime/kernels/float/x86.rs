//! AVX-512. The walk along a row is written once, over a [`Load`]; a type for each form of 16 numbers says how they become
//! f32 in a register. Rows of blocks are unpacked as on every processor.

use std::arch::x86_64::*;

use formats::Dtype;

use super::{Operands, portable};
use crate::encoding::Form;
use crate::runtime::kernels::tiles::Tile;

/// How 16 numbers become f32. Methods may only run where AVX-512 is there, and are inlined into [`avx512`].
pub(super) trait Load {
    /// Bytes of 16 numbers.
    const BYTES: usize;

    /// The numbers at `at`.
    ///
    /// # Safety
    /// There are [`Load::BYTES`] bytes.
    unsafe fn load(at: *const u8) -> __m512;
}

pub(super) struct F32;
pub(super) struct F16;
pub(super) struct Bf16;
pub(super) struct Signed;
pub(super) struct Excess128;
pub(super) struct Fp8;

impl Load for F32 {
    const BYTES: usize = 64;
    #[inline(always)]
    unsafe fn load(at: *const u8) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe { _mm512_loadu_ps(at.cast()) }
    }
}

impl Load for F16 {
    const BYTES: usize = 32;
    #[inline(always)]
    unsafe fn load(at: *const u8) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(at.cast())) }
    }
}

impl Load for Bf16 {
    const BYTES: usize = 32;
    #[inline(always)]
    unsafe fn load(at: *const u8) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(at.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        }
    }
}

impl Load for Signed {
    const BYTES: usize = 16;
    #[inline(always)]
    unsafe fn load(at: *const u8) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(at.cast()))) }
    }
}

impl Load for Excess128 {
    const BYTES: usize = 16;
    #[inline(always)]
    unsafe fn load(at: *const u8) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe {
            let signed = _mm_xor_si128(_mm_loadu_si128(at.cast()), _mm_set1_epi8(-128));
            _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(signed))
        }
    }
}

/// E4M3 has the fields of f16, with fewer bits: moved into their places, it is an f16 that is 2⁸ times too small, subnormal
/// numbers included. The factor goes into the scale.
impl Load for Fp8 {
    const BYTES: usize = 16;
    #[inline(always)]
    unsafe fn load(at: *const u8) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe {
            let wide = _mm256_cvtepu8_epi16(_mm_loadu_si128(at.cast()));
            let size = _mm256_and_si256(wide, _mm256_set1_epi16(0x7f));
            // The sign is copied down one bit and taken out of there.
            let moved = _mm256_srai_epi16::<1>(_mm256_slli_epi16::<8>(wide));
            let half = _mm256_and_si256(moved, _mm256_set1_epi16(0xbfffu16 as i16));
            let nan = _mm256_cmpeq_epi16_mask(size, _mm256_set1_epi16(0x7f));
            _mm512_cvtph_ps(_mm256_mask_mov_epi16(half, nan, _mm256_set1_epi16(0x7e00)))
        }
    }
}

/// How far ahead of the loads a row is asked for.
const AHEAD: usize = 1024;

/// The products of one row and M rows of x, which are `stride` apart.
///
/// # Safety
/// There are k numbers at `row` and at each row of x.
#[inline(always)]
unsafe fn row<L: Load, const M: usize>(row: *const u8, x: *const f32, stride: usize, k: usize) -> [f32; M] {
    // SAFETY: what is read lies below column k; the last columns, if they are fewer than 16, are read through a copy and
    // under a mask. A prefetch may point anywhere.
    unsafe {
        let mut sums = [[_mm512_setzero_ps(); 4]; M];
        let mut at = 0;
        while at + 64 <= k {
            let start = row.add(at / 16 * L::BYTES);
            let mut line = 0;
            while line < 4 * L::BYTES {
                _mm_prefetch::<_MM_HINT_T0>(start.wrapping_add(AHEAD + line).cast());
                line += 64;
            }
            let mut lane = 0;
            while lane < 4 {
                let w = L::load(start.add(lane * L::BYTES));
                let mut i = 0;
                while i < M {
                    let x = _mm512_loadu_ps(x.add(i * stride + at + 16 * lane));
                    sums[i][lane] = _mm512_fmadd_ps(w, x, sums[i][lane]);
                    i += 1;
                }
                lane += 1;
            }
            at += 64;
        }
        while at < k {
            let count = (k - at).min(16);
            let mut last = [0u8; 64];
            std::ptr::copy_nonoverlapping(row.add(at / 16 * L::BYTES), last.as_mut_ptr(), L::BYTES / 16 * count);
            let mask = ((1u32 << count) - 1) as __mmask16;
            let w = L::load(last.as_ptr());
            let mut i = 0;
            while i < M {
                let x = _mm512_maskz_loadu_ps(mask, x.add(i * stride + at));
                sums[i][0] = _mm512_mask3_fmadd_ps(w, x, sums[i][0], mask);
                i += 1;
            }
            at += count;
        }
        let mut totals = [0.0; M];
        let mut i = 0;
        while i < M {
            let [a, b, c, d] = sums[i];
            totals[i] = _mm512_reduce_add_ps(_mm512_add_ps(_mm512_add_ps(a, b), _mm512_add_ps(c, d)));
            i += 1;
        }
        totals
    }
}

/// A tile of plain numbers or codes with a scale for each row.
///
/// # Safety
/// As [`avx512`].
#[inline(always)]
unsafe fn rows<L: Load>(o: &Operands<'_>, tile: &mut Tile<'_>, factor: f32) {
    let (m, stride) = (tile.rows(), tile.stride());
    let out = tile.start();
    for j in 0..tile.cols() {
        let weights = o.weights.row(o.first + j);
        debug_assert_eq!(weights.len(), o.k / 16 * L::BYTES + o.k % 16 * (L::BYTES / 16));
        let scale = match &o.weights.form {
            Form::Int8(scales) | Form::Fp8(scales) | Form::Packed { scales, .. } => {
                let mut scale = [0.0];
                scales.read(o.weights.position(o.first + j), &mut scale);
                scale[0] * factor
            }
            _ => factor,
        };
        let mut i = 0;
        while i < m {
            // SAFETY: the row and x have k columns, and the tile room for m rows of its columns.
            unsafe {
                let x = o.x.f32().as_ptr().add((tile.first_row() + i) * o.k);
                macro_rules! group {
                    ($m:literal) => {{
                        let totals = row::<L, $m>(weights.as_ptr(), x, o.k, o.k);
                        let mut at = 0;
                        while at < $m {
                            *out.add((i + at) * stride + j) = totals[at] * scale;
                            at += 1;
                        }
                        i += $m;
                    }};
                }
                match m - i {
                    1 => group!(1),
                    2 => group!(2),
                    3 => group!(3),
                    _ => group!(4),
                }
            }
        }
    }
}

/// # Safety
/// The processor has AVX-512 F, BW and VL; the operands' rows have k columns, and the tile lies within them.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma,f16c")]
pub(super) unsafe fn avx512(o: &Operands<'_>, tile: &mut Tile<'_>) {
    // SAFETY: the caller's promise.
    unsafe {
        match &o.weights.form {
            Form::Plain(Dtype::F32) => rows::<F32>(o, tile, 1.0),
            Form::Plain(Dtype::F16) => rows::<F16>(o, tile, 1.0),
            Form::Plain(Dtype::BF16) => rows::<Bf16>(o, tile, 1.0),
            Form::Int8(_) => rows::<Signed>(o, tile, 1.0),
            Form::Fp8(_) => rows::<Fp8>(o, tile, 256.0),
            Form::Packed { bits: 8, scales, .. } if scales.per_row == 1 && o.k.is_multiple_of(4) => {
                rows::<Excess128>(o, tile, 1.0);
            }
            Form::Packed { bits: 4, group, .. } if super::nibbles::fits(*group) => super::nibbles::avx512(o, tile),
            _ => portable::avx512(o, tile),
        }
    }
}
