//! ONNX: what the package `onnx` wrote, and what is made of it.
//!
//! That onnxruntime runs what is written, and computes what the stored numbers give, is held by `tests/graphs.py`.

use std::collections::BTreeMap;
use std::path::Path;

use formats::onnx::proto::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, StringStringEntryProto, TensorProto,
};
use formats::{Access, Dtype, Format, Limits, Payload};
use modelpress::loader::{Checkpoint, Options};
use prost::Message;

use crate::args;
use crate::exchange::limited;
use crate::support::{compress, f32s, fixture, tensors};

/// Type, shape and bytes of each tensor.
pub fn all(path: &Path, access: Access) -> BTreeMap<String, (String, Vec<u64>, Vec<u8>)> {
    let source = formats::open(path, access, &Limits::default()).unwrap_or_else(|e| panic!("{e}"));
    let tensors = source.tensors().iter().enumerate().map(|(i, meta)| {
        let mut bytes = vec![0; meta.bytes().unwrap() as usize];
        source.read_at(i, 0, &mut bytes).unwrap();
        assert!(source.bytes(i).is_none_or(|mapped| mapped == bytes));
        (meta.name.clone(), (meta.dtype.to_string(), meta.shape.clone(), bytes))
    });
    tensors.collect()
}

fn onnx(name: &str) -> std::path::PathBuf {
    fixture("onnx").join(format!("{name}.onnx"))
}

#[test]
fn numbers_raw_typed_and_in_another_file_are_what_safetensors_holds() {
    for (names, expected) in [
        (vec!["numbers", "numbers-typed", "numbers-external"], "numbers"),
        (vec!["matmul-11", "matmul-13", "matmul-17", "matmul-21", "listed", "external", "unknown"], "matmul"),
    ] {
        let expected = all(&fixture("onnx").join(format!("{expected}.safetensors")), Access::Mapped);
        for name in names {
            for access in [Access::Mapped, Access::Read] {
                assert_eq!(all(&onnx(name), access), expected, "{name}");
            }
        }
    }
}

#[test]
fn raw_and_external_numbers_are_mapped_where_they_lie() {
    for (name, within) in [("matmul-17", true), ("external", true), ("numbers-typed", false)] {
        let source = formats::open(&onnx(name), Access::Mapped, &Limits::default()).unwrap();
        assert_eq!(source.format(), Format::Onnx);
        let file = std::fs::metadata(onnx(name)).unwrap().len();
        // Nothing was unpacked: what is not in the file is in the other one.
        let end = file + source.external().map(|path| path.metadata().unwrap().len()).sum::<u64>();
        assert_eq!(source.file_bytes(), end);
        let places = (0..source.tensors().len()).map(|i| source.place(i));
        assert_eq!(places.clone().all(|place| place.end <= end), within, "{name}");
        assert_eq!(source.external().count(), usize::from(name == "external"), "{name}");
    }
}

#[test]
fn constants_of_graphs_within_have_the_names_of_their_nodes() {
    let found = all(&onnx("branch"), Access::Mapped);
    let names: Vec<&str> = found.keys().map(String::as_str).collect();
    assert_eq!(names, ["choice/then_branch/w", "k", "outer"]);
    let source = formats::open(&onnx("branch"), Access::Mapped, &Limits::default()).unwrap();
    let Payload::Onnx(model) = source.payload() else { panic!("a graph") };
    assert_eq!((model.opset(), model.ir_version()), (17, 8));
    assert_eq!(model.constants().len(), 2);
}

#[test]
fn weights_go_to_other_containers_and_are_the_same_numbers() {
    let out = tempfile::tempdir().unwrap();
    let expected = tensors(&fixture("onnx/matmul.safetensors"));
    for name in ["matmul-17", "external"] {
        for to in ["a.safetensors", "a.npz", "a.pt"] {
            let path = out.path().join(format!("{name}-{to}"));
            compress(args!["convert", onnx(name), &path, "-q"]).exits(0);
            let back = out.path().join(format!("{name}-{to}.safetensors"));
            compress(args!["convert", &path, &back, "-q"]).exits(0);
            assert_eq!(tensors(&back), expected, "{name} {to}");
        }
    }
    // What cannot be is refused before any work, with the next step.
    compress(args!["convert", onnx("gemm"), out.path().join("a.gguf")]).exits(3).says(&["GGUF", "config.json"]);
    compress(args!["convert", onnx("gemm"), out.path().join("folder")]).exits(3).says(&["NAME.safetensors"]);
    compress(args!["convert", fixture("onnx/matmul.safetensors"), out.path().join("a.onnx")])
        .exits(3)
        .says(&["ONNX", "safetensors"]);
}

