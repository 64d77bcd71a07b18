//! Tokenizers between `tokenizer.json` and GGUF, against what others make of the same texts.

use std::path::{Path, PathBuf};

use formats::gguf::{Array, Metadata, Value};
use formats::{Access, Limits, Payload};
use modelpress::dialect::llama_cpp::tokenizer;
use modelpress::loader::{Checkpoint, Companion, Options, Tokenizer};
use serde_json::Value as Json;

use crate::args;
use crate::support::{compress, copy_folder, fixture};

fn metadata(path: &Path) -> Metadata {
    let source = formats::open(path, Access::Mapped, &Limits::default()).unwrap();
    match source.payload() {
        Payload::Gguf(metadata) => metadata.clone(),
        _ => panic!("{} is no GGUF", path.display()),
    }
}

fn rebuilt(metadata: &Metadata) -> (Json, Tokenizer) {
    let json = tokenizer::tokenizer_json(metadata).unwrap().unwrap();
    let tokenizer = Tokenizer::read(&Companion::within(Path::new("rebuilt"), json.to_string())).unwrap();
    (json, tokenizer)
}

/// llama.cpp's source folder, which has the vocabularies of some models with texts and the numbers that transformers makes of them.
fn llama_cpp() -> Option<PathBuf> {
    std::env::var_os("MODELPRESS_LLAMA_CPP").map(PathBuf::from)
}

/// Real vocabularies as llama.cpp's converter wrote them, rebuilt: the tokens that transformers makes of its texts. Written again,
/// they have the keys that they had.
#[test]
fn vocabularies_of_llama_cpp_cut_texts_as_transformers_does() {
    let Some(folder) = llama_cpp() else {
        println!("skipped: MODELPRESS_LLAMA_CPP names no source folder of llama.cpp");
        return;
    };
    let mut failures = Vec::new();
    let mut compared = 0;
    for entry in std::fs::read_dir(folder.join("models")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|ext| ext != "gguf") {
            continue;
        }
        let name = path.file_stem().unwrap().to_string_lossy().replace("ggml-vocab-", "");
        let beside = |ext: &str| std::fs::read_to_string(format!("{}.{ext}", path.display()));
        let (Ok(inputs), Ok(outputs)) = (beside("inp"), beside("out")) else { continue };
        let metadata = metadata(&path);
        let (json, tokenizer) = rebuilt(&metadata);
        let expected = outputs.lines().map(|line| line.split_whitespace().map(|id| id.parse().unwrap()).collect());
        for (text, expected) in inputs.split("\n__ggml_vocab_test__\n").zip(expected) {
            let expected: Vec<u32> = expected;
            let found = tokenizer.encode(text).unwrap();
            if found != expected {
                failures.push(format!("{name}: {text:?}: {found:?} and not {expected:?}"));
            }
            compared += 1;
        }
        let (first, last) = tokenizer.around();
        let config = tokenizer::tokenizer_config(&metadata);
        let original = tokenizer::Original {
            json: &json,
            config: config.as_ref(),
            model: None,
            chat_template: None,
            vocab: match metadata.get("tokenizer.ggml.tokens") {
                Some(Value::Array(Array::String(tokens))) => tokens.len(),
                _ => 0,
            },
            first,
            last,
        };
        let mut again = Metadata::default();
        let written = tokenizer::write(&original, &mut again);
        // No family that is known has it.
        assert_eq!(written.is_err(), name == "gemma-4", "{name}: {written:?}");
        if written.is_err() {
            continue;
        }
        for key in ["model", "tokens", "merges"] {
            let key = format!("tokenizer.ggml.{key}");
            assert!(again.get(&key) == metadata.get(&key), "{name}: {key}");
        }
        let types = |metadata: &Metadata| match metadata.get("tokenizer.ggml.token_type") {
            Some(Value::Array(Array::I32(types))) => types.clone(),
            other => panic!("{other:?}"),
        };
        let (types, before) = (types(&again), types(&metadata));
        // Since these files were made, the converter takes what looks special for control tokens, and what fills the table for
        // unused ones; of phi-3 it calls the unknown token a control token.
        let same = |(a, b): (&i32, &i32)| {
            a == b || [(3, 4), (5, 2)].contains(&(*a, *b)) || name == "phi-3" && (*a, *b) == (2, 3)
        };
        assert!(types.iter().zip(&before).all(same), "{name}");
        let (_, again) = self::rebuilt(&again);
        assert!(inputs.lines().all(|text| again.encode(text) == tokenizer.encode(text)), "{name}");
    }
    println!("{compared} texts");
    assert!(failures.is_empty() && compared > 500, "{compared}\n{}", failures.join("\n"));
}

