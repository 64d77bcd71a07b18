//! From llama.cpp's keys back to a Hugging Face config.

use std::collections::{HashMap, HashSet};

use formats::gguf::{Array, Metadata, Value as Meta};
use serde_json::{Value, json};

use super::EVERY;

/// The key under which our own files carry the original `config.json`, so that it returns exactly.
pub const CONFIG_KEY: &str = "modelpress.config";

/// The tensors that stretch wavelengths: for all texts, for long ones, for short ones.
pub const ROPE_FACTORS: [&str; 3] = ["rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"];

/// More layers than any model has.
const MOST_LAYERS: u64 = 1 << 15;

/// The key under which our own files name the dtype that their vectors had, which llama.cpp wants in f32.
pub const WIDENED_KEY: &str = "modelpress.widened";

/// llama.cpp's architectures that are read.
const SUPPORTED: &str = "llama, qwen2, qwen3, qwen3moe, gemma3, phi3, gpt2, bert";

/// The Hugging Face config of a GGUF file: the original one where the file carries it, else rebuilt from its keys. `tensors`
/// are the file's tensors, some of which say what no key does; `factors` the numbers of those of [`ROPE_FACTORS`] that it has.
///
/// # Errors
/// In words, why there is none.
pub fn config(gguf: &Metadata, tensors: &HashSet<&str>, factors: &HashMap<&str, Vec<f32>>) -> Result<Value, String> {
    if let Some(text) = gguf.get_str(CONFIG_KEY)
        && let Ok(config) = serde_json::from_str(text)
    {
        return Ok(config);
    }
    let arch = gguf.get_str("general.architecture").ok_or("the file names no general.architecture")?;
    let keys = Keys { gguf, arch };
    let mut config = match arch {
        "gpt2" => gpt2(&keys)?,
        "bert" => bert(&keys)?,
        _ => rotary(&keys, factors)?,
    };
    config["tie_word_embeddings"] = (!tensors.contains("output.weight")).into();
    config["vocab_size"] = keys.vocab()?.into();
    for (key, field) in
        [("bos_token_id", "bos_token_id"), ("eos_token_id", "eos_token_id"), ("padding_token_id", "pad_token_id")]
    {
        if let Some(id) = gguf.get_u64(&format!("tokenizer.ggml.{key}")) {
            config[field] = id.into();
        }
    }
    Ok(config)
}

/// The keys of one architecture.
struct Keys<'a> {
    gguf: &'a Metadata,
    arch: &'a str,
}

impl Keys<'_> {
    fn full(&self, key: &str) -> String {
        format!("{}.{key}", self.arch)
    }

    fn maybe_count(&self, key: &str) -> Option<u64> {
        self.gguf.get_u64(&self.full(key))
    }

    fn count(&self, key: &str) -> Result<u64, String> {
        self.maybe_count(key).ok_or_else(|| format!("the metadata lack `{}`", self.full(key)))
    }

    fn number_or(&self, key: &str, default: f32) -> f32 {
        self.gguf.get_f32(&self.full(key)).unwrap_or(default)
    }

    fn vocab(&self) -> Result<u64, String> {
        let tokens = || match self.gguf.get("tokenizer.ggml.tokens") {
            Some(Meta::Array(Array::String(tokens))) => Some(tokens.len() as u64),
            _ => None,
        };
        self.maybe_count("vocab_size").or_else(tokens).ok_or_else(|| "the metadata name no vocabulary size".to_owned())
    }
}

fn gpt2(keys: &Keys<'_>) -> Result<Value, String> {
    Ok(json!({
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "n_embd": keys.count("embedding_length")?,
        "n_layer": keys.count("block_count")?,
        "n_head": keys.count("attention.head_count")?,
        "n_inner": keys.count("feed_forward_length")?,
        "n_positions": keys.count("context_length")?,
        "layer_norm_epsilon": keys.number_or("attention.layer_norm_epsilon", 1e-5),
        "activation_function": "gelu_new",
    }))
}

