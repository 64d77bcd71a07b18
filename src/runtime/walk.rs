//! The one way through a model: all windows of text go through one block, of every model that is walked, before the next
//! block's weights are touched. Only hidden states stay: in memory, or in a temporary file where they take more than half of it.

use std::ops::Range;

use super::block::{Block, Goal, Group, Half};
use super::hidden::Hidden;
use super::kept::{Keeper, Kept};
use super::model::{Context, Model};
use super::observer::{Observer, Unobserved};
use super::ops::norm::Normalisation;
use super::ops::rope::Rotation;
use super::{Activations, Error, Scratch};
use crate::job::Job;

/// The most tokens that linear layers take at a time; more would not make them faster.
const MOST_TOKENS: usize = 1024;

/// The most positions that have logits at a time.
pub(super) const MOST_POSITIONS: usize = 256;

/// A walk through one or more models, over the same windows of text.
pub struct Walk<'a> {
    models: &'a [&'a Model],
    job: &'a Job,
    /// The tokens at which windows begin, all windows being one after the other, and the number of tokens.
    starts: Vec<usize>,
    /// Of each model: `[tokens, hidden]`.
    hidden: Vec<Hidden>,
    /// What text that went to the last matrix of half of a block was there.
    kept: Option<Kept>,
    scratch: Scratch,
}

