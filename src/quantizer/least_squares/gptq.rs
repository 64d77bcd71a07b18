//! GPTQ (Frantar et al., 2022): columns one after the other; what rounding one did is taken over, as well as it can be, by the
//! columns that follow.

use std::ops::Range;

use super::Metric;
use super::candidates::{Candidate, Candidates, extreme, load};
use super::grid::{Grid, Levels, Minima, Row};
use super::levels::Nearest;
use crate::quantizer::ggml::{fit, lanes, nonlinear};
use crate::quantizer::{Band, Numbers};
use crate::runtime::kernels::gemm::{View, times};
use crate::runtime::kernels::tiles::Tile;
use crate::simd::lanes::W;
use crate::simd::{Lanes, Simd};

/// Columns of a batch: within one, the columns that follow are corrected at once, all others when the batch is done.
const BATCH: usize = 128;

/// The most columns of a block whose scales are tried with the feedback inside it.
pub const LARGEST: usize = 256;

/// The batches of columns: of whole blocks, or, where blocks are large, of parts of them.
pub fn batches(grid: &Grid) -> impl Iterator<Item = Range<usize>> + use<> {
    let (cols, size) = (
        grid.cols(),
        match grid.block() {
            block if block <= LARGEST => (BATCH / block).max(1) * block,
            _ => BATCH,
        },
    );
    (0..cols).step_by(size).map(move |first| first..cols.min(first + size))
}

/// Quantizes some rows as the paper has it.
pub fn plain<L: Nearest>(grid: &Grid, levels: L, target: &[f32], metric: &Metric) -> Vec<Row> {
    let mut w = target.to_vec();
    let mut rows = vec![grid.empty(); w.len() / grid.cols()];
    for batch in batches(grid) {
        each_row(grid, &mut w, &batch, &mut rows, metric, |row, w, errors| {
            let step = grid.block().min(batch.len());
            for first in batch.clone().step_by(step) {
                if first.is_multiple_of(grid.block()) {
                    nearest_scales(grid, row, w, first / grid.block(), false);
                }
                round(grid, levels, row, w, first..batch.end.min(first + step), &batch, metric, errors);
            }
        });
    }
    rows
}

/// Calls `work` on each row, which quantizes the columns of a batch and gives their errors, and corrects what follows.
fn each_row(
    grid: &Grid,
    w: &mut [f32],
    batch: &Range<usize>,
    rows: &mut [Row],
    metric: &Metric,
    mut work: impl FnMut(&mut Row, &mut [f32], &mut [f32]),
) {
    let cols = grid.cols();
    let mut errors = vec![0.0; rows.len() * batch.len()];
    for ((row, w), errors) in rows.iter_mut().zip(w.chunks_exact_mut(cols)).zip(errors.chunks_exact_mut(batch.len())) {
        work(row, w, errors);
    }
    let (count, rest) = (rows.len(), cols - batch.end);
    if rest == 0 {
        return;
    }
    let mut shift = vec![0.0; count * rest];
    let right = &metric.factor()[batch.start * cols + batch.end..];
    let left = View::new(&errors, count, batch.len(), batch.len());
    times(left, View::new(right, batch.len(), rest, cols), &mut Tile::whole(&mut shift, rest));
    for (w, shift) in w.chunks_exact_mut(cols).zip(shift.chunks_exact(rest)) {
        w[batch.end..].iter_mut().zip(shift).for_each(|(w, shift)| *w -= shift);
    }
}

/// Rounds some columns of a batch one after the other, with the scales that the row has.
fn round<L: Nearest>(
    grid: &Grid,
    levels: L,
    row: &mut Row,
    w: &mut [f32],
    columns: Range<usize>,
    batch: &Range<usize>,
    metric: &Metric,
    errors: &mut [f32],
) {
    for j in columns {
        let u = metric.u(j);
        let (a, b) = grid.of(row, j / grid.sub);
        let level = if a == 0.0 { row.levels[j] } else { levels.one((w[j] + b) / a) };
        row.levels[j] = level;
        let error = (w[j] - (a * level - b)) / u[j];
        errors[j - batch.start] = error;
        w[j + 1..batch.end].iter_mut().zip(&u[j + 1..batch.end]).for_each(|(w, u)| *w -= error * u);
    }
}

