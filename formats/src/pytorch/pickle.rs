//! The machine that interprets a pickle. It knows the opcodes that torch writes and a fixed list of names; whatever else a
//! pickle asks for is named and refused. Nothing is looked up, imported or called.
//!
//! Values that others may point at live in tables and are numbered, so that a pickle that points at itself is no trouble to
//! build, and none to drop however deep it nests. What memory it takes is charged before it is allocated.

use std::collections::HashMap;
use std::io::Read;

use super::dtype;
use crate::Dtype;

/// A value of the machine.
#[derive(Debug, Clone, Copy)]
pub(super) enum Value {
    /// `None`.
    None,
    Int(i64),
    /// Something that is no part of any tensor: floats, flags, bytes, sets, devices, layouts.
    Opaque,
    /// Where it lies in [`Machine::text`].
    Text(u32, u32),
    Name(Name),
    /// A tuple or a list.
    List(u32),
    Dict(u32),
    Storage(u32),
    Tensor(u32),
}

/// The names that a pickle may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Name {
    OrderedDict,
    /// `_rebuild_tensor` and `_rebuild_tensor_v2`: storage, offset, shape, strides; more is not about numbers.
    Tensor,
    /// `_rebuild_tensor_v3`, which has the type too.
    TensorOfType,
    /// `_rebuild_parameter` and the like: a tensor first.
    Parameter,
    /// `_rebuild_from_type_v2`: a function, a class, its arguments, a state.
    FromType,
    /// `torch.Size`: a tuple.
    Size,
    Storage(Option<Dtype>),
    Dtype(Dtype),
    /// A class or function whose results hold no tensors.
    Plain,
}

impl Name {
    fn find(module: &str, name: &str) -> Option<Self> {
        Some(match (module, name) {
            ("collections", "OrderedDict") => Self::OrderedDict,
            ("torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2") => Self::Tensor,
            ("torch._utils", "_rebuild_tensor_v3") => Self::TensorOfType,
            ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state") => Self::Parameter,
            ("torch._tensor", "_rebuild_from_type_v2") => Self::FromType,
            ("torch", "Size") => Self::Size,
            ("torch", "Tensor" | "device")
            | ("torch.nn.parameter", "Parameter" | "Buffer")
            | ("torch.serialization", "_get_layout")
            | ("_codecs", "encode")
            | ("builtins" | "__builtin__", "set" | "complex" | "bytearray")
            | ("collections", "Counter") => Self::Plain,
            ("torch" | "torch.storage" | "torch.cuda", "UntypedStorage") => Self::Storage(None),
            ("torch" | "torch.storage" | "torch.cuda", class) if dtype::of_storage(class).is_some() => {
                Self::Storage(dtype::of_storage(class))
            }
            ("torch", name) => Self::Dtype(dtype::of_name(name)?),
            _ => return None,
        })
    }
}

/// Bytes in the file that tensors share.
#[derive(Debug, Clone, Copy)]
pub(super) struct Storage {
    /// Its name in the file.
    pub key: Value,
    /// The type of its elements; bytes if it has none.
    pub dtype: Option<Dtype>,
    /// Number of elements.
    pub count: u64,
}

/// A tensor as the pickle describes it. The numbers are whatever was in the file.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tensor {
    pub storage: u32,
    pub dtype: Dtype,
    /// Elements of the storage before the first.
    pub offset: u64,
    /// A list of numbers.
    pub shape: Value,
    /// A list of numbers.
    pub strides: Value,
}

/// A pickle that was interpreted.
#[derive(Debug, Default)]
pub(super) struct Machine {
    /// What the pickle made.
    pub result: Option<Value>,
    text: String,
    lists: Vec<Vec<Value>>,
    dicts: Vec<Vec<(Value, Value)>>,
    pub storages: Vec<Storage>,
    pub tensors: Vec<Tensor>,
    stack: Vec<Value>,
    marks: Vec<usize>,
    memo: HashMap<u32, Value>,
    /// The greatest length of the stack that was charged.
    charged: usize,
    /// Bytes of memory that may still be taken.
    pub memory: u64,
}

