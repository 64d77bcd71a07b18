//! What the inputs of each weight look like, learned by leading text through the model. Methods that prune or quantize by more
//! than the weights' own numbers ask here.
//!
//! - [`text`]: from a text to windows of tokens, within a budget.
//! - [`inputs`]: sums over the inputs of matrices, gathered by watching the walk.

mod error;
pub mod inputs;
pub mod text;

pub use error::{Error, Result};
pub use inputs::{Gatherer, Inputs, Wanted, shared_input};
pub use text::{Options, windows};
