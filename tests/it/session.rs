//! Decoding with a cache against one pass over everything.

use std::ops::ControlFlow;
use std::sync::Arc;

use modelpress::job::Job;
use modelpress::loader::{Checkpoint, Options};
use modelpress::runtime::{self, End, Error, Model, Precision, Sampler, Session, forward, generate};

use crate::support::fixture;

fn model(name: &str) -> Model {
    runtime::load(&Arc::new(Checkpoint::open(&fixture(name), &Options::default()).unwrap())).unwrap()
}

fn difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).fold(0.0, |most, (a, b)| most.max((a - b).abs()))
}

const DECODERS: [&str; 10] = [
    "golden/gemma3",
    "golden/gpt2",
    "golden/llama",
    "golden/llama3-rope-tied",
    "golden/mistral-sliding",
    "golden/mixtral",
    "golden/phi3",
    "golden/qwen2",
    "golden/qwen3",
    "golden/qwen3-moe",
];

/// Token by token or in one pass: the same logits. A cache in f32 shows that the steps compute what a pass over everything
/// does. The usual one rounds what has long passed, which costs about 10⁻⁵ of the largest logit.
#[test]
fn steps_with_the_cache_equal_one_pass() {
    let job = Job::new(2);
    for name in DECODERS.into_iter().chain(["kjv-nano"]) {
        let model = model(name);
        let tokens: Vec<u32> = (0..24u32).map(|i| (i * 37 + 5) % 256).collect();
        let whole = forward(&model, &tokens, &job).unwrap().logits;
        let session = |precision| Session::with_precision(&model, 1, tokens.len(), precision, &job).unwrap();
        let (mut halves, mut floats) = (session(Precision::Int16), session(Precision::F32));
        // Of steps in 16 bits from one pass in 16 bits, of steps in f32 from the pass over everything, of steps in 16 bits from that.
        let mut most = [0.0f32; 3];
        for (at, token) in tokens.iter().enumerate() {
            let step = halves.extend(&[vec![*token]]).unwrap().concat();
            let exact = floats.extend(&[vec![*token]]).unwrap().concat();
            let one_pass = session(Precision::Int16).extend(&[tokens[..=at].to_vec()]).unwrap().concat();
            let expected = &whole[at * model.shape().vocab..][..step.len()];
            let now = [difference(&step, &one_pass), difference(&exact, expected), difference(&step, expected)];
            most.iter_mut().zip(now).for_each(|(most, now)| *most = most.max(now));
        }
        let largest = whole.iter().fold(0.0f32, |most, x| most.max(x.abs()));
        println!("{name}: {most:?}, of logits up to {largest:.1}");
        assert!(most.iter().all(|most| *most <= 1e-4), "{name}: {most:?}");
        let error = halves.extend(&[vec![1]]).unwrap_err();
        assert!(matches!(error, Error::TooLong { length: 25, limit: 24 }), "{error}");
        let error = Session::new(&model, 1, model.shape().max_positions + 1, &job).err().unwrap();
        assert!(matches!(error, Error::TooLong { .. }), "{error}");
    }
}

#[test]
fn a_batch_of_many_gives_what_each_gives_alone() {
    for name in ["golden/llama", "golden/mixtral", "golden/gemma3", "golden/gpt2"] {
        let (model, job) = (model(name), Job::new(2));
        let text = |seed: u32, n: u32| (0..n).map(|i| (i * 31 + seed) % 256).collect::<Vec<u32>>();
        // Pieces of different lengths, some empty; 600 tokens would be more than go through together.
        let pieces = [vec![text(1, 5), text(2, 90), text(3, 1)], vec![text(4, 20), vec![], text(5, 2)]];
        let mut batch = Session::new(&model, 3, 128, &job).unwrap();
        let mut alone: Vec<Session<'_>> = (0..3).map(|_| Session::new(&model, 1, 128, &job).unwrap()).collect();
        for piece in &pieces {
            let together = batch.extend(piece).unwrap();
            for ((alone, new), found) in alone.iter_mut().zip(piece).zip(&together) {
                let expected = alone.extend(std::slice::from_ref(new)).unwrap().concat();
                assert!(difference(found, &expected) <= 1e-4, "{name}");
            }
        }
        assert_eq!((0..3).map(|i| batch.len(i)).collect::<Vec<_>>(), [25, 90, 3]);
    }
}

