//! The header's writer: a whole file's layout from descriptions alone.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::{METADATA, PREFIX};
use crate::{Error, Layout, Result, TensorMeta};

/// The layout of a safetensors file with these tensors, ordered as the reference library orders them: widest dtypes first,
/// then by name. Spans come back in the order of `tensors`.
///
/// # Errors
/// [`Error::Malformed`] if a name occurs twice, a dtype has no place in safetensors, or a size does not fit.
pub fn layout(file: &Path, tensors: &[TensorMeta], metadata: &BTreeMap<String, String>) -> Result<Layout> {
    let mut order: Vec<usize> = (0..tensors.len()).collect();
    order.sort_by(|&a, &b| {
        let (a, b) = (&tensors[a], &tensors[b]);
        b.dtype.cmp(&a.dtype).then_with(|| a.name.cmp(&b.name))
    });
    let mut header = Map::new();
    if !metadata.is_empty() {
        header.insert(METADATA.to_owned(), json!(metadata));
    }
    let mut spans = vec![0..0; tensors.len()];
    let mut end = 0u64;
    for i in order {
        let tensor = &tensors[i];
        let refused = |found: String, expected: &str| {
            Error::malformed(
                file,
                Some(&tensor.name),
                found,
                expected,
                "This tensor cannot be written to a safetensors file",
            )
        };
        if tensor.dtype.is_block() {
            return Err(refused(format!("dtype {}", tensor.dtype), "a dtype that safetensors defines"));
        }
        let begin = end;
        end = tensor
            .bytes()
            .and_then(|bytes| begin.checked_add(bytes))
            .ok_or_else(|| refused(format!("shape {:?}", tensor.shape), "sizes that can be counted in 64 bits"))?;
        spans[i] = begin..end;
        let entry = json!({"dtype": tensor.dtype.name(), "shape": tensor.shape, "data_offsets": [begin, end]});
        if header.insert(tensor.name.clone(), entry).is_some() {
            return Err(refused("a name that occurs twice".into(), "each name once"));
        }
    }
    let mut head = vec![0; PREFIX as usize];
    head.extend_from_slice(Value::Object(header).to_string().as_bytes());
    // The data begin at a multiple of eight, so that a map of the file has aligned tensors.
    head.resize(head.len().next_multiple_of(8), b' ');
    let start = head.len() as u64;
    head[..PREFIX as usize].copy_from_slice(&(start - PREFIX).to_le_bytes());
    for span in &mut spans {
        *span = start + span.start..start + span.end;
    }
    Ok(Layout { fixed: vec![(0, head)], spans, bytes: start + end, checksums: Vec::new() })
}
