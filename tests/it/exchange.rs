//! What numpy and torch write is what safetensors holds of it; what we write, and what must be refused.
//!
//! That numpy and torch read what we write is held by `tests/exchange.py`, which needs both.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use formats::{Access, Dtype, Format, Limits, Source};
use modelpress::encoding::plain::Real;
use modelpress::loader::{Checkpoint, Fetch, Options, Piece, Scratch};

use crate::args;
use crate::support::{Run, compress, contents, copy_folder, f32s, fixture, program, tensors, write_safetensors};

fn open(path: &Path, access: Access) -> Arc<Source> {
    formats::open(path, access, &Limits::default()).unwrap_or_else(|e| panic!("{e}"))
}

/// Type, shape and bytes of each tensor.
fn all(source: &Source) -> BTreeMap<String, (String, Vec<u64>, Vec<u8>)> {
    let tensors = source.tensors().iter().enumerate().map(|(i, meta)| {
        let mut bytes = vec![0; meta.bytes().unwrap() as usize];
        source.read_at(i, 0, &mut bytes).unwrap();
        assert!(source.bytes(i).is_none_or(|mapped| mapped == bytes));
        (meta.name.clone(), (meta.dtype.to_string(), meta.shape.clone(), bytes))
    });
    tensors.collect()
}

/// Holds that a file has what a safetensors file of the same arrays has, mapped and read.
fn same(file: &str, format: Format, expected: &str) {
    let path = fixture("exchange").join(file);
    let expected = all(&open(&fixture("exchange").join(expected), Access::Mapped));
    for access in [Access::Mapped, Access::Read] {
        let source = open(&path, access);
        assert_eq!(source.format(), format);
        let found = all(&source);
        assert!(found.keys().eq(expected.keys()), "{file}: {:?}", found.keys());
        for (name, expected) in &expected {
            assert!(&found[name] == expected, "{file}: {name}: {:?}, expected {expected:?}", found[name]);
        }
    }
}

#[test]
fn arrays_of_numpy_in_every_type_and_order_are_what_safetensors_holds() {
    for file in ["chain.npz", "chain-deflated.npz", "chain-fortran.npz"] {
        same(file, Format::Npz, "chain.safetensors");
    }
    for file in ["numbers.npz", "numbers-deflated.npz"] {
        same(file, Format::Npz, "numbers.safetensors");
    }
    let array = all(&open(&fixture("exchange/array.npy"), Access::Mapped));
    let chain = all(&open(&fixture("exchange/chain.safetensors"), Access::Mapped));
    assert_eq!(array.into_iter().collect::<Vec<_>>(), [("array".to_owned(), chain["0.weight"].clone())]);
}

#[test]
fn checkpoints_of_torch_in_both_layouts_with_any_strides_are_what_safetensors_holds() {
    let files = ["chain.pt", "chain-legacy.pt", "chain-module.pth", "chain-strided.pt", "chain-strided-legacy.pt"];
    for file in files.into_iter().chain(["chain-rezipped.pt"]) {
        same(file, Format::Pytorch, "chain.safetensors");
    }
    same("nested.pt", Format::Pytorch, "nested.safetensors");
}

#[test]
fn stored_entries_are_mapped_where_they_lie() {
    for (file, mapped) in
        [("chain.npz", true), ("chain.pt", true), ("chain-legacy.pt", true), ("chain-deflated.npz", false)]
    {
        let source = open(&fixture("exchange").join(file), Access::Mapped);
        let inside = |i: usize| source.place(i).end <= source.file_bytes();
        assert!((0..source.tensors().len()).all(|i| inside(i) == mapped), "{file}");
    }
}

