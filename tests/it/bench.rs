//! `compress bench`: what it prints, for every kind of model, and what it refuses.

use std::path::Path;

use serde_json::{Value, json};

use crate::args;
use crate::support::{compress, copy_folder, fixture};

/// A run that is over soon.
fn bench(models: &[&Path]) -> Value {
    let mut all = args!["bench", "--repeat", "1", "--threads", "2", "--json", "-q"].to_vec();
    all.extend(models.iter().map(|path| path.as_os_str().to_owned()));
    compress(all).exits(0).json()
}

fn positive(value: &Value) -> bool {
    value.as_f64().is_some_and(|x| x > 0.0 && x.is_finite())
}

#[test]
fn json_has_the_machine_and_every_kind_of_model() {
    let llama = fixture("golden/llama");
    let found = bench(&[&llama, &fixture("golden/mixtral"), &fixture("golden/bert"), &fixture("linear")]);
    assert_eq!(found["schema"], 1);
    let machine = &found["machine"];
    assert!(machine["cores"].as_u64().unwrap() >= 1 && machine["threads"] == 2);
    assert!(["scalar", "neon", "avx2", "avx512", "amx"].contains(&machine["isa"].as_str().unwrap()), "{machine}");
    for key in ["read_bandwidth_gb_s", "int8_tops", "f32_tflops", "bf16_tflops"] {
        assert!(positive(&machine[key]), "{key}: {machine}");
    }
    assert!(machine["busy"].is_boolean() && machine["others"].is_number() && machine["stolen"].is_number());
    let [llama_found, mixtral, bert, chain] = &found["models"].as_array().unwrap()[..] else { panic!("{found}") };
    for model in [llama_found, mixtral, bert, chain] {
        assert!(positive(&model["bytes"]) && positive(&model["load_seconds"]), "{model}");
        if cfg!(target_os = "linux") {
            let (peak, own) = (&model["peak_memory_bytes"], &model["anonymous_memory_bytes"]);
            assert!(positive(own) && peak.as_u64() > own.as_u64(), "{model}");
        }
    }
    assert_eq!(llama_found["path"], llama.display().to_string());
    assert_eq!(llama_found["bytes"], std::fs::metadata(llama.join("model.safetensors")).unwrap().len());
    for model in [llama_found, mixtral] {
        // 128 positions: half of them are decoded, the prompt is the rest.
        assert_eq!((&model["prefill"]["tokens"], &model["decode"]["tokens"]), (&json!(64), &json!(64)));
        for value in [
            &model["prefill"]["tokens_per_second"],
            &model["prefill"]["peak_fraction"],
            &model["prefill"]["first_token_seconds"],
            &model["decode"]["tokens_per_second"],
            &model["decode"]["roof_fraction"],
        ] {
            assert!(positive(value), "{model}");
        }
        assert!(model["encode"].is_null() && model["predict"].is_null());
    }
    assert_eq!((&bert["encode"]["sentences"], &bert["encode"]["tokens"]), (&json!(32), &json!(16)));
    assert!(positive(&bert["encode"]["sentences_per_second"]) && positive(&bert["encode"]["latency_seconds"]));
    assert!(bert["prefill"].is_null() && bert["decode"].is_null());
    assert!(positive(&chain["predict"]["rows_per_second"]) && chain["decode"].is_null());
    assert_eq!(found["comparisons"].as_array().unwrap().len(), 3);
}

/// What a token touches, computed here from the config: of the embedding one row, of four experts two.
#[test]
fn bytes_for_a_token_leave_out_what_is_not_touched() {
    let found = bench(&[&fixture("golden/llama"), &fixture("golden/mixtral"), &fixture("kjv-nano")]);
    let models = ["golden/llama", "golden/mixtral", "kjv-nano"];
    for (model, name) in found["models"].as_array().unwrap().iter().zip(models) {
        let config: Value = serde_json::from_slice(&std::fs::read(fixture(name).join("config.json")).unwrap()).unwrap();
        let tensors = crate::support::tensors(&fixture(name).join("model.safetensors"));
        let experts = config["num_local_experts"].as_f64().unwrap_or(1.0);
        let used = config["num_experts_per_tok"].as_f64().unwrap_or(1.0);
        let tied = config["tie_word_embeddings"].as_bool().unwrap_or(false);
        let weights: f64 = tensors
            .iter()
            .map(|(name, (_, shape, bytes))| match name.as_str() {
                "model.embed_tokens.weight" => {
                    (bytes.len() / shape[0]) as f64 + if tied { bytes.len() as f64 } else { 0.0 }
                }
                name if name.contains(".experts.") => bytes.len() as f64 * used / experts,
                _ => bytes.len() as f64,
            })
            .sum();
        let of = |key: &str| config[key].as_f64().unwrap();
        let heads = config["num_key_value_heads"].as_f64().unwrap_or(of("num_attention_heads"));
        let head_dim = config["head_dim"].as_f64().unwrap_or(of("hidden_size") / of("num_attention_heads"));
        let (prompt, decoded) = (&model["prefill"]["tokens"], &model["decode"]["tokens"]);
        let positions = prompt.as_f64().unwrap() + decoded.as_f64().unwrap() / 2.0;
        // Keys and values, two bytes each.
        let cache = positions * of("num_hidden_layers") * heads * head_dim * 4.0;
        let bytes = model["decode"]["bytes_per_token"].as_f64().unwrap();
        assert!((bytes - weights - cache).abs() <= 1.0, "{name}: {bytes} is not {weights} + {cache}");
    }
}

