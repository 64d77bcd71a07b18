//! Measures models on this machine: loading, prefill, decoding, memory; and the machine itself, whose read bandwidth and peak
//! arithmetic are the roof that no model can break through.
//!
//! A [`Subject`] is what can be known of a model without running it; a [`Round`] is one measurement of it, best taken in a
//! process of its own, so that memory and loading are what a user would see; a [`Result`] puts the rounds together.

mod error;
mod machine;
mod memory;
mod processor;
mod result;
mod round;
mod subject;
mod work;

pub use error::{Error, Outcome};
pub use machine::{Loop, Machine, Peaks};
pub use memory::Memory;
pub use processor::{Clock, Usage};
pub use result::{Decode, Encode, Predict, Prefill, Range, Result};
pub use round::{Measured, Round, round};
pub use subject::{Options, Size, Subject};
pub use work::Work;
