//! Few rows of x, AVX2. Two eights of rows of weights are read where they lie, 8 columns at a time, and transposed in registers,
//! so that a lane is a row of weights and the order of sums is that of panels. int4 by groups is transposed as it is stored,
//! in words of 8 codes, each of which then costs a mask, a conversion and two FMAs.

use std::arch::x86_64::*;

use formats::Dtype;

use super::Operands;
use super::panel_avx2::{COLUMNS, fp8};
use crate::encoding::Form;
use crate::runtime::kernels::tiles::Tile;
use crate::runtime::kernels::transpose::transposed_8;

/// Rows of weights whose sums are added to in turn, in eights, so that none waits for the one before.
const EIGHTS: usize = 2;

/// The same, in rows.
const ROWS: usize = 8 * EIGHTS;

/// The most rows of x; for more, panels are worth being made.
const MOST: usize = 3;

/// How far ahead of the loads a row is asked for.
const AHEAD: usize = 512;

/// Rows of weights.
struct Weights<'a> {
    rows: [&'a [u8]; ROWS],
    /// Bytes from these rows to the ones that are multiplied next.
    next: usize,
}

impl Weights<'_> {
    /// Asks for what follows byte `at` of row `i`, in this row or in the one that comes after it.
    #[inline(always)]
    fn ahead(&self, i: usize, at: usize) {
        let row = self.rows[i];
        let beyond = at + AHEAD;
        let beyond = if beyond < row.len() { beyond } else { beyond - row.len() + self.next };
        // SAFETY: the instruction set is there; a prefetch may point anywhere.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(row.as_ptr().wrapping_add(beyond).cast()) };
    }
}

/// How 8 numbers become f32.
trait Eight {
    /// Bytes of 8 numbers.
    const BYTES: usize;

    /// The numbers at `at`.
    ///
    /// # Safety
    /// There are [`Eight::BYTES`] bytes; the processor has AVX2 and F16C.
    unsafe fn load(at: *const u8) -> __m256;
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
    #[inline(always)]
    unsafe fn load(at: *const u8) -> __m256 {
        // SAFETY: the caller's promise.
        unsafe { fp8(_mm_loadl_epi64(at.cast())) }
    }
}

/// Adds to sums of M rows of x and eight rows of weights what `count` columns give, of which lane by lane `columns` has the weights.
///
/// # Safety
/// The processor has AVX2 and FMA; there are `count` numbers of each row of x, `k` apart.
#[inline(always)]
unsafe fn add<const M: usize>(
    sums: &mut [[__m256; EIGHTS]; M],
    columns: &[[__m256i; 8]; EIGHTS],
    x: *const f32,
    k: usize,
    count: usize,
) {
    let mut q = 0;
    while q < count {
        let mut i = 0;
        while i < M {
            // SAFETY: the caller's promise.
            unsafe {
                let x = _mm256_set1_ps(*x.add(i * k + q));
                let mut e = 0;
                while e < EIGHTS {
                    sums[i][e] = _mm256_fmadd_ps(_mm256_castsi256_ps(columns[e][q]), x, sums[i][e]);
                    e += 1;
                }
            }
            i += 1;
        }
        q += 1;
    }
}

