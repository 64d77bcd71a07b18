//! Memory-mapped files. One of the two rooms in which unsafe code lives.

use std::fs::File;
use std::io;

/// Numbers that may be more than fit into memory: in a temporary file without a name, which the system writes and reads as it
/// needs the room. All zero at first.
#[derive(Debug)]
pub struct Floats(Option<memmap2::MmapMut>);

impl Floats {
    /// So many numbers.
    ///
    /// # Errors
    /// The system's folder of temporary files has no room, or cannot be written to.
    pub fn new(len: usize) -> crate::Result<Self> {
        let folder = std::env::temp_dir();
        let fail = crate::Error::io(&folder, "make a temporary file of hidden states");
        let make = || {
            let file = tempfile::tempfile_in(&folder)?;
            let bytes = len as u64 * 4;
            #[cfg(target_os = "linux")]
            rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, bytes)?;
            file.set_len(bytes)?;
            // SAFETY: the file has no name, so that no other process can shorten or change it, and this process has no other
            // map of it. Its blocks are reserved, so that writing to the map finds room.
            unsafe { memmap2::MmapMut::map_mut(&file) }
        };
        if len == 0 { Ok(Self(None)) } else { make().map(|map| Self(Some(map))).map_err(fail) }
    }
}

impl std::ops::Deref for Floats {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        // Pages are aligned for any number, and any bits are a number.
        self.0.as_ref().map_or(&[], |map| bytemuck::cast_slice(map))
    }
}

impl std::ops::DerefMut for Floats {
    fn deref_mut(&mut self) -> &mut [f32] {
        self.0.as_mut().map_or(&mut [], |map| bytemuck::cast_slice_mut(map))
    }
}

/// A read-only map of a whole file.
#[derive(Debug)]
pub struct Map(memmap2::Mmap);

impl Map {
    /// Maps `file`. An empty file maps to an empty slice.
    pub fn new(file: &File) -> io::Result<Self> {
        // SAFETY: the map is read-only and private to this process. If another process shortens the file, a read past
        // its end ends this process with SIGBUS, which loses no data: output is staged and unpublished until checked.
        // A content that changes under us is caught by comparing size and time of change before anything is published.
        let map = unsafe { memmap2::Mmap::map(file)? };
        Ok(Self(map))
    }

    /// Tells the system that the pages of `offset..offset + len` will be needed soon, so that it begins to read them.
    pub fn prefetch(&self, offset: usize, len: usize) {
        #[cfg(unix)]
        if len > 0 && offset.checked_add(len).is_some_and(|end| end <= self.0.len()) {
            // Failure only means that they are read when they are touched.
            let _ = self.0.advise_range(memmap2::Advice::WillNeed, offset, len);
        }
        #[cfg(not(unix))]
        let _ = (offset, len);
    }

    /// Tells the system that the pages of `offset..offset + len` will not be needed soon. They are read again from the
    /// file if they are touched after all.
    pub fn release(&self, offset: usize, len: usize) {
        #[cfg(unix)]
        if len > 0 && offset.checked_add(len).is_some_and(|end| end <= self.0.len()) {
            // SAFETY: the map is file-backed and read-only, so dropped pages come back unchanged from the file.
            // Failure only means that the pages stay.
            let _ = unsafe { self.0.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, offset, len) };
        }
        #[cfg(not(unix))]
        let _ = (offset, len);
    }
}

impl std::ops::Deref for Map {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.0
    }
}
