//! What can be typed.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::check::Scored;
use crate::encoding::Inputs;
use crate::pipeline::quantize;
use crate::pruner::parts::Layers;
use crate::pruner::{Fraction, Method, Pattern, Scope};
use crate::quantizer;

/// Compress model weights, prove the written file against the original, and refuse it when it is bad.
#[derive(Debug, Parser)]
#[command(name = "compress", version, args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
#[command(after_help = "Exit codes: 0 done, 1 check failed, 2 usage, 3 bad input, 4 input/output, 130 interrupted.")]
pub struct Cli {
    /// Another command than compressing.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Compressing.
    #[command(flatten)]
    pub compress: CompressArgs,
}

/// Commands other than compressing.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Change a model's format and keep its numbers: safetensors and GGUF, files, folders and shards
    Convert(ConvertArgs),
    /// Show a model's format, family, size and tensors
    Inspect(InspectArgs),
    /// Compare a compressed model with its original
    Check(CheckArgs),
    /// Continue a prompt, embed texts, or predict, by what the model is
    Run(RunArgs),
    /// Measure models side by side, and the machine they run on
    Bench(BenchArgs),
    /// Fit a linear layer to data by least squares
    Fit(FitArgs),
}

/// Which weights are treated how.
#[derive(Debug, Args)]
pub struct RecipeArgs {
    /// Symmetric int8, one scale for each output row (W8A8, for transformers and vLLM)
    #[arg(long, group = "treatment")]
    pub int8: bool,
    /// Symmetric int4 in groups of 128, inputs in float (W4A16)
    #[arg(long, group = "treatment")]
    pub int4: bool,
    /// Half precision
    #[arg(long, group = "treatment")]
    pub f16: bool,
    /// Brain floating point
    #[arg(long, group = "treatment")]
    pub bf16: bool,
    /// A scheme by name: int8, w4a16, w8a16, fp8, f16, bf16, or a GGUF file type such as q8_0, q4_k_m, q4_0
    #[arg(long, value_name = "NAME", group = "treatment")]
    pub scheme: Option<String>,
    /// A list of rules, the first that matches a weight decides (TOML)
    #[arg(long, value_name = "FILE", group = "treatment")]
    pub recipe: Option<PathBuf>,
    /// Remove this share of each linear layer's weights first: a fraction, or N:M to keep N of every M along the inputs
    #[arg(long, value_name = "FRACTION|N:M", conflicts_with = "recipe", allow_negative_numbers = true)]
    pub prune: Option<Pattern>,
    /// By which measure weights are removed: magnitude, wanda, sparsegpt; the latter two need --calibrate [default: magnitude]
    #[arg(long, value_name = "METHOD", requires = "prune")]
    pub prune_method: Option<Method>,
    /// Among which weights the least are looked for: row, tensor, global [default: row]
    #[arg(long, value_name = "SCOPE", requires = "prune")]
    pub prune_scope: Option<Scope>,
    /// Remove this share of the attention heads of every layer, with the keys and values that they share; needs --calibrate
    #[arg(long, value_name = "FRACTION", conflicts_with = "recipe", allow_negative_numbers = true)]
    pub prune_heads: Option<Fraction>,
    /// Remove this share of the neurons of every feed-forward part; needs --calibrate
    #[arg(long, value_name = "FRACTION", conflicts_with = "recipe", allow_negative_numbers = true)]
    pub prune_neurons: Option<Fraction>,
    /// Remove the N layers that change their input least, which needs --calibrate, or those of a list: 5,6, or 5, for one
    #[arg(long, value_name = "N|LIST", conflicts_with = "recipe", allow_negative_numbers = true)]
    pub prune_layers: Option<Layers>,
    /// Keep weights whose name matches this regular expression; may be repeated
    #[arg(long, value_name = "REGEX", conflicts_with = "recipe")]
    pub keep: Vec<String>,
    /// Quantize embeddings and the output head of decoders too (vLLM cannot read them so)
    #[arg(long, conflicts_with = "recipe")]
    pub embeddings: bool,
    /// w4a16 and w8a16: columns that share a scale, 0 for whole rows [default: 128]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(0..=1 << 20))]
    pub group_size: Option<u64>,
    /// GGUF: the scheme's one type for every matrix, instead of llama-quantize's mixture
    #[arg(long)]
    pub pure: bool,
    /// Search scales by least squared error; same format and size, never worse. Short for --method search
    #[arg(long, conflicts_with = "method")]
    pub search: bool,
    /// How codes are looked for: rtn (to nearest), search (scales), awq, gptq, best; the latter three need --calibrate [default:
    /// best with --calibrate, else rtn]
    #[arg(long, value_name = "METHOD")]
    pub method: Option<quantizer::Method>,
    /// GGUF: llama.cpp's importance matrix, to weight errors by
    #[arg(long, value_name = "FILE")]
    pub imatrix: Option<PathBuf>,
}

