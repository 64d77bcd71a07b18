//! llama.cpp's dialect: its names, its row order for rotated heads, its metadata keys (ggml's `docs/gguf.md`, and what
//! llama.cpp's loader asks for).

mod metadata;
mod tokenizer;

use formats::gguf::Metadata;
use formats::{Dtype, TensorMeta};
use serde_json::{Value, json};

use super::{Tensor, Tensors};
use crate::family::{Architecture, Family, Position, RopeScaling, Transformer};
use crate::loader::{Checkpoint, Piece, Weight, matrix};
use crate::recipe::{Error, Result};

pub use metadata::metadata;

/// The key under which our own files carry the original `config.json`, so that it returns exactly.
pub(crate) const CONFIG_KEY: &str = "modelpress.config";

fn refuse(checkpoint: &Checkpoint, problem: impl Into<String>, next: impl Into<String>) -> Error {
    Error::Dialect {
        file: checkpoint.path().to_owned(),
        target: "GGUF for llama.cpp",
        problem: problem.into(),
        next: next.into(),
    }
}

fn family(checkpoint: &Checkpoint) -> Result<(&Family, &Transformer, &'static str)> {
    let Some(family) = checkpoint.family() else {
        let why = checkpoint.no_family().unwrap_or("its family is not known");
        return Err(refuse(checkpoint, why, "Give a folder with the model's config.json, of a supported family"));
    };
    match (&family.architecture, family.gguf) {
        (Architecture::Transformer(t), Some(name)) => Ok((family, t, name)),
        _ => Err(refuse(
            checkpoint,
            format!("llama.cpp has no architecture for a {}", family.name),
            "Write safetensors instead: -o NAME.safetensors",
        )),
    }
}

/// The tensors of a checkpoint as llama.cpp names and orders them.
///
/// # Errors
/// A family that llama.cpp does not have, or that is not known.
pub fn tensors(checkpoint: &Checkpoint) -> Result<Tensors> {
    let (family, transformer, _) = family(checkpoint)?;
    let mut tensors = Tensors { files: vec![String::new()], ..Tensors::default() };
    let mut used = vec![false; checkpoint.weights().len()];
    for expected in family.tensors() {
        let Some(at) = expected.names.iter().find_map(|name| checkpoint.find(name)) else { continue };
        let weight = &checkpoint.weights()[at];
        used[at] = true;
        let Some(place) = &expected.gguf else {
            tensors.notes.push(format!("{}: llama.cpp has no place for it; left out", weight.name));
            continue;
        };
        if place.stacked {
            return Err(refuse(checkpoint, "its experts must be stacked", "Mixtures of experts cannot be written as GGUF yet"));
        }
        let mut shape = weight.shape.clone();
        if expected.transposed {
            shape.reverse();
        }
        let (rows, cols) = matrix(expected.role, &shape);
        let piece = Piece {
            weight: at,
            rows: 0..if shape.len() == 1 { 1 } else { rows },
            order: if shape.len() == 1 { crate::family::RowOrder::Same } else { place.rows },
            transpose: expected.transposed,
            shift: place.value_shift,
        };
        if shape.len() == 1 && place.rows != crate::family::RowOrder::Same {
            return Err(refuse(
                checkpoint,
                format!("`{}` is a bias of rotated heads", weight.name),
                "Models with attention biases cannot be written as GGUF yet",
            ));
        }
        tensors.tensors.push(Tensor {
            name: place.name.clone(),
            canonical: weight.name.clone(),
            role: expected.role,
            shape,
            rows,
            cols,
            pieces: vec![piece],
            file: 0,
        });
    }
    let rest = checkpoint.weights().iter().zip(used).filter(|(weight, used)| !used && !family.ignores(&weight.name));
    tensors.notes.extend(rest.map(|(weight, _)| format!("{}: llama.cpp has no place for it; left out", weight.name)));
    if let Some(factors) = rope_factors(transformer) {
        let meta = TensorMeta::new("rope_freqs.weight", Dtype::F32, vec![factors.len() as u64]);
        tensors.constants.push((meta, factors.iter().flat_map(|x| x.to_le_bytes()).collect()));
    }
    Ok(tensors)
}

/// What llama.cpp divides each rotation's frequency by, where Llama 3's scaling stretches wavelengths.
fn rope_factors(transformer: &Transformer) -> Option<Vec<f32>> {
    let Position::Rope(ropes) = &transformer.position else { return None };
    let rope = ropes.first()?;
    let RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } = rope.scaling else {
        return None;
    };
    let factors = (0..rope.dims / 2).map(|i| {
        let frequency = 1.0 / rope.theta.powf(2.0 * i as f32 / rope.dims as f32);
        let wavelength = 2.0 * std::f32::consts::PI / frequency;
        if wavelength < original_context / high_freq_factor {
            1.0
        } else if wavelength > original_context / low_freq_factor {
            factor
        } else {
            let smooth = (original_context / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
            1.0 / ((1.0 - smooth) / factor + smooth)
        }
    });
    Some(factors.collect())
}

/// The Hugging Face config of a GGUF file: the original one where the file carries it, else rebuilt from its keys.
///
/// # Errors
/// In words, why there is none.
pub fn config(gguf: &Metadata) -> Result<Value, String> {
    if let Some(text) = gguf.get_str(CONFIG_KEY)
        && let Ok(config) = serde_json::from_str(text)
    {
        return Ok(config);
    }
    let arch = gguf.get_str("general.architecture").ok_or("the file names no general.architecture")?;
    if arch != "llama" {
        return Err(format!("architecture `{arch}` cannot be read from GGUF yet; supported: llama"));
    }
    let number = |key: &str| {
        gguf.get_u64(&format!("{arch}.{key}")).ok_or_else(|| format!("the metadata lack `{arch}.{key}`"))
    };
    let heads = number("attention.head_count")?;
    let hidden = number("embedding_length")?;
    let key = |key: &str| format!("{arch}.{key}");
    let tokens = match gguf.get("tokenizer.ggml.tokens") {
        Some(formats::gguf::Value::Array(formats::gguf::Array::String(tokens))) => Some(tokens.len() as u64),
        _ => None,
    };
    Ok(json!({
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": hidden,
        "num_hidden_layers": number("block_count")?,
        "intermediate_size": number("feed_forward_length")?,
        "num_attention_heads": heads,
        "num_key_value_heads": gguf.get_u64(&key("attention.head_count_kv")).unwrap_or(heads),
        "head_dim": gguf.get_u64(&key("attention.key_length")).unwrap_or(hidden / heads.max(1)),
        "max_position_embeddings": number("context_length")?,
        "rms_norm_eps": gguf.get_f32(&key("attention.layer_norm_rms_epsilon")).unwrap_or(1e-5),
        "rope_theta": gguf.get_f32(&key("rope.freq_base")).unwrap_or(10_000.0),
        "vocab_size": gguf.get_u64(&key("vocab_size")).or(tokens).ok_or("the metadata name no vocabulary size")?,
        "hidden_act": "silu",
    }))
}

/// Gives a GGUF file's weights their Hugging Face names and says in which order their rows are stored.
pub fn rename(weights: &mut [Weight], family: &Family) {
    for expected in family.tensors() {
        let Some(place) = expected.gguf.as_ref().filter(|place| !place.stacked) else { continue };
        if let Some(weight) = weights.iter_mut().find(|weight| weight.name == place.name) {
            weight.name = expected.name().to_owned();
            weight.order = place.rows;
        }
    }
}
