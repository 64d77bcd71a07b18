//! How an ecosystem spells a model: tensor names, row order, config, tokenizer. Hugging Face's dialect is the canonical one
//! inside; others are read into it and written from it.

pub mod huggingface;
pub mod llama_cpp;

use formats::TensorMeta;

use crate::family::Role;
use crate::loader::Piece;

/// A tensor that a dialect wants written.
#[derive(Debug, Clone)]
pub struct Tensor {
    /// Its name in the dialect.
    pub name: String,
    /// The weight's name in the Hugging Face dialect.
    pub canonical: String,
    /// What it is for.
    pub role: Role,
    /// Its shape.
    pub shape: Vec<u64>,
    /// Rows as a matrix.
    pub rows: u64,
    /// Columns as a matrix.
    pub cols: u64,
    /// Where its numbers come from, stacked row on row.
    pub pieces: Vec<Piece>,
    /// Index of the output file.
    pub file: usize,
}

/// What a dialect makes of a checkpoint.
#[derive(Debug, Clone, Default)]
pub struct Tensors {
    /// Names of the weight files.
    pub files: Vec<String>,
    /// The tensors, in the order in which they are best read.
    pub tensors: Vec<Tensor>,
    /// Tensors that the config alone determines, with their bytes.
    pub constants: Vec<(TensorMeta, Vec<u8>)>,
    /// What the dialect cannot hold.
    pub notes: Vec<String>,
}
