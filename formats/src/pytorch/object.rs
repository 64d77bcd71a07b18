//! From what a pickle made to tensors with names and places.

use std::ops::Range;
use std::path::Path;

use super::pickle::{Machine, Refused, Tensor, Value};
use crate::gather::Strided;
use crate::source::{Contents, Data};
use crate::unpacked::Unpacked;
use crate::{Dtype, Error, Result, TensorMeta};

/// Dictionaries within dictionaries: more no checkpoint has, and a reader's stack must bound it.
const MAX_DEPTH: usize = 64;
/// torch's own bound on dimensions.
const MAX_DIMS: usize = 64;

pub(super) const SAVE: &str = "Save the weights alone: torch.save(model.state_dict(), …), or as safetensors";

/// Where a storage lies.
#[derive(Debug, Clone)]
pub(super) struct Place<'a> {
    /// The file's bytes, or unpacked ones.
    pub data: &'a Data,
    /// All that the storage has there.
    pub bytes: Range<u64>,
    /// Whether that is the file itself, so that its bytes can be used where they are.
    pub in_file: bool,
    /// Whether the machine that wrote it had the other byte order.
    pub big_endian: bool,
}

pub(super) fn refused(path: &Path, e: Refused) -> Error {
    Error::malformed(path, None, e.found, e.expected, SAVE)
}

/// The tensors of nested dictionaries and lists, names joined by dots. A tensor on its own has the file's name.
pub(super) fn tensors(path: &Path, machine: &mut Machine) -> Result<Vec<(String, Tensor)>> {
    let mut found = Vec::new();
    let mut memory = machine.memory;
    let top = machine.result.unwrap_or(Value::None);
    let name = match top {
        Value::Tensor(_) => path.file_stem().map_or_else(String::new, |stem| stem.to_string_lossy().into_owned()),
        _ => String::new(),
    };
    walk(machine, top, name, 0, &mut memory, &mut found).map_err(|e| refused(path, e))?;
    machine.memory = memory;
    if found.is_empty() && !matches!(top, Value::Dict(_)) {
        let e = Refused { found: "a pickle without tensors".into(), expected: "a dictionary of tensors" };
        return Err(refused(path, e));
    }
    let mut names: Vec<&str> = found.iter().map(|(name, _)| name.as_str()).collect();
    names.sort_unstable();
    if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        let found = "a name that nested dictionaries make twice";
        return Err(Error::malformed(path, Some(twice[0]), found, "each name once", SAVE));
    }
    Ok(found)
}

fn walk(
    machine: &Machine,
    value: Value,
    name: String,
    depth: usize,
    memory: &mut u64,
    found: &mut Vec<(String, Tensor)>,
) -> Result<(), Refused> {
    // Each visit is charged too: a dictionary that is pointed at from many others is walked many times.
    let cost = 16 + 2 * name.len() as u64;
    let wrong = |found: String| Err(Refused { found, expected: "a dictionary of tensors" });
    let Some(left) = memory.checked_sub(cost) else {
        return wrong("dictionaries that repeat one another without end".into());
    };
    *memory = left;
    if depth > MAX_DEPTH {
        return wrong(format!("dictionaries or lists nested more than {MAX_DEPTH} deep"));
    }
    let below = |key: &str| if name.is_empty() { key.to_owned() } else { format!("{name}.{key}") };
    match value {
        Value::Tensor(at) => {
            let Some(left) = memory.checked_sub(2 * size_of::<(String, Tensor)>() as u64) else {
                return wrong("more tensors than can be held".into());
            };
            *memory = left;
            found.push((name, machine.tensors[at as usize]));
        }
        Value::Dict(_) => {
            for &(key, value) in machine.dict(value).unwrap_or_default() {
                let key = match (machine.text(key), key) {
                    (Some(text), _) => text.to_owned(),
                    (None, Value::Int(number)) => number.to_string(),
                    _ if matches!(value, Value::Tensor(_) | Value::Dict(_) | Value::List(_)) => {
                        return wrong(format!("an entry of `{name}` whose key is neither text nor number"));
                    }
                    _ => continue,
                };
                walk(machine, value, below(&key), depth + 1, memory, found)?;
            }
        }
        Value::List(_) => {
            for (i, &value) in machine.list(value).unwrap_or_default().iter().enumerate() {
                if matches!(value, Value::Tensor(_) | Value::Dict(_) | Value::List(_)) {
                    walk(machine, value, below(&i.to_string()), depth + 1, memory, found)?;
                }
            }
        }
        _ => {}
    }
    Ok(())
}

/// Adds a tensor: where it lies if its elements are in order, else gathered.
pub(super) fn add(
    path: &Path,
    machine: &Machine,
    name: String,
    tensor: Tensor,
    place: &Place<'_>,
    unpacked: &mut Unpacked<'_>,
    contents: &mut Contents,
) -> Result<()> {
    let malformed = |found: String, expected: &str| {
        Error::malformed(path, Some(&name), found, expected, "Save it with torch again")
    };
    let (Some(shape), Some(strides)) = (machine.numbers(tensor.shape), machine.numbers(tensor.strides)) else {
        return Err(malformed("a shape or strides that are no list of numbers".into(), "numbers from 0 on"));
    };
    if shape.len() != strides.len() || shape.len() > MAX_DIMS {
        return Err(malformed(
            format!("{} dimensions and {} strides", shape.len(), strides.len()),
            "as many, at most 64",
        ));
    }
    let storage = machine.storages[tensor.storage as usize];
    let item = tensor.dtype.block_bits() / 8;
    let own = storage.count.checked_mul(storage.dtype.map_or(1, |dtype| dtype.block_bits() / 8));
    let held = place.bytes.end - place.bytes.start;
    let Some(own) = own.filter(|&own| own <= held) else {
        let found = format!("a storage of {} elements in {held} bytes", storage.count);
        return Err(malformed(found, "a storage within its bytes: the file is damaged or cut short"));
    };
    let meta = TensorMeta::new(name.clone(), tensor.dtype, shape);
    let last = Strided::span(&meta.shape, &strides)
        .and_then(|span| if span == 0 { Some(0) } else { span.checked_add(tensor.offset) })
        .and_then(|end| end.checked_mul(item));
    let (Some(bytes), Some(_)) = (meta.bytes(), last.filter(|&last| last <= own)) else {
        let found = format!("shape {:?}, strides {strides:?}, offset {}", meta.shape, tensor.offset);
        return Err(malformed(found, &format!("a tensor within its storage of {own} bytes")));
    };
    let start = place.bytes.start;
    let found = if bytes == 0 {
        0..0
    } else if place.in_file && !place.big_endian && Strided::is_contiguous(&meta.shape, &strides) {
        start + tensor.offset * item..start + tensor.offset * item + bytes
    } else {
        unpacked.charge(&name, bytes)?;
        let begin = unpacked.start();
        let half = if tensor.dtype == Dtype::C64 { item / 2 } else { item };
        let swap = (place.big_endian && half > 1).then_some(half);
        let strided = Strided { item, swap, shape: meta.shape.clone(), strides };
        let from = start + tensor.offset * item;
        let mut read =
            |at: u64, buffer: &mut [u8]| place.data.read_at(from + at, buffer).map_err(Error::io(path, "read"));
        strided.gather(&mut read, &mut |bytes| unpacked.write(bytes))?;
        unpacked.place(begin)?
    };
    contents.places.push(found);
    contents.tensors.push(meta);
    Ok(())
}
