//! Coordinate descent on J. With E = W − Q and P = G E (H + δI), adding δ to weight (r, i) of Q changes J by
//! ½ δ² Gᵣᵣ Hᵢᵢ − δ Pᵣᵢ and P by −δ Gₖᵣ Hᵢⱼ at (k, j). Codes move to their best value while all others stay; a sub-block
//! tries other scales and minima, each with all its codes chosen anew; `d` and `dmin` move to the least squares of their block.
//! Nothing is taken that does not lower J.
//!
//! Columns are seen in batches: what a batch does to P beyond it is a matrix product when all rows of a band are done with it.

use std::ops::Range;

use super::Metric;
use super::candidates::{Candidate, Candidates, load, reciprocal};
use super::gptq::{LARGEST, batches, first_least};
use super::grid::{Grid, Levels, Minima, Row};
use super::levels::Nearest;
use super::loss::dot;
use crate::runtime::kernels::gemm::{View, times};
use crate::runtime::kernels::tiles::Tile;
use crate::simd::lanes::W;
use crate::simd::{Lanes, Simd};

/// Rows that are improved together.
pub struct Rows<'a> {
    /// What they are now.
    pub rows: &'a mut [Row],
    /// P of these rows `[rows, cols]`. It is kept up to date if they are by themselves.
    pub p: &'a mut [f32],
    /// G among these rows `[rows, rows]`; the identity if absent.
    pub outputs: Option<&'a [f32]>,
}

/// Goes once over all columns of some rows.
pub fn descend<S: Simd, L: Nearest>(simd: S, grid: &Grid, levels: L, metric: &Metric, rows: Rows<'_>) {
    let Rows { rows, p, outputs } = rows;
    let cols = grid.cols();
    let mut work = Work::new(simd, grid);
    let mut old = vec![0.0; cols];
    for columns in batches(grid) {
        let width = columns.len();
        let block = Block::new(metric, columns.clone());
        // What was added to the weights of each row.
        let mut moved = vec![0.0; rows.len() * width];
        for r in 0..rows.len() {
            let g = outputs.map_or(1.0, |outputs| outputs[r * rows.len() + r]);
            let row = &mut rows[r];
            let moved = &mut moved[r * width..(r + 1) * width];
            values(grid, row, &columns, &mut old[..width]);
            let own = &mut p[r * cols..][columns.clone()];
            simd.run(
                #[inline(always)]
                || work.improve(simd, grid, levels, &block, g, row, own),
            );
            values(grid, row, &columns, moved);
            moved.iter_mut().zip(&old).for_each(|(moved, old)| *moved -= old);
            if let Some(outputs) = outputs {
                spread(&block, moved, outputs, r, p, cols);
            }
        }
        if let Some(outputs) = outputs {
            let mut mixed = vec![0.0; moved.len()];
            let count = rows.len();
            let right = View::new(&moved, count, width, width);
            times(View::new(outputs, count, count, count), right, &mut Tile::whole(&mut mixed, width));
            moved = mixed;
        }
        // P of the batch itself is up to date; that of the columns before it is not needed in this sweep, and after it rows
        // that go together need another P.
        let before = outputs.map_or(0..columns.start, |_| 0..0);
        for rest in [before, columns.end..cols] {
            subtract(&moved, metric, &columns, &rest, p, cols);
        }
    }
    // With a G, a step of one row changes what is best for others: only rows by themselves are sure to gain.
    if grid.block() > LARGEST && outputs.is_none() {
        rescale_rows(grid, metric, rows, p);
    }
}

/// The values of a batch of columns.
fn values(grid: &Grid, row: &Row, columns: &Range<usize>, out: &mut [f32]) {
    for (j, out) in columns.clone().zip(out) {
        let (a, b) = grid.of(row, j / grid.sub);
        *out = a * row.levels[j] - b;
    }
}

