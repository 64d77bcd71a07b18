//! A transformer and its weights, taken up piece by piece.

use std::sync::Arc;

use super::block::{AttentionPart, Block, Norms};
use super::feed_forward::{Dense, Expert, FeedForward, Mixture};
use super::kernels::tiles::Tiles;
use super::linear::{Linear, from_rows};
use super::observer::Observer;
use super::ops::attention::Attention;
use super::ops::embedding::{Tables, embed};
use super::ops::norm::Normalisation;
use super::weights::{Overlay, Place, Weights};
use super::{Activations, Error, Scratch};
use crate::family::{Part, Placement, Position, Slot, Transformer};
use crate::threads::Pool;

/// A transformer over weights that are taken up when they are needed.
pub struct Model {
    shape: Transformer,
    weights: Arc<dyn Weights>,
    overlay: Overlay,
}

/// What layers compute with and tell.
pub(super) struct Context<'a> {
    /// The model's number in the walk.
    pub model: usize,
    pub observer: &'a mut dyn Observer,
    pub scratch: &'a mut Scratch,
    pub pool: &'a Pool,
}

/// A matrix with its bias.
pub(super) struct Projection {
    pub place: Place,
    pub linear: Arc<dyn Linear>,
    bias: Option<Vec<f32>>,
}

impl Projection {
    /// Tells the observer that this is about to meet x.
    pub fn tell(&self, x: &Activations<'_>, context: &mut Context<'_>) {
        context.observer.input(context.model, self.place, x);
    }

    /// out `[rows, out_features]` = x · Wᵀ + b, after telling the observer.
    pub fn forward(&self, x: &Activations<'_>, out: &mut [f32], context: &mut Context<'_>) {
        Self::forward_all([(self, out)], x, context);
    }

    /// [`Projection::forward`] of several that share x: threads wait for one another once.
    pub fn forward_all<const N: usize>(all: [(&Self, &mut [f32]); N], x: &Activations<'_>, context: &mut Context<'_>) {
        all.iter().for_each(|(projection, _)| projection.tell(x, context));
        let (mut all, scratch, pool) = (all, &*context.scratch, context.pool);
        let tiles = all.iter_mut().map(|(projection, out)| projection.linear.tiles(x, out, scratch, pool));
        Tiles::on(pool, tiles.collect());
        for (projection, out) in all {
            if let Some(bias) = &projection.bias {
                out.chunks_exact_mut(bias.len().max(1))
                    .for_each(|row| row.iter_mut().zip(bias).for_each(|(y, bias)| *y += bias));
            }
        }
    }

    /// Rows of the matrix.
    pub fn out_features(&self) -> usize {
        self.linear.out_features()
    }

    /// Columns of the matrix.
    pub fn in_features(&self) -> usize {
        self.linear.in_features()
    }
}

/// The beginning of a model: what turns tokens into the first hidden states.
pub(super) struct Embedding {
    tokens: Arc<dyn Linear>,
    pub scale: f32,
    positions: Option<Arc<dyn Linear>>,
    max_positions: usize,
    padding: Option<u32>,
    types: Option<Arc<dyn Linear>>,
    pub norm: Option<Normalisation>,
}

impl Embedding {
    /// The first hidden states of these windows, one after the other: `[tokens, hidden]`. `firsts` are the positions at which
    /// they begin.
    pub fn forward(&self, windows: &[Vec<u32>], firsts: &[usize], pool: &Pool) -> Result<Vec<f32>, Error> {
        let mut hidden = self.sum(windows, firsts, pool)?;
        if let Some(norm) = &self.norm {
            norm.apply(&mut hidden, pool);
        }
        Ok(hidden)
    }

    /// As [`Embedding::forward`], before the normalisation.
    pub fn sum(&self, windows: &[Vec<u32>], firsts: &[usize], pool: &Pool) -> Result<Vec<f32>, Error> {
        let (vocab, width) = (self.tokens.out_features(), self.tokens.in_features());
        let mut hidden = vec![0.0; windows.iter().map(Vec::len).sum::<usize>() * width];
        let mut rest = &mut hidden[..];
        for (window, first) in windows.iter().zip(firsts) {
            if let Some(token) = window.iter().find(|token| **token as usize >= vocab) {
                return Err(Error::Token { token: *token, vocab });
            }
            if let Some(token) = self.padding.filter(|padding| window.contains(padding)) {
                return Err(Error::Padding { token });
            }
            if self.positions.is_some() && first + window.len() > self.max_positions {
                return Err(Error::TooLong { length: first + window.len(), limit: self.max_positions });
            }
            let tables = Tables {
                tokens: &*self.tokens,
                scale: self.scale,
                positions: self.positions.as_deref().map(|table| (table, *first)),
                types: self.types.as_deref(),
            };
            let (out, after) = rest.split_at_mut(window.len() * width);
            embed(&tables, window, out, pool);
            rest = after;
        }
        Ok(hidden)
    }
}

