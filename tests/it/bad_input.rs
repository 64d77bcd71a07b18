//! Bad input gets a clear error with its exit code; the input is untouched, nothing has the final name, no staging is left.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use safetensors::Dtype;

use crate::args;
use crate::support::{Run, compress, contents, copy_folder, f32s, fixture, noise, program, write_safetensors};

/// Runs in a folder of its own and holds that nothing there changed.
fn refused(folder: &Path, args: impl IntoIterator<Item = std::ffi::OsString>) -> Run {
    let before = contents(folder);
    let run = compress(args);
    assert!(contents(folder) == before, "files changed: {:?}", contents(folder).keys());
    assert!(run.stdout.is_empty() && !run.stderr.contains("panicked"), "{}", run.stderr);
    run
}

/// A file with this header and this much data.
fn raw(folder: &Path, header: &str, data: usize) -> std::path::PathBuf {
    let path = folder.join("m.safetensors");
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    std::fs::write(&path, bytes).unwrap();
    path
}

#[test]
fn malformed_headers_are_named() {
    let out = tempfile::tempdir().unwrap();
    let entry = |name: &str, dtype: &str, shape: &str, from: u64, to: u64| {
        format!("\"{name}\":{{\"dtype\":\"{dtype}\",\"shape\":{shape},\"data_offsets\":[{from},{to}]}}")
    };
    let a = entry("0.weight", "F32", "[2,2]", 0, 16);
    let cases: Vec<(String, usize, &[&str])> = vec![
        (format!("{{{a}}}"), 12, &["0.weight", "truncated"]),
        (format!("{{{a}}}"), 20, &["4 bytes after the last tensor"]),
        (format!("{{{a},{}}}", entry("2.weight", "F32", "[2,2]", 8, 24)), 24, &["2.weight", "overlaps", "0.weight"]),
        (format!("{{{a},{}}}", entry("2.weight", "F32", "[2,2]", 20, 36)), 36, &["2.weight", "gap"]),
        (format!("{{{a},{}}}", entry("0.weight", "F32", "[2,2]", 16, 32)), 32, &["0.weight", "twice"]),
        (format!("{{{}}}", entry("0.weight", "F33", "[2,2]", 0, 16)), 16, &["0.weight", "F33"]),
        (format!("{{{}}}", entry("0.weight", "F32", "[2,3]", 0, 16)), 16, &["0.weight", "24 bytes"]),
        (format!("{{{}}}", entry("0.weight", "F32", "[4294967296,4294967296,4]", 0, 16)), 16, &["0.weight", "64 bits"]),
        (format!("{{{}}}", entry("0.weight", "F32", "[-1]", 0, 16)), 16, &["0.weight"]),
        (format!("{{{}}}", entry("0.weight", "F32", "[2,2]", 16, 0)), 16, &["0.weight", "16..0"]),
        ("{\"0.weight\": 5}".into(), 0, &["0.weight"]),
        ("[]".into(), 0, &["{"]),
        ("{\"__metadata__\":{\"a\":1}}".into(), 0, &["__metadata__"]),
        ("{".into(), 16, &["parse"]),
        (format!("{{\"0.weight\": {}", "[".repeat(10_000)), 16, &["parse"]),
    ];
    for (header, data, words) in cases {
        let path = raw(out.path(), &header, data);
        let run = refused(out.path(), args![&path, "--int8"]);
        assert_eq!(run.code, 3, "{header}: {}", run.stderr);
        run.says(words).says(&["m.safetensors", "expected"]);
    }
    let path = out.path().join("m.safetensors");
    for (bytes, word) in [
        (vec![], "0 bytes"),
        (vec![1, 2, 3], "3 bytes"),
        (1_000_000u64.to_le_bytes().repeat(2), "1000000 bytes in a file of 16"),
        (200_000_000u64.to_le_bytes().repeat(2), "at most 100000000"),
        (u64::MAX.to_le_bytes().repeat(2), "header length"),
    ] {
        std::fs::write(&path, bytes).unwrap();
        refused(out.path(), args![&path, "--int8"]).exits(3).says(&[word, "m.safetensors"]);
    }
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    let out = tempfile::tempdir().unwrap();
    let whole = std::fs::read(fixture("golden/llama/model.safetensors")).unwrap();
    let path = out.path().join("m.safetensors");
    let header = u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize + 8;
    let limits = formats::Limits::default();
    // Every cut of the header, and some of the data, through the library; that the program exits with 3 is shown elsewhere.
    for cut in (0..header).chain((header..whole.len()).step_by(997)) {
        std::fs::write(&path, &whole[..cut]).unwrap();
        let error = formats::open(&path, formats::Access::Read, &limits).unwrap_err();
        assert_eq!(error.kind(), formats::Kind::Input, "{cut}: {error}");
    }
}

