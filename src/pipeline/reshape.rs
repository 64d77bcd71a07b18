//! Removing whole layers, heads and neurons. What is left is a smaller model of the same family, staged in a file beside the
//! output in the weights' own dtypes; it takes the input's place in everything that follows.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use formats::{Access, Dtype, FilePlan, Shape, Sink, TensorMeta};

use super::{Error, Result};
use crate::calibration::{Calibration, Structure, structure};
use crate::encoding::{Rows, plain};
use crate::family::reshape::{Block, Remains, columns, config, neurons, rows};
use crate::family::table::Expected;
use crate::family::{Architecture, Family, Part, Slot, Transformer};
use crate::job::Job;
use crate::loader::{Checkpoint, Fetch, Scratch};
use crate::pruner::parts::{Layers, Parts, largest};
use crate::recipe::{Tensor, tensors};
use crate::runtime::Place;

/// Stage of progress.
const STAGE: &str = "reshape";

/// Values that are moved at a time.
const BAND: usize = 1 << 20;

/// A model without some of its parts.
pub struct Reshaped {
    /// It, over the staged file.
    pub checkpoint: Arc<Checkpoint>,
    /// What is left of the original.
    pub remains: Remains,
    /// How much the original's parts matter, if a text was asked.
    pub structure: Option<Structure>,
    /// Tokens of calibration text.
    pub tokens: usize,
    /// Names of tensors that belong to no model of the family, and were left out.
    pub left_out: Vec<String>,
    /// Removes the staged file when it is dropped.
    _staged: Sink,
}

/// Where the choice of parts comes from.
#[derive(Debug, Clone, Copy)]
pub enum Choice<'a> {
    /// A text, or nothing if the parts are named.
    By(Option<&'a Calibration>),
    /// Any parts will do and no number is moved: only sizes matter.
    Sizes,
}

/// Removes parts of a model.
///
/// # Errors
/// Parts that the model does not have, a text that does not serve, an output that could not be created, an interruption.
/// Nothing is left behind.
pub fn reshape(
    checkpoint: &Arc<Checkpoint>,
    parts: &Parts,
    choice: Choice<'_>,
    output: &Path,
    job: &Job,
) -> Result<Reshaped> {
    let refuse = |why: String| Error::Parts { file: checkpoint.path().to_owned(), why };
    if let Some(form) = checkpoint.quantized() {
        return Err(refuse(format!("it is already quantized ({form}); expected floating-point weights")));
    }
    let Some(family) = checkpoint.family() else {
        return Err(refuse(checkpoint.no_family().unwrap_or("its family is not known").to_owned()));
    };
    let Architecture::Transformer(t) = &family.architecture else {
        return Err(refuse("a chain of linear layers has neither layers, heads nor neurons to remove".to_owned()));
    };
    let Some(original) = checkpoint.config() else { return Err(refuse("there is no config.json".to_owned())) };
    let counts = Counts::of(parts, t).map_err(refuse)?;
    let (structure, tokens) = match choice {
        Choice::By(Some(calibration)) if parts.need_text() => {
            let (windows, tokens) = calibration.windows(checkpoint)?;
            let seen = match calibration.recorded() {
                Some(recorded) => recorded.structure(&structure::places(t), t.layers)?,
                None => structure::observe(checkpoint, t, &windows, job)?,
            };
            (Some(seen), tokens)
        }
        Choice::By(None) if parts.need_text() => {
            return Err(refuse("which parts matter least is found with a text; give one with --calibrate".to_owned()));
        }
        Choice::By(_) | Choice::Sizes => (None, 0),
    };
    let scores = structure.as_ref().map(|seen| Scores::of(checkpoint, t, seen)).transpose()?;
    let remains = remains(parts, &counts, t, scores.as_ref());
    let (config, left) = config(family, original, &remains).map_err(refuse)?;
    let (moves, left_out) = moves(checkpoint, family, &left, &remains, t)?;
    let metas = moves.iter().map(|part| part.meta.clone()).collect::<Vec<_>>();
    let name = output.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let target = output.with_file_name(format!("{name}.reshaping"));
    let layout = formats::safetensors::layout(&target, &metas, &BTreeMap::new())?;
    let staged = Sink::create(&target, Shape::File, vec![FilePlan { name, layout }], 0, false)?;
    if !matches!(choice, Choice::Sizes) {
        let values = moves.iter().map(|part| part.values()).sum();
        job.progress.begin(STAGE, values);
        let moved = moves.iter().enumerate().try_for_each(|(at, part)| part.carry_out(checkpoint, &staged, at, job));
        job.progress.end();
        moved?;
    }
    let source = formats::open(staged.staging(), Access::Mapped, &formats::Limits::default())?;
    let checkpoint = Arc::new(checkpoint.reshaped(source, config)?);
    Ok(Reshaped { checkpoint, remains, structure, tokens, left_out, _staged: staged })
}

