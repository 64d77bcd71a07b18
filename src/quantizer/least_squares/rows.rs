//! Some rows of a matrix, each by itself.

use super::descent;
use super::gptq;
use super::grid::{Grid, Levels, Row};
use super::levels::{Fp8, Integers, Nearest, Table};
use super::loss::{errors, image, of_rows};
use super::{BAND, Method, Problem};
use crate::quantizer::{Band, Numbers};
use crate::simd::{Simd, Task, dispatch};
use crate::threads::Pool;

/// How often coordinate descent goes over all columns.
pub const SWEEPS: usize = 2;

/// Rows of a problem that follow one another.
#[derive(Clone, Copy)]
pub struct Rows<'a> {
    pub grid: &'a Grid,
    pub problem: &'a Problem<'a>,
    /// W of these rows.
    pub target: &'a [f32],
}

/// Does something with each band of rows, on all threads; their rows in order.
pub fn each_band(
    grid: &Grid,
    problem: &Problem<'_>,
    pool: &Pool,
    work: impl Fn(Rows<'_>) -> Vec<Row> + Send + Sync,
) -> Vec<Row> {
    let bands: Vec<&[f32]> = problem.target.chunks(BAND * problem.cols).collect();
    let found = pool.map(bands.len(), |band| work(Rows { grid, problem, target: bands[band] }));
    found.into_iter().flatten().collect()
}

impl Rows<'_> {
    /// The rows by a method, whatever G is.
    pub fn solve(self, method: Method) -> Vec<Row> {
        let mut rows = dispatch(Start { rows: self, method });
        if method == Method::Gptq {
            return rows;
        }
        for sweep in 0..SWEEPS {
            let cols = self.problem.cols;
            let mut p = image(&errors(self.grid, &rows, self.target), self.problem.metric.hessian(), cols);
            self.descend(&mut rows, &mut p, None, sweep == 0);
        }
        // Of each row the best. Equals go to what is simpler.
        let mut losses = self.losses(&rows);
        for search in [true, false] {
            let other = self.encoded(search);
            for ((row, loss), (other, new)) in
                rows.iter_mut().zip(&mut losses).zip(other.iter().zip(self.losses(&other)))
            {
                // NaN is what scales beyond f16 give.
                if new <= *loss || (loss.is_nan() && !new.is_nan()) {
                    (*row, *loss) = (other.clone(), new);
                }
            }
        }
        rows
    }

    /// The rows by feedback alone, with the scales of the least loss.
    pub fn feedback(self) -> Vec<Row> {
        dispatch(Start { rows: self, method: Method::Best })
    }

    /// One sweep of coordinate descent, given P of the rows and G among them.
    pub fn descend(self, rows: &mut [Row], p: &mut [f32], outputs: Option<&[f32]>, wide: bool) {
        let rows = descent::Rows { rows, p, outputs };
        dispatch(Sweep { grid: self.grid, problem: self.problem, rows, wide });
    }

    fn losses(self, rows: &[Row]) -> Vec<f64> {
        of_rows(self.problem, &errors(self.grid, rows, self.target), &Pool::new(1))
    }

    /// What rounding to nearest, or a search of scales, makes of the rows.
    pub fn encoded(self, search: bool) -> Vec<Row> {
        let Self { grid, problem, target } = self;
        let sizes = grid.row_bytes();
        let count = target.len() / problem.cols;
        let mut parts: Vec<Vec<u8>> = sizes.iter().map(|n| vec![0; n * count]).collect();
        let band = Band { numbers: Numbers::F32(target), first_row: 0, cols: problem.cols, dtype: problem.dtype };
        grid.form().quantizer(search).encode(band, &mut parts);
        let row =
            |r: usize| -> Vec<&[u8]> { sizes.iter().zip(&parts).map(|(&n, part)| &part[r * n..(r + 1) * n]).collect() };
        (0..count).map(|r| grid.read(&row(r))).collect()
    }
}

/// The rows without descent.
struct Start<'a> {
    rows: Rows<'a>,
    method: Method,
}

impl Start<'_> {
    fn of<S: Simd, L: Nearest>(self, simd: S, levels: L) -> Vec<Row> {
        let Rows { grid, problem, target } = self.rows;
        match self.method {
            Method::Gptq => gptq::plain(grid, levels, target, problem.metric),
            Method::Best => gptq::best(simd, grid, levels, target, problem.metric),
        }
    }
}

impl Task for Start<'_> {
    type Output = Vec<Row>;

    fn run<S: Simd>(self, simd: S) -> Vec<Row> {
        match self.rows.grid.levels {
            Levels::Integers(low, high) => self.of(simd, Integers(low, high)),
            Levels::Nonlinear => self.of(simd, Table),
            Levels::Fp8 => self.of(simd, Fp8),
        }
    }
}

/// A sweep of coordinate descent.
struct Sweep<'a> {
    grid: &'a Grid,
    problem: &'a Problem<'a>,
    rows: descent::Rows<'a>,
    wide: bool,
}

impl Sweep<'_> {
    fn of<S: Simd, L: Nearest>(self, simd: S, levels: L) {
        descent::descend(simd, self.grid, levels, self.problem.metric, self.rows, self.wide);
    }
}

impl Task for Sweep<'_> {
    type Output = ();

    fn run<S: Simd>(self, simd: S) {
        match self.grid.levels {
            Levels::Integers(low, high) => self.of(simd, Integers(low, high)),
            Levels::Nonlinear => self.of(simd, Table),
            Levels::Fp8 => self.of(simd, Fp8),
        }
    }
}