/// How outputs are compared.
#[derive(Debug, Args)]
pub struct CheckOptions {
    /// Text to compute outputs on; for linear chains, inputs (.safetensors or .csv). A sample is built in
    #[arg(long, value_name = "FILE")]
    pub text: Option<PathBuf>,
    /// Longest window in tokens [default: the smaller of 512 and the model's]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(2..=1 << 24))]
    pub context: Option<u64>,
    /// Which predictions of decoders are scored: all, or those of the second half of each window, as llama.cpp's perplexity does
    #[arg(long, value_enum, value_name = "all|second-half", default_value_t = Score::All)]
    pub score: Score,
    /// Most tokens that are scored
    #[arg(long, value_name = "N", default_value_t = 4096, value_parser = clap::value_parser!(u64).range(1..))]
    pub check_tokens: u64,
    /// Largest mean KL divergence that passes, for decoders [default: the scheme's]. Without a scheme, the smallest file is made
    /// that passes, with a type for each tensor; needs --calibrate
    #[arg(long, value_name = "X")]
    pub max_kl: Option<f64>,
    /// Least mean cosine that passes, for encoders and chains [default: the scheme's]
    #[arg(long, value_name = "X")]
    pub min_cosine: Option<f64>,
}

/// A step of the best method of quantizing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
#[allow(missing_docs)] // `pipeline::quantize::Step` says it.
pub enum Without {
    Drift,
    Residual,
    Outputs,
    Embedding,
}

impl From<Without> for quantize::Step {
    fn from(without: Without) -> Self {
        match without {
            Without::Drift => Self::Drift,
            Without::Residual => Self::Residual,
            Without::Outputs => Self::Outputs,
            Without::Embedding => Self::Embedding,
        }
    }
}

/// Which predictions are scored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Score {
    /// Every one.
    All,
    /// Those of the second half of each window.
    SecondHalf,
}

impl From<Score> for Scored {
    fn from(score: Score) -> Self {
        match score {
            Score::All => Self::All,
            Score::SecondHalf => Self::SecondHalf,
        }
    }
}

/// What is learned from a text before anything is changed.
#[derive(Debug, Args)]
pub struct CalibrationArgs {
    /// Text that shows what the inputs of each weight look like
    #[arg(long, value_name = "TEXT")]
    pub calibrate: Option<PathBuf>,
    /// Keep what the text showed in this file, for --calibration
    #[arg(long, value_name = "FILE")]
    pub calibration_out: Option<PathBuf>,
    /// Take what a text showed from a file that --calibration-out wrote, instead of from a text
    #[arg(long, value_name = "FILE", conflicts_with = "calibrate")]
    pub calibration: Option<PathBuf>,
    /// Most tokens of that text
    #[arg(long, value_name = "N", requires = "calibrate", default_value_t = 32_768, value_parser = clap::value_parser!(u64).range(2..=1 << 32))]
    pub calibrate_tokens: u64,
    /// Leave out a step of the best method, to see what it gains
    #[arg(long, value_enum, value_name = "STEP", hide = true)]
    pub without: Vec<Without>,
    /// Keep what was done when quantizing by a text is interrupted, and go on from it
    #[arg(long, requires = "calibrate")]
    pub resume: bool,
    /// Refit what is left of each pruned layer to give the original layer's outputs on that text
    #[arg(long, requires = "prune")]
    pub recover: bool,
    /// How much large weights are held against a refit
    #[arg(long, value_name = "LAMBDA", requires = "recover", value_parser = ridge, allow_negative_numbers = true)]
    pub ridge: Option<f64>,
    /// Refit by so many steps of gradient descent, instead of in closed form
    #[arg(long, value_name = "N", requires = "recover", value_parser = clap::value_parser!(u64).range(1..=1 << 20))]
    pub steps: Option<u64>,
}

