//! Original against written: what the compression cost. Always on the sealed, re-opened file, never on what is still in
//! memory.

pub mod chain;
pub mod encoder;
mod error;
pub mod held;
pub mod language;
pub mod statistics;
pub mod text;
pub mod values;
pub mod weights;

use std::sync::Arc;

use serde::Serialize;

use crate::family::{self, Architecture, Transformer};
use crate::job::Job;
use crate::loader::{Checkpoint, Tokenizer};
use crate::recipe::Limits;

pub use error::{Error, Result};
pub use held::HeldBack;
pub use weights::WeightError;

/// How outputs are compared.
#[derive(Debug, Clone)]
pub struct Options {
    /// Text for language models and encoders (one text a line); inputs for chains (.safetensors or .csv). A sample in the
    /// program if absent.
    pub text: Option<std::path::PathBuf>,
    /// Longest window of tokens, special tokens included; the smaller of 512 and the model's if absent.
    pub context: Option<usize>,
    /// Most text tokens that are scored in all.
    pub tokens: usize,
    /// Which predictions of decoders are scored.
    pub scored: Scored,
    /// What is still good enough.
    pub limits: Limits,
}

/// Which predictions of a window of text are scored.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Scored {
    /// Every one.
    #[default]
    All,
    /// Those of the second half of each whole window, as llama.cpp's perplexity scores them.
    SecondHalf,
}

impl Options {
    /// Text tokens that are scored where no flag says otherwise.
    pub const DEFAULT_TOKENS: usize = 4096;
}

/// What the comparison of outputs found. This is `compress check --json`'s object.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "kind")]
pub enum Outputs {
    /// A decoder.
    #[serde(rename = "language-model")]
    Language(language::Comparison),
    /// An encoder.
    #[serde(rename = "encoder")]
    Encoder(encoder::Comparison),
    /// A chain of linear layers.
    #[serde(rename = "linear-chain")]
    Chain(chain::Comparison),
    /// Every number was compared and outputs follow from them: a conversion.
    #[serde(rename = "values")]
    Values {
        /// How many weights were compared.
        weights: usize,
        /// Whether all numbers are the original's, bit for bit.
        passed: bool,
    },
    /// Outputs were not compared; the weights were.
    #[serde(rename = "weights")]
    Weights {
        /// Whether what was compared is good enough.
        passed: bool,
        /// Why outputs were not compared.
        #[serde(skip)]
        why: String,
    },
}

impl Outputs {
    /// Whether the written file is good enough.
    pub fn passed(&self) -> bool {
        match self {
            Self::Language(found) => found.passed,
            Self::Encoder(found) => found.passed,
            Self::Chain(found) => found.passed,
            Self::Values { passed, .. } | Self::Weights { passed, .. } => *passed,
        }
    }

    fn fail(&mut self) {
        match self {
            Self::Language(found) => found.passed = false,
            Self::Encoder(found) => found.passed = false,
            Self::Chain(found) => found.passed = false,
            Self::Values { passed, .. } | Self::Weights { passed, .. } => *passed = false,
        }
    }
}

/// Everything that a check finds.
#[derive(Debug, Clone)]
pub struct Findings {
    /// Each weight's error, in the original's order.
    pub weights: Vec<WeightError>,
    /// Weights of the original that the other file does not have.
    pub missing: Vec<String>,
    /// The outputs.
    pub outputs: Outputs,
    /// What the outputs were computed from: the name of a file, or of the sample.
    pub source: String,
    /// Why the check failed, in words; empty if it passed.
    pub failures: Vec<String>,
}

impl Findings {
    /// Fails unless this weight of the written file has at least so many zeros: those that pruning made, less those that the
    /// encoding is known to have lost.
    pub fn expect_zeros(&mut self, name: &str, expected: u64) {
        let Some(found) = self.weights.iter().find(|weight| weight.name == name) else { return };
        if found.zeros < expected {
            let found = found.zeros;
            self.failures.push(format!("{name} has {found} zeros in the written file, expected at least {expected}"));
            self.outputs.fail();
        }
    }
}

