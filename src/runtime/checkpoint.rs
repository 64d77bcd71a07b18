//! A checkpoint's weights as a running model asks for them.

use std::sync::Arc;

use super::{ChainModel, Error, Model, Weights};
use crate::encoding::Rows;
use crate::family::{Architecture, Part, Slot};
use crate::loader::{Checkpoint, Fetch, Scratch, View};

/// A transformer over a checkpoint's weights. None is read before the walk comes to it.
///
/// # Errors
/// A checkpoint that is no transformer.
pub fn load(checkpoint: &Arc<Checkpoint>) -> Result<Model, Error> {
    match checkpoint.family().map(|family| &family.architecture) {
        Some(Architecture::Transformer(shape)) => {
            Ok(Model::new((**shape).clone(), Arc::new(Stored(checkpoint.clone()))))
        }
        _ => Err(Error::Family { expected: "a transformer" }),
    }
}

/// A checkpoint's weights by place.
pub fn weights(checkpoint: &Arc<Checkpoint>) -> Arc<dyn Weights> {
    Arc::new(Stored(checkpoint.clone()))
}

/// A chain of linear layers over a checkpoint's weights.
///
/// # Errors
/// A checkpoint that is no chain.
pub fn load_chain(checkpoint: &Arc<Checkpoint>) -> Result<ChainModel, Error> {
    match checkpoint.family().map(|family| &family.architecture) {
        Some(Architecture::Chain(shape)) => Ok(ChainModel::new(shape.clone(), Arc::new(Stored(checkpoint.clone())))),
        _ => Err(Error::Family { expected: "a chain of linear layers" }),
    }
}

struct Stored(Arc<Checkpoint>);

impl Stored {
    fn view(&self, slot: Slot, layer: usize, expert: Option<usize>, part: Part) -> Result<Option<View>, Error> {
        let Some(pieces) = self.0.slot(slot, layer, expert, part) else { return Ok(None) };
        self.0.view(pieces, Fetch::Now).map(Some).map_err(|e| Error::Weights(Box::new(e)))
    }
}

impl Weights for Stored {
    fn matrix(&self, slot: Slot, layer: usize, expert: Option<usize>) -> Result<Option<Arc<dyn Rows>>, Error> {
        Ok(self.view(slot, layer, expert, Part::Weight)?.map(|view| Arc::new(view) as Arc<dyn Rows>))
    }

    fn vector(&self, slot: Slot, layer: usize, part: Part) -> Result<Option<Vec<f32>>, Error> {
        let Some(view) = self.view(slot, layer, None, part)? else { return Ok(None) };
        let mut values = vec![0.0; view.rows() * view.cols()];
        view.try_read(0, &mut values, &mut Scratch::default()).map_err(|e| Error::Weights(Box::new(e)))?;
        Ok(Some(values))
    }

    fn release(&self, layer: usize) {
        self.0.release(layer);
    }
}
