//! The reader of zip files.

use std::collections::HashMap;
use std::io::BufReader;
use std::path::Path;

use super::PICKLE;
use super::object::{self, Place, SAVE};
use super::pickle::Machine;
use crate::source::{Contents, Data};
use crate::unpacked::Unpacked;
use crate::zip::{Archive, Entry};
use crate::{Error, Limits, Result};

/// Memory that an interpreted pickle may take: what the limits allow, less some for the reader itself.
pub(super) fn budget(limits: &Limits) -> u64 {
    limits.header_bytes / 4 * 3
}

/// Whether an archive is PyTorch's.
pub(crate) fn is_one(archive: &Archive<'_>) -> bool {
    root(archive).is_some() || archive.entries.iter().any(|entry| entry.name.ends_with("/constants.pkl"))
}

/// The archive's root folder, whatever its name, with its slash.
fn root<'a>(archive: &'a Archive<'_>) -> Option<&'a str> {
    let roots = archive.entries.iter().filter_map(|entry| entry.name.strip_suffix(PICKLE));
    roots.into_iter().find(|root| root.ends_with('/') && root.matches('/').count() == 1)
}

/// Reads a checkpoint: every tensor of the pickle, in its order.
pub(crate) fn read(path: &Path, data: &Data, archive: &Archive<'_>, limits: &Limits) -> Result<Contents> {
    let malformed = |found: String, expected: &str, next: &str| Error::malformed(path, None, found, expected, next);
    let script = |entry: &Entry| entry.name.ends_with("/constants.pkl") || entry.name.contains("/code/");
    if let Some(entry) = archive.entries.iter().find(|entry| script(entry)) {
        let found = format!("a TorchScript archive, which is a program (it has `{}`)", entry.name);
        return Err(malformed(found, "a checkpoint of weights", SAVE));
    }
    let root = root(archive).unwrap_or_default().to_owned();
    let entries: HashMap<&str, &Entry> =
        archive.entries.iter().filter_map(|entry| Some((entry.name.strip_prefix(root.as_str())?, entry))).collect();
    let big_endian = match entries.get("byteorder").map(|entry| archive.read(entry, 16)).transpose()?.as_deref() {
        None | Some(b"little") => false,
        Some(b"big") => true,
        Some(other) => {
            let found = format!("the byte order `{}`", String::from_utf8_lossy(other));
            return Err(malformed(found, "little or big", SAVE));
        }
    };
    let Some(pickle) = entries.get(PICKLE) else {
        return Err(malformed("no data.pkl".into(), "a checkpoint of weights", SAVE));
    };
    if pickle.bytes > limits.header_bytes {
        let found = format!("a pickle of {} bytes", pickle.bytes);
        return Err(malformed(found, &format!("at most {}", limits.header_bytes), SAVE));
    }
    let mut machine = Machine::new(budget(limits));
    archive.summed(pickle, &mut |reader| {
        let mut reader = BufReader::with_capacity(1 << 16, reader);
        machine.run(&mut reader).map_err(|e| object::refused(path, e))
    })?;
    let tensors = object::tensors(path, &mut machine)?;

    let mut unpacked = Unpacked::new(path, data.len(), limits);
    // Deflated storages, which torch does not write and other tools may: unpacked first, then copied from there.
    let mut aside = unpacked.aside();
    let mut packed = HashMap::new();
    for storage in &machine.storages {
        let Some(entry) = storage_entry(&machine, storage.key, &entries).filter(|entry| entry.deflated) else {
            continue;
        };
        if !packed.contains_key(&entry.name) {
            packed.insert(entry.name.clone(), archive.unpack(entry, &mut aside)?);
        }
    }
    let aside = aside.finish(data.access())?;
    let mut contents = Contents::default();
    for (name, tensor) in tensors {
        let storage = machine.storages[tensor.storage as usize];
        let Some(entry) = storage_entry(&machine, storage.key, &entries) else {
            let key = machine.text(storage.key).unwrap_or_default();
            let found = format!("a storage `{key}` that the file lacks");
            return Err(Error::malformed(path, Some(&name), found, "an entry data/KEY", "The file is damaged"));
        };
        let place = match (packed.get(&entry.name), &aside) {
            (Some(place), Some(aside)) => {
                let bytes = place.start - data.len()..place.end - data.len();
                Place { data: aside, bytes, in_file: false, big_endian }
            }
            _ => Place { data, bytes: entry.place.clone(), in_file: true, big_endian },
        };
        object::add(path, &machine, name, tensor, &place, &mut unpacked, &mut contents)?;
    }
    contents.unpacked = unpacked.finish(data.access())?;
    Ok(contents)
}

fn storage_entry<'a>(
    machine: &Machine,
    key: super::pickle::Value,
    entries: &HashMap<&str, &'a Entry>,
) -> Option<&'a Entry> {
    entries.get(format!("data/{}", machine.text(key)?).as_str()).copied()
}
