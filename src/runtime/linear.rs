//! Linear layers over rows in any encoding.

use std::sync::Arc;

use super::activations::Activations;
use super::kernels::gemm::{View, times_transposed};
use super::kernels::int8::{self, MOST_COLUMNS};
use super::kernels::tiles::{self, Tile};
use super::scratch::Scratch;
use crate::encoding::{Int8Rows, Rows};
use crate::threads::Pool;

/// A matrix that multiplies activations: y = x · Wᵀ. Shapes are checked when it is built, so that multiplying cannot fail.
pub trait Linear: Send + Sync {
    /// Columns of the matrix.
    fn in_features(&self) -> usize;

    /// Rows of the matrix.
    fn out_features(&self) -> usize;

    /// Row `i`, unpacked: `out` has [`Linear::in_features`] elements.
    fn row(&self, i: usize, out: &mut [f32]);

    /// out `[x.rows(), out_features]` = x · Wᵀ. The result does not depend on the number of threads.
    ///
    /// # Panics
    /// If x does not have `in_features` columns or out has another length.
    fn forward(&self, x: &Activations<'_>, out: &mut [f32], scratch: &mut Scratch, pool: &Pool);
}

/// A linear layer over these rows: multiplied where they lie if they are f32, as integers if they are int8 and their scheme
/// quantizes activations too, and unpacked band by band otherwise.
pub fn from_rows(rows: Arc<dyn Rows>) -> Arc<dyn Linear> {
    if plain(&*rows).is_some() {
        Arc::new(Plain(rows))
    } else if integers(&*rows).is_some() {
        Arc::new(Integer(rows))
    } else {
        Arc::new(Unpacked(rows))
    }
}

/// f32 where it lies.
struct Plain(Arc<dyn Rows>);

/// int8 weights and int8 activations.
struct Integer(Arc<dyn Rows>);

/// Any encoding, unpacked to f32 in bands.
struct Unpacked(Arc<dyn Rows>);

/// The matrix in f32, if it lies in memory so.
fn plain(rows: &dyn Rows) -> Option<&[f32]> {
    rows.as_f32().filter(|data| data.len() == rows.rows() * rows.cols())
}

/// The codes and scales of a W8A8 matrix whose sums fit in int32.
fn integers(rows: &dyn Rows) -> Option<Int8Rows<'_>> {
    rows.as_int8().filter(|int8| {
        int8.int8_activations
            && rows.cols() <= MOST_COLUMNS
            && int8.codes.len() == rows.rows() * rows.cols()
            && int8.scales.len() == rows.rows()
    })
}

/// Tiles of the output: few enough rows and columns that both operands stay in the second cache, enough that packing them
/// does not show.
const TILE: usize = 256;

/// The most that a band of unpacked rows takes: half of the second cache, in elements.
const BAND: usize = 1 << 18;

impl Linear for Plain {
    fn in_features(&self) -> usize {
        self.0.cols()
    }

    fn out_features(&self) -> usize {
        self.0.rows()
    }

    fn row(&self, i: usize, out: &mut [f32]) {
        self.0.read(i, out);
    }

    fn forward(&self, x: &Activations<'_>, out: &mut [f32], scratch: &mut Scratch, pool: &Pool) {
        let Some(weights) = plain(&*self.0) else { return unpacked(&*self.0, x, out, scratch, pool) };
        let (rows, n, k) = shape(&*self.0, x, out);
        // One row is bound by memory: smaller tiles give every thread some.
        let tile_cols = if rows == 1 { TILE / 4 } else { TILE };
        tiles::for_each(pool, out, n, &tiles::cuts(rows, TILE), tile_cols, |mut tile| {
            let band = View::new(&weights[tile.first_col() * k..], tile.cols(), k, k);
            multiply(x, band, &mut tile);
        });
    }
}

impl Linear for Unpacked {
    fn in_features(&self) -> usize {
        self.0.cols()
    }

    fn out_features(&self) -> usize {
        self.0.rows()
    }

    fn row(&self, i: usize, out: &mut [f32]) {
        self.0.read(i, out);
    }

    fn forward(&self, x: &Activations<'_>, out: &mut [f32], scratch: &mut Scratch, pool: &Pool) {
        unpacked(&*self.0, x, out, scratch, pool);
    }
}

impl Linear for Integer {
    fn in_features(&self) -> usize {
        self.0.cols()
    }

    fn out_features(&self) -> usize {
        self.0.rows()
    }

    fn row(&self, i: usize, out: &mut [f32]) {
        self.0.read(i, out);
    }

