//! Carries out a plan: bands of weights are read, quantized and written in parallel, within the memory budget; then the
//! output is sealed. Publishing is left to the caller, who checks first.

mod bands;
pub mod bits;
mod calibrate;
mod error;
pub mod pack;
mod prune;
pub mod quantize;
pub mod reshape;
mod survey;

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use formats::{Dtype, FilePlan, Shape, Sink};

use crate::encoding::plain::first_non_finite;
use crate::job::Job;
use crate::loader::{Checkpoint, Fetch, Scratch, View};
use crate::pruner::Mask;
use crate::quantizer::{Band, Notes, Numbers, Quantizer};
use crate::recipe::{Plan, Step, Target};

pub use bands::{Bands, least_memory};
pub use calibrate::{Calibrated, Layer, Seen, calibrate};
pub use error::{Error, Result};
pub use prune::decide;
pub use quantize::awq::{Scaled, Scales, scale};
pub use quantize::{Chosen, Quantized, quantize};
pub use reshape::{Choice, Reshaped, reshape};

/// What was learned while a plan was carried out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    /// For each step, numbers that overflowed or vanished.
    pub notes: Vec<Notes>,
}

/// Writes a plan's output into a staged sink and seals it. What a plan that prunes leaves open has been found by [`decide`].
///
/// # Errors
/// A plan that leaves something open, NaN or infinity in the input, a value that the output's dtype cannot hold, no room, an input that changed, an
/// interrupt. Then nothing is left of the output.
pub fn write(checkpoint: &Checkpoint, plan: &Plan, output: &Path, force: bool, job: &Job) -> Result<(Sink, Tally)> {
    refuse_input(checkpoint, output)?;
    let open = |step: &&Step| step.pruning.as_ref().is_some_and(|pruning| pruning.mask == Mask::Undecided);
    if let Some(step) = plan.steps.iter().find(open) {
        return Err(Error::Undecided { tensor: step.name.clone() });
    }
    let files =
        plan.files.iter().map(|file| FilePlan { name: file.name.clone(), layout: file.layout.clone() }).collect();
    let bands = Bands::new(plan, job)?;
    let shape = if plan.files.len() > 1 && plan.target != Target::Folder { Shape::Files } else { shape(plan.target) };
    let mut sink = Sink::create(output, shape, files, plan.other_bytes(), force)?;
    job.progress.begin("write", checkpoint.bytes());
    let tally = run(checkpoint, plan, &bands, &sink, job);
    job.progress.end();
    let tally = tally?;
    refuse_overflow(checkpoint, plan, &tally)?;
    for (at, bytes) in &plan.constants {
        sink.write_at(at.file, at.tensor, 0, bytes)?;
    }
    for (name, bytes) in &plan.written {
        sink.put(name, bytes)?;
    }
    for (name, from) in &plan.copied {
        job.cancel.check()?;
        sink.copy(name, from)?;
    }
    checkpoint.verify_unchanged()?;
    job.cancel.check()?;
    sink.seal()?;
    Ok((sink, tally))
}

/// An error if this output could not be created, before long work.
///
/// # Errors
/// The output exists, its folder does not, or it is the input.
pub fn refuse_output(checkpoint: &Checkpoint, target: Target, output: &Path, force: bool) -> Result<()> {
    refuse_input(checkpoint, output)?;
    Ok(Sink::check(output, shape(target), force)?)
}

fn shape(target: Target) -> Shape {
    match target {
        Target::File(_) => Shape::File,
        Target::Folder => Shape::Folder,
    }
}

/// Buffers of one thread, used again for the next band.
#[derive(Default)]
struct Buffers {
    scratch: Scratch,
    singles: Vec<f32>,
    doubles: Vec<f64>,
    parts: Vec<Vec<u8>>,
    bytes: Vec<u8>,
}

