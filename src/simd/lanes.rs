//! Sixteen numbers side by side, one a lane: in one register of AVX-512, two of AVX2, four of NEON, or whatever the compiler makes of an
//! array. Each operation is the one of IEEE 754 that the scalar one is, on each lane alone, so that every instruction set
//! gives the same bits.

use std::fmt::Debug;
use std::ops::{Add, BitAnd, Div, Mul, Sub};

/// Number of lanes.
pub const W: usize = 16;

/// Sixteen f32. There are none without a [`Simd`](super::Simd), which is the proof that their instructions may be used.
pub trait Lanes:
    Copy + Debug + Add<Output = Self> + Sub<Output = Self> + Mul<Output = Self> + Div<Output = Self>
{
    /// A condition of each lane.
    type Mask: Mask;

    /// The numbers.
    fn store(self) -> [f32; W];
    /// The lesser of two; `other` if one is NaN or both are zero, as the instruction of x86 has it.
    fn least(self, other: Self) -> Self;
    /// The greater of two; `other` if one is NaN or both are zero.
    fn greatest(self, other: Self) -> Self;
    /// The sizes.
    fn abs(self) -> Self;
    /// The square roots.
    fn sqrt(self) -> Self;
    /// The nearest integers, ties to even, of |x| < 2²²; of other numbers what ggml's `nearest_int` makes of their bits.
    fn nearest(self) -> Self;
    /// Where these are less than others.
    fn lt(self, other: Self) -> Self::Mask;
    /// Where these are equal to others.
    fn equals(self, other: Self) -> Self::Mask;
    /// These where the mask is true, others where it is not.
    fn or(self, mask: Self::Mask, other: Self) -> Self;

    /// Within bounds; NaN becomes `low`.
    #[inline(always)]
    fn clamp(self, low: Self, high: Self) -> Self {
        self.greatest(low).least(high)
    }
}

/// A condition of each of sixteen lanes.
pub trait Mask: Copy + BitAnd<Output = Self> {
    /// Whether it is true of some.
    fn any(self) -> bool;
    /// Whether it is true of all.
    fn all(self) -> bool;
}

/// 1.5 · 2²³: f32 numbers of this size are the integers.
const MAGIC: f32 = 12_582_912.0;

/// The nearest integer, ties to even, if |x| < 2²²; for other numbers what ggml's `nearest_int` makes of their bits.
#[inline(always)]
pub fn nearest(x: f32) -> i32 {
    ((x + MAGIC).to_bits() & 0x007f_ffff) as i32 - 0x0040_0000
}

macro_rules! operators {
    ($type:ty, $mask:ty, $([$trait:ident $method:ident $of:expr])*, and $and:expr) => {
        $(impl $trait for $type {
            type Output = Self;
            #[inline(always)]
            fn $method(self, other: Self) -> Self {
                $of(self, other)
            }
        })*
        impl BitAnd for $mask {
            type Output = Self;
            #[inline(always)]
            fn bitand(self, other: Self) -> Self {
                $and(self, other)
            }
        }
    };
}

/// Lanes as an array, for every processor.
#[derive(Debug, Clone, Copy)]
pub struct Array(pub(super) [f32; W]);

/// A condition of each lane of an [`Array`].
#[derive(Debug, Clone, Copy)]
pub struct Bools([bool; W]);

/// Plain loops become vector instructions where `array::from_fn` does not.
#[inline(always)]
fn each<T: Copy>(start: T, mut f: impl FnMut(usize) -> T) -> [T; W] {
    let mut out = [start; W];
    for (lane, out) in out.iter_mut().enumerate() {
        *out = f(lane);
    }
    out
}

operators! { Array, Bools,
    [Add add |a: Self, b: Self| Array(each(0.0, |i| a.0[i] + b.0[i]))]
    [Sub sub |a: Self, b: Self| Array(each(0.0, |i| a.0[i] - b.0[i]))]
    [Mul mul |a: Self, b: Self| Array(each(0.0, |i| a.0[i] * b.0[i]))]
    [Div div |a: Self, b: Self| Array(each(0.0, |i| a.0[i] / b.0[i]))],
    and |a: Self, b: Self| Bools(each(false, |i| a.0[i] & b.0[i]))
}

impl Lanes for Array {
    type Mask = Bools;

