//! Quantizing by what a calibration text shows, as a user does it.

use std::path::Path;

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
    let [gptq, best] = ["gptq", "best"].map(|method| kl(&by_text(&ours, &["--int4", "--method", method])));
    assert!(best < gptq && gptq < rtn && search < rtn, "{rtn} {search} {gptq} {best}");
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
