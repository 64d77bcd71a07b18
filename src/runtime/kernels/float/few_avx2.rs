//! Few rows of x, AVX2, for sessions: rows of weights are read where they lie, and a lane sums every eighth column. Memory sets
//! the pace; panels, whose order of sums is another, would read it at half the speed.

use std::arch::x86_64::*;

use formats::Dtype;

use super::panel_avx2::fp8;
use super::{Operands, portable};
use crate::encoding::Form;
use crate::runtime::kernels::avx2::{STREAMS, across};
use crate::runtime::kernels::tiles::Tile;

/// The most rows of x; for more, panels are worth being made.
const MOST: usize = 3;

/// How far ahead of the loads a row is asked for.
const AHEAD: usize = 512;

/// How 8 numbers become f32.
trait Eight {
    /// Bytes of 8 numbers.
    const BYTES: usize;
    /// How many times too small they are.
    const SMALLER: f32 = 1.0;

    /// The numbers at `at`.
    ///
    /// # Safety
    /// There are [`Eight::BYTES`] bytes; the processor has AVX2 and F16C.
    unsafe fn load(at: *const u8) -> __m256;

    /// Four times as many. Bits in `nan` are set where one that is not a number may be given as any.
    ///
    /// # Safety
    /// As [`Eight::load`].
    #[inline(always)]
    unsafe fn four(at: *const u8, _nan: &mut __m256i) -> [__m256; 4] {
        // SAFETY: the caller's promise.
        unsafe {
            [
                Self::load(at),
                Self::load(at.add(Self::BYTES)),
                Self::load(at.add(2 * Self::BYTES)),
                Self::load(at.add(3 * Self::BYTES)),
            ]
        }
    }
}

struct F32;
struct F16;
struct Bf16;
struct Signed;
struct Excess128;
struct Fp8;

impl Eight for F32 {
    const BYTES: usize = 32;
    #[inline(always)]
    unsafe fn load(at: *const u8) -> __m256 {
        // SAFETY: the caller's promise.
        unsafe { _mm256_loadu_ps(at.cast()) }
    }
}

impl Eight for F16 {
    const BYTES: usize = 16;
    #[inline(always)]
    unsafe fn load(at: *const u8) -> __m256 {
        // SAFETY: the caller's promise.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(at.cast())) }
    }
}

impl Eight for Bf16 {
    const BYTES: usize = 16;
    #[inline(always)]
    unsafe fn load(at: *const u8) -> __m256 {
        // SAFETY: the caller's promise.
        unsafe {
            let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(at.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
        }
    }
}

impl Eight for Signed {
    const BYTES: usize = 8;
    #[inline(always)]
    unsafe fn load(at: *const u8) -> __m256 {
        // SAFETY: the caller's promise.
        unsafe { _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(at.cast()))) }
    }
}

impl Eight for Excess128 {
    const BYTES: usize = 8;
    #[inline(always)]
    unsafe fn load(at: *const u8) -> __m256 {
        // SAFETY: the caller's promise.
        unsafe {
            let signed = _mm_xor_si128(_mm_loadl_epi64(at.cast()), _mm_set1_epi8(-128));
            _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(signed))
        }
    }
}

impl Eight for Fp8 {
    const BYTES: usize = 8;
    const SMALLER: f32 = 256.0;

    #[inline(always)]
    unsafe fn load(at: *const u8) -> __m256 {
        // SAFETY: the caller's promise.
        unsafe { _mm256_mul_ps(fp8(_mm_loadl_epi64(at.cast())), _mm256_set1_ps(1.0 / Self::SMALLER)) }
    }

    #[inline(always)]
    unsafe fn four(at: *const u8, nan: &mut __m256i) -> [__m256; 4] {
        // SAFETY: the caller's promise.
        unsafe {
            let sizes = _mm256_and_si256(_mm256_loadu_si256(at.cast()), _mm256_set1_epi8(0x7f));
            *nan = _mm256_or_si256(*nan, _mm256_cmpeq_epi8(sizes, _mm256_set1_epi8(0x7f)));
            // As `fp8` does it, for numbers alone and without their factor.
            let halves = |at: *const u8| {
                let wide = _mm256_slli_epi16::<8>(_mm256_cvtepu8_epi16(_mm_loadu_si128(at.cast())));
                _mm256_and_si256(_mm256_srai_epi16::<1>(wide), _mm256_set1_epi16(0xbfffu16 as i16))
            };
            let (first, second) = (halves(at), halves(at.add(16)));
            [
                _mm256_cvtph_ps(_mm256_castsi256_si128(first)),
                _mm256_cvtph_ps(_mm256_extracti128_si256::<1>(first)),
                _mm256_cvtph_ps(_mm256_castsi256_si128(second)),
                _mm256_cvtph_ps(_mm256_extracti128_si256::<1>(second)),
            ]
        }
    }
}