impl<'a> Walk<'a> {
    /// Embeds the windows, which may differ in length.
    ///
    /// # Errors
    /// A token outside the vocabulary, a window that is too long, or weights that are missing or cannot be read.
    pub fn begin(models: &'a [&'a Model], windows: &[Vec<u32>], job: &'a Job) -> Result<Self, Error> {
        let mut starts = vec![0];
        let mut tokens = 0;
        for window in windows {
            tokens += window.len();
            starts.push(tokens);
        }
        job.cancel.check()?;
        let room = job.memory / 2 / models.len().max(1) as u64;
        let embed = |model: &&Model| {
            let (embedding, width) = (model.embedding()?, model.shape().hidden);
            let mut hidden = Hidden::new(tokens * width, room)?;
            for some in groups(&starts, MOST_TOKENS) {
                job.cancel.check()?;
                let rows = starts[some.start] * width..starts[some.end] * width;
                let firsts = vec![0; some.len()];
                hidden[rows].copy_from_slice(&embedding.forward(&windows[some], &firsts, &job.pool)?);
            }
            Ok(hidden)
        };
        let hidden = models.iter().map(embed).collect::<Result<_, Error>>()?;
        Ok(Self { models, job, starts, hidden, kept: None, scratch: Scratch::default() })
    }

    /// Blocks of the deepest model.
    pub fn layers(&self) -> usize {
        self.models.iter().map(|model| model.shape().layers).max().unwrap_or(0)
    }

    /// Tokens in all windows.
    pub fn tokens(&self) -> usize {
        self.starts.last().copied().unwrap_or(0)
    }

    /// Where windows begin among the tokens, and the number of tokens.
    pub fn starts(&self) -> &[usize] {
        &self.starts
    }

    /// The hidden states of a model as they are now, `[tokens, hidden]`.
    pub fn hidden(&self, model: usize) -> &[f32] {
        &self.hidden[model]
    }

    /// Applies block `layer` of each model that has one; advances progress by the tokens, for each model.
    ///
    /// # Errors
    /// Weights that are missing or cannot be read, or an interruption.
    pub fn block(&mut self, layer: usize, observer: &mut dyn Observer) -> Result<(), Error> {
        for (number, model) in self.models.iter().enumerate() {
            if layer >= model.shape().layers {
                continue;
            }
            observer.block_begins(number, layer, &self.hidden[number]);
            let mut hidden = std::mem::replace(&mut self.hidden[number], Hidden::Memory(Vec::new()));
            let width = model.shape().hidden;
            let result = self.through(model, number, layer, observer, |rows, apply| {
                apply(&mut hidden[rows.start * width..rows.end * width])
            });
            self.hidden[number] = hidden;
            result?;
            observer.block_ends(number, layer, &self.hidden[number]);
            model.release(layer);
        }
        Ok(())
    }

    /// Shows the observer what block `layer` of `model` sees and computes where the walked model `number` is now, and stays
    /// there: hidden states are those that the block would change, but it changes copies. The observer is told of model
    /// `number`. Advances progress by the tokens.
    ///
    /// # Errors
    /// As [`Walk::block`].
    pub fn peek(
        &mut self,
        model: &Model,
        number: usize,
        layer: usize,
        observer: &mut dyn Observer,
    ) -> Result<(), Error> {
        let hidden = std::mem::replace(&mut self.hidden[number], Hidden::Memory(Vec::new()));
        let width = model.shape().hidden;
        let result = self.through(model, number, layer, observer, |rows, apply| {
            apply(&mut hidden[rows.start * width..rows.end * width].to_vec())
        });
        self.hidden[number] = hidden;
        model.release(layer);
        result
    }

    /// Leads windows into half of block `layer`, as far as each model's goal says: of each group of windows, first those of the
    /// first model, then those of the second, so that an observer sees both models' inputs of the same tokens together. A
    /// model without a goal waits. One that went to its last matrix goes on from there when it next goes through. Advances
    /// progress by the tokens, for each model that moves.
    ///
    /// # Errors
    /// As [`Walk::block`].
    pub fn half(
        &mut self,
        layer: usize,
        half: Half,
        goals: &[Option<Goal>],
        observer: &mut dyn Observer,
    ) -> Result<(), Error> {
        let longest = self.longest();
        let moving = self.models.iter().zip(goals).enumerate();
        let moving = moving.filter_map(|(number, (model, goal))| Some((number, *model, (*goal)?)));
        let open = |(number, model, goal): (usize, &'a Model, Goal)| {
            let block = model.block(layer)?;
            let rotation = block.rotation(0..longest);
            Ok((number, model, goal, block, rotation))
        };
        let moving: Vec<(usize, &Model, Goal, Block, Option<Rotation>)> =
            moving.map(open).collect::<Result<_, Error>>()?;
        let chunk = moving.iter().map(|(_, model, ..)| tokens_at_a_time(model, self.job.memory)).min().unwrap_or(1);
        let firsts = vec![0; self.starts.len()];
        let last = moving.iter().find(|(_, _, goal, ..)| *goal == Goal::Last).map(|(number, ..)| *number);
        let before = self.kept.take();
        let mut keeper = Keeper::new(observer, last, (layer, half), self.tokens(), self.job.memory / 8);
        for windows in groups(&self.starts, chunk) {
            let first = self.starts[windows.start];
            let starts: Vec<usize> = self.starts[windows.start..=windows.end].iter().map(|at| at - first).collect();
            let rows = first..self.starts[windows.end];
            let lengths: Vec<usize> = starts.windows(2).map(|w| w[1] - w[0]).collect();
            let group = Group { starts: &starts, firsts: &firsts, lengths: &lengths, chunk, cancel: &self.job.cancel };
            for (number, model, goal, block, rotation) in &moving {
                let width = model.shape().hidden;
                let hidden = &mut self.hidden[*number][rows.start * width..rows.end * width];
                keeper.half_begins(*number, hidden);
                let (scratch, pool) = (&mut self.scratch, &*self.job.pool);
                let mut context = Context { model: *number, observer: &mut keeper, scratch, pool };
                let kept = before.as_ref().filter(|kept| *goal == Goal::Through && kept.is_of(*number, layer, half));
                if let Some(kept) = kept {
                    block.last(hidden, kept.rows(rows.clone()), half, &mut context);
                    self.job.progress.advance(rows.len() as u64);
                    continue;
                }
                match half {
                    Half::Attention => {
                        block.attention(hidden, &group, rotation.as_ref(), None, *goal, &mut context)?;
                    }
                    Half::FeedForward => block.feed_forward(hidden, &group, *goal, &mut context)?,
                }
                self.job.progress.advance(rows.len() as u64);
            }
        }
        self.kept = keeper.finish()?;
        Ok(())
    }

    /// Tokens of the longest window.
    fn longest(&self) -> usize {
        self.starts.windows(2).map(|w| w[1] - w[0]).max().unwrap_or(0)
    }

    /// Leads the windows through a block, group by group: `each` is given a group's rows and what applies the block to their
    /// hidden states.
    fn through(
        &mut self,
        model: &Model,
        number: usize,
        layer: usize,
        observer: &mut dyn Observer,
        mut each: impl FnMut(Range<usize>, &mut dyn FnMut(&mut [f32]) -> Result<(), Error>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let block = model.block(layer)?;
        let rotation = block.rotation(0..self.longest());
        let firsts = vec![0; self.starts.len()];
        let chunk = tokens_at_a_time(model, self.job.memory);
        for windows in groups(&self.starts, chunk) {
            let first = self.starts[windows.start];
            let starts: Vec<usize> = self.starts[windows.start..=windows.end].iter().map(|at| at - first).collect();
            let rows = first..self.starts[windows.end];
            let lengths: Vec<usize> = starts.windows(2).map(|w| w[1] - w[0]).collect();
            let group = Group { starts: &starts, firsts: &firsts, lengths: &lengths, chunk, cancel: &self.job.cancel };
            let mut context = Context { model: number, observer, scratch: &mut self.scratch, pool: &self.job.pool };
            each(rows.clone(), &mut |hidden| block.forward(hidden, &group, rotation.as_ref(), None, &mut context))?;
            self.job.progress.advance(rows.len() as u64);
        }
        Ok(())
    }

    /// Computes the logits of all positions and hands them to `each`, some positions at a time: their range among the tokens
    /// and, for each model, `[positions, vocab]`. Advances progress by the tokens, for each model.
    ///
    /// # Errors
    /// Weights that are missing or cannot be read, or an interruption.
    pub fn logits(
        &mut self,
        observer: &mut dyn Observer,
        mut each: impl FnMut(Range<usize>, &[&[f32]]),
    ) -> Result<(), Error> {
        let heads = self.models.iter().map(|model| model.head(None)).collect::<Result<Vec<_>, _>>()?;
        let per_position: usize = self.models.iter().map(|model| model.shape().vocab + 2 * model.shape().hidden).sum();
        let step = within(self.job.memory, per_position, MOST_POSITIONS);
        for first in (0..self.tokens()).step_by(step) {
            self.job.cancel.check()?;
            let positions = first..self.tokens().min(first + step);
            let mut all = Vec::with_capacity(heads.len());
            for (number, (model, head)) in self.models.iter().zip(&heads).enumerate() {
                let width = model.shape().hidden;
                let x = normalised(&self.hidden[number], width, &positions, head.norm.as_ref(), self.job);
                let mut logits = vec![0.0; positions.len() * head.projection.out_features()];
                let mut context = Context { model: number, observer, scratch: &mut self.scratch, pool: &self.job.pool };
                head.projection.forward(&Activations::new(&x, width), &mut logits, &mut context);
                all.push(logits);
            }
            let slices: Vec<&[f32]> = all.iter().map(Vec::as_slice).collect();
            each(positions.clone(), &slices);
            self.job.progress.advance((positions.len() * heads.len()) as u64);
        }
        Ok(())
    }

    /// Hands the last hidden states to `each`, window by window: its number and, for each model, `[tokens, hidden]`, with the
    /// last normalisation applied if the model has one.
    ///
    /// # Errors
    /// Weights that are missing or cannot be read, or an interruption.
    pub fn outputs(&self, mut each: impl FnMut(usize, &[&[f32]])) -> Result<(), Error> {
        let norms = self.models.iter().map(|model| model.final_norm()).collect::<Result<Vec<_>, _>>()?;
        for (window, rows) in self.starts.windows(2).enumerate() {
            self.job.cancel.check()?;
            let rows = rows[0]..rows[1];
            let of = |number: usize| {
                let width = self.models[number].shape().hidden;
                normalised(&self.hidden[number], width, &rows, norms[number].as_ref(), self.job)
            };
            let all: Vec<Vec<f32>> = (0..norms.len()).map(of).collect();
            let slices: Vec<&[f32]> = all.iter().map(Vec::as_slice).collect();
            each(window, &slices);
        }
        Ok(())
    }
}

