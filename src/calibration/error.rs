//! What goes wrong when a model is calibrated.

use std::path::PathBuf;

use formats::Kind;

use crate::{loader, runtime};

/// What goes wrong when a model is calibrated.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The text cannot be read.
    #[error(transparent)]
    Format(#[from] formats::Error),
    /// The tokenizer cannot be read.
    #[error(transparent)]
    Loader(#[from] loader::Error),
    /// The model cannot be run.
    #[error(transparent)]
    Runtime(#[from] runtime::Error),
    /// The text does not serve.
    #[error("--calibrate {}: found {found}, expected {expected}", file.display())]
    Text {
        /// The file.
        file: PathBuf,
        /// What it holds.
        found: String,
        /// What it should hold.
        expected: String,
    },
    /// A calibration file that does not serve.
    #[error("--calibration {}: found {found}, expected {expected}", file.display())]
    Recorded {
        /// The file.
        file: PathBuf,
        /// What it holds.
        found: String,
        /// What it should hold.
        expected: String,
    },
    /// A model through which no text can be led.
    #[error("{}: cannot be calibrated: {why}", file.display())]
    Model {
        /// The model.
        file: PathBuf,
        /// What it lacks.
        why: String,
    },
}

impl Error {
    /// Whose fault it is.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Format(e) => e.kind(),
            Self::Loader(e) => e.kind(),
            Self::Runtime(e) => e.kind(),
            Self::Recorded { .. } => Kind::Input,
            Self::Text { .. } | Self::Model { .. } => Kind::Usage,
        }
    }
}

/// The result of calibrating.
pub type Result<T, E = Error> = std::result::Result<T, E>;
