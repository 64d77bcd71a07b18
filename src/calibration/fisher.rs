//! Which changes of a matrix's results matter: the output side of the metric in which a weight's rounding errors are measured.
//!
//! For a decoder the loss is that of labels that the model draws from its own predictions: with g the gradient with respect to
//! a matrix's result, G = E[g gᵀ] is that result's Fisher information, and the KL divergence that a small change E of the
//! matrix causes is about ½ tr(G E H Eᵀ) a token, H = E[x xᵀ] being that of its inputs (Martens and Grosse, 2015). For an
//! encoder it is half the squared change of the pooled embedding of length one, which is one minus the cosine: there g are
//! gradients in random directions.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use rand_distr::{Distribution, StandardNormal};

use super::Result;
use super::costs::Costs;
use super::inputs::{Inputs, Wanted};
use crate::family::{Slot, Transformer};
use crate::job::Job;
use crate::loader::{Checkpoint, Pooling};
use crate::runtime::embed::{normalise_gradient, pool, pool_gradient};
use crate::runtime::ops::softmax::softmax;
use crate::runtime::spill::Spill;
use crate::runtime::{self, Backward, GradientObserver, Model, Place};
use crate::threads::Pool;

/// Stage of progress.
const STAGE: &str = "output metric";

/// How closely one looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// The most tokens; windows are taken from all of the text.
    pub tokens: usize,
    /// Labels that are drawn for each position, or directions for each text.
    pub samples: usize,
    /// Which ones.
    pub seed: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { tokens: 16_384, samples: 2, seed: 0 }
    }
}

impl Options {
    /// The defaults, with fewer tokens where going back would take more than half of the multiplications that leading `tokens`
    /// tokens through two models and gathering them takes.
    pub fn affordable(t: &Transformer, tokens: usize) -> Self {
        let default = Self::default();
        let costs = Costs::of(t, default.samples);
        let most = tokens as f64 * (4.0 * costs.forward + costs.inputs) / (2.0 * costs.backward);
        Self { tokens: default.tokens.min(most as usize), ..default }
    }
}

/// What was seen of the gradients of a model's matrices, kept in a temporary file.
#[derive(Debug)]
pub struct Fisher {
    /// Lower triangles, row by row.
    numbers: Spill,
    places: BTreeMap<Place, Seen>,
    /// Gradients of each matrix that sees all tokens.
    rows: u64,
    /// Of each token, E[p (1 − p)] over predictions p of it.
    head: Vec<f64>,
}

#[derive(Debug, Clone)]
struct Seen {
    at: u64,
    rows: u64,
    diagonal: Vec<f64>,
}

impl Fisher {
    /// G = E[g gᵀ] `[out, out]` of the matrix at `place`, symmetric, over the tokens that the matrix sees; `None` if it saw none
    /// or gradients were not finite. Of [`Slot::TokenEmbedding`] it is that of the rows that are looked up. Heads have none.
    ///
    /// # Errors
    /// The temporary file cannot be read.
    pub fn outputs(&self, place: Place) -> Result<Option<Vec<f64>>> {
        let Some(seen) = self.places.get(&place) else { return Ok(None) };
        let n = seen.diagonal.len();
        let mut out = vec![0.0; n * n];
        let mut row = vec![0.0; n];
        let mut at = seen.at;
        for i in 0..n {
            let row = &mut row[..=i];
            self.numbers.read(at, row)?;
            at += row.len() as u64;
            for (j, x) in row.iter().enumerate() {
                out[i * n + j] = f64::from(*x);
                out[j * n + i] = f64::from(*x);
            }
        }
        Ok(Some(out))
    }

    /// The diagonal of what [`Fisher::outputs`] gives.
    pub fn diagonal(&self, place: Place) -> Option<&[f64]> {
        self.places.get(&place).map(|seen| &seen.diagonal[..])
    }

    /// The diagonal of the Fisher information of a decoder's logits; empty for an encoder.
    pub fn head(&self) -> &[f64] {
        &self.head
    }

    /// G of the token embedding's rows `[hidden, hidden]`.
    ///
    /// # Errors
    /// As [`Fisher::outputs`].
    pub fn embedding(&self) -> Result<Option<Vec<f64>>> {
        self.outputs(Place::new(Slot::TokenEmbedding, 0))
    }

    /// The share of tokens that the matrix sees: below 1 for experts.
    pub fn share(&self, place: Place) -> f64 {
        self.places.get(&place).map_or(0.0, |seen| seen.rows as f64 / self.rows.max(1) as f64)
    }
}