#[test]
fn flipped_header_bytes_never_panic() {
    let out = tempfile::tempdir().unwrap();
    let whole = std::fs::read(fixture("linear/model.safetensors")).unwrap();
    let path = out.path().join("m.safetensors");
    for at in 0..whole.len() {
        for bit in 0..8 {
            let mut bytes = whole.clone();
            bytes[at] ^= 1 << bit;
            std::fs::write(&path, bytes).unwrap();
            // Some flips change a name or a value and leave a valid file.
            if let Err(error) = formats::open(&path, formats::Access::Mapped, &formats::Limits::default()) {
                assert_eq!(error.kind(), formats::Kind::Input, "{at}: {error}");
            }
        }
    }
}

#[test]
fn missing_things_are_named_all_at_once() {
    let out = tempfile::tempdir().unwrap();
    let at = |name: &str| out.path().join(name);
    refused(out.path(), args![at("nothing"), "--int8"]).exits(4).says(&["nothing", "No such file"]);
    std::fs::create_dir(at("empty")).unwrap();
    refused(out.path(), args![at("empty"), "--int8"]).exits(3).says(&["empty", "model.safetensors"]);
    let index =
        serde_json::json!({"weight_map": {"a": "one.safetensors", "b": "two.safetensors", "c": "here.safetensors"}});
    std::fs::write(at("empty/model.safetensors.index.json"), index.to_string()).unwrap();
    write_safetensors(&at("empty/here.safetensors"), &[("x", Dtype::F32, vec![1], f32s([1.0]))]);
    let run = refused(out.path(), args![at("empty"), "--int8"]).exits(3);
    run.says(&["one.safetensors", "two.safetensors", "2 shards", "Download"]);
    for name in ["one", "two"] {
        write_safetensors(&at(&format!("empty/{name}.safetensors")), &[(name, Dtype::F32, vec![1], f32s([1.0]))]);
    }
    let run = refused(out.path(), args![at("empty"), "--int8"]).exits(3);
    run.says(&["3 tensors", "a (one.safetensors)", "b (two.safetensors)", "c (here.safetensors)"]);
    let index = serde_json::json!({"weight_map": {"a": "../outside.safetensors"}});
    std::fs::write(at("empty/model.safetensors.index.json"), index.to_string()).unwrap();
    refused(out.path(), args![at("empty"), "--int8"]).exits(3).says(&["../outside.safetensors", "same folder"]);
    std::fs::write(at("empty/model.safetensors.index.json"), "{").unwrap();
    refused(out.path(), args![at("empty"), "--int8"]).exits(3).says(&["model.safetensors.index.json", "parse"]);
}

#[test]
fn two_shards_may_not_hold_the_same_name() {
    let out = tempfile::tempdir().unwrap();
    for name in ["a", "b"] {
        let path = out.path().join(format!("{name}.safetensors"));
        write_safetensors(&path, &[("x", Dtype::F32, vec![1], f32s([1.0])), (name, Dtype::F32, vec![1], f32s([1.0]))]);
    }
    let index = serde_json::json!({"weight_map": {"x": "a.safetensors", "a": "a.safetensors", "b": "b.safetensors"}});
    std::fs::write(out.path().join("model.safetensors.index.json"), index.to_string()).unwrap();
    refused(out.path(), args![out.path(), "--int8"]).exits(3).says(&["`x`", "a.safetensors", "b.safetensors"]);
}

