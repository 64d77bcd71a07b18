//! What llama.cpp is given, against what its own converter writes, and the way back.

use std::collections::BTreeMap;
use std::path::Path;

use formats::gguf::{Array, Metadata, Value as Meta};
use formats::{Access, Limits, TensorBytes};
use half::f16;
use modelpress::job::Job;
use modelpress::runtime::{self, forward};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use crate::args;
use crate::golden::{difference_of, models, open};
use crate::support::{compress, copy_folder, fixture, shared, tensors};

/// What the converter made of a model of `fixtures/golden`.
struct Case {
    name: String,
    record: Value,
}

fn cases() -> Vec<Case> {
    let bytes = std::fs::read(fixture("llama-cpp/converted.json")).unwrap();
    let all: BTreeMap<String, Value> = serde_json::from_slice(&bytes).unwrap();
    all.into_iter().map(|(name, record)| Case { name, record }).collect()
}

impl Case {
    /// The folder of the same model: with the config's changes, the weights rounded, and a tokenizer.
    fn folder(&self) -> TempDir {
        let out = tempfile::tempdir().unwrap();
        let model = self.record["model"].as_str().unwrap();
        copy_folder(&fixture("golden").join(model), out.path());
        let path = out.path().join("config.json");
        let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        config.as_object_mut().unwrap().extend(self.record["config"].as_object().unwrap().clone());
        std::fs::write(&path, config.to_string()).unwrap();
        let kind = if ["bert", "distilbert"].contains(&model) { "wordpiece" } else { "bpe" };
        std::fs::copy(fixture(&format!("llama-cpp/{kind}.json")), out.path().join("tokenizer.json")).unwrap();
        if let Some(dtype) = self.record["dtype"].as_str() {
            let scheme = if dtype == "float16" { "f16" } else { "bf16" };
            let rounded = out.path().join("rounded.safetensors");
            compress(args![out.path(), "--scheme", scheme, "-o", &rounded, "-q", "--no-check"]).exits(0);
            std::fs::rename(rounded, out.path().join("model.safetensors")).unwrap();
        }
        out
    }
}

fn metadata(path: &Path) -> Metadata {
    match formats::open(path, Access::Mapped, &Limits::default()).unwrap().payload() {
        formats::Payload::Gguf(metadata) => metadata.clone(),
        other => panic!("{other:?}"),
    }
}

/// The tensors of a GGUF file: dtype, shape, bytes.
fn blocks(path: &Path) -> BTreeMap<String, (String, Vec<u64>, Vec<u8>)> {
    let source = formats::open(path, Access::Mapped, &Limits::default()).unwrap();
    let all = source.tensors().iter().enumerate();
    all.map(|(i, t)| {
        let bytes = TensorBytes::load(&source, i).unwrap().to_vec();
        (t.name.clone(), (t.dtype.name().to_uppercase(), t.shape.clone(), bytes))
    })
    .collect()
}

/// The tensors of a GGUF file as the record has them: dtype, shape, SHA-256.
fn digests(path: &Path) -> BTreeMap<String, Value> {
    let digest = |bytes: &[u8]| Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let all = blocks(path).into_iter();
    all.map(|(name, (dtype, shape, bytes))| (name, json!([dtype, shape, digest(&bytes)]))).collect()
}

