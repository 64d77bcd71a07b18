//! One step outside safetensors: Q8_0 in GGUF, against what llama-quantize wrote.

use formats::{Access, Limits, TensorBytes};

use crate::args;
use crate::support::{compress, fixture};

#[test]
fn q8_0_is_what_llama_quantize_writes() {
    let out = tempfile::tempdir().unwrap();
    let ours = out.path().join("nano.gguf");
    let report = compress(args![
        fixture("kjv-nano"),
        "--scheme",
        "q8_0",
        "-o",
        &ours,
        "--json",
        "--text",
        fixture("kjv-nano/valid.txt"),
        "--context",
        "256",
        "--check-tokens",
        "2550"
    ])
    .exits(0)
    .json();
    assert!(report["check"]["kl"]["mean"].as_f64().unwrap() < 0.001, "{}", report["check"]);
    let open = |path: &std::path::Path| formats::open(path, Access::Mapped, &Limits::default()).unwrap();
    let (ours, expected) = (open(&ours), open(&fixture("golden-ggml/nano-Q8_0-pure.gguf")));
    assert_eq!(ours.tensors().len(), expected.tensors().len());
    for (i, tensor) in expected.tensors().iter().enumerate() {
        let at = ours.tensors().iter().position(|t| t == tensor).unwrap_or_else(|| panic!("no {tensor:?}"));
        let bytes = |source, i| TensorBytes::load(source, i).unwrap().to_vec();
        assert!(bytes(&ours, at) == bytes(&expected, i), "{}", tensor.name);
    }
    let formats::Payload::Gguf(ours) = ours.payload() else { panic!() };
    let formats::Payload::Gguf(expected) = expected.payload() else { panic!() };
    for (key, value) in &expected.entries {
        if !["general.name", "general.file_type", "general.quantization_version"].contains(&key.as_str()) {
            assert_eq!(ours.get(key), Some(value), "{key}");
        }
    }
    assert_eq!(ours.get_u64("general.file_type"), Some(7));
}

#[test]
fn what_llama_quantize_wrote_is_checked_against_the_original() {
    let check = compress(args![
        "check",
        fixture("kjv-nano"),
        fixture("golden-ggml/nano-Q8_0-pure.gguf"),
        "--json",
        "--text",
        fixture("kjv-nano/valid.txt"),
        "--context",
        "256",
        "--check-tokens",
        "2550"
    ])
    .exits(0)
    .json();
    assert!(
        (check["original"]["perplexity"].as_f64().unwrap() - check["compressed"]["perplexity"].as_f64().unwrap()).abs()
            < 0.1
    );
    let found = compress(args!["inspect", fixture("golden-ggml/nano-Q8_0-pure.gguf"), "--json"]).exits(0).json();
    assert_eq!((&found["format"], &found["family"]), (&"GGUF".into(), &"llama".into()));
}

#[test]
fn a_scheme_needs_its_container() {
    let out = tempfile::tempdir().unwrap();
    let run = compress(args![fixture("kjv-nano"), "--scheme", "q8_0", "-o", out.path().join("x.safetensors")]);
    run.exits(2).says(&["q8_0", "GGUF"]);
    let run = compress(args![fixture("kjv-nano"), "--int8", "-o", out.path().join("x.gguf")]);
    run.exits(2).says(&["int8", "safetensors"]);
}
