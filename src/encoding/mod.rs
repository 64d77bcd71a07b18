//! How numbers are stored. An encoding packs and unpacks; it never rounds and never searches: a quantizer decides.
//!
//! An [`Encoding`] says which physical tensors a logical weight is made of and which bytes of each belong to a *band* of
//! it: a run of lines along the encoding's band axis. Everything that streams through a weight, in either direction, goes
//! by bands, so no weight need ever be whole in memory.

mod foreign;
pub mod fp8;
pub mod ggml;
pub mod int;
mod layout;
mod operators;
pub mod plain;
mod rows;

pub use foreign::{Foreign, awq};
pub use layout::{Axis, Encoding, Lines, PartLayout, Unfit};
pub use operators::{Codes, Linear, NBits};
pub use rows::{Form, Inputs, Rows, Scales, Stored};
