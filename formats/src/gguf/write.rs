//! The writer: version 3, little-endian, laid out as ggml demands to read it.

use std::collections::HashSet;
use std::path::Path;

use byteorder::{ByteOrder, LE};

use super::{Array, MAX_DIMS, MAX_KEY, MAX_NAME, Metadata, Value, alignment_of, kind};
use crate::{Error, Layout, Result, TensorMeta};

/// Lays out a file of these tensors, in this order, and this metadata. The alignment is `general.alignment`, or 32.
///
/// The bytes of the header are in [`Layout::fixed`]; all padding is zeros and left out. `file` is named in errors.
///
/// # Errors
/// A tensor or key that the format or ggml's reader cannot take: a name of 64 bytes or more, more than four dimensions,
/// a dtype without a ggml type, a row that does not fill whole blocks, a name or key that comes twice.
pub fn layout(file: &Path, tensors: &[TensorMeta], metadata: &Metadata) -> Result<Layout> {
    let alignment = alignment_of(file, metadata)?;
    let mut header = Vec::new();
    header.extend_from_slice(b"GGUF");
    put_u32(&mut header, 3);
    put_u64(&mut header, tensors.len() as u64);
    put_u64(&mut header, metadata.entries.len() as u64);

    let mut keys = HashSet::new();
    for (key, value) in &metadata.entries {
        if key.len() > MAX_KEY || !keys.insert(key) {
            let found = match key.len() > MAX_KEY {
                true => format!("a metadata key of {} bytes", key.len()),
                false => format!("metadata key `{key}` twice"),
            };
            let expected = format!("keys of at most {MAX_KEY} bytes, each once");
            return Err(Error::malformed(file, None, found, expected, "Change the metadata that is to be written"));
        }
        put_string(&mut header, key);
        put_u32(&mut header, kind_of(value));
        put_value(&mut header, value);
    }

    let mut names = HashSet::new();
    let mut spans = Vec::with_capacity(tensors.len());
    let mut offset = 0u64;
    for meta in tensors {
        let bytes = bytes_of(file, meta)?;
        if !names.insert(&meta.name) {
            return Err(refusal(file, meta, "the name twice", "each name once", "Rename one of the two"));
        }
        put_string(&mut header, &meta.name);
        put_u32(&mut header, meta.shape.len() as u32);
        for &dim in meta.shape.iter().rev() {
            put_u64(&mut header, dim);
        }
        put_u32(&mut header, meta.dtype.ggml_id().unwrap_or_default());
        put_u64(&mut header, offset);
        spans.push(offset..offset + bytes);
        offset = (offset + bytes)
            .checked_next_multiple_of(alignment)
            .filter(|&end| end < MAX_FILE)
            .ok_or_else(|| refusal(file, meta, "a file of 2^62 bytes or more", "less", "Split the model"))?;
    }

    header.resize(header.len().next_multiple_of(alignment as usize), 0);
    let start = header.len() as u64;
    for span in &mut spans {
        *span = start + span.start..start + span.end;
    }
    Ok(Layout { fixed: vec![(0, header)], spans, bytes: start + offset, checksums: Vec::new() })
}

/// No file is that large; sums of two such sizes cannot overflow.
const MAX_FILE: u64 = 1 << 62;

/// The tensor's bytes, if the format and ggml's reader take it.
fn bytes_of(file: &Path, meta: &TensorMeta) -> Result<u64> {
    if meta.name.len() >= MAX_NAME {
        let found = format!("a name of {} bytes", meta.name.len());
        let expected = format!("at most {}, which is all that ggml reads", MAX_NAME - 1);
        return Err(refusal(file, meta, &found, &expected, "Rename the tensor, or write safetensors"));
    }
    if meta.shape.len() > MAX_DIMS as usize {
        let found = format!("the shape {:?}", meta.shape);
        let expected = format!("at most {MAX_DIMS} dimensions");
        return Err(refusal(file, meta, &found, &expected, "Reshape the tensor, or write safetensors"));
    }
    if meta.dtype.ggml_id().is_none() {
        let found = format!("the dtype {}", meta.dtype);
        return Err(refusal(file, meta, &found, "a dtype that ggml has", "Convert the tensor, or write safetensors"));
    }
    meta.bytes().filter(|&bytes| bytes < MAX_FILE).ok_or_else(|| {
        let found = format!("the shape {:?}", meta.shape);
        let expected = format!("rows of whole blocks of {} ({} elements)", meta.dtype, meta.dtype.block_elements());
        refusal(file, meta, &found, &expected, "Choose another type for the tensor")
    })
}