fn bert(keys: &Keys<'_>) -> Result<Value, String> {
    Ok(json!({
        "model_type": "bert",
        "architectures": ["BertModel"],
        "hidden_size": keys.count("embedding_length")?,
        "num_hidden_layers": keys.count("block_count")?,
        "num_attention_heads": keys.count("attention.head_count")?,
        "intermediate_size": keys.count("feed_forward_length")?,
        "max_position_embeddings": keys.count("context_length")?,
        "type_vocab_size": keys.gguf.get_u64("tokenizer.ggml.token_type_count").unwrap_or(2),
        "layer_norm_eps": keys.number_or("attention.layer_norm_epsilon", 1e-12),
        "hidden_act": "gelu",
    }))
}

/// Llama and its descendants.
fn rotary(keys: &Keys<'_>, factors: &HashMap<&str, Vec<f32>>) -> Result<Value, String> {
    let experts = keys.maybe_count("expert_count").filter(|count| *count > 0);
    let (model_type, class) = match (keys.arch, experts) {
        ("llama", None) => ("llama", "LlamaForCausalLM"),
        ("llama", Some(_)) => ("mixtral", "MixtralForCausalLM"),
        ("qwen2", _) => ("qwen2", "Qwen2ForCausalLM"),
        ("qwen3", _) => ("qwen3", "Qwen3ForCausalLM"),
        ("qwen3moe", _) => ("qwen3_moe", "Qwen3MoeForCausalLM"),
        ("gemma3", _) => ("gemma3_text", "Gemma3ForCausalLM"),
        ("phi3", _) => ("phi3", "Phi3ForCausalLM"),
        (arch, _) => return Err(format!("architecture `{arch}` cannot be read from GGUF yet; supported: {SUPPORTED}")),
    };
    let (hidden, heads) = (keys.count("embedding_length")?, keys.count("attention.head_count")?);
    let head_dim = keys.maybe_count("attention.key_length").unwrap_or(hidden / heads.max(1));
    let mut config = json!({
        "model_type": model_type,
        "architectures": [class],
        "hidden_size": hidden,
        "num_hidden_layers": keys.count("block_count")?,
        "intermediate_size": keys.count("feed_forward_length")?,
        "num_attention_heads": heads,
        "num_key_value_heads": keys.maybe_count("attention.head_count_kv").unwrap_or(heads),
        "head_dim": head_dim,
        "max_position_embeddings": keys.count("context_length")?,
        "rms_norm_eps": keys.number_or("attention.layer_norm_rms_epsilon", 1e-5),
        "rope_theta": keys.number_or("rope.freq_base", 10_000.0),
    });
    if let Some(scaling) = rope_scaling(keys, factors)? {
        config["rope_scaling"] = scaling;
    }
    if let Some(dims) = keys.maybe_count("rope.dimension_count").filter(|dims| *dims != head_dim) {
        config["partial_rotary_factor"] = fraction(dims, head_dim).into();
    }
    match model_type {
        "mixtral" => {
            config["num_local_experts"] = experts.into();
            config["num_experts_per_tok"] = keys.count("expert_used_count")?.into();
            config["sliding_window"] = Value::Null;
        }
        "qwen3_moe" => {
            config["num_experts"] = keys.count("expert_count")?.into();
            config["num_experts_per_tok"] = keys.count("expert_used_count")?.into();
            config["moe_intermediate_size"] = keys.count("expert_feed_forward_length")?.into();
            // llama.cpp knows no other way for this architecture.
            config["norm_topk_prob"] = true.into();
        }
        "gemma3_text" => {
            config["hidden_activation"] = "gelu_pytorch_tanh".into();
            config["rope_local_base_freq"] = keys.number_or("rope.freq_base_swa", 10_000.0).into();
            let layers = keys.count("block_count")?;
            let kind = |slides: &bool| if *slides { "sliding_attention" } else { "full_attention" };
            config["layer_types"] = pattern(keys, layers)?.iter().map(kind).collect();
            config["sliding_window"] = keys.maybe_count("attention.sliding_window").into();
            // So does it this: only the model of 62 layers does not scale by its heads' width.
            config["query_pre_attn_scalar"] = if layers == 62 { hidden / heads.max(1) } else { head_dim }.into();
        }
        "phi3" => {
            let window = keys.maybe_count("attention.sliding_window").filter(|window| *window > 0);
            config["sliding_window"] = window.into();
            config["original_max_position_embeddings"] =
                keys.maybe_count("rope.scaling.original_context_length").into();
        }
        _ => {}
    }
    Ok(config)
}

