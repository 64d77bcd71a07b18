//! Runs models: what they compute, over weights in whatever encoding they are stored.
//!
//! A [`Model`] is a transformer over [`Weights`]; [`walk`] leads windows of text through one or more of them, block by block,
//! watched by an [`Observer`]; [`backward`] leads gradients back through one; a [`Session`] continues texts token by token. A [`ChainModel`] is a chain of linear layers.

pub mod activations;
pub mod backward;
mod block;
pub mod cache;
pub mod chain;
mod checkpoint;
pub mod embed;
mod error;
mod feed_forward;
mod hidden;
mod kept;
#[allow(unsafe_code)]
pub mod kernels;
pub mod linear;
pub mod model;
pub mod observer;
pub mod ops;
pub mod sampler;
pub mod scratch;
pub mod session;
pub mod spill;
pub mod walk;
pub mod weights;

#[cfg(test)]
pub(crate) mod testing;

pub use activations::{Activations, Int8Activations};
pub use backward::{Backward, GradientObserver};
pub use block::{Goal, Half};
pub use cache::{Cache, Precision};
pub use chain::ChainModel;
pub use checkpoint::{load, load_chain, weights as stored_weights};
pub use embed::{embed, normalise};
pub use error::Error;
pub use linear::{Linear, Method};
pub use model::Model;
pub use observer::{Observer, Unobserved};
pub use sampler::Sampler;
pub use scratch::Scratch;
pub use session::{End, Session, generate};
pub use walk::{Forward, Walk, forward};
pub use weights::{Overlay, Place, Weights};
