//! Decoders: perplexity of both models, and how far the compressed model's next-token distribution is from the original's.

use std::ops::Range;
use std::sync::Arc;

use serde::Serialize;

use super::statistics::{log_sum_exp, mean_and_error, quantile};
use super::{NotCompared, Options, Result, Scored, context, text, tokenizer};
use crate::job::Job;
use crate::loader::Checkpoint;
use crate::runtime::{self, Unobserved, walk};

/// Runs both models over the same text and compares their predictions.
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
    let tokens =
        tokenizer.encode(&text.content).map_err(|e| text.wrong(format!("text that the tokenizer refuses: {e}")))?;
    let windows = match options.scored {
        Scored::All => windows(&tokens, tokenizer.bos(), context, options.tokens),
        Scored::SecondHalf => second_halves(&tokens, tokenizer.bos(), context, options.tokens),
    };
    if windows.is_empty() {
        return Err(text.wrong(format!("{} tokens", tokens.len())));
    }
    let models = [runtime::load(original)?, runtime::load(written)?];
    let next: Vec<Option<u32>> = windows.iter().flat_map(Window::next).collect();
    let ids: Vec<Vec<u32>> = windows.into_iter().map(|window| window.ids).collect();
    let mut scores = Vec::with_capacity(next.len());
    let models: Vec<&runtime::Model> = models.iter().collect();
    walk::language(&models, &ids, job, "check outputs", &mut Unobserved, |positions, logits| {
        let (vocab, first) = (logits[0].len() / positions.len(), positions.start);
        let score = |i: usize| {
            let row = i * vocab..(i + 1) * vocab;
            next[first + i].map(|next| Score::of(&logits[0][row.clone()], &logits[1][row], next))
        };
        scores.extend(job.pool.map(positions.len(), score).into_iter().flatten());
    })?;
    let found = Comparison::of(&scores, options.limits.max_kl);
    if !found.passed {
        failures
            .push(format!("mean KL divergence {:.6} is above its limit of {}", found.kl.mean, options.limits.max_kl));
    }
    Ok(Ok((found, text.name)))
}

/// What the comparison of two decoders found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Comparison {
    /// Text tokens that were scored.
    pub tokens: usize,
    /// The original.
    pub original: Perplexity,
    /// The compressed model.
    pub compressed: Perplexity,
    /// KL divergence of the compressed model's next-token distribution from the original's, Σ p ln(p / q), in nats.
    pub kl: Divergence,
    /// Share of positions at which both models' most likely token is the same.
    pub same_top: f64,
    /// Whether the mean divergence is within its limit.
    pub passed: bool,
}

/// exp of the mean negative log likelihood of the text's tokens.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Perplexity {
    /// The perplexity.
    pub perplexity: f64,
}

/// How divergences are distributed over positions.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Divergence {
    /// Mean.
    pub mean: f64,
    /// Standard error of the mean.
    pub standard_error: f64,
    /// Median.
    pub p50: f64,
    /// 90th percentile.
    pub p90: f64,
    /// 99th percentile.
    pub p99: f64,
    /// 99.9th percentile.
    pub p999: f64,
    /// Maximum.
    pub max: f64,
}

/// One position's score.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Score {
    /// Negative log likelihood of the text's next token by the original.
    original: f64,
    /// By the compressed model.
    compressed: f64,
    /// The divergence.
    kl: f64,
    /// Whether both have the same top token.
    same_top: bool,
}

impl Score {
    /// Scores one position from both models' logits.
    pub fn of(original: &[f32], compressed: &[f32], next: u32) -> Self {
        let (a, b) = (log_sum_exp(original), log_sum_exp(compressed));
        let next = next as usize;
        Self {
            original: a - f64::from(original[next]),
            compressed: b - f64::from(compressed[next]),
            kl: divergence_by((original, a), (compressed, b)),
            same_top: top(original) == top(compressed),
        }
    }
}

/// The KL divergence of the second logits' distribution from the first's, Σ p ln(p / q), in nats.
pub fn divergence(original: &[f32], compressed: &[f32]) -> f64 {
    divergence_by((original, log_sum_exp(original)), (compressed, log_sum_exp(compressed)))
}

/// As [`divergence`], of logits with ln Σ exp of them.
fn divergence_by((original, a): (&[f32], f64), (compressed, b): (&[f32], f64)) -> f64 {
    let mut kl = 0.0;
    for (&p, &q) in original.iter().zip(compressed) {
        let log_p = f64::from(p) - a;
        // Shares below e⁻⁴⁰ add less than rounding does.
        if log_p > -40.0 {
            kl += log_p.exp() * (log_p - (f64::from(q) - b));
        }
    }
    // Zero up to rounding must not come out as less; NaN stays NaN.
    if kl < 0.0 { 0.0 } else { kl }
}

fn top(logits: &[f32]) -> usize {
    let mut best = 0;
    for (i, &x) in logits.iter().enumerate() {
        if x > logits[best] {
            best = i;
        }
    }
    best
}

impl Comparison {
    /// Sums up all positions' scores.
    pub fn of(scores: &[Score], max_kl: f64) -> Self {
        let mean = |value: fn(&Score) -> f64| scores.iter().map(value).sum::<f64>() / scores.len() as f64;
        let mut kl: Vec<f64> = scores.iter().map(|score| score.kl).collect();
        let (average, standard_error) = mean_and_error(&kl);
        kl.sort_by(f64::total_cmp);
        let divergence = Divergence {
            mean: average,
            standard_error,
            p50: quantile(&kl, 0.5),
            p90: quantile(&kl, 0.9),
            p99: quantile(&kl, 0.99),
            p999: quantile(&kl, 0.999),
            max: quantile(&kl, 1.0),
        };
        Self {
            tokens: scores.len(),
            original: Perplexity { perplexity: mean(|score| score.original).exp() },
            compressed: Perplexity { perplexity: mean(|score| score.compressed).exp() },
            kl: divergence,
            same_top: mean(|score| if score.same_top { 1.0 } else { 0.0 }),
            // NaN passes no limit.
            passed: average <= max_kl,
        }
    }
}

