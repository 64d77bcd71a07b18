//! Quantizing by what a calibration text shows, as a user does it.

use std::path::Path;
use std::sync::Arc;

use modelpress::job::Job;
use modelpress::loader::Checkpoint;
use modelpress::recipe::{Plan, Recipe, Scheme, Target};
use modelpress::{calibration, pipeline, runtime};
use serde_json::Value;

use crate::args;
use crate::families::{FAMILIES, letters};
use crate::support::{Run, compress, contents, copy_folder, fixture, program};

/// Text that kjv-nano's check does not see: its check reads the built-in sample.
fn text() -> std::path::PathBuf {
    fixture("kjv-nano/valid.txt")
}

/// Quantizes kjv-nano.
fn quantized(out: &Path, flags: &[&str]) -> Value {
    let fixed = args![fixture("kjv-nano"), "-o", out, "--json", "-q", "--force", "--accept", "--check-tokens", "2000"];
    compress(fixed.into_iter().chain(flags.iter().map(Into::into))).exits(0).json()
}

/// The same by the text.
fn by_text(out: &Path, flags: &[&str]) -> Value {
    let text = text();
    let more = ["--calibrate", text.to_str().unwrap(), "--calibrate-tokens", "6144"];
    quantized(out, &[flags, &more].concat())
}

fn kl(report: &Value) -> f64 {
    report["check"]["kl"]["mean"].as_f64().unwrap()
}

#[test]
fn codes_chosen_by_a_text_are_better_than_those_to_nearest_in_every_form() {
    let out = tempfile::tempdir().unwrap();
    let (folder, gguf) = (out.path().join("o"), out.path().join("o.gguf"));
    for (scheme, most) in
        [("q4_0", 0.6), ("q4_k_m", 0.7), ("q3_k_m", 0.6), ("q2_k", 0.5), ("q6_k", 0.8), ("w4a16", 0.6), ("fp8", 1.0)]
    {
        let file = if scheme.starts_with('q') { &gguf } else { &folder };
        let plain = kl(&quantized(file, &["--scheme", scheme]));
        let report = by_text(file, &["--scheme", scheme]);
        let ours = kl(&report);
        assert!(ours < most * plain, "{scheme}: {ours} by the text, {plain} to nearest");
        let held = &report["codes"]["held_back"];
        assert!(held["chosen"].as_f64().unwrap() < held["nearest"].as_f64().unwrap(), "{scheme}: {held}");
        assert!(report["recipe"].as_str().unwrap().contains("best"), "{}", report["recipe"]);
        assert_eq!(report["failures"], Value::Array(vec![]), "{scheme}");
    }
}

#[test]
fn methods_by_name_are_in_the_order_of_their_work() {
    let out = tempfile::tempdir().unwrap();
    let ours = out.path().join("o");
    let [rtn, search] = ["rtn", "search"].map(|method| kl(&quantized(&ours, &["--int4", "--method", method])));
    let [awq, gptq, best] = ["awq", "gptq", "best"].map(|method| kl(&by_text(&ours, &["--int4", "--method", method])));
    assert!(best < gptq && gptq < awq && awq < rtn && search < rtn, "{rtn} {search} {awq} {gptq} {best}");
}

#[test]
fn awq_is_closer_than_to_nearest_in_a_file_of_the_same_size() {
    let out = tempfile::tempdir().unwrap();
    for scheme in ["w4a16", "q4_0"] {
        let written = |name: &str| {
            let end = if scheme.starts_with('q') { ".gguf" } else { "" };
            out.path().join(format!("{scheme}-{name}{end}"))
        };
        let plain = quantized(&written("rtn"), &["--scheme", scheme, "--method", "rtn"]);
        let report = by_text(&written("awq"), &["--scheme", scheme, "--method", "awq"]);
        let (ours, nearest) = (kl(&report), kl(&plain));
        assert!(ours < 0.98 * nearest, "{scheme}: {ours} by awq, {nearest} to nearest");
        // But for the recipe's words.
        let [a, b] = [&report, &plain].map(|report| report["output"]["bytes"].as_u64().unwrap());
        assert!(a.abs_diff(b) < 128, "{scheme}: {a} bytes, {b} to nearest");
        let groups = report["scales"]["groups"].as_array().unwrap();
        let loss = |group: &Value, key: &str| group[key].as_f64().unwrap();
        assert!(groups.iter().all(|group| loss(group, "loss") <= loss(group, "nearest")), "{groups:?}");
        assert!(groups.iter().any(|group| loss(group, "ratio") > 0.0), "{groups:?}");
        assert_eq!(report["failures"], Value::Array(vec![]), "{scheme}");
    }
    let again = out.path().join("again.gguf");
    by_text(&again, &["--scheme", "q4_0", "--method", "awq", "--threads", "1", "--no-mmap"]);
    assert!(std::fs::read(&again).unwrap() == std::fs::read(out.path().join("q4_0-awq.gguf")).unwrap());
    assert_eq!(std::fs::read_dir(out.path()).unwrap().count(), 5, "nothing staged is left");
}

