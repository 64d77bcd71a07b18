//! AVX2. A panel is 16 rows of weights, unpacked and transposed: the numbers of column q of all 16 rows, then those of column
//! q + 1. 6 rows of x use each load. A sum goes through [`COLUMNS`] columns, one by one, and is added to those before it, so
//! that its bits depend on nothing but the columns: not on how many rows there are beside it.

use std::arch::x86_64::*;
use std::cell::RefCell;
use std::ops::Range;

use formats::Dtype;

use super::{Operands, PANEL as TILE, few_avx2, portable};
use crate::encoding::Form;
use crate::runtime::Activations;
use crate::runtime::activations::SIX;
use crate::runtime::kernels::six_avx2::{COLUMNS, Out, PANEL, rows};
use crate::runtime::kernels::tiles::Tile;
use crate::runtime::kernels::transpose::transpose_8;
use crate::simd::convert;

/// Panels as wide as a tile, and rows before they are transposed.
type Buffers = (Vec<f32>, Vec<f32>);

thread_local! {
    static BUFFERS: RefCell<Buffers> = RefCell::default();
}

/// # Safety
/// The processor has AVX2, FMA and F16C; the operands' rows have k columns, and the tile lies within them.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn avx2(o: &Operands<'_>, tile: &mut Tile<'_>) {
    // SAFETY: the caller's promise.
    unsafe {
        if few_avx2::suits(o, tile.rows()) {
            return few_avx2::multiply(o, tile);
        }
    }
    BUFFERS.with_borrow_mut(|buffers| {
        buffers.0.resize(COLUMNS * TILE, 0.0);
        buffers.1.resize(8 * COLUMNS, 0.0);
        for j in (0..tile.cols()).step_by(TILE) {
            let columns = TILE.min(tile.cols() - j);
            // SAFETY: the caller's promise; the buffers hold panels and 8 rows of COLUMNS.
            unsafe { panels(o, tile, j, columns, buffers) };
        }
    });
}

/// Columns `j .. j + cols` of the tile, which are as many as one panel's or two.
///
/// # Safety
/// As [`avx2`].
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn panels(o: &Operands<'_>, tile: &mut Tile<'_>, j: usize, cols: usize, (panels, rows): &mut Buffers) {
    let mut scales = [1.0; TILE];
    o.own_scales(j, &mut scales[..cols]);
    for first in (0..o.k).step_by(COLUMNS) {
        let columns = COLUMNS.min(o.k - first);
        for eight in (0..cols).step_by(8) {
            for (i, row) in rows.chunks_exact_mut(COLUMNS).take(cols - eight).enumerate() {
                let at = j + eight + i;
                // The next columns, or those of the row that is taken TILE rows later.
                let (next, begin) = if first + columns < o.k { (at, first + columns) } else { (at + TILE, 0) };
                if next < tile.cols() {
                    ahead(o, o.first + next, begin);
                }
                // SAFETY: the caller's promise; the columns are below k.
                unsafe { unpack(o, o.first + at, first, &mut row[..columns]) };
            }
            let panel = &mut panels[eight / PANEL * PANEL * COLUMNS..][..PANEL * COLUMNS];
            for at in (0..columns).step_by(8) {
                let to = &mut panel[at * PANEL + eight % PANEL..][..7 * PANEL + 8];
                // SAFETY: 8 numbers of each row, of which there are COLUMNS; what is behind the last column is not multiplied.
                unsafe {
                    let mut words = [_mm256_setzero_si256(); 8];
                    for (word, row) in words.iter_mut().zip(rows.chunks_exact(COLUMNS)) {
                        *word = _mm256_loadu_si256(row[at..at + 8].as_ptr().cast());
                    }
                    transpose_8(words, to.as_mut_ptr().cast(), 4 * PANEL);
                }
            }
        }
        let last = first + columns == o.k;
        for (panel, at) in panels.chunks_exact(PANEL * COLUMNS).zip((0..cols).step_by(PANEL)) {
            let scales = last.then(|| &scales[at..at + PANEL]);
            let width = PANEL.min(cols - at);
            // SAFETY: columns are taken below k and the tile's.
            unsafe { product(panel, o.x, first..first + columns, scales, (j + at, width, first > 0), tile) };
        }
    }
}

