//! The writer: a graph that was read, with other constants, and other nodes where those ask for it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;
use std::path::Path;

use prost::Message as _;

use super::data_type;
use super::model::{Constant, Content, Field, Model, field, node, value_name};
use super::proto::{NodeProto, OperatorSetIdProto, StringStringEntryProto};
use super::wire;
use crate::{Error, Layout, Result, TensorMeta};

/// The largest file that protobuf's readers take.
const LARGEST: u64 = (1 << 31) - 1;
/// Tensors from this size on lie in another file, where there is one; smaller ones tell shapes and stay in the graph.
const OUTSIDE: u64 = 1 << 10;
/// Large tensors in another file begin at multiples of this, so that they can be mapped on their own.
const PAGE: u64 = 1 << 12;
const LARGE: u64 = 1 << 20;
/// And all others at multiples of this.
const ALIGNMENT: u64 = 64;

/// What a graph is written with.
#[derive(Debug, Clone, Default)]
pub struct Edit {
    /// What is stored in place of a tensor of the source. One of the model's own graph that is missing here is left out; those
    /// of graphs within it have to stay.
    pub constants: BTreeMap<usize, Stored>,
    /// Tensors of the output that become initializers beside the source's: the file, and which of its tensors.
    pub added: Vec<(usize, usize)>,
    /// Nodes of the model's graph, by the name of their first output, and those that take their place.
    pub replaced: HashMap<String, Vec<NodeProto>>,
    /// Versions that domains of operators have at least.
    pub opsets: Vec<(String, i64)>,
    /// The version that the format has at least.
    pub ir_version: i64,
    /// Metadata that are set.
    pub metadata: Vec<(String, String)>,
}

/// What is stored in place of a tensor.
#[derive(Debug, Clone, Default)]
pub struct Stored {
    /// Tensors of the output: the file, and which of its tensors. One of the tensor's own name takes its place where it stands.
    pub parts: Vec<(usize, usize)>,
    /// Nodes that make the tensor of these, or none if other nodes are replaced.
    pub nodes: Vec<NodeProto>,
}

/// Whether a tensor of so many bytes goes into another file, where there is one.
pub fn is_outside(bytes: u64) -> bool {
    bytes >= OUTSIDE
}

/// The layout of a model whose tensors `files[0]` lie in it, and that of the file `data` beside it, which the tensors `files[1]`
/// lie in, if there are two. `source` are the tensors that the model was read with.
///
/// # Errors
/// [`Error::Malformed`] for a dtype that ONNX has not, or a model that is too large for one file.
pub fn layouts(
    path: &Path,
    model: &Model,
    source: &[TensorMeta],
    files: &[&[TensorMeta]],
    data: Option<&str>,
    edit: &Edit,
) -> Result<Vec<Layout>> {
    let outside = files.get(1).copied().unwrap_or_default();
    let outside = beside(path, outside)?;
    let writer = Writer { path, source, files, outside: &outside.spans, data: data.unwrap_or_default(), edit };
    let pieces = writer.model(model)?;
    let mut layout = Layout { fixed: Vec::new(), spans: vec![0..0; files[0].len()], bytes: 0, checksums: Vec::new() };
    let mut run = Vec::new();
    for piece in &pieces {
        piece.emit(&mut run, &mut layout);
    }
    let end = layout.bytes;
    layout.bytes += run.len() as u64;
    layout.fixed.push((end, run));
    if layout.bytes > LARGEST {
        let found = format!("a model of {} bytes", layout.bytes);
        return Err(Error::malformed(path, None, found, format!("at most {LARGEST}"), "Store its constants outside"));
    }
    Ok(match files.len() {
        0 | 1 => vec![layout],
        _ => vec![layout, outside],
    })
}

/// Whether tensors of so many bytes in all are too large to lie in the graph.
pub(super) fn is_too_large(bytes: u64) -> bool {
    // With room for the graph.
    bytes > LARGEST - (100 << 20)
}

impl Model {
    /// Whether its tensors, if they take so many bytes, are to be written into another file: where they were, or where they
    /// have to be.
    pub fn goes_outside(&self, bytes: u64) -> bool {
        self.external || is_too_large(bytes)
    }
}

/// The file beside a model.
fn beside(path: &Path, tensors: &[TensorMeta]) -> Result<Layout> {
    let mut layout = Layout { fixed: Vec::new(), spans: Vec::new(), bytes: 0, checksums: Vec::new() };
    for tensor in tensors {
        let bytes = bytes(path, tensor)?;
        let start = layout.bytes.next_multiple_of(if bytes >= LARGE { PAGE } else { ALIGNMENT });
        layout.spans.push(start..start + bytes);
        layout.bytes = start + bytes;
    }
    Ok(layout)
}

