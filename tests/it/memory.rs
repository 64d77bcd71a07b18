//! Models larger than the memory that a process may have.

use std::path::Path;

use half::f16;
use safetensors::Dtype::F16;
use serde_json::json;

use crate::support::{Run, fixture, noise, program, write_safetensors};

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
    // The limit is one: a twelfth of it is not enough.
    assert_ne!(limited(limit / 12, &[&run[..], &common[..]].concat()).code, 0);
}