fn ridge(text: &str) -> Result<f64, String> {
    let expected = || format!("`{text}` is no number from 0");
    text.parse().ok().filter(|ridge: &f64| ridge.is_finite() && *ridge >= 0.0).ok_or_else(expected)
}

/// Resources, and how results are told.
#[derive(Debug, Args)]
pub struct Common {
    /// Threads [default: one for each core]
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    pub threads: usize,
    /// Most memory in use beyond the mapped input [default: 512MiB; where a text chooses codes, a quarter of the machine's, 3GiB at most]
    #[arg(long, value_name = "SIZE")]
    pub memory: Option<bytesize::ByteSize>,
    /// Read the input by offset instead of mapping it (for network file systems)
    #[arg(long)]
    pub no_mmap: bool,
    /// Print one JSON object on standard output
    #[arg(long)]
    pub json: bool,
    /// Print nothing but errors
    #[arg(short, long, conflicts_with = "verbose")]
    pub quiet: bool,
    /// Print what becomes of every tensor
    #[arg(short, long)]
    pub verbose: bool,
}

/// Types are chosen for each tensor, by what a text shows, so that the whole has a size.
#[derive(Debug, Args)]
pub struct BudgetArgs {
    /// Choose a type for each tensor, so that the weight files take at most this and harm least; needs --calibrate
    #[arg(long, value_name = "SIZE", group = "treatment")]
    pub target_size: Option<bytesize::ByteSize>,
    /// The same, with so many bits for a number, in the mean over all tensors
    #[arg(long, value_name = "B", group = "treatment", value_parser = bits)]
    pub target_bits: Option<f64>,
    /// What is written where types are chosen: gguf, or safetensors with the types that vLLM reads [default: by -o, else gguf]
    #[arg(long, value_name = "FORMAT")]
    pub to: Option<To>,
}

fn bits(text: &str) -> Result<f64, String> {
    let expected = || format!("`{text}` is no number above 0");
    text.parse().ok().filter(|bits: &f64| bits.is_finite() && *bits > 0.0).ok_or_else(expected)
}

/// `compress MODEL`.
#[derive(Debug, Args)]
pub struct CompressArgs {
    /// A safetensors, GGUF, npz or PyTorch file, or a folder with model.safetensors, pytorch_model.bin or an index of shards
    #[arg(value_name = "MODEL", required = true)]
    pub model: Option<PathBuf>,
    #[command(flatten)]
    pub recipe: RecipeArgs,
    #[command(flatten)]
    pub budget: BudgetArgs,
    #[command(flatten)]
    pub calibration: CalibrationArgs,
    /// Where to write [default: NAME-SCHEME.safetensors or the folder NAME-SCHEME, beside the input]
    #[arg(short, long, value_name = "OUT")]
    pub output: Option<PathBuf>,
    #[command(flatten)]
    pub write: WriteArgs,
}

/// `compress convert`.
#[derive(Debug, Args)]
pub struct ConvertArgs {
    /// A safetensors or GGUF file, or a folder with shards or parts
    #[arg(value_name = "IN")]
    pub model: PathBuf,
    /// Where to write: NAME.gguf or NAME.safetensors for one file, another name for a Hugging Face folder
    #[arg(value_name = "OUT", required_unless_present = "named")]
    pub output: Option<PathBuf>,
    /// The same as OUT
    #[arg(short = 'o', long = "output", id = "named", value_name = "OUT", conflicts_with = "output")]
    pub named: Option<PathBuf>,
    /// The format of the output [default: by its name]
    #[arg(long, value_name = "FORMAT")]
    pub to: Option<To>,
    /// Store floats as this dtype; norms and biases of GGUF stay f32 [default: as they are]
    #[arg(long, value_name = "DTYPE")]
    pub dtype: Option<Float>,
    /// Unpack quantized weights to floats [of --dtype; default: the scales' dtype, f16 for GGUF's blocks]
    #[arg(long)]
    pub dequantize: bool,
    /// Write a folder's weights in files of at most this size, with an index [default: the input's files]
    #[arg(long, value_name = "SIZE")]
    pub shard_size: Option<bytesize::ByteSize>,
    #[command(flatten)]
    pub write: WriteArgs,
}

