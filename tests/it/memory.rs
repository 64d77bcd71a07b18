//! Models larger than the memory that a process may have.

use std::path::Path;

use half::f16;
use safetensors::Dtype::F16;
use serde_json::json;

use crate::support::{Run, compress, fixture, noise, program, write_safetensors};

/// A llama of 105 million parameters in f16, 210 MB, with kjv-nano's tokenizer.
fn write_model(folder: &Path) -> u64 {
    const HIDDEN: usize = 1024;
    const INTERMEDIATE: usize = 4 * HIDDEN;
    const VOCAB: usize = 2048;
    const LAYERS: usize = 6;
    let random: Vec<u8> =
        noise(HIDDEN * INTERMEDIATE).iter().flat_map(|x| f16::from_f32(x * 0.06).to_le_bytes()).collect();
    let ones = f16::ONE.to_le_bytes().repeat(HIDDEN);
    let mut shapes = vec![("model.embed_tokens.weight".to_owned(), vec![VOCAB, HIDDEN])];
    for layer in 0..LAYERS {
        let mut add = |name: &str, shape: &[usize]| {
            shapes.push((format!("model.layers.{layer}.{name}.weight"), shape.to_vec()));
        };
        add("input_layernorm", &[HIDDEN]);
        add("post_attention_layernorm", &[HIDDEN]);
        for name in ["q_proj", "k_proj", "v_proj", "o_proj"] {
            add(&format!("self_attn.{name}"), &[HIDDEN, HIDDEN]);
        }
        add("mlp.gate_proj", &[INTERMEDIATE, HIDDEN]);
        add("mlp.up_proj", &[INTERMEDIATE, HIDDEN]);
        add("mlp.down_proj", &[HIDDEN, INTERMEDIATE]);
    }
    shapes.push(("model.norm.weight".to_owned(), vec![HIDDEN]));
    let tensors: Vec<_> = shapes
        .iter()
        .map(|(name, shape)| {
            let bytes = 2 * shape.iter().product::<usize>();
            (name.as_str(), F16, shape.clone(), if shape.len() == 1 { ones.clone() } else { random[..bytes].to_vec() })
        })
        .collect();
    let path = folder.join("model.safetensors");
    write_safetensors(&path, &tensors);
    let config = json!({
        "model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": INTERMEDIATE, "num_hidden_layers": LAYERS,
        "num_attention_heads": 16, "vocab_size": VOCAB, "max_position_embeddings": 256, "tie_word_embeddings": true,
    });
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    std::fs::copy(fixture("kjv-nano/tokenizer.json"), folder.join("tokenizer.json")).unwrap();
    std::fs::metadata(path).unwrap().len()
}

/// Runs the program with at most so many kilobytes of memory of its own: heap, stacks, everything that no file stands behind.
#[cfg(target_os = "linux")]
fn limited(kilobytes: u64, args: &[&std::ffi::OsStr]) -> Run {
    let mut shell = std::process::Command::new("sh");
    shell.arg("-c").arg(format!("ulimit -d {kilobytes} && exec \"$@\"")).arg("sh");
    shell.arg(program().get_program()).args(args).output().unwrap().into()
}

#[cfg(target_os = "linux")]
#[test]
fn a_model_larger_than_its_memory_is_checked_and_run() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = write_model(folder.path());
    let limit = 96 << 10;
    assert!(bytes > 2 * (limit << 10), "{bytes}");
    let path = folder.path().as_os_str();
    let check = ["check".as_ref(), path, path, "--check-tokens".as_ref(), "48".as_ref(), "--json".as_ref()];
    let common = ["--memory".as_ref(), "16MiB".as_ref(), "--threads".as_ref(), "2".as_ref(), "-q".as_ref()];
    let found = limited(limit, &[&check[..], &common[..]].concat()).exits(0).json();
    assert_eq!((&found["tokens"], &found["kl"]["mean"]), (&json!(48), &json!(0.0)));
    let run = ["run".as_ref(), path, "--prompt".as_ref(), "And".as_ref(), "--max-tokens".as_ref(), "3".as_ref()];
    assert!(limited(limit, &[&run[..], &common[..]].concat()).exits(0).stdout.starts_with("And"));
    // The limit is one: a hundredth of it is not enough.
    assert_ne!(limited(limit / 100, &[&run[..], &common[..]].concat()).code, 0);
}

/// The most memory that a run of the program had resident, mapped files and all, in bytes.
#[cfg(target_os = "linux")]
fn peak(args: &[std::ffi::OsString]) -> u64 {
    let mut child = program().args(args).stdout(std::process::Stdio::null()).spawn().unwrap();
    let status = format!("/proc/{}/status", child.id());
    let mut most = 0;
    let ended = loop {
        // The kernel keeps the most; only what comes in the last two milliseconds can be missed.
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let now = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        most = most.max(1024 * now.unwrap_or(0));
        if let Some(ended) = child.try_wait().unwrap() {
            break ended;
        }
        std::thread::sleep(std::time::Duration::from_millis(2));
    };
    assert!(ended.success());
    most
}