#[test]
fn a_graph_comes_back_with_all_that_is_not_understood() {
    let out = tempfile::tempdir().unwrap();
    for name in ["unknown", "branch", "numbers", "numbers-typed", "numbers-external", "external", "tied", "half-19"] {
        let path = out.path().join(format!("{name}.onnx"));
        compress(args!["convert", onnx(name), &path, "-q"]).exits(0);
        assert_eq!(all(&path, Access::Mapped), all(&onnx(name), Access::Mapped), "{name}");
        let [ours, theirs] =
            [&path, &onnx(name)].map(|path| ModelProto::decode(&*std::fs::read(path).unwrap()).unwrap());
        assert_eq!(nodes(&ours), nodes(&theirs), "{name}");
        assert_eq!((ours.opset_import, ours.ir_version), (theirs.opset_import, theirs.ir_version), "{name}");
        let [ours, theirs] = [ours.graph.unwrap(), theirs.graph.unwrap()];
        assert_eq!((ours.input, ours.output), (theirs.input, theirs.output), "{name}");
        // What lay in another file does again.
        let beside = out.path().join(format!("{name}.onnx.data"));
        assert_eq!(beside.exists(), name.contains("external"), "{name}");
    }
    let bytes = std::fs::read(out.path().join("unknown.onnx")).unwrap();
    assert_eq!(bytes.windows(5).filter(|window| *window == b"later").count(), 3);
}

fn nodes(model: &ModelProto) -> Vec<(Vec<String>, Vec<String>, Option<String>)> {
    let graph = model.graph.as_ref().unwrap();
    graph.node.iter().map(|node| (node.input.clone(), node.output.clone(), node.op_type.clone())).collect()
}

#[test]
fn int8_has_its_axis_where_each_operator_has_its_outputs() {
    let out = tempfile::tempdir().unwrap();
    for (name, axes, encoding) in [
        ("matmul-17", vec![("a.weight", 1), ("b.weight", 1)], vec!["int8 per column"; 2]),
        ("listed", vec![("a.weight", 1), ("b.weight", 1)], vec!["int8 per column"; 2]),
        ("gemm", vec![("a", 0), ("d", 1)], vec!["int8 per row", "int8 per column"]),
        ("conv", vec![("w", 0)], vec!["int8 per row"]),
        ("tied", vec![("table", 0), ("w", 1)], vec!["int8 per row", "int8 per column"]),
        ("shared", vec![("left", 0), ("w", 1)], vec!["int8 per row", "int8 per column"]),
        ("external", vec![("a.weight", 1), ("b.weight", 1)], vec!["int8 per column"; 2]),
    ] {
        let path = out.path().join(format!("{name}-int8.onnx"));
        let report = compress(args![onnx(name), "--int8", "--embeddings", "--json", "-o", &path]).exits(0).json();
        assert_eq!(report["check"]["kind"], "weights", "{name}: {report}");
        let model = ModelProto::decode(&*std::fs::read(&path).unwrap()).unwrap();
        assert!(model.opset_import[0].version() >= 13, "{name}");
        let graph = model.graph.unwrap();
        let mut found: Vec<(&str, i64)> = graph
            .node
            .iter()
            .filter(|node| node.op_type() == "DequantizeLinear")
            .map(|node| (node.output[0].as_str(), node.attribute[0].i()))
            .collect();
        found.sort_unstable();
        assert_eq!(found, axes, "{name}");
        // No initializer is in two nodes that dequantize.
        let mut taken: Vec<&String> = graph
            .node
            .iter()
            .filter(|node| node.op_type() == "DequantizeLinear")
            .flat_map(|node| &node.input)
            .collect();
        taken.sort_unstable();
        assert!(taken.windows(2).all(|pair| pair[0] != pair[1]), "{name}");
        assert!(graph.input.iter().all(|input| axes.iter().all(|(weight, _)| input.name() != *weight)), "{name}");

        // It is read again under the original's names, in its encoding, and its error is that of int8.
        let read = Checkpoint::open(&path, &Options::default()).unwrap();
        for ((weight, _), encoding) in axes.iter().zip(encoding) {
            let at = read.find(weight).unwrap_or_else(|| panic!("{name}: {weight}"));
            assert_eq!(read.weights()[at].encoding.name(), encoding, "{name}: {weight}");
        }
        let mut errors: Vec<(&str, f64)> = report["weights"]["worst"]
            .as_array()
            .unwrap()
            .iter()
            .map(|weight| (weight["name"].as_str().unwrap(), weight["sqnr_db"].as_f64().unwrap()))
            .collect();
        errors.sort_by_key(|(weight, _)| *weight);
        let quantized: Vec<&str> = axes.iter().map(|(weight, _)| *weight).collect();
        assert_eq!(errors.iter().map(|(weight, _)| *weight).collect::<Vec<_>>(), quantized, "{name}");
        assert!(errors.iter().all(|(_, sqnr)| *sqnr > 38.0), "{name}: {errors:?}");
        let checked = compress(args!["check", onnx(name), &path, "--json"]).exits(0).json();
        assert_eq!((&checked["kind"], &checked["passed"]), (&"weights".into(), &true.into()), "{name}");
        compress(args![&path, "--int8", "--dry-run"]).exits(3).says(&["quantized"]);
        // Unpacked by a graph of nothing else: as floats, and written as it is.
        let plain = out.path().join(format!("{name}.safetensors"));
        compress(args!["convert", &path, &plain, "--dequantize", "-q"]).exits(0);
        let again = out.path().join(format!("{name}-again.onnx"));
        compress(args!["convert", &path, &again, "-q"]).exits(0);
        assert_eq!(all(&again, Access::Read), all(&path, Access::Read), "{name}");
    }
}

