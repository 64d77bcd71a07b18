//! Encoders: how far the compressed model's embeddings turn away from the original's.

use std::sync::Arc;

use serde::Serialize;

use super::statistics::{cosine, spearman};
use super::{NotCompared, Options, Result, context, text, tokenizer};
use crate::job::Job;
use crate::loader::{Checkpoint, Pooling};
use crate::runtime::{self, embed};

/// Embeds the same texts with both models.
///
/// # Errors
/// As [`super::compare`]. Within the result, in words, why there is nothing to compare.
pub fn compare(
    original: &Arc<Checkpoint>,
    written: &Arc<Checkpoint>,
    options: &Options,
    job: &Job,
    failures: &mut Vec<String>,
) -> Result<Result<(Comparison, String), NotCompared>> {
    let tokenizer = match tokenizer(original)? {
        Ok(tokenizer) => tokenizer,
        Err(why) => return Ok(Err(why)),
    };
    let text = text::load(options.text.as_deref())?;
    let context = context(original, options)?;
    let mut windows = Vec::new();
    let mut tokens = 0;
    for line in text::lines(&text.content) {
        let ids = tokenizer
            .encode_whole(line, context)
            .map_err(|e| text.wrong(format!("text that the tokenizer refuses: {e}")))?
            .tokens;
        tokens += ids.len();
        if tokens > options.tokens && !windows.is_empty() {
            break;
        }
        windows.push(ids);
    }
    windows.retain(|ids| !ids.is_empty());
    if windows.is_empty() {
        return Err(text.wrong("no line with a token".to_owned()));
    }
    let models = [runtime::load(original)?, runtime::load(written)?];
    let models: Vec<&runtime::Model> = models.iter().collect();
    let pooling = original.companions().pooling.unwrap_or(Pooling::Mean);
    let embeddings = embed(&models, &windows, pooling, job, "check outputs")?;
    let found = Comparison::of(&embeddings[0], &embeddings[1], options.limits.min_cosine);
    if !found.passed {
        let limit = options.limits.min_cosine;
        failures.push(format!("mean cosine {:.6} is below its limit of {limit}", found.cosine.mean));
    }
    Ok(Ok((found, text.name)))
}

/// What the comparison of two encoders found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Comparison {
    /// Texts that were embedded.
    pub texts: usize,
    /// Cosine between both models' embeddings of a text.
    pub cosine: Cosine,
    /// Spearman's correlation of all pairwise similarities: whether texts that were close are still close.
    pub rank_correlation: f64,
    /// Whether the mean cosine is within its limit.
    pub passed: bool,
}

/// Mean and least.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Cosine {
    /// Mean.
    pub mean: f64,
    /// Least.
    pub min: f64,
}

impl Comparison {
    /// Compares embeddings, one a text.
    pub fn of(original: &[Vec<f32>], compressed: &[Vec<f32>], min_cosine: f64) -> Self {
        let cosines: Vec<f64> = original.iter().zip(compressed).map(|(a, b)| cosine(a, b)).collect();
        let mean = cosines.iter().sum::<f64>() / cosines.len() as f64;
        let min = cosines.iter().copied().fold(f64::INFINITY, f64::min);
        Self {
            texts: original.len(),
            cosine: Cosine { mean, min },
            rank_correlation: spearman(&similarities(original), &similarities(compressed)),
            passed: mean >= min_cosine,
        }
    }
}

/// The mean cosine of embeddings of the same texts.
pub fn mean_cosine(original: &[Vec<f32>], compressed: &[Vec<f32>]) -> f64 {
    original.iter().zip(compressed).map(|(a, b)| cosine(a, b)).sum::<f64>() / original.len().max(1) as f64
}

/// The cosine of every pair of texts, in a fixed order.
fn similarities(embeddings: &[Vec<f32>]) -> Vec<f64> {
    let mut all = Vec::new();
    for (i, a) in embeddings.iter().enumerate() {
        all.extend(embeddings[..i].iter().map(|b| cosine(a, b)));
    }
    all
}
