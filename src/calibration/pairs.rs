//! Sums over the inputs of matrices in two models that go through a text together: the model as it was, and the model with some
//! weights replaced. With x a replaced model's input of a matrix, x₀ the original's input of the same matrix at the same token,
//! and h, h₀ the hidden states that go into the half of a block which the matrix is in, what is gathered is Σ x xᵀ and
//! Σ (x₀ − x) xᵀ or, of a matrix W whose result is added to the stream, Σ (W (x₀ − x) + h₀ − h) xᵀ.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::inputs::{Inputs, Wanted};
use super::outer::{Part, RUN, add_products};
use crate::runtime::{Activations, Linear, Observer, Place, Scratch};
use crate::threads::Pool;

/// Σ a bᵀ over pairs of rows.
#[derive(Debug, Clone, PartialEq)]
pub struct Products {
    left: usize,
    right: usize,
    sums: Vec<f64>,
    pending: [Vec<f32>; 2],
}

impl Products {
    /// Nothing added yet, of rows of so many features.
    pub fn new(left: usize, right: usize) -> Self {
        Self { left, right, sums: vec![0.0; left * right], pending: [Vec::new(), Vec::new()] }
    }

    /// Adds rows, as many of each.
    pub fn add(&mut self, left: &[f32], right: &[f32], pool: &Pool) {
        let (mut left, mut right) = (left, right);
        while !left.is_empty() {
            let rows = (left.len() / self.left).min(RUN - self.pending[0].len() / self.left);
            self.pending[0].extend_from_slice(&left[..rows * self.left]);
            self.pending[1].extend_from_slice(&right[..rows * self.right]);
            (left, right) = (&left[rows * self.left..], &right[rows * self.right..]);
            if self.pending[0].len() == RUN * self.left {
                self.add_pending(pool);
            }
        }
    }

    fn add_pending(&mut self, pool: &Pool) {
        let [left, right] = &self.pending;
        add_products(&mut self.sums, (left, self.left), (right, self.right), Part::Whole, pool);
        self.pending.iter_mut().for_each(Vec::clear);
    }

    /// Σ a bᵀ / m `[left, right]`.
    pub fn mean(mut self, rows: u64, pool: &Pool) -> Vec<f64> {
        self.add_pending(pool);
        let share = 1.0 / rows.max(1) as f64;
        self.sums.iter_mut().for_each(|sum| *sum *= share);
        self.sums
    }
}

/// What is asked for of an input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// Σ x xᵀ. All that can be asked for of an expert's input, whose tokens the two models choose each for itself.
    Inputs,
    /// Also Σ (x₀ − x) xᵀ.
    Drift,
    /// Also Σ (W (x₀ − x) + h₀ − h) xᵀ, W being the one matrix that has the input.
    Residual,
}

/// Sums over the rows of one input.
#[derive(Debug, Clone, PartialEq)]
pub struct Sums {
    /// Σ x xᵀ.
    pub inputs: Inputs,
    /// Σ (x₀ − x) xᵀ.
    pub drift: Option<Products>,
    /// Σ (W (x₀ − x) + h₀ − h) xᵀ.
    pub lacking: Option<Products>,
}

impl Sums {
    fn new(cols: usize, hidden: usize, asked: Asked) -> Self {
        Self {
            inputs: Inputs::new(cols, Wanted::Products),
            drift: (asked == Asked::Drift).then(|| Products::new(cols, cols)),
            lacking: (asked == Asked::Residual).then(|| Products::new(hidden, cols)),
        }
    }

    /// `errors` are those of the inputs or of the results, whichever were asked for.
    fn add(&mut self, x: &[f32], errors: &[f32], pool: &Pool) {
        self.inputs.add(x, pool);
        if let Some(sums) = self.drift.as_mut().or(self.lacking.as_mut()) {
            sums.add(errors, x, pool);
        }
    }

    /// Bytes that such sums take for an input of so many features, in a model of so wide hidden states.
    pub fn bytes(cols: usize, hidden: usize, asked: Asked) -> u64 {
        let (cols, hidden) = (cols as u64, hidden as u64);
        let numbers = match asked {
            Asked::Inputs => cols * cols,
            Asked::Drift => 2 * cols * cols,
            Asked::Residual => cols * cols + cols * hidden,
        };
        8 * numbers
    }
}

