//! Linear layers over rows in any encoding.

use std::sync::Arc;

use formats::Dtype;

use super::activations::{Activations, Layout, Share};
use super::kernels::float;
use super::kernels::int8::{self, MOST_COLUMNS};
use super::kernels::integer::{self, Shape, WideKernel};
use super::kernels::roof::Arithmetic;
use super::kernels::tiles::{self, Tiles};
use super::scratch::Scratch;
use crate::encoding::{Form, Inputs, Rows, Scales, Stored};
use crate::threads::Pool;

/// A matrix that multiplies activations: y = x · Wᵀ. Shapes are checked when it is built, so that multiplying cannot fail.
pub trait Linear: Send + Sync {
    /// Columns of the matrix.
    fn in_features(&self) -> usize;

    /// Rows of the matrix.
    fn out_features(&self) -> usize;

    /// Row `i`, unpacked: `out` has [`Linear::in_features`] elements.
    fn row(&self, i: usize, out: &mut [f32]);

    /// How it multiplies, for reports.
    fn method(&self) -> Method;

    /// The work that makes out `[x.rows(), out_features]` = x · Wᵀ, cut for the pool's threads. The result does not depend on
    /// how many there are.
    ///
    /// # Panics
    /// If x does not have `in_features` columns or out has another length.
    fn tiles<'a>(&'a self, x: &'a Activations<'_>, out: &'a mut [f32], scratch: &'a Scratch, pool: &Pool) -> Tiles<'a>;

    /// Does the work of [`Linear::tiles`].
    ///
    /// # Panics
    /// The same.
    fn forward(&self, x: &Activations<'_>, out: &mut [f32], scratch: &Scratch, pool: &Pool) {
        Tiles::on(pool, vec![self.tiles(x, out, scratch, pool)]);
    }
}

/// How a matrix is multiplied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Method {
    /// The loop for one token: decoding.
    pub one: &'static str,
    /// The loop for many: prefill.
    pub many: &'static str,
    /// The kind of numbers that it multiplies.
    pub arithmetic: Arithmetic,
}

/// A linear layer over these rows. How they lie in memory and how their format takes its inputs decide how it multiplies.
pub fn from_rows(rows: Arc<dyn Rows>) -> Arc<dyn Linear> {
    let way = rows.stored().map_or(Way::Unpacked, |stored| Way::of(&stored, rows.rows(), rows.cols()));
    Arc::new(Matrix { rows, way })
}

/// A matrix in any encoding.
struct Matrix {
    rows: Arc<dyn Rows>,
    way: Way,
}

/// How a matrix is multiplied.
#[derive(Debug, Clone, Copy)]
enum Way {
    /// f32 activations, and weights that are unpacked band by band.
    Unpacked,
    /// f32 activations, and rows that are read where they lie if there are few activations.
    Float {
        /// How many activations are laid out.
        many: Layout,
    },
    /// int8 activations by token, and int8 rows.
    Int8,
    /// int8 activations, with scales by token or by run, and rows with a scale for each run.
    Runs(Share),
    /// int16 activations, with scales by run, in the place of f32 ones, and rows of integers.
    Wide(WideKernel),
}

impl Way {
    fn of(stored: &Stored<'_>, rows: usize, cols: usize) -> Self {
        let whole = stored.order.map_or(rows, |order| order.iter().map(|at| *at as usize + 1).max().unwrap_or(0));
        if stored.bytes.len() < whole * stored.row_bytes || !float::fits(stored, cols) {
            return Way::Unpacked;
        }
        match (stored.form, stored.inputs) {
            (Form::Int8(_), Inputs::Int8) if stored.order.is_none() && cols <= MOST_COLUMNS => Way::Int8,
            (Form::Blocks(_), Inputs::Int8) if Shape::of(&stored.form, cols).is_some() => Way::Runs(Share::Run),
            (Form::Packed { .. }, Inputs::Int8) if Shape::of(&stored.form, cols).is_some() => Way::Runs(Share::Token),
            (form, _) => match integer::wide_kernel().filter(|_| Shape::of_integers(&form, cols).is_some()) {
                Some(kernel) => Way::Wide(kernel),
                None => Way::Float { many: float::kernel().layout(stored, cols) },
            },
        }
    }