#[test]
fn every_command_takes_every_container() {
    let out = tempfile::tempdir().unwrap();
    let expected = out.path().join("expected.safetensors");
    compress(args![fixture("exchange/chain.safetensors"), "--int8", "-q", "-o", &expected]).exits(0);
    for file in
        ["chain.npz", "chain-fortran.npz", "chain.pt", "chain-legacy.pt", "chain-strided.pt", "chain-module.pth"]
    {
        let path = fixture("exchange").join(file);
        let shown = compress(args!["inspect", &path, "--json"]).exits(0).json();
        assert_eq!(shown["family"], "linear-chain", "{file}");
        assert_eq!(shown["parameters"], 16 * 24 + 24 + 24 * 4 + 4, "{file}");
        for no_mmap in [false, true] {
            let ours = out.path().join(format!("{file}-{no_mmap}.safetensors"));
            let flag = if no_mmap { "--no-mmap" } else { "--threads=2" };
            compress(args![&path, "--int8", "-q", flag, "-o", &ours]).exits(0);
            assert_eq!(tensors(&ours), tensors(&expected), "{file}");
        }
        let inputs = out.path().join("inputs.csv");
        std::fs::write(&inputs, format!("{}\n", ["0.5"; 16].join(","))).unwrap();
        let run = |model: &Path| compress(args!["run", model, "--inputs", &inputs, "-q"]).exits(0).stdout;
        assert_eq!(run(&path), run(&fixture("exchange/chain.safetensors")), "{file}");
        let checked = compress(args!["check", &path, &expected, "--json"]).exits(0).json();
        let wanted =
            compress(args!["check", fixture("exchange/chain.safetensors"), &expected, "--json"]).exits(0).json();
        assert!(checked["mse"].is_number() && checked["mse"] == wanted["mse"], "{file}: {checked}");
    }
}

#[test]
fn a_folder_with_shards_of_torch_becomes_one_of_safetensors() {
    let out = tempfile::tempdir().unwrap();
    let model = out.path().join("llama");
    copy_folder(&fixture("exchange/llama"), &model);
    let ours = out.path().join("ours");
    compress(args![&model, "--int8", "-q", "-o", &ours]).exits(0);
    let names: Vec<String> = contents(&ours).into_keys().collect();
    assert_eq!(
        names,
        [
            "config.json",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json"
        ]
    );
    // The same weights from one safetensors file.
    let single = out.path().join("single");
    std::fs::create_dir(&single).unwrap();
    let joined = single.join("model.safetensors");
    compress(args![
        model.join("pytorch_model.bin.index.json"),
        "--f16",
        "-q",
        "--no-check",
        "-o",
        out.path().join("f16")
    ])
    .exits(0);
    let shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
    let all: Vec<_> = shards.iter().flat_map(|shard| tensors(&out.path().join("f16").join(shard))).collect();
    let golden = tensors(&fixture("golden/llama/model.safetensors"));
    assert_eq!(all.len(), golden.len());
    assert!(!joined.exists());
    let int8: BTreeMap<_, _> = shards.iter().flat_map(|shard| tensors(&ours.join(shard))).collect();
    assert!(int8.contains_key("model.layers.1.mlp.up_proj.weight_scale"));
}

#[test]
fn conversion_keeps_every_number_and_goes_both_ways() {
    let out = tempfile::tempdir().unwrap();
    let convert = |from: &Path, to: &str| {
        let to = out.path().join(to);
        compress(args!["convert", from, &to, "-q"]).exits(0);
        to
    };
    let chain = fixture("exchange/chain.safetensors");
    let expected = all(&open(&chain, Access::Mapped));
    let npz = convert(&chain, "a.npz");
    let torch = convert(&npz, "b.pt");
    let back = convert(&torch, "c.safetensors");
    for path in [&npz, &torch, &back] {
        assert_eq!(all(&open(path, Access::Mapped)), expected, "{}", path.display());
    }
    // A folder of shards, too.
    let bin = convert(&fixture("exchange/llama"), "llama.bin");
    let shards = ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"];
    let shards = shards.map(|shard| all(&open(&fixture("exchange/llama").join(shard), Access::Mapped)));
    let expected: BTreeMap<_, _> = shards.into_iter().flatten().collect();
    assert_eq!(all(&open(&bin, Access::Mapped)), expected);
    // What a form needs beside codes and scales is not written: it would be a file that nobody reads.
    let nf4 = fixture("exchange/quantized/bnb-nf4");
    compress(args!["convert", &nf4, out.path().join("nf4.npz")]).exits(2).says(&["bitsandbytes", "--dequantize"]);
}