#[test]
fn nan_and_infinity_are_found_in_any_weight_the_first_always() {
    let out = tempfile::tempdir().unwrap();
    let path = out.path().join("m.safetensors");
    for (bad, dtype) in [(f32::NAN, "quantized"), (f32::INFINITY, "kept")] {
        let mut weight = noise(400 * 300);
        let mut bias = noise(400);
        match dtype {
            "quantized" => (weight[7 * 300 + 5], weight[390 * 300]) = (bad, bad),
            _ => bias[399] = bad,
        }
        let list =
            [("0.bias", Dtype::F32, vec![400], f32s(bias)), ("0.weight", Dtype::F32, vec![400, 300], f32s(weight))];
        write_safetensors(&path, &list);
        let words: &[&str] =
            if dtype == "quantized" { &["0.weight", "row 7, column 5"] } else { &["0.bias", "row 399"] };
        for flags in [&["--threads", "2", "--memory", "100KB"][..], &["--no-mmap"], &["--no-check"]] {
            let run = refused(out.path(), args![&path, "--int8"].into_iter().chain(flags.iter().map(Into::into)));
            run.exits(3).says(words).says(&["NaN or infinity"]);
        }
    }
}

#[test]
fn a_config_that_does_not_fit_the_tensors_is_refused() {
    let out = tempfile::tempdir().unwrap();
    copy_folder(&fixture("golden/llama"), out.path());
    let config = std::fs::read_to_string(out.path().join("config.json")).unwrap();
    for (from, to, words) in [
        ("\"hidden_size\": 64", "\"hidden_size\": 96", &["[256, 64]", "96"][..]),
        ("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3", &["model.layers.2.", "missing"]),
        ("\"hidden_size\": 64", "\"hidden_size\": \"wide\"", &["hidden_size"]),
        ("\"hidden_size\": 64,", "", &["hidden_size"]),
    ] {
        assert!(config.contains(from));
        std::fs::write(out.path().join("config.json"), config.replace(from, to)).unwrap();
        refused(out.path(), args![out.path(), "--int8"]).exits(3).says(words).says(&["config.json"]);
    }
    std::fs::write(out.path().join("config.json"), &config[..100]).unwrap();
    refused(out.path(), args![out.path(), "--int8"]).exits(3).says(&["config.json", "parse"]);
}

#[test]
fn every_missing_tensor_of_a_family_is_named() {
    let out = tempfile::tempdir().unwrap();
    copy_folder(&fixture("golden/llama"), out.path());
    let config = std::fs::read_to_string(out.path().join("config.json")).unwrap();
    let more = config.replace("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 40");
    std::fs::write(out.path().join("config.json"), more).unwrap();
    let run = refused(out.path(), args![out.path(), "--int8"]).exits(3).says(&["config.json"]);
    let parts = [
        "input_layernorm",
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
        "self_attn.o_proj",
        "post_attention_layernorm",
        "mlp.gate_proj",
        "mlp.up_proj",
        "mlp.down_proj",
    ];
    for layer in 2..40 {
        for part in parts {
            // One a line.
            let line = format!("\n  tensor `model.layers.{layer}.{part}.weight` is missing\n");
            assert!(run.stderr.contains(&line), "{line} is not in {}", run.stderr);
        }
    }
}

