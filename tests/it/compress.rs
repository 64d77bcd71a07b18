//! The main job: compress, prove, publish.

use serde_json::Value;

use crate::args;
use crate::support::{compress, contents, copy_folder, f32s, fixture, noise, shared, tensors, write_safetensors};

#[test]
fn int8_is_what_compressed_tensors_writes() {
    let out = tempfile::tempdir().unwrap();
    let ours = out.path().join("nano");
    compress(args![fixture("kjv-nano"), "--int8", "-o", &ours, "-q", "--no-check"]).exits(0);
    let expected = fixture("golden-ct/float32/w8a8");
    assert_eq!(tensors(&ours.join("model.safetensors")), tensors(&expected.join("model.safetensors")));
    let config = |folder: &std::path::Path| -> Value {
        serde_json::from_slice(&std::fs::read(folder.join("config.json")).unwrap()).unwrap()
    };
    let (ours, expected) = (config(&ours), config(&expected));
    let (ours, expected) = (&ours["quantization_config"], &expected["quantization_config"]);
    for key in ["quant_method", "format", "quantization_status", "ignore"] {
        assert_eq!(ours[key], expected[key], "{key}");
    }
    let group = |config: &Value| config["config_groups"]["group_0"].clone();
    assert_eq!(group(ours), group(expected));
}

#[test]
fn int8_from_bf16_rounds_as_compressed_tensors_does() {
    let out = tempfile::tempdir().unwrap();
    let (half, ours) = (out.path().join("half"), out.path().join("int8"));
    compress(args![fixture("kjv-nano"), "--bf16", "-o", &half, "-q"]).exits(0);
    compress(args![&half, "--scheme", "w8a8", "-o", &ours, "-q"]).exits(0);
    let expected = fixture("golden-ct/bfloat16/w8a8/model.safetensors");
    assert_eq!(tensors(&ours.join("model.safetensors")), tensors(&expected));
    let config: Value = serde_json::from_slice(&std::fs::read(half.join("config.json")).unwrap()).unwrap();
    assert_eq!(config["dtype"], "bfloat16");
}

#[test]
fn int8_from_every_dtype_is_what_compressed_tensors_computes() {
    let out = tempfile::tempdir().unwrap();
    let ours = out.path().join("x.safetensors");
    compress(args![fixture("int8/input.safetensors"), "--int8", "-o", &ours, "-q"]).exits(0);
    assert_eq!(tensors(&ours), tensors(&fixture("int8/expected.safetensors")));
}

#[test]
fn int4_w8a16_and_fp8_are_what_compressed_tensors_writes() {
    let out = tempfile::tempdir().unwrap();
    let half = out.path().join("half");
    compress(args![fixture("kjv-nano"), "--bf16", "-o", &half, "-q", "--no-check"]).exits(0);
    let Some(golden) = shared("golden-ct") else {
        eprintln!("skipped: there is no ../shared/golden-ct");
        return;
    };
    for (dtype, input) in [("float32", &fixture("kjv-nano")), ("bfloat16", &half)] {
        for (flags, name) in [
            (&["--int4"][..], "w4a16-g128"),
            (&["--scheme", "w8a16", "--group-size", "128"], "w8a16-g128"),
            (&["--scheme", "fp8"], "fp8-dynamic"),
        ] {
            let ours = out.path().join(format!("{dtype}-{name}"));
            let args = args![input, "-o", &ours, "--json", "--check-tokens", "600"];
            let report = compress(args.into_iter().chain(flags.iter().map(Into::into))).exits(0).json();
            let expected = golden.join(dtype).join(name);
            assert!(
                tensors(&ours.join("model.safetensors")) == tensors(&expected.join("model.safetensors")),
                "{dtype} {name}"
            );
            let config = |folder: &std::path::Path| -> Value {
                let config: Value =
                    serde_json::from_slice(&std::fs::read(folder.join("config.json")).unwrap()).unwrap();
                config["quantization_config"].clone()
            };
            let (ours, expected) = (config(&ours), config(&expected));
            for key in ["config_groups", "format", "ignore"] {
                assert_eq!(ours[key], expected[key], "{dtype} {name} {key}");
            }
            let kl = report["check"]["kl"]["mean"].as_f64().unwrap();
            assert!(kl > 0.0 && kl < 0.1, "{name}: {kl}");
        }
    }
}

