//! Against what Hugging Face transformers computes. The folder with reference models is the environment variable
//! MODELPRESS_GOLDEN's, else ../shared/golden where that is, else the part of it in fixtures/; so other models of the same
//! families can be put to the test.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use half::f16;
use modelpress::encoding::plain::Real;
use modelpress::encoding::{Encoding, Rows};
use modelpress::family::{Position, RopeScaling, Slot};
use modelpress::job::Job;
use modelpress::loader::{Checkpoint, Options};
use modelpress::runtime::{self, Activations, Error, Model, Observer, Place, forward, linear, walk};
use safetensors::{Dtype, SafeTensors};

use crate::args;
use crate::support::{compress, copy_folder, fixture, shared, tensors, write_safetensors};

pub fn open(folder: &Path) -> Arc<Checkpoint> {
    Arc::new(Checkpoint::open(folder, &Options::default()).unwrap())
}

fn numbers(tensors: &SafeTensors<'_>, name: &str) -> Vec<f32> {
    let tensor = tensors.tensor(name).unwrap();
    assert_eq!(tensor.dtype(), Dtype::F32, "{name}");
    let mut out = vec![0.0; tensor.shape().iter().product()];
    f32::decode(formats::Dtype::F32, tensor.data(), &mut out);
    out
}

/// What transformers recorded in a folder.
struct Record(Vec<u8>);

impl Record {
    fn open(folder: &Path) -> Self {
        Self(std::fs::read(folder.join("golden.safetensors")).unwrap())
    }

    fn tensors(&self) -> SafeTensors<'_> {
        SafeTensors::deserialize(&self.0).unwrap()
    }

    /// The texts, in tokens.
    fn texts(&self) -> Vec<Vec<u32>> {
        let tensors = self.tensors();
        let ids = tensors.tensor("input_ids").unwrap();
        let id = |bytes: &[u8]| i64::from_le_bytes(bytes.try_into().unwrap()) as u32;
        let tokens: Vec<u32> = ids.data().chunks_exact(8).map(id).collect();
        tokens.chunks(ids.shape()[1]).map(<[u32]>::to_vec).collect()
    }

    /// The largest difference of a text's values from those recorded; 0 if there is no record.
    fn difference(&self, name: &str, text: usize, found: &[f32]) -> f32 {
        let tensors = self.tensors();
        if tensors.tensor(name).is_err() {
            return 0.0;
        }
        let expected = numbers(&tensors, name);
        let expected = &expected[text * found.len()..][..found.len()];
        assert!(found.iter().all(|x| x.is_finite()), "{name}");
        found.iter().zip(expected).fold(0.0, |most, (f, e)| most.max((f - e).abs()))
    }
}

/// The largest difference of what the model in a folder computes of the first `most` tokens from the folder's own record of
/// it: of hidden states, and of logits.
pub fn difference(folder: &Path, most: usize) -> (f32, f32) {
    difference_of(&open(folder), folder, most)
}

/// As [`difference`], of another form of the model.
pub fn difference_of(model: &Arc<Checkpoint>, folder: &Path, most: usize) -> (f32, f32) {
    difference_when_run(&runtime::load(model).unwrap(), folder, most)
}

fn difference_when_run(model: &Model, folder: &Path, most: usize) -> (f32, f32) {
    let (record, job) = (Record::open(folder), Job::new(2));
    let (mut hidden, mut logits) = (0.0f32, 0.0f32);
    for (text, tokens) in record.texts().iter().enumerate() {
        let found = forward(model, &tokens[..most.min(tokens.len())], &job).unwrap();
        for (i, state) in found.hidden_states.iter().enumerate() {
            hidden = hidden.max(record.difference(&format!("hidden_states.{i}"), text, state));
        }
        match found.logits.as_slice() {
            [] => {
                let last = found.hidden_states.last().unwrap();
                hidden = hidden.max(record.difference("last_hidden_state", text, last));
            }
            found => logits = logits.max(record.difference("logits", text, found)),
        }
    }
    (hidden, logits)
}

/// The folders of a folder that hold a reference model.
pub fn models(folder: &Path) -> Vec<PathBuf> {
    let mut all: Vec<PathBuf> = std::fs::read_dir(folder)
        .unwrap_or_else(|e| panic!("no reference models at {}: {e}", folder.display()))
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.join("golden.safetensors").exists())
        .collect();
    all.sort();
    assert!(!all.is_empty(), "no reference models in {}", folder.display());
    all
}

