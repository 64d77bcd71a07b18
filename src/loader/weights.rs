//! From physical tensors to logical weights: which tensors belong together, and in which encoding.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use formats::{Dtype, Source, TensorMeta};

use crate::encoding::Encoding;
use crate::family::{Role, RowOrder, guess};

/// A physical tensor: which source, and which tensor of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
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
    (".weight_packed", "compressed-tensors pack-quantized, with zero points or an order of its own"),
    (".weight_scale_inv", "FP8 by blocks"),
    (".SCB", "bitsandbytes int8"),
    (".weight.absmax", "bitsandbytes 4-bit"),
    (".weight._data", "quanto"),
];

/// The tensors of all files by name.
struct Names<'a> {
    sources: &'a [Arc<Source>],
    by_name: HashMap<&'a str, TensorRef>,
}

impl<'a> Names<'a> {
    fn new(sources: &'a [Arc<Source>]) -> Self {
        let mut by_name = HashMap::new();
        for (source, file) in sources.iter().enumerate() {
            for (tensor, meta) in file.tensors().iter().enumerate() {
                by_name.insert(meta.name.as_str(), TensorRef { source, tensor });
            }
        }
        Self { sources, by_name }
    }

    fn meta(&self, at: TensorRef) -> &'a TensorMeta {
        &self.sources[at.source].tensors()[at.tensor]
    }

    /// The tensor of this name, if its scales are floats and so many.
    fn scales(&self, name: &str, count: u64) -> Option<(TensorRef, Dtype)> {
        let at = *self.by_name.get(name)?;
        let meta = self.meta(at);
        (meta.dtype.is_float() && meta.elements() == Some(count)).then_some((at, meta.dtype))
    }

    /// The quantized weight whose numbers are in the tensor at `at`, if that and its companions are of a form that can be read.
    fn quantized(&self, at: TensorRef) -> Option<Weight> {
        let this = self.meta(at);
        let (rows, _) = matrix(guess(&this.name, &this.shape), &this.shape);
        let of_rows = |make: fn(Dtype) -> Encoding| {
            let (scale, dtype) = self.scales(&format!("{}_scale", this.name), rows)?;
            Some(weight(this.name.clone(), this.shape.clone(), make(dtype), vec![at, scale]))
        };
        match this.dtype {
            Dtype::I8 => of_rows(|scale| Encoding::Int8Rows { scale }),
            Dtype::F8E4M3 if this.shape.len() == 2 => of_rows(|scale| Encoding::Fp8Rows { scale }),
            Dtype::I32 => self.packed(at, this.name.strip_suffix("_packed")?),
            _ => None,
        }
    }

    fn packed(&self, at: TensorRef, base: &str) -> Option<Weight> {
        let part = |suffix: &str| self.by_name.get(format!("{base}_{suffix}").as_str()).copied();
        if part("zero_point").is_some() || part("g_idx").is_some() {
            return None;
        }
        let (shape_at, &[rows, words]) = (part("shape")?, self.meta(at).shape.as_slice()) else { return None };
        let mut bytes = [0; 16];
        if self.meta(shape_at).bytes() != Some(16) || self.meta(shape_at).dtype != Dtype::I64 {
            return None;
        }
        self.sources[shape_at.source].read_at(shape_at.tensor, 0, &mut bytes).ok()?;
        let [first, cols] = [0, 8].map(|i| u64::from_le_bytes(std::array::from_fn(|j| bytes[i + j])));
        let groups = *self.meta(part("scale")?).shape.last()?;
        let (scale_at, scale) = self.scales(&format!("{base}_scale"), rows.checked_mul(groups)?)?;
        let fits = |bits: u64| cols.checked_mul(bits).is_some_and(|all| all.div_ceil(32) == words);
        let bits = [4u8, 8].into_iter().find(|&bits| fits(bits.into()))?;
        if first != rows || groups == 0 || cols == 0 || cols % groups != 0 {
            return None;
        }
        let encoding = Encoding::PackedInt { bits, group: cols / groups, scale };
        Some(weight(base.to_owned(), vec![rows, cols], encoding, vec![at, scale_at, shape_at]))
    }
}

fn weight(name: String, shape: Vec<u64>, encoding: Encoding, tensors: Vec<TensorRef>) -> Weight {
    let role = guess(&name, &shape);
    let weight = Weight::plain(name, role, Dtype::F32, shape, tensors[0]);
    Weight { encoding, tensors, ..weight }
}

/// Groups the tensors of Hugging Face's dialect into weights.
pub fn gather(sources: &[Arc<Source>]) -> Gathered {
    let names = Names::new(sources);
    let all = || {
        let tensors =
            |source: usize| (0..sources[source].tensors().len()).map(move |tensor| TensorRef { source, tensor });
        (0..sources.len()).flat_map(tensors)
    };
    let mut quantized: HashMap<TensorRef, Weight> = all().filter_map(|at| Some((at, names.quantized(at)?))).collect();
    let used: HashSet<TensorRef> = quantized.values().flat_map(|weight| weight.tensors.clone()).collect();
    let mut weights = Vec::new();
    let mut foreign = None;
    for at in all() {
        if let Some(weight) = quantized.remove(&at) {
            weights.push(weight);
            continue;
        }
        if used.contains(&at) {
            continue;
        }
        let this = names.meta(at);
        let sign = FOREIGN.iter().find(|(suffix, _)| this.name.ends_with(suffix)).map(|(_, tool)| *tool);
        let scaled = matches!(this.dtype, Dtype::I8 | Dtype::F8E4M3)
            && names.by_name.contains_key(format!("{}_scale", this.name).as_str());
        foreign = foreign.or(sign).or(scaled.then_some("codes with scales that are not one for each row"));
        let numbers = this.dtype.is_float() || this.dtype.is_block();
        let role = if numbers { guess(&this.name, &this.shape) } else { Role::Other };
        weights.push(Weight::plain(this.name.clone(), role, this.dtype, this.shape.clone(), at));
    }
    Gathered { weights, foreign }
}
