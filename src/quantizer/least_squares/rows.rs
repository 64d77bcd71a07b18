//! Some rows of a matrix, each by itself.

use super::descent;
use super::gptq;
use super::grid::{Grid, Levels, Row};
use super::levels::{Fp8, Integers, Nearest, Table};
use super::loss::{dot, errors, image, of_rows};
use super::{BAND, Effort, Method, Problem};
use crate::quantizer::{Band, Numbers};
use crate::simd::{Simd, Task, dispatch};
use crate::threads::Pool;

/// Rows of a matrix whose bands are large.
const LARGE: usize = 2048;

/// Rows of a problem that follow one another.
#[derive(Clone, Copy)]
pub struct Rows<'a> {
    pub grid: &'a Grid,
    pub problem: &'a Problem<'a>,
    /// W of these rows.
    pub target: &'a [f32],
}

/// Does something with each band of rows, on all threads; what it makes of them in order.
pub fn each_band<T: Send>(
    grid: &Grid,
    problem: &Problem<'_>,
    pool: &Pool,
    work: impl Fn(Rows<'_>) -> Vec<T> + Send + Sync,
) -> Vec<T> {
    // The larger, the less often a product prepares H for its loops; the number of threads does not matter.
    let size = if problem.rows >= LARGE { 4 * BAND } else { BAND };
    let bands: Vec<&[f32]> = problem.target.chunks(size * problem.cols).collect();
    let found = pool.map(bands.len(), |band| work(Rows { grid, problem, target: bands[band] }));
    found.into_iter().flatten().collect()
}

impl Rows<'_> {
    /// The rows by a method, whatever G is, and J of each.
    pub fn solve(self, method: Method) -> Vec<(Row, f64)> {
        let Self { grid, problem, target } = self;
        let mut rows = dispatch(Start { rows: self, method });
        let Method::Best(effort) = method else {
            let losses = self.losses(&rows);
            return rows.into_iter().zip(losses).collect();
        };
        let mut p = image(&errors(grid, &rows, target), problem.metric.hessian(), problem.cols);
        for _ in 0..effort.sweeps {
            self.descend(&mut rows, &mut p, None);
        }
        let errors = errors(grid, &rows, target);
        let losses = errors.chunks_exact(problem.cols).zip(p.chunks_exact(problem.cols)).map(|(e, p)| 0.5 * dot(e, p));
        let mut best: Vec<(Row, f64)> = rows.into_iter().zip(losses).collect();
        // Of each row the best. Equals go to what is simpler.
        for search in [true, false].into_iter().filter(|_| effort.compared) {
            let other = self.encoded(search);
            let losses = self.losses(&other);
            for (best, other) in best.iter_mut().zip(other.into_iter().zip(losses)) {
                // NaN is what scales beyond f16 give.
                if other.1 <= best.1 || (best.1.is_nan() && !other.1.is_nan()) {
                    *best = other;
                }
            }
        }
        best
    }

    /// The rows by feedback alone, with the scales of the least loss.
    pub fn feedback(self) -> Vec<Row> {
        dispatch(Start { rows: self, method: Method::Best(Effort::default()) })
    }

    /// One sweep of coordinate descent, given P of the rows and G among them. With a G, P is not that of the new rows
    /// afterwards.
    pub fn descend(self, rows: &mut [Row], p: &mut [f32], outputs: Option<&[f32]>) {
        let rows = descent::Rows { rows, p, outputs };
        dispatch(Sweep { grid: self.grid, problem: self.problem, rows });
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
            Method::Best(_) => gptq::best(simd, grid, levels, target, problem.metric),
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
}

impl Sweep<'_> {
    fn of<S: Simd, L: Nearest>(self, simd: S, levels: L) {
        descent::descend(simd, self.grid, levels, self.problem.metric, self.rows);
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

#[cfg(test)]
mod tests {
    use formats::Dtype;

    use super::*;
    use crate::quantizer::least_squares::{Form, Metric};
    use crate::simd::{on, supported};

    #[test]
    fn every_instruction_set_chooses_the_same_codes() {
        let cols = 256;
        let noise = |seed: usize| move |i: usize| ((i * 7919 + seed) * 31 % 1009) as f64 / 1009.0 - 0.5;
        let (at, of) = (noise(1), noise(2));
        let x: Vec<f64> = (0..300 * cols).map(|i| at(i) + at(i / cols * 16 + i % 16)).collect();
        let product = |i: usize, j: usize| x.chunks_exact(cols).map(|x| x[i] * x[j]).sum::<f64>() / 300.0;
        let hessian = (0..cols * cols).map(|i| product(i / cols, i % cols)).collect();
        let metric = Metric::new(hessian, cols, 0.01, &Pool::new(1)).unwrap();
        let target: Vec<f32> = (0..5 * cols).map(|i| of(i) as f32).collect();
        let problem = Problem { target: &target, rows: 5, cols, dtype: Dtype::F32, metric: &metric, outputs: None };
        let types = [Dtype::Q4_0, Dtype::Q5_1, Dtype::Q2_K, Dtype::Q6_K, Dtype::IQ4_XS];
        for form in types.map(Form::Blocks).into_iter().chain([Form::Packed { bits: 4, group: 64 }, Form::Fp8Rows]) {
            let grid = &Grid::new(form, Dtype::F32, cols);
            let found = supported().map(|isa| {
                let rows = Rows { grid, problem: &problem, target: &target };
                let mut found = on(isa, Start { rows, method: Method::Best(Effort::default()) });
                let mut p = image(&errors(grid, &found, &target), metric.hessian(), cols);
                let rows = descent::Rows { rows: &mut found, p: &mut p, outputs: None };
                on(isa, Sweep { grid, problem: &problem, rows });
                (isa, found)
            });
            let found: Vec<_> = found.collect();
            for (isa, rows) in &found {
                assert!(*rows == found[0].1, "{form:?}: {isa}");
            }
        }
    }
}