/// Compares two models: every weight, and outputs where the runtime knows the family.
///
/// # Errors
/// Text that cannot be read or is too short, models whose weights have different shapes, an interrupt.
pub fn compare(
    original: &Arc<Checkpoint>,
    written: &Arc<Checkpoint>,
    options: &Options,
    job: &Job,
) -> Result<Findings> {
    compare_to(original, original, written, options, job)
}

/// As [`compare`], with weights compared to those of `source`: what is left of the original where parts were removed.
///
/// # Errors
/// As [`compare`].
pub fn compare_to(
    source: &Arc<Checkpoint>,
    original: &Arc<Checkpoint>,
    written: &Arc<Checkpoint>,
    options: &Options,
    job: &Job,
) -> Result<Findings> {
    let weights::Table { errors, missing } = weights::compare(source, written, job)?;
    let mut failures = Vec::new();
    let broken: Vec<&str> = errors.iter().filter(|e| !e.finite).map(|e| e.name.as_str()).collect();
    if !broken.is_empty() {
        failures.push(format!("NaN or infinity was written in {}", broken.join(", ")));
    }
    let (mut outputs, source) = match outputs(original, written, options, job, &mut failures)? {
        Ok(found) => found,
        Err(why) => (Outputs::Weights { passed: true, why }, String::new()),
    };
    if !broken.is_empty() {
        outputs.fail();
    }
    Ok(Findings { weights: errors, missing, outputs, source, failures })
}

/// The comparison of outputs, or in words why there is none.
fn outputs(
    original: &Arc<Checkpoint>,
    written: &Arc<Checkpoint>,
    options: &Options,
    job: &Job,
    failures: &mut Vec<String>,
) -> Result<Result<(Outputs, String), NotCompared>> {
    let Some(family) = original.family() else {
        return Ok(Err(original.no_family().unwrap_or("the model's family is not known").to_owned()));
    };
    if written.family().is_none() {
        let why = written.no_family().unwrap_or("the compressed model's family is not known");
        return Ok(Err(format!("the compressed model cannot be run: {why}")));
    }
    let found = match family.kind {
        family::Kind::Decoder => language::compare(original, written, options, job, failures)?
            .map(|(found, source)| (Outputs::Language(found), source)),
        family::Kind::Encoder => encoder::compare(original, written, options, job, failures)?
            .map(|(found, source)| (Outputs::Encoder(found), source)),
        family::Kind::Chain => {
            let (found, source) = chain::compare(original, written, options, job, failures)?;
            Ok((Outputs::Chain(found), source))
        }
    };
    Ok(found)
}

/// In words, why outputs are not compared.
pub type NotCompared = String;

/// The original's tokenizer, or why outputs cannot be compared without it.
fn tokenizer(original: &Checkpoint) -> Result<Result<Tokenizer, NotCompared>> {
    match original.tokenizer() {
        // There is one, but none that can be rebuilt.
        Err(e) if original.companions().file("tokenizer.json").is_none() => Ok(Err(e.to_string())),
        found => Ok(found?.ok_or_else(|| match original.gguf() {
            Some(_) => "there is no tokenizer in the file's metadata, and no tokenizer.json beside it".to_owned(),
            None => "there is no tokenizer.json beside the weights".to_owned(),
        })),
    }
}

/// Longest window where no flag says otherwise, if the model takes as much.
const CONTEXT: usize = 512;

/// The longest window, special tokens included.
fn context(original: &Checkpoint, options: &Options) -> Result<usize> {
    let longest = transformer(original)?.max_positions;
    let context = options.context.unwrap_or(CONTEXT.min(longest));
    if context > longest {
        return Err(Error::Usage(format!("--context {context} is more than the model's {longest} positions")));
    }
    Ok(context)
}

fn transformer(original: &Checkpoint) -> Result<&Transformer> {
    match original.family().map(|family| &family.architecture) {
        Some(Architecture::Transformer(shape)) => Ok(shape),
        _ => Err(Error::Usage("this model is no transformer".to_owned())),
    }
}