/// A value as the record has it.
fn recorded(value: &Meta) -> Value {
    match value {
        Meta::U32(x) => json!(["UINT32", x]),
        Meta::F32(x) => json!(["FLOAT32", f64::from(*x)]),
        Meta::Bool(x) => json!(["BOOL", x]),
        Meta::String(x) => json!(["STRING", x]),
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_family_is_written_as_llama_cpp_converts_it() {
    for case in cases() {
        let name = &case.name;
        let folder = case.folder();
        let ours = folder.path().join("ours.gguf");
        compress(args![folder.path(), "--scheme", "f16", "-o", &ours, "-q", "--check-tokens", "100"]).exits(0);
        let found = digests(&ours);
        let expected = case.record["tensors"].as_object().unwrap();
        let names = |all: Vec<&String>| {
            let mut all: Vec<String> = all.into_iter().cloned().collect();
            all.sort();
            all
        };
        assert_eq!(names(found.keys().collect()), names(expected.keys().collect()), "{name}");
        for (tensor, expected) in expected {
            assert_eq!(found[tensor], *expected, "{name}: {tensor}");
        }
        let ours = metadata(&ours);
        for (key, expected) in case.record["metadata"].as_object().unwrap() {
            let found = ours.get(key).unwrap_or_else(|| panic!("{name}: {key} is missing"));
            assert_eq!(recorded(found), *expected, "{name}: {key}");
        }
    }
}

/// Rows of 64 and 96 fill no block of 256, so that each family is put to the fallbacks. What is not quantized comes from f16
/// in the record, and straight from f32 here.
#[test]
fn every_family_is_quantized_as_llama_quantize_does() {
    for case in cases() {
        let Some(expected) = case.record["q4_k_m"].as_object() else { continue };
        let (name, folder) = (&case.name, case.folder());
        let (halved, ours) = (folder.path().join("halved"), folder.path().join("ours.gguf"));
        compress(args![folder.path(), "--scheme", "f16", "-o", &halved, "-q", "--no-check"]).exits(0);
        compress(args![&halved, "--scheme", "q4_k_m", "-o", &ours, "-q", "--no-check"]).exits(0);
        let found = digests(&ours);
        assert_eq!(found.len(), expected.len(), "{name}");
        for (tensor, expected) in expected {
            let most = if expected[0] == "F32" { 2 } else { 3 };
            let parts = |value: &Value| value.as_array().unwrap()[..most].to_vec();
            assert_eq!(parts(&found[tensor]), parts(expected), "{name}: {tensor}");
        }
    }
}

/// Wide enough for blocks of 256, with the tokenizer of kjv-nano, and every key of it.
#[test]
fn wide_models_are_written_as_llama_cpp_converts_them() {
    let Some(folder) = shared("golden-wide") else {
        println!("skipped: ../shared/golden-wide is not there");
        return;
    };
    let out = tempfile::tempdir().unwrap();
    for name in ["gemma3", "gpt2", "llama3-rope", "mistral", "mixtral", "qwen3", "qwen3-moe"] {
        let ours = out.path().join(format!("{name}.gguf"));
        compress(args![folder.join(name), "--scheme", "f16", "-o", &ours, "-q", "--check-tokens", "200"]).exits(0);
        let reference = folder.join(name).join("reference.gguf");
        let (found, expected) = (blocks(&ours), blocks(&reference));
        assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "{name}");
        for (tensor, expected) in &expected {
            assert!(found[tensor] == *expected, "{name}: {tensor}");
        }
        let ours = metadata(&ours);
        for (key, value) in &metadata(&reference).entries {
            // The name of the folder, and what only a person reads.
            if !["general.name", "general.size_label"].contains(&key.as_str()) {
                assert_eq!(ours.get(key), Some(value), "{name}: {key}");
            }
        }
    }
}

/// What a model computes of some tokens: its logits, or an encoder's last hidden states.
fn outputs(path: &Path, tokens: usize) -> Vec<f32> {
    let model = runtime::load(&open(path)).unwrap();
    let vocab = model.shape().vocab;
    let tokens: Vec<u32> = (0..tokens).map(|i| (i * 37 % vocab) as u32).collect();
    let found = forward(&model, &tokens, &Job::new(2)).unwrap();
    if found.logits.is_empty() { found.hidden_states.last().unwrap().clone() } else { found.logits }
}

/// Weights in f16 are written as they are, but for gemma's norms, which the format holds plus one: these return to half a unit
/// in the last place of that.
#[test]
fn what_is_written_computes_the_same_and_returns() {
    for case in cases() {
        let (name, folder) = (&case.name, case.folder());
        let path = |name: &str| folder.path().join(name);
        let halved = path("halved");
        compress(args![folder.path(), "--scheme", "f16", "-o", &halved, "-q", "--no-check"]).exits(0);
        let (ours, back) = (path("ours.gguf"), path("back.safetensors"));
        compress(args![&halved, "--scheme", "f16", "-o", &ours, "-q", "--no-check"]).exits(0);
        compress(args![&ours, "--scheme", "f16", "-o", &back, "-q", "--no-check"]).exits(0);
        let alone = tempfile::tempdir().unwrap();
        let gguf = alone.path().join("alone.gguf");
        std::fs::copy(&ours, &gguf).unwrap();
        let (original, written) = (open(&halved), open(&gguf));
        // Positions that were not counted from 0 now are.
        let recounted = name == "roberta";
        assert!(recounted || original.config() == written.config(), "{name}");
        let is_shifted = |tensor: &str| name.starts_with("gemma3") && tensor.ends_with("norm.weight");

        let (found, expected) = (tensors(&back), tensors(&halved.join("model.safetensors")));
        for (tensor, expected) in &expected {
            if tensor.starts_with("pooler.") || recounted && tensor.contains("position_embeddings") {
                continue;
            }
            let found = found.get(tensor).unwrap_or_else(|| panic!("{name}: {tensor} is missing"));
            if is_shifted(tensor) {
                let halves = |bytes: &[u8]| -> Vec<f32> {
                    bytes.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect()
                };
                let pairs = halves(&found.2).into_iter().zip(halves(&expected.2));
                assert!(pairs.into_iter().all(|(a, b)| (a - b).abs() <= 2f32.powi(-11)), "{name}: {tensor}");
            } else {
                assert!(found == expected, "{name}: {tensor}");
            }
        }
        let pairs = outputs(&halved, 40).into_iter().zip(outputs(&gguf, 40));
        let worst = pairs.fold(0.0f32, |worst, (a, b)| worst.max((a - b).abs()));
        println!("{name}: outputs within {worst:.1e}");
        assert!(worst <= if name.starts_with("gemma3") { 0.05 } else { 0.0 }, "{name}: {worst:e}");
    }
}

/// Every family in types for each kind of block: experts, fused and turned matrices included, checked by the program.
#[test]
fn every_family_takes_every_kind_of_block() {
    let sweep = |folder: &Path, schemes: &[&str]| {
        for scheme in schemes {
            let out = tempfile::tempdir().unwrap();
            let target = out.path().join("x.gguf");
            let limits = ["--max-kl", "3", "--min-cosine", "0.3", "--check-tokens", "100"];
            let args = args![folder, "--scheme", scheme, "-o", &target, "--json", "-q"];
            let report = compress(args.into_iter().chain(limits.map(Into::into))).exits(0).json();
            let kind = report["check"]["kind"].as_str().unwrap_or_default();
            assert!(["language-model", "encoder"].contains(&kind), "{} {scheme}: {report}", folder.display());
            let notes = report["notes"].to_string();
            assert!(!notes.contains("not in the output"), "{} {scheme}: {notes}", folder.display());
        }
    };
    for case in cases() {
        sweep(case.folder().path(), &["q8_0", "q4_0", "q5_1", "iq4_nl", "q4_k_m"]);
    }
    if let Some(folder) = shared("golden-wide") {
        for model in models(&folder) {
            sweep(&model, &["q2_k", "q3_k_m", "q4_k_m", "q6_k"]);
        }
    }
}

/// gemma3's layers that see a window are listed where not every sixth sees all, and such lists are read, whatever their type.
#[test]
fn the_pattern_of_gemmas_layers_is_in_the_file() {
    let case = cases().into_iter().find(|case| case.name == "gemma3").unwrap();
    let folder = case.folder();
    let ours = folder.path().join("ours.gguf");
    compress(args![folder.path(), "--scheme", "f16", "-o", &ours, "-q", "--no-check"]).exits(0);
    let mut keys = metadata(&ours);
    let key = "gemma3.attention.sliding_window_pattern";
    assert_eq!(keys.get(key), Some(&Meta::Array(Array::Bool(vec![true, false]))));
    keys.entries.retain(|(key, _)| key != "modelpress.config");
    let expected = outputs(&ours, 40);
    let with = |value: Meta| {
        let mut keys = keys.clone();
        keys.push(key, value);
        let path = folder.path().join("other.gguf");
        write_gguf(&path, &ours, &keys);
        outputs(&path, 40)
    };
    assert!(with(Meta::Array(Array::Bool(vec![true, false]))) == expected);
    assert!(with(Meta::Array(Array::U32(vec![1, 0]))) == expected);
    assert!(with(Meta::U32(2)) == expected);
    assert!(with(Meta::U32(6)) != expected);
}

/// The tensors of one GGUF file under other keys.
fn write_gguf(path: &Path, tensors: &Path, keys: &Metadata) {
    let source = formats::open(tensors, Access::Mapped, &Limits::default()).unwrap();
    let layout = formats::gguf::layout(path, source.tensors(), keys).unwrap();
    let mut bytes = vec![0; layout.bytes as usize];
    for (at, header) in &layout.fixed {
        bytes[*at as usize..][..header.len()].copy_from_slice(header);
    }
    for (i, span) in layout.spans.iter().enumerate() {
        bytes[span.start as usize..span.end as usize].copy_from_slice(&TensorBytes::load(&source, i).unwrap());
    }
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn what_llama_cpp_computes_otherwise_is_said_or_refused() {
    let written = |model: &str, changes: Value| {
        let case = Case { name: model.into(), record: json!({"model": model, "config": changes, "dtype": null}) };
        let folder = case.folder();
        let target = folder.path().join("x.gguf");
        let run = compress(args![folder.path(), "--scheme", "f16", "--dry-run", "--json", "-q", "-o", &target]);
        (run, folder)
    };
    let notes = |model: &str, changes: Value| written(model, changes).0.exits(0).json()["notes"].to_string();
    assert!(notes("mistral-sliding", json!({})).contains("latest 8 positions"));
    assert!(notes("bert", json!({})).contains("pooler.dense.weight: llama.cpp has no place for it"));
    assert!(notes("llama", json!({})).len() < 3);
    for (model, changes, word) in [
        ("qwen3-moe", json!({"norm_topk_prob": false}), "sum to one"),
        ("llama", json!({"hidden_act": "gelu"}), "Gelu"),
        ("gemma3", json!({"query_pre_attn_scalar": 64}), "scales attention"),
        (
            "qwen2",
            json!({"rope_parameters": {"rope_theta": 1e4, "rope_type": "llama3", "factor": 8.0,
            "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}}),
            "Llama3",
        ),
    ] {
        written(model, changes).0.exits(3).says(&[word, "llama.cpp", "safetensors"]);
    }
}

/// The records of transformers again, from the same models in GGUF, unless llama.cpp would compute something else and they are
/// refused. Their weights are f32, and gemma's norms plus one lose no more than the last bit of that.
#[test]
fn every_family_as_gguf_computes_what_transformers_does() {
    let mut refused = Vec::new();
    for original in models(&fixture("golden")).into_iter().chain(models(&fixture("golden-odd"))) {
        let folder = tempfile::tempdir().unwrap();
        let model = folder.path().join("model");
        copy_folder(&original, &model);
        let name = original.file_name().unwrap().to_string_lossy().into_owned();
        let encoder = ["bert", "distilbert", "roberta"].iter().any(|family| name.starts_with(family));
        let kind = if encoder { "wordpiece" } else { "bpe" };
        std::fs::copy(fixture(&format!("llama-cpp/{kind}.json")), model.join("tokenizer.json")).unwrap();
        let gguf = folder.path().join("model.gguf");
        let run = compress(args!["convert", &model, &gguf, "-q"]);
        if run.code != 0 {
            run.exits(3).says(&["llama.cpp", "safetensors"]);
            refused.push(name);
            continue;
        }
        std::fs::remove_dir_all(&model).unwrap();
        let (hidden, logits) = difference_of(&open(&gguf), &original, usize::MAX);
        println!("{name}: hidden states within {hidden:.1e}, logits within {logits:.1e}");
        assert!(hidden <= 1e-4 && logits <= 1e-4, "{name}: {hidden:e} {logits:e}");
    }
    let expected = [
        "distilbert-sines",
        "gemma3-pattern",
        "gemma3-two-ropes",
        "gpt2-unscaled",
        "llama-biases",
        "qwen3-biases",
        "qwen3-moe-all",
        "qwen3-moe-raw",
    ]
    .map(str::to_owned);
    assert_eq!(refused, expected);
}