#[test]
fn tables_stand_side_by_side_and_compare_with_the_first() {
    let folder = tempfile::tempdir().unwrap();
    let compressed = folder.path().join("nano-int8");
    compress(args![fixture("kjv-nano"), "--int8", "-o", &compressed, "--no-check", "-q"]).exits(0);
    let run = compress(args![
        "bench",
        fixture("kjv-nano"),
        &compressed,
        "--repeat",
        "2",
        "--tokens",
        "8",
        "--prompt-tokens",
        "16",
        "--machine",
    ])
    .exits(0);
    let words = [
        "kjv-nano",
        "nano-int8",
        "16 + 8",
        "GB/s",
        "decode, tokens/s",
        "of the memory's roof",
        "peak memory",
        "median (least – most) of 2 rounds",
        "nano-int8 against kjv-nano: ",
        "times smaller; prefill ",
        "f32 matrix products",
        "int8 per row",
        "the best that this processor has",
    ];
    for word in words {
        assert!(run.stdout.contains(word), "`{word}` is not in\n{}", run.stdout);
    }
}

#[test]
fn a_gguf_file_is_measured_too() {
    let folder = tempfile::tempdir().unwrap();
    let gguf = folder.path().join("nano.gguf");
    compress(args![fixture("kjv-nano"), "--scheme", "q8_0", "-o", &gguf, "--no-check", "-q"]).exits(0);
    let found = bench(&[&gguf]);
    assert!(positive(&found["models"][0]["decode"]["tokens_per_second"]), "{found}");
    let encodings: Vec<&str> =
        found["models"][0]["kernels"].as_array().unwrap().iter().filter_map(|k| k["encoding"].as_str()).collect();
    assert!(encodings.contains(&"Q8_0"), "{encodings:?}");
}

#[test]
fn the_machine_alone_is_measured_without_a_model() {
    let run = compress(args!["bench", "--machine", "--repeat", "1", "--threads", "1"]).exits(0);
    assert!(run.stdout.contains("1 threads") && run.stdout.contains("f16 to f32"), "{}", run.stdout);
}

#[test]
fn what_cannot_be_measured_says_why() {
    let llama = fixture("golden/llama");
    compress(args!["bench"]).exits(2);
    compress(args!["bench", &llama, "--tokens", "0"]).exits(2);
    compress(args!["bench", &llama, "--repeat", "many"]).exits(2);
    let too_long = args!["bench", &llama, "--prompt-tokens", "100", "--tokens", "29"];
    compress(too_long).exits(2).says(&["129 tokens", "128 positions", "--prompt-tokens"]);
    compress(args!["bench", fixture("golden/bert"), "--prompt-tokens", "5000"]).exits(2).says(&["positions"]);
    compress(args!["bench", &llama, "no/such/model"]).exits(4).says(&["no/such/model"]);
    let folder = tempfile::tempdir().unwrap();
    let broken = folder.path().join("model");
    copy_folder(&llama, &broken);
    let weights = broken.join("model.safetensors");
    let bytes = std::fs::read(&weights).unwrap();
    std::fs::write(&weights, &bytes[..bytes.len() / 2]).unwrap();
    compress(args!["bench", &broken]).exits(3).says(&["model.safetensors"]);
    std::fs::write(&weights, &bytes).unwrap();
    std::fs::remove_file(broken.join("config.json")).unwrap();
    compress(args!["bench", &broken]).exits(3).says(&["cannot be run", "config.json"]);
}
