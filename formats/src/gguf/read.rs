//! The reader. It accepts what ggml's own reader accepts, and says more when it refuses.
//!
//! A count from a file is believed only as far as the bytes that are left in the file can hold it and the limits allow
//! it; memory is charged before it is allocated.

use std::collections::HashSet;
use std::io::{self, BufReader, Read};
use std::ops::Range;
use std::path::Path;

use byteorder::{LE, ReadBytesExt};

use super::{Array, MAX_DIMS, MAX_KEY, MAX_NAME, Metadata, Value, alignment_of, kind};
use crate::source::{Contents, Data};
use crate::{Dtype, Error, Limits, Payload, Result, TensorMeta};

/// Arrays within arrays within arrays: the format does not bound it, a reader's stack must.
const MAX_DEPTH: u32 = 8;

/// What the allocator adds to a block, rounded up.
const ALLOCATION: u64 = 16;

/// What the set takes for each text that must be unique.
const SEEN: usize = 3 * size_of::<&str>();

/// Bytes of memory that a parsed header may take: what the limits allow, less some for the reader itself.
fn budget(limits: &Limits) -> u64 {
    limits.header_bytes / 8 * 7
}

/// Mapped bytes of the header that may stay in memory after they were read.
const WINDOW: u64 = 4 << 20;

/// Reads the header of a GGUF file and checks every tensor's place against the size of the file.
pub(crate) fn read(path: &Path, data: &Data, limits: &Limits) -> Result<Contents> {
    let mut header = Header::new(path, data, limits);
    let counts = header.preamble()?;
    let metadata = header.metadata(counts.entries)?;
    let alignment = alignment_of(path, &metadata)?;
    let (tensors, offsets) = header.tensors(counts.tensors)?;
    let places = places(path, &tensors, &offsets, header.at, alignment, data.len())?;
    Ok(Contents { tensors, places, payload: Payload::Gguf(metadata), ..Contents::default() })
}

struct Counts {
    tensors: u64,
    entries: u64,
}

/// What is being read, for messages.
enum Subject {
    Head,
    Key(String),
    Tensor(String),
}

/// The header of a file, read from front to back.
struct Header<'a> {
    path: &'a Path,
    bytes: BufReader<Bytes<'a>>,
    /// Offset of the next byte.
    at: u64,
    /// Bytes of the file.
    end: u64,
    limits: &'a Limits,
    /// Bytes of memory that the parsed header may still take.
    memory: u64,
    subject: Subject,
}

/// The bytes of a file, from front to back.
struct Bytes<'a> {
    data: &'a Data,
    at: u64,
    /// Where the bytes begin that were read and not yet released.
    held: u64,
}

impl Read for Bytes<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.data.len().saturating_sub(self.at)).unwrap_or(usize::MAX);
        let n = buffer.len().min(left).min(WINDOW as usize);
        self.data.read_at(self.at, &mut buffer[..n])?;
        let end = self.at + n as u64;
        if end - self.held >= WINDOW {
            self.data.release(self.held..end);
            self.held = end;
        }
        self.at = end;
        Ok(n)
    }
}

impl<'a> Header<'a> {
    fn new(path: &'a Path, data: &'a Data, limits: &'a Limits) -> Self {
        let bytes = BufReader::with_capacity(1 << 16, Bytes { data, at: 0, held: 0 });
        let memory = budget(limits);
        Self { path, bytes, at: 0, end: data.len(), limits, memory, subject: Subject::Head }
    }

    fn fault(&self, found: impl Into<String>, expected: impl Into<String>, next: impl Into<String>) -> Error {
        let found = found.into();
        match &self.subject {
            Subject::Head => Error::malformed(self.path, None, found, expected, next),
            Subject::Key(key) => {
                Error::malformed(self.path, None, format!("in metadata key `{key}` {found}"), expected, next)
            }
            Subject::Tensor(name) => Error::malformed(self.path, Some(name), found, expected, next),
        }
    }

