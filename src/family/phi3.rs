//! Phi-3 (Abdin et al., 2024): llama with queries, keys and values in one tensor, and gate and up in one.

use super::config::Fields;
use super::table::Axis::{GateUp, Hidden, Intermediate, Keys, Queries, QueriesKeysValues};
use super::table::{Entry, Table};
use super::{Definition, Error, Kind, Slot, Transformer, decoder};

/// The family.
pub const FAMILY: Definition = Definition {
    name: "phi3",
    architectures: &["Phi3ForCausalLM", "Phi3Model"],
    gguf: "phi3",
    kind: Kind::Decoder,
    table: &TABLE,
    read,
};

/// Its tensors.
pub const TABLE: Table = Table {
    bases: decoder::BASES,
    sections: &[decoder::EMBEDDING, decoder::NORMS, LAYER, decoder::END],
    rope_pairs: false,
    ignored: decoder::IGNORED,
};

const LAYER: &[Entry] = &[
    Entry::linear(Slot::AttnQ, "{base}layers.{layer}.self_attn.qkv_proj.weight", &[QueriesKeysValues, Hidden])
        .fused(&[(Slot::AttnQ, Queries), (Slot::AttnK, Keys), (Slot::AttnV, Keys)])
        .gguf("blk.{layer}.attn_qkv.weight"),
    Entry::linear(Slot::AttnOut, "{base}layers.{layer}.self_attn.o_proj.weight", &[Hidden, Queries])
        .gguf("blk.{layer}.attn_output.weight"),
    Entry::linear(Slot::FfnUp, "{base}layers.{layer}.mlp.gate_up_proj.weight", &[GateUp, Hidden])
        .fused(&[(Slot::FfnGate, Intermediate), (Slot::FfnUp, Intermediate)])
        .gguf("blk.{layer}.ffn_up.weight"),
    Entry::linear(Slot::FfnDown, "{base}layers.{layer}.mlp.down_proj.weight", &[Hidden, Intermediate])
        .gguf("blk.{layer}.ffn_down.weight"),
];

fn read(fields: &mut Fields<'_>) -> Result<Transformer, Error> {
    let t = decoder::read(fields)?;
    let t = decoder::defaults(fields, t, 4096, 1e-5)?;
    // It matters only to a `longrope` with two sets of factors, which is refused.
    fields.without_effect(&["original_max_position_embeddings"]);
    let window = fields.maybe_count("sliding_window")?;
    Ok(Transformer { windows: vec![window; t.layers], ..t })
}
