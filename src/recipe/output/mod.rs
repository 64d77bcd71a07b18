//! What each target is made of: its tensors, its metadata, its other files.

pub mod exported;
mod from_gguf;
pub mod gguf;
pub mod huggingface;
pub mod llama_cpp;
pub mod onnx;

use std::collections::BTreeMap;

use formats::{Dtype, TensorMeta};

use super::Plan;
use crate::encoding::Encoding;
use crate::family::Role;
use crate::loader::Piece;

/// A tensor that a target wants written.
#[derive(Debug, Clone)]
pub struct Tensor {
    /// Its name in the target's dialect.
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
    /// The only dtype in which the target's readers take it, whatever a recipe asks for.
    pub only: Option<Dtype>,
    /// The float that a graph makes of it, where it is stored as codes and is to be stored as a float.
    pub made: Option<Dtype>,
    /// Index of the output file.
    pub file: usize,
}

/// What a target makes of a checkpoint.
#[derive(Debug, Clone, Default)]
pub struct Tensors {
    /// Names of the weight files.
    pub files: Vec<String>,
    /// The tensors, in the order in which they are best read.
    pub tensors: Vec<Tensor>,
    /// Tensors that the config alone determines, with their bytes.
    pub constants: Vec<(TensorMeta, Vec<u8>)>,
    /// What the target cannot hold.
    pub notes: Vec<String>,
}

/// The dtype that most values have.
fn most_values(plan: &Plan) -> Option<Dtype> {
    let mut values = BTreeMap::new();
    for step in &plan.steps {
        if let Encoding::Plain(dtype) = step.encoding {
            *values.entry(dtype).or_insert(0) += step.elements();
        }
    }
    values.into_iter().max_by_key(|(_, n)| *n).map(|(dtype, _)| dtype)
}
