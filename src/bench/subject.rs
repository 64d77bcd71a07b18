//! What can be known of a model before it is measured.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use formats::Access;

use super::{Error, Outcome, Work};
use crate::family::{Architecture, Kind, Transformer};
use crate::loader::{self, Checkpoint};

/// How much is measured.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Tokens of a prompt, or of each sentence that an encoder embeds; `None` for what suits the model.
    pub prompt_tokens: Option<usize>,
    /// Tokens that are decoded after it; `None` for what suits the model.
    pub tokens: Option<usize>,
    /// Mapped, or read by offset.
    pub access: Access,
}

/// Prompt and continuation of decoders, if the model has so many positions.
const PROMPT: usize = 512;
const TOKENS: usize = 64;

/// Tokens of a sentence.
const SENTENCE: usize = 16;

/// How much of a model is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Size {
    /// A decoder: tokens of the prompt, and tokens that follow.
    Language {
        /// Of the prompt.
        prompt: usize,
        /// Decoded after it.
        tokens: usize,
    },
    /// An encoder: tokens of each sentence.
    Encoder {
        /// Of each sentence.
        tokens: usize,
    },
    /// A chain of linear layers.
    Chain,
}

/// A model that can be measured.
#[derive(Debug, Clone)]
pub struct Subject {
    /// Where it is.
    pub path: PathBuf,
    /// Bytes of its weight files.
    pub bytes: u64,
    /// How much is measured.
    pub size: Size,
    /// Its shape, if it is a transformer.
    pub shape: Option<Transformer>,
    /// What a token asks for.
    pub work: Work,
}

impl Subject {
    /// Opens a model to see what it is.
    ///
    /// # Errors
    /// A model that cannot be opened or is of no known family, or more tokens than it has positions.
    pub fn open(path: &Path, options: &Options) -> Outcome<Self> {
        let checkpoint = open(path, options)?;
        let (_, size) = kind(&checkpoint, options)?;
        let shape = match checkpoint.family().map(|family| &family.architecture) {
            Some(Architecture::Transformer(t)) => Some((**t).clone()),
            _ => None,
        };
        let work = Work::of(&checkpoint)?;
        Ok(Self { path: path.to_owned(), bytes: checkpoint.bytes(), size, shape, work })
    }
}

/// Opens a model's files.
pub(super) fn open(path: &Path, options: &Options) -> Outcome<Arc<Checkpoint>> {
    let options = loader::Options { access: options.access, ..loader::Options::default() };
    Ok(Arc::new(Checkpoint::open(path, &options)?))
}

/// What a model is, and how much of it is measured.
pub(super) fn kind(checkpoint: &Checkpoint, options: &Options) -> Outcome<(Kind, Size)> {
    let path = || checkpoint.path().to_owned();
    let Some(family) = checkpoint.family() else {
        let why = checkpoint.no_family().unwrap_or("its family is not known").to_owned();
        return Err(Error::Family { path: path(), why });
    };
    let Architecture::Transformer(t) = &family.architecture else { return Ok((family.kind, Size::Chain)) };
    let positions = t.max_positions;
    if family.kind == Kind::Encoder {
        let tokens = options.prompt_tokens.unwrap_or(SENTENCE.min(positions));
        return match tokens <= positions {
            true => Ok((family.kind, Size::Encoder { tokens })),
            false => Err(Error::TooLong { path: path(), wanted: tokens, positions }),
        };
    }
    let (prompt, tokens) = match (options.prompt_tokens, options.tokens) {
        (Some(prompt), Some(tokens)) => (prompt, tokens),
        (Some(prompt), None) => (prompt, TOKENS.min(positions.saturating_sub(prompt).max(1))),
        (None, Some(tokens)) => (PROMPT.min(positions.saturating_sub(tokens).max(1)), tokens),
        (None, None) => {
            let tokens = TOKENS.min(positions / 2).max(1);
            (PROMPT.min(positions.saturating_sub(tokens).max(1)), tokens)
        }
    };
    if prompt + tokens > positions {
        return Err(Error::TooLong { path: path(), wanted: prompt + tokens, positions });
    }
    Ok((family.kind, Size::Language { prompt, tokens }))
}
