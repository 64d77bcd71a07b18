//! Quantizing by what a calibration text shows, block by block and within a block part by part: codes are chosen with what the
//! codes before them make of the text, so that they make up for it, and the text goes on through them. What is chosen is staged
//! in a file beside the output, as it will be stored, and copied when the plan is carried out.

pub mod awq;
mod effort;
mod journal;
mod matrices;
mod plain;
mod staged;
mod target;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use formats::{Access, Dtype};
use serde::{Deserialize, Serialize};

use self::effort::Effort;
use self::matrices::{Matrices, Matrix, Stage, asked, matrices};
use self::plain::Plain;
use self::staged::{SoFar, Staged};
use self::target::{Judge, Known};
use super::prune::refuse_non_finite;
use super::{Error, Result};
use crate::calibration::fisher::{self, Fisher};
use crate::calibration::{self, Asked, Inputs, Pair, PairGatherer, Sums, Wanted, shared_input};
use crate::encoding::PartLayout;
use crate::family::{Architecture, Transformer};
use crate::job::Job;
use crate::loader::{Checkpoint, Fetch, Scratch};
use crate::quantizer::least_squares::{self, Form, Problem};
use crate::quantizer::{Band, Method, Numbers};
use crate::recipe::Plan;
use crate::runtime::{self, Activations, Goal, Model, Observer, Place, Unobserved, Walk};
use crate::threads::Pool;

/// Stage of progress.
const STAGE: &str = "calibrate";

/// Of so many windows one is held back, to judge by.
const HELD: usize = 8;

/// How codes are chosen.
#[derive(Debug, Clone)]
pub struct Options<'a> {
    /// By which method: [`Method::Gptq`] or [`Method::Best`].
    pub method: Method,
    /// By which text.
    pub text: &'a calibration::Options,
    /// Whether to go on from what an earlier run left, and to leave such.
    pub resume: bool,
    /// What of the best method is left out, to see what it gains.
    pub without: &'a [Step],
}

/// A step of the best method.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Making up for errors of inputs.
    Drift,
    /// Making up for errors of the residual stream.
    Residual,
    /// Weighing errors of outputs.
    Outputs,
    /// Quantizing embeddings by the metric of what is looked up.
    Embedding,
}

/// A checkpoint with the codes that were chosen, as far as a text reaches.
pub struct Quantized {
    /// It, over the staged file.
    pub checkpoint: Arc<Checkpoint>,
    /// What became of each matrix, in the order of the walk.
    pub chosen: Vec<Chosen>,
    /// Tokens of calibration text.
    pub tokens: usize,
    /// The windows of it that were held back.
    pub held: Vec<Vec<u32>>,
    /// The model rounded to nearest, as it would be without a text.
    pub plain: Model,
    /// Removes the staged file when it is dropped, unless a later run may go on from it.
    staged: Staged,
}

impl Quantized {
    /// The codes have been copied: what is staged is not needed again.
    pub fn finish(self) {
        self.staged.discard();
    }
}