/// A file of some kilobytes whose metadata describe so many layers, or experts, that naming their tensors would fill gigabytes.
#[cfg(target_os = "linux")]
#[test]
fn a_model_that_claims_to_be_deep_takes_no_memory() {
    use formats::gguf::{Metadata, Value};
    let out = tempfile::tempdir().unwrap();
    let path = out.path().join("deep.gguf");
    let token = formats::TensorMeta::new("token_embd.weight", formats::Dtype::F32, vec![256, 64]);
    for (arch, layers, experts) in [
        ("llama", 1 << 18, 0),
        ("llama", 32_000, 0),
        ("gemma3", 1 << 18, 0),
        ("gemma3", 32_000, 0),
        ("qwen3moe", 500, 128),
        ("qwen3moe", 250, 128),
    ] {
        let mut keys = Metadata::default();
        keys.push("general.architecture", Value::String(arch.into()));
        for (key, value) in [
            ("embedding_length", 64),
            ("block_count", layers),
            ("attention.head_count", 4),
            ("feed_forward_length", 96),
            ("context_length", 128),
            ("vocab_size", 256),
            ("expert_count", experts),
            ("expert_used_count", 8),
            ("expert_feed_forward_length", 48),
        ] {
            keys.push(format!("{arch}.{key}"), Value::U32(value));
        }
        let layout = formats::gguf::layout(&path, std::slice::from_ref(&token), &keys).unwrap();
        let mut bytes = vec![0; layout.bytes as usize];
        bytes[..layout.fixed[0].1.len()].copy_from_slice(&layout.fixed[0].1);
        std::fs::write(&path, bytes).unwrap();
        let mut shell = std::process::Command::new("sh");
        shell.arg("-c").arg("ulimit -d 102400 && exec \"$@\"").arg("sh").arg(program().get_program());
        let run: Run = shell.args(args!["run", &path, "--prompt", "x"]).output().unwrap().into();
        println!("{arch} {layers} {experts}: {}", run.stderr.lines().next().unwrap_or_default());
        run.exits(3).says(&["deep.gguf"]);
    }
}

#[test]
fn an_instruction_set_that_is_none_is_refused() {
    for args in [args!["inspect", fixture("linear")].to_vec(), args![fixture("linear"), "--int8", "--dry-run"].to_vec()]
    {
        let run = |isa: &str| Run::from(program().args(&args).env("COMPRESS_ISA", isa).output().unwrap());
        run("sse9").exits(2).says(&["COMPRESS_ISA", "sse9", "avx2"]);
        run("").exits(2).says(&["COMPRESS_ISA"]);
        run("scalar").exits(0);
    }
}

#[test]
fn what_is_quantized_already_is_not_quantized_again() {
    let out = tempfile::tempdir().unwrap();
    let target = out.path().join("x");
    let run = refused(out.path(), args![fixture("golden-ct/float32/w8a8"), "--int8", "-o", &target]);
    run.exits(3).says(&["already quantized", "int8 per row", "original"]);
    let target = out.path().join("x.gguf");
    let run = refused(out.path(), args![fixture("golden-ggml/nano-Q8_0-pure.gguf"), "--scheme", "q8_0", "-o", &target]);
    run.exits(3).says(&["already quantized", "Q8_0"]);
    let gptq = out.path().join("g.safetensors");
    write_safetensors(
        &gptq,
        &[("0.qweight", Dtype::I32, vec![2, 2], vec![0; 16]), ("0.scales", Dtype::F16, vec![1, 2], vec![0; 4])],
    );
    refused(out.path(), args![&gptq, "--int8"]).exits(3).says(&["already quantized", "GPTQ"]);
}

#[test]
fn output_is_never_input() {
    let out = tempfile::tempdir().unwrap();
    let at = |name: &str| out.path().join(name);
    std::fs::copy(fixture("linear/model.safetensors"), at("m.safetensors")).unwrap();
    std::os::unix::fs::symlink(at("m.safetensors"), at("link.safetensors")).unwrap();
    std::fs::hard_link(at("m.safetensors"), at("hard.safetensors")).unwrap();
    for (input, output) in [
        ("m.safetensors", "m.safetensors"),
        ("m.safetensors", "link.safetensors"),
        ("link.safetensors", "m.safetensors"),
        ("m.safetensors", "hard.safetensors"),
        ("m.safetensors", "./m.safetensors"),
    ] {
        let run = refused(out.path(), args![at(input), "--int8", "--force", "-o", at(output)]);
        run.exits(2).says(&["is the input"]);
    }
    let folder = tempfile::tempdir().unwrap();
    copy_folder(&fixture("golden/llama"), folder.path());
    refused(folder.path(), args![folder.path(), "--int8", "--force", "-o", folder.path()])
        .exits(2)
        .says(&["is the input"]);
}