#[test]
fn awq_finds_what_a_plain_one_in_numpy_finds() {
    let out = tempfile::tempdir().unwrap();
    let report = by_text(&out.path().join("o"), &["--int4", "--method", "awq"]);
    let expected: Value = serde_json::from_slice(&std::fs::read(fixture("quantizing/awq.json")).unwrap()).unwrap();
    let (found, expected) = (report["scales"]["groups"].as_array().unwrap(), expected.as_array().unwrap());
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        assert_eq!(found["matrices"], expected["matrices"]);
        let errors: Vec<f64> = expected["errors"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect();
        let number = |key: &str| found[key].as_f64().unwrap();
        let near = |a: f64, b: f64, bound: f64| assert!((a / b - 1.0).abs() < bound, "{a}, expected {b}: {found}");
        near(number("nearest"), errors[0], 1e-6);
        // The last bit of a scale decides whether the largest number of a group, at -7.5, becomes -8 or -7.
        near(number("loss"), errors[(number("ratio") * 20.0).round() as usize], 1e-3);
        near(number("loss"), errors.iter().copied().fold(f64::MAX, f64::min), 1e-3);
    }
}

#[test]
fn what_awq_scales_computes_the_same_in_every_family() {
    let out = tempfile::tempdir().unwrap();
    let lines: String = "some words of letters and Some More of Them\nwhat other words are there\n".repeat(60);
    let text = out.path().join("text.txt");
    std::fs::write(&text, lines).unwrap();
    let text = calibration::Options { text, tokens: 1024, context: None };
    let job = Job::new(2);
    let tokens: Vec<u32> = (10..40).collect();
    // gpt2's matrices, stored [in, out], have codes in GGUF only, which has no tokenizer of letters.
    for family in FAMILIES.into_iter().filter(|family| *family != "gpt2") {
        let folder = out.path().join(family);
        copy_folder(&fixture("golden").join(family), &folder);
        std::fs::write(folder.join("tokenizer.json"), letters()).unwrap();
        let original = Arc::new(Checkpoint::open(&folder, &Default::default()).unwrap());
        let recipe = Recipe::from_flags(Scheme::W4A16, &[], false).unwrap();
        let ours = out.path().join(format!("{family}-ours"));
        let mut plan = Plan::new(&original, &recipe, Target::Folder, &ours).unwrap();
        let scaled = pipeline::scale(&original, &mut plan, &text, &ours, &job).unwrap();
        let forward = |checkpoint: &Arc<Checkpoint>| {
            let found = runtime::forward(&runtime::load(checkpoint).unwrap(), &tokens, &job).unwrap();
            [found.hidden_states.concat(), found.logits].concat()
        };
        let (before, after) = (forward(&original), forward(&scaled.checkpoint));
        let most = before.iter().fold(0f32, |most, x| most.max(x.abs()));
        let error = before.iter().zip(&after).fold(0f32, |most, (a, b)| most.max((a - b).abs()));
        assert!(error < 1e-4 * most.max(1.0), "{family}: {error}, numbers up to {most}");
        let taken = scaled.scales.iter().filter(|found| found.ratio > 0.0).count();
        assert!(taken > 0 && before != after, "{family}: {taken} of {}", scaled.scales.len());
    }
}

#[test]
fn threads_memory_and_how_the_input_is_read_change_no_byte() {
    let out = tempfile::tempdir().unwrap();
    let (one, two) = (out.path().join("one.gguf"), out.path().join("two.gguf"));
    let fixed = ["--scheme", "q4_k_m"];
    by_text(&one, &[&fixed[..], &["--threads", "1"]].concat());
    by_text(&two, &[&fixed[..], &["--threads", "2", "--no-mmap", "--memory", "24MiB"]].concat());
    assert!(std::fs::read(&one).unwrap() == std::fs::read(&two).unwrap());
    assert_eq!(std::fs::read_dir(out.path()).unwrap().count(), 2, "nothing staged is left");
}

