//! From llama.cpp's keys back to `tokenizer.json` and what lies beside it. Tokens, merges and scores are the file's; how a text
//! is cut is what llama.cpp does with them.

use std::collections::{BTreeSet, HashMap};

use formats::gguf::{Array, Metadata, Value};
use serde_json::{Map, Value as Json, json};

use super::{SPACE, kind, pre};

/// A `tokenizer.json` made of a GGUF file's keys. `None`: the file has no tokenizer.
///
/// # Errors
/// In words, why there is none.
pub fn tokenizer_json(gguf: &Metadata) -> Result<Option<Json>, String> {
    let Some(model) = gguf.get_str("tokenizer.ggml.model").filter(|model| !["none", "no_vocab"].contains(model)) else {
        return Ok(None);
    };
    let vocab = Vocab::of(gguf, model)?;
    let json = match model {
        "gpt2" => vocab.byte_level()?,
        "llama" => vocab.sentencepiece(),
        "gemma4" => vocab.unsplit(),
        "bert" => vocab.wordpiece(),
        "t5" => return Err("its tokenizer is SentencePiece's Unigram (`t5`), which is not rebuilt yet".into()),
        other => return Err(format!("its tokenizer is `{other}`; rebuilt from GGUF: gpt2, llama, gemma4, bert")),
    };
    Ok(Some(json))
}

/// The keys of a tokenizer.
struct Vocab<'a> {
    gguf: &'a Metadata,
    model: &'a str,
    texts: &'a [String],
    types: Vec<i32>,
    ids: HashMap<&'a str, usize>,
}

/// What a model's loader takes where no key says otherwise: bos, eos, unk, sep, pad, mask; and whether it puts bos first.
type Defaults = ([Option<u32>; 6], bool);

impl<'a> Vocab<'a> {
    fn of(gguf: &'a Metadata, model: &'a str) -> Result<Self, String> {
        let Some(Value::Array(Array::String(texts))) = gguf.get("tokenizer.ggml.tokens") else {
            return Err("the metadata lack `tokenizer.ggml.tokens`".into());
        };
        let types = match gguf.get("tokenizer.ggml.token_type") {
            Some(Value::Array(Array::I32(types))) if types.len() >= texts.len() => types.clone(),
            None => vec![kind::NORMAL; texts.len()],
            Some(_) => return Err("`tokenizer.ggml.token_type` has no number for each token".into()),
        };
        let mut ids = HashMap::with_capacity(texts.len());
        for (id, text) in texts.iter().enumerate() {
            if let Some(first) = ids.insert(text.as_str(), id) {
                return Err(format!("tokens {first} and {id} are both `{text}`"));
            }
        }
        Ok(Self { gguf, model, texts, types, ids })
    }

    fn defaults(&self) -> Defaults {
        match self.model {
            "llama" => ([Some(1), Some(2), Some(0), None, None, None], true),
            "bert" => ([Some(101), None, Some(100), Some(102), Some(0), Some(103)], true),
            "gpt2" => {
                let named = self.gguf.get_str("tokenizer.ggml.pre").and_then(pre::named);
                ([Some(11), Some(11), None, None, None, None], named.is_some_and(|named| named.adds_first))
            }
            _ => ([None; 6], self.model == "gemma4"),
        }
    }

    /// The number and text of a special token.
    fn special(&self, role: Role) -> Option<(u32, &'a str)> {
        let key = format!("tokenizer.ggml.{}_token_id", role.key());
        let id = self.gguf.get_u64(&key).and_then(|id| u32::try_from(id).ok());
        let exists = |id: &u32| (*id as usize) < self.texts.len();
        let id = id.filter(exists).or_else(|| self.defaults().0[role as usize].filter(exists))?;
        Some((id, self.texts[id as usize].as_str()))
    }

    fn flag(&self, key: &str) -> Option<bool> {
        self.gguf.get_bool(&format!("tokenizer.ggml.{key}"))
    }

