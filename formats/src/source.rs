//! An opened weight file: its tensors' descriptions and their bytes.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::SystemTime;

use crate::map::Map;
use crate::{Error, Payload, Result, TensorMeta};

/// Which container a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Hugging Face's safetensors.
    Safetensors,
    /// ggml's GGUF.
    Gguf,
    /// numpy's `.npz` archive of arrays, or one `.npy` array.
    Npz,
    /// PyTorch's checkpoints: `.pt`, `.pth`, `.bin`.
    Pytorch,
    /// ONNX: a graph and its constants.
    Onnx,
}

impl Format {
    /// The name in messages and reports.
    pub fn name(self) -> &'static str {
        match self {
            Format::Safetensors => "safetensors",
            Format::Gguf => "GGUF",
            Format::Npz => "npz",
            Format::Pytorch => "PyTorch",
            Format::Onnx => "ONNX",
        }
    }
}

/// How the bytes of a file are reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Access {
    /// Memory-mapped: no copy; the default.
    #[default]
    Mapped,
    /// Read by offset: for network file systems, where a mapped file that shrinks kills the process.
    Read,
}

/// An opened weight file. What [`Source::tensors`] says was checked against the file's size.
#[derive(Debug)]
pub struct Source {
    path: PathBuf,
    format: Format,
    tensors: Vec<TensorMeta>,
    places: Vec<Range<u64>>,
    metadata: BTreeMap<String, String>,
    payload: Payload,
    data: Data,
    unpacked: Option<Data>,
    external: Vec<Data>,
    /// Tensors that were read into memory and that somebody still holds.
    held: Mutex<HashMap<usize, Weak<Vec<u8>>>>,
}

/// What a reader finds in a file's header.
#[derive(Default)]
pub(crate) struct Contents {
    pub tensors: Vec<TensorMeta>,
    /// Byte range of each tensor in the file; one past the file's end lies in `unpacked`, counted from that end, and one past
    /// the end of that in the first of `external`, and so on.
    pub places: Vec<Range<u64>>,
    pub metadata: BTreeMap<String, String>,
    pub payload: Payload,
    /// What the file holds compressed or in another order, as tensors hold it.
    pub unpacked: Option<Data>,
    /// Other files in which tensors lie.
    pub external: Vec<Data>,
}

impl Source {
    pub(crate) fn new(path: &Path, format: Format, contents: Contents, data: Data) -> Self {
        let Contents { tensors, places, metadata, payload, unpacked, external } = contents;
        let (path, held) = (path.to_owned(), Mutex::default());
        Self { path, format, tensors, places, metadata, payload, data, unpacked, external, held }
    }

    /// The path by which the file was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The container.
    pub fn format(&self) -> Format {
        self.format
    }

    /// The tensors, in the file's order. Their index is their identity in this source.
    pub fn tensors(&self) -> &[TensorMeta] {
        &self.tensors
    }

    /// The file's string metadata (safetensors' `__metadata__`).
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// What the container carries beside tensors, for a dialect to understand.
    pub fn payload(&self) -> &Payload {
        &self.payload
    }

    /// Bytes of the whole file, and of others that hold its tensors.
    pub fn file_bytes(&self) -> u64 {
        self.data.len() + self.external.iter().map(Data::len).sum::<u64>()
    }

    /// The other files in which its tensors lie.
    pub fn external(&self) -> impl Iterator<Item = &Path> {
        self.external.iter().map(|data| data.path.as_path())
    }

    /// The byte range of a tensor in the file. What had to be unpacked or put in order, or is in another file, lies past the
    /// file's end.
    pub fn place(&self, tensor: usize) -> Range<u64> {
        self.places[tensor].clone()
    }

    /// The data in which a tensor lies, and where.
    fn locate(&self, tensor: usize) -> (&Data, Range<u64>) {
        let place = self.places[tensor].clone();
        let mut start = 0;
        for data in std::iter::once(&self.data).chain(&self.unpacked).chain(&self.external) {
            if !place.is_empty() && place.end <= start + data.len() {
                return (data, place.start - start..place.end - start);
            }
            start += data.len();
        }
        debug_assert!(place.is_empty(), "a tensor beyond all files");
        (&self.data, 0..0)
    }

