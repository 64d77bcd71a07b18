//! `compress fit`: the mission's own program, and what it writes in the other commands.

use safetensors::Dtype;

use crate::args;
use crate::support::{compress, f32s, fixture, noise, tensors, write_safetensors};

const EXAMPLE: &str = "x1,x2,y\n1,2,1\n2,3,2\n3,4,3\n4,5,4\n";

#[test]
fn the_example_predicts_five_and_every_command_takes_what_is_written() {
    let out = tempfile::tempdir().unwrap();
    let (data, model, next) = (out.path().join("d.csv"), out.path().join("m.safetensors"), out.path().join("x.csv"));
    std::fs::write(&data, EXAMPLE).unwrap();
    std::fs::write(&next, "5,6\n").unwrap();
    for flags in [&[][..], &["--steps", "20000"], &["--split", "1"], &["--seed", "9", "--threads", "1"]] {
        let fit = args!["fit", &data, "-o", &model, "--force", "--json"];
        let report = compress(fit.into_iter().chain(flags.iter().map(Into::into))).exits(0).json();
        assert!(report["loss"]["after"].as_f64().unwrap() < 1e-7, "{report}");
        assert_eq!(report["held_out"].is_null(), flags == ["--split", "1"]);
        let run = compress(args!["run", &model, "--inputs", &next, "-q"]).exits(0).stdout;
        let prediction: f64 = run.trim().parse().unwrap_or_else(|_| panic!("{run}"));
        assert!((prediction - 5.0).abs() < 1e-3, "{flags:?}: {prediction}");
    }
    assert!(compress(args!["inspect", &model]).exits(0).stdout.contains("linear-chain"));
    let half = out.path().join("half.safetensors");
    compress(args![&model, "--f16", "-o", &half, "-q"]).exits(0);
    compress(args!["check", &model, &half]).exits(0);
}

#[test]
fn tensors_with_several_targets_are_fitted_and_evaluated_on_rows_that_were_held_out() {
    let out = tempfile::tempdir().unwrap();
    let (data, model) = (out.path().join("d.safetensors"), out.path().join("m.safetensors"));
    let (x, w) = (noise(200 * 3), [2.0, -1.0, 0.5, 0.25, 3.0, -4.0]);
    let y = x.chunks(3).flat_map(|x| w.chunks(3).map(move |w| x.iter().zip(w).map(|(x, w)| x * w).sum::<f32>()));
    let y = f32s(y);
    write_safetensors(&data, &[("x", Dtype::F32, vec![200, 3], f32s(x.clone())), ("y", Dtype::F32, vec![200, 2], y)]);
    let report = compress(args!["fit", &data, "-o", &model, "--json"]).exits(0).json();
    assert_eq!((&report["train"]["rows"], &report["held_out"]["rows"]), (&150.into(), &50.into()));
    assert!(report["held_out"]["r2"].as_f64().unwrap() > 0.999_999);
    let (_, shape, bytes) = &tensors(&model)["0.weight"];
    assert_eq!(shape, &[2, 3]);
    for (found, expected) in bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).zip(w) {
        assert!((found - expected).abs() < 1e-4);
    }
}

#[test]
fn arrays_that_numpy_wrote_are_fitted_whole_numbers_too() {
    let out = tempfile::tempdir().unwrap();
    let (model, next) = (out.path().join("m.safetensors"), out.path().join("x.csv"));
    std::fs::write(&next, "5,6\n").unwrap();
    compress(args!["fit", fixture("fit/example.npz"), "-o", &model, "-q"]).exits(0);
    let prediction: f64 =
        compress(args!["run", &model, "--inputs", &next, "-q"]).exits(0).stdout.trim().parse().unwrap();
    assert!((prediction - 5.0).abs() < 1e-3, "{prediction}");
    let error = compress(args!["fit", fixture("exchange/chain.npz"), "-o", &model, "--force"]).exits(3);
    error.says(&["chain.npz", "one tensor of numbers called x"]);
}

#[test]
fn what_cannot_be_fitted_is_refused() {
    let out = tempfile::tempdir().unwrap();
    let (data, model) = (out.path().join("d.csv"), out.path().join("m.safetensors"));
    std::fs::write(&data, EXAMPLE).unwrap();
    let fit = |extra: &[&str]| {
        let args = args!["fit", &data, "-o", &model];
        compress(args.into_iter().chain(extra.iter().map(Into::into)))
    };
    fit(&["--split", "1.5"]).exits(2).says(&["from 0 to 1"]);
    fit(&["--split", "0"]).exits(2).says(&["none of 4 rows"]);
    fit(&["--ridge", "-1"]).exits(2).says(&["number from 0"]);
    fit(&["--targets", "3"]).exits(3).says(&["d.csv", "3 targets"]);
    compress(args!["fit", &data, "-o", out.path().join("m.bin")]).exits(2).says(&[".safetensors"]);
    compress(args!["fit", out.path().join("none.csv"), "-o", &model]).exits(4).says(&["none.csv"]);
    assert!(!model.exists());
    fit(&[]).exits(0);
    fit(&[]).exits(2).says(&["exists"]);
}
