//! Models as ONNX graphs: structure, check, and the way back. That onnxruntime computes what our runtime does is held by
//! `tests/export.py`, which needs it.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use formats::{Access, Limits, Payload};
use modelpress::encoding::Encoding;
use modelpress::loader::{Checkpoint, Options};
use modelpress::runtime::{self, ChainModel};
use serde_json::{Value, json};

use crate::args;
use crate::exchange::limited;
use crate::families::{FAMILIES, letters};
use crate::golden::difference_of;
use crate::support::{compress, contents, copy_folder, fixture, tensors};

/// Holds that a graph is whole: each value is made once, and before it is used; and returns its initializers.
fn whole(path: &Path) -> BTreeMap<String, Vec<u64>> {
    let source = formats::open(path, Access::Mapped, &Limits::default()).unwrap();
    let Payload::Onnx(model) = source.payload() else { panic!("{} is no ONNX file", path.display()) };
    let graph = model.graph();
    let initializers: Vec<&str> = graph.initializers().map(|(name, _)| name).collect();
    let mut known: HashSet<String> = graph.inputs().chain(initializers.iter().copied()).map(str::to_owned).collect();
    let mut dequantized = HashSet::new();
    for node in graph.nodes() {
        let node = node.proto;
        for input in node.input.iter().filter(|input| !input.is_empty()) {
            assert!(known.contains(input), "{}: {input} is not known", node.name());
        }
        if node.op_type() == "DequantizeLinear" {
            assert!(node.input.iter().all(|input| dequantized.insert(input.clone())), "{} shares", node.name());
        }
        for output in node.output {
            assert!(known.insert(output.clone()), "{output} is made twice");
        }
    }
    assert!(graph.outputs().all(|output| known.contains(output)));
    let shape = |name: &&str| {
        let meta = source.tensors().iter().find(|meta| meta.name == **name).unwrap();
        ((*name).to_owned(), meta.shape.clone())
    };
    initializers.iter().map(shape).collect()
}

/// A model of a family with a tokenizer, without what transformers recorded of it.
fn model(family: &str, folder: &Path) {
    copy_folder(&fixture("golden").join(family), folder);
    std::fs::remove_file(folder.join("golden.safetensors")).unwrap();
    std::fs::write(folder.join("tokenizer.json"), letters()).unwrap();
}

fn json_of(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).unwrap()
}

/// Holds that two folders are the same model: the tensors' bytes, and what else lies there.
fn same_folder(one: &Path, other: &Path) {
    assert_eq!(tensors(&one.join("model.safetensors")), tensors(&other.join("model.safetensors")));
    let (mut one, mut other) = (contents(one), contents(other));
    one.remove("model.safetensors");
    other.remove("model.safetensors");
    assert_eq!(one.keys().collect::<Vec<_>>(), other.keys().collect::<Vec<_>>());
    for (name, bytes) in one {
        assert_eq!(json_of(&bytes), json_of(&other[&name]), "{name}");
    }
}

#[test]
fn every_family_becomes_a_whole_graph_and_comes_back() {
    let out = tempfile::tempdir().unwrap();
    for family in FAMILIES {
        let (folder, onnx, back) = (
            out.path().join(family),
            out.path().join(format!("{family}.onnx")),
            out.path().join(format!("{family}-back")),
        );
        model(family, &folder);
        let report = compress(args!["convert", &folder, &onnx, "--json"]).exits(0).json();
        assert_eq!(report["check"], json!({"kind": "values", "weights": report["check"]["weights"], "passed": true}));
        // The graph's constants are the model's tensors, by name and shape, and nothing else.
        let own: BTreeMap<String, Vec<u64>> = tensors(&folder.join("model.safetensors"))
            .into_iter()
            .map(|(name, (_, shape, _))| (name, shape.iter().map(|&d| d as u64).collect()))
            .collect();
        assert_eq!(whole(&onnx), own);
        // It runs as the folder does.
        let opened = std::sync::Arc::new(Checkpoint::open(&onnx, &Options::default()).unwrap());
        let (hidden, logits) = difference_of(&opened, &fixture("golden").join(family), usize::MAX);
        assert!(hidden <= 1e-4 && logits <= 1e-4, "{family}: {hidden:e} {logits:e}");
        compress(args!["convert", &onnx, &back, "-q"]).exits(0);
        same_folder(&folder, &back);
    }
}

