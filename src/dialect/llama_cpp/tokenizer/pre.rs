//! Pre-tokenizers: how a text is cut into words before byte-level BPE. llama.cpp knows each by a name; `tokenizer.json` says
//! step by step what it does. One table tells both ways.

use serde_json::{Value, json};

/// One step; later steps cut the pieces that earlier ones left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step<'a> {
    /// Each match of a regular expression stands alone.
    Split(&'a str),
    /// Digits stand alone, each by itself or in runs.
    Digits { each: bool },
    /// Runs of punctuation stand alone.
    Punctuation,
    /// GPT-2's words, and bytes as characters from here on.
    Words,
}
use Step::{Digits, Punctuation, Split, Words};

/// A pre-tokenizer that llama.cpp has.
struct Known {
    /// llama.cpp's names. The first is the one that is written.
    names: &'static [&'static str],
    steps: &'static [Step<'static>],
    /// Whether llama.cpp takes a word that is a token whole, without merging (`ignore_merges`).
    whole_words: bool,
    /// Whether llama.cpp puts the first token before a text where no key says so.
    adds_first: bool,
}

const fn known(names: &'static [&'static str], steps: &'static [Step<'static>]) -> Known {
    Known { names, steps, whole_words: false, adds_first: false }
}

const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN35: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const DEEPSEEK3: &str = "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+";
const BLOOM: &str = r" ?[^(\s|[.,!?…。，、।۔،])]+";
const BAILING: &str =
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+";
const SEED_CODER: &str = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1}| ?[^\\s\\p{L}\\p{N}\r\n]+|\\s*[\r\n]+|\\s+(?!\\S)|\\s+";
const JAIS2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s{512}(?!\S)|\s{256}(?!\S)|\s{128}(?!\S)|\s{64}(?!\S)|\s{32}(?!\S)|\s{16}(?!\S)|\s{8}(?!\S)|\s{4}(?!\S)|\s{1,2}(?!\S)|\s{1}";
const EXAONE_MOE: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+";
const MINICPM5: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const UFAKZEKA: &str = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Letters of the scripts that have capitals.
const CASED: &str = r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-ώᾀ-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+";

/// What is known, the likelier of two names for the same steps first.
const KNOWN: &[Known] = &[
    known(
        &[
            "gpt-2",
            "phi-2",
            "mpt",
            "olmo",
            "jais",
            "trillion",
            "granite-docling",
            "roberta-bpe",
            "gigachat",
            "a.x-4.0",
            "mellum",
            "modern-bert",
            "exaone4",
            "jina-es",
            "jina-de",
            "jina-v1-en",
            "jina-v2-es",
            "jina-v2-de",
            "jina-v2-code",
        ],
        &[Words],
    ),
    Known {
        names: &[
            "llama-bpe",
            "llama3",
            "llama-v3",
            "falcon3",
            "falcon-h1",
            "pixtral",
            "midm-2.0",
            "lfm2",
            "jina-v5-nano",
        ],
        steps: &[Split(LLAMA3)],
        whole_words: true,
        adds_first: true,
    },
    Known { names: &["glm4", "glm5"], steps: &[Split(LLAMA3)], whole_words: true, adds_first: false },
    known(&["dbrx", "smaug-bpe", "chatglm-bpe"], &[Split(LLAMA3)]),
    known(
        &["qwen2", "deepseek-r1-qwen", "kormo", "f2llmv2", "stablelm2", "megrez", "hunyuan", "solar-open", "grok-2"],
        &[Split(QWEN2)],
    ),
    known(&["qwen35"], &[Split(QWEN35)]),
    known(&["gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"], &[Split(GPT4O)]),
    Known { names: &["tekken"], steps: &[Split(TEKKEN)], whole_words: true, adds_first: true },
    known(
        &["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"],
        &[Digits { each: true }, Words],
    ),
    known(
        &["deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"],
        &[Split(r"\p{N}{1,3}"), Split("[一-龥぀-ゟ゠-ヿ]+"), Split(DEEPSEEK3)],
    ),
    known(
        &["deepseek-coder"],
        &[Split("[\r\n]"), Split(r"\s?\p{L}+"), Split(r"\s?\p{P}+"), Split("[一-龥ࠀ-一가-퟿]+"), Digits { each: true }],
    ),
    known(
        &["deepseek-llm"],
        &[
            Split("[\r\n]"),
            Split(CASED),
            Split(r"\s?[!-/:-~！-／：-～‘-‟　-。]+"),
            Split(r"\s+$"),
            Split("[一-龥ࠀ-一가-퟿]+"),
            Digits { each: true },
        ],
    ),
    known(&["falcon"], &[Punctuation, Words, Digits { each: false }, Split("[0-9][0-9][0-9]")]),
    known(&["bloom", "poro-chat", "gpt3-finnish"], &[Split(BLOOM)]),
    known(&["viking"], &[Split(BLOOM), Digits { each: true }]),
    known(&["bailingmoe", "bailingmoe2", "llada-moe"], &[Split(BAILING)]),
    known(&["seed-coder"], &[Split(SEED_CODER)]),
    known(&["jais-2"], &[Split(JAIS2)]),
    known(&["exaone-moe"], &[Split(EXAONE_MOE)]),
    Known {
        names: &["minicpm5"],
        steps: &[Split(r"\p{N}{1,3}"), Split(MINICPM5)],
        whole_words: true,
        adds_first: false,
    },
    known(&["ufakzeka"], &[Split(UFAKZEKA)]),
    known(&["tiny_aya", "cohere2moe"], &[Split(r"\d{1,3}(?=(?:\d{3})*\b)"), Split(GPT4O)]),
    known(&["default"], &[Split(r"[\p{P}\$\+<=>\^~\|]+"), Words, Digits { each: false }, Split("[0-9][0-9][0-9]")]),
];

