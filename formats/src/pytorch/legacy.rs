//! The reader of what torch wrote before 1.6, and writes still if asked to: five pickles (magic number, version, system, the
//! object, the storages' keys), then each storage with its length before it, little-endian whatever the machine.

use std::collections::HashMap;
use std::io::{self, BufReader, Read};
use std::path::Path;

use super::object::{self, Place};
use super::pickle::{Machine, Value};
use super::read::budget;
use crate::source::{Contents, Data, Window};
use crate::unpacked::Unpacked;
use crate::{Error, Limits, Result};

/// The magic number 0x1950a86a20f9469cfc6c after a pickle's version.
pub(crate) const MAGIC: &[u8] = b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.";

const VERSION: i64 = 1001;

/// Reads a checkpoint: every tensor of the pickle, in its order.
pub(crate) fn read(path: &Path, data: &Data, limits: &Limits) -> Result<Contents> {
    let malformed = |found: String, expected: &str| {
        Error::malformed(path, None, found, expected, "The file is damaged or cut short; save it with torch again")
    };
    let mut from = Counted { from: BufReader::with_capacity(1 << 16, Window::new(data, 0..data.len())), at: 0 };
    let mut machine = Machine::new(budget(limits));
    let mut next = |machine: &mut Machine| machine.run(&mut from).map_err(|e| object::refused(path, e));
    next(&mut machine)?;
    next(&mut machine)?;
    if !matches!(machine.result, Some(Value::Int(VERSION))) {
        return Err(malformed(format!("{:?} as the version", machine.result), "version 1001"));
    }
    next(&mut machine)?;
    next(&mut machine)?;
    let mut keys = Machine::new(machine.memory);
    next(&mut keys)?;
    let tensors = object::tensors(path, &mut machine)?;

    let kinds: HashMap<&str, u64> = machine
        .storages
        .iter()
        .filter_map(|storage| {
            let item = storage.dtype.map_or(1, |dtype| dtype.block_bits() / 8);
            Some((machine.text(storage.key)?, item))
        })
        .collect();
    let mut places = HashMap::new();
    let mut at = from.at;
    for &key in keys.result.and_then(|keys_list| keys.list(keys_list)).unwrap_or_default() {
        let Some((key, item)) = keys.text(key).and_then(|key| Some((key, *kinds.get(key)?))) else {
            return Err(malformed("the key of a storage that no tensor has".into(), "keys of storages"));
        };
        let mut count = [0; 8];
        data.read_at(at, &mut count)
            .map_err(|_| malformed(format!("an end before the storage `{key}`"), "all storages"))?;
        let count = u64::from_le_bytes(count);
        let end = count.checked_mul(item).and_then(|bytes| bytes.checked_add(at + 8)).filter(|&end| end <= data.len());
        let Some(end) = end else {
            let found = format!("a storage `{key}` of {count} elements at byte {at} of {}", data.len());
            return Err(malformed(found, "a storage within the file"));
        };
        places.insert(key, at + 8..end);
        at = end;
    }
    let mut unpacked = Unpacked::new(path, data.len(), limits);
    let mut contents = Contents::default();
    for (name, tensor) in tensors {
        let storage = machine.storages[tensor.storage as usize];
        let bytes = machine.text(storage.key).and_then(|key| places.get(key)).cloned().ok_or_else(|| {
            let next = "The file is damaged; save it with torch again";
            Error::malformed(path, Some(&name), "a storage that the file lacks", "one of its storages", next)
        })?;
        let place = Place { data, bytes, in_file: true, big_endian: false };
        object::add(path, &machine, name, tensor, &place, &mut unpacked, &mut contents)?;
    }
    contents.unpacked = unpacked.finish(data.access())?;
    Ok(contents)
}

/// Knows how far it was read.
struct Counted<'a> {
    from: BufReader<Window<'a>>,
    at: u64,
}

impl Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.from.read(buffer)?;
        self.at += n as u64;
        Ok(n)
    }
}