/// What a pickle holds that it must not, and what was expected.
pub(super) struct Refused {
    pub found: String,
    pub expected: &'static str,
}

type Step<T = ()> = Result<T, Refused>;

fn refuse<T>(found: impl Into<String>) -> Step<T> {
    Err(Refused { found: found.into(), expected: "a pickle of tensors, as torch.save writes it" })
}

const SHORT: &str = "a pickle that ends too early";

/// A value, in a vector that grows by doubling.
const SLOT: u64 = 2 * size_of::<Value>() as u64;

impl Machine {
    /// A machine that may take so many bytes of memory.
    pub fn new(memory: u64) -> Self {
        Self { memory, ..Self::default() }
    }

    /// Interprets one pickle, and reads nothing after its end. What was made before is forgotten.
    pub fn run(&mut self, from: &mut dyn Read) -> Step {
        *self = Self::new(self.memory);
        let mut bytes = Bytes(from);
        loop {
            let op = bytes.byte()?;
            if op == b'.' {
                self.result = Some(self.pop()?);
                return Ok(());
            }
            self.step(op, &mut bytes)?;
            if self.stack.len() + self.marks.len() > self.charged {
                self.charged += 64;
                self.charge(64 * SLOT)?;
            }
        }
    }

    /// The text of a value.
    pub fn text(&self, value: Value) -> Option<&str> {
        match value {
            Value::Text(start, end) => Some(&self.text[start as usize..end as usize]),
            _ => None,
        }
    }

    /// The items of a list or tuple.
    pub fn list(&self, value: Value) -> Option<&[Value]> {
        match value {
            Value::List(at) => Some(&self.lists[at as usize]),
            _ => None,
        }
    }

    /// The entries of a dictionary.
    pub fn dict(&self, value: Value) -> Option<&[(Value, Value)]> {
        match value {
            Value::Dict(at) => Some(&self.dicts[at as usize]),
            _ => None,
        }
    }

    fn charge(&mut self, bytes: u64) -> Step {
        match self.memory.checked_sub(bytes) {
            Some(left) => {
                self.memory = left;
                Ok(())
            }
            None => Err(Refused {
                found: "a pickle that asks for too much memory".into(),
                expected: "what the description of a model takes",
            }),
        }
    }

