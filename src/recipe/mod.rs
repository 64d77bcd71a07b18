//! Which weight gets which treatment. Flags are a recipe; a recipe is a list of rules, the first that matches wins; a
//! recipe and a checkpoint's headers make a [`Plan`].

mod conversion;
mod error;
mod output;
mod plan;
mod rules;
mod scheme;
mod shards;

pub use error::{Error, Result};
pub use output::{Tensor, huggingface::stored as tensors};
pub use plan::{Decision, Output, Plan, PlannedFile, Pruning, Step, Target, Treatment};
pub use rules::{BlockOptions, Quantized, Recipe, Rule};
pub use scheme::{Limits, Scheme};