/// Asks for [`COLUMNS`] columns of a row.
#[inline(always)]
fn ahead(o: &Operands<'_>, row: usize, first: usize) {
    let row = o.weights.row(row);
    let bytes = (COLUMNS * row.len()).div_ceil(o.k);
    let start = row[first * row.len() / o.k..].as_ptr();
    for line in (0..bytes).step_by(64) {
        // SAFETY: the instruction set is there; a prefetch may point anywhere.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(start.wrapping_add(line).cast()) };
    }
}

/// [`super::add_times`]
///
/// # Safety
/// The processor has AVX2 and FMA; `g` has the tile's rows and `columns`, of which w has as many rows, of the tile's columns.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn add_times(
    g: &Activations<'_>,
    columns: Range<usize>,
    w: &[f32],
    stride: usize,
    tile: &mut Tile<'_>,
) {
    let cols = tile.cols();
    BUFFERS.with_borrow_mut(|(panels, _)| {
        panels.resize(COLUMNS * TILE, 0.0);
        let panel = &mut panels[..COLUMNS * PANEL];
        for first in columns.clone().step_by(COLUMNS) {
            let count = COLUMNS.min(columns.end - first);
            let w = &w[(first - columns.start) * stride..];
            for at in (0..cols).step_by(PANEL) {
                let width = PANEL.min(cols - at);
                for (l, row) in panel.as_chunks_mut::<PANEL>().0.iter_mut().take(count).enumerate() {
                    row[..width].copy_from_slice(&w[l * stride + at..][..width]);
                }
                // SAFETY: the caller's promise.
                unsafe { product(panel, g, first..first + count, None, (at, width, true), tile) };
            }
        }
    });
}

/// Unpacks columns `first ..` of a row: codes that have one scale a row without it.
///
/// # Safety
/// As [`avx2`]; the columns are below k.
#[inline(always)]
unsafe fn unpack(o: &Operands<'_>, row: usize, first: usize, out: &mut [f32]) {
    let bytes = o.weights.row(row);
    match &o.weights.form {
        Form::Plain(Dtype::F32) => {
            let bytes = &bytes[4 * first..][..4 * out.len()];
            // SAFETY: as many bytes on both sides.
            unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), out.as_mut_ptr().cast(), bytes.len()) }
        }
        Form::Plain(Dtype::F16) => {
            let bytes = &bytes[2 * first..][..2 * out.len()];
            let (eights, rest) = out.as_chunks_mut::<8>();
            for (pairs, out) in bytes.as_chunks::<16>().0.iter().zip(eights.iter_mut()) {
                // SAFETY: 16 bytes are read and 8 numbers written.
                unsafe { _mm256_storeu_ps(out.as_mut_ptr(), _mm256_cvtph_ps(_mm_loadu_si128(pairs.as_ptr().cast()))) };
            }
            convert::f16_to_f32(&bytes[16 * eights.len()..], rest);
        }
        Form::Int8(_) => out.iter_mut().zip(&bytes[first..]).for_each(|(y, code)| *y = f32::from(*code as i8)),
        Form::Packed { bits: 8, scales, .. } if scales.per_row == 1 => {
            out.iter_mut().zip(&bytes[first..]).for_each(|(y, code)| *y = f32::from((*code ^ 128) as i8));
        }
        Form::Fp8(_) => {
            for (codes, out) in bytes[first..].chunks(8).zip(out.chunks_mut(8)) {
                let mut some = [0; 8];
                some[..out.len()].copy_from_slice(&codes[..out.len()]);
                let mut numbers = [0.0; 8];
                // SAFETY: 8 bytes are read and 8 numbers written.
                unsafe { _mm256_storeu_ps(numbers.as_mut_ptr(), fp8(_mm_loadl_epi64(some.as_ptr().cast()))) };
                out.copy_from_slice(&numbers[..out.len()]);
            }
        }
        Form::Packed { bits: 4, group, scales } if group.is_multiple_of(8) => {
            let mut own = [0.0; COLUMNS / 8 + 1];
            let first_group = first / group;
            let own = &mut own[..(first + out.len()).div_ceil(*group) - first_group];
            scales.read_some(o.weights.position(row), first_group, own);
            for (at, out) in (first..).step_by(8).zip(out.as_chunks_mut::<8>().0) {
                let word: [u8; 4] = std::array::from_fn(|byte| bytes[at / 2 + byte]);
                // SAFETY: 8 numbers are written.
                unsafe {
                    let word = _mm256_set1_epi32(i32::from_le_bytes(word));
                    let codes = _mm256_srlv_epi32(word, _mm256_set_epi32(28, 24, 20, 16, 12, 8, 4, 0));
                    let codes = _mm256_sub_epi32(_mm256_and_si256(codes, _mm256_set1_epi32(15)), _mm256_set1_epi32(8));
                    let scale = _mm256_set1_ps(own[at / group - first_group]);
                    _mm256_storeu_ps(out.as_mut_ptr(), _mm256_mul_ps(_mm256_cvtepi32_ps(codes), scale));
                }
            }
        }
        _ => portable::unpack_piece(o.weights, row, first, out),
    }
}