#[test]
fn what_is_written_as_npz_and_torch_reads_back_the_same() {
    let out = tempfile::tempdir().unwrap();
    let chain = fixture("exchange/chain.safetensors");
    for (name, format) in
        [("x.npz", Format::Npz), ("x.pt", Format::Pytorch), ("x.pth", Format::Pytorch), ("x.bin", Format::Pytorch)]
    {
        for scheme in ["--int8", "--f16", "--bf16"] {
            let (theirs, ours) = (out.path().join("x.safetensors"), out.path().join(name));
            for path in [&theirs, &ours] {
                compress(args![&chain, scheme, "-q", "--force", "-o", path]).exits(0);
            }
            let source = open(&ours, Access::Mapped);
            assert_eq!(source.format(), format);
            assert_eq!(all(&source), all(&open(&theirs, Access::Mapped)), "{name} {scheme}");
            for i in 0..source.tensors().len() {
                assert_eq!(source.place(i).start % 64, 0, "{name}: aligned");
            }
            let zip = zip::ZipArchive::new(std::fs::File::open(&ours).unwrap()).unwrap();
            assert!(zip.len() >= source.tensors().len());
            // Reading an entry to its end compares its checksum.
            let mut zip = zip;
            for i in 0..zip.len() {
                std::io::copy(&mut zip.by_index(i).unwrap(), &mut std::io::sink()).unwrap();
            }
        }
    }
}

/// Runs with at most 100 MiB of memory.
pub fn limited(args: &[std::ffi::OsString]) -> Run {
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", "ulimit -d 102400 && exec \"$@\"", "sh"]).arg(program().get_program()).args(args);
    shell.output().unwrap().into()
}

#[test]
fn hostile_files_are_refused_by_name_in_little_memory() {
    let cases: &[(&str, &[&str])] = &[
        ("calls.pt", &["__builtin__.print"]),
        ("calls-legacy.pt", &["__builtin__.print"]),
        ("module.pt", &["torch.nn.modules.container.Sequential", "state_dict"]),
        ("script.pt", &["TorchScript", "state_dict"]),
        ("recursive.pt", &["nested more than 64 deep"]),
        ("nested.pt", &["nested more than 64 deep"]),
        ("laughs.pt", &["repeat one another"]),
        ("memo.pt", &["without tensors"]),
        ("long-text.pt", &["too much memory"]),
        ("past-end.pt", &["within its storage"]),
        ("strides.pt", &["within its storage"]),
        ("count.pt", &["a storage of 2305843009213693952 elements in 64 bytes"]),
        ("expanded.pt", &["4398046511104 bytes to unpack"]),
        ("missing.pt", &["that the file lacks"]),
        ("bomb.pt", &["160000000 bytes to unpack", "bomb"]),
        ("bomb.npz", &["weight.npy", "160000128 bytes to unpack", "bomb"]),
        ("false-shape.npz", &["weight", "99999999"]),
        ("objects.npz", &["weight", "Python objects"]),
        ("records.npz", &["weight", "records"]),
        ("texts.npz", &["weight", "<U1"]),
        ("overlap.npz", &["0.weight.npy", "2.weight.npy", "same bytes"]),
        ("other.zip", &["readme.txt"]),
    ];
    let folder = fixture("exchange/hostile");
    let names: Vec<&str> = cases.iter().map(|(name, _)| *name).collect();
    assert!(contents(&folder).keys().all(|name| names.contains(&name.as_str())));
    for (name, words) in cases {
        for command in [&["inspect"][..], &["--int8", "--dry-run"]] {
            let mut args: Vec<std::ffi::OsString> = command.iter().map(std::ffi::OsString::from).collect();
            args.insert(command.len().min(1), folder.join(name).into());
            let run = limited(&args);
            assert_eq!(run.code, 3, "{name}: {} {}", run.stdout, run.stderr);
            run.says(words).says(&["expected", name]);
        }
    }
}

/// The numbers of every matrix of a model, by name.
fn matrices(path: &Path, access: Access) -> BTreeMap<String, Vec<f32>> {
    matrices_of(path, access, |rank| rank == 2)
}

