//! safetensors (the Hugging Face repository's README, "Format"): eight bytes of header length, a JSON header, the tensors.

mod read;
mod write;

pub(crate) use read::read;
pub use write::layout;

/// The header's key for the file's string metadata.
const METADATA: &str = "__metadata__";

/// Bytes before the header: its length.
const PREFIX: u64 = 8;