/// E4M3 has the fields of f16, with fewer bits: moved into their places, it is an f16 that is 2⁸ times too small, subnormal
/// numbers included.
#[inline(always)]
pub(super) unsafe fn fp8(codes: __m128i) -> __m256 {
    // SAFETY: the instruction set is there.
    unsafe {
        let wide = _mm_cvtepu8_epi16(codes);
        let size = _mm_and_si128(wide, _mm_set1_epi16(0x7f));
        // The sign is copied down one bit and taken out of there.
        let moved = _mm_srai_epi16::<1>(_mm_slli_epi16::<8>(wide));
        let half = _mm_and_si128(moved, _mm_set1_epi16(0xbfffu16 as i16));
        let nan = _mm_cmpeq_epi16(size, _mm_set1_epi16(0x7f));
        let number = _mm256_cvtph_ps(_mm_blendv_epi8(half, _mm_set1_epi16(0x7e00), nan));
        _mm256_mul_ps(number, _mm256_set1_ps(256.0))
    }
}

/// The tile's rows of x times a panel of as many `columns`, and times `scales`. What the tile has in columns `at .. at + width` is
/// replaced, or, if it is begun, added to.
///
/// # Safety
/// The panel and x have so many columns, x the tile's rows, and the tile as many columns as are written.
///
/// # Panics
/// If the tile cuts through a group of [`SIX`] rows of x.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn product(
    panel: &[f32],
    x: &Activations<'_>,
    columns: Range<usize>,
    scales: Option<&[f32]>,
    (at, width, begun): (usize, usize, bool),
    tile: &mut Tile<'_>,
) {
    debug_assert!(panel.len() >= columns.len() * PANEL);
    let (first, end, stride) = (tile.first_row(), tile.first_row() + tile.rows(), tile.stride());
    assert!(first.is_multiple_of(SIX) && (end.is_multiple_of(SIX) || end == x.rows()), "whole groups of rows");
    let (numbers, k, panel) = (x.by_six(None), x.cols(), panel.as_ptr());
    for i in (first..end).step_by(SIX) {
        let count = SIX.min(end - i);
        let x = &numbers[i * k..][columns.start * count..columns.end * count];
        // SAFETY: the caller's promise; rows are taken below the tile's.
        unsafe {
            let out = Out { at: tile.start().add((i - first) * stride + at), stride, width, begun };
            rows(panel, x, count, scales, out);
        }
    }
}
