//! Quantizing by what a calibration text shows, block by block and within a block part by part: codes are chosen with what the
//! codes before them make of the text, so that they make up for it, and the text goes on through them. What is chosen is staged
//! in a file beside the output, as it will be stored, and copied when the plan is carried out.

mod matrices;
mod staged;
mod target;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use formats::Access;

use self::matrices::{Matrices, Matrix, Stage, asked, matrices};
use self::staged::{SoFar, Staged};
use self::target::Known;
use super::prune::refuse_non_finite;
use super::{Error, Result};
use crate::calibration::{self, Asked, Pair, PairGatherer, Sums, shared_input};
use crate::family::{Architecture, Transformer};
use crate::job::Job;
use crate::loader::{Checkpoint, Fetch, Scratch};
use crate::quantizer::least_squares::{self, Problem};
use crate::quantizer::{Band, Method, Numbers};
use crate::recipe::Plan;
use crate::runtime::{self, Activations, Goal, Model, Observer, Place, Unobserved, Walk};

/// Stage of progress.
const STAGE: &str = "calibrate";

/// Of so many windows one is held back, to judge by.
const HELD: usize = 8;

/// A checkpoint with the codes that were chosen, as far as a text reaches.
pub struct Quantized {
    /// It, over the staged file.
    pub checkpoint: Arc<Checkpoint>,
    /// What became of each matrix, in the order of the walk.
    pub chosen: Vec<Chosen>,
    /// Tokens of calibration text, and how many of them were held back.
    pub tokens: [usize; 2],
    /// Removes the staged file when it is dropped.
    _staged: Staged,
}

/// What became of a matrix.
#[derive(Debug, Clone, PartialEq)]
pub struct Chosen {
    /// Its name.
    pub name: String,
    /// Tokens that its input was learned from.
    pub tokens: u64,
    /// The share of the correction for errors before it that was taken.
    pub share: f64,
    /// How much less the squared error of its outputs on held-back tokens is than that of rounding to nearest, as a share of
    /// what rounding to nearest adds; `None` if no token was held back.
    pub gain: Option<f64>,
    /// Whether the codes of rounding to nearest were better on these, and taken.
    pub nearest: bool,
}

/// Chooses the codes of what the plan quantizes, as far as the text reaches; those steps become copies. The rest is left as the
/// plan has it, with a note.
///
/// # Errors
/// A text that does not serve, a model that cannot be run, a memory budget that is too small, an output that could not be
/// created, NaN or infinity in a matrix, an interruption. Nothing is left behind.
pub fn quantize(
    checkpoint: &Arc<Checkpoint>,
    plan: &mut Plan,
    method: Method,
    calibration: &calibration::Options,
    output: &Path,
    job: &Job,
) -> Result<Quantized> {
    let (windows, learned) = hold_back(calibration::windows(checkpoint, calibration)?);
    let tokens = windows.iter().map(Vec::len).sum();
    let t = match checkpoint.family().map(|family| &family.architecture) {
        Some(Architecture::Transformer(t)) => t,
        _ => return Err(runtime::Error::Family { expected: "a transformer" }.into()),
    };
    let matrices = matrices(checkpoint, plan, t);
    refuse_small_budget(plan, &matrices, t, job)?;
    let staged = Staged::create(plan, &matrices, output)?;
    // Read by offset: codes are seen as soon as they are written.
    let coded = staged.checkpoint(checkpoint, &matrices, Access::Read)?;
    let so_far = Arc::new(SoFar::new(checkpoint, &coded));
    let chooser = Chooser { checkpoint, plan, matrices: &matrices, method, staged: &staged, so_far, t, learned, job };
    let chosen = chooser.walk(&windows)?;
    let checkpoint = staged.checkpoint(checkpoint, &matrices, Access::Mapped)?;
    let first = checkpoint.weights().len() - matrices.coded.len();
    for (i, step) in plan.steps.iter_mut().enumerate() {
        if let Some(at) = matrices.steps.iter().position(|step| *step == i) {
            step.take(first + at, &checkpoint.weights()[first + at]);
        } else if step.form().is_some() {
            plan.notes.push(format!("{}: no text reaches it; stored without one", step.name));
        }
    }
    Ok(Quantized { checkpoint, chosen, tokens: [tokens, tokens - learned], _staged: staged })
}

/// The windows, those that are held back at the end; and how many tokens are before those.
fn hold_back(windows: Vec<Vec<u32>>) -> (Vec<Vec<u32>>, usize) {
    let count = windows.len();
    let step = HELD.min(count.max(2));
    let (mut learned, mut held) = (Vec::new(), Vec::new());
    for (i, window) in windows.into_iter().enumerate() {
        if i % step == step - 1 { held.push(window) } else { learned.push(window) }
    }
    let tokens = learned.iter().map(Vec::len).sum();
    learned.append(&mut held);
    (learned, tokens)
}

