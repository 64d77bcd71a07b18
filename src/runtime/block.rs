//! One block of a transformer: attention, then the feed-forward part, each added to the residual stream.

use std::ops::Range;

use super::feed_forward::FeedForward;
use super::model::{Context, Projection};
use super::ops::attention::Attention;
use super::ops::norm::Normalisation;
use super::ops::rope::Rotation;
use super::{Activations, Cache, Error};
use crate::family::{Placement, Rope};
use crate::job::Cancel;

/// The halves of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Half {
    /// Attention, added to the residual stream.
    Attention,
    /// The feed-forward part, added to it.
    FeedForward,
}

/// How far text goes through half of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Goal {
    /// To the input of its first matrices: queries, keys and values, or gate and up.
    First,
    /// To the input of its last matrix.
    Last,
    /// Through it: hidden states change.
    Through,
}

/// A block with its weights.
pub(super) struct Block {
    pub placement: Placement,
    pub attention_norms: Norms,
    pub attention: AttentionPart,
    pub feed_forward_norms: Norms,
    pub feed_forward: FeedForward,
}

/// The normalisations around a part.
pub(super) struct Norms {
    pub before: Option<Normalisation>,
    pub after: Option<Normalisation>,
}

/// Attention with its projections.
pub(super) struct AttentionPart {
    pub shape: Attention,
    pub rope: Option<Rope>,
    /// Of each query head and each key head.
    pub head_norms: Option<[Normalisation; 2]>,
    pub q: Projection,
    pub k: Projection,
    pub v: Projection,
    pub out: Projection,
}

/// The windows of text that go through a block together.
pub(super) struct Group<'a> {
    /// The rows at which they begin, and the number of rows.
    pub starts: &'a [usize],
    /// The positions of their first rows.
    pub firsts: &'a [usize],
    /// Tokens of their texts: those that were before, these, and those that are known to follow.
    pub lengths: &'a [usize],
    /// Rows that linear layers take at a time.
    pub chunk: usize,
    pub cancel: &'a Cancel,
}

impl Group<'_> {
    fn rows(&self) -> usize {
        self.starts.last().copied().unwrap_or(0)
    }

    fn chunks(&self) -> impl Iterator<Item = Range<usize>> {
        let (rows, step) = (self.rows(), self.chunk.max(1));
        (0..rows).step_by(step).map(move |first| first..rows.min(first + step))
    }
}

impl Block {
    /// The rotation of the block's heads at these positions.
    pub fn rotation(&self, positions: Range<usize>) -> Option<Rotation> {
        self.attention.rope.as_ref().map(|rope| Rotation::new(rope, positions))
    }

    /// Applies the block to the hidden states of a group `[rows, hidden]`. With caches, one for each sequence, sequences go on
    /// from what these hold and are added to them.
    pub fn forward(
        &self,
        hidden: &mut [f32],
        group: &Group<'_>,
        rotation: Option<&Rotation>,
        past: Option<&mut [Cache]>,
        context: &mut Context<'_>,
    ) -> Result<(), Error> {
        self.attention(hidden, group, rotation, past, Goal::Through, context)?;
        self.feed_forward(hidden, group, Goal::Through, context)
    }

    /// The first half of [`Block::forward`], as far as its goal.
    pub fn attention(
        &self,
        hidden: &mut [f32],
        group: &Group<'_>,
        rotation: Option<&Rotation>,
        past: Option<&mut [Cache]>,
        goal: Goal,
        context: &mut Context<'_>,
    ) -> Result<(), Error> {
        let width = self.attention.out.out_features();
        if goal == Goal::First {
            for rows in group.chunks() {
                let stream = &hidden[rows.start * width..rows.end * width];
                let normalised = self.input(stream, &self.attention_norms, context);
                let x = Activations::new(normalised.as_deref().unwrap_or(stream), width);
                for matrix in [&self.attention.q, &self.attention.k, &self.attention.v] {
                    matrix.tell(&x, context);
                }
            }
            return Ok(());
        }
        let seen = self.attend(hidden, width, group, rotation, past, context)?;
        let queries = self.attention.q.out_features();
        for rows in group.chunks() {
            group.cancel.check()?;
            let x = Activations::new(&seen[rows.start * queries..rows.end * queries], queries);
            if goal == Goal::Last {
                self.attention.out.tell(&x, context);
                continue;
            }
            let mut change = vec![0.0; rows.len() * width];
            self.attention.out.forward(&x, &mut change, context);
            let stream = &mut hidden[rows.start * width..rows.end * width];
            self.add(stream, change, &self.attention_norms, context);
        }
        Ok(())
    }

