//! Bits where they matter: each tensor gets the type that harms predictions least for its bytes.
//!
//! - [`candidates`]: which types there are for each tensor of an output.
//! - [`sensitivity`]: what each of them does to the model's predictions.
//! - [`knapsack`]: the best choice within a size.

mod candidates;
pub mod knapsack;
mod sensitivity;

use std::path::Path;
use std::sync::Arc;

pub use candidates::{Candidates, Thing, Way};
pub use sensitivity::observe;

use super::{Error, Result};
use crate::loader::Checkpoint;
use crate::recipe::{Plan, Recipe, Target};

/// How large an output may be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Budget {
    /// Bytes of the weight files.
    Bytes(u64),
    /// Bits a number, of all tensors.
    Bits(f64),
}

/// The plan of a choice: its recipe and what it comes to.
pub struct Chosen {
    /// The choice.
    pub choice: Vec<usize>,
    /// Its recipe.
    pub recipe: Recipe,
    /// Its plan.
    pub plan: Plan,
}

/// The plan of a choice.
///
/// # Errors
/// As [`Plan::new`].
pub fn plan(
    checkpoint: &Arc<Checkpoint>,
    candidates: &Candidates,
    choice: Vec<usize>,
    target: Target,
    output: &Path,
) -> Result<Chosen> {
    let recipe = candidates.recipe(&choice);
    let plan = Plan::new(checkpoint, &recipe, target, output)?;
    Ok(Chosen { choice, recipe, plan })
}

/// Says whether the smallest output is within a budget, from headers alone.
///
/// # Errors
/// [`Error::Unreachable`] if it is not, with its size.
pub fn refuse_unreachable(
    checkpoint: &Arc<Checkpoint>,
    candidates: &Candidates,
    budget: Budget,
    target: Target,
    output: &Path,
) -> Result<()> {
    let least = plan(checkpoint, candidates, candidates.smallest(), target, output)?;
    let (asked, least) = match budget {
        Budget::Bytes(bytes) if least.plan.weight_bytes() > bytes => {
            (format!("--target-size {bytes}"), format!("{} bytes", least.plan.weight_bytes()))
        }
        Budget::Bits(bits) if candidates.bits(&least.choice) > bits => {
            (format!("--target-bits {bits}"), format!("{:.3} bits a number", candidates.bits(&least.choice)))
        }
        _ => return Ok(()),
    };
    Err(Error::Unreachable { asked, least })
}

/// The choice that harms least within a budget.
///
/// # Errors
/// As [`Plan::new`].
pub fn within(
    checkpoint: &Arc<Checkpoint>,
    candidates: &Candidates,
    budget: Budget,
    target: Target,
    output: &Path,
) -> Result<Chosen> {
    let bytes = match budget {
        Budget::Bits(bits) => {
            let choice = candidates.within(candidates.bytes_of_bits(bits));
            return plan(checkpoint, candidates, choice, target, output);
        }
        Budget::Bytes(bytes) => bytes,
    };
    // What is said of the tensors takes room too, and depends on what is said.
    let least = plan(checkpoint, candidates, candidates.smallest(), target, output)?;
    let around = least.plan.weight_bytes().saturating_sub(candidates.total(&least.choice).bytes);
    let mut room = bytes.saturating_sub(around);
    loop {
        let chosen = plan(checkpoint, candidates, candidates.within(room), target, output)?;
        match chosen.plan.weight_bytes().checked_sub(bytes) {
            None | Some(0) => return Ok(chosen),
            Some(_) if room == 0 => return Ok(least),
            Some(over) => room = room.saturating_sub(over),
        }
    }
}