#[test]
fn the_result_does_not_depend_on_threads_memory_or_how_it_is_read() {
    let out = tempfile::tempdir().unwrap();
    let write = |name: &str, flags: &[&str]| {
        let path = out.path().join(name);
        let mut all = args![onnx("matmul-17"), "--int8", "-q", "--no-check", "-o", &path].to_vec();
        all.extend(flags.iter().map(Into::into));
        compress(all).exits(0);
        std::fs::read(path).unwrap()
    };
    let one = write("1.onnx", &["--threads=1"]);
    for (name, flags) in [("2.onnx", vec!["--threads=2"]), ("3.onnx", vec!["--no-mmap"])] {
        assert_eq!(write(name, &flags), one, "{flags:?}");
    }
}

#[test]
fn versions_are_raised_only_where_nothing_changes_its_meaning() {
    let out = tempfile::tempdir().unwrap();
    let path = out.path().join("a.onnx");
    compress(args![onnx("softmax-11"), "--int8", "-o", &path]).exits(3).says(&[
        "Softmax",
        "opset 11",
        "version_converter",
    ]);
    assert!(!path.exists());
    compress(args![onnx("matmul-11"), "--int8", "-q", "-o", &path]).exits(0);
    let model = ModelProto::decode(&*std::fs::read(&path).unwrap()).unwrap();
    assert_eq!((model.opset_import[0].version(), model.ir_version()), (13, 7));
}

#[test]
fn int4_is_multiplied_in_blocks_and_other_floats_are_cast() {
    let out = tempfile::tempdir().unwrap();
    for (name, weights) in [("matmul-17", vec!["a.weight", "b.weight"]), ("gemm", vec!["a"]), ("shared", vec!["w"])] {
        let path = out.path().join(format!("{name}-int4.onnx"));
        let report = compress(args![onnx(name), "--int4", "--group-size", "32", "--json", "-o", &path]).exits(0).json();
        let model = ModelProto::decode(&*std::fs::read(&path).unwrap()).unwrap();
        assert!(model.opset_import.iter().any(|set| set.domain() == "com.microsoft"), "{name}");
        assert!(model.graph.unwrap().node.iter().any(|node| node.op_type() == "MatMulNBits"), "{name}");
        let read = Checkpoint::open(&path, &Options::default()).unwrap();
        for weight in weights {
            let at = read.find(weight).unwrap_or_else(|| panic!("{name}: {weight}"));
            assert_eq!(read.weights()[at].encoding.name(), "int4 in groups of 32", "{name}: {weight}");
        }
        let errors: Vec<f64> = report["weights"]["worst"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|weight| weight["sqnr_db"].as_f64())
            .collect();
        compress(args!["check", onnx(name), &path, "-q"]).exits(0);
        assert!(!errors.is_empty() && errors.iter().all(|sqnr| (15.0..30.0).contains(sqnr)), "{name}: {errors:?}");
    }
    for (flag, dtype) in [("--f16", Dtype::F16), ("--bf16", Dtype::BF16)] {
        let path = out.path().join(format!("a{flag}.onnx"));
        compress(args![onnx("matmul-17"), flag, "-q", "-o", &path]).exits(0);
        let read = Checkpoint::open(&path, &Options::default()).unwrap();
        let dtypes = ["a.weight", "a.bias"].map(|name| read.weights()[read.find(name).unwrap()].float_dtype());
        assert_eq!(dtypes, [Some(dtype), Some(Dtype::F32)], "{flag}");
    }
    compress(args![onnx("gemm"), "--scheme=fp8", "-o", out.path().join("a.onnx")]).exits(2).says(&["fp8", "ONNX"]);
}

