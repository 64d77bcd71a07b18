//! Gemma 3 (Gemma team, 2025), its text model: layers that see a window and layers that see all, each with its own
//! rotation; normalisations before and after each part, stored as w − 1; a scaled embedding.

use super::config::Fields;
use super::table::{Entry, Table};
use super::{
    Activation, Definition, Error, Kind, Norm, Placement, Position, Role, Rope, RopeScaling, Slot, Transformer, decoder,
};
use crate::family::table::Axis::{HeadDim, Hidden, Vocab};

/// The family.
pub const FAMILY: Definition = Definition {
    name: "gemma3_text",
    architectures: &["Gemma3ForCausalLM", "Gemma3TextModel"],
    gguf: "gemma3",
    kind: Kind::Decoder,
    table: &TABLE,
    read,
};

/// Its tensors. llama.cpp stores gains plus one.
pub const TABLE: Table = Table {
    bases: decoder::BASES,
    sections: &[decoder::EMBEDDING, decoder::ATTENTION, NORMS, decoder::FEED_FORWARD, END],
    rope_pairs: false,
    ignored: decoder::IGNORED,
};

const NORMS: &[Entry] = &[
    Entry::gain(Slot::AttnNorm, "{base}layers.{layer}.input_layernorm.weight")
        .gguf("blk.{layer}.attn_norm.weight")
        .plus(1.0),
    Entry::gain(Slot::AttnQNorm, "{base}layers.{layer}.self_attn.q_norm.weight")
        .shaped(&[HeadDim])
        .gguf("blk.{layer}.attn_q_norm.weight")
        .plus(1.0),
    Entry::gain(Slot::AttnKNorm, "{base}layers.{layer}.self_attn.k_norm.weight")
        .shaped(&[HeadDim])
        .gguf("blk.{layer}.attn_k_norm.weight")
        .plus(1.0),
    Entry::gain(Slot::AttnOutNorm, "{base}layers.{layer}.post_attention_layernorm.weight")
        .gguf("blk.{layer}.post_attention_norm.weight")
        .plus(1.0),
    Entry::gain(Slot::FfnNorm, "{base}layers.{layer}.pre_feedforward_layernorm.weight")
        .gguf("blk.{layer}.ffn_norm.weight")
        .plus(1.0),
    Entry::gain(Slot::FfnOutNorm, "{base}layers.{layer}.post_feedforward_layernorm.weight")
        .gguf("blk.{layer}.post_ffw_norm.weight")
        .plus(1.0),
];

const END: &[Entry] = &[
    Entry::gain(Slot::FinalNorm, "{base}norm.weight").gguf("output_norm.weight").plus(1.0),
    Entry::matrix(Slot::Head, Role::Head, "lm_head.weight", &[Vocab, Hidden]).gguf("output.weight").untied(),
];

fn read(fields: &mut Fields<'_>) -> Result<Transformer, Error> {
    let t = decoder::without_rope(fields)?;
    let t = decoder::defaults(fields, t, 131_072, 1e-6)?;
    fields.absent("attn_logit_softcapping")?;
    fields.absent("final_logit_softcapping")?;
    fields.only("use_bidirectional_attention", false)?;
    let Norm::Rms { eps, .. } = t.norm else { return Ok(t) };
    let window = fields.count_or_null("sliding_window", 4096)?;
    // Every sixth layer sees all.
    let older = fields.count_or("sliding_window_pattern", 6)?;
    let pattern = fields.count_or("_sliding_window_pattern", older)?;
    let windows = decoder::windows(fields, t.layers, window, |layer| (layer + 1) % pattern != 0)?;
    let [local, global] = ropes(fields, t.head_dim)?;
    let scale = fields.positive_or("query_pre_attn_scalar", 256.0)?;
    Ok(Transformer {
        norm: Norm::Rms { eps, offset: 1.0 },
        placement: Placement::Both,
        position: Position::Rope(
            windows.iter().map(|window| if window.is_some() { &local } else { &global }.clone()).collect(),
        ),
        embedding_scale: (t.hidden as f32).sqrt(),
        attention_scale: 1.0 / scale.sqrt(),
        qk_norm: true,
        windows,
        activation: fields.activation_or("hidden_activation", Activation::GeluTanh)?,
        tied: fields.flag_or("tie_word_embeddings", true)?,
        ..t
    })
}

/// The rotations of layers that see a window and of those that see all: in transformers 5's spelling, one object for each,
/// or in the older one, where only the second can be scaled.
fn ropes(fields: &mut Fields<'_>, head_dim: usize) -> Result<[Rope; 2], Error> {
    let plain = |theta| Rope { theta, dims: head_dim, scaling: RopeScaling::None };
    let mut local = plain(fields.positive_or("rope_local_base_freq", 1e4)?);
    let mut global = plain(fields.positive_or("rope_theta", 1e6)?);
    if let Some(mut both) = fields.object("rope_parameters")? {
        for (name, rope) in [("sliding_attention", &mut local), ("full_attention", &mut global)] {
            if let Some(mut one) = both.object(name)? {
                *rope = one.rope_here(head_dim, rope.clone())?;
                both.close(one);
            }
        }
        fields.close(both);
    }
    if let Some(mut scaling) = fields.object("rope_scaling")? {
        global = scaling.rope_here(head_dim, global)?;
        fields.close(scaling);
    }
    Ok([local, global])
}