/// The products of rows of plain numbers or codes and M rows of x.
///
/// # Safety
/// The processor has AVX2, FMA and F16C; the rows and M of x have k columns.
#[inline(always)]
unsafe fn plain<E: Eight, const M: usize>(w: &Weights<'_>, x: *const f32, k: usize) -> [[__m256; EIGHTS]; M] {
    // SAFETY: what is read lies below column k; the last columns, if they are fewer than 8, are read through copies.
    unsafe {
        let mut totals = [[_mm256_setzero_ps(); EIGHTS]; M];
        let mut first = 0;
        while first < k {
            let end = k.min(first + COLUMNS);
            let mut sums = [[_mm256_setzero_ps(); EIGHTS]; M];
            let mut at = first;
            while at + 8 <= end {
                let byte = at / 8 * E::BYTES;
                let mut columns = [[_mm256_setzero_si256(); 8]; EIGHTS];
                let mut e = 0;
                while e < EIGHTS {
                    let mut i = 0;
                    while i < 8 {
                        // Each line is asked for once.
                        if byte % 64 < E::BYTES {
                            w.ahead(8 * e + i, byte);
                        }
                        columns[e][i] = _mm256_castps_si256(E::load(w.rows[8 * e + i].as_ptr().add(byte)));
                        i += 1;
                    }
                    columns[e] = transposed_8(columns[e]);
                    e += 1;
                }
                add(&mut sums, &columns, x.add(at), k, 8);
                at += 8;
            }
            if at < end {
                let mut columns = [[_mm256_setzero_si256(); 8]; EIGHTS];
                for (e, columns) in columns.iter_mut().enumerate() {
                    for (column, row) in columns.iter_mut().zip(&w.rows[8 * e..8 * e + 8]) {
                        let mut last = [0; 32];
                        let rest = &row[at / 8 * E::BYTES..][..(end - at) * E::BYTES / 8];
                        last[..rest.len()].copy_from_slice(rest);
                        *column = _mm256_castps_si256(E::load(last.as_ptr()));
                    }
                    *columns = transposed_8(*columns);
                }
                add(&mut sums, &columns, x.add(at), k, end - at);
            }
            gather(&mut totals, sums, first);
            first = end;
        }
        totals
    }
}

/// Adds the sums of a block of columns to those of the ones before it.
///
/// # Safety
/// The processor has AVX2.
#[inline(always)]
unsafe fn gather<const M: usize>(totals: &mut [[__m256; EIGHTS]; M], sums: [[__m256; EIGHTS]; M], first: usize) {
    for (totals, sums) in totals.iter_mut().zip(sums) {
        for (total, sum) in totals.iter_mut().zip(sums) {
            // SAFETY: the caller's promise.
            *total = if first == 0 { sum } else { unsafe { _mm256_add_ps(sum, *total) } };
        }
    }
}

/// The products of rows of int4 by groups and M rows of x; `scales` has ROWS scales for each group.
///
/// # Safety
/// The processor has AVX2 and FMA; the rows and M of x have k columns; groups and k are multiples of 64.
#[inline(always)]
unsafe fn packed<const M: usize>(
    w: &Weights<'_>,
    (scales, group): (&[f32], usize),
    x: *const f32,
    k: usize,
) -> [[__m256; EIGHTS]; M] {
    // SAFETY: 32 bytes of each row hold 64 codes; scales are taken from within their slice.
    unsafe {
        let mut totals = [[_mm256_setzero_ps(); EIGHTS]; M];
        let mut sums = totals;
        // Of the group at hand: the scales of codes that lie 4 · i bits too high, and 8 times the scale, negated.
        let mut own = [[_mm256_setzero_ps(); 7]; EIGHTS];
        let mut less = [_mm256_setzero_ps(); EIGHTS];
        let mut at = 0;
        while at < k {
            let mut words = [[_mm256_setzero_si256(); 8]; EIGHTS];
            for e in 0..EIGHTS {
                for (i, word) in words[e].iter_mut().enumerate() {
                    if at % 128 == 0 {
                        w.ahead(8 * e + i, at / 2);
                    }
                    *word = _mm256_loadu_si256(w.rows[8 * e + i].as_ptr().add(at / 2).cast());
                }
                words[e] = transposed_8(words[e]);
                if at.is_multiple_of(group) {
                    let mut scale = _mm256_loadu_ps(scales[at / group * ROWS + 8 * e..][..8].as_ptr());
                    less[e] = _mm256_mul_ps(scale, _mm256_set1_ps(-8.0));
                    for own in &mut own[e] {
                        *own = scale;
                        scale = _mm256_mul_ps(scale, _mm256_set1_ps(1.0 / 16.0));
                    }
                }
            }
            let mut word = 0;
            while word < 8 {
                let codes: [__m256i; EIGHTS] = [words[0][word], words[1][word]];
                macro_rules! step {
                    ($i:literal) => {{
                        let mut weights = less;
                        let mut e = 0;
                        while e < EIGHTS {
                            // (code − 8) · scale, rounded once. The highest code would be taken for a negative number.
                            let (code, own) = if $i == 7 {
                                (_mm256_srli_epi32::<28>(codes[e]), own[e][0])
                            } else {
                                let mask = _mm256_set1_epi32((15u32 << (4 * $i)) as i32);
                                (_mm256_and_si256(codes[e], mask), own[e][$i % 7])
                            };
                            weights[e] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(code), own, less[e]);
                            e += 1;
                        }
                        let mut i = 0;
                        while i < M {
                            let x = _mm256_set1_ps(*x.add(i * k + at + 8 * word + $i));
                            let mut e = 0;
                            while e < EIGHTS {
                                sums[i][e] = _mm256_fmadd_ps(weights[e], x, sums[i][e]);
                                e += 1;
                            }
                            i += 1;
                        }
                    }};
                }
                step!(0);
                step!(1);
                step!(2);
                step!(3);
                step!(4);
                step!(5);
                step!(6);
                step!(7);
                word += 1;
            }
            at += 64;
            if at % COLUMNS == 0 || at == k {
                gather(&mut totals, sums, (at - 1) / COLUMNS);
                sums = [[_mm256_setzero_ps(); EIGHTS]; M];
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
    Packed(usize),
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
            Form::Packed { bits: 4, group, .. } if group.is_multiple_of(64) => Self::Packed(*group),
            _ => return None,
        })
    }
}

