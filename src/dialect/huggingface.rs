//! The Hugging Face dialect's own words: how a config describes quantized weights, and what our files say of themselves.

use serde_json::{Map, Value, json};

/// The key under which a file's own metadata hold its quantization config, so that a single file tells what it is.
pub const QUANTIZATION: &str = "modelpress.quantization_config";

/// The key under which a file's own metadata hold its recipe's rules.
pub const RULES: &str = "modelpress.rules";

/// The files of a model's folder that say what its config and its weights do not: tokenizer, generation, pooling.
pub const FILES: &[&str] = &[
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
    "chat_template.jinja",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "1_Pooling/config.json",
];

/// The key under which our own files of other formats carry a Hugging Face folder's file word for word, so that it returns
/// exactly: `modelpress.tokenizer` for `tokenizer.json`, `modelpress.config` for `config.json`.
pub fn key(name: &str) -> String {
    let stem = name.rsplit_once('.').map_or(name, |(stem, _)| stem);
    format!("modelpress.{}", stem.replace('/', "."))
}

/// The class of a module in PyTorch, by which compressed-tensors finds what a group is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// `torch.nn.Linear`
    Linear,
    /// `torch.nn.Embedding`
    Embedding,
}

/// A form in which compressed-tensors stores a module's weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// `int-quantized`: int8, a scale for each row; inputs of linear modules in int8 per token.
    Int8,
    /// `pack-quantized`: integers of so many bits, symmetric, a scale for each group (for each row if `None`).
    Packed {
        /// Bits of a code.
        bits: u8,
        /// Numbers that share a scale.
        group: Option<u64>,
    },
    /// `float-quantized`: FP8 E4M3, a scale for each row; inputs in FP8 per token.
    Fp8,
}

/// A module with a matrix.
#[derive(Debug, Clone)]
pub struct Module {
    /// Its name.
    pub name: String,
    /// Its class.
    pub class: Class,
    /// How its weight is quantized, if it is.
    pub form: Option<Form>,
}

impl Form {
    fn format(self) -> &'static str {
        match self {
            Self::Int8 => "int-quantized",
            Self::Packed { .. } => "pack-quantized",
            Self::Fp8 => "float-quantized",
        }
    }

    fn weights(self) -> Value {
        match self {
            Self::Int8 => args(8, "int", None, "channel", false),
            Self::Packed { bits, group: Some(group) } => args(bits, "int", Some(group), "group", false),
            Self::Packed { bits, group: None } => args(bits, "int", None, "channel", false),
            Self::Fp8 => args(8, "float", None, "channel", false),
        }
    }

    /// Inputs of embeddings are numbers of tokens, which nothing quantizes.
    fn inputs(self, class: Class) -> Value {
        match (self, class) {
            (Self::Int8, Class::Linear) => args(8, "int", None, "token", true),
            (Self::Fp8, Class::Linear) => args(8, "float", None, "token", true),
            _ => Value::Null,
        }
    }
}

fn args(bits: u8, kind: &str, group: Option<u64>, strategy: &str, dynamic: bool) -> Value {
    json!({
        "num_bits": bits, "type": kind, "symmetric": true, "group_size": group, "strategy": strategy, "dynamic": dynamic,
    })
}

/// compressed-tensors' `quantization_config`; `None` if no module is quantized.
///
/// Modules of one class and form are a group. The largest group of a class is found by the class's name, others by the names
/// of their modules, which go before. Modules that are not quantized and that a class's name would match are listed to be
/// ignored.
pub fn quantization_config(modules: &[Module]) -> Option<Value> {
    let mut groups: Vec<(Class, Form, Vec<&str>)> = Vec::new();
    let mut ignore = Vec::new();
    for class in [Class::Linear, Class::Embedding] {
        let of_class = || modules.iter().filter(|module| module.class == class);
        if of_class().all(|module| module.form.is_none()) {
            continue;
        }
        let first = groups.len();
        for module in of_class() {
            let Some(form) = module.form else {
                ignore.push(module.name.as_str());
                continue;
            };
            match groups[first..].iter_mut().find(|group| group.1 == form) {
                Some(group) => group.2.push(&module.name),
                None => groups.push((class, form, vec![&module.name])),
            }
        }
        groups[first..].sort_by_key(|group| std::cmp::Reverse(group.2.len()));
        if let Some(largest) = groups.get_mut(first) {
            largest.2 = vec![if class == Class::Linear { "Linear" } else { "Embedding" }];
        }
    }
    let format = match groups.as_slice() {
        [] => return None,
        [(_, form, _), rest @ ..] if rest.iter().all(|group| group.1.format() == form.format()) => form.format(),
        _ => "mixed-precision",
    };
    let config_groups: Map<String, Value> = groups
        .iter()
        .enumerate()
        .map(|(i, (class, form, targets))| {
            let group = json!({
                "targets": targets, "weights": form.weights(), "input_activations": form.inputs(*class),
                "output_activations": null, "format": form.format(),
            });
            (format!("group_{i}"), group)
        })
        .collect();
    Some(json!({
        "config_groups": config_groups,
        "quant_method": "compressed-tensors",
        "kv_cache_scheme": null,
        "format": format,
        "quantization_status": "compressed",
        "global_compression_ratio": null,
        "ignore": ignore,
    }))
}
