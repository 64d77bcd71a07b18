//! int4 by groups, AVX-512. 16 words hold 128 codes of a row: word l has those of columns 8·l … 8·l + 7, the lowest first.
//! Shifted right by 4·i, the low four bits of each lane choose a number from a table of 16 (the others are ignored), which
//! is multiplied by x in the same order: lane l of vector i is x of column 8·l + i.

use std::arch::x86_64::*;

use super::Operands;
use crate::encoding::Form;
use crate::runtime::activations::NIBBLES as COLUMNS;
use crate::runtime::kernels::tiles::Tile;

/// Whether groups end where vectors or their lanes do.
pub(super) fn fits(group: usize) -> bool {
    group.is_multiple_of(COLUMNS) || (COLUMNS.is_multiple_of(group.max(1)) && group.is_multiple_of(8))
}

/// How far ahead of the loads a row is asked for.
const AHEAD: usize = 1024;

/// The products of one row and M rows of arranged x, which are `stride` apart.
///
/// # Safety
/// There are `words` words at `row` and k / group scales at `scales`, filled up with 16 more; x has whole vectors for them.
#[inline(always)]
unsafe fn row<const M: usize>(
    row: *const u8,
    words: usize,
    scales: *const f32,
    group: usize,
    x: *const f32,
    stride: usize,
) -> [f32; M] {
    // SAFETY: words are read below `words`, the last ones under a mask; scales of groups that begin within the row, and
    // up to 15 behind them.
    unsafe {
        let table = _mm512_set_ps(7., 6., 5., 4., 3., 2., 1., 0., -1., -2., -3., -4., -5., -6., -7., -8.);
        let lanes = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
        // The group of each lane, counted from the vector's first.
        let own = _mm512_srl_epi32(
            _mm512_slli_epi32::<3>(lanes),
            _mm_cvtsi32_si128(if group >= COLUMNS { 31 } else { group.trailing_zeros() as i32 }),
        );
        let mut sums = [_mm512_setzero_ps(); M];
        let mut at = 0;
        while at < words {
            let here = row.add(4 * at);
            _mm_prefetch::<_MM_HINT_T0>(here.wrapping_add(AHEAD).cast());
            let mut codes = if at + 16 <= words {
                _mm512_loadu_si512(here.cast())
            } else {
                _mm512_maskz_loadu_epi32(((1u32 << (words - at)) - 1) as __mmask16, here.cast())
            };
            let scale = _mm512_permutexvar_ps(own, _mm512_loadu_ps(scales.add(8 * at / group)));
            let mut part = [_mm512_setzero_ps(); M];
            let mut other = [_mm512_setzero_ps(); M];
            let mut i = 0;
            while i < 8 {
                let w = _mm512_permutexvar_ps(codes, table);
                let mut r = 0;
                while r < M {
                    let x = _mm512_loadu_ps(x.add(r * stride + 8 * at + 16 * i));
                    if i % 2 == 0 {
                        part[r] = _mm512_fmadd_ps(w, x, part[r]);
                    } else {
                        other[r] = _mm512_fmadd_ps(w, x, other[r]);
                    }
                    r += 1;
                }
                codes = _mm512_srli_epi32::<4>(codes);
                i += 1;
            }
            let mut r = 0;
            while r < M {
                sums[r] = _mm512_fmadd_ps(_mm512_add_ps(part[r], other[r]), scale, sums[r]);
                r += 1;
            }
            at += 16;
        }
        let mut totals = [0.0; M];
        let mut r = 0;
        while r < M {
            totals[r] = _mm512_reduce_add_ps(sums[r]);
            r += 1;
        }
        totals
    }
}

/// # Safety
/// As the other versions, for int4 whose groups [`fits`].
#[inline(always)]
pub(super) unsafe fn avx512(o: &Operands<'_>, tile: &mut Tile<'_>) {
    let Form::Packed { group, scales, .. } = &o.weights.form else { return };
    let x = o.x.by_nibble();
    let stride = o.k.div_ceil(COLUMNS) * COLUMNS;
    let (m, out_stride) = (tile.rows(), tile.stride());
    let out = tile.start();
    let mut own = vec![0.0; scales.per_row + 16];
    for j in 0..tile.cols() {
        let weights = o.weights.row(o.first + j);
        scales.read(o.weights.position(o.first + j), &mut own[..scales.per_row]);
        let mut i = 0;
        while i < m {
            // SAFETY: the row has k / 8 words, x whole vectors for each row, and the tile room for m rows of its columns.
            unsafe {
                let x = x.as_ptr().add((tile.first_row() + i) * stride);
                macro_rules! group {
                    ($m:literal) => {{
                        let totals = row::<$m>(weights.as_ptr(), weights.len() / 4, own.as_ptr(), *group, x, stride);
                        let mut at = 0;
                        while at < $m {
                            *out.add((i + at) * out_stride + j) = totals[at];
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
