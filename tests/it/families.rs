//! Every family in every scheme: written, checked against the original by its outputs, and quantized where the scheme says.

use modelpress::encoding::Encoding;
use modelpress::family::Role;
use modelpress::loader::{Checkpoint, Options};
use safetensors::Dtype;
use serde_json::{Value, json};

use crate::args;
use crate::support::{compress, copy_folder, f32s, fixture, write_safetensors};

pub const FAMILIES: [&str; 13] = [
    "bert",
    "distilbert",
    "gemma3",
    "gpt2",
    "llama",
    "llama3-rope-tied",
    "mistral-sliding",
    "mixtral",
    "phi3",
    "qwen2",
    "qwen3",
    "qwen3-moe",
    "roberta",
];

/// A tokenizer with a token for each letter, which a model of 256 tokens can read.
pub fn letters() -> String {
    let mut vocab: serde_json::Map<String, Value> =
        ('a'..='z').chain('A'..='Z').zip(10..).map(|(letter, id)| (letter.to_string(), json!(id))).collect();
    vocab.insert("?".into(), json!(5));
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "."}, "behavior": "Isolated", "invert": false},
        "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "unk_token": "?", "vocab": vocab},
    })
    .to_string()
}

/// Whether a weight of this encoding is what the scheme makes of one that it takes.
fn is_of(scheme: &str, encoding: Encoding) -> bool {
    match (scheme, encoding) {
        ("int8", Encoding::Int8Rows { .. }) | ("fp8", Encoding::Fp8Rows { .. }) => true,
        ("int4", Encoding::PackedInt { bits: 4, .. }) | ("w8a16", Encoding::PackedInt { bits: 8, .. }) => true,
        ("f16", Encoding::Plain(dtype)) => dtype == formats::Dtype::F16,
        ("bf16", Encoding::Plain(dtype)) => dtype == formats::Dtype::BF16,
        _ => false,
    }
}

#[test]
fn every_family_is_compressed_in_every_scheme_and_checked() {
    let out = tempfile::tempdir().unwrap();
    for family in FAMILIES {
        let model = out.path().join(family);
        copy_folder(&fixture("golden").join(family), &model);
        std::fs::write(model.join("tokenizer.json"), letters()).unwrap();
        for scheme in ["int8", "int4", "w8a16", "fp8", "f16", "bf16"] {
            let written = out.path().join(format!("{family}-{scheme}"));
            // Random weights are flat and lose little; the limits are those of each scheme.
            let check = args!["--check-tokens", "96", "--context", "32", "--json", "-q"];
            let run = compress(args![&model, "--scheme", scheme, "-o", &written].into_iter().chain(check));
            let report = run.exits(0).json();
            let kind = report["check"]["kind"].as_str().unwrap();
            assert!(["language-model", "encoder"].contains(&kind), "{family} {scheme}: {}", report["check"]);
            assert_eq!(report["check"]["passed"], json!(true), "{family} {scheme}");
            let notes = report["notes"].to_string();
            let checkpoint = Checkpoint::open(&written, &Options::default()).unwrap();
            let mut quantized = 0;
            for weight in checkpoint.weights() {
                let place = format!("{family} {scheme}: {} is stored as {}", weight.name, weight.encoding.name());
                if is_of(scheme, weight.encoding) {
                    quantized += 1;
                    continue;
                }
                // Everything in the half-precision schemes, and every matrix that multiplies in the others, unless the report
                // says why not.
                let wanted = ["f16", "bf16"].contains(&scheme) || matches!(weight.role, Role::Linear | Role::Experts);
                let said = notes.contains(&weight.name);
                assert!(!wanted || said, "{place} and no note says why: {notes}");
            }
            let matrices = |role| checkpoint.weights().iter().filter(|weight| weight.role == role).count();
            // gpt2's are stored [in, out], and a scale for each stored row would be one for each input.
            let expected = if family == "gpt2" && !["f16", "bf16"].contains(&scheme) {
                assert!(notes.contains("[in, out]") || notes.contains("transposed"), "{scheme}: {notes}");
                0
            } else {
                matrices(Role::Linear) + matrices(Role::Experts)
            };
            println!(
                "{family} {scheme}: {quantized} quantized of {} linear, {} stacks",
                matrices(Role::Linear),
                matrices(Role::Experts)
            );
            assert!(quantized >= expected, "{family} {scheme}: {quantized} of {expected}: {notes}");
            std::fs::remove_dir_all(&written).unwrap();
        }
    }
}