/// Leads windows of text through a model and gradients back: of labels drawn from its own predictions if it is a decoder, else
/// of random directions of the embeddings. Nothing depends on the number of threads or the memory budget.
///
/// # Errors
/// A model that cannot be run, no room for temporary files, an interruption.
pub fn observe(checkpoint: &Arc<Checkpoint>, windows: &[Vec<u32>], options: Options, job: &Job) -> Result<Fisher> {
    let model = runtime::load(checkpoint)?;
    let t = model.shape();
    let windows = spread(windows, options.tokens);
    let tokens: usize = windows.iter().map(Vec::len).sum();
    let passes = passes(t, job.memory / 2);
    job.progress.begin(STAGE, (tokens * (t.layers * (1 + passes.len()) + 1)) as u64);
    let pooling = checkpoint.companions().pooling.unwrap_or(Pooling::Mean);
    let found = all(&model, &windows, &passes, pooling, options, job);
    job.progress.end();
    found
}

fn all(
    model: &Model,
    windows: &[Vec<u32>],
    passes: &[BTreeSet<(Slot, Option<usize>)>],
    pooling: Pooling,
    options: Options,
    job: &Job,
) -> Result<Fisher> {
    let t = model.shape();
    let mut backward = Backward::begin(model, windows, options.samples, job)?;
    let draws = Draws(options);
    let mut head = vec![0.0; if t.causal { t.vocab } else { 0 }];
    if t.causal {
        backward.from_logits(|positions, logits, sample| {
            for (position, row) in positions.zip(logits.chunks_exact_mut(t.vocab)) {
                softmax(row);
                if sample == 0 {
                    head.iter_mut().zip(&*row).for_each(|(sum, p)| *sum += f64::from(*p) * (1.0 - f64::from(*p)));
                }
                let label = draws.label(position, sample, row);
                row[label] -= 1.0;
            }
        })?;
    } else {
        backward.from_outputs(|window, hidden, sample| {
            let mean = pool(hidden, t.hidden, pooling);
            let mut direction = draws.direction(window, sample, t.hidden);
            normalise_gradient(&mean, &mut direction);
            pool_gradient(hidden, &direction, pooling);
        })?;
    }
    let rows = (backward.tokens() * options.samples) as u64;
    head.iter_mut().for_each(|sum| *sum /= backward.tokens().max(1) as f64);
    let mut fisher = Fisher { numbers: Spill::new()?, places: BTreeMap::new(), rows, head };
    let mut end = 0;
    for layer in (0..t.layers).rev() {
        for (number, pass) in passes.iter().enumerate() {
            let mut gatherer = Gatherer { wanted: Some(pass), found: BTreeMap::new(), pool: &job.pool };
            backward.block(layer, number + 1 < passes.len(), &mut gatherer)?;
            gatherer.keep(&mut fisher, &mut end)?;
        }
    }
    let mut gatherer = Gatherer { wanted: None, found: BTreeMap::new(), pool: &job.pool };
    backward.embedding(&mut gatherer)?;
    gatherer.keep(&mut fisher, &mut end)?;
    Ok(fisher)
}

/// Adds up g gᵀ.
struct Gatherer<'a> {
    /// The matrices of a block that are looked at; all if absent.
    wanted: Option<&'a BTreeSet<(Slot, Option<usize>)>>,
    found: BTreeMap<Place, Inputs>,
    pool: &'a Pool,
}

impl GradientObserver for Gatherer<'_> {
    fn output(&mut self, place: Place, features: usize, gradient: &[f32]) {
        if self.wanted.is_none_or(|wanted| wanted.contains(&(place.slot, place.expert))) {
            let sums = self.found.entry(place).or_insert_with(|| Inputs::new(features, Wanted::Products));
            sums.add(gradient, self.pool);
        }
    }
}

impl Gatherer<'_> {
    /// Writes what was found behind `end`.
    fn keep(self, fisher: &mut Fisher, end: &mut u64) -> Result<()> {
        for (place, mut sums) in self.found {
            sums.add_pending(self.pool);
            let rows = sums.rows;
            if rows == 0 || !sums.squares().iter().all(|x| x.is_finite()) {
                continue;
            }
            let diagonal = sums.squares().iter().map(|sum| sum / rows as f64).collect();
            let seen = Seen { at: *end, rows, diagonal };
            for row in sums.triangle() {
                let row: Vec<f32> = row.iter().map(|sum| (sum / rows as f64) as f32).collect();
                fisher.numbers.write(*end, &row)?;
                *end += row.len() as u64;
            }
            fisher.places.insert(place, seen);
        }
        Ok(())
    }
}

