//! Numbers that need not stay in memory.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::sync::{Mutex, PoisonError};

use formats::Error;

/// f32 numbers in a temporary file without a name, which the system removes when it is dropped. What was not written is zero
/// up to the last number that was.
#[derive(Debug)]
pub struct Spill(Mutex<File>);

impl Spill {
    /// An empty one.
    ///
    /// # Errors
    /// The folder for temporary files cannot be written.
    pub fn new() -> Result<Self, Error> {
        let folder = std::env::temp_dir();
        let file = tempfile::tempfile_in(&folder).map_err(Error::io(&folder, "make a temporary file"))?;
        Ok(Self(Mutex::new(file)))
    }

    /// Writes numbers from number `at` on.
    ///
    /// # Errors
    /// The write fails, as on a full disk.
    pub fn write(&self, at: u64, numbers: &[f32]) -> Result<(), Error> {
        let mut file = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let written = file.seek(SeekFrom::Start(4 * at)).and_then(|_| file.write_all(bytemuck::cast_slice(numbers)));
        written.map_err(Error::io(&std::env::temp_dir(), "write to a temporary file"))
    }

    /// Reads numbers from number `at` on.
    ///
    /// # Errors
    /// The read fails.
    pub fn read(&self, at: u64, numbers: &mut [f32]) -> Result<(), Error> {
        let mut file = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let read = file.seek(SeekFrom::Start(4 * at)).and_then(|_| file.read_exact(bytemuck::cast_slice_mut(numbers)));
        read.map_err(Error::io(&std::env::temp_dir(), "read from a temporary file"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read() {
        let spill = Spill::new().unwrap();
        spill.write(5, &[1.0, 2.0, 3.0]).unwrap();
        spill.write(6, &[7.0]).unwrap();
        let mut out = [9.0; 4];
        spill.read(4, &mut out).unwrap();
        assert_eq!(out, [0.0, 1.0, 7.0, 3.0]);
        assert!(spill.read(7, &mut [0.0; 2]).is_err(), "behind the end");
    }
}
