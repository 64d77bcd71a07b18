//! Rounds put together: medians, spreads, and shares of the roof.

use std::path::PathBuf;

use serde::Serialize;

use super::work::Multiplied;
use super::{Measured, Memory, Peaks, Round, Size, Subject, Usage};

/// The middle of some numbers, and the least and the most of them.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Range {
    /// The median.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The most.
    pub max: f64,
}

impl Range {
    /// Of numbers of which there is at least one; else all are 0.
    pub fn of(numbers: impl IntoIterator<Item = f64>) -> Self {
        let mut all: Vec<f64> = numbers.into_iter().collect();
        all.sort_by(f64::total_cmp);
        let (Some(&min), Some(&max)) = (all.first(), all.last()) else {
            return Self { median: 0.0, min: 0.0, max: 0.0 };
        };
        let half = all.len() / 2;
        let median = if all.len() % 2 == 1 { all[half] } else { (all[half - 1] + all[half]) / 2.0 };
        Self { median, min, max }
    }

    /// (max − min) / median.
    pub fn spread(&self) -> f64 {
        if self.median > 0.0 { (self.max - self.min) / self.median } else { 0.0 }
    }
}

/// What was found of one model.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Result {
    /// Where it is.
    #[serde(serialize_with = "display")]
    pub path: PathBuf,
    /// Bytes of its weight files.
    pub bytes: u64,
    /// The median; see [`Round::load_seconds`].
    pub load_seconds: f64,
    /// Of the rounds.
    pub load_seconds_range: [f64; 2],
    /// The most memory of all rounds, pages of mapped files included.
    pub peak_memory_bytes: Option<u64>,
    /// Of it, what no file stands behind.
    pub anonymous_memory_bytes: Option<u64>,
    /// How matrices are multiplied, by encoding.
    pub kernels: Vec<Multiplied>,
    /// Of a decoder.
    pub prefill: Option<Prefill>,
    /// Of a decoder.
    pub decode: Option<Decode>,
    /// Of an encoder.
    pub encode: Option<Encode>,
    /// Of a chain.
    pub predict: Option<Predict>,
    /// Who had the processor in all rounds.
    #[serde(skip)]
    pub usage: Usage,
}

fn display<S: serde::Serializer>(path: &std::path::Path, out: S) -> std::result::Result<S::Ok, S::Error> {
    out.serialize_str(&path.display().to_string())
}

/// A prompt through a decoder.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Prefill {
    /// Of the prompt.
    pub tokens: usize,
    /// The median.
    pub tokens_per_second: f64,
    /// Of the rounds.
    pub range: [f64; 2],
    /// The share of the machine's peak arithmetic, each product counted against the peak of its kind.
    pub peak_fraction: f64,
    /// From the prompt to the first token; the median.
    pub first_token_seconds: f64,
    /// Of the rounds.
    pub first_token_seconds_range: [f64; 2],
}

/// Tokens one by one.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Decode {
    /// After the prompt.
    pub tokens: usize,
    /// The median.
    pub tokens_per_second: f64,
    /// Of the rounds.
    pub range: [f64; 2],
    /// tokens/s · bytes for each token / read bandwidth. Above 1 where the weights fit into the caches.
    pub roof_fraction: f64,
    /// Bytes of weights and of the cache that a token touches, at the middle of the tokens.
    pub bytes_per_token: u64,
}

/// Sentences through an encoder.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Encode {
    /// Sentences that are embedded together.
    pub sentences: usize,
    /// Of each.
    pub tokens: usize,
    /// The median, together.
    pub sentences_per_second: f64,
    /// Of the rounds.
    pub range: [f64; 2],
    /// The share of the machine's peak arithmetic.
    pub peak_fraction: f64,
    /// One sentence alone; the median.
    pub latency_seconds: f64,
    /// Of the rounds.
    pub latency_seconds_range: [f64; 2],
}

/// Rows through a chain.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Predict {
    /// Rows that are predicted together.
    pub rows: usize,
    /// The median.
    pub rows_per_second: f64,
    /// Of the rounds.
    pub range: [f64; 2],
    /// The share of the machine's peak arithmetic.
    pub peak_fraction: f64,
}

