//! A byte-level BPE tokenizer in llama.cpp's keys. The pre-tokenizer is recognised by what `tokenizer.json` says it does, not
//! by a hash of what it makes of a text, so that fine-tuned and home-made vocabularies work.

use formats::gguf::{Array, Metadata, Value};
use serde_json::Value as Json;

use super::Unsayable;

/// llama.cpp's token types.
const NORMAL: i32 = 1;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;

/// Patterns of `Split` pre-tokenizers, as `tokenizer.json` files have them, and llama.cpp's name for each.
const PATTERNS: &[(&str, &str)] = &[
    (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        "llama-bpe",
    ),
    (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        "qwen2",
    ),
];

/// Adds a tokenizer's keys, from its `tokenizer.json` and from the model's config, which names the special tokens. `adds_bos`:
/// whether it puts a first token before every text.
///
/// # Errors
/// A kind of tokenizer that cannot be written yet, or tokens that the model does not have.
pub fn tokenizer(
    json: &Json,
    config: Option<&Json>,
    vocab: usize,
    adds_bos: bool,
    all: &mut Metadata,
) -> Result<(), Unsayable> {
    let unsupported = |problem: String| Unsayable {
        problem,
        next: "Only byte-level BPE tokenizers can be written as GGUF yet".to_owned(),
    };
    let model = &json["model"];
    if model["type"] != "BPE" || model["byte_fallback"] == true {
        return Err(unsupported(format!("its tokenizer is of type {}", model["type"])));
    }
    let pre = pre_tokenizer(&json["pre_tokenizer"]).ok_or_else(|| {
        unsupported(format!("its pre-tokenizer is none that llama.cpp has: {}", json["pre_tokenizer"]))
    })?;
    let mut tokens: Vec<String> = (0..vocab).map(|id| format!("[PAD{id}]")).collect();
    let mut types = vec![UNUSED; vocab];
    let mut place = |id: &Json, text: &str, kind: i32| match id.as_u64().map(|id| id as usize) {
        Some(id) if id < vocab => {
            tokens[id] = text.to_owned();
            types[id] = kind;
            Ok(())
        }
        _ => Err(Unsayable {
            problem: format!("token `{text}` has number {id}, and the model has {vocab} tokens"),
            next: "Use the tokenizer.json that came with these weights".to_owned(),
        }),
    };
    for (text, id) in model["vocab"].as_object().into_iter().flatten() {
        place(id, text, NORMAL)?;
    }
    for token in json["added_tokens"].as_array().into_iter().flatten() {
        let kind = if token["special"] == true { CONTROL } else { USER_DEFINED };
        place(&token["id"], token["content"].as_str().unwrap_or_default(), kind)?;
    }
    let merges = model["merges"].as_array().into_iter().flatten().map(|merge| match merge {
        Json::String(text) => text.clone(),
        pair => format!("{} {}", pair[0].as_str().unwrap_or_default(), pair[1].as_str().unwrap_or_default()),
    });
    let merges = merges.collect();
    all.push("tokenizer.ggml.model", Value::String("gpt2".into()));
    all.push("tokenizer.ggml.pre", Value::String(pre.into()));
    all.push("tokenizer.ggml.tokens", Value::Array(Array::String(tokens)));
    all.push("tokenizer.ggml.token_type", Value::Array(Array::I32(types)));
    all.push("tokenizer.ggml.merges", Value::Array(Array::String(merges)));
    for (field, key) in
        [("bos_token_id", "bos_token_id"), ("eos_token_id", "eos_token_id"), ("pad_token_id", "padding_token_id")]
    {
        let value = config.and_then(|config| config.get(field));
        // Some configs list several end tokens; the first is the one that ends a text.
        let id = value.and_then(|value| value.as_u64().or_else(|| value.get(0)?.as_u64()));
        if let Some(id) = id {
            all.push(format!("tokenizer.ggml.{key}"), Value::U32(id as u32));
        }
    }
    all.push("tokenizer.ggml.add_bos_token", Value::Bool(adds_bos));
    Ok(())
}

/// llama.cpp's name for what a pre-tokenizer does.
fn pre_tokenizer(json: &Json) -> Option<&'static str> {
    match json["type"].as_str()? {
        "ByteLevel" if json["use_regex"] != false => Some("gpt-2"),
        "Sequence" => {
            let steps = json["pretokenizers"].as_array()?;
            let split = steps.iter().find(|step| step["type"] == "Split");
            match split {
                Some(split) => {
                    let pattern = split["pattern"]["Regex"].as_str()?;
                    PATTERNS.iter().find(|(known, _)| *known == pattern).map(|(_, name)| *name)
                }
                None => steps.iter().find_map(pre_tokenizer),
            }
        }
        _ => None,
    }
}
