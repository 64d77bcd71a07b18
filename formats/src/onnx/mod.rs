//! ONNX (`onnx.proto`): a protobuf of a graph and its constants, whose numbers lie in it or in files beside it.
//!
//! The file is walked over once. Numbers stay where they lie and are mapped from there; the rest of the graph is kept as bytes,
//! so that what this version does not know comes back as it was.

mod dtype;
mod external;
mod model;
pub mod proto;
mod read;
mod typed;
mod wire;
mod write;

use std::path::Path;

pub use dtype::data_type;
pub use model::{Element, Graph, Model, Node};
pub(crate) use read::read;
pub use write::{Edit, Stored, is_outside, layouts};

/// Whether a file is ONNX, which has no mark: it begins with the version of its format, as no other does, or is named so.
pub(crate) fn is_one(path: &Path, first: &[u8; 16]) -> bool {
    // A safetensors header is shorter than what four bytes count, so that the next four are zero.
    let begins = first[0] == 0x08 && (1..0x80).contains(&first[1]) && first[4..8] != [0; 4];
    begins || path.extension().is_some_and(|extension| extension == "onnx")
}