#[test]
fn packed_weights_give_the_logits_that_transformers_computes() {
    let Some(golden) = shared("golden-ct") else {
        eprintln!("skipped: there is no ../shared/golden-ct");
        return;
    };
    for dtype in ["float32", "bfloat16"] {
        for name in ["w4a16-g128", "w8a16-g128"] {
            let folder = golden.join(dtype).join(name);
            let expected = tensors(&folder.join("golden.safetensors"));
            let ids = expected["input_ids"].2.as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b) as u32);
            let logits: Vec<f32> =
                expected["logits"].2.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
            let checkpoint = modelpress::loader::Checkpoint::open(&folder, &Default::default()).unwrap();
            let model = modelpress::runtime::load(&std::sync::Arc::new(checkpoint)).unwrap();
            let job = modelpress::job::Job::new(0);
            let found = modelpress::runtime::forward(&model, &ids.collect::<Vec<u32>>(), &job).unwrap().logits;
            let worst = found.iter().zip(&logits).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(found.len() == logits.len() && worst < 1e-3, "{dtype} {name}: {worst}");
        }
    }
}

#[test]
fn searched_scales_are_the_same_form_and_closer() {
    let out = tempfile::tempdir().unwrap();
    for scheme in ["int8", "w4a16", "w8a16", "fp8"] {
        let made = |name: &str, flags: &[&str]| {
            let ours = out.path().join(format!("{scheme}-{name}"));
            let args = args![fixture("kjv-nano"), "--scheme", scheme, "-o", &ours, "--json", "--check-tokens", "600"];
            let report = compress(args.into_iter().chain(flags.iter().map(Into::into))).exits(0).json();
            assert_eq!(report["check"]["passed"], true);
            let worst = report["weights"]["worst"][0]["sqnr_db"].as_f64().unwrap();
            let stored = tensors(&ours.join("model.safetensors"));
            let config: Value = serde_json::from_slice(&std::fs::read(ours.join("config.json")).unwrap()).unwrap();
            let layout: Vec<_> =
                stored.iter().map(|(name, (dtype, shape, _))| (name.clone(), dtype.clone(), shape.clone())).collect();
            (worst, layout, config)
        };
        let (plain, searched) = (made("plain", &[]), made("searched", &["--search"]));
        println!("{scheme}: {:.2} → {:.2} dB", plain.0, searched.0);
        assert!(searched.0 > plain.0, "{scheme}: {} {}", plain.0, searched.0);
        assert_eq!((searched.1, searched.2), (plain.1, plain.2), "{scheme}");
        // Bands and threads change nothing.
        let again = out.path().join("again.safetensors");
        let flags = ["--search", "--threads", "1", "--memory", "64KiB", "-q", "--no-check", "--force"];
        compress(args![fixture("kjv-nano"), "--scheme", scheme, "-o", &again].into_iter().chain(flags.map(Into::into)))
            .exits(0);
        assert!(
            tensors(&again) == tensors(&out.path().join(format!("{scheme}-searched/model.safetensors"))),
            "{scheme}"
        );
    }
}

#[test]
fn groups_follow_the_rows() {
    use safetensors::Dtype::F32;
    let out = tempfile::tempdir().unwrap();
    let input = out.path().join("in.safetensors");
    let list: Vec<(&str, _, Vec<usize>, Vec<u8>)> =
        [("a.weight", vec![4, 192]), ("b.weight", vec![4, 100]), ("c.weight", vec![4, 256])]
            .into_iter()
            .map(|(name, shape)| (name, F32, shape.clone(), f32s(noise(shape.iter().product()))))
            .collect();
    write_safetensors(&input, &list);
    let ours = out.path().join("out.safetensors");
    let report = compress(args![&input, "--int4", "-o", &ours, "--json"]).exits(0).json();
    let stored = tensors(&ours);
    let scales = |name: &str| stored[&format!("{name}.weight_scale")].1.clone();
    assert_eq!([scales("a"), scales("b"), scales("c")], [vec![4, 3], vec![4, 1], vec![4, 2]]);
    assert_eq!(stored["b.weight_packed"].1, [4, 13]);
    assert!(report["notes"].to_string().contains("groups of 64"), "{}", report["notes"]);
    assert!(report["weights"]["worst"][0]["sqnr_db"].as_f64().unwrap() > 15.0);
    compress(args![&input, "--int8", "--group-size", "64"]).exits(2).says(&["--group-size"]);
}

