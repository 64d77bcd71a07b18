//! The writer: a zip file with an `OrderedDict` of contiguous tensors, each in a storage of its own, which
//! `torch.load(…, weights_only=True)` and `mmap=True` take.

use std::path::Path;

use super::PICKLE;
use super::dtype;
use crate::gather::Strided;
use crate::zip::{self, Member};
use crate::{Error, Layout, Result, TensorMeta};

/// The root folder's name, which torch takes from the file and readers ignore.
const ROOT: &str = "archive";

/// Entries that are set at once, as Python's pickler does it.
const BATCH: usize = 1000;

/// The layout of a checkpoint of these tensors. Spans come back in the order of `tensors`.
///
/// # Errors
/// [`Error::Malformed`] for a dtype that torch has not, or a size that does not fit.
pub fn layout(file: &Path, tensors: &[TensorMeta]) -> Result<Layout> {
    let known = |name: &str, known: Vec<u8>| Member { name: format!("{ROOT}/{name}"), known, unknown: 0 };
    let mut members = vec![known(PICKLE, pickle(file, tensors)?), known("byteorder", b"little".to_vec())];
    let before = members.len();
    for (i, tensor) in tensors.iter().enumerate() {
        let Some(unknown) = tensor.bytes().filter(|&bytes| bytes < u64::MAX / 2) else {
            let found = format!("shape {:?}", tensor.shape);
            let next = "This tensor cannot be written to a PyTorch file";
            return Err(Error::malformed(file, Some(&tensor.name), found, "sizes that fit 64 bits", next));
        };
        members.push(Member { name: format!("{ROOT}/data/{i}"), known: Vec::new(), unknown });
    }
    members.push(known("version", b"3\n".to_vec()));
    let mut layout = zip::layout(file, members)?;
    layout.spans = layout.spans.drain(before..before + tensors.len()).collect();
    Ok(layout)
}

fn pickle(file: &Path, tensors: &[TensorMeta]) -> Result<Vec<u8>> {
    const ORDERED: &[u8] = b"ccollections\nOrderedDict\n)R";
    let mut out = b"\x80\x02".to_vec();
    out.extend(ORDERED);
    for (batch, all) in tensors.chunks(BATCH).enumerate() {
        out.push(b'(');
        for (i, tensor) in all.iter().enumerate() {
            let Some((class, name)) = dtype::names(tensor.dtype) else {
                let found = format!("dtype {}", tensor.dtype);
                let next = "This tensor cannot be written to a PyTorch file";
                return Err(Error::malformed(file, Some(&tensor.name), found, "a dtype that torch defines", next));
            };
            text(&mut out, &tensor.name);
            let rebuild = if class.is_some() { "_rebuild_tensor_v2" } else { "_rebuild_tensor_v3" };
            out.extend(format!("ctorch._utils\n{rebuild}\n((").bytes());
            text(&mut out, "storage");
            match class {
                Some(class) => out.extend(format!("ctorch\n{class}\n").bytes()),
                None => out.extend(b"ctorch.storage\nUntypedStorage\n"),
            }
            text(&mut out, &(batch * BATCH + i).to_string());
            text(&mut out, "cpu");
            let count = if class.is_some() { tensor.elements() } else { tensor.bytes() };
            number(&mut out, count.unwrap_or(0));
            out.extend(b"tQK\0");
            for numbers in [&tensor.shape, &Strided::row_major(&tensor.shape)] {
                out.push(b'(');
                numbers.iter().for_each(|&n| number(&mut out, n));
                out.push(b't');
            }
            // It asks for no gradients and has no hooks.
            out.push(0x89);
            out.extend(ORDERED);
            if class.is_none() {
                out.extend(format!("ctorch\n{name}\n").bytes());
            }
            out.extend(b"tR");
        }
        out.push(b'u');
    }
    out.push(b'.');
    Ok(out)
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.push(b'X');
    out.extend((text.len() as u32).to_le_bytes());
    out.extend(text.as_bytes());
}

fn number(out: &mut Vec<u8>, number: u64) {
    match i32::try_from(number) {
        Ok(short) => {
            out.push(b'J');
            out.extend(short.to_le_bytes());
        }
        Err(_) => {
            out.extend([0x8a, 8]);
            out.extend(number.to_le_bytes());
        }
    }
}
