//! Types that are chosen for each tensor.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::args;
use crate::support::{Run, compress, fixture};

/// The first half of the text, to calibrate on, and the second, to judge on.
fn texts(folder: &Path) -> [PathBuf; 2] {
    let text = std::fs::read_to_string(fixture("kjv-nano/valid.txt")).unwrap();
    let (first, second) = text.split_at(text.len() / 2);
    [("calibrate.txt", first), ("judge.txt", second)].map(|(name, text)| {
        let path = folder.join(name);
        std::fs::write(&path, text).unwrap();
        path
    })
}

struct Bench {
    folder: tempfile::TempDir,
    calibrate: PathBuf,
    judge: PathBuf,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let [calibrate, judge] = texts(folder.path());
        Self { folder, calibrate, judge }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Compresses kjv-nano with these flags and a small calibration.
    fn run(&self, output: &str, flags: &[&str]) -> Run {
        let args =
            args![fixture("kjv-nano"), "-o", self.at(output), "--text", &self.judge, "--json", "--method", "search"];
        let calibration = args!["--calibrate", &self.calibrate, "--calibrate-tokens", "8192"];
        let wants = !flags.contains(&"--scheme");
        let calibration = calibration.into_iter().filter(|_| wants);
        compress(args.into_iter().chain(calibration).chain(flags.iter().map(Into::into)))
    }
}

fn kl(report: &Value) -> f64 {
    report["check"]["kl"]["mean"].as_f64().unwrap()
}

fn size(path: &Path) -> u64 {
    std::fs::metadata(path).unwrap().len()
}

/// The types of a GGUF file's tensors that were given one.
fn types(path: &Path) -> BTreeMap<String, String> {
    let report = compress(args!["inspect", path, "--json"]).exits(0).json();
    let tensors = report["tensors"].as_array().unwrap().iter();
    tensors
        .map(|t| (t["name"].as_str().unwrap().to_owned(), t["encoding"].as_str().unwrap_or_default().to_owned()))
        .collect()
}

#[test]
fn chosen_types_are_closer_than_one_type_of_the_same_size() {
    let bench = Bench::new();
    let plain = bench.run("plain.gguf", &["--scheme", "q4_0", "--pure"]).exits(0).json();
    let bytes = size(&bench.at("plain.gguf")).to_string();
    let chosen = bench.run("chosen.gguf", &["--target-size", &bytes]).exits(0).json();
    assert!(size(&bench.at("chosen.gguf")) <= bytes.parse().unwrap());
    assert!(kl(&chosen) < 0.85 * kl(&plain), "{} instead of {}", kl(&chosen), kl(&plain));
    let kinds: std::collections::BTreeSet<String> = types(&bench.at("chosen.gguf")).into_values().collect();
    assert!(kinds.len() > 2, "{kinds:?}");
    // What was decided is in the file.
    let bytes = std::fs::read(bench.at("chosen.gguf")).unwrap();
    let text = String::from_utf8_lossy(&bytes);
    assert!(text.contains("name ~ ^model\\.layers\\.1\\.mlp\\.down_proj\\.weight$ → "));
    // The same file for any number of threads.
    bench.run("again.gguf", &["--target-size", &size(&bench.at("plain.gguf")).to_string(), "--threads", "1"]).exits(0);
    assert!(bytes == std::fs::read(bench.at("again.gguf")).unwrap());
}

#[test]
fn bits_are_those_of_all_tensors() {
    let bench = Bench::new();
    let report = bench.run("five.gguf", &["--target-bits", "5.0", "--dry-run"]).exits(0).json();
    let (mut bytes, mut values) = (0, 0);
    for tensor in report["tensors"].as_array().unwrap() {
        bytes += tensor["bytes"].as_u64().unwrap();
        values += tensor["values"].as_u64().unwrap();
    }
    let bits = 8.0 * bytes as f64 / values as f64;
    assert!(bits <= 5.0 && bits > 4.8, "{bits}");
    assert!(!bench.at("five.gguf").exists());
}

#[test]
fn what_cannot_be_is_refused_before_any_work() {
    let bench = Bench::new();
    let refused = bench.run("small.gguf", &["--target-size", "100KB"]).exits(2).says(&["--target-size", "smallest"]);
    assert!(!refused.stderr.contains('…'), "no stage began: {}", refused.stderr);
    // What is said to be the smallest can be made.
    let least: String =
        refused.stderr.split("which has ").nth(1).unwrap().chars().take_while(char::is_ascii_digit).collect();
    bench.run("small.gguf", &["--target-size", &least, "--max-kl", "10"]).exits(0);
    assert_eq!(size(&bench.at("small.gguf")).to_string(), least);
    bench.run("x.gguf", &["--target-bits", "1"]).exits(2).says(&["--target-bits", "bits a number"]);
    bench.run("x.gguf", &["--target-bits", "5", "--scheme", "q4_0"]).exits(2);
    let without = args![fixture("kjv-nano"), "--target-size", "2MB", "-o", bench.at("x.gguf")];
    compress(without).exits(2).says(&["--calibrate"]);
    let to = args![fixture("kjv-nano"), "--int8", "--to", "gguf", "-o", bench.at("x.gguf")];
    compress(to).exits(2).says(&["--to"]);
}

