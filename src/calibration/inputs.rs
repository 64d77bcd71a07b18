//! Sums over the inputs of matrices: how large each input is, and how inputs go together.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::outer::{Part, RUN, add_products};
use crate::family::Slot;
use crate::runtime::{Activations, Observer, Place};
use crate::threads::Pool;

/// The place by which an input is known that several matrices share: query, key and value have one, gate and up.
pub fn shared_input(place: Place) -> Place {
    let slot = match place.slot {
        Slot::AttnK | Slot::AttnV => Slot::AttnQ,
        Slot::FfnGate => Slot::FfnUp,
        slot => slot,
    };
    Place { slot, ..place }
}

/// What is asked for of an input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wanted {
    /// Σ x² of each feature.
    Squares,
    /// Σ x xᵀ, of which the former is the diagonal.
    Products,
}

/// What is known of an input: sums over `rows` tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct Inputs {
    /// Tokens that were seen. An expert of a mixture sees some of the text only.
    pub rows: u64,
    /// Features.
    pub cols: usize,
    /// Σ x² of each feature.
    squares: Vec<f64>,
    /// Σ x xᵀ `[cols, cols]`, or empty: of what is not pending, the lower triangle.
    products: Vec<f64>,
    /// Rows whose products are not added yet.
    pending: Vec<f32>,
}

impl Inputs {
    /// Nothing seen yet.
    pub fn new(cols: usize, wanted: Wanted) -> Self {
        let products = if wanted == Wanted::Products { cols * cols } else { 0 };
        Self { rows: 0, cols, squares: vec![0.0; cols], products: vec![0.0; products], pending: Vec::new() }
    }

    /// Adds rows of inputs.
    pub fn add(&mut self, x: &[f32], pool: &Pool) {
        let (d, rows) = (self.cols, x.len() / self.cols.max(1));
        self.rows += rows as u64;
        // Features of a piece of work: a row's cache lines are one thread's.
        const FEATURES: usize = 256;
        pool.for_each_chunk(&mut self.squares, FEATURES, |piece, squares| {
            for row in x.chunks_exact(d) {
                let row = &row[piece * FEATURES..][..squares.len()];
                squares.iter_mut().zip(row).for_each(|(sum, x)| *sum += f64::from(*x) * f64::from(*x));
            }
        });
        if self.products.is_empty() {
            return;
        }
        let mut rest = x;
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rest.len().min(RUN * d - self.pending.len()));
            self.pending.extend_from_slice(now);
            rest = later;
            if self.pending.len() == RUN * d {
                self.add_pending(pool);
            }
        }
    }

    /// What was summed before: over so many tokens, Σ x² and, if not empty, the lower triangle of Σ x xᵀ row by row.
    pub fn known(rows: u64, squares: Vec<f64>, triangle: &[f64]) -> Self {
        let cols = squares.len();
        let mut products = vec![0.0; if triangle.is_empty() { 0 } else { cols * cols }];
        let mut rest = triangle;
        for (i, row) in products.chunks_exact_mut(cols.max(1)).enumerate() {
            let (here, after) = rest.split_at(i + 1);
            row[..=i].copy_from_slice(here);
            rest = after;
        }
        Self { rows, cols, squares, products, pending: Vec::new() }
    }

    /// Σ x² of each feature.
    pub fn squares(&self) -> &[f64] {
        &self.squares
    }

    /// The rows of the lower triangle of Σ x xᵀ, of all rows that were added before [`Inputs::add_pending`]; none if products were
    /// not asked for.
    pub fn triangle(&self) -> impl Iterator<Item = &[f64]> {
        self.products.chunks_exact(self.cols.max(1)).enumerate().map(|(i, row)| &row[..=i])
    }

    /// Adds the products of the rows that are pending.
    pub fn add_pending(&mut self, pool: &Pool) {
        let x = std::mem::take(&mut self.pending);
        let d = self.cols;
        add_products(&mut self.products, (&x, d), (&x, d), Part::Lower, pool);
    }

    /// ‖x‖₂ of each feature over all tokens.
    pub fn norms(&self) -> Vec<f32> {
        self.squares.iter().map(|sum| sum.sqrt() as f32).collect()
    }

    /// H = XᵀX / m `[cols, cols]`, symmetric; `None` if products were not asked for or no token was seen.
    pub fn hessian(mut self, pool: &Pool) -> Option<Vec<f64>> {
        self.add_pending(pool);
        if self.products.is_empty() || self.rows == 0 {
            return None;
        }
        let (d, m) = (self.cols, self.rows as f64);
        for i in 0..d {
            for j in 0..=i {
                let mean = self.products[i * d + j] / m;
                self.products[i * d + j] = mean;
                self.products[j * d + i] = mean;
            }
        }
        Some(self.products)
    }

    /// Bytes that such sums take.
    pub fn bytes(cols: usize, wanted: Wanted) -> u64 {
        let cols = cols as u64;
        8 * if wanted == Wanted::Products { cols * cols } else { cols }
    }
}

/// Watches a walk and adds up the inputs that are asked for.
pub struct Gatherer {
    pool: Arc<Pool>,
    wanted: BTreeMap<Place, Wanted>,
    found: BTreeMap<Place, Inputs>,
}

impl Gatherer {
    /// Watches these inputs, by the place that they share.
    pub fn new(wanted: BTreeMap<Place, Wanted>, pool: Arc<Pool>) -> Self {
        Self { pool, wanted, found: BTreeMap::new() }
    }

    /// What was seen. An expert that saw no token is not there.
    pub fn finish(mut self) -> BTreeMap<Place, Inputs> {
        self.found.values_mut().for_each(|inputs| inputs.add_pending(&self.pool));
        self.found
    }
}

impl Observer for Gatherer {
    fn input(&mut self, _: usize, place: Place, x: &Activations<'_>) {
        // Matrices with the same input are told one by one; the one that stands for all is watched.
        let Some(&wanted) = self.wanted.get(&place) else { return };
        let inputs = self.found.entry(place).or_insert_with(|| Inputs::new(x.cols(), wanted));
        inputs.add(x.f32(), &self.pool);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_those_of_a_plain_loop_for_any_number_of_threads_and_rows_at_a_time() {
        let d = 300;
        let x: Vec<f32> = (0..600 * d).map(|i| ((i * 7919 % 1009) as f32 - 504.0) / 300.0).collect();
        let gathered = |threads, rows: usize| {
            let mut inputs = Inputs::new(d, Wanted::Products);
            let pool = Pool::new(threads);
            x.chunks(rows * d).for_each(|x| inputs.add(x, &pool));
            (inputs.norms(), inputs.hessian(&pool).unwrap())
        };
        let (norms, h) = gathered(1, 20);
        assert_eq!((&norms, &h), (&gathered(2, 20).0, &gathered(2, 700).1), "rows at a time change nothing either");
        let product = |i: usize, j: usize| x.chunks(d).map(|x| f64::from(x[i]) * f64::from(x[j])).sum::<f64>();
        for (i, j) in [(0, 0), (1, 0), (0, 1), (299, 3), (3, 299), (256, 255), (270, 280)] {
            assert!((h[i * d + j] - product(i, j) / 600.0).abs() < 1e-4, "{i} {j}");
            assert!((f64::from(norms[i]) - product(i, i).sqrt()).abs() < 1e-3);
        }
    }
}