    /// The bytes of a tensor, if the file is mapped.
    pub fn bytes(&self, tensor: usize) -> Option<&[u8]> {
        let (data, place) = self.locate(tensor);
        match &data.bytes {
            Bytes::Mapped(map) => Some(&map[place.start as usize..place.end as usize]),
            Bytes::File(_) => None,
        }
    }

    /// Fills `buffer` with the bytes of a tensor from `offset` within it. Works however the file was opened.
    pub fn read_at(&self, tensor: usize, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let (data, place) = self.locate(tensor);
        let start = place.start + offset;
        assert!(start + buffer.len() as u64 <= place.end, "read past the end of a tensor");
        data.read_at(start, buffer).map_err(Error::io(&self.path, "read"))
    }

    /// Tells the system that a tensor's mapped bytes will be needed soon.
    pub fn prefetch(&self, tensor: usize, range: Range<u64>) {
        let (data, place) = self.locate(tensor);
        if let Bytes::Mapped(map) = &data.bytes {
            map.prefetch((place.start + range.start) as usize, (range.end - range.start) as usize);
        }
    }

    /// Tells the system that a tensor's mapped bytes are not needed soon.
    pub fn release(&self, tensor: usize, range: Range<u64>) {
        let (data, place) = self.locate(tensor);
        data.release(place.start + range.start..place.start + range.end);
    }

    /// An error if the file's size or time of change is no longer what it was when it was opened.
    pub fn verify_unchanged(&self) -> Result<()> {
        for (path, data) in
            std::iter::once((&self.path, &self.data)).chain(self.external.iter().map(|data| (&data.path, data)))
        {
            let now = Stamp::of(&data.path).map_err(Error::io(path, "read"))?;
            if now != data.stamp {
                return Err(Error::Changed { file: path.clone() });
            }
        }
        Ok(())
    }
}

/// Size, time of change and identity of a file.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
struct Stamp {
    len: u64,
    modified: Option<SystemTime>,
    inode: u64,
}

impl Stamp {
    fn of(path: &Path) -> io::Result<Self> {
        Self::from(&std::fs::metadata(path)?)
    }

    fn from(meta: &std::fs::Metadata) -> io::Result<Self> {
        #[cfg(unix)]
        let inode = std::os::unix::fs::MetadataExt::ino(meta);
        #[cfg(not(unix))]
        let inode = 0;
        Ok(Self { len: meta.len(), modified: meta.modified().ok(), inode })
    }
}

/// The bytes of an opened file.
#[derive(Debug)]
pub(crate) struct Data {
    path: PathBuf,
    bytes: Bytes,
    stamp: Stamp,
}

#[derive(Debug)]
enum Bytes {
    Mapped(Map),
    #[cfg(unix)]
    File(File),
    #[cfg(not(unix))]
    File(std::sync::Mutex<File>),
}

impl Data {
    /// Opens a regular file. Symbolic links are followed.
    pub fn open(path: &Path, access: Access) -> Result<Self> {
        let file = File::open(path).map_err(Error::io(path, "open"))?;
        let meta = file.metadata().map_err(Error::io(path, "open"))?;
        if !meta.is_file() {
            return Err(Error::malformed(
                path,
                None,
                "something that is not a regular file",
                "a weight file",
                "Give a file or a folder with model.safetensors",
            ));
        }
        Self::of(path, file, access)
    }

    /// The bytes of a file that is open already.
    pub fn of(path: &Path, file: File, access: Access) -> Result<Self> {
        let meta = file.metadata().map_err(Error::io(path, "open"))?;
        let stamp = Stamp::from(&meta).map_err(Error::io(path, "open"))?;
        let bytes = match access {
            Access::Mapped => Bytes::Mapped(Map::new(&file).map_err(Error::io(path, "map"))?),
            #[cfg(unix)]
            Access::Read => Bytes::File(file),
            #[cfg(not(unix))]
            Access::Read => Bytes::File(std::sync::Mutex::new(file)),
        };
        Ok(Self { path: path.to_owned(), bytes, stamp })
    }

    /// How the bytes are reached.
    pub fn access(&self) -> Access {
        match self.bytes {
            Bytes::Mapped(_) => Access::Mapped,
            Bytes::File(_) => Access::Read,
        }
    }

    /// Bytes of the file.
    pub fn len(&self) -> u64 {
        self.stamp.len
    }

