//! Qwen2 and Qwen2.5 (Yang et al., 2024): llama with biases of queries, keys and values.

use super::config::Fields;
use super::table::Axis::{Hidden, Keys, Queries};
use super::table::{Entry, Table};
use super::{Definition, Error, Kind, Slot, Transformer, decoder};

/// The family.
pub const FAMILY: Definition = Definition {
    name: "qwen2",
    architectures: &["Qwen2ForCausalLM", "Qwen2Model"],
    gguf: "qwen2",
    kind: Kind::Decoder,
    table: &TABLE,
    read,
};

/// Its tensors.
pub const TABLE: Table = Table {
    bases: decoder::BASES,
    sections: &[decoder::EMBEDDING, decoder::NORMS, ATTENTION, decoder::FEED_FORWARD, decoder::END],
    rope_pairs: false,
    ignored: decoder::IGNORED,
};

/// Biases that are not optional: without them the model would run and be wrong.
const ATTENTION: &[Entry] = &[
    Entry::linear(Slot::AttnQ, "{base}layers.{layer}.self_attn.q_proj.weight", &[Queries, Hidden])
        .gguf("blk.{layer}.attn_q.weight"),
    Entry::bias(Slot::AttnQ, "{base}layers.{layer}.self_attn.q_proj.bias", &[Queries]).gguf("blk.{layer}.attn_q.bias"),
    Entry::linear(Slot::AttnK, "{base}layers.{layer}.self_attn.k_proj.weight", &[Keys, Hidden])
        .gguf("blk.{layer}.attn_k.weight"),
    Entry::bias(Slot::AttnK, "{base}layers.{layer}.self_attn.k_proj.bias", &[Keys]).gguf("blk.{layer}.attn_k.bias"),
    Entry::linear(Slot::AttnV, "{base}layers.{layer}.self_attn.v_proj.weight", &[Keys, Hidden])
        .gguf("blk.{layer}.attn_v.weight"),
    Entry::bias(Slot::AttnV, "{base}layers.{layer}.self_attn.v_proj.bias", &[Keys]).gguf("blk.{layer}.attn_v.bias"),
    Entry::linear(Slot::AttnOut, "{base}layers.{layer}.self_attn.o_proj.weight", &[Hidden, Queries])
        .gguf("blk.{layer}.attn_output.weight"),
];

fn read(fields: &mut Fields<'_>) -> Result<Transformer, Error> {
    let t = decoder::read(fields)?;
    let t = decoder::defaults(fields, t, 32_768, 1e-6)?;
    Ok(Transformer { windows: windows(fields, t.layers)?, ..t })
}

/// The windows of Qwen2 and Qwen3: none unless `use_sliding_window`, and then of all layers from `max_window_layers` on.
///
/// # Errors
/// A field that is wrong.
pub fn windows(fields: &mut Fields<'_>, layers: usize) -> Result<Vec<Option<usize>>, Error> {
    let slides = fields.flag_or("use_sliding_window", false)?;
    let window = fields.count_or_null("sliding_window", 4096)?.filter(|_| slides);
    let first = fields.whole_or("max_window_layers", 28)?;
    decoder::windows(fields, layers, window, |layer| layer >= first)
}
