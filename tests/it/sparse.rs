//! Pruned weights stored as a bit for each number and those that are not zero: smaller, and read by every command.

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::Dtype;
use serde_json::{Value, json};

use crate::args;
use crate::support::{Run, compress, fixture, tensors};

fn prune(out: &Path, flags: &[&str]) -> Run {
    let fixed = args![fixture("kjv-nano"), "--accept", "--json", "-q", "--check-tokens", "256", "-o", out];
    compress(fixed.into_iter().chain(flags.iter().map(Into::into)))
}

/// The tensors of a packed file, by the rules of docs/formats.md.
fn unpacked(path: &Path) -> BTreeMap<String, (String, Vec<usize>, Vec<u8>)> {
    let all = tensors(path);
    let mut dense = BTreeMap::new();
    for (name, (dtype, shape, bytes)) in &all {
        let Some(base) = name.strip_suffix(".sparse.mask") else {
            if !name.contains(".sparse.") {
                dense.insert(name.clone(), (dtype.clone(), shape.clone(), bytes.clone()));
            }
            continue;
        };
        let (kind, _, values) = &all[&format!("{base}.sparse.values")];
        let shape: Vec<usize> = all[&format!("{base}.sparse.shape")]
            .2
            .as_chunks::<8>()
            .0
            .iter()
            .map(|b| i64::from_le_bytes(*b) as usize)
            .collect();
        let elements: usize = shape.iter().product();
        let width = match kind.as_str() {
            "F32" => 4,
            "F16" => 2,
            _ => 1,
        };
        let mut next = values.chunks(width);
        let mut out = Vec::new();
        for i in 0..elements {
            match bytes[i / 8] >> (i % 8) & 1 {
                1 => out.extend_from_slice(next.next().unwrap()),
                _ => out.extend(std::iter::repeat_n(0, width)),
            }
        }
        assert!(next.next().is_none() && bytes.len() == elements.div_ceil(8), "{name}");
        dense.insert(base.to_owned(), (kind.clone(), shape, out));
    }
    dense
}

#[test]
fn what_is_packed_is_smaller_and_every_command_reads_it() {
    let out = tempfile::tempdir().unwrap();
    let at = |name: &str| out.path().join(name);
    for (name, flags) in [
        ("f32", &["--prune", "0.7"][..]),
        ("f16", &["--prune", "2:4", "--f16"]),
        ("int8", &["--prune", "0.7", "--int8"]),
    ] {
        let (dense, sparse) = (at(&format!("{name}-dense")), at(&format!("{name}-sparse")));
        let whole = prune(&dense, flags).exits(0).json();
        let report = prune(&sparse, &[flags, &["--sparse"]].concat()).exits(0).json();
        let (small, large) = (sparse.join("model.safetensors"), dense.join("model.safetensors"));
        assert!(unpacked(&small) == tensors(&large), "{name}");
        let size = |path: &Path| std::fs::metadata(path).unwrap().len();
        assert_eq!(report["output"]["bytes"], json!(size(&small)));
        assert!(size(&small) < size(&large), "{name}");
        assert_eq!(report["clients"], json!(["modelpress"]));
        assert_eq!(report["check"], whole["check"], "{name}");
        let notes = |report: &Value| report["notes"].to_string();
        assert!(
            notes(&report).contains("dense. Only this program") && !notes(&report).contains("gain nothing"),
            "{report}"
        );
        assert!(notes(&whole).contains("gain nothing") && notes(&whole).contains("--sparse"), "{whole}");
        // Every command; `compress` further on, where the weights are no integers yet.
        let found = compress(args!["inspect", &sparse, "--json"]).exits(0).json();
        assert_eq!((&found["family"], &found["bytes"]), (&json!("llama"), &json!(size(&small))));
        compress(args!["check", &dense, &sparse, "-q", "--max-kl", "1e-9", "--check-tokens", "128"]).exits(0);
        let text =
            |model: &Path| compress(args!["run", model, "--prompt", "In the", "--max-tokens", "8"]).exits(0).stdout;
        assert_eq!(text(&dense), text(&sparse));
        let back = at(&format!("{name}-back"));
        compress(args!["convert", &sparse, &back, "-q"]).exits(0);
        assert!(tensors(&back.join("model.safetensors")) == tensors(&large), "{name}");
        compress(args!["check", &sparse, &back, "-q", "--no-mmap", "--check-tokens", "64"]).exits(0);
        if name != "int8" {
            compress(args![
                &sparse,
                "--int8",
                "-q",
                "--accept",
                "--check-tokens",
                "64",
                "-o",
                at(&format!("{name}-more"))
            ])
            .exits(0);
        }
        assert!(!sparse.join("model.safetensors.dense").exists());
    }
    let left: Vec<_> = std::fs::read_dir(out.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().contains("partial")), "{left:?}");
    prune(&at("x.gguf"), &["--prune", "0.5", "--scheme", "q8_0", "--sparse"])
        .exits(2)
        .says(&["--sparse is for safetensors"]);
    let planned = prune(&at("y"), &["--prune", "0.5", "--sparse", "--dry-run"]).exits(0).json();
    assert!(planned["notes"].to_string().contains("size is that of a dense file"), "{planned}");
}

