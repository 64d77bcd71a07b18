//! Llama 1 to 3 (Touvron et al., 2023; Grattafiori et al., 2024).

use super::table::Axis::{Hidden, Intermediate, Keys, Queries, Vocab};
use super::table::{Entry, Table};
use super::{Definition, Kind, Role, Slot, decoder};

/// The family.
pub const FAMILY: Definition = Definition {
    name: "llama",
    architectures: &["LlamaForCausalLM", "LlamaModel"],
    gguf: "llama",
    kind: Kind::Decoder,
    table: &TABLE,
    read: decoder::read,
};

/// Its tensors.
pub const TABLE: Table = Table {
    bases: &["model.", ""],
    entries: &[
        Entry::matrix(Slot::TokenEmbedding, Role::Embedding, "{base}embed_tokens.weight", &[Vocab, Hidden])
            .gguf("token_embd.weight"),
        Entry::gain(Slot::AttnNorm, "{base}layers.{layer}.input_layernorm.weight").gguf("blk.{layer}.attn_norm.weight"),
        Entry::linear(Slot::AttnQ, "{base}layers.{layer}.self_attn.q_proj.weight", &[Queries, Hidden])
            .gguf("blk.{layer}.attn_q.weight")
            .pairs(),
        Entry::bias(Slot::AttnQ, "{base}layers.{layer}.self_attn.q_proj.bias", &[Queries])
            .gguf("blk.{layer}.attn_q.bias")
            .pairs()
            .optional(),
        Entry::linear(Slot::AttnK, "{base}layers.{layer}.self_attn.k_proj.weight", &[Keys, Hidden])
            .gguf("blk.{layer}.attn_k.weight")
            .pairs(),
        Entry::bias(Slot::AttnK, "{base}layers.{layer}.self_attn.k_proj.bias", &[Keys])
            .gguf("blk.{layer}.attn_k.bias")
            .pairs()
            .optional(),
        Entry::linear(Slot::AttnV, "{base}layers.{layer}.self_attn.v_proj.weight", &[Keys, Hidden])
            .gguf("blk.{layer}.attn_v.weight"),
        Entry::bias(Slot::AttnV, "{base}layers.{layer}.self_attn.v_proj.bias", &[Keys])
            .gguf("blk.{layer}.attn_v.bias")
            .optional(),
        Entry::linear(Slot::AttnOut, "{base}layers.{layer}.self_attn.o_proj.weight", &[Hidden, Queries])
            .gguf("blk.{layer}.attn_output.weight"),
        Entry::bias(Slot::AttnOut, "{base}layers.{layer}.self_attn.o_proj.bias", &[Hidden])
            .gguf("blk.{layer}.attn_output.bias")
            .optional(),
        Entry::gain(Slot::FfnNorm, "{base}layers.{layer}.post_attention_layernorm.weight")
            .gguf("blk.{layer}.ffn_norm.weight"),
        Entry::linear(Slot::FfnGate, "{base}layers.{layer}.mlp.gate_proj.weight", &[Intermediate, Hidden])
            .gguf("blk.{layer}.ffn_gate.weight"),
        Entry::bias(Slot::FfnGate, "{base}layers.{layer}.mlp.gate_proj.bias", &[Intermediate])
            .gguf("blk.{layer}.ffn_gate.bias")
            .optional(),
        Entry::linear(Slot::FfnUp, "{base}layers.{layer}.mlp.up_proj.weight", &[Intermediate, Hidden])
            .gguf("blk.{layer}.ffn_up.weight"),
        Entry::bias(Slot::FfnUp, "{base}layers.{layer}.mlp.up_proj.bias", &[Intermediate])
            .gguf("blk.{layer}.ffn_up.bias")
            .optional(),
        Entry::linear(Slot::FfnDown, "{base}layers.{layer}.mlp.down_proj.weight", &[Hidden, Intermediate])
            .gguf("blk.{layer}.ffn_down.weight"),
        Entry::bias(Slot::FfnDown, "{base}layers.{layer}.mlp.down_proj.bias", &[Hidden])
            .gguf("blk.{layer}.ffn_down.bias")
            .optional(),
        Entry::gain(Slot::FinalNorm, "{base}norm.weight").gguf("output_norm.weight"),
        Entry::matrix(Slot::Head, Role::Head, "lm_head.weight", &[Vocab, Hidden]).gguf("output.weight").untied(),
    ],
    ignored: &["{base}layers.{layer}.self_attn.rotary_emb.inv_freq"],
};

#[cfg(test)]
mod tests {
    use crate::family::table::RowOrder;
    use crate::family::{Architecture, Part, Slot, find};
    use serde_json::json;

    fn config() -> serde_json::Value {
        json!({"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2,
            "num_hidden_layers": 2, "intermediate_size": 96, "vocab_size": 256, "tie_word_embeddings": true})
    }

    #[test]
    fn tensors_have_names_and_shapes_in_both_dialects() {
        let family = find(&config()).unwrap();
        let k = family.tensors().iter().find(|t| t.name() == "model.layers.1.self_attn.k_proj.weight").unwrap();
        assert_eq!(k.names, ["model.layers.1.self_attn.k_proj.weight", "layers.1.self_attn.k_proj.weight"]);
        assert_eq!((k.shape.as_slice(), k.layer, k.required), (&[32, 64][..], 1, true));
        let gguf = k.gguf.as_ref().unwrap();
        assert_eq!((gguf.name.as_str(), gguf.rows), ("blk.1.attn_k.weight", RowOrder::RopePairs { heads: 2 }));
        let head = family.tensors().last().unwrap();
        assert_eq!((head.name(), head.required), ("lm_head.weight", false));
        assert!(family.tensors().iter().all(|t| t.part == Part::Weight || !t.required));
        assert_eq!(family.tensors()[1].pieces[0].slot, Slot::AttnNorm);
        assert!(family.ignores("model.layers.12.self_attn.rotary_emb.inv_freq"));
        assert!(!family.ignores("model.layers.x.self_attn.rotary_emb.inv_freq"));
    }

    #[test]
    fn a_config_that_cannot_be_honoured_is_refused() {
        let mut bad = config();
        bad["num_key_value_heads"] = json!(3);
        assert!(find(&bad).unwrap_err().to_string().contains("num_key_value_heads"));
        bad = config();
        bad["num_attention_heads"] = json!(128);
        assert!(find(&bad).is_err());
        bad = config();
        bad["model_type"] = json!("mamba");
        assert!(find(&bad).unwrap_err().to_string().contains("llama"));
        bad = config();
        bad.as_object_mut().unwrap().remove("hidden_size");
        assert!(find(&bad).unwrap_err().to_string().contains("hidden_size"));
        let Architecture::Transformer(t) = find(&config()).unwrap().architecture else { panic!() };
        assert_eq!((t.head_dim, t.tied), (16, true));
    }
}
