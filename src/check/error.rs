//! What goes wrong when two models are compared.

use std::path::PathBuf;

use formats::Kind;

use crate::job::Interrupted;
use crate::{loader, pipeline, runtime};

/// What goes wrong when two models are compared.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Reading failed.
    #[error(transparent)]
    Format(#[from] formats::Error),
    /// A model cannot be opened, or changed.
    #[error(transparent)]
    Loader(#[from] loader::Error),
    /// What was written cannot be walked through within the budget.
    #[error(transparent)]
    Pipeline(#[from] pipeline::Error),
    /// A model cannot be run.
    #[error(transparent)]
    Runtime(#[from] runtime::Error),
    /// The user asked to stop.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
    /// A weight has another shape in the other file.
    #[error("{}: tensor `{tensor}`: found shape {found:?}, expected {expected:?} as in {}. These are not the same model", file.display(), original.display())]
    Shape {
        /// The compressed file.
        file: PathBuf,
        /// The weight.
        tensor: String,
        /// Its shape there.
        found: Vec<u64>,
        /// Its shape in the original.
        expected: Vec<u64>,
        /// The original.
        original: PathBuf,
    },
    /// The two files have no weight in common.
    #[error("{}: has no weight that {} has. These are not the same model", written.display(), original.display())]
    Nothing {
        /// The compressed file.
        written: PathBuf,
        /// The original.
        original: PathBuf,
    },
    /// The text or the inputs do not serve.
    #[error("{}: found {found}, expected {expected}. {next}", file.display())]
    Text {
        /// The file with the text.
        file: PathBuf,
        /// What it holds.
        found: String,
        /// What it should hold.
        expected: String,
        /// What to do about it.
        next: String,
    },
    /// An option that the model cannot have.
    #[error("{0}")]
    Usage(String),
}

impl Error {
    /// Whose fault it is.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Format(e) => e.kind(),
            Self::Loader(e) => e.kind(),
            Self::Pipeline(e) => e.kind(),
            Self::Runtime(e) => e.kind(),
            Self::Interrupted(_) => Kind::Interrupted,
            Self::Shape { .. } | Self::Nothing { .. } | Self::Text { .. } => Kind::Input,
            Self::Usage(_) => Kind::Usage,
        }
    }
}

/// The result of a comparison.
pub type Result<T, E = Error> = std::result::Result<T, E>;
