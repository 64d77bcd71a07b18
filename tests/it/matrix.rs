//! The README's table of formats, cell by cell: each row has small files, and every command does with each of them what the row says.

use std::path::{Path, PathBuf};

use formats::gguf::{Metadata, Value};
use formats::{Access, Dtype, Format, Limits, Payload, TensorMeta};

use crate::args;
use crate::families::letters;
use crate::support::{compress, copy_folder, fixture, tensors};

/// A folder's copy with a tokenizer of letters.
fn with_letters(name: &str, out: &Path) -> PathBuf {
    let path = out.join(name.replace('/', "-"));
    copy_folder(&fixture(name), &path);
    std::fs::write(path.join("tokenizer.json"), letters()).unwrap();
    path
}

/// Writes a GGUF file.
fn gguf(path: &Path, keys: &Metadata, all: &[(TensorMeta, Vec<u8>)]) {
    let metas: Vec<TensorMeta> = all.iter().map(|(meta, _)| meta.clone()).collect();
    let layout = formats::gguf::layout(path, &metas, keys).unwrap();
    let mut bytes = vec![0; layout.bytes as usize];
    let fixed = layout.fixed.iter().map(|(at, run)| (*at, run));
    for (at, run) in fixed.chain(layout.spans.iter().map(|span| span.start).zip(all.iter().map(|(_, bytes)| bytes))) {
        bytes[at as usize..at as usize + run.len()].copy_from_slice(run);
    }
    std::fs::write(path, bytes).unwrap();
}

/// kjv-nano in Q8_0 with a matrix of a type that is only read, in blocks that ggml made.
fn with_blocks(dtype: Dtype, out: &Path) -> PathBuf {
    let source =
        formats::open(&fixture("golden-ggml/nano-Q8_0-pure.gguf"), Access::Mapped, &Limits::default()).unwrap();
    let Payload::Gguf(keys) = source.payload() else { panic!("no GGUF") };
    let all: Vec<(TensorMeta, Vec<u8>)> = source
        .tensors()
        .iter()
        .enumerate()
        .map(|(i, meta)| match meta.name.as_str() {
            "blk.0.ffn_down.weight" => {
                let meta = TensorMeta::new(meta.name.clone(), dtype, meta.shape.clone());
                let blocks = tensors(&fixture("ggml/unpack.safetensors"))[&format!("{dtype}.blocks")].2.clone();
                let bytes = blocks.iter().copied().cycle().take(meta.bytes().unwrap() as usize).collect();
                (meta, bytes)
            }
            _ => (meta.clone(), source.bytes(i).unwrap().to_vec()),
        })
        .collect();
    let path = out.join(format!("{dtype}.gguf"));
    gguf(&path, keys, &all);
    path
}

/// kjv-nano in f16, cut into parts as llama.cpp's gguf-split cuts.
fn in_parts(out: &Path) -> PathBuf {
    const PARTS: usize = 3;
    let whole = out.join("whole.gguf");
    compress(args!["convert", fixture("kjv-nano"), &whole, "--dtype", "f16", "-q"]).exits(0);
    let source = formats::open(&whole, Access::Mapped, &Limits::default()).unwrap();
    let Payload::Gguf(keys) = source.payload() else { panic!("no GGUF") };
    let all: Vec<(TensorMeta, Vec<u8>)> = source
        .tensors()
        .iter()
        .enumerate()
        .map(|(i, meta)| (meta.clone(), source.bytes(i).unwrap().to_vec()))
        .collect();
    let path = |part: usize| out.join(format!("nano-{part:05}-of-{PARTS:05}.gguf"));
    for (part, tensors) in all.chunks(all.len().div_ceil(PARTS)).enumerate() {
        let mut keys = if part == 0 { keys.clone() } else { Metadata::default() };
        keys.push("split.no", Value::U16(part as u16));
        keys.push("split.count", Value::U16(PARTS as u16));
        keys.push("split.tensors.count", Value::I32(all.len() as i32));
        gguf(&path(part + 1), &keys, tensors);
    }
    path(1)
}

/// A model of an architecture that this program does not know.
fn of_another_architecture(out: &Path) -> PathBuf {
    let mut keys = Metadata::default();
    keys.push("general.architecture", Value::String("rwkv".into()));
    let all = [("token_embd.weight", 64), ("blk.0.ffn_up.weight", 96)].map(|(name, rows)| {
        let bytes = crate::support::f32s(crate::support::noise(rows * 32));
        (TensorMeta::new(name, Dtype::F32, vec![rows as u64, 32]), bytes)
    });
    let path = out.join("rwkv.gguf");
    gguf(&path, &keys, &all);
    path
}

