//! One way back through a model: from the gradient of a loss with respect to its outputs to that of every matrix's result.
//!
//! First the text goes forward, and what each block is given is kept in a temporary file. Then block by block, from the last to
//! the first, each window's way through the block is computed once more and gradients go back through it. Only one block's
//! weights and one window's activations are in use at a time. Gradients of weights themselves are not formed.

mod block;
mod feed_forward;
mod linear;
#[cfg(test)]
mod tests;

use std::ops::Range;

use super::model::{Context, Model};
use super::observer::Unobserved;
use super::spill::Spill;
use super::walk::MOST_POSITIONS;
use super::{Activations, Error, Place, Scratch, Walk};
use crate::family::Slot;
use crate::job::Job;
use crate::threads::Pool;

/// The most logits at a time: 64 MiB.
const LOGITS: usize = 1 << 24;

/// Is told the gradients of a loss with respect to what matrices give.
pub trait GradientObserver {
    /// `gradient` `[rows, features]` with respect to the result of the matrix at `place`, of one window and one loss.
    /// Windows come in order and, of each, losses. An expert's rows are those of the tokens that it sees. For the token
    /// embedding it is with respect to the rows that are looked up.
    fn output(&mut self, place: Place, features: usize, gradient: &[f32]);
}

/// What gradients go back with.
struct Back<'a> {
    observer: &'a mut dyn GradientObserver,
    scratch: &'a mut Scratch,
    pool: &'a Pool,
}

/// A model through which gradients go back, of some losses of the same text at a time.
pub struct Backward<'a> {
    model: &'a Model,
    windows: &'a [Vec<u32>],
    losses: usize,
    job: &'a Job,
    /// The tokens at which windows begin, all windows being one after the other, and the number of tokens.
    starts: Vec<usize>,
    /// What each block is given and what the last one gives, `[layers + 1, tokens, hidden]`.
    states: Spill,
    /// Gradients where the way back is now, `[losses, tokens, hidden]`.
    gradients: Spill,
    scratch: Scratch,
}

impl<'a> Backward<'a> {
    /// Leads the windows forward. Advances progress by the tokens for each block.
    ///
    /// # Errors
    /// As [`Walk::begin`] and [`Walk::block`]; no room for temporary files.
    pub fn begin(model: &'a Model, windows: &'a [Vec<u32>], losses: usize, job: &'a Job) -> Result<Self, Error> {
        let models = [model];
        let mut walk = Walk::begin(&models, windows, job)?;
        let states = Spill::new()?;
        for layer in 0..walk.layers() {
            states.write((layer * walk.hidden(0).len()) as u64, walk.hidden(0))?;
            walk.block(layer, &mut Unobserved)?;
        }
        states.write((walk.layers() * walk.hidden(0).len()) as u64, walk.hidden(0))?;
        let (starts, gradients) = (walk.starts().to_vec(), Spill::new()?);
        Ok(Self { model, windows, losses, job, starts, states, gradients, scratch: Scratch::default() })
    }

    /// Tokens in all windows.
    pub fn tokens(&self) -> usize {
        self.starts.last().copied().unwrap_or(0)
    }

    /// Takes losses of a decoder's logits: `loss` is given a range of positions among the tokens, their logits `[positions,
    /// vocab]` and the number of the loss, and writes the gradient over the logits. Advances progress by the tokens.
    ///
    /// # Errors
    /// Weights that are missing or cannot be read, or an interruption.
    pub fn from_logits(&mut self, mut loss: impl FnMut(Range<usize>, &mut [f32], usize)) -> Result<(), Error> {
        let (width, vocab) = (self.model.shape().hidden, self.model.shape().vocab);
        let head = self.model.head(None)?;
        // Not by the memory budget, on which nothing may depend: few rows are multiplied in another order than many.
        let step = (LOGITS / vocab.max(1)).clamp(16, MOST_POSITIONS);
        for first in (0..self.tokens()).step_by(step) {
            self.job.cancel.check()?;
            let positions = first..self.tokens().min(first + step);
            let hidden = self.state(self.model.shape().layers, &positions)?;
            let mut x = hidden.clone();
            if let Some(norm) = &head.norm {
                norm.apply(&mut x, &self.job.pool);
            }
            let mut logits = vec![0.0; positions.len() * vocab];
            let (scratch, pool) = (&mut self.scratch, &*self.job.pool);
            let mut context = Context { model: 0, observer: &mut Unobserved, scratch, pool };
            head.projection.forward(&Activations::new(&x, width), &mut logits, &mut context);
            for number in 0..self.losses {
                let mut gradient = logits.clone();
                loss(positions.clone(), &mut gradient, number);
                let mut result = vec![0.0; hidden.len()];
                linear::gradient(&*head.projection.linear, &gradient, &mut result, context.scratch, pool);
                if let Some(norm) = &head.norm {
                    norm.gradient(&hidden, &mut result, pool);
                }
                let at = (number * self.starts.last().copied().unwrap_or(0) + positions.start) * width;
                self.gradients.write(at as u64, &result)?;
            }
            self.job.progress.advance(positions.len() as u64);
        }
        Ok(())
    }

