//! From `tokenizer.json` to llama.cpp's keys, as its converter writes them. Pre-tokenizers are recognised by what
//! `tokenizer.json` says they do, not by a hash of what they make of a text, so that fine-tuned and home-made vocabularies work.

use std::collections::{HashMap, HashSet};

use formats::gguf::{Array, Metadata, Value};
use serde_json::Value as Json;

use super::super::Unsayable;
use super::{SPACE, kind, pre};

/// The score of a number that no token has, and of a token that was added by hand (`added_tokens_decoder`), as llama.cpp's
/// converter gives them.
const FILLER: f32 = -10_000.0;
const BY_HAND: f32 = -1000.0;

/// A Hugging Face tokenizer.
#[derive(Debug, Clone, Copy)]
pub struct Original<'a> {
    /// `tokenizer.json`.
    pub json: &'a Json,
    /// `tokenizer_config.json`.
    pub config: Option<&'a Json>,
    /// The model's `config.json`.
    pub model: Option<&'a Json>,
    /// The text of `chat_template.jinja`.
    pub chat_template: Option<&'a str>,
    /// Number of tokens that the model has.
    pub vocab: usize,
    /// The token that it puts before every text.
    pub first: Option<u32>,
    /// The token that it puts after every text.
    pub last: Option<u32>,
}

/// Adds a tokenizer's keys.
///
/// # Errors
/// A kind of tokenizer that llama.cpp does not have, or tokens that the model does not have.
pub fn write(original: &Original<'_>, all: &mut Metadata) -> Result<(), Unsayable> {
    let model = &original.json["model"];
    match kind_of(model) {
        "BPE" if model["byte_fallback"] == true => sentencepiece(original, all)?,
        "BPE" => byte_level(original, all)?,
        "WordPiece" => wordpiece(original, all)?,
        other => return Err(unsupported(format!("its tokenizer is of type {other}"))),
    }
    special_tokens(original, all);
    chat_templates(original, all);
    Ok(())
}

fn unsupported(problem: String) -> Unsayable {
    Unsayable {
        problem,
        next: "Tokenizers that can be written as GGUF: byte-level BPE, BPE with byte fallback (SentencePiece's) and \
               WordPiece. Write safetensors instead: -o NAME.safetensors"
            .to_owned(),
    }
}

/// The type of a model of tokens. Old files do not name it, and are told apart by their fields.
fn kind_of(model: &Json) -> &str {
    match model["type"].as_str() {
        Some(kind) => kind,
        None if model["merges"].is_array() => "BPE",
        None if model["vocab"].is_array() => "Unigram",
        None if model["max_input_chars_per_word"].is_number() => "WordPiece",
        None => "unknown",
    }
}

/// Tokens by number.
struct Tokens {
    texts: Vec<String>,
    types: Vec<i32>,
}

impl Tokens {
    fn of(original: &Original<'_>) -> Result<Self, Unsayable> {
        let vocab = original.vocab;
        let mut tokens =
            Self { texts: (0..vocab).map(|id| format!("[PAD{id}]")).collect(), types: vec![kind::UNUSED; vocab] };
        for (text, id) in original.json["model"]["vocab"].as_object().into_iter().flatten() {
            tokens.place(id, text, kind::NORMAL)?;
        }
        for token in original.json["added_tokens"].as_array().into_iter().flatten() {
            let text = token["content"].as_str().unwrap_or_default();
            let special = token["special"] == true || looks_special(text);
            tokens.place(&token["id"], text, if special { kind::CONTROL } else { kind::USER_DEFINED })?;
        }
        Ok(tokens)
    }

    fn place(&mut self, id: &Json, text: &str, kind: i32) -> Result<(), Unsayable> {
        match id.as_u64().map(|id| id as usize) {
            Some(id) if id < self.texts.len() => {
                text.clone_into(&mut self.texts[id]);
                self.types[id] = kind;
                Ok(())
            }
            _ => Err(Unsayable {
                problem: format!("token `{text}` has number {id}, and the model has {} tokens", self.texts.len()),
                next: "Use the tokenizer.json that came with these weights".to_owned(),
            }),
        }
    }

