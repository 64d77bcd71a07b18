//! AVX2, AVX-512 and AVX-512 VNNI.

use std::arch::x86_64::*;

use super::super::avx2::across_integers;
use super::tile::{Vector, tile};
use super::{Operands, few_avx2, panel, panel_avx2};

/// All dot products, in tiles of M rows of x and N rows of weights, and of single rows at the edges. A tile's weights are
/// loaded once for M rows.
///
/// # Safety
/// The operands' lengths fit their shape, and `out` has m · n elements.
#[inline(always)]
unsafe fn walk<V: Vector, const M: usize, const N: usize>(o: Operands<'_>, out: &mut [i32]) {
    let (w, x, sums, out) = (o.weights.as_ptr(), o.x.as_ptr(), o.x_sums.as_ptr(), out.as_mut_ptr());
    let (whole_m, whole_n) = (o.m - o.m % M, o.n - o.n % N);
    // SAFETY: tiles begin at rows i of m and j of n and end, by the rounding above, at most at the last.
    unsafe {
        for j in (0..whole_n).step_by(N) {
            let w = w.add(j * o.k);
            for i in (0..whole_m).step_by(M) {
                tile::<V, M, N>(w, x.add(i * o.k), sums.add(i), o.k, out.add(i * o.n + j), o.n);
            }
            for i in whole_m..o.m {
                tile::<V, 1, N>(w, x.add(i * o.k), sums.add(i), o.k, out.add(i * o.n + j), o.n);
            }
        }
        for j in whole_n..o.n {
            let w = w.add(j * o.k);
            for i in 0..o.m {
                tile::<V, 1, 1>(w, x.add(i * o.k), sums.add(i), o.k, out.add(i * o.n + j), o.n);
            }
        }
    }
}

/// How far ahead of the loads a row is asked for.
const AHEAD: usize = 1536;

/// The products of M rows of x with one row of weights after the other, so that memory is read from first to last.
///
/// # Safety
/// As [`walk`], with m = M, and the processor has AVX-512 with VNNI.
#[inline(always)]
unsafe fn rows<const M: usize>(o: Operands<'_>, out: &mut [i32]) {
    let whole = o.k - o.k % 256;
    // SAFETY: columns are read below k in rows below n and M; the last ones under a mask.
    unsafe {
        for j in 0..o.n {
            let w = o.weights.as_ptr().add(j * o.k);
            let mut sums = [[_mm512_setzero_si512(); 4]; M];
            let mut at = 0;
            while at < whole {
                let mut lane = 0;
                while lane < 4 {
                    let here = at + 64 * lane;
                    _mm_prefetch::<_MM_HINT_T0>(w.wrapping_add(here + AHEAD));
                    let weight = Vnni::weight(w.add(here));
                    let mut i = 0;
                    while i < M {
                        sums[i][lane] = Vnni::add(sums[i][lane], weight, Vnni::x(o.x.as_ptr().add(i * o.k + here)));
                        i += 1;
                    }
                    lane += 1;
                }
                at += 256;
            }
            while at < o.k {
                let count = (o.k - at).min(64);
                let mask = u64::MAX >> (64 - count);
                // What is masked is zero in x, and counts nothing.
                let weight = _mm512_maskz_loadu_epi8(mask, w.add(at));
                let weight = _mm512_xor_si512(weight, _mm512_set1_epi8(-128));
                let mut i = 0;
                while i < M {
                    let x = _mm512_maskz_loadu_epi8(mask, o.x.as_ptr().add(i * o.k + at));
                    sums[i][0] = Vnni::add(sums[i][0], weight, x);
                    i += 1;
                }
                at += count;
            }
            let mut i = 0;
            while i < M {
                let [a, b, c, d] = sums[i];
                let all = _mm512_add_epi32(_mm512_add_epi32(a, b), _mm512_add_epi32(c, d));
                out[i * o.n + j] = Vnni::total(all, o.x_sums[i]);
                i += 1;
            }
        }
    }
}

/// # Safety
/// As [`walk`], and the processor has AVX2.
#[target_feature(enable = "avx2")]
pub(super) unsafe fn avx2(o: Operands<'_>, out: &mut [i32]) {
    // SAFETY: the caller's promise.
    unsafe {
        match o.m {
            _ if panel_avx2::suits(&o) => panel_avx2::multiply(o, out),
            _ if few_avx2::suits(&o) => few_avx2::multiply(o, out),
            _ => walk::<Avx2, 2, 4>(o, out),
        }
    }
}

/// # Safety
/// As [`walk`], and the processor has AVX-512 F, BW and VL.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(super) unsafe fn avx512(o: Operands<'_>, out: &mut [i32]) {
    // SAFETY: the caller's promise.
    unsafe { walk::<Avx512, 4, 4>(o, out) }
}

