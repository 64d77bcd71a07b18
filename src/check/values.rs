//! Conversions: every number of the written file against the original's, bit for bit. What a step copies is compared as bytes,
//! what it casts or shifts as numbers; only where a dtype could not hold them are outputs worth computing.

use std::collections::HashMap;
use std::ops::Range;

use formats::{Dtype, Source, TensorMeta};

use super::{Error, Findings, Outputs, Result};
use crate::encoding::plain::Real;
use crate::job::Job;
use crate::loader::{Checkpoint, Fetch, Scratch, TensorRef, View};
use crate::pipeline::Bands;
use crate::recipe::{Plan, Step, Treatment};

/// Compares what a plan wrote with what it read. `None` if numbers are not the original's and need not be: then outputs have
/// to be compared.
///
/// # Errors
/// A tensor that the written file lacks, a read that fails, an interrupt.
pub fn compare(original: &Checkpoint, written: &Checkpoint, plan: &Plan, job: &Job) -> Result<Option<Findings>> {
    let at = places(written, plan)?;
    let views = plan.steps.iter().map(|step| original.view(&step.pieces, Fetch::Bands));
    let views = views.collect::<formats::Result<Vec<View>>>()?;
    let bands = Bands::new(plan, job)?;
    job.progress.begin("check", original.bytes());
    let same = job.pool.try_map(bands.len(), |i| {
        job.cancel.check()?;
        let (s, lines) = bands.get(i);
        let step = &plan.steps[s];
        let pair = Pair { step, view: &views[s], written, at: &at[s] };
        let same = match (step.treatment, step.input) {
            (Treatment::Copy, _) => pair.same_bytes(&lines)?,
            (_, Dtype::F64) => pair.same_numbers::<f64>(&lines)?,
            _ => pair.same_numbers::<f32>(&lines)?,
        };
        pair.release(&lines);
        job.progress.advance((lines.end - lines.start) * bands.bytes_per_line(s));
        Ok::<_, Error>(same)
    });
    job.progress.end();
    let same = same?;
    let mut differ = vec![false; plan.steps.len()];
    for (i, same) in same.into_iter().enumerate() {
        differ[bands.get(i).0] |= !same;
    }
    let mut wrong: Vec<&str> = Vec::new();
    let mut rounded = false;
    for (step, _) in plan.steps.iter().zip(&differ).filter(|(_, differ)| **differ) {
        rounded |= step.is_quantized();
        if !step.is_quantized() {
            wrong.push(&step.name);
        }
    }
    for (output, bytes) in &plan.constants {
        let meta = &plan.files[output.file].tensors[output.tensor];
        let (source, tensor) = find(written, meta)?;
        let mut found = vec![0; bytes.len()];
        source.read_at(tensor, 0, &mut found)?;
        if found != *bytes {
            wrong.push(&meta.name);
        }
    }
    if wrong.is_empty() && rounded {
        return Ok(None);
    }
    let failures = match wrong.as_slice() {
        [] => vec![],
        wrong => vec![format!("what was written is not what was read, in {}", wrong.join(", "))],
    };
    let outputs = Outputs::Values { weights: plan.steps.len(), passed: failures.is_empty() };
    Ok(Some(Findings { weights: Vec::new(), missing: Vec::new(), outputs, source: String::new(), failures }))
}

/// Where each step's physical tensors are in the written file.
fn places(written: &Checkpoint, plan: &Plan) -> Result<Vec<Vec<TensorRef>>> {
    let mut by_name = HashMap::new();
    for (source, file) in written.sources().iter().enumerate() {
        for (tensor, meta) in file.tensors().iter().enumerate() {
            by_name.insert(meta.name.as_str(), (TensorRef { source, tensor }, meta));
        }
    }
    let place = |output: &crate::recipe::Output| {
        let meta = &plan.files[output.file].tensors[output.tensor];
        match by_name.get(meta.name.as_str()) {
            Some((at, found)) if *found == meta => Ok(*at),
            _ => Err(lacks(written, meta)),
        }
    };
    plan.steps.iter().map(|step| step.outputs.iter().map(place).collect()).collect()
}

fn find<'a>(written: &'a Checkpoint, meta: &TensorMeta) -> Result<(&'a Source, usize)> {
    let within = |source: &'a std::sync::Arc<Source>| {
        let tensor = source.tensors().iter().position(|found| found == meta)?;
        Some((&**source, tensor))
    };
    written.sources().iter().find_map(within).ok_or_else(|| lacks(written, meta))
}

fn lacks(written: &Checkpoint, meta: &TensorMeta) -> Error {
    Error::Format(formats::Error::malformed(
        written.path(),
        Some(&meta.name),
        "no such tensor in what was written",
        format!("{} {:?}", meta.dtype, meta.shape),
        "This is a fault of this program: please report it",
    ))
}

/// A step's input and output.
struct Pair<'a> {
    step: &'a Step,
    view: &'a View,
    written: &'a Checkpoint,
    at: &'a [TensorRef],
}

impl Pair<'_> {
    /// The bytes of a part of the written weight.
    fn bytes<'a>(&'a self, part: usize, lines: &Range<u64>, buffer: &'a mut Vec<u8>) -> Result<&'a [u8]> {
        let range = self.step.bytes_of(part, lines);
        let at = self.at[part];
        let source = &self.written.sources()[at.source];
        let slice = range.start as usize..range.end as usize;
        if let Some(all) = source.bytes(at.tensor) {
            return Ok(&all[slice]);
        }
        buffer.resize(slice.len(), 0);
        source.read_at(at.tensor, range.start, buffer)?;
        Ok(buffer)
    }

    fn same_bytes(&self, lines: &Range<u64>) -> Result<bool> {
        let (mut a, mut b) = (Vec::new(), Vec::new());
        for part in 0..self.at.len() {
            if self.step.copied(self.view, part, lines, &mut a)? != self.bytes(part, lines, &mut b)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn same_numbers<T: Real>(&self, lines: &Range<u64>) -> Result<bool> {
        let count = ((lines.end - lines.start) * self.step.cols) as usize;
        let (mut a, mut b) = (vec![T::default(); count], vec![T::default(); count]);
        self.view.try_read(lines.start as usize, &mut a, &mut Scratch::default())?;
        T::decode(self.step.parts[0].dtype, self.bytes(0, lines, &mut Vec::new())?, &mut b);
        Ok(a.iter().zip(&b).all(|(a, b)| a.to_f64().to_bits() == b.to_f64().to_bits()))
    }

    /// What was compared is not needed again soon.
    fn release(&self, lines: &Range<u64>) {
        if self.step.encoding.is_by_rows() {
            self.view.release(lines.clone());
        }
        for (part, at) in self.at.iter().enumerate() {
            self.written.sources()[at.source].release(at.tensor, self.step.bytes_of(part, lines));
        }
    }
}
