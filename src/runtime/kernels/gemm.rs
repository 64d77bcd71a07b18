//! The f32 matrix product, on the caller's thread or, tile by tile, on all: by the crate `gemm`; for many rows on AVX2 by a loop
//! of our own, which is half as fast again there; and for few rows by plain ones, which need no preparing.

#[cfg(target_arch = "x86_64")]
mod avx2;

use std::sync::OnceLock;

use gemm::Parallelism;

use super::tiles::{self, Tile};
use super::{Isa, Kernel, vectorise};
use crate::runtime::activations::SIX;
use crate::threads::Pool;

/// A row-major matrix, or some columns of one.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    /// Elements from a row to the next.
    stride: usize,
    /// Elements from a column to the next.
    step: usize,
}

impl<'a> View<'a> {
    /// `rows` rows of `cols` columns; a row begins `stride` elements after the one before.
    ///
    /// # Panics
    /// If `data` ends before the last row does, or rows overlap.
    pub fn new(data: &'a [f32], rows: usize, cols: usize, stride: usize) -> Self {
        assert!(cols <= stride && isize::try_from(stride).is_ok(), "rows do not overlap");
        let end = rows.checked_sub(1).map_or(Some(0), |last| last.checked_mul(stride)?.checked_add(cols));
        assert!(end.is_some_and(|end| end <= data.len()), "rows lie within the data");
        Self { data, rows, cols, stride, step: 1 }
    }

    /// Some rows of it.
    fn some_rows(self, first: usize, rows: usize) -> Self {
        Self { data: &self.data[first * self.stride..], rows, ..self }
    }

    /// Some columns of it.
    fn some_cols(self, first: usize, cols: usize) -> Self {
        Self { data: &self.data[first * self.step..], cols, ..self }
    }

    /// The same numbers, rows for columns.
    pub fn transposed(self) -> Self {
        Self { data: self.data, rows: self.cols, cols: self.rows, stride: self.step, step: self.stride }
    }
}

/// out = factor · x · wᵀ: x is `[m, k]`, w `[n, k]`, out `[m, n]`.
///
/// # Panics
/// If the shapes do not fit.
pub fn times_transposed(x: View<'_>, w: View<'_>, factor: f32, out: &mut Tile<'_>) {
    assert!(x.cols == w.cols && x.rows == out.rows() && w.rows == out.cols(), "shapes fit");
    product(x, w.transposed(), factor, false, out);
}

/// out = x · w: x is `[m, k]`, w `[k, n]`, out `[m, n]`.
///
/// # Panics
/// If the shapes do not fit.
pub fn times(x: View<'_>, w: View<'_>, out: &mut Tile<'_>) {
    assert!(x.cols == w.rows && x.rows == out.rows() && w.cols == out.cols(), "shapes fit");
    product(x, w, 1.0, false, out);
}

/// Rows of a tile of [`times_on`]: fewer, and preparing w would take a good part of the time.
const TILE_ROWS: usize = 42 * SIX;

/// [`times`] on all threads; out `[m, n]` is whole. Tiles depend on the shapes alone, so that the number of threads changes
/// nothing.
///
/// # Panics
/// If the shapes do not fit.
pub fn times_on(x: View<'_>, w: View<'_>, out: &mut [f32], pool: &Pool) {
    assert!(x.cols == w.rows && out.len() == x.rows * w.cols, "shapes fit");
    if x.cols == 0 {
        return out.fill(0.0);
    }
    let width = (w.cols / 4).clamp(64, 512).next_multiple_of(16);
    tiles::for_each(pool, out, w.cols, &tiles::cuts(x.rows, TILE_ROWS), width, |mut tile| {
        let (rows, cols) = (tile.rows(), tile.cols());
        times(x.some_rows(tile.first_row(), rows), w.some_cols(tile.first_col(), cols), &mut tile);
    });
}

/// out += factor · x · w: x is `[m, k]`, w `[k, n]`, out `[m, n]`.
///
/// # Panics
/// If the shapes do not fit.
pub fn add_times(x: View<'_>, w: View<'_>, factor: f32, out: &mut Tile<'_>) {
    assert!(x.cols == w.rows && x.rows == out.rows() && w.cols == out.cols(), "shapes fit");
    product(x, w, factor, true, out);
}