/// Windows from all of a text, evenly, that have at most so many tokens: at least one.
fn spread(windows: &[Vec<u32>], tokens: usize) -> Vec<Vec<u32>> {
    let all: usize = windows.iter().map(Vec::len).sum();
    if all <= tokens {
        return windows.to_vec();
    }
    let mut chosen: Vec<Vec<u32>> = Vec::new();
    let (mut passed, mut taken) = (0usize, 0usize);
    for window in windows {
        // As large a share of what was passed is taken as of all.
        let due = taken as f64 <= passed as f64 * tokens as f64 / all as f64;
        if due && (taken + window.len() <= tokens || chosen.is_empty()) {
            taken += window.len();
            chosen.push(window.clone());
        }
        passed += window.len();
    }
    chosen
}

/// The matrices of a block, those together that are looked at in one pass through it: as many as have room.
fn passes(t: &Transformer, memory: u64) -> Vec<BTreeSet<(Slot, Option<usize>)>> {
    let (queries, keys) = (t.heads * t.head_dim, t.kv_heads * t.head_dim);
    let mut matrices = vec![
        ((Slot::AttnQ, None), queries),
        ((Slot::AttnK, None), keys),
        ((Slot::AttnV, None), keys),
        ((Slot::AttnOut, None), t.hidden),
    ];
    let experts = t.experts.map_or(vec![(None, t.intermediate)], |experts| {
        matrices.push(((Slot::Router, None), experts.count));
        (0..experts.count).map(|expert| (Some(expert), experts.intermediate)).collect()
    });
    for (expert, width) in experts {
        if t.gated {
            matrices.push(((Slot::FfnGate, expert), width));
        }
        matrices.push(((Slot::FfnUp, expert), width));
        matrices.push(((Slot::FfnDown, expert), t.hidden));
    }
    let mut passes: Vec<BTreeSet<_>> = Vec::new();
    let mut room = 0;
    for (matrix, features) in matrices {
        let bytes = Inputs::bytes(features, Wanted::Products);
        match passes.last_mut() {
            Some(pass) if bytes <= room => {
                room -= bytes;
                pass.insert(matrix);
            }
            _ => {
                room = memory.saturating_sub(bytes);
                passes.push([matrix].into());
            }
        }
    }
    passes
}

/// What is drawn, for each place of a text by itself, so that it does not matter in which order.
struct Draws(Options);

impl Draws {
    fn of(&self, place: usize, sample: usize) -> ChaCha8Rng {
        let mut random = ChaCha8Rng::seed_from_u64(self.0.seed);
        random.set_stream((place * self.0.samples + sample) as u64);
        random
    }

    /// A token, each as likely as `shares` says.
    fn label(&self, position: usize, sample: usize, shares: &[f32]) -> usize {
        // 53 random bits: a number from 0 to 1, 1 excluded.
        let number = (self.of(position, sample).next_u64() >> 11) as f64 / (1u64 << 53) as f64;
        let total: f64 = shares.iter().map(|share| f64::from(*share)).sum();
        let mut left = number * total;
        let chosen = shares.iter().position(|share| {
            left -= f64::from(*share);
            left < 0.0
        });
        chosen.unwrap_or(shares.len().saturating_sub(1))
    }