/// Walks decoders through all blocks and hands the logits of all positions to `each`, as [`Walk::logits`] does. Progress has
/// a stage named `stage`.
///
/// # Errors
/// As [`Walk::begin`] and [`Walk::block`].
pub fn language(
    models: &[&Model],
    windows: &[Vec<u32>],
    job: &Job,
    stage: &str,
    observer: &mut dyn Observer,
    each: impl FnMut(Range<usize>, &[&[f32]]),
) -> Result<(), Error> {
    through(models, windows, job, stage, observer, |walk, observer| walk.logits(observer, each))
}

/// Walks encoders through all blocks and hands the last hidden states to `each`, as [`Walk::outputs`] does. Progress has a
/// stage named `stage`.
///
/// # Errors
/// As [`Walk::begin`] and [`Walk::block`].
pub fn encode(
    models: &[&Model],
    windows: &[Vec<u32>],
    job: &Job,
    stage: &str,
    observer: &mut dyn Observer,
    each: impl FnMut(usize, &[&[f32]]),
) -> Result<(), Error> {
    through(models, windows, job, stage, observer, |walk, _| walk.outputs(each))
}

/// All blocks, then `finish`.
fn through(
    models: &[&Model],
    windows: &[Vec<u32>],
    job: &Job,
    stage: &str,
    observer: &mut dyn Observer,
    finish: impl FnOnce(&mut Walk<'_>, &mut dyn Observer) -> Result<(), Error>,
) -> Result<(), Error> {
    let mut walk = Walk::begin(models, windows, job)?;
    // A decoder's head takes about as long as a block.
    let stages: usize = models.iter().map(|model| model.shape().layers + usize::from(model.shape().causal)).sum();
    job.progress.begin(stage, (walk.tokens() * stages) as u64);
    let result =
        (0..walk.layers()).try_for_each(|layer| walk.block(layer, observer)).and_then(|()| finish(&mut walk, observer));
    job.progress.end();
    result
}

/// Everything that one model computes of one sequence.
#[derive(Debug, Clone, PartialEq)]
pub struct Forward {
    /// `[tokens, hidden]` after the embedding and after each block; the last with the last normalisation applied, as Hugging
    /// Face transformers counts them.
    pub hidden_states: Vec<Vec<f32>>,
    /// `[tokens, vocab]`; empty for encoders.
    pub logits: Vec<f32>,
}

/// Runs one sequence and keeps everything: for tests and small inputs.
///
/// # Errors
/// As [`Walk::begin`] and [`Walk::block`].
pub fn forward(model: &Model, tokens: &[u32], job: &Job) -> Result<Forward, Error> {
    let (models, windows) = ([model], [tokens.to_vec()]);
    let mut walk = Walk::begin(&models, &windows, job)?;
    let mut hidden_states = vec![walk.hidden(0).to_vec()];
    for layer in 0..walk.layers() {
        walk.block(layer, &mut Unobserved)?;
        hidden_states.push(walk.hidden(0).to_vec());
    }
    walk.outputs(|_, outputs| {
        if let Some(last) = hidden_states.last_mut() {
            last.copy_from_slice(outputs[0]);
        }
    })?;
    let mut logits = Vec::new();
    if model.shape().causal {
        walk.logits(&mut Unobserved, |_, chunk| logits.extend_from_slice(chunk[0]))?;
    }
    Ok(Forward { hidden_states, logits })
}

/// A copy of some rows, normalised.
fn normalised(hidden: &[f32], width: usize, rows: &Range<usize>, norm: Option<&Normalisation>, job: &Job) -> Vec<f32> {
    let mut x = hidden[rows.start * width..rows.end * width].to_vec();
    if let Some(norm) = norm {
        norm.apply(&mut x, &job.pool);
    }
    x
}

/// Windows that go through a block together: as many as have at most `tokens`, at least one.
fn groups(starts: &[usize], tokens: usize) -> Vec<Range<usize>> {
    let mut groups = Vec::new();
    let (mut first, windows) = (0, starts.len().saturating_sub(1));
    while first < windows {
        let limit = starts[first] + tokens;
        let end = (first + 1..=windows).take_while(|end| *end == first + 1 || starts[*end] <= limit).last();
        let end = end.unwrap_or(windows);
        groups.push(first..end);
        first = end;
    }
    groups
}

/// Tokens for which a block's activations fit into half the memory.
fn tokens_at_a_time(model: &Model, memory: u64) -> usize {
    let t = model.shape();
    let intermediate = t.experts.map_or(t.intermediate, |experts| experts.intermediate.max(t.intermediate));
    let per_token = 4 * t.hidden + 2 * t.head_dim * (t.heads + t.kv_heads) + 3 * intermediate;
    within(memory, per_token, MOST_TOKENS)
}

/// How many rows of so many numbers fit into half the memory: at least 16, or nothing would move, and at most `most`.
fn within(memory: u64, numbers: usize, most: usize) -> usize {
    let bytes = 4 * numbers.max(1) as u64;
    usize::try_from(memory / 2 / bytes).unwrap_or(most).clamp(16, most)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_cover_all_windows_in_order() {
        assert!(groups(&[0], 10).is_empty());
        assert_eq!(groups(&[0, 4, 8, 9, 30, 31], 8), [0..2, 2..3, 3..4, 4..5]);
        assert_eq!(groups(&[0, 4, 8, 9, 30, 31], 1), [0..1, 1..2, 2..3, 3..4, 4..5]);
        assert_eq!(groups(&[0, 0, 0, 5], 1), [0..2, 2..3]);
    }

    /// How often each place's input was told.
    #[derive(Default)]
    struct Told(std::collections::BTreeMap<crate::family::Slot, usize>);

    impl Observer for Told {
        fn input(&mut self, _: usize, place: super::super::Place, x: &super::super::Activations<'_>) {
            *self.0.entry(place.slot).or_default() += x.rows();
        }
    }

    #[test]
    fn a_half_that_stopped_before_its_last_matrix_goes_on_from_there() {
        use crate::family::Slot;
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/kjv-nano");
        let checkpoint = std::sync::Arc::new(crate::loader::Checkpoint::open(&folder, &Default::default()).unwrap());
        let model = super::super::load(&checkpoint).unwrap();
        let models = [&model];
        let windows: Vec<Vec<u32>> = (0..4).map(|i| (0..40).map(|token| 7 * i + token).collect()).collect();
        // In memory, and in a file.
        for memory in [1 << 30, 1 << 16] {
            let job = Job { memory, ..Job::new(2) };
            let mut straight = Walk::begin(&models, &windows, &job).unwrap();
            let mut halting = Walk::begin(&models, &windows, &job).unwrap();
            for layer in 0..model.shape().layers {
                straight.block(layer, &mut crate::runtime::observer::Unobserved).unwrap();
                let mut told = Told::default();
                for half in [Half::Attention, Half::FeedForward] {
                    for goal in [Goal::First, Goal::Last, Goal::Through] {
                        halting.half(layer, half, &[Some(goal)], &mut told).unwrap();
                    }
                }
                assert!(halting.hidden(0) == straight.hidden(0), "block {layer}");
                for (slot, times) in [(Slot::AttnQ, 2), (Slot::AttnOut, 2), (Slot::FfnUp, 2), (Slot::FfnDown, 2)] {
                    assert_eq!(told.0[&slot], times * halting.tokens(), "{slot:?}");
                }
            }
        }
    }
}