/// P −= moved · (H + δI) in the columns `rest`.
fn subtract(moved: &[f32], metric: &Metric, columns: &Range<usize>, rest: &Range<usize>, p: &mut [f32], cols: usize) {
    if rest.is_empty() {
        return;
    }
    let rows = p.len() / cols;
    let mut shift = vec![0.0; rows * rest.len()];
    let right = View::new(&metric.hessian()[columns.start * cols + rest.start..], columns.len(), rest.len(), cols);
    let left = View::new(moved, rows, columns.len(), columns.len());
    times(left, right, &mut Tile::whole(&mut shift, rest.len()));
    for (p, shift) in p.chunks_exact_mut(cols).zip(shift.chunks_exact(rest.len())) {
        p[rest.clone()].iter_mut().zip(shift).for_each(|(p, shift)| *p -= shift);
    }
}

/// What moving weights of row `r` does to the P of the other rows, in the batch's columns.
fn spread(block: &Block, moved: &[f32], outputs: &[f32], r: usize, p: &mut [f32], cols: usize) {
    let mut image = vec![0.0; moved.len()];
    let mut any = false;
    for (i, &moved) in moved.iter().enumerate().filter(|(_, moved)| **moved != 0.0) {
        any = true;
        image.iter_mut().zip(block.h(i)).for_each(|(image, h)| *image += moved * h);
    }
    let count = p.len() / cols;
    for k in (0..count).filter(|&k| any && k != r) {
        let g = outputs[k * count + r];
        let p = &mut p[k * cols..][block.columns.clone()];
        p.iter_mut().zip(&image).for_each(|(p, image)| *p -= g * image);
    }
}

/// H + δI among the columns of a batch.
struct Block {
    columns: Range<usize>,
    h: Vec<f32>,
}

impl Block {
    fn new(metric: &Metric, columns: Range<usize>) -> Self {
        let rows = columns.clone().flat_map(|i| &metric.h(i)[columns.clone()]);
        Self { h: rows.copied().collect(), columns }
    }

    #[inline(always)]
    fn h(&self, i: usize) -> &[f32] {
        let width = self.columns.len();
        &self.h[i * width..(i + 1) * width]
    }
}

/// What improving a row's batch needs, kept from one to the next.
struct Work<S: Simd> {
    candidates: Candidates,
    p: Vec<S::Lanes>,
    levels: Vec<S::Lanes>,
    moved: Vec<S::Lanes>,
    images: [Vec<f32>; 2],
}

impl<S: Simd> Work<S> {
    fn new(simd: S, grid: &Grid) -> Self {
        let room = || vec![simd.splat(0.0); grid.sub.min(LARGEST)];
        let images = [vec![0.0; LARGEST], vec![0.0; LARGEST]];
        Self { candidates: Candidates::default(), p: room(), levels: room(), moved: room(), images }
    }

    /// Improves the codes and scales of a row in a batch's columns. `p` is P there, and stays so.
    #[inline(always)]
    fn improve<L: Nearest>(
        &mut self,
        simd: S,
        grid: &Grid,
        levels: L,
        block: &Block,
        g: f32,
        row: &mut Row,
        p: &mut [f32],
    ) {
        let columns = &block.columns;
        if grid.block() > LARGEST {
            return sweep(grid, levels, block, g, row, p, columns.clone());
        }
        for j in columns.start / grid.sub..columns.end / grid.sub {
            sweep(grid, levels, block, g, row, p, j * grid.sub..(j + 1) * grid.sub);
            if self.rescale(simd, grid, levels, block, g, row, p, j) {
                sweep(grid, levels, block, g, row, p, j * grid.sub..(j + 1) * grid.sub);
            }
        }
        if grid.per > 1 {
            for b in columns.start / grid.block()..columns.end / grid.block() {
                self.refit(grid, block, g, row, p, b);
            }
        }
    }

