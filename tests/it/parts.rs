//! Removing layers, heads and neurons: what is left is a smaller model of its family, which computes what the original does
//! without them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use modelpress::family::Architecture;
use modelpress::job::Job;
use modelpress::loader::{Checkpoint, Options};
use modelpress::runtime;
use serde_json::{Value, json};

use crate::args;
use crate::families::{FAMILIES, letters};
use crate::support::{Run, compress, copy_folder, f32s, fixture, tensors, write_safetensors};

const TEXT: &str = "In the beginning God created the heaven and the earth. And the earth was without form, and void; and darkness \
                    was upon the face of the deep. And the Spirit of God moved upon the face of the waters.\n";

/// A model of a family that reads letters, and a text for it.
fn model(folder: &Path, family: &str) -> (PathBuf, PathBuf) {
    let model = folder.join(family);
    copy_folder(&fixture("golden").join(family), &model);
    std::fs::write(model.join("tokenizer.json"), letters()).unwrap();
    let text = folder.join("calib.txt");
    std::fs::write(&text, TEXT.repeat(8)).unwrap();
    (model, text)
}

fn prune(model: &Path, text: &Path, out: &Path, flags: &[&str]) -> Run {
    let fixed = args![
        model,
        "--calibrate",
        text,
        "--calibrate-tokens",
        "512",
        "--context",
        "32",
        "--check-tokens",
        "96",
        "--accept",
        "--force",
        "--json",
        "-q",
        "-o",
        out
    ];
    compress(fixed.into_iter().chain(flags.iter().map(Into::into)))
}

fn outputs(path: &Path) -> Vec<f32> {
    let checkpoint = Arc::new(Checkpoint::open(path, &Options::default()).unwrap());
    let model = runtime::load(&checkpoint).unwrap();
    let found = runtime::forward(&model, &[45, 94, 20, 196, 179, 215, 12, 60], &Job::new(1)).unwrap();
    if found.logits.is_empty() { found.hidden_states.last().unwrap().clone() } else { found.logits }
}

#[test]
fn every_family_loses_neurons_and_heads_and_stays_of_its_family() {
    let out = tempfile::tempdir().unwrap();
    for family in FAMILIES {
        let (model, text) = model(out.path(), family);
        let written = out.path().join(format!("{family}-small"));
        // Their configs have no word for heads that are narrower than the hidden size over their number.
        let heads = !["gpt2", "bert", "roberta", "distilbert"].contains(&family);
        let flags =
            if heads { &["--prune-neurons", "0.25", "--prune-heads", "0.5"][..] } else { &["--prune-neurons", "0.25"] };
        let report = prune(&model, &text, &written, flags).exits(0).json();
        let parts = &report["parts"];
        let (neurons, groups) = (&parts["neurons"], &parts["key_value_heads"]);
        let number = |of: &Value, when: &str| of[when].as_u64().unwrap();
        assert_eq!(number(neurons, "left"), number(neurons, "original") * 3 / 4, "{family}");
        assert_eq!(number(groups, "left"), number(groups, "original") / if heads { 2 } else { 1 }, "{family}");
        assert!(report["output"]["bytes"].as_u64() < report["input"]["bytes"].as_u64(), "{family}");
        let checkpoint = Checkpoint::open(&written, &Options::default()).unwrap();
        assert!(checkpoint.family().unwrap().config.unknown.is_empty(), "{family}");
        assert!(outputs(&written).iter().all(|x| x.is_finite()), "{family}");
        if !heads {
            prune(&model, &text, &written, &["--prune-heads", "0.5"]).exits(2).says(&[family, "heads are as wide as"]);
        }
        // Encoded like any other, by any scheme.
        prune(&model, &text, &written, &[flags, &["--int8"]].concat()).exits(0);
    }
}

/// Neurons and heads whose outputs nobody hears are gone without a trace.
#[test]
fn what_is_removed_is_what_gives_nothing() {
    let out = tempfile::tempdir().unwrap();
    let (model, text) = model(out.path(), "llama");
    let path = model.join("model.safetensors");
    let mut all = tensors(&path);
    for (name, (_, shape, bytes)) in &mut all {
        // Of 96 neurons every fourth; of 4 heads in 2 groups the first group, 16 wide each.
        let silent = |column: usize| match name.contains("down_proj") {
            true => column % 4 == 1,
            false => column < 32,
        };
        if name.contains("down_proj") || name.contains("o_proj") {
            let values = bytes.as_chunks_mut::<4>().0.iter_mut().enumerate();
            values.filter(|(at, _)| silent(at % shape[1])).for_each(|(_, x)| *x = [0; 4]);
        }
    }
    let list: Vec<_> =
        all.iter().map(|(n, (_, s, b))| (n.as_str(), safetensors::Dtype::F32, s.clone(), b.clone())).collect();
    write_safetensors(&path, &list);
    let written = out.path().join("small");
    let report = prune(&model, &text, &written, &["--prune-neurons", "0.25", "--prune-heads", "0.5"]).exits(0).json();
    assert!(report["check"]["kl"]["mean"].as_f64().unwrap() < 1e-9, "{report}");
    let apart = outputs(&model).iter().zip(outputs(&written)).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(apart < 1e-5, "{apart}");
}

