//! What goes wrong when a model is opened.

use std::path::PathBuf;

use formats::Kind;

/// What goes wrong when a model is opened.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A weight file cannot be read.
    #[error(transparent)]
    Format(#[from] formats::Error),
    /// A folder without weights that this program reads.
    #[error("{}: found no model.safetensors, no pytorch_model.bin, no index of either, and no single .safetensors, .gguf, .onnx, .npz or .pt file. Give the folder or the file that holds the weights", folder.display())]
    NoWeights {
        /// The folder.
        folder: PathBuf,
    },
    /// Shards that the index lists are not there.
    #[error("{}: lists {} that the folder lacks: {}Download the missing files", index.display(), count(missing.len(), "shard"), listed(missing))]
    MissingShards {
        /// The index.
        index: PathBuf,
        /// All shards that are missing.
        missing: Vec<String>,
    },
    /// Parts of a split GGUF file that are not there.
    #[error("{}: found no {}: {}. Download the missing parts into this folder", folder.display(), count(missing.len(), "part"), missing.join(", "))]
    MissingParts {
        /// The folder.
        folder: PathBuf,
        /// All parts that are missing.
        missing: Vec<String>,
    },
    /// A part of a split GGUF file says something else of itself than its name.
    #[error("{}: found {found}, expected {expected}. Download the parts again, each under its own name", file.display())]
    Part {
        /// The part.
        file: PathBuf,
        /// What it says.
        found: String,
        /// What it should say.
        expected: String,
    },
    /// Tensors that the index promises are in no shard, or not in the one named.
    #[error("{}: lists {} that are not in their shards: {}The shards and the index are of different models; download both again", index.display(), count(missing.len(), "tensor"), listed(missing))]
    MissingTensors {
        /// The index.
        index: PathBuf,
        /// Each tensor with its shard.
        missing: Vec<String>,
    },
    /// Two shards hold a tensor of the same name.
    #[error("{}: tensor `{tensor}` is also in {}; expected each name once. Remove the shard that does not belong here", second.display(), first.display())]
    DuplicateTensor {
        /// The tensor.
        tensor: String,
        /// The shard that was read first.
        first: PathBuf,
        /// The shard that repeats it.
        second: PathBuf,
    },
    /// A JSON file beside the weights does not parse or does not say what it must.
    #[error("{}: found {found}, expected {expected}. {next}", file.display())]
    Companion {
        /// The file.
        file: PathBuf,
        /// What it holds.
        found: String,
        /// What it should hold.
        expected: String,
        /// What to do about it.
        next: String,
    },
    /// The config describes other tensors than the weight files hold.
    #[error("{}: the config of a {family} does not fit the tensors: {}Use the config.json that came with these weights", config.display(), listed(problems))]
    ConfigMismatch {
        /// The config.
        config: PathBuf,
        /// The family.
        family: String,
        /// Everything that does not fit.
        problems: Vec<String>,
    },
}

fn count(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

/// All of a list: a few in a sentence, more on lines of their own.
fn listed(all: &[String]) -> String {
    const FEW: usize = 4;
    if all.len() <= FEW {
        return format!("{}. ", all.join("; "));
    }
    let lines: Vec<String> = all.iter().map(|one| format!("\n  {one}")).collect();
    format!("{}\n", lines.concat())
}

impl Error {
    /// Whose fault it is.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Format(e) => e.kind(),
            _ => Kind::Input,
        }
    }
}

/// The result of opening a model.
pub type Result<T, E = Error> = std::result::Result<T, E>;
