//! From physical tensors to logical weights: which tensors belong together, and in which encoding.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use formats::{Dtype, Source, TensorMeta};
use serde_json::Value;

use crate::dialect::onnx;
use crate::encoding::{Encoding, Foreign, PartLayout};
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
        let (rows, cols) = match shape.as_slice() {
            // A vector of blocks is a row of them.
            &[cols] if dtype.is_block() => (1, cols),
            shape => matrix(role, shape),
        };
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
    (".weight_packed", "compressed-tensors pack-quantized, in a form of its own"),
    (".weight_scale_inv", "FP8 by blocks"),
    (".SCB", "bitsandbytes int8"),
    (".weight.absmax", "bitsandbytes 4-bit"),
    (".weight._data", "quanto"),
];

/// Tensors that describe a quantized weight and were understood or are not needed, after the module's name.
const DESCRIPTIONS: &[&str] = &[
    ".weight_format",
    ".weight.quant_state.bitsandbytes__",
    ".g_idx",
    ".weight_g_idx",
    ".weight_shape",
    // Of activations, which are not quantized here.
    ".input_scale",
];

/// The tensors of all files by name.
struct Names<'a> {
    sources: &'a [Arc<Source>],
    by_name: HashMap<&'a str, TensorRef>,
    declared: Declared<'a>,
}

/// What the config says of the quantization: `quantization_config`, MLX's `quantization`, or all of `quantize_config.json`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Declared<'a>(pub Option<&'a Value>);

impl Declared<'_> {
    /// A number of a weight: that of its module, where MLX gives modules their own, else that of all.
    fn number(&self, module: &str, key: &str) -> Option<u64> {
        let all = self.0?;
        let own = all.get(module).and_then(|own| own.get(key));
        own.or_else(|| all.get(key))?.as_u64()
    }

    fn text(&self, key: &str) -> Option<&str> {
        self.0?.get(key)?.as_str()
    }
}

impl<'a> Names<'a> {
    fn new(sources: &'a [Arc<Source>], declared: Declared<'a>) -> Self {
        let mut by_name = HashMap::new();
        for (source, file) in sources.iter().enumerate() {
            for (tensor, meta) in file.tensors().iter().enumerate() {
                by_name.insert(meta.name.as_str(), TensorRef { source, tensor });
            }
        }
        Self { sources, by_name, declared }
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
        let zeros = self.by_name.contains_key(format!("{}_zero_point", this.name).as_str());
        match this.dtype {
            Dtype::I8 if self.by_name.contains_key(module(&this.name, "SCB").as_str()) => self.row_max(at),
            Dtype::I8 if !zeros => of_rows(|scale| Encoding::Int8Rows { scale }).or_else(|| self.tiles(at)),
            Dtype::F8E4M3 if this.shape.len() == 2 => {
                of_rows(|scale| Encoding::Fp8Rows { scale }).or_else(|| self.tiles(at))
            }
            Dtype::I8 | Dtype::F8E5M2 => self.tiles(at),
            Dtype::I32 => match this.name.strip_suffix("_packed") {
                Some(base) => self.packed(at, base).or_else(|| self.packed_more(at, base)),
                None => self.by_inputs(at, this.name.strip_suffix(".qweight")?),
            },
            Dtype::U32 => self.affine(at),
            Dtype::U8 => self.blocks4(at),
            _ => None,
        }
    }

    /// The tensor of a name, if it is of this type and shape.
    fn part(&self, name: &str, dtype: Dtype, shape: &[u64]) -> Option<TensorRef> {
        let at = *self.by_name.get(name)?;
        let meta = self.meta(at);
        // A vector of one and a column are the same bytes.
        let same = meta.shape == shape || shape.len() < 2 && meta.elements() == Some(shape.iter().product());
        (meta.dtype == dtype && same).then_some(at)
    }

