//! Pruning as a part of carrying out a plan: cuts are found before anything is written, and applied band by band.

use std::collections::BTreeMap;

use formats::Dtype;

use super::{Buffers, Error, Result};
use crate::encoding::plain::Real;
use crate::encoding::{Rows, ggml};
use crate::job::Job;
use crate::loader::{Checkpoint, Fetch, Piece};
use crate::pruner::cut::{self, Candidate};
use crate::pruner::{Cut, Mask, Pattern, Scope};
use crate::quantizer::first_non_finite;
use crate::recipe::{Plan, Step, Treatment};

/// Finds what the plan leaves open: where the cuts of matrices, or of all matrices of a rule, lie. Reads those matrices some
/// times; a plan that leaves nothing open is not read at all.
///
/// # Errors
/// A read that fails, an interruption.
pub fn decide(checkpoint: &Checkpoint, plan: &mut Plan, job: &Job) -> Result<()> {
    let mut together: BTreeMap<(usize, Option<usize>), Vec<usize>> = BTreeMap::new();
    for (i, step) in plan.steps.iter().enumerate() {
        let Some(pruning) = step.pruning.as_ref().filter(|pruning| pruning.mask == Mask::Undecided) else { continue };
        let alone = (pruning.sparsity.scope != Scope::Global).then_some(i);
        together.entry((step.decision.rule.unwrap_or_default(), alone)).or_default().push(i);
    }
    for steps in together.into_values() {
        for (i, cut) in steps.iter().zip(cuts(checkpoint, plan, &steps, job)?) {
            if let Some(pruning) = &mut plan.steps[*i].pruning {
                pruning.mask = Mask::Cut(cut);
            }
        }
    }
    Ok(())
}

/// The cut that the numbers of these steps share.
fn cuts(checkpoint: &Checkpoint, plan: &Plan, steps: &[usize], job: &Job) -> Result<Vec<Cut>> {
    let steps: Vec<&Step> = steps.iter().map(|&i| &plan.steps[i]).collect();
    let Some(pruning) = &steps[0].pruning else { return Ok(Vec::new()) };
    cuts_of(checkpoint, steps.iter().map(|step| step.pieces.as_slice()), pruning.sparsity.pattern, job)
}

/// The cut that the numbers of these matrices share, each made of pieces.
pub(super) fn cuts_of<'a>(
    checkpoint: &Checkpoint,
    matrices: impl Iterator<Item = &'a [Piece]>,
    pattern: Pattern,
    job: &Job,
) -> Result<Vec<Cut>> {
    let open = |pieces: &'a [Piece]| {
        let dtype = checkpoint.weights()[pieces[0].weight].float_dtype().unwrap_or(Dtype::F32);
        checkpoint.view(pieces, Fetch::Bands).map(|view| (view, dtype))
    };
    let views = matrices.map(open).collect::<formats::Result<Vec<_>>>()?;
    let candidates: Vec<Candidate<'_>> = views
        .iter()
        .map(|(view, dtype)| Candidate { view, rows: view.rows() as u64, cols: view.cols() as u64, dtype: *dtype })
        .collect();
    let all = candidates.iter().map(|candidate| candidate.rows * candidate.cols).sum();
    let count = match pattern {
        Pattern::Fraction(fraction) => fraction.of(all),
        Pattern::Groups { .. } => 0,
    };
    cut::find(&candidates, count, job).map_err(|e| match e {
        cut::Error::Format(e) => Error::Format(e),
        cut::Error::Interrupted(e) => Error::Interrupted(e),
    })
}

/// An error if a weight's numbers, so many a row, are not all finite.
pub(super) fn refuse_non_finite<T: Real>(
    checkpoint: &Checkpoint,
    weight: usize,
    cols: usize,
    numbers: &[T],
) -> Result<()> {
    let Some(at) = first_non_finite(numbers) else { return Ok(()) };
    let weight = &checkpoint.weights()[weight];
    Err(Error::NonFinite {
        file: checkpoint.sources()[weight.tensors[0].source].path().to_owned(),
        tensor: weight.name.clone(),
        row: (at / cols) as u64,
        column: (at % cols) as u64,
    })
}

/// Prunes the numbers of a band. Returns the place of the first that is NaN or infinite, in which case nothing is pruned.
pub(super) fn apply<T: Real>(step: &Step, first_row: u64, numbers: &mut [T]) -> Option<usize> {
    let pruning = step.pruning.as_ref()?;
    let found = first_non_finite(numbers);
    if found.is_none() {
        pruning.mask.apply(first_row, step.cols as usize, numbers);
    }
    found
}

/// The zeros of a band of a pruned weight, and those of them that its codes do not stand for.
pub(super) fn zeros(step: &Step, buffers: &mut Buffers) -> (u64, u64) {
    if step.pruning.is_none() {
        return (0, 0);
    }
    let zeros: Vec<bool> = match step.input {
        Dtype::F64 => buffers.doubles.iter().map(|&x| x == 0.0).collect(),
        _ => buffers.singles.iter().map(|&x| x == 0.0).collect(),
    };
    let count = zeros.iter().filter(|zero| **zero).count() as u64;
    // Symmetric codes and floats have a zero; whether a block of scales and minima has one, only its codes tell.
    let Treatment::Blocks(dtype) = step.treatment else { return (count, 0) };
    buffers.singles.resize(zeros.len(), 0.0);
    ggml::unpack(dtype, &buffers.parts[0], &mut buffers.singles);
    let lost = zeros.iter().zip(&buffers.singles).filter(|(zero, x)| **zero && **x != 0.0).count();
    (count, lost as u64)
}
