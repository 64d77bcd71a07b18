//! The directory's reader. The directory at the end is what a zip file holds; of an entry's own header only its length is
//! used, as the format's other readers do.

use std::collections::HashSet;
use std::io::{self, Read};
use std::ops::Range;
use std::path::Path;

use flate2::bufread::DeflateDecoder;
use rawzip::{CompressionMethod, ReaderAt, ZipLocator};

use crate::source::{Data, Window};
use crate::unpacked::{Fault, Unpacked};
use crate::{Error, Limits, Result};

/// What a zip file begins with: an entry, or the end of an empty directory.
pub(crate) const FIRST: [&[u8]; 2] = [b"PK\x03\x04", b"PK\x05\x06"];

const DAMAGED: &str = "The file is damaged or cut short; download or save it again";

/// What an entry of the directory takes in memory besides its name, here and in those who read it: rounded up.
const RECORD: u64 = 512;

/// An opened archive.
pub(crate) struct Archive<'a> {
    path: &'a Path,
    data: &'a Data,
    /// In the order of the directory.
    pub entries: Vec<Entry>,
}

/// An entry of the directory.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    /// Its name.
    pub name: String,
    /// Its bytes in the file, packed or not.
    pub place: Range<u64>,
    /// Its bytes unpacked.
    pub bytes: u64,
    /// Whether it is deflated; else it is stored.
    pub deflated: bool,
    crc: u32,
}

/// Bytes of a file for the library.
struct At<'a>(&'a Data);

impl ReaderAt for At<'_> {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let n = self.0.len().saturating_sub(offset).min(buffer.len() as u64) as usize;
        if n > 0 {
            self.0.read_at(offset, &mut buffer[..n])?;
        }
        Ok(n)
    }
}

impl<'a> Archive<'a> {
    /// Reads the directory: every entry lies within the file, none overlaps another, each name occurs once.
    pub fn open(path: &'a Path, data: &'a Data, limits: &Limits) -> Result<Self> {
        let malformed = |found: String, expected: &str| Error::malformed(path, None, found, expected, DAMAGED);
        let refused = |e: &rawzip::Error| malformed(format!("a zip directory that does not read ({e})"), "a zip file");
        // Comments are at most 64 KiB long, and records too.
        let mut buffer = vec![0; rawzip::MAX_CENTRAL_DIRECTORY_RECORD_SIZE];
        let archive = ZipLocator::new()
            .max_search_space(1 << 17)
            .locate_in_reader(At(data), &mut buffer, data.len())
            .map_err(|(_, e)| refused(&e))?;
        let mut memory = limits.header_bytes / 4 * 3;
        let mut names = HashSet::new();
        let mut entries = Vec::new();
        let mut found = archive.entries(&mut buffer);
        while let Some(record) = found.next_entry().map_err(|e| refused(&e))? {
            let path_bytes = record.file_path().as_bytes();
            let name = std::str::from_utf8(path_bytes)
                .map_err(|_| malformed("an entry whose name is no text".into(), "names in UTF-8"))?
                .to_owned();
            memory = memory
                .checked_sub(4 * name.len() as u64 + RECORD)
                .filter(|_| (entries.len() as u64) < limits.tensors)
                .ok_or_else(|| malformed("a directory that is too large".into(), "what a model needs"))?;
            let in_entry = |found: String, expected: &str| {
                Error::malformed(path, Some(&name), found, expected, "Save it with numpy or torch again")
            };
            if record.flags().is_encrypted() {
                return Err(in_entry("an encrypted entry".into(), "one that is not"));
            }
            let deflated = match record.compression_method() {
                CompressionMethod::STORE => false,
                CompressionMethod::DEFLATE => true,
                other => return Err(in_entry(format!("compression {other}"), "an entry stored or deflated")),
            };
            let (bytes, crc, packed) = (record.uncompressed_size_hint(), record.crc32(), record.compressed_size_hint());
            let place = archive.get_entry(record.wayfinder()).map_err(|e| in_entry(e.to_string(), "an entry"))?;
            let (start, end) = place.compressed_data_range();
            if end > data.len() {
                return Err(in_entry(
                    format!("an end at byte {end} of a file of {}", data.len()),
                    "one within the file",
                ));
            }
            if !deflated && packed != bytes {
                return Err(in_entry(format!("{packed} bytes for a stored entry of {bytes}"), "as many"));
            }
            if !names.insert(name.clone()) {
                return Err(in_entry("a name that occurs twice".into(), "each name once"));
            }
            entries.push(Entry { name, place: start..end, bytes, deflated, crc });
        }
        let mut order: Vec<&Entry> = entries.iter().filter(|entry| !entry.place.is_empty()).collect();
        order.sort_by_key(|entry| entry.place.start);
        if let Some(pair) = order.windows(2).find(|pair| pair[0].place.end > pair[1].place.start) {
            let found = format!("the entries `{}` and `{}` in the same bytes", pair[0].name, pair[1].name);
            return Err(malformed(found, "entries that do not overlap"));
        }
        Ok(Self { path, data, entries })
    }

