//! Tokenizers between `tokenizer.json` and llama.cpp's keys.

mod pre;
mod read;
mod write;

use formats::gguf::Metadata;
use serde_json::Value;

use crate::dialect::huggingface::{FILES, key};

pub use read::{tokenizer_config, tokenizer_json};
pub use write::{Original, write};

/// llama.cpp's token types (`llama_token_type`).
mod kind {
    pub const NORMAL: i32 = 1;
    pub const UNKNOWN: i32 = 2;
    pub const CONTROL: i32 = 3;
    pub const USER_DEFINED: i32 = 4;
    pub const UNUSED: i32 = 5;
    pub const BYTE: i32 = 6;
}

/// The mark that stands for a space in SentencePiece's vocabularies, and for a word's beginning in llama.cpp's of BERT.
const SPACE: char = '▁';

/// The files of a Hugging Face folder that a GGUF file holds, but for its `tokenizer.json`, where that must be rebuilt
/// ([`tokenizer_json`]): the original ones where it carries them, else what can be told from its keys.
pub fn companions(gguf: &Metadata) -> Vec<(&'static str, String)> {
    let carried = FILES.iter().filter_map(|name| Some((*name, gguf.get_str(&key(name))?.to_owned())));
    let mut files: Vec<(&str, String)> = carried.collect();
    let mut rebuild = |name, json: Option<Value>| {
        if let Some(json) = json.filter(|_| files.iter().all(|(known, _)| *known != name)) {
            files.push((name, format!("{json:#}\n")));
        }
    };
    if gguf.get(&key("tokenizer.json")).is_none() {
        rebuild("tokenizer_config.json", tokenizer_config(gguf));
        rebuild("generation_config.json", read::generation_config(gguf));
    }
    rebuild("1_Pooling/config.json", read::pooling(gguf));
    files
}

/// Puts a Hugging Face folder's file into a GGUF file's metadata as it is.
pub fn carry(name: &str, text: String, all: &mut Metadata) {
    all.push(key(name), text);
}
