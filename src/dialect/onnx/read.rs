//! What an ONNX graph says of its constants: what they are for, which of them are inputs by outputs, and which are codes and
//! scales of one weight; and the nodes that say so again.
//!
//! Operators are those of <https://onnx.ai/onnx/operators/> and, of onnxruntime's own, MatMulNBits.

use std::collections::{HashMap, HashSet};

use formats::onnx::proto::attribute_proto::AttributeType;
use formats::onnx::proto::{AttributeProto, NodeProto};
use formats::onnx::{Graph, Model, Node};
use formats::{Dtype, TensorMeta};

use super::made::{self, Converted, Maker};
use crate::encoding::{Encoding, Foreign};
use crate::family::{Role, guess};

/// The domain of onnxruntime's own operators.
pub const MICROSOFT: &str = "com.microsoft";
/// The operator of matrices in blocks of codes.
pub const BLOCKED: &str = "MatMulNBits";
/// What the names of stored tensors end in, after the name of the weight.
pub(super) const CODES: &str = "_quantized";
pub(super) const SCALES: &str = "_scale";
pub(super) const BLOCK_CODES: [(u8, &str); 2] = [(4, "_Q4"), (8, "_Q8")];
pub(super) const BLOCK_SCALES: &str = "_scales";

/// A weight of a graph.
#[derive(Debug, Clone, PartialEq)]
pub struct Stored {
    /// Its name: that of the initializer before it was quantized.
    pub name: String,
    /// What it is for.
    pub role: Role,
    /// The shape of its numbers.
    pub shape: Vec<u64>,
    /// How they are stored.
    pub encoding: Encoding,
    /// The source's tensors, in the order of [`Encoding::parts`].
    pub tensors: Vec<usize>,
    /// Whether it is a matrix of inputs by outputs.
    pub in_out: bool,
}

/// How a node uses a constant.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Use {
    /// The right side of MatMul, or B of Gemm as it is: inputs by outputs.
    InOut,
    /// The left side of MatMul, or B of Gemm transposed: outputs by inputs.
    OutIn,
    Conv,
    Table,
    Other,
}

/// All uses of constants, and which of them make a weight together.
#[derive(Debug, Default)]
pub(super) struct Uses {
    /// By tensor.
    uses: HashMap<usize, Vec<Use>>,
    /// Nodes that make a weight of constants.
    pub makers: Vec<Maker>,
    /// The names that stand for constants, of the graphs around first.
    scopes: Vec<HashMap<String, usize>>,
    /// Constants as another float, by the name of that.
    pub converted: HashMap<String, Converted>,
}

impl Uses {
    pub fn of(model: &Model) -> Self {
        let mut uses = Self::default();
        uses.graph(&model.graph());
        uses
    }

    fn constant(&self, name: &str) -> Option<usize> {
        self.scopes.iter().rev().find_map(|scope| scope.get(name)).copied()
    }

    fn graph(&mut self, graph: &Graph<'_>) {
        self.scopes.push(graph.initializers().map(|(name, tensor)| (name.to_owned(), tensor)).collect());
        for node in graph.nodes() {
            if let (&[tensor], Some(scope), Some(output)) =
                (node.constants.as_slice(), self.scopes.last_mut(), node.proto.output.first())
            {
                scope.insert(output.clone(), tensor);
            }
            if let ("Identity", [name], [output]) =
                (node.proto.op_type(), node.proto.input.as_slice(), node.proto.output.as_slice())
                && let (Some(tensor), Some(scope)) = (self.constant(name), self.scopes.last_mut())
            {
                // By another name it is the same constant.
                scope.insert(output.clone(), tensor);
                continue;
            }
            self.node(&node);
            node.graphs.iter().for_each(|graph| self.graph(graph));
        }
        if self.scopes.len() == 1 {
            let products = made::products_of_integers(graph, &|name| self.constant(name));
            self.makers.extend(products);
        }
        self.scopes.pop();
    }