/// What became of a matrix.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
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
    options: &Options<'_>,
    output: &Path,
    job: &Job,
) -> Result<Quantized> {
    let (windows, learned) = hold_back(calibration::windows(checkpoint, options.text)?);
    let method = options.method;
    let tokens: usize = windows.iter().map(Vec::len).sum();
    let t = transformer(checkpoint)?;
    let matrices = matrices(checkpoint, plan);
    refuse_small_budget(plan, &matrices, t, job)?;
    let effort = Effort::of(t, tokens);
    let work = if options.resume { Some(work(checkpoint, plan, options, effort, &windows)?) } else { None };
    let staged = Staged::create(plan, &matrices, output, work)?;
    // Read by offset: codes are seen as soon as they are written.
    let coded = staged.checkpoint(checkpoint, &matrices, Access::Read)?;
    let so_far = Arc::new(SoFar::new(checkpoint, &coded));
    let first_held = learned_windows(&windows, learned);
    let fisher = match effort.fisher.filter(|_| method == Method::Best) {
        Some(options) => Some(fisher::observe(checkpoint, &windows[..first_held], options, job)?),
        None => None,
    };
    let how = match method {
        Method::Gptq => least_squares::Method::Gptq,
        _ => least_squares::Method::Best(effort.codes),
    };
    let (original, matrices) = (runtime::load(checkpoint)?, &matrices);
    let chooser = Chooser {
        checkpoint,
        plan,
        matrices,
        options,
        how,
        fisher,
        staged: &staged,
        original,
        so_far,
        t,
        learned,
        job,
    };
    let chosen = chooser.walk(&windows)?;
    plan.notes.extend(effort.note().filter(|_| method == Method::Best));
    let plain = Model::new(t.clone(), Arc::new(Plain::new(checkpoint, plan, matrices, &job.pool)));
    let checkpoint = staged.checkpoint(checkpoint, matrices, Access::Mapped)?;
    let first = checkpoint.weights().len() - matrices.coded.len();
    for (i, step) in plan.steps.iter_mut().enumerate() {
        if let Some(at) = matrices.steps.iter().position(|step| *step == i) {
            step.take(first + at, &checkpoint.weights()[first + at]);
        } else if step.form().is_some() {
            plan.notes.push(format!("{}: no text reaches it; stored without one", step.name));
        }
    }
    let held = windows[first_held..].to_vec();
    Ok(Quantized { checkpoint, chosen, tokens, held, plain, staged })
}

/// The shape of a model that text can be led through.
fn transformer(checkpoint: &Checkpoint) -> Result<&Transformer> {
    match checkpoint.family().map(|family| &family.architecture) {
        Some(Architecture::Transformer(t)) => Ok(t),
        _ => Err(runtime::Error::Family { expected: "a transformer" }.into()),
    }
}