/// A layer that adds nothing to its input has no influence, so it goes first.
#[test]
fn layers_are_chosen_by_their_influence_or_by_name() {
    let out = tempfile::tempdir().unwrap();
    let (model, text) = model(out.path(), "llama");
    let path = model.join("model.safetensors");
    let mut all = tensors(&path);
    for (name, (_, _, bytes)) in &mut all {
        if name.starts_with("model.layers.0.") && (name.contains("down_proj") || name.contains("o_proj")) {
            bytes.fill(0);
        }
    }
    let list: Vec<_> =
        all.iter().map(|(n, (_, s, b))| (n.as_str(), safetensors::Dtype::F32, s.clone(), b.clone())).collect();
    write_safetensors(&path, &list);
    let (by_text, by_name) = (out.path().join("text"), out.path().join("name"));
    let report = prune(&model, &text, &by_text, &["--prune-layers", "1"]).exits(0).json();
    assert_eq!(report["parts"]["layers_removed"], json!([0]));
    let influence: Vec<f64> = serde_json::from_value(report["parts"]["influence"].clone()).unwrap();
    assert!(influence.len() == 2 && influence[0].abs() < 1e-6 && influence[1] > 1e-3, "{influence:?}");
    compress(args![&model, "--prune-layers", "0,", "-q", "--accept", "-o", &by_name]).exits(0);
    assert!(tensors(&by_text.join("model.safetensors")) == tensors(&by_name.join("model.safetensors")));
    assert_eq!(outputs(&model), outputs(&by_name));
    let config: Value = serde_json::from_slice(&std::fs::read(by_name.join("config.json")).unwrap()).unwrap();
    assert_eq!(config["num_hidden_layers"], 1);
    // The size is known before anything is read; and parts go before weights, and both before the scheme.
    let flags = ["--prune-layers", "1", "--prune-neurons", "0.5", "--prune", "0.5", "--int8"];
    let planned = prune(&model, &text, &by_text, &[&flags[..], &["--dry-run"]].concat()).exits(0).json();
    let written = prune(&model, &text, &by_text, &flags).exits(0).json();
    assert_eq!(planned["output"]["bytes"], written["output"]["bytes"]);
    assert!(planned["recipe"].as_str().unwrap().starts_with("remove 1 layers, 0.5 of neurons"), "{planned}");
    assert_eq!(std::fs::read_dir(out.path()).unwrap().count(), 4, "nothing staged is left");
}

#[test]
fn the_same_text_removes_the_same_for_any_number_of_threads_and_goes_on_into_gguf() {
    let out = tempfile::tempdir().unwrap();
    let text = fixture("kjv-nano/valid.txt");
    let flags = ["--prune-neurons", "0.25", "--prune-heads", "0.25", "--prune", "0.3", "--prune-method", "wanda"];
    let files: Vec<_> = ["1", "2"]
        .map(|threads| {
            let written = out.path().join(threads);
            let more = ["--threads", threads];
            prune(&fixture("kjv-nano"), &text, &written, &[&flags[..], &more].concat()).exits(0);
            std::fs::read(written.join("model.safetensors")).unwrap()
        })
        .into();
    assert!(files[0] == files[1]);
    let gguf = out.path().join("x.gguf");
    let flags = ["--prune-neurons", "0.25", "--scheme", "q8_0"];
    prune(&fixture("kjv-nano"), &text, &gguf, &flags).exits(0);
    // From GGUF too: the same numbers are left of the same numbers.
    let (whole, again) = (out.path().join("whole.gguf"), out.path().join("again.gguf"));
    compress(args!["convert", fixture("kjv-nano"), &whole, "-q"]).exits(0);
    prune(&whole, &text, &again, &flags).exits(0);
    assert!(outputs(&gguf) == outputs(&again));
    let Architecture::Transformer(t) =
        Checkpoint::open(&gguf, &Options::default()).unwrap().family().unwrap().architecture.clone()
    else {
        panic!("a transformer")
    };
    assert_eq!(t.intermediate, 384);
}

#[test]
fn parts_that_cannot_go_are_refused_before_any_work() {
    let out = tempfile::tempdir().unwrap();
    let (model, text) = model(out.path(), "llama");
    let written = out.path().join("x");
    for (flags, words) in [
        (&["--prune-layers", "2"][..], &["--prune-layers", "2 of 2 layers leaves none"][..]),
        (&["--prune-layers", "x"], &["neither a number of layers nor a list"]),
        (&["--prune-heads", "0.25"], &["4 heads in 2 groups", "do not divide so", "0.5"]),
        (&["--prune-heads", "1"], &["nothing is left of 4 heads"]),
        (&["--prune-neurons", "1.5"], &["no fraction from 0 to 1"]),
        (&["--prune-neurons", "1"], &["nothing is left of 96 neurons"]),
    ] {
        prune(&model, &text, &written, flags).exits(2).says(words);
    }
    compress(args![&model, "--prune-neurons", "0.5", "-o", &written])
        .exits(2)
        .says(&["--calibrate", "--prune-layers 5,6"]);
    let int8 = out.path().join("int8");
    compress(args![&model, "--int8", "-q", "-o", &int8]).exits(0);
    prune(&int8, &text, &written, &["--prune-neurons", "0.5"]).exits(2).says(&["already quantized"]);
    let chain = out.path().join("chain.safetensors");
    write_safetensors(&chain, &[("0.weight", safetensors::Dtype::F32, vec![2, 2], f32s(vec![1.0; 4]))]);
    prune(&chain, &text, &written, &["--prune-neurons", "0.5"]).exits(2).says(&["chain of linear layers"]);
    assert!(!written.exists());
}