    /// Normal numbers.
    fn direction(&self, window: usize, sample: usize, len: usize) -> Vec<f32> {
        let mut random = self.of(window, sample);
        (0..len).map(|_| StandardNormal.sample(&mut random)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_come_from_all_of_the_text() {
        let windows: Vec<Vec<u32>> = (0..100).map(|i| vec![i; 10]).collect();
        assert_eq!(spread(&windows, 1000).len(), 100);
        let firsts: Vec<u32> = spread(&windows, 100).iter().map(|window| window[0]).collect();
        assert_eq!(firsts.len(), 10);
        assert!(firsts.windows(2).all(|pair| (5..=15).contains(&(pair[1] - pair[0]))), "{firsts:?}");
        assert_eq!(spread(&windows, 1).len(), 1);
    }

    #[test]
    fn labels_are_as_likely_as_the_model_says() {
        let draws = Draws(Options::default());
        let shares = [0.5, 0.0, 0.25, 0.25];
        let mut counts = [0; 4];
        (0..4000).for_each(|position| counts[draws.label(position, 1, &shares)] += 1);
        assert!(counts[1] == 0 && (1850..2150).contains(&counts[0]) && (880..1120).contains(&counts[3]), "{counts:?}");
    }

    /// Numbers as rows.
    struct Plain(Vec<f32>, usize);

    impl crate::encoding::Rows for Plain {
        fn rows(&self) -> usize {
            self.0.len() / self.1
        }

        fn cols(&self) -> usize {
            self.1
        }

        fn read(&self, first: usize, out: &mut [f32]) {
            out.copy_from_slice(&self.0[first * self.1..][..out.len()]);
        }
    }

    fn nano() -> (Arc<Checkpoint>, Vec<Vec<u32>>) {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/kjv-nano");
        let checkpoint = Arc::new(Checkpoint::open(&folder, &Default::default()).unwrap());
        let options = super::super::Options { text: folder.join("valid.txt"), tokens: 4096, context: Some(128) };
        let windows = super::super::windows(&checkpoint, &options).unwrap();
        (checkpoint, windows)
    }

    #[test]
    fn what_is_seen_does_not_depend_on_threads_or_the_memory_budget() {
        let (checkpoint, windows) = nano();
        let options = Options { tokens: 512, ..Options::default() };
        let of = |threads, memory| {
            let job = Job { memory, ..Job::new(threads) };
            let fisher = observe(&checkpoint, &windows, options, &job).unwrap();
            let places: Vec<Place> = fisher.places.keys().copied().collect();
            let all: Vec<Vec<f64>> = places.iter().map(|place| fisher.outputs(*place).unwrap().unwrap()).collect();
            (places, all)
        };
        let first = of(1, 1 << 30);
        assert!(first.0.contains(&Place::new(Slot::TokenEmbedding, 0)) && first.0.len() % 7 == 1);
        assert!(first == of(2, 1 << 30) && first == of(3, 1 << 20));
    }

    #[test]
    fn it_foretells_the_divergence_that_a_small_change_causes() {
        use crate::runtime::linear::from_rows;
        use crate::runtime::observer::Unobserved;
        use crate::runtime::walk;
        let (checkpoint, windows) = nano();
        let job = Job::new(2);
        let fisher = observe(&checkpoint, &windows, Options::default(), &job).unwrap();
        let model = runtime::load(&checkpoint).unwrap();
        let t = model.shape().clone();
        for (slot, rows, cols) in [
            (Slot::AttnV, t.kv_heads * t.head_dim, t.hidden),
            (Slot::AttnQ, t.heads * t.head_dim, t.hidden),
            (Slot::FfnDown, t.hidden, t.intermediate),
            (Slot::FfnGate, t.intermediate, t.hidden),
        ] {
            let place = Place::new(slot, 1);
            let wanted = [(super::super::shared_input(place), Wanted::Products)].into();
            let mut gatherer = super::super::Gatherer::new(wanted, job.pool.clone());
            walk::language(&[&model], &windows, &job, "", &mut gatherer, |_, _| {}).unwrap();
            let h = gatherer.finish().remove(&super::super::shared_input(place)).unwrap().hessian(&job.pool).unwrap();
            let g = fisher.outputs(place).unwrap().unwrap();
            // Rounding to steps of a fixed size.
            let linear = model.linear(place, rows, cols).unwrap();
            let mut w = vec![0.0f32; rows * cols];
            w.chunks_exact_mut(cols).enumerate().for_each(|(i, row)| linear.row(i, row));
            let step = 0.5 * (w.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / w.len() as f64).sqrt() as f32;
            let rounded: Vec<f32> = w.iter().map(|x| (x / step).round() * step).collect();
            let e: Vec<f64> = w.iter().zip(&rounded).map(|(w, r)| f64::from(*w) - f64::from(*r)).collect();
            let foretold: f64 = (0..rows)
                .flat_map(|i| (0..rows).map(move |j| (i, j)))
                .map(|(i, j)| {
                    let (a, b) = (&e[i * cols..][..cols], &e[j * cols..][..cols]);
                    let inner: f64 = (0..cols)
                        .map(|k| a[k] * h[k * cols..][..cols].iter().zip(b).map(|(h, b)| h * b).sum::<f64>())
                        .sum();
                    0.5 * g[i * rows + j] * inner
                })
                .sum();
            let mut other = runtime::load(&checkpoint).unwrap();
            let matrix = Arc::new(Plain(rounded, cols));
            other.overlay_mut().insert(place, from_rows(matrix));
            let (mut sum, mut count) = (0.0, 0.0);
            walk::language(&[&model, &other], &windows, &job, "", &mut Unobserved, |_, logits| {
                for (p, q) in logits[0].chunks_exact(t.vocab).zip(logits[1].chunks_exact(t.vocab)) {
                    let log_total = |row: &[f32]| row.iter().map(|x| f64::from(*x).exp()).sum::<f64>().ln();
                    let (p_total, q_total) = (log_total(p), log_total(q));
                    for (p, q) in p.iter().zip(q) {
                        let log_p = f64::from(*p) - p_total;
                        sum += log_p.exp() * (log_p - f64::from(*q) + q_total);
                    }
                    count += 1.0;
                }
            })
            .unwrap();
            let shown = sum / count;
            println!("{slot:?}: {shown:.6} shown, {foretold:.6} foretold");
            assert!((0.5..2.0).contains(&(foretold / shown)), "{slot:?}: {shown} shown, {foretold} foretold");
        }
    }
}
