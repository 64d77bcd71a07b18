//! Scales of input features by AWQ (Lin et al., AWQ: Activation-aware Weight Quantization for LLM Compression and
//! Acceleration, 2023). The columns that meet the largest inputs of a text are made larger before they are rounded to nearest,
//! and what makes these inputs smaller by as much: the model computes the same, but for what rounding does. What is scaled is
//! staged in a file beside the output, in the weights' own dtypes, and takes their place when the plan is carried out.
//!
//! With x the inputs and s = mean|x|^ratio / √(max · min), the ratio is the one of the least tr(E H Eᵀ) over the matrices that
//! share the input, H = Σ x xᵀ / m and E = Q(W diag s) diag s⁻¹ − W. At ratio 0 nothing is scaled.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::sync::Arc;

use formats::{Access, Dtype, Limits, Sink};

use super::matrices::{Matrix, matrices};
use super::target::{narrow, product};
use super::{STAGE, encode, transformer};
use crate::calibration::{self, Gatherer, Inputs, Wanted};
use crate::encoding::plain::{self, Real};
use crate::family::{Norm, Part, Placement, Slot, Transformer};
use crate::job::Job;
use crate::loader::{Checkpoint, Fetch, Piece, Scratch, SlotKey};
use crate::pipeline::calibrate::stage;
use crate::pipeline::prune::refuse_non_finite;
use crate::pipeline::{Error, Result};
use crate::quantizer::least_squares::{self, dot};
use crate::recipe::Plan;
use crate::runtime::{self, Activations, Observer, Place, Unobserved, Walk};
use crate::threads::Pool;

/// Ratios that are tried: 0, 1/20, … 19/20.
const RATIOS: usize = 20;

/// The most rows of a matrix that are rounded to compare ratios: evenly spaced ones, since all share the scales.
const ROWS: usize = 1024;

/// Values that are scaled at a time.
const BAND: usize = 1 << 20;

/// A checkpoint that computes the same and loses less when it is rounded.
pub struct Scaled {
    /// It, over the staged file.
    pub checkpoint: Arc<Checkpoint>,
    /// What was found, in the order of the walk.
    pub scales: Vec<Scales>,
    /// Tokens of calibration text.
    pub tokens: usize,
    /// Removes the staged file when it is dropped. There is none if nothing was scaled.
    _staged: Option<Sink>,
}

/// What was found for matrices that share an input.
#[derive(Debug, Clone, PartialEq)]
pub struct Scales {
    /// Their names.
    pub matrices: Vec<String>,
    /// The power of mean|x| that their columns are multiplied by.
    pub ratio: f64,
    /// tr(E H Eᵀ), the mean squared error of their outputs, by rounding to nearest alone.
    pub nearest: f64,
    /// The same with the scales.
    pub loss: f64,
}

/// Scales a model for what a plan rounds to nearest. The plan's steps stay what they are, and are carried out over the scaled
/// checkpoint.
///
/// # Errors
/// A text that does not serve, a model that cannot be run, a memory budget that is too small, an output that could not be
/// created, NaN or infinity in a matrix, an interruption. Nothing is left behind.
pub fn scale(
    checkpoint: &Arc<Checkpoint>,
    plan: &mut Plan,
    text: &calibration::Options,
    output: &Path,
    job: &Job,
) -> Result<Scaled> {
    let windows = calibration::windows(checkpoint, text)?;
    let tokens = windows.iter().map(Vec::len).sum();
    let t = transformer(checkpoint)?;
    let matrices = matrices(checkpoint, plan);
    let rounded = matrices.all().map(|matrix| (matrix.place, matrix)).collect();
    let mut scaler = Scaler { checkpoint, plan, rounded, t, job, factors: BTreeMap::new() };
    let scales = scaler.walk(&windows)?;
    let factors = scaler.factors;
    if t.experts.is_some() {
        plan.notes.push("awq: experts share their input with the router; rounded to nearest without scales".to_owned());
    }
    if factors.is_empty() {
        return Ok(Scaled { checkpoint: checkpoint.clone(), scales, tokens, _staged: None });
    }
    let (staged, names) = stage(checkpoint, &factors.keys().copied().collect(), output, "scaling")?;
    let all: Vec<(&usize, &Factors)> = factors.iter().collect();
    let written = job.pool.map(all.len(), |tensor| {
        let (at, factors) = all[tensor];
        factors.carry_out(checkpoint, *at, &staged, tensor, job)
    });
    written.into_iter().collect::<Result<()>>()?;
    let source = formats::open(staged.staging(), Access::Mapped, &Limits::default())?;
    let checkpoint = Arc::new(checkpoint.with_weights(source, &names));
    Ok(Scaled { checkpoint, scales, tokens, _staged: Some(staged) })
}

