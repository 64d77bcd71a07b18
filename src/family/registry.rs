//! Finds a model's family from its config.

use serde_json::Value;

use super::config::{Fate, Fields, MOST_MATRICES};
use super::table::{Expected, Table};
use super::{Architecture, Error, Position, Transformer};
use super::{bert, distilbert, gemma3, gpt2, llama, mistral, mixtral, phi3, qwen2, qwen3, qwen3_moe, roberta};

/// What a model is for, which decides how its outputs are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Predicts the next token.
    Decoder,
    /// Embeds a text.
    Encoder,
    /// A chain of linear layers.
    Chain,
}

/// A family: one small file.
#[derive(Debug)]
pub struct Definition {
    /// The canonical `model_type`.
    pub name: &'static str,
    /// Names in `architectures`, for configs without `model_type`.
    pub architectures: &'static [&'static str],
    /// llama.cpp's name of the architecture.
    pub gguf: &'static str,
    /// What it is for.
    pub kind: Kind,
    /// Its tensors.
    pub table: &'static Table,
    /// Reads its config.
    pub read: fn(&mut Fields<'_>) -> Result<Transformer, Error>,
}

/// All families of transformers.
pub const FAMILIES: &[&Definition] = &[
    &llama::FAMILY,
    &mistral::FAMILY,
    &mixtral::FAMILY,
    &qwen2::FAMILY,
    &qwen3::FAMILY,
    &qwen3_moe::FAMILY,
    &phi3::FAMILY,
    &gemma3::FAMILY,
    &gpt2::FAMILY,
    &bert::FAMILY,
    &roberta::FAMILY,
    &distilbert::FAMILY,
];

/// A model's family, with the model's own dimensions.
#[derive(Debug, Clone)]
pub struct Family {
    /// Its name: `model_type`, or `linear-chain`.
    pub name: &'static str,
    /// What it is for.
    pub kind: Kind,
    /// What to compute.
    pub architecture: Architecture,
    /// The name of llama.cpp's architecture, if it has one.
    pub gguf: Option<&'static str>,
    /// What became of the config's fields.
    pub config: Fate,
    pub(super) tensors: Vec<Expected>,
    pub(super) table: Option<&'static Table>,
}

impl Family {
    /// The tensors that a model of the family has, layer by layer. A file may hold more.
    pub fn tensors(&self) -> &[Expected] {
        &self.tensors
    }

    /// The canonical names of the tensors that belong to no layer.
    pub fn tensors_of_no_layer(&self) -> impl Iterator<Item = String> {
        let bare = match (&self.architecture, self.table) {
            (Architecture::Transformer(t), Some(table)) => table.expand(&Transformer { layers: 0, ..(**t).clone() }),
            _ => Vec::new(),
        };
        bare.into_iter().map(|expected| expected.name().to_owned())
    }

    /// Whether a tensor of this name is known to be without effect, such as a buffer that old files hold.
    pub fn ignores(&self, tensor: &str) -> bool {
        self.table.is_some_and(|table| table.ignores(tensor))
    }
}

/// Layers that a config may describe, however few tensors there are: so many that are missing can still be named.
const FEW_LAYERS: usize = 512;

/// The family of a model with this `config.json`.
///
/// # Errors
/// [`Error::Family`] if it is none of the supported ones; others if the config is incomplete, or asks for something that
/// is not supported.
pub fn find(config: &Value) -> Result<Family, Error> {
    find_for(config, MOST_MATRICES)
}

/// As [`find`], of files with so many tensors. A layer has several: a config that describes far more layers is not theirs, and
/// the memory for a list of them all is not taken.
///
/// # Errors
/// As [`find`].
pub fn find_for(config: &Value, tensors: usize) -> Result<Family, Error> {
    let model_type = config.get("model_type").and_then(Value::as_str);
    let classes = config.get("architectures").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let classes: Vec<&str> = classes.iter().filter_map(Value::as_str).collect();
    let is_it = |family: &&&Definition| match model_type {
        Some(name) => family.name == name,
        None => classes.iter().any(|class| family.architectures.contains(class)),
    };
    let Some(definition) = FAMILIES.iter().find(is_it) else {
        return Err(Error::Family {
            found: model_type.or(classes.first().copied()).unwrap_or("(none named)").into(),
            supported: FAMILIES.iter().map(|family| family.name).collect::<Vec<_>>().join(", "),
        });
    };
    let mut fields = Fields::new(config, definition.name)?;
    let transformer = (definition.read)(&mut fields)?;
    validate(&transformer, &fields)?;
    if transformer.layers > FEW_LAYERS.max(tensors) {
        return Err(Error::Invalid {
            field: "num_hidden_layers".into(),
            expected: format!("fewer than there are tensors ({tensors})"),
            found: transformer.layers.to_string(),
        });
    }
    Ok(Family {
        name: definition.name,
        kind: definition.kind,
        gguf: Some(definition.gguf),
        config: fields.fate(),
        tensors: definition.table.expand(&transformer),
        table: Some(definition.table),
        architecture: Architecture::Transformer(Box::new(transformer)),
    })
}