    /// Tries scales and minima for sub-block `j`; whether some were better.
    #[inline(always)]
    fn rescale<L: Nearest>(
        &mut self,
        simd: S,
        grid: &Grid,
        levels: L,
        block: &Block,
        g: f32,
        row: &mut Row,
        p: &mut [f32],
        j: usize,
    ) -> bool {
        let n = grid.sub;
        let first = j * n - block.columns.start;
        let (a, b) = grid.of(row, j);
        let mut current = [0.0; LARGEST];
        let mut inverse = [0.0; LARGEST];
        for k in 0..n {
            current[k] = a * row.levels[first + block.columns.start + k] - b;
            inverse[k] = reciprocal(g * block.h(first + k)[first + k]);
        }
        self.propose(grid, block, g, row, p, j, &current, &inverse);
        let (pb, found, moved) = (&mut self.p[..n], &mut self.levels[..n], &mut self.moved[..n]);
        let own = first..first + n;
        let mut best = 0.0;
        let mut choice = None;
        let mut chosen = [[0.0; LARGEST]; 2];
        for group in self.candidates.groups() {
            let (a, b, reciprocals) = load(simd, &group);
            let g = simd.splat(g);
            pb.iter_mut().zip(&p[own.clone()]).for_each(|(pb, &p)| *pb = simd.splat(p));
            // Each step is judged when it is made, so that P is needed only where steps are yet to be made.
            let mut change = simd.splat(0.0);
            for k in 0..n {
                let h = &block.h(first + k)[own.clone()];
                let now = simd.splat(current[k]);
                let wanted = now + pb[k] * simd.splat(inverse[k]);
                let level = levels.lanes(simd, (wanted + b) * reciprocals);
                let step = a * level - b - now;
                (found[k], moved[k]) = (level, step);
                let weight = step * g;
                change = change + step * (weight * simd.splat(0.5 * h[k]) - pb[k]);
                for (pb, &h) in pb[k + 1..].iter_mut().zip(&h[k + 1..]) {
                    *pb = *pb - weight * simd.splat(h);
                }
            }
            let (lane, change) = first_least(&change.store());
            if change < best {
                (best, choice) = (change, Some(group[lane]));
                for k in 0..n {
                    (chosen[0][k], chosen[1][k]) = (found[k].store()[lane], moved[k].store()[lane]);
                }
            }
        }
        let Some(choice) = choice else { return false };
        choice.store(grid, row, j);
        row.levels[j * n..(j + 1) * n].copy_from_slice(&chosen[0][..n]);
        for (k, &moved) in chosen[1][..n].iter().enumerate().filter(|(_, moved)| **moved != 0.0) {
            let weight = g * moved;
            p.iter_mut().zip(block.h(first + k)).for_each(|(p, h)| *p -= weight * h);
        }
        true
    }

