//! Cuts a plan's steps into bands that fit the memory budget.

use std::ops::Range;

use formats::Dtype;

use super::{Error, Result};
use crate::job::Job;
use crate::recipe::{Plan, Step, Treatment};

/// Bytes of numbers in a band where the budget allows: they stay in a core's second-level cache between being read, surveyed
/// and encoded.
const BEST: u64 = 1 << 20;

/// The bands of all steps, in the order of the steps.
#[derive(Debug)]
pub struct Bands {
    /// For each step: the number of bands before it, and lines in each of its bands.
    steps: Vec<(usize, u64)>,
    /// Lines of each step, and bytes that a line of the input takes.
    lines: Vec<(u64, u64)>,
    len: usize,
}

/// Bytes that one line of a step's input takes; where it is copied, in all its physical tensors.
fn line_bytes(step: &Step) -> u64 {
    match step.treatment {
        Treatment::Copy => (0..step.parts.len()).map(|part| step.bytes_of(part, &(0..1)).end).sum::<u64>().max(1),
        _ => step.input.bytes_of(step.cols).unwrap_or(8 * step.cols),
    }
}

/// Bytes of numbers, buffers and codes that one line of a step takes while it is worked on.
fn cost(step: &Step) -> u64 {
    match step.treatment {
        // Mapped bytes are not copied, others are.
        Treatment::Copy => line_bytes(step),
        _ => line_bytes(step) + step.cols * if step.input == Dtype::F64 { 16 } else { 12 },
    }
}

/// The least memory budget for a plan on so many threads.
pub fn least_memory(plan: &Plan, threads: usize) -> u64 {
    let most = plan.steps.iter().map(|step| cost(step) * step.encoding.line_multiple()).max().unwrap_or(0);
    most * threads as u64
}

impl Bands {
    /// Cuts every step.
    ///
    /// # Errors
    /// [`Error::Budget`] if the longest row does not fit.
    pub fn new(plan: &Plan, job: &Job) -> Result<Self> {
        let threads = job.pool.threads();
        let needed = least_memory(plan, threads);
        if needed > job.memory {
            let widest = plan.steps.iter().max_by_key(|step| cost(step));
            return Err(Error::Budget {
                tensor: widest.map(|step| step.name.clone()).unwrap_or_default(),
                needed,
                memory: job.memory,
            });
        }
        let room = (job.memory / threads as u64 / 2).min(4 * BEST);
        let mut bands = Self { steps: Vec::new(), lines: Vec::new(), len: 0 };
        for step in &plan.steps {
            let multiple = step.encoding.line_multiple();
            let count = step.encoding.lines(step.rows, step.cols);
            let per_band = (room / cost(step).max(1) / multiple * multiple).max(multiple);
            bands.steps.push((bands.len, per_band));
            bands.lines.push((count, line_bytes(step)));
            bands.len += count.div_ceil(per_band) as usize;
        }
        Ok(bands)
    }

    /// Number of bands.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The step and the lines of a band.
    pub fn get(&self, band: usize) -> (usize, Range<u64>) {
        let step = self.steps.partition_point(|(before, _)| *before <= band) - 1;
        // Steps without lines have no bands and share their number with the next one; the last of equals is meant.
        let (before, per_band) = self.steps[step];
        let start = (band - before) as u64 * per_band;
        (step, start..(start + per_band).min(self.lines[step].0))
    }

    /// Bytes of the input that one line of a step takes.
    pub fn bytes_per_line(&self, step: usize) -> u64 {
        self.lines[step].1
    }
}