    /// The tensor that says each input's group, if it says another one than their order does.
    ///
    /// # Errors
    /// If it names a group that there is not.
    fn order(&self, at: Option<TensorRef>, group: u64, groups: u64) -> Result<Option<TensorRef>, ()> {
        let Some(at) = at else { return Ok(None) };
        let meta = self.meta(at);
        let mut bytes = vec![0; meta.bytes().filter(|_| meta.dtype == Dtype::I32).ok_or(())? as usize];
        self.sources[at.source].read_at(at.tensor, 0, &mut bytes).map_err(|_| ())?;
        let mut numbers = bytes.as_chunks::<4>().0.iter().map(|&b| i64::from(i32::from_le_bytes(b)));
        // compressed-tensors' way to say that there is no order.
        if numbers.clone().all(|number| number == -1) {
            return Ok(None);
        }
        if !numbers.clone().all(|number| (0..groups as i64).contains(&number)) {
            return Err(());
        }
        let plain = (0..).map(|k: i64| k / group.max(1) as i64);
        Ok(plain.zip(&mut numbers).any(|(a, b)| a != b).then_some(at))
    }

    /// A weight of a form of another tool, if each of its tensors has the dtype and the shape that the form demands.
    fn of_form(&self, name: &str, rows: u64, cols: u64, form: Foreign, tensors: Vec<TensorRef>) -> Option<Weight> {
        let encoding = Encoding::Foreign(form);
        let parts = encoding.parts(name, &[rows, cols], rows, cols).ok()?;
        let fits = |(part, at): (&PartLayout, &TensorRef)| {
            let meta = self.meta(*at);
            meta.dtype == part.dtype && meta.bytes() == part.dtype.bytes_of(part.shape.iter().product())
        };
        (parts.len() == tensors.len() && parts.iter().zip(&tensors).all(fits) && cols > 0)
            .then(|| weight(name.to_owned(), vec![rows, cols], encoding, tensors))
    }

    /// GPTQ and AWQ, which both store codes by input.
    fn by_inputs(&self, at: TensorRef, base: &str) -> Option<Weight> {
        let of = |suffix: &str| self.by_name.get(format!("{base}.{suffix}").as_str()).copied();
        let (zeros, scales) = (of("qzeros")?, of("scales")?);
        let (&[lines, width], &[groups, rows]) = (self.meta(at).shape.as_slice(), self.meta(scales).shape.as_slice())
        else {
            return None;
        };
        let scale = Some(self.meta(scales).dtype).filter(|dtype| dtype.is_float())?;
        let name = format!("{base}.weight");
        if groups == 0 || rows == 0 {
            return None;
        }
        if width.checked_mul(8) == Some(rows) && self.declared.text("quant_method") != Some("gptq") {
            let encoding = Encoding::Awq { group: lines / groups };
            let cols = lines;
            self.part(&format!("{base}.qzeros"), Dtype::I32, &[groups, width])?;
            let fits =
                scale == Dtype::F16 && cols % groups == 0 && self.declared.number(base, "bits").is_none_or(|b| b == 4);
            let tensors = vec![at, zeros, scales];
            return fits.then(|| weight(name, vec![rows, cols], encoding, tensors));
        }
        let order = of("g_idx");
        let cols = order.and_then(|order| self.meta(order).elements());
        let bits = self.declared.number(base, "bits");
        let bits = bits.or_else(|| (lines * 32).checked_div(cols?)).filter(|bits| (2..=8).contains(bits))?;
        let cols = cols.or_else(|| (lines.checked_mul(32)? % bits == 0).then_some(lines * 32 / bits))?;
        let group = match self.declared.0.and_then(|all| all.get("group_size")).and_then(Value::as_i64) {
            Some(group) if group > 0 => group as u64,
            Some(_) => cols,
            None => cols.div_ceil(groups),
        };
        let order = self.order(order, group, groups).ok()?;
        let less = u8::from(self.declared.text("checkpoint_format") != Some("gptq_v2"));
        let form = Foreign::Gptq { bits: bits as u8, group, ordered: order.is_some(), less, scale };
        let tensors = [at, zeros, scales].into_iter().chain(order).collect();
        self.of_form(&name, rows, cols, form, tensors)
    }

