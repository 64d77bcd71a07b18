//! Pruning by what a calibration text shows, block by block: a block's matrices are pruned with what the pruned blocks before
//! it make of the text, then the text goes on through the pruned block. What comes out is staged in a file beside the output,
//! in the weights' own dtypes, and takes their place when the plan is carried out.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::sync::Arc;

use formats::{Access, FilePlan, Shape, Sink, TensorMeta};

use super::Result;
use super::prune::{cuts_of, refuse_non_finite};
use crate::calibration::{Calibration, Gatherer, Inputs, Recorded, Structure, Wanted, Writer, shared_input};
use crate::encoding::plain;
use crate::family::{Part, Slot};
use crate::job::Job;
use crate::loader::{Checkpoint, Fetch, Piece, Scratch};
use crate::pruner::least_squares::{self, Moments, Problem};
use crate::pruner::{Cut, Mask, Method, Recovery, Refit, Scope, Sparsity, mask, sparsegpt};
use crate::recipe::Plan;
use crate::runtime::{self, Place, Walk};

/// Stage of progress.
const STAGE: &str = "calibrate";

/// A checkpoint whose matrices are pruned, as far as the plan wants them to be.
pub struct Calibrated {
    /// It, over the staged file.
    pub checkpoint: Arc<Checkpoint>,
    /// What became of each matrix, in the order of the walk.
    pub layers: Vec<Layer>,
    /// Tokens of calibration text.
    pub tokens: usize,
    /// Removes the staged file when it is dropped.
    _staged: Sink,
}

/// What became of a matrix.
#[derive(Debug, Clone, PartialEq)]
pub struct Layer {
    /// The weight's name; for one that holds several matrices, with the slot.
    pub name: String,
    /// ½ tr(E H Eᵀ) of what pruning changed, if the method knows H: half the mean squared error of the layer's outputs.
    pub loss: Option<f64>,
    /// What refitting made of it.
    pub refit: Option<Refit>,
}

/// What a text showed before matrices were looked at.
#[derive(Clone, Copy)]
pub struct Seen<'a> {
    /// The user's model, before parts of it were removed.
    pub original: &'a Checkpoint,
    /// How much its parts matter, if that was asked.
    pub structure: Option<&'a Structure>,
}

/// A matrix that is to be pruned: rows of a weight that serve one slot.
struct Matrix {
    place: Place,
    piece: Piece,
    sparsity: Sparsity,
    name: String,
}

