//! Weights that nodes make of several constants: codes, scales and zero points.

use std::collections::{HashMap, HashSet};

use formats::onnx::proto::NodeProto;
use formats::onnx::proto::tensor_proto::DataType;
use formats::onnx::{Element, Graph, Model, data_type};
use formats::{Dtype, TensorMeta};

use super::read::{BLOCKED, MICROSOFT, Stored, Uses, cast_name, int};
use crate::encoding::{Codes, Encoding, Foreign, Linear, NBits, PartLayout};
use crate::family::Role;

/// The version of ONNX from which DequantizeLinear makes the float that its scales are.
pub const ANY_FLOAT: i64 = 19;
/// What the names of codes end in, after the name of the weight: ours, and those of onnxruntime's quantizers.
const SUFFIXES: [&str; 7] = ["_quantized", "_DQ_Q2", "_DQ_Q4", "_DQ_Q8", "_Q2", "_Q4", "_Q8"];

/// A constant as another float: scales, where DequantizeLinear takes only f32.
#[derive(Debug, Clone)]
pub(super) struct Converted {
    pub tensor: usize,
    /// The float that it becomes.
    pub to: Dtype,
    /// How many inputs it is.
    pub taken: usize,
}

impl Converted {
    /// The constant that a Cast takes, if its result is a float.
    pub fn by(node: &NodeProto, constants: &[Option<usize>]) -> Option<Self> {
        let (&[Some(tensor)], "Cast") = (constants, node.op_type()) else { return None };
        let number = int(node, "to", 0);
        let mut floats = [Dtype::F32, Dtype::F16, Dtype::BF16, Dtype::F64].into_iter();
        let to = floats.find(|float| data_type(*float).map(i64::from) == Some(number))?;
        Some(Self { tensor, to, taken: 0 })
    }
}

/// A node that makes a weight of constants, or a product with it.
#[derive(Debug, Clone)]
pub(super) struct Maker {
    pub node: NodeProto,
    /// Codes, scales and zero points.
    constants: [Option<usize>; 3],
    /// The name of the scales as another float, if they are taken so.
    pub converted: Option<String>,
    /// Whether an input that is there is none of the constants.
    lacks: bool,
}

impl Maker {
    /// A node whose inputs are these constants, or none; scales may be converted ones.
    pub fn new(node: &NodeProto, constants: &[Option<usize>], converted: &HashMap<String, Converted>) -> Option<Self> {
        let [codes, scales, zeros] = match (node.domain(), node.op_type()) {
            ("" | "ai.onnx", "DequantizeLinear" | "Cast") => [0, 1, 2],
            (MICROSOFT, BLOCKED) => [1, 2, 3],
            _ => return None,
        };
        let constant = |input: usize| constants.get(input).copied().flatten();
        let given = |input: usize| node.input.get(input).filter(|name| !name.is_empty());
        let other = given(scales).filter(|_| constant(scales).is_none()).and_then(|name| converted.get_key_value(name));
        let constants = [
            Some(constant(codes)?),
            constant(scales).or_else(|| other.map(|(_, scales)| scales.tensor)),
            constant(zeros),
        ];
        let lacks =
            [(scales, 1), (zeros, 2)].into_iter().any(|(input, i)| given(input).is_some() && constants[i].is_none());
        Some(Self { node: node.clone(), constants, converted: other.map(|(name, _)| name.clone()), lacks })
    }

    /// The tensor of the codes.
    pub fn codes(&self) -> Option<usize> {
        self.constants[0]
    }

    /// Whether what it makes is the weight, and not a product.
    pub fn is_value(&self) -> bool {
        matches!(self.node.op_type(), "DequantizeLinear" | "Cast")
    }

