//! A weight as a matrix of numbers, whatever its encoding.

/// The rows of a logical matrix, whatever their encoding, order or place: what the runtime and the check read.
pub trait Rows: Send + Sync {
    /// Number of rows: output features of a linear weight, entries of an embedding.
    fn rows(&self) -> usize;

    /// Number of columns: input features.
    fn cols(&self) -> usize;

    /// Unpacks rows `first .. first + out.len() / cols` to f32, row after row. `out` is a whole number of rows.
    fn read(&self, first: usize, out: &mut [f32]);

    /// The whole matrix as it lies in memory, if it is f32, in order and aligned; spares a copy.
    fn as_f32(&self) -> Option<&[f32]> {
        None
    }

    /// The codes (row-major) and one scale for each row, if that is the encoding: value = code · scale.
    fn as_int8(&self) -> Option<Int8Rows<'_>> {
        None
    }
}

/// Symmetric int8 with one scale for each row.
#[derive(Debug, Clone, Copy)]
pub struct Int8Rows<'a> {
    /// `[rows, cols]`, row-major.
    pub codes: &'a [i8],
    /// `[rows]`.
    pub scales: &'a [f32],
    /// Whether the file's scheme quantizes activations too (W8A8), so that the product is one of integers.
    pub int8_activations: bool,
}
