//! Many rows of x, AVX-512. A panel is 32 rows of weights, unpacked and transposed: the numbers of column q of all 32 rows,
//! then those of column q + 1. 12 rows of x use each load.

use std::arch::x86_64::*;
use std::cell::RefCell;

use formats::Dtype;

use super::{Operands, portable};
use crate::encoding::Form;
use crate::runtime::kernels::tiles::Tile;
use crate::runtime::kernels::transpose::transpose;

/// Rows of weights in a panel.
pub const PANEL: usize = 32;

/// Columns that are multiplied before the next ones are: their numbers stay in the second cache while all of x passes.
const COLUMNS: usize = 2048;

/// Columns that are unpacked at a time.
const PIECE: usize = 256;

thread_local! {
    static BUFFERS: RefCell<(Vec<f32>, Vec<f32>)> = RefCell::default();
}

/// # Safety
/// The processor has AVX-512 F, BW and VL; the operands' rows have k columns, and the tile lies within them.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma,f16c")]
pub(super) unsafe fn avx512(o: &Operands<'_>, tile: &mut Tile<'_>) {
    assert!(tile.cols() <= PANEL, "a tile is as wide as a panel");
    BUFFERS.with_borrow_mut(|(panel, rows)| {
        panel.resize(COLUMNS * PANEL, 0.0);
        rows.resize(16 * PIECE, 0.0);
        for at in (0..o.k).step_by(COLUMNS) {
            let columns = COLUMNS.min(o.k - at);
            // SAFETY: the caller's promise; the buffers hold a panel of COLUMNS and 16 pieces of rows.
            unsafe {
                fill(o, tile, at, columns, panel, rows);
                all(o, at, columns, panel, tile);
            }
        }
    });
}

/// # Safety
/// As [`avx512`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma,f16c")]
unsafe fn fill(o: &Operands<'_>, tile: &Tile<'_>, first: usize, columns: usize, panel: &mut [f32], rows: &mut [f32]) {
    for half in 0..2 {
        let count = tile.cols().saturating_sub(16 * half).min(16);
        if count == 0 {
            continue;
        }
        for at in (0..columns).step_by(PIECE) {
            let width = PIECE.min(columns - at);
            for (j, row) in rows.chunks_exact_mut(PIECE).take(count).enumerate() {
                let row_of = o.first + 16 * half + j;
                // SAFETY: the caller's promise; the columns are below k.
                unsafe { unpack(o, row_of, first + at, &mut row[..width]) };
            }
            for piece in (0..width).step_by(16) {
                let starts = std::array::from_fn(|j| rows[j * PIECE + piece..][..16].as_ptr().cast());
                let to = &mut panel[(at + piece) * PANEL + 16 * half..];
                // SAFETY: 16 numbers of each row; 16 steps of 32 numbers end with the buffer, or 16 numbers before. What is
                // behind the last column is not multiplied.
                unsafe { transpose(&starts, to.as_mut_ptr().cast(), 4 * PANEL) };
            }
        }
    }
}