/// The fraction of `whole` that is `part`: times `whole`, with what follows the point cut off as transformers does, it is
/// `part` again.
fn fraction(part: u64, whole: u64) -> f64 {
    let quotient = part as f64 / whole as f64;
    if ((whole as f64 * quotient) as u64) < part { quotient.next_up() } else { quotient }
}

/// Which layers see only a window: a list, or every so many-th that sees all. What the file does not say, llama.cpp takes from
/// the architecture.
fn pattern(keys: &Keys<'_>, layers: u64) -> Result<Vec<bool>, String> {
    let key = keys.full("attention.sliding_window_pattern");
    let list: Vec<bool> = match keys.gguf.get(&key) {
        Some(Meta::Array(Array::Bool(list))) => list.clone(),
        Some(Meta::Array(Array::U32(list))) => list.iter().map(|n| *n != 0).collect(),
        Some(Meta::Array(Array::I32(list))) => list.iter().map(|n| *n != 0).collect(),
        Some(Meta::Array(_)) => return Err(format!("`{key}` is no list of truth values")),
        _ => {
            let every = keys.gguf.get_u64(&key).unwrap_or(EVERY as u64);
            if layers > MOST_LAYERS {
                return Err(format!("`{}` is {layers}", keys.full("block_count")));
            }
            return Ok((0..layers).map(|layer| every == 0 || (layer + 1) % every != 0).collect());
        }
    };
    if list.len() as u64 != layers {
        return Err(format!("`{key}` lists {} layers, and the model has {layers}", list.len()));
    }
    Ok(list)
}

/// How wavelengths are stretched, if they are. Factors for each are `longrope`'s: for short and long texts, or for both.
fn rope_scaling(keys: &Keys<'_>, factors: &HashMap<&str, Vec<f32>>) -> Result<Option<Value>, String> {
    let [all, long, short] = ROPE_FACTORS.map(|name| factors.get(name));
    if let (Some(long), Some(short)) = (long, short) {
        return Ok(Some(json!({
            "rope_type": "longrope",
            "short_factor": short,
            "long_factor": long,
            "original_max_position_embeddings": keys.count("rope.scaling.original_context_length")?,
            "attention_factor": keys.number_or("rope.scaling.attn_factor", 1.0),
        })));
    }
    if let Some(factors) = all {
        return Ok(Some(json!({
            "rope_type": "longrope",
            "short_factor": factors,
            "long_factor": factors,
            "attention_factor": 1.0,
        })));
    }
    match keys.gguf.get_str(&keys.full("rope.scaling.type")) {
        None | Some("none") => Ok(None),
        Some("linear") => {
            Ok(Some(json!({"rope_type": "linear", "factor": keys.number_or("rope.scaling.factor", 1.0)})))
        }
        Some(other) => {
            Err(format!("its rotation is scaled as `{other}`; supported: linear, factors of each wavelength"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::fraction;

    #[test]
    fn a_fraction_of_a_head_returns_as_it_was() {
        for whole in 1..=512 {
            for part in 1..=whole {
                assert_eq!((whole as f64 * fraction(part, whole)) as u64, part, "{part} of {whole}");
            }
        }
    }
}
