//! Graphs that others quantized: inspected, checked, copied, unpacked, run by nobody but onnxruntime, whose numbers of each weight are
//! the reference (`fixtures/onnx/quantized.py`). That it computes with what is made of them is held by `tests/graphs.py`.

use std::collections::BTreeMap;

use formats::Dtype;
use modelpress::encoding::plain::Real;

use crate::args;
use crate::exchange::matrices_of;
use crate::support::{compress, fixture, tensors};

/// For each graph, how its weights are stored.
const FORMS: &[(&str, &[(&str, &str)])] = &[
    (
        "static-tensor",
        &[("a.weight", "int8 per tensor with zero points"), ("a.bias", "int8 per tensor with zero points")],
    ),
    (
        "static-channel",
        &[("a.weight", "uint8 per channel with zero points"), ("a.bias", "uint8 per tensor with zero points")],
    ),
    ("static-conv", &[("w", "int8 per channel with zero points"), ("b", "int32 per channel with zero points")]),
    ("static-gemm", &[("a", "int16 per tensor with zero points"), ("d.bias", "int32 per tensor with zero points")]),
    ("dynamic", &[("a.weight", "uint8 per tensor with zero points")]),
    ("dynamic-channel", &[("a.weight", "int8 per channel with zero points")]),
    ("nbits-4", &[("a.weight", "int4 in blocks of 64 with zero points")]),
    ("nbits-8", &[("b.weight", "int8 in blocks of 64 with zero points")]),
    ("nbits-zeros", &[("w", "int4 in blocks of 16 with zero points")]),
    ("blocks-4", &[("a.weight", "uint4 in blocks of 64 with zero points")]),
    ("blocks-4-symmetric", &[("b.weight", "int4 in blocks of 64")]),
    (
        "forms",
        &[
            ("A", "uint4 in blocks of 4 with zero points"),
            ("B", "int4 in blocks of 3"),
            ("C", "fp8 per tensor"),
            ("D", "int32 per tensor"),
            ("E", "int8 per column"),
        ],
    ),
];

#[test]
fn every_form_has_the_numbers_that_onnxruntime_makes_of_it() {
    let top = fixture("onnx/quantized");
    let mut expected: BTreeMap<String, BTreeMap<String, Vec<f32>>> = BTreeMap::new();
    for (name, (dtype, shape, bytes)) in tensors(&top.join("expected.safetensors")) {
        let (graph, weight) = name.split_once('/').unwrap();
        let mut numbers = vec![0f32; shape.iter().product()];
        f32::decode(Dtype::from_name(&dtype).unwrap(), &bytes, &mut numbers);
        expected.entry(graph.to_owned()).or_default().insert(weight.to_owned(), numbers);
    }
    assert!(expected.keys().eq({
        let mut names: Vec<&str> = FORMS.iter().map(|(name, _)| *name).collect();
        names.sort_unstable();
        names
    }));
    let out = tempfile::tempdir().unwrap();
    for (name, forms) in FORMS {
        let graph = top.join(format!("{name}.onnx"));
        let shown = compress(args!["inspect", &graph, "--json"]).exits(0).json();
        let encoding = |weight: &str| {
            let weights = shown["tensors"].as_array().unwrap();
            weights.iter().find(|found| found["name"] == *weight).map(|found| found["encoding"].clone())
        };
        for (weight, form) in *forms {
            assert_eq!(encoding(weight), Some((*form).into()), "{name}: {weight}");
        }
        assert!(shown["quantized"].is_string(), "{name}");
        for access in [formats::Access::Mapped, formats::Access::Read] {
            let found = matrices_of(&graph, access, |_| true);
            for (weight, numbers) in &expected[*name] {
                let most = numbers.iter().fold(0f32, |most, x| most.max(x.abs()));
                // The unit in the last place of f16, which one of them is made in.
                let unit = if (*name, weight.as_str()) == ("forms", "E") { most / 1024.0 } else { most * 1e-6 };
                assert_eq!(found[weight].len(), numbers.len(), "{name}: {weight}");
                let worst = found[weight].iter().zip(numbers).fold(0f32, |worst, (a, b)| worst.max((a - b).abs()));
                assert!(worst <= unit, "{name}: {weight}: off by {worst} of {most}");
            }
        }
        compress(args!["check", &graph, &graph, "-q"]).exits(0);
        compress(args![&graph, "--int8", "--dry-run"]).exits(3).says(&["quantized"]);

        // Copied, the codes are the same bytes; in another container they are refused, or unpacked.
        let copy = out.path().join(format!("{name}.onnx"));
        compress(args!["convert", &graph, &copy, "-q"]).exits(0);
        assert_eq!(
            crate::onnx::all(&copy, formats::Access::Read),
            crate::onnx::all(&graph, formats::Access::Read),
            "{name}"
        );
        let plain = out.path().join(format!("{name}.safetensors"));
        compress(args!["convert", &graph, &plain]).exits(2).says(&["--dequantize"]);
        compress(args!["convert", &graph, &plain, "--dequantize", "-q"]).exits(0);
        let written = tensors(&plain);
        for (weight, numbers) in &expected[*name] {
            let (dtype, _, bytes) = &written[weight];
            let mut found = vec![0f32; numbers.len()];
            f32::decode(Dtype::from_name(dtype).unwrap(), bytes, &mut found);
            let most = numbers.iter().fold(0f32, |most, x| most.max(x.abs()));
            assert!(found.iter().zip(numbers).all(|(a, b)| (a - b).abs() <= most * 1e-6), "{name}: {weight}");
        }
    }
}

