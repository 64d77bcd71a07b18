//! What llama and its many descendants have in common.

use super::config::Fields;
use super::table::Axis::{HeadDim, Hidden, Intermediate, Keys, Queries, Vocab};
use super::table::Entry;
use super::{Activation, Biases, Error, Norm, Placement, Position, Role, Slot, Transformer};

/// What their names begin with: the model within its task, and the bare model.
pub const BASES: &[&str] = &["model.", ""];

/// Buffers that old files hold.
pub const IGNORED: &[&str] = &["{base}layers.{layer}.self_attn.rotary_emb.inv_freq"];

/// Before the layers.
pub const EMBEDDING: &[Entry] =
    &[Entry::matrix(Slot::TokenEmbedding, Role::Embedding, "{base}embed_tokens.weight", &[Vocab, Hidden])
        .gguf("token_embd.weight")];

/// A layer's normalisations before its parts.
pub const NORMS: &[Entry] = &[
    Entry::gain(Slot::AttnNorm, "{base}layers.{layer}.input_layernorm.weight").gguf("blk.{layer}.attn_norm.weight"),
    Entry::gain(Slot::FfnNorm, "{base}layers.{layer}.post_attention_layernorm.weight")
        .gguf("blk.{layer}.ffn_norm.weight"),
];

/// Attention, with biases where the config says so; where it says nothing, where the file has them.
pub const ATTENTION: &[Entry] = &[
    Entry::linear(Slot::AttnQ, "{base}layers.{layer}.self_attn.q_proj.weight", &[Queries, Hidden])
        .gguf("blk.{layer}.attn_q.weight"),
    Entry::bias(Slot::AttnQ, "{base}layers.{layer}.self_attn.q_proj.bias", &[Queries])
        .gguf("blk.{layer}.attn_q.bias")
        .if_biased(|biases| biases.attention),
    Entry::linear(Slot::AttnK, "{base}layers.{layer}.self_attn.k_proj.weight", &[Keys, Hidden])
        .gguf("blk.{layer}.attn_k.weight"),
    Entry::bias(Slot::AttnK, "{base}layers.{layer}.self_attn.k_proj.bias", &[Keys])
        .gguf("blk.{layer}.attn_k.bias")
        .if_biased(|biases| biases.attention),
    Entry::linear(Slot::AttnV, "{base}layers.{layer}.self_attn.v_proj.weight", &[Keys, Hidden])
        .gguf("blk.{layer}.attn_v.weight"),
    Entry::bias(Slot::AttnV, "{base}layers.{layer}.self_attn.v_proj.bias", &[Keys])
        .gguf("blk.{layer}.attn_v.bias")
        .if_biased(|biases| biases.attention),
    Entry::linear(Slot::AttnOut, "{base}layers.{layer}.self_attn.o_proj.weight", &[Hidden, Queries])
        .gguf("blk.{layer}.attn_output.weight"),
    Entry::bias(Slot::AttnOut, "{base}layers.{layer}.self_attn.o_proj.bias", &[Hidden])
        .gguf("blk.{layer}.attn_output.bias")
        .if_biased(|biases| biases.attention),
];

/// Normalisations of each query and key head.
pub const HEAD_NORMS: &[Entry] = &[
    Entry::gain(Slot::AttnQNorm, "{base}layers.{layer}.self_attn.q_norm.weight")
        .shaped(&[HeadDim])
        .gguf("blk.{layer}.attn_q_norm.weight"),
    Entry::gain(Slot::AttnKNorm, "{base}layers.{layer}.self_attn.k_norm.weight")
        .shaped(&[HeadDim])
        .gguf("blk.{layer}.attn_k_norm.weight"),
];

/// The gated feed-forward part, with biases likewise.
pub const FEED_FORWARD: &[Entry] = &[
    Entry::linear(Slot::FfnGate, "{base}layers.{layer}.mlp.gate_proj.weight", &[Intermediate, Hidden])
        .gguf("blk.{layer}.ffn_gate.weight"),
    Entry::bias(Slot::FfnGate, "{base}layers.{layer}.mlp.gate_proj.bias", &[Intermediate])
        .gguf("blk.{layer}.ffn_gate.bias")
        .if_biased(|biases| biases.feed_forward),
    Entry::linear(Slot::FfnUp, "{base}layers.{layer}.mlp.up_proj.weight", &[Intermediate, Hidden])
        .gguf("blk.{layer}.ffn_up.weight"),
    Entry::bias(Slot::FfnUp, "{base}layers.{layer}.mlp.up_proj.bias", &[Intermediate])
        .gguf("blk.{layer}.ffn_up.bias")
        .if_biased(|biases| biases.feed_forward),
    Entry::linear(Slot::FfnDown, "{base}layers.{layer}.mlp.down_proj.weight", &[Hidden, Intermediate])
        .gguf("blk.{layer}.ffn_down.weight"),
    Entry::bias(Slot::FfnDown, "{base}layers.{layer}.mlp.down_proj.bias", &[Hidden])
        .gguf("blk.{layer}.ffn_down.bias")
        .if_biased(|biases| biases.feed_forward),
];