/// What the runtime takes for granted.
fn validate(t: &Transformer, fields: &Fields<'_>) -> Result<(), Error> {
    let wrong = |field: &str, expected: String, found: usize| Error::Invalid {
        field: field.into(),
        expected: format!("{expected} in a {} model", fields.family()),
        found: found.to_string(),
    };
    if !t.heads.is_multiple_of(t.kv_heads) {
        return Err(wrong("num_key_value_heads", format!("a divisor of {} heads", t.heads), t.kv_heads));
    }
    if t.head_dim == 0 {
        return Err(wrong("num_attention_heads", format!("at most hidden_size ({})", t.hidden), t.heads));
    }
    let matrices = t.layers.saturating_mul(t.experts.map_or(1, |experts| experts.count));
    if matrices > MOST_MATRICES {
        return Err(wrong("num_hidden_layers", format!("at most {MOST_MATRICES} layers and experts"), matrices));
    }
    if let Some(experts) = t.experts
        && experts.per_token > experts.count
    {
        return Err(wrong("num_experts_per_tok", format!("at most {} experts", experts.count), experts.per_token));
    }
    if let Position::Rope(ropes) = &t.position
        && let Some(rope) = ropes.iter().find(|rope| !rope.dims.is_multiple_of(2) || rope.dims > t.head_dim)
    {
        return Err(wrong("head_dim", "an even number of dimensions to rotate".into(), rope.dims));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(config: Value) -> (Transformer, Fate) {
        let family = find(&config).unwrap();
        let Architecture::Transformer(t) = family.architecture else { panic!("a transformer") };
        (*t, family.config)
    }

    /// Configs as they lie on the hub, in the spelling before transformers 5.
    #[test]
    fn older_spellings_are_read_and_every_field_is_known() {
        let (t, fate) = read(json!({"architectures": ["Gemma3ForCausalLM"], "attention_bias": false,
            "attn_logit_softcapping": null, "cache_implementation": "hybrid", "eos_token_id": [1, 106],
            "final_logit_softcapping": null, "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh",
            "hidden_size": 1152, "intermediate_size": 6912, "max_position_embeddings": 32768,
            "model_type": "gemma3_text", "num_attention_heads": 4, "num_hidden_layers": 12, "num_key_value_heads": 1,
            "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-6, "rope_local_base_freq": 10000, "rope_scaling": null,
            "rope_theta": 1000000, "sliding_window": 512, "sliding_window_pattern": 6, "torch_dtype": "bfloat16",
            "use_cache": true, "vocab_size": 262144}));
        assert_eq!(fate.unknown, [""; 0]);
        let Position::Rope(ropes) = &t.position else { panic!("rotations") };
        for (layer, (window, rope)) in t.windows.iter().zip(ropes).enumerate() {
            let global = layer % 6 == 5;
            assert_eq!(*window, (!global).then_some(512), "{layer}");
            assert_eq!(rope.theta, if global { 1e6 } else { 1e4 }, "{layer}");
        }
        assert!(t.tied && t.attention_scale == 1.0 / 16.0);

        let mistral = json!({"architectures": ["MistralForCausalLM"], "hidden_act": "silu", "hidden_size": 4096,
            "intermediate_size": 14336, "max_position_embeddings": 32768, "model_type": "mistral",
            "num_attention_heads": 32, "num_hidden_layers": 2, "num_key_value_heads": 8, "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0, "sliding_window": 4096, "tie_word_embeddings": false, "vocab_size": 32000});
        let (t, fate) = read(mistral.clone());
        assert_eq!((t.windows[0], fate.unknown), (Some(4096), vec![]));
        let mut whole = mistral;
        whole["sliding_window"] = Value::Null;
        assert_eq!(read(whole).0.windows[0], None);

        let qwen = json!({"architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "hidden_act": "silu",
            "hidden_size": 896, "intermediate_size": 4864, "max_position_embeddings": 32768, "max_window_layers": 1,
            "model_type": "qwen2", "num_attention_heads": 14, "num_hidden_layers": 3, "num_key_value_heads": 2,
            "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "sliding_window": 100, "tie_word_embeddings": true,
            "use_sliding_window": false, "vocab_size": 151936});
        let (t, fate) = read(qwen.clone());
        assert_eq!((t.windows, fate.unknown), (vec![None; 3], vec![]));
        let mut slides = qwen;
        slides["use_sliding_window"] = json!(true);
        assert_eq!(read(slides).0.windows, [None, Some(100), Some(100)]);
    }

    #[test]
    fn what_changes_the_outputs_and_is_not_supported_names_its_field() {
        let moe = json!({"model_type": "qwen3_moe", "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4,
            "num_hidden_layers": 2, "vocab_size": 256, "num_experts": 4, "num_experts_per_tok": 2,
            "moe_intermediate_size": 48});
        let gpt2 = json!({"model_type": "gpt2", "n_embd": 64, "n_head": 4, "n_layer": 2, "vocab_size": 256});
        let gemma = json!({"model_type": "gemma3_text", "hidden_size": 64, "intermediate_size": 96,
            "num_attention_heads": 4, "num_hidden_layers": 2, "vocab_size": 256});
        for (config, field, value) in [
            (&moe, "decoder_sparse_step", json!(2)),
            (&moe, "mlp_only_layers", json!([0])),
            (&gpt2, "scale_attn_by_inverse_layer_idx", json!(true)),
            (&gpt2, "add_cross_attention", json!(true)),
            (&gemma, "final_logit_softcapping", json!(30.0)),
            (&gemma, "layer_types", json!(["full_attention", "chunked_attention"])),
        ] {
            let mut config = config.clone();
            assert!(find(&config).is_ok());
            config[field] = value;
            let message = find(&config).unwrap_err().to_string();
            assert!(message.contains(field), "{message}");
        }
    }
}