/// Beside the program itself, which a tiny model shows, a run has at most the file and a quarter in memory, and the cache.
#[cfg(target_os = "linux")]
#[test]
fn a_run_takes_the_file_and_a_quarter() {
    use crate::args;
    let folder = tempfile::tempdir().unwrap();
    let original = folder.path().join("f16");
    std::fs::create_dir(&original).unwrap();
    write_model(&original);
    let run = |model: &Path, more: &[&str]| {
        let args = args!["run", model, "--prompt", "And God said", "--max-tokens", "4", "--threads", "2", "-q"];
        peak(&args.into_iter().chain(more.iter().map(Into::into)).collect::<Vec<_>>())
    };
    let program = run(&fixture("kjv-nano"), &[]);
    // 6 layers, keys and values of 1024, two bytes each, of up to 32 positions.
    let cache = 32 * 6 * 2 * 1024 * 2;
    for scheme in ["f16", "int8", "int4", "w8a16", "fp8", "q8_0", "q4_0", "q4_k_m"] {
        let model = match scheme {
            "f16" => original.clone(),
            _ => {
                let end = if scheme.contains('_') { ".gguf" } else { "" };
                let out = folder.path().join(format!("{scheme}{end}"));
                compress(args![&original, "--scheme", scheme, "-o", &out, "--no-check", "-q"]).exits(0);
                out
            }
        };
        let bytes = match model.is_dir() {
            true => std::fs::metadata(model.join("model.safetensors")).unwrap().len(),
            false => std::fs::metadata(&model).unwrap().len(),
        };
        for more in [&[][..], &["--no-mmap"]] {
            let most = run(&model, more);
            let own = most.saturating_sub(program);
            println!("{scheme} {more:?}: file {bytes}, peak {most}, {own} beside the program ({program})");
            assert!(own <= bytes + bytes / 4 + cache, "{scheme} {more:?}: {own} of {bytes}");
        }
        if scheme != "f16" {
            let gone = if model.is_dir() { std::fs::remove_dir_all(&model) } else { std::fs::remove_file(&model) };
            gone.unwrap();
        }
    }
}

/// gpt2 stores queries, keys and values as one tensor by inputs: read by offset, it is in memory once and not three times.
#[cfg(target_os = "linux")]
#[test]
fn a_fused_transposed_tensor_is_in_memory_once() {
    use crate::args;
    const HIDDEN: usize = 1024;
    let folder = tempfile::tempdir().unwrap();
    let random: Vec<u8> =
        noise(HIDDEN * 4 * HIDDEN).iter().flat_map(|x| f16::from_f32(x * 0.05).to_le_bytes()).collect();
    let mut shapes = vec![("wte.weight".to_owned(), vec![2048, HIDDEN]), ("wpe.weight".to_owned(), vec![64, HIDDEN])];
    for layer in 0..4 {
        for (name, shape) in [
            ("ln_1.weight", vec![HIDDEN]),
            ("ln_1.bias", vec![HIDDEN]),
            ("ln_2.weight", vec![HIDDEN]),
            ("ln_2.bias", vec![HIDDEN]),
            ("attn.c_attn.weight", vec![HIDDEN, 3 * HIDDEN]),
            ("attn.c_attn.bias", vec![3 * HIDDEN]),
            ("attn.c_proj.weight", vec![HIDDEN, HIDDEN]),
            ("attn.c_proj.bias", vec![HIDDEN]),
            // Narrow, so that the fused tensor is most of the model.
            ("mlp.c_fc.weight", vec![HIDDEN, 256]),
            ("mlp.c_fc.bias", vec![256]),
            ("mlp.c_proj.weight", vec![256, HIDDEN]),
            ("mlp.c_proj.bias", vec![HIDDEN]),
        ] {
            shapes.push((format!("h.{layer}.{name}"), shape));
        }
    }
    shapes.extend([("ln_f.weight".to_owned(), vec![HIDDEN]), ("ln_f.bias".to_owned(), vec![HIDDEN])]);
    let tensors: Vec<_> = shapes
        .iter()
        .map(|(name, shape)| {
            (name.as_str(), F16, shape.clone(), random[..2 * shape.iter().product::<usize>()].to_vec())
        })
        .collect();
    let path = folder.path().join("model.safetensors");
    write_safetensors(&path, &tensors);
    let config = json!({
        "model_type": "gpt2", "n_embd": HIDDEN, "n_head": 16, "n_layer": 4, "n_inner": 256, "n_positions": 64,
        "vocab_size": 2048,
    });
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    std::fs::copy(fixture("kjv-nano/tokenizer.json"), folder.path().join("tokenizer.json")).unwrap();
    let run = |model: &Path| {
        let args = args!["run", model, "--prompt", "And", "--max-tokens", "2", "--threads", "1", "-q", "--no-mmap"];
        peak(&args)
    };
    let bytes = std::fs::metadata(&path).unwrap().len();
    let own = run(folder.path()).saturating_sub(run(&fixture("kjv-nano")));
    println!("gpt2: file {bytes}, {own} beside the program");
    assert!(own <= bytes + bytes / 4, "{own} of {bytes}");
}