#[test]
fn an_output_that_is_there_is_replaced_only_by_force_and_only_if_it_is_a_model() {
    let out = tempfile::tempdir().unwrap();
    let at = |name: &str| out.path().join(name);
    std::fs::write(at("o.safetensors"), "earlier").unwrap();
    let model = fixture("linear/model.safetensors");
    refused(out.path(), args![&model, "--int8", "-o", at("o.safetensors")])
        .exits(2)
        .says(&["already exists", "--force"]);
    compress(args![&model, "--int8", "-o", at("o.safetensors"), "--force", "-q"]).exits(0);
    assert!(std::fs::read(at("o.safetensors")).unwrap() != b"earlier");
    std::fs::create_dir_all(at("home/precious")).unwrap();
    std::fs::write(at("home/letter.txt"), "dear").unwrap();
    let run = refused(out.path(), args![fixture("golden/llama"), "--int8", "-o", at("home"), "--force"]);
    run.exits(2).says(&["something else"]);
    refused(out.path(), args![&model, "--int8", "-o", at("no/such/folder.safetensors")])
        .exits(4)
        .says(&["no/such", "Create it"]);
    for _ in 0..2 {
        compress(args![fixture("golden/llama"), "--int8", "-o", at("llama"), "--force", "-q"]).exits(0);
    }
    assert_eq!(std::fs::read_dir(out.path()).unwrap().count(), 3);
}

#[test]
fn usage_errors_exit_with_two() {
    let out = tempfile::tempdir().unwrap();
    let model = fixture("linear");
    let target = out.path().join("x");
    for flags in [
        &[][..],
        &["--int8", "--f16"],
        &["--scheme", "int5"],
        &["--int8", "--keep", "("],
        &["--int8", "--context", "1"],
        &["--int8", "--threads", "x"],
        &["--int8", "--memory", "lots"],
        &["--int8", "--no-check", "--accept"],
    ] {
        let run = refused(out.path(), args![&model, "-o", &target].into_iter().chain(flags.iter().map(Into::into)));
        assert_eq!(run.code, 2, "{flags:?}: {}", run.stderr);
    }
    let run = refused(out.path(), args![fixture("kjv-nano"), "--int8", "-o", &target, "--context", "4096"]);
    run.exits(2).says(&["4096", "512"]);
    let run = refused(out.path(), args![fixture("kjv-nano"), "--int8", "-o", &target, "--memory", "4KB"]);
    run.exits(2).says(&["--memory", "row"]);
    let empty = out.path().join("empty.txt");
    std::fs::write(&empty, "\n").unwrap();
    let run = refused(out.path(), args![fixture("kjv-nano"), "--int8", "-o", &target, "--text", &empty]);
    run.exits(3).says(&["empty.txt", "no text"]);
}

#[test]
fn a_failed_check_leaves_nothing_unless_it_is_accepted() {
    let out = tempfile::tempdir().unwrap();
    let at = |name: &str| out.path().join(name);
    let run = compress(args![
        fixture("kjv-nano"),
        "--int8",
        "-o",
        at("a"),
        "--max-kl",
        "1e-9",
        "--check-tokens",
        "300",
        "--json"
    ]);
    assert_eq!(run.json()["check"]["passed"], false);
    run.exits(1).says(&["mean KL divergence", "--accept"]);
    assert_eq!(std::fs::read_dir(out.path()).unwrap().count(), 0);
    let run = compress(args![
        fixture("kjv-nano"),
        "--int8",
        "-o",
        at("a"),
        "--max-kl",
        "1e-9",
        "--check-tokens",
        "300",
        "--accept"
    ]);
    assert!(run.stdout.contains("FAILED"));
    run.exits(0);
    assert!(at("a/model.safetensors").exists());
    let run = compress(args!["check", fixture("kjv-nano"), at("a"), "--max-kl", "1e-9", "--check-tokens", "300"]);
    run.exits(1).says(&["mean KL divergence"]);
    let run = compress(args!["check", fixture("golden/llama"), at("a")]);
    run.exits(3).says(&["not the same model"]);
}