/// A model with these tensors.
fn model(initializer: Vec<TensorProto>) -> ModelProto {
    let node = NodeProto {
        input: vec!["x".into()],
        output: vec!["y".into()],
        op_type: Some("Identity".into()),
        ..NodeProto::default()
    };
    let graph = GraphProto { node: vec![node], initializer, ..GraphProto::default() };
    ModelProto {
        ir_version: Some(8),
        producer_name: Some("test".into()),
        opset_import: vec![OperatorSetIdProto { domain: None, version: Some(17) }],
        graph: Some(graph),
        ..ModelProto::default()
    }
}

fn tensor(name: &str, dims: &[i64], raw: Option<Vec<u8>>) -> TensorProto {
    TensorProto {
        name: Some(name.into()),
        dims: dims.to_vec(),
        data_type: Some(1),
        raw_data: raw,
        ..TensorProto::default()
    }
}

fn external(name: &str, dims: &[i64], entries: &[(&str, &str)]) -> TensorProto {
    let entry = |(key, value): &(&str, &str)| StringStringEntryProto {
        key: Some((*key).to_owned()),
        value: Some((*value).to_owned()),
    };
    TensorProto {
        external_data: entries.iter().map(entry).collect(),
        data_location: Some(1),
        ..tensor(name, dims, None)
    }
}

