//! Gradients against differences of the loss, and against PyTorch's.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::*;
use crate::encoding::plain::Real;
use crate::loader::{Checkpoint, Options};
use crate::runtime::linear::from_rows;
use crate::runtime::observer::Observer;
use crate::runtime::testing::{Matrix, Noise};
use crate::runtime::{self, walk};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name)
}

fn load(folder: &Path) -> Model {
    runtime::load(&Arc::new(Checkpoint::open(folder, &Options::default()).unwrap())).unwrap()
}

/// Texts of different lengths, longer than the sliding windows of the models that have one.
fn windows() -> Vec<Vec<u32>> {
    [24u32, 1, 11].iter().map(|length| (0..*length).map(|at| 5 + (at * 37 + length) % 250).collect()).collect()
}

/// What a decoder shall predict at a position, and how an encoder's outputs count.
fn label(position: usize, number: usize) -> usize {
    (position * 53 + number * 17 + 3) % 256
}

fn counts(window: usize, number: usize, len: usize) -> Vec<f32> {
    Noise::new((window * 7 + number) as u64).vec(len)
}

/// The loss of this number.
fn loss(model: &Model, number: usize, job: &Job) -> f64 {
    let mut sum = 0.0;
    let mut watch = Unobserved;
    if model.shape().causal {
        let vocab = model.shape().vocab;
        walk::language(&[model], &windows(), job, "", &mut watch, |positions, logits| {
            for (position, row) in positions.zip(logits[0].chunks_exact(vocab)) {
                let total: f64 = row.iter().map(|x| f64::from(*x).exp()).sum();
                sum += total.ln() - f64::from(row[label(position, number)]);
            }
        })
        .unwrap();
    } else {
        walk::encode(&[model], &windows(), job, "", &mut watch, |window, outputs| {
            let own = counts(window, number, outputs[0].len());
            sum += own.iter().zip(outputs[0]).map(|(c, x)| f64::from(*c) * f64::from(*x)).sum::<f64>();
        })
        .unwrap();
    }
    sum
}

/// Gradients of each matrix's results, of each loss.
#[derive(Default)]
struct Gradients {
    found: BTreeMap<Place, (usize, Vec<Vec<f32>>)>,
    /// Of each place, how often it was told.
    told: BTreeMap<Place, usize>,
    losses: usize,
}

impl GradientObserver for Gradients {
    fn output(&mut self, place: Place, features: usize, gradient: &[f32]) {
        let told = self.told.entry(place).or_default();
        let (_, all) = self.found.entry(place).or_insert_with(|| (features, vec![Vec::new(); self.losses]));
        all[*told % self.losses].extend_from_slice(gradient);
        *told += 1;
    }
}

fn gradients(model: &Model, windows: &[Vec<u32>], losses: usize, job: &Job) -> Gradients {
    let mut backward = Backward::begin(model, windows, losses, job).unwrap();
    if model.shape().causal {
        backward
            .from_logits(|positions, logits, number| {
                for (position, row) in positions.zip(logits.chunks_exact_mut(256)) {
                    crate::runtime::ops::softmax::softmax(row);
                    row[label(position, number)] -= 1.0;
                }
            })
            .unwrap();
    } else {
        backward
            .from_outputs(|window, outputs, number| {
                let own = counts(window, number, outputs.len());
                outputs.copy_from_slice(&own);
            })
            .unwrap();
    }
    let mut found = Gradients { losses, ..Gradients::default() };
    for layer in (0..model.shape().layers).rev() {
        // A look that stays changes nothing.
        backward.block(layer, true, &mut Gradients { losses, ..Gradients::default() }).unwrap();
        backward.block(layer, false, &mut found).unwrap();
    }
    backward.embedding(&mut found).unwrap();
    found
}

/// What each matrix is given.
#[derive(Default)]
struct Given(BTreeMap<Place, (usize, Vec<f32>)>);

impl Observer for Given {
    fn input(&mut self, _: usize, place: Place, x: &Activations<'_>) {
        self.0.entry(place).or_insert_with(|| (x.cols(), Vec::new())).1.extend_from_slice(x.f32());
    }
}

/// Σ g xᵀ `[out, in]`.
fn of_weight(g: &[f32], x: &[f32], rows: usize, cols: usize) -> Vec<f64> {
    let mut out = vec![0.0; rows * cols];
    for (g, x) in g.chunks_exact(rows).zip(x.chunks_exact(cols)) {
        for (out, g) in out.chunks_exact_mut(cols).zip(g) {
            out.iter_mut().zip(x).for_each(|(out, x)| *out += f64::from(*g) * f64::from(*x));
        }
    }
    out
}

/// A model of which one matrix was moved.
fn moved(folder: &Path, place: Place, weights: &[f32], cols: usize) -> Model {
    let mut model = load(folder);
    let t = model.shape().clone();
    if place.slot == Slot::TokenEmbedding && t.tied && t.causal {
        // The head stays what it was.
        let table = model.linear(place, t.vocab, t.hidden).unwrap();
        model.overlay_mut().insert(Place::new(Slot::Head, 0), table);
    }
    model.overlay_mut().insert(place, from_rows(Arc::new(Matrix::plain(weights, cols))));
    model
}