#[test]
fn another_models_config_beside_the_output_does_not_matter() {
    let out = tempfile::tempdir().unwrap();
    std::fs::copy(fixture("golden/bert/config.json"), out.path().join("config.json")).unwrap();
    let target = out.path().join("o.safetensors");
    compress(args![fixture("kjv-nano"), "--int8", "-o", &target, "-q", "--check-tokens", "300"]).exits(0);
}

/// A folder whose check takes long enough to be interrupted.
fn slow(folder: &Path) -> std::path::PathBuf {
    let model = folder.join("model");
    copy_folder(&fixture("kjv-nano"), &model);
    model
}

#[test]
fn an_interrupt_leaves_nothing() {
    let out = tempfile::tempdir().unwrap();
    let model = slow(out.path());
    let before = contents(out.path());
    let mut child = program()
        .args(args![&model, "--int8", "--text", fixture("kjv-nano/valid.txt"), "--check-tokens", "10000000"])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Until the output is staged and the check runs.
    let started = Instant::now();
    while std::fs::read_dir(out.path()).unwrap().count() < 2 && started.elapsed() < Duration::from_secs(20) {
        std::thread::sleep(Duration::from_millis(5));
    }
    std::thread::sleep(Duration::from_millis(100));
    let pid = i32::try_from(child.id()).unwrap();
    std::process::Command::new("kill").args(["-INT", &pid.to_string()]).status().unwrap();
    let status = child.wait().unwrap();
    assert_eq!(status.code(), Some(130));
    assert!(contents(out.path()) == before);
    assert_eq!(std::fs::read_dir(out.path()).unwrap().count(), 1);
}

#[test]
fn killed_at_any_moment_nothing_has_the_final_name_but_a_checked_file() {
    let out = tempfile::tempdir().unwrap();
    let model = slow(out.path());
    let before = contents(&model);
    let target = out.path().join("model-int8");
    let expected = {
        compress(args![&model, "--int8", "-q", "--check-tokens", "2000"]).exits(0);
        let expected = contents(&target);
        std::fs::remove_dir_all(&target).unwrap();
        expected
    };
    for delay in [1, 5, 10, 20, 30, 50, 80, 120, 200] {
        let mut child = program().args(args![&model, "--int8", "-q", "--check-tokens", "2000"]).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(delay));
        let _ = child.kill();
        child.wait().unwrap();
        assert!(contents(&model) == before);
        if target.exists() {
            assert!(contents(&target) == expected, "after {delay} ms");
            std::fs::remove_dir_all(&target).unwrap();
        }
    }
}

#[test]
fn an_input_that_changes_while_it_is_read_is_noticed() {
    let out = tempfile::tempdir().unwrap();
    let path = out.path().join("m.safetensors");
    std::fs::copy(fixture("linear/model.safetensors"), &path).unwrap();
    let source = formats::open(&path, formats::Access::Mapped, &formats::Limits::default()).unwrap();
    source.verify_unchanged().unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    bytes.push(0);
    std::fs::write(&path, bytes).unwrap();
    let error = source.verify_unchanged().unwrap_err();
    assert_eq!(error.kind(), formats::Kind::Io);
    assert!(error.to_string().contains("changed while it was read"), "{error}");
}

#[test]
fn a_full_disk_is_said_before_anything_is_written() {
    // A layout larger than any disk, sparse so that nothing would be written either way.
    let out = tempfile::tempdir().unwrap();
    let layout = formats::Layout { fixed: vec![], spans: vec![], bytes: 1 << 60, checksums: vec![] };
    let plan = formats::FilePlan { name: String::new(), layout };
    let target = out.path().join("x");
    let error = formats::Sink::create(&target, formats::Shape::File, vec![plan], 0, false).unwrap_err();
    assert_eq!(error.kind(), formats::Kind::Io);
    assert!(error.to_string().contains("bytes free"), "{error}");
    assert_eq!(std::fs::read_dir(out.path()).unwrap().count(), 0);
}