/// # Safety
/// As [`walk`], and the processor has AVX-512 F, BW, VL and VNNI.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
pub(super) unsafe fn avx512_vnni(o: Operands<'_>, out: &mut [i32]) {
    // SAFETY: the caller's promise.
    unsafe {
        match o.m {
            _ if panel::suits(&o) => panel::multiply(o, out),
            1 => rows::<1>(o, out),
            2 => rows::<2>(o, out),
            3 => rows::<3>(o, out),
            4 => rows::<4>(o, out),
            _ => walk::<Vnni, 4, 4>(o, out),
        }
    }
}

/// Products of 16-bit numbers, which hold any product's pair sum exactly in 32.
struct Avx2;

impl Vector for Avx2 {
    const LANES: usize = 16;
    type Row = __m256i;
    type Sums = __m256i;

    #[inline(always)]
    unsafe fn x(at: *const i8) -> __m256i {
        // SAFETY: LANES bytes at `at`.
        unsafe { _mm256_cvtepi8_epi16(_mm_loadu_si128(at.cast())) }
    }
    #[inline(always)]
    unsafe fn weight(at: *const i8) -> __m256i {
        // SAFETY: the same.
        unsafe { Self::x(at) }
    }
    #[inline(always)]
    unsafe fn zero() -> __m256i {
        // SAFETY: the instruction set is there.
        unsafe { _mm256_setzero_si256() }
    }
    #[inline(always)]
    unsafe fn add(sums: __m256i, weight: __m256i, x: __m256i) -> __m256i {
        // SAFETY: the instruction set is there.
        unsafe { _mm256_add_epi32(sums, _mm256_madd_epi16(weight, x)) }
    }
    #[inline(always)]
    unsafe fn total(sums: __m256i, _: i32) -> i32 {
        // SAFETY: the instruction set is there.
        unsafe { across_integers(sums) }
    }
}

/// The same on twice the width.
struct Avx512;

impl Vector for Avx512 {
    const LANES: usize = 32;
    type Row = __m512i;
    type Sums = __m512i;

    #[inline(always)]
    unsafe fn x(at: *const i8) -> __m512i {
        // SAFETY: LANES bytes at `at`.
        unsafe { _mm512_cvtepi8_epi16(_mm256_loadu_si256(at.cast())) }
    }
    #[inline(always)]
    unsafe fn weight(at: *const i8) -> __m512i {
        // SAFETY: the same.
        unsafe { Self::x(at) }
    }
    #[inline(always)]
    unsafe fn zero() -> __m512i {
        // SAFETY: the instruction set is there.
        unsafe { _mm512_setzero_si512() }
    }
    #[inline(always)]
    unsafe fn add(sums: __m512i, weight: __m512i, x: __m512i) -> __m512i {
        // SAFETY: the instruction set is there.
        unsafe { _mm512_add_epi32(sums, _mm512_madd_epi16(weight, x)) }
    }
    #[inline(always)]
    unsafe fn total(sums: __m512i, _: i32) -> i32 {
        // SAFETY: the instruction set is there.
        unsafe { _mm512_reduce_add_epi32(sums) }
    }
}

/// VNNI multiplies unsigned by signed: weights are raised by 128 (their sign bit is flipped), and 128 · Σx is taken off at
/// the end. Both wrap around 2³² alike, so the total is exact.
struct Vnni;

impl Vector for Vnni {
    const LANES: usize = 64;
    type Row = __m512i;
    type Sums = __m512i;

    #[inline(always)]
    unsafe fn x(at: *const i8) -> __m512i {
        // SAFETY: LANES bytes at `at`.
        unsafe { _mm512_loadu_si512(at.cast()) }
    }
    #[inline(always)]
    unsafe fn weight(at: *const i8) -> __m512i {
        // SAFETY: LANES bytes at `at`.
        unsafe { _mm512_xor_si512(_mm512_loadu_si512(at.cast()), _mm512_set1_epi8(-128)) }
    }
    #[inline(always)]
    unsafe fn zero() -> __m512i {
        // SAFETY: the instruction set is there.
        unsafe { _mm512_setzero_si512() }
    }
    #[inline(always)]
    unsafe fn add(sums: __m512i, weight: __m512i, x: __m512i) -> __m512i {
        // SAFETY: the instruction set is there.
        unsafe { _mm512_dpbusd_epi32(sums, weight, x) }
    }
    #[inline(always)]
    unsafe fn total(sums: __m512i, x_sum: i32) -> i32 {
        // SAFETY: the instruction set is there.
        unsafe { _mm512_reduce_add_epi32(sums) }.wrapping_sub(x_sum.wrapping_mul(128))
    }
}
