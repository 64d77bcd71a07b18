//! One measurement of one model, in the process that calls: opening, then what the model is for.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::subject::{kind, open};
use super::{Clock, Memory, Options, Outcome, Size, Usage};
use crate::check::chain;
use crate::job::Job;
use crate::loader::{Checkpoint, Pooling};
use crate::runtime::{self, Model, Sampler, Session, Unobserved};

/// What one measurement found.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Round {
    /// From opening the files until the model is ready for input: headers, weights taken up, and one token (or text, or row)
    /// through it, which brings mapped weights into memory.
    pub load_seconds: f64,
    /// What it is for.
    pub measured: Measured,
    /// The most memory of the process so far, where the system tells.
    pub memory: Option<Memory>,
    /// Who had the processor meanwhile, where the system tells.
    pub usage: Option<Usage>,
}

/// What a model is for, measured.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub enum Measured {
    /// A decoder.
    Language {
        /// The prompt through the model.
        prefill_seconds: f64,
        /// The prompt through the model, and the first token chosen.
        first_token_seconds: f64,
        /// The tokens after it, one by one.
        decode_seconds: f64,
    },
    /// An encoder.
    Encoder {
        /// Sentences embedded together.
        sentences: usize,
        /// All of them.
        batch_seconds: f64,
        /// One alone.
        one_seconds: f64,
    },
    /// A chain of linear layers.
    Chain {
        /// Rows predicted together.
        rows: usize,
        /// All of them.
        seconds: f64,
    },
}

/// Sentences that are embedded together.
const SENTENCES: usize = 32;

/// What takes less is repeated.
const LEAST: Duration = Duration::from_millis(400);

/// Opens a model and measures it.
///
/// # Errors
/// A model that cannot be opened or run, more tokens than it has positions, or an interruption.
pub fn round(path: &Path, options: &Options, job: &Job) -> Outcome<Round> {
    let clock = Clock::start();
    let start = Instant::now();
    let checkpoint = open(path, options)?;
    let (_, size) = kind(&checkpoint, options)?;
    let (load_seconds, measured) = match size {
        Size::Language { prompt, tokens } => language(&checkpoint, prompt, tokens, start, job)?,
        Size::Encoder { tokens } => encoder(&checkpoint, tokens, start, job)?,
        Size::Chain => predict(&checkpoint, start, job)?,
    };
    Ok(Round { load_seconds, measured, memory: Memory::now(), usage: clock.stop() })
}

/// Tokens of no meaning, always the same, from all over a vocabulary.
fn some_tokens(count: usize, vocab: usize) -> Vec<u32> {
    (0..count as u64).map(|i| ((i * 7919 + 11) % vocab.max(1) as u64) as u32).collect()
}

fn language(
    checkpoint: &Arc<Checkpoint>,
    prompt: usize,
    tokens: usize,
    start: Instant,
    job: &Job,
) -> Outcome<(f64, Measured)> {
    let model = runtime::load(checkpoint)?;
    let mut session = Session::new(&model, 1, prompt + tokens, job)?;
    session.extend(&[some_tokens(1, model.shape().vocab)])?;
    let load_seconds = start.elapsed().as_secs_f64();

    let text = some_tokens(prompt, model.shape().vocab);
    let mut sampler = Sampler::greedy();
    let (mut prefill, mut first, mut decode) = (Duration::ZERO, Duration::ZERO, Duration::ZERO);
    let mut times = 0;
    while times == 0 || prefill + decode < LEAST {
        session.restart();
        let start = Instant::now();
        let logits = session.extend(std::slice::from_ref(&text))?.concat();
        prefill += start.elapsed();
        let mut token = sampler.choose(&logits);
        first += start.elapsed();
        let start = Instant::now();
        for _ in 0..tokens {
            let logits = session.extend(&[vec![token]])?.concat();
            token = sampler.choose(&logits);
        }
        decode += start.elapsed();
        times += 1;
    }
    let mean = |all: Duration| all.as_secs_f64() / f64::from(times);
    let measured = Measured::Language {
        prefill_seconds: mean(prefill),
        first_token_seconds: mean(first),
        decode_seconds: mean(decode),
    };
    Ok((load_seconds, measured))
}

fn encoder(checkpoint: &Arc<Checkpoint>, tokens: usize, start: Instant, job: &Job) -> Outcome<(f64, Measured)> {
    let model = runtime::load(checkpoint)?;
    let text = some_tokens(SENTENCES * tokens, model.shape().vocab);
    let windows: Vec<Vec<u32>> = text.chunks(tokens.max(1)).map(<[u32]>::to_vec).collect();
    let embed = |model: &Model, windows: &[Vec<u32>]| {
        runtime::embed(&[model], windows, Pooling::Mean, job, "bench").map(|_| ())
    };
    embed(&model, &windows[..1])?;
    let load_seconds = start.elapsed().as_secs_f64();
    let batch_seconds = repeated(|| embed(&model, &windows))?;
    let one_seconds = repeated(|| embed(&model, &windows[..1]))?;
    Ok((load_seconds, Measured::Encoder { sentences: windows.len(), batch_seconds, one_seconds }))
}

fn predict(checkpoint: &Arc<Checkpoint>, start: Instant, job: &Job) -> Outcome<(f64, Measured)> {
    let model = runtime::load_chain(checkpoint)?;
    let features = model.shape().widths.first().copied().unwrap_or(0);
    let (values, rows) = chain::normal_inputs(features);
    let run = |values: &[f32]| model.predict(values, 0, &mut Unobserved, job).map(|_| ());
    run(&values[..features])?;
    let load_seconds = start.elapsed().as_secs_f64();
    let seconds = repeated(|| run(&values))?;
    Ok((load_seconds, Measured::Chain { rows, seconds }))
}

/// Seconds of one time, of as many as take long enough to be timed. The first is not counted.
fn repeated(mut work: impl FnMut() -> Result<(), runtime::Error>) -> Outcome<f64> {
    work()?;
    let start = Instant::now();
    let mut times = 0;
    while times == 0 || start.elapsed() < LEAST {
        work()?;
        times += 1;
    }
    Ok(start.elapsed().as_secs_f64() / f64::from(times))
}