/// Matrices that share an input, and what can make it smaller.
struct Group {
    /// What their input is known by.
    place: Place,
    producer: Producer,
    consumers: Vec<Slot>,
}

/// What an input comes from.
#[derive(Debug, Clone, Copy)]
enum Producer {
    /// A normalisation's gain and shift.
    Norm(Slot),
    /// Rows of a matrix, and its bias, in which the input is linear.
    Rows(Slot),
}

impl Group {
    /// The groups of a block. A router's choice would change with its input, which experts share; and heads that share values
    /// would have to share scales.
    fn of(t: &Transformer, layer: usize) -> Vec<Self> {
        use Slot::{AttnK, AttnNorm, AttnOut, AttnQ, AttnV, FfnDown, FfnGate, FfnNorm, FfnUp};
        let (before, dense) = (t.placement != Placement::Post, t.experts.is_none());
        let all = [
            (before, AttnQ, Producer::Norm(AttnNorm), vec![AttnQ, AttnK, AttnV]),
            (t.heads == t.kv_heads, AttnOut, Producer::Rows(AttnV), vec![AttnOut]),
            (before && dense && t.gated, FfnUp, Producer::Norm(FfnNorm), vec![FfnGate, FfnUp]),
            (before && dense && !t.gated, FfnUp, Producer::Norm(FfnNorm), vec![FfnUp]),
            (dense && t.gated, FfnDown, Producer::Rows(FfnUp), vec![FfnDown]),
        ];
        let there = all.into_iter().filter(|(possible, ..)| *possible);
        there
            .map(|(_, slot, producer, consumers)| Self { place: Place::new(slot, layer), producer, consumers })
            .collect()
    }

    fn consumers(&self) -> impl Iterator<Item = Place> {
        self.consumers.iter().map(|slot| Place::new(*slot, self.place.layer))
    }
}

/// A gain as it is stored, and what is added to it when it is read.
struct Gain {
    stored: Vec<f64>,
    dtype: Dtype,
    offset: f64,
}

struct Scaler<'a> {
    checkpoint: &'a Arc<Checkpoint>,
    plan: &'a Plan,
    /// What the plan rounds.
    rounded: HashMap<Place, &'a Matrix>,
    t: &'a Transformer,
    job: &'a Job,
    /// What becomes of weights.
    factors: BTreeMap<usize, Factors>,
}