#[test]
fn the_smallest_file_within_a_divergence_holds_it_and_a_smaller_type_would_not() {
    let bench = Bench::new();
    let most = 0.01;
    let report = bench.run("kl.gguf", &["--max-kl", "0.01"]).exits(0).json();
    assert!(kl(&report) <= most && kl(&report) > 0.6 * most, "{}", kl(&report));
    // With the largest tensor one step smaller it is above: by a recipe that says so.
    let chosen = types(&bench.at("kl.gguf"));
    // Each type, its scheme, and the scheme of the next smaller one.
    let kinds = [
        ("Q3_K", "q3_k_s", "q2_k"),
        ("IQ4_XS", "iq4_xs", "q3_k_s"),
        ("Q4_K", "q4_k_s", "iq4_xs"),
        ("IQ4_NL", "iq4_nl", "iq4_xs"),
        ("Q5_0", "q5_0", "q4_k_s"),
        ("Q5_K", "q5_k_s", "q4_k_s"),
        ("Q6_K", "q6_k", "q5_k_s"),
        ("Q8_0", "q8_0", "q6_k"),
        ("F16", "f16", "q8_0"),
        ("Q2_K", "q2_k", "q2_k"),
    ];
    let mut rules = String::new();
    for (name, kind) in &chosen {
        let Some((_, own, smaller)) = kinds.iter().find(|(known, ..)| known == kind) else { continue };
        let scheme = if name.contains("embed_tokens") { smaller } else { own };
        rules += &format!("[[rule]]\nname = '^{}$'\nscheme = \"{scheme}\"\n", name.replace('.', "\\."));
    }
    let recipe = bench.at("recipe.toml");
    std::fs::write(&recipe, rules).unwrap();
    let args = args![
        fixture("kjv-nano"),
        "-o",
        bench.at("smaller.gguf"),
        "--text",
        &bench.judge,
        "--json",
        "--method",
        "search",
        "--pure",
        "--recipe",
        &recipe,
        "--accept",
    ];
    let smaller = compress(args).exits(0).json();
    assert!(size(&bench.at("smaller.gguf")) < size(&bench.at("kl.gguf")));
    assert!(kl(&smaller) > most, "{}", kl(&smaller));
}

#[test]
fn sensitivities_are_what_files_of_one_type_show() {
    let bench = Bench::new();
    let args = args!["inspect", fixture("kjv-nano"), "--sensitivity", "--calibrate", &bench.calibrate];
    let text = compress(args.clone()).exits(0).stdout;
    assert!(text.contains("model.embed_tokens.weight") && text.contains("Q4_K"), "{text}");
    let report = compress(args.into_iter().chain(args!["--json"])).exits(0).json();
    let tensors = report["tensors"].as_array().unwrap();
    assert_eq!(tensors.len(), 15);
    for (scheme, file_type) in [("q4_k_s", "q4_k_s"), ("q3_k_s", "q3_k_s"), ("q6_k", "q6_k")] {
        let of = |tensor: &Value| {
            let types = tensor["types"].as_array().unwrap();
            types.iter().find(|t| t["scheme"] == scheme).unwrap()["divergence"].as_f64().unwrap()
        };
        let foretold: f64 = tensors.iter().map(of).sum();
        let shown =
            kl(&bench.run("one.gguf", &["--scheme", file_type, "--pure", "--accept", "--force"]).exits(0).json());
        println!("{scheme}: {shown:.6} shown, {foretold:.6} foretold");
        assert!((0.5..2.0).contains(&(foretold / shown)), "{scheme}: {shown} shown, {foretold} foretold");
    }
    let worst: Vec<f64> = tensors
        .iter()
        .map(|tensor| {
            tensor["types"].as_array().unwrap().iter().find(|t| t["scheme"] == "q4_k_s").unwrap()["divergence"]
                .as_f64()
                .unwrap()
        })
        .collect();
    assert!(worst.windows(2).all(|pair| pair[0] >= pair[1]), "{worst:?}");
}

#[test]
fn safetensors_get_types_that_vllm_reads_and_fused_matrices_the_same() {
    let bench = Bench::new();
    bench.run("folder", &["--target-bits", "9", "--to", "safetensors"]).exits(0);
    let config: Value = serde_json::from_slice(&std::fs::read(bench.at("folder/config.json")).unwrap()).unwrap();
    let groups = config["quantization_config"]["config_groups"].as_object().unwrap();
    assert!(!groups.is_empty());
    let report = compress(args!["inspect", bench.at("folder"), "--json"]).exits(0).json();
    let kinds: BTreeMap<String, String> = report["tensors"]
        .as_array()
        .unwrap()
        .iter()
        .map(|t| (t["name"].as_str().unwrap().to_owned(), t["encoding"].as_str().unwrap_or_default().to_owned()))
        .collect();
    for layer in 0..2 {
        let of = |name: &str| &kinds[&format!("model.layers.{layer}.{name}.weight")];
        assert!(of("self_attn.q_proj") == of("self_attn.k_proj") && of("self_attn.q_proj") == of("self_attn.v_proj"));
        assert_eq!(of("mlp.gate_proj"), of("mlp.up_proj"));
    }
}