/// What tells this work from other work, by FNV-1a: the model, what becomes of each of its weights, how much is done, and the text.
fn work(
    checkpoint: &Checkpoint,
    plan: &Plan,
    options: &Options<'_>,
    effort: Effort,
    windows: &[Vec<u32>],
) -> Result<String> {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut add = |bytes: &[u8]| {
        for byte in bytes {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
        }
    };
    add(calibration::file::fingerprint(checkpoint)?.as_bytes());
    add(options.method.name().as_bytes());
    let metric = effort.fisher.map_or(0, |metric| metric.tokens as u64);
    add(&metric.to_le_bytes());
    add(&[effort.codes.sweeps as u8, u8::from(effort.codes.compared)]);
    options.without.iter().for_each(|step| add(&[*step as u8]));
    for step in &plan.steps {
        add(step.name.as_bytes());
        add(step.encoding.name().as_bytes());
        add(&[u8::from(step.pruning.is_some())]);
    }
    for window in windows {
        add(&(window.len() as u64).to_le_bytes());
        window.iter().for_each(|token| add(&token.to_le_bytes()));
    }
    Ok(format!("{hash:016x}"))
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

/// How many windows the first tokens fill.
fn learned_windows(windows: &[Vec<u32>], tokens: usize) -> usize {
    let ends = windows.iter().scan(0, |end, window| {
        *end += window.len();
        Some(*end)
    });
    ends.take_while(|end| *end <= tokens).count()
}

/// Bytes that choosing the codes of a matrix takes: sums over its inputs, what is derived from them, and copies of it.
fn needed(matrix: &Matrix, t: &Transformer) -> u64 {
    let bands = matrix.bands();
    let (cols, rows) = (matrix.cols as u64, bands[0].rows.end - bands[0].rows.start);
    let outputs = if matrix.is_banded() { 0 } else { 16 * rows * rows };
    2 * Sums::bytes(matrix.cols, t.hidden, asked(matrix.place, t)) + 16 * cols * cols + 40 * rows * cols + outputs
}

fn refuse_small_budget(plan: &Plan, matrices: &Matrices, t: &Transformer, job: &Job) -> Result<()> {
    let most = matrices.all().map(|matrix| (needed(matrix, t), matrix)).max_by_key(|(needed, _)| *needed);
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
    options: &'a Options<'a>,
    /// How codes are looked for.
    how: least_squares::Method,
    /// Which errors of outputs matter.
    fisher: Option<Fisher>,
    staged: &'a Staged,
    original: Model,
    so_far: Arc<SoFar>,
    t: &'a Transformer,
    /// Tokens that are learned from.
    learned: usize,
    job: &'a Job,
}

impl Chooser<'_> {
    fn walk(&self, windows: &[Vec<u32>]) -> Result<Vec<Chosen>> {
        let mut found = Vec::new();
        let embedding = self.matrices.embedding.as_ref();
        if let Some(embedding) = embedding.filter(|embedding| !self.was_done(embedding, &mut found)) {
            let known = self.embedding(windows)?;
            self.choose(embedding, known.as_ref(), &mut found)?;
            self.staged.settle(&[embedding], &found)?;
        }
        let coded = Model::new(self.t.clone(), self.so_far.clone());
        let models = [&self.original, &coded];
        let mut walk = Walk::begin(&models, windows, self.job)?;
        // Each half of a block is entered twice by both models, and once more by the second.
        self.job.progress.begin(STAGE, (10 * self.t.layers * walk.tokens()) as u64);
        let walked = (0..self.t.layers)
            .try_for_each(|layer| self.block(&mut walk, layer, &mut found))
            .and_then(|()| self.head(&mut walk, &mut found));
        self.job.progress.end();
        walked.map(|()| found)
    }

    /// By what errors of the embedding's rows are measured: what is looked up is its output, so that it is G of that; and where
    /// it is the output projection too, with H of its inputs there. Both are in nats for each time that a token is read or
    /// predicted, and the one happens about as often as the other.
    fn embedding(&self, windows: &[Vec<u32>]) -> Result<Option<Known>> {
        let fisher = self.fisher.as_ref().filter(|_| self.takes(Step::Embedding));
        let Some(mut metric) = fisher.map(Fisher::embedding).transpose()?.flatten() else {
            return Ok(None);
        };
        if self.t.tied && self.t.causal {
            let (models, learned) = ([&self.original], &windows[..learned_windows(windows, self.learned)]);
            let mut walk = Walk::begin(&models, learned, self.job)?;
            self.job.progress.begin(STAGE, (self.t.layers * walk.tokens()) as u64);
            let walked = (0..self.t.layers).try_for_each(|layer| walk.block(layer, &mut Unobserved));
            self.job.progress.end();
            walked?;
            let mut inputs = Inputs::new(self.t.hidden, Wanted::Products);
            walk.outputs(|_, hidden| inputs.add(hidden[0], &self.job.pool))?;
            let hessian = inputs.hessian(&self.job.pool).unwrap_or_default();
            metric.iter_mut().zip(&hessian).for_each(|(g, h)| *g += h);
        }
        Ok(Known::of_outputs(metric, self.t.hidden, self.learned as u64, &self.job.pool))
    }

    /// G of the outputs of a matrix in the order of its rows.
    fn outputs(&self, matrix: &Matrix) -> Result<Option<Vec<f64>>> {
        let Some(fisher) = self.fisher.as_ref().filter(|_| self.takes(Step::Outputs)) else { return Ok(None) };
        let Some(outputs) = fisher.outputs(matrix.place)?.filter(|_| !matrix.is_banded()) else {
            return Ok(None);
        };
        let rows = (matrix.rows.end - matrix.rows.start) as usize;
        let order = self.plan.steps[matrix.step].pieces[0].order;
        let at: Vec<usize> = (0..rows).map(|row| order.canonical(row, rows)).collect();
        Ok(Some((0..rows * rows).map(|n| outputs[at[n / rows] * rows + at[n % rows]]).collect()))
    }

    fn block(&self, walk: &mut Walk<'_>, layer: usize, found: &mut Vec<Chosen>) -> Result<()> {
        for stages in Stage::of(layer).chunks_exact(2) {
            let half = stages[0].half();
            let mut original_is_through = false;
            for &stage in stages {
                let all = self.matrices.stages.get(&stage).map_or(&[][..], Vec::as_slice);
                let left: Vec<&Matrix> = all.iter().filter(|matrix| !self.was_done(matrix, found)).collect();
                let passes = self.passes(&left);
                for (i, (wanted, matrices)) in passes.iter().enumerate() {
                    // The original need not wait for codes: in its last pass it goes through.
                    original_is_through = stage.goal() == Goal::Last && i + 1 == passes.len();
                    let first = if original_is_through { Goal::Through } else { stage.goal() };
                    let mut gatherer = self.gatherer(wanted.clone())?;
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
        if self.was_done(head, found) {
            return Ok(());
        }
        let place = head.place;
        let mut gatherer = self.gatherer(BTreeMap::from([(place, self.asked(place))]))?;
        walk.outputs(|_, hidden| {
            for (model, hidden) in hidden.iter().enumerate() {
                gatherer.half_begins(model, hidden);
                gatherer.input(model, place, &Activations::new(hidden, self.t.hidden));
            }
        })?;
        self.choose_all(&[head], gatherer.finish(), found)
    }

    /// Whether a step of the best method is taken.
    fn takes(&self, step: Step) -> bool {
        self.options.method == Method::Best && !self.options.without.contains(&step)
    }

    fn asked(&self, place: Place) -> Asked {
        match asked(place, self.t) {
            Asked::Residual if self.takes(Step::Residual) => Asked::Residual,
            Asked::Residual | Asked::Drift if self.takes(Step::Drift) => Asked::Drift,
            _ => Asked::Inputs,
        }
    }

    fn gatherer(&self, wanted: BTreeMap<Place, Asked>) -> Result<PairGatherer> {
        let residual = wanted.iter().filter(|(_, asked)| **asked == Asked::Residual);
        let matrix = |(&place, _)| {
            let cols = self.matrices.all().find(|matrix| matrix.place == place).map_or(0, |matrix| matrix.cols);
            Ok((place, self.original.linear(place, self.t.hidden, cols)?))
        };
        let matrices = residual.map(matrix).collect::<Result<_>>()?;
        Ok(PairGatherer::new(wanted, matrices, self.learned, self.t.hidden, self.job.pool.clone()))
    }

    /// Matrices whose inputs are gathered in one pass: as many as have room, those with one input together.
    fn passes<'m>(&self, matrices: &[&'m Matrix]) -> Vec<(BTreeMap<Place, Asked>, Vec<&'m Matrix>)> {
        let mut passes: Vec<(BTreeMap<Place, Asked>, Vec<&Matrix>)> = Vec::new();
        let mut room = 0;
        for &matrix in matrices {
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
                wanted.insert(place, self.asked(place));
            }
            list.push(matrix);
        }
        passes
    }

    /// Whether an earlier run chose the codes of a matrix; then they are taken up.
    fn was_done(&self, matrix: &Matrix, found: &mut Vec<Chosen>) -> bool {
        let Some(chosen) = self.staged.done(matrix) else { return false };
        self.so_far.choose(matrix.place);
        found.push(chosen);
        true
    }

    /// Chooses the codes of matrices of which inputs are known.
    fn choose_all(
        &self,
        matrices: &[&Matrix],
        mut inputs: BTreeMap<Place, Pair>,
        found: &mut Vec<Chosen>,
    ) -> Result<()> {
        let before = found.len();
        for alike in matrices.chunk_by(|a, b| shared_input(a.place) == shared_input(b.place)) {
            let pair = inputs.remove(&shared_input(alike[0].place));
            // The paper's.
            let damping = (self.options.method == Method::Gptq).then_some(0.01);
            let known = pair.and_then(|pair| Known::new(pair, damping, &self.job.pool));
            for matrix in alike {
                self.job.cancel.check()?;
                self.choose(matrix, known.as_ref(), found)?;
            }
        }
        self.staged.settle(matrices, &found[before..])
    }

    /// Chooses the codes of a matrix and stages them. Nothing is known of the inputs of an expert that no token reached.
    fn choose(&self, matrix: &Matrix, known: Option<&Known>, found: &mut Vec<Chosen>) -> Result<()> {
        let tokens = known.map_or(0, |known| known.tokens);
        let mut all = Chosen { name: matrix.name.clone(), tokens, share: 0.0, gain: None, nearest: true };
        let bands = matrix.bands();
        for band in &bands {
            self.job.cancel.check()?;
            let chosen = self.choose_band(band, known)?;
            all.share += chosen.share / bands.len() as f64;
            all.nearest &= chosen.nearest;
            all.gain = chosen.gain.map(|gain| gain + all.gain.unwrap_or(0.0));
        }
        self.so_far.choose(matrix.place);
        found.push(all);
        Ok(())
    }

    /// Chooses the codes of rows of a matrix.
    fn choose_band(&self, band: &Matrix, known: Option<&Known>) -> Result<Chosen> {
        let (pool, step) = (&self.job.pool, &self.plan.steps[band.step]);
        let (cols, rows) = (band.cols, (band.rows.end - band.rows.start) as usize);
        let view = self.checkpoint.view(&step.pieces, Fetch::Bands)?;
        let mut w = vec![0f32; rows * cols];
        view.try_read(band.rows.start as usize, &mut w, &mut Scratch::default())?;
        refuse_non_finite(self.checkpoint, step.pieces[0].weight, cols, &w)?;
        let mut chosen = Chosen { name: String::new(), tokens: 0, share: 0.0, gain: None, nearest: known.is_none() };
        let parts = match known {
            None => self.encode(band, &w, self.options.method.searches()),
            Some(known) => {
                let judge = known.judge(&w, pool);
                let target = known.target(&w, judge.as_ref(), pool);
                chosen.share = target.share;
                let outputs = self.outputs(band)?;
                let problem = Problem {
                    target: &target.weights,
                    rows,
                    cols,
                    dtype: step.input,
                    metric: &known.metric,
                    outputs: outputs.as_deref(),
                };
                let found = least_squares::solve(band.form, &problem, self.how, pool);
                self.judged(band, &w, judge.as_ref(), found.parts, &mut chosen)
            }
        };
        self.staged.write(self.plan, band, &parts)?;
        Ok(chosen)
    }

    /// These codes, or those of rounding to nearest if they are better on tokens that were held back.
    fn judged(
        &self,
        matrix: &Matrix,
        w: &[f32],
        judge: Option<&Judge<'_>>,
        parts: Vec<Vec<u8>>,
        chosen: &mut Chosen,
    ) -> Vec<Vec<u8>> {
        let pool = &self.job.pool;
        let Some(judge) = judge else { return parts };
        let nearest = self.encode(matrix, w, false);
        let dtype = self.plan.steps[matrix.step].input;
        let loss =
            |parts: &[Vec<u8>]| judge.loss(&least_squares::values(matrix.form, dtype, matrix.cols, parts, pool), pool);
        let [ours, plain] = [loss(&parts), loss(&nearest)];
        chosen.gain = Some(plain - ours);
        chosen.nearest = self.options.method == Method::Best && ours > plain;
        if chosen.nearest { nearest } else { parts }
    }

    /// Codes that are found without inputs.
    fn encode(&self, matrix: &Matrix, w: &[f32], search: bool) -> Vec<Vec<u8>> {
        let step = &self.plan.steps[matrix.step];
        encode(matrix.form, w, matrix.cols, step.input, &step.parts, search, &self.job.pool)
    }
}

