//! Chosen codes beside the output, and the model as far as its codes are chosen.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use formats::{Access, FilePlan, Limits, Shape, Sink, TensorMeta};

use super::Chosen;
use super::journal::Journal;
use super::matrices::{Matrices, Matrix};
use crate::encoding::Rows;
use crate::family::{Part, Slot};
use crate::loader::Checkpoint;
use crate::pipeline::Result;
use crate::recipe::Plan;
use crate::runtime::{self, Place, Weights};

/// A file with room for the codes of a plan's steps.
pub struct Staged {
    sink: Sink,
    journal: Option<Mutex<Journal>>,
    /// For each step in it, its first tensor.
    first: BTreeMap<usize, usize>,
    /// The tensors' names.
    names: Vec<String>,
}

impl Staged {
    /// Creates it beside the output. For work that a later run may go on with, `work` is what tells it from other work: then
    /// what an earlier run of it left is taken up.
    ///
    /// # Errors
    /// No room, a folder that cannot be written to, what other work left.
    pub fn create(plan: &Plan, matrices: &Matrices, output: &Path, work: Option<String>) -> Result<Self> {
        let name = output.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let target = output.with_file_name(format!("{name}.codes"));
        let mut metas = Vec::new();
        let mut first = BTreeMap::new();
        for &at in &matrices.steps {
            first.insert(at, metas.len());
            let parts = plan.steps[at].parts.iter();
            metas.extend(parts.map(|part| TensorMeta::new(part.name.clone(), part.dtype, part.shape.clone())));
        }
        // Blocks have no name in safetensors, and scales beside codes none in GGUF.
        let layout = match metas.iter().any(|meta| meta.dtype.is_block()) {
            true => formats::gguf::layout(&target, &metas, &formats::gguf::Metadata::default())?,
            false => formats::safetensors::layout(&target, &metas, &BTreeMap::new())?,
        };
        let (sink, journal) = match work {
            None => (Sink::create(&target, Shape::File, vec![FilePlan { name, layout }], 0, false)?, None),
            Some(work) => {
                let path = output.with_file_name(format!(".{name}.codes.journal"));
                Journal::check(&path, &work)?;
                let (sink, taken_up) = Sink::resume(&target, layout)?;
                (sink, Some(Mutex::new(Journal::open(&path, work, taken_up)?)))
            }
        };
        let names = metas.into_iter().map(|meta| meta.name).collect();
        let staged = Self { sink, journal, first, names };
        for (at, bytes) in &plan.constants {
            let of = |step: &&usize| plan.steps[**step].outputs.contains(at);
            if let Some(&step) = matrices.steps.iter().find(of) {
                let part = plan.steps[step].outputs.iter().position(|output| output == at).unwrap_or_default();
                staged.sink.write_at(0, staged.first[&step] + part, 0, bytes)?;
            }
        }
        Ok(staged)
    }

    /// Writes the codes of a matrix.
    ///
    /// # Errors
    /// A write that fails.
    pub fn write(&self, plan: &Plan, matrix: &Matrix, parts: &[Vec<u8>]) -> Result<()> {
        let layouts = &plan.steps[matrix.step].parts;
        for (i, (bytes, layout)) in parts.iter().zip(layouts).enumerate() {
            let offset = layout.bytes_of(&matrix.rows).start;
            self.sink.write_at(0, self.first[&matrix.step] + i, offset, bytes)?;
        }
        Ok(())
    }

    /// What became of a matrix in an earlier run.
    pub fn done(&self, matrix: &Matrix) -> Option<Chosen> {
        self.journal.as_ref().and_then(|journal| lock(journal).done(matrix).cloned())
    }

    /// The codes of these matrices are whole: a later run need not choose them again.
    ///
    /// # Errors
    /// A write that fails.
    pub fn settle(&self, matrices: &[&Matrix], chosen: &[Chosen]) -> Result<()> {
        let Some(journal) = &self.journal else { return Ok(()) };
        self.sink.sync()?;
        lock(journal).add(matrices, chosen)
    }

    /// Removes it, and what a later run would go on from.
    pub fn discard(self) {
        self.sink.discard();
        if let Some(journal) = self.journal {
            journal.into_inner().unwrap_or_else(PoisonError::into_inner).discard();
        }
    }

    /// The model with these codes.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub fn checkpoint(&self, checkpoint: &Checkpoint, matrices: &Matrices, access: Access) -> Result<Arc<Checkpoint>> {
        let source = formats::open(self.sink.staging(), access, &Limits::default())?;
        // A reader need not list tensors in the order in which they were laid out.
        let places = source.tensors().iter().enumerate().map(|(at, meta)| (meta.name.clone(), at));
        let places: HashMap<String, usize> = places.collect();
        let mut coded = matrices.coded.clone();
        for at in coded.iter_mut().flat_map(|coded| &mut coded.weight.tensors) {
            at.tensor = places[&self.names[at.tensor]];
        }
        Ok(Arc::new(checkpoint.with_codes(source, &coded)))
    }
}

fn lock(journal: &Mutex<Journal>) -> std::sync::MutexGuard<'_, Journal> {
    journal.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A model's weights: those whose codes are chosen as they are stored, the others as they were.
pub struct SoFar {
    original: Arc<dyn Weights>,
    coded: Arc<dyn Weights>,
    chosen: RwLock<HashSet<Place>>,
}

impl SoFar {
    /// Of a model and the same with codes, of which none is chosen yet.
    pub fn new(original: &Arc<Checkpoint>, coded: &Arc<Checkpoint>) -> Self {
        let [original, coded] = [original, coded].map(runtime::stored_weights);
        Self { original, coded, chosen: RwLock::default() }
    }

    /// The codes of this place are chosen.
    pub fn choose(&self, place: Place) {
        self.chosen.write().unwrap_or_else(PoisonError::into_inner).insert(place);
    }
}

impl Weights for SoFar {
    fn matrix(&self, slot: Slot, layer: usize, expert: Option<usize>) -> Result<Option<Arc<dyn Rows>>, runtime::Error> {
        let chosen =
            self.chosen.read().unwrap_or_else(PoisonError::into_inner).contains(&Place { slot, layer, expert });
        if chosen { &self.coded } else { &self.original }.matrix(slot, layer, expert)
    }

    fn vector(&self, slot: Slot, layer: usize, part: Part) -> Result<Option<Vec<f32>>, runtime::Error> {
        self.original.vector(slot, layer, part)
    }

    fn release(&self, layer: usize) {
        self.original.release(layer);
    }
}