    fn step(&mut self, op: u8, bytes: &mut Bytes<'_>) -> Step {
        match op {
            // PROTO, FRAME
            0x80 => match bytes.byte()? {
                0..=5 => {}
                version => return refuse(format!("a pickle of version {version}")),
            },
            0x95 => drop(bytes.take::<8>()?),
            b'(' => self.marks.push(self.stack.len()),
            b'N' => self.stack.push(Value::None),
            0x88 | 0x89 => self.stack.push(Value::Opaque),
            b'K' => self.push_int(i64::from(bytes.byte()?)),
            b'M' => self.push_int(i64::from(u16::from_le_bytes(bytes.take()?))),
            b'J' => self.push_int(i64::from(i32::from_le_bytes(bytes.take()?))),
            0x8a => self.long(bytes)?,
            b'G' => {
                bytes.take::<8>()?;
                self.stack.push(Value::Opaque);
            }
            // Unicode and Python 2's texts, which differ in what beyond ASCII means.
            b'X' | b'T' => self.push_text(u32::from_le_bytes(bytes.take()?), bytes)?,
            0x8c | b'U' => self.push_text(u32::from(bytes.byte()?), bytes)?,
            // Bytes
            b'B' => self.skip(u32::from_le_bytes(bytes.take()?), bytes)?,
            b'C' => self.skip(u32::from(bytes.byte()?), bytes)?,
            b']' => self.push_list(Vec::new())?,
            b')' => self.push_list(Vec::new())?,
            b'}' => self.push_dict(Vec::new())?,
            0x8f => self.stack.push(Value::Opaque),
            b't' => {
                let items = self.pop_mark()?;
                self.push_list(items)?;
            }
            0x85..=0x87 => {
                let first = self.floor(usize::from(op - 0x84))?;
                let items = self.stack.split_off(first);
                self.push_list(items)?;
            }
            b'a' => {
                let item = self.pop()?;
                self.append(vec![item])?;
            }
            b'e' => {
                let items = self.pop_mark()?;
                self.append(items)?;
            }
            // ADDITEMS of a set
            0x90 => {
                self.pop_mark()?;
                let Value::Opaque = self.top()? else { return refuse("items for something that is no set") };
            }
            b's' => {
                let first = self.floor(2)?;
                let pair = self.stack.split_off(first);
                self.set(pair)?;
            }
            b'u' => {
                let items = self.pop_mark()?;
                self.set(items)?;
            }
            b'q' => self.put(u32::from(bytes.byte()?))?,
            b'r' => self.put(u32::from_le_bytes(bytes.take()?))?,
            0x94 => self.put(self.memo.len() as u32)?,
            b'h' => self.get(u32::from(bytes.byte()?))?,
            b'j' => self.get(u32::from_le_bytes(bytes.take()?))?,
            b'c' => {
                let (module, name) = (bytes.line()?, bytes.line()?);
                self.global(&module, &name)?;
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let [Some(module), Some(name)] = [module, name].map(|value| self.text(value).map(str::to_owned)) else {
                    return refuse("a name that is no text");
                };
                self.global(&module, &name)?;
            }
            b'Q' => {
                let id = self.pop()?;
                self.persistent(id)?;
            }
            // REDUCE, NEWOBJ
            b'R' | 0x81 => {
                let (arguments, function) = (self.pop()?, self.pop()?);
                let made = self.reduce(function, arguments, 0)?;
                self.stack.push(made);
            }
            // BUILD: attributes of a dictionary or of something that is no tensor.
            b'b' => {
                self.pop()?;
                match self.top()? {
                    Value::Dict(_) | Value::Opaque | Value::Tensor(_) => {}
                    _ => return refuse("a state for something that has none"),
                }
            }
            other => return refuse(format!("the opcode 0x{other:02x}")),
        }
        Ok(())
    }

    fn push_int(&mut self, number: i64) {
        self.stack.push(Value::Int(number));
    }

    fn long(&mut self, bytes: &mut Bytes<'_>) -> Step {
        let length = usize::from(bytes.byte()?);
        let mut digits = [0; 255];
        bytes.fill(&mut digits[..length])?;
        // Magic numbers and random seeds are longer, and are no part of a tensor.
        self.stack.push(match length {
            0..=8 => {
                let sign = if length > 0 && digits[length - 1] & 0x80 != 0 { 0xff } else { 0 };
                let mut number = [sign; 8];
                number[..length].copy_from_slice(&digits[..length]);
                Value::Int(i64::from_le_bytes(number))
            }
            _ => Value::Opaque,
        });
        Ok(())
    }

    fn push_text(&mut self, length: u32, bytes: &mut Bytes<'_>) -> Step {
        self.charge(2 * u64::from(length))?;
        let mut raw = Vec::new();
        bytes.0.take(u64::from(length)).read_to_end(&mut raw).map_err(|_| Refused::short())?;
        if raw.len() as u64 != u64::from(length) {
            return refuse(SHORT);
        }
        let Ok(text) = std::str::from_utf8(&raw) else { return refuse("a text that is not UTF-8") };
        let start = self.text.len() as u32;
        let Some(end) = start.checked_add(length) else { return refuse("too much text") };
        self.text.push_str(text);
        self.stack.push(Value::Text(start, end));
        Ok(())
    }