    /// The weight, if it is of a form that is read.
    pub fn weight(&self, tensors: &[TensorMeta], elements: &HashMap<usize, Element>) -> Option<Stored> {
        let output = self.node.output.first()?;
        let codes = self.codes()?;
        let meta = &tensors[codes];
        let base = SUFFIXES.iter().find_map(|suffix| meta.name.strip_suffix(suffix));
        let (name, role, shape, encoding) = match self.node.op_type() {
            "Cast" => {
                let own = meta.dtype.is_float() && meta.name == cast_name(output, meta.dtype);
                own.then(|| (output.as_str(), Role::Other, meta.shape.clone(), Encoding::Plain(meta.dtype)))?
            }
            _ if self.lacks => return None,
            BLOCKED => {
                let (shape, encoding) = self.blocks(tensors)?;
                (base.unwrap_or(&meta.name), Role::Linear, shape, encoding)
            }
            operator => {
                let element = elements.get(&codes)?;
                let (name, role) = match operator {
                    "MatMulInteger" => (base.unwrap_or(&meta.name), Role::Linear),
                    "ConvInteger" => (base.unwrap_or(&meta.name), Role::Conv),
                    _ => (base.unwrap_or(output), Role::Other),
                };
                (name, role, element.dims.clone(), self.linear(element, tensors, elements)?)
            }
        };
        let used: Vec<usize> = self.constants.iter().filter_map(|at| *at).collect();
        let count = shape.iter().try_fold(1u64, |n, &d| n.checked_mul(d)).filter(|&n| n > 0)?;
        let cols = match (encoding, shape.as_slice()) {
            (Encoding::Int8Rows { .. }, [rows, ..]) => count / rows,
            (_, shape) => shape.last().copied().unwrap_or(1),
        };
        let parts = encoding.parts(name, &shape, count / cols, cols).ok()?;
        let fits = |(part, at): (&PartLayout, &usize)| {
            let meta = &tensors[*at];
            meta.dtype == part.dtype && meta.elements() == Some(part.shape.iter().product())
        };
        let in_out = self.node.op_type() == "MatMulInteger";
        let whole = parts.len() == used.len() && parts.iter().zip(&used).all(fits);
        whole.then(|| Stored { name: name.to_owned(), role, shape, encoding, tensors: used, in_out })
    }

    /// MatMulNBits: the shape of its matrix, and how that is stored.
    fn blocks(&self, tensors: &[TensorMeta]) -> Option<(Vec<u64>, Encoding)> {
        let [_, scales, zeros] = self.constants;
        // An order of the inputs, which onnxruntime no longer takes.
        if self.node.input.get(4).is_some_and(|name| !name.is_empty()) {
            return None;
        }
        let number = |name: &str| u64::try_from(int(&self.node, name, 0)).ok().filter(|&number| number > 0);
        let (cols, rows, block) = (number("K")?, number("N")?, number("block_size")?);
        let bits = u8::try_from(int(&self.node, "bits", 4)).ok().filter(|bits| [2, 4, 8].contains(bits))?;
        let scale = Some(tensors[scales?].dtype).filter(|dtype| dtype.is_float())?;
        let zeros = zeros.map(|at| tensors[at].dtype);
        if !block.checked_mul(u64::from(bits))?.is_multiple_of(8)
            || zeros.is_some_and(|dtype| dtype != Dtype::U8 && !dtype.is_float())
        {
            return None;
        }
        let plain = Encoding::Blocked { bits, group: block, scale };
        let encoding = match bits > 2 && zeros.is_none() && plain.parts("", &[rows, cols], rows, cols).is_ok() {
            true => plain,
            false => Encoding::Foreign(Foreign::NBits(NBits { bits, block, zeros, scale })),
        };
        Some((vec![rows, cols], encoding))
    }