fn bytes(path: &Path, tensor: &TensorMeta) -> Result<u64> {
    let fits = tensor.bytes().filter(|&bytes| bytes < u64::MAX / 4);
    fits.ok_or_else(|| {
        let next = "This tensor cannot be written to an ONNX file";
        Error::malformed(path, Some(&tensor.name), format!("shape {:?}", tensor.shape), "a countable size", next)
    })
}

/// Part of a file to be written.
enum Piece {
    Bytes(Vec<u8>),
    /// So many bytes of a tensor of the file.
    Tensor(usize, u64),
    Message(u32, Vec<Piece>),
}

impl Piece {
    fn len(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Tensor(_, bytes) => *bytes,
            Self::Message(number, pieces) => {
                let within = pieces.iter().map(Self::len).sum();
                let mut head = Vec::new();
                wire::head(&mut head, *number, within);
                head.len() as u64 + within
            }
        }
    }

    /// Adds itself: what is known to `run`, which begins at the layout's end so far.
    fn emit(&self, run: &mut Vec<u8>, layout: &mut Layout) {
        match self {
            Self::Bytes(bytes) => run.extend_from_slice(bytes),
            Self::Tensor(tensor, bytes) => {
                let start = layout.bytes + run.len() as u64;
                layout.fixed.push((layout.bytes, std::mem::take(run)));
                layout.spans[*tensor] = start..start + bytes;
                layout.bytes = start + bytes;
            }
            Self::Message(number, pieces) => {
                wire::head(run, *number, pieces.iter().map(Self::len).sum());
                pieces.iter().for_each(|piece| piece.emit(run, layout));
            }
        }
    }
}

struct Writer<'a> {
    path: &'a Path,
    source: &'a [TensorMeta],
    files: &'a [&'a [TensorMeta]],
    /// Where the tensors of the other file lie.
    outside: &'a [Range<u64>],
    /// The name of that file.
    data: &'a str,
    edit: &'a Edit,
}