    fn node(&mut self, node: &Node<'_>) {
        let proto = &node.proto;
        let constants: Vec<Option<usize>> = proto.input.iter().map(|name| self.constant(name)).collect();
        let top = self.scopes.len() == 1;
        for (i, tensor) in constants.iter().enumerate().filter_map(|(i, tensor)| Some((i, (*tensor)?))) {
            self.uses.entry(tensor).or_default().push(use_of(proto, i));
        }
        for name in &proto.input {
            if let Some(converted) = self.converted.get_mut(name) {
                converted.taken += 1;
            }
        }
        if !top {
            return;
        }
        self.makers.extend(Maker::new(proto, &constants, &self.converted));
        if let (Some(converted), Some(output)) = (Converted::by(proto, &constants), proto.output.first()) {
            self.converted.insert(output.clone(), converted);
        }
    }
}

fn use_of(node: &NodeProto, input: usize) -> Use {
    if !node.domain().is_empty() && node.domain() != "ai.onnx" {
        return Use::Other;
    }
    match (node.op_type(), input) {
        ("MatMul", 1) => Use::InOut,
        ("MatMul", 0) => Use::OutIn,
        ("Gemm", 1) if int(node, "transB", 0) == 0 => Use::InOut,
        ("Gemm", 1) => Use::OutIn,
        ("Conv", 1) => Use::Conv,
        ("Gather", 0) if int(node, "axis", 0) == 0 => Use::Table,
        _ => Use::Other,
    }
}

/// A number that a node is given, or what it is without.
pub fn int(node: &NodeProto, name: &str, default: i64) -> i64 {
    node.attribute
        .iter()
        .find(|attribute| attribute.name() == name)
        .and_then(|attribute| attribute.i)
        .unwrap_or(default)
}

fn float(node: &NodeProto, name: &str, default: f32) -> f32 {
    node.attribute
        .iter()
        .find(|attribute| attribute.name() == name)
        .and_then(|attribute| attribute.f)
        .unwrap_or(default)
}

/// What a constant is for: what all its uses agree in.
fn role_of(uses: &[Use], meta: &TensorMeta) -> (Role, bool) {
    let matrix = meta.shape.len() >= 2 && meta.dtype.is_float();
    let first = uses.first().copied().filter(|first| matrix && uses.iter().all(|other| other == first));
    match first {
        Some(Use::InOut) => (Role::Linear, true),
        Some(Use::OutIn) if meta.shape.len() == 2 => (Role::Linear, false),
        Some(Use::Conv) if meta.shape.len() > 2 => (Role::Conv, false),
        Some(Use::Table) if meta.shape.len() == 2 => (Role::Embedding, false),
        // A table that is multiplied by, too, has outputs for rows.
        _ if matrix && meta.shape.len() == 2 && uses.contains(&Use::Table) => (Role::Embedding, false),
        _ if meta.shape.len() < 2 && meta.dtype.is_float() => (guess(&meta.name, &meta.shape), false),
        _ => (Role::Other, false),
    }
}

