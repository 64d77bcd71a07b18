//! A graph without the numbers of its constants, as the dialect reads it and the writer writes it again: what is not
//! understood stays in it as the bytes that it was.

use std::collections::HashSet;

use std::collections::BTreeMap;

use prost::Message as _;

use super::proto::{ModelProto, NodeProto, OperatorSetIdProto, StringStringEntryProto};
use super::wire;

/// Numbers of fields, as `onnx.proto` has them.
pub(super) mod field {
    pub const MODEL_IR_VERSION: u32 = 1;
    pub const MODEL_GRAPH: u32 = 7;
    pub const MODEL_OPSET: u32 = 8;
    pub const MODEL_METADATA: u32 = 14;
    pub const MODEL_TRAINING: u32 = 20;
    pub const MODEL_FUNCTION: u32 = 25;
    pub const GRAPH_NODE: u32 = 1;
    pub const GRAPH_INITIALIZER: u32 = 5;
    pub const GRAPH_INPUT: u32 = 11;
    pub const GRAPH_OUTPUT: u32 = 12;
    pub const NODE_OUTPUT: u32 = 2;
    pub const NODE_NAME: u32 = 3;
    pub const NODE_OP: u32 = 4;
    pub const NODE_ATTRIBUTE: u32 = 5;
    pub const ATTRIBUTE_NAME: u32 = 1;
    pub const ATTRIBUTE_TENSOR: u32 = 5;
    pub const ATTRIBUTE_GRAPH: u32 = 6;
    pub const ATTRIBUTE_GRAPHS: u32 = 11;
    pub const FUNCTION_NAME: u32 = 1;
    pub const TENSOR_DIMS: u32 = 1;
    pub const TENSOR_TYPE: u32 = 2;
    pub const TENSOR_SEGMENT: u32 = 3;
    pub const TENSOR_NAME: u32 = 8;
    pub const TENSOR_RAW: u32 = 9;
    pub const TENSOR_EXTERNAL: u32 = 13;
    pub const TENSOR_LOCATION: u32 = 14;
}

/// An opened model's graph.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Model {
    pub(super) fields: Vec<Field>,
    /// Whether any constant lies in another file.
    pub(super) external: bool,
}

/// A field of a message.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Field {
    pub number: u32,
    pub content: Content,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Content {
    /// The whole field, tag included, as the file has it.
    Raw(Vec<u8>),
    /// A message that graphs or constants are in.
    Message(Vec<Field>),
    /// A constant whose numbers are a tensor of the source.
    Constant(Box<Constant>),
}

/// A `TensorProto` without its numbers.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Constant {
    /// Which of the source's tensors.
    pub tensor: usize,
    pub data_type: i32,
    pub dims: Vec<u64>,
    /// All other fields, the name included.
    pub rest: Vec<u8>,
}

impl Constant {
    fn name(&self) -> &str {
        let name = wire::fields(&self.rest).filter(|(number, ..)| *number == field::TENSOR_NAME).last();
        name.and_then(|(_, _, name)| str::from_utf8(name).ok()).unwrap_or_default()
    }
}

/// What a constant's numbers are in the file. A source's tensor says the same, but where several are in a byte.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Element {
    /// ONNX's number for their type.
    pub data_type: i32,
    /// The constant's shape.
    pub dims: Vec<u64>,
}

/// Attributes of a node up to this size are decoded: all that are numbers and names.
const ATTRIBUTE_BYTES: usize = 1 << 12;

impl Field {
    fn is(&self, number: u32) -> bool {
        self.number == number
    }

    /// The value of a field that is there as bytes.
    pub fn value(&self) -> Option<&[u8]> {
        let Content::Raw(whole) = &self.content else { return None };
        Some(wire::fields(whole).next()?.2)
    }
}

/// A graph: the model's, or one within a node of another.
#[derive(Debug, Clone, Copy)]
pub struct Graph<'a> {
    fields: &'a [Field],
}

/// A node of a graph.
#[derive(Debug, Clone)]
pub struct Node<'a> {
    /// What it says of itself, without graphs, tensors and long attributes.
    pub proto: NodeProto,
    /// The graphs within it.
    pub graphs: Vec<Graph<'a>>,
    /// Its attributes that are constants: tensors of the source.
    pub constants: Vec<usize>,
}

impl Model {
    /// A new model. What its nodes hold stays in them; it has no initializers.
    pub fn new(model: &ModelProto) -> Self {
        let whole = |number, whole: &[u8]| Field { number, content: Content::Raw(whole.to_vec()) };
        let bytes = model.encode_to_vec();
        let fields = wire::fields(&bytes).map(|(number, field, value)| match number {
            field::MODEL_GRAPH => {
                let within = wire::fields(value).map(|(number, field, _)| whole(number, field)).collect();
                Field { number, content: Content::Message(within) }
            }
            _ => whole(number, field),
        });
        Self { fields: fields.collect(), external: false }
    }

    /// The version of ONNX's own operators, 0 if none is said.
    pub fn opset(&self) -> i64 {
        self.opset_of("")
    }