    /// The candidates for sub-block `j`: near the least squares for its codes, and near what it has.
    #[inline(always)]
    fn propose(
        &mut self,
        grid: &Grid,
        block: &Block,
        g: f32,
        row: &Row,
        p: &[f32],
        j: usize,
        current: &[f32; LARGEST],
        inverse: &[f32; LARGEST],
    ) {
        let n = grid.sub;
        let first = j * n - block.columns.start;
        let (a, b) = grid.of(row, j);
        let now = Candidate::at(grid, row, j);
        let all = &mut self.candidates;
        all.clear();
        let super_block = (now.d, now.dmin);
        if a == 0.0 {
            let mut wanted = [0.0; LARGEST];
            for k in 0..n {
                wanted[k] = current[k] + p[first + k] * inverse[k];
            }
            return all.around(grid, &wanted[..n], super_block);
        }
        // Values a · level − b: the sums of the normal equations for a step of a and b.
        let codes = &row.levels[j * n..(j + 1) * n];
        let [mut aa, mut ab, mut bb, mut ap, mut bp] = [0.0f32; 5];
        for k in 0..n {
            let h = &block.h(first + k)[first..first + n];
            let (mut hl, mut h1) = ([0.0f32; 8], [0.0f32; 8]);
            for (h, l) in h.as_chunks::<8>().0.iter().zip(codes.as_chunks::<8>().0) {
                for lane in 0..8 {
                    hl[lane] += h[lane] * l[lane];
                    h1[lane] += h[lane];
                }
            }
            for (h, l) in h.as_chunks::<8>().1.iter().zip(codes.as_chunks::<8>().1) {
                hl[0] += h * l;
                h1[0] += h;
            }
            let (hl, h1) = (hl.iter().sum::<f32>(), h1.iter().sum::<f32>());
            aa += codes[k] * hl;
            ab -= codes[k] * h1;
            bb += h1;
            ap += codes[k] * p[first + k];
            bp -= p[first + k];
        }
        let (mut best_a, mut best_b) = (a, b);
        let det = aa * bb - ab * ab;
        if grid.minima != Minima::None && det > 1e-6 * aa * bb {
            best_a += (ap * bb - bp * ab) / (g * det);
            best_b += (aa * bp - ab * ap) / (g * det);
        } else if aa > 0.0 {
            best_a += ap / (g * aa);
        }
        if grid.per == 1 {
            // Steps as fine as a code's step is of the range.
            let step = 0.12 / grid.levels.ends().map(f32::abs).into_iter().fold(1.0, f32::max);
            let step = if grid.levels == Levels::Nonlinear { 0.015 } else { step };
            if grid.minima == Minima::Free {
                for (up, across) in [(0, 0), (1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, -1), (1, -1), (-1, 1)] {
                    let scale = best_a * (1.0 + step * up as f32);
                    all.add(grid.candidate(scale, best_b + 0.25 * best_a * across as f32, super_block), grid, W);
                    let scale = best_a * (1.0 + 2.0 * step * up as f32);
                    all.add(grid.candidate(scale, best_b + 0.5 * best_a * across as f32, super_block), grid, W);
                }
                return;
            }
            all.add(grid.candidate(best_a, 0.0, super_block), grid, W);
            for i in 1..=6 {
                for sign in [1.0, -1.0] {
                    all.add(grid.candidate(best_a * (1.0 + sign * step * i as f32), 0.0, super_block), grid, W);
                }
            }
            if grid.signed {
                let [low, high] = grid.levels.ends();
                all.add(grid.candidate(-best_a, 0.0, super_block), grid, W);
                all.add(grid.candidate(best_a * low / high, 0.0, super_block), grid, W);
                all.add(grid.candidate(best_a * high / low, 0.0, super_block), grid, W);
            }
            return;
        }
        let centre = grid.candidate(best_a, best_b, super_block);
        let top = if let Minima::Multiples(top) = grid.minima { top } else { 0 };
        let mut near = |of: Candidate, up: i32, across: i32| {
            let scale = (of.scale + up).clamp(grid.scales[0], grid.scales[1]);
            all.add(Candidate { scale, min: (of.min + across).clamp(0, top), ..of }, grid, W);
        };
        if top == 0 {
            for step in 0..=5 {
                for of in [centre, now] {
                    near(of, step, 0);
                    near(of, -step, 0);
                }
            }
            for step in [0, 1, -1] {
                near(Candidate { scale: -centre.scale, ..centre }, step, 0);
            }
            return;
        }
        for of in [centre, now] {
            for (up, across) in [(0, 0), (1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, -1), (1, -1), (-1, 1)] {
                near(of, up, across);
            }
        }
        for up in -2..=2 {
            for across in -2..=2 {
                near(centre, up, across);
            }
        }
    }

