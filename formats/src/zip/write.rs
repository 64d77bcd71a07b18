//! The layout of an archive of stored entries, whose data begin where a map of the file wants them.

use std::path::Path;

use crate::{Checksum, Error, Layout, Result};

/// Data begin at multiples of this, so that a map of the file has aligned tensors; torch's writer does the same.
const ALIGNMENT: u64 = 64;

/// What does not fit 32 bits goes into a field of its own.
const MANY: u64 = u32::MAX as u64;
const ZIP64: u16 = 1;
/// The extra field that torch fills the space before data with.
const PADDING: u16 = u16::from_le_bytes(*b"FB");

/// The first of January 1980, where zip's days begin: the same content gives the same bytes.
const DATE: u16 = 0x21;
const VERSION: u16 = 45;
/// Names are UTF-8.
const FLAGS: u16 = 1 << 11;

/// An entry to be written: bytes that are known, and after them so many that are not.
pub(crate) struct Member {
    pub name: String,
    pub known: Vec<u8>,
    pub unknown: u64,
}

impl Member {
    fn bytes(&self) -> u64 {
        self.known.len() as u64 + self.unknown
    }
}

/// Lays out an archive. The layout has a span for each member, of its unknown bytes, and a checksum for each.
///
/// # Errors
/// [`Error::Malformed`] if a name is too long for a zip file.
pub(crate) fn layout(file: &Path, members: Vec<Member>) -> Result<Layout> {
    let mut layout = Layout { fixed: Vec::new(), spans: Vec::new(), bytes: 0, checksums: Vec::new() };
    let mut directory = Vec::new();
    let mut sums = Vec::new();
    let count = members.len() as u64;
    let mut at = 0;
    for member in members {
        let bytes = member.bytes();
        let name = u16::try_from(member.name.len()).map_err(|_| {
            let found = format!("a name of {} bytes", member.name.len());
            Error::malformed(file, Some(&member.name), found, "at most 65535", "Write safetensors instead")
        })?;
        let header = at;
        let mut extra = Vec::new();
        if bytes >= MANY {
            fields(&mut extra, ZIP64, &[bytes, bytes]);
        }
        // The padding's own four bytes of head belong to the distance.
        let plain = header + 30 + u64::from(name) + extra.len() as u64;
        let padding = (plain + 4).next_multiple_of(ALIGNMENT) - plain - 4;
        extra.extend(PADDING.to_le_bytes());
        extra.extend((padding as u16).to_le_bytes());
        extra.resize(extra.len() + padding as usize, b'Z');

        let size = bytes.min(MANY) as u32;
        let mut local = b"PK\x03\x04".to_vec();
        numbers(&mut local, &[VERSION, FLAGS, 0, 0, DATE]);
        let sum = header + local.len() as u64;
        longs(&mut local, &[0, size, size]);
        numbers(&mut local, &[name, extra.len() as u16]);
        local.extend_from_slice(member.name.as_bytes());
        local.extend(extra);
        let start = header + local.len() as u64;
        local.extend(&member.known);
        layout.fixed.push((header, local));

        let mut extra = Vec::new();
        let large: Vec<u64> = [bytes, bytes, header].into_iter().filter(|&number| number >= MANY).collect();
        if !large.is_empty() {
            fields(&mut extra, ZIP64, &large);
        }
        directory.extend(b"PK\x01\x02");
        numbers(&mut directory, &[VERSION, VERSION, FLAGS, 0, 0, DATE]);
        sums.push((start..start + bytes, sum, directory.len() as u64));
        longs(&mut directory, &[0, size, size]);
        numbers(&mut directory, &[name, extra.len() as u16, 0, 0, 0]);
        longs(&mut directory, &[0, header.min(MANY) as u32]);
        directory.extend_from_slice(member.name.as_bytes());
        directory.extend(extra);

        layout.spans.push(start + member.known.len() as u64..start + bytes);
        at = start + bytes;
    }
    let start = at;
    for (of, local, central) in sums {
        layout.checksums.push(Checksum { of, at: vec![local, start + central] });
    }
    let size = directory.len() as u64;
    let end = start + size;
    if count >= u64::from(u16::MAX) || start >= MANY || size >= MANY {
        directory.extend(b"PK\x06\x06");
        wide(&mut directory, &[44]);
        numbers(&mut directory, &[VERSION, VERSION]);
        longs(&mut directory, &[0, 0]);
        wide(&mut directory, &[count, count, size, start]);
        directory.extend(b"PK\x06\x07");
        longs(&mut directory, &[0]);
        wide(&mut directory, &[end]);
        longs(&mut directory, &[1]);
    }
    directory.extend(b"PK\x05\x06");
    let short = count.min(u64::from(u16::MAX)) as u16;
    numbers(&mut directory, &[0, 0, short, short]);
    longs(&mut directory, &[size.min(MANY) as u32, start.min(MANY) as u32]);
    numbers(&mut directory, &[0]);
    layout.bytes = start + directory.len() as u64;
    layout.fixed.push((start, directory));
    Ok(layout)
}

fn numbers(out: &mut Vec<u8>, numbers: &[u16]) {
    out.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
}

fn longs(out: &mut Vec<u8>, numbers: &[u32]) {
    out.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
}

fn wide(out: &mut Vec<u8>, numbers: &[u64]) {
    out.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
}

/// An extra field of 64-bit numbers.
fn fields(out: &mut Vec<u8>, id: u16, values: &[u64]) {
    numbers(out, &[id, 8 * values.len() as u16]);
    wide(out, values);
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;
    use crate::source::Data;
    use crate::zip::Archive;
    use crate::{Access, Limits};

    /// The places and sizes that a reader finds, of a file that is one large hole.
    fn read_back(layout: &Layout) -> Vec<(String, std::ops::Range<u64>)> {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(layout.bytes).unwrap();
        for (at, bytes) in &layout.fixed {
            file.as_file().write_all_at(bytes, *at).unwrap();
        }
        let data = Data::open(file.path(), Access::Read).unwrap();
        let archive = Archive::open(file.path(), &data, &Limits::default()).unwrap();
        archive.entries.iter().map(|entry| (entry.name.clone(), entry.place.clone())).collect()
    }

    fn member(name: String, unknown: u64) -> Member {
        Member { name, known: b"known".to_vec(), unknown }
    }

    #[test]
    fn entries_beyond_four_gigabytes_are_found_again() {
        let sizes = [3, 5 << 30, 7, u64::from(u32::MAX) - 5, 11];
        let members = sizes.iter().enumerate().map(|(i, &size)| member(format!("m{i}"), size)).collect();
        let layout = layout(Path::new("x.zip"), members).unwrap();
        let found = read_back(&layout);
        for (i, ((name, place), span)) in found.iter().zip(&layout.spans).enumerate() {
            assert_eq!(*name, format!("m{i}"));
            assert_eq!(*place, span.start - 5..span.end);
            assert_eq!((place.start % ALIGNMENT, span.end - span.start), (0, sizes[i]));
        }
        assert_eq!(found.len(), sizes.len());
    }

    #[test]
    fn more_entries_than_sixteen_bits_count() {
        let members = (0..70_000).map(|i| member(format!("m{i}"), 1)).collect();
        let layout = layout(Path::new("x.zip"), members).unwrap();
        assert_eq!(read_back(&layout).len(), 70_000);
    }
}
