//! A row is unpacked by pieces that stay in the first cache, and multiplied. Compiled for each instruction set.

use std::ops::Range;

use formats::Dtype;

use super::Operands;
use crate::encoding::{Form, Scales, Stored, fp8, ggml, plain::Real};
use crate::runtime::Activations;
use crate::runtime::kernels::tiles::Tile;
use crate::simd::convert;

/// Columns that are unpacked at a time: a multiple of every block.
const PIECE: usize = 256;

/// Whether rows have so many columns.
pub fn fits(weights: &Stored<'_>, k: usize) -> bool {
    let bytes = match weights.form {
        Form::Plain(dtype) => dtype.bytes_of(k as u64),
        Form::Blocks(dtype) => dtype.bytes_of(k as u64).filter(|_| (k as u64).is_multiple_of(dtype.block_elements())),
        Form::Packed { bits, group, scales } => {
            let groups = k.checked_div(group) == Some(scales.per_row) && k.is_multiple_of(group.max(1));
            groups.then(|| (k * usize::from(bits)).div_ceil(32) as u64 * 4)
        }
        Form::Int8(_) | Form::Fp8(_) => Some(k as u64),
    };
    bytes == Some(weights.row_bytes as u64)
}

/// Unpacks row `i` from column `first` on, which is a multiple of 256.
///
/// # Panics
/// If the row is not that long.
#[inline(always)]
pub(super) fn unpack_piece(weights: &Stored<'_>, i: usize, first: usize, out: &mut [f32]) {
    let row = weights.row(i);
    let scale = |scales: &Scales<'_>| {
        let mut scale = [0.0];
        scales.read(weights.position(i), &mut scale);
        scale[0]
    };
    match &weights.form {
        Form::Plain(dtype) => {
            let size = if *dtype == Dtype::F32 { 4 } else { 2 };
            let bytes = &row[first * size..][..out.len() * size];
            match dtype {
                Dtype::F16 => convert::f16_to_f32(bytes, out),
                Dtype::BF16 => convert::bf16_to_f32(bytes, out),
                _ => f32::decode(*dtype, bytes, out),
            }
        }
        Form::Blocks(dtype) => {
            let bytes = |elements: usize| dtype.bytes_of(elements as u64).unwrap_or(0) as usize;
            ggml::unpack(*dtype, &row[bytes(first)..][..bytes(out.len())], out);
        }
        Form::Int8(scales) => {
            let scale = scale(scales);
            for (y, code) in out.iter_mut().zip(&row[first..]) {
                *y = f32::from(*code as i8) * scale;
            }
        }
        Form::Fp8(scales) => {
            let scale = scale(scales);
            for (y, code) in out.iter_mut().zip(&row[first..]) {
                *y = fp8::decode(*code) * scale;
            }
        }
        Form::Packed { bits, group, scales } => {
            let mut own = [0.0; PIECE];
            let groups = first / group..(first + out.len()).div_ceil(*group);
            let own = &mut own[..groups.len()];
            scales.read_some(weights.position(i), groups.start, own);
            let middle = 1i16 << (bits - 1);
            for (at, y) in (first..).zip(out) {
                let code = if *bits == 4 { row[at / 2] >> (4 * (at % 2)) & 15 } else { row[at] };
                *y = f32::from(i16::from(code) - middle) * own[at / group - groups.start];
            }
        }
    }
}

/// Unpacks rows of the matrix from `first` on to f32: `out` is a whole number of rows of `k` columns.
///
/// # Panics
/// If they are not there, or have another length.
pub fn unpack(weights: &Stored<'_>, first: usize, k: usize, out: &mut [f32]) {
    assert!(fits(weights, k), "rows have so many columns");
    for (i, row) in out.chunks_exact_mut(k.max(1)).enumerate() {
        for (piece, out) in row.chunks_mut(PIECE).enumerate() {
            unpack_piece(weights, first + i, piece * PIECE, out);
        }
    }
}

/// Σ a·b in sixteen lanes.
#[inline(always)]
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0f32; 16];
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<16>(), b.as_chunks::<16>());
    for (a, b) in a.iter().zip(b) {
        for ((lane, a), b) in lanes.iter_mut().zip(a).zip(b) {
            *lane += a * b;
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    lanes.iter().sum::<f32>() + rest
}

#[inline(always)]
pub(super) fn multiply(o: &Operands<'_>, tile: &mut Tile<'_>) {
    let mut piece = [0.0; PIECE];
    for j in 0..tile.cols() {
        for i in 0..tile.rows() {
            tile.row(i)[j] = 0.0;
        }
        for first in (0..o.k).step_by(PIECE) {
            let piece = &mut piece[..PIECE.min(o.k - first)];
            unpack_piece(o.weights, o.first + j, first, piece);
            for i in 0..tile.rows() {
                let x = &o.x.f32()[(tile.first_row() + i) * o.k + first..][..piece.len()];
                tile.row(i)[j] += dot(piece, x);
            }
        }
    }
}

pub(super) fn scalar(o: &Operands<'_>, tile: &mut Tile<'_>) {
    multiply(o, tile);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma,f16c")]
pub(super) fn avx512(o: &Operands<'_>, tile: &mut Tile<'_>) {
    multiply(o, tile);
}

/// [`super::add_times`]
pub(super) fn add_times(g: &Activations<'_>, columns: Range<usize>, w: &[f32], stride: usize, tile: &mut Tile<'_>) {
    let (first, cols) = (tile.first_row(), tile.cols());
    for i in 0..tile.rows() {
        let out = tile.row(i);
        let g = &g.f32()[(first + i) * g.cols()..][columns.clone()];
        for (g, w) in g.iter().zip(w.chunks(stride)) {
            out.iter_mut().zip(&w[..cols]).for_each(|(y, w)| *y += g * w);
        }
    }
}