    /// Takes `count` items of at least `size` bytes from the file, which must have that many left.
    fn claim(&mut self, count: u64, size: u64) -> Result<()> {
        let left = self.end - self.at;
        match count.checked_mul(size) {
            Some(bytes) if bytes <= left => {
                self.at += bytes;
                Ok(())
            }
            _ => {
                let found = match count {
                    1 => format!("{left} bytes left at offset {}", self.at),
                    _ => format!("a count of {count} with {left} bytes left at offset {}", self.at),
                };
                let expected = format!("{} bytes", u128::from(count) * u128::from(size));
                Err(self.fault(found, expected, "The file is cut short or damaged: fetch or make it again"))
            }
        }
    }

    /// Like [`Header::claim`], without taking the bytes: for items of which only the least size is known.
    fn expect(&mut self, count: u64, size: u64) -> Result<()> {
        let at = self.at;
        self.claim(count, size)?;
        self.at = at;
        Ok(())
    }

    /// Charges memory before it is allocated.
    fn charge(&mut self, count: u64, size: usize) -> Result<()> {
        let bytes = count.checked_mul(size as u64).and_then(|bytes| bytes.checked_add(ALLOCATION));
        match bytes.and_then(|bytes| self.memory.checked_sub(bytes)) {
            Some(left) => {
                self.memory = left;
                Ok(())
            }
            None => {
                let limit = budget(self.limits);
                Err(self.fault(
                    "a header that takes too much memory",
                    format!("at most {limit} bytes of names and metadata"),
                    "Models do not need that much: the file is damaged, or made to harm",
                ))
            }
        }
    }

    fn within(&self, what: &str, count: u64, limit: u64) -> Result<()> {
        if count <= limit {
            return Ok(());
        }
        let next = "Models do not have that many: the file is damaged, or made to harm";
        Err(self.fault(format!("{count} {what}"), format!("at most {limit}"), next))
    }