#[test]
fn codes_in_a_graph_become_floats_that_can_be_compressed_again() {
    let out = tempfile::tempdir().unwrap();
    for (name, _) in FORMS {
        let graph = fixture("onnx/quantized").join(format!("{name}.onnx"));
        let path = |what: &str| out.path().join(format!("{name}-{what}.onnx"));
        let unpacked = compress(args!["convert", &graph, path("plain"), "--dequantize", "-q"]);
        if name.starts_with("dynamic") {
            unpacked.exits(3).says(&["a.weight", "integers", "safetensors"]);
            continue;
        }
        unpacked.exits(0);
        let shown = compress(args!["inspect", path("plain"), "--json"]).exits(0).json();
        assert!(shown["quantized"].is_null(), "{name}: {shown}");
        compress(args!["check", &graph, path("plain"), "-q"]).exits(0);
        // In another float than the graph computes in, too.
        compress(args!["convert", &graph, path("half"), "--dequantize", "--dtype", "f16", "-q"]).exits(0);
        let half = compress(args!["inspect", path("half"), "--json"]).exits(0).json();
        let weights = half["tensors"].as_array().unwrap();
        assert!(weights.iter().filter(|weight| weight["role"] == "linear").all(|weight| weight["encoding"] == "F16"));
        let again = compress(args![path("plain"), "--int8", "-q", "--json", "-o", path("again")]).exits(0).json();
        assert!(again["check"]["passed"] == true, "{name}: {again}");
    }
    // Ours, from a graph in f16 whose version has no scales of f16: they are converted before they are taken.
    for opset in ["13", "19"] {
        let path = |what: &str| out.path().join(format!("half-{opset}-{what}.onnx"));
        let original = fixture("onnx").join(format!("half-{opset}.onnx"));
        compress(args![&original, "--int8", "-q", "-o", path("int8")]).exits(0);
        let shown = compress(args!["inspect", path("int8"), "--json"]).exits(0).json();
        let named =
            |name: &str| shown["tensors"].as_array().unwrap().iter().find(|found| found["name"] == *name).cloned();
        assert_eq!(named("a").unwrap()["encoding"], "int8 per row", "{opset}: {shown}");
        compress(args!["check", &original, path("int8"), "-q"]).exits(0);
        compress(args!["convert", path("int8"), path("plain"), "--dequantize", "-q"]).exits(0);
        compress(args!["check", &original, path("plain"), "-q"]).exits(0);
    }
}
