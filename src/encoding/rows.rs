//! A weight as a matrix of numbers, whatever its encoding.

use formats::Dtype;

use super::plain::Real;

/// The rows of a logical matrix, whatever their encoding, order or place: what the runtime and the check read.
pub trait Rows: Send + Sync {
    /// Number of rows: output features of a linear weight, entries of an embedding.
    fn rows(&self) -> usize;

    /// Number of columns: input features.
    fn cols(&self) -> usize;

    /// Unpacks rows `first .. first + out.len() / cols` to f32, row after row. `out` is a whole number of rows.
    fn read(&self, first: usize, out: &mut [f32]);

    /// The matrix as it lies in memory, if its rows lie there one by one in one encoding, so that they can be multiplied
    /// without being unpacked first.
    fn stored(&self) -> Option<Stored<'_>> {
        None
    }
}

/// How a linear layer takes its inputs. What a format declares is what runs, unless the user wants another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Inputs {
    /// As they are: the weights are multiplied as floating-point numbers.
    Float,
    /// Rounded to int8, by token or by block of a token's features: the product is one of integers.
    Int8,
}

/// The rows of a matrix as they lie in memory.
#[derive(Debug, Clone, Copy)]
pub struct Stored<'a> {
    /// What the bytes mean.
    pub form: Form<'a>,
    /// Whole rows, one after the other, as they are stored.
    pub bytes: &'a [u8],
    /// Bytes of a row.
    pub row_bytes: usize,
    /// Where each row of the logical matrix is stored, if not in order.
    pub order: Option<&'a [u32]>,
    /// How the inputs are taken.
    pub inputs: Inputs,
}

impl<'a> Stored<'a> {
    /// The stored row that is row `i` of the matrix.
    pub fn position(&self, i: usize) -> usize {
        self.order.map_or(i, |order| order[i] as usize)
    }

    /// The bytes of row `i` of the matrix.
    pub fn row(&self, i: usize) -> &'a [u8] {
        &self.bytes[self.position(i) * self.row_bytes..][..self.row_bytes]
    }
}

/// What the bytes of a stored row mean.
#[derive(Debug, Clone, Copy)]
pub enum Form<'a> {
    /// Little-endian f32, f16 or bf16.
    Plain(Dtype),
    /// Blocks of a type of ggml's.
    Blocks(Dtype),
    /// int8 codes; value = code · scale of the row.
    Int8(Scales<'a>),
    /// Codes of 4 or 8 bits, the lowest first; value = (code − 2^(bits − 1)) · scale of the group.
    Packed {
        /// Bits of a code: 4 or 8.
        bits: u8,
        /// Columns that share a scale.
        group: usize,
        /// One for each group of each row.
        scales: Scales<'a>,
    },
    /// FP8 codes (E4M3); value = code · scale of the row.
    Fp8(Scales<'a>),
}

/// The scales of stored rows, in the order of these.
#[derive(Debug, Clone, Copy)]
pub struct Scales<'a> {
    /// A floating-point dtype.
    pub dtype: Dtype,
    /// `[rows, per_row]`
    pub bytes: &'a [u8],
    /// Scales of a row.
    pub per_row: usize,
}

impl Scales<'_> {
    /// The scales of stored rows from `row` on, as many as `out` has room for.
    pub fn read(&self, row: usize, out: &mut [f32]) {
        self.read_some(row, 0, out);
    }

    /// The scales of a stored row from its scale `first` on, as many as `out` has room for.
    pub fn read_some(&self, row: usize, first: usize, out: &mut [f32]) {
        let size = self.dtype.bytes_of(1).unwrap_or(0) as usize;
        let start = (row * self.per_row + first) * size;
        f32::decode(self.dtype, &self.bytes[start..][..out.len() * size], out);
    }
}