    /// Moves `d` and `dmin` of block `b` to the least squares for its codes, scales and minima.
    #[inline(always)]
    fn refit(&mut self, grid: &Grid, block: &Block, g: f32, row: &mut Row, p: &mut [f32], b: usize) {
        let n = grid.block();
        let first = b * n - block.columns.start;
        let own = first..first + n;
        let mut units = [[0.0f32; LARGEST]; 2];
        let [products, mins] = &mut units;
        for (k, (product, min)) in (b * n..(b + 1) * n).zip(products.iter_mut().zip(mins)) {
            let j = k / grid.sub;
            *product = row.scales[j] as f32 * row.levels[k];
            *min = -(row.mins[j] as f32);
        }
        let with_min = matches!(grid.minima, Minima::Multiples(_));
        let width = block.columns.len();
        for (which, image) in self.images.iter_mut().enumerate().take(if with_min { 2 } else { 1 }) {
            let image = &mut image[..width];
            image.fill(0.0);
            for (k, &unit) in units[which][..n].iter().enumerate().filter(|(_, unit)| **unit != 0.0) {
                image.iter_mut().zip(block.h(first + k)).for_each(|(image, h)| *image += unit * h);
            }
        }
        let (p_own, g) = (&p[own.clone()], f64::from(g));
        let dd = g * dot(&units[0][..n], &self.images[0][own.clone()]);
        let dp = dot(&units[0][..n], p_own);
        let (mut dm, mut mm, mut mp) = (0.0, 0.0, 0.0);
        if with_min {
            dm = g * dot(&units[0][..n], &self.images[1][own.clone()]);
            mm = g * dot(&units[1][..n], &self.images[1][own.clone()]);
            mp = dot(&units[1][..n], p_own);
        }
        let det = dd * mm - dm * dm;
        let (d, dmin) = (f64::from(row.d[b]), f64::from(row.dmin[b]));
        // `d` as the best of both, then `dmin` as the best for what `d` was rounded to.
        let step = match () {
            () if with_min && det > 1e-9 * dd * mm => (dp * mm - mp * dm) / det,
            () if dd > 0.0 => dp / dd,
            () => return,
        };
        let new_d = grid.stored((d + step) as f32);
        let step = f64::from(new_d) - d;
        let new_min = if mm > 0.0 { grid.stored((dmin + (mp - step * dm) / mm).max(0.0) as f32) } else { row.dmin[b] };
        let min_step = f64::from(new_min) - dmin;
        let change = 0.5 * (step * step * dd + 2.0 * step * min_step * dm + min_step * min_step * mm)
            - step * dp
            - min_step * mp;
        let possible = new_d.is_finite() && new_min.is_finite() && (grid.signed || new_d > 0.0);
        if !(possible && change < 0.0) {
            return;
        }
        (row.d[b], row.dmin[b]) = (new_d, new_min);
        let (step, min_step) = ((g * step) as f32, (g * min_step) as f32);
        for (k, p) in p.iter_mut().enumerate() {
            *p -= step * self.images[0][k];
            if with_min {
                *p -= min_step * self.images[1][k];
            }
        }
    }
}

/// Moves each code of some columns to its best.
#[inline(always)]
fn sweep<L: Nearest>(
    grid: &Grid,
    levels: L,
    block: &Block,
    g: f32,
    row: &mut Row,
    p: &mut [f32],
    columns: Range<usize>,
) {
    let (a, b) = grid.of(row, columns.start / grid.sub);
    if a == 0.0 {
        return;
    }
    let over = 1.0 / a;
    for j in columns {
        let at = j - block.columns.start;
        let h = block.h(at);
        let curvature = g * h[at];
        let value = a * row.levels[j] - b;
        let level = levels.one((value + p[at] * reciprocal(curvature) + b) * over);
        if level != row.levels[j] {
            let step = a * level - b - value;
            // Not so where the step is one of rounding alone, or levels lie at different distances.
            if step * (0.5 * step * curvature - p[at]) < 0.0 {
                row.levels[j] = level;
                let weight = g * step;
                p.iter_mut().zip(h).for_each(|(p, h)| *p -= weight * h);
            }
        }
    }
}

/// Moves the scales of blocks that are too large to be tried to the least squares for their codes.
fn rescale_rows(grid: &Grid, metric: &Metric, rows: &mut [Row], p: &mut [f32]) {
    let (cols, n, count) = (grid.cols(), grid.block(), rows.len());
    for b in 0..cols / n {
        let own = b * n..(b + 1) * n;
        let codes: Vec<f32> = rows.iter().flat_map(|row| &row.levels[own.clone()]).copied().collect();
        let mut images = vec![0.0; count * cols];
        let right = View::new(&metric.hessian()[own.start * cols..], n, cols, cols);
        times(View::new(&codes, count, n, n), right, &mut Tile::whole(&mut images, cols));
        let rows = rows.iter_mut().zip(p.chunks_exact_mut(cols)).zip(images.chunks_exact(cols));
        for ((row, p), image) in rows {
            let codes = &row.levels[own.clone()];
            let (curvature, slope) = (dot(codes, &image[own.clone()]), dot(codes, &p[own.clone()]));
            let scale = grid.stored((f64::from(row.d[b]) + slope / curvature) as f32);
            let step = f64::from(scale) - f64::from(row.d[b]);
            if scale > 0.0 && scale.is_finite() && 0.5 * step * step * curvature - step * slope < 0.0 {
                row.d[b] = scale;
                p.iter_mut().zip(image).for_each(|(p, image)| *p -= step as f32 * image);
            }
        }
    }
}
