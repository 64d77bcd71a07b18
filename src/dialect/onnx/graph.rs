//! A graph in the making: nodes in the order in which they are computed, each value named after its place in the model.

use std::collections::HashMap;

use formats::onnx::proto::attribute_proto::AttributeType;
use formats::onnx::proto::tensor_proto::DataType;
use formats::onnx::proto::tensor_shape_proto::{Dimension, dimension};
use formats::onnx::proto::{
    AttributeProto, GraphProto, NodeProto, TensorProto, TensorShapeProto, TypeProto, ValueInfoProto, type_proto,
};

/// The domain of onnxruntime's own operators.
pub const MICROSOFT: &str = "com.microsoft";

/// A graph that grows. A value's name begins with a slash, so that none is that of a weight.
#[derive(Debug, Default)]
pub struct Graph {
    /// The version of ONNX's operators.
    pub opset: i64,
    nodes: Vec<NodeProto>,
    inputs: Vec<ValueInfoProto>,
    outputs: Vec<ValueInfoProto>,
    scope: String,
    /// How often a name was wanted.
    names: HashMap<String, usize>,
    /// Constants by type, shape and bytes.
    constants: HashMap<(i32, Vec<i64>, Vec<u8>), String>,
}

/// One axis of an input or output: a number, or a name for what differs from run to run.
#[derive(Debug, Clone, Copy)]
pub enum Dim {
    /// So many.
    Fixed(usize),
    /// Any number.
    Any(&'static str),
}

impl Graph {
    /// An empty graph of operators of this version.
    pub fn new(opset: i64) -> Self {
        Self { opset, ..Self::default() }
    }

    /// Names what follows after this place in the model.
    pub fn enter(&mut self, scope: impl Into<String>) {
        self.scope = scope.into();
    }

    /// The result of one of ONNX's operators.
    pub fn node(&mut self, op: &str, inputs: &[&str], attributes: &[AttributeProto]) -> String {
        let [output] = self.nodes_of("", op, inputs, attributes);
        output
    }

    /// The results of an operator of a domain, which has so many.
    pub fn nodes_of<const N: usize>(
        &mut self,
        domain: &str,
        op: &str,
        inputs: &[&str],
        attributes: &[AttributeProto],
    ) -> [String; N] {
        let outputs: [String; N] = std::array::from_fn(|_| self.fresh(op));
        self.nodes.push(NodeProto {
            input: inputs.iter().map(|&input| input.to_owned()).collect(),
            output: outputs.to_vec(),
            name: outputs.first().cloned(),
            op_type: Some(op.to_owned()),
            domain: Some(domain.to_owned()).filter(|domain| !domain.is_empty()),
            attribute: attributes.to_vec(),
            ..NodeProto::default()
        });
        outputs
    }

    fn fresh(&mut self, op: &str) -> String {
        let name = if self.scope.is_empty() { format!("/{op}") } else { format!("/{}/{op}", self.scope) };
        let times = self.names.entry(name.clone()).or_default();
        *times += 1;
        if *times == 1 { name } else { format!("{name}_{times}") }
    }

    /// An input of the graph.
    pub fn input(&mut self, name: &str, dtype: DataType, shape: &[Dim]) -> String {
        self.inputs.push(value(name, dtype, shape));
        name.to_owned()
    }

    /// Gives a value to the graph's user under a name.
    pub fn output(&mut self, name: &str, from: &str, shape: &[Dim]) {
        self.nodes.push(NodeProto {
            input: vec![from.to_owned()],
            output: vec![name.to_owned()],
            name: Some(format!("/{name}")),
            op_type: Some("Identity".to_owned()),
            ..NodeProto::default()
        });
        self.outputs.push(value(name, DataType::Float, shape));
    }

    /// A number.
    pub fn float(&mut self, x: f32) -> String {
        self.constant(DataType::Float, &[], x.to_le_bytes().to_vec())
    }

    /// Numbers in a shape.
    pub fn floats(&mut self, x: &[f32], shape: &[usize]) -> String {
        self.constant(DataType::Float, shape, x.iter().flat_map(|x| x.to_le_bytes()).collect())
    }

    /// A whole number.
    pub fn int(&mut self, n: i64) -> String {
        self.constant(DataType::Int64, &[], n.to_le_bytes().to_vec())
    }