/// How many of each part stay.
struct Counts {
    layers: usize,
    groups: usize,
    neurons: usize,
}

impl Counts {
    fn of(parts: &Parts, t: &Transformer) -> Result<Self, String> {
        let removed = match &parts.layers {
            None => 0,
            Some(Layers::Least(count)) => *count,
            Some(Layers::Named(named)) => {
                if let Some(missing) = named.iter().find(|layer| **layer >= t.layers) {
                    return Err(format!(
                        "--prune-layers: there is no layer {missing}; its {} are numbered from 0",
                        t.layers
                    ));
                }
                named.len()
            }
        };
        if removed >= t.layers {
            return Err(format!("--prune-layers: {removed} of {} layers leaves none", t.layers));
        }
        let groups = match parts.heads {
            None => 0,
            Some(share) => {
                let whole = share.of(t.kv_heads as u64) as usize;
                if (share.to_f64() * t.kv_heads as f64 - whole as f64).abs() > 1e-6 {
                    let possible: Vec<String> =
                        (1..t.kv_heads).map(|n| format!("{}", n as f64 / t.kv_heads as f64)).take(16).collect();
                    return Err(format!(
                        "--prune-heads {}: {} heads in {} groups that share keys and values do not divide so; {}",
                        share.to_f64(),
                        t.heads,
                        t.kv_heads,
                        if possible.is_empty() {
                            "one group has no part that could go".to_owned()
                        } else {
                            format!("expected one of {}", possible.join(", "))
                        }
                    ));
                }
                whole
            }
        };
        let width = neurons(t).1;
        let gone = parts.neurons.map_or(0, |share| share.of(width as u64) as usize);
        if groups >= t.kv_heads {
            return Err(format!("--prune-heads: nothing is left of {} heads", t.heads));
        }
        if gone >= width {
            return Err(format!("--prune-neurons: nothing is left of {width} neurons"));
        }
        Ok(Self { layers: t.layers - removed, groups: t.kv_heads - groups, neurons: width - gone })
    }
}

/// How much each part matters.
struct Scores {
    influence: Vec<f64>,
    /// Of each layer's groups of heads.
    groups: Vec<Vec<f64>>,
    /// Of each layer's and expert's neurons.
    neurons: Vec<Vec<Vec<f64>>>,
}

impl Scores {
    /// What a feature gives to the sum that follows: ‖x‖₂ ‖w‖₂, w its column of the matrix that it goes into; of a head the
    /// root of the squares' sum. Where no text came by, as to some experts, ‖w‖₂ alone.
    fn of(checkpoint: &Checkpoint, t: &Transformer, seen: &Structure) -> Result<Self> {
        let squares = |place: Place| -> Result<Vec<f64>> {
            let mut sums = squared_columns(checkpoint, place)?;
            if let Some(inputs) = seen.inputs.get(&place) {
                sums.iter_mut().zip(inputs.norms()).for_each(|(sum, x)| *sum *= f64::from(x) * f64::from(x));
            }
            Ok(sums)
        };
        let (mut groups, mut all) = (Vec::new(), Vec::new());
        for layer in 0..t.layers {
            let heads = squares(Place::new(Slot::AttnOut, layer))?;
            groups.push(heads.chunks(t.heads / t.kv_heads * t.head_dim).map(|part| part.iter().sum()).collect());
            let experts = (0..neurons(t).0).map(|expert| {
                squares(Place { slot: Slot::FfnDown, layer, expert: t.experts.is_some().then_some(expert) })
            });
            all.push(experts.collect::<Result<_>>()?);
        }
        Ok(Self { influence: seen.influence.clone(), groups, neurons: all })
    }
}