/// After the layers.
pub const END: &[Entry] = &[
    Entry::gain(Slot::FinalNorm, "{base}norm.weight").gguf("output_norm.weight"),
    Entry::matrix(Slot::Head, Role::Head, "lm_head.weight", &[Vocab, Hidden]).gguf("output.weight").untied(),
];

/// Reads the fields that all rotary decoders share. A family then changes what it does differently.
///
/// # Errors
/// A field that is missing, wrong, or asks for what is not supported.
pub fn read(fields: &mut Fields<'_>) -> Result<Transformer, Error> {
    let mut t = without_rope(fields)?;
    let rope = fields.rope(t.head_dim, 10000.0)?;
    t.position = Position::Rope(vec![rope; t.layers]);
    Ok(t)
}

/// As [`read`], with the position scheme left to the family.
///
/// # Errors
/// A field that is missing, wrong, or asks for what is not supported.
pub fn without_rope(fields: &mut Fields<'_>) -> Result<Transformer, Error> {
    let hidden = fields.count("hidden_size")?;
    let heads = fields.count("num_attention_heads")?;
    let layers = fields.count("num_hidden_layers")?;
    let head_dim = fields.count_or("head_dim", hidden / heads)?;
    fields.without_effect(&[
        "attention_dropout",
        "embd_pdrop",
        "resid_pdrop",
        "pretraining_tp",
        "cache_implementation",
    ]);
    Ok(Transformer {
        causal: true,
        vocab: fields.count("vocab_size")?,
        hidden,
        layers,
        heads,
        kv_heads: fields.count_or("num_key_value_heads", heads)?,
        head_dim,
        intermediate: fields.count("intermediate_size")?,
        max_positions: fields.count_or("max_position_embeddings", 2048)?,
        norm: Norm::Rms { eps: fields.positive_or("rms_norm_eps", 1e-6)?, offset: 0.0 },
        placement: Placement::Pre,
        position: Position::Rope(Vec::new()),
        token_types: 0,
        embedding_norm: false,
        embedding_scale: 1.0,
        attention_scale: 1.0 / (head_dim as f32).sqrt(),
        qk_norm: false,
        windows: vec![None; layers],
        activation: fields.activation_or("hidden_act", Activation::Silu)?,
        gated: true,
        experts: None,
        final_norm: true,
        tied: fields.flag_or("tie_word_embeddings", false)?,
        biases: Biases {
            attention: fields.maybe_flag("attention_bias")?,
            feed_forward: fields.maybe_flag("mlp_bias")?,
        },
    })
}

/// What transformers takes where a config leaves these out: positions and the constant of the norms.
///
/// # Errors
/// A field that is wrong.
pub fn defaults(fields: &mut Fields<'_>, t: Transformer, positions: usize, eps: f64) -> Result<Transformer, Error> {
    Ok(Transformer {
        max_positions: fields.count_or("max_position_embeddings", positions)?,
        norm: Norm::Rms { eps: fields.positive_or("rms_norm_eps", eps)?, offset: 0.0 },
        ..t
    })
}

/// The attention window of each layer: `window` where `layer_types` says `sliding_attention`, or, where the config lists no
/// types, where `slides` says so.
///
/// # Errors
/// A list of another length, or with another type.
pub fn windows(
    fields: &mut Fields<'_>,
    layers: usize,
    window: Option<usize>,
    slides: impl Fn(usize) -> bool,
) -> Result<Vec<Option<usize>>, Error> {
    let of = |sliding: bool| if sliding { window } else { None };
    let Some(types) = fields.maybe_array("layer_types")? else {
        return Ok((0..layers).map(|i| of(slides(i))).collect());
    };
    if types.len() != layers {
        let expected = format!("a type for each of {layers} layers");
        return Err(Error::Invalid { field: "layer_types".into(), expected, found: format!("{} types", types.len()) });
    }
    let window = |kind: &serde_json::Value| match kind.as_str() {
        Some("full_attention") => Ok(of(false)),
        Some("sliding_attention") => Ok(of(true)),
        _ => Err(fields.unsupported("layer_types", "full_attention, sliding_attention", kind.to_string())),
    };
    types.iter().map(window).collect()
}