    /// Tokens that are found in a text before anything else is done with it. Ones that the model itself can say too.
    fn added(&self) -> Vec<Json> {
        // llama.cpp, too, knows by the name alone that these take the spaces after them.
        let name = self.gguf.get_str("general.name").unwrap_or_default().to_lowercase();
        let phi3 = ["phi-3", "phi3"].iter().any(|phi| name.contains(phi));
        let added = self.texts.iter().zip(&self.types).enumerate().filter(|(id, _)| !self.is_filler(*id));
        let added = added.filter_map(|(id, (text, kind))| {
            let special = match *kind {
                kind::CONTROL | kind::UNKNOWN => true,
                kind::USER_DEFINED => false,
                _ => return None,
            };
            let strips = phi3 && !["<unk>", "<s>", "<|endoftext|>"].contains(&text.as_str());
            Some(json!({
                "id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": strips,
                "normalized": false, "special": special,
            }))
        });
        added.filter(|token| token["content"] != "").collect()
    }

    /// Whether a token only fills the table. Older converters took such for unknown ones.
    fn is_filler(&self, id: usize) -> bool {
        matches!(self.types[id], kind::UNUSED | kind::UNKNOWN) && self.texts[id] == format!("[PAD{id}]")
    }

    /// Numbers by text; not those that only fill the table.
    fn numbers(&self, text_of: impl Fn(usize) -> String) -> Map<String, Json> {
        (0..self.texts.len()).filter(|&id| !self.is_filler(id)).map(|id| (text_of(id), id.into())).collect()
    }

    /// Puts the special tokens around a text.
    fn post_processor(&self) -> Json {
        let around = |yes: bool, role| self.special(role).filter(|_| yes);
        let adds_first = self.flag("add_bos_token").unwrap_or(self.defaults().1);
        let separates = self.flag("add_sep_token").unwrap_or(self.model == "bert");
        let first = around(adds_first || self.model == "bert", Role::Bos);
        let last = match self.model {
            "bert" => around(true, Role::Sep),
            _ => around(self.flag("add_eos_token") == Some(true), Role::Eos).or(around(separates, Role::Sep)),
        };
        if first.is_none() && last.is_none() {
            return Json::Null;
        }
        let token = |text: &str, segment: u8| json!({"SpecialToken": {"id": text, "type_id": segment}});
        let text = |id: &str, segment: u8| json!({"Sequence": {"id": id, "type_id": segment}});
        let mut single: Vec<Json> = first.iter().map(|(_, bos)| token(bos, 0)).collect();
        single.push(text("A", 0));
        single.extend(last.iter().map(|(_, eos)| token(eos, 0)));
        let mut pair = single.clone();
        pair.extend(first.iter().filter(|_| self.model != "bert").map(|(_, bos)| token(bos, 1)));
        pair.push(text("B", 1));
        pair.extend(last.iter().map(|(_, eos)| token(eos, 1)));
        let known = first.iter().chain(&last);
        let known: Map<String, Json> =
            known.map(|(id, text)| ((*text).to_owned(), json!({"id": text, "ids": [id], "tokens": [text]}))).collect();
        json!({"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": known})
    }

    /// The merges that the file lists, if their tokens exist.
    fn merges(&self) -> Vec<Json> {
        let Some(Value::Array(Array::String(merges))) = self.gguf.get("tokenizer.ggml.merges") else {
            return Vec::new();
        };
        let pair = |merge: &String| {
            // A first part may begin with a space, but not hold one.
            let at = merge.char_indices().skip(1).find(|(_, c)| *c == ' ')?.0;
            let (left, right) = (&merge[..at], &merge[at + 1..]);
            let known = |text: &str| self.ids.contains_key(text);
            (known(left) && known(right) && known(&format!("{left}{right}"))).then(|| json!([left, right]))
        };
        merges.iter().filter_map(pair).collect()
    }