/// The weights of a graph, in the order of their tensors; every tensor is part of one.
pub fn weights(model: &Model, tensors: &[TensorMeta]) -> Vec<Stored> {
    let uses = Uses::of(model);
    let mut made: HashMap<usize, Stored> = HashMap::new();
    let mut used: HashSet<usize> = HashSet::new();
    let elements = model.graph().elements().collect();
    let names: HashSet<&str> = tensors.iter().map(|meta| meta.name.as_str()).collect();
    let candidate = |maker: &Maker| {
        let scales = maker.converted.as_ref().and_then(|name| uses.converted.get(name));
        let mut stored = maker.weight(tensors, &elements).filter(|_| scales.is_none_or(|scales| scales.taken == 1))?;
        let own = &tensors[stored.tensors[0]].name;
        if stored.name != *own && names.contains(stored.name.as_str()) {
            stored.name.clone_from(own);
        }
        Some(stored)
    };
    let candidates: Vec<Stored> = uses.makers.iter().filter_map(candidate).collect();
    let mut same: HashMap<&[usize], usize> = HashMap::new();
    candidates.iter().for_each(|stored| *same.entry(&stored.tensors).or_default() += 1);
    for stored in &candidates {
        // What several nodes share stays as it is, but for what all of them multiply by.
        let shared = match stored.encoding {
            Encoding::Blocked { .. } | Encoding::Foreign(Foreign::NBits(_)) => same[stored.tensors.as_slice()],
            _ => 1,
        };
        let alone =
            |tensor: &usize| uses.uses.get(tensor).is_some_and(|uses| uses.len() == shared) && !used.contains(tensor);
        if stored.tensors.iter().all(alone) {
            used.extend(&stored.tensors);
            made.insert(stored.tensors[0], stored.clone());
        }
    }
    // What a made weight is used for is what the nodes do that take it.
    let outputs: HashMap<String, usize> = uses
        .makers
        .iter()
        .filter(|maker| maker.is_value())
        .filter_map(|maker| Some((maker.node.output.first()?.clone(), maker.codes()?)))
        .filter(|(_, first)| made.contains_key(first))
        .collect();
    let mut of_made: HashMap<usize, Vec<Use>> = HashMap::new();
    collect(&model.graph(), outputs, &mut of_made);
    for (first, stored) in &mut made {
        if let Some(uses) = of_made.get(first) {
            let meta = TensorMeta::new(stored.name.clone(), Dtype::F32, stored.shape.clone());
            (stored.role, stored.in_out) = role_of(uses, &meta);
        }
        // A scale for each of the first dimension: its numbers are rows, whatever they are for.
        if let (Encoding::Int8Rows { .. }, 3..) = (stored.encoding, stored.shape.len()) {
            stored.role = Role::Conv;
        }
    }
    let plain = |tensor: usize, meta: &TensorMeta| {
        let (role, in_out) = role_of(uses.uses.get(&tensor).map_or(&[][..], Vec::as_slice), meta);
        let (name, shape, encoding) = (meta.name.clone(), meta.shape.clone(), Encoding::Plain(meta.dtype));
        Stored { name, role, shape, encoding, tensors: vec![tensor], in_out }
    };
    let all = tensors.iter().enumerate();
    let all = all.filter_map(|(i, meta)| match (made.remove(&i), used.contains(&i)) {
        (Some(stored), _) => Some(stored),
        (None, true) => None,
        (None, false) => Some(plain(i, meta)),
    });
    all.collect()
}

/// The uses of values by name, in a graph and those within it.
fn collect(graph: &Graph<'_>, mut values: HashMap<String, usize>, uses: &mut HashMap<usize, Vec<Use>>) {
    for node in graph.nodes() {
        let proto = &node.proto;
        let first = proto.input.first().and_then(|name| values.get(name).copied());
        if let ("Cast" | "Identity", Some(first)) = (proto.op_type(), first) {
            // As another float or by another name it is the same weight.
            values.extend(proto.output.first().map(|output| (output.clone(), first)));
            continue;
        }
        for (i, name) in proto.input.iter().enumerate() {
            if let Some(first) = values.get(name) {
                uses.entry(*first).or_default().push(use_of(proto, i));
            }
        }
        node.graphs.iter().for_each(|graph| collect(graph, values.clone(), uses));
    }
}

pub(super) fn cast_name(weight: &str, dtype: Dtype) -> String {
    format!("{weight}_{}", dtype.name().to_lowercase())
}

/// What the tensors of a weight are called, in the order of its encoding's parts.
pub fn part_names(weight: &str, encoding: Encoding, dtype: Dtype) -> Vec<String> {
    match encoding {
        Encoding::Int8Rows { .. } | Encoding::Int8Cols { .. } => {
            vec![format!("{weight}{CODES}"), format!("{weight}{SCALES}")]
        }
        Encoding::Blocked { bits, .. } => {
            let suffix = BLOCK_CODES.iter().find(|(own, _)| *own == bits).map_or("", |(_, suffix)| suffix);
            vec![format!("{weight}{suffix}"), format!("{weight}{BLOCK_SCALES}")]
        }
        Encoding::Plain(stored) if stored != dtype => vec![cast_name(weight, stored)],
        _ => vec![weight.to_owned()],
    }
}

/// A node.
pub fn node(operator: &str, inputs: &[&str], output: &str, attributes: Vec<AttributeProto>) -> NodeProto {
    NodeProto {
        input: inputs.iter().map(|name| (*name).to_owned()).collect(),
        output: vec![output.to_owned()],
        name: Some(format!("{output}/{operator}")),
        op_type: Some(operator.to_owned()),
        attribute: attributes,
        ..NodeProto::default()
    }
}