/// What llama.cpp does under a name.
pub struct Named {
    /// The `pre_tokenizer` of `tokenizer.json`.
    pub json: Value,
    /// Whether a word that is a token is taken whole (`ignore_merges`).
    pub whole_words: bool,
    /// Whether the first token is put before a text where no key says so.
    pub adds_first: bool,
}

/// What a name of llama.cpp's means. `None`: it is not known here.
pub fn named(name: &str) -> Option<Named> {
    let known = KNOWN.iter().find(|known| known.names.contains(&name))?;
    let mut steps: Vec<Value> = known.steps.iter().map(json_of).collect();
    if !known.steps.contains(&Words) {
        steps.push(byte_level(false));
    }
    let json = match steps.len() {
        1 => steps.remove(0),
        _ => json!({"type": "Sequence", "pretokenizers": steps}),
    };
    Some(Named { json, whole_words: known.whole_words, adds_first: known.adds_first })
}

fn byte_level(use_regex: bool) -> Value {
    json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex})
}

fn json_of(step: &Step<'_>) -> Value {
    match step {
        Split(regex) => {
            json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false})
        }
        Digits { each } => json!({"type": "Digits", "individual_digits": each}),
        Punctuation => json!({"type": "Punctuation", "behavior": "Contiguous"}),
        Words => byte_level(true),
    }
}

/// llama.cpp's name for what a `pre_tokenizer` does. `whole_words`: the tokenizer's `ignore_merges`, which decides between two
/// names for the same steps.
pub fn recognise(pre_tokenizer: &Value, whole_words: bool) -> Option<&'static str> {
    let mut steps = Vec::new();
    let bytes = flatten(pre_tokenizer, &mut steps)?;
    let mut same = KNOWN.iter().filter(|known| known.steps == steps && bytes);
    let first = same.clone().next()?;
    let best = same.find(|known| known.whole_words == whole_words).unwrap_or(first);
    best.names.first().copied()
}

/// The steps of a `pre_tokenizer`, and whether bytes become characters. `None`: one of them is none that llama.cpp has.
fn flatten<'a>(json: &'a Value, steps: &mut Vec<Step<'a>>) -> Option<bool> {
    let flag = |name: &str, default: bool| json.get(name).and_then(Value::as_bool).unwrap_or(default);
    match json["type"].as_str()? {
        "Sequence" => {
            let mut bytes = false;
            for step in json["pretokenizers"].as_array()? {
                bytes |= flatten(step, steps)?;
            }
            return Some(bytes);
        }
        "ByteLevel" if !flag("add_prefix_space", true) => {
            if flag("use_regex", true) {
                steps.push(Words);
            }
            return Some(true);
        }
        "Split" => {
            // Keeping what matches and dropping the rest is the same where the expression matches everything.
            let alone = match json["behavior"].as_str()? {
                "Isolated" => !flag("invert", false),
                "Removed" => flag("invert", false),
                _ => false,
            };
            steps.push(Split(json["pattern"]["Regex"].as_str().filter(|_| alone)?));
        }
        "Digits" => steps.push(Digits { each: flag("individual_digits", false) }),
        "Punctuation" if json["behavior"] == "Contiguous" => steps.push(Punctuation),
        _ => return None,
    }
    Some(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_known_once_and_recognised_from_what_it_does() {
        let mut names = std::collections::HashSet::new();
        for known in KNOWN {
            for name in known.names {
                assert!(names.insert(name), "{name}");
                let named = named(name).unwrap();
                let found = recognise(&named.json, named.whole_words).unwrap();
                let row = KNOWN.iter().find(|known| known.names.contains(&found)).unwrap();
                assert_eq!((row.steps, row.whole_words), (known.steps, known.whole_words), "{name}");
            }
        }
        assert!(named("no such").is_none());
    }

    #[test]
    fn the_spellings_of_tokenizer_json_are_recognised() {
        let split = |regex: &str, behavior: &str, invert: bool| {
            json!({"type": "Sequence", "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": regex}, "behavior": behavior, "invert": invert},
                {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
            ]})
        };
        assert_eq!(recognise(&split(LLAMA3, "Isolated", false), true), Some("llama-bpe"));
        assert_eq!(recognise(&split(LLAMA3, "Isolated", false), false), Some("dbrx"));
        assert_eq!(recognise(&split(GPT4O, "Removed", true), false), Some("gpt-4o"));
        assert_eq!(recognise(&split(GPT4O, "Removed", false), false), None);
        assert_eq!(recognise(&split("x+", "Isolated", false), false), None);
        let plain = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true});
        assert_eq!(recognise(&plain, false), Some("gpt-2"));
        let prefixed = json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true});
        assert_eq!(recognise(&prefixed, false), None);
        let digits = json!({"type": "Sequence", "pretokenizers": [
            {"type": "Digits", "individual_digits": true}, plain,
        ]});
        assert_eq!(recognise(&digits, false), Some("smollm"));
    }
}