    fn skip(&mut self, length: u32, bytes: &mut Bytes<'_>) -> Step {
        let mut from = bytes.0.take(u64::from(length));
        let skipped = std::io::copy(&mut from, &mut std::io::sink()).map_err(|_| Refused::short())?;
        if skipped != u64::from(length) {
            return refuse(SHORT);
        }
        self.stack.push(Value::Opaque);
        Ok(())
    }

    fn push_list(&mut self, items: Vec<Value>) -> Step {
        self.charge(2 * size_of::<Vec<Value>>() as u64 + SLOT * items.len() as u64)?;
        self.stack.push(Value::List(self.lists.len() as u32));
        self.lists.push(items);
        Ok(())
    }

    fn push_dict(&mut self, entries: Vec<(Value, Value)>) -> Step {
        self.charge(2 * size_of::<Vec<Value>>() as u64 + 2 * SLOT * entries.len() as u64)?;
        self.stack.push(Value::Dict(self.dicts.len() as u32));
        self.dicts.push(entries);
        Ok(())
    }

    /// Where the last `count` values begin, none of them below the last mark.
    fn floor(&self, count: usize) -> Step<usize> {
        let floor = self.marks.last().copied().unwrap_or(0);
        match self.stack.len().checked_sub(count).filter(|&first| first >= floor) {
            Some(first) => Ok(first),
            None => refuse("an opcode without its operands"),
        }
    }

    fn pop(&mut self) -> Step<Value> {
        let at = self.floor(1)?;
        Ok(self.stack.remove(at))
    }

    fn top(&self) -> Step<Value> {
        Ok(self.stack[self.floor(1)?])
    }

    fn pop_mark(&mut self) -> Step<Vec<Value>> {
        match self.marks.pop() {
            Some(mark) => Ok(self.stack.split_off(mark)),
            None => refuse("an opcode without its mark"),
        }
    }

    fn append(&mut self, items: Vec<Value>) -> Step {
        self.charge(SLOT * items.len() as u64)?;
        match self.top()? {
            Value::List(at) => {
                self.lists[at as usize].extend(items);
                Ok(())
            }
            _ => refuse("items for something that is no list"),
        }
    }

    fn set(&mut self, items: Vec<Value>) -> Step {
        self.charge(SLOT * items.len() as u64)?;
        let (pairs, []) = items.as_chunks::<2>() else { return refuse("a key without a value") };
        match self.top()? {
            Value::Dict(at) => {
                self.dicts[at as usize].extend(pairs.iter().map(|&[key, value]| (key, value)));
                Ok(())
            }
            // A counter's entries, which are no tensors.
            Value::Opaque => Ok(()),
            _ => refuse("entries for something that is no dictionary"),
        }
    }

    fn put(&mut self, at: u32) -> Step {
        let value = self.top()?;
        if self.memo.insert(at, value).is_none() {
            // A hash table's slot, and it doubles.
            self.charge(4 * size_of::<(u32, Value)>() as u64)?;
        }
        Ok(())
    }

    fn get(&mut self, at: u32) -> Step {
        match self.memo.get(&at) {
            Some(&value) => {
                self.stack.push(value);
                Ok(())
            }
            None => refuse(format!("a memo {at} that was never put")),
        }
    }

    fn global(&mut self, module: &str, name: &str) -> Step {
        let Some(name) = Name::find(module, name) else {
            return Err(Refused {
                found: format!("the name `{module}.{name}`, which loading it in Python would call"),
                expected: "only the names that a dictionary of tensors needs",
            });
        };
        self.stack.push(Value::Name(name));
        Ok(())
    }

    /// `("storage", class, key, location, number of elements)`; the older layout adds a view.
    fn persistent(&mut self, id: Value) -> Step {
        let Some(&[kind, class, key, _, count, ref rest @ ..]) = self.list(id) else {
            return refuse("a persistent id that is no storage");
        };
        let (Some("storage"), Value::Name(Name::Storage(dtype)), Some(_)) = (self.text(kind), class, self.text(key))
        else {
            return refuse("a persistent id that is no storage");
        };
        if !rest.iter().all(|view| matches!(view, Value::None)) {
            return refuse("a view of a storage, as torch before 0.4 wrote them");
        }
        let Some(count) = whole(count) else { return refuse("a storage of unknown length") };
        self.charge(2 * size_of::<Storage>() as u64)?;
        self.stack.push(Value::Storage(self.storages.len() as u32));
        self.storages.push(Storage { key, dtype, count });
        Ok(())
    }