fn run(checkpoint: &Checkpoint, plan: &Plan, bands: &Bands, sink: &Sink, job: &Job) -> Result<Tally> {
    let open = |step: &Step| Ok((checkpoint.view(&step.pieces, Fetch::Bands)?, step.quantizer()));
    let mut views = plan.steps.iter().map(open).collect::<formats::Result<Vec<_>>>()?;
    survey::columns(plan, bands, &mut views, job)?;
    let totals: Vec<Mutex<Notes>> = plan.steps.iter().map(|_| Mutex::new(Notes::default())).collect();
    let spare: Mutex<Vec<Buffers>> = Mutex::new(Vec::new());
    // An error stops what comes after it and not what comes before, so that of several the first is reported, always.
    let failed = AtomicUsize::new(usize::MAX);
    let failure: Mutex<Option<(usize, Error)>> = Mutex::new(None);
    job.pool.for_each(bands.len(), |i| {
        if i > failed.load(Ordering::Relaxed) {
            return;
        }
        let mut buffers = lock(&spare).pop().unwrap_or_default();
        let (s, lines) = bands.get(i);
        // While this band is worked on, the system reads the one that this thread will most likely do next.
        if i + 1 < bands.len() {
            let (next, lines) = bands.get(i + 1);
            if plan.steps[next].encoding.is_by_rows() {
                views[next].0.prefetch(lines);
            }
        }
        let step = &plan.steps[s];
        let (view, quantizer) = &views[s];
        let done = job.cancel.check().map_err(Error::from).and_then(|()| match quantizer {
            Some(quantizer) => encode_band(checkpoint, step, view, &**quantizer, &lines, sink, &mut buffers),
            None => copy_band(checkpoint, step, view, &lines, sink, &mut buffers.bytes),
        });
        match done {
            Ok(notes) => {
                lock(&totals[s]).add(&notes);
                job.progress.advance((lines.end - lines.start) * bands.bytes_per_line(s));
            }
            Err(e) => {
                failed.fetch_min(i, Ordering::Relaxed);
                let mut first = lock(&failure);
                if first.as_ref().is_none_or(|(at, _)| i < *at) {
                    *first = Some((i, e));
                }
            }
        }
        lock(&spare).push(buffers);
    });
    if let Some((_, e)) = failure.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner) {
        return Err(e);
    }
    let notes = totals.into_iter().map(|notes| notes.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner));
    Ok(Tally { notes: notes.collect() })
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Reads lines `lines` of a step's matrix, quantizes them, writes them.
fn encode_band(
    checkpoint: &Checkpoint,
    step: &Step,
    view: &View,
    quantizer: &dyn Quantizer,
    lines: &std::ops::Range<u64>,
    sink: &Sink,
    buffers: &mut Buffers,
) -> Result<Notes> {
    let count = (lines.end - lines.start) as usize * step.cols as usize;
    let broken;
    let numbers = if step.input == Dtype::F64 {
        buffers.doubles.resize(count, 0.0);
        view.try_read(lines.start as usize, &mut buffers.doubles, &mut buffers.scratch)?;
        broken = prune::apply(step, lines.start, &mut buffers.doubles);
        Numbers::F64(&buffers.doubles)
    } else {
        buffers.singles.resize(count, 0.0);
        view.try_read(lines.start as usize, &mut buffers.singles, &mut buffers.scratch)?;
        broken = prune::apply(step, lines.start, &mut buffers.singles);
        Numbers::F32(&buffers.singles)
    };
    buffers.parts.resize(step.parts.len(), Vec::new());
    for (bytes, part) in buffers.parts.iter_mut().zip(&step.parts) {
        let range = part.bytes_of(lines);
        bytes.resize((range.end - range.start) as usize, 0);
    }
    let mut notes = quantizer.encode(
        Band { numbers, first_row: lines.start, cols: step.cols as usize, dtype: step.input },
        &mut buffers.parts,
    );
    if let Some(at) = broken.or(notes.non_finite) {
        return Err(non_finite(checkpoint, step, lines.start * step.cols + at as u64));
    }
    (notes.zeros, notes.zeros_lost) = prune::zeros(step, buffers);
    for ((bytes, part), at) in buffers.parts.iter().zip(&step.parts).zip(&step.outputs) {
        sink.write_at(at.file, at.tensor, part.bytes_of(lines).start, bytes)?;
    }
    Ok(notes)
}