/// Operands whose shapes fit.
#[derive(Clone, Copy)]
struct Product<'a> {
    x: View<'a>,
    w: View<'a>,
    factor: f32,
    /// Whether it is added to what is there, or comes in its place.
    add: bool,
}

/// Sets the tile, or adds to it.
type Multiply = unsafe fn(&Product<'_>, &mut Tile<'_>);

static TABLE: &[Kernel<Multiply>] = &[
    #[cfg(target_arch = "x86_64")]
    Kernel { name: "the crate gemm", isa: Isa::Avx512, supported: super::has_avx512, function: by_crate },
    #[cfg(target_arch = "x86_64")]
    Kernel { name: "avx2", isa: Isa::Avx2, supported: super::has_avx2, function: avx2::multiply },
    Kernel { name: "the crate gemm", isa: Isa::Scalar, supported: || true, function: by_crate },
];

fn chosen() -> &'static Kernel<Multiply> {
    static CHOSEN: OnceLock<&Kernel<Multiply>> = OnceLock::new();
    CHOSEN.get_or_init(|| super::choose(TABLE))
}

/// The version for many rows, for reports.
pub fn kernel() -> &'static str {
    chosen().name
}

/// The shapes fit.
fn product(x: View<'_>, w: View<'_>, factor: f32, add: bool, out: &mut Tile<'_>) {
    /// For fewer rows, putting w into another order does not pay.
    const FEW: usize = SIX;

    if x.cols == 0 {
        if !add {
            (0..x.rows).for_each(|i| out.row(i).fill(0.0));
        }
    } else if x.rows > 0 && w.cols > 0 {
        let product = Product { x, w, factor, add };
        let few = x.rows < FEW && x.step == 1;
        if few && w.stride == 1 {
            vectorise(
                #[inline(always)]
                || dots(&product, out),
            );
        } else if few && w.step == 1 {
            vectorise(
                #[inline(always)]
                || sums_of_rows(&product, out),
            );
        } else {
            let function = if x.rows < FEW { by_crate } else { chosen().function };
            // SAFETY: what is chosen the processor supports; the shapes fit and nothing is empty.
            unsafe { function(&product, out) }
        }
    }
}

/// Few rows of x, and w's columns lie one after the other: a lane sums every sixteenth column of x.
#[inline(always)]
fn dots(product: &Product<'_>, out: &mut Tile<'_>) {
    const LANES: usize = 16;

    let &Product { x, w, factor, add } = product;
    for i in 0..x.rows {
        let x = &x.data[i * x.stride..][..x.cols];
        let (x_lanes, x_rest) = x.as_chunks::<LANES>();
        for (j, out) in out.row(i).iter_mut().enumerate() {
            let (w_lanes, w_rest) = w.data[j * w.step..][..x.len()].as_chunks::<LANES>();
            let mut sums = [0.0; LANES];
            for (x, w) in x_lanes.iter().zip(w_lanes) {
                sums.iter_mut().zip(x.iter().zip(w)).for_each(|(sum, (x, w))| *sum += x * w);
            }
            sums.iter_mut().zip(x_rest.iter().zip(w_rest)).for_each(|(sum, (x, w))| *sum += x * w);
            for half in [8, 4, 2, 1] {
                (0..half).for_each(|lane| sums[lane] += sums[lane + half]);
            }
            *out = factor * sums[0] + if add { *out } else { 0.0 };
        }
    }
}

/// Few rows of x, and w's rows lie one after the other: they are added up, four at a time.
#[inline(always)]
fn sums_of_rows(product: &Product<'_>, out: &mut Tile<'_>) {
    let &Product { x, w, factor, add } = product;
    let row = |at: usize| &w.data[at * w.stride..][..w.cols];
    for i in 0..x.rows {
        let (fours, rest) = x.data[i * x.stride..][..x.cols].as_chunks::<4>();
        let out = &mut out.row(i)[..w.cols];
        if !add {
            out.fill(0.0);
        }
        for (at, four) in fours.iter().enumerate() {
            let x = four.map(|x| factor * x);
            let [a, b, c, d] = std::array::from_fn(|r| row(4 * at + r));
            for ((((out, a), b), c), d) in out.iter_mut().zip(a).zip(b).zip(c).zip(d) {
                *out += x[0] * a + x[1] * b + (x[2] * c + x[3] * d);
            }
        }
        for (at, x) in rest.iter().enumerate() {
            out.iter_mut().zip(row(4 * fours.len() + at)).for_each(|(out, w)| *out += factor * x * w);
        }
    }
}