impl Writer<'_> {
    fn model(&self, model: &Model) -> Result<Vec<Piece>> {
        let mut pieces = Vec::new();
        let set = |field: &Field| {
            let entry = field.value().and_then(|value| StringStringEntryProto::decode(value).ok());
            entry.is_some_and(|entry| self.edit.metadata.iter().any(|(key, _)| key == entry.key()))
        };
        if self.edit.ir_version > model.ir_version() {
            let mut version = Vec::new();
            wire::number(&mut version, field::MODEL_IR_VERSION, self.edit.ir_version as u64);
            pieces.push(Piece::Bytes(version));
        }
        let raised = |set: &OperatorSetIdProto| {
            self.edit.opsets.iter().any(|(domain, version)| set.domain() == domain && set.version() < *version)
        };
        for field in &model.fields {
            let old = match field.number {
                field::MODEL_IR_VERSION => self.edit.ir_version > model.ir_version(),
                field::MODEL_OPSET => field
                    .value()
                    .and_then(|value| OperatorSetIdProto::decode(value).ok())
                    .is_some_and(|set| raised(&set)),
                field::MODEL_METADATA => set(field),
                _ => false,
            };
            match &field.content {
                _ if old => {}
                Content::Message(fields) if field.number == field::MODEL_GRAPH => {
                    pieces.push(Piece::Message(field.number, self.graph(fields)?));
                }
                _ => pieces.extend(self.field(field)?),
            }
        }
        let mut rest = Vec::new();
        for (domain, version) in &self.edit.opsets {
            if model.opset_of(domain) < *version {
                let set = OperatorSetIdProto { domain: Some(domain.clone()), version: Some(*version) };
                wire::text(&mut rest, field::MODEL_OPSET, &set.encode_to_vec());
            }
        }
        for (key, value) in &self.edit.metadata {
            let entry = StringStringEntryProto { key: Some(key.clone()), value: Some(value.clone()) };
            wire::text(&mut rest, field::MODEL_METADATA, &entry.encode_to_vec());
        }
        pieces.push(Piece::Bytes(rest));
        Ok(pieces)
    }

    /// A field as it is, but for the constants in it. `None` for a constant that is stored otherwise, and for a node that is
    /// nothing but that.
    fn field(&self, field: &Field) -> Result<Option<Piece>> {
        Ok(match &field.content {
            Content::Raw(whole) => Some(Piece::Bytes(whole.clone())),
            Content::Message(fields) => {
                let pieces = fields.iter().map(|within| self.field(within)).collect::<Result<Option<Vec<_>>>>()?;
                pieces.map(|pieces| Piece::Message(field.number, pieces))
            }
            Content::Constant(constant) => self.in_place(field.number, constant)?,
        })
    }

    /// A constant where it stands, if that is where it is stored.
    fn in_place(&self, number: u32, constant: &Constant) -> Result<Option<Piece>> {
        let meta = &self.source[constant.tensor];
        let Some(stored) = self.edit.constants.get(&constant.tensor) else { return Ok(None) };
        let &[(file, tensor)] = stored.parts.as_slice() else { return Ok(None) };
        let written = &self.files[file][tensor];
        if written.name != meta.name {
            return Ok(None);
        }
        // A type that is carried as bytes stays what it was.
        let (data_type, dims) = match written == meta {
            true => (constant.data_type, constant.dims.clone()),
            false => (self.data_type(written)?, written.shape.clone()),
        };
        self.tensor(number, data_type, &dims, &constant.rest, (file, tensor)).map(Some)
    }

    fn data_type(&self, meta: &TensorMeta) -> Result<i32> {
        data_type(meta.dtype).ok_or_else(|| {
            let found = format!("dtype {}", meta.dtype);
            let next = "This tensor cannot be written to an ONNX file";
            Error::malformed(self.path, Some(&meta.name), found, "a dtype that ONNX defines", next)
        })
    }

    /// A `TensorProto` of a tensor of the output.
    fn tensor(&self, number: u32, data_type: i32, dims: &[u64], rest: &[u8], at: (usize, usize)) -> Result<Piece> {
        let (file, tensor) = at;
        let mut known = Vec::new();
        dims.iter().for_each(|dim| wire::number(&mut known, field::TENSOR_DIMS, *dim));
        wire::number(&mut known, field::TENSOR_TYPE, data_type as u64);
        known.extend_from_slice(rest);
        if file == 0 {
            let bytes = bytes(self.path, &self.files[0][tensor])?;
            wire::head(&mut known, field::TENSOR_RAW, bytes);
            return Ok(Piece::Message(number, vec![Piece::Bytes(known), Piece::Tensor(tensor, bytes)]));
        }
        let span = &self.outside[tensor];
        let (offset, length) = (span.start.to_string(), (span.end - span.start).to_string());
        for (key, value) in [("location", self.data), ("offset", &offset), ("length", &length)] {
            let entry = StringStringEntryProto { key: Some(key.to_owned()), value: Some(value.to_owned()) };
            wire::text(&mut known, field::TENSOR_EXTERNAL, &entry.encode_to_vec());
        }
        wire::number(&mut known, field::TENSOR_LOCATION, 1);
        Ok(Piece::Message(number, vec![Piece::Bytes(known)]))
    }

    /// The model's graph: the nodes that make constants of what is stored come first.
    fn graph(&self, fields: &[Field]) -> Result<Vec<Piece>> {
        let moved: Vec<(&usize, &Stored)> =
            self.edit.constants.iter().filter(|(tensor, stored)| !self.stays(**tensor, stored)).collect();
        let mut first = Vec::new();
        for node in moved.iter().flat_map(|(_, stored)| &stored.nodes) {
            wire::text(&mut first, field::GRAPH_NODE, &node.encode_to_vec());
        }
        // An input of a constant's name only stood for its default.
        let gone: HashSet<&str> = moved.iter().map(|(tensor, _)| self.source[**tensor].name.as_str()).collect();
        let mut pieces = vec![Piece::Bytes(first)];
        for field in fields {
            match field.number {
                field::GRAPH_INPUT if field.value().and_then(value_name).is_some_and(|name| gone.contains(name)) => {}
                field::GRAPH_NODE => match self.replacement(field) {
                    Some(nodes) => {
                        let mut bytes = Vec::new();
                        nodes.iter().for_each(|node| wire::text(&mut bytes, field::GRAPH_NODE, &node.encode_to_vec()));
                        pieces.push(Piece::Bytes(bytes));
                    }
                    None => pieces.extend(self.field(field)?),
                },
                _ => pieces.extend(self.field(field)?),
            }
        }
        for &(file, part) in moved.iter().flat_map(|(_, stored)| &stored.parts).chain(&self.edit.added) {
            let meta = &self.files[file][part];
            let mut rest = Vec::new();
            wire::text(&mut rest, field::TENSOR_NAME, meta.name.as_bytes());
            let data_type = self.data_type(meta)?;
            pieces.push(self.tensor(field::GRAPH_INITIALIZER, data_type, &meta.shape, &rest, (file, part))?);
        }
        Ok(pieces)
    }

    /// Whether a tensor is stored under its own name where it stands.
    fn stays(&self, tensor: usize, stored: &Stored) -> bool {
        matches!(stored.parts.as_slice(), [(file, part)] if self.files[*file][*part].name == self.source[tensor].name)
    }

    fn replacement(&self, field: &Field) -> Option<&Vec<NodeProto>> {
        if self.edit.replaced.is_empty() {
            return None;
        }
        let node = field.value().and_then(node)?;
        let output = node.output.iter().find(|name| !name.is_empty())?;
        self.edit.replaced.get(output)
    }
}
