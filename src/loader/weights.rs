//! From physical tensors to logical weights: which tensors belong together, and in which encoding.

use std::collections::HashMap;
use std::sync::Arc;

use formats::{Dtype, Source};

use crate::encoding::Encoding;
use crate::family::{Role, RowOrder, guess};

/// A physical tensor: which source, and which tensor of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TensorRef {
    /// Index into the checkpoint's sources.
    pub source: usize,
    /// Index into the source's tensors.
    pub tensor: usize,
}

/// A logical weight as it is stored.
#[derive(Debug, Clone)]
pub struct Weight {
    /// The name in the Hugging Face dialect.
    pub name: String,
    /// What it is for.
    pub role: Role,
    /// The shape of its numbers.
    pub shape: Vec<u64>,
    /// Rows of the matrix that an encoding sees.
    pub rows: u64,
    /// Columns of that matrix.
    pub cols: u64,
    /// How its numbers are stored.
    pub encoding: Encoding,
    /// The physical tensors, in the order of [`Encoding::parts`].
    pub tensors: Vec<TensorRef>,
    /// How the stored rows are ordered.
    pub order: RowOrder,
    /// Whether it is stored `[in, out]` (gpt2).
    pub transposed: bool,
    /// What was added to its numbers (llama.cpp stores gemma's norms plus one).
    pub shift: f32,
}

impl Weight {
    /// A weight of one tensor, stored as it is.
    pub fn plain(name: String, role: Role, dtype: Dtype, shape: Vec<u64>, tensor: TensorRef) -> Self {
        let (rows, cols) = matrix(role, &shape);
        let encoding = Encoding::Plain(dtype);
        Self {
            name,
            role,
            shape,
            rows,
            cols,
            encoding,
            tensors: vec![tensor],
            order: RowOrder::Same,
            transposed: false,
            shift: 0.0,
        }
    }

    /// Number of values.
    pub fn elements(&self) -> u64 {
        self.rows * self.cols
    }

    /// Whether its values are numbers that the check can compare: not bytes, indices or flags.
    pub fn is_numeric(&self) -> bool {
        match self.encoding {
            Encoding::Plain(dtype) => dtype.is_float() || dtype.is_block(),
            _ => true,
        }
    }

    /// The floating-point dtype in which it is stored, if it is not quantized.
    pub fn float_dtype(&self) -> Option<Dtype> {
        match self.encoding {
            Encoding::Plain(dtype) if dtype.is_float() => Some(dtype),
            _ => None,
        }
    }
}

/// Rows and columns of a weight as a matrix: a convolution has a row for each output channel, a vector rows of one, everything
/// else a row for each line of its last dimension.
pub fn matrix(role: Role, shape: &[u64]) -> (u64, u64) {
    match (role, shape) {
        (Role::Conv, [out, rest @ ..]) => (*out, rest.iter().product()),
        (_, []) => (1, 1),
        (_, [rows]) => (*rows, 1),
        (_, [rows @ .., cols]) => (rows.iter().product(), *cols),
    }
}

/// What a set of files holds.
pub struct Gathered {
    /// The weights, in the files' order.
    pub weights: Vec<Weight>,
    /// A quantized form of another tool, which this version recognises and cannot read.
    pub foreign: Option<&'static str>,
}

/// Signs by which other tools' quantized forms are known.
const FOREIGN: &[(&str, &str)] = &[
    (".qweight", "GPTQ or AWQ"),
    (".weight_packed", "compressed-tensors pack-quantized"),
    (".weight_scale_inv", "FP8 by blocks"),
    (".SCB", "bitsandbytes int8"),
    (".weight.absmax", "bitsandbytes 4-bit"),
    (".weight._data", "quanto"),
];

/// Groups the tensors of Hugging Face's dialect into weights.
pub fn gather(sources: &[Arc<Source>]) -> Gathered {
    let mut by_name = HashMap::new();
    for (source, file) in sources.iter().enumerate() {
        for (tensor, meta) in file.tensors().iter().enumerate() {
            by_name.insert(meta.name.as_str(), TensorRef { source, tensor });
        }
    }
    let meta = |at: TensorRef| &sources[at.source].tensors()[at.tensor];
    let mut weights = Vec::new();
    let mut foreign = None;
    for (source, file) in sources.iter().enumerate() {
        for (tensor, this) in file.tensors().iter().enumerate() {
            let at = TensorRef { source, tensor };
            let name = this.name.as_str();
            let sign = FOREIGN.iter().find(|(suffix, _)| name.ends_with(suffix)).map(|(_, tool)| *tool);
            foreign = foreign.or(sign);
            let is_scale_of_int8 = name
                .strip_suffix("_scale")
                .and_then(|base| by_name.get(base))
                .is_some_and(|base| meta(*base).dtype == Dtype::I8);
            if is_scale_of_int8 {
                continue;
            }
            if this.dtype == Dtype::F8E4M3 && by_name.contains_key(format!("{name}_scale").as_str()) {
                foreign = foreign.or(Some("compressed-tensors float-quantized"));
            }
            let scale = (this.dtype == Dtype::I8).then(|| by_name.get(format!("{name}_scale").as_str())).flatten();
            let role = if this.dtype.is_float() || this.dtype.is_block() || scale.is_some() {
                guess(name, &this.shape)
            } else {
                Role::Other
            };
            let mut weight = Weight::plain(name.to_owned(), role, this.dtype, this.shape.clone(), at);
            if let Some(&scale) = scale {
                let holder = meta(scale);
                if holder.dtype.is_float() && holder.elements() == Some(weight.rows) {
                    weight.encoding = Encoding::Int8Rows { scale: holder.dtype };
                    weight.tensors.push(scale);
                } else {
                    foreign = foreign.or(Some("int8 with scales that are not one for each row"));
                }
            }
            weights.push(weight);
        }
    }
    Gathered { weights, foreign }
}