impl Scaler<'_> {
    fn walk(&mut self, windows: &[Vec<u32>]) -> Result<Vec<Scales>> {
        let model = runtime::load(self.checkpoint)?;
        let serves = self.checkpoint.serves();
        let blocks = (0..self.t.layers).map(|layer| self.passes(layer, &serves)).collect::<Result<Vec<_>>>()?;
        let models = [&model];
        let job = self.job;
        let mut walk = Walk::begin(&models, windows, job)?;
        // Ratios of a group take about as long as text through a block.
        let work: usize =
            blocks.iter().map(|passes| passes.len().max(1) + passes.iter().map(Vec::len).sum::<usize>()).sum();
        job.progress.begin(STAGE, (work * walk.tokens()) as u64);
        let mut found = Vec::new();
        let mut through = || -> Result<()> {
            for (layer, passes) in blocks.iter().enumerate() {
                if passes.is_empty() {
                    walk.block(layer, &mut Unobserved)?;
                }
                for (i, groups) in passes.iter().enumerate() {
                    let mut seen = Seen::new(groups, job.pool.clone());
                    match i + 1 == passes.len() {
                        true => walk.block(layer, &mut seen)?,
                        false => walk.peek(&model, 0, layer, &mut seen)?,
                    }
                    let (mut inputs, mut sizes) = seen.finish();
                    for group in groups {
                        if let Some(seen) = inputs.remove(&group.place).zip(sizes.remove(&group.place)) {
                            found.push(self.choose(group, seen)?);
                        }
                        job.progress.advance(walk.tokens() as u64);
                    }
                }
            }
            Ok(())
        };
        let walked = through();
        job.progress.end();
        walked.map(|()| found)
    }

    /// The groups of a block, those together whose inputs are gathered in one pass: as many as have room.
    fn passes(&self, layer: usize, serves: &[Vec<(SlotKey, Piece)>]) -> Result<Vec<Vec<Group>>> {
        let mut passes: Vec<Vec<Group>> = Vec::new();
        let mut room = 0;
        for group in Group::of(self.t, layer).into_iter().filter(|group| self.is_possible(group, serves)) {
            let rounded = group.consumers().filter_map(|place| self.rounded.get(&place));
            let most = rounded.map(|matrix| (needed(matrix), *matrix)).max_by_key(|(needed, _)| *needed);
            let Some((needed, matrix)) = most else { continue };
            if needed > self.job.memory {
                let tensor = self.plan.steps[matrix.step].name.clone();
                return Err(Error::Calibrating { tensor, needed, memory: self.job.memory });
            }
            if passes.is_empty() || needed > room {
                room = self.job.memory;
                passes.push(Vec::new());
            }
            room -= needed;
            if let Some(pass) = passes.last_mut() {
                pass.push(group);
            }
        }
        Ok(passes)
    }

    /// Whether all that would be scaled is stored as floats, and serves nothing else.
    fn is_possible(&self, group: &Group, serves: &[Vec<(SlotKey, Piece)>]) -> bool {
        let layer = group.place.layer;
        let is_float = |slot: Slot| {
            let pieces = self.checkpoint.slot(slot, layer, None, Part::Weight);
            pieces.is_some_and(|pieces| self.checkpoint.weights()[pieces[0].weight].float_dtype().is_some())
        };
        let alone = |slot: Slot| {
            let pieces = self.checkpoint.slot(slot, layer, None, Part::Weight).unwrap_or_default();
            let mut served = pieces.iter().flat_map(|piece| &serves[piece.weight]);
            served.all(|((slot, at, expert, _), _)| group.consumers.contains(slot) && *at == layer && expert.is_none())
        };
        let (Producer::Norm(producer) | Producer::Rows(producer)) = group.producer;
        is_float(producer) && group.consumers.iter().all(|slot| is_float(*slot) && alone(*slot))
    }

    /// Chooses the ratio of a group by what was seen of its input: sums over it, and mean|x| of each feature.
    fn choose(&mut self, group: &Group, (inputs, sizes): (Inputs, Vec<f64>)) -> Result<Scales> {
        let pool = &self.job.pool;
        let sizes: Vec<f64> = sizes.iter().map(|sum| sum / inputs.rows.max(1) as f64).collect();
        let gain = match group.producer {
            Producer::Norm(slot) => Some(self.gain(Place { slot, ..group.place })?),
            Producer::Rows(_) => None,
        };
        let candidates: Vec<Vec<f64>> = (0..RATIOS)
            .map(|n| scales(&sizes, n as f64 / RATIOS as f64))
            .map(|scales| gain.as_ref().map_or(scales.clone(), |gain| gain.divisors(&scales)))
            .collect();
        let hessian = narrow(inputs.hessian(pool).unwrap_or_default());
        let mut losses = [0f64; RATIOS];
        let mut names = Vec::new();
        for matrix in group.consumers().filter_map(|place| self.rounded.get(&place)) {
            names.push(matrix.name.clone());
            let (w, share) = self.sample(matrix)?;
            for (loss, scales) in losses.iter_mut().zip(&candidates) {
                self.job.cancel.check()?;
                *loss += self.loss(matrix, &w, scales, &hessian) / share;
            }
        }
        // Of equal ones the least; what overflows the weights' dtype is none.
        let finite = (0..RATIOS).filter(|n| losses[*n].is_finite());
        let best = finite.min_by(|a, b| losses[*a].total_cmp(&losses[*b])).unwrap_or(0);
        if best > 0 {
            self.take(group, &candidates[best]);
        }
        let ratio = best as f64 / RATIOS as f64;
        Ok(Scales { matrices: names, ratio, nearest: losses[0], loss: losses[best] })
    }

    fn gain(&self, place: Place) -> Result<Gain> {
        let at = self.checkpoint.slot(place.slot, place.layer, None, Part::Weight).unwrap_or_default()[0].weight;
        let weight = &self.checkpoint.weights()[at];
        let view = self.checkpoint.view(&[Piece::stored(at, weight)], Fetch::Bands)?;
        let mut stored = vec![0f64; weight.elements() as usize];
        view.try_read(0, &mut stored, &mut Scratch::default())?;
        Ok(Gain { stored, dtype: weight.float_dtype().unwrap_or(Dtype::F32), offset: self.offset(weight.shift) })
    }

    /// What is added to a gain that is stored with `shift` added.
    fn offset(&self, shift: f32) -> f64 {
        match self.t.norm {
            Norm::Rms { offset, .. } => f64::from(offset - shift),
            Norm::Layer { .. } => f64::from(-shift),
        }
    }

    /// Rows of a matrix, as many as are looked at, and which share of all they are.
    fn sample(&self, matrix: &Matrix) -> Result<(Vec<f32>, f64)> {
        let step = &self.plan.steps[matrix.step];
        let (cols, rows) = (matrix.cols, (matrix.rows.end - matrix.rows.start) as usize);
        let view = self.checkpoint.view(&step.pieces, Fetch::Bands)?;
        let mut w = vec![0f32; rows * cols];
        view.try_read(matrix.rows.start as usize, &mut w, &mut Scratch::default())?;
        refuse_non_finite(self.checkpoint, step.pieces[0].weight, cols, &w)?;
        let taken = rows.min(ROWS);
        for row in 0..taken {
            let from = row * rows / taken;
            w.copy_within(from * cols..(from + 1) * cols, row * cols);
        }
        w.truncate(taken * cols);
        Ok((w, taken as f64 / rows.max(1) as f64))
    }

    /// tr(E H Eᵀ) of W `[rows, cols]`.
    fn loss(&self, matrix: &Matrix, w: &[f32], scales: &[f64], hessian: &[f32]) -> f64 {
        let (pool, step, cols) = (&self.job.pool, &self.plan.steps[matrix.step], matrix.cols);
        let scaled =
            |row: &[f32]| -> Vec<f32> { row.iter().zip(scales).map(|(w, s)| (f64::from(*w) * s) as f32).collect() };
        let mut scaled: Vec<f32> = w.chunks_exact(cols).flat_map(scaled).collect();
        round(&mut scaled, step.input);
        let codes = encode(matrix.form, &scaled, cols, step.input, &step.parts, false, pool);
        let mut errors = least_squares::values(matrix.form, step.input, cols, &codes, pool);
        for (errors, w) in errors.chunks_exact_mut(cols).zip(w.chunks_exact(cols)) {
            errors.iter_mut().zip(scales).zip(w).for_each(|((e, s), w)| *e = (f64::from(*e) / s) as f32 - w);
        }
        dot(&errors, &product(&errors, hessian, cols, pool))
    }

    /// Columns of a group's matrices are multiplied, and what makes their input is divided.
    fn take(&mut self, group: &Group, scales: &[f64]) {
        let inverse: Vec<f64> = scales.iter().map(|s| 1.0 / s).collect();
        let mut weights = BTreeSet::new();
        for Place { slot, layer, .. } in group.consumers() {
            for piece in self.checkpoint.slot(slot, layer, None, Part::Weight).unwrap_or_default() {
                // Fused ones share their columns.
                if weights.insert(piece.weight) {
                    let factors = self.factors_of(piece.weight, 0.0);
                    let columns = if piece.transpose { &mut factors.rows } else { &mut factors.cols };
                    columns.iter_mut().zip(scales).for_each(|(factor, s)| *factor *= s);
                }
            }
        }
        let (Producer::Norm(slot) | Producer::Rows(slot)) = group.producer;
        for part in [Part::Weight, Part::Bias] {
            for piece in self.checkpoint.slot(slot, group.place.layer, None, part).unwrap_or_default() {
                let order = self.checkpoint.weights()[piece.weight].order;
                let offset = match (group.producer, part) {
                    (Producer::Norm(_), Part::Weight) => self.offset(self.checkpoint.weights()[piece.weight].shift),
                    _ => 0.0,
                };
                let factors = self.factors_of(piece.weight, offset);
                let rows = if piece.transpose { &mut factors.cols } else { &mut factors.rows };
                for (row, s) in inverse.iter().enumerate() {
                    rows[piece.rows.start as usize + order.position(row, inverse.len())] *= s;
                }
            }
        }
    }

    fn factors_of(&mut self, at: usize, offset: f64) -> &mut Factors {
        let weight = &self.checkpoint.weights()[at];
        let ones = |n: u64| vec![1.0; n as usize];
        self.factors.entry(at).or_insert_with(|| Factors { offset, rows: ones(weight.rows), cols: ones(weight.cols) })
    }
}

