//! Which matrices a text flows through, and when: the matrices of a plan's steps that are quantized, by the part of a block that
//! they are in.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use crate::calibration::{Asked, shared_input};
use crate::encoding::Encoding;
use crate::family::{Part, Placement, RowOrder, Slot, Transformer};
use crate::loader::{Checkpoint, Coded, SlotKey, Weight};
use crate::quantizer::least_squares::Form;
use crate::recipe::{Plan, Step};
use crate::runtime::{Goal, Half, Place};

/// A matrix: rows of a step's that serve one slot.
#[derive(Debug, Clone)]
pub struct Matrix {
    /// Index among the plan's steps.
    pub step: usize,
    /// How the step is stored.
    pub form: Form,
    /// Its rows in the step.
    pub rows: Range<u64>,
    /// Its columns.
    pub cols: usize,
    /// What it serves.
    pub place: Place,
    /// Its name, for people.
    pub name: String,
}

impl Matrix {
    /// Whether its rows, which may be very many, are chosen some at a time: errors of theirs do not go together.
    pub fn is_banded(&self) -> bool {
        matches!(self.place.slot, Slot::Head | Slot::TokenEmbedding)
    }

    /// Its rows, as many as are chosen at a time. A fixed number, so that the result does not depend on the budget.
    pub fn bands(&self) -> Vec<Self> {
        const ROWS: u64 = 2048;
        let step = if self.is_banded() { ROWS } else { self.rows.end - self.rows.start };
        let band = |first: u64| Self { rows: first..self.rows.end.min(first + step), ..self.clone() };
        self.rows.clone().step_by(step.max(1) as usize).map(band).collect()
    }
}

/// Matrices that see their inputs together: those at one end of half a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stage {
    /// The block.
    pub layer: usize,
    /// 0: queries, keys and values; 1: the output of attention; 2: gate and up; 3: down.
    part: usize,
}

impl Stage {
    /// The stages of a block, in their order.
    pub fn of(layer: usize) -> [Self; 4] {
        [0, 1, 2, 3].map(|part| Self { layer, part })
    }

    fn at(place: Place) -> Option<Self> {
        let part = match place.slot {
            Slot::AttnQ | Slot::AttnK | Slot::AttnV => 0,
            Slot::AttnOut => 1,
            Slot::FfnGate | Slot::FfnUp => 2,
            Slot::FfnDown => 3,
            _ => return None,
        };
        Some(Self { layer: place.layer, part })
    }

    /// The half that it is in.
    pub fn half(self) -> Half {
        if self.part < 2 { Half::Attention } else { Half::FeedForward }
    }

    /// How far text has to go to show its inputs.
    pub fn goal(self) -> Goal {
        if self.part.is_multiple_of(2) { Goal::First } else { Goal::Last }
    }
}

/// What is quantized with the help of a text.
#[derive(Debug, Default)]
pub struct Matrices {
    /// Of blocks.
    pub stages: BTreeMap<Stage, Vec<Matrix>>,
    /// The token embedding.
    pub embedding: Option<Matrix>,
    /// The output projection, where it is not the token embedding.
    pub head: Option<Matrix>,
    /// The steps that they make up.
    pub steps: BTreeSet<usize>,
    /// These steps as weights of a file of their codes.
    pub coded: Vec<Coded>,
}

impl Matrices {
    /// All of them, in the order in which their codes are chosen.
    pub fn all(&self) -> impl Iterator<Item = &Matrix> {
        self.embedding.iter().chain(self.stages.values().flatten()).chain(&self.head)
    }
}

