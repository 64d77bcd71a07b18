//! Llama 1 to 3 (Touvron et al., 2023; Grattafiori et al., 2024).

use super::table::Table;
use super::{Definition, Kind, decoder};

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
    bases: decoder::BASES,
    sections: &[decoder::EMBEDDING, decoder::NORMS, decoder::ATTENTION, decoder::FEED_FORWARD, decoder::END],
    rope_pairs: true,
    ignored: decoder::IGNORED,
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