#[test]
fn quantized_models_stay_quantized_in_the_graph_and_on_the_way_back() {
    let out = tempfile::tempdir().unwrap();
    for family in ["bert", "llama", "llama3-rope-tied", "phi3", "qwen3-moe"] {
        for scheme in ["int8", "int4", "w8a16"] {
            let name = |what: &str| out.path().join(format!("{family}-{scheme}-{what}"));
            let folder = out.path().join(family);
            model(family, &folder);
            let (plain, direct, converted, back) = (name("folder"), name("a.onnx"), name("b.onnx"), name("back"));
            let quick = args!["--scheme", scheme, "-q", "--check-tokens", "64", "--context", "32"];
            // Rows of 48 are one group otherwise, which is no power of two and which MatMulNBits does not take.
            let groups: &[&str] = if scheme == "int8" { &[] } else { &["--group-size", "16"] };
            let flags = || quick.clone().into_iter().chain(groups.iter().map(Into::into));
            let run = |output: &Path| compress(args![&folder, "-o", output].into_iter().chain(flags())).exits(0);
            run(&plain);
            run(&direct);
            compress(args!["convert", &plain, &converted, "-q"]).exits(0);
            for onnx in [&direct, &converted] {
                whole(onnx);
                let opened = Checkpoint::open(onnx, &Options::default()).unwrap();
                let reference = Checkpoint::open(&plain, &Options::default()).unwrap();
                for weight in reference.weights() {
                    let found = &opened.weights()[opened.find(&weight.name).unwrap()];
                    let fits = match (weight.encoding, found.encoding) {
                        (
                            Encoding::PackedInt { bits, group, scale },
                            Encoding::Blocked { bits: b, group: g, scale: s },
                        ) => (bits, group, scale) == (b, g, s),
                        (one, other) => one == other,
                    };
                    assert!(fits && weight.shape == found.shape, "{}: {:?}", weight.name, found.encoding);
                }
            }
            compress(args!["convert", &converted, &back, "-q"]).exits(0);
            same_folder(&plain, &back);
            compress(args!["check", &plain, &direct, "-q", "--check-tokens", "64", "--context", "32"]).exits(0);
            for path in [plain, back] {
                std::fs::remove_dir_all(path).unwrap();
            }
        }
    }
}

#[test]
fn a_chain_is_a_graph_too_and_int8_of_an_exported_file_is_that_of_its_folder() {
    let out = tempfile::tempdir().unwrap();
    let (onnx, from_onnx, from_folder) =
        (out.path().join("chain.onnx"), out.path().join("a.onnx"), out.path().join("b.onnx"));
    let chain = fixture("chain");
    compress(args!["convert", &chain, &onnx, "-q"]).exits(0);
    let initializers = whole(&onnx);
    assert!(initializers.contains_key("0.weight"), "{initializers:?}");
    let opened = std::sync::Arc::new(Checkpoint::open(&onnx, &Options::default()).unwrap());
    let _: ChainModel = runtime::load_chain(&opened).unwrap();
    for (input, output) in [(&onnx, &from_onnx), (&chain, &from_folder)] {
        compress(args![input, "--int8", "-o", output, "-q"]).exits(0);
    }
    assert_eq!(std::fs::read(from_onnx).unwrap(), std::fs::read(from_folder).unwrap());
}

#[test]
fn what_has_no_graph_is_refused_before_anything_is_written() {
    let out = tempfile::tempdir().unwrap();
    let (folder, onnx) = (out.path().join("other"), out.path().join("other.onnx"));
    model("llama", &folder);
    let mut config = json_of(&std::fs::read(folder.join("config.json")).unwrap());
    config["model_type"] = json!("mamba");
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    compress(args!["convert", &folder, &onnx]).exits(3).says(&["mamba", "ONNX"]);
    assert!(!onnx.exists());
    model("llama", &folder);
    compress(args![&folder, "--scheme", "q4_k_m", "-o", &onnx]).exits(2);
    compress(args![&folder, "--scheme", "fp8", "-o", &onnx]).exits(2);
    assert!(!onnx.exists());
}

#[test]
fn codes_that_a_text_chose_are_those_of_the_folder() {
    let out = tempfile::tempdir().unwrap();
    let nano = fixture("kjv-nano");
    let text = fixture("kjv-nano/valid.txt");
    for scheme in ["int8", "w4a16"] {
        let (folder, onnx, back) = (out.path().join("folder"), out.path().join("a.onnx"), out.path().join("back"));
        for path in [&folder, &onnx] {
            let all = args!["--scheme", scheme, "--calibrate", &text, "--calibrate-tokens", "1024", "-q", "--force"];
            let more = args!["--check-tokens", "256", &nano, "-o", path];
            compress(all.into_iter().chain(more)).exits(0);
        }
        compress(args!["convert", &onnx, &back, "-q", "--force"]).exits(0);
        let [one, other] = [&folder, &back].map(|folder| tensors(&folder.join("model.safetensors")));
        assert_eq!(one, other, "{scheme}");
    }
}

