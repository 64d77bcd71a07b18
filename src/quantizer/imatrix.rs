//! llama.cpp's importance matrix: for each weight the mean square of every input that met it.

use std::collections::BTreeMap;

use formats::gguf::{Array, Value};
use formats::{Dtype, Error, Payload, Source, TensorMeta};

/// What the names of the two tensors of an entry add to the weight's.
const SUMS: &str = ".in_sum2";
const COUNTS: &str = ".counts";

/// What to do about a file that is not what it should be.
const NEXT: &str = "Make it again with llama-imatrix";

/// An importance matrix, by the names of GGUF tensors.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Imatrix {
    entries: BTreeMap<String, Vec<f32>>,
    /// The texts from which it was made.
    pub datasets: Vec<String>,
    /// Number of chunks of text.
    pub chunks: u64,
}

/// The importance of a tensor's columns, for each expert.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Importance<'a> {
    values: &'a [f32],
    cols: usize,
}

impl<'a> Importance<'a> {
    /// A weight for each column of an expert's matrix. A tensor that is a single matrix is expert 0.
    pub fn columns(&self, expert: usize) -> &'a [f32] {
        &self.values[expert * self.cols..][..self.cols]
    }
}

impl Imatrix {
    /// Reads the GGUF file that llama-imatrix writes: `NAME.in_sum2`, sums of squares, over `NAME.counts`, both f32. Where
    /// nothing was counted (an expert that no token chose) all columns weigh 1.
    ///
    /// # Errors
    /// [`Error::Malformed`] if the file is not an importance matrix, an entry lacks one of its tensors or holds something
    /// that is not finite; [`Error::Io`] if it cannot be read.
    pub fn read(source: &Source) -> Result<Self, Error> {
        let metadata = match source.payload() {
            Payload::Gguf(metadata) if metadata.get_u64("imatrix.chunk_count").is_some() => metadata,
            _ => return Err(malformed(source, None, "a file of weights", "llama.cpp's importance matrix in GGUF")),
        };
        let datasets = match metadata.get("imatrix.datasets") {
            Some(Value::Array(Array::String(datasets))) => datasets.clone(),
            _ => Vec::new(),
        };
        let tensors = source.tensors();
        let place = |name: &str| tensors.iter().position(|meta| meta.name == name);
        let mut entries = BTreeMap::new();
        for (i, meta) in tensors.iter().enumerate() {
            let Some(name) = meta.name.strip_suffix(SUMS) else { continue };
            let counts = place(&format!("{name}{COUNTS}"))
                .ok_or_else(|| malformed(source, Some(name), "sums without counts", "both"))?;
            entries.insert(name.to_owned(), means(source, name, i, counts)?);
        }
        if entries.is_empty() {
            return Err(malformed(source, None, "no entries", "one for each weight"));
        }
        Ok(Self { entries, datasets, chunks: metadata.get_u64("imatrix.chunk_count").unwrap_or_default() })
    }

    /// Number of weights that have an entry.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether it has no entry.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The importance of a tensor's columns, if it has an entry. The token embedding's is not used if it does not fit: it is
    /// looked up, so its inputs are no numbers.
    ///
    /// # Errors
    /// [`Mismatch`] if the entry has another number of columns or experts than the tensor.
    pub fn get(&self, tensor: &TensorMeta) -> Result<Option<Importance<'_>>, Mismatch> {
        let Some(values) = self.entries.get(&tensor.name) else { return Ok(None) };
        let cols = tensor.shape.last().copied().unwrap_or(1);
        let experts = tensor.shape.iter().rev().nth(2).copied().unwrap_or(1);
        let expected = cols.saturating_mul(experts);
        if values.len() as u64 == expected {
            return Ok(Some(Importance { values, cols: cols as usize }));
        }
        if tensor.name.ends_with("token_embd.weight") {
            return Ok(None);
        }
        Err(Mismatch { tensor: tensor.name.clone(), found: values.len() as u64, expected })
    }
}

/// An importance matrix that was made for another model.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "tensor `{tensor}`: found an importance matrix of {found} columns, expected {expected}. Make it again with \
     llama-imatrix from this model"
)]
pub struct Mismatch {
    /// The tensor.
    pub tensor: String,
    /// Columns that the entry has, of all experts together.
    pub found: u64,
    /// Columns that the tensor has.
    pub expected: u64,
}

/// The sums of an entry divided by its counts, of which there is one for each expert.
fn means(source: &Source, name: &str, sums: usize, counts: usize) -> Result<Vec<f32>, Error> {
    let mut values = numbers(source, name, sums)?;
    let counts = numbers(source, name, counts)?;
    if counts.is_empty() || !values.len().is_multiple_of(counts.len()) {
        let found = format!("{} sums and {} counts", values.len(), counts.len());
        return Err(malformed(source, Some(name), &found, "a count for each expert"));
    }
    let cols = values.len() / counts.len();
    for (values, count) in values.chunks_mut(cols.max(1)).zip(counts) {
        let count = count.round();
        for value in values {
            *value = if count > 0.0 { *value / count } else { 1.0 };
        }
    }
    match values.iter().all(|value| value.is_finite()) {
        true => Ok(values),
        false => Err(malformed(source, Some(name), "a value that is NaN or infinite", "finite values")),
    }
}

/// A tensor's numbers, which are f32.
fn numbers(source: &Source, name: &str, tensor: usize) -> Result<Vec<f32>, Error> {
    let dtype = source.tensors()[tensor].dtype;
    if dtype != Dtype::F32 {
        return Err(malformed(source, Some(name), &format!("{dtype}"), "F32"));
    }
    let place = source.place(tensor);
    let mut bytes = vec![0; (place.end - place.start) as usize];
    source.read_at(tensor, 0, &mut bytes)?;
    Ok(bytes.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect())
}

fn malformed(source: &Source, entry: Option<&str>, found: &str, expected: &str) -> Error {
    Error::malformed(source.path(), entry, found, expected, NEXT)
}