#[test]
fn interrupted_work_is_taken_up_and_gives_the_same_bytes() {
    let out = tempfile::tempdir().unwrap();
    let (whole, ours) = (out.path().join("whole"), out.path().join("ours"));
    by_text(&whole, &["--int4"]);
    by_text(&whole, &["--int4", "--resume"]);
    let journal = out.path().join(".ours.codes.journal");
    let codes = out.path().join(".ours.codes.partial");
    let text = text();
    let start = |scheme: &str| {
        let mut command = program();
        command.arg(fixture("kjv-nano")).arg("-o").arg(&ours).args([
            "--scheme",
            scheme,
            "-q",
            "--no-check",
            "--resume",
        ]);
        command.arg("--calibrate").arg(&text).args(["--calibrate-tokens", "6144"]);
        command
    };
    let mut killed = start("w4a16").spawn().unwrap();
    let lines = || std::fs::read_to_string(&journal).map_or(0, |text| text.lines().count());
    let begun = std::time::Instant::now();
    while lines() < 5 && killed.try_wait().unwrap().is_none() {
        assert!(begun.elapsed().as_secs() < 600, "it chooses codes");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    killed.kill().unwrap();
    killed.wait().unwrap();
    assert!(!ours.exists() && journal.exists() && codes.exists());
    let done = lines();
    assert!(done >= 5, "{done} lines");
    Run::from(start("w8a16").output().unwrap()).exits(2).says(&["other work", "--resume"]);
    assert!(lines() == done, "what was done is still there");
    Run::from(start("w4a16").output().unwrap()).exits(0);
    assert!(contents(&whole) == contents(&ours));
    assert!(!journal.exists() && !codes.exists(), "nothing staged is left");
}

#[test]
fn every_family_is_quantized_by_a_text() {
    let out = tempfile::tempdir().unwrap();
    let lines: String = "some words of letters and Some More of Them\nwhat other words are there\n".repeat(60);
    let text = out.path().join("text.txt");
    std::fs::write(&text, lines).unwrap();
    for family in FAMILIES {
        let model = out.path().join(family);
        copy_folder(&fixture("golden").join(family), &model);
        std::fs::write(model.join("tokenizer.json"), letters()).unwrap();
        let written = out.path().join(format!("{family}-ours"));
        let args = args![&model, "--int4", "--group-size", "16", "-o", &written, "--json", "-q", "--accept"];
        let more = args!["--calibrate", &text, "--calibrate-tokens", "2048", "--check-tokens", "256"];
        let report = compress(args.into_iter().chain(more)).exits(0).json();
        // Stored [in, out], it has no such form in safetensors.
        if family == "gpt2" {
            continue;
        }
        let matrices = report["codes"]["matrices"].as_array().unwrap_or_else(|| panic!("{family}: {report}"));
        let quantized = report["weights"]["quantized"].as_u64().unwrap();
        // Nothing of a text reaches bert's pooler, which the embedding does not use.
        let unreached = report["notes"].as_array().unwrap().iter();
        let unreached = unreached.filter(|note| note.as_str().unwrap().contains("no text reaches it")).count();
        assert!((matrices.len() + unreached) as u64 >= quantized, "{family}: {} of {quantized}", matrices.len());
        assert!(matrices.iter().any(|matrix| matrix["tokens"].as_u64() > Some(0)), "{family}");
    }
}

#[test]
fn what_cannot_be_is_refused_before_any_work() {
    let out = tempfile::tempdir().unwrap();
    let (ours, short) = (out.path().join("o"), out.path().join("short.txt"));
    std::fs::write(&short, "Too short.").unwrap();
    let (text, short) = (text(), short.to_str().unwrap());
    let text = text.to_str().unwrap();
    for (flags, word) in [
        (&["--int4", "--method", "best"][..], "--calibrate"),
        (&["--int4", "--method", "gptq"], "--calibrate"),
        (&["--int4", "--method", "awq"], "--calibrate"),
        (&["--int4", "--method", "awq", "--calibrate", text, "--resume"], "--resume"),
        (&["--int4", "--method", "awq", "--calibrate", text, "--memory", "100KiB"], "choosing its codes by a text"),
        (&["--target-bits", "5", "--method", "awq", "--calibrate", text], "--method awq"),
        (&["--int4", "--method", "worst", "--calibrate", text], "rtn, search"),
        (&["--int4", "--calibrate", short], "at least one window"),
        (&["--int4", "--calibrate", text, "--memory", "1MiB"], "choosing its codes by a text"),
        (&["--f16", "--method", "best", "--calibrate", text], "schemes with scales"),
        (&["--f16", "--calibrate", text], "looks at a text"),
        (&["--int4", "--prune", "0.5", "--method", "best", "--calibrate", text], "--prune"),
        (&["--int4", "--search", "--method", "best", "--calibrate", text], "--method"),
        (&["--int4", "--resume"], "--calibrate"),
        (&["--int4", "--method", "search", "--resume", "--calibrate", text], "looks at a text"),
        (&["--int4", "--search", "--calibrate", text], "looks at a text"),
        (&["--int4", "--calibrate", text, "--calibration-out", short], "--calibration-out"),
    ] {
        let run = program().arg(fixture("kjv-nano")).args(flags).arg("-o").arg(&ours).output().unwrap();
        Run::from(run).exits(2).says(&[word]);
        assert!(!ours.exists());
    }
    assert_eq!(std::fs::read_dir(out.path()).unwrap().count(), 1);
}

#[test]
fn the_second_half_of_windows_is_scored_as_llama_cpp_does() {
    let check = |flags: &[&str]| {
        let model = fixture("kjv-nano");
        let fixed = args!["check", &model, &model, "--json", "-q", "--context", "128", "--text", text()];
        compress(fixed.into_iter().chain(flags.iter().map(Into::into))).exits(0).json()
    };
    let all = check(&["--check-tokens", "1270"]);
    let half = check(&["--check-tokens", "1270", "--score", "second-half"]);
    // 63 predictions of each window of 128.
    assert_eq!((all["tokens"].as_u64(), half["tokens"].as_u64()), (Some(1270), Some(1260)));
    let perplexity = |found: &Value| found["original"]["perplexity"].as_f64().unwrap();
    assert!(perplexity(&half) != perplexity(&all));
}