/// Small files of each row, by how the row begins.
fn files(row: &str, out: &Path) -> Vec<PathBuf> {
    let write = |name: &str, scheme: &str, model: &Path| {
        let path = out.join(name);
        let group = if scheme == "int4" || name.contains("w8a16") { &["--group-size", "16"][..] } else { &[] };
        let all =
            args![model, "--scheme", if scheme == "int4" { "w4a16" } else { scheme }, "-q", "--no-check", "-o", &path];
        compress(all.into_iter().chain(group.iter().map(Into::into))).exits(0);
        path
    };
    let all = |folder: &str, names: &[&str]| names.iter().map(|name| fixture(folder).join(name)).collect();
    let each = |row_of: &[&str], end: &str, model: &Path| -> Vec<PathBuf> {
        row_of.iter().map(|scheme| write(&format!("{scheme}{end}"), scheme, model)).collect()
    };
    let nano = fixture("kjv-nano");
    match row {
        row if row.starts_with("safetensors: file") => {
            vec![fixture("exchange/chain.safetensors"), nano, with_letters("golden-odd/llama-biases", out)]
        }
        row if row.starts_with("safetensors: compressed-tensors") => each(&["int8", "int4", "w8a16", "fp8"], "", &nano),
        row if row.starts_with("npz") => all("exchange", &["chain.npz", "chain-deflated.npz", "chain-fortran.npz"]),
        row if row.starts_with("PyTorch") => {
            let files = ["chain.pt", "chain-legacy.pt", "chain-module.pth", "chain-strided.pt"];
            let mut files: Vec<PathBuf> = all("exchange", &files);
            files.push(with_letters("exchange/llama", out));
            files
        }
        row if row.starts_with("GGUF of llama") => {
            let types = [
                "f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "q2_k", "q4_k_m", "q6_k", "iq4_nl",
                "iq4_xs",
            ];
            each(&types, ".gguf", &nano)
        }
        row if row.starts_with("GGUF: every other block") => {
            let types = [Dtype::IQ1_S, Dtype::IQ2_XXS, Dtype::IQ3_S, Dtype::MXFP4, Dtype::TQ1_0, Dtype::TQ2_0];
            types.map(|dtype| with_blocks(dtype, out)).to_vec()
        }
        row if row.starts_with("GGUF of other architectures") => vec![of_another_architecture(out)],
        row if row.starts_with("GGUF in parts") => vec![in_parts(out)],
        row if row.starts_with("compressed-tensors with zero points") => {
            let forms =
                ["ct-int4-zeros", "ct-int4-order", "ct-int3-zeros", "ct-fp8-tensor", "ct-fp8-block", "fp8-scale-inv"];
            all("exchange/quantized", &forms)
        }
        row if row.starts_with("GPTQ") => {
            let forms = ["gptq-int4", "gptq-v2-int4-order", "bnb-nf4", "bnb-fp4", "bnb-int8", "mlx-int4"];
            all("exchange/quantized", &forms)
        }
        "AWQ GEMM" => all("exchange/quantized", &["awq"]),
        row if row.starts_with("ONNX graphs of ours") => {
            let mut files = each(&["f32", "f16", "bf16", "int8", "int4"], ".onnx", &with_letters("golden/llama", out));
            files.push(write("chain.onnx", "f32", &fixture("exchange/chain.safetensors")));
            files
        }
        row if row.starts_with("ONNX: initializers") => {
            all("onnx", &["matmul-17.onnx", "external.onnx", "numbers-typed.onnx", "half-19.onnx"])
        }
        row if row.starts_with("ONNX: int8 by") => {
            let model = fixture("onnx/matmul-17.onnx");
            each(&["int8", "int4", "w8a16"], "-graph.onnx", &model)
        }
        row if row.starts_with("ONNX: every other form") => all(
            "onnx/quantized",
            &["static-tensor.onnx", "blocks-4.onnx", "nbits-4.onnx", "dynamic.onnx", "forms.onnx"],
        ),
        other => panic!("a row without files: {other}"),
    }
}

