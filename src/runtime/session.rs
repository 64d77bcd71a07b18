//! Decoding token by token: what a decoder has seen stays in a cache.

use std::ops::ControlFlow;

use super::block::{Block, Group};
use super::cache::Precision;
use super::model::{Context, Embedding, Head, Model};
use super::observer::Unobserved;
use super::sampler::Sampler;
use super::{Activations, Cache, Error, Scratch};
use crate::family::{Position, RopeScaling};
use crate::job::Job;

/// New tokens that go through the model together.
const MOST_TOKENS: usize = 512;

/// Sequences that a decoder is about to continue, each on its own.
///
/// Keys and values of every position, the latest too, are taken from the cache: so the logits do not depend on how tokens
/// were handed over, in one piece or one by one, or on other sequences, up to the order of sums and, in 16 bits, to
/// ties of rounding.
pub struct Session<'a> {
    job: &'a Job,
    embedding: Embedding,
    blocks: Vec<Block>,
    head: Head,
    hidden: usize,
    limit: usize,
    /// By layer and sequence.
    caches: Vec<Vec<Cache>>,
    /// Where long texts turn keys otherwise than short ones: the length that they exceed, and the text of each sequence.
    turning: Option<(usize, Vec<Vec<u32>>)>,
    scratch: Scratch,
}

/// Why a text ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The model said so, with a stop token.
    Stop,
    /// As many tokens as were asked for.
    Length,
    /// The model has no more positions.
    Context,
    /// The receiver wants no more.
    Receiver,
}

impl<'a> Session<'a> {
    /// Takes up a decoder's weights for `sequences` of up to `positions` tokens, with a cache of 16 bits. Weights that are mapped
    /// stay where they are.
    ///
    /// # Errors
    /// A model that is no decoder, more positions than it has, or weights that are missing or cannot be read.
    pub fn new(model: &Model, sequences: usize, positions: usize, job: &'a Job) -> Result<Self, Error> {
        Self::with_precision(model, sequences, positions, Precision::Int16, job)
    }

    /// As [`Session::new`], with a cache in another precision.
    ///
    /// # Errors
    /// As [`Session::new`].
    pub fn with_precision(
        model: &Model,
        sequences: usize,
        positions: usize,
        precision: Precision,
        job: &'a Job,
    ) -> Result<Self, Error> {
        let t = model.shape();
        if !t.causal {
            return Err(Error::Family { expected: "a decoder" });
        }
        if positions > t.max_positions {
            return Err(Error::TooLong { length: positions, limit: t.max_positions });
        }
        let cache = || Cache::new(precision, t.kv_heads, t.head_dim, positions);
        let embedding = model.embedding()?;
        Ok(Self {
            job,
            blocks: (0..t.layers).map(|layer| model.block(layer)).collect::<Result<_, _>>()?,
            head: model.head(Some(&embedding))?,
            embedding,
            hidden: t.hidden,
            limit: positions,
            caches: (0..t.layers).map(|_| (0..sequences).map(|_| cache()).collect()).collect(),
            turning: turning(&t.position).map(|original| (original, vec![Vec::new(); sequences])),
            scratch: Scratch::for_steps(),
        })
    }

    /// Tokens that a sequence has so far.
    pub fn len(&self, sequence: usize) -> usize {
        self.caches.first().map_or(0, |caches| caches[sequence].len())
    }

    /// Whether no sequence has a token.
    pub fn is_empty(&self) -> bool {
        self.caches.first().is_none_or(|caches| caches.iter().all(Cache::is_empty))
    }

    /// Forgets all tokens, so that other texts can begin.
    pub fn restart(&mut self) {
        self.caches.iter_mut().flatten().for_each(Cache::clear);
        self.turning.iter_mut().flat_map(|(_, texts)| texts).for_each(Vec::clear);
    }

    /// The tokens to go through the model: the new ones, and where they make a text a long one whose keys turn otherwise from
    /// the first on, its whole text again.
    fn again(&mut self, tokens: &[Vec<u32>]) -> Vec<Vec<u32>> {
        let mut all = tokens.to_vec();
        let Some((original, texts)) = &mut self.turning else { return all };
        for (sequence, (text, new)) in texts.iter_mut().zip(&mut all).enumerate() {
            let was_short = (1..=*original).contains(&text.len());
            text.extend_from_slice(new);
            if was_short && text.len() > *original {
                new.clone_from(text);
                self.caches.iter_mut().for_each(|caches| caches[sequence].clear());
            }
        }
        all
    }