/// The scales of rounding to nearest, or of a search, for what block `b` of a row has become.
fn nearest_scales(grid: &Grid, row: &mut Row, w: &[f32], b: usize, search: bool) {
    let own = Grid::new(grid.form(), grid.dtype(), grid.block());
    let numbers = &w[b * grid.block()..(b + 1) * grid.block()];
    let band = Band { numbers: Numbers::F32(numbers), first_row: 0, cols: numbers.len(), dtype: grid.dtype() };
    let mut parts: Vec<Vec<u8>> = own.row_bytes().into_iter().map(|n| vec![0; n]).collect();
    grid.form().quantizer(search).encode(band, &mut parts);
    let found = own.read(&parts.iter().map(Vec::as_slice).collect::<Vec<_>>());
    (row.d[b], row.dmin[b]) = (found.d[0], found.dmin[0]);
    row.scales[b * grid.per..(b + 1) * grid.per].copy_from_slice(&found.scales);
    row.mins[b * grid.per..(b + 1) * grid.per].copy_from_slice(&found.mins);
}

/// Quantizes some rows with the scales of each sub-block that have the least loss of all that are tried, each with the
/// feedback inside the sub-block.
pub fn best<S: Simd, L: Nearest>(simd: S, grid: &Grid, levels: L, target: &[f32], metric: &Metric) -> Vec<Row> {
    let cols = grid.cols();
    let mut w = target.to_vec();
    let mut rows = vec![grid.empty(); w.len() / cols];
    if grid.block() > LARGEST {
        for (row, w) in rows.iter_mut().zip(w.chunks_exact(cols)) {
            (0..cols / grid.block()).for_each(|b| nearest_scales(grid, row, w, b, true));
        }
    }
    let mut work = Work::new(simd, grid);
    for batch in batches(grid) {
        each_row(grid, &mut w, &batch, &mut rows, metric, |row, w, errors| {
            if grid.block() > LARGEST {
                return round(grid, levels, row, w, batch.clone(), &batch, metric, errors);
            }
            simd.run(
                #[inline(always)]
                || {
                    for j in batch.start / grid.sub..batch.end / grid.sub {
                        if grid.per > 1 && j % grid.per == 0 {
                            block_scales(simd, grid, row, w, j / grid.per, metric);
                        }
                        let own = j * grid.sub..(j + 1) * grid.sub;
                        let errors = &mut errors[own.start - batch.start..][..grid.sub];
                        work.choose(simd, grid, levels, row, w, j, metric, errors);
                        for (k, error) in own.clone().zip(errors) {
                            let u = &metric.u(k)[own.end..batch.end];
                            w[own.end..batch.end].iter_mut().zip(u).for_each(|(w, u)| *w -= *error * u);
                        }
                    }
                },
            );
        });
    }
    rows
}

/// `d` and `dmin` of a block, of the scales that its sub-blocks would have by themselves.
#[inline(always)]
fn block_scales<S: Simd>(simd: S, grid: &Grid, row: &mut Row, w: &[f32], b: usize, metric: &Metric) {
    let columns = b * grid.block()..(b + 1) * grid.block();
    let mut weights = [0.0; LARGEST];
    for (weight, k) in weights.iter_mut().zip(columns.clone()) {
        let u = metric.u(k)[k];
        *weight = 1.0 / (u * u);
    }
    let (x, weights) = (&w[columns], &weights[..grid.block()]);
    let (scales, mins) = match (grid.levels, grid.sub) {
        (Levels::Nonlinear, _) => {
            let [x, weights] = [x, weights].map(|x| lanes::columns::<S, 32>(simd, x.as_chunks().0));
            (nonlinear::scales(simd, &x, &weights), [0.0; W])
        }
        (_, 16) => sub_scales::<S, 16>(simd, grid, x, weights),
        _ => sub_scales::<S, 32>(simd, grid, x, weights),
    };
    let [low, high] = grid.scales.map(|x| x as f32);
    let largest = extreme(&scales[..grid.per]);
    row.d[b] = grid.stored(if low < 0.0 { largest / low } else { largest.max(0.0) / high });
    if let Minima::Multiples(most) = grid.minima {
        row.dmin[b] = grid.stored(mins[..grid.per].iter().copied().fold(0.0, f32::max) / most as f32);
    }
}

/// The scales and minima that sub-blocks of `N` columns would have by themselves.
#[inline(always)]
fn sub_scales<S: Simd, const N: usize>(simd: S, grid: &Grid, x: &[f32], weights: &[f32]) -> ([f32; W], [f32; W]) {
    let x = lanes::columns::<S, N>(simd, x.as_chunks().0);
    let weights = lanes::columns::<S, N>(simd, weights.as_chunks().0);
    let [low, high] = grid.levels.ends();
    if low < 0.0 {
        return (fit::symmetric(simd, &x, &weights, -low as i32).scale, [0.0; W]);
    }
    let found = fit::affine(simd, &x, &weights, fit::Steps::weighted(high as u8));
    (found.scale, found.min)
}