/// The matrices of a plan that a text reaches.
pub fn matrices(checkpoint: &Checkpoint, plan: &Plan) -> Matrices {
    let serves = checkpoint.serves();
    let mut all = Matrices::default();
    for (at, step) in plan.steps.iter().enumerate() {
        let Some(form) = step.form().filter(|_| step.pruning.is_none()) else { continue };
        let Some(slots) = slots(step, &serves) else { continue };
        let places = slots.iter().map(|((slot, layer, expert, _), rows)| {
            (Place { slot: *slot, layer: *layer, expert: *expert }, rows.clone())
        });
        let known = |place: Place| {
            Stage::at(place).is_some() || matches!(place.slot, Slot::Head | Slot::TokenEmbedding) && slots.len() == 1
        };
        if !places.clone().all(|(place, _)| known(place)) {
            continue;
        }
        for (place, rows) in places {
            let name = match (slots.len(), place.expert) {
                (1, _) => step.name.clone(),
                (_, None) => format!("{} ({:?})", step.name, place.slot),
                (_, Some(expert)) => format!("{} ({:?} {expert})", step.name, place.slot),
            };
            let matrix = Matrix { step: at, form, rows, cols: step.cols as usize, place, name };
            match (place.slot, Stage::at(place)) {
                (_, Some(stage)) => all.stages.entry(stage).or_default().push(matrix),
                (Slot::TokenEmbedding, None) => all.embedding = Some(matrix),
                (_, None) => all.head = Some(matrix),
            }
        }
        all.steps.insert(at);
        all.coded.push(coded(step, all.coded.iter().map(|coded| coded.weight.tensors.len()).sum(), slots));
    }
    for matrices in all.stages.values_mut() {
        matrices.sort_by_key(|matrix| (shared_input(matrix.place), matrix.place));
    }
    all
}

/// The slots that a step's rows serve, if all of them do.
fn slots(step: &Step, serves: &[Vec<(SlotKey, crate::loader::Piece)>]) -> Option<Vec<(SlotKey, Range<u64>)>> {
    // Only the rows of one matrix are in another order.
    if step.pieces.iter().any(|piece| piece.shift != 0.0 || piece.order != RowOrder::Same && step.pieces.len() > 1) {
        return None;
    }
    let mut slots = Vec::new();
    let mut first = 0;
    for piece in &step.pieces {
        let within = |rows: &Range<u64>| rows.start >= piece.rows.start && rows.end <= piece.rows.end;
        for (key, served) in serves[piece.weight].iter().filter(|(key, _)| key.3 == Part::Weight) {
            if within(&served.rows) && served.transpose == piece.transpose {
                let start = first + served.rows.start - piece.rows.start;
                slots.push((*key, start..start + served.rows.end - served.rows.start));
            }
        }
        first += piece.rows.end - piece.rows.start;
    }
    let in_order = step.pieces[0].order == RowOrder::Same || slots.len() == 1;
    let covered = slots.iter().map(|(_, rows)| rows.end - rows.start).sum::<u64>() == step.rows;
    (covered && in_order).then_some(slots)
}

/// A step as a weight of the file of codes, whose tensors follow those of the steps before it.
fn coded(step: &Step, first: usize, serves: Vec<(SlotKey, Range<u64>)>) -> Coded {
    let tensor = |i: usize| crate::loader::TensorRef { source: 0, tensor: first + i };
    let weight = Weight {
        name: step.name.clone(),
        role: step.role,
        shape: step.parts[0].shape.clone(),
        rows: step.rows,
        cols: step.cols,
        encoding: step.encoding,
        tensors: (0..step.parts.len()).map(tensor).collect(),
        order: step.pieces[0].order,
        transposed: false,
        shift: 0.0,
    };
    // A view of packed numbers has the shape of what is unpacked.
    let packed = matches!(step.encoding, Encoding::PackedInt { .. } | Encoding::Blocked { .. });
    let shape = if packed { vec![step.rows, step.cols] } else { weight.shape };
    Coded { weight: Weight { shape, ..weight }, serves }
}

/// What has to be known of the input of a matrix.
pub fn asked(place: Place, t: &Transformer) -> Asked {
    match place.slot {
        // The two models choose experts for each token by themselves.
        _ if place.expert.is_some() => Asked::Inputs,
        // What is normalised before it is added cannot make up for the stream's errors.
        Slot::AttnOut | Slot::FfnDown if t.placement != Placement::Both => Asked::Residual,
        _ => Asked::Drift,
    }
}