    /// compressed-tensors' packed integers of any width, with zero points or an order.
    fn packed_more(&self, at: TensorRef, base: &str) -> Option<Weight> {
        let of = |suffix: &str| self.by_name.get(format!("{base}_{suffix}").as_str()).copied();
        let [rows, cols] = self.stored_shape(of("shape")?)?;
        let scales = self.meta(of("scale")?);
        let groups = Some(*scales.shape.last()?).filter(|&groups| groups > 0)?;
        let words = *self.meta(at).shape.last()?;
        let bits = (2..=8u64).find(|bits| cols.checked_mul(*bits).is_some_and(|all| all.div_ceil(32) == words))?;
        let zeros = of("zero_point");
        let order = self.order(of("g_idx"), cols.div_ceil(groups), groups).ok()?;
        let form = Foreign::Packed {
            bits: bits as u8,
            group: cols.div_ceil(groups),
            zeros: zeros.is_some(),
            ordered: order.is_some(),
            scale: Some(scales.dtype).filter(|dtype| dtype.is_float())?,
        };
        let tensors = [Some(at), of("scale"), zeros, order].into_iter().flatten().collect();
        self.of_form(base, rows, cols, form, tensors)
    }

    /// Codes of a byte with scales for tiles: one for all, or blocks as the config or DeepSeek's custom has them.
    fn tiles(&self, at: TensorRef) -> Option<Weight> {
        let this = self.meta(at);
        let &[rows, cols] = this.shape.as_slice() else { return None };
        let of = |suffix: &str| self.by_name.get(format!("{}{suffix}", this.name).as_str()).copied();
        let scales = of("_scale_inv").or_else(|| of("_scale"))?;
        let meta = self.meta(scales);
        let tile = match meta.shape.as_slice() {
            [] | [1] | [1, 1] => (u64::MAX, u64::MAX),
            [lines, 1] if *lines == rows => (1, u64::MAX),
            &[down, across] => [128, 64, 32, 16]
                .into_iter()
                .map(|side| (side, side))
                .find(|&(a, b)| rows.div_ceil(a) == down && cols.div_ceil(b) == across)?,
            _ => return None,
        };
        let zeros = of("_zero_point");
        let scale = Some(meta.dtype).filter(|dtype| dtype.is_float())?;
        let form = Foreign::Tiles { codes: this.dtype, tile, zeros: zeros.is_some(), scale };
        let tensors = [Some(at), Some(scales), zeros].into_iter().flatten().collect();
        if rows == 0 { None } else { self.of_form(&this.name, rows, cols, form, tensors) }
    }

    /// bitsandbytes' int8.
    fn row_max(&self, at: TensorRef) -> Option<Weight> {
        let this = self.meta(at);
        let &[rows, cols] = this.shape.as_slice() else { return None };
        let scales = self.part(&module(&this.name, "SCB"), Dtype::F32, &[rows])?;
        self.of_form(&this.name, rows, cols, Foreign::RowMax, vec![at, scales])
    }

    /// MLX's packed integers.
    fn affine(&self, at: TensorRef) -> Option<Weight> {
        let this = self.meta(at);
        let of = |suffix: &str| self.by_name.get(module(&this.name, suffix).as_str()).copied();
        let (scales, biases) = (of("scales")?, of("biases")?);
        let (&[rows, words], &[_, groups]) = (this.shape.as_slice(), self.meta(scales).shape.as_slice()) else {
            return None;
        };
        let name = this.name.strip_suffix(".weight").unwrap_or(&this.name);
        let bits = self.declared.number(name, "bits").unwrap_or(4);
        let group = self.declared.number(name, "group_size").filter(|&group| group > 0).unwrap_or(64);
        let cols = groups.checked_mul(group)?;
        if !(2..=8).contains(&bits) || cols.checked_mul(bits)?.div_ceil(32) != words {
            return None;
        }
        let scale = Some(self.meta(scales).dtype).filter(|dtype| dtype.is_float())?;
        let form = Foreign::Affine { bits: bits as u8, group, scale };
        self.of_form(&this.name, rows, cols, form, vec![at, scales, biases])
    }

