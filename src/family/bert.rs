//! BERT (Devlin et al., 2019) and the sentence encoders made of it.

use super::config::Fields;
use super::table::Axis::{Hidden, Intermediate, Keys, Positions, Queries, TokenTypes, Vocab};
use super::table::{Entry, Table};
use super::{Activation, Biases, Definition, Error, Kind, Norm, Placement, Position, Role, Slot, Transformer};

/// The family.
pub const FAMILY: Definition = Definition {
    name: "bert",
    architectures: &["BertModel", "BertForMaskedLM", "BertForSequenceClassification"],
    gguf: "bert",
    kind: Kind::Encoder,
    table: &TABLE,
    read,
};

/// Its tensors.
pub const TABLE: Table = Table {
    bases: &["", "bert."],
    sections: &[ENTRIES],
    rope_pairs: false,
    ignored: &["{base}embeddings.position_ids"],
};

/// The tensors of BERT and its descendants. The oldest files call a gain `gamma` and a shift `beta`.
pub const ENTRIES: &[Entry] = &[
    Entry::matrix(Slot::TokenEmbedding, Role::Embedding, "{base}embeddings.word_embeddings.weight", &[Vocab, Hidden])
        .gguf("token_embd.weight"),
    Entry::matrix(
        Slot::PositionEmbedding,
        Role::Embedding,
        "{base}embeddings.position_embeddings.weight",
        &[Positions, Hidden],
    )
    .gguf("position_embd.weight"),
    Entry::matrix(
        Slot::TypeEmbedding,
        Role::Embedding,
        "{base}embeddings.token_type_embeddings.weight",
        &[TokenTypes, Hidden],
    )
    .gguf("token_types.weight"),
    Entry::gain(Slot::EmbeddingNorm, "{base}embeddings.LayerNorm.weight")
        .older("{base}embeddings.LayerNorm.gamma")
        .gguf("token_embd_norm.weight"),
    Entry::shift(Slot::EmbeddingNorm, "{base}embeddings.LayerNorm.bias")
        .older("{base}embeddings.LayerNorm.beta")
        .gguf("token_embd_norm.bias"),
    Entry::linear(Slot::AttnQ, "{base}encoder.layer.{layer}.attention.self.query.weight", &[Queries, Hidden])
        .gguf("blk.{layer}.attn_q.weight"),
    Entry::bias(Slot::AttnQ, "{base}encoder.layer.{layer}.attention.self.query.bias", &[Queries])
        .gguf("blk.{layer}.attn_q.bias"),
    Entry::linear(Slot::AttnK, "{base}encoder.layer.{layer}.attention.self.key.weight", &[Keys, Hidden])
        .gguf("blk.{layer}.attn_k.weight"),
    Entry::bias(Slot::AttnK, "{base}encoder.layer.{layer}.attention.self.key.bias", &[Keys])
        .gguf("blk.{layer}.attn_k.bias"),
    Entry::linear(Slot::AttnV, "{base}encoder.layer.{layer}.attention.self.value.weight", &[Keys, Hidden])
        .gguf("blk.{layer}.attn_v.weight"),
    Entry::bias(Slot::AttnV, "{base}encoder.layer.{layer}.attention.self.value.bias", &[Keys])
        .gguf("blk.{layer}.attn_v.bias"),
    Entry::linear(Slot::AttnOut, "{base}encoder.layer.{layer}.attention.output.dense.weight", &[Hidden, Queries])
        .gguf("blk.{layer}.attn_output.weight"),
    Entry::bias(Slot::AttnOut, "{base}encoder.layer.{layer}.attention.output.dense.bias", &[Hidden])
        .gguf("blk.{layer}.attn_output.bias"),
    Entry::gain(Slot::AttnOutNorm, "{base}encoder.layer.{layer}.attention.output.LayerNorm.weight")
        .older("{base}encoder.layer.{layer}.attention.output.LayerNorm.gamma")
        .gguf("blk.{layer}.attn_output_norm.weight"),
    Entry::shift(Slot::AttnOutNorm, "{base}encoder.layer.{layer}.attention.output.LayerNorm.bias")
        .older("{base}encoder.layer.{layer}.attention.output.LayerNorm.beta")
        .gguf("blk.{layer}.attn_output_norm.bias"),
    Entry::linear(Slot::FfnUp, "{base}encoder.layer.{layer}.intermediate.dense.weight", &[Intermediate, Hidden])
        .gguf("blk.{layer}.ffn_up.weight"),
    Entry::bias(Slot::FfnUp, "{base}encoder.layer.{layer}.intermediate.dense.bias", &[Intermediate])
        .gguf("blk.{layer}.ffn_up.bias"),
    Entry::linear(Slot::FfnDown, "{base}encoder.layer.{layer}.output.dense.weight", &[Hidden, Intermediate])
        .gguf("blk.{layer}.ffn_down.weight"),
    Entry::bias(Slot::FfnDown, "{base}encoder.layer.{layer}.output.dense.bias", &[Hidden])
        .gguf("blk.{layer}.ffn_down.bias"),
    Entry::gain(Slot::FfnOutNorm, "{base}encoder.layer.{layer}.output.LayerNorm.weight")
        .older("{base}encoder.layer.{layer}.output.LayerNorm.gamma")
        .gguf("blk.{layer}.layer_output_norm.weight"),
    Entry::shift(Slot::FfnOutNorm, "{base}encoder.layer.{layer}.output.LayerNorm.bias")
        .older("{base}encoder.layer.{layer}.output.LayerNorm.beta")
        .gguf("blk.{layer}.layer_output_norm.bias"),
    Entry::linear(Slot::Pooler, "{base}pooler.dense.weight", &[Hidden, Hidden]).optional(),
    Entry::bias(Slot::Pooler, "{base}pooler.dense.bias", &[Hidden]).optional(),
];