/// A window of text: token numbers, and the positions whose prediction of the next one is scored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    /// The token numbers, the tokenizer's first token before them if it has one.
    pub ids: Vec<u32>,
    /// Positions that are scored; position p predicts `ids[p + 1]`.
    pub scored: Range<usize>,
}

impl Window {
    /// For each position, the token that it has to predict, if it is scored.
    fn next(&self) -> impl Iterator<Item = Option<u32>> {
        (0..self.ids.len()).map(|at| self.scored.contains(&at).then(|| self.ids[at + 1]))
    }
}

/// Cuts text tokens into windows that do not overlap, of at most `context` tokens each with the one that stands before every
/// text, until `most` text tokens are scored. With such a first token every text token is scored; without, all but the
/// first of each window.
pub fn windows(tokens: &[u32], bos: Option<u32>, context: usize, most: usize) -> Vec<Window> {
    let unscored = usize::from(bos.is_none());
    let text = context - usize::from(bos.is_some());
    let mut windows = Vec::new();
    let mut left = most;
    for chunk in tokens.chunks(text.max(1)) {
        let chunk = &chunk[..chunk.len().min(left + unscored)];
        let ids: Vec<u32> = bos.iter().copied().chain(chunk.iter().copied()).collect();
        if left == 0 || ids.len() < 2 {
            break;
        }
        left -= ids.len() - 1;
        let scored = 0..ids.len() - 1;
        windows.push(Window { ids, scored });
    }
    windows
}

/// Cuts text tokens into windows as llama.cpp's perplexity does, until at most `most` are scored: of `context` tokens each, of
/// which the first is replaced by the one that stands before every text if there is one. The second half is scored.
pub fn second_halves(tokens: &[u32], bos: Option<u32>, context: usize, most: usize) -> Vec<Window> {
    let all: Vec<u32> = bos.iter().chain(tokens).copied().collect();
    let scored = context / 2..context - 1;
    if scored.is_empty() {
        return Vec::new();
    }
    let window = |chunk: &[u32]| {
        let mut ids = chunk.to_vec();
        ids[0] = bos.unwrap_or(ids[0]);
        Window { ids, scored: scored.clone() }
    };
    all.chunks_exact(context).take(most / scored.len().max(1)).map(window).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_score_every_text_token_after_a_first_one() {
        let tokens: Vec<u32> = (10..30).collect();
        let cut = windows(&tokens, Some(1), 8, 100);
        assert_eq!(cut.iter().map(|w| w.ids.len()).collect::<Vec<_>>(), [8, 8, 7]);
        assert_eq!(cut[1].ids, [1, 17, 18, 19, 20, 21, 22, 23]);
        assert_eq!(cut.iter().map(|w| w.scored.len()).sum::<usize>(), 20);
        let cut = windows(&tokens, Some(1), 8, 9);
        assert_eq!(cut.iter().map(|w| w.scored.len()).collect::<Vec<_>>(), [7, 2]);
        let cut = windows(&tokens, None, 8, 9);
        assert_eq!(cut.iter().map(|w| (w.ids.len(), w.scored.len())).collect::<Vec<_>>(), [(8, 7), (3, 2)]);
        assert!(windows(&tokens[..1], None, 8, 9).is_empty());
    }

    #[test]
    fn second_halves_are_those_of_whole_windows() {
        let tokens: Vec<u32> = (10..30).collect();
        let cut = second_halves(&tokens, Some(1), 8, 100);
        assert_eq!(
            cut.iter().map(|w| w.ids.clone()).collect::<Vec<_>>(),
            [[1, 10, 11, 12, 13, 14, 15, 16], [1, 18, 19, 20, 21, 22, 23, 24]]
        );
        assert!(cut.iter().all(|w| w.scored == (4..7)));
        assert_eq!(second_halves(&tokens, None, 8, 5), [Window { ids: (10..18).collect(), scored: 4..7 }]);
        assert!(second_halves(&tokens, None, 8, 2).is_empty() && second_halves(&tokens, None, 30, 100).is_empty());
    }

    #[test]
    fn scores_agree_with_the_definition() {
        let (p, q) = ([1.0f32, 2.0, 0.5, -1.0], [0.9f32, 2.2, 0.4, -1.5]);
        let share = |x: &[f32]| {
            let e: Vec<f64> = x.iter().map(|&x| f64::from(x).exp()).collect();
            let sum: f64 = e.iter().sum();
            e.into_iter().map(|e| e / sum).collect::<Vec<_>>()
        };
        let (a, b) = (share(&p), share(&q));
        let kl: f64 = a.iter().zip(&b).map(|(a, b)| a * (a / b).ln()).sum();
        let score = Score::of(&p, &q, 2);
        assert!((score.kl - kl).abs() < 1e-7, "{} {kl}", score.kl);
        assert!((score.original + a[2].ln()).abs() < 1e-7 && (score.compressed + b[2].ln()).abs() < 1e-7);
        assert!(score.same_top && Score::of(&p, &p, 0).kl == 0.0);
        let same = Comparison::of(&[Score::of(&p, &p, 0)], 0.0);
        assert!(same.passed && same.same_top == 1.0 && same.original == same.compressed);
        let nan = Comparison::of(&[Score::of(&p, &[f32::NAN; 4], 0)], 1.0);
        assert!(!nan.passed);
    }
}