    fn method(self) -> Method {
        let (one, many, arithmetic) = match self {
            Way::Float { many: Layout::Bf16 } => (float::kernel().name(), float::kernel().name(), Arithmetic::Bfloat16),
            Way::Unpacked | Way::Float { .. } => (float::kernel().name(), float::kernel().name(), Arithmetic::Float),
            Way::Runs(_) => (integer::kernel().name(), integer::kernel().name(), Arithmetic::Int8),
            Way::Wide(_) => (integer::kernel().name(), integer::kernel().name(), Arithmetic::Int8),
            Way::Int8 => (int8::kernel().name(), int8::kernel().name(), Arithmetic::Int8),
        };
        Method { one, many, arithmetic }
    }
}

impl Linear for Matrix {
    fn in_features(&self) -> usize {
        self.rows.cols()
    }

    fn out_features(&self) -> usize {
        self.rows.rows()
    }

    fn row(&self, i: usize, out: &mut [f32]) {
        self.rows.read(i, out);
    }

    fn method(&self) -> Method {
        self.way.method()
    }

    fn tiles<'a>(&'a self, x: &'a Activations<'_>, out: &'a mut [f32], scratch: &'a Scratch, pool: &Pool) -> Tiles<'a> {
        let (n, k) = (self.rows.rows(), self.rows.cols());
        assert!(x.cols() == k && out.len() == x.rows() * n, "x and out fit the matrix");
        match (self.way, self.rows.stored()) {
            (Way::Int8, Some(Stored { form: Form::Int8(scales), bytes, .. })) => {
                int8((bytes, scales), x, out, scratch, pool)
            }
            (Way::Runs(share), Some(stored)) => runs(stored, n, x, share, out, pool),
            (Way::Wide(kernel), Some(stored)) => wide((stored, kernel), n, x, out, scratch.is_for_steps(), pool),
            (Way::Float { many }, Some(stored)) => float(stored, n, x, (many, scratch.is_for_steps()), out, pool),
            _ => unpacked(n, x, out, scratch, |first, band| self.rows.read(first, band)),
        }
    }
}

/// Weights' rows in a tile, with few rows of x: a few tiles for each thread, so that all end together, and no more, since
/// at the beginning of each there is nothing yet that was fetched ahead. Of small matrices fewer: a thread that asks for the
/// next tile waits longer than it takes to read some kilobytes.
fn few_cols(n: usize, row_bytes: usize, pool: &Pool) -> usize {
    const BYTES: usize = 32 << 10;

    let (threads, rows) = (pool.threads(), BYTES / row_bytes.max(1));
    n.div_ceil(4 * threads).max(rows).min(n.div_ceil(threads)).next_multiple_of(32)
}

fn float<'a>(
    stored: Stored<'a>,
    n: usize,
    x: &'a Activations<'_>,
    (many, steps): (Layout, bool),
    out: &'a mut [f32],
    pool: &Pool,
) -> Tiles<'a> {
    let cols = if x.rows() < float::FEW { few_cols(n, stored.row_bytes, pool) } else { float::PANEL };
    if x.rows() >= float::FEW {
        x.lay_out(many, pool);
    }
    Tiles::of(out, n, vec![0, x.rows()], cols, move |mut tile| {
        float::kernel().multiply(&stored, tile.first_col(), x, steps, &mut tile);
    })
}

fn runs<'a>(
    stored: Stored<'a>,
    n: usize,
    x: &'a Activations<'_>,
    share: Share,
    out: &'a mut [f32],
    pool: &Pool,
) -> Tiles<'a> {
    let (kernel, k, rows) = (integer::kernel(), x.cols(), x.rows());
    let x = x.int8_runs(share, pool);
    let cols = if rows < integer::FEW { few_cols(n, stored.row_bytes, pool) } else { integer::PANEL };
    Tiles::of(out, n, vec![0, rows], cols, move |mut tile| kernel.multiply(&stored, x, k, &mut tile))
}

fn wide<'a>(
    (stored, kernel): (Stored<'a>, WideKernel),
    n: usize,
    x: &'a Activations<'_>,
    out: &'a mut [f32],
    steps: bool,
    pool: &Pool,
) -> Tiles<'a> {
    let (k, rows) = (x.cols(), x.rows());
    let x = x.int16_runs(pool);
    let cols = if steps && rows < integer::FEW { few_cols(n, stored.row_bytes, pool) } else { integer::PANEL };
    Tiles::of(out, n, vec![0, rows], cols, move |mut tile| kernel.multiply(&stored, x, k, steps, &mut tile))
}

