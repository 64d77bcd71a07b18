//! What choosing codes by a text gained, on windows of that text that were held back.

use std::sync::Arc;

use serde::Serialize;

use super::Result;
use super::encoder;
use super::language::divergence;
use crate::family;
use crate::job::Job;
use crate::loader::{Checkpoint, Pooling};
use crate::runtime::{self, Model, Unobserved, embed, walk};

/// How far two compressed models are from the original on text that was held back.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct HeldBack {
    /// What is measured.
    pub measure: &'static str,
    /// Tokens.
    pub tokens: usize,
    /// Codes that were found without a text.
    pub nearest: f64,
    /// Codes that were chosen by the rest of the text.
    pub chosen: f64,
}

impl HeldBack {
    /// Compares the outputs of both with the original's: of decoders the mean KL divergence, of encoders 1 − the mean cosine.
    /// `None` if no window was held back.
    ///
    /// # Errors
    /// A model that cannot be run, an interruption.
    pub fn measure(
        original: &Arc<Checkpoint>,
        nearest: &Model,
        chosen: &Arc<Checkpoint>,
        windows: &[Vec<u32>],
        job: &Job,
    ) -> Result<Option<Self>> {
        const STAGE: &str = "held-back text";
        let Some(family) = original.family().filter(|_| !windows.is_empty()) else { return Ok(None) };
        let (original_model, chosen) = (runtime::load(original)?, runtime::load(chosen)?);
        let models = [&original_model, nearest, &chosen];
        let tokens: usize = windows.iter().map(Vec::len).sum();
        let of = |measure, [nearest, chosen]: [f64; 2]| Some(Self { measure, tokens, nearest, chosen });
        if family.kind == family::Kind::Encoder {
            let pooling = original.companions().pooling.unwrap_or(Pooling::Mean);
            let embeddings = embed(&models, windows, pooling, job, STAGE)?;
            let distance = |other: usize| 1.0 - encoder::mean_cosine(&embeddings[0], &embeddings[other]);
            return Ok(of("1 - mean cosine", [distance(1), distance(2)]));
        }
        let mut sums = [0.0; 2];
        walk::language(&models, windows, job, STAGE, &mut Unobserved, |positions, logits| {
            let vocab = logits[0].len() / positions.len();
            let row = |model: usize, i: usize| &logits[model][i * vocab..(i + 1) * vocab];
            let both = |i: usize| [1, 2].map(|other| divergence(row(0, i), row(other, i)));
            for both in job.pool.map(positions.len(), both) {
                sums.iter_mut().zip(both).for_each(|(sum, kl)| *sum += kl);
            }
        })?;
        Ok(of("mean KL divergence", sums.map(|sum| sum / tokens as f64)))
    }
}