/// A copy of a model with another config and other tensors.
fn changed(
    model: &str,
    change: impl FnOnce(&mut Value),
    tensors: &[(&str, Vec<usize>, Vec<f32>)],
) -> (tempfile::TempDir, std::path::PathBuf) {
    let out = tempfile::tempdir().unwrap();
    let folder = out.path().join("model");
    copy_folder(&fixture(model), &folder);
    let path = folder.join("config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    change(&mut config);
    std::fs::write(&path, config.to_string()).unwrap();
    let path = folder.join("model.safetensors");
    let mut all = crate::support::tensors(&path);
    for (name, shape, values) in tensors {
        all.insert((*name).to_owned(), ("F32".into(), shape.clone(), f32s(values.iter().copied())));
    }
    let all: Vec<_> =
        all.iter().map(|(name, (_, shape, bytes))| (name.as_str(), Dtype::F32, shape.clone(), bytes.clone())).collect();
    write_safetensors(&path, &all);
    (out, folder)
}

/// Every command says which config fields it does not know, and which tensors it passes over.
#[test]
fn what_is_passed_over_is_said() {
    let extra = [("model.layers.0.self_attn.q_proj.lora_A.weight", vec![4, 256], vec![0.5; 1024])];
    let (out, folder) = changed("kjv-nano", |config| config["odd_field"] = json!(1), &extra);
    let words = ["odd_field", "tensors that a llama does not have", "lora_A"];
    compress(args!["run", &folder, "--prompt", "x", "--max-tokens", "1"]).exits(0).says(&words);
    compress(args!["check", fixture("kjv-nano"), &folder, "--check-tokens", "50"]).exits(0).says(&words);
    let found = compress(args!["inspect", &folder, "--json"]).exits(0).json();
    assert_eq!(found["unknown_config_fields"], json!(["odd_field"]));
    assert_eq!(found["unused_tensors"], json!([extra[0].0]));
    let table = compress(args!["inspect", &folder]).exits(0).stdout;
    assert!(words.iter().all(|word| table.contains(word)), "{table}");
    for target in ["int8", "x.gguf"] {
        let scheme = if target == "int8" { "int8" } else { "q8_0" };
        let args = args![&folder, "--scheme", scheme, "-o", out.path().join(target), "--dry-run", "--json"];
        let notes = compress(args).exits(0).json()["notes"].to_string();
        assert!(words.iter().all(|word| notes.contains(word)), "{notes}");
    }
    let quiet = compress(args!["run", &folder, "--prompt", "x", "--max-tokens", "1", "-q"]).exits(0);
    assert_eq!(quiet.stderr, "");
    let known = compress(args!["run", fixture("kjv-nano"), "--prompt", "x", "--max-tokens", "1"]).exits(0);
    assert_eq!(known.stderr, "");
}

/// `attention_bias` and `mlp_bias` decide, as in transformers: biases that they deny are passed over, those that they promise are
/// missed. Where they say nothing the file decides.
#[test]
fn the_config_says_whether_there_are_biases() {
    let run = |folder: &std::path::Path| {
        let model = Checkpoint::open(folder, &Options::default()).unwrap();
        let model = modelpress::runtime::load(&std::sync::Arc::new(model)).unwrap();
        modelpress::runtime::forward(&model, &[5, 6, 7], &modelpress::job::Job::new(1)).unwrap().logits
    };
    let original = run(&fixture("golden/llama"));
    for (flag, name, width) in [("attention_bias", "self_attn.q_proj.bias", 64), ("mlp_bias", "mlp.gate_proj.bias", 96)]
    {
        let name = format!("model.layers.1.{name}");
        let bias = [(name.as_str(), vec![width], crate::support::noise(width))];
        let (_kept, denied) = changed("golden/llama", |config| config[flag] = json!(false), &bias);
        assert_eq!(run(&denied), original, "{flag}");
        let (_kept, open) = changed("golden/llama", |config| drop(config.as_object_mut().unwrap().remove(flag)), &bias);
        assert_ne!(run(&open), original, "{flag}");
        let (_kept, promised) = changed("golden/llama", |config| config[flag] = json!(true), &bias);
        let missing = compress(args!["run", &promised, "--prompt", "x"]).exits(3);
        assert!(!missing.stderr.contains(&name), "{}", missing.stderr);
        missing.says(&[&name.replace("layers.1", "layers.0"), "is missing", "download the weights again"]);
    }
}

/// `tie_word_embeddings` beside a head of its own: the head is taken, as transformers 5 and llama.cpp take it.
#[test]
fn a_head_in_the_file_counts() {
    let head = [("lm_head.weight", vec![256, 64], crate::support::noise(256 * 64))];
    let ids: Vec<u32> = (3..20).collect();
    let run = |folder: &std::path::Path| {
        let model = Checkpoint::open(folder, &Options::default()).unwrap();
        let model = modelpress::runtime::load(&std::sync::Arc::new(model)).unwrap();
        modelpress::runtime::forward(&model, &ids, &modelpress::job::Job::new(1)).unwrap().logits
    };
    let (out, both) = changed("golden/llama3-rope-tied", |_| (), &head);
    let untie = |config: &mut Value| config["tie_word_embeddings"] = json!(false);
    let (_kept, untied) = changed("golden/llama3-rope-tied", untie, &head);
    let expected = run(&untied);
    assert!(run(&both) == expected && run(&fixture("golden/llama3-rope-tied")) != expected);
    std::fs::write(both.join("tokenizer.json"), letters()).unwrap();
    let written = out.path().join("int8");
    compress(args![&both, "--int8", "-o", &written, "-q", "--check-tokens", "50"]).exits(0);
    let pairs = run(&written).into_iter().zip(expected);
    assert!(pairs.into_iter().all(|(a, b)| (a - b).abs() < 0.5));
}