/// Copies lines of a weight's tensors as they are.
fn copy_band(
    checkpoint: &Checkpoint,
    step: &Step,
    view: &View,
    lines: &std::ops::Range<u64>,
    sink: &Sink,
    buffer: &mut Vec<u8>,
) -> Result<Notes> {
    for (i, (part, at)) in step.parts.iter().zip(&step.outputs).enumerate() {
        let bytes = step.copied(view, i, lines, buffer)?;
        let by_rows = step.encoding.is_by_rows();
        if let Some(index) = first_non_finite(part.dtype, bytes).filter(|_| by_rows) {
            // A scale stands for part of its row.
            let per_row = (bytes.len() as u64 / part.dtype.bytes_of(1).unwrap_or(1) / (lines.end - lines.start)).max(1);
            let (row, column) = (index as u64 / per_row, if i == 0 { index as u64 % per_row } else { 0 });
            return Err(non_finite(checkpoint, step, (lines.start + row) * step.cols + column));
        }
        sink.write_at(at.file, at.tensor, step.bytes_of(i, lines).start, bytes)?;
    }
    Ok(Notes::default())
}

/// Names the number at this index of a step's matrix as the input has it: which of its tensors, and where in that.
fn non_finite(checkpoint: &Checkpoint, step: &Step, index: u64) -> Error {
    let cols = step.cols.max(1);
    let (mut row, column) = (index / cols, index % cols);
    let mut place = (&step.pieces[0], row, column);
    for piece in &step.pieces {
        let rows = piece.rows.end - piece.rows.start;
        if row < rows {
            let stored = piece.rows.start + piece.order.canonical(row as usize, rows as usize) as u64;
            place = if piece.transpose { (piece, column, stored) } else { (piece, stored, column) };
            break;
        }
        row -= rows;
    }
    let (piece, row, column) = place;
    let weight = &checkpoint.weights()[piece.weight];
    let source = &checkpoint.sources()[weight.tensors[0].source];
    Error::NonFinite { file: source.path().to_owned(), tensor: weight.name.clone(), row, column }
}

/// A dtype that cannot hold a weight's largest values would write infinity.
fn refuse_overflow(checkpoint: &Checkpoint, plan: &Plan, tally: &Tally) -> Result<()> {
    let over: Vec<(&Step, u64)> = plan
        .steps
        .iter()
        .zip(&tally.notes)
        .filter(|(_, notes)| notes.overflowed > 0)
        .map(|(step, notes)| (step, notes.overflowed))
        .collect();
    let Some((first, _)) = over.first() else { return Ok(()) };
    Err(Error::Overflow {
        file: checkpoint.path().to_owned(),
        encoding: first.encoding.name(),
        values: over.iter().map(|(_, n)| n).sum(),
        tensors: over.iter().map(|(step, _)| step.name.clone()).collect(),
    })
}

/// Output must not be input, also not through links; and a folder that is replaced must not hold the input.
fn refuse_input(checkpoint: &Checkpoint, output: &Path) -> Result<()> {
    let Ok(target) = output.canonicalize() else { return Ok(()) };
    let refuse = |input: &Path| Err(Error::OutputIsInput { output: output.to_owned(), input: input.to_owned() });
    for path in checkpoint.sources().iter().flat_map(|source| std::iter::once(source.path()).chain(source.external())) {
        let Ok(input) = path.canonicalize() else { continue };
        if input.starts_with(&target) || same_file(&input, &target) {
            return refuse(path);
        }
    }
    match checkpoint.files().folder.canonicalize() {
        Ok(folder) if checkpoint.files().whole_folder && folder == target => refuse(&checkpoint.files().folder),
        _ => Ok(()),
    }
}

/// Whether two paths are one file by another name.
fn same_file(a: &Path, b: &Path) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        match (a.metadata(), b.metadata()) {
            (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
            _ => false,
        }
    }
    #[cfg(not(unix))]
    {
        a == b
    }
}
