//! numpy's `.npy` (NEP 1, `numpy.lib.format`) and `.npz`, a zip file of them.

mod header;
mod read;
mod write;

pub(crate) use header::MAGIC;
pub(crate) use read::{read_archive, read_array};
pub use write::layout;

/// What the name of every array in an archive ends in.
const EXTENSION: &str = ".npy";