/// A container by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum To {
    /// One GGUF file
    Gguf,
    /// A safetensors file, or a Hugging Face folder
    Safetensors,
}

/// A float by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
#[allow(missing_docs)] // The names say it.
pub enum Float {
    F32,
    F16,
    Bf16,
}

/// How an output is checked and published.
#[derive(Debug, Args)]
pub struct WriteArgs {
    #[command(flatten)]
    pub check: CheckOptions,
    /// Keep the output even if its check fails
    #[arg(long)]
    pub accept: bool,
    /// Do not check the output
    #[arg(long, conflicts_with = "accept")]
    pub no_check: bool,
    /// Show what would become of every tensor, and the size, without reading a weight
    #[arg(long)]
    pub dry_run: bool,
    /// Replace an earlier output
    #[arg(long)]
    pub force: bool,
    /// Store tensors that are mostly zero as a bit for each number and those that are not zero; only this program reads that
    #[arg(long)]
    pub sparse: bool,
    #[command(flatten)]
    pub common: Common,
}

/// `compress inspect`.
#[derive(Debug, Args)]
pub struct InspectArgs {
    /// The model
    #[arg(value_name = "MODEL")]
    pub model: PathBuf,
    #[command(flatten)]
    pub recipe: RecipeArgs,
    /// Show what storing each tensor in each type of GGUF would do to predictions, the worst first
    #[arg(long, requires = "calibrate", conflicts_with_all = ["treatment", "prune", "keep"])]
    pub sensitivity: bool,
    /// Text that shows it
    #[arg(long, value_name = "TEXT", requires = "sensitivity")]
    pub calibrate: Option<PathBuf>,
    /// Most tokens of that text
    #[arg(long, value_name = "N", requires = "calibrate", default_value_t = 32_768, value_parser = clap::value_parser!(u64).range(2..=1 << 32))]
    pub calibrate_tokens: u64,
    #[command(flatten)]
    pub common: Common,
}

/// `compress check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// The original model
    #[arg(value_name = "ORIGINAL")]
    pub original: PathBuf,
    /// The compressed model
    #[arg(value_name = "COMPRESSED")]
    pub compressed: PathBuf,
    /// How the compressed model takes the inputs of linear layers with integer weights, whatever it declares
    #[arg(long, value_enum, value_name = "int8|float")]
    pub activations: Option<Activations>,
    #[command(flatten)]
    pub check: CheckOptions,
    #[command(flatten)]
    pub common: Common,
}

/// How linear layers take their inputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Activations {
    /// Rounded to int8: the product is one of integers.
    Int8,
    /// As they are.
    Float,
}

impl From<Activations> for Inputs {
    fn from(activations: Activations) -> Self {
        match activations {
            Activations::Int8 => Inputs::Int8,
            Activations::Float => Inputs::Float,
        }
    }
}

/// `compress run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// The model: a decoder, an encoder, or a chain of linear layers
    #[arg(value_name = "MODEL")]
    pub model: PathBuf,
    /// For a decoder: the text to continue
    #[arg(long, value_name = "TEXT", group = "input", required = true)]
    pub prompt: Option<String>,
    /// For an encoder: texts to embed, one a line
    #[arg(long, value_name = "FILE", group = "input")]
    pub text: Option<PathBuf>,
    /// For a linear chain: inputs to predict from (.safetensors or .csv)
    #[arg(long, value_name = "FILE", group = "input")]
    pub inputs: Option<PathBuf>,
    /// Most tokens to add to the prompt
    #[arg(long, value_name = "N", default_value_t = 128)]
    pub max_tokens: usize,
    /// Draw tokens at random, the more freely the higher; 0 takes the likeliest
    #[arg(long, value_name = "T", default_value_t = 0.0, value_parser = temperature)]
    pub temperature: f32,
    /// Draw only from the likeliest tokens whose probabilities reach P together
    #[arg(long, value_name = "P", default_value_t = 1.0, value_parser = probability)]
    pub top_p: f32,
    /// Drawing with the same seed gives the same text
    #[arg(long, value_name = "S", default_value_t = 0)]
    pub seed: u64,
    /// Put the prompt into the model's chat template, and print the answer only
    #[arg(long, conflicts_with_all = ["text", "inputs"])]
    pub chat: bool,
    /// How linear layers with integer weights take their inputs, whatever the file declares: rounded to int8, or as they are
    #[arg(long, value_enum, value_name = "int8|float")]
    pub activations: Option<Activations>,
    #[command(flatten)]
    pub common: Common,
}