    /// The bytes of an entry, unpacked, from its beginning.
    pub fn reader(&self, entry: &Entry) -> Box<dyn Read + 'a> {
        let packed = Window::new(self.data, entry.place.clone());
        if entry.deflated {
            Box::new(DeflateDecoder::new(io::BufReader::with_capacity(1 << 16, packed)))
        } else {
            Box::new(packed)
        }
    }

    /// A small entry as a whole.
    ///
    /// # Errors
    /// If it is larger than `most` or its checksum is wrong.
    pub fn read(&self, entry: &Entry, most: u64) -> Result<Vec<u8>> {
        if entry.bytes > most {
            let found = format!("{} bytes", entry.bytes);
            return Err(Error::malformed(self.path, Some(&entry.name), found, format!("at most {most}"), DAMAGED));
        }
        let mut bytes = Vec::with_capacity(entry.bytes as usize);
        let mut reader = self.reader(entry).take(entry.bytes + 1);
        reader.read_to_end(&mut bytes).map_err(|e| self.broken(entry, &e))?;
        if bytes.len() as u64 != entry.bytes || crc32fast::hash(&bytes) != entry.crc {
            return Err(self.wrong_sum(entry));
        }
        Ok(bytes)
    }

    /// Hands an entry's bytes to `use_it`, and checks their sum when it has what it wants.
    pub fn summed(&self, entry: &Entry, use_it: &mut dyn FnMut(&mut dyn Read) -> Result<()>) -> Result<()> {
        let mut reader = Summed { from: self.reader(entry), sum: crc32fast::Hasher::new() }.take(entry.bytes);
        use_it(&mut reader)?;
        io::copy(&mut reader, &mut io::sink()).map_err(|e| self.broken(entry, &e))?;
        if reader.into_inner().sum.finalize() != entry.crc {
            return Err(self.wrong_sum(entry));
        }
        Ok(())
    }

    /// Unpacks all of an entry and returns its place.
    pub fn unpack(&self, entry: &Entry, unpacked: &mut Unpacked<'_>) -> Result<Range<u64>> {
        unpacked.charge(&entry.name, entry.bytes)?;
        let mut reader = Summed { from: self.reader(entry), sum: crc32fast::Hasher::new() };
        let place = unpacked.add(entry.bytes, &mut reader).map_err(|fault| match fault {
            Fault::Reading(e) => self.broken(entry, &e),
            Fault::Writing(e) => e,
        })?;
        let more = reader.from.read(&mut [0]).map_err(|e| self.broken(entry, &e))?;
        if more > 0 || reader.sum.finalize() != entry.crc {
            return Err(self.wrong_sum(entry));
        }
        Ok(place)
    }

    fn broken(&self, entry: &Entry, e: &io::Error) -> Error {
        let found = format!("compressed bytes that do not unpack to {} ({e})", entry.bytes);
        Error::malformed(self.path, Some(&entry.name), found, "a whole entry", DAMAGED)
    }

    fn wrong_sum(&self, entry: &Entry) -> Error {
        let found = "bytes that are not those that the directory describes";
        Error::malformed(self.path, Some(&entry.name), found, "the CRC-32 and the size of the directory", DAMAGED)
    }
}

struct Summed<'a> {
    from: Box<dyn Read + 'a>,
    sum: crc32fast::Hasher,
}

impl Read for Summed<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.from.read(buffer)?;
        self.sum.update(&buffer[..n]);
        Ok(n)
    }
}