/// Bytes that choosing the ratio of a matrix's input takes: sums over it, H and the error's product with it.
fn needed(matrix: &Matrix) -> u64 {
    let (cols, rows) = (matrix.cols as u64, matrix.rows.end - matrix.rows.start);
    Inputs::bytes(matrix.cols, Wanted::Products)
        + 4 * cols * (cols + rows + 5 * rows.min(ROWS as u64))
        + 8 * cols * RATIOS as u64
}

/// s of each feature, from its mean|x|.
fn scales(sizes: &[f64], ratio: f64) -> Vec<f64> {
    // The paper's programs': an input that is always zero has a scale too.
    const LEAST: f64 = 1e-4;
    let mut scales: Vec<f64> = sizes.iter().map(|size| size.powf(ratio).max(LEAST)).collect();
    let (least, most) = scales.iter().fold((f64::MAX, 0f64), |(least, most), s| (least.min(*s), most.max(*s)));
    let middle = (least * most).sqrt();
    scales.iter_mut().for_each(|s| *s /= middle);
    scales
}

/// Rounds numbers to a dtype.
fn round<T: Real>(numbers: &mut [T], dtype: Dtype) {
    if dtype == Dtype::F64 || dtype == Dtype::F32 && size_of::<T>() == 4 {
        return;
    }
    let mut bytes = vec![0; numbers.len() * (dtype.block_bits() / 8) as usize];
    plain::encode(numbers, dtype, &mut bytes);
    T::decode(dtype, &bytes, numbers);
}

