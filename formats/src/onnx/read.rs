//! The reader: one walk over the file, which leaves the numbers of constants where they lie and keeps everything else.
//!
//! A length from the file is believed only as far as the message around it reaches; memory is charged before it is allocated.

use std::collections::HashSet;
use std::ops::Range;
use std::path::Path;

use super::dtype;
use super::external::{External, Place};
use super::model::{Constant, Content, Field, Model, field, node, value_name};
use super::proto::TensorProto;
use super::proto::tensor_proto::{DataLocation, DataType};
use super::typed::{self, Typed};
use super::wire::{Cursor, DAMAGED, Record, Wire, fields};
use crate::source::{Contents, Data};
use crate::unpacked::Unpacked;
use crate::{Error, Limits, Payload, Result, TensorMeta};

/// Messages within messages: what protobuf's own readers take.
const MAX_DEPTH: u32 = 100;
/// Fields of a node.
const MAX_NODE: usize = 1 << 16;
/// Bytes of a node's names and numbers.
const MAX_NODE_BYTES: u64 = 8 << 20;
/// Bytes that say where a tensor lies in another file.
const MAX_ENTRIES: usize = 1 << 16;
/// What the allocator adds to a block, rounded up.
const ALLOCATION: u64 = 16;

/// Memory that a graph may take: what the limits allow, less some for the reader itself.
fn budget(limits: &Limits) -> u64 {
    limits.header_bytes / 8 * 7
}

/// Reads a model's graph, and finds the numbers of its constants in the file and in the files beside it.
pub(crate) fn read(path: &Path, data: &Data, limits: &Limits) -> Result<Contents> {
    let mut walk = Walk {
        cursor: Cursor::new(path, data),
        limits,
        memory: budget(limits),
        tensors: Vec::new(),
        names: HashSet::new(),
        places: Vec::new(),
        unpacked: Unpacked::new(path, data.len(), limits),
        external: External::new(path, data.access()),
    };
    let here = Here { kind: Kind::Model, end: data.len(), depth: 0, scope: "", constant: None };
    let (fields, _) = walk.message(&here)?;
    let Walk { tensors, places, unpacked, external, .. } = walk;
    if !fields.iter().any(|field| field.number == field::MODEL_GRAPH) {
        let found = "a protobuf without a graph";
        return Err(Error::malformed(path, None, found, "an ONNX model", "Give a model that ONNX's own tools made"));
    }
    external.refuse_overlaps(&tensors, &places)?;
    let model = Model { fields, external: external.is_used() };
    let unpacked = unpacked.finish(data.access())?;
    let (places, external) = external.finish(places, data.len() + unpacked.as_ref().map_or(0, Data::len));
    Ok(Contents { tensors, places, payload: Payload::Onnx(model), unpacked, external, ..Contents::default() })
}

/// The messages that constants may be in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Model,
    Training,
    Function,
    Graph,
    Node,
    Attribute,
}

impl Kind {
    /// The message that a field is, if constants may be in it.
    fn child(self, number: u32) -> Option<Self> {
        match (self, number) {
            (Self::Model, field::MODEL_GRAPH) | (Self::Training, 1 | 2) => Some(Self::Graph),
            (Self::Model, field::MODEL_TRAINING) => Some(Self::Training),
            (Self::Model, field::MODEL_FUNCTION) => Some(Self::Function),
            (Self::Graph, field::GRAPH_NODE) | (Self::Function, 7) => Some(Self::Node),
            (Self::Node, field::NODE_ATTRIBUTE) | (Self::Function, 11) => Some(Self::Attribute),
            (Self::Attribute, field::ATTRIBUTE_GRAPH | field::ATTRIBUTE_GRAPHS) => Some(Self::Graph),
            _ => None,
        }
    }
}

/// Where the walk is.
struct Here<'a> {
    kind: Kind,
    end: u64,
    depth: u32,
    /// What the names of constants here begin with: nothing, or the node and the attribute that the graph is in.
    scope: &'a str,
    /// Within a node that is nothing but a constant: the name of its output, as those of other constants.
    constant: Option<&'a str>,
}

struct Walk<'a> {
    cursor: Cursor<'a>,
    limits: &'a Limits,
    memory: u64,
    tensors: Vec<TensorMeta>,
    names: HashSet<String>,
    places: Vec<Place>,
    unpacked: Unpacked<'a>,
    external: External,
}