/// The end of a decoder: the last normalisation and the output projection.
pub(super) struct Head {
    pub norm: Option<Normalisation>,
    pub projection: Projection,
}

impl Model {
    /// A transformer of this shape over these weights.
    pub fn new(shape: Transformer, weights: Arc<dyn Weights>) -> Self {
        Self { shape, weights, overlay: Overlay::new() }
    }

    /// The shape.
    pub fn shape(&self) -> &Transformer {
        &self.shape
    }

    /// The model's shape, to be changed before it runs: what it shall do with the weights that it has.
    pub fn shape_mut(&mut self) -> &mut Transformer {
        &mut self.shape
    }

    /// The matrices that take the place of the model's own. They are looked up when the walk comes to their block.
    pub fn overlay_mut(&mut self) -> &mut Overlay {
        &mut self.overlay
    }

    /// The matrix of a place, taken up now.
    ///
    /// # Errors
    /// [`Error::Missing`], [`Error::Shape`], or that the weights cannot be read.
    pub fn linear(&self, place: Place, rows: usize, cols: usize) -> Result<Arc<dyn Linear>, Error> {
        take_linear(&*self.weights, &self.overlay, place, rows, cols)
    }

    pub(super) fn projection(&self, place: Place, rows: usize, cols: usize) -> Result<Projection, Error> {
        take_projection(&*self.weights, &self.overlay, place, rows, cols)
    }

    fn vector(&self, slot: Slot, layer: usize, part: Part, len: usize) -> Result<Option<Vec<f32>>, Error> {
        take_vector(&*self.weights, slot, layer, part, len)
    }

    /// A normalisation over `features`, which the model must have.
    fn norm(&self, slot: Slot, layer: usize, features: usize) -> Result<Normalisation, Error> {
        let gain = self.vector(slot, layer, Part::Weight, features)?;
        let gain = gain.ok_or(Error::Missing { slot, layer, part: Part::Weight })?;
        Ok(Normalisation::new(self.shape.norm, gain, self.vector(slot, layer, Part::Bias, features)?))
    }

    /// The embeddings, taken up now.
    pub(super) fn embedding(&self) -> Result<Embedding, Error> {
        let t = &self.shape;
        let table = |slot, rows| self.linear(Place::new(slot, 0), rows, t.hidden);
        Ok(Embedding {
            tokens: table(Slot::TokenEmbedding, t.vocab)?,
            scale: t.embedding_scale,
            positions: match t.position {
                Position::Learned { .. } => Some(table(Slot::PositionEmbedding, t.max_positions)?),
                Position::Rope(_) => None,
            },
            max_positions: t.max_positions,
            // Positions are counted from the row after the padding token's.
            padding: match t.position {
                Position::Learned { offset: offset @ 1.. } => u32::try_from(offset - 1).ok(),
                Position::Learned { .. } | Position::Rope(_) => None,
            },
            types: if t.token_types > 0 { Some(table(Slot::TypeEmbedding, t.token_types)?) } else { None },
            norm: t.embedding_norm.then(|| self.norm(Slot::EmbeddingNorm, 0, t.hidden)).transpose()?,
        })
    }

    /// The weights of a block, taken up now.
    pub(super) fn block(&self, layer: usize) -> Result<Block, Error> {
        let t = &self.shape;
        let window = *t.windows.get(layer).ok_or(Error::Layer { layer })?;
        let rope = match &t.position {
            Position::Rope(ropes) => Some(ropes.get(layer).cloned().ok_or(Error::Layer { layer })?),
            Position::Learned { .. } => None,
        };
        let (queries, keys) = (t.heads * t.head_dim, t.kv_heads * t.head_dim);
        let projection = |slot, rows, cols| self.projection(Place::new(slot, layer), rows, cols);
        let norm_if = |wanted: bool, slot| wanted.then(|| self.norm(slot, layer, t.hidden)).transpose();
        let (before, after) = (t.placement != Placement::Post, t.placement != Placement::Pre);
        let head_norms = if t.qk_norm {
            Some([self.norm(Slot::AttnQNorm, layer, t.head_dim)?, self.norm(Slot::AttnKNorm, layer, t.head_dim)?])
        } else {
            None
        };
        Ok(Block {
            placement: t.placement,
            attention_norms: Norms {
                before: norm_if(before, Slot::AttnNorm)?,
                after: norm_if(after, Slot::AttnOutNorm)?,
            },
            attention: AttentionPart {
                shape: Attention {
                    heads: t.heads,
                    kv_heads: t.kv_heads,
                    head_dim: t.head_dim,
                    scale: t.attention_scale,
                    causal: t.causal,
                    window,
                },
                rope,
                head_norms,
                q: projection(Slot::AttnQ, queries, t.hidden)?,
                k: projection(Slot::AttnK, keys, t.hidden)?,
                v: projection(Slot::AttnV, keys, t.hidden)?,
                out: projection(Slot::AttnOut, t.hidden, queries)?,
            },
            feed_forward_norms: Norms {
                before: norm_if(before, Slot::FfnNorm)?,
                after: norm_if(after, Slot::FfnOutNorm)?,
            },
            feed_forward: self.feed_forward(layer)?,
        })
    }