    /// Adds the keys. llama.cpp stops at a file with a text twice.
    fn push(self, all: &mut Metadata) -> Result<(), Unsayable> {
        let mut seen = HashMap::with_capacity(self.texts.len());
        for (id, text) in self.texts.iter().enumerate() {
            if let Some(first) = seen.insert(text.as_str(), id) {
                return Err(unsupported(format!("tokens {first} and {id} would both be `{text}`")));
            }
        }
        all.push("tokenizer.ggml.tokens", Value::Array(Array::String(self.texts)));
        all.push("tokenizer.ggml.token_type", Value::Array(Array::I32(self.types)));
        Ok(())
    }
}

/// Whether llama.cpp's converter takes an added token for a special one though its file says otherwise.
fn looks_special(text: &str) -> bool {
    let between = |open: &str, close: &str| text.starts_with(open) && text.ends_with(close);
    ["<pad>", "<mask>", "<2mass>", "[@BOS@]"].contains(&text)
        || between("<|", "|>")
        || between("<｜", "｜>")
        || between("<unused", ">")
}

fn byte_level(original: &Original<'_>, all: &mut Metadata) -> Result<(), Unsayable> {
    let json = original.json;
    let whole_words = json["model"]["ignore_merges"] == true;
    let Some(pre) = pre::recognise(&json["pre_tokenizer"], whole_words) else {
        return Err(unsupported(format!("its pre-tokenizer is none that llama.cpp has: {}", json["pre_tokenizer"])));
    };
    // llama.cpp takes a text as it is. It does so with the models whose tokenizers compose accents first (NFC), too.
    if let Some(other) = steps(&json["normalizer"], "normalizers").into_iter().find(|step| step["type"] != "NFC") {
        return Err(unsupported(format!("its normalizer is none that llama.cpp has: {other}")));
    }
    // A space within a token would be taken for the one between the two.
    let part = |text: &Json| text.as_str().unwrap_or_default().replace(' ', "Ġ");
    let merges = json["model"]["merges"].as_array().into_iter().flatten().map(|merge| match merge {
        Json::String(text) => text.clone(),
        pair => format!("{} {}", part(&pair[0]), part(&pair[1])),
    });
    let merges = merges.collect();
    all.push("tokenizer.ggml.model", "gpt2");
    all.push("tokenizer.ggml.pre", pre);
    Tokens::of(original)?.push(all)?;
    all.push("tokenizer.ggml.merges", Value::Array(Array::String(merges)));
    Ok(())
}

/// The steps of a normalizer or pre-tokenizer, one after the other.
fn steps<'a>(json: &'a Json, list: &str) -> Vec<&'a Json> {
    match json {
        Json::Null => Vec::new(),
        json if json["type"] == "Sequence" => {
            json[list].as_array().into_iter().flatten().flat_map(|step| steps(step, list)).collect()
        }
        json => vec![json],
    }
}