    /// Continues each sequence with its new tokens, which may be none, and returns the logits after its last one, `[vocab]`;
    /// nothing for a sequence without new tokens.
    ///
    /// # Errors
    /// A token outside the vocabulary, a sequence that gets too long, or an interruption. The session is then of no more use.
    ///
    /// # Panics
    /// If there are not as many lists of tokens as sequences.
    pub fn extend(&mut self, tokens: &[Vec<u32>]) -> Result<Vec<Vec<f32>>, Error> {
        if let Some(caches) = self.caches.first() {
            assert_eq!(tokens.len(), caches.len(), "a list of tokens for each sequence");
        }
        for (sequence, new) in tokens.iter().enumerate() {
            let length = self.len(sequence) + new.len();
            if length > self.limit {
                return Err(Error::TooLong { length, limit: self.limit });
            }
        }
        let tokens = &self.again(tokens);
        let lengths: Vec<usize> = tokens.iter().enumerate().map(|(i, new)| self.len(i) + new.len()).collect();
        let mut logits = vec![Vec::new(); tokens.len()];
        let mut done = 0;
        let longest = tokens.iter().map(Vec::len).max().unwrap_or(0);
        let step = (MOST_TOKENS / tokens.len().max(1)).max(1);
        while done < longest {
            let piece = |new: &Vec<u32>| new[done.min(new.len())..new.len().min(done + step)].to_vec();
            let pieces: Vec<Vec<u32>> = tokens.iter().map(piece).collect();
            let hidden = self.forward(&pieces, &lengths)?;
            done += step;
            let (mut end, mut last, mut complete) = (0, Vec::new(), Vec::new());
            for (sequence, (piece, new)) in pieces.iter().zip(tokens).enumerate() {
                end += piece.len();
                if !piece.is_empty() && new.len() <= done {
                    last.extend_from_slice(&hidden[(end - 1) * self.hidden..end * self.hidden]);
                    complete.push(sequence);
                }
            }
            let found = self.predict(&mut last);
            for (sequence, found) in complete.into_iter().zip(found.chunks(self.head.projection.out_features().max(1)))
            {
                logits[sequence] = found.to_vec();
            }
        }
        Ok(logits)
    }

    /// New tokens through all blocks: their hidden states. `lengths` are those of the texts when all new tokens are through.
    fn forward(&mut self, tokens: &[Vec<u32>], lengths: &[usize]) -> Result<Vec<f32>, Error> {
        let firsts: Vec<usize> = (0..tokens.len()).map(|sequence| self.len(sequence)).collect();
        let mut starts = vec![0];
        tokens.iter().for_each(|new| starts.push(starts[starts.len() - 1] + new.len()));
        let mut hidden = self.embedding.forward(tokens, &firsts, &self.job.pool)?;
        let growing = || tokens.iter().zip(&firsts).filter(|(new, _)| !new.is_empty());
        let from = growing().map(|(_, first)| *first).min().unwrap_or(0);
        let to = growing().map(|(new, first)| first + new.len()).max().unwrap_or(0);
        let group = Group { starts: &starts, firsts: &firsts, lengths, chunk: MOST_TOKENS, cancel: &self.job.cancel };
        let mut observer = Unobserved;
        for (block, caches) in self.blocks.iter().zip(&mut self.caches) {
            let rotation = block.rotation(from..to);
            let mut context =
                Context { model: 0, observer: &mut observer, scratch: &mut self.scratch, pool: &self.job.pool };
            block.forward(&mut hidden, &group, rotation.as_ref(), Some(caches), &mut context)?;
        }
        Ok(hidden)
    }

    /// The logits `[rows, vocab]` of hidden states.
    fn predict(&mut self, hidden: &mut [f32]) -> Vec<f32> {
        if let Some(norm) = &self.head.norm {
            norm.apply(hidden, &self.job.pool);
        }
        let x = Activations::new(hidden, self.hidden);
        let mut logits = vec![0.0; x.rows() * self.head.projection.out_features()];
        let mut context =
            Context { model: 0, observer: &mut Unobserved, scratch: &mut self.scratch, pool: &self.job.pool };
        self.head.projection.forward(&x, &mut logits, &mut context);
        logits
    }
}

/// The length beyond which texts turn their keys otherwise, if there is one.
fn turning(position: &Position) -> Option<usize> {
    let Position::Rope(ropes) = position else { return None };
    ropes.iter().find_map(|rope| match rope.scaling {
        RopeScaling::Long { original_context, .. } => Some(original_context),
        _ => None,
    })
}

/// Continues a prompt by up to `most` tokens, until one of `stop`, and hands each to `each`, stop tokens not.
///
/// # Errors
/// As [`Session::new`] and [`Session::extend`]: a prompt that is empty, or longer than the model's context, among them.
pub fn generate(
    model: &Model,
    prompt: &[u32],
    most: usize,
    stop: &[u32],
    sampler: &mut Sampler,
    job: &Job,
    mut each: impl FnMut(u32) -> ControlFlow<()>,
) -> Result<End, Error> {
    let limit = model.shape().max_positions;
    if prompt.is_empty() {
        return Err(Error::Empty);
    }
    if prompt.len() > limit {
        return Err(Error::TooLong { length: prompt.len(), limit });
    }
    let mut session = Session::new(model, 1, limit.min(prompt.len().saturating_add(most)), job)?;
    let mut new = prompt.to_vec();
    for _ in 0..most {
        let logits = session.extend(&[new])?.concat();
        let token = sampler.choose(&logits);
        if stop.contains(&token) {
            return Ok(End::Stop);
        }
        if each(token).is_break() {
            return Ok(End::Receiver);
        }
        if session.len(0) == limit {
            return Ok(End::Context);
        }
        new = vec![token];
    }
    Ok(End::Length)
}
