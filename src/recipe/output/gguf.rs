//! What a GGUF file made from a GGUF file is made of: the same tensors and metadata, of whatever architecture.

use formats::gguf::{Metadata, Value};

use super::{Tensor, Tensors, most_values};
use crate::dialect::llama_cpp as dialect;
use crate::encoding::Encoding;
use crate::loader::{Checkpoint, Piece};
use crate::quantizer::ggml::mixture::Model;
use crate::recipe::{Plan, Recipe, Treatment};

/// Keys that say how a model is cut into files.
const SPLIT: &str = "split.";

/// The tensors as the files have them, in one file.
pub fn tensors(checkpoint: &Checkpoint) -> Tensors {
    let tensor = |(i, weight): (usize, &crate::loader::Weight)| {
        let at = weight.tensors[0];
        let stored = &checkpoint.sources()[at.source].tensors()[at.tensor];
        Tensor {
            name: stored.name.clone(),
            canonical: weight.name.clone(),
            role: weight.role,
            shape: weight.shape.clone(),
            rows: weight.rows,
            cols: weight.cols,
            pieces: vec![Piece::stored(i, weight)],
            only: dialect::only_dtype(&stored.name, stored.shape.len()).filter(|only| stored.dtype == *only),
            made: None,
            file: 0,
        }
    };
    let tensors = checkpoint.weights().iter().enumerate().map(tensor).collect();
    Tensors { files: vec![String::new()], tensors, ..Tensors::default() }
}

/// The metadata as the first file has them, but for what is no longer true.
pub fn metadata(original: &Metadata, recipe: &Recipe, plan: &Plan) -> Metadata {
    let mut all = original.clone();
    all.entries.retain(|(key, _)| !key.starts_with(SPLIT));
    if plan.steps.iter().any(|step| step.treatment != Treatment::Copy) {
        let asked: Vec<u32> = recipe.schemes().iter().filter_map(|s| Some(s.file_type()?.number())).collect();
        let file_type = match asked.as_slice() {
            [one] => *one,
            _ => dialect::file_type(most_values(plan)),
        };
        set(&mut all, "general.file_type", Value::U32(file_type));
    }
    let blocks = |encoding: Encoding| matches!(encoding, Encoding::Plain(dtype) if dtype.is_block());
    if plan.steps.iter().any(|step| blocks(step.encoding)) {
        set(&mut all, "general.quantization_version", Value::U32(2));
    }
    if !recipe.is_conversion() {
        set(&mut all, "modelpress.version", Value::String(env!("CARGO_PKG_VERSION").into()));
        set(&mut all, "modelpress.recipe", Value::String(recipe.describe()));
    }
    all
}

/// Sets a key where it stands, or at the end.
fn set(all: &mut Metadata, key: &str, value: Value) {
    match all.entries.iter_mut().find(|(name, _)| name == key) {
        Some((_, old)) => *old = value,
        None => all.push(key, value),
    }
}

/// What llama-quantize's rules ask of a model, from its metadata.
pub fn model(metadata: &Metadata) -> Model<'_> {
    let architecture = metadata.get_str("general.architecture").unwrap_or_default();
    let count = |key: &str| metadata.get_u64(&format!("{architecture}.{key}"));
    let heads = count("attention.head_count").unwrap_or(0);
    Model {
        architecture,
        layers: count("block_count").unwrap_or(0),
        heads,
        kv_heads: count("attention.head_count_kv").unwrap_or(heads),
        experts: count("expert_count").unwrap_or(0),
    }
}