fn read(path: &Path) -> Json {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// What the tokenizers library makes of some texts, with special tokens and without.
struct Expected {
    texts: Vec<String>,
    whole: Vec<Vec<u32>>,
    text: Vec<Vec<u32>>,
}

impl Expected {
    fn of(kind: &str) -> Self {
        let all = read(&fixture("tokenizers/tokens.json"));
        let tokens = |of: &str| serde_json::from_value(all["tokens"][kind][of].clone()).unwrap();
        Self {
            texts: serde_json::from_value(all["texts"].clone()).unwrap(),
            whole: tokens("whole"),
            text: tokens("text"),
        }
    }

    fn hold(&self, tokenizer: &Tokenizer, what: &str) {
        assert!(self.texts.len() > 20);
        for (i, text) in self.texts.iter().enumerate() {
            assert_eq!(tokenizer.encode(text).unwrap(), self.text[i], "{what}: {text:?}");
            assert_eq!(tokenizer.encode_whole(text, usize::MAX).unwrap().tokens, self.whole[i], "{what}: {text:?}");
        }
    }
}

/// The keys that are written for a tokenizer of `fixtures/tokenizers`.
fn written(kind: &str) -> Result<Metadata, String> {
    let folder = fixture("tokenizers").join(kind);
    let file = Companion::file(&folder.join("tokenizer.json"));
    let tokenizer = Tokenizer::read(&file).unwrap();
    Expected::of(kind).hold(&tokenizer, kind);
    let optional = |name: &str| Some(folder.join(name)).filter(|path| path.exists()).map(|path| read(&path));
    let (config, model) = (optional("tokenizer_config.json"), optional("config.json"));
    let (first, last) = tokenizer.around();
    let original = tokenizer::Original {
        json: &file.json().unwrap(),
        config: config.as_ref(),
        model: model.as_ref(),
        chat_template: None,
        vocab: tokenizer.vocab_size(),
        first,
        last,
    };
    let mut all = Metadata::default();
    tokenizer::write(&original, &mut all).map(|()| all).map_err(|e| format!("{e:?}"))
}

#[test]
fn what_is_written_is_rebuilt_with_the_same_tokens() {
    for kind in ["llama", "gemma", "llama3", "smollm", "bert"] {
        Expected::of(kind).hold(&rebuilt(&written(kind).unwrap()).1, kind);
    }
    let refused = written("t5").unwrap_err();
    assert!(refused.contains("Unigram") && refused.contains("byte fallback"), "{refused}");
}

/// Scores that sentencepiece gave, and BERT's marks, as llama.cpp's converter writes them.
#[test]
fn tokenizers_are_written_as_llama_cpps_converter_writes_them() {
    for kind in ["llama", "bert"] {
        let reference = metadata(&fixture("tokenizers").join(kind).join("reference.gguf"));
        let ours = written(kind).unwrap();
        let mut compared = 0;
        // How many kinds of tokens there are is the model's business.
        let keys = reference.entries.iter().filter(|(key, _)| !key.ends_with("token_type_count"));
        for (key, value) in keys.filter(|(key, _)| key.starts_with("tokenizer.")) {
            assert_eq!(ours.get(key), Some(value), "{kind}: {key}");
            compared += 1;
        }
        assert!(compared >= 8, "{compared}");
        Expected::of(kind).hold(&rebuilt(&reference).1, kind);
    }
}

/// A file of another tool's, with nothing beside it: the same text, the same answer to a message, the same stop tokens.
#[test]
fn a_gguf_file_runs_and_is_checked_alone() {
    let out = tempfile::tempdir().unwrap();
    let folder = out.path().join("folder");
    copy_folder(&fixture("tokenizers/llama"), &folder);
    std::fs::remove_file(folder.join("reference.gguf")).unwrap();
    let alone = |name: &str| out.path().join("alone").join(name);
    std::fs::create_dir(out.path().join("alone")).unwrap();
    let reference = alone("theirs.gguf");
    std::fs::copy(fixture("tokenizers/llama/reference.gguf"), &reference).unwrap();
    let ours = alone("ours.gguf");
    let text = fixture("kjv-nano/valid.txt");
    compress(args![&folder, "--scheme", "f16", "-o", &ours, "-q", "--text", &text, "--check-tokens", "500"]).exits(0);
    for flags in [&["--prompt", "In the beginning "][..], &["--prompt", "Hi", "--chat"]] {
        let run = |model: &Path| {
            let flags = flags.iter().chain(&["--max-tokens", "12", "--json"]).map(std::ffi::OsString::from);
            compress(args!["run", model].into_iter().chain(flags)).exits(0).json()
        };
        let expected = run(&folder);
        assert!(expected["prompt_tokens"].as_u64().unwrap() > 3);
        assert_eq!((run(&reference), run(&ours)), (expected.clone(), expected));
    }
    let open = |path: &Path| Checkpoint::open(path, &Options::default()).unwrap();
    for model in [&folder, &reference, &ours] {
        assert_eq!(open(model).companions().stop_tokens().unwrap(), [2], "{}", model.display());
    }
    let check = compress(args!["check", &reference, &ours, "--json", "--text", &text, "--check-tokens", "500"]);
    let check = check.exits(0).json();
    assert!(check["kl"]["mean"].as_f64().unwrap().abs() < 1e-6, "{check}");
}

/// Files as they were, from a GGUF file and from one that was made of it.
#[test]
fn our_gguf_files_carry_the_original_files() {
    let out = tempfile::tempdir().unwrap();
    let (first, second) = (out.path().join("first.gguf"), out.path().join("second.gguf"));
    compress(args![fixture("kjv-nano"), "--scheme", "f16", "-o", &first, "-q", "--no-check"]).exits(0);
    compress(args![&first, "--scheme", "q8_0", "-o", &second, "-q", "--no-check"]).exits(0);
    for file in [&first, &second] {
        let checkpoint = Checkpoint::open(file, &Options::default()).unwrap();
        let files: Vec<_> = checkpoint.companions().files().collect();
        assert_eq!(files.len(), 3);
        for (name, file) in files {
            assert!(file.bytes().unwrap() == std::fs::read(fixture("kjv-nano").join(name)).unwrap(), "{name}");
        }
    }
    // A file of another's keeps its keys, too.
    let theirs = fixture("tokenizers/llama/reference.gguf");
    compress(args![&theirs, "--scheme", "q8_0", "--pure", "-o", &second, "-q", "--no-check", "--force"]).exits(0);
    let (theirs, ours) = (metadata(&theirs), metadata(&second));
    for (key, value) in theirs.entries.iter().filter(|(key, _)| key.starts_with("tokenizer.")) {
        assert_eq!(ours.get(key), Some(value), "{key}");
    }
}

#[test]
fn a_tokenizer_that_llama_cpp_has_not_is_refused_with_what_it_does() {
    let out = tempfile::tempdir().unwrap();
    let model = out.path().join("model");
    copy_folder(&fixture("kjv-nano"), &model);
    let edit = |change: &dyn Fn(&mut Json)| {
        let mut json = read(&fixture("kjv-nano/tokenizer.json"));
        change(&mut json);
        std::fs::write(model.join("tokenizer.json"), json.to_string()).unwrap();
        compress(args![&model, "--scheme", "f16", "-o", out.path().join("x.gguf"), "-q", "--dry-run"])
    };
    edit(&|json| json["pre_tokenizer"] = serde_json::json!({"type": "Whitespace"})).exits(3).says(&[
        "pre-tokenizer",
        "Whitespace",
        "safetensors",
    ]);
    edit(&|json| json["normalizer"] = serde_json::json!({"type": "Lowercase"})).exits(3).says(&["Lowercase"]);
    edit(&|json| json["model"]["vocab"]["new"] = 2048.into()).exits(3).says(&["`new` has number 2048", "2048 tokens"]);
    // What the keys cannot say shows in the tokens.
    let twice = serde_json::json!({"SpecialToken": {"id": "<s>", "type_id": 0}});
    edit(&|json| json["post_processor"]["single"].as_array_mut().unwrap().insert(0, twice.clone()))
        .exits(3)
        .says(&["other tokens"]);
}

#[test]
fn lines_that_are_cut_are_counted() {
    let out = tempfile::tempdir().unwrap();
    let model = out.path().join("model");
    copy_folder(&fixture("tokenizers/bert"), &model);
    std::fs::remove_file(model.join("reference.gguf")).unwrap();
    let text = out.path().join("text.txt");
    std::fs::write(&text, "God\nIn the beginning God created the heaven and the earth.\n").unwrap();
    let run = || compress(args!["run", &model, "--text", &text]).exits(0);
    let whole = run();
    assert!(!whole.stderr.contains("cut"), "{}", whole.stderr);
    std::fs::write(model.join("sentence_bert_config.json"), r#"{"max_seq_length": 6}"#).unwrap();
    let cut = run().says(&["text.txt", "1 line was cut to the 6 tokens"]);
    let lines = |run: &crate::support::Run| run.stdout.lines().map(str::to_owned).collect::<Vec<_>>();
    let (whole, cut) = (lines(&whole), lines(&cut));
    assert!(whole[0] == cut[0] && whole[1] != cut[1]);
    // What the model takes, it takes as GGUF, too.
    let gguf = out.path().join("encoder.gguf");
    compress(args![&model, "--scheme", "f16", "-o", &gguf, "-q", "--no-check"]).exits(0);
    let carried = compress(args!["run", &gguf, "--text", &text]).exits(0);
    assert!(carried.stderr.contains("1 line was cut to the 6 tokens"), "{}", carried.stderr);
}
