//! The writer: an archive of stored arrays, as `numpy.savez` makes it.

use std::path::Path;

use super::EXTENSION;
use super::header::{MAGIC, descr};
use crate::zip::{self, Member};
use crate::{Error, Layout, Result, TensorMeta};

/// The layout of an archive of these arrays. Spans come back in the order of `tensors`. bf16, which numpy has not, is written
/// as ml_dtypes does: `<V2`, to be viewed as `ml_dtypes.bfloat16`.
///
/// # Errors
/// [`Error::Malformed`] for a dtype that numpy has not, or a size that does not fit.
pub fn layout(file: &Path, tensors: &[TensorMeta]) -> Result<Layout> {
    let mut members = Vec::with_capacity(tensors.len());
    for tensor in tensors {
        let refused = |found: String, expected: &str| {
            let next = "This tensor cannot be written to an npz file";
            Error::malformed(file, Some(&tensor.name), found, expected, next)
        };
        let Some(descr) = descr(tensor.dtype) else {
            return Err(refused(format!("dtype {}", tensor.dtype), "a dtype that numpy defines"));
        };
        let Some(bytes) = tensor.bytes().filter(|&bytes| bytes < u64::MAX / 2) else {
            return Err(refused(format!("shape {:?}", tensor.shape), "sizes that can be counted in 64 bits"));
        };
        let name = format!("{}{EXTENSION}", tensor.name);
        members.push(Member { name, known: preamble(descr, &tensor.shape), unknown: bytes });
    }
    zip::layout(file, members)
}

/// Magic, version 1.0, and the header, padded to a multiple of 64 bytes.
fn preamble(descr: &str, shape: &[u64]) -> Vec<u8> {
    let dims: Vec<String> = shape.iter().map(u64::to_string).collect();
    // Python's tuple of one has a comma.
    let comma = if shape.len() == 1 { "," } else { "" };
    let text = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({}{comma}), }}", dims.join(", "));
    let mut out = MAGIC.to_vec();
    out.extend([1, 0, 0, 0]);
    out.extend(text.as_bytes());
    out.resize((out.len() + 1).next_multiple_of(64) - 1, b' ');
    out.push(b'\n');
    let length = (out.len() - 10) as u16;
    out[8..10].copy_from_slice(&length.to_le_bytes());
    out
}
