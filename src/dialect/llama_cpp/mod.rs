//! llama.cpp's dialect: its names, its row order for rotated heads, its metadata keys (ggml's `docs/gguf.md`, and what
//! llama.cpp's loader asks for).

mod config;
mod differences;
mod lost;
mod metadata;
mod rope;
pub mod tokenizer;

use std::collections::HashMap;

use formats::Dtype;

use crate::family::Family;
use crate::family::table::Expected;

pub use config::{CONFIG_KEY, ROPE_FACTORS, WIDENED_KEY, config};
pub use differences::{differences, has_place};
pub use lost::left_out;
pub use metadata::{architecture, file_type};
pub use rope::rope_factors;

pub use super::Unsayable;

/// In llama.cpp's gemma3 every so many-th layer sees all positions, unless the file says otherwise.
const EVERY: usize = 6;

/// The number of layers by which llama.cpp knows the gemma3 of 27 B parameters, whose attention is scaled otherwise.
const LAYERS_OF_27B: usize = 62;

/// The only dtype in which llama.cpp takes a tensor of this name and so many dimensions, if there is one: it computes with
/// norms, biases, routers and positions in f32.
pub fn only_dtype(name: &str, rank: usize) -> Option<Dtype> {
    const ENDS: &[&str] = &["_norm.weight", "ffn_gate_inp.weight", "position_embd.weight", "token_types.weight"];
    let only = rank < 2 || !name.ends_with(".weight") || ENDS.iter().any(|end| name.ends_with(end));
    only.then_some(Dtype::F32)
}

/// For each tensor name of llama.cpp's: the family's tensor, or, of stacked experts, the tensor of each.
pub fn tensors(family: &Family) -> HashMap<&str, Vec<&Expected>> {
    let mut all: HashMap<&str, Vec<&Expected>> = HashMap::new();
    for expected in family.tensors() {
        if let Some(place) = &expected.gguf {
            all.entry(&place.name).or_default().push(expected);
        }
    }
    all
}