    fn file(&self, normalizer: Json, pre_tokenizer: Json, decoder: Json, model: Json) -> Json {
        json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": self.added(),
            "normalizer": normalizer,
            "pre_tokenizer": pre_tokenizer,
            "post_processor": self.post_processor(),
            "decoder": decoder,
            "model": model,
        })
    }

    fn byte_level(&self) -> Result<Json, String> {
        let name = self.gguf.get_str("tokenizer.ggml.pre").unwrap_or("default");
        let pre = pre::named(name).ok_or_else(|| format!("its pre-tokenizer is `{name}`, which is not known here"))?;
        let model = json!({
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": pre.whole_words,
            "vocab": self.numbers(|id| self.texts[id].clone()), "merges": self.merges(),
        });
        let decoder = json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true});
        Ok(self.file(Json::Null, pre.json, decoder, model))
    }

    /// BPE with byte fallback and the mark for spaces.
    fn marked(&self, adds_space: bool, pre_tokenizer: Json, merges: Vec<Json>) -> Json {
        let space = SPACE.to_string();
        let mut normalizers = vec![json!({"type": "Replace", "pattern": {"String": " "}, "content": space})];
        let mut decoders = vec![
            json!({"type": "Replace", "pattern": {"String": space}, "content": " "}),
            json!({"type": "ByteFallback"}),
            json!({"type": "Fuse"}),
        ];
        if adds_space {
            normalizers.insert(0, json!({"type": "Prepend", "prepend": space}));
            decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
        }
        let model = json!({
            "type": "BPE", "dropout": null, "unk_token": self.special(Role::Unk).map(|(_, text)| text),
            "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true,
            "ignore_merges": false, "vocab": self.numbers(|id| self.texts[id].clone()), "merges": merges,
        });
        let normalizer = json!({"type": "Sequence", "normalizers": normalizers});
        self.file(normalizer, pre_tokenizer, json!({"type": "Sequence", "decoders": decoders}), model)
    }

    fn sentencepiece(&self) -> Json {
        self.marked(self.flag("add_space_prefix").unwrap_or(true), Json::Null, self.merges_of_scores())
    }

    /// Gemma 4's: the same, with the merges listed. No merge reaches over the end of a line.
    fn unsplit(&self) -> Json {
        let lines = json!({
            "type": "Split", "pattern": {"Regex": "[^\\n]+|[\\n]+"}, "behavior": "Isolated", "invert": false,
        });
        self.marked(false, lines, self.merges())
    }

    /// Every way to make a token of two others, in the order of the tokens' scores. Of equal scores, the first token's come
    /// first, which is how files whose scores are all the same were meant.
    fn merges_of_scores(&self) -> Vec<Json> {
        let none = Vec::new();
        let scores = match self.gguf.get("tokenizer.ggml.scores") {
            Some(Value::Array(Array::F32(scores))) => scores,
            _ => &none,
        };
        let score = |id: usize| scores.get(id).copied().unwrap_or(0.0);
        let is_piece = |text: &str| self.ids.get(text).is_some_and(|&id| self.types[id] == kind::NORMAL);
        let mut order: Vec<usize> = (0..self.texts.len()).filter(|&id| self.types[id] == kind::NORMAL).collect();
        order.sort_by(|&a, &b| score(b).total_cmp(&score(a)));
        let ways = |id: usize| {
            let text = self.texts[id].as_str();
            let halves = text.char_indices().skip(1).map(move |(at, _)| text.split_at(at));
            let mut ways: Vec<_> = halves.filter(|(left, right)| is_piece(left) && is_piece(right)).collect();
            ways.reverse();
            ways
        };
        order.into_iter().flat_map(ways).map(|(left, right)| json!([left, right])).collect()
    }

    fn wordpiece(&self) -> Json {
        let lowercase = self.flag("normalizer.lowercase").unwrap_or(true);
        let text_of = |id: usize| {
            let text = &self.texts[id];
            match (self.types[id], text.strip_prefix(SPACE)) {
                (kind::CONTROL | kind::UNKNOWN | kind::UNUSED, _) => text.clone(),
                (_, Some(word)) => word.to_owned(),
                (_, None) => format!("##{text}"),
            }
        };
        let model = json!({
            "type": "WordPiece", "unk_token": self.special(Role::Unk).map_or("[UNK]", |(_, text)| text),
            "continuing_subword_prefix": "##", "max_input_chars_per_word": 100, "vocab": self.numbers(text_of),
        });
        let normalizer = json!({
            "type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
            "strip_accents": self.flag("normalizer.strip_accents"), "lowercase": lowercase,
        });
        let decoder = json!({"type": "WordPiece", "prefix": "##", "cleanup": true});
        self.file(normalizer, json!({"type": "BertPreTokenizer"}), decoder, model)
    }
}