fn read(fields: &mut Fields<'_>) -> Result<Transformer, Error> {
    encoder(fields)
}

/// Reads the fields that BERT and its descendants share; positions are left as BERT's.
///
/// # Errors
/// A field that is missing, wrong, or asks for what is not supported.
pub fn encoder(fields: &mut Fields<'_>) -> Result<Transformer, Error> {
    fields.only("position_embedding_type", "absolute")?;
    fields.without_effect(&["tie_word_embeddings", "pooler_fc_size", "directionality"]);
    let hidden = fields.count("hidden_size")?;
    let heads = fields.count("num_attention_heads")?;
    let layers = fields.count("num_hidden_layers")?;
    if !hidden.is_multiple_of(heads) {
        return Err(fields.unsupported("num_attention_heads", format!("a divisor of {hidden}"), heads.to_string()));
    }
    fields.only("is_decoder", false)?;
    fields.only("add_cross_attention", false)?;
    fields.without_effect(&["attention_probs_dropout_prob", "hidden_dropout_prob", "classifier_dropout"]);
    let head_dim = hidden / heads;
    Ok(Transformer {
        causal: false,
        vocab: fields.count("vocab_size")?,
        hidden,
        layers,
        heads,
        kv_heads: heads,
        head_dim,
        intermediate: fields.count("intermediate_size")?,
        max_positions: fields.count_or("max_position_embeddings", 512)?,
        norm: Norm::Layer { eps: fields.positive_or("layer_norm_eps", 1e-12)? },
        placement: Placement::Post,
        position: Position::Learned { offset: 0 },
        token_types: fields.count_or("type_vocab_size", 2)?,
        embedding_norm: true,
        embedding_scale: 1.0,
        attention_scale: 1.0 / (head_dim as f32).sqrt(),
        qk_norm: false,
        windows: vec![None; layers],
        activation: fields.activation_or("hidden_act", Activation::Gelu)?,
        gated: false,
        experts: None,
        final_norm: false,
        tied: true,
        biases: Biases::default(),
    })
}

#[cfg(test)]
mod tests {
    use crate::family::find;
    use serde_json::json;

    #[test]
    fn names_come_with_and_without_the_prefix_and_in_the_oldest_spelling() {
        let config = json!({"architectures": ["BertModel"], "hidden_size": 64, "num_attention_heads": 4,
            "num_hidden_layers": 2, "intermediate_size": 96, "vocab_size": 256});
        let family = find(&config).unwrap();
        let norm = family.tensors().iter().find(|t| t.name() == "embeddings.LayerNorm.weight").unwrap();
        assert_eq!(
            norm.names,
            [
                "embeddings.LayerNorm.weight",
                "embeddings.LayerNorm.gamma",
                "bert.embeddings.LayerNorm.weight",
                "bert.embeddings.LayerNorm.gamma"
            ]
        );
        let types = family.tensors().iter().find(|t| t.name().contains("token_type")).unwrap();
        assert_eq!(types.shape, [2, 64]);
        assert!(family.ignores("bert.embeddings.position_ids"));
    }

    #[test]
    fn relative_positions_are_refused() {
        let config = json!({"model_type": "bert", "hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2,
            "intermediate_size": 96, "vocab_size": 256, "position_embedding_type": "relative_key"});
        assert!(find(&config).unwrap_err().to_string().contains("relative_key"));
    }
}
