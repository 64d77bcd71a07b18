//! What goes wrong when a plan is carried out.

use std::path::PathBuf;

use formats::Kind;

use crate::job::Interrupted;
use crate::{calibration, loader, runtime};

/// What goes wrong when a plan is carried out.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Reading or writing failed.
    #[error(transparent)]
    Format(#[from] formats::Error),
    /// The input changed.
    #[error(transparent)]
    Loader(#[from] loader::Error),
    /// The calibration text does not serve.
    #[error(transparent)]
    Calibration(#[from] calibration::Error),
    /// The model cannot be run.
    #[error(transparent)]
    Runtime(#[from] runtime::Error),
    /// The input's tensors have no names in the Hugging Face dialect.
    #[error(transparent)]
    Recipe(#[from] crate::recipe::Error),
    /// The user asked to stop.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
    /// The output would replace the input.
    #[error("{}: is the input {}; expected another path. Choose an output with -o", output.display(), input.display())]
    OutputIsInput {
        /// The output.
        output: PathBuf,
        /// The input.
        input: PathBuf,
    },
    /// A weight is damaged.
    #[error("{}: tensor `{tensor}`: found NaN or infinity at row {row}, column {column}, expected finite numbers. The model is damaged; download it again", file.display())]
    NonFinite {
        /// The file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// The row of the first such number.
        row: u64,
        /// Its column.
        column: u64,
    },
    /// The output's dtype has no number as large as some of the input's.
    #[error("{}: {values} values are too large for {encoding} and would become infinite, in {}. Use --bf16, or --keep these tensors", file.display(), tensors.join(", "))]
    Overflow {
        /// The model.
        file: PathBuf,
        /// The dtype.
        encoding: String,
        /// How many values.
        values: u64,
        /// In which tensors.
        tensors: Vec<String>,
    },
    /// A plan was carried out before it was decided.
    #[error("tensor `{tensor}`: what is pruned has not been decided; call pipeline::decide before pipeline::write")]
    Undecided {
        /// The first such tensor.
        tensor: String,
    },
    /// Parts that cannot be removed from a model.
    #[error("{}: {why}", file.display())]
    Parts {
        /// The model.
        file: PathBuf,
        /// What stands against it, and what would not.
        why: String,
    },
    /// What an earlier run left to go on from belongs to other work.
    #[error("{}: found what other work left (another model, recipe, text or version), expected that of this one. Remove it, or go on without --resume", file.display())]
    OtherWork {
        /// The journal.
        file: PathBuf,
    },
    /// What choosing codes by a text needs is more than the memory budget.
    #[error(
        "tensor `{tensor}`: choosing its codes by a text takes {needed} bytes, and --memory allows {memory}. Give at least --memory {needed}, or --method search, which needs no text"
    )]
    Calibrating {
        /// The tensor that needs most.
        tensor: String,
        /// Bytes that are needed.
        needed: u64,
        /// Bytes that are allowed.
        memory: u64,
    },
    /// A size that no choice of types comes to.
    #[error("{asked} is below the smallest possible output, which has {least}. Ask for at least that")]
    Unreachable {
        /// What was asked for.
        asked: String,
        /// What the smallest output has.
        least: String,
    },
    /// A row is larger than the memory budget.
    #[error(
        "tensor `{tensor}`: working on one row at a time takes {needed} bytes, and --memory allows {memory}. Give at least --memory {needed}, or fewer --threads"
    )]
    Budget {
        /// The tensor with the longest rows.
        tensor: String,
        /// Bytes that are needed.
        needed: u64,
        /// Bytes that are allowed.
        memory: u64,
    },
}

impl Error {
    /// Whose fault it is.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Format(e) => e.kind(),
            Self::Loader(e) => e.kind(),
            Self::Calibration(e) => e.kind(),
            Self::Runtime(e) => e.kind(),
            Self::Recipe(e) => e.kind(),
            Self::Interrupted(_) => Kind::Interrupted,
            Self::OutputIsInput { .. }
            | Self::Unreachable { .. }
            | Self::Parts { .. }
            | Self::Budget { .. }
            | Self::Calibrating { .. }
            | Self::OtherWork { .. }
            | Self::Undecided { .. } => Kind::Usage,
            Self::NonFinite { .. } => Kind::Input,
            // Infinity in what would be written: the same as a failed check.
            Self::Overflow { .. } => Kind::Check,
        }
    }
}

/// The result of carrying out a plan.
pub type Result<T, E = Error> = std::result::Result<T, E>;