fn refusal(file: &Path, meta: &TensorMeta, found: &str, expected: &str, next: &str) -> Error {
    Error::malformed(file, Some(&meta.name), found, expected, next)
}

fn put_u32(out: &mut Vec<u8>, value: u32) {
    out.extend_from_slice(&value.to_le_bytes());
}

fn put_u64(out: &mut Vec<u8>, value: u64) {
    out.extend_from_slice(&value.to_le_bytes());
}

fn put_string(out: &mut Vec<u8>, text: &str) {
    put_u64(out, text.len() as u64);
    out.extend_from_slice(text.as_bytes());
}

fn kind_of(value: &Value) -> u32 {
    match value {
        Value::U8(_) => kind::U8,
        Value::I8(_) => kind::I8,
        Value::U16(_) => kind::U16,
        Value::I16(_) => kind::I16,
        Value::U32(_) => kind::U32,
        Value::I32(_) => kind::I32,
        Value::F32(_) => kind::F32,
        Value::Bool(_) => kind::BOOL,
        Value::String(_) => kind::STRING,
        Value::Array(_) => kind::ARRAY,
        Value::U64(_) => kind::U64,
        Value::I64(_) => kind::I64,
        Value::F64(_) => kind::F64,
    }
}

fn put_value(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::U8(v) => out.push(*v),
        Value::I8(v) => out.extend_from_slice(&v.to_le_bytes()),
        Value::U16(v) => out.extend_from_slice(&v.to_le_bytes()),
        Value::I16(v) => out.extend_from_slice(&v.to_le_bytes()),
        Value::U32(v) => out.extend_from_slice(&v.to_le_bytes()),
        Value::I32(v) => out.extend_from_slice(&v.to_le_bytes()),
        Value::F32(v) => out.extend_from_slice(&v.to_le_bytes()),
        Value::Bool(v) => out.push(u8::from(*v)),
        Value::String(v) => put_string(out, v),
        Value::Array(v) => put_array(out, v),
        Value::U64(v) => out.extend_from_slice(&v.to_le_bytes()),
        Value::I64(v) => out.extend_from_slice(&v.to_le_bytes()),
        Value::F64(v) => out.extend_from_slice(&v.to_le_bytes()),
    }
}

fn put_array(out: &mut Vec<u8>, array: &Array) {
    match array {
        Array::U8(v) => put_items(out, kind::U8, v, |to, v| to.copy_from_slice(v)),
        Array::I8(v) => put_items(out, kind::I8, v, |to, v| to.iter_mut().zip(v).for_each(|(to, &v)| *to = v as u8)),
        Array::U16(v) => put_items(out, kind::U16, v, |to, v| LE::write_u16_into(v, to)),
        Array::I16(v) => put_items(out, kind::I16, v, |to, v| LE::write_i16_into(v, to)),
        Array::U32(v) => put_items(out, kind::U32, v, |to, v| LE::write_u32_into(v, to)),
        Array::I32(v) => put_items(out, kind::I32, v, |to, v| LE::write_i32_into(v, to)),
        Array::F32(v) => put_items(out, kind::F32, v, |to, v| LE::write_f32_into(v, to)),
        Array::Bool(v) => {
            put_items(out, kind::BOOL, v, |to, v| to.iter_mut().zip(v).for_each(|(to, &v)| *to = u8::from(v)));
        }
        Array::String(v) => {
            put_count(out, kind::STRING, v.len());
            v.iter().for_each(|text| put_string(out, text));
        }
        Array::Array(v) => {
            put_count(out, kind::ARRAY, v.len());
            v.iter().for_each(|array| put_array(out, array));
        }
        Array::U64(v) => put_items(out, kind::U64, v, |to, v| LE::write_u64_into(v, to)),
        Array::I64(v) => put_items(out, kind::I64, v, |to, v| LE::write_i64_into(v, to)),
        Array::F64(v) => put_items(out, kind::F64, v, |to, v| LE::write_f64_into(v, to)),
    }
}

fn put_count(out: &mut Vec<u8>, kind: u32, count: usize) {
    put_u32(out, kind);
    put_u64(out, count as u64);
}

/// An array of fixed-size items, which `write` turns into bytes.
fn put_items<T>(out: &mut Vec<u8>, kind: u32, items: &[T], write: impl FnOnce(&mut [u8], &[T])) {
    put_count(out, kind, items.len());
    let start = out.len();
    out.resize(start + size_of_val(items), 0);
    write(&mut out[start..], items);
}