/// # Safety
/// The shapes fit one another and out's, and none is empty.
unsafe fn by_crate(product: &Product<'_>, out: &mut Tile<'_>) {
    let &Product { x, w, factor, add } = product;
    let (m, n, k) = (x.rows, out.cols(), x.cols);
    // SAFETY: `View::new` and `Tile` saw that every row of the three matrices lies within memory that is borrowed until
    // after this call, shared for x and w, exclusive for out; a transposed view reaches the same elements. The callers above
    // saw that the shapes fit these views. out's old contents, which are initialised, are read if `read_dst` says so.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.start(),
            1,
            out.stride() as isize,
            add,
            x.data.as_ptr(),
            x.step as isize,
            x.stride as isize,
            w.data.as_ptr(),
            w.step as isize,
            w.stride as isize,
            f32::from(u8::from(add)),
            factor,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::testing::{Noise, close};

    #[test]
    fn products_equal_a_plain_loop_on_views_and_tiles() {
        let mut noise = Noise::new(1);
        for (m, n, k) in [(0, 3, 2), (1, 1, 1), (2, 3, 0), (1, 33, 70), (17, 5, 129), (64, 48, 600), (300, 200, 9)] {
            let (x, w) = (noise.vec(m * (k + 3)), noise.vec(n * (k + 1)));
            let mut out = vec![9.0; m * n];
            times_transposed(
                View::new(&x, m, k, k + 3),
                View::new(&w, n, k, k + 1),
                0.5,
                &mut Tile::whole(&mut out, n),
            );
            let oracle = |i: usize, j: usize| -> f64 {
                (0..k).map(|l| f64::from(x[i * (k + 3) + l]) * f64::from(w[j * (k + 1) + l])).sum::<f64>() * 0.5
            };
            let expected: Vec<f64> = (0..m * n).map(|at| oracle(at / n, at % n)).collect();
            close(&out, &expected, 1e-4);

            let v = noise.vec(k * (n + 2));
            times(View::new(&x, m, k, k + 3), View::new(&v, k, n, n + 2), &mut Tile::whole(&mut out, n));
            let oracle = |i: usize, j: usize| -> f64 {
                (0..k).map(|l| f64::from(x[i * (k + 3) + l]) * f64::from(v[l * (n + 2) + j])).sum()
            };
            let expected: Vec<f64> = (0..m * n).map(|at| oracle(at / n, at % n)).collect();
            close(&out, &expected, 1e-4);

            let alone = out.clone();
            for threads in [1, 3] {
                out.fill(9.0);
                let pool = Pool::new(threads);
                times_on(View::new(&x, m, k, k + 3), View::new(&v, k, n, n + 2), &mut out, &pool);
                close(&out, &expected, 1e-4);
            }
            out = alone;

            let turned = noise.vec(k * (m + 1));
            add_times(
                View::new(&turned, k, m, m + 1).transposed(),
                View::new(&v, k, n, n + 2),
                -2.0,
                &mut Tile::whole(&mut out, n),
            );
            let more = |i: usize, j: usize| -> f64 {
                (0..k).map(|l| f64::from(turned[l * (m + 1) + i]) * f64::from(v[l * (n + 2) + j])).sum()
            };
            let expected: Vec<f64> = (0..m * n).map(|at| expected[at] - 2.0 * more(at / n, at % n)).collect();
            close(&out, &expected, 2e-4);
        }
    }

    #[test]
    #[should_panic(expected = "within the data")]
    fn a_view_beyond_its_data_is_refused() {
        View::new(&[0.0; 9], 3, 3, 4);
    }
}
