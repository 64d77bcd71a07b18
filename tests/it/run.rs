//! `compress run`: continuing prompts, embedding texts, predicting, and what can be wrong with each.

use std::path::Path;
use std::sync::Arc;

use modelpress::job::Job;
use modelpress::loader::{Checkpoint, Options};
use modelpress::runtime;
use serde_json::{Value, json};

use crate::args;
use crate::support::{compress, copy_folder, fixture, shared};

const NANO: &str = "In the beginning of the first year of the month, in the first year of the month, in the first year of the month, in the first year of the month, in the first year of the month,";
const SMALL: &str = "In the beginning of the world, and of the world, and of the world, and of the world, and of the world, and of the world, and of the world, and of the world, and";

#[test]
fn greedy_continuations_are_those_of_transformers_word_for_word() {
    let small = shared("models/kjv-small");
    for (model, expected) in [(Some(fixture("kjv-nano")), NANO), (small, SMALL)] {
        let Some(model) = model else { continue };
        let prompt = "In the beginning";
        let run = compress(args!["run", &model, "--prompt", prompt, "--max-tokens", "40"]).exits(0);
        assert_eq!(run.stdout.trim_end_matches('\n'), expected);
        let run =
            compress(args!["run", &model, "--prompt", prompt, "--max-tokens", "40", "--json", "--no-mmap"]).exits(0);
        let found = run.json();
        assert_eq!(format!("{prompt}{}", found["continuation"].as_str().unwrap()), expected);
        assert_eq!((&found["tokens"], &found["end"]), (&json!(40), &json!("length")));
    }
}

#[test]
fn drawn_texts_repeat_with_their_seed() {
    let draw = |seed: &str, more: [&str; 2]| {
        let args = args!["run", fixture("kjv-nano"), "--prompt", "And", "--max-tokens", "20", "--seed", seed];
        compress(args.into_iter().chain(more.map(Into::into))).exits(0).stdout
    };
    let one = draw("1", ["--temperature", "1"]);
    assert_eq!(one, draw("1", ["--temperature", "1"]));
    assert_ne!(one, draw("2", ["--temperature", "1"]));
    // So narrow a choice is no choice.
    let greedy = draw("1", ["--temperature", "0"]);
    assert_eq!(greedy, draw("2", ["--temperature", "0.0001"]));
}

#[test]
fn int8_and_half_precision_run_as_stored() {
    let out = tempfile::tempdir().unwrap();
    for flag in ["--int8", "--f16", "--bf16"] {
        let model = out.path().join(flag);
        compress(args![fixture("kjv-nano"), flag, "-q", "-o", &model]).exits(0);
        let run = compress(args!["run", &model, "--prompt", "In the beginning", "--max-tokens", "6"]).exits(0);
        assert!(run.stdout.starts_with("In the beginning of the "), "{flag}: {}", run.stdout);
    }
}

/// What each scheme writes continues a text with the tokens that one pass over prompt and continuation finds likeliest.
#[test]
fn every_scheme_continues_as_one_pass_over_its_file_does() {
    let out = tempfile::tempdir().unwrap();
    let models = [Some(fixture("kjv-nano")), shared("models/kjv-small")];
    for (number, original) in models.into_iter().flatten().enumerate() {
        let tokenizer = Checkpoint::open(&original, &Options::default()).unwrap().tokenizer().unwrap().unwrap();
        for scheme in ["int8", "int4", "w8a16", "fp8", "q8_0", "q4_0", "q5_1", "q6_k", "q4_k_m", "iq4_nl"] {
            let is_gguf = scheme.contains('_');
            let folder = out.path().join(format!("{number}-{scheme}"));
            let file = if is_gguf { folder.join("model.gguf") } else { folder.clone() };
            if is_gguf {
                std::fs::create_dir(&folder).unwrap();
                std::fs::copy(original.join("tokenizer.json"), folder.join("tokenizer.json")).unwrap();
            }
            compress(args![&original, "--scheme", scheme, "-o", &file, "-q", "--no-check"]).exits(0);
            let prompt = "In the beginning God created the heaven and the earth";
            let found =
                compress(args!["run", &file, "--prompt", prompt, "--max-tokens", "24", "--json", "-q"]).exits(0).json();
            let text = found["continuation"].as_str().unwrap();
            println!("{scheme}: {prompt}{text}");
            let new = found["tokens"].as_u64().unwrap() as usize;
            let whole = format!("{prompt}{text}");
            let tokens: Vec<u32> = tokenizer.bos().into_iter().chain(tokenizer.encode(&whole).unwrap()).collect();
            let checkpoint = Arc::new(Checkpoint::open(&file, &Options::default()).unwrap());
            let model = runtime::load(&checkpoint).unwrap();
            let vocab = model.shape().vocab;
            let logits = runtime::forward(&model, &tokens, &Job::new(2)).unwrap().logits;
            let steps = logits.chunks(vocab).zip(&tokens[1..]).skip(tokens.len() - 1 - new);
            for (logits, token) in steps {
                let most = logits.iter().copied().fold(f32::MIN, f32::max);
                // The cache holds halves: two tokens that are as good as equal may change places.
                assert!(logits[*token as usize] >= most - 0.05, "{scheme}: {text}");
            }
            // Words of the text that it was trained on, and not noise.
            let bible = std::fs::read_to_string(fixture("kjv-nano/valid.txt")).unwrap();
            let words: Vec<&str> =
                text.split_whitespace().map(|word| word.trim_matches([',', '.', ';', ':'])).collect();
            let known = words.iter().filter(|word| bible.contains(**word)).count();
            assert!(words.len() >= 8 && known * 10 >= words.len() * 8, "{scheme}: {text}");
        }
    }
}

