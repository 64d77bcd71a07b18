//! The keys that llama.cpp's loader asks for, as its converter writes them.

use formats::Dtype;
use formats::gguf::{Array, Metadata, Value};
use serde_json::Value as Json;

use super::EVERY;
use crate::family::{Norm, Position, Rope, RopeScaling, Transformer};

/// Adds the keys that describe an architecture, llama.cpp's name for which is `arch`, from the model's config too.
pub fn architecture(arch: &str, t: &Transformer, config: Option<&Json>, all: &mut Metadata) {
    let key = |name: &str| format!("{arch}.{name}");
    let count = |n: usize| Value::U32(n as u32);
    all.push(key("block_count"), count(t.layers));
    all.push(key("context_length"), count(t.max_positions));
    all.push(key("embedding_length"), count(t.hidden));
    all.push(key("feed_forward_length"), count(t.intermediate));
    all.push(key("attention.head_count"), count(t.heads));
    all.push(key("attention.head_count_kv"), count(t.kv_heads));
    if let Position::Rope(ropes) = &t.position {
        rope(arch, t, ropes, all);
    }
    match t.norm {
        Norm::Rms { eps, .. } => all.push(key("attention.layer_norm_rms_epsilon"), Value::F32(eps)),
        Norm::Layer { eps } => all.push(key("attention.layer_norm_epsilon"), Value::F32(eps)),
    }
    all.push(key("attention.key_length"), count(t.head_dim));
    all.push(key("attention.value_length"), count(t.head_dim));
    all.push(key("vocab_size"), count(t.vocab));
    if let Some(experts) = t.experts {
        all.push(key("expert_count"), count(experts.count));
        all.push(key("expert_used_count"), count(experts.per_token));
        if arch == "qwen3moe" {
            all.push(key("expert_feed_forward_length"), count(experts.intermediate));
        }
    }
    if arch == "phi3" {
        // Zero is how the loader knows the models without a window.
        let window = t.windows.iter().flatten().next().copied().unwrap_or(0);
        all.push(key("attention.sliding_window"), count(window));
        // A LongRoPE has said it above.
        let trained = config.and_then(|config| config.get("original_max_position_embeddings")?.as_u64());
        let original = key("rope.scaling.original_context_length");
        if all.get(&original).is_none() {
            all.push(original, count(trained.map_or(t.max_positions, |n| n as usize)));
        }
    }
    if !t.causal {
        all.push(key("attention.causal"), Value::Bool(false));
        all.push("tokenizer.ggml.token_type_count", count(t.token_types.max(1)));
    }
}

/// The keys of rotations and of windows that layers with a rotation of their own see.
fn rope(arch: &str, t: &Transformer, ropes: &[Rope], all: &mut Metadata) {
    let key = |name: &str| format!("{arch}.{name}");
    let of = |sees_all: bool| ropes.iter().zip(&t.windows).find(|(_, window)| window.is_none() == sees_all);
    let Some(global) = of(true).map(|(rope, _)| rope).or(ropes.first()) else { return };
    all.push(key("rope.freq_base"), Value::F32(global.theta));
    all.push(key("rope.dimension_count"), Value::U32(global.dims as u32));
    match global.scaling {
        RopeScaling::Linear { factor } => {
            all.push(key("rope.scaling.type"), Value::String("linear".into()));
            all.push(key("rope.scaling.factor"), Value::F32(factor));
        }
        RopeScaling::Long { original_context, attention_factor, .. } => {
            all.push(key("rope.scaling.original_context_length"), Value::U32(original_context as u32));
            all.push(key("rope.scaling.attn_factor"), Value::F32(attention_factor));
        }
        RopeScaling::None | RopeScaling::Llama3 { .. } | RopeScaling::Each(_) => {}
    }
    if let ("gemma3", Some((local, Some(window)))) = (arch, of(false)) {
        all.push(key("rope.freq_base_swa"), Value::F32(local.theta));
        all.push(key("attention.sliding_window"), Value::U32(*window as u32));
        let slides: Vec<bool> = t.windows.iter().map(Option::is_some).collect();
        if (0..t.layers).any(|layer| slides[layer] != ((layer + 1) % EVERY != 0)) {
            all.push(key("attention.sliding_window_pattern"), Value::Array(Array::Bool(slides)));
        }
    }
}

/// llama.cpp's number for a file most of whose values have this dtype (`llama_ftype`).
pub fn file_type(most: Option<Dtype>) -> u32 {
    match most {
        Some(Dtype::F16) => 1,
        Some(Dtype::Q8_0) => 7,
        Some(Dtype::BF16) => 32,
        _ => 0,
    }
}
