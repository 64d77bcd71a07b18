//! What a text shows of a model's parts: how large the inputs are that heads and neurons give to the next matrix, and what each
//! block changes.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Result;
use super::inputs::{Gatherer, Inputs, Wanted};
use crate::family::{Slot, Transformer};
use crate::job::Job;
use crate::loader::Checkpoint;
use crate::runtime::{self, Activations, Observer, Place, Walk};

/// Stage of progress.
const STAGE: &str = "calibrate shapes";

/// What a text shows of a model's parts.
#[derive(Debug, Clone, PartialEq)]
pub struct Structure {
    /// Of each block, 1 − the mean cosine of its input and its output (Men et al., 2024).
    pub influence: Vec<f64>,
    /// Σ x² of what attention's output projections and the feed-forward parts' down projections are given.
    pub inputs: BTreeMap<Place, Inputs>,
}

/// The inputs that tell how much heads and neurons give: of each block and expert, with their features.
pub fn places(t: &Transformer) -> BTreeMap<Place, usize> {
    let mut places = BTreeMap::new();
    for layer in 0..t.layers {
        places.insert(Place::new(Slot::AttnOut, layer), t.heads * t.head_dim);
        match t.experts {
            None => {
                places.insert(Place::new(Slot::FfnDown, layer), t.intermediate);
            }
            Some(experts) => places.extend(
                (0..experts.count)
                    .map(|expert| (Place { slot: Slot::FfnDown, layer, expert: Some(expert) }, experts.intermediate)),
            ),
        }
    }
    places
}

/// Leads windows of text through a model and looks at its parts.
///
/// # Errors
/// A model that cannot be run, an interruption.
pub fn observe(checkpoint: &Arc<Checkpoint>, t: &Transformer, windows: &[Vec<u32>], job: &Job) -> Result<Structure> {
    let model = runtime::load(checkpoint)?;
    let models = [&model];
    let mut walk = Walk::begin(&models, windows, job)?;
    let wanted = places(t).into_keys().map(|place| (place, Wanted::Squares)).collect();
    let gatherer = Gatherer::new(wanted, job.pool.clone());
    let mut watch = Watch { gatherer, before: Vec::new(), width: t.hidden, influence: Vec::new() };
    job.progress.begin(STAGE, (walk.tokens() * t.layers) as u64);
    let walked = (0..t.layers).try_for_each(|layer| walk.block(layer, &mut watch));
    job.progress.end();
    walked?;
    Ok(Structure { influence: watch.influence, inputs: watch.gatherer.finish() })
}

struct Watch {
    gatherer: Gatherer,
    before: Vec<f32>,
    width: usize,
    influence: Vec<f64>,
}

impl Observer for Watch {
    fn input(&mut self, model: usize, place: Place, x: &Activations<'_>) {
        self.gatherer.input(model, place, x);
    }

    fn block_begins(&mut self, _: usize, _: usize, hidden: &[f32]) {
        self.before.clear();
        self.before.extend_from_slice(hidden);
    }

    fn block_ends(&mut self, _: usize, _: usize, hidden: &[f32]) {
        let rows = self.before.chunks_exact(self.width).zip(hidden.chunks_exact(self.width));
        let tokens = rows.len().max(1) as f64;
        self.influence.push(1.0 - rows.map(|(a, b)| cosine(a, b)).sum::<f64>() / tokens);
    }
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    let size = (dot(a, a) * dot(b, b)).sqrt();
    if size > 0.0 { dot(a, b) / size } else { 1.0 }
}