/// An attribute that is a number.
pub fn number(name: &str, value: i64) -> AttributeProto {
    let kind = Some(AttributeType::Int as i32);
    AttributeProto { name: Some(name.to_owned()), r#type: kind, i: Some(value), ..AttributeProto::default() }
}

/// A node whose weight can be stored in blocks, as onnxruntime multiplies by it.
#[derive(Debug, Clone)]
pub struct Multiplication {
    node: NodeProto,
}

impl Multiplication {
    /// The name of its result.
    pub fn output(&self) -> &str {
        &self.node.output[0]
    }

    /// The nodes that multiply by codes and scales of a matrix of `rows` outputs and `cols` inputs instead.
    pub fn blocked(&self, parts: &[String], (bits, group): (u8, u64), (rows, cols): (u64, u64)) -> Vec<NodeProto> {
        let bias = self.node.input.get(2).filter(|name| !name.is_empty());
        let output = self.output();
        let product = bias.map_or_else(|| output.to_owned(), |_| format!("{output}_product"));
        let numbers = [("K", cols), ("N", rows), ("bits", u64::from(bits)), ("block_size", group)];
        let numbers = numbers.into_iter().map(|(name, value)| number(name, value as i64)).collect();
        let mut first = node(BLOCKED, &[&self.node.input[0], &parts[0], &parts[1]], &product, numbers);
        first.domain = Some(MICROSOFT.to_owned());
        first.name = self.node.name.clone();
        let sum = bias.map(|bias| node("Add", &[&product, bias], output, Vec::new()));
        std::iter::once(first).chain(sum).collect()
    }
}

/// For each constant that is a matrix by which nothing is done but multiply rows: those nodes.
pub fn multiplications(model: &Model, tensors: &[TensorMeta]) -> HashMap<usize, Vec<Multiplication>> {
    let uses = Uses::of(model);
    let by_name: HashMap<&str, usize> = tensors.iter().enumerate().map(|(i, meta)| (meta.name.as_str(), i)).collect();
    let mut all: HashMap<usize, Vec<Multiplication>> = HashMap::new();
    for node in model.graph().nodes().map(|node| node.proto) {
        let Some(&tensor) = node.input.get(1).and_then(|name| by_name.get(name.as_str())) else { continue };
        let own = node.domain().is_empty() || node.domain() == "ai.onnx";
        let plain = match node.op_type() {
            "MatMul" => true,
            "Gemm" => {
                int(&node, "transA", 0) == 0 && float(&node, "alpha", 1.0) == 1.0 && float(&node, "beta", 1.0) == 1.0
            }
            _ => false,
        };
        if own && plain && tensors[tensor].shape.len() == 2 {
            all.entry(tensor).or_default().push(Multiplication { node });
        }
    }
    // All uses are such ones, and none is in a graph within.
    for output in model.graph().outputs() {
        by_name.get(output).and_then(|tensor| all.remove(tensor));
    }
    all.retain(|tensor, nodes| uses.uses.get(tensor).is_some_and(|uses| uses.len() == nodes.len()));
    all
}

/// Operators whose meaning changed between two versions of ONNX: their inputs, or what they do without an attribute.
const CHANGED: &[(i64, &[&str])] =
    &[(12, &["Dropout"]), (13, &["Hardmax", "LogSoftmax", "ReduceSum", "Softmax", "Split", "Squeeze", "Unsqueeze"])];

/// The first operator that would mean something else if a graph of version 11 or 12 were called one of version 13.
pub fn changed(model: &Model) -> Option<String> {
    fn find(graph: &Graph<'_>, opset: i64) -> Option<String> {
        graph.nodes().find_map(|node| {
            let changes = CHANGED.iter().filter(|(version, _)| *version > opset);
            let own = node.proto.domain().is_empty();
            let found = changes.flat_map(|(_, names)| *names).find(|name| own && node.proto.op_type() == **name);
            found.map(|name| (*name).to_owned()).or_else(|| node.graphs.iter().find_map(|graph| find(graph, opset)))
        })
    }
    find(&model.graph(), model.opset())
}