impl Walk<'_> {
    /// Charges memory before it is allocated.
    fn charge(&mut self, bytes: u64) -> Result<()> {
        match self.memory.checked_sub(bytes.saturating_add(ALLOCATION)) {
            Some(left) => {
                self.memory = left;
                Ok(())
            }
            None => Err(Error::malformed(
                self.cursor.path,
                None,
                "a graph that takes too much memory",
                format!("at most {} bytes beside the numbers of its constants", budget(self.limits)),
                "Store large values as initializers",
            )),
        }
    }

    /// The fields of a message, and whether it is a graph or there are graphs or constants within.
    fn message(&mut self, here: &Here<'_>) -> Result<(Vec<Field>, bool)> {
        if here.depth > MAX_DEPTH {
            let found = format!("messages nested more than {MAX_DEPTH} deep");
            return Err(self.cursor.fault(found, "graphs that protobuf's own readers take"));
        }
        let mut all = Vec::new();
        let mut any = false;
        while let Some(record) = self.cursor.next(here.end)? {
            // A list that grows is there twice while it moves.
            self.charge(3 * size_of::<Field>() as u64)?;
            if here.kind == Kind::Node && all.len() >= MAX_NODE {
                return Err(self.cursor.fault(format!("a node of more than {MAX_NODE} fields"), "fewer"));
            }
            let content = match self.content(here, &record)? {
                Some(content) => {
                    any = true;
                    content
                }
                None => Content::Raw(self.raw(record.start..record.value.end)?),
            };
            self.cursor.at = record.value.end;
            all.push(Field { number: record.number, content });
        }
        Ok((all, any || here.kind == Kind::Graph))
    }

    fn raw(&mut self, range: Range<u64>) -> Result<Vec<u8>> {
        self.charge(range.end - range.start)?;
        self.cursor.bytes(range)
    }

    /// What a field is if graphs or constants are in it.
    fn content(&mut self, here: &Here<'_>, record: &Record) -> Result<Option<Content>> {
        if record.wire != Wire::Bytes {
            return Ok(None);
        }
        let end = record.value.end;
        let is_constant = match (here.kind, record.number) {
            (Kind::Graph, field::GRAPH_INITIALIZER) => true,
            (Kind::Attribute, field::ATTRIBUTE_TENSOR) => here.constant.is_some(),
            _ => false,
        };
        if is_constant {
            let constant = self.constant(here, record)?;
            return Ok(constant.map(|constant| Content::Constant(Box::new(constant))));
        }
        let Some(kind) = here.kind.child(record.number) else {
            if here.kind == Kind::Graph && [field::GRAPH_INPUT, field::GRAPH_OUTPUT].contains(&record.number) {
                self.value_info(record)?;
            }
            return Ok(None);
        };
        let (mut scope, mut constant) = (here.scope.to_owned(), None);
        match kind {
            Kind::Node => {
                let output = self.text(record, field::NODE_OUTPUT)?;
                let name = self.text(record, field::NODE_NAME)?.filter(|name| !name.is_empty());
                let operator = self.text(record, field::NODE_OP)?;
                let is_one = here.kind == Kind::Graph && operator.as_deref() == Some("Constant");
                let alone = output.as_ref().filter(|_| is_one);
                constant = alone.map(|output| format!("{}{output}", here.scope));
                // A node's name or its output tells its graphs from those of others.
                scope += &name.or(output).unwrap_or_default();
                scope.push('/');
            }
            Kind::Training => scope += "training/",
            Kind::Function => {
                scope += &self.text(record, field::FUNCTION_NAME)?.unwrap_or_default();
                scope.push('/');
            }
            Kind::Attribute => {
                let name = self.text(record, field::ATTRIBUTE_NAME)?.unwrap_or_default();
                constant = here.constant.filter(|_| name == "value").map(str::to_owned);
                scope += &name;
                scope.push('/');
            }
            _ => {}
        }
        self.charge(scope.len() as u64)?;
        let below = Here { kind, end, depth: here.depth + 1, scope: &scope, constant: constant.as_deref() };
        let before = (self.memory, self.tensors.len());
        self.cursor.at = record.value.start;
        let (fields, any) = self.message(&below)?;
        if kind == Kind::Node {
            self.check_node(record)?;
        }
        if !any {
            // The bytes are kept as they are, instead of the fields.
            debug_assert_eq!(before.1, self.tensors.len());
            self.memory = before.0;
        }
        Ok(any.then_some(Content::Message(fields)))
    }

    /// A text of a message, if it has it; the cursor goes back to the message.
    fn text(&mut self, message: &Record, number: u32) -> Result<Option<String>> {
        self.cursor.at = message.value.start;
        let mut found = None;
        while let Some(record) = self.cursor.next(message.value.end)? {
            if record.number == number && record.wire == Wire::Bytes {
                found = Some(self.name(record.value.clone())?);
                break;
            }
            self.cursor.at = record.value.end;
        }
        self.cursor.at = message.value.start;
        Ok(found)
    }

    fn name(&mut self, range: Range<u64>) -> Result<String> {
        const MAX_NAME: u64 = 1 << 16;
        let bytes = range.end - range.start;
        if bytes > MAX_NAME {
            return Err(self.cursor.fault(format!("a name of {bytes} bytes at byte {}", range.start), "at most 65536"));
        }
        let at = range.start;
        String::from_utf8(self.cursor.bytes(range)?)
            .map_err(|_| self.cursor.fault(format!("a name that is no text at byte {at}"), "UTF-8"))
    }

    /// What is decoded later must be what it is taken for.
    fn check_node(&mut self, record: &Record) -> Result<()> {
        let mut short = Vec::new();
        self.cursor.at = record.value.start;
        while let Some(field) = self.cursor.next(record.value.end)? {
            let bytes = field.value.end - field.start;
            if bytes <= 1 << 12 {
                if short.len() as u64 + bytes > MAX_NODE_BYTES {
                    return Err(self
                        .cursor
                        .fault(format!("a large node at byte {}", record.start), "names and numbers"));
                }
                short.extend(self.cursor.bytes(field.start..field.value.end)?);
            }
            self.cursor.at = field.value.end;
        }
        match node(&short) {
            Some(_) => Ok(()),
            None => Err(self.cursor.fault(format!("what is no node at byte {}", record.start), "a NodeProto")),
        }
    }

    fn value_info(&mut self, record: &Record) -> Result<()> {
        let bytes = self.cursor.bytes(record.value.start..record.value.end.min(record.value.start + (1 << 16)))?;
        match fields(&bytes).next().is_none() || value_name(&bytes).is_some() {
            true => Ok(()),
            false => Err(self.cursor.fault(format!("a value without a name at byte {}", record.start), "a name")),
        }
    }

    /// A constant and where its numbers are. `None` for one that is no numbers, or not worth to be called a weight.
    fn constant(&mut self, here: &Here<'_>, record: &Record) -> Result<Option<Constant>> {
        let mut parsed = Parsed::default();
        self.cursor.at = record.value.start;
        while let Some(record) = self.cursor.next(record.value.end)? {
            self.field_of(&mut parsed, &record)?;
            self.cursor.at = record.value.end;
        }
        if matches!(DataType::try_from(parsed.data_type), Ok(DataType::String)) {
            return Ok(None);
        }
        let own = parsed.name.take().unwrap_or_default();
        let name = match here.constant {
            Some(output) => output.to_owned(),
            None => format!("{}{own}", here.scope),
        };
        let path = self.cursor.path;
        let wrong = |found: String, expected: &str| Error::malformed(path, Some(&name), found, expected, DAMAGED);
        if here.constant.is_none() && own.is_empty() {
            return Err(wrong("an initializer without a name".into(), "a name"));
        }
        if parsed.segmented {
            let next = "Save it again with ONNX's own tools";
            return Err(Error::malformed(path, Some(&name), "a tensor in segments", "a whole one", next));
        }
        let elements = parsed.dims.iter().try_fold(1u64, |n, &d| n.checked_mul(d));
        let elements = elements
            .filter(|n| *n < 1 << 60)
            .ok_or_else(|| wrong(format!("shape {:?}", parsed.dims), "sizes that can be counted in 64 bits"))?;
        let meta = match (dtype::dtype(parsed.data_type), dtype::bits(parsed.data_type)) {
            (Some(dtype), _) => TensorMeta::new(name.clone(), dtype, parsed.dims.clone()),
            (_, Some(bits)) => {
                let bytes = elements.checked_mul(bits).map(|bits| bits.div_ceil(8));
                let bytes = bytes.ok_or_else(|| wrong(format!("shape {:?}", parsed.dims), "a countable size"))?;
                TensorMeta::new(name.clone(), crate::Dtype::U8, vec![bytes])
            }
            _ => return Err(wrong(format!("data type {}", parsed.data_type), "one that ONNX defines")),
        };
        if here.constant.is_some() && (elements < 2 || !meta.dtype.is_float()) {
            return Ok(None);
        }
        let bytes = meta.bytes().ok_or_else(|| wrong(format!("shape {:?}", parsed.dims), "a countable size"))?;
        if self.tensors.len() as u64 >= self.limits.tensors {
            return Err(wrong(format!("more than {} tensors", self.limits.tensors), "fewer"));
        }
        let place = self.place(&name, &parsed, bytes)?;
        self.charge((size_of::<TensorMeta>() + size_of::<Place>() + 4 * name.len() + 16 * parsed.dims.len()) as u64)?;
        if !self.names.insert(name.clone()) {
            return Err(wrong("a name that occurs twice".into(), "each name once"));
        }
        self.tensors.push(meta);
        self.places.push(place);
        let Parsed { data_type, dims, rest, .. } = parsed;
        Ok(Some(Constant { tensor: self.tensors.len() - 1, data_type, dims, rest }))
    }

    /// Takes in a field of a `TensorProto`.
    fn field_of(&mut self, parsed: &mut Parsed, record: &Record) -> Result<()> {
        let keep = match (record.number, record.wire) {
            (field::TENSOR_DIMS, Wire::Varint) => {
                self.dim(parsed, record.varint)?;
                false
            }
            (field::TENSOR_DIMS, Wire::Bytes) => {
                while self.cursor.at < record.value.end {
                    let dim = self.cursor.varint(record.value.end)?;
                    self.dim(parsed, dim)?;
                }
                false
            }
            (field::TENSOR_TYPE, Wire::Varint) => {
                parsed.data_type = record.varint as i32;
                false
            }
            (field::TENSOR_SEGMENT, _) => {
                parsed.segmented = true;
                false
            }
            (field::TENSOR_LOCATION, Wire::Varint) => {
                parsed.external = record.varint == DataLocation::External as u64;
                false
            }
            (field::TENSOR_RAW, Wire::Bytes) => {
                if parsed.raw.replace(record.value.clone()).is_some() {
                    return Err(self.cursor.fault("raw_data twice in one tensor", "once"));
                }
                false
            }
            (field::TENSOR_EXTERNAL, Wire::Bytes) => {
                // One entry after the other, as protobuf merges messages.
                let entry = self.raw(record.start..record.value.end)?;
                parsed.entries.extend(entry);
                if parsed.entries.len() > MAX_ENTRIES {
                    let found = format!("{} bytes that say where external data are", parsed.entries.len());
                    return Err(self.cursor.fault(found, "location, offset and length"));
                }
                false
            }
            (number, _) if typed::is_one(number) => {
                self.charge(size_of::<Record>() as u64)?;
                parsed.typed.push(record.clone());
                false
            }
            (field::TENSOR_NAME, Wire::Bytes) => {
                parsed.name = Some(self.name(record.value.clone())?);
                true
            }
            _ => true,
        };
        if keep {
            let rest = self.raw(record.start..record.value.end)?;
            parsed.rest.extend(rest);
        }
        Ok(())
    }

    fn dim(&mut self, parsed: &mut Parsed, dim: u64) -> Result<()> {
        if dim > i64::MAX as u64 {
            return Err(self.cursor.fault(format!("dimension {}", dim as i64), "none below zero"));
        }
        self.charge(size_of::<u64>() as u64)?;
        parsed.dims.push(dim);
        Ok(())
    }

    /// Where the numbers of a tensor are, which take so many bytes.
    fn place(&mut self, name: &str, parsed: &Parsed, bytes: u64) -> Result<Place> {
        let path = self.cursor.path;
        let wrong = |found: String, expected: String| Error::malformed(path, Some(name), found, expected, DAMAGED);
        let ways = [parsed.external, parsed.raw.is_some(), !parsed.typed.is_empty()];
        if ways.into_iter().filter(|way| *way).count() > 1 {
            return Err(wrong("numbers in more than one place".into(), "one of raw, typed and external data".into()));
        }
        if parsed.external {
            let entries = <TensorProto as prost::Message>::decode(parsed.entries.as_slice());
            let entries =
                entries.map_err(|e| wrong(format!("external data that do not parse ({e})"), "texts".into()))?;
            return self.external.place(name, &entries.external_data, bytes);
        }
        if let Some(raw) = &parsed.raw {
            return match raw.end - raw.start == bytes {
                true => Ok(Place::File(raw.clone())),
                false => Err(wrong(
                    format!("{} bytes of raw data", raw.end - raw.start),
                    format!("{bytes} for shape {:?}", parsed.dims),
                )),
            };
        }
        let typed = Typed { name, data_type: parsed.data_type, bytes, records: &parsed.typed };
        typed.place(&mut self.cursor, &mut self.unpacked)
    }
}

/// A `TensorProto` as far as it was read.
#[derive(Default)]
struct Parsed {
    name: Option<String>,
    dims: Vec<u64>,
    data_type: i32,
    segmented: bool,
    external: bool,
    raw: Option<Range<u64>>,
    typed: Vec<Record>,
    /// The fields of external data, whole.
    entries: Vec<u8>,
    rest: Vec<u8>,
}