/// Unpacks columns `first ..` of a row.
///
/// # Safety
/// As [`avx512`]; the columns are below k.
#[inline(always)]
unsafe fn unpack(o: &Operands<'_>, row: usize, first: usize, out: &mut [f32]) {
    let bytes = o.weights.row(row);
    match &o.weights.form {
        Form::Plain(Dtype::F32) => {
            let bytes = &bytes[4 * first..][..4 * out.len()];
            // SAFETY: as many bytes on both sides.
            unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), out.as_mut_ptr().cast(), bytes.len()) }
        }
        Form::Packed { bits: 4, group, scales } if group.is_multiple_of(16) => {
            let mut own = [0.0; PIECE / 16];
            let first_group = first / group;
            let groups = (first + out.len()).div_ceil(*group) - first_group;
            scales.read_some(o.weights.position(row), first_group, &mut own[..groups]);
            // SAFETY: 16 codes at a time lie within the row, whose columns are a multiple of 16 as groups are.
            unsafe {
                let table = _mm512_set_ps(7., 6., 5., 4., 3., 2., 1., 0., -1., -2., -3., -4., -5., -6., -7., -8.);
                let shifts = _mm512_set_epi32(60, 56, 52, 48, 44, 40, 36, 32, 28, 24, 20, 16, 12, 8, 4, 0);
                let shifts = _mm512_and_si512(shifts, _mm512_set1_epi32(31));
                for at in (0..out.len()).step_by(16) {
                    let both = bytes.as_ptr().add((first + at) / 2).cast::<i32>();
                    let low = _mm256_set1_epi32(both.read_unaligned());
                    let words = _mm512_inserti64x4::<1>(
                        _mm512_castsi256_si512(low),
                        _mm256_set1_epi32(both.add(1).read_unaligned()),
                    );
                    let numbers = _mm512_permutexvar_ps(_mm512_srlv_epi32(words, shifts), table);
                    let scale = _mm512_set1_ps(own[(first + at) / group - first_group]);
                    _mm512_storeu_ps(out[at..at + 16].as_mut_ptr(), _mm512_mul_ps(numbers, scale));
                }
            }
        }
        _ => portable::unpack_piece(o.weights, row, first, out),
    }
}

/// # Safety
/// The panel has `columns` columns, x R rows, `k` apart, of so many; `out` has R rows, `stride` apart, of as many columns as
/// `masks` say.
#[inline(always)]
unsafe fn product<const R: usize>(
    panel: *const f32,
    x: *const f32,
    k: usize,
    columns: usize,
    begun: bool,
    out: *mut f32,
    stride: usize,
    masks: [__mmask16; 2],
) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut sums = [[_mm512_setzero_ps(); 2]; R];
        let mut q = 0;
        while q < columns {
            let weights = [_mm512_loadu_ps(panel.add(PANEL * q)), _mm512_loadu_ps(panel.add(PANEL * q + 16))];
            let mut i = 0;
            while i < R {
                let x = _mm512_set1_ps(*x.add(i * k + q));
                sums[i][0] = _mm512_fmadd_ps(weights[0], x, sums[i][0]);
                sums[i][1] = _mm512_fmadd_ps(weights[1], x, sums[i][1]);
                i += 1;
            }
            q += 1;
        }
        let mut i = 0;
        while i < R {
            let to = [out.add(i * stride), out.wrapping_add(i * stride + 16)];
            let mut v = 0;
            while v < 2 {
                if begun {
                    sums[i][v] = _mm512_add_ps(sums[i][v], _mm512_maskz_loadu_ps(masks[v], to[v]));
                }
                _mm512_mask_storeu_ps(to[v], masks[v], sums[i][v]);
                v += 1;
            }
            i += 1;
        }
    }
}

/// # Safety
/// As [`avx512`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma,f16c")]
unsafe fn all(o: &Operands<'_>, first: usize, columns: usize, panel: &[f32], out: &mut Tile<'_>) {
    let mask = |columns: usize| ((1u32 << columns.min(16)) - 1) as __mmask16;
    let masks = [mask(out.cols()), mask(out.cols().saturating_sub(16))];
    let (m, stride) = (out.rows(), out.stride());
    let start = out.start();
    let mut i = 0;
    while i < m {
        // SAFETY: rows of x and of the tile are taken below m, columns below k.
        unsafe {
            let x = o.x.f32().as_ptr().add((out.first_row() + i) * o.k + first);
            let to = start.add(i * stride);
            macro_rules! group {
                ($r:literal) => {{
                    product::<$r>(panel.as_ptr(), x, o.k, columns, first > 0, to, stride, masks);
                    i += $r;
                }};
            }
            match m - i {
                1 => group!(1),
                2 | 3 => group!(2),
                4..8 => group!(4),
                8..12 => group!(8),
                _ => group!(12),
            }
        }
    }
}