/// The products of rows of plain numbers or codes and M rows of x.
///
/// # Safety
/// The processor has AVX2, FMA and F16C; the rows and M of x have k columns.
#[inline(always)]
unsafe fn dots<E: Eight, const M: usize>(rows: [&[u8]; STREAMS], x: *const f32, k: usize) -> [[f32; M]; STREAMS] {
    // SAFETY: what is read lies below column k; the last columns, if they are fewer than 8, are read through copies.
    unsafe {
        let mut sums = [[_mm256_setzero_ps(); M]; STREAMS];
        let mut nan = [_mm256_setzero_si256(); STREAMS];
        let mut at = 0;
        while at + 32 <= k {
            let mut stream = 0;
            while stream < STREAMS {
                let row = rows[stream].as_ptr().add(at / 8 * E::BYTES);
                let mut line = 0;
                while line < 4 * E::BYTES {
                    _mm_prefetch::<_MM_HINT_T0>(row.wrapping_add(AHEAD + line).cast());
                    line += 64;
                }
                let weights = E::four(row, &mut nan[stream]);
                let mut part = 0;
                while part < 4 {
                    let mut i = 0;
                    while i < M {
                        let numbers = _mm256_loadu_ps(x.add(i * k + at + 8 * part));
                        sums[stream][i] = _mm256_fmadd_ps(weights[part], numbers, sums[stream][i]);
                        i += 1;
                    }
                    part += 1;
                }
                stream += 1;
            }
            at += 32;
        }
        while at < k {
            let count = (k - at).min(8);
            for (row, sums) in rows.into_iter().zip(&mut sums) {
                let mut last = [0; 32];
                let rest = &row[at / 8 * E::BYTES..][..count * E::BYTES / 8];
                last[..rest.len()].copy_from_slice(rest);
                let weights = E::load(last.as_ptr());
                for (i, sum) in sums.iter_mut().enumerate() {
                    let mut numbers = [0.0; 8];
                    std::ptr::copy_nonoverlapping(x.add(i * k + at), numbers.as_mut_ptr(), count);
                    *sum = _mm256_fmadd_ps(weights, _mm256_loadu_ps(numbers.as_ptr()), *sum);
                }
            }
            at += 8;
        }
        let mut totals = [[0.0; M]; STREAMS];
        for ((totals, sums), nan) in totals.iter_mut().zip(sums).zip(nan) {
            let number = _mm256_testz_si256(nan, nan) == 1;
            for (total, all) in totals.iter_mut().zip(sums) {
                *total = if number { E::SMALLER * across(all) } else { f32::NAN };
            }
        }
        totals
    }
}

/// What a row of a form is read as.
#[derive(Clone, Copy)]
enum Read {
    F32,
    F16,
    Bf16,
    Signed,
    Excess128,
    Fp8,
}

impl Read {
    fn of(form: &Form<'_>) -> Option<Self> {
        Some(match form {
            Form::Plain(Dtype::F32) => Self::F32,
            Form::Plain(Dtype::F16) => Self::F16,
            Form::Plain(Dtype::BF16) => Self::Bf16,
            Form::Int8(_) => Self::Signed,
            Form::Fp8(_) => Self::Fp8,
            Form::Packed { bits: 8, scales, .. } if scales.per_row == 1 => Self::Excess128,
            _ => return None,
        })
    }
}

/// Whether rows are multiplied here.
pub(super) fn suits(o: &Operands<'_>, rows: usize) -> bool {
    o.steps && rows <= MOST && (Read::of(&o.weights.form).is_some() || matches!(o.weights.form, Form::Blocks(_)))
}

/// # Safety
/// As the other versions, for what [`suits`].
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn multiply(o: &Operands<'_>, tile: &mut Tile<'_>) {
    // Blocks are unpacked row by row, which panels would turn as well.
    let Some(read) = Read::of(&o.weights.form) else { return portable::multiply(o, tile) };
    // SAFETY: the caller's promise.
    unsafe {
        match tile.rows() {
            1 => all::<1>(o, read, tile),
            2 => all::<2>(o, read, tile),
            _ => all::<MOST>(o, read, tile),
        }
    }
}

/// # Safety
/// As [`multiply`], with M rows of x.
#[inline(always)]
unsafe fn all<const M: usize>(o: &Operands<'_>, read: Read, tile: &mut Tile<'_>) {
    let (k, cols) = (o.k, tile.cols());
    let x = o.x.f32()[tile.first_row() * k..][..M * k].as_ptr();
    let step = cols.div_ceil(STREAMS);
    for j in 0..step {
        // Columns that there are not are the last one again, and are not stored.
        let rows = std::array::from_fn(|stream| o.weights.row(o.first + (j + stream * step).min(cols - 1)));
        // SAFETY: the rows have k columns, as have M of x.
        let totals = unsafe {
            match read {
                Read::F32 => dots::<F32, M>(rows, x, k),
                Read::F16 => dots::<F16, M>(rows, x, k),
                Read::Bf16 => dots::<Bf16, M>(rows, x, k),
                Read::Signed => dots::<Signed, M>(rows, x, k),
                Read::Excess128 => dots::<Excess128, M>(rows, x, k),
                Read::Fp8 => dots::<Fp8, M>(rows, x, k),
            }
        };
        for (column, totals) in (j..cols).step_by(step).zip(totals) {
            let mut scale = [1.0];
            o.own_scales(column, &mut scale);
            totals.into_iter().enumerate().for_each(|(i, total)| tile.row(i)[column] = total * scale[0]);
        }
    }
}