#[test]
fn a_graph_of_ours_runs_without_mapping_and_is_unpacked_into_itself() {
    let out = tempfile::tempdir().unwrap();
    let path = |name: &str| out.path().join(name);
    compress(args![fixture("kjv-nano"), "--int8", "-q", "--no-check", "-o", path("int8.onnx")]).exits(0);
    let run = |model: &Path, more: &[&str]| {
        let all = args!["run", model, "--prompt", "In the", "--max-tokens", "8", "-q"];
        compress(all.into_iter().chain(more.iter().map(Into::into))).exits(0).stdout
    };
    let mapped = run(&path("int8.onnx"), &[]);
    assert!(mapped.len() > 8 && run(&path("int8.onnx"), &["--no-mmap"]) == mapped);
    compress(args!["convert", path("int8.onnx"), path("plain.onnx"), "--dequantize", "-q"]).exits(0);
    whole(&path("plain.onnx"));
    assert_eq!(run(&path("plain.onnx"), &[]), mapped);
    // FP8 has a graph, too, though none is made of floats.
    compress(args![fixture("kjv-nano"), "--scheme", "fp8", "-q", "--no-check", "-o", path("fp8")]).exits(0);
    compress(args!["convert", path("fp8"), path("fp8.onnx"), "-q"]).exits(0);
    whole(&path("fp8.onnx"));
    assert_eq!(run(&path("fp8.onnx"), &[]), run(&path("fp8"), &[]));
    // Its notes are its own.
    let report = compress(args![path("plain.onnx"), "--int8", "--json", "-o", path("again.onnx")]).exits(0).json();
    assert!(report["notes"].to_string().contains("--embeddings would save"), "{report}");
    assert!(!report["notes"].to_string().contains("every run would unpack"), "{report}");
}

/// Whoever writes a file can say anything of it: it is read as the graph that it is, or refused, in little memory.
#[cfg(target_os = "linux")]
#[test]
fn a_file_that_claims_to_be_ours_is_not_believed() {
    use formats::onnx::proto::{ModelProto, StringStringEntryProto};
    use prost::Message;
    let out = tempfile::tempdir().unwrap();
    let path = out.path().join("forged.onnx");
    let original = ModelProto::decode(&*std::fs::read(fixture("onnx/matmul-17.onnx")).unwrap()).unwrap();
    let config = |layers: u64| {
        let text = std::fs::read_to_string(fixture("golden/llama/config.json")).unwrap();
        text.replace("\"num_hidden_layers\": 2", &format!("\"num_hidden_layers\": {layers}"))
    };
    let nested = "[".repeat(100_000);
    for (family, config, tokenizer, code) in [
        ("llama", config(2), "{}", 0),
        ("llama", config(1 << 20), "{}", 0),
        ("llama", config(u64::MAX), "{}", 0),
        ("no-such-family", config(2), "{}", 0),
        ("linear-chain", "{}".to_owned(), "{}", 0),
        ("llama", "{".to_owned(), "{}", 3),
        ("llama", nested.clone(), "{}", 3),
        ("llama", config(2), nested.as_str(), 0),
    ] {
        let mut forged = original.clone();
        for (key, value) in
            [("modelpress.family", family), ("modelpress.config", &config), ("modelpress.tokenizer", tokenizer)]
        {
            forged.metadata_props.push(StringStringEntryProto { key: Some(key.into()), value: Some(value.into()) });
        }
        std::fs::write(&path, forged.encode_to_vec()).unwrap();
        let run = limited(&args!["inspect", &path, "--json"]);
        println!("{family} {} bytes of config: {} {}", config.len(), run.code, run.stderr.lines().next().unwrap_or(""));
        assert!(!run.stderr.contains("panicked"), "{}", run.stderr);
        let run = run.exits(code);
        if code == 0 {
            let shown = run.json();
            let names: Vec<&str> =
                shown["tensors"].as_array().unwrap().iter().map(|found| found["name"].as_str().unwrap()).collect();
            assert_eq!(names, ["a.weight", "a.bias", "b.weight"], "{family}");
        } else {
            run.says(&["forged.onnx"]);
        }
    }
}