/// What was seen of one input.
#[derive(Debug, Clone, PartialEq)]
pub struct Pair {
    /// Over the tokens that are learned from.
    pub learned: Sums,
    /// Over those that are held back.
    pub held: Sums,
}

/// Watches both models in [`Walk::half`](crate::runtime::Walk::half): the original is the first, the other the second.
pub struct PairGatherer {
    pool: Arc<Pool>,
    wanted: BTreeMap<Place, Asked>,
    /// The original's matrices whose results are added to the stream.
    matrices: BTreeMap<Place, Arc<dyn Linear>>,
    scratch: Scratch,
    /// Tokens that are learned from; those after them are held back.
    learned: usize,
    hidden: usize,
    found: BTreeMap<Place, Pair>,
    /// Of the group of windows that is on its way: the token after its last one.
    end: usize,
    /// h₀, then h₀ − h of its tokens.
    stream: Vec<f32>,
    /// The original's inputs of its tokens.
    first: HashMap<Place, Vec<f32>>,
    /// How many rows of an input the second model has told.
    told: HashMap<Place, usize>,
}

impl PairGatherer {
    /// Watches these inputs, by the place that they share. Of all tokens the first `learned` are learned from. `matrices` are
    /// the original's at places of which [`Asked::Residual`] is asked for.
    pub fn new(
        wanted: BTreeMap<Place, Asked>,
        matrices: BTreeMap<Place, Arc<dyn Linear>>,
        learned: usize,
        hidden: usize,
        pool: Arc<Pool>,
    ) -> Self {
        Self {
            pool,
            wanted,
            matrices,
            scratch: Scratch::default(),
            learned,
            hidden,
            found: BTreeMap::new(),
            end: 0,
            stream: Vec::new(),
            first: HashMap::new(),
            told: HashMap::new(),
        }
    }

    /// What was seen. An expert that saw no token is not there.
    pub fn finish(self) -> BTreeMap<Place, Pair> {
        self.found
    }
}

impl Observer for PairGatherer {
    fn half_begins(&mut self, model: usize, hidden: &[f32]) {
        if model == 0 {
            self.first.clear();
            self.told.clear();
            self.stream.clear();
            self.stream.extend_from_slice(hidden);
        } else {
            self.stream.iter_mut().zip(hidden).for_each(|(first, second)| *first -= second);
            self.end += hidden.len() / self.hidden;
        }
    }

