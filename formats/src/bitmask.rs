//! Tensors of which most elements are zero, in a safetensors file: a bit for each element, and those that are not zero.
//!
//! A tensor `NAME` of `n` elements is three: `NAME.sparse.mask`, U8 `[⌈n / 8⌉]`, of which bit `i mod 8` of byte `⌊i / 8⌋` says whether
//! element `i`, in row-major order, is there; `NAME.sparse.values` in its dtype, `[those that are there]`, in order; and
//! `NAME.sparse.shape`, I64 `[dimensions]`. An element is zero if all of its bits are. The file's metadata has
//! `modelpress.sparse` = `1`. Other tensors are as they always are. No other program reads such a tensor; when this one opens the
//! file, the tensors are unpacked to a temporary file without a name, so that every command works on them.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use crate::source::{Contents, Data};
use crate::unpacked::Unpacked;
use crate::{Dtype, Error, Layout, Limits, Result, Sink, Source, TensorMeta, safetensors};

/// The key that says that a file holds such tensors.
const KEY: &str = "modelpress.sparse";
/// What its value is.
const VERSION: &str = "1";
const MASK: &str = ".sparse.mask";
const VALUES: &str = ".sparse.values";
const SHAPE: &str = ".sparse.shape";
/// Bytes of a mask that are taken at a time.
const RUN: usize = 8192;
/// A tensor has at most so many dimensions.
const MOST_DIMENSIONS: u64 = 16;

/// Unpacks such tensors, if a safetensors file says that it holds some.
pub(crate) fn unpack(path: &Path, data: &Data, packed: Contents, limits: &Limits) -> Result<Contents> {
    let Some(version) = packed.metadata.get(KEY) else { return Ok(packed) };
    let wrong = |tensor: &str, found: String, expected: String| {
        Error::malformed(path, Some(tensor), found, expected, "The file is damaged; write it again")
    };
    if version != VERSION {
        return Err(wrong(KEY, format!("version {version}"), format!("version {VERSION}; use a newer modelpress")));
    }
    let by_name: HashMap<&str, usize> =
        packed.tensors.iter().enumerate().map(|(i, tensor)| (tensor.name.as_str(), i)).collect();
    let mut unpacked = Unpacked::new(path, data.len(), limits);
    let mut contents = Contents { metadata: packed.metadata.clone(), ..Contents::default() };
    contents.metadata.remove(KEY);
    for (tensor, place) in packed.tensors.iter().zip(&packed.places) {
        let of_one =
            |suffix| tensor.name.strip_suffix(suffix).filter(|name| by_name.contains_key(part(name, MASK).as_str()));
        if of_one(VALUES).is_some() || of_one(SHAPE).is_some() {
            continue;
        }
        let Some(name) = tensor.name.strip_suffix(MASK) else {
            contents.tensors.push(tensor.clone());
            contents.places.push(place.clone());
            continue;
        };
        if by_name.contains_key(name) {
            return Err(wrong(name, "the tensor twice, packed and as it is".into(), "each name once".into()));
        }
        let beside = |suffix: &str| {
            let found = by_name.get(part(name, suffix).as_str());
            found
                .copied()
                .ok_or_else(|| wrong(name, format!("no `{name}{suffix}`"), "a mask, values and a shape".into()))
        };
        let (values, shape) = (beside(VALUES)?, beside(SHAPE)?);
        let meta = &packed.tensors[shape];
        if meta.dtype != Dtype::I64 || meta.shape.len() != 1 || meta.shape[0] > MOST_DIMENSIONS {
            let expected = format!("I64 with at most {MOST_DIMENSIONS} dimensions");
            return Err(wrong(&meta.name, format!("{} {:?}", meta.dtype, meta.shape), expected));
        }
        let mut bytes = vec![0; 8 * meta.shape[0] as usize];
        data.read_at(packed.places[shape].start, &mut bytes).map_err(Error::io(path, "read"))?;
        let shape: Vec<u64> = bytes.as_chunks::<8>().0.iter().map(|b| u64::from_le_bytes(*b)).collect();
        let dense = TensorMeta::new(name, packed.tensors[values].dtype, shape);
        let width = width(dense.dtype);
        let (Some(width), Some(elements), Some(size)) = (width, dense.elements(), dense.bytes()) else {
            let found = format!("{} {:?}", dense.dtype, dense.shape);
            return Err(wrong(name, found, "elements of whole bytes, as many as can be counted".into()));
        };
        if tensor.dtype != Dtype::U8 || tensor.shape != [elements.div_ceil(8)] {
            let found = format!("a mask of {} {:?}", tensor.dtype, tensor.shape);
            return Err(wrong(name, found, format!("U8 [{}] for the shape {:?}", elements.div_ceil(8), dense.shape)));
        }
        unpacked.charge(name, size)?;
        let start = unpacked.start();
        let masked = Masked { data, mask: place.clone(), values: packed.places[values].clone(), width };
        match masked.unpack(elements, &mut |bytes| unpacked.write(bytes)) {
            Ok(true) => {}
            Ok(false) => {
                let found = format!("a mask that does not fit its {:?} values", packed.tensors[values].shape);
                return Err(wrong(name, found, "a bit for each value, and none past the last element".into()));
            }
            Err(Fault::Reading(e)) => return Err(Error::io(path, "read")(e)),
            Err(Fault::Writing(e)) => return Err(e),
        }
        contents.places.push(unpacked.place(start)?);
        contents.tensors.push(dense);
    }
    contents.unpacked = unpacked.finish(data.access())?;
    Ok(contents)
}

