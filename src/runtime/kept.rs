//! What the last matrix of half of a block is given, kept so that text need not go there a second time when the matrix has
//! changed.

use std::ops::Range;

use super::block::Half;
use super::hidden::Hidden;
use super::observer::Observer;
use super::weights::Place;
use super::{Activations, Error};
use crate::family::Slot;

/// Inputs `[tokens, cols]` of the last matrix of half of a block.
pub(super) struct Kept {
    model: usize,
    place: Place,
    cols: usize,
    numbers: Hidden,
}

impl Kept {
    /// Whether they are what this half of a model's block ends with.
    pub fn is_of(&self, model: usize, layer: usize, half: Half) -> bool {
        (self.model, self.place) == (model, last(layer, half))
    }

    /// Those of some tokens.
    pub fn rows(&self, rows: Range<usize>) -> &[f32] {
        &self.numbers[rows.start * self.cols..rows.end * self.cols]
    }
}

/// The last matrix of half of a block that is no mixture.
fn last(layer: usize, half: Half) -> Place {
    Place::new(if half == Half::Attention { Slot::AttnOut } else { Slot::FfnDown }, layer)
}

/// Tells another observer everything, and keeps what the last matrix of half of a block is given in one model.
pub(super) struct Keeper<'a> {
    observer: &'a mut dyn Observer,
    /// The model, if something is to be kept.
    model: Option<usize>,
    place: Place,
    tokens: usize,
    memory: u64,
    at: usize,
    kept: Option<Kept>,
    error: Option<Error>,
}

impl<'a> Keeper<'a> {
    /// Keeps inputs of so many tokens: in memory if they take at most so much of it, else in a temporary file.
    pub fn new(
        observer: &'a mut dyn Observer,
        model: Option<usize>,
        (layer, half): (usize, Half),
        tokens: usize,
        memory: u64,
    ) -> Self {
        Self { observer, model, place: last(layer, half), tokens, memory, at: 0, kept: None, error: None }
    }

    /// What was kept: nothing of a mixture.
    ///
    /// # Errors
    /// No room for a temporary file.
    pub fn finish(self) -> Result<Option<Kept>, Error> {
        self.error.map_or(Ok(self.kept), Err)
    }

    fn keep(&mut self, model: usize, x: &Activations<'_>) -> Result<(), Error> {
        let kept = match &mut self.kept {
            Some(kept) => kept,
            None => {
                let numbers = Hidden::new(self.tokens * x.cols(), self.memory)?;
                self.kept.insert(Kept { model, place: self.place, cols: x.cols(), numbers })
            }
        };
        kept.numbers[self.at..self.at + x.f32().len()].copy_from_slice(x.f32());
        self.at += x.f32().len();
        Ok(())
    }
}

impl Observer for Keeper<'_> {
    fn input(&mut self, model: usize, place: Place, x: &Activations<'_>) {
        self.observer.input(model, place, x);
        if self.model == Some(model)
            && self.place == place
            && self.error.is_none()
            && let Err(error) = self.keep(model, x)
        {
            self.error = Some(error);
        }
    }

    fn half_begins(&mut self, model: usize, hidden: &[f32]) {
        self.observer.half_begins(model, hidden);
    }
}
