//! What goes wrong when a recipe is read or meets a model.

use std::path::PathBuf;

use formats::Kind;

use crate::encoding::Unfit;
use crate::loader;

/// What goes wrong when a recipe is read or meets a model.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The recipe file does not say what a recipe must.
    #[error("{}: {found}; expected {expected}", file.display())]
    Recipe {
        /// The recipe.
        file: PathBuf,
        /// What it says.
        found: String,
        /// What it should say.
        expected: String,
    },
    /// An option that cannot be.
    #[error("{0}")]
    Usage(String),
    /// The model is quantized already.
    #[error("{}: is already quantized ({found}); expected f32, f16, bf16 or f64 weights. Give the original model, or unpack this one first: compress convert MODEL OUT --dequantize", file.display())]
    AlreadyQuantized {
        /// The model.
        file: PathBuf,
        /// In which form.
        found: String,
    },
    /// The output's container cannot hold weights as they are stored.
    #[error("{}: has weights in encodings that {target} does not hold: {found}. Unpack them to floats with --dequantize", file.display())]
    NotHeld {
        /// The model.
        file: PathBuf,
        /// The encodings, and how many weights have them.
        found: String,
        /// The container.
        target: &'static str,
    },
    /// A quantized form that cannot be read.
    #[error("{}: cannot be unpacked: its weights are quantized as {found}, which this version does not read. Give the original model", file.display())]
    NotUnpackable {
        /// The model.
        file: PathBuf,
        /// In which form.
        found: String,
    },
    /// A tensor that a family knows as numbers and that is something else.
    #[error("{}: tensor `{name}` is {found}; expected f32, f16, bf16 or f64. Give the model with its weights as floats", file.display())]
    NoNumbers {
        /// The model.
        file: PathBuf,
        /// The tensor.
        name: String,
        /// What it is.
        found: String,
    },
    /// A tensor that the output cannot hold as it is, nor as a float.
    #[error("{}: tensor `{name}` cannot be written: {unfit}. Leave it out of the input", file.display())]
    Unfit {
        /// The model.
        file: PathBuf,
        /// The tensor.
        name: String,
        /// What it would need.
        unfit: Unfit,
    },
    /// The output cannot be laid out.
    #[error(transparent)]
    Format(#[from] formats::Error),
    /// The tokenizer or another file beside the weights cannot be read.
    #[error(transparent)]
    Loader(#[from] loader::Error),
    /// The model cannot be said in the target's dialect.
    #[error("{}: cannot be written as {target}: {problem}. {next}", file.display())]
    Dialect {
        /// The model.
        file: PathBuf,
        /// The dialect.
        target: &'static str,
        /// What cannot be said.
        problem: String,
        /// What to do about it.
        next: String,
    },
}

impl Error {
    /// Whose fault it is.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Recipe { .. } | Self::Usage(_) | Self::NotHeld { .. } => Kind::Usage,
            Self::AlreadyQuantized { .. }
            | Self::NotUnpackable { .. }
            | Self::Dialect { .. }
            | Self::NoNumbers { .. }
            | Self::Unfit { .. } => Kind::Input,
            Self::Format(e) => e.kind(),
            Self::Loader(e) => e.kind(),
        }
    }
}

/// The result of planning.
pub type Result<T, E = Error> = std::result::Result<T, E>;
