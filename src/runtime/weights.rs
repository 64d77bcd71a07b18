//! Where a running model takes its weights from.

use std::collections::HashMap;
use std::sync::Arc;

use super::{Error, Linear};
use crate::encoding::Rows;
use crate::family::{Part, Slot};

/// The place of a matrix in a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place {
    /// What it is for.
    pub slot: Slot,
    /// Its layer; 0 outside of layers.
    pub layer: usize,
    /// Its expert, in a mixture.
    pub expert: Option<usize>,
}

impl Place {
    /// A place that belongs to no expert.
    pub fn new(slot: Slot, layer: usize) -> Self {
        Self { slot, layer, expert: None }
    }
}

/// The weights of a model, by place, whatever file they lie in. Handles are given out as the walk comes to them, and dropped
/// when it leaves, so that a model may be larger than memory.
pub trait Weights: Send + Sync {
    /// The matrix of a place, rows being output features (or entries of an embedding); `None` if the model has none there.
    ///
    /// # Errors
    /// [`Error::Weights`] if it is there and cannot be read.
    fn matrix(&self, slot: Slot, layer: usize, expert: Option<usize>) -> Result<Option<Arc<dyn Rows>>, Error>;

    /// A normalisation's gain or shift, or the bias of a matrix, in f32; `None` if the model has none there.
    ///
    /// # Errors
    /// [`Error::Weights`] if it is there and cannot be read.
    fn vector(&self, slot: Slot, layer: usize, part: Part) -> Result<Option<Vec<f32>>, Error>;

    /// The weights of a layer are not needed soon: a model that is larger than memory gives back their pages.
    fn release(&self, layer: usize) {
        let _ = layer;
    }
}

/// Matrices that take the place of a model's own.
pub type Overlay = HashMap<Place, Arc<dyn Linear>>;