    /// What a call makes.
    fn reduce(&mut self, function: Value, arguments: Value, depth: u32) -> Step<Value> {
        let Value::Name(name) = function else { return refuse("a call of something that is no name") };
        let Some(items) = self.list(arguments) else { return refuse("a call without arguments") };
        match (name, items) {
            (Name::OrderedDict, []) => {
                self.push_dict(Vec::new())?;
                self.pop()
            }
            // Python 2 hands the entries over.
            (Name::OrderedDict, &[Value::List(entries)]) => {
                let entries = self.lists[entries as usize].iter().map(|&entry| match self.list(entry) {
                    Some(&[key, value]) => Ok((key, value)),
                    _ => refuse("a dictionary of something that is no pairs"),
                });
                let entries = entries.collect::<Step<Vec<_>>>()?;
                self.push_dict(entries)?;
                self.pop()
            }
            (Name::Tensor, &[Value::Storage(storage), offset, shape, strides, ..]) => {
                let dtype = self.storages[storage as usize].dtype.unwrap_or(Dtype::U8);
                self.tensor(storage, dtype, offset, shape, strides)
            }
            (
                Name::TensorOfType,
                &[Value::Storage(storage), offset, shape, strides, _, _, Value::Name(Name::Dtype(dtype)), ..],
            ) => self.tensor(storage, dtype, offset, shape, strides),
            (Name::Parameter, &[tensor @ Value::Tensor(_), ..]) => Ok(tensor),
            (Name::FromType, &[function, _, arguments, ..]) if depth < 4 => self.reduce(function, arguments, depth + 1),
            (Name::Size, &[dims @ Value::List(_)]) => Ok(dims),
            (Name::Plain, _) => Ok(Value::Opaque),
            _ => refuse("a call with arguments that torch does not write"),
        }
    }

    fn tensor(&mut self, storage: u32, dtype: Dtype, offset: Value, shape: Value, strides: Value) -> Step<Value> {
        let Some(offset) = whole(offset) else { return refuse("a tensor of unknown offset") };
        self.charge(2 * size_of::<Tensor>() as u64)?;
        self.tensors.push(Tensor { storage, dtype, offset, shape, strides });
        Ok(Value::Tensor(self.tensors.len() as u32 - 1))
    }

    /// A list of numbers that are not negative.
    pub fn numbers(&self, value: Value) -> Option<Vec<u64>> {
        self.list(value)?.iter().map(|&number| whole(number)).collect()
    }
}

fn whole(value: Value) -> Option<u64> {
    match value {
        Value::Int(number) => u64::try_from(number).ok(),
        _ => None,
    }
}

impl Refused {
    fn short() -> Self {
        Self { found: SHORT.into(), expected: "a whole pickle" }
    }
}

/// What is left of a pickle.
struct Bytes<'a>(&'a mut dyn Read);

impl Bytes<'_> {
    fn fill(&mut self, buffer: &mut [u8]) -> Step {
        self.0.read_exact(buffer).map_err(|_| Refused::short())
    }

    fn take<const N: usize>(&mut self) -> Step<[u8; N]> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn byte(&mut self) -> Step<u8> {
        Ok(self.take::<1>()?[0])
    }

    /// A name up to the end of its line.
    fn line(&mut self) -> Step<String> {
        let mut line = Vec::new();
        loop {
            match self.byte()? {
                b'\n' => return Ok(String::from_utf8_lossy(&line).into_owned()),
                _ if line.len() == 256 => return refuse("a name that is too long"),
                byte => line.push(byte),
            }
        }
    }
}