    fn input(&mut self, model: usize, place: Place, x: &Activations<'_>) {
        let Some(&asked) = self.wanted.get(&place) else { return };
        if model == 0 {
            if asked != Asked::Inputs {
                self.first.entry(place).or_default().extend_from_slice(x.f32());
            }
            return;
        }
        let (cols, rows) = (x.cols(), x.rows());
        let new = || Sums::new(cols, self.hidden, asked);
        let pair = self.found.entry(place).or_insert_with(|| Pair { learned: new(), held: new() });
        if asked == Asked::Inputs {
            return pair.learned.add(x.f32(), &[], &self.pool);
        }
        let told = self.told.entry(place).or_default();
        let at = *told..*told + rows;
        *told = at.end;
        let first = self.first.get(&place).map_or(&[][..], |first| &first[at.start * cols..at.end * cols]);
        let drift: Vec<f32> = first.iter().zip(x.f32()).map(|(first, second)| first - second).collect();
        let (errors, width) = match self.matrices.get(&place).filter(|_| asked == Asked::Residual) {
            None => (drift, cols),
            Some(matrix) => {
                let mut lacking = vec![0.0; rows * self.hidden];
                matrix.forward(&Activations::new(&drift, cols), &mut lacking, &self.scratch, &self.pool);
                let stream = &self.stream[at.start * self.hidden..at.end * self.hidden];
                lacking.iter_mut().zip(stream).for_each(|(lacking, stream)| *lacking += stream);
                (lacking, self.hidden)
            }
        };
        let begin = self.end - self.stream.len() / self.hidden + at.start;
        let learned = self.learned.saturating_sub(begin).min(rows);
        let [x, errors] = [(x.f32(), cols), (&errors, width)].map(|(numbers, width)| numbers.split_at(learned * width));
        pair.learned.add(x.0, errors.0, &self.pool);
        pair.held.add(x.1, errors.1, &self.pool);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::family::Slot;
    use crate::runtime::linear::from_rows;
    use crate::runtime::testing::Matrix;

    #[test]
    fn sums_are_those_of_plain_loops_however_rows_arrive() {
        let (cols, hidden, tokens) = (5, 3, 600);
        let noise = |seed: usize, n: usize| -> Vec<f32> {
            (0..n).map(|i| ((i * 7919 + seed * 104_729) % 1009) as f32 / 504.0 - 1.0).collect()
        };
        let (x0, x) = (noise(1, tokens * cols), noise(2, tokens * cols));
        let (h0, h) = (noise(3, tokens * hidden), noise(4, tokens * hidden));
        let places = [(Place::new(Slot::FfnDown, 0), Asked::Residual), (Place::new(Slot::FfnUp, 0), Asked::Drift)];
        let w = noise(5, hidden * cols);
        let gathered = |threads: usize, group: usize| {
            let pool = Arc::new(Pool::new(threads));
            let matrices = BTreeMap::from([(places[0].0, from_rows(Arc::new(Matrix::plain(&w, cols))))]);
            let mut gatherer = PairGatherer::new(BTreeMap::from(places), matrices, 450, hidden, pool.clone());
            for first in (0..tokens).step_by(group) {
                let rows = first..(first + group).min(tokens);
                for (model, (x, h)) in [(&x0, &h0), (&x, &h)].into_iter().enumerate() {
                    gatherer.half_begins(model, &h[rows.start * hidden..rows.end * hidden]);
                    for at in rows.clone().step_by(7) {
                        let end = (at + 7).min(rows.end);
                        for (place, _) in places {
                            gatherer.input(model, place, &Activations::new(&x[at * cols..end * cols], cols));
                        }
                    }
                }
            }
            let mut found = gatherer.finish();
            let [lacking, drift] = places.map(|(place, _)| found.remove(&place).unwrap());
            let means = |lacking: Sums, drift: Sums| {
                let rows = drift.inputs.rows;
                let lacking = lacking.lacking.unwrap().mean(rows, &pool);
                (rows, drift.inputs.hessian(&pool).unwrap(), drift.drift.unwrap().mean(rows, &pool), lacking)
            };
            (means(lacking.learned, drift.learned), means(lacking.held, drift.held))
        };
        let (learned, held) = gathered(1, 100);
        assert_eq!((&learned, &held), (&gathered(2, 64).0, &gathered(2, 600).1));
        assert_eq!((learned.0, held.0), (450, 150));
        let expected = |tokens: std::ops::Range<usize>, left: &dyn Fn(usize) -> f32, j: usize| {
            let count = tokens.len() as f64;
            tokens.map(|t| f64::from(left(t)) * f64::from(x[t * cols + j])).sum::<f64>() / count
        };
        for (i, j) in [(0, 0), (2, 4), (1, 3)] {
            let drift = |t: usize| x0[t * cols + i] - x[t * cols + i];
            let change = |t: usize, k: usize| w[i * cols + k] * (x0[t * cols + k] - x[t * cols + k]);
            let lacking =
                |t: usize| h0[t * hidden + i] - h[t * hidden + i] + (0..cols).map(|k| change(t, k)).sum::<f32>();
            let own = |t: usize| x[t * cols + i];
            assert!((learned.1[i * cols + j] - expected(0..450, &own, j)).abs() < 1e-5);
            assert!((learned.2[i * cols + j] - expected(0..450, &drift, j)).abs() < 1e-5);
            assert!((learned.3[i * cols + j] - expected(0..450, &lacking, j)).abs() < 1e-5);
            assert!((held.2[i * cols + j] - expected(450..600, &drift, j)).abs() < 1e-5);
        }
    }
}
