//! DistilBERT (Sanh et al., 2019): BERT with half the layers, no token types and names of its own.

use super::config::Fields;
use super::table::Axis::{Hidden, Intermediate, Keys, Positions, Queries, Vocab};
use super::table::{Entry, Table};
use super::{Activation, Biases, Definition, Error, Kind, Norm, Placement, Position, Role, Slot, Transformer};

/// The family.
pub const FAMILY: Definition = Definition {
    name: "distilbert",
    architectures: &["DistilBertModel", "DistilBertForMaskedLM", "DistilBertForSequenceClassification"],
    gguf: "bert",
    kind: Kind::Encoder,
    table: &TABLE,
    read,
};

/// Its tensors.
pub const TABLE: Table = Table { bases: &["", "distilbert."], sections: &[ENTRIES], rope_pairs: false, ignored: &[] };

const ENTRIES: &[Entry] = &[
    Entry::matrix(Slot::TokenEmbedding, Role::Embedding, "{base}embeddings.word_embeddings.weight", &[Vocab, Hidden])
        .gguf("token_embd.weight"),
    Entry::matrix(
        Slot::PositionEmbedding,
        Role::Embedding,
        "{base}embeddings.position_embeddings.weight",
        &[Positions, Hidden],
    )
    .gguf("position_embd.weight"),
    Entry::gain(Slot::EmbeddingNorm, "{base}embeddings.LayerNorm.weight").gguf("token_embd_norm.weight"),
    Entry::shift(Slot::EmbeddingNorm, "{base}embeddings.LayerNorm.bias").gguf("token_embd_norm.bias"),
    Entry::linear(Slot::AttnQ, "{base}transformer.layer.{layer}.attention.q_lin.weight", &[Queries, Hidden])
        .gguf("blk.{layer}.attn_q.weight"),
    Entry::bias(Slot::AttnQ, "{base}transformer.layer.{layer}.attention.q_lin.bias", &[Queries])
        .gguf("blk.{layer}.attn_q.bias"),
    Entry::linear(Slot::AttnK, "{base}transformer.layer.{layer}.attention.k_lin.weight", &[Keys, Hidden])
        .gguf("blk.{layer}.attn_k.weight"),
    Entry::bias(Slot::AttnK, "{base}transformer.layer.{layer}.attention.k_lin.bias", &[Keys])
        .gguf("blk.{layer}.attn_k.bias"),
    Entry::linear(Slot::AttnV, "{base}transformer.layer.{layer}.attention.v_lin.weight", &[Keys, Hidden])
        .gguf("blk.{layer}.attn_v.weight"),
    Entry::bias(Slot::AttnV, "{base}transformer.layer.{layer}.attention.v_lin.bias", &[Keys])
        .gguf("blk.{layer}.attn_v.bias"),
    Entry::linear(Slot::AttnOut, "{base}transformer.layer.{layer}.attention.out_lin.weight", &[Hidden, Queries])
        .gguf("blk.{layer}.attn_output.weight"),
    Entry::bias(Slot::AttnOut, "{base}transformer.layer.{layer}.attention.out_lin.bias", &[Hidden])
        .gguf("blk.{layer}.attn_output.bias"),
    Entry::gain(Slot::AttnOutNorm, "{base}transformer.layer.{layer}.sa_layer_norm.weight")
        .gguf("blk.{layer}.attn_output_norm.weight"),
    Entry::shift(Slot::AttnOutNorm, "{base}transformer.layer.{layer}.sa_layer_norm.bias")
        .gguf("blk.{layer}.attn_output_norm.bias"),
    Entry::linear(Slot::FfnUp, "{base}transformer.layer.{layer}.ffn.lin1.weight", &[Intermediate, Hidden])
        .gguf("blk.{layer}.ffn_up.weight"),
    Entry::bias(Slot::FfnUp, "{base}transformer.layer.{layer}.ffn.lin1.bias", &[Intermediate])
        .gguf("blk.{layer}.ffn_up.bias"),
    Entry::linear(Slot::FfnDown, "{base}transformer.layer.{layer}.ffn.lin2.weight", &[Hidden, Intermediate])
        .gguf("blk.{layer}.ffn_down.weight"),
    Entry::bias(Slot::FfnDown, "{base}transformer.layer.{layer}.ffn.lin2.bias", &[Hidden])
        .gguf("blk.{layer}.ffn_down.bias"),
    Entry::gain(Slot::FfnOutNorm, "{base}transformer.layer.{layer}.output_layer_norm.weight")
        .gguf("blk.{layer}.layer_output_norm.weight"),
    Entry::shift(Slot::FfnOutNorm, "{base}transformer.layer.{layer}.output_layer_norm.bias")
        .gguf("blk.{layer}.layer_output_norm.bias"),
];

fn read(fields: &mut Fields<'_>) -> Result<Transformer, Error> {
    let hidden = fields.count("dim")?;
    let heads = fields.count("n_heads")?;
    let layers = fields.count("n_layers")?;
    if !hidden.is_multiple_of(heads) {
        return Err(fields.unsupported("n_heads", format!("a divisor of {hidden}"), heads.to_string()));
    }
    // Sinusoidal positions are stored like learned ones.
    fields.without_effect(&["sinusoidal_pos_embds", "tie_word_embeddings"]);
    fields.without_effect(&["attention_dropout", "dropout", "qa_dropout", "seq_classif_dropout"]);
    let head_dim = hidden / heads;
    Ok(Transformer {
        causal: false,
        vocab: fields.count("vocab_size")?,
        hidden,
        layers,
        heads,
        kv_heads: heads,
        head_dim,
        intermediate: fields.count("hidden_dim")?,
        max_positions: fields.count_or("max_position_embeddings", 512)?,
        norm: Norm::Layer { eps: 1e-12 },
        placement: Placement::Post,
        position: Position::Learned { offset: 0 },
        token_types: 0,
        embedding_norm: true,
        embedding_scale: 1.0,
        attention_scale: 1.0 / (head_dim as f32).sqrt(),
        qk_norm: false,
        windows: vec![None; layers],
        activation: fields.activation_or("activation", Activation::Gelu)?,
        gated: false,
        experts: None,
        final_norm: false,
        tied: true,
        biases: Biases::default(),
    })
}