/// Holds the cells of a row for one of its files.
fn holds(row: &str, cells: &[&str], file: &Path, out: &Path) {
    let &[read, write, inspect, compressed, check, run] = cells else { panic!("{row}: six cells") };
    let place = format!("{row}: {}", file.display());
    assert_eq!((read, inspect), ("yes", "yes"), "{place}");
    let shown = compress(args!["inspect", file, "--json"]).exits(0).json();
    let quantized = !shown["quantized"].is_null();

    // Written: the same container takes it.
    let format = shown["format"].as_str().unwrap();
    let extension = match format {
        "safetensors" => "safetensors",
        "GGUF" => "gguf",
        "npz" | "npy" => "npz",
        "PyTorch" => "pt",
        "ONNX" => "onnx",
        other => panic!("{place}: {other}"),
    };
    let copy = out.join(format!("copy.{extension}"));
    let copied = compress(args!["convert", file, &copy, "-q", "--force"]);
    match write {
        // In parts it is not, but whole; what others quantized is not at all.
        "no" if format == "GGUF" => drop(copied.exits(0)),
        "no" => drop(copied.exits(2).says(&["--dequantize"])),
        "yes" | "npz" | "zip" | "kept" | "from any" | "from ONNX" => {
            copied.exits(0);
            let again = compress(args!["inspect", &copy, "--json"]).exits(0).json();
            assert_eq!(
                (&again["quantized"], &again["parameters"]),
                (&shown["quantized"], &shown["parameters"]),
                "{place}"
            );
        }
        other => panic!("{place}: write: {other}"),
    }

    // Compressed, if it is not quantized.
    let scheme = if format == "GGUF" { "q8_0" } else { "int8" };
    let target = out.join(if format == "GGUF" { "small.gguf" } else { "small.safetensors" });
    let target = if format == "ONNX" { out.join("small.onnx") } else { target };
    let small = compress(args![file, "--scheme", scheme, "--dry-run", "-o", target]);
    assert_eq!(small.code, if quantized { 3 } else { 0 }, "{place}: {}", small.stderr);
    let largest = shown["encodings"][0]["encoding"].as_str().unwrap().to_lowercase();
    match compressed {
        "yes" => assert!(!quantized, "{place}"),
        no if no.starts_with("no") => assert!(quantized, "{place}"),
        list => assert!(quantized || list.split(", ").any(|dtype| dtype == largest), "{place}: {largest}"),
    }

    // Checked: outputs, or weights alone.
    let checked =
        compress(args!["check", file, file, "--check-tokens", "64", "--context", "32", "--json"]).exits(0).json();
    assert_eq!(checked["kind"] == "weights", check == "weights", "{place}: {checked}");

    // Run: a chain on inputs, a language model on a text.
    let chain = shown["family"] == "linear-chain";
    let ran = if chain {
        let weights = shown["tensors"].as_array().unwrap();
        let first = weights.iter().find(|weight| weight["name"] == "0.weight").unwrap();
        let inputs = out.join("inputs.csv");
        std::fs::write(&inputs, vec!["0.25"; first["shape"][1].as_u64().unwrap() as usize].join(",") + "\n").unwrap();
        compress(args!["run", file, "--inputs", inputs, "-q"])
    } else {
        compress(args!["run", file, "--prompt", "the", "--max-tokens", "2", "-q"])
    };
    assert_eq!(ran.code, if run == "yes" { 0 } else { 3 }, "{place}: {}", ran.stderr);
}

#[test]
fn every_cell_of_the_readme_is_true() {
    let readme = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap();
    let table = readme.split("## Formats").nth(1).unwrap();
    let rows: Vec<Vec<&str>> = table
        .lines()
        .skip_while(|line| !line.starts_with('|'))
        .take_while(|line| line.starts_with('|'))
        .map(|line| line.trim_matches('|').split(" | ").map(str::trim).collect())
        .collect();
    assert_eq!(rows[0], ["format", "read", "write", "inspect", "compress", "check", "run"]);
    assert!(rows.len() > 14, "{rows:?}");
    let mut formats = std::collections::BTreeSet::new();
    for row in &rows[2..] {
        let out = tempfile::tempdir().unwrap();
        let files = files(row[0], out.path());
        assert!(!files.is_empty(), "{}", row[0]);
        for file in files {
            holds(row[0], &row[1..], &file, out.path());
            let single =
                file.is_file().then(|| formats::open(&file, Access::Mapped, &Limits::default()).unwrap().format());
            formats.extend(single.map(Format::name));
        }
    }
    assert_eq!(formats.len(), 5, "{formats:?}");
}
