//! The header's reader: everything that it says is checked against itself and against the file's size.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::ops::Range;
use std::path::Path;

use serde::Deserialize;
use serde::de::{DeserializeSeed, MapAccess, Visitor};

use super::{METADATA, PREFIX};
use crate::source::{Contents, Data};
use crate::{Dtype, Error, Limits, Result, TensorMeta};

const DAMAGED: &str = "The file is damaged or not safetensors; download it again";

/// Reads and checks the header of a safetensors file.
pub(crate) fn read(path: &Path, data: &Data, limits: &Limits) -> Result<Contents> {
    let malformed = |found: String, expected: String| Error::malformed(path, None, found, expected, DAMAGED);
    if data.len() < PREFIX + 2 {
        return Err(malformed(
            format!("a file of {} bytes", data.len()),
            "at least 10 bytes of safetensors header".into(),
        ));
    }
    let mut prefix = [0; PREFIX as usize];
    data.read_at(0, &mut prefix).map_err(Error::io(path, "read"))?;
    let header_len = u64::from_le_bytes(prefix);
    if header_len > limits.header_bytes {
        return Err(malformed(
            format!("a header length of {header_len} bytes"),
            format!("at most {} (is this a safetensors file?)", limits.header_bytes),
        ));
    }
    if header_len > data.len() - PREFIX {
        return Err(malformed(
            format!("a header length of {header_len} bytes in a file of {} bytes", data.len()),
            "a header within the file".into(),
        ));
    }
    let mut header = vec![0; (PREFIX + header_len) as usize];
    data.read_at(0, &mut header).map_err(Error::io(path, "read"))?;
    let json = &header[PREFIX as usize..];
    if json.first() != Some(&b'{') {
        return Err(malformed("a header that does not begin with `{`".into(), "a JSON object".into()));
    }
    let parsed = parse(path, json)?;
    let contents = place(path, parsed, PREFIX + header_len, data.len(), limits)?;
    // The reference library has the last word on what a header is: what it refuses, others refuse too.
    serde_json::from_slice::<safetensors::tensor::Metadata>(json).map_err(|e| {
        malformed(format!("a header that the safetensors library refuses ({e})"), "a valid header".into())
    })?;
    Ok(contents)
}

/// A tensor's entry as the header spells it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

#[derive(Default)]
struct Parsed {
    entries: Vec<(String, Entry)>,
    metadata: BTreeMap<String, String>,
}

fn parse(path: &Path, json: &[u8]) -> Result<Parsed> {
    let current = RefCell::new(None);
    let mut reader = serde_json::Deserializer::from_slice(json);
    let parsed = Header { current: &current }.deserialize(&mut reader).and_then(|parsed| {
        reader.end()?;
        Ok(parsed)
    });
    parsed.map_err(|e| {
        let tensor = current.borrow();
        Error::malformed(
            path,
            tensor.as_deref(),
            format!("a header entry that does not parse ({e})"),
            "an entry like {\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,24]}, each name once",
            DAMAGED,
        )
    })
}

/// Parses the header and remembers which entry it is at, so that an error can name it. serde's own maps keep the last of two
/// equal names in silence; this one refuses them.
struct Header<'a> {
    current: &'a RefCell<Option<String>>,
}

impl<'de> DeserializeSeed<'de> for Header<'_> {
    type Value = Parsed;
    fn deserialize<D: serde::Deserializer<'de>>(self, reader: D) -> Result<Parsed, D::Error> {
        reader.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Header<'_> {
    type Value = Parsed;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Parsed, M::Error> {
        let mut parsed = Parsed::default();
        let mut seen = HashSet::new();
        while let Some(name) = map.next_key::<String>()? {
            *self.current.borrow_mut() = Some(name.clone());
            if !seen.insert(name.clone()) {
                return Err(serde::de::Error::custom("the name occurs twice"));
            }
            if name == METADATA {
                parsed.metadata = map.next_value()?;
            } else {
                let entry = map.next_value()?;
                parsed.entries.push((name, entry));
            }
        }
        *self.current.borrow_mut() = None;
        Ok(parsed)
    }
}

/// Checks dtypes, shapes and offsets: the tensors fill the rest of the file with neither gap nor overlap.
fn place(path: &Path, parsed: Parsed, start: u64, file: u64, limits: &Limits) -> Result<Contents> {
    let Parsed { mut entries, metadata } = parsed;
    if entries.len() as u64 > limits.tensors {
        return Err(Error::malformed(
            path,
            None,
            format!("{} tensors", entries.len()),
            format!("at most {}", limits.tensors),
            DAMAGED,
        ));
    }
    entries.sort_by_key(|(_, entry)| entry.data_offsets);
    let room = file - start;
    let mut end = 0;
    let mut last = String::new();
    let mut tensors = Vec::with_capacity(entries.len());
    let mut places: Vec<Range<u64>> = Vec::with_capacity(entries.len());
    for (name, entry) in entries {
        let malformed =
            |found: String, expected: String, next: &str| Error::malformed(path, Some(&name), found, expected, next);
        let Some(dtype) = Dtype::from_name(&entry.dtype).filter(|dtype| !dtype.is_block()) else {
            return Err(malformed(
                format!("dtype `{}`", entry.dtype),
                "one that safetensors defines (F32, F16, BF16, I8, …)".into(),
                "If the format has gained a type, this version does not know it yet",
            ));
        };
        let meta = TensorMeta { name: name.clone(), dtype, shape: entry.shape };
        let (begin, stop) = entry.data_offsets;
        let Some(bytes) = meta.bytes() else {
            return Err(malformed(
                format!("{dtype} of shape {:?}", meta.shape),
                "a shape whose bytes can be counted in 64 bits".into(),
                DAMAGED,
            ));
        };
        if stop.checked_sub(begin) != Some(bytes) {
            return Err(malformed(
                format!("offsets {begin}..{stop}"),
                format!("{bytes} bytes for {dtype} of shape {:?}", meta.shape),
                DAMAGED,
            ));
        }
        if begin != end {
            let what = if begin < end { "overlaps" } else { "leaves a gap after" };
            let before = if last.is_empty() { "the header".to_owned() } else { format!("tensor `{last}`") };
            return Err(malformed(
                format!("a beginning at {begin}, which {what} {before}"),
                format!("a beginning at {end}"),
                DAMAGED,
            ));
        }
        if stop > room {
            return Err(malformed(
                format!("an end at byte {stop} of the data, where the file has {room}"),
                format!("a file of {} bytes; this one has {file}", start.saturating_add(stop)),
                "The file is truncated; download it again",
            ));
        }
        end = stop;
        last = name;
        places.push(start + begin..start + stop);
        tensors.push(meta);
    }
    if end != room {
        return Err(Error::malformed(
            path,
            None,
            format!("{} bytes after the last tensor", room - end),
            "none",
            DAMAGED,
        ));
    }
    Ok(Contents { tensors, places, metadata, ..Contents::default() })
}