fn part(name: &str, suffix: &str) -> String {
    format!("{name}{suffix}")
}

/// Bytes of an element, if those are whole.
fn width(dtype: Dtype) -> Option<usize> {
    let bits = dtype.block_bits();
    (!dtype.is_block() && bits.is_multiple_of(8) && bits > 0).then_some((bits / 8) as usize)
}

enum Fault {
    Reading(std::io::Error),
    Writing(Error),
}

/// A packed tensor's bytes.
struct Masked<'a> {
    data: &'a Data,
    mask: Range<u64>,
    values: Range<u64>,
    width: usize,
}

impl Masked<'_> {
    /// Hands on the elements' bytes; `false` if mask and values do not fit each other.
    fn unpack(&self, elements: u64, write: &mut impl FnMut(&[u8]) -> Result<()>) -> Result<bool, Fault> {
        let mut at = self.values.start;
        let (mut mask, mut values) = (vec![0; RUN], Vec::new());
        let mut dense = vec![0; 8 * RUN * self.width];
        for first in (0..self.mask.end - self.mask.start).step_by(RUN) {
            let mask = &mut mask[..RUN.min((self.mask.end - self.mask.start - first) as usize)];
            self.data.read_at(self.mask.start + first, mask).map_err(Fault::Reading)?;
            let here = (elements - 8 * first).min(8 * mask.len() as u64) as usize;
            let count: usize = mask.iter().map(|byte| byte.count_ones() as usize).sum();
            let past = mask.last().is_some_and(|last| here < 8 * mask.len() && u32::from(*last) >> (here % 8) != 0);
            if past || (self.values.end - at) < (count * self.width) as u64 {
                return Ok(false);
            }
            values.resize(count * self.width, 0);
            self.data.read_at(at, &mut values).map_err(Fault::Reading)?;
            at += values.len() as u64;
            let dense = &mut dense[..here * self.width];
            let mut next = values.chunks_exact(self.width);
            for (i, element) in dense.chunks_exact_mut(self.width).enumerate() {
                match mask[i / 8] >> (i % 8) & 1 {
                    0 => element.fill(0),
                    _ => element.copy_from_slice(next.next().unwrap_or_default()),
                }
            }
            write(dense).map_err(Fault::Writing)?;
        }
        Ok(at == self.values.end)
    }
}

/// A file in which the tensors of another are packed, where that makes them smaller.
#[derive(Debug)]
pub struct Packing {
    source: Arc<Source>,
    /// Of each tensor, how many elements are not zero if it is packed.
    packed: Vec<Option<u64>>,
    /// What the file holds, in its order.
    metas: Vec<TensorMeta>,
}