    fn feed_forward(&self, layer: usize) -> Result<FeedForward, Error> {
        let t = &self.shape;
        let dense = |expert: Option<usize>, width: usize| -> Result<Dense, Error> {
            let projection = |slot, rows, cols| self.projection(Place { slot, layer, expert }, rows, cols);
            Ok(Dense {
                activation: t.activation,
                gate: t.gated.then(|| projection(Slot::FfnGate, width, t.hidden)).transpose()?,
                up: projection(Slot::FfnUp, width, t.hidden)?,
                down: projection(Slot::FfnDown, t.hidden, width)?,
            })
        };
        let Some(experts) = t.experts else { return Ok(FeedForward::Dense(dense(None, t.intermediate)?)) };
        Ok(FeedForward::Mixture(Mixture {
            router: self.projection(Place::new(Slot::Router, layer), experts.count, t.hidden)?,
            experts: (0..experts.count)
                .map(|expert| dense(Some(expert), experts.intermediate).map(Expert))
                .collect::<Result<_, _>>()?,
            per_token: experts.per_token,
            normalise: experts.normalise,
        }))
    }

    /// Tells the weights that those of a layer are not needed soon.
    pub(super) fn release(&self, layer: usize) {
        self.weights.release(layer);
    }

    /// The last normalisation, if the model has one.
    pub(super) fn final_norm(&self) -> Result<Option<Normalisation>, Error> {
        self.shape.final_norm.then(|| self.norm(Slot::FinalNorm, 0, self.shape.hidden)).transpose()
    }

    /// The output projection with the last normalisation, taken up now. If it is the token embedding, which may be at hand
    /// already, an overlay of [`Slot::Head`] still counts for it.
    pub(super) fn head(&self, embedding: Option<&Embedding>) -> Result<Head, Error> {
        let (t, head) = (&self.shape, Place::new(Slot::Head, 0));
        let projection = if t.tied && !self.overlay.contains_key(&head) {
            let linear = match embedding {
                Some(embedding) => embedding.tokens.clone(),
                None => self.linear(Place::new(Slot::TokenEmbedding, 0), t.vocab, t.hidden)?,
            };
            Projection { place: head, linear, bias: self.vector(Slot::Head, 0, Part::Bias, t.vocab)? }
        } else {
            self.projection(head, t.vocab, t.hidden)?
        };
        Ok(Head { norm: self.final_norm()?, projection })
    }
}

/// The matrix of a place: an overlay's, else the weights' own.
fn take_linear(
    weights: &dyn Weights,
    overlay: &Overlay,
    place: Place,
    rows: usize,
    cols: usize,
) -> Result<Arc<dyn Linear>, Error> {
    let Place { slot, layer, expert } = place;
    let linear = match overlay.get(&place) {
        Some(linear) => Arc::clone(linear),
        None => {
            let matrix = weights.matrix(slot, layer, expert)?;
            from_rows(matrix.ok_or(Error::Missing { slot, layer, part: Part::Weight })?)
        }
    };
    let found = [linear.out_features(), linear.in_features()];
    if found != [rows, cols] {
        let (expected, found) = (vec![rows, cols], found.to_vec());
        return Err(Error::Shape { slot, layer, part: Part::Weight, expected, found });
    }
    Ok(linear)
}

/// The matrix of a place, with its bias if there is one.
pub(super) fn take_projection(
    weights: &dyn Weights,
    overlay: &Overlay,
    place: Place,
    rows: usize,
    cols: usize,
) -> Result<Projection, Error> {
    let linear = take_linear(weights, overlay, place, rows, cols)?;
    // A place's biases are looked up without its expert: experts that are supported have none.
    let bias = match place.expert {
        None => take_vector(weights, place.slot, place.layer, Part::Bias, rows)?,
        Some(_) => None,
    };
    Ok(Projection { place, linear, bias })
}

fn take_vector(
    weights: &dyn Weights,
    slot: Slot,
    layer: usize,
    part: Part,
    len: usize,
) -> Result<Option<Vec<f32>>, Error> {
    match weights.vector(slot, layer, part)? {
        Some(vector) if vector.len() != len => {
            Err(Error::Shape { slot, layer, part, expected: vec![len], found: vec![vector.len()] })
        }
        vector => Ok(vector),
    }
}