fn compare(folder: &Path, fields_are_known: bool) {
    for model in models(folder) {
        let unknown = open(&model).family().unwrap().config.unknown.clone();
        assert!(unknown.is_empty() || !fields_are_known, "{}: {unknown:?}", model.display());
        let (hidden, logits) = difference(&model, usize::MAX);
        println!("{}: hidden states within {hidden:.1e}, logits within {logits:.1e}", model.display());
        assert!(hidden <= 1e-4 && logits <= 1e-4, "{}: {hidden:e} {logits:e}", model.display());
    }
}

#[test]
fn hidden_states_and_logits_are_those_of_transformers() {
    match std::env::var_os("MODELPRESS_GOLDEN") {
        Some(folder) => compare(folder.as_ref(), false),
        None => compare(&shared("golden").unwrap_or_else(|| fixture("golden")), true),
    }
}

/// Models with settings that are legal and seldom (`tests/odd_models.py` makes these and more).
#[test]
fn odd_settings_compute_what_transformers_does() {
    compare(&fixture("golden-odd"), true);
}

/// roberta counts positions without padding tokens, so one inside a text would shift all that follow.
#[test]
fn a_padding_token_in_a_text_is_refused() {
    let model = runtime::load(&open(&fixture("golden/roberta"))).unwrap();
    let error = forward(&model, &[5, 1, 7], &Job::new(1)).err().unwrap().to_string();
    assert!(error.contains("token 1 is the padding token"), "{error}");
}

/// Rounds how fast each pair turns to f16, as halving a transformers model rounds its `inv_freq` buffers.
fn halve_frequencies(model: &mut Model) {
    let Position::Rope(ropes) = &mut model.shape_mut().position else { return };
    for rope in ropes {
        let halved = rope.frequencies(1).into_iter().map(|x| f64::from(f16::from_f32(x)));
        let plain = |i: usize| f64::from(rope.theta).powf(-(2.0 * i as f64) / rope.dims as f64);
        let factors = halved.enumerate().map(|(i, x)| (plain(i) / x) as f32).collect();
        rope.scaling = RopeScaling::Each(factors);
    }
}

/// These records were made by `model.half().float()`, which rounds the rotations' frequencies to f16 along with the weights:
/// so made again by transformers 5.23 they return to 2.3·10⁻⁵, while the same files loaded in f32, frequencies exact, differ
/// from the record by up to 2.2·10⁻², as ours do. So both are put to it: our run with frequencies rounded likewise, in every
/// position, and our run as it is, in the first, which does not turn.
#[test]
fn half_precision_weights_are_run_as_stored() {
    let Some(folder) = shared("golden-wide") else { return };
    for folder in models(&folder) {
        let (hidden, logits) = difference(&folder, 1);
        assert!(hidden <= 1e-4 && logits <= 1e-4, "{}: {hidden:e} {logits:e}", folder.display());
        let mut model = runtime::load(&open(&folder)).unwrap();
        halve_frequencies(&mut model);
        let (hidden, logits) = difference_when_run(&model, &folder, usize::MAX);
        println!("{}: hidden states within {hidden:.1e}, logits within {logits:.1e}", folder.display());
        assert!(hidden <= 1e-4 && logits <= 1e-4, "{}: {hidden:e} {logits:e}", folder.display());
    }
}

/// The Kullback-Leibler divergence of the distribution that `found` are the logits of from that of `expected`, in nats.
fn divergence(expected: &[f32], found: &[f32]) -> f64 {
    let log_probabilities = |logits: &[f32]| -> Vec<f64> {
        let most = f64::from(logits.iter().fold(f32::NEG_INFINITY, |most, x| most.max(*x)));
        let total = logits.iter().map(|x| (f64::from(*x) - most).exp()).sum::<f64>().ln() + most;
        logits.iter().map(|x| f64::from(*x) - total).collect()
    };
    let (p, q) = (log_probabilities(expected), log_probabilities(found));
    p.iter().zip(q).map(|(p, q)| p.exp() * (p - q)).sum()
}