/// What choosing among candidates needs, kept from one sub-block to the next.
struct Work<S: Simd> {
    candidates: Candidates,
    x: Vec<S::Lanes>,
    levels: Vec<S::Lanes>,
    errors: Vec<S::Lanes>,
}

impl<S: Simd> Work<S> {
    fn new(simd: S, grid: &Grid) -> Self {
        let room = || vec![simd.splat(0.0); grid.sub.min(LARGEST)];
        Self { candidates: Candidates::default(), x: room(), levels: room(), errors: room() }
    }

    /// Quantizes sub-block `j` of a row with the best of all candidates, and gives the errors of its columns, each over its
    /// column's diagonal element of U.
    #[inline(always)]
    fn choose<L: Nearest>(
        &mut self,
        simd: S,
        grid: &Grid,
        levels: L,
        row: &mut Row,
        w: &[f32],
        j: usize,
        metric: &Metric,
        errors: &mut [f32],
    ) {
        let columns = j * grid.sub..(j + 1) * grid.sub;
        let (own, block) = (&w[columns.clone()], (row.d[j / grid.per], row.dmin[j / grid.per]));
        self.candidates.clear();
        self.candidates.around(grid, own, block);
        let mut least = f32::INFINITY;
        let mut found: Option<Candidate> = None;
        for group in self.candidates.groups() {
            let losses = self::feedback(
                simd,
                levels,
                own,
                columns.start,
                metric,
                &group,
                &mut self.x,
                &mut self.levels,
                &mut self.errors,
            );
            let (lane, loss) = first_least(&losses.store());
            if loss < least {
                (least, found) = (loss, Some(group[lane]));
                let columns = row.levels[columns.clone()].iter_mut().zip(&mut *errors);
                for (k, (level, error)) in columns.enumerate() {
                    (*level, *error) = (self.levels[k].store()[lane], self.errors[k].store()[lane]);
                }
            }
        }
        match found {
            Some(found) => found.store(grid, row, j),
            // Nothing but zeros, or numbers that are beyond all scales.
            None => {
                let candidate = Candidate::at(grid, row, j);
                let (_, b) = candidate.of();
                Candidate { scale: if grid.per > 1 { 0 } else { 1 }, ..candidate }.store(grid, row, j);
                let mut rest = [0.0; LARGEST];
                rest[..own.len()].copy_from_slice(own);
                for (k, error) in errors.iter_mut().enumerate() {
                    let u = &metric.u(columns.start + k)[columns.clone()];
                    *error = (rest[k] + b) / u[k];
                    for (rest, u) in rest[k + 1..own.len()].iter_mut().zip(&u[k + 1..]) {
                        *rest -= *error * u;
                    }
                }
            }
        }
    }
}

/// The lane of the least number, the first of equals; NaN is not less than anything.
pub fn first_least(numbers: &[f32; W]) -> (usize, f32) {
    numbers.iter().enumerate().fold((0, f32::INFINITY), |least, (lane, &x)| if x < least.1 { (lane, x) } else { least })
}

/// Rounds the columns of a sub-block one after the other, with sixteen candidates side by side. Gives the losses.
#[inline(always)]
fn feedback<S: Simd, L: Nearest>(
    simd: S,
    levels: L,
    w: &[f32],
    first: usize,
    metric: &Metric,
    group: &[Candidate; W],
    x: &mut [S::Lanes],
    found: &mut [S::Lanes],
    errors: &mut [S::Lanes],
) -> S::Lanes {
    let n = w.len();
    let (x, found, errors) = (&mut x[..n], &mut found[..n], &mut errors[..n]);
    let (a, b, inverse) = load(simd, group);
    x.iter_mut().zip(w).for_each(|(x, &w)| *x = simd.splat(w));
    let mut loss = simd.splat(0.0);
    for k in 0..n {
        let u = &metric.u(first + k)[first..first + n];
        let level = levels.lanes(simd, (x[k] + b) * inverse);
        let error = (x[k] - (a * level - b)) * simd.splat(1.0 / u[k]);
        (found[k], errors[k]) = (level, error);
        loss = loss + error * error;
        for (x, &u) in x[k + 1..].iter_mut().zip(&u[k + 1..]) {
            *x = *x - error * simd.splat(u);
        }
    }
    loss
}
