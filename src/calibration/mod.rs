//! What the inputs of each weight look like, learned by leading text through the model. Methods that prune or quantize by more
//! than the weights' own numbers ask here.
//!
//! - [`text`]: from a text to windows of tokens, within a budget.
//! - [`inputs`]: sums over the inputs of matrices, gathered by watching the walk.
//! - [`fisher`]: which changes of their results matter, by one way back through the model.
//! - [`costs`]: how much arithmetic all of it takes.
//! - [`pairs`]: sums over the inputs that two models give to the same matrix.
//! - [`file`]: these sums in a file, to be used again.
//! - [`structure`]: how much layers, heads and neurons matter.

pub mod costs;
mod error;
pub mod file;
pub mod fisher;
pub mod inputs;
mod outer;
pub mod pairs;
pub mod structure;
pub mod text;

pub use costs::Costs;
pub use error::{Error, Result};
pub use file::{Record, Recorded, Writer};
pub use fisher::Fisher;
pub use inputs::{Gatherer, Inputs, Wanted, shared_input};
pub use pairs::{Asked, Pair, PairGatherer, Sums};
pub use structure::Structure;
pub use text::{Options, windows};

use crate::loader::Checkpoint;

/// Where what is known of inputs comes from, and where it is kept.
#[derive(Debug)]
pub struct Calibration {
    /// What shows it.
    pub from: Origin,
    /// The file to keep it in.
    pub record: Option<Record>,
}

/// What shows inputs.
#[derive(Debug)]
pub enum Origin {
    /// A text that is led through the model.
    Text(Options),
    /// A file that holds what a text showed before.
    File(Recorded),
}

impl Calibration {
    /// The windows of text that are led through the model, none if a file says what they showed; and how many tokens it were.
    ///
    /// # Errors
    /// As [`windows`].
    pub fn windows(&self, model: &Checkpoint) -> Result<(Vec<Vec<u32>>, usize)> {
        match &self.from {
            Origin::Text(options) => {
                let windows = windows(model, options)?;
                let tokens = windows.iter().map(Vec::len).sum();
                Ok((windows, tokens))
            }
            Origin::File(recorded) => Ok((Vec::new(), recorded.tokens())),
        }
    }

    /// The file, if one is read.
    pub fn recorded(&self) -> Option<&Recorded> {
        match &self.from {
            Origin::File(recorded) => Some(recorded),
            Origin::Text(_) => None,
        }
    }
}