    /// The second half of [`Block::forward`], as far as its goal.
    pub fn feed_forward(
        &self,
        hidden: &mut [f32],
        group: &Group<'_>,
        goal: Goal,
        context: &mut Context<'_>,
    ) -> Result<(), Error> {
        let width = self.attention.out.out_features();
        for rows in group.chunks() {
            group.cancel.check()?;
            let stream = &mut hidden[rows.start * width..rows.end * width];
            let normalised = self.input(stream, &self.feed_forward_norms, context);
            let x = Activations::new(normalised.as_deref().unwrap_or(stream), width);
            let change = self.feed_forward.forward(&x, goal, context);
            if let Some(change) = change {
                self.add(stream, change, &self.feed_forward_norms, context);
            }
        }
        Ok(())
    }

    /// What is left of a half whose last matrix is given `x`: of the rows of the hidden states. Mixtures have no such matrix.
    pub fn last(&self, hidden: &mut [f32], x: &[f32], half: Half, context: &mut Context<'_>) {
        let (matrix, norms) = match (half, &self.feed_forward) {
            (Half::Attention, _) => (&self.attention.out, &self.attention_norms),
            (Half::FeedForward, FeedForward::Dense(dense)) => (&dense.down, &self.feed_forward_norms),
            (Half::FeedForward, FeedForward::Mixture(_)) => return,
        };
        let mut change = vec![0.0; hidden.len()];
        matrix.forward(&Activations::new(x, matrix.in_features()), &mut change, context);
        self.add(hidden, change, norms, context);
    }

    /// What each head of each row gathers: `[rows, heads · head_dim]`.
    fn attend(
        &self,
        hidden: &[f32],
        width: usize,
        group: &Group<'_>,
        rotation: Option<&Rotation>,
        past: Option<&mut [Cache]>,
        context: &mut Context<'_>,
    ) -> Result<Vec<f32>, Error> {
        let a = &self.attention;
        let (queries, keys) = (a.q.out_features(), a.k.out_features());
        let buffer = |width: usize| vec![0.0; group.rows() * width];
        let (mut q, mut k, mut v, mut out) = (buffer(queries), buffer(keys), buffer(keys), buffer(queries));
        for rows in group.chunks() {
            group.cancel.check()?;
            let stream = &hidden[rows.start * width..rows.end * width];
            let normalised = self.input(stream, &self.attention_norms, context);
            let x = Activations::new(normalised.as_deref().unwrap_or(stream), width);
            let q = &mut q[rows.start * queries..rows.end * queries];
            let (k, v) = (&mut k[rows.start * keys..rows.end * keys], &mut v[rows.start * keys..rows.end * keys]);
            Projection::forward_all([(&a.q, q), (&a.k, k), (&a.v, v)], &x, context);
        }
        if let Some([q_norm, k_norm]) = &a.head_norms {
            q_norm.apply(&mut q, context.pool);
            k_norm.apply(&mut k, context.pool);
        }
        if let Some(rotation) = rotation {
            for x in [&mut q, &mut k] {
                rotation.apply(x, a.shape.head_dim, group.starts, group.firsts, group.lengths, context.pool);
            }
        }
        group.cancel.check()?;
        match past {
            None => a.shape.apply(&q, &k, &v, group.starts, &mut out, context.scratch, context.pool),
            Some(caches) => {
                for (cache, rows) in caches.iter_mut().zip(group.starts.windows(2)) {
                    let rows = rows[0] * keys..rows[1] * keys;
                    cache.push(&k[rows.clone()], &v[rows]);
                }
                a.shape.apply_cached(&q, caches, group.starts, &mut out, context.scratch, context.pool);
            }
        }
        Ok(out)
    }

    /// The stream as a part sees it, if that is not the stream itself.
    fn input(&self, stream: &[f32], norms: &Norms, context: &Context<'_>) -> Option<Vec<f32>> {
        norms.before.as_ref().map(|norm| {
            let mut x = stream.to_vec();
            norm.apply(&mut x, context.pool);
            x
        })
    }

    /// Adds a part's result to the stream, normalised as the placement says.
    fn add(&self, stream: &mut [f32], mut change: Vec<f32>, norms: &Norms, context: &Context<'_>) {
        if let (Placement::Both, Some(norm)) = (self.placement, &norms.after) {
            norm.apply(&mut change, context.pool);
        }
        stream.iter_mut().zip(&change).for_each(|(x, change)| *x += change);
        if let (Placement::Post, Some(norm)) = (self.placement, &norms.after) {
            norm.apply(stream, context.pool);
        }
    }
}