/// Prunes what the plan asks to prune by a text, and refits it if `recovery` says so. The plan's masks are then decided: those
/// of matrices that the text does not reach by magnitude, with a note.
///
/// # Errors
/// A text that does not serve, a model that cannot be run, an output that could not be created, NaN or infinity in a
/// matrix, an interruption. Nothing is left behind.
pub fn calibrate(
    checkpoint: &Arc<Checkpoint>,
    plan: &mut Plan,
    recovery: Option<Recovery>,
    (calibration, seen): (&Calibration, Seen<'_>),
    output: &Path,
    job: &Job,
) -> Result<Calibrated> {
    let (windows, tokens) = calibration.windows(checkpoint)?;
    let mut wanted: BTreeMap<usize, Sparsity> = BTreeMap::new();
    for step in &plan.steps {
        if let Some(pruning) = step.pruning.as_ref().filter(|pruning| pruning.mask == Mask::Undecided) {
            wanted.extend(step.pieces.iter().map(|piece| (piece.weight, pruning.sparsity)));
        }
    }
    let (matrices, reached) = matrices(checkpoint, &wanted);
    let (staged, names) = stage(checkpoint, &reached, output, "pruning")?;
    let open = |access| formats::open(staged.staging(), access, &formats::Limits::default());
    // Read by offset: what is staged for a block is seen as soon as it is written.
    let pruned = Arc::new(checkpoint.with_weights(open(Access::Read)?, &names));
    let cuts = HashMap::new();
    let mut pruner = Pruner { checkpoint, names: &names, staged: &staged, recovery, job, cuts, record: None };
    if let Some(record) = &calibration.record {
        let inputs = pruner.inputs(&matrices);
        pruner.record = Some(Writer::create(record, seen.original, tokens, seen.structure, &inputs)?);
    }
    pruner.cut(plan, &wanted, &reached)?;
    let layers = pruner.walk(&pruned, &windows, calibration.recorded(), matrices)?;
    if let Some(record) = pruner.record.take() {
        record.publish()?;
    }
    let checkpoint = Arc::new(checkpoint.with_weights(open(Access::Mapped)?, &names));
    for step in &mut plan.steps {
        let Some(pruning) = step.pruning.as_mut().filter(|pruning| pruning.mask == Mask::Undecided) else { continue };
        if step.pieces.iter().all(|piece| reached.contains(&piece.weight)) {
            pruning.mask = Mask::Done;
        } else {
            pruning.sparsity.method = Method::Magnitude;
            plan.notes.push(format!("{}: no text reaches it; pruned by magnitude", step.name));
            if pruning.sparsity.scope == Scope::Row {
                pruning.mask = Mask::Rows(pruning.sparsity.pattern);
            }
        }
    }
    super::decide(&checkpoint, plan, job)?;
    Ok(Calibrated { checkpoint, layers, tokens, _staged: staged })
}

/// The matrices of the wanted weights that text flows through, by layer; and the weights that are made of such only.
fn matrices(
    checkpoint: &Checkpoint,
    wanted: &BTreeMap<usize, Sparsity>,
) -> (BTreeMap<usize, Vec<Matrix>>, BTreeSet<usize>) {
    let mut layers: BTreeMap<usize, Vec<Matrix>> = BTreeMap::new();
    let mut reached = BTreeSet::new();
    let serves = checkpoint.serves();
    for (&at, &sparsity) in wanted {
        let weight = &checkpoint.weights()[at];
        let slots: Vec<_> = serves[at].iter().filter(|((_, _, _, part), _)| *part == Part::Weight).collect();
        if slots.is_empty() || !slots.iter().all(|((slot, _, _, _), _)| watched(*slot)) {
            continue;
        }
        reached.insert(at);
        for &((slot, layer, expert, _), ref piece) in slots.iter().copied() {
            let name = match (slots.len(), expert) {
                (1, _) => weight.name.clone(),
                (_, None) => format!("{} ({slot:?})", weight.name),
                (_, Some(expert)) => format!("{} ({slot:?} {expert})", weight.name),
            };
            // Rows as they are stored.
            let piece = Piece { order: weight.order, shift: weight.shift, ..piece.clone() };
            let place = Place { slot, layer, expert };
            layers.entry(layer).or_default().push(Matrix { place, piece, sparsity, name });
        }
    }
    for matrices in layers.values_mut() {
        matrices.sort_by_key(|matrix| (shared_input(matrix.place), matrix.place));
    }
    (layers, reached)
}

/// Whether the walk tells what flows into matrices of this slot, block by block.
fn watched(slot: Slot) -> bool {
    use Slot::{AttnK, AttnOut, AttnQ, AttnV, FfnDown, FfnGate, FfnUp};
    matches!(slot, AttnQ | AttnK | AttnV | AttnOut | FfnGate | FfnUp | FfnDown)
}

/// A file beside the output, called by what is `doing`, with a place for each of these weights, in their own dtypes; and each
/// with the name of its tensor, in their order.
pub(super) fn stage(
    checkpoint: &Checkpoint,
    weights: &BTreeSet<usize>,
    output: &Path,
    doing: &str,
) -> Result<(Sink, Vec<(usize, String)>)> {
    let name = output.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let target = output.with_file_name(format!("{name}.{doing}"));
    let meta = |&at: &usize| {
        let weight = &checkpoint.weights()[at];
        let dtype = weight.float_dtype().unwrap_or(formats::Dtype::F32);
        TensorMeta::new(weight.name.clone(), dtype, weight.shape.clone())
    };
    let metas: Vec<TensorMeta> = weights.iter().map(meta).collect();
    let layout = formats::safetensors::layout(&target, &metas, &BTreeMap::new())?;
    let sink = Sink::create(&target, Shape::File, vec![FilePlan { name, layout }], 0, false)?;
    Ok((sink, weights.iter().zip(metas).map(|(at, meta)| (*at, meta.name)).collect()))
}

struct Pruner<'a> {
    checkpoint: &'a Arc<Checkpoint>,
    /// Staged weights, in the order of the staged tensors.
    names: &'a [(usize, String)],
    staged: &'a Sink,
    recovery: Option<Recovery>,
    job: &'a Job,
    /// Of weights that are pruned by size among more than their rows: where the cut lies.
    cuts: HashMap<usize, Cut>,
    /// Where sums over inputs are kept.
    record: Option<Writer>,
}