    /// One fixed-size item, read by a function of `byteorder`.
    fn item<T>(&mut self, read: impl FnOnce(&mut BufReader<Bytes<'a>>) -> io::Result<T>) -> Result<T> {
        self.claim(1, size_of::<T>() as u64)?;
        read(&mut self.bytes).map_err(Error::io(self.path, "read"))
    }

    fn u32(&mut self) -> Result<u32> {
        self.item(|bytes| bytes.read_u32::<LE>())
    }

    fn u64(&mut self) -> Result<u64> {
        self.item(|bytes| bytes.read_u64::<LE>())
    }

    /// `count` fixed-size items, read by a function of `byteorder`.
    fn items<T: Default + Clone>(
        &mut self,
        count: u64,
        read: impl FnOnce(&mut BufReader<Bytes<'a>>, &mut [T]) -> io::Result<()>,
    ) -> Result<Vec<T>> {
        self.claim(count, size_of::<T>() as u64)?;
        self.charge(count, size_of::<T>())?;
        let mut items = vec![T::default(); count as usize];
        read(&mut self.bytes, &mut items).map_err(Error::io(self.path, "read"))?;
        Ok(items)
    }

    fn string(&mut self) -> Result<String> {
        let len = self.u64()?;
        let bytes = self.items(len, |bytes, out| bytes.read_exact(out))?;
        String::from_utf8(bytes).map_err(|err| {
            let found = format!("text that is not UTF-8 at its byte {}", err.utf8_error().valid_up_to());
            self.fault(found, "UTF-8", "The file is damaged, or was written by a program that breaks the format")
        })
    }

    fn preamble(&mut self) -> Result<Counts> {
        let magic: [u8; 4] = self.item(|bytes| {
            let mut magic = [0; 4];
            bytes.read_exact(&mut magic).map(|()| magic)
        })?;
        if magic == [0; 4] {
            return Err(self.fault(
                "a header of zeros",
                "the letters GGUF",
                "The program that wrote the file was interrupted before it wrote the header: make the file again",
            ));
        }
        if magic != *b"GGUF" {
            let found = format!("the first bytes {magic:02x?}");
            return Err(self.fault(found, "the letters GGUF", "The file is not in GGUF format"));
        }
        let version = self.u32()?;
        // A small number with its bytes swapped.
        if version != 0 && version & 0xffff == 0 {
            return Err(self.fault(
                "a big-endian file",
                "a little-endian one",
                "Convert it with gguf_convert_endian.py of llama.cpp",
            ));
        }
        if !(2..=3).contains(&version) {
            let next = match version {
                1 => "Version 1 was given up in 2023: make the file again from the original model",
                _ => "Use a newer version of this program, or make the file again",
            };
            return Err(self.fault(format!("GGUF version {version}"), "version 2 or 3", next));
        }
        let (tensors, entries) = (self.u64()?, self.u64()?);
        self.within("tensors", tensors, self.limits.tensors)?;
        self.within("metadata entries", entries, self.limits.entries)?;
        Ok(Counts { tensors, entries })
    }

    fn metadata(&mut self, count: u64) -> Result<Metadata> {
        // The least entry: an empty key, a type, one byte.
        self.expect(count, 8 + 4 + 1)?;
        self.charge(count, size_of::<(String, Value)>() + SEEN)?;
        let mut entries = Vec::with_capacity(count as usize);
        for _ in 0..count {
            self.subject = Subject::Head;
            let key = self.string()?;
            if key.len() > MAX_KEY {
                let found = format!("a metadata key of {} bytes", key.len());
                let next = "The file is damaged, or made to harm";
                return Err(self.fault(found, format!("at most {MAX_KEY}"), next));
            }
            self.subject = Subject::Key(key.clone());
            let id = self.u32()?;
            let value = self.value(id)?;
            entries.push((key, value));
        }
        self.subject = Subject::Head;
        if let Some(key) = duplicate(entries.iter().map(|(key, _)| key.as_str())) {
            return Err(self.fault(
                format!("metadata key `{key}` twice"),
                "each key once",
                "The file is damaged, or was written by a program that breaks the format",
            ));
        }
        Ok(Metadata { entries })
    }

    fn value(&mut self, id: u32) -> Result<Value> {
        Ok(match id {
            kind::U8 => Value::U8(self.item(|b| b.read_u8())?),
            kind::I8 => Value::I8(self.item(|b| b.read_i8())?),
            kind::U16 => Value::U16(self.item(|b| b.read_u16::<LE>())?),
            kind::I16 => Value::I16(self.item(|b| b.read_i16::<LE>())?),
            kind::U32 => Value::U32(self.u32()?),
            kind::I32 => Value::I32(self.item(|b| b.read_i32::<LE>())?),
            kind::F32 => Value::F32(self.item(|b| b.read_f32::<LE>())?),
            kind::BOOL => {
                let byte = self.item(|b| b.read_u8())?;
                Value::Bool(self.truth(byte)?)
            }
            kind::STRING => Value::String(self.string()?),
            kind::ARRAY => Value::Array(self.array(0)?),
            kind::U64 => Value::U64(self.u64()?),
            kind::I64 => Value::I64(self.item(|b| b.read_i64::<LE>())?),
            kind::F64 => Value::F64(self.item(|b| b.read_f64::<LE>())?),
            _ => return Err(self.unknown_kind(id)),
        })
    }

    fn array(&mut self, depth: u32) -> Result<Array> {
        if depth == MAX_DEPTH {
            let found = format!("arrays nested more than {MAX_DEPTH} deep");
            return Err(self.fault(found, "fewer levels", "The file is damaged, or made to harm"));
        }
        let (id, n) = (self.u32()?, self.u64()?);
        self.within("array elements", n, self.limits.entries)?;
        Ok(match id {
            kind::U8 => Array::U8(self.items(n, |b, out| b.read_exact(out))?),
            kind::I8 => Array::I8(self.items(n, |b, out| b.read_i8_into(out))?),
            kind::U16 => Array::U16(self.items(n, |b, out| b.read_u16_into::<LE>(out))?),
            kind::I16 => Array::I16(self.items(n, |b, out| b.read_i16_into::<LE>(out))?),
            kind::U32 => Array::U32(self.items(n, |b, out| b.read_u32_into::<LE>(out))?),
            kind::I32 => Array::I32(self.items(n, |b, out| b.read_i32_into::<LE>(out))?),
            kind::F32 => Array::F32(self.items(n, |b, out| b.read_f32_into::<LE>(out))?),
            kind::BOOL => {
                let bytes: Vec<u8> = self.items(n, |b, out| b.read_exact(out))?;
                self.charge(n, 1)?;
                Array::Bool(bytes.into_iter().map(|byte| self.truth(byte)).collect::<Result<_>>()?)
            }
            kind::STRING => {
                self.expect(n, 8)?;
                self.charge(n, size_of::<String>())?;
                let mut strings = Vec::with_capacity(n as usize);
                for _ in 0..n {
                    strings.push(self.string()?);
                }
                Array::String(strings)
            }
            kind::ARRAY => {
                self.expect(n, 4 + 8)?;
                self.charge(n, size_of::<Array>())?;
                let mut arrays = Vec::with_capacity(n as usize);
                for _ in 0..n {
                    arrays.push(self.array(depth + 1)?);
                }
                Array::Array(arrays)
            }
            kind::U64 => Array::U64(self.items(n, |b, out| b.read_u64_into::<LE>(out))?),
            kind::I64 => Array::I64(self.items(n, |b, out| b.read_i64_into::<LE>(out))?),
            kind::F64 => Array::F64(self.items(n, |b, out| b.read_f64_into::<LE>(out))?),
            _ => return Err(self.unknown_kind(id)),
        })
    }

    fn truth(&self, byte: u8) -> Result<bool> {
        match byte {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(self.fault(format!("the truth value {byte}"), "0 or 1", "The file is damaged: fetch it again")),
        }
    }

    fn unknown_kind(&self, id: u32) -> Error {
        let next = "The file is damaged, or newer than this program";
        self.fault(format!("value type {id}"), "one of GGUF's types, 0 to 12", next)
    }

    /// The tensors' descriptions, and their offsets within the data.
    fn tensors(&mut self, count: u64) -> Result<(Vec<TensorMeta>, Vec<u64>)> {
        // The least entry: an empty name, no dimensions, type, offset.
        self.expect(count, 8 + 4 + 4 + 8)?;
        self.charge(count, size_of::<TensorMeta>() + size_of::<u64>() + size_of::<Range<u64>>() + SEEN)?;
        let mut tensors = Vec::with_capacity(count as usize);
        let mut offsets = Vec::with_capacity(count as usize);
        for _ in 0..count {
            let (meta, offset) = self.tensor()?;
            tensors.push(meta);
            offsets.push(offset);
        }
        self.subject = Subject::Head;
        if let Some(name) = duplicate(tensors.iter().map(|meta| meta.name.as_str())) {
            return Err(self.fault(
                format!("tensor `{name}` twice"),
                "each name once",
                "Nobody can tell which one is meant: make the file again",
            ));
        }
        Ok((tensors, offsets))
    }

    fn tensor(&mut self) -> Result<(TensorMeta, u64)> {
        self.subject = Subject::Head;
        let name = self.string()?;
        if name.len() >= MAX_NAME {
            let shown: String = name.chars().take(MAX_NAME).collect();
            let found = format!("a tensor name of {} bytes, `{shown}…`", name.len());
            let expected = format!("at most {}, which is all that ggml reads", MAX_NAME - 1);
            return Err(self.fault(found, expected, "Make the file again with shorter names"));
        }
        self.subject = Subject::Tensor(name.clone());
        let dims = self.u32()?;
        if dims > MAX_DIMS {
            let found = format!("{dims} dimensions");
            return Err(self.fault(found, format!("at most {MAX_DIMS}"), "The file is damaged: fetch it again"));
        }
        let mut shape = self.items(dims.into(), |b, out| b.read_u64_into::<LE>(out))?;
        // The file has the innermost dimension first.
        shape.reverse();
        let id = self.u32()?;
        let dtype = Dtype::from_ggml_id(id).ok_or_else(|| self.unknown_type(id))?;
        let offset = self.u64()?;
        let meta = TensorMeta { name, dtype, shape };
        if meta.elements().is_none_or(|elements| i64::try_from(elements).is_err()) {
            let found = format!("the shape {:?}", meta.shape);
            return Err(self.fault(found, "fewer than 2^63 elements", "The file is damaged: fetch it again"));
        }
        if meta.bytes().is_none() {
            let found = format!("rows of {} elements", meta.matrix().1);
            let expected = format!("a multiple of {}, the block of {dtype}", dtype.block_elements());
            return Err(self.fault(found, expected, "The file is damaged, or its writer is: make it again"));
        }
        Ok((meta, offset))
    }

    fn unknown_type(&self, id: u32) -> Error {
        let (what, next) = match id {
            4 | 5 => (" (Q4_2 or Q4_3)", "ggml gave this type up in 2023: make the file again from the original model"),
            31..=33 | 36..=38 => (
                " (a Q4_0 or IQ4_NL repacked for one kind of processor)",
                "ggml gave this type up: make the file again from the original model",
            ),
            _ => ("", "The file is damaged, or its type is newer than this program"),
        };
        self.fault(format!("ggml type {id}{what}"), "a type that this program knows", next)
    }
}

/// The first text that comes a second time.
fn duplicate<'t>(mut texts: impl ExactSizeIterator<Item = &'t str>) -> Option<&'t str> {
    let mut seen = HashSet::with_capacity(texts.len());
    texts.find(|&text| !seen.insert(text))
}