    #[inline(always)]
    fn store(self) -> [f32; W] {
        self.0
    }
    #[inline(always)]
    fn least(self, other: Self) -> Self {
        Self(each(0.0, |i| if self.0[i] < other.0[i] { self.0[i] } else { other.0[i] }))
    }
    #[inline(always)]
    fn greatest(self, other: Self) -> Self {
        Self(each(0.0, |i| if self.0[i] > other.0[i] { self.0[i] } else { other.0[i] }))
    }
    #[inline(always)]
    fn abs(self) -> Self {
        Self(each(0.0, |i| self.0[i].abs()))
    }
    #[inline(always)]
    fn sqrt(self) -> Self {
        Self(each(0.0, |i| self.0[i].sqrt()))
    }
    #[inline(always)]
    fn nearest(self) -> Self {
        Self(each(0.0, |i| nearest(self.0[i]) as f32))
    }
    #[inline(always)]
    fn lt(self, other: Self) -> Bools {
        Bools(each(false, |i| self.0[i] < other.0[i]))
    }
    #[inline(always)]
    fn equals(self, other: Self) -> Bools {
        Bools(each(false, |i| self.0[i] == other.0[i]))
    }
    #[inline(always)]
    fn or(self, mask: Bools, other: Self) -> Self {
        Self(each(0.0, |i| if mask.0[i] { self.0[i] } else { other.0[i] }))
    }
}

impl Mask for Bools {
    #[inline(always)]
    fn any(self) -> bool {
        self.0.iter().fold(false, |any, x| any | x)
    }
    #[inline(always)]
    fn all(self) -> bool {
        self.0.iter().fold(true, |all, x| all & x)
    }
}

// In the modules below a value of the lanes' type exists only where a `Simd` of that instruction set made it or its
// operands, so that the processor has the instructions of its operations.

#[cfg(target_arch = "x86_64")]
pub mod avx2 {
    //! Two registers of AVX2.
    use std::arch::x86_64::*;

    use super::*;

    /// Sixteen f32.
    #[derive(Debug, Clone, Copy)]
    pub struct Registers(__m256, __m256);

    /// A condition of each: all bits of a true lane are set.
    #[derive(Debug, Clone, Copy)]
    pub struct Bits(__m256, __m256);

    impl Registers {
        #[inline(always)]
        pub(in super::super) fn load(_: super::super::Avx2, x: &[f32; W]) -> Self {
            // SAFETY: `Avx2` proves the instructions; there are sixteen numbers to load.
            unsafe { Self(_mm256_loadu_ps(x.as_ptr()), _mm256_loadu_ps(x.as_ptr().add(8))) }
        }
        #[inline(always)]
        pub(in super::super) fn splat(_: super::super::Avx2, x: f32) -> Self {
            // SAFETY: `Avx2` proves the instruction.
            unsafe { Self(_mm256_set1_ps(x), _mm256_set1_ps(x)) }
        }
    }

    macro_rules! both {
        ($of:ident, $make:ident $(, $a:expr)+) => {
            // SAFETY: the operands exist, so the processor has AVX2.
            unsafe { $make($of($($a.0),+), $of($($a.1),+)) }
        };
    }

