//! The loop that every processor runs, and the one that the others are measured by.

use super::Operands;
use super::expand::{self, Row};
use crate::runtime::kernels::tiles::Tile;

/// Σ (code − bias) · x of a run.
#[inline(always)]
fn dot<const N: usize>(codes: &[u8; N], bias: i16, x: &[i8; N]) -> i32 {
    codes.iter().zip(x).map(|(&code, &x)| i32::from(code as i16 - bias) * i32::from(i16::from(x))).sum()
}

#[inline(always)]
fn product<const N: usize>(o: &Operands<'_>, row: &Row, i: usize) -> f32 {
    let bias = o.shape.bias.map_or(0, |bits| 1i16 << bits);
    let x = o.x.codes[i * o.k..][..o.k].as_chunks::<N>().0;
    let (x_scales, x_sums) = (&o.x.scales[i * o.k / 32..][..o.k / 32], &o.x.sums[i * o.k / 32..][..o.k / 32]);
    let mut total = 0.0;
    for (run, (codes, x)) in row.codes.as_chunks::<N>().0.iter().zip(x).enumerate() {
        total += dot(codes, bias, x) as f32 * (row.scales[run] * x_scales[run * N / 32]);
    }
    if o.shape.minima {
        total -= row.minima.iter().zip(x_sums).map(|(minimum, sum)| minimum * sum).sum::<f32>();
    }
    total
}

pub(super) fn scalar(o: &Operands<'_>, tile: &mut Tile<'_>) {
    Row::with(o.k, |row| {
        for j in 0..tile.cols() {
            expand::row(o.weights, tile.first_col() + j, o.k, row);
            for i in 0..tile.rows() {
                let at = tile.first_row() + i;
                tile.row(i)[j] = if o.shape.run == 16 { product::<16>(o, row, at) } else { product::<32>(o, row, at) };
            }
        }
    });
}