/// LongRoPE turns all of a text by other factors as soon as it is longer than 16 tokens here: token by token, in pieces and beside
/// shorter texts as in one pass.
#[test]
fn a_text_that_grows_long_turns_as_a_long_one() {
    let (model, job) = (model("golden-odd/phi3-long-partial"), Job::new(2));
    let tokens: Vec<u32> = (0..24u32).map(|i| (i * 37 + 5) % 256).collect();
    let vocab = model.shape().vocab;
    let alone = |text: &[u32]| {
        let logits = forward(&model, text, &job).unwrap().logits;
        logits[logits.len() - vocab..].to_vec()
    };
    let mut session = Session::with_precision(&model, 1, 24, Precision::F32, &job).unwrap();
    for _ in 0..2 {
        for at in 0..tokens.len() {
            let step = session.extend(&[vec![tokens[at]]]).unwrap().concat();
            let most = difference(&step, &alone(&tokens[..=at]));
            assert!(most <= 1e-4, "{at}: {most}");
        }
        session.restart();
    }
    // With so many sequences eight tokens of each go through together.
    let mut many = Session::with_precision(&model, 64, 24, Precision::F32, &job).unwrap();
    let texts: Vec<Vec<u32>> = (0..64).map(|i| tokens[..[24, 10][i % 2]].to_vec()).collect();
    let found = many.extend(&texts).unwrap();
    for (text, found) in texts.iter().zip(&found).take(2) {
        assert!(difference(found, &alone(text)) <= 1e-4);
    }
    let mut walked = Vec::new();
    let windows = [tokens.clone(), tokens[..10].to_vec()];
    let mut unobserved = runtime::Unobserved;
    runtime::walk::language(&[&model], &windows, &job, "test", &mut unobserved, |_, logits| {
        walked.extend_from_slice(logits[0]);
    })
    .unwrap();
    assert!(difference(&walked[23 * vocab..][..vocab], &alone(&tokens)) <= 1e-4);
    assert!(difference(&walked[33 * vocab..], &alone(&tokens[..10])) <= 1e-4);
}

#[test]
fn a_long_prompt_is_taken_in_pieces() {
    let (model, job) = (model("kjv-nano"), Job::new(2));
    let tokens: Vec<u32> = (0..512u32).map(|i| i * 7 % 2048).collect();
    let mut one = Session::new(&model, 1, 512, &job).unwrap();
    let mut three = Session::new(&model, 3, 512, &job).unwrap();
    let expected = one.extend(std::slice::from_ref(&tokens)).unwrap().concat();
    // With three sequences 170 tokens of each go through together.
    let found = three.extend(&[tokens.clone(), tokens[..200].to_vec(), tokens]).unwrap();
    assert!(difference(&found[0], &expected) <= 1e-3 && difference(&found[2], &expected) <= 1e-3);
    assert!(difference(&found[1], &expected) > 0.1);
}

#[test]
fn generation_ends_where_it_should() {
    let (model, job) = (model("golden/llama"), Job::new(1));
    let run = |prompt: &[u32], most: usize, stop: &[u32]| {
        let mut all = Vec::new();
        let end = generate(&model, prompt, most, stop, &mut Sampler::greedy(), &job, |token| {
            all.push(token);
            if all.len() == 50 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        end.map(|end| (end, all))
    };
    let (end, all) = run(&[5, 6], 10, &[]).unwrap();
    assert_eq!((end, all.len()), (End::Length, 10));
    assert_eq!(run(&[5, 6], 0, &[]).unwrap(), (End::Length, vec![]));
    assert_eq!(run(&[5, 6], 100, &[]).unwrap().0, End::Receiver);
    let at = all.iter().position(|token| *token == all[9]).unwrap();
    assert_eq!(run(&[5, 6], 10, &[all[9]]).unwrap(), (End::Stop, all[..at].to_vec()));
    // 128 positions: the last one still predicts.
    let (end, found) = run(&[5; 120], 100, &[]).unwrap();
    assert_eq!((end, found.len()), (End::Context, 9));
    assert!(matches!(run(&[5; 129], 1, &[]), Err(Error::TooLong { length: 129, limit: 128 })));
    assert!(matches!(run(&[256], 1, &[]), Err(Error::Token { token: 256, vocab: 256 })));
    assert!(matches!(run(&[], 1, &[]), Err(Error::Empty)));
}