/// Bytes that choosing the codes of a matrix takes: sums over its inputs, what is derived from them, and copies of it.
fn needed(matrix: &Matrix, t: &Transformer) -> u64 {
    let (cols, rows) = (matrix.cols as u64, matrix.rows.end - matrix.rows.start);
    2 * Sums::bytes(matrix.cols, t.hidden, asked(matrix.place, t)) + 16 * cols * cols + 40 * rows * cols
}

fn refuse_small_budget(plan: &Plan, matrices: &Matrices, t: &Transformer, job: &Job) -> Result<()> {
    let all = matrices.stages.values().flatten().chain(&matrices.head);
    let most = all.map(|matrix| (needed(matrix, t), matrix)).max_by_key(|(needed, _)| *needed);
    match most {
        Some((needed, matrix)) if needed > job.memory => {
            Err(Error::Calibrating { tensor: plan.steps[matrix.step].name.clone(), needed, memory: job.memory })
        }
        _ => Ok(()),
    }
}

/// Chooses codes.
struct Chooser<'a> {
    checkpoint: &'a Arc<Checkpoint>,
    plan: &'a Plan,
    matrices: &'a Matrices,
    method: Method,
    staged: &'a Staged,
    so_far: Arc<SoFar>,
    t: &'a Transformer,
    /// Tokens that are learned from.
    learned: usize,
    job: &'a Job,
}