/// Each tensor's byte range in the file. ggml demands that the offsets are the running sum of padded sizes, in the order
/// of the header, and that nothing else lies between or behind.
fn places(
    path: &Path,
    tensors: &[TensorMeta],
    offsets: &[u64],
    header_end: u64,
    alignment: u64,
    file_bytes: u64,
) -> Result<Vec<Range<u64>>> {
    let too_large = |name| {
        let next = "The file is damaged: fetch it again";
        Error::malformed(path, Some(name), "a place beyond 2^64 bytes", "one inside the file", next)
    };
    let start = header_end.next_multiple_of(alignment);
    let mut at = 0u64;
    let mut places = Vec::with_capacity(tensors.len());
    for (meta, &offset) in tensors.iter().zip(offsets) {
        let name = meta.name.as_str();
        if offset != at {
            return Err(Error::malformed(
                path,
                Some(name),
                format!("its data at offset {offset}"),
                format!("offset {at}, right behind the tensor before it"),
                "The file is damaged, or its writer is: make it again",
            ));
        }
        let place = start.checked_add(at).and_then(|first| Some(first..first.checked_add(meta.bytes()?)?));
        let place = place.ok_or_else(|| too_large(name))?;
        if place.end > file_bytes {
            return Err(Error::malformed(
                path,
                Some(name),
                format!("a file of {file_bytes} bytes"),
                format!("at least {}, where the tensor ends", place.end),
                "The file is cut short: fetch or make it again",
            ));
        }
        at = place.end.checked_next_multiple_of(alignment).ok_or_else(|| too_large(name))? - start;
        places.push(place);
    }
    let end = start + at;
    if file_bytes > end {
        return Err(Error::malformed(
            path,
            None,
            format!("{} bytes behind the last tensor", file_bytes - end),
            "the end of the file",
            "Something was appended, or the header belongs to another file: fetch or make it again",
        ));
    }
    Ok(places)
}
