//! One step outside safetensors: Q8_0 in GGUF, against what llama-quantize wrote.

use formats::{Access, Limits, TensorBytes};
use modelpress::job::Job;
use modelpress::runtime::{self, forward};

use crate::args;
use crate::golden::{difference_of, models, open};
use crate::support::{compress, fixture, shared, tensors};

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

/// The tensors of a GGUF file: name, dtype, shape, bytes.
fn blocks(path: &std::path::Path) -> std::collections::BTreeMap<String, (formats::Dtype, Vec<u64>, Vec<u8>)> {
    let source = formats::open(path, Access::Mapped, &Limits::default()).unwrap();
    let all = source.tensors().iter().enumerate();
    all.map(|(i, t)| (t.name.clone(), (t.dtype, t.shape.clone(), TensorBytes::load(&source, i).unwrap().to_vec())))
        .collect()
}

#[test]
fn every_scheme_is_llama_quantizes_file_with_its_mixture_and_its_importance() {
    let Some(golden) = shared("golden-ggml") else {
        eprintln!("skipped: there is no ../shared/golden-ggml; fixtures/ggml has some rows of each type");
        return;
    };
    let out = tempfile::tempdir().unwrap();
    let mut compared = 0;
    for entry in std::fs::read_dir(&golden).unwrap() {
        let expected = entry.unwrap().path();
        let name = expected.file_stem().unwrap().to_string_lossy().into_owned();
        let Some(rest) = name.strip_prefix("nano-").filter(|rest| *rest != "f32") else { continue };
        let (scheme, how) = rest.split_once('-').unwrap();
        let ours = out.path().join(format!("{name}.gguf"));
        let mut args =
            args![fixture("kjv-nano"), "--scheme", scheme.to_lowercase(), "-o", &ours, "-q", "--no-check"].to_vec();
        if how.contains("pure") {
            args.push("--pure".into());
        }
        if how.contains("imatrix") {
            args.extend(args!["--imatrix", golden.join("nano.imatrix.gguf")]);
        }
        compress(args).exits(0);
        assert!(blocks(&ours) == blocks(&expected), "{name}");
        compared += 1;
    }
    assert!(compared >= 26, "{compared}");
}

#[test]
fn smaller_types_are_checked_and_a_search_is_no_worse() {
    let out = tempfile::tempdir().unwrap();
    let kl = |name: &str, flags: &[&str]| {
        let ours = out.path().join(name);
        let args = args![
            fixture("kjv-nano"),
            "-o",
            &ours,
            "--json",
            "--text",
            fixture("kjv-nano/valid.txt"),
            "--context",
            "256",
            "--check-tokens",
            "2550"
        ];
        let report = compress(args.into_iter().chain(flags.iter().map(Into::into))).exits(0).json();
        assert_eq!(report["check"]["passed"], true);
        let worst: f64 = report["weights"]["worst"][0]["sqnr_db"].as_f64().unwrap();
        (report["output"]["bytes"].as_u64().unwrap(), report["check"]["kl"]["mean"].as_f64().unwrap(), worst)
    };
    let plain = kl("a.gguf", &["--scheme", "q4_0", "--pure"]);
    let searched = kl("b.gguf", &["--scheme", "q4_0", "--pure", "--search"]);
    assert_eq!(plain.0 / 1000, searched.0 / 1000);
    assert!(searched.2 > plain.2, "{plain:?} {searched:?}");
    assert!(plain.1 > 0.001 && plain.1 < 0.1, "{plain:?}");
    let run = compress(args![fixture("kjv-nano"), "--f16", "--search", "-o", out.path().join("x")]);
    run.exits(2).says(&["--search", "q4_k_m"]);
    let run = compress(args![fixture("kjv-nano"), "--int8", "--pure", "-o", out.path().join("x")]);
    run.exits(2).says(&["--pure", "q4_k_m"]);
}

/// What llama.cpp's converter made of each family, with no config beside it. gemma3's file does not say which layers see all
/// (llama.cpp: every sixth), and this one's second does, so that only its first position, which does not turn, is the same;
/// and the converter rounded its norms plus one to f16.
#[test]
fn what_llama_cpp_converted_computes_the_same() {
    let Some(folder) = shared("golden-wide") else {
        println!("skipped: ../shared/golden-wide is not there");
        return;
    };
    for folder in models(&folder).into_iter().filter(|folder| folder.join("reference.gguf").exists()) {
        let out = tempfile::tempdir().unwrap();
        let alone = out.path().join("alone.gguf");
        std::fs::copy(folder.join("reference.gguf"), &alone).unwrap();
        let (gguf, original) = (open(&alone), open(&folder));
        let most = if folder.ends_with("gemma3") { 1 } else { usize::MAX };
        // The record's frequencies seem to be rounded to f16, but for gpt2, which has none (see the tests of the originals).
        let exact = if folder.ends_with("gpt2") { usize::MAX } else { 1 };
        let (record, same) = if folder.ends_with("gemma3") { (1e-2, 1e-2) } else { (1e-4, 1e-5) };
        let (hidden, logits) = difference_of(&gguf, &folder, exact);
        assert!(hidden <= record && logits <= record, "{}: {hidden:e} {logits:e}", folder.display());
        let tokens: Vec<u32> = (0..40).map(|i| i * 37 % 2048).take(most).collect();
        let run = |model| forward(&runtime::load(model).unwrap(), &tokens, &Job::new(2)).unwrap().logits;
        let pairs = run(&gguf).into_iter().zip(run(&original));
        let worst = pairs.fold(0.0f32, |worst, (a, b)| worst.max((a - b).abs()));
        println!("{}: logits within {worst:.1e} of the original's", folder.display());
        assert!(worst <= same, "{}: {worst:e}", folder.display());
    }
}

/// Experts one by one again, matrices by their inputs again, rows in their own order again: every byte of the original.
#[test]
fn what_llama_cpp_converted_returns_to_safetensors() {
    let Some(folder) = shared("golden-wide") else {
        println!("skipped: ../shared/golden-wide is not there");
        return;
    };
    for family in ["gpt2", "llama3-rope", "mistral", "mixtral", "qwen3", "qwen3-moe"] {
        let out = tempfile::tempdir().unwrap();
        let target = out.path().join("back.safetensors");
        let reference = folder.join(family).join("reference.gguf");
        compress(args![&reference, "--scheme", "f16", "-q", "--no-check", "-o", &target]).exits(0);
        let (found, expected) = (tensors(&target), tensors(&folder.join(family).join("model.safetensors")));
        assert!(found.keys().eq(expected.keys()), "{family}: {:?} {:?}", found.keys(), expected.keys());
        for (name, tensor) in &expected {
            assert!(found[name] == *tensor, "{family}: {name}");
        }
    }
}