fn int8<'a>(
    (bytes, scales): (&'a [u8], Scales<'a>),
    x: &'a Activations<'_>,
    out: &'a mut [f32],
    scratch: &'a Scratch,
    pool: &Pool,
) -> Tiles<'a> {
    /// Rows of x in a tile: many, so that what is made of the weights once for them does not show.
    const TILE_ROWS: usize = 512;
    /// Weights' rows in a tile.
    const TILE_COLS: usize = 64;

    let codes: &[i8] = bytemuck::cast_slice(bytes);
    let (rows, k) = (x.rows(), x.cols());
    let n = out.len() / rows.max(1);
    let int8 = x.int8(pool);
    let kernel = int8::kernel();
    let tile_cols = if rows < float::FEW { few_cols(n, k, pool) } else { TILE_COLS };
    Tiles::of(out, n, tiles::cuts(rows, TILE_ROWS), tile_cols, move |mut tile| {
        let (first_row, rows, first_col, cols) = (tile.first_row(), tile.rows(), tile.first_col(), tile.cols());
        let mut own = vec![0.0; cols];
        scales.read(first_col, &mut own);
        scratch.ints(rows * cols, |sums| {
            let x_codes = &int8.codes[first_row * k..][..rows * k];
            let codes = &codes[first_col * k..][..cols * k];
            kernel.dot(codes, x_codes, &int8.sums[first_row..][..rows], k, sums);
            for (i, sums) in sums.chunks_exact(cols).enumerate() {
                let x_scale = int8.scales[first_row + i];
                for ((y, sum), scale) in tile.row(i).iter_mut().zip(sums).zip(&own) {
                    *y = *sum as f32 * x_scale * scale;
                }
            }
        });
    })
}

/// Unpacks a band of rows at a time, once for all of x, and multiplies it.
fn unpacked<'a>(
    n: usize,
    x: &'a Activations<'_>,
    out: &'a mut [f32],
    scratch: &'a Scratch,
    unpack: impl Fn(usize, &mut [f32]) + Send + Sync + 'a,
) -> Tiles<'a> {
    let (rows, k) = (x.rows(), x.cols());
    Tiles::of(out, n, vec![0, rows], float::PANEL, move |mut tile| {
        scratch.floats(tile.cols() * k, |buffer| {
            unpack(tile.first_col(), buffer);
            // By the same kernel as rows that lie in memory, so that it does not show in the last bits how they lie.
            let bytes: Vec<u8>;
            let bytes = if cfg!(target_endian = "little") {
                bytemuck::cast_slice(buffer)
            } else {
                bytes = buffer.iter().flat_map(|x| x.to_le_bytes()).collect();
                &bytes
            };
            let form = Form::Plain(Dtype::F32);
            let stored = Stored { form, bytes, row_bytes: 4 * k, order: None, inputs: Inputs::Float };
            float::kernel().multiply(&stored, 0, x, false, &mut tile);
        });
    })
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
                    let int8 = activations.int8(&Pool::new(1));
                    let scale = |at: usize| int8.scales[at / k];
                    dequantized =
                        int8.codes[..m * k].iter().enumerate().map(|(at, q)| f32::from(*q) * scale(at)).collect();
                    &dequantized
                } else if linear.method().arithmetic == Arithmetic::Int8 {
                    let runs = activations.int16_runs(&Pool::new(1));
                    let scale = |at: usize| runs.scales[at / 32];
                    dequantized =
                        runs.codes[..m * k].iter().enumerate().map(|(at, q)| f32::from(*q) * scale(at)).collect();
                    &dequantized
                } else {
                    &x
                };
                let expected = product(seen, &rows, k);
                let mut first: Option<Vec<f32>> = None;
                for threads in [1, 2, 5] {
                    let mut out = vec![f32::NAN; m * n];
                    linear.forward(&activations, &mut out, &Scratch::default(), &Pool::new(threads));
                    close(&out, &expected, 2e-5);
                    assert_eq!(first.get_or_insert_with(|| out.clone()), &out, "threads change nothing");
                }
            }
        }
    }
}