    /// DequantizeLinear, or the right side of a product of integers: how the weight is stored.
    fn linear(
        &self,
        element: &Element,
        tensors: &[TensorMeta],
        elements: &HashMap<usize, Element>,
    ) -> Option<Encoding> {
        let [_, scales, zeros] = self.constants;
        let (codes, dims) = (codes_of(element.data_type)?, &element.dims);
        let zeros_alike = |at| elements.get(&at).is_some_and(|zeros: &Element| zeros.data_type == element.data_type);
        let scales = &tensors[scales?];
        if !scales.dtype.is_float() || !zeros.is_none_or(zeros_alike) {
            return None;
        }
        let rank = dims.len() as i64;
        let axis = match self.node.op_type() {
            "DequantizeLinear" => int(&self.node, "axis", 1),
            "MatMulInteger" => -1,
            _ => 0,
        };
        let axis = usize::try_from(if axis < 0 { axis + rank } else { axis }).ok();
        let inner = |axis: usize| dims[axis + 1..].iter().try_fold(1u64, |n, &d| n.checked_mul(d));
        let block = u64::try_from(int(&self.node, "block_size", 0)).ok()?;
        let axis = axis.filter(|&axis| axis < dims.len());
        let is_along = |count| axis.is_some_and(|axis| dims[axis] == count);
        let (along, inner, block) = match (block, scales.shape.as_slice()) {
            (0, &[count]) if is_along(count) => (count, inner(axis?)?, None),
            (0, [] | [1]) => (1, dims.iter().try_fold(1u64, |n, &d| n.checked_mul(d))?, None),
            (0, _) => return None,
            (block, shape) => {
                let axis = axis?;
                let mut wanted = dims.clone();
                wanted[axis] = dims[axis].div_ceil(block);
                if shape != wanted {
                    return None;
                }
                (dims[axis], inner(axis)?, Some(block))
            }
        };
        if along == 0 || inner == 0 {
            return None;
        }
        let scale = scales.dtype;
        let own = codes == Codes::Int { bits: 8, signed: true } && zeros.is_none() && block.is_none();
        // Those that are written.
        let own = own && rank > 1 && is_along(along) && scales.shape.len() == 1 && self.is_value();
        Some(match axis {
            Some(0) if own => Encoding::Int8Rows { scale },
            Some(axis) if own && axis + 1 == dims.len() => Encoding::Int8Cols { scale },
            _ => {
                Encoding::Foreign(Foreign::Linear(Linear { codes, along, inner, block, zeros: zeros.is_some(), scale }))
            }
        })
    }
}

/// The codes of one of ONNX's types.
fn codes_of(data_type: i32) -> Option<Codes> {
    let int = |bits, signed| Some(Codes::Int { bits, signed });
    match DataType::try_from(data_type).ok()? {
        DataType::Int2 => int(2, true),
        DataType::Uint2 => int(2, false),
        DataType::Int4 => int(4, true),
        DataType::Uint4 => int(4, false),
        DataType::Int8 => int(8, true),
        DataType::Uint8 => int(8, false),
        DataType::Int16 => int(16, true),
        DataType::Uint16 => int(16, false),
        DataType::Int32 => int(32, true),
        DataType::Float8E4M3Fn => Some(Codes::F8E4M3),
        DataType::Float8E5M2 => Some(Codes::F8E5M2),
        _ => None,
    }
}

/// The products of integers in a graph whose sums are multiplied by a constant: MatMulInteger → Cast → Mul by another Mul,
/// one side of which is the scale of the inputs and the other that of the weight, as onnxruntime's dynamic quantization has it.
pub(super) fn products_of_integers(graph: &Graph<'_>, constant: &dyn Fn(&str) -> Option<usize>) -> Vec<Maker> {
    let nodes: Vec<NodeProto> = graph.nodes().map(|node| node.proto).collect();
    let is_integer = |node: &&NodeProto| matches!(node.op_type(), "MatMulInteger" | "ConvInteger");
    if !nodes.iter().any(|node| is_integer(&node)) {
        return Vec::new();
    }
    let mut takers: HashMap<&str, Vec<&NodeProto>> = HashMap::new();
    let mut makers: HashMap<&str, &NodeProto> = HashMap::new();
    for node in &nodes {
        node.input.iter().for_each(|name| takers.entry(name).or_default().push(node));
        makers.extend(node.output.iter().map(|name| (name.as_str(), node)));
    }
    // The one node that takes a value, if it is of this kind.
    let taker = |name: &str, operator: &str| match takers.get(name).map(Vec::as_slice) {
        Some([node]) if node.op_type() == operator => Some(*node),
        _ => None,
    };
    let scale = |node: &NodeProto| {
        let cast = taker(node.output.first()?, "Cast")?.output.first()?;
        let factor = taker(cast, "Mul")?.input.iter().find(|name| *name != cast)?;
        let factors = makers.get(factor.as_str()).filter(|node| node.op_type() == "Mul")?;
        factors.input.iter().find_map(|name| constant(name))
    };
    let products = nodes.iter().filter(is_integer).filter_map(|node| {
        let codes = constant(node.input.get(1)?)?;
        let zeros = node.input.get(3).filter(|name| !name.is_empty());
        let known = zeros.and_then(|name| constant(name));
        let lacks = zeros.is_some() && known.is_none();
        Some(Maker { node: node.clone(), constants: [Some(codes), Some(scale(node)?), known], converted: None, lacks })
    });
    products.collect()
}

