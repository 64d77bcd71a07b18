//! llama.cpp's dialect: its names, its row order for rotated heads, its metadata keys (ggml's `docs/gguf.md`, and what
//! llama.cpp's loader asks for).

mod metadata;
mod tokenizer;

use std::collections::HashMap;

use formats::gguf::Metadata;
use serde_json::{Value, json};

use crate::family::{Family, Position, RopeScaling, RowOrder, Transformer};

pub use metadata::{architecture, file_type};
pub use tokenizer::tokenizer;

/// What llama.cpp cannot be told, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unsayable {
    /// What it is.
    pub problem: String,
    /// What to do about it.
    pub next: String,
}

/// The key under which our own files carry the original `config.json`, so that it returns exactly.
pub const CONFIG_KEY: &str = "modelpress.config";

/// What llama.cpp divides each rotation's frequency by, where Llama 3's scaling stretches wavelengths.
pub fn rope_factors(transformer: &Transformer) -> Option<Vec<f32>> {
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
    let number =
        |key: &str| gguf.get_u64(&format!("{arch}.{key}")).ok_or_else(|| format!("the metadata lack `{arch}.{key}`"));
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

/// For each tensor name of llama.cpp's: the Hugging Face name, and the order in which rows are stored.
pub fn names(family: &Family) -> HashMap<&str, (&str, RowOrder)> {
    let placed = family.tensors().iter().filter_map(|expected| Some((expected, expected.gguf.as_ref()?)));
    placed
        .filter(|(_, place)| !place.stacked)
        .map(|(expected, place)| (place.name.as_str(), (expected.name(), place.rows)))
        .collect()
}
