//! What a file holds compressed or in another order, as plain bytes in a temporary file that has no name.

use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::ops::Range;
use std::path::Path;

use crate::source::Data;
use crate::{Access, Error, Limits, Result};

/// Every tensor begins at a multiple of this, as the formats that are mapped have it.
const ALIGNMENT: u64 = 64;

/// A temporary file being filled. The system removes it when the last handle is closed, whatever becomes of the program.
pub(crate) struct Unpacked<'a> {
    path: &'a Path,
    /// Bytes of the file that is unpacked: places in this one follow them.
    base: u64,
    room: u64,
    out: Option<BufWriter<File>>,
    len: u64,
}

impl<'a> Unpacked<'a> {
    /// Of the file at `path`, of `file_bytes`. Nothing is created before something is added.
    pub fn new(path: &'a Path, file_bytes: u64, limits: &Limits) -> Self {
        let room = file_bytes.saturating_mul(limits.unpacked_ratio).saturating_add(limits.unpacked_bytes);
        Self { path, base: file_bytes, room, out: None, len: 0 }
    }

    /// Another one for what is not yet as it shall be, with what this one has left to spend.
    pub fn aside(&self) -> Self {
        Self { path: self.path, base: self.base, room: self.room, out: None, len: 0 }
    }

    /// Takes `bytes` from what may be unpacked.
    ///
    /// # Errors
    /// [`Error::Malformed`] if there is not so much left: the file is a bomb.
    pub fn charge(&mut self, tensor: &str, bytes: u64) -> Result<()> {
        match self.room.checked_sub(bytes) {
            Some(room) => {
                self.room = room;
                Ok(())
            }
            None => Err(Error::malformed(
                self.path,
                Some(tensor),
                format!("{bytes} bytes to unpack"),
                format!("at most {} more from a file of this size", self.room),
                "If this is no bomb, save it without compression",
            )),
        }
    }

    /// Copies `bytes` bytes, which were charged, from `from`, and returns their place.
    pub fn add(&mut self, bytes: u64, from: &mut dyn Read) -> Result<Range<u64>, Fault> {
        let start = self.len;
        let mut from = from.take(bytes);
        let mut buffer = vec![0; 1 << 16];
        loop {
            let n = from.read(&mut buffer).map_err(Fault::Reading)?;
            if n == 0 {
                break;
            }
            self.write(&buffer[..n]).map_err(Fault::Writing)?;
        }
        if self.len - start != bytes {
            return Err(Fault::Reading(io::ErrorKind::UnexpectedEof.into()));
        }
        self.place(start).map_err(Fault::Writing)
    }

    /// Appends bytes of a tensor that [`Unpacked::place`] ends.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let folder = std::env::temp_dir();
        let out = match &mut self.out {
            Some(out) => out,
            none => {
                let file = tempfile::tempfile_in(&folder).map_err(Error::io(&folder, "make a temporary file"))?;
                none.insert(BufWriter::with_capacity(1 << 16, file))
            }
        };
        out.write_all(bytes).map_err(Error::io(&folder, "unpack into a temporary file"))?;
        self.len += bytes.len() as u64;
        Ok(())
    }

    /// Where the next tensor begins.
    pub fn start(&self) -> u64 {
        self.len
    }

    /// The place of the tensor that began at `start`.
    pub fn place(&mut self, start: u64) -> Result<Range<u64>> {
        let place = self.base + start..self.base + self.len;
        let padding = self.len.next_multiple_of(ALIGNMENT) - self.len;
        if padding > 0 {
            self.write(&[0; ALIGNMENT as usize][..padding as usize])?;
        }
        Ok(place)
    }

    /// The bytes, if there are any.
    pub fn finish(self, access: Access) -> Result<Option<Data>> {
        let Some(out) = self.out else { return Ok(None) };
        let folder = std::env::temp_dir();
        let file = out.into_inner().map_err(|e| Error::io(&folder, "unpack into a temporary file")(e.into_error()))?;
        Data::of(self.path, file, access).map(Some)
    }
}

/// Which side of a copy failed.
pub(crate) enum Fault {
    /// What is unpacked.
    Reading(io::Error),
    /// Where it goes.
    Writing(Error),
}
