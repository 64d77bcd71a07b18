//! What can go wrong while a model runs.

use formats::Kind;

use crate::family::{Part, Slot};
use crate::job::Interrupted;

/// A model that cannot run, or a run that cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The model lacks a weight.
    #[error("the model has no {part:?} for {slot:?} in layer {layer}")]
    Missing {
        /// Its place.
        slot: Slot,
        /// Its layer; 0 outside of layers.
        layer: usize,
        /// Weight or bias.
        part: Part,
    },
    /// A weight of another shape than the architecture's.
    #[error("{part:?} of {slot:?} in layer {layer} has shape {found:?}; the model's config says {expected:?}")]
    Shape {
        /// Its place.
        slot: Slot,
        /// Its layer; 0 outside of layers.
        layer: usize,
        /// Weight or bias.
        part: Part,
        /// What the architecture says.
        expected: Vec<usize>,
        /// What the weight has.
        found: Vec<usize>,
    },
    /// A token that the model does not know.
    #[error("token {token} is outside the model's vocabulary of {vocab}; is the tokenizer this model's own?")]
    Token {
        /// The token.
        token: u32,
        /// Rows of the token embedding.
        vocab: usize,
    },
    /// A padding token in a text of a model that counts positions without it.
    #[error("token {token} is the padding token, which has no place in a text of this model; leave it out")]
    Padding {
        /// The token.
        token: u32,
    },
    /// A sequence longer than the model's positions.
    #[error("a sequence of {length} tokens is longer than the model's {limit} positions; use a shorter one")]
    TooLong {
        /// Its tokens.
        length: usize,
        /// The model's positions.
        limit: usize,
    },
    /// A prompt without a token.
    #[error("the prompt has no token to go on from; give at least a word")]
    Empty,
    /// Inputs of a chain that are no whole number of rows.
    #[error("{length} input numbers are no whole number of rows of {features} features")]
    Inputs {
        /// Numbers given.
        length: usize,
        /// Features of a row.
        features: usize,
    },
    /// A description without a position scheme or an attention window for every layer.
    #[error("the architecture does not describe layer {layer}")]
    Layer {
        /// The layer.
        layer: usize,
    },
    /// The work was asked to stop.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
    /// A weight could not be read.
    #[error("{0}")]
    Weights(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// No room for what does not stay in memory.
    #[error(transparent)]
    Temporary(#[from] formats::Error),
    /// A model of another kind than was asked for.
    #[error("the model is not {expected}")]
    Family {
        /// What was asked for.
        expected: &'static str,
    },
}

impl Error {
    /// Whose fault it is.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Interrupted(_) => Kind::Interrupted,
            Self::TooLong { .. } | Self::Padding { .. } | Self::Empty => Kind::Usage,
            Self::Temporary(source) => source.kind(),
            Self::Weights(source) => source.downcast_ref::<formats::Error>().map_or(Kind::Input, formats::Error::kind),
            _ => Kind::Input,
        }
    }
}