    operators! { Registers, Bits,
        [Add add |a: Self, b: Self| both!(_mm256_add_ps, Registers, a, b)]
        [Sub sub |a: Self, b: Self| both!(_mm256_sub_ps, Registers, a, b)]
        [Mul mul |a: Self, b: Self| both!(_mm256_mul_ps, Registers, a, b)]
        [Div div |a: Self, b: Self| both!(_mm256_div_ps, Registers, a, b)],
        and |a: Self, b: Self| both!(_mm256_and_ps, Bits, a, b)
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    fn abs(x: __m256) -> __m256 {
        _mm256_andnot_ps(_mm256_set1_ps(-0.0), x)
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    fn nearest(x: __m256) -> __m256 {
        let bits = _mm256_castps_si256(_mm256_add_ps(x, _mm256_set1_ps(MAGIC)));
        let low = _mm256_and_si256(bits, _mm256_set1_epi32(0x007f_ffff));
        _mm256_cvtepi32_ps(_mm256_sub_epi32(low, _mm256_set1_epi32(0x0040_0000)))
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    fn lt(a: __m256, b: __m256) -> __m256 {
        _mm256_cmp_ps::<_CMP_LT_OQ>(a, b)
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    fn equals(a: __m256, b: __m256) -> __m256 {
        _mm256_cmp_ps::<_CMP_EQ_OQ>(a, b)
    }

    impl Lanes for Registers {
        type Mask = Bits;

        #[inline(always)]
        fn store(self) -> [f32; W] {
            let mut out = [0.0; W];
            // SAFETY: the registers exist, so the processor has AVX2; there is room for sixteen numbers.
            unsafe {
                _mm256_storeu_ps(out.as_mut_ptr(), self.0);
                _mm256_storeu_ps(out.as_mut_ptr().add(8), self.1);
            }
            out
        }
        #[inline(always)]
        fn least(self, other: Self) -> Self {
            both!(_mm256_min_ps, Self, self, other)
        }
        #[inline(always)]
        fn greatest(self, other: Self) -> Self {
            both!(_mm256_max_ps, Self, self, other)
        }
        #[inline(always)]
        fn abs(self) -> Self {
            both!(abs, Self, self)
        }
        #[inline(always)]
        fn sqrt(self) -> Self {
            both!(_mm256_sqrt_ps, Self, self)
        }
        #[inline(always)]
        fn nearest(self) -> Self {
            both!(nearest, Self, self)
        }
        #[inline(always)]
        fn lt(self, other: Self) -> Bits {
            both!(lt, Bits, self, other)
        }
        #[inline(always)]
        fn equals(self, other: Self) -> Bits {
            both!(equals, Bits, self, other)
        }
        #[inline(always)]
        fn or(self, mask: Bits, other: Self) -> Self {
            both!(_mm256_blendv_ps, Self, other, self, mask)
        }
    }

    impl Mask for Bits {
        #[inline(always)]
        fn any(self) -> bool {
            // SAFETY: the mask exists, so the processor has AVX2.
            unsafe { _mm256_movemask_ps(self.0) | _mm256_movemask_ps(self.1) != 0 }
        }
        #[inline(always)]
        fn all(self) -> bool {
            // SAFETY: the mask exists, so the processor has AVX2.
            unsafe { _mm256_movemask_ps(self.0) & _mm256_movemask_ps(self.1) == 0xff }
        }
    }
}

#[cfg(target_arch = "x86_64")]
pub mod avx512 {
    //! One register of AVX-512.
    use std::arch::x86_64::*;

    use super::*;

    /// Sixteen f32.
    #[derive(Debug, Clone, Copy)]
    pub struct Register(__m512);

    /// A condition of each, a bit a lane.
    #[derive(Debug, Clone, Copy)]
    pub struct Bits(__mmask16);

    impl Register {
        #[inline(always)]
        pub(in super::super) fn load(_: super::super::Avx512, x: &[f32; W]) -> Self {
            // SAFETY: `Avx512` proves the instruction; there are sixteen numbers to load.
            unsafe { Self(_mm512_loadu_ps(x.as_ptr())) }
        }
        #[inline(always)]
        pub(in super::super) fn splat(_: super::super::Avx512, x: f32) -> Self {
            // SAFETY: `Avx512` proves the instruction.
            unsafe { Self(_mm512_set1_ps(x)) }
        }
    }

    macro_rules! one {
        ($of:expr, $make:ident $(, $a:expr)+) => {
            // SAFETY: the operands exist, so the processor has AVX-512.
            unsafe { $make($of($($a.0),+)) }
        };
    }

    operators! { Register, Bits,
        [Add add |a: Self, b: Self| one!(_mm512_add_ps, Register, a, b)]
        [Sub sub |a: Self, b: Self| one!(_mm512_sub_ps, Register, a, b)]
        [Mul mul |a: Self, b: Self| one!(_mm512_mul_ps, Register, a, b)]
        [Div div |a: Self, b: Self| one!(_mm512_div_ps, Register, a, b)],
        and |a: Self, b: Self| Bits(a.0 & b.0)
    }

    #[target_feature(enable = "avx512f")]
    #[inline]
    fn nearest(x: __m512) -> __m512 {
        let bits = _mm512_castps_si512(_mm512_add_ps(x, _mm512_set1_ps(MAGIC)));
        let low = _mm512_and_si512(bits, _mm512_set1_epi32(0x007f_ffff));
        _mm512_cvtepi32_ps(_mm512_sub_epi32(low, _mm512_set1_epi32(0x0040_0000)))
    }

    impl Lanes for Register {
        type Mask = Bits;

        #[inline(always)]
        fn store(self) -> [f32; W] {
            let mut out = [0.0; W];
            // SAFETY: the register exists, so the processor has AVX-512; there is room for sixteen numbers.
            unsafe { _mm512_storeu_ps(out.as_mut_ptr(), self.0) };
            out
        }
        #[inline(always)]
        fn least(self, other: Self) -> Self {
            one!(_mm512_min_ps, Self, self, other)
        }
        #[inline(always)]
        fn greatest(self, other: Self) -> Self {
            one!(_mm512_max_ps, Self, self, other)
        }
        #[inline(always)]
        fn abs(self) -> Self {
            one!(_mm512_abs_ps, Self, self)
        }
        #[inline(always)]
        fn sqrt(self) -> Self {
            one!(_mm512_sqrt_ps, Self, self)
        }
        #[inline(always)]
        fn nearest(self) -> Self {
            one!(nearest, Self, self)
        }
        #[inline(always)]
        fn lt(self, other: Self) -> Bits {
            one!(_mm512_cmp_ps_mask::<_CMP_LT_OQ>, Bits, self, other)
        }
        #[inline(always)]
        fn equals(self, other: Self) -> Bits {
            one!(_mm512_cmp_ps_mask::<_CMP_EQ_OQ>, Bits, self, other)
        }
        #[inline(always)]
        fn or(self, mask: Bits, other: Self) -> Self {
            // SAFETY: the registers exist, so the processor has AVX-512.
            unsafe { Self(_mm512_mask_blend_ps(mask.0, other.0, self.0)) }
        }
    }

    impl Mask for Bits {
        #[inline(always)]
        fn any(self) -> bool {
            self.0 != 0
        }
        #[inline(always)]
        fn all(self) -> bool {
            self.0 == u16::MAX
        }
    }
}

#[cfg(target_arch = "aarch64")]
pub mod neon {
    //! Four registers of NEON.
    use std::arch::aarch64::*;
    use std::array::from_fn;

    use super::*;

    /// Sixteen f32.
    #[derive(Debug, Clone, Copy)]
    pub struct Registers([float32x4_t; 4]);

    /// A condition of each: all bits of a true lane are set.
    #[derive(Debug, Clone, Copy)]
    pub struct Bits([uint32x4_t; 4]);

    impl Registers {
        #[inline(always)]
        pub(in super::super) fn load(_: super::super::Neon, x: &[f32; W]) -> Self {
            // SAFETY: `Neon` proves the instruction; there are sixteen numbers to load.
            Self(from_fn(|i| unsafe { vld1q_f32(x[4 * i..].as_ptr()) }))
        }
        #[inline(always)]
        pub(in super::super) fn splat(_: super::super::Neon, x: f32) -> Self {
            // SAFETY: `Neon` proves the instruction.
            Self([unsafe { vdupq_n_f32(x) }; 4])
        }
    }

    macro_rules! four {
        ($of:ident, $make:ident $(, $a:expr)+) => {
            // SAFETY: the operands exist, so the processor has NEON.
            $make(from_fn(|i| unsafe { $of($($a.0[i]),+) }))
        };
    }

    operators! { Registers, Bits,
        [Add add |a: Self, b: Self| four!(vaddq_f32, Registers, a, b)]
        [Sub sub |a: Self, b: Self| four!(vsubq_f32, Registers, a, b)]
        [Mul mul |a: Self, b: Self| four!(vmulq_f32, Registers, a, b)]
        [Div div |a: Self, b: Self| four!(vdivq_f32, Registers, a, b)],
        and |a: Self, b: Self| four!(vandq_u32, Bits, a, b)
    }

    #[target_feature(enable = "neon")]
    #[inline]
    fn nearest(x: float32x4_t) -> float32x4_t {
        let bits = vreinterpretq_s32_f32(vaddq_f32(x, vdupq_n_f32(MAGIC)));
        let low = vandq_s32(bits, vdupq_n_s32(0x007f_ffff));
        vcvtq_f32_s32(vsubq_s32(low, vdupq_n_s32(0x0040_0000)))
    }

    impl Lanes for Registers {
        type Mask = Bits;

        #[inline(always)]
        fn store(self) -> [f32; W] {
            let mut out = [0.0; W];
            for (out, register) in out.as_chunks_mut::<4>().0.iter_mut().zip(self.0) {
                // SAFETY: the register exists, so the processor has NEON; there is room for four numbers.
                unsafe { vst1q_f32(out.as_mut_ptr(), register) };
            }
            out
        }
        // NEON's own minimum and maximum take another of two that are NaN, or zeros of either sign.
        #[inline(always)]
        fn least(self, other: Self) -> Self {
            self.or(self.lt(other), other)
        }
        #[inline(always)]
        fn greatest(self, other: Self) -> Self {
            self.or(other.lt(self), other)
        }
        #[inline(always)]
        fn abs(self) -> Self {
            four!(vabsq_f32, Self, self)
        }
        #[inline(always)]
        fn sqrt(self) -> Self {
            four!(vsqrtq_f32, Self, self)
        }
        #[inline(always)]
        fn nearest(self) -> Self {
            four!(nearest, Self, self)
        }
        #[inline(always)]
        fn lt(self, other: Self) -> Bits {
            four!(vcltq_f32, Bits, self, other)
        }
        #[inline(always)]
        fn equals(self, other: Self) -> Bits {
            four!(vceqq_f32, Bits, self, other)
        }
        #[inline(always)]
        fn or(self, mask: Bits, other: Self) -> Self {
            four!(vbslq_f32, Self, mask, self, other)
        }
    }

    impl Mask for Bits {
        #[inline(always)]
        fn any(self) -> bool {
            let [a, b, c, d] = self.0;
            // SAFETY: the registers exist, so the processor has NEON.
            unsafe { vmaxvq_u32(vorrq_u32(vorrq_u32(a, b), vorrq_u32(c, d))) != 0 }
        }
        #[inline(always)]
        fn all(self) -> bool {
            let [a, b, c, d] = self.0;
            // SAFETY: the same.
            unsafe { vminvq_u32(vandq_u32(vandq_u32(a, b), vandq_u32(c, d))) != 0 }
        }
    }
}
