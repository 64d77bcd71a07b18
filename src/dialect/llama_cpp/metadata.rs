//! The keys that llama.cpp's loader asks for.

use formats::Dtype;
use formats::gguf::{Metadata, Value};

use super::{CONFIG_KEY, family, refuse, tokenizer};
use crate::encoding::Encoding;
use crate::family::{Norm, Position};
use crate::loader::Checkpoint;
use crate::recipe::{Plan, Recipe, Result};

/// The metadata of a GGUF file.
///
/// # Errors
/// A tokenizer that llama.cpp does not have, or none at all.
pub fn metadata(checkpoint: &Checkpoint, recipe: &Recipe, plan: &Plan) -> Result<Metadata> {
    let (_, t, arch) = family(checkpoint)?;
    let mut all = Metadata::default();
    let key = |name: &str| format!("{arch}.{name}");
    let count = |n: usize| Value::U32(n as u32);
    all.push("general.architecture", Value::String(arch.into()));
    all.push("general.type", Value::String("model".into()));
    all.push("general.name", Value::String(name(checkpoint)));
    all.push(key("block_count"), count(t.layers));
    all.push(key("context_length"), count(t.max_positions));
    all.push(key("embedding_length"), count(t.hidden));
    all.push(key("feed_forward_length"), count(t.intermediate));
    all.push(key("attention.head_count"), count(t.heads));
    all.push(key("attention.head_count_kv"), count(t.kv_heads));
    if let Position::Rope(ropes) = &t.position
        && let Some(rope) = ropes.first()
    {
        all.push(key("rope.freq_base"), Value::F32(rope.theta));
        all.push(key("rope.dimension_count"), count(rope.dims));
    }
    match t.norm {
        Norm::Rms { eps, .. } => all.push(key("attention.layer_norm_rms_epsilon"), Value::F32(eps)),
        Norm::Layer { eps } => all.push(key("attention.layer_norm_epsilon"), Value::F32(eps)),
    }
    all.push(key("attention.key_length"), count(t.head_dim));
    all.push(key("attention.value_length"), count(t.head_dim));
    all.push(key("vocab_size"), count(t.vocab));
    all.push("general.file_type", Value::U32(file_type(plan)));
    if plan.steps.iter().any(|step| matches!(step.encoding, Encoding::Plain(dtype) if dtype.is_block())) {
        all.push("general.quantization_version", Value::U32(2));
    }
    let Some(path) = &checkpoint.companions().tokenizer else {
        return Err(refuse(
            checkpoint,
            "there is no tokenizer.json",
            "llama.cpp needs the tokenizer in the file: put tokenizer.json beside the weights",
        ));
    };
    tokenizer::write(path, checkpoint.config(), t.vocab, &mut all).map_err(|(problem, next)| refuse(checkpoint, problem, next))?;
    all.push("modelpress.version", Value::String(env!("CARGO_PKG_VERSION").into()));
    all.push("modelpress.recipe", Value::String(recipe.describe()));
    if let Some(config) = checkpoint.config() {
        all.push(CONFIG_KEY, Value::String(config.to_string()));
    }
    Ok(all)
}

/// The model's name for people: that of its folder, or of its file.
fn name(checkpoint: &Checkpoint) -> String {
    let path = checkpoint.path();
    let full = path.canonicalize();
    let name = full.as_deref().unwrap_or(path).file_stem().map(|name| name.to_string_lossy().into_owned());
    name.unwrap_or_else(|| "model".into())
}

/// llama.cpp's number for what most of the file is (`llama_ftype`).
fn file_type(plan: &Plan) -> u32 {
    let mut bytes = std::collections::BTreeMap::new();
    for step in &plan.steps {
        if let Encoding::Plain(dtype) = step.encoding {
            *bytes.entry(dtype).or_insert(0) += step.elements();
        }
    }
    match bytes.into_iter().max_by_key(|(_, n)| *n) {
        Some((Dtype::F16, _)) => 1,
        Some((Dtype::Q8_0, _)) => 7,
        Some((Dtype::BF16, _)) => 32,
        _ => 0,
    }
}