impl Gain {
    /// What the gain is divided by if it is divided by scales and stored again in its own dtype, so that columns can be
    /// multiplied by no more and no less than that.
    fn divisors(&self, scales: &[f64]) -> Vec<f64> {
        let gain = |stored: &f64| stored + self.offset;
        let mut divided: Vec<f64> =
            self.stored.iter().zip(scales).map(|(stored, s)| gain(stored) / s - self.offset).collect();
        round(&mut divided, self.dtype);
        let divisor = |((before, after), s): ((&f64, &f64), &f64)| match gain(before) / gain(after) {
            _ if gain(before) == 0.0 => *s,
            divisor if divisor.is_finite() && divisor > 0.0 => divisor,
            _ => 1.0,
        };
        self.stored.iter().zip(&divided).zip(scales).map(divisor).collect()
    }
}

/// What stored numbers are multiplied by: x becomes (x + offset) · row · column − offset.
struct Factors {
    offset: f64,
    rows: Vec<f64>,
    cols: Vec<f64>,
}

impl Factors {
    /// Stages a weight.
    fn carry_out(&self, checkpoint: &Checkpoint, at: usize, staged: &Sink, tensor: usize, job: &Job) -> Result<()> {
        let weight = &checkpoint.weights()[at];
        let view = checkpoint.view(&[Piece::stored(at, weight)], Fetch::Bands)?;
        let dtype = weight.float_dtype().unwrap_or(Dtype::F32);
        let (cols, width) = (self.cols.len(), (dtype.block_bits() / 8) as usize);
        let step = (BAND / cols.max(1)).max(1);
        let mut scratch = Scratch::default();
        for (band, rows) in self.rows.chunks(step).enumerate() {
            job.cancel.check()?;
            let mut numbers = vec![0f64; rows.len() * cols];
            view.try_read(band * step, &mut numbers, &mut scratch)?;
            for (numbers, row) in numbers.chunks_exact_mut(cols.max(1)).zip(rows) {
                numbers
                    .iter_mut()
                    .zip(&self.cols)
                    .for_each(|(x, column)| *x = (*x + self.offset) * row * column - self.offset);
            }
            let mut bytes = vec![0; numbers.len() * width];
            plain::encode(&numbers, dtype, &mut bytes);
            staged.write_at(0, tensor, (band * step * cols * width) as u64, &bytes)?;
        }
        Ok(())
    }
}