#[test]
fn the_report_has_every_promised_field() {
    let out = tempfile::tempdir().unwrap();
    let ours = out.path().join("nano");
    let text = fixture("kjv-nano/valid.txt");
    let run = compress(args![
        fixture("kjv-nano"),
        "--int8",
        "-o",
        &ours,
        "--json",
        "--text",
        text,
        "--context",
        "256",
        "--check-tokens",
        "510"
    ])
    .exits(0);
    let report = run.json();
    assert_eq!(report["schema"], 1);
    assert_eq!(report["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(report["recipe"], "→ int8");
    assert_eq!(report["input"]["bytes"], 6_823_000);
    assert_eq!(report["input"]["tensors"], 20);
    let bytes = ours.join("model.safetensors").metadata().unwrap().len();
    assert_eq!(report["output"]["bytes"], bytes);
    assert!((report["ratio"].as_f64().unwrap() - 6_823_000.0 / bytes as f64).abs() < 1e-9);
    assert!(
        report["seconds"]["compress"].as_f64().unwrap() > 0.0 && report["seconds"]["check"].as_f64().unwrap() > 0.0
    );
    assert_eq!((&report["weights"]["quantized"], &report["weights"]["kept"]), (&14.into(), &6.into()));
    let worst = report["weights"]["worst"].as_array().unwrap();
    assert_eq!(worst.len(), 5);
    assert!(worst.windows(2).all(|w| w[0]["sqnr_db"].as_f64() <= w[1]["sqnr_db"].as_f64()));
    assert!(worst[0]["cosine"].as_f64().unwrap() > 0.999 && worst[0]["max_abs_error"].as_f64().unwrap() > 0.0);
    let check = &report["check"];
    assert_eq!(
        (&check["kind"], &check["tokens"], &check["passed"]),
        (&"language-model".into(), &510.into(), &true.into())
    );
    let kl = &check["kl"];
    let at = |key: &str| kl[key].as_f64().unwrap();
    assert!(at("mean") > 0.0 && at("mean") < 0.001 && at("standard_error") > 0.0);
    assert!(at("p50") <= at("p90") && at("p90") <= at("p99") && at("p99") <= at("p999") && at("p999") <= at("max"));
    assert!(check["same_top"].as_f64().unwrap() > 0.95);
    assert!(
        check["original"]["perplexity"].as_f64().unwrap() < check["compressed"]["perplexity"].as_f64().unwrap() * 1.01
    );

    // The same object, from the check alone.
    let alone = compress(args![
        "check",
        fixture("kjv-nano"),
        &ours,
        "--json",
        "--text",
        fixture("kjv-nano/valid.txt"),
        "--context",
        "256",
        "--check-tokens",
        "510"
    ]);
    assert_eq!(&alone.exits(0).json(), check);
}

#[test]
fn perplexity_is_transformers() {
    let out = tempfile::tempdir().unwrap();
    let mut models = vec![(fixture("kjv-nano"), 23.5039)];
    models.extend(shared("models/kjv-small").map(|path| (path, 32.5860)));
    for (model, perplexity) in models {
        let ours = out.path().join(model.file_name().unwrap());
        let report = compress(args![
            &model,
            "--int8",
            "-o",
            &ours,
            "--json",
            "--text",
            fixture("kjv-nano/valid.txt"),
            "--context",
            "256",
            "--check-tokens",
            "25500"
        ])
        .exits(0)
        .json();
        let found = report["check"]["original"]["perplexity"].as_f64().unwrap();
        assert!((found - perplexity).abs() < 0.00006, "{found} {perplexity}");
        assert_eq!(report["check"]["tokens"], 25500);
        assert!(report["check"]["kl"]["mean"].as_f64().unwrap() <= 0.001, "{}", report["check"]);
    }
}

#[test]
fn the_same_input_gives_the_same_bytes_however_it_is_done() {
    let out = tempfile::tempdir().unwrap();
    let mut first = None;
    for (i, flags) in [
        &["--threads", "1"][..],
        &["--threads", "2"],
        &["--threads", "8"],
        &["--memory", "1MiB"],
        &["--memory", "4GiB", "--no-mmap"],
        &["--no-mmap", "--threads", "1", "--memory", "200KB"],
    ]
    .iter()
    .enumerate()
    {
        let ours = out.path().join(i.to_string());
        let args = args![fixture("kjv-nano"), "--int8", "-o", &ours, "-q", "--no-check"];
        compress(args.into_iter().chain(flags.iter().map(Into::into))).exits(0);
        let found = contents(&ours);
        assert!(first.get_or_insert_with(|| found.clone()) == &found, "{flags:?}");
    }
}

#[test]
fn reading_by_offset_checks_the_same() {
    let out = tempfile::tempdir().unwrap();
    let check = |name: &str, flags: &[&str]| {
        let ours = out.path().join(name);
        let args = args![fixture("kjv-nano"), "--int8", "-o", &ours, "--json", "--check-tokens", "300"];
        compress(args.into_iter().chain(flags.iter().map(Into::into))).exits(0).json()["check"].clone()
    };
    assert_eq!(check("a", &[]), check("b", &["--no-mmap", "--threads", "1"]));
}

#[test]
fn a_dry_run_knows_the_size_and_every_tensors_fate() {
    let out = tempfile::tempdir().unwrap();
    let ours = out.path().join("nano");
    let flags = ["--keep", "layers\\.0\\.mlp"];
    let dry = compress(
        args![fixture("kjv-nano"), "--int8", "-o", &ours, "--dry-run", "--json"]
            .into_iter()
            .chain(flags.map(Into::into)),
    );
    let plan = dry.exits(0).json();
    assert!(!ours.exists());
    compress(
        args![fixture("kjv-nano"), "--int8", "-o", &ours, "-q", "--no-check"].into_iter().chain(flags.map(Into::into)),
    )
    .exits(0);
    assert_eq!(plan["output"]["bytes"], ours.join("model.safetensors").metadata().unwrap().len());
    let fate = |name: &str| plan["tensors"].as_array().unwrap().iter().find(|t| t["name"] == name).unwrap().clone();
    let kept = fate("model.layers.0.mlp.up_proj.weight");
    assert_eq!((&kept["to"], &kept["rule"]), (&"F32".into(), &1.into()));
    let quantized = fate("model.layers.1.mlp.up_proj.weight");
    assert_eq!((&quantized["to"], &quantized["rule"]), (&"int8 per row".into(), &2.into()));
    assert_eq!(fate("model.norm.weight")["rule"], Value::Null);
    let text = compress(args![fixture("kjv-nano"), "--int8", "-o", &ours, "--dry-run"]).exits(0).stdout;
    assert!(text.contains("model.layers.1.mlp.up_proj.weight") && text.contains("nothing was written"), "{text}");
    // What was kept is listed for the reader to ignore.
    let config: Value = serde_json::from_slice(&std::fs::read(ours.join("config.json")).unwrap()).unwrap();
    let ignored = config["quantization_config"]["ignore"].as_array().unwrap();
    assert!(ignored.contains(&"model.layers.0.mlp.up_proj".into()) && ignored.contains(&"lm_head".into()));
}

#[test]
fn inspect_shows_which_rule_made_what() {
    let out = tempfile::tempdir().unwrap();
    let recipe = out.path().join("r.toml");
    std::fs::write(&recipe, "[[rule]]\nname = \"layers\\\\.0\"\nscheme = \"bf16\"\n[[rule]]\nrole = \"embedding\"\nscheme = \"int8\"\n[[rule]]\nscheme = \"int8\"\n").unwrap();
    let ours = out.path().join("mixed");
    compress(args![fixture("kjv-nano"), "--recipe", &recipe, "-o", &ours, "-q"]).exits(0);
    let found = compress(args!["inspect", &ours, "--json"]).exits(0).json();
    assert_eq!(found["family"], "llama");
    assert_eq!(found["parameters"], 1_705_216);
    let of = |name: &str| found["tensors"].as_array().unwrap().iter().find(|t| t["name"] == name).unwrap().clone();
    assert_eq!(of("model.layers.0.mlp.up_proj.weight")["encoding"], "BF16");
    assert_eq!(of("model.layers.0.mlp.up_proj.weight")["rule"], "name ~ layers\\.0 → bf16");
    assert_eq!(of("model.embed_tokens.weight")["encoding"], "int8 per row");
    assert_eq!(of("model.layers.1.mlp.up_proj.weight")["rule"], "→ int8");
    assert_eq!(of("model.norm.weight")["rule"], "(none: kept)");
    let text = compress(args!["inspect", fixture("kjv-nano"), "--int8"]).exits(0).stdout;
    assert!(text.contains("→ int8") && text.contains("1705216 parameters"), "{text}");
}

#[test]
fn a_single_file_goes_beside_its_input_and_describes_itself() {
    let out = tempfile::tempdir().unwrap();
    copy_folder(&fixture("kjv-nano"), out.path());
    let report = compress(args![out.path().join("model.safetensors"), "--int8", "--json", "--check-tokens", "300"])
        .exits(0)
        .json();
    let ours = out.path().join("model-int8.safetensors");
    assert_eq!(report["output"]["path"], ours.display().to_string());
    assert_eq!(report["check"]["kind"], "language-model");
    assert_eq!(tensors(&ours), tensors(&fixture("golden-ct/float32/w8a8/model.safetensors")));
    // Elsewhere, without a config beside it, it is still known for what it is.
    let elsewhere = tempfile::tempdir().unwrap();
    let moved = elsewhere.path().join("m.safetensors");
    std::fs::copy(&ours, &moved).unwrap();
    let check =
        compress(args!["check", fixture("kjv-nano"), &moved, "--json", "--check-tokens", "300"]).exits(0).json();
    assert_eq!(check, report["check"]);
    let found = compress(args!["inspect", &moved, "--json"]).exits(0).json();
    assert_eq!(found["quantized"], "int8 per row");
}

#[test]
fn a_folder_is_copied_whole_through_links() {
    let out = tempfile::tempdir().unwrap();
    let (blobs, snapshot) = (out.path().join("blobs"), out.path().join("snapshot"));
    copy_folder(&fixture("kjv-nano"), &blobs);
    std::fs::create_dir_all(snapshot.join("1_Pooling")).unwrap();
    for name in contents(&blobs).keys() {
        std::os::unix::fs::symlink(blobs.join(name), snapshot.join(name)).unwrap();
    }
    std::fs::write(snapshot.join("1_Pooling/config.json"), "{}").unwrap();
    std::fs::write(snapshot.join("modules.json"), "[]").unwrap();
    std::fs::write(snapshot.join("chat_template.jinja"), "{{ messages }}").unwrap();
    std::fs::write(snapshot.join("pytorch_model.bin"), "weights in another format").unwrap();
    let report = compress(args![&snapshot, "--int8", "--json", "--check-tokens", "300"]).exits(0).json();
    let ours = contents(&out.path().join("snapshot-int8"));
    let mut expected: Vec<&str> = vec![
        "1_Pooling/config.json",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "modules.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "valid.txt",
    ];
    expected.sort_unstable();
    assert_eq!(ours.keys().map(String::as_str).collect::<Vec<_>>(), expected);
    assert_eq!(ours["tokenizer.json"], std::fs::read(blobs.join("tokenizer.json")).unwrap());
    assert!(report["notes"].to_string().contains("pytorch_model.bin"));
    assert!(!out.path().join("snapshot-int8/tokenizer.json").symlink_metadata().unwrap().is_symlink());
}

#[test]
fn files_get_the_users_normal_permissions() {
    use std::os::unix::fs::PermissionsExt;
    let out = tempfile::tempdir().unwrap();
    let ours = out.path().join("nano");
    compress(args![fixture("kjv-nano"), "--int8", "-o", &ours, "-q", "--no-check"]).exits(0);
    let plain = out.path().join("plain");
    std::fs::write(&plain, "x").unwrap();
    let mode = |path: &std::path::Path| path.metadata().unwrap().permissions().mode() & 0o777;
    for name in ["model.safetensors", "config.json", "tokenizer.json"] {
        assert_eq!(mode(&ours.join(name)), mode(&plain), "{name}");
    }
}

/// kjv-nano in three shards with an index.
fn sharded(folder: &std::path::Path) {
    copy_folder(&fixture("kjv-nano"), folder);
    std::fs::remove_file(folder.join("model.safetensors")).unwrap();
    let all = tensors(&fixture("kjv-nano/model.safetensors"));
    let mut map = serde_json::Map::new();
    for shard in 0..3 {
        let name = format!("model-{:05}-of-00003.safetensors", shard + 1);
        let here: Vec<_> = all.iter().enumerate().filter(|(i, _)| i % 3 == shard).map(|(_, tensor)| tensor).collect();
        let list: Vec<(&str, safetensors::Dtype, Vec<usize>, Vec<u8>)> = here
            .iter()
            .map(|(name, (_, shape, bytes))| (name.as_str(), safetensors::Dtype::F32, shape.clone(), bytes.clone()))
            .collect();
        write_safetensors(&folder.join(&name), &list);
        here.iter().for_each(|(tensor, _)| {
            map.insert((*tensor).clone(), name.clone().into());
        });
    }
    let index = serde_json::json!({"metadata": {"total_size": 1}, "weight_map": map});
    std::fs::write(folder.join("model.safetensors.index.json"), index.to_string()).unwrap();
}

#[test]
fn shards_stay_shards_or_become_one_file() {
    let out = tempfile::tempdir().unwrap();
    let input = out.path().join("sharded");
    sharded(&input);
    let report = compress(args![&input, "--int8", "--json", "--check-tokens", "300"]).exits(0).json();
    assert_eq!(report["check"]["kind"], "language-model");
    let ours = out.path().join("sharded-int8");
    let index: Value =
        serde_json::from_slice(&std::fs::read(ours.join("model.safetensors.index.json")).unwrap()).unwrap();
    let expected = tensors(&fixture("golden-ct/float32/w8a8/model.safetensors"));
    let mut total = 0;
    for (name, shard) in index["weight_map"].as_object().unwrap() {
        let found = &tensors(&ours.join(shard.as_str().unwrap()))[name];
        assert_eq!(found, &expected[name], "{name}");
        total += found.2.len();
    }
    assert_eq!(index["weight_map"].as_object().unwrap().len(), expected.len());
    assert_eq!(index["metadata"]["total_size"], total);
    let one = out.path().join("one.safetensors");
    compress(args![input.join("model.safetensors.index.json"), "--int8", "-o", &one, "-q", "--check-tokens", "300"])
        .exits(0);
    assert_eq!(tensors(&one), expected);
}

#[test]
fn the_worked_example_still_predicts_five() {
    let out = tempfile::tempdir().unwrap();
    let ours = out.path().join("w.safetensors");
    let inputs = fixture("linear/inputs.csv");
    let report = compress(args![fixture("linear"), "--int8", "-o", &ours, "--json", "--text", inputs]).exits(0).json();
    let check = &report["check"];
    assert_eq!((&check["kind"], &check["rows"], &check["passed"]), (&"linear-chain".into(), &5.into(), &true.into()));
    // w = [1, 0]: the code of 1 is 127, and 127 · (1 / 127.5) · 5 misses 5 by less than half a step of 5 / 127.5.
    let stored = tensors(&ours);
    let scale = f32::from_le_bytes(stored["0.weight_scale"].2[..].try_into().unwrap());
    let codes: Vec<f32> = stored["0.weight"].2.iter().map(|&code| f32::from(code as i8)).collect();
    let prediction = scale * (codes[0] * 5.0 + codes[1] * 6.0);
    assert!((prediction - 5.0).abs() <= 5.0 * scale / 2.0 + 1e-6, "{prediction}");
    assert!(check["relative_error"].as_f64().unwrap() <= 0.01, "{check}");
}

#[test]
fn chains_experts_and_convolutions_have_a_scale_for_each_row() {
    use safetensors::Dtype::F32;
    let out = tempfile::tempdir().unwrap();
    let input = out.path().join("in.safetensors");
    let n = |shape: &[usize]| f32s(noise(shape.iter().product()));
    let list: Vec<(&str, _, Vec<usize>, Vec<u8>)> = [
        ("layers.0.mlp.experts.gate_up_proj", vec![3, 4, 6]),
        ("features.0.conv.weight", vec![5, 2, 3, 3]),
        ("features.0.conv.bias", vec![5]),
        ("fc.weight", vec![2, 7]),
        ("tok_embeddings.weight", vec![9, 4]),
    ]
    .into_iter()
    .map(|(name, shape)| (name, F32, shape.clone(), n(&shape)))
    .collect();
    write_safetensors(&input, &list);
    let ours = out.path().join("out.safetensors");
    let report = compress(args![&input, "--int8", "-o", &ours, "--json"]).exits(0).json();
    assert_eq!(report["check"], serde_json::json!({"kind": "weights", "passed": true}));
    let stored = tensors(&ours);
    let shape = |name: &str| stored[name].1.clone();
    assert_eq!(shape("layers.0.mlp.experts.gate_up_proj_scale"), [3, 4, 1]);
    assert_eq!(shape("features.0.conv.weight_scale"), [5, 1, 1, 1]);
    assert_eq!(shape("fc.weight_scale"), [2, 1]);
    assert_eq!(stored["tok_embeddings.weight"].0, "F32");
    let text = compress(args!["check", &input, &ours]).exits(0).stdout;
    assert!(text.contains("outputs were not"), "{text}");
}

#[test]
fn half_precision_counts_what_it_cannot_hold() {
    use safetensors::Dtype::F32;
    let out = tempfile::tempdir().unwrap();
    let (small, large) = (out.path().join("s.safetensors"), out.path().join("l.safetensors"));
    write_safetensors(&small, &[("0.weight", F32, vec![1, 4], f32s([1.0, 1e-9, -1e-9, 2.0]))]);
    let report = compress(args![&small, "--f16", "--json"]).exits(0).json();
    assert!(report["notes"].to_string().contains("2 values were too small"), "{report}");
    write_safetensors(&large, &[("0.weight", F32, vec![1, 3], f32s([1.0, 70000.0, -1e6]))]);
    compress(args![&large, "--f16"]).exits(1).says(&["2 values", "0.weight", "--bf16"]);
    compress(args![&large, "--f16", "--accept"]).exits(1);
    assert!(!out.path().join("l-f16.safetensors").exists());
    let report = compress(args![&large, "--bf16", "--json"]).exits(0).json();
    assert_eq!(report["weights"]["quantized"], 1);
}

#[test]
fn a_lossless_weight_has_no_ratio() {
    use safetensors::Dtype::F32;
    let out = tempfile::tempdir().unwrap();
    let input = out.path().join("x.safetensors");
    write_safetensors(&input, &[("0.weight", F32, vec![1, 3], f32s([1.0, 0.5, -2.0]))]);
    let report = compress(args![&input, "--f16", "--json"]).exits(0).json();
    assert_eq!(report["weights"]["worst"][0]["sqnr_db"], Value::Null);
    assert_eq!(report["weights"]["worst"][0]["cosine"], 1.0);
}

#[test]
fn quiet_prints_nothing_and_a_gone_reader_is_no_error() {
    let out = tempfile::tempdir().unwrap();
    let run = compress(args![fixture("linear"), "--int8", "-o", out.path().join("a"), "-q"]).exits(0);
    assert_eq!((run.stdout.as_str(), run.stderr.as_str()), ("", ""));
    let mut child = crate::support::program()
        .args(args!["inspect", fixture("kjv-nano")])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    assert_eq!(child.wait().unwrap().code(), Some(0));
}