/// SentencePiece's BPE: llama.cpp knows a token's score instead of the merges that make it, and joins the two neighbours that
/// make the token of the highest score.
fn sentencepiece(original: &Original<'_>, all: &mut Metadata) -> Result<(), Unsayable> {
    let json = original.json;
    let space = SPACE.to_string();
    let mut adds_space = false;
    for step in steps(&json["normalizer"], "normalizers") {
        match step["type"].as_str() {
            Some("Prepend") if step["prepend"] == space.as_str() => adds_space = true,
            Some("Replace") if step["pattern"]["String"] == " " && step["content"] == space.as_str() => {}
            _ => return Err(unsupported(format!("its normalizer is none that llama.cpp has: {step}"))),
        }
    }
    for step in steps(&json["pre_tokenizer"], "pretokenizers") {
        match step["type"].as_str() {
            Some("Metaspace") if step["replacement"] == space.as_str() => {
                // The older form says only whether.
                let scheme = step["prepend_scheme"].as_str();
                adds_space |= scheme.map_or(step["add_prefix_space"] == true, |scheme| scheme != "never");
            }
            // There are no spaces left at which it would split.
            Some("Split") if step["pattern"]["String"] == " " => {}
            _ => return Err(unsupported(format!("its pre-tokenizer is none that llama.cpp has: {step}"))),
        }
    }
    let mut tokens = Tokens::of(original)?;
    let listed = original.config.and_then(|config| config.get("added_tokens_decoder")).and_then(Json::as_object);
    let listed: HashSet<usize> = listed.into_iter().flatten().filter_map(|(id, _)| id.parse().ok()).collect();
    for (id, (text, kind)) in tokens.texts.iter().zip(&mut tokens.types).enumerate() {
        if *kind == kind::NORMAL && byte(text).is_some() {
            *kind = kind::BYTE;
        }
        if json["model"]["unk_token"] == text.as_str() && !listed.contains(&id) {
            *kind = kind::UNKNOWN;
        }
    }
    let mut scores = scores_of(&tokens, &json["model"]["merges"]);
    for id in listed.into_iter().filter(|id| *id < original.vocab) {
        scores[id] = BY_HAND;
    }
    all.push("tokenizer.ggml.model", "llama");
    all.push("tokenizer.ggml.pre", "default");
    tokens.push(all)?;
    all.push("tokenizer.ggml.scores", Value::Array(Array::F32(scores)));
    all.push("tokenizer.ggml.add_space_prefix", adds_space);
    Ok(())
}

/// The byte that a token such as `<0x0A>` stands for.
fn byte(text: &str) -> Option<u8> {
    let digits = text.strip_prefix("<0x")?.strip_suffix('>')?;
    u8::from_str_radix(digits, 16).ok().filter(|_| digits.len() == 2)
}

/// SentencePiece's scores: 0, -1, -2 … in the order in which merges make tokens, then the tokens that none makes.
fn scores_of(tokens: &Tokens, merges: &Json) -> Vec<f32> {
    let ids: HashMap<&str, usize> = tokens.texts.iter().enumerate().map(|(id, text)| (text.as_str(), id)).collect();
    let made = merges.as_array().into_iter().flatten().filter_map(|merge| {
        let joined = match merge {
            Json::String(text) => text.replacen(' ', "", 1),
            pair => format!("{}{}", pair[0].as_str()?, pair[1].as_str()?),
        };
        ids.get(joined.as_str()).copied()
    });
    let mut ranked = HashSet::new();
    let order: Vec<usize> = made.chain(0..tokens.texts.len()).filter(|id| ranked.insert(*id)).collect();
    let mut scores = vec![0.0; tokens.texts.len()];
    let mut rank = 0.0;
    for id in order {
        scores[id] = match tokens.types[id] {
            kind::NORMAL => {
                rank += 1.0;
                1.0 - rank
            }
            kind::UNUSED => FILLER,
            kind::USER_DEFINED => BY_HAND,
            _ => 0.0,
        };
    }
    scores
}

/// BERT's: llama.cpp marks a word's first piece, where others mark those that follow.
fn wordpiece(original: &Original<'_>, all: &mut Metadata) -> Result<(), Unsayable> {
    let json = original.json;
    let model = &json["model"];
    let prefix = model["continuing_subword_prefix"].as_str().unwrap_or("##");
    if prefix.is_empty() {
        return Err(unsupported("its word pieces have no mark that tells a word's first from the others".into()));
    }
    let pre: Vec<&Json> = steps(&json["pre_tokenizer"], "pretokenizers");
    if !matches!(pre.as_slice(), [one] if one["type"] == "BertPreTokenizer") {
        return Err(unsupported(format!("its pre-tokenizer is not BERT's: {}", json["pre_tokenizer"])));
    }
    let normalizer = steps(&json["normalizer"], "normalizers");
    let [bert] = normalizer.as_slice() else {
        return Err(unsupported(format!("its normalizer is not BERT's: {}", json["normalizer"])));
    };
    if bert["type"] != "BertNormalizer" || bert["clean_text"] == false || bert["handle_chinese_chars"] == false {
        return Err(unsupported(format!("its normalizer is none that llama.cpp has: {bert}")));
    }
    if original.first.is_none() || original.last.is_none() {
        return Err(unsupported("it does not put a token before and one after every text, as llama.cpp does".into()));
    }
    let mut tokens = Tokens::of(original)?;
    for (text, kind) in tokens.texts.iter_mut().zip(&tokens.types) {
        if *kind != kind::CONTROL {
            *text = text.strip_prefix(prefix).map_or_else(|| format!("{SPACE}{text}"), str::to_owned);
        }
    }
    all.push("tokenizer.ggml.model", "bert");
    all.push("tokenizer.ggml.pre", "default");
    tokens.push(all)?;
    for (field, key) in [("lowercase", "lowercase"), ("strip_accents", "strip_accents")] {
        if let Some(on) = bert[field].as_bool() {
            all.push(format!("tokenizer.ggml.normalizer.{key}"), on);
        }
    }
    Ok(())
}

