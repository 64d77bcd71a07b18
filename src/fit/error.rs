//! What goes wrong when a layer is fitted.

use std::path::PathBuf;

use formats::Kind;

use crate::job::Interrupted;

/// What goes wrong when a layer is fitted.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error(transparent)]
    Format(#[from] formats::Error),
    /// The file does not hold data.
    #[error("{}: found {found}, expected {expected}", file.display())]
    Data {
        /// The file.
        file: PathBuf,
        /// What it holds.
        found: String,
        /// What it should hold.
        expected: String,
    },
    /// No row is left to fit to.
    #[error("none of {rows} rows are left to fit to; give more data or a larger --split")]
    NothingToFit {
        /// Rows of the data.
        rows: usize,
    },
    /// More features than the memory budget has room for.
    #[error("{features} features take {needed} bytes, and --memory allows {memory}. Give at least --memory {needed}")]
    Memory {
        /// Features.
        features: usize,
        /// Bytes that are needed.
        needed: u64,
        /// Bytes that are allowed.
        memory: u64,
    },
    /// The fit has no finite weights.
    #[error("the fit has weights that are not finite; scale the data, or give a --ridge")]
    NotFinite,
    /// The user asked to stop.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

impl Error {
    /// Whose fault it is.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Format(e) => e.kind(),
            Self::Data { .. } => Kind::Input,
            Self::NothingToFit { .. } | Self::Memory { .. } => Kind::Usage,
            Self::NotFinite => Kind::Check,
            Self::Interrupted(_) => Kind::Interrupted,
        }
    }
}

/// The result of fitting.
pub type Result<T, E = Error> = std::result::Result<T, E>;
