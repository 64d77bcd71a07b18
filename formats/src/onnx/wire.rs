//! Protobuf's wire format: records of a number, a kind and a value, walked over without decoding what they mean.

use std::ops::Range;
use std::path::Path;

use crate::source::Data;
use crate::{Error, Result};

/// What a damaged file is told.
pub(super) const DAMAGED: &str = "The file is cut short or damaged: fetch or make it again";

/// Kinds of values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wire {
    /// A number in groups of seven bits.
    Varint,
    /// Eight bytes.
    Eight,
    /// A length and so many bytes.
    Bytes,
    /// Four bytes.
    Four,
}

/// A field of a message where it lies in the file.
#[derive(Debug, Clone)]
pub(super) struct Record {
    /// Where its tag begins.
    pub start: u64,
    pub number: u32,
    pub wire: Wire,
    /// Its value, after the length of one that has a length.
    pub value: Range<u64>,
    /// The number that a varint is.
    pub varint: u64,
}

/// A file walked over from front to back, with jumps.
pub(super) struct Cursor<'a> {
    pub path: &'a Path,
    data: &'a Data,
    /// Offset of the next byte.
    pub at: u64,
    window: Vec<u8>,
    window_at: u64,
}

/// Bytes that are fetched at once.
const WINDOW: u64 = 1 << 14;

/// Bytes of the longest varint.
const LONGEST: u32 = 10;

impl<'a> Cursor<'a> {
    pub fn new(path: &'a Path, data: &'a Data) -> Self {
        Self { path, data, at: 0, window: Vec::new(), window_at: 0 }
    }

    pub fn fault(&self, found: impl Into<String>, expected: impl Into<String>) -> Error {
        Error::malformed(self.path, None, found, expected, DAMAGED)
    }

    fn byte(&mut self, end: u64) -> Result<u8> {
        if self.at >= end {
            return Err(self.fault(format!("a message that is cut off at byte {end}"), "whole fields"));
        }
        let within = self.at.checked_sub(self.window_at).and_then(|at| self.window.get(at as usize).copied());
        let byte = match within {
            Some(byte) => byte,
            None => {
                self.window.resize((self.data.len() - self.at).min(WINDOW) as usize, 0);
                self.window_at = self.at;
                self.data.read_at(self.at, &mut self.window).map_err(Error::io(self.path, "read"))?;
                self.window[0]
            }
        };
        self.at += 1;
        Ok(byte)
    }

    /// A number before `end`.
    pub fn varint(&mut self, end: u64) -> Result<u64> {
        let start = self.at;
        let mut number = 0;
        for i in 0..LONGEST {
            let byte = self.byte(end)?;
            number |= u64::from(byte & 0x7f) << (7 * i);
            if byte < 0x80 {
                return Ok(number);
            }
        }
        Err(self.fault(format!("a number of more than {LONGEST} bytes at byte {start}"), "protobuf"))
    }

    /// The next field of a message that ends at `end`; the cursor is then at its value if that has a length, else behind it.
    pub fn next(&mut self, end: u64) -> Result<Option<Record>> {
        if self.at >= end {
            return Ok(None);
        }
        let start = self.at;
        let tag = self.varint(end)?;
        let (number, kind) = (tag >> 3, tag & 7);
        let Some(number) = u32::try_from(number).ok().filter(|number| (1..1 << 29).contains(number)) else {
            return Err(self.fault(format!("field number {number} at byte {start}"), "one of 1 to 536870911"));
        };
        let begin = self.at;
        let fixed = |wire, bytes: u64| (wire, bytes);
        let (wire, bytes) = match kind {
            0 => {
                let varint = self.varint(end)?;
                let value = begin..self.at;
                return Ok(Some(Record { start, number, wire: Wire::Varint, value, varint }));
            }
            1 => fixed(Wire::Eight, 8),
            2 => {
                let bytes = self.varint(end)?;
                fixed(Wire::Bytes, bytes)
            }
            5 => fixed(Wire::Four, 4),
            _ => return Err(self.fault(format!("wire type {kind} at byte {start}"), "0, 1, 2 or 5")),
        };
        let begin = self.at;
        match begin.checked_add(bytes).filter(|stop| *stop <= end) {
            Some(stop) => {
                if wire != Wire::Bytes {
                    self.at = stop;
                }
                Ok(Some(Record { start, number, wire, value: begin..stop, varint: 0 }))
            }
            None => Err(self.fault(
                format!("field {number} of {bytes} bytes at byte {start}, with {} bytes left", end - begin),
                "lengths within the message",
            )),
        }
    }

    /// The bytes of a range, which the caller has room for.
    pub fn bytes(&self, range: Range<u64>) -> Result<Vec<u8>> {
        let mut bytes = vec![0; (range.end - range.start) as usize];
        self.data.read_at(range.start, &mut bytes).map_err(Error::io(self.path, "read"))?;
        Ok(bytes)
    }

    /// Fills a buffer from an offset on.
    pub fn fill(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.data.read_at(offset, buffer).map_err(Error::io(self.path, "read"))
    }
}

/// The fields of a message in memory, each whole and its value alone; it ends at the first that is malformed.
pub(super) fn fields(mut message: &[u8]) -> impl Iterator<Item = (u32, &[u8], &[u8])> {
    std::iter::from_fn(move || {
        let mut rest = message;
        let tag = take(&mut rest)?;
        let bytes = match tag & 7 {
            0 => {
                let mut after = rest;
                take(&mut after)?;
                rest.len() - after.len()
            }
            1 => 8,
            2 => usize::try_from(take(&mut rest)?).ok()?,
            5 => 4,
            _ => return None,
        };
        let value = rest.get(..bytes)?;
        let whole = &message[..message.len() - rest.len() + bytes];
        message = &rest[bytes..];
        Some(((tag >> 3) as u32, whole, value))
    })
}

fn take(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for (i, byte) in bytes.iter().take(LONGEST as usize).enumerate() {
        number |= u64::from(byte & 0x7f) << (7 * i);
        if *byte < 0x80 {
            *bytes = &bytes[i + 1..];
            return Some(number);
        }
    }
    None
}

/// A varint.
pub(super) fn put(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// The head of a field with a length.
pub(super) fn head(out: &mut Vec<u8>, number: u32, bytes: u64) {
    put(out, u64::from(number) << 3 | 2);
    put(out, bytes);
}

/// A field that is a number.
pub(super) fn number(out: &mut Vec<u8>, field: u32, value: u64) {
    put(out, u64::from(field) << 3);
    put(out, value);
}

/// A field that is a text or a message.
pub(super) fn text(out: &mut Vec<u8>, field: u32, bytes: &[u8]) {
    head(out, field, bytes.len() as u64);
    out.extend_from_slice(bytes);
}
