//! The reader. An array as this program wants it, row-major and little-endian, is used where it lies in the file; others are
//! unpacked or put in order first.

use std::io::{self, Read};
use std::path::Path;

use super::EXTENSION;
use super::header::{self, Header};
use crate::gather::Strided;
use crate::source::{Contents, Data, Window};
use crate::unpacked::Unpacked;
use crate::zip::{Archive, Entry};
use crate::{Dtype, Error, Limits, Result, TensorMeta};

const AGAIN: &str = "Save the arrays again, as numbers, with numpy.savez";

/// An array's description, and where its bytes lie within whatever holds it.
struct Array {
    meta: TensorMeta,
    header: Header,
    /// Bytes before the data.
    preamble: u64,
    bytes: u64,
}

impl Array {
    /// Reads the preamble of an array of `all` bytes from its beginning.
    fn read(path: &Path, name: &str, all: u64, from: &mut dyn Read) -> Result<Self> {
        let malformed = |found: String, expected: String| Error::malformed(path, Some(name), found, expected, AGAIN);
        let broken = |e: io::Error| malformed(format!("a header that does not read ({e})"), "an array of numpy".into());
        let not = |found: String| malformed(found, "an array of numbers, as numpy writes it".into());
        let mut preamble = vec![0; 12];
        from.read_exact(&mut preamble).map_err(broken)?;
        let first = std::array::from_fn(|i| preamble[i]);
        let length = header::preamble(first).map_err(not)?.max(12);
        preamble.resize(length as usize, 0);
        from.read_exact(&mut preamble[12..]).map_err(broken)?;
        let header = header::parse(&preamble).map_err(not)?;
        let meta = TensorMeta::new(name, header.dtype, header.shape.clone());
        let bytes = meta.bytes().filter(|bytes| all.checked_sub(length) == Some(*bytes)).ok_or_else(|| {
            let wanted = meta.bytes().map_or("more bytes than can be counted".into(), |bytes| format!("{bytes} bytes"));
            let found = format!("{} bytes after the header", all.saturating_sub(length));
            malformed(found, format!("{wanted} for {} of shape {:?}", meta.dtype, meta.shape))
        })?;
        Ok(Self { meta, header, preamble: length, bytes })
    }

    /// How the elements have to be moved, if they have to.
    fn to_order(&self) -> Option<Strided> {
        let Header { dtype, big_endian, fortran, shape } = &self.header;
        let own = if *fortran { Strided::fortran(shape) } else { Strided::row_major(shape) };
        let item = dtype.block_bits() / 8;
        let swap = big_endian.then_some(if *dtype == Dtype::C64 { item / 2 } else { item });
        let in_order = Strided::is_contiguous(shape, &own) && !big_endian;
        (!in_order).then(|| Strided { item, swap, shape: shape.clone(), strides: own })
    }
}

/// Reads one array. Its name is the file's.
pub(crate) fn read_array(path: &Path, data: &Data, limits: &Limits) -> Result<Contents> {
    let name = path.file_stem().map_or_else(String::new, |stem| stem.to_string_lossy().into_owned());
    let mut unpacked = Unpacked::new(path, data.len(), limits);
    let mut contents = Contents::default();
    let array = Array::read(path, &name, data.len(), &mut Window::new(data, 0..data.len()))?;
    place(path, data, array, 0, &mut unpacked, &mut contents)?;
    contents.unpacked = unpacked.finish(data.access())?;
    Ok(contents)
}

/// Reads an archive of arrays.
pub(crate) fn read_archive(path: &Path, data: &Data, archive: &Archive<'_>, limits: &Limits) -> Result<Contents> {
    let mut unpacked = Unpacked::new(path, data.len(), limits);
    let mut contents = Contents::default();
    // Names and shapes are kept: what a directory's entry takes is charged already, dimensions are not.
    let mut dimensions = limits.header_bytes / 8;
    for entry in &archive.entries {
        let Some(name) = entry.name.strip_suffix(EXTENSION) else {
            return Err(Error::malformed(
                path,
                Some(&entry.name),
                "an entry that is no array",
                "names that end in .npy",
                "Save the arrays again with numpy.savez, or give the weight file itself",
            ));
        };
        let array = Array::read(path, name, entry.bytes, &mut *archive.reader(entry))?;
        dimensions = dimensions.checked_sub(array.meta.shape.len() as u64).ok_or_else(|| {
            Error::malformed(path, Some(name), "too many dimensions in all", "what a model needs", AGAIN)
        })?;
        add(path, data, archive, entry, array, &mut unpacked, &mut contents)?;
    }
    contents.unpacked = unpacked.finish(data.access())?;
    Ok(contents)
}

/// An array of an archive: where it lies if it is stored, else unpacked.
fn add(
    path: &Path,
    data: &Data,
    archive: &Archive<'_>,
    entry: &Entry,
    array: Array,
    unpacked: &mut Unpacked<'_>,
    contents: &mut Contents,
) -> Result<()> {
    if !entry.deflated {
        return place(path, data, array, entry.place.start, unpacked, contents);
    }
    if array.to_order().is_none() {
        let place = archive.unpack(entry, unpacked)?;
        contents.places.push(place.start + array.preamble..place.end);
        contents.tensors.push(array.meta);
        return Ok(());
    }
    // Both compressed and in another order: a file of its own holds what is then put in order.
    let mut first = unpacked.aside();
    let place = archive.unpack(entry, &mut first)?;
    let base = data.len();
    let Some(plain) = first.finish(data.access())? else { return Ok(()) };
    self::place(path, &plain, array, place.start - base, unpacked, contents)
}

/// An array that lies plain in `data` from `start` on.
fn place(
    path: &Path,
    data: &Data,
    array: Array,
    start: u64,
    unpacked: &mut Unpacked<'_>,
    contents: &mut Contents,
) -> Result<()> {
    let start = start + array.preamble;
    let place = match array.to_order() {
        None => start..start + array.bytes,
        Some(strided) => {
            unpacked.charge(&array.meta.name, array.bytes)?;
            let begin = unpacked.start();
            let mut read =
                |at: u64, buffer: &mut [u8]| data.read_at(start + at, buffer).map_err(Error::io(path, "read"));
            strided.gather(&mut read, &mut |bytes| unpacked.write(bytes))?;
            unpacked.place(begin)?
        }
    };
    contents.places.push(place);
    contents.tensors.push(array.meta);
    Ok(())
}