    /// A vector of whole numbers.
    pub fn ints(&mut self, n: &[i64]) -> String {
        self.constant(DataType::Int64, &[n.len()], n.iter().flat_map(|n| n.to_le_bytes()).collect())
    }

    /// Constants are nodes, so that the graph's initializers are the model's tensors and nothing else.
    fn constant(&mut self, dtype: DataType, shape: &[usize], bytes: Vec<u8>) -> String {
        let dims: Vec<i64> = shape.iter().map(|&d| d as i64).collect();
        let key = (dtype as i32, dims.clone(), bytes.clone());
        if let Some(name) = self.constants.get(&key) {
            return name.clone();
        }
        let tensor =
            TensorProto { dims, data_type: Some(dtype as i32), raw_data: Some(bytes), ..TensorProto::default() };
        let scope = std::mem::take(&mut self.scope);
        let name =
            self.node("Constant", &[], &[attribute("value", AttributeType::Tensor, |a| a.t = Some(tensor.into()))]);
        self.scope = scope;
        self.constants.insert(key, name.clone());
        name
    }

    /// The value as f32.
    pub fn cast(&mut self, x: &str, to: DataType) -> String {
        self.node("Cast", &[x], &[int("to", to as i64)])
    }

    /// The value in another shape: 0 keeps a dimension, −1 is what is left.
    pub fn reshape(&mut self, x: &str, shape: &[i64]) -> String {
        let shape = self.ints(shape);
        self.node("Reshape", &[x, &shape], &[])
    }

    /// The value with axes of one.
    pub fn unsqueeze(&mut self, x: &str, axes: &[i64]) -> String {
        let axes = self.ints(axes);
        self.node("Unsqueeze", &[x, &axes], &[])
    }

    /// The value's axes in another order.
    pub fn transpose(&mut self, x: &str, order: &[i64]) -> String {
        self.node("Transpose", &[x], &[ints("perm", order)])
    }

    /// Part of the value along an axis.
    pub fn slice(&mut self, x: &str, axis: i64, range: std::ops::Range<usize>) -> String {
        let (start, end) = (self.ints(&[range.start as i64]), self.ints(&[range.end as i64]));
        let axis = self.ints(&[axis]);
        self.node("Slice", &[x, &start, &end, &axis], &[])
    }

    /// The whole graph. Its initializers are the writer's business.
    pub fn finish(self) -> GraphProto {
        GraphProto {
            node: self.nodes,
            name: Some("modelpress".to_owned()),
            input: self.inputs,
            output: self.outputs,
            ..GraphProto::default()
        }
    }
}

fn value(name: &str, dtype: DataType, shape: &[Dim]) -> ValueInfoProto {
    let dim = |dim: &Dim| Dimension {
        value: Some(match dim {
            Dim::Fixed(n) => dimension::Value::DimValue(*n as i64),
            Dim::Any(name) => dimension::Value::DimParam((*name).to_owned()),
        }),
        ..Dimension::default()
    };
    let shape = TensorShapeProto { dim: shape.iter().map(dim).collect() };
    let tensor = type_proto::Tensor { elem_type: Some(dtype as i32), shape: Some(shape) };
    ValueInfoProto {
        name: Some(name.to_owned()),
        r#type: Some(TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..TypeProto::default() }),
        ..ValueInfoProto::default()
    }
}

fn attribute(name: &str, kind: AttributeType, set: impl FnOnce(&mut AttributeProto)) -> AttributeProto {
    let mut attribute =
        AttributeProto { name: Some(name.to_owned()), r#type: Some(kind as i32), ..AttributeProto::default() };
    set(&mut attribute);
    attribute
}

/// A whole number that belongs to a node.
pub fn int(name: &str, n: i64) -> AttributeProto {
    attribute(name, AttributeType::Int, |a| a.i = Some(n))
}

/// Whole numbers that belong to a node.
pub fn ints(name: &str, n: &[i64]) -> AttributeProto {
    attribute(name, AttributeType::Ints, |a| a.ints = n.to_vec())
}

/// A number that belongs to a node.
pub fn float(name: &str, x: f32) -> AttributeProto {
    attribute(name, AttributeType::Float, |a| a.f = Some(x))
}

/// A text that belongs to a node.
pub fn text(name: &str, text: &str) -> AttributeProto {
    attribute(name, AttributeType::String, |a| a.s = Some(text.as_bytes().to_vec()))
}
