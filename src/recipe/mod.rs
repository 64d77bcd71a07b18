//! Which weight gets which treatment. Flags are a recipe; a recipe is a list of rules, the first that matches wins; a
//! recipe and a checkpoint's headers make a [`Plan`].

mod error;
mod output;
mod plan;
mod rules;
mod scheme;

pub use error::{Error, Result};
pub use plan::{Decision, Output, Plan, PlannedFile, Pruning, Step, Target, Treatment};
pub use rules::{BlockOptions, Recipe, Rule};
pub use scheme::{Limits, Scheme};