/// Rounding activations to int8 is a step function, and the largest activation of a token lies on a step: it is divided by
/// itself / 127.5, and −127.5 goes to −128 or −127 by the last bit. Two runs whose f32 sums differ in the last bit (another
/// order of adding) therefore agree to 10⁻⁵ in some positions and to a code's width in others, and the record is one such
/// run. So: some positions agree as f32 does, and the distributions agree much better than quantizing changed them (a mean
/// of 5·10⁻⁴).
#[test]
fn w8a8_logits_are_those_of_compressed_tensors_up_to_ties() {
    for folder in ["golden-ct/float32/w8a8", "golden-ct/bfloat16/w8a8"] {
        let folder = fixture(folder);
        let model = runtime::load(&open(&folder)).unwrap();
        let vocab = model.shape().vocab;
        let record = Record::open(&folder);
        let expected = numbers(&record.tensors(), "logits");
        let found = forward(&model, &record.texts()[0], &Job::new(1)).unwrap().logits;
        let positions = expected.len() / vocab;
        let (mut same, mut most, mut kl) = (0, 0.0f32, 0.0);
        for (e, f) in expected.chunks(vocab).zip(found.chunks(vocab)) {
            let difference = e.iter().zip(f).fold(0.0f32, |most, (e, f)| most.max((e - f).abs()));
            same += usize::from(difference <= 1e-3);
            most = most.max(difference);
            kl += divergence(e, f) / positions as f64;
        }
        println!("{}: {same} of {positions} within 1e-3, all within {most:.1e}, mean KL {kl:.1e}", folder.display());
        assert!(same > 2 && most < 0.3 && kl < 1e-4, "{}: {same} {most} {kl}", folder.display());
    }
}

/// A matrix of one value.
struct Constant(usize, usize, f32);

impl Rows for Constant {
    fn rows(&self) -> usize {
        self.0
    }
    fn cols(&self) -> usize {
        self.1
    }
    fn read(&self, _: usize, out: &mut [f32]) {
        out.fill(self.2);
    }
}

/// Counts what it is told.
#[derive(Default)]
struct Counter {
    inputs: HashMap<(usize, Slot), usize>,
    blocks: Vec<(usize, usize)>,
}

impl Observer for Counter {
    fn input(&mut self, model: usize, place: Place, x: &Activations<'_>) {
        *self.inputs.entry((model, place.slot)).or_default() += x.rows();
    }

    fn block_ends(&mut self, model: usize, layer: usize, _: &[f32]) {
        self.blocks.push((model, layer));
    }
}

#[test]
fn many_windows_of_two_models_walk_as_each_would_alone() {
    let checkpoint = open(&fixture("golden/llama"));
    let (first, mut second) = (runtime::load(&checkpoint).unwrap(), runtime::load(&checkpoint).unwrap());
    // The second model's first query projection is another one.
    let other = Constant(64, 64, 0.01);
    second.overlay_mut().insert(Place::new(Slot::AttnQ, 0), linear::from_rows(Arc::new(other)));
    let windows: Vec<Vec<u32>> =
        [3usize, 0, 1, 90, 17].iter().map(|n| (0..*n as u32).map(|i| i * 7 % 256).collect()).collect();
    let mut job = Job::new(2);
    // So little that windows are cut into several chunks.
    job.memory = 1;
    let mut counter = Counter::default();
    let mut found = [Vec::new(), Vec::new()];
    let mut next = 0;
    walk::language(&[&first, &second], &windows, &job, "test", &mut counter, |positions, logits| {
        assert_eq!(positions.start, next);
        next = positions.end;
        found.iter_mut().zip(logits).for_each(|(found, logits)| found.extend_from_slice(logits));
    })
    .unwrap();
    assert_eq!(counter.blocks, [(0, 0), (1, 0), (0, 1), (1, 1)]);
    assert_eq!(counter.inputs[&(1, Slot::FfnDown)], 2 * 111);
    assert_eq!(counter.inputs[&(0, Slot::Head)], 111);
    for (model, found) in [&first, &second].into_iter().zip(&found) {
        let mut at = 0;
        for window in windows.iter().filter(|window| !window.is_empty()) {
            let alone = forward(model, window, &Job::new(1)).unwrap();
            for (f, e) in found[at..].iter().zip(&alone.logits) {
                assert!((f - e).abs() < 1e-4);
            }
            at += alone.logits.len();
        }
        assert_eq!(at, found.len());
    }
    assert!(found[0].iter().zip(&found[1]).any(|(a, b)| (a - b).abs() > 1e-2), "the overlay counts");

    job.cancel.cancel();
    assert!(matches!(forward(&first, &[1, 2], &job), Err(Error::Interrupted(_))));
    assert!(matches!(forward(&first, &[256], &Job::new(1)), Err(Error::Token { token: 256, vocab: 256 })));
    let bert = runtime::load(&open(&fixture("golden/bert"))).unwrap();
    let error = forward(&bert, &[5; 129], &Job::new(1)).unwrap_err();
    assert!(matches!(error, Error::TooLong { length: 129, limit: 128 }), "{error}");
}

