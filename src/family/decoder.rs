//! What llama and its many descendants have in common.

use super::config::Fields;
use super::{Activation, Error, Norm, Placement, Position, Transformer};

/// Reads the fields that all rotary decoders share. A family then changes what it does differently.
///
/// # Errors
/// A field that is missing, wrong, or asks for what is not supported.
pub fn read(fields: &mut Fields<'_>) -> Result<Transformer, Error> {
    let hidden = fields.count("hidden_size")?;
    let heads = fields.count("num_attention_heads")?;
    let layers = fields.count("num_hidden_layers")?;
    let head_dim = fields.count_or("head_dim", hidden / heads)?;
    let rope = fields.rope(head_dim, 10000.0)?;
    fields.without_effect(&["attention_dropout", "embd_pdrop", "resid_pdrop", "pretraining_tp", "max_window_layers"]);
    // Whether there are biases is seen from the tensors.
    fields.without_effect(&["attention_bias", "mlp_bias"]);
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
        position: Position::Rope(vec![rope; layers]),
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
    })
}