/// How a graph's quantized weights come into it, for those who put floats in their place.
#[derive(Debug)]
pub struct Makings {
    by_codes: HashMap<usize, Vec<Making>>,
    /// Names of values that the graph has.
    names: HashSet<String>,
}

/// A node that takes a weight's codes.
#[derive(Debug, Clone)]
pub struct Making {
    node: NodeProto,
    /// The name of the scales as another float, which nothing else takes.
    pub converted: Option<String>,
    /// The float that it makes of them.
    pub dtype: Dtype,
}

impl Makings {
    /// Those of a model.
    pub fn of(model: &Model, tensors: &[TensorMeta]) -> Self {
        let mut by_codes: HashMap<usize, Vec<Making>> = HashMap::new();
        let uses = Uses::of(model);
        for maker in uses.makers.iter().filter(|maker| maker.is_value() || maker.node.op_type() == BLOCKED) {
            let &[Some(codes), Some(scales), _] = &maker.constants else { continue };
            let converted = maker.converted.as_ref().and_then(|name| uses.converted.get(name));
            let dtype = match maker.is_value() && model.opset() < ANY_FLOAT {
                true => Dtype::F32,
                false => converted.map_or(tensors[scales].dtype, |scales| scales.to),
            };
            let making = Making { node: maker.node.clone(), converted: maker.converted.clone(), dtype };
            by_codes.entry(codes).or_default().push(making);
        }
        let graph = model.graph();
        let names = graph.inputs().chain(graph.initializers().map(|(name, _)| name)).map(str::to_owned);
        let names = names.chain(graph.nodes().flat_map(|node| node.proto.output)).collect();
        Self { by_codes, names }
    }

    /// The nodes that take a weight's codes, if they can take a weight in floats instead.
    pub fn get(&self, codes: usize) -> Option<&[Making]> {
        self.by_codes.get(&codes).map(Vec::as_slice)
    }

    /// What a weight in floats can be called in the graph: as the weight, or if that is taken, as what is made of its codes.
    pub fn name<'a>(&'a self, weight: &'a str, codes: usize) -> &'a str {
        let outputs = self.get(codes).unwrap_or_default().iter().filter_map(|making| making.node.output.first());
        match outputs.clone().find(|output| !self.names.contains(weight) || *output == weight) {
            Some(_) => weight,
            None => outputs.map(String::as_str).next().unwrap_or(weight),
        }
    }
}

impl Making {
    /// Whether it multiplies by the matrix, inputs by outputs.
    pub fn is_product(&self) -> bool {
        self.node.op_type() == BLOCKED
    }

    /// The name of its result.
    pub fn output(&self) -> &str {
        self.node.output.first().map_or("", String::as_str)
    }

    /// The nodes that take its place, where `name` is the weight in floats.
    pub fn unpacked(&self, name: &str) -> Vec<NodeProto> {
        let output = self.output();
        if !self.is_product() {
            let same = (name != output).then(|| super::node("Identity", &[name], output, Vec::new()));
            return same.into_iter().collect();
        }
        let bias = self.node.input.get(5).filter(|name| !name.is_empty());
        let product = bias.map_or_else(|| output.to_owned(), |_| format!("{output}_product"));
        let multiply = super::node("MatMul", &[&self.node.input[0], name], &product, Vec::new());
        let sum = bias.map(|bias| super::node("Add", &[&product, bias], output, Vec::new()));
        std::iter::once(multiply).chain(sum).collect()
    }
}