/// `compress bench`.
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// The models; the others are compared with the first
    #[arg(value_name = "MODEL", required_unless_present = "machine")]
    pub models: Vec<PathBuf>,
    /// Tokens of the prompt, or of each sentence for an encoder [default: 512, encoders 16, or what the model has room for]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1 << 24))]
    pub prompt_tokens: Option<u64>,
    /// Tokens to decode after the prompt [default: 64, or what the model has room for]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1 << 24))]
    pub tokens: Option<u64>,
    /// Times that each model is measured, in turn with the others
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=1000))]
    pub repeat: u64,
    /// Print which kernel multiplies each encoding, and why; without a model, print the machine's roof only
    #[arg(long)]
    pub machine: bool,
    /// Measure the model once, in this process
    #[arg(long, hide = true, requires = "models", conflicts_with = "json")]
    pub one_round: bool,
    #[command(flatten)]
    pub common: Common,
}

/// `compress fit`.
#[derive(Debug, Args)]
pub struct FitArgs {
    /// The data: .csv with the targets in the last columns, or .safetensors or .npz with `x` and `y`
    #[arg(value_name = "DATA")]
    pub data: PathBuf,
    /// The model to write
    #[arg(short, long, value_name = "OUT.safetensors")]
    pub output: PathBuf,
    /// Of a .csv: how many of the last columns are targets
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1 << 20))]
    pub targets: u64,
    /// How much large weights are held against the fit
    #[arg(long, value_name = "LAMBDA", default_value_t = 0.0, value_parser = ridge, allow_negative_numbers = true)]
    pub ridge: f64,
    /// The share of the rows that is fitted to; on the others the fit is evaluated
    #[arg(long, value_name = "SHARE", default_value = "0.75", allow_negative_numbers = true)]
    pub split: Fraction,
    /// Which rows these are, and where descent begins
    #[arg(long, value_name = "S", default_value_t = 0)]
    pub seed: u64,
    /// Fit by so many steps of gradient descent, instead of in closed form
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1 << 32))]
    pub steps: Option<u64>,
    /// Replace an earlier output
    #[arg(long)]
    pub force: bool,
    #[command(flatten)]
    pub common: Common,
}

fn temperature(text: &str) -> Result<f32, String> {
    match text.parse() {
        Ok(x) if (0.0..=100.0).contains(&x) => Ok(x),
        _ => Err("expected a number from 0 to 100".into()),
    }
}

fn probability(text: &str) -> Result<f32, String> {
    match text.parse() {
        Ok(x) if x > 0.0 && x <= 1.0 => Ok(x),
        _ => Err("expected a number above 0, at most 1".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn commands_and_flags_parse() {
        let cli = Cli::parse_from(["compress", "m.safetensors", "--int8", "--keep", "a", "--keep", "b"]);
        assert!(cli.compress.recipe.int8 && cli.compress.recipe.keep == ["a", "b"]);
        assert!(cli.compress.write.common.memory.is_none());
        assert!(matches!(Cli::parse_from(["compress", "inspect", "m"]).command, Some(Command::Inspect(_))));
        for wrong in [
            &["compress"][..],
            &["compress", "m", "--int8", "--f16"],
            &["compress", "m", "--int8", "--check-tokens", "0"],
            &["compress", "m", "--recipe", "r", "--embeddings"],
            &["compress", "check", "m"],
            &["compress", "run", "m"],
            &["compress", "run", "m", "--prompt", "a", "--text", "b"],
            &["compress", "run", "m", "--prompt", "a", "--temperature", "-1"],
            &["compress", "run", "m", "--prompt", "a", "--top-p", "0"],
            &["compress", "run", "m", "--text", "a", "--chat"],
            &["compress", "bench"],
            &["compress", "bench", "m", "--repeat", "0"],
            &["compress", "bench", "m", "--prompt-tokens", "0"],
            &["compress", "bench", "m", "--tokens", "x"],
        ] {
            assert!(Cli::try_parse_from(wrong).is_err(), "{wrong:?}");
        }
    }
}
