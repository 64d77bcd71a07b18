//! ONNX's dialect: what a graph says of its constants, and how it says it of those that are stored otherwise.

mod read;

pub use read::*;