#[test]
fn masks_that_lie_are_refused_by_name() {
    let out = tempfile::tempdir().unwrap();
    let path = out.path().join("x.safetensors");
    let write = |mask: &[u8], values: usize, shape: &[i64], more: Option<&str>| {
        let of = |dtype, shape: Vec<usize>, bytes: &'static [u8]| {
            safetensors::tensor::TensorView::new(dtype, shape, bytes).unwrap()
        };
        let leak = |bytes: Vec<u8>| -> &'static [u8] { bytes.leak() };
        let shape: Vec<u8> = shape.iter().flat_map(|d| d.to_le_bytes()).collect();
        let dims = shape.len() / 8;
        let mut all = vec![
            ("a.sparse.mask".to_owned(), of(Dtype::U8, vec![mask.len()], leak(mask.to_vec()))),
            ("a.sparse.shape".to_owned(), of(Dtype::I64, vec![dims], leak(shape))),
            ("a.sparse.values".to_owned(), of(Dtype::F32, vec![values], leak(vec![0; 4 * values]))),
        ];
        all.extend(more.map(|name| (name.to_owned(), of(Dtype::F32, vec![1], leak(vec![0; 4])))));
        let metadata = [("modelpress.sparse".to_owned(), "1".to_owned())].into();
        std::fs::write(&path, safetensors::serialize(all, Some(metadata)).unwrap()).unwrap();
        compress(args!["inspect", &path])
    };
    write(&[0b0110, 0], 2, &[3, 4], None).exits(0);
    write(&[0b0110, 0b1_0000], 3, &[3, 4], None).exits(3).says(&["`a`", "a mask that does not fit"]);
    write(&[0b0110, 0], 3, &[3, 4], None).exits(3).says(&["`a`", "a bit for each value"]);
    write(&[0b0111, 0], 2, &[3, 4], None).exits(3).says(&["`a`", "a mask that does not fit"]);
    write(&[0b0110], 2, &[3, 4], None).exits(3).says(&["`a`", "a mask of U8 [1]", "U8 [2]"]);
    write(&[0b0110, 0], 2, &[1 << 62, 1 << 62], None).exits(3).says(&["`a`", "as many as can be counted"]);
    write(&[0b0110, 0], 2, &[-1, 12], None).exits(3).says(&["`a`"]);
    write(&[0b0110, 0], 2, &[3, 4], Some("a")).exits(3).says(&["`a`", "the tensor twice"]);
    write(&[0b0110, 0], 2, &[1; 20], None).exits(3).says(&["a.sparse.shape", "16 dimensions"]);
    let bytes = std::fs::read(&path).unwrap();
    let name = b"\"a.sparse.values\":";
    let at = bytes.windows(name.len()).position(|window| window == name).unwrap();
    let mut renamed = bytes;
    renamed[at + 10] = b'w';
    std::fs::write(&path, renamed).unwrap();
    compress(args!["inspect", &path]).exits(3).says(&["a.sparse.values"]);
}