    fn forward(&self, x: &Activations<'_>, out: &mut [f32], scratch: &mut Scratch, pool: &Pool) {
        /// Rows of x in a tile, which stay in the first two caches while the weights pass.
        const TILE_ROWS: usize = 64;
        /// Weights' rows in a tile.
        const TILE_COLS: usize = 64;

        let Some(weights) = integers(&*self.0) else { return unpacked(&*self.0, x, out, scratch, pool) };
        let (rows, n, k) = shape(&*self.0, x, out);
        let int8 = x.int8();
        let kernel = int8::kernel();
        tiles::for_each(pool, out, n, &tiles::cuts(rows, TILE_ROWS), TILE_COLS, |mut tile| {
            let (first_row, rows, first_col, cols) = (tile.first_row(), tile.rows(), tile.first_col(), tile.cols());
            let codes = &weights.codes[first_col * k..][..cols * k];
            let scales = &weights.scales[first_col..][..cols];
            scratch.ints(rows * cols, |sums| {
                let x_codes = &int8.codes[first_row * k..][..rows * k];
                kernel.dot(codes, x_codes, &int8.sums[first_row..][..rows], k, sums);
                for (i, sums) in sums.chunks_exact(cols).enumerate() {
                    let x_scale = int8.scales[first_row + i];
                    for ((y, sum), scale) in tile.row(i).iter_mut().zip(sums).zip(scales) {
                        *y = *sum as f32 * x_scale * scale;
                    }
                }
            });
        });
    }
}

/// Unpacks a band of rows at a time, once for all of x, and multiplies it.
fn unpacked(weights: &dyn Rows, x: &Activations<'_>, out: &mut [f32], scratch: &Scratch, pool: &Pool) {
    let (rows, n, k) = shape(weights, x, out);
    let band = (BAND / k.max(1)).clamp(1, TILE / 4);
    tiles::for_each(pool, out, n, &[0, rows], band, |mut tile| {
        scratch.floats(tile.cols() * k, |buffer| {
            weights.read(tile.first_col(), buffer);
            multiply(x, View::new(buffer, tile.cols(), k, k), &mut tile);
        });
    });
}

/// The tile's rows of x, times a band of weights.
fn multiply(x: &Activations<'_>, band: View<'_>, tile: &mut Tile<'_>) {
    let x_rows = View::new(&x.f32()[tile.first_row() * x.cols()..], tile.rows(), x.cols(), x.cols());
    times_transposed(x_rows, band, 1.0, tile);
}

/// Rows of x, rows and columns of the weights.
fn shape(weights: &dyn Rows, x: &Activations<'_>, out: &[f32]) -> (usize, usize, usize) {
    let (n, k) = (weights.rows(), weights.cols());
    assert!(x.cols() == k && out.len() == x.rows() * n, "x and out fit the matrix");
    (x.rows(), n, k)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::testing::{Matrix, Noise, close};

    fn product(x: &[f32], w: &[f32], k: usize) -> Vec<f64> {
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
        x.chunks(k).flat_map(|x| w.chunks(k).map(move |w| dot(x, w))).collect()
    }

    #[test]
    fn every_implementation_multiplies_the_matrix_that_its_rows_are() {
        let mut noise = Noise::new(3);
        for (m, n, k) in [(1, 1, 1), (1, 300, 65), (3, 70, 257), (300, 33, 40), (65, 520, 96)] {
            let (x, w) = (noise.vec(m * k), noise.vec(n * k));
            for matrix in
                [Matrix::plain(&w, k), Matrix::packed(&w, k), Matrix::int8(&w, k, false), Matrix::int8(&w, k, true)]
            {
                let w8a8 = matrix.is_w8a8();
                let linear = from_rows(Arc::new(matrix));
                let mut rows = vec![0.0; n * k];
                rows.chunks_mut(k).enumerate().for_each(|(i, row)| linear.row(i, row));
                let activations = Activations::new(&x, k);
                let dequantized: Vec<f32>;
                let seen = if w8a8 {
                    let int8 = activations.int8();
                    let scale = |at: usize| int8.scales[at / k];
                    dequantized = int8.codes.iter().enumerate().map(|(at, q)| f32::from(*q) * scale(at)).collect();
                    &dequantized
                } else {
                    &x
                };
                let expected = product(seen, &rows, k);
                let mut first: Option<Vec<f32>> = None;
                for threads in [1, 2, 5] {
                    let mut out = vec![f32::NAN; m * n];
                    linear.forward(&activations, &mut out, &mut Scratch::default(), &Pool::new(threads));
                    close(&out, &expected, 2e-5);
                    assert_eq!(first.get_or_insert_with(|| out.clone()), &out, "threads change nothing");
                }
            }
        }
    }
}
