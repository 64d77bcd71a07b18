//! The Hugging Face dialect's own words: how a config describes quantized weights, and what our files say of themselves.

use serde_json::{Map, Value, json};

/// The key under which a file's own metadata hold its quantization config, so that a single file tells what it is.
pub const QUANTIZATION: &str = "modelpress.quantization_config";

/// The key under which a file's own metadata hold its recipe's rules.
pub const RULES: &str = "modelpress.rules";

/// The class of a module in PyTorch, by which compressed-tensors finds what a group is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// `torch.nn.Linear`
    Linear,
    /// `torch.nn.Embedding`
    Embedding,
}

/// A module with a matrix.
#[derive(Debug, Clone)]
pub struct Module {
    /// Its name.
    pub name: String,
    /// Its class.
    pub class: Class,
    /// Whether its weight is int8.
    pub int8: bool,
}

/// compressed-tensors' `quantization_config` for int8 weights with a scale for each row; `None` if no module has them.
///
/// Linear modules form one group, with inputs quantized per token; embeddings a second one, weights only. Modules that are
/// not quantized and that a group's class would match are listed to be ignored.
pub fn int8_config(modules: &[Module]) -> Option<Value> {
    if !modules.iter().any(|module| module.int8) {
        return None;
    }
    let int8 = |strategy: &str, dynamic: bool| {
        json!({
            "num_bits": 8, "type": "int", "symmetric": true, "group_size": null, "strategy": strategy, "dynamic": dynamic,
        })
    };
    let mut groups = Map::new();
    let mut ignore = Vec::new();
    let classes = [(Class::Linear, "Linear", int8("token", true)), (Class::Embedding, "Embedding", Value::Null)];
    for (class, target, inputs) in classes {
        let of_class = || modules.iter().filter(|module| module.class == class);
        if !of_class().any(|module| module.int8) {
            continue;
        }
        groups.insert(
            format!("group_{}", groups.len()),
            json!({
                "targets": [target], "weights": int8("channel", false), "input_activations": inputs,
                "output_activations": null, "format": "int-quantized",
            }),
        );
        ignore.extend(of_class().filter(|module| !module.int8).map(|module| module.name.clone()));
    }
    Some(json!({
        "config_groups": groups,
        "quant_method": "compressed-tensors",
        "kv_cache_scheme": null,
        "format": "int-quantized",
        "quantization_status": "compressed",
        "global_compression_ratio": null,
        "ignore": ignore,
    }))
}
