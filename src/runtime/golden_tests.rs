//! Against what Hugging Face transformers computes.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use safetensors::{Dtype, SafeTensors};

use super::testing::Matrix;
use super::*;
use crate::encoding::Rows;
use crate::family::{self, Architecture, Part, Slot, Transformer};
use crate::job::Job;

/// A folder's weights in memory, by place.
struct Folder {
    matrices: HashMap<(Slot, usize, Option<usize>), Arc<dyn Rows>>,
    vectors: HashMap<(Slot, usize, Part), Vec<f32>>,
}

impl Weights for Folder {
    fn matrix(&self, slot: Slot, layer: usize, expert: Option<usize>) -> Result<Option<Arc<dyn Rows>>, Error> {
        Ok(self.matrices.get(&(slot, layer, expert)).cloned())
    }

    fn vector(&self, slot: Slot, layer: usize, part: Part) -> Result<Option<Vec<f32>>, Error> {
        Ok(self.vectors.get(&(slot, layer, part)).cloned())
    }
}

fn numbers(tensors: &SafeTensors<'_>, name: &str) -> Vec<f32> {
    let tensor = tensors.tensor(name).unwrap();
    let mut out = vec![0.0; tensor.shape().iter().product()];
    match tensor.dtype() {
        Dtype::F32 => {
            let values = tensor.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()));
            out.iter_mut().zip(values).for_each(|(out, value)| *out = value);
        }
        Dtype::F16 => kernels::convert::f16_to_f32(tensor.data(), &mut out),
        Dtype::BF16 => kernels::convert::bf16_to_f32(tensor.data(), &mut out),
        other => panic!("{name} is {other:?}"),
    }
    out
}

fn transposed(data: &[f32], cols: usize) -> Vec<f32> {
    (0..cols).flat_map(|col| data.iter().skip(col).step_by(cols).copied()).collect()
}

/// The model in a folder, by the family's own table of tensors.
fn load(folder: &Path) -> (Transformer, Arc<Folder>) {
    let config = std::fs::read_to_string(folder.join("config.json")).unwrap();
    let family = family::find(&serde_json::from_str(&config).unwrap()).unwrap();
    assert_eq!(family.config.unknown, [""; 0], "{}", folder.display());
    let bytes = std::fs::read(folder.join("model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let mut used = 0;
    let (mut matrices, mut vectors) = (HashMap::<_, Arc<dyn Rows>>::new(), HashMap::new());
    for expected in family.tensors() {
        let Some(name) = expected.names.iter().find(|name| tensors.tensor(name).is_ok()) else {
            assert!(!expected.required, "{} lacks {}", folder.display(), expected.name());
            continue;
        };
        used += 1;
        let tensor = tensors.tensor(name).unwrap();
        assert_eq!(tensor.shape(), expected.shape, "{name}");
        let scales = format!("{name}_scale");
        let int8 = tensor.dtype() == Dtype::I8;
        let data = if int8 { Vec::new() } else { numbers(&tensors, name) };
        let data = if expected.transposed { transposed(&data, expected.shape[1]) } else { data };
        for piece in &expected.pieces {
            if expected.shape.len() == 1 {
                vectors.insert((piece.slot, expected.layer, expected.part), data[piece.rows.clone()].to_vec());
                continue;
            }
            let cols = if expected.transposed { expected.shape[0] } else { expected.shape[1] };
            let range = piece.rows.start * cols..piece.rows.end * cols;
            let matrix = if int8 {
                used += 1;
                let codes = tensor.data()[range].iter().map(|code| *code as i8).collect();
                Matrix::from_int8(codes, numbers(&tensors, &scales), cols, true)
            } else {
                Matrix::plain(&data[range], cols)
            };
            matrices.insert((piece.slot, expected.layer, expected.expert), Arc::new(matrix));
        }
    }
    assert_eq!(used, tensors.len(), "{}: every tensor has a place", folder.display());
    let Architecture::Transformer(shape) = family.architecture else { panic!("a transformer") };
    (*shape, Arc::new(Folder { matrices, vectors }))
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

/// The largest difference of what the model in a folder computes from the folder's own record of it: of hidden states, and
/// of logits.
fn difference(folder: &Path, threads: usize) -> (f32, f32) {
    let (shape, weights) = load(folder);
    let (model, record, job) = (Model::new(shape, weights), Record::open(folder), Job::new(threads));
    let (mut hidden, mut logits) = (0.0f32, 0.0f32);
    for (text, tokens) in record.texts().iter().enumerate() {
        let found = forward(&model, tokens, &job).unwrap();
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

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// The folder of reference models: named by the environment, else beside the project, else the part in the project.
fn golden() -> PathBuf {
    if let Some(folder) = std::env::var_os("MODELPRESS_GOLDEN") {
        return folder.into();
    }
    let beside = root().join("../shared/golden");
    if beside.is_dir() { beside } else { root().join("fixtures/golden") }
}

/// Models of these families are put to the test.
const FAMILIES: [&str; 3] = ["llama", "llama3-rope-tied", "bert"];

#[test]
fn hidden_states_and_logits_are_those_of_transformers() {
    let folder = golden();
    assert!(folder.is_dir(), "no reference models at {}", folder.display());
    for name in FAMILIES {
        let (hidden, logits) = difference(&folder.join(name), 2);
        println!("{name}: hidden states within {hidden:.1e}, logits within {logits:.1e}");
        assert!(hidden <= 1e-4 && logits <= 1e-4, "{name}: {hidden:e} {logits:e}");
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
    let mut folders = vec![root().join("fixtures/golden-ct/float32/w8a8")];
    let beside = root().join("../shared/golden-ct/bfloat16/w8a8");
    folders.extend(beside.is_dir().then_some(beside));
    for folder in folders {
        let (shape, weights) = load(&folder);
        let vocab = shape.vocab;
        let record = Record::open(&folder);
        let expected = numbers(&record.tensors(), "logits");
        let found = forward(&Model::new(shape, weights), &record.texts()[0], &Job::new(1)).unwrap().logits;
        let positions = expected.len() / vocab;
        let (mut same, mut most, mut kl) = (0, 0.0f32, 0.0);
        for (e, f) in expected.chunks(vocab).zip(found.chunks(vocab)) {
            let difference = e.iter().zip(f).fold(0.0f32, |most, (e, f)| most.max((e - f).abs()));
            same += usize::from(difference <= 1e-3);
            most = most.max(difference);
            kl += divergence(e, f) / positions as f64;
        }
        println!(
            "{}: {same} of {positions} positions within 1e-3, all within {most:.1e}, mean KL {kl:.1e}",
            folder.display()
        );
        assert!(same > 2 && most < 0.3 && kl < 1e-4, "{}: {same} {most} {kl}", folder.display());
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
    let (shape, weights) = load(&root().join("fixtures/golden/llama"));
    let (first, mut second) = (Model::new(shape.clone(), weights.clone()), Model::new(shape.clone(), weights.clone()));
    // The second model's first query projection is another one.
    let other = Matrix::packed(&vec![0.01; 64 * 64], 64);
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
    let (bert, bert_weights) = load(&root().join("fixtures/golden/bert"));
    let error = forward(&Model::new(bert, bert_weights), &[5; 129], &Job::new(1)).unwrap_err();
    assert!(matches!(error, Error::TooLong { length: 129, limit: 128 }), "{error}");
    let wider = Transformer { intermediate: 97, ..shape };
    let error = forward(&Model::new(wider, weights), &[5], &Job::new(1)).unwrap_err();
    assert!(matches!(error, Error::Shape { slot: Slot::FfnGate, .. }), "{error}");
}
