//! The keys that llama.cpp's loader asks for.

use formats::Dtype;
use formats::gguf::{Metadata, Value};

use crate::family::{Norm, Position, Transformer};

/// Adds the keys that describe an architecture, llama.cpp's name for which is `arch`.
pub fn architecture(arch: &str, t: &Transformer, all: &mut Metadata) {
    let key = |name: &str| format!("{arch}.{name}");
    let count = |n: usize| Value::U32(n as u32);
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