impl Pruner<'_> {
    /// Finds cuts, for weights that are pruned by magnitude and refitted.
    fn cut(&mut self, plan: &Plan, wanted: &BTreeMap<usize, Sparsity>, reached: &BTreeSet<usize>) -> Result<()> {
        let mut together: BTreeMap<(Option<usize>, usize), Vec<usize>> = BTreeMap::new();
        for step in &plan.steps {
            for piece in &step.pieces {
                let Some(sparsity) = wanted.get(&piece.weight).filter(|_| reached.contains(&piece.weight)) else {
                    continue;
                };
                if sparsity.method == Method::Magnitude && sparsity.scope != Scope::Row {
                    let alone = (sparsity.scope == Scope::Tensor).then_some(piece.weight);
                    let group = together.entry((alone, step.decision.rule.unwrap_or_default())).or_default();
                    if !group.contains(&piece.weight) {
                        group.push(piece.weight);
                    }
                }
            }
        }
        for weights in together.into_values() {
            let pieces: Vec<Piece> =
                weights.iter().map(|&at| Piece::whole(at, &self.checkpoint.weights()[at])).collect();
            let pattern = wanted[&weights[0]].pattern;
            let cuts = cuts_of(self.checkpoint, pieces.iter().map(std::slice::from_ref), pattern, self.job)?;
            self.cuts.extend(weights.into_iter().zip(cuts));
        }
        Ok(())
    }

    fn walk(
        &self,
        pruned: &Arc<Checkpoint>,
        windows: &[Vec<u32>],
        recorded: Option<&Recorded>,
        mut matrices: BTreeMap<usize, Vec<Matrix>>,
    ) -> Result<Vec<Layer>> {
        if let Some(recorded) = recorded {
            return self.again(recorded, matrices);
        }
        let (original, pruned) = (runtime::load(self.checkpoint)?, runtime::load(pruned)?);
        let models = [&pruned];
        let mut walk = Walk::begin(&models, windows, self.job)?;
        let mut found = Vec::new();
        let last = matrices.keys().next_back().copied().unwrap_or(0);
        self.job.progress.begin(STAGE, (2 * (last + 1) * walk.tokens()) as u64);
        let mut through = |walk: &mut Walk<'_>| -> Result<()> {
            for layer in 0..=last {
                let matrices = matrices.remove(&layer).unwrap_or_default();
                for (wanted, matrices) in self.passes(matrices) {
                    let mut gatherer = Gatherer::new(wanted, self.job.pool.clone());
                    walk.peek(&original, 0, layer, &mut gatherer)?;
                    self.block(&matrices, self.kept(&matrices, gatherer.finish())?, &mut found)?;
                }
                if layer < last {
                    walk.block(layer, &mut runtime::Unobserved)?;
                }
            }
            Ok(())
        };
        let result = through(&mut walk);
        self.job.progress.end();
        result.map(|()| found)
    }

    /// As [`Pruner::walk`], with what a text showed before.
    fn again(&self, recorded: &Recorded, matrices: BTreeMap<usize, Vec<Matrix>>) -> Result<Vec<Layer>> {
        let mut found = Vec::new();
        self.job.progress.begin(STAGE, matrices.values().map(Vec::len).sum::<usize>() as u64);
        let mut all = matrices.into_values().flat_map(|matrices| self.passes(matrices));
        let result = all.try_for_each(|(wanted, matrices)| {
            let mut inputs = BTreeMap::new();
            for matrix in &matrices {
                let place = shared_input(matrix.place);
                if !inputs.contains_key(&place)
                    && let Some(known) = recorded.inputs(place, self.cols(matrix), wanted[&place])?
                {
                    inputs.insert(place, known);
                }
            }
            self.job.progress.advance(matrices.len() as u64);
            self.block(&matrices, self.kept(&matrices, inputs)?, &mut found)
        });
        self.job.progress.end();
        result.map(|()| found)
    }

    /// The inputs of these matrices, which the record now has if there is one.
    fn kept(&self, matrices: &[Matrix], inputs: BTreeMap<Place, Inputs>) -> Result<BTreeMap<Place, Inputs>> {
        let Some(record) = &self.record else { return Ok(inputs) };
        for matrix in matrices {
            let place = shared_input(matrix.place);
            match inputs.get(&place) {
                Some(inputs) => record.write(place, inputs)?,
                // An expert that no token reached.
                None => record.write(place, &Inputs::new(self.cols(matrix), Wanted::Squares))?,
            }
        }
        Ok(inputs)
    }

    /// The inputs of all matrices: their features, and what has to be known of each.
    fn inputs(&self, matrices: &BTreeMap<usize, Vec<Matrix>>) -> BTreeMap<Place, (usize, Wanted)> {
        let mut all = BTreeMap::new();
        for matrix in matrices.values().flatten() {
            let wants = self.wants(matrix);
            let (_, most) = all.entry(shared_input(matrix.place)).or_insert((self.cols(matrix), wants));
            *most = wants.max(*most);
        }
        all
    }

    /// What has to be known of the inputs of these matrices.
    fn wants(&self, matrix: &Matrix) -> Wanted {
        match (matrix.sparsity.method, self.recovery) {
            (Method::Magnitude | Method::Wanda, None) => Wanted::Squares,
            _ => Wanted::Products,
        }
    }

    /// Matrices that are gathered for in one pass through the block: as many as have room, those with one input together.
    fn passes(&self, matrices: Vec<Matrix>) -> Vec<(BTreeMap<Place, Wanted>, Vec<Matrix>)> {
        let mut passes: Vec<(BTreeMap<Place, Wanted>, Vec<Matrix>)> = Vec::new();
        let mut room = 0;
        for matrix in matrices {
            let (place, wants) = (shared_input(matrix.place), self.wants(&matrix));
            let bytes = Inputs::bytes(self.cols(&matrix), wants);
            let known = passes.last().is_some_and(|(wanted, _)| wanted.get(&place).is_some_and(|has| *has >= wants));
            if !known && (passes.is_empty() || bytes > room) {
                room = (self.job.memory / 2).max(bytes);
                passes.push((BTreeMap::new(), Vec::new()));
            }
            let Some((wanted, list)) = passes.last_mut() else { continue };
            if !known {
                room -= bytes.min(room);
                let has = wanted.entry(place).or_insert(wants);
                *has = (*has).max(wants);
            }
            list.push(matrix);
        }
        passes
    }

    fn cols(&self, matrix: &Matrix) -> usize {
        let weight = &self.checkpoint.weights()[matrix.piece.weight];
        (if matrix.piece.transpose { weight.rows } else { weight.cols }) as usize
    }

    /// Prunes matrices of a block, those with one input together.
    fn block(&self, matrices: &[Matrix], mut inputs: BTreeMap<Place, Inputs>, found: &mut Vec<Layer>) -> Result<()> {
        for alike in matrices.chunk_by(|a, b| shared_input(a.place) == shared_input(b.place)) {
            let inputs = inputs.remove(&shared_input(alike[0].place));
            let norms = inputs.as_ref().map(Inputs::norms);
            let hessian = inputs.and_then(|inputs| inputs.hessian(&self.job.pool));
            let cols = self.cols(&alike[0]);
            let by_sparsegpt = alike.iter().any(|matrix| matrix.sparsity.method == Method::SparseGpt);
            let factor = hessian.as_ref().filter(|_| by_sparsegpt).and_then(|h| sparsegpt::Factor::new(h, cols));
            let moments = hessian.map(|hessian| Moments { hessian, products: Vec::new(), constant: 0.0, cols });
            let mut known = Known { norms, moments, factor };
            for matrix in alike {
                self.job.cancel.check()?;
                found.push(self.matrix(matrix, &mut known)?);
            }
        }
        Ok(())
    }

    /// Prunes a matrix and stages it.
    fn matrix(&self, matrix: &Matrix, known: &mut Known) -> Result<Layer> {
        let pool = &self.job.pool;
        let weight = &self.checkpoint.weights()[matrix.piece.weight];
        let view = self.checkpoint.view(std::slice::from_ref(&matrix.piece), Fetch::Bands)?;
        let cols = self.cols(matrix);
        let rows = (matrix.piece.rows.end - matrix.piece.rows.start) as usize;
        let mut w = vec![0f64; rows * cols];
        view.try_read(0, &mut w, &mut Scratch::default())?;
        refuse_non_finite(self.checkpoint, matrix.piece.weight, cols, &w)?;
        if let Some(moments) = &mut known.moments {
            moments.retarget(&w, pool);
        }
        let pattern = matrix.sparsity.pattern;
        match (matrix.sparsity.method, &known.factor) {
            (Method::SparseGpt, Some(factor)) => sparsegpt::prune(&mut w, factor, &matrix.sparsity, pool),
            // An expert that saw no text has no inputs to go by.
            (Method::SparseGpt, None) => mask::rows(&mut w, cols, pattern, None),
            (Method::Wanda, _) => mask::rows(&mut w, cols, pattern, known.norms.as_deref()),
            (Method::Magnitude, _) => match self.cuts.get(&matrix.piece.weight) {
                None => mask::rows(&mut w, cols, pattern, None),
                Some(cut) => w.iter_mut().enumerate().for_each(|(at, x)| {
                    let (row, col) = (matrix.piece.rows.start + (at / cols) as u64, (at % cols) as u64);
                    let place = if matrix.piece.transpose { col * weight.cols + row } else { row * weight.cols + col };
                    *x = if cut.removes(place, *x) { 0.0 } else { *x };
                }),
            },
        }
        let mut layer = Layer { name: matrix.name.clone(), loss: None, refit: None };
        if let Some(moments) = &known.moments {
            layer.loss = Some(Problem { moments, ridge: 0.0 }.loss(&w, pool).max(0.0));
            let refit =
                |Recovery { ridge, solver }| least_squares::refit(&Problem { moments, ridge }, &mut w, solver, pool);
            layer.refit = self.recovery.map(refit);
        }
        self.write(matrix, &w, rows, cols)?;
        Ok(layer)
    }

    fn write(&self, matrix: &Matrix, w: &[f64], rows: usize, cols: usize) -> Result<()> {
        let at = matrix.piece.weight;
        let weight = &self.checkpoint.weights()[at];
        let tensor = self.names.iter().position(|(weight, _)| *weight == at).unwrap_or_default();
        let dtype = weight.float_dtype().unwrap_or(formats::Dtype::F32);
        let width = dtype.block_bits() / 8;
        let first = matrix.piece.rows.start;
        if !matrix.piece.transpose {
            let mut bytes = vec![0; w.len() * width as usize];
            plain::encode(w, dtype, &mut bytes);
            return Ok(self.staged.write_at(0, tensor, first * weight.cols * width, &bytes)?);
        }
        let mut column = vec![0f64; rows];
        let mut bytes = vec![0; rows * width as usize];
        for j in 0..cols {
            column.iter_mut().enumerate().for_each(|(i, x)| *x = w[i * cols + j]);
            plain::encode(&column, dtype, &mut bytes);
            self.staged.write_at(0, tensor, (j as u64 * weight.cols + first) * width, &bytes)?;
        }
        Ok(())
    }
}

/// What is known of an input.
struct Known {
    norms: Option<Vec<f32>>,
    /// With the outputs of the matrix that is worked on for targets.
    moments: Option<Moments>,
    factor: Option<sparsegpt::Factor>,
}