/// Experts stacked in one tensor, as transformers 5 holds them in memory, are the same experts; in int8 too.
#[test]
fn stacked_experts_are_the_same_experts() {
    for family in ["mixtral", "qwen3-moe"] {
        let out = tempfile::tempdir().unwrap();
        copy_folder(&fixture(&format!("golden/{family}")), out.path());
        let path = out.path().join("model.safetensors");
        let mut all = tensors(&path);
        let find = |layer: usize, expert: usize, names: [&str; 2]| {
            let is_it = |name: &&String| {
                names
                    .iter()
                    .any(|end| name.ends_with(&format!("layers.{layer}.{end}").replace("{e}", &expert.to_string())))
            };
            all.keys().find(is_it).unwrap().clone()
        };
        let mut stacked = Vec::new();
        for layer in 0..2 {
            let place = |w: &str, name: &str| {
                [format!("block_sparse_moe.experts.{{e}}.{w}.weight"), format!("mlp.experts.{{e}}.{name}.weight")]
            };
            let (mut gate_up, mut down) = (Vec::new(), Vec::new());
            let mut shape = Vec::new();
            for expert in 0..4 {
                for (to, w, name) in [(&mut gate_up, "w1", "gate_proj"), (&mut down, "w2", "down_proj")] {
                    let names = place(w, name);
                    let at = find(layer, expert, [&names[0], &names[1]]);
                    to.push(all[&at].2.clone());
                    shape = all[&at].1.clone();
                    if w == "w1" {
                        let names = place("w3", "up_proj");
                        to.push(all[&find(layer, expert, [&names[0], &names[1]])].2.clone());
                    }
                }
            }
            let (hidden, width) = (shape[0], shape[1]);
            let base = format!("model.layers.{layer}.mlp.experts");
            stacked.push((format!("{base}.gate_up_proj"), vec![4, 2 * width, hidden], gate_up.concat()));
            stacked.push((format!("{base}.down_proj"), vec![4, hidden, width], down.concat()));
        }
        all.retain(|name, _| !name.contains("experts"));
        let kept = all.iter().map(|(name, (_, shape, bytes))| (name.clone(), shape.clone(), bytes.clone()));
        let whole: Vec<_> = kept.chain(stacked).collect();
        let whole: Vec<_> = whole.iter().map(|(n, s, b)| (n.as_str(), Dtype::F32, s.clone(), b.clone())).collect();
        write_safetensors(&path, &whole);
        let (hidden, logits) = difference(out.path(), usize::MAX);
        assert!(hidden <= 1e-4 && logits <= 1e-4, "{family}: {hidden:e} {logits:e}");
        let by_offset = Options { access: formats::Access::Read, ..Options::default() };
        let read = Arc::new(Checkpoint::open(out.path(), &by_offset).unwrap());
        let logits = |checkpoint: &Arc<Checkpoint>| {
            forward(&runtime::load(checkpoint).unwrap(), &[5, 6, 7], &Job::new(1)).unwrap().logits
        };
        assert_eq!(logits(&read), logits(&open(out.path())));
        // Both forms have the same codes, so both compute the same.
        let run = |model: &Path| {
            let target = out.path().join("int8");
            compress(args![model, "--int8", "-q", "--force", "-o", &target]).exits(0);
            forward(&runtime::load(&open(&target)).unwrap(), &[5, 6, 7], &Job::new(1)).unwrap().logits
        };
        assert_eq!(run(out.path()), run(&fixture(&format!("golden/{family}"))));
    }
}

/// Every family of `folder` in int8, by the program, checked by it.
fn compresses(folder: &Path, outputs_are_compared: bool) {
    for model in models(folder) {
        let out = tempfile::tempdir().unwrap();
        let target = out.path().join("out");
        let args = args![&model, "--int8", "--json", "-q", "-o", &target, "--check-tokens", "256", "--max-kl", "0.05"];
        let report = compress(args).exits(0).json();
        let kind = report["check"]["kind"].as_str().unwrap_or_default().to_owned();
        assert_eq!(kind == "language-model", outputs_are_compared, "{}: {report}", model.display());
        let steps = Checkpoint::open(&target, &Options::default()).unwrap();
        let int8 = steps.weights().iter().filter(|w| matches!(w.encoding, Encoding::Int8Rows { .. })).count();
        let transposed = steps.weights().iter().any(|weight| weight.transposed);
        assert_eq!(int8 == 0, transposed, "{}: {int8} weights in int8", model.display());
        compress(args!["check", &model, &target, "-q", "--max-kl", "0.05"]).exits(0);
        println!("{}: {int8} weights in int8", model.display());
    }
}

#[test]
fn every_family_compresses_to_int8_and_is_checked() {
    compresses(&shared("golden").unwrap_or_else(|| fixture("golden")), false);
    if let Some(folder) = shared("golden-wide") {
        compresses(&folder, true);
    }
}