impl Packing {
    /// Looks at every tensor of a safetensors file.
    ///
    /// # Errors
    /// A read that fails.
    pub fn of(source: Arc<Source>) -> Result<Self> {
        let (mut packed, mut metas) = (Vec::new(), Vec::new());
        for (at, tensor) in source.tensors().iter().enumerate() {
            let (size, elements) = (tensor.bytes().unwrap_or(0), tensor.elements().unwrap_or(0));
            let mut count = 0;
            if let Some(width) = width(tensor.dtype) {
                runs(&source, at, width, |elements| {
                    count += elements.chunks_exact(width).filter(|element| is_some(element)).count() as u64;
                    Ok(())
                })?;
            }
            let width = width(tensor.dtype).unwrap_or(0) as u64;
            let small = elements.div_ceil(8) + count * width + 8 * tensor.shape.len() as u64;
            let fits = width > 0 && small < size && tensor.shape.len() as u64 <= MOST_DIMENSIONS;
            packed.push(fits.then_some(count));
            if !fits {
                metas.push(tensor.clone());
                continue;
            }
            let name = |suffix| part(&tensor.name, suffix);
            metas.push(TensorMeta::new(name(MASK), Dtype::U8, vec![elements.div_ceil(8)]));
            metas.push(TensorMeta::new(name(VALUES), tensor.dtype, vec![count]));
            metas.push(TensorMeta::new(name(SHAPE), Dtype::I64, vec![tensor.shape.len() as u64]));
        }
        Ok(Self { source, packed, metas })
    }

    /// The layout of the file that will be called so.
    ///
    /// # Errors
    /// As [`safetensors::layout`].
    pub fn layout(&self, file: &Path) -> Result<Layout> {
        let mut metadata: BTreeMap<String, String> = self.source.metadata().clone();
        metadata.insert(KEY.to_owned(), VERSION.to_owned());
        safetensors::layout(file, &self.metas, &metadata)
    }

    /// Writes all tensors as file `file` of a sink that has this layout.
    ///
    /// # Errors
    /// A read or a write that fails.
    pub fn write(&self, sink: &Sink, file: usize) -> Result<()> {
        let mut next = 0;
        for (at, tensor) in self.source.tensors().iter().enumerate() {
            let Some(width) = width(tensor.dtype).filter(|_| self.packed[at].is_some()) else {
                let mut offset = 0;
                runs(&self.source, at, 1, |bytes| {
                    sink.write_at(file, next, offset, bytes)?;
                    offset += bytes.len() as u64;
                    Ok(())
                })?;
                next += 1;
                continue;
            };
            let (mut mask_at, mut values_at) = (0, 0);
            let (mut mask, mut values) = (Vec::new(), Vec::new());
            runs(&self.source, at, width, |elements| {
                mask.clear();
                values.clear();
                for eight in elements.chunks(8 * width) {
                    let mut bits = 0u8;
                    for (i, element) in eight.chunks_exact(width).enumerate().filter(|(_, element)| is_some(element)) {
                        bits |= 1 << i;
                        values.extend_from_slice(element);
                    }
                    mask.push(bits);
                }
                sink.write_at(file, next, mask_at, &mask)?;
                sink.write_at(file, next + 1, values_at, &values)?;
                mask_at += mask.len() as u64;
                values_at += values.len() as u64;
                Ok(())
            })?;
            let shape: Vec<u8> = tensor.shape.iter().flat_map(|d| d.to_le_bytes()).collect();
            sink.write_at(file, next + 2, 0, &shape)?;
            next += 3;
        }
        Ok(())
    }
}

fn is_some(element: &[u8]) -> bool {
    element.iter().any(|byte| *byte != 0)
}

/// Hands on a tensor's bytes, some elements at a time, eight or a multiple of eight but for the last.
fn runs(source: &Source, tensor: usize, width: usize, mut each: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
    let place = source.place(tensor);
    let (size, step) = (place.end - place.start, 8 * RUN * width);
    let mut buffer = vec![0; step.min(size as usize)];
    for offset in (0..size).step_by(step) {
        let here = step.min((size - offset) as usize);
        source.read_at(tensor, offset, &mut buffer[..here])?;
        each(&buffer[..here])?;
    }
    Ok(())
}
