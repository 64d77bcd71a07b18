//! What kernels for NEON share: the dot product, which the standard library does not have yet, sums across lanes, and transposing.
//!
//! Everything for this target is compiled for NEON. The dot product is named to the assembler where it stands, so that functions need
//! not be compiled for it, and a constant decides whether they use it.

use std::arch::aarch64::*;
use std::arch::asm;

/// Adds four products of 8-bit numbers to each of four sums. PRODUCT says whether the processor has the instruction that does it.
///
/// # Safety
/// The processor has what PRODUCT says.
#[inline(always)]
pub(super) unsafe fn dot<const PRODUCT: bool>(sums: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    // SAFETY: the caller's promise; the instruction reads and writes these registers alone.
    unsafe {
        if PRODUCT {
            let mut out = sums;
            asm!(
                ".arch_extension dotprod",
                "sdot {0:v}.4s, {1:v}.16b, {2:v}.16b",
                inout(vreg) out, in(vreg) a, in(vreg) b,
                options(pure, nomem, nostack, preserves_flags)
            );
            out
        } else {
            // Two products are at most 2 · 128 · 128, which 16 bits do not hold.
            let low = vpaddlq_s16(vmull_s8(vget_low_s8(a), vget_low_s8(b)));
            let high = vpaddlq_s16(vmull_high_s8(a, b));
            vaddq_s32(sums, vpaddq_s32(low, high))
        }
    }
}

/// [`dot`], with the four numbers of lane LANE of `b` for all sums.
///
/// # Safety
/// As [`dot`].
#[inline(always)]
pub(super) unsafe fn dot_lane<const PRODUCT: bool, const LANE: i32>(
    sums: int32x4_t,
    a: int8x16_t,
    b: int8x16_t,
) -> int32x4_t {
    // SAFETY: the caller's promise; the instruction reads and writes these registers alone.
    unsafe {
        if PRODUCT {
            let mut out = sums;
            // Not `pure`: the compiler puts what is pure into another order, in which registers do not suffice.
            asm!(
                ".arch_extension dotprod",
                "sdot {0:v}.4s, {1:v}.16b, {2:v}.4b[{lane}]",
                inout(vreg) out, in(vreg) a, in(vreg) b, lane = const LANE,
                options(nomem, nostack, preserves_flags)
            );
            out
        } else {
            dot::<false>(sums, a, vreinterpretq_s8_s32(vdupq_laneq_s32::<LANE>(vreinterpretq_s32_s8(b))))
        }
    }
}

/// The sums of the lanes of each of four vectors.
///
/// # Safety
/// The processor has NEON.
#[inline(always)]
pub(super) unsafe fn totals([a, b, c, d]: [int32x4_t; 4]) -> int32x4_t {
    // SAFETY: the caller's promise.
    unsafe { vpaddq_s32(vpaddq_s32(a, b), vpaddq_s32(c, d)) }
}

/// The same of floats: (first + second) + (third + fourth).
///
/// # Safety
/// The processor has NEON.
#[inline(always)]
pub(super) unsafe fn float_totals([a, b, c, d]: [float32x4_t; 4]) -> float32x4_t {
    // SAFETY: the caller's promise.
    unsafe { vpaddq_f32(vpaddq_f32(a, b), vpaddq_f32(c, d)) }
}

/// Transposes a 4 × 4 matrix of words.
///
/// # Safety
/// The processor has NEON.
#[inline(always)]
pub(super) unsafe fn transposed([a, b, c, d]: [int32x4_t; 4]) -> [int32x4_t; 4] {
    // SAFETY: the caller's promise.
    unsafe {
        let wide = vreinterpretq_s64_s32;
        let (ab, cd) =
            ([wide(vtrn1q_s32(a, b)), wide(vtrn2q_s32(a, b))], [wide(vtrn1q_s32(c, d)), wide(vtrn2q_s32(c, d))]);
        [
            vreinterpretq_s32_s64(vtrn1q_s64(ab[0], cd[0])),
            vreinterpretq_s32_s64(vtrn1q_s64(ab[1], cd[1])),
            vreinterpretq_s32_s64(vtrn2q_s64(ab[0], cd[0])),
            vreinterpretq_s32_s64(vtrn2q_s64(ab[1], cd[1])),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::testing::Noise;

    /// What each form gives.
    unsafe fn all<const PRODUCT: bool>(sums: [i32; 4], a: [i8; 16], b: [i8; 16]) -> [[i32; 4]; 5] {
        // SAFETY: the caller's promise; vectors are as long as arrays.
        unsafe {
            let (s, a, b) = (vld1q_s32(sums.as_ptr()), vld1q_s8(a.as_ptr()), vld1q_s8(b.as_ptr()));
            let all = [
                dot::<PRODUCT>(s, a, b),
                dot_lane::<PRODUCT, 0>(s, a, b),
                dot_lane::<PRODUCT, 1>(s, a, b),
                dot_lane::<PRODUCT, 2>(s, a, b),
                dot_lane::<PRODUCT, 3>(s, a, b),
            ];
            let mut out = [[0; 4]; 5];
            out.iter_mut().zip(all).for_each(|(out, sums)| vst1q_s32(out.as_mut_ptr(), sums));
            out
        }
    }

    #[test]
    fn both_dot_products_are_those_of_a_plain_loop() {
        let mut noise = Noise::new(5);
        for i in 0..1000 {
            let codes = |noise: &mut Noise| std::array::from_fn(|_| if i == 0 { -128 } else { noise.next_u64() as i8 });
            let (a, b): ([i8; 16], [i8; 16]) = (codes(&mut noise), codes(&mut noise));
            let sums: [i32; 4] = std::array::from_fn(|_| noise.next_u64() as i32);
            let plain = |quad: Option<usize>| -> [i32; 4] {
                std::array::from_fn(|lane| {
                    let products =
                        (0..4).map(|l| i32::from(a[4 * lane + l]) * i32::from(b[4 * quad.unwrap_or(lane) + l]));
                    products.fold(sums[lane], i32::wrapping_add)
                })
            };
            let expected = [plain(None), plain(Some(0)), plain(Some(1)), plain(Some(2)), plain(Some(3))];
            // SAFETY: NEON is everywhere, and the dot product was looked for.
            unsafe {
                assert_eq!(all::<false>(sums, a, b), expected);
                if crate::simd::has_dot_product() {
                    assert_eq!(all::<true>(sums, a, b), expected);
                }
            }
        }
    }

    #[test]
    fn words_are_transposed_and_lanes_added() {
        let rows: [[i32; 4]; 4] = std::array::from_fn(|i| std::array::from_fn(|j| (10 * i + j) as i32));
        let (mut columns, mut sums) = ([[0; 4]; 4], [0; 4]);
        // SAFETY: NEON is everywhere; vectors are as long as arrays.
        unsafe {
            let vectors = rows.map(|row| vld1q_s32(row.as_ptr()));
            columns.iter_mut().zip(transposed(vectors)).for_each(|(out, row)| vst1q_s32(out.as_mut_ptr(), row));
            vst1q_s32(sums.as_mut_ptr(), totals(vectors));
        }
        assert_eq!(columns, std::array::from_fn(|i| std::array::from_fn(|j| rows[j][i])));
        assert_eq!(sums, rows.map(|row| row.iter().sum::<i32>()));
    }
}