/// Codes of W `[rows, cols]`, of this dtype, that are found without inputs: to nearest, or with a search of scales.
fn encode(
    form: Form,
    w: &[f32],
    cols: usize,
    dtype: Dtype,
    layouts: &[PartLayout],
    search: bool,
    pool: &Pool,
) -> Vec<Vec<u8>> {
    const BAND: usize = 64;
    let quantizer = form.quantizer(search);
    let rows = w.len() / cols;
    let bands = pool.map(rows.div_ceil(BAND), |band| {
        let lines = band * BAND..rows.min((band + 1) * BAND);
        let numbers = Numbers::F32(&w[lines.start * cols..lines.end * cols]);
        let bytes = |part: &PartLayout| {
            let bytes = part.bytes_of(&(lines.start as u64..lines.end as u64));
            vec![0; (bytes.end - bytes.start) as usize]
        };
        // The third part of packed integers is their shape.
        let mut parts: Vec<Vec<u8>> = layouts.iter().take(2).map(bytes).collect();
        quantizer.encode(Band { numbers, first_row: lines.start as u64, cols, dtype }, &mut parts);
        parts
    });
    bands.into_iter().reduce(join).unwrap_or_default()
}

/// The bytes of two bands, one after the other.
fn join(mut first: Vec<Vec<u8>>, second: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    first.iter_mut().zip(second).for_each(|(first, mut second)| first.append(&mut second));
    first
}
