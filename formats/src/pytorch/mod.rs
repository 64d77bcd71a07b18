//! PyTorch's checkpoints (`torch/serialization.py`): a pickle that describes tensors, and the storages in which they lie, as
//! entries of a zip file or, before version 1.6, one after another.
//!
//! A pickle is a program. This one is interpreted by a machine that can build dictionaries, lists and tensors and nothing
//! else: see [`pickle`].

mod dtype;
mod legacy;
mod object;
mod pickle;
mod read;
mod write;

pub(crate) use legacy::{MAGIC, read as read_legacy};
pub(crate) use read::{is_one, read};
pub use write::layout;

/// The name of the pickle in an archive, below the archive's root folder.
const PICKLE: &str = "data.pkl";