/// Σ w² of each column of a matrix.
fn squared_columns(checkpoint: &Checkpoint, place: Place) -> Result<Vec<f64>> {
    let pieces = checkpoint.slot(place.slot, place.layer, place.expert, Part::Weight).unwrap_or_default();
    let view = checkpoint.view(pieces, Fetch::Bands)?;
    let (rows, cols) = (view.rows(), view.cols());
    let step = (BAND / cols.max(1)).max(1);
    let (mut sums, mut scratch) = (vec![0f64; cols], Scratch::default());
    for first in (0..rows).step_by(step) {
        let mut band = vec![0f32; step.min(rows - first) * cols];
        view.try_read(first, &mut band, &mut scratch)?;
        for row in band.chunks_exact(cols) {
            sums.iter_mut().zip(row).for_each(|(sum, w)| *sum += f64::from(*w) * f64::from(*w));
        }
    }
    Ok(sums)
}

fn remains(parts: &Parts, counts: &Counts, t: &Transformer, scores: Option<&Scores>) -> Remains {
    let mut remains = Remains::all(t);
    match (&parts.layers, scores) {
        (Some(Layers::Named(named)), _) => remains.blocks.retain(|block| !named.contains(&block.layer)),
        (Some(Layers::Least(_)), Some(scores)) => {
            let kept = largest(&scores.influence, counts.layers);
            remains.blocks.retain(|block| kept.contains(&(block.layer as u32)));
        }
        (Some(Layers::Least(_)), None) => remains.blocks.truncate(counts.layers),
        (None, _) => {}
    }
    for block in &mut remains.blocks {
        match scores {
            None => {
                block.groups.truncate(counts.groups);
                block.neurons.iter_mut().for_each(|neurons| neurons.truncate(counts.neurons));
            }
            Some(scores) => {
                block.groups = largest(&scores.groups[block.layer], counts.groups);
                let all = scores.neurons[block.layer].iter();
                block.neurons = all.map(|scores| largest(scores, counts.neurons)).collect();
            }
        }
    }
    remains
}

/// A tensor of the smaller model: which rows and columns of which of the original's tensors it is made of, as they are stored.
struct Move {
    meta: TensorMeta,
    from: Tensor,
    /// Rows, and which selection of columns each takes.
    rows: Vec<(u32, usize)>,
    /// Selections of columns; `None` for all.
    columns: Vec<Option<Vec<u32>>>,
}

impl Move {
    fn values(&self) -> u64 {
        self.meta.shape.iter().product()
    }

    fn carry_out(&self, checkpoint: &Checkpoint, staged: &Sink, at: usize, job: &Job) -> Result<()> {
        let view = checkpoint.view(&self.from.pieces, Fetch::Bands)?;
        let cols = self.from.cols as usize;
        let width = (self.meta.dtype.block_bits() / 8) as usize;
        let step = (BAND / cols.max(1)).max(1);
        let (mut scratch, mut offset) = (Scratch::default(), 0);
        for band in self.rows.chunks(step) {
            job.cancel.check()?;
            let mut values = Vec::with_capacity(band.len() * cols);
            let mut row = vec![0f64; cols];
            for &(number, selection) in band {
                view.try_read(number as usize, &mut row, &mut scratch)?;
                match &self.columns[selection] {
                    None => values.extend_from_slice(&row),
                    Some(columns) => values.extend(columns.iter().map(|&column| row[column as usize])),
                }
            }
            let mut bytes = vec![0; values.len() * width];
            plain::encode(&values, self.meta.dtype, &mut bytes);
            staged.write_at(0, at, offset, &bytes)?;
            offset += bytes.len() as u64;
            job.progress.advance(values.len() as u64);
        }
        Ok(())
    }
}