/// Which tokens begin, end, separate and fill texts: what the tokenizer's config says, else the model's.
fn special_tokens(original: &Original<'_>, all: &mut Metadata) {
    let added = original.json["added_tokens"].as_array().map(Vec::as_slice).unwrap_or_default();
    let id_of = |text: &str| added.iter().find(|token| token["content"] == text)?["id"].as_u64();
    let named = |role: &str| {
        let token = original.config?.get(format!("{role}_token"))?;
        id_of(token.as_str().or_else(|| token["content"].as_str())?)
    };
    let of_model = |role: &str| {
        let value = original.model?.get(format!("{role}_token_id"))?;
        // Some configs list several end tokens; the first is the one that ends a text.
        value.as_u64().or_else(|| value.get(0)?.as_u64())
    };
    let is_bert = kind_of(&original.json["model"]) == "WordPiece";
    let mut bos = named("bos").or_else(|| named("cls"));
    let mut eos = named("eos").or_else(|| named("sep"));
    // What it does counts for more than what it says.
    if original.first.is_some() {
        bos = original.first.map(u64::from);
    }
    if original.last.is_some() && named("sep") != original.last.map(u64::from) {
        eos = original.last.map(u64::from);
    }
    let roles = [
        ("bos", "bos", bos),
        ("eos", "eos", eos),
        ("unk", "unknown", named("unk").or_else(|| id_of(original.json["model"]["unk_token"].as_str()?))),
        ("sep", "seperator", named("sep").or(original.last.filter(|_| is_bert).map(u64::from))),
        ("pad", "padding", named("pad")),
        ("mask", "mask", named("mask")),
    ];
    for (role, key, id) in roles {
        if let Some(id) = id.or_else(|| of_model(role)).filter(|id| *id < original.vocab as u64) {
            all.push(format!("tokenizer.ggml.{key}_token_id"), id as u32);
        }
    }
    all.push("tokenizer.ggml.add_bos_token", original.first.is_some());
    // BERT's last token ends a text as well as it separates two.
    let separates = original.last.is_some() && original.last.map(u64::from) != eos;
    all.push("tokenizer.ggml.add_eos_token", original.last.is_some() && !separates);
    all.push("tokenizer.ggml.add_sep_token", separates);
}

/// The chat template, or the one named `default` and the others under their names.
fn chat_templates(original: &Original<'_>, all: &mut Metadata) {
    const KEY: &str = "tokenizer.chat_template";
    let said = original.config.and_then(|config| config.get("chat_template"));
    match said {
        Some(Json::String(text)) => all.push(KEY, text.as_str()),
        Some(Json::Array(list)) => {
            let mut names = Vec::new();
            for entry in list {
                let (Some(name), Some(text)) = (entry["name"].as_str(), entry["template"].as_str()) else { continue };
                if name == "default" {
                    all.push(KEY, text);
                } else {
                    let name = name.replace(|c: char| !c.is_ascii_alphanumeric(), "_");
                    all.push(format!("{KEY}.{name}"), text);
                    names.push(name);
                }
            }
            if !names.is_empty() {
                all.push("tokenizer.chat_templates", Array::String(names));
            }
        }
        _ => {}
    }
    if let Some(text) = original.chat_template {
        all.push(KEY, text);
    }
}