/// A copy of kjv-nano.
fn nano() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    copy_folder(&fixture("kjv-nano"), folder.path());
    folder
}

fn edit(path: &Path, change: impl FnOnce(&mut Value)) {
    let mut value: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    change(&mut value);
    std::fs::write(path, value.to_string()).unwrap();
}

#[test]
fn stop_tokens_end_a_text() {
    let folder = nano();
    let run =
        || compress(args!["run", folder.path(), "--prompt", "In the beginning", "--max-tokens", "40", "--json"]).json();
    let whole = run();
    // The comma, which comes after "month".
    let tokenizer: Value =
        serde_json::from_slice(&std::fs::read(folder.path().join("tokenizer.json")).unwrap()).unwrap();
    let comma = tokenizer["model"]["vocab"][","].clone();
    edit(&folder.path().join("generation_config.json"), |config| config["eos_token_id"] = json!([1, comma]));
    let found = run();
    assert_eq!((&found["end"], &found["continuation"]), (&json!("stop"), &json!(" of the first year of the month")));
    assert!(whole["continuation"].as_str().unwrap().starts_with(found["continuation"].as_str().unwrap()));
}

#[test]
fn a_chat_template_makes_the_prompt() {
    let folder = nano();
    let run = |args: &[&str]| {
        compress(args!["run", folder.path(), "--max-tokens", "5"].into_iter().chain(args.iter().map(Into::into)))
    };
    run(&["--prompt", "x", "--chat"]).exits(3).says(&["no chat template", "--chat"]);
    let template = folder.path().join("chat_template.jinja");
    std::fs::write(&template, "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %} beginning").unwrap();
    let plain = run(&["--prompt", "In the beginning"]).exits(0).stdout;
    let chat = run(&["--prompt", "In the", "--chat"]).exits(0).stdout;
    assert_eq!(format!("In the beginning{chat}"), plain, "the answer alone");
    std::fs::write(&template, "{{ raise_exception('one of us') }}").unwrap();
    run(&["--prompt", "x", "--chat"]).exits(3).says(&["chat_template.jinja", "one of us"]);
    std::fs::remove_file(&template).unwrap();
    edit(&folder.path().join("tokenizer_config.json"), |c| c["chat_template"] = json!("{% for %}"));
    run(&["--prompt", "x", "--chat"]).exits(3).says(&["tokenizer_config.json", "syntax"]);
}

/// A tokenizer of four words.
fn words() -> String {
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "unk_token": "?", "vocab": {"?": 5, "in": 6, "the": 7, "beginning": 300}},
    })
    .to_string()
}