/// Whether rows are multiplied here.
pub(super) fn suits(o: &Operands<'_>, rows: usize) -> bool {
    rows <= MOST && Read::of(&o.weights.form).is_some()
}

/// # Safety
/// As the other versions, for what [`suits`].
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn multiply(o: &Operands<'_>, tile: &mut Tile<'_>) {
    let Some(read) = Read::of(&o.weights.form) else { return };
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
    let mut by_group = Vec::new();
    for j in (0..cols).step_by(ROWS) {
        let count = ROWS.min(cols - j);
        // Rows that there are not are the last one again, and are not stored.
        let row = |i: usize| o.first + j + i.min(count - 1);
        let w = Weights { rows: std::array::from_fn(|i| o.weights.row(row(i))), next: ROWS * o.weights.row_bytes };
        let mut scales = [1.0; ROWS];
        o.own_scales(j, &mut scales[..count]);
        if let (Read::Packed(_), Form::Packed { scales, .. }) = (read, &o.weights.form) {
            by_group.resize(scales.per_row * ROWS, 0.0);
            let mut own = [0.0; 64];
            for i in 0..ROWS {
                for first in (0..scales.per_row).step_by(64) {
                    let own = &mut own[..64.min(scales.per_row - first)];
                    scales.read_some(o.weights.position(row(i)), first, own);
                    let to = by_group[first * ROWS..].chunks_exact_mut(ROWS);
                    to.zip(&*own).for_each(|(to, scale)| to[i] = *scale);
                }
            }
        }
        // SAFETY: the rows have k columns, as have M of x, and scales for each group.
        unsafe {
            let totals = match read {
                Read::F32 => plain::<F32, M>(&w, x, k),
                Read::F16 => plain::<F16, M>(&w, x, k),
                Read::Bf16 => plain::<Bf16, M>(&w, x, k),
                Read::Signed => plain::<Signed, M>(&w, x, k),
                Read::Excess128 => plain::<Excess128, M>(&w, x, k),
                Read::Fp8 => plain::<Fp8, M>(&w, x, k),
                Read::Packed(group) => packed::<M>(&w, (&by_group, group), x, k),
            };
            for (i, totals) in totals.into_iter().enumerate() {
                let mut out = [0.0; ROWS];
                for (e, total) in totals.into_iter().enumerate() {
                    let scale = _mm256_loadu_ps(scales[8 * e..][..8].as_ptr());
                    _mm256_storeu_ps(out[8 * e..][..8].as_mut_ptr(), _mm256_mul_ps(total, scale));
                }
                tile.row(i)[j..j + count].copy_from_slice(&out[..count]);
            }
        }
    }
}