    /// bitsandbytes' 4-bit types, which describe themselves in JSON.
    fn blocks4(&self, at: TensorRef) -> Option<Weight> {
        let this = self.meta(at);
        let of = |suffix: &str| self.by_name.get(format!("{}.{suffix}", this.name).as_str()).copied();
        let state = ["quant_state.bitsandbytes__nf4", "quant_state.bitsandbytes__fp4"].into_iter().find_map(of)?;
        let bytes = self.meta(state).bytes().filter(|&bytes| bytes < 1 << 16)?;
        let mut json = vec![0; bytes as usize];
        self.sources[state.source].read_at(state.tensor, 0, &mut json).ok()?;
        let state: Value = serde_json::from_slice(&json).ok()?;
        let number = |key: &str| state.get(key).and_then(Value::as_u64).filter(|&number| number > 0);
        let shape: Vec<u64> = state.get("shape")?.as_array()?.iter().map(Value::as_u64).collect::<Option<_>>()?;
        let &[rows, cols] = shape.as_slice() else { return None };
        let nested = match number("nested_blocksize") {
            Some(block) => Some((block, (state.get("nested_offset")?.as_f64()? as f32).to_bits())),
            None => None,
        };
        let dtype = match state.get("dtype").and_then(Value::as_str) {
            Some("float16") => Dtype::F16,
            Some("bfloat16") => Dtype::BF16,
            _ => Dtype::F32,
        };
        let form = Foreign::Blocks4 { block: number("blocksize")?, nested, dtype };
        let more = nested.map(|_| [of("nested_absmax"), of("nested_quant_map")]);
        let all = [Some(at), of("absmax"), of("quant_map")].into_iter().chain(more.into_iter().flatten());
        self.of_form(&this.name, rows, cols, form, all.collect::<Option<_>>()?)
    }

    /// The two numbers of a `weight_shape`.
    fn stored_shape(&self, at: TensorRef) -> Option<[u64; 2]> {
        let mut bytes = [0; 16];
        if self.meta(at).bytes() != Some(16) || self.meta(at).dtype != Dtype::I64 {
            return None;
        }
        self.sources[at.source].read_at(at.tensor, 0, &mut bytes).ok()?;
        Some([0, 8].map(|i| u64::from_le_bytes(std::array::from_fn(|j| bytes[i + j]))))
    }

    fn packed(&self, at: TensorRef, base: &str) -> Option<Weight> {
        let part = |suffix: &str| self.by_name.get(format!("{base}_{suffix}").as_str()).copied();
        if part("zero_point").is_some() || part("g_idx").is_some() {
            return None;
        }
        let (shape_at, &[rows, words]) = (part("shape")?, self.meta(at).shape.as_slice()) else { return None };
        let [first, cols] = self.stored_shape(shape_at)?;
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

/// The name of another tensor of a weight's module.
fn module(weight: &str, other: &str) -> String {
    format!("{}.{other}", weight.strip_suffix(".weight").unwrap_or(weight))
}

fn weight(name: String, shape: Vec<u64>, encoding: Encoding, tensors: Vec<TensorRef>) -> Weight {
    let role = guess(&name, &shape);
    let weight = Weight::plain(name, role, Dtype::F32, shape, tensors[0]);
    Weight { encoding, tensors, ..weight }
}

/// The weights of an ONNX file.
pub fn of_graph(weights: Vec<onnx::Stored>) -> Gathered {
    let weights = weights.into_iter().map(|stored| {
        let tensors: Vec<TensorRef> = stored.tensors.iter().map(|&tensor| TensorRef { source: 0, tensor }).collect();
        let plain = Weight::plain(stored.name, stored.role, Dtype::F32, stored.shape, tensors[0]);
        Weight { encoding: stored.encoding, tensors, transposed: stored.in_out, ..plain }
    });
    Gathered { weights: weights.collect(), foreign: None }
}

/// Groups the tensors of Hugging Face's dialect into weights.
pub fn gather(sources: &[Arc<Source>], declared: Declared<'_>) -> Gathered {
    let names = Names::new(sources, declared);
    let all = || {
        let tensors =
            |source: usize| (0..sources[source].tensors().len()).map(move |tensor| TensorRef { source, tensor });
        (0..sources.len()).flat_map(tensors)
    };
    let mut quantized: HashMap<TensorRef, Weight> = all().filter_map(|at| Some((at, names.quantized(at)?))).collect();
    let used: HashSet<TensorRef> = quantized.values().flat_map(|weight| weight.tensors.clone()).collect();
    let names_used: HashSet<String> = quantized.values().map(|weight| weight.name.clone()).collect();
    let described = |base: &str| names_used.contains(&format!("{base}.weight"));
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
        if DESCRIPTIONS.iter().any(|of| this.name.split_once(of).is_some_and(|(base, _)| described(base))) {
            continue;
        }
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