#[test]
fn hostile_files_are_refused_by_name() {
    let out = tempfile::tempdir().unwrap();
    let folder = out.path().join("model");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(out.path().join("secret"), f32s([1.0; 16])).unwrap();
    std::fs::write(folder.join("data"), f32s([1.0; 16])).unwrap();
    std::os::unix::fs::symlink(out.path().join("secret"), folder.join("link")).unwrap();
    let secret = out.path().join("secret").display().to_string();
    let at = |location: &str, offset: &str, length: &str| {
        external("w", &[2, 2], &[("location", location), ("offset", offset), ("length", length)])
    };
    let refused = |name: &str, bytes: Vec<u8>, words: &[&str]| {
        let path = folder.join(format!("{name}.onnx"));
        std::fs::write(&path, bytes).unwrap();
        limited(&args!["inspect", &path]).exits(3).says(words);
        limited(&args!["check", &path, &path, "--no-mmap"]).exits(3).says(words);
    };
    let good = model(vec![at("data", "16", "16")]).encode_to_vec();
    std::fs::write(folder.join("good.onnx"), good).unwrap();
    compress(args!["inspect", folder.join("good.onnx"), "--json"]).exits(0);
    for (i, (bad, words)) in [
        (at("../secret", "0", "16"), vec!["../secret", "`w`", "model's folder"]),
        (at(&secret, "0", "16"), vec!["model's folder"]),
        (at("link", "0", "16"), vec!["link"]),
        (at("sub/../../secret", "0", "16"), vec!["model's folder"]),
        (at("none", "0", "16"), vec!["none", "cannot be opened"]),
        (at("data", "60", "16"), vec!["byte 60", "64"]),
        (at("data", "9223372036854775808", "16"), vec!["9223372036854775808"]),
        (at("data", "-1", "16"), vec!["-1"]),
        (at("data", "0", "9223372036854775808"), vec!["9223372036854775808"]),
        (at("", "0", "16"), vec!["model's folder"]),
        (external("w", &[2, 2], &[]), vec!["location"]),
        (tensor("w", &[2, 2], Some(vec![0; 15])), vec!["`w`", "15 bytes", "16"]),
        (tensor("w", &[i64::MAX, i64::MAX], Some(vec![0; 16])), vec!["`w`", "64 bits"]),
        (tensor("w", &[1 << 61], None), vec!["`w`"]),
        (tensor("w", &[-2, 2], Some(vec![0; 16])), vec!["-2"]),
        (tensor("w", &[2, 2], None), vec!["`w`"]),
        (tensor("", &[2, 2], Some(vec![0; 16])), vec!["without a name"]),
        (TensorProto { data_type: Some(99), ..tensor("w", &[1], Some(vec![0; 4])) }, vec!["99"]),
        (
            TensorProto { float_data: vec![1.0; 4], ..tensor("w", &[2, 2], Some(vec![0; 16])) },
            vec!["more than one place"],
        ),
        (TensorProto { int64_data: vec![1; 4], ..tensor("w", &[2, 2], None) }, vec!["field 7"]),
        (TensorProto { float_data: vec![1.0; 5], ..tensor("w", &[2, 2], None) }, vec!["more numbers"]),
    ]
    .into_iter()
    .enumerate()
    {
        refused(&format!("tensor-{i}"), model(vec![bad]).encode_to_vec(), &words);
    }
    let both = |a: (&str, &str), b: (&str, &str)| {
        let tensor = |name, (offset, dim): (&str, &str)| {
            external(name, &[dim.parse().unwrap()], &[("location", "data"), ("offset", offset)])
        };
        model(vec![tensor("a", a), tensor("b", b)]).encode_to_vec()
    };
    refused("overlap", both(("0", "4"), ("8", "4")), &["`b`", "`a`", "overlap"]);
    std::fs::write(folder.join("tied.onnx"), both(("0", "4"), ("0", "4"))).unwrap();
    compress(args!["inspect", folder.join("tied.onnx"), "--json"]).exits(0);
    let twice = model(vec![tensor("a", &[1], Some(vec![0; 4])), tensor("a", &[1], Some(vec![0; 4]))]);
    refused("twice", twice.encode_to_vec(), &["`a`", "twice"]);

    // Graphs within graphs within graphs.
    let field = |number: u8, bytes: Vec<u8>| {
        let mut out = vec![number << 3 | 2];
        prost::encoding::encode_varint(bytes.len() as u64, &mut out);
        out.extend(bytes);
        out
    };
    let mut graph = Vec::new();
    for _ in 0..10_000 {
        graph = field(1, field(5, field(6, graph)));
    }
    let nested = [vec![8, 8, 0x12, 4], b"test".to_vec(), field(7, graph)].concat();
    refused("nested", nested, &["nested"]);
    // A length past the end, and more nodes than memory.
    let mut long = vec![8, 8, 0x12, 4];
    long.extend(b"test");
    long.extend([0x3a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f, 0]);
    refused("long", long, &["9223372036854775807"]);
    let many = [vec![8, 8, 0x12, 4], b"test".to_vec(), field(7, [10, 0].repeat(4_000_000))].concat();
    refused("many", many, &["memory"]);
    let values = AttributeProto { name: Some("v".into()), ..AttributeProto::default() }.encode_to_vec();
    let node = field(1, field(5, values).repeat(70_000));
    let wide = [vec![8, 8, 0x12, 4], b"test".to_vec(), field(7, node)].concat();
    refused("wide", wide, &["65536 fields"]);
}

#[test]
fn what_lies_in_another_file_is_published_with_it() {
    let out = tempfile::tempdir().unwrap();
    let path = out.path().join("a.onnx");
    std::fs::write(out.path().join("a.onnx.data"), "somebody's").unwrap();
    compress(args![onnx("external"), "--int8", "-q", "-o", &path]).exits(2).says(&["a.onnx.data", "already exists"]);
    assert_eq!(std::fs::read_dir(out.path()).unwrap().count(), 1);
    compress(args![onnx("external"), "--int8", "-q", "--force", "-o", &path]).exits(0);
    assert_eq!(std::fs::read_dir(out.path()).unwrap().count(), 2);
    compress(args![onnx("external"), "--int8", "-o", fixture("onnx/external.data"), "--force"])
        .exits(2)
        .says(&["input"]);
    // Moved together they are still one model.
    let folder = out.path().join("elsewhere");
    std::fs::create_dir(&folder).unwrap();
    for name in ["a.onnx", "a.onnx.data"] {
        std::fs::rename(out.path().join(name), folder.join(name)).unwrap();
    }
    compress(args!["check", onnx("external"), folder.join("a.onnx"), "-q"]).exits(0);
}
