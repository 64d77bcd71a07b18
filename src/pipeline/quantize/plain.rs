//! The model as its scheme makes it without a text: a matrix at a time, in memory, when it is asked for.

use std::collections::HashMap;
use std::sync::Arc;

use super::encode;
use super::matrices::{Matrices, Matrix};
use crate::encoding::Rows;
use crate::family::{Part, Slot};
use crate::loader::{Checkpoint, Fetch, Scratch};
use crate::quantizer::least_squares;
use crate::recipe::Plan;
use crate::runtime::{self, Place, Weights};
use crate::threads::Pool;

/// A model's weights, rounded to nearest where the plan quantizes by a text.
pub struct Plain {
    original: Arc<dyn Weights>,
    checkpoint: Arc<Checkpoint>,
    matrices: HashMap<Place, (Matrix, Pieces)>,
    pool: Arc<Pool>,
}

/// What a step is made of, how it is stored, and its own dtype.
type Pieces = (Vec<crate::loader::Piece>, Vec<crate::encoding::PartLayout>, formats::Dtype);

impl Plain {
    /// Of a model and a plan for it.
    pub fn new(checkpoint: &Arc<Checkpoint>, plan: &Plan, matrices: &Matrices, pool: &Arc<Pool>) -> Self {
        let of = |matrix: &Matrix| {
            let step = &plan.steps[matrix.step];
            (matrix.place, (matrix.clone(), (step.pieces.clone(), step.parts.clone(), step.input)))
        };
        Self {
            original: runtime::stored_weights(checkpoint),
            checkpoint: checkpoint.clone(),
            matrices: matrices.all().map(of).collect(),
            pool: pool.clone(),
        }
    }
}

impl Weights for Plain {
    fn matrix(&self, slot: Slot, layer: usize, expert: Option<usize>) -> Result<Option<Arc<dyn Rows>>, runtime::Error> {
        let Some((matrix, (pieces, parts, dtype))) = self.matrices.get(&Place { slot, layer, expert }) else {
            return self.original.matrix(slot, layer, expert);
        };
        let unread = |e| runtime::Error::Weights(Box::new(e));
        let view = self.checkpoint.view(pieces, Fetch::Bands).map_err(unread)?;
        let (rows, cols) = ((matrix.rows.end - matrix.rows.start) as usize, matrix.cols);
        let mut w = vec![0f32; rows * cols];
        view.try_read(matrix.rows.start as usize, &mut w, &mut Scratch::default()).map_err(unread)?;
        let codes = encode(matrix.form, &w, cols, *dtype, parts, false, &self.pool);
        let values = least_squares::values(matrix.form, *dtype, cols, &codes, &self.pool);
        // As the model sees them.
        let order = pieces[0].order;
        let mut numbers = vec![0f32; values.len()];
        for (row, values) in values.chunks_exact(cols).enumerate() {
            numbers[order.canonical(row, rows) * cols..][..cols].copy_from_slice(values);
        }
        Ok(Some(Arc::new(Numbers { numbers, rows, cols })))
    }

    fn vector(&self, slot: Slot, layer: usize, part: Part) -> Result<Option<Vec<f32>>, runtime::Error> {
        self.original.vector(slot, layer, part)
    }

    fn release(&self, layer: usize) {
        self.original.release(layer);
    }
}

/// A matrix in memory.
struct Numbers {
    numbers: Vec<f32>,
    rows: usize,
    cols: usize,
}

impl Rows for Numbers {
    fn rows(&self) -> usize {
        self.rows
    }

    fn cols(&self) -> usize {
        self.cols
    }

    fn read(&self, first: usize, out: &mut [f32]) {
        out.copy_from_slice(&self.numbers[first * self.cols..][..out.len()]);
    }
}