impl Chooser<'_> {
    fn walk(&self, windows: &[Vec<u32>]) -> Result<Vec<Chosen>> {
        let mut found = Vec::new();
        if let Some(embedding) = &self.matrices.embedding {
            self.choose(embedding, None, &mut found)?;
        }
        let original = runtime::load(self.checkpoint)?;
        let coded = Model::new(self.t.clone(), self.so_far.clone());
        let models = [&original, &coded];
        let mut walk = Walk::begin(&models, windows, self.job)?;
        // Each half of a block is entered twice by both models, and once more by the second.
        self.job.progress.begin(STAGE, (10 * self.t.layers * walk.tokens()) as u64);
        let walked = (0..self.t.layers)
            .try_for_each(|layer| self.block(&mut walk, layer, &mut found))
            .and_then(|()| self.head(&mut walk, &mut found));
        self.job.progress.end();
        walked.map(|()| found)
    }

    fn block(&self, walk: &mut Walk<'_>, layer: usize, found: &mut Vec<Chosen>) -> Result<()> {
        for stages in Stage::of(layer).chunks_exact(2) {
            let half = stages[0].half();
            let mut original_is_through = false;
            for &stage in stages {
                let passes = self.passes(self.matrices.stages.get(&stage).map_or(&[][..], Vec::as_slice));
                for (i, (wanted, matrices)) in passes.iter().enumerate() {
                    // The original need not wait for codes: in its last pass it goes through.
                    original_is_through = stage.goal() == Goal::Last && i + 1 == passes.len();
                    let first = if original_is_through { Goal::Through } else { stage.goal() };
                    let mut gatherer = self.gatherer(wanted.clone());
                    walk.half(layer, half, &[Some(first), Some(stage.goal())], &mut gatherer)?;
                    self.choose_all(matrices, gatherer.finish(), found)?;
                }
            }
            let original = (!original_is_through).then_some(Goal::Through);
            walk.half(layer, half, &[original, Some(Goal::Through)], &mut Unobserved)?;
        }
        Ok(())
    }

    /// The output projection, whose input is that of no block.
    fn head(&self, walk: &mut Walk<'_>, found: &mut Vec<Chosen>) -> Result<()> {
        let Some(head) = &self.matrices.head else { return Ok(()) };
        let place = head.place;
        let mut gatherer = self.gatherer(BTreeMap::from([(place, Asked::Drift)]));
        walk.outputs(|_, hidden| {
            for (model, hidden) in hidden.iter().enumerate() {
                gatherer.half_begins(model, hidden);
                gatherer.input(model, place, &Activations::new(hidden, self.t.hidden));
            }
        })?;
        self.choose_all(&[head], gatherer.finish(), found)
    }

    fn gatherer(&self, wanted: BTreeMap<Place, Asked>) -> PairGatherer {
        PairGatherer::new(wanted, self.learned, self.t.hidden, self.job.pool.clone())
    }

    /// Matrices whose inputs are gathered in one pass: as many as have room, those with one input together.
    fn passes<'m>(&self, matrices: &'m [Matrix]) -> Vec<(BTreeMap<Place, Asked>, Vec<&'m Matrix>)> {
        let mut passes: Vec<(BTreeMap<Place, Asked>, Vec<&Matrix>)> = Vec::new();
        let mut room = 0;
        for matrix in matrices {
            let place = shared_input(matrix.place);
            let bytes = needed(matrix, self.t);
            let known = passes.last().is_some_and(|(wanted, _)| wanted.contains_key(&place));
            if !known && (passes.is_empty() || bytes > room) {
                room = self.job.memory;
                passes.push((BTreeMap::new(), Vec::new()));
            }
            let Some((wanted, list)) = passes.last_mut() else { continue };
            if !known {
                room = room.saturating_sub(bytes);
                wanted.insert(place, asked(place, self.t));
            }
            list.push(matrix);
        }
        passes
    }

    /// Chooses the codes of matrices of which inputs are known.
    fn choose_all(
        &self,
        matrices: &[&Matrix],
        mut inputs: BTreeMap<Place, Pair>,
        found: &mut Vec<Chosen>,
    ) -> Result<()> {
        for alike in matrices.chunk_by(|a, b| shared_input(a.place) == shared_input(b.place)) {
            let pair = inputs.remove(&shared_input(alike[0].place));
            let known = pair.and_then(|pair| Known::new(pair, &self.job.pool));
            for matrix in alike {
                self.job.cancel.check()?;
                self.choose(matrix, known.as_ref(), found)?;
            }
        }
        Ok(())
    }

    /// Chooses the codes of a matrix and stages them. Nothing is known of the inputs of an expert that no token reached.
    fn choose(&self, matrix: &Matrix, known: Option<&Known>, found: &mut Vec<Chosen>) -> Result<()> {
        let (pool, step) = (&self.job.pool, &self.plan.steps[matrix.step]);
        let (cols, rows) = (matrix.cols, (matrix.rows.end - matrix.rows.start) as usize);
        let view = self.checkpoint.view(&step.pieces, Fetch::Bands)?;
        let mut w = vec![0f32; rows * cols];
        view.try_read(matrix.rows.start as usize, &mut w, &mut Scratch::default())?;
        refuse_non_finite(self.checkpoint, step.pieces[0].weight, cols, &w)?;
        let mut chosen =
            Chosen { name: matrix.name.clone(), tokens: 0, share: 0.0, gain: None, nearest: known.is_none() };
        let parts = match known {
            None => self.encode(matrix, &w, true),
            Some(known) => {
                chosen.tokens = known.tokens;
                let target = match self.method {
                    Method::Best => known.target(&w, pool),
                    _ => target::Target { weights: w.clone(), share: 0.0 },
                };
                chosen.share = target.share;
                let problem = Problem {
                    target: &target.weights,
                    rows,
                    cols,
                    dtype: step.input,
                    metric: &known.metric,
                    outputs: None,
                };
                let how = match self.method {
                    Method::Gptq => least_squares::Method::Gptq,
                    _ => least_squares::Method::Best,
                };
                let found = least_squares::solve(matrix.form, &problem, how, pool);
                self.judged(matrix, &w, known, found.parts, &mut chosen)
            }
        };
        self.staged.write(self.plan, matrix, &parts)?;
        self.so_far.choose(matrix.place);
        found.push(chosen);
        Ok(())
    }

    /// These codes, or those of rounding to nearest if they are better on tokens that were held back.
    fn judged(
        &self,
        matrix: &Matrix,
        w: &[f32],
        known: &Known,
        parts: Vec<Vec<u8>>,
        chosen: &mut Chosen,
    ) -> Vec<Vec<u8>> {
        let pool = &self.job.pool;
        let Some(judge) = known.judge(w, pool) else { return parts };
        let nearest = self.encode(matrix, w, false);
        let dtype = self.plan.steps[matrix.step].input;
        let loss = |parts: &[Vec<u8>]| {
            judge.loss(&least_squares::values(matrix.form, dtype, matrix.cols, parts, pool), w, pool)
        };
        let [ours, plain] = [loss(&parts), loss(&nearest)];
        chosen.gain = Some(plain - ours);
        chosen.nearest = self.method == Method::Best && ours > plain;
        if chosen.nearest { nearest } else { parts }
    }

    /// Codes that are found without inputs.
    fn encode(&self, matrix: &Matrix, w: &[f32], search: bool) -> Vec<Vec<u8>> {
        const BAND: usize = 64;
        let step = &self.plan.steps[matrix.step];
        let quantizer = matrix.form.quantizer(search);
        let rows = w.len() / matrix.cols;
        let bands = self.job.pool.map(rows.div_ceil(BAND), |band| {
            let lines = band * BAND..rows.min((band + 1) * BAND);
            let numbers = Numbers::F32(&w[lines.start * matrix.cols..lines.end * matrix.cols]);
            let bytes = |part: &crate::encoding::PartLayout| {
                let bytes = part.bytes_of(&(lines.start as u64..lines.end as u64));
                vec![0; (bytes.end - bytes.start) as usize]
            };
            let mut parts: Vec<Vec<u8>> = step.parts.iter().take(2).map(bytes).collect();
            let band = Band { numbers, first_row: lines.start as u64, cols: matrix.cols, dtype: step.input };
            quantizer.encode(band, &mut parts);
            parts
        });
        bands.into_iter().reduce(join).unwrap_or_default()
    }
}

/// The bytes of two bands, one after the other.
fn join(mut first: Vec<Vec<u8>>, second: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    first.iter_mut().zip(second).for_each(|(first, mut second)| first.append(&mut second));
    first
}