/// What the smaller model's tensors are made of; and the names of tensors that no model of the family has.
fn moves(
    checkpoint: &Checkpoint,
    family: &Family,
    left: &Family,
    remains: &Remains,
    t: &Transformer,
) -> Result<(Vec<Move>, Vec<String>)> {
    let all = tensors(checkpoint)?;
    let by_name: HashMap<&str, &Tensor> = all.iter().map(|tensor| (tensor.name.as_str(), tensor)).collect();
    let bare: HashSet<String> = family.tensors_of_no_layer().collect();
    let stays = |old: &&Expected| bare.contains(old.name()) || remains.position(old.layer).is_some();
    let (mut used, mut moves) = (HashSet::new(), Vec::new());
    for (old, new) in family.tensors().iter().filter(stays).zip(left.tensors()) {
        let spelled = old.names.iter().zip(&new.names).find(|(name, _)| by_name.contains_key(name.as_str()));
        let Some((name, renamed)) = spelled.filter(|(name, _)| used.insert(name.as_str())) else { continue };
        let from = by_name[name.as_str()].clone();
        let block = remains.blocks.iter().find(|block| block.layer == old.layer).filter(|_| !bare.contains(old.name()));
        let (rows, columns) = match block {
            None => ((0..from.rows as u32).map(|row| (row, 0)).collect(), vec![None]),
            Some(block) => selection(old, block, t, &from),
        };
        let dtype = from.pieces.first().and_then(|piece| checkpoint.weights()[piece.weight].float_dtype());
        let shape: Vec<u64> = new.shape.iter().map(|&d| d as u64).collect();
        let meta = TensorMeta::new(renamed.clone(), dtype.unwrap_or(Dtype::F32), shape);
        moves.push(Move { meta, from, rows, columns });
    }
    let known: HashSet<&str> = family.tensors().iter().flat_map(|old| &old.names).map(String::as_str).collect();
    let rest = all.iter().map(|tensor| tensor.name.as_str()).filter(|name| !known.contains(name));
    let left_out = rest.filter(|name| !family.ignores(name)).map(str::to_owned).collect();
    Ok((moves, left_out))
}

/// Rows, and which selection of columns each takes; and these selections, `None` for all.
type Selection = (Vec<(u32, usize)>, Vec<Option<Vec<u32>>>);

/// Which rows of a tensor stay, as stored, and which columns of each.
fn selection(old: &Expected, block: &Block, t: &Transformer, from: &Tensor) -> Selection {
    let outputs = |piece: &crate::family::table::Piece| -> Vec<u32> {
        let start = piece.rows.start as u32;
        let all = || (0..piece.rows.len() as u32).collect();
        rows(piece.slot, block, piece.expert, t).unwrap_or_else(all).into_iter().map(|row| start + row).collect()
    };
    let inputs = |piece: &crate::family::table::Piece| match old.part {
        Part::Weight => columns(piece.slot, block, piece.expert, t),
        Part::Bias => None,
    };
    if old.transposed {
        let stored_columns = old.pieces.iter().flat_map(outputs).collect();
        let stored_rows = old.pieces.first().and_then(inputs).unwrap_or_else(|| (0..from.rows as u32).collect());
        return (stored_rows.into_iter().map(|row| (row, 0)).collect(), vec![Some(stored_columns)]);
    }
    let rows =
        old.pieces.iter().enumerate().flat_map(|(at, piece)| outputs(piece).into_iter().map(move |row| (row, at)));
    (rows.collect(), old.pieces.iter().map(inputs).collect())
}
