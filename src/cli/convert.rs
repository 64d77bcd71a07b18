//! `compress convert`: another container and dialect, the same numbers.

use std::path::Path;
use std::time::Instant;

use formats::Format;

use super::args::{ConvertArgs, Float, To};
use super::{Failure, progress, write};
use crate::recipe::{Plan, Recipe, Scheme, Target};

pub fn run(args: &ConvertArgs) -> Result<(), Failure> {
    let output = args.output.as_ref().or(args.named.as_ref());
    let output = output.ok_or_else(|| Failure::Usage("no output given".into()))?;
    let target = target(output, args.to)?;
    let shard = args.shard_size.map(|size| size.0);
    if shard == Some(0) {
        return Err(Failure::Usage("--shard-size 0: expected a size such as 5GB".into()));
    }
    if shard.is_some() && target != Target::Folder {
        return Err(Failure::Usage(format!(
            "{}: --shard-size is for a Hugging Face folder; expected an output without extension",
            output.display()
        )));
    }
    let checkpoint = write::open(&args.model, &args.write.common)?;
    let dtype = args.dtype.map(|dtype| match dtype {
        Float::F32 => Scheme::F32,
        Float::F16 => Scheme::F16,
        Float::Bf16 => Scheme::BF16,
    });
    let recipe = Recipe::conversion(dtype, args.dequantize);
    let plan = Plan::in_shards(&checkpoint, &recipe, target, shard, output)?;
    let job = progress::job(&args.write.common)?;
    let input = write::Input { original: &checkpoint, reshaped: None, started: Instant::now() };
    write::run(&input, &recipe, plan, None, output, &args.write, &job)
}

/// What is written: by `--to`, else by the output's extension.
fn target(output: &Path, to: Option<To>) -> Result<Target, Failure> {
    let extension = output.extension().and_then(|ext| ext.to_str());
    let named = match extension {
        Some("gguf") => Some(Target::File(Format::Gguf)),
        Some("safetensors") => Some(Target::File(Format::Safetensors)),
        Some("onnx") if to.is_none() => Some(Target::File(Format::Onnx)),
        Some("npz") => Some(Target::File(Format::Npz)),
        Some("pt" | "pth" | "bin") if to.is_none() => Some(Target::File(Format::Pytorch)),
        _ => None,
    };
    let refuse = |to: &str, next: &str| {
        let output = output.display();
        Err(Failure::Usage(format!(
            "{output}: --to {to} does not fit this name; expected {next}. Change one of the two"
        )))
    };
    match (to, named) {
        (None | Some(To::Safetensors), None) => Ok(Target::Folder),
        (None, Some(named)) => Ok(named),
        (Some(To::Gguf), None | Some(Target::File(Format::Gguf))) => Ok(Target::File(Format::Gguf)),
        (Some(To::Gguf), _) => refuse("gguf", "NAME.gguf"),
        (Some(To::Safetensors), Some(Target::File(Format::Safetensors))) => Ok(Target::File(Format::Safetensors)),
        (Some(To::Safetensors), Some(_)) => refuse("safetensors", "NAME.safetensors or a folder"),
    }
}
