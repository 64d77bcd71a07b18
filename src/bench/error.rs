//! What goes wrong when a model is measured.

use std::path::PathBuf;

use formats::Kind;

use crate::job::Interrupted;
use crate::{loader, runtime};

/// What goes wrong when a model is measured.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The model cannot be opened.
    #[error(transparent)]
    Loader(#[from] loader::Error),
    /// The model cannot be run.
    #[error(transparent)]
    Runtime(#[from] runtime::Error),
    /// The model is of no family that runs.
    #[error("{}: cannot be run: {why}", path.display())]
    Family {
        /// The model.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// More tokens were asked for than the model has positions.
    #[error(
        "{}: {wanted} tokens do not fit into its {positions} positions. Ask for fewer with --prompt-tokens and --tokens",
        path.display()
    )]
    TooLong {
        /// The model.
        path: PathBuf,
        /// Tokens asked for, prompt and continuation.
        wanted: usize,
        /// Positions that it has.
        positions: usize,
    },
    /// Asked to stop.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

impl Error {
    /// Whose fault it is.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Loader(e) => e.kind(),
            Self::Runtime(e) => e.kind(),
            Self::Family { .. } => Kind::Input,
            Self::TooLong { .. } => Kind::Usage,
            Self::Interrupted(_) => Kind::Interrupted,
        }
    }
}

/// What measuring results in.
pub type Outcome<T> = std::result::Result<T, Error>;
