//! Every family in every scheme: written, checked against the original by its outputs, and quantized where the scheme says.

use modelpress::encoding::Encoding;
use modelpress::family::Role;
use modelpress::loader::{Checkpoint, Options};
use serde_json::{Value, json};

use crate::args;
use crate::support::{compress, copy_folder, fixture};

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
