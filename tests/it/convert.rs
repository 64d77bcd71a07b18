//! `compress convert`: other containers and dialects, the same numbers.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use formats::{Access, Dtype, Limits, TensorBytes};
use modelpress::check::values;
use modelpress::job::Job;
use modelpress::loader::{Checkpoint, Options};
use modelpress::recipe::{Plan, Recipe, Target};
use modelpress::{family::Role, pipeline};
use serde_json::{Value, json};

use crate::args;
use crate::support::{Run, compress, contents, copy_folder, fixture, shared, tensors, write_safetensors};

fn convert(input: impl AsRef<Path>, output: impl AsRef<Path>, flags: &[&str]) -> Run {
    let args = args!["convert", input.as_ref(), output.as_ref()];
    compress(args.into_iter().chain(flags.iter().map(Into::into)))
}

fn json_of(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// The tensors of a GGUF file: dtype, shape, bytes.
fn blocks(path: &Path) -> BTreeMap<String, (Dtype, Vec<u64>, Vec<u8>)> {
    let source = formats::open(path, Access::Mapped, &Limits::default()).unwrap();
    let all = source.tensors().iter().enumerate();
    all.map(|(i, t)| (t.name.clone(), (t.dtype, t.shape.clone(), TensorBytes::load(&source, i).unwrap().to_vec())))
        .collect()
}

fn metadata(path: &Path) -> formats::gguf::Metadata {
    match formats::open(path, Access::Mapped, &Limits::default()).unwrap().payload() {
        formats::Payload::Gguf(metadata) => metadata.clone(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_model_returns_from_gguf_as_it_went() {
    let out = tempfile::tempdir().unwrap();
    let mut models = vec![fixture("kjv-nano")];
    let wide = ["gemma3", "gpt2", "llama3-rope", "mistral", "mixtral", "phi3", "qwen2", "qwen3", "qwen3-moe"];
    models.extend(wide.iter().filter_map(|name| shared(&format!("golden-wide/{name}"))));
    for model in models {
        let (gguf, back) = (out.path().join("m.gguf"), out.path().join("back"));
        let report = convert(&model, &gguf, &["--json", "--force"]).exits(0).json();
        assert_eq!((&report["check"]["kind"], &report["check"]["passed"]), (&json!("values"), &json!(true)));
        let told = convert(&gguf, &back, &["--force"]).exits(0).stdout;
        assert!(!told.contains("tokenizer.ggml"), "{told}");
        let name = model.display();
        let (found, expected) = (tensors(&back.join("model.safetensors")), tensors(&model.join("model.safetensors")));
        assert!(found.keys().eq(expected.keys()), "{name}");
        for (tensor, expected) in &expected {
            let found = &found[tensor];
            if model.ends_with("gemma3") && tensor.contains("norm") {
                assert_eq!((&found.0, &found.1), (&expected.0, &expected.1), "{name}: {tensor}");
                close(&found.0, &found.2, &expected.2, tensor);
            } else {
                assert!(found == expected, "{name}: {tensor}");
            }
        }
        assert_eq!(json_of(&back.join("config.json")), json_of(&model.join("config.json")), "{name}");
        for file in ["generation_config.json", "tokenizer_config.json"] {
            if model.join(file).exists() && back.join(file).exists() {
                let read = |folder: &Path| std::fs::read_to_string(folder.join(file)).unwrap();
                assert_eq!(read(&back), read(&model), "{name}");
            }
        }
    }
}

/// Every family that llama.cpp converted: vectors are f32 there, since llama.cpp wants them so; all else is the original's.
#[test]
fn what_llama_cpp_converted_becomes_a_folder() {
    let Some(folder) = shared("golden-wide") else {
        println!("skipped: ../shared/golden-wide is not there");
        return;
    };
    let mut seen = 0;
    for family in ["gemma3", "gpt2", "llama3-rope", "mistral", "mixtral", "qwen3", "qwen3-moe"] {
        let out = tempfile::tempdir().unwrap();
        let original = tensors(&folder.join(family).join("model.safetensors"));
        for flags in [&[][..], &["--dtype", "f16"]] {
            let back = out.path().join("back");
            let report =
                convert(folder.join(family).join("reference.gguf"), &back, &[flags, &["--json", "--force"]].concat());
            let report = report.exits(0).json();
            assert_eq!(report["check"]["passed"], true);
            let found = tensors(&back.join("model.safetensors"));
            assert!(found.keys().eq(original.keys()), "{family}: {:?}", found.keys());
            for (name, (dtype, shape, bytes)) in &original {
                let (found_dtype, found_shape, found_bytes) = &found[name];
                assert_eq!(found_shape, shape, "{family}: {name}");
                let shifted = family == "gemma3" && name.contains("norm");
                match (shape.len() > 1 && found_dtype == dtype, shifted) {
                    (true, _) => assert!(found_bytes == bytes, "{family}: {name}"),
                    (false, false) => assert!(half_of(found_dtype, found_bytes) == *bytes, "{family}: {name}"),
                    (false, true) => close(found_dtype, found_bytes, bytes, name),
                }
                seen += 1;
            }
        }
    }
    assert!(seen > 100, "{seen}");
}

fn singles(dtype: &str, bytes: &[u8]) -> Vec<f32> {
    match dtype {
        "F32" => bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        "F16" => bytes.as_chunks::<2>().0.iter().map(|b| half::f16::from_le_bytes(*b).to_f32()).collect(),
        other => panic!("{other}"),
    }
}

fn half_of(dtype: &str, bytes: &[u8]) -> Vec<u8> {
    singles(dtype, bytes).into_iter().flat_map(|x| half::f16::from_f32(x).to_le_bytes()).collect()
}

/// gemma's norms: the converter stored 1 + w, rounded to f16, so that w returns to one unit in the last place of that.
fn close(dtype: &str, found: &[u8], original: &[u8], name: &str) {
    for (a, b) in singles(dtype, found).into_iter().zip(singles("F16", original)) {
        let unit = 2f32.powi((1.0 + b).abs().log2().floor() as i32 - 10);
        assert!((a - b).abs() <= unit, "{name}: {a} {b}");
    }
}

#[test]
fn shards_are_cut_and_joined() {
    let out = tempfile::tempdir().unwrap();
    let (cut, joined, file) = (out.path().join("cut"), out.path().join("joined"), out.path().join("one.safetensors"));
    let report = convert(fixture("kjv-nano"), &cut, &["--shard-size", "2MB", "--json"]).exits(0).json();
    let original = tensors(&fixture("kjv-nano/model.safetensors"));
    let index = json_of(&cut.join("model.safetensors.index.json"));
    let map = index["weight_map"].as_object().unwrap();
    assert!(map.keys().eq(original.keys()));
    let shards: std::collections::BTreeSet<&str> = map.values().map(|shard| shard.as_str().unwrap()).collect();
    let count = shards.len();
    assert!(count >= 4 && report["check"]["passed"] == true, "{report}");
    assert_eq!(*shards.first().unwrap(), format!("model-00001-of-{count:05}.safetensors"));
    let mut total = 0;
    for shard in &shards {
        let here = tensors(&cut.join(shard));
        let size: usize = here.values().map(|tensor| tensor.2.len()).sum();
        assert!(size <= 2_000_000 || here.len() == 1, "{shard}: {size}");
        assert!(here.iter().all(|(name, tensor)| original[name] == *tensor && map[name] == *shard));
        total += size;
    }
    assert_eq!(index["metadata"]["total_size"], total);
    for name in ["config.json", "tokenizer.json", "generation_config.json", "tokenizer_config.json"] {
        assert!(cut.join(name).exists(), "{name}");
    }
    // Shards stay shards unless one file holds them all.
    convert(&cut, &joined, &["-q"]).exits(0);
    assert_eq!(std::fs::read_dir(&joined).unwrap().count(), std::fs::read_dir(&cut).unwrap().count());
    convert(&cut, &joined, &["-q", "--shard-size", "1GB", "--force"]).exits(0);
    assert!(!joined.join("model.safetensors.index.json").exists());
    assert!(tensors(&joined.join("model.safetensors")) == original);
    convert(cut.join("model.safetensors.index.json"), &file, &["-q"]).exits(0);
    assert!(tensors(&file) == original);
    // One file and what lies beside it become a folder.
    std::fs::copy(cut.join("config.json"), out.path().join("config.json")).unwrap();
    std::fs::copy(cut.join("tokenizer.json"), out.path().join("tokenizer.json")).unwrap();
    std::fs::write(out.path().join("letter.txt"), "dear").unwrap();
    convert(&file, &joined, &["-q", "--force"]).exits(0);
    let names: Vec<String> = contents(&joined).into_keys().collect();
    assert_eq!(names, ["config.json", "model.safetensors", "tokenizer.json"]);
}

#[test]
fn encodings_are_kept_or_unpacked_but_never_changed_in_silence() {
    let out = tempfile::tempdir().unwrap();
    let written = tempfile::tempdir().unwrap();
    let at = |name: &str| out.path().join(name);
    for scheme in ["w8a8", "w4a16", "w8a16", "fp8"] {
        // What the compressed-tensors package wrote, or what equals it (`int4_w8a16_and_fp8_are_what_compressed_tensors_writes`).
        let mut folder = fixture("golden-ct/float32").join(scheme);
        if !folder.exists() {
            folder = written.path().join(scheme);
            compress(args![fixture("kjv-nano"), "--scheme", scheme, "-o", &folder, "-q", "--no-check"]).exits(0);
        }
        let (cut, back, plain) = (at("cut"), at("back.safetensors"), at("plain"));
        convert(&folder, &cut, &["-q", "--force", "--shard-size", "1MB"]).exits(0);
        assert_eq!(json_of(&cut.join("config.json")), json_of(&folder.join("config.json")), "{scheme}");
        convert(&cut, &back, &["-q", "--force"]).exits(0);
        assert!(tensors(&back) == tensors(&folder.join("model.safetensors")), "{scheme}");
        // A single file says itself how it is quantized.
        let check = ["check".into(), fixture("kjv-nano").into_os_string(), back.clone().into_os_string()];
        compress(check.into_iter().chain(["--check-tokens", "100", "-q", "--max-kl", "0.1"].map(Into::into))).exits(0);
        let run = convert(&folder, at("x.gguf"), &[]);
        run.exits(2).says(&["GGUF does not hold", "14 × ", "--dequantize"]);
        let report = convert(&folder, &plain, &["--dequantize", "--force", "--json"]).exits(0).json();
        assert_eq!(report["check"]["kind"], "values", "{scheme}: scales are f32, and so are the numbers");
        assert_eq!(json_of(&plain.join("config.json")).get("quantization_config"), None);
        let found = compress(args!["check", &folder, &plain, "--json", "--check-tokens", "100"]).exits(0).json();
        assert!(found["passed"] == true, "{scheme}: {found}");
    }
    let q8 = fixture("golden-ggml/nano-Q8_0-pure.gguf");
    convert(&q8, at("x"), &[]).exits(2).says(&["safetensors does not hold", "× Q8_0", "--dequantize"]);
    convert(&q8, at("y.gguf"), &["-q"]).exits(0);
    assert!(blocks(&at("y.gguf")) == blocks(&q8));
    assert_eq!(metadata(&at("y.gguf")), metadata(&q8));
    let report = convert(&q8, at("f.gguf"), &["--dequantize", "--json"]).exits(0).json();
    assert_eq!(report["check"]["kind"], "language-model", "f16 cannot hold all of them");
    assert_eq!(metadata(&at("f.gguf")).get_u64("general.file_type"), Some(1));
    assert!(
        blocks(&at("f.gguf")).values().all(|(dtype, shape, _)| *dtype == [Dtype::F32, Dtype::F16][shape.len() - 1])
    );
    let run = compress(args![&q8, "--scheme", "q4_0", "-o", at("z.gguf")]);
    run.exits(3).says(&["already quantized", "--dequantize"]);
    let mut names: Vec<_> = std::fs::read_dir(out.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["back.safetensors", "cut", "f.gguf", "plain", "y.gguf"]);
}

#[test]
fn casts_are_exact_or_their_cost_is_told() {
    let out = tempfile::tempdir().unwrap();
    let at = |name: &str| out.path().join(name);
    let report = convert(fixture("kjv-nano"), at("b"), &["--dtype", "bf16", "--json"]).exits(0).json();
    assert_eq!(report["check"]["kind"], "language-model");
    assert!(report["check"]["kl"]["mean"].as_f64().unwrap() > 0.0);
    assert_eq!(json_of(&at("b/config.json"))["dtype"], "bfloat16");
    let report = convert(at("b"), at("f"), &["--dtype", "f32", "--json"]).exits(0).json();
    assert_eq!(report["check"]["kind"], "values");
    let report = convert(at("f"), at("b2"), &["--dtype", "bf16", "--json"]).exits(0).json();
    assert_eq!(report["check"]["kind"], "values", "every number is one of bf16");
    assert!(tensors(&at("b2/model.safetensors")) == tensors(&at("b/model.safetensors")));
    let run = convert(fixture("kjv-nano"), at("c"), &["--dtype", "bf16", "--max-kl", "1e-12"]);
    run.exits(1).says(&["mean KL divergence", "--dtype", "--accept"]);
    assert!(!at("c").exists());
}

#[test]
fn parts_of_a_split_file_are_one_model() {
    let out = tempfile::tempdir().unwrap();
    let whole = fixture("split/tiny.gguf");
    let parts: Vec<PathBuf> = (1..=3).map(|i| fixture(&format!("split/tiny-parts-0000{i}-of-00003.gguf"))).collect();
    let folder = out.path().join("parts");
    std::fs::create_dir(&folder).unwrap();
    for part in &parts {
        std::fs::copy(part, folder.join(part.file_name().unwrap())).unwrap();
    }
    for input in parts.iter().chain([&folder]) {
        let joined = out.path().join("joined.gguf");
        convert(input, &joined, &["-q", "--force"]).exits(0);
        assert!(blocks(&joined) == blocks(&whole), "{}", input.display());
        assert_eq!(metadata(&joined), metadata(&whole));
    }
    let found = compress(args!["inspect", &parts[1], "--json"]).exits(0).json();
    assert_eq!(found["files"].as_array().unwrap().len(), 3);
    assert_eq!(found["family"], "llama");
    assert!(compress(args!["inspect", &folder]).exits(0).stdout.contains("GGUF in 3 files"));
    let check = compress(args!["check", &whole, &folder, "--json"]).exits(0).json();
    assert_eq!(check["kind"], "weights");
    let named = |i: usize| folder.join(parts[i].file_name().unwrap());
    compress(args![named(0), "--scheme", "q8_0", "--json"]).exits(0);
    assert!(folder.join("tiny-parts-q8_0.gguf").exists(), "{:?}", contents(&folder).keys());
    std::fs::remove_file(folder.join("tiny-parts-q8_0.gguf")).unwrap();
    // A part that is a copy of another, by its own word.
    std::fs::copy(named(1), named(2)).unwrap();
    convert(&folder, out.path().join("x.gguf"), &[]).exits(3).says(&["split.no 1", "copy", "00003-of-00003"]);
    // One that belongs to a split into more, and one that lies about how many tensors there are.
    let patched = |key: &str, value: u8| {
        let mut bytes = std::fs::read(&parts[2]).unwrap();
        let at = bytes.windows(key.len()).position(|window| window == key.as_bytes()).unwrap() + key.len() + 4;
        bytes[at] = value;
        std::fs::write(named(2), bytes).unwrap();
    };
    patched("split.count", 5);
    convert(&folder, out.path().join("x.gguf"), &[]).exits(3).says(&["split.count 5", "expected 3"]);
    patched("split.tensors.count", 99);
    convert(&folder, out.path().join("x.gguf"), &[]).exits(3).says(&["split.tensors.count 99", "expected 11"]);
    std::fs::write(named(2), "GGUF").unwrap();
    convert(&folder, out.path().join("x.gguf"), &[]).exits(3).says(&["00003-of-00003"]);
    // A part under a name that hides that it is one.
    let alone = out.path().join("alone.gguf");
    std::fs::copy(&parts[0], &alone).unwrap();
    convert(&alone, out.path().join("x.gguf"), &[]).exits(3).says(&["split.count 3", "all 3 parts"]);
    [1, 2].into_iter().for_each(|i| std::fs::remove_file(named(i)).unwrap());
    for input in [&folder, &named(0)] {
        let run = convert(input, out.path().join("x.gguf"), &[]);
        run.exits(3).says(&["2 parts", "tiny-parts-00002-of-00003.gguf, tiny-parts-00003-of-00003.gguf"]);
    }
    assert!(!out.path().join("x.gguf").exists());
}

#[test]
fn what_is_lost_is_said_before_anything_is_written() {
    let out = tempfile::tempdir().unwrap();
    let at = |name: &str| out.path().join(name);
    let notes = |run: Run| {
        let notes: Vec<String> = serde_json::from_value(run.exits(0).json()["notes"].clone()).unwrap();
        notes.join("\n")
    };
    // Metadata that config.json has no word for; tensors that a Llama has no place for.
    let said = notes(convert(fixture("split/tiny.gguf"), at("x"), &["--dry-run", "--json"]));
    assert!(said.contains("general.author") && said.contains("general.name"), "{said}");
    let said = notes(convert(fixture("split/tiny.gguf"), at("x.safetensors"), &["--dry-run", "--json"]));
    assert!(said.contains("without extension"), "{said}");
    let model = at("model");
    copy_folder(&fixture("kjv-nano"), &model);
    let long = format!("a.{}.weight", "long".repeat(20));
    let mut all = tensors(&model.join("model.safetensors"));
    all.insert(long.clone(), ("F32".into(), vec![2], vec![0; 8]));
    let list: Vec<_> =
        all.iter().map(|(n, (_, s, b))| (n.as_str(), safetensors::Dtype::F32, s.clone(), b.clone())).collect();
    write_safetensors(&model.join("model.safetensors"), &list);
    std::fs::write(model.join("LICENSE"), "yours").unwrap();
    for run in [
        convert(&model, at("x.gguf"), &["--dry-run", "--json"]),
        compress(args![&model, "--scheme", "q8_0", "-o", at("x.gguf"), "--dry-run", "--json"]),
    ] {
        let said = notes(run);
        assert!(said.contains(&long) && said.contains("no place"), "{said}");
        assert!(said.contains("LICENSE, valid.txt") && !said.contains("config.json"), "{said}");
    }
    assert!(convert(&model, at("x.gguf"), &["--dry-run"]).exits(0).stdout.contains("nothing was written"));
    assert_eq!(std::fs::read_dir(out.path()).unwrap().count(), 1);
}

#[test]
fn names_and_flags_that_do_not_fit_are_refused() {
    let out = tempfile::tempdir().unwrap();
    let model = fixture("kjv-nano");
    for (name, flags) in [
        ("x.gguf", &["--to", "safetensors"][..]),
        ("x.safetensors", &["--to", "gguf"]),
        ("x.safetensors", &["--shard-size", "1MB"]),
        ("x.gguf", &["--shard-size", "1MB"]),
        ("x", &["--shard-size", "0"]),
        ("x", &["--dtype", "f8"]),
        ("x", &["--to", "onnx"]),
        ("x", &["-o", "y"]),
    ] {
        let run = convert(&model, out.path().join(name), flags);
        assert_eq!(run.code, 2, "{name} {flags:?}: {}", run.stderr);
    }
    compress(args!["convert", &model]).exits(2);
    convert(&model, out.path().join("no/such.gguf"), &[]).exits(4).says(&["no/such"]);
    convert(out.path().join("none"), out.path().join("x"), &[]).exits(4).says(&["none"]);
    convert(&model, &model, &["--force"]).exits(2).says(&["is the input"]);
    // No name of a container, and yet one file.
    let odd = out.path().join("model.bin");
    compress(args!["convert", &model, "--to", "gguf", "-o", &odd, "-q"]).exits(0);
    assert!(std::fs::read(&odd).unwrap().starts_with(b"GGUF"));
    convert(&model, &odd, &["--to", "gguf"]).exits(2).says(&["already exists"]);
    assert_eq!(std::fs::read_dir(out.path()).unwrap().count(), 1);
}

#[test]
fn however_it_is_done_the_bytes_are_the_same() {
    let out = tempfile::tempdir().unwrap();
    let input = fixture("split/tiny-parts-00001-of-00003.gguf");
    let mut made = Vec::new();
    for (i, flags) in
        [&["--threads", "1"][..], &["--threads", "8", "--memory", "8KiB"], &["--no-mmap"], &["--no-check"]]
            .iter()
            .enumerate()
    {
        let target = out.path().join(format!("{i}.safetensors"));
        convert(&input, &target, &[flags, &["-q"][..]].concat()).exits(0);
        made.push(std::fs::read(target).unwrap());
    }
    assert!(made.windows(2).all(|pair| pair[0] == pair[1]));
}

/// The check sees every tensor of the sealed file: one changed byte of any of them is found.
#[test]
fn a_changed_byte_fails_the_check() {
    let out = tempfile::tempdir().unwrap();
    let original = Checkpoint::open(&fixture("split/tiny.gguf"), &Options::default()).unwrap();
    let (job, target) = (Job::new(2), out.path().join("x.safetensors"));
    let recipe = Recipe::conversion(None, false);
    let plan = Plan::new(&original, &recipe, Target::File(formats::Format::Safetensors), &target).unwrap();
    assert!(plan.steps.iter().any(|step| step.role == Role::Norm) && plan.steps.len() == 11);
    for (at, span) in plan.files[0].layout.spans.iter().enumerate() {
        let (sink, _) = pipeline::write(&original, &plan, &target, false, &job).unwrap();
        let check = || {
            let options = Options { companions: Some(original.companions().clone()), ..Options::default() };
            let written = Checkpoint::open(sink.staging(), &options).unwrap();
            values::compare(&original, &written, &plan, &job).unwrap().unwrap()
        };
        assert!(check().outputs.passed());
        let mut bytes = std::fs::read(sink.staging()).unwrap();
        bytes[span.end as usize - 2] ^= 1;
        std::fs::write(sink.staging(), bytes).unwrap();
        let found = check();
        let name = &plan.files[0].tensors[at].name;
        assert!(!found.outputs.passed() && found.failures[0].contains(name.as_str()), "{name}: {:?}", found.failures);
    }
}