    /// The version of a domain's operators, 0 if none is said. ONNX's own are those of the empty name.
    pub fn opset_of(&self, domain: &str) -> i64 {
        let own = |name: &str| name.is_empty() || name == "ai.onnx";
        self.fields
            .iter()
            .filter(|field| field.is(field::MODEL_OPSET))
            .filter_map(|field| OperatorSetIdProto::decode(field.value()?).ok())
            .filter(|set| set.domain() == domain || own(domain) && own(set.domain()))
            .map(|set| set.version())
            .max()
            .unwrap_or(0)
    }

    /// The version of the file's format.
    pub fn ir_version(&self) -> i64 {
        let field = self.fields.iter().rfind(|field| field.is(field::MODEL_IR_VERSION));
        let value = field.and_then(Field::value).unwrap_or_default();
        value.iter().enumerate().take(9).fold(0, |sum, (i, byte)| sum | i64::from(byte & 0x7f) << (7 * i))
    }

    /// What the file says of itself, by key.
    pub fn metadata(&self) -> BTreeMap<String, String> {
        let entries = self.fields.iter().filter(|field| field.is(field::MODEL_METADATA));
        let entries = entries.filter_map(|field| StringStringEntryProto::decode(field.value()?).ok());
        entries.map(|entry| (entry.key().to_owned(), entry.value().to_owned())).collect()
    }

    /// Whether any of its constants lie in files of their own.
    pub fn is_external(&self) -> bool {
        self.external
    }

    /// The constants of its own graph, not of graphs within: tensors of the source.
    pub fn constants(&self) -> HashSet<usize> {
        let graph = self.graph();
        let initializers = graph.initializers().map(|(_, tensor)| tensor);
        initializers.chain(graph.nodes().flat_map(|node| node.constants)).collect()
    }

    /// What it computes.
    pub fn graph(&self) -> Graph<'_> {
        let fields = self.fields.iter().find_map(|field| match &field.content {
            Content::Message(fields) if field.is(field::MODEL_GRAPH) => Some(fields.as_slice()),
            _ => None,
        });
        Graph { fields: fields.unwrap_or_default() }
    }
}

impl<'a> Graph<'a> {
    /// Its initializers by their names in it: tensors of the source.
    pub fn initializers(&self) -> impl Iterator<Item = (&'a str, usize)> + 'a {
        self.fields.iter().filter_map(|field| match &field.content {
            Content::Constant(constant) if field.is(field::GRAPH_INITIALIZER) => {
                Some((constant.name(), constant.tensor))
            }
            _ => None,
        })
    }

    /// What its initializers are in the file, by tensor of the source.
    pub fn elements(&self) -> impl Iterator<Item = (usize, Element)> + 'a {
        self.fields.iter().filter_map(|field| match &field.content {
            Content::Constant(constant) if field.is(field::GRAPH_INITIALIZER) => {
                let element = Element { data_type: constant.data_type, dims: constant.dims.clone() };
                Some((constant.tensor, element))
            }
            _ => None,
        })
    }

    /// Its nodes, in the order in which they are computed.
    pub fn nodes(&self) -> impl Iterator<Item = Node<'a>> + 'a {
        self.fields.iter().filter(|field| field.is(field::GRAPH_NODE)).map(|field| match &field.content {
            Content::Message(fields) => node_of(fields),
            _ => Node {
                proto: field.value().and_then(node).unwrap_or_default(),
                graphs: Vec::new(),
                constants: Vec::new(),
            },
        })
    }

    /// The names of its inputs.
    pub fn inputs(&self) -> impl Iterator<Item = &'a str> + 'a {
        self.values(field::GRAPH_INPUT)
    }

    /// The names of its outputs.
    pub fn outputs(&self) -> impl Iterator<Item = &'a str> + 'a {
        self.values(field::GRAPH_OUTPUT)
    }

    fn values(&self, number: u32) -> impl Iterator<Item = &'a str> + 'a {
        self.fields.iter().filter(move |field| field.is(number)).filter_map(|field| value_name(field.value()?))
    }
}

/// The name of a `ValueInfoProto`.
pub(super) fn value_name(value: &[u8]) -> Option<&str> {
    let name = wire::fields(value).filter(|(number, ..)| *number == 1).last()?.2;
    str::from_utf8(name).ok()
}

/// A node without what is long in it. `None` if its bytes are none.
pub(super) fn node(message: &[u8]) -> Option<NodeProto> {
    let mut short = Vec::new();
    let is_short = |number: u32, whole: &[u8]| number != field::NODE_ATTRIBUTE || whole.len() <= ATTRIBUTE_BYTES;
    wire::fields(message).filter(|(number, whole, _)| is_short(*number, whole)).for_each(|(_, whole, _)| {
        short.extend_from_slice(whole);
    });
    NodeProto::decode(short.as_slice()).ok()
}

fn node_of(fields: &[Field]) -> Node<'_> {
    let mut short = Vec::new();
    let (mut graphs, mut constants) = (Vec::new(), Vec::new());
    for field in fields {
        match &field.content {
            Content::Raw(whole) => short.extend_from_slice(whole),
            Content::Message(attribute) => {
                for field in attribute {
                    match &field.content {
                        Content::Message(fields) => graphs.push(Graph { fields }),
                        Content::Constant(constant) => constants.push(constant.tensor),
                        Content::Raw(_) => {}
                    }
                }
            }
            Content::Constant(constant) => constants.push(constant.tensor),
        }
    }
    Node { proto: node(&short).unwrap_or_default(), graphs, constants }
}