/// Watches a walk for H and Σ|x| of some inputs.
struct Seen {
    inputs: Gatherer,
    sizes: BTreeMap<Place, Vec<f64>>,
    pool: Arc<Pool>,
}

impl Seen {
    fn new(groups: &[Group], pool: Arc<Pool>) -> Self {
        let wanted = groups.iter().map(|group| (group.place, Wanted::Products)).collect();
        let sizes = groups.iter().map(|group| (group.place, Vec::new())).collect();
        Self { inputs: Gatherer::new(wanted, pool.clone()), sizes, pool }
    }

    fn finish(self) -> (BTreeMap<Place, Inputs>, BTreeMap<Place, Vec<f64>>) {
        (self.inputs.finish(), self.sizes)
    }
}

impl Observer for Seen {
    fn input(&mut self, model: usize, place: Place, x: &Activations<'_>) {
        // Features of a piece of work: a row's cache lines are one thread's.
        const FEATURES: usize = 256;
        if let Some(sums) = self.sizes.get_mut(&place) {
            sums.resize(x.cols(), 0.0);
            self.pool.for_each_chunk(sums, FEATURES, |piece, sums| {
                for row in x.f32().chunks_exact(x.cols()) {
                    let row = &row[piece * FEATURES..][..sums.len()];
                    sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += f64::from(x.abs()));
                }
            });
        }
        self.inputs.input(model, place, x);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_are_powers_of_sizes_about_one() {
        let sizes = [4.0, 1.0, 0.25, 0.0];
        assert_eq!(scales(&sizes, 0.0), [1.0; 4]);
        let half = scales(&sizes[..3], 0.5);
        assert!(half.iter().zip([2.0, 1.0, 0.5]).all(|(s, expected)| (s - expected).abs() < 1e-12), "{half:?}");
        assert!(scales(&sizes, 0.95).iter().all(|s| s.is_finite() && *s > 0.0), "of what is always zero too");
    }

    #[test]
    fn a_gain_times_its_divisor_is_what_it_was_in_any_dtype() {
        let scales = [0.3, 1.7, 12.0, 0.01, 1.0];
        for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16] {
            for offset in [0.0, 1.0] {
                let mut stored = vec![0.7, -0.2, 3.1, 0.0, 0.5];
                round(&mut stored, dtype);
                let gain = Gain { stored, dtype, offset };
                let divisors = gain.divisors(&scales);
                for (stored, divisor) in gain.stored.iter().zip(&divisors) {
                    let exact = (stored + offset) / divisor - offset;
                    let mut rounded = [exact];
                    round(&mut rounded, dtype);
                    assert!((rounded[0] - exact).abs() < 1e-12, "{dtype} {offset}: {exact} is a number of it");
                }
                assert!(divisors.iter().zip(&scales).all(|(d, s)| (d / s - 1.0).abs() < 0.02), "{divisors:?}");
                assert_eq!(gain.divisors(&[1.0; 5]), [1.0; 5]);
            }
        }
    }
}