#[test]
fn encoders_embed_a_text_a_line() {
    let out = tempfile::tempdir().unwrap();
    let model = out.path().join("bert");
    copy_folder(&fixture("golden/bert"), &model);
    std::fs::write(model.join("tokenizer.json"), words()).unwrap();
    let text = out.path().join("text");
    std::fs::write(&text, "in the\n\nthe the the\n").unwrap();
    let run = || -> Vec<Value> {
        let run = compress(args!["run", &model, "--text", &text, "-q"]).exits(0);
        run.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let vector = |line: &Value| -> Vec<f64> {
        line["embedding"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
    };
    let mean = run();
    assert_eq!((mean.len(), &mean[0]["text"], vector(&mean[1]).len()), (2, &json!("in the"), 64));
    std::fs::create_dir(model.join("1_Pooling")).unwrap();
    std::fs::write(model.join("1_Pooling/config.json"), json!({"pooling_mode_cls_token": true}).to_string()).unwrap();
    let modules = |last: &str| {
        let types = ["Transformer", "Pooling", last]
            .map(|kind| json!({"type": format!("sentence_transformers.models.{kind}")}));
        std::fs::write(model.join("modules.json"), json!(types).to_string()).unwrap();
    };
    modules("Normalize");
    let unit = run();
    assert_ne!(mean, unit);
    for line in &unit {
        assert!((vector(line).iter().map(|x| x * x).sum::<f64>() - 1.0).abs() < 1e-5);
    }
    modules("Dense");
    compress(args!["run", &model, "--text", &text]).exits(3).says(&["Dense", "modules.json"]);
    std::fs::remove_file(model.join("modules.json")).unwrap();
    std::fs::write(&text, "the beginning").unwrap();
    compress(args!["run", &model, "--text", &text]).exits(3).says(&["token 300", "vocabulary of 256"]);
    std::fs::remove_file(model.join("tokenizer.json")).unwrap();
    compress(args!["run", &model, "--text", &text]).exits(3).says(&["tokenizer.json"]);
}

#[test]
fn chains_predict() {
    let inputs = fixture("linear/inputs.csv");
    let run = compress(args!["run", fixture("linear"), "--inputs", &inputs, "--json", "-q"]).exits(0);
    let predictions = run.json()["predictions"].clone();
    let lines = compress(args!["run", fixture("linear"), "--inputs", &inputs]).exits(0).stdout;
    let numbers: Vec<f64> = lines.lines().map(|line| line.parse().unwrap()).collect();
    let expected: Vec<f64> = predictions.as_array().unwrap().iter().map(|row| row[0].as_f64().unwrap()).collect();
    assert_eq!(numbers.len(), std::fs::read_to_string(&inputs).unwrap().lines().count());
    assert!(numbers.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-6), "{numbers:?} {expected:?}");
}

/// Three layers with tanh between, computed by numpy in float64.
#[test]
fn predictions_are_numpys() {
    let rows = |text: &str| -> Vec<f64> {
        text.split(['\n', ',']).filter(|field| !field.is_empty()).map(|field| field.parse().unwrap()).collect()
    };
    let inputs = fixture("chain/inputs.csv");
    let expected = rows(&std::fs::read_to_string(fixture("chain/predictions.csv")).unwrap());
    let out = tempfile::tempdir().unwrap();
    let half = out.path().join("half");
    compress(args![fixture("chain"), "--f16", "-o", &half, "-q"]).exits(0);
    for (model, close) in [(fixture("chain"), 1e-5), (half, 2e-2)] {
        let found = rows(&compress(args!["run", &model, "--inputs", &inputs]).exits(0).stdout);
        assert_eq!(found.len(), expected.len());
        for (a, b) in found.iter().zip(&expected) {
            assert!((a - b).abs() <= close, "{a} {b}");
        }
    }
}

#[test]
fn what_cannot_run_says_why() {
    let folder = nano();
    let run = |args: &[&str]| compress(args!["run", folder.path()].into_iter().chain(args.iter().map(Into::into)));
    let long = "beginning ".repeat(1000);
    run(&["--prompt", &long]).exits(2).says(&["tokens", "512 positions"]);
    run(&["--prompt", ""]).exits(0);
    run(&["--text", "x"]).exits(2).says(&["is a decoder (llama)", "--prompt"]);
    run(&["--inputs", "x"]).exits(2).says(&["--prompt"]);
    run(&[]).exits(2);
    compress(args!["run", fixture("linear"), "--prompt", "x"]).exits(2).says(&["--inputs FILE"]);
    compress(args!["run", fixture("golden/llama"), "--prompt", "x"]).exits(3).says(&["tokenizer.json", "golden/llama"]);
    let config = folder.path().join("config.json");
    edit(&config, |config| config["odd_field"] = json!(1));
    run(&["--prompt", "x", "--max-tokens", "1"]).exits(0).says(&["odd_field"]);
    // A tokenizer of another model: its tokens are not in this vocabulary.
    let tokenizer = folder.path().join("tokenizer.json");
    let own = std::fs::read(&tokenizer).unwrap();
    edit(&tokenizer, |tokenizer| {
        let words = json!({"type": "WordLevel", "unk_token": "x", "vocab": {"x": 2048}});
        *tokenizer = json!({"version": "1.0", "added_tokens": [], "model": words});
    });
    run(&["--prompt", "x"]).exits(3).says(&["token 2048", "vocabulary of 2048"]);
    std::fs::write(&tokenizer, own).unwrap();
    edit(&config, |config| config["model_type"] = json!("mamba"));
    let families =
        "llama, mistral, mixtral, qwen2, qwen3, qwen3_moe, phi3, gemma3_text, gpt2, bert, roberta, distilbert";
    run(&["--prompt", "x"]).exits(3).says(&["mamba", families]);
    edit(&config, |config| config["model_type"] = json!("qwen3"));
    let missing = [
        "layers.0.self_attn.q_norm.weight",
        "layers.0.self_attn.k_norm",
        "layers.1.self_attn.q_norm",
        "layers.1.self_attn.k_norm",
    ];
    run(&["--prompt", "x"]).exits(3).says(&missing);
    edit(&config, |config| {
        config["model_type"] = json!("llama");
        config["rope_scaling"] = json!({"rope_type": "yarn", "factor": 4.0});
    });
    run(&["--prompt", "x"]).exits(3).says(&["rope_scaling.rope_type", "yarn"]);
}