    /// Fills `buffer` from `offset` on.
    pub fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        match &self.bytes {
            Bytes::Mapped(map) => {
                let start = usize::try_from(offset).map_err(|_| io::ErrorKind::UnexpectedEof)?;
                let end = start.checked_add(buffer.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
                buffer.copy_from_slice(map.get(start..end).ok_or(io::ErrorKind::UnexpectedEof)?);
                Ok(())
            }
            #[cfg(unix)]
            Bytes::File(file) => std::os::unix::fs::FileExt::read_exact_at(file, buffer, offset),
            #[cfg(not(unix))]
            Bytes::File(file) => {
                use std::io::{Read, Seek, SeekFrom};
                let mut file = file.lock().map_err(|_| io::ErrorKind::Other)?;
                file.seek(SeekFrom::Start(offset))?;
                file.read_exact(buffer)
            }
        }
    }

    /// Tells the system that bytes that were read are not needed soon.
    pub fn release(&self, range: Range<u64>) {
        if let Bytes::Mapped(map) = &self.bytes {
            map.release(range.start as usize, (range.end - range.start) as usize);
        }
    }
}

/// Some bytes of a file, from front to back.
pub(crate) struct Window<'a> {
    data: &'a Data,
    left: Range<u64>,
}

impl<'a> Window<'a> {
    /// The bytes in `range`, which lies within the file.
    pub fn new(data: &'a Data, range: Range<u64>) -> Self {
        Self { data, left: range }
    }
}

impl io::Read for Window<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = (self.left.end - self.left.start).min(buffer.len() as u64);
        let read = self.left.start..self.left.start + n;
        self.data.read_at(read.start, &mut buffer[..n as usize])?;
        self.left.start = read.end;
        // What was read once is not needed again.
        self.data.release(read);
        Ok(n as usize)
    }
}

/// The bytes of one tensor, borrowed from a map or owned.
#[derive(Debug, Clone)]
pub struct TensorBytes(Holder);

#[derive(Debug, Clone)]
enum Holder {
    Mapped(Arc<Source>, usize),
    Owned(Arc<Vec<u8>>),
}

impl TensorBytes {
    /// All bytes of a tensor: borrowed if the source is mapped, read into memory otherwise, where all who hold them share them.
    pub fn load(source: &Arc<Source>, tensor: usize) -> Result<Self> {
        if source.bytes(tensor).is_some() {
            return Ok(Self(Holder::Mapped(source.clone(), tensor)));
        }
        // A panic elsewhere leaves at most an entry out of the list.
        let held = || source.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bytes) = held().get(&tensor).and_then(Weak::upgrade) {
            return Ok(Self(Holder::Owned(bytes)));
        }
        let place = source.place(tensor);
        let mut bytes = vec![0; (place.end - place.start) as usize];
        source.read_at(tensor, 0, &mut bytes)?;
        let bytes = Arc::new(bytes);
        held().insert(tensor, Arc::downgrade(&bytes));
        Ok(Self(Holder::Owned(bytes)))
    }
}

impl From<Vec<u8>> for TensorBytes {
    fn from(bytes: Vec<u8>) -> Self {
        Self(Holder::Owned(Arc::new(bytes)))
    }
}

impl std::ops::Deref for TensorBytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match &self.0 {
            Holder::Mapped(source, tensor) => source.bytes(*tensor).unwrap_or(&[]),
            Holder::Owned(bytes) => bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tensor_that_is_read_is_in_memory_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.safetensors");
        let view = safetensors::tensor::TensorView::new(safetensors::Dtype::U8, vec![3], &[1, 2, 3]).unwrap();
        std::fs::write(&path, safetensors::serialize([("a", view)], None).unwrap()).unwrap();
        let source = Arc::new(crate::open(&path, Access::Read, &crate::Limits::default()).unwrap());
        let (first, second) = (TensorBytes::load(&source, 0).unwrap(), TensorBytes::load(&source, 0).unwrap());
        assert_eq!((&*first, first.as_ptr()), (&[1u8, 2, 3][..], second.as_ptr()));
        drop((first, second));
        assert!(source.held.lock().unwrap()[&0].upgrade().is_none());
        assert_eq!(&*TensorBytes::load(&source, 0).unwrap(), &[1, 2, 3]);
    }
}
