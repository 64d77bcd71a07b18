//! GPT-2 (Radford et al., 2019): learned positions, layer normalisation, weights stored `[in, out]`.

use super::config::Fields;
use super::table::Axis::{Hidden, Intermediate, Keys, Positions, Queries, QueriesKeysValues, Vocab};
use super::table::{Entry, Table};
use super::{Activation, Biases, Definition, Error, Kind, Norm, Placement, Position, Role, Slot, Transformer};

/// The family.
pub const FAMILY: Definition = Definition {
    name: "gpt2",
    architectures: &["GPT2LMHeadModel", "GPT2Model"],
    gguf: "gpt2",
    kind: Kind::Decoder,
    table: &TABLE,
    read,
};

/// Its tensors.
pub const TABLE: Table = Table {
    bases: &["transformer.", ""],
    sections: &[ENTRIES],
    rope_pairs: false,
    ignored: &["{base}h.{layer}.attn.bias", "{base}h.{layer}.attn.masked_bias"],
};

const QKV: &[(Slot, super::table::Axis)] = &[(Slot::AttnQ, Queries), (Slot::AttnK, Keys), (Slot::AttnV, Keys)];

const ENTRIES: &[Entry] = &[
    Entry::matrix(Slot::TokenEmbedding, Role::Embedding, "{base}wte.weight", &[Vocab, Hidden])
        .gguf("token_embd.weight"),
    Entry::matrix(Slot::PositionEmbedding, Role::Embedding, "{base}wpe.weight", &[Positions, Hidden])
        .gguf("position_embd.weight"),
    Entry::gain(Slot::AttnNorm, "{base}h.{layer}.ln_1.weight").gguf("blk.{layer}.attn_norm.weight"),
    Entry::shift(Slot::AttnNorm, "{base}h.{layer}.ln_1.bias").gguf("blk.{layer}.attn_norm.bias"),
    Entry::linear(Slot::AttnQ, "{base}h.{layer}.attn.c_attn.weight", &[Hidden, QueriesKeysValues])
        .transposed()
        .fused(QKV)
        .gguf("blk.{layer}.attn_qkv.weight"),
    Entry::bias(Slot::AttnQ, "{base}h.{layer}.attn.c_attn.bias", &[QueriesKeysValues])
        .fused(QKV)
        .gguf("blk.{layer}.attn_qkv.bias"),
    Entry::linear(Slot::AttnOut, "{base}h.{layer}.attn.c_proj.weight", &[Queries, Hidden])
        .transposed()
        .gguf("blk.{layer}.attn_output.weight"),
    Entry::bias(Slot::AttnOut, "{base}h.{layer}.attn.c_proj.bias", &[Hidden]).gguf("blk.{layer}.attn_output.bias"),
    Entry::gain(Slot::FfnNorm, "{base}h.{layer}.ln_2.weight").gguf("blk.{layer}.ffn_norm.weight"),
    Entry::shift(Slot::FfnNorm, "{base}h.{layer}.ln_2.bias").gguf("blk.{layer}.ffn_norm.bias"),
    Entry::linear(Slot::FfnUp, "{base}h.{layer}.mlp.c_fc.weight", &[Hidden, Intermediate])
        .transposed()
        .gguf("blk.{layer}.ffn_up.weight"),
    Entry::bias(Slot::FfnUp, "{base}h.{layer}.mlp.c_fc.bias", &[Intermediate]).gguf("blk.{layer}.ffn_up.bias"),
    Entry::linear(Slot::FfnDown, "{base}h.{layer}.mlp.c_proj.weight", &[Intermediate, Hidden])
        .transposed()
        .gguf("blk.{layer}.ffn_down.weight"),
    Entry::bias(Slot::FfnDown, "{base}h.{layer}.mlp.c_proj.bias", &[Hidden]).gguf("blk.{layer}.ffn_down.bias"),
    Entry::gain(Slot::FinalNorm, "{base}ln_f.weight").gguf("output_norm.weight"),
    Entry::shift(Slot::FinalNorm, "{base}ln_f.bias").gguf("output_norm.bias"),
    Entry::matrix(Slot::Head, Role::Head, "lm_head.weight", &[Vocab, Hidden]).gguf("output.weight").untied(),
];

fn read(fields: &mut Fields<'_>) -> Result<Transformer, Error> {
    let hidden = fields.count("n_embd")?;
    let heads = fields.count("n_head")?;
    let layers = fields.count("n_layer")?;
    if !hidden.is_multiple_of(heads) {
        return Err(fields.unsupported("n_head", format!("a divisor of {hidden}"), heads.to_string()));
    }
    fields.only("add_cross_attention", false)?;
    fields.only("scale_attn_by_inverse_layer_idx", false)?;
    fields.without_effect(&["attn_pdrop", "embd_pdrop", "resid_pdrop", "n_ctx", "reorder_and_upcast_attn"]);
    fields.without_effect(&[
        "summary_activation",
        "summary_first_dropout",
        "summary_proj_to_labels",
        "summary_type",
        "summary_use_proj",
    ]);
    let head_dim = hidden / heads;
    let scaled = fields.flag_or("scale_attn_weights", true)?;
    Ok(Transformer {
        causal: true,
        vocab: fields.count("vocab_size")?,
        hidden,
        layers,
        heads,
        kv_heads: heads,
        head_dim,
        intermediate: fields.count_or("n_inner", 4 * hidden)?,
        max_positions: fields.count_or("n_positions", 1024)?,
        norm: Norm::Layer { eps: fields.positive_or("layer_norm_epsilon", 1e-5)? },
        placement: Placement::Pre,
        position: Position::Learned { offset: 0 },
        token_types: 0,
        embedding_norm: false,
        embedding_scale: 1.0,
        attention_scale: if scaled { 1.0 / (head_dim as f32).sqrt() } else { 1.0 },
        qk_norm: false,
        windows: vec![None; layers],
        activation: fields.activation_or("activation_function", Activation::GeluTanh)?,
        gated: false,
        experts: None,
        final_norm: true,
        tied: fields.flag_or("tie_word_embeddings", true)?,
        biases: Biases::default(),
    })
}
