//! What llama.cpp is given, against what its own converter writes, and the way back.

use std::collections::BTreeMap;
use std::path::Path;

use formats::gguf::{Metadata, Value as Meta};
use formats::{Access, Limits, TensorBytes};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use crate::args;
use crate::support::{compress, copy_folder, fixture, shared};

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
        std::fs::copy(fixture("llama-cpp/bpe.json"), out.path().join("tokenizer.json")).unwrap();
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
        if name == "roberta" {
            let run = compress(args![folder.path(), "--scheme", "f16", "-o", &ours, "-q"]);
            run.exits(3).says(&["positions", "llama.cpp"]);
            continue;
        }
        compress(args![folder.path(), "--scheme", "f16", "-o", &ours, "-q", "--check-tokens", "100"]).exits(0);
        let found: BTreeMap<String, Value> = blocks(&ours)
            .into_iter()
            .map(|(name, (dtype, shape, bytes))| {
                let digest: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
                (name, json!([dtype, shape, digest]))
            })
            .collect();
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