impl Result {
    /// Puts the rounds of a model together, of which there is at least one, against the machine's roof.
    pub fn new(subject: &Subject, rounds: &[Round], peaks: &Peaks) -> Self {
        let load = Range::of(rounds.iter().map(|round| round.load_seconds));
        let memory = rounds.iter().filter_map(|round| round.memory).max_by_key(|memory| memory.peak);
        let usage = rounds.iter().filter_map(|round| round.usage).fold(Usage::default(), Usage::and);
        let mut result = Self {
            path: subject.path.clone(),
            bytes: subject.bytes,
            load_seconds: load.median,
            load_seconds_range: [load.min, load.max],
            peak_memory_bytes: memory.map(|memory| memory.peak),
            anonymous_memory_bytes: memory.as_ref().map(Memory::anonymous),
            kernels: subject.work.methods.clone(),
            prefill: None,
            decode: None,
            encode: None,
            predict: None,
            usage,
        };
        let range = |of: &dyn Fn(&Measured) -> Option<f64>| Range::of(rounds.iter().filter_map(|r| of(&r.measured)));
        let shape = subject.shape.as_ref();
        let least = |sequences, tokens, heads| subject.work.least_seconds(shape, sequences, tokens, heads, peaks);
        match subject.size {
            Size::Language { prompt, tokens } => {
                let speed = range(&|m| match m {
                    Measured::Language { prefill_seconds, .. } => Some(prompt as f64 / prefill_seconds),
                    _ => None,
                });
                let first = range(&|m| match m {
                    Measured::Language { first_token_seconds, .. } => Some(*first_token_seconds),
                    _ => None,
                });
                result.prefill = Some(Prefill {
                    tokens: prompt,
                    tokens_per_second: speed.median,
                    range: [speed.min, speed.max],
                    peak_fraction: least(1, prompt, 1) * speed.median / prompt as f64,
                    first_token_seconds: first.median,
                    first_token_seconds_range: [first.min, first.max],
                });
                let speed = range(&|m| match m {
                    Measured::Language { decode_seconds, .. } => Some(tokens as f64 / decode_seconds),
                    _ => None,
                });
                let past = prompt as f64 + tokens as f64 / 2.0;
                let bytes = shape.map_or(0.0, |shape| subject.work.decode_bytes(shape, past));
                result.decode = Some(Decode {
                    tokens,
                    tokens_per_second: speed.median,
                    range: [speed.min, speed.max],
                    roof_fraction: bytes * speed.median / peaks.read,
                    bytes_per_token: bytes as u64,
                });
            }
            Size::Encoder { tokens } => {
                let speed = range(&|m| match m {
                    Measured::Encoder { sentences, batch_seconds, .. } => Some(*sentences as f64 / batch_seconds),
                    _ => None,
                });
                let latency = range(&|m| match m {
                    Measured::Encoder { one_seconds, .. } => Some(*one_seconds),
                    _ => None,
                });
                let sentences = rounds.iter().find_map(|round| match round.measured {
                    Measured::Encoder { sentences, .. } => Some(sentences),
                    _ => None,
                });
                result.encode = Some(Encode {
                    sentences: sentences.unwrap_or(0),
                    tokens,
                    sentences_per_second: speed.median,
                    range: [speed.min, speed.max],
                    peak_fraction: least(1, tokens, 0) * speed.median,
                    latency_seconds: latency.median,
                    latency_seconds_range: [latency.min, latency.max],
                });
            }
            Size::Chain => {
                let mut together = 0;
                let speed = Range::of(rounds.iter().filter_map(|round| match round.measured {
                    Measured::Chain { rows, seconds } => {
                        together = rows;
                        Some(rows as f64 / seconds)
                    }
                    _ => None,
                }));
                result.predict = Some(Predict {
                    rows: together,
                    rows_per_second: speed.median,
                    range: [speed.min, speed.max],
                    peak_fraction: least(1, 1, 0) * speed.median,
                });
            }
        }
        result
    }

    /// What it was measured by, for people: what is done, how often a second, and the spread of that.
    pub fn speeds(&self) -> Vec<(&'static str, &'static str, Range)> {
        let range = |median, [min, max]: [f64; 2]| Range { median, min, max };
        let prefill = self.prefill.iter().map(|p| ("prefill", "tokens/s", range(p.tokens_per_second, p.range)));
        let decode = self.decode.iter().map(|d| ("decode", "tokens/s", range(d.tokens_per_second, d.range)));
        let encode = self.encode.iter().map(|e| ("embedding", "sentences/s", range(e.sentences_per_second, e.range)));
        let predict = self.predict.iter().map(|p| ("prediction", "rows/s", range(p.rows_per_second, p.range)));
        prefill.chain(decode).chain(encode).chain(predict).collect()
    }
}
