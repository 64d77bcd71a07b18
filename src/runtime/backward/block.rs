//! How gradients go back through a block.

use super::Back;
use super::feed_forward::Record;
use crate::family::Placement;
use crate::runtime::Activations;
use crate::runtime::block::{Block, Norms};
use crate::runtime::model::{Context, Projection};
use crate::runtime::ops::norm::Normalisation;
use crate::runtime::ops::rope::Rotation;

/// What a block computed of one window on its way forward.
pub(super) struct Tape {
    /// What attention's branch begins with `[rows, hidden]`.
    input: Vec<f32>,
    /// Queries and keys before their normalisation, if they have one.
    raw: Option<[Vec<f32>; 2]>,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    /// What each head gathers `[rows, heads · head_dim]`.
    seen: Vec<f32>,
    /// What the normalisation after attention is given, if there is one.
    attention: Option<Vec<f32>>,
    /// What the feed-forward branch begins with `[rows, hidden]`.
    middle: Vec<f32>,
    feed_forward: Record,
    /// What the normalisation after the feed-forward part is given, if there is one.
    last: Option<Vec<f32>>,
}

impl Block {
    /// Computes the block on one window and keeps what is needed on the way back.
    pub(super) fn record(&self, input: Vec<f32>, rotation: Option<&Rotation>, context: &mut Context<'_>) -> Tape {
        let (a, pool) = (&self.attention, context.pool);
        let width = a.out.out_features();
        let starts = [0, input.len() / width.max(1)];
        let x = normalised(&input, self.attention_norms.before.as_ref(), context);
        let x = Activations::new(&x, width);
        let (mut q, mut k) = (project(&a.q, &x, context), project(&a.k, &x, context));
        let v = project(&a.v, &x, context);
        let raw = a.head_norms.as_ref().map(|[q_norm, k_norm]| {
            let raw = [q.clone(), k.clone()];
            q_norm.apply(&mut q, pool);
            k_norm.apply(&mut k, pool);
            raw
        });
        if let Some(rotation) = rotation {
            rotation.apply(&mut q, a.shape.head_dim, &starts, &[0], &starts[1..], pool);
            rotation.apply(&mut k, a.shape.head_dim, &starts, &[0], &starts[1..], pool);
        }
        let mut seen = vec![0.0; q.len()];
        a.shape.apply(&q, &k, &v, &starts, &mut seen, context.scratch, pool);
        let change = project(&a.out, &Activations::new(&seen, a.out.in_features()), context);
        let mut middle = input.clone();
        let attention = self.join(&mut middle, change, &self.attention_norms, context);
        let x = normalised(&middle, self.feed_forward_norms.before.as_ref(), context);
        let wanted = self.feed_forward_norms.after.is_some();
        let (feed_forward, change) = self.feed_forward.record(&Activations::new(&x, width), wanted, context);
        let last = change.and_then(|change| self.join(&mut middle.clone(), change, &self.feed_forward_norms, context));
        Tape { input, raw, q, k, v, seen, attention, middle, feed_forward, last }
    }

    /// Turns the gradient of what the block gives into that of what it was given, `[rows, hidden]`.
    pub(super) fn gradient(&self, tape: &Tape, g: &mut [f32], rotation: Option<&Rotation>, back: &mut Back<'_>) {
        let change = self.part(tape.last.as_deref(), g, &self.feed_forward_norms, back);
        let mut x = vec![0.0; g.len()];
        self.feed_forward.gradient(&tape.feed_forward, &change, &mut x, back);
        branch(&tape.middle, x, &self.feed_forward_norms, g, back);

        let (a, pool) = (&self.attention, back.pool);
        let change = self.part(tape.attention.as_deref(), g, &self.attention_norms, back);
        let mut heads = vec![0.0; tape.seen.len()];
        a.out.gradient(&change, &mut heads, back);
        let mut of = a.shape.gradient(&tape.q, &tape.k, &tape.v, &tape.seen, &heads, back.scratch, pool);
        if let Some(rotation) = rotation {
            let starts = [0, g.len() / a.out.out_features().max(1)];
            rotation.gradient(&mut of.q, a.shape.head_dim, &starts, &[0], &starts[1..], pool);
            rotation.gradient(&mut of.k, a.shape.head_dim, &starts, &[0], &starts[1..], pool);
        }
        if let (Some([q_norm, k_norm]), Some([q, k])) = (&a.head_norms, &tape.raw) {
            q_norm.gradient(q, &mut of.q, pool);
            k_norm.gradient(k, &mut of.k, pool);
        }
        let mut x = vec![0.0; g.len()];
        a.q.gradient(&of.q, &mut x, back);
        a.k.gradient(&of.k, &mut x, back);
        a.v.gradient(&of.v, &mut x, back);
        branch(&tape.input, x, &self.attention_norms, g, back);
    }

    /// Adds a part's result to the stream, normalised as the placement says; what the normalisation was given.
    fn join(&self, stream: &mut [f32], mut change: Vec<f32>, norms: &Norms, context: &Context<'_>) -> Option<Vec<f32>> {
        let mut given = None;
        if let (Placement::Both, Some(norm)) = (self.placement, &norms.after) {
            given = Some(change.clone());
            norm.apply(&mut change, context.pool);
        }
        stream.iter_mut().zip(&change).for_each(|(x, change)| *x += change);
        if let (Placement::Post, Some(norm)) = (self.placement, &norms.after) {
            given = Some(stream.to_vec());
            norm.apply(stream, context.pool);
        }
        given
    }

    /// The gradient of a part's result, from `g`, that of what joining made of it; `g` becomes that of the stream as far as it
    /// went past the part.
    fn part(&self, given: Option<&[f32]>, g: &mut [f32], norms: &Norms, back: &Back<'_>) -> Vec<f32> {
        let norm = norms.after.as_ref().zip(given);
        if let (Placement::Post, Some((norm, given))) = (self.placement, norm) {
            norm.gradient(given, g, back.pool);
        }
        let mut change = g.to_vec();
        if let (Placement::Both, Some((norm, given))) = (self.placement, norm) {
            norm.gradient(given, &mut change, back.pool);
        }
        change
    }
}

/// Adds the gradient of a part's input to that of the stream, through the normalisation before the part.
fn branch(stream: &[f32], mut x: Vec<f32>, norms: &Norms, g: &mut [f32], back: &Back<'_>) {
    if let Some(norm) = &norms.before {
        norm.gradient(stream, &mut x, back.pool);
    }
    g.iter_mut().zip(&x).for_each(|(g, x)| *g += x);
}

fn normalised(stream: &[f32], norm: Option<&Normalisation>, context: &Context<'_>) -> Vec<f32> {
    let mut x = stream.to_vec();
    if let Some(norm) = norm {
        norm.apply(&mut x, context.pool);
    }
    x
}

fn project(projection: &Projection, x: &Activations<'_>, context: &mut Context<'_>) -> Vec<f32> {
    let mut out = vec![0.0; x.rows() * projection.out_features()];
    projection.forward(x, &mut out, context);
    out
}