/// The numbers of a model's weights of these ranks, by name.
pub fn matrices_of(path: &Path, access: Access, wanted: fn(usize) -> bool) -> BTreeMap<String, Vec<f32>> {
    let options = Options { access, ..Options::default() };
    let model = Checkpoint::open(path, &options).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let matrices =
        model.weights().iter().enumerate().filter(|(_, weight)| wanted(weight.shape.len()) && weight.is_numeric());
    matrices
        .map(|(i, weight)| {
            let mut numbers = vec![0f32; weight.elements() as usize];
            let whole = model.view(&[Piece::whole(i, weight)], Fetch::Bands).unwrap();
            // In two parts, which need not begin where groups do.
            let rows = 5.min(weight.rows as usize);
            let (first, second) = numbers.split_at_mut(rows * weight.cols as usize);
            whole.try_read(0, first, &mut Scratch::default()).unwrap();
            whole.try_read(rows, second, &mut Scratch::default()).unwrap();
            (weight.name.clone(), numbers)
        })
        .collect()
}

#[test]
fn what_others_quantized_has_the_numbers_that_their_own_code_makes_of_it() {
    let forms = [
        ("awq", "AWQ int4, groups of 16"),
        ("bnb-fp4", "bitsandbytes 4-bit, blocks of 64"),
        ("bnb-int8", "bitsandbytes int8"),
        ("bnb-nf4", "bitsandbytes 4-bit, blocks of 64"),
        ("bnb-nf4-double", "bitsandbytes 4-bit, blocks of 64, double quantization"),
        ("ct-fp8-block", "fp8 per 128×128"),
        ("ct-fp8-tensor", "fp8 per tensor"),
        ("ct-int2-zeros", "int2 in groups of 16 with zero points"),
        ("ct-int3-zeros", "int3 in groups of 16 with zero points"),
        ("ct-int4-order", "int4 in groups of 16, act-order"),
        ("ct-int4-zeros", "int4 in groups of 16 with zero points"),
        ("ct-int8-rows-zeros", "int8 per row with zero points"),
        ("ct-int8-tensor", "int8 per tensor"),
        ("ct-int8-zeros", "int8 in groups of 16 with zero points"),
        ("fp8-scale-inv", "fp8 per 128×128"),
        ("gptq-int2", "GPTQ int2, groups of 16"),
        ("gptq-int3", "GPTQ int3, groups of 16"),
        ("gptq-int4", "GPTQ int4, groups of 16"),
        ("gptq-int4-order", "GPTQ int4, groups of 16, act-order"),
        ("gptq-int8", "GPTQ int8, groups of 16"),
        ("gptq-v2-int4-order", "GPTQ int4, groups of 16, act-order"),
        ("mlx-int3", "MLX int3, groups of 32"),
        ("mlx-int4", "MLX int4, groups of 32"),
        ("mlx-int8", "MLX int8, groups of 32"),
        ("mlx-mixed", "MLX int4, groups of 32"),
    ];
    let top = fixture("exchange/quantized");
    assert_eq!(std::fs::read_dir(&top).unwrap().count(), forms.len());
    let out = tempfile::tempdir().unwrap();
    for (form, encoding) in forms {
        let folder = top.join(form);
        let shown = compress(args!["inspect", &folder, "--json"]).exits(0).json();
        assert_eq!(shown["family"], "linear-chain", "{form}: {shown}");
        assert_eq!(shown["quantized"], encoding, "{form}");

        let expected = all(&open(&folder.join("expected.safetensors"), Access::Mapped));
        for access in [Access::Mapped, Access::Read] {
            let found = matrices(&folder, access);
            assert!(found.keys().eq(expected.keys()), "{form}: {:?}", found.keys());
            for (name, (dtype, shape, bytes)) in &expected {
                let dtype = Dtype::from_name(dtype).unwrap();
                let mut numbers = vec![0f32; shape.iter().product::<u64>() as usize];
                f32::decode(dtype, bytes, &mut numbers);
                // The package's own arithmetic rounds in its own type.
                let unit = match dtype {
                    Dtype::BF16 => 1.0 / 256.0,
                    Dtype::F16 => 1.0 / 2048.0,
                    _ => 1e-6,
                };
                let most = numbers.iter().fold(0f32, |most, x| most.max(x.abs()));
                let worst = numbers.iter().zip(&found[name]).fold(0f32, |worst, (a, b)| worst.max((a - b).abs()));
                assert!(worst <= unit * most, "{form}: {name}: off by {worst} of {most}");
            }
        }

        // The model with these numbers in plain f32 is the same model.
        let plain = out.path().join(format!("{form}.safetensors"));
        let stored = all(&open(&folder.join("model.safetensors"), Access::Mapped));
        let numbers = matrices(&folder, Access::Mapped);
        let mut tensors: Vec<_> = numbers
            .iter()
            .map(|(name, numbers)| {
                let shape = expected[name].1.iter().map(|&d| d as usize).collect();
                (name.as_str(), safetensors::Dtype::F32, shape, f32s(numbers.iter().copied()))
            })
            .collect();
        let biases = stored.iter().filter(|(name, _)| name.ends_with(".bias"));
        tensors.extend(biases.map(|(name, (_, shape, bytes))| {
            (name.as_str(), safetensors::Dtype::F32, shape.iter().map(|&d| d as usize).collect(), bytes.clone())
        }));
        write_safetensors(&plain, &tensors);
        let features = numbers["0.weight"].len() / expected["0.weight"].1[0] as usize;
        let inputs = out.path().join("inputs.csv");
        std::fs::write(&inputs, format!("{}\n", vec!["0.25"; features].join(","))).unwrap();
        let run = |model: &Path| compress(args!["run", model, "--inputs", &inputs, "-q"]).exits(0).stdout;
        let numbers = |text: String| -> Vec<f32> {
            text.split(|c: char| c == ',' || c.is_whitespace()).filter_map(|x| x.parse().ok()).collect()
        };
        let (theirs, ours) = (numbers(run(&folder)), numbers(run(&plain)));
        assert!(!ours.is_empty() && ours.len() == theirs.len(), "{form}");
        assert!(ours.iter().zip(&theirs).all(|(a, b)| (a - b).abs() < 1e-4), "{form}: {ours:?} {theirs:?}");
        let checked = compress(args!["check", &plain, &folder, "--json"]).exits(0).json();
        assert!(checked["mse"].as_f64().unwrap() < 1e-8, "{form}: {checked}");
        compress(args![&folder, "--int8", "--dry-run"]).exits(3).says(&["quantized"]);

        // Unpacked, it is what its own code makes of it, in the float that this makes.
        let unpacked = out.path().join(format!("{form}-unpacked.safetensors"));
        compress(args!["convert", &folder, &unpacked, "--dequantize", "-q"]).exits(0);
        let (unpacked, model) = (matrices(&unpacked, Access::Mapped), matrices(&folder, Access::Mapped));
        for (name, numbers) in &model {
            let most = numbers.iter().fold(0f32, |most, x| most.max(x.abs()));
            let same = numbers.iter().zip(&unpacked[name]).all(|(a, b)| (a - b).abs() <= most / 256.0);
            assert!(same, "{form}: {name}");
        }
    }
}

#[test]
fn a_language_model_in_torch_runs_as_it_does_in_safetensors() {
    let out = tempfile::tempdir().unwrap();
    let [safe, torch] = ["safe", "torch"].map(|name| out.path().join(name));
    compress(args![fixture("kjv-nano"), "--f16", "-q", "--no-check", "-o", &safe]).exits(0);
    copy_folder(&safe, &torch);
    std::fs::remove_file(torch.join("model.safetensors")).unwrap();
    compress(args![fixture("kjv-nano"), "--f16", "-q", "--no-check", "-o", torch.join("pytorch_model.bin")]).exits(0);
    let run =
        |model: &Path| compress(args!["run", model, "--prompt", "In the", "--max-tokens", "12", "-q"]).exits(0).stdout;
    assert!(run(&safe).len() > 12 && run(&safe) == run(&torch));
    let check = |model: &Path| {
        compress(args!["check", fixture("kjv-nano"), model, "--check-tokens", "300", "--json"]).exits(0).json()
    };
    assert_eq!(check(&safe)["kl"]["mean"], check(&torch)["kl"]["mean"]);
    assert!(check(&torch)["kl"]["mean"].is_number());
}