/// The roles of special tokens, in the order of [`Defaults`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Bos,
    Eos,
    Unk,
    Sep,
    Pad,
    Mask,
}

impl Role {
    const ALL: [Self; 6] = [Self::Bos, Self::Eos, Self::Unk, Self::Sep, Self::Pad, Self::Mask];

    fn key(self) -> &'static str {
        ["bos", "eos", "unknown", "seperator", "padding", "mask"][self as usize]
    }

    /// What `tokenizer_config.json` calls it. BERT's first token is not one that begins a generated text.
    fn name(self, model: &str) -> &'static str {
        match self {
            Self::Bos if model == "bert" => "cls",
            role => ["bos", "eos", "unk", "sep", "pad", "mask"][role as usize],
        }
    }
}

fn vocab(gguf: &Metadata) -> Option<Vocab<'_>> {
    Vocab::of(gguf, gguf.get_str("tokenizer.ggml.model")?).ok()
}

/// A `tokenizer_config.json` made of a GGUF file's keys.
pub fn tokenizer_config(gguf: &Metadata) -> Option<Json> {
    let vocab = vocab(gguf)?;
    let mut config = json!({"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": false});
    for role in Role::ALL {
        // A default is only a guess where the loader does not use the token.
        let said = gguf.get(&format!("tokenizer.ggml.{}_token_id", role.key())).is_some();
        if let Some((_, text)) = vocab.special(role).filter(|_| said || vocab.model != "gpt2")
            && !(vocab.model == "bert" && role == Role::Eos)
        {
            config[format!("{}_token", role.name(vocab.model))] = text.into();
        }
    }
    let arch = gguf.get_str("general.architecture").unwrap_or_default();
    if let Some(longest) = gguf.get_u64(&format!("{arch}.context_length")) {
        config["model_max_length"] = longest.into();
    }
    if let Some(template) = gguf.get_str("tokenizer.chat_template") {
        config["chat_template"] = template.into();
    }
    Some(config)
}

/// Texts of tokens that end a turn or a text, whatever the keys say.
const ENDS: &[&str] = &[
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    "<｜end▁of▁sentence｜>",
];

/// A `generation_config.json` made of a GGUF file's keys: which tokens begin, fill and end a generated text. llama.cpp knows the
/// last also by their texts.
pub fn generation_config(gguf: &Metadata) -> Option<Json> {
    let vocab = vocab(gguf).filter(|vocab| vocab.model != "bert")?;
    let mut ends: BTreeSet<u32> = ["eos", "eot", "eom"]
        .iter()
        .filter_map(|role| u32::try_from(gguf.get_u64(&format!("tokenizer.ggml.{role}_token_id"))?).ok())
        .filter(|id| (*id as usize) < vocab.texts.len())
        .collect();
    let by_text = ENDS.iter().filter_map(|text| vocab.ids.get(text));
    ends.extend(by_text.filter(|&&id| vocab.types[id] == kind::CONTROL).map(|&id| id as u32));
    let mut config = json!({"eos_token_id": ends});
    for (role, field) in [(Role::Bos, "bos_token_id"), (Role::Pad, "pad_token_id")] {
        let said = gguf.get(&format!("tokenizer.ggml.{}_token_id", role.key())).is_some();
        if let Some((id, _)) = vocab.special(role).filter(|_| said) {
            config[field] = id.into();
        }
    }
    Some(config)
}

/// sentence-transformers' `1_Pooling/config.json` of an encoder, if the file says how it is pooled.
pub fn pooling(gguf: &Metadata) -> Option<Json> {
    let arch = gguf.get_str("general.architecture")?;
    let width = gguf.get_u64(&format!("{arch}.embedding_length"))?;
    let kind = gguf.get_u64(&format!("{arch}.pooling_type"))?;
    let modes = [(1, "mean_tokens"), (2, "cls_token"), (3, "lasttoken")];
    let (_, mode) = modes.iter().find(|(number, _)| *number == kind)?;
    let mut config = json!({"word_embedding_dimension": width});
    config[format!("pooling_mode_{mode}")] = true.into();
    Some(config)
}