#[test]
fn gradients_of_every_matrix_of_every_family_are_what_differences_of_the_loss_show() {
    let job = Job::new(2);
    let mut noise = Noise::new(3);
    let mut folders: Vec<PathBuf> =
        std::fs::read_dir(fixture("golden")).unwrap().map(|entry| entry.unwrap().path()).collect();
    folders.sort();
    assert!(folders.len() >= 13);
    for folder in folders {
        let model = load(&folder);
        let t = model.shape().clone();
        let mut given = Given::default();
        let walk_of = |watch: &mut Given| {
            if t.causal {
                walk::language(&[&model], &windows(), &job, "", watch, |_, _| {}).unwrap();
            } else {
                walk::encode(&[&model], &windows(), &job, "", watch, |_, _| {}).unwrap();
            }
        };
        walk_of(&mut given);
        // An embedding is given one-hot rows.
        let tokens: Vec<u32> = windows().concat();
        let mut one_hot = vec![0.0; tokens.len() * t.vocab];
        tokens.iter().enumerate().for_each(|(at, token)| one_hot[at * t.vocab + *token as usize] = 1.0);

        let found = gradients(&model, &windows(), 2, &job);
        let mut seen = 0;
        for (place, (rows, of_losses)) in &found.found {
            // A step of a router that is large enough to be seen above rounding makes some token change experts, where the loss
            // jumps. That gradients go through routers shows in all that lies before them.
            if place.slot == Slot::Router {
                continue;
            }
            for (number, g) in of_losses.iter().enumerate() {
                let embedding = place.slot == Slot::TokenEmbedding;
                let (gradient, rows, cols) = if embedding {
                    // [vocab, hidden]: the table's rows are what is looked up.
                    (of_weight(&one_hot, g, t.vocab, t.hidden), t.vocab, t.hidden)
                } else {
                    let (cols, x) = &given.0[place];
                    assert_eq!(g.len() / rows, x.len() / cols, "{place:?}: as many rows as inputs");
                    (of_weight(g, x, *rows, *cols), *rows, *cols)
                };
                let linear = model.linear(*place, rows, cols).unwrap();
                let mut weights = vec![0.0; rows * cols];
                weights.chunks_exact_mut(cols).enumerate().for_each(|(i, row)| linear.row(i, row));
                // Along the gradient, and along it with each number weighed at random.
                for along in [false, true] {
                    let weigh = |noise: &mut Noise| if along { 1.0 } else { 1.0 + f64::from(noise.next_f32()) };
                    let direction: Vec<f64> = gradient.iter().map(|g| g * weigh(&mut noise)).collect();
                    let slope: f64 = gradient.iter().zip(&direction).map(|(g, d)| g * d).sum();
                    // A step that changes the loss by a few hundredths: far above rounding, far below where it bends. A
                    // mixture's loss has steps where a token changes experts: somewhere there is none within a smaller one.
                    let sizes: &[f64] = if t.experts.is_some() { &[0.03, 0.01, 0.004] } else { &[0.03] };
                    let shown = |size: f64| {
                        let step = size / slope;
                        let at = |way: f64| {
                            let moves = weights.iter().zip(&direction);
                            let weights: Vec<f32> =
                                moves.map(|(w, d)| (f64::from(*w) + way * step * d) as f32).collect();
                            loss(&moved(&folder, *place, &weights, cols), number, &job)
                        };
                        (at(1.0) - at(-1.0)) / (2.0 * step)
                    };
                    let shown: Vec<f64> = sizes.iter().map(|size| shown(*size)).collect();
                    assert!(
                        shown.iter().any(|shown| (shown / slope - 1.0).abs() < 5e-3),
                        "{} {place:?}, loss {number}: {slope}, differences show {shown:?}",
                        folder.display()
                    );
                    seen += 1;
                }
            }
        }
        println!("{}: {seen} slopes", folder.display());
        let experts = t.experts.map_or(0, |experts| experts.count);
        assert!(seen >= 4 * t.layers * if experts > 0 { 4 + experts } else { 6 }, "{}", folder.display());
    }
}

#[test]
fn gradients_are_pytorchs() {
    let bytes = std::fs::read(fixture("gradients/llama.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let numbers = |name: &str| {
        let tensor = tensors.tensor(name).unwrap();
        let mut out = vec![0.0f32; tensor.shape().iter().product()];
        f32::decode(formats::Dtype::F32, tensor.data(), &mut out);
        out
    };
    let model = load(&fixture("golden/llama"));
    let found = gradients(&model, &windows(), 1, &Job::new(2));
    let mut seen = 0;
    for (place, (_, g)) in &found.found {
        let expected = numbers(&format!("{}.{:?}", place.layer, place.slot));
        let most = expected.iter().fold(0.0f32, |most, x| most.max(x.abs()));
        assert_eq!(g[0].len(), expected.len(), "{place:?}");
        for (g, e) in g[0].iter().zip(&expected) {
            assert!((g - e).abs() < 1e-5 * most, "{place:?}: {g} instead of {e}");
        }
        seen += 1;
    }
    assert_eq!(seen, tensors.len());
}

#[test]
fn neither_threads_nor_the_memory_budget_change_anything() {
    let windows = windows();
    for family in ["gemma3", "qwen3-moe", "bert"] {
        let model = load(&fixture("golden").join(family));
        let of = |threads, memory| {
            let job = Job { memory, ..Job::new(threads) };
            gradients(&model, &windows, 2, &job).found
        };
        let first = of(1, 1 << 30);
        assert!(first == of(3, 1 << 30), "{family}: threads");
        let little = of(2, 1 << 10);
        // AVX-512's and AMX's float rows have another order of sums for fewer than eight rows than for more, and a budget decides how many
        // go together.
        if !crate::runtime::kernels::float::kernel().has_one_order() {
            for (place, (_, found)) in little {
                let most = first[&place].1.iter().flatten().fold(0.0f32, |most, x| most.max(x.abs()));
                for (found, expected) in found.iter().flatten().zip(first[&place].1.iter().flatten()) {
                    assert!(
                        (found - expected).abs() <= 1e-4 * most,
                        "{family} {place:?}: {found} instead of {expected}"
                    );
                }
            }
        } else {
            assert!(first == little, "{family}: memory");
        }
    }
}