    /// Takes losses of an encoder's last hidden states: `loss` is given the number of a window, its `[tokens, hidden]`, with
    /// the last normalisation applied if the model has one, and the number of the loss, and writes the gradient over them.
    /// Advances progress by the tokens.
    ///
    /// # Errors
    /// Weights that are missing or cannot be read, or an interruption.
    pub fn from_outputs(&mut self, mut loss: impl FnMut(usize, &mut [f32], usize)) -> Result<(), Error> {
        let norm = self.model.final_norm()?;
        let pool = &self.job.pool;
        for (window, rows) in self.rows().into_iter().enumerate() {
            self.job.cancel.check()?;
            let hidden = self.state(self.model.shape().layers, &rows)?;
            for number in 0..self.losses {
                let mut gradient = hidden.clone();
                if let Some(norm) = &norm {
                    norm.apply(&mut gradient, pool);
                }
                loss(window, &mut gradient, number);
                if let Some(norm) = &norm {
                    norm.gradient(&hidden, &mut gradient, pool);
                }
                self.gradients.write(self.place(number, rows.start), &gradient)?;
            }
            self.job.progress.advance(rows.len() as u64);
        }
        Ok(())
    }

    /// Goes back through block `layer`, the one before those that were gone through, and tells the observer. If `stay`, the
    /// way back stands where it did, and the same block can be gone through again for another observer. Advances progress by
    /// the tokens.
    ///
    /// # Errors
    /// As [`Walk::block`].
    pub fn block(&mut self, layer: usize, stay: bool, observer: &mut dyn GradientObserver) -> Result<(), Error> {
        let block = self.model.block(layer)?;
        let rows = self.rows();
        let rotation = block.rotation(0..rows.iter().map(Range::len).max().unwrap_or(0));
        for rows in rows {
            self.job.cancel.check()?;
            let hidden = self.state(layer, &rows)?;
            let (scratch, pool) = (&mut self.scratch, &*self.job.pool);
            let mut context = Context { model: 0, observer: &mut Unobserved, scratch, pool };
            let tape = block.record(hidden, rotation.as_ref(), &mut context);
            for number in 0..self.losses {
                let at = self.place(number, rows.start);
                let mut gradient = vec![0.0; rows.len() * self.model.shape().hidden];
                self.gradients.read(at, &mut gradient)?;
                let mut back = Back { observer, scratch: &mut self.scratch, pool };
                block.gradient(&tape, &mut gradient, rotation.as_ref(), &mut back);
                if !stay {
                    self.gradients.write(at, &gradient)?;
                }
            }
            self.job.progress.advance(rows.len() as u64);
        }
        self.model.release(layer);
        Ok(())
    }

    /// Goes back to the token embedding's rows, after all blocks, and tells the observer.
    ///
    /// # Errors
    /// Weights that are missing or cannot be read, or an interruption.
    pub fn embedding(&mut self, observer: &mut dyn GradientObserver) -> Result<(), Error> {
        let embedding = self.model.embedding()?;
        let (pool, width) = (&self.job.pool, self.model.shape().hidden);
        for (window, rows) in self.windows.iter().zip(self.rows()) {
            self.job.cancel.check()?;
            let sum = match &embedding.norm {
                Some(norm) => Some((norm, embedding.sum(std::slice::from_ref(window), &[0], pool)?)),
                None => None,
            };
            for number in 0..self.losses {
                let mut gradient = vec![0.0; rows.len() * width];
                self.gradients.read(self.place(number, rows.start), &mut gradient)?;
                if let Some((norm, sum)) = &sum {
                    norm.gradient(sum, &mut gradient, pool);
                }
                if embedding.scale != 1.0 {
                    gradient.iter_mut().for_each(|g| *g *= embedding.scale);
                }
                observer.output(Place::new(Slot::TokenEmbedding, 0), width, &gradient);
            }
        }
        Ok(())
    }

    /// The rows of each window.
    fn rows(&self) -> Vec<Range<usize>> {
        self.starts.windows(2).map(|ends| ends[0]..ends[1]).collect()
    }

    fn state(&self, layer: usize, rows: &Range<usize>) -> Result<Vec<f32>, Error> {
        let width = self.model.shape().hidden;
        let mut hidden = vec![0.0; rows.len() * width];
        self.states.read(((layer * self.tokens() + rows.start) * width) as u64, &mut hidden)?;
        Ok(hidden)
    }

    /// Where the gradient of a loss at a row is kept.
    fn place(&self, number: usize, row: usize) -> u64 {
        ((number * self.tokens() + row) * self.model.shape().hidden) as u64
    }
}
