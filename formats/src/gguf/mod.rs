//! GGUF, versions 2 and 3 (ggml's `docs/gguf.md`; where that is silent, the rules of ggml's reader, `gguf.cpp`).
//!
//! ```text
//! "GGUF", version u32, tensors u64, entries u64
//! entries × { key string, type u32, value }                  string = length u64, bytes
//! tensors × { name string, n u32, dimensions u64 × n (innermost first), type u32, offset u64 }
//! padding to the alignment, then the tensors' bytes, each padded to the alignment
//! ```

mod read;
#[cfg(test)]
mod tests;
mod write;

use std::path::Path;

pub(crate) use read::read;
pub use write::layout;

use crate::{Error, Result};

/// Bytes that a tensor's name and its terminating NUL may take in ggml (`GGML_MAX_NAME`).
const MAX_NAME: usize = 64;

/// Bytes that a metadata key may have (`docs/gguf.md`).
const MAX_KEY: usize = 65535;

/// Dimensions that a tensor may have in ggml.
const MAX_DIMS: u32 = 4;

/// The key of the alignment, and its value where the key is missing.
const ALIGNMENT: (&str, u64) = ("general.alignment", 32);

/// The numbers of the value types.
mod kind {
    pub const U8: u32 = 0;
    pub const I8: u32 = 1;
    pub const U16: u32 = 2;
    pub const I16: u32 = 3;
    pub const U32: u32 = 4;
    pub const I32: u32 = 5;
    pub const F32: u32 = 6;
    pub const BOOL: u32 = 7;
    pub const STRING: u32 = 8;
    pub const ARRAY: u32 = 9;
    pub const U64: u32 = 10;
    pub const I64: u32 = 11;
    pub const F64: u32 = 12;
}

/// One typed metadata value.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)] // The variants are the format's own types.
pub enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    String(String),
    Array(Array),
    U64(u64),
    I64(i64),
    F64(f64),
}

/// A metadata array, all elements of one type.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)] // The variants are the format's own types.
pub enum Array {
    U8(Vec<u8>),
    I8(Vec<i8>),
    U16(Vec<u16>),
    I16(Vec<i16>),
    U32(Vec<u32>),
    I32(Vec<i32>),
    F32(Vec<f32>),
    Bool(Vec<bool>),
    String(Vec<String>),
    Array(Vec<Array>),
    U64(Vec<u64>),
    I64(Vec<i64>),
    F64(Vec<f64>),
}

/// Key-value pairs in the file's order. Keys are unique.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Metadata {
    /// The pairs.
    pub entries: Vec<(String, Value)>,
}

impl Metadata {
    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.entries.iter().find(|(name, _)| name == key).map(|(_, value)| value)
    }

    /// The value of a key, if it is a string.
    pub fn get_str(&self, key: &str) -> Option<&str> {
        match self.get(key)? {
            Value::String(text) => Some(text),
            _ => None,
        }
    }

    /// The value of a key, if it is an integer of any type and not negative.
    pub fn get_u64(&self, key: &str) -> Option<u64> {
        match *self.get(key)? {
            Value::U8(v) => Some(v.into()),
            Value::U16(v) => Some(v.into()),
            Value::U32(v) => Some(v.into()),
            Value::U64(v) => Some(v),
            Value::I8(v) => v.try_into().ok(),
            Value::I16(v) => v.try_into().ok(),
            Value::I32(v) => v.try_into().ok(),
            Value::I64(v) => v.try_into().ok(),
            _ => None,
        }
    }

    /// The value of a key, if it is a floating-point number; an f64 is rounded.
    pub fn get_f32(&self, key: &str) -> Option<f32> {
        match *self.get(key)? {
            Value::F32(v) => Some(v),
            Value::F64(v) => Some(v as f32),
            _ => None,
        }
    }

    /// The value of a key, if it is a truth value.
    pub fn get_bool(&self, key: &str) -> Option<bool> {
        match *self.get(key)? {
            Value::Bool(v) => Some(v),
            _ => None,
        }
    }

    /// Puts a pair at the end. A pair that has the key already is removed, as ggml does.
    pub fn push(&mut self, key: impl Into<String>, value: impl Into<Value>) {
        let key = key.into();
        self.entries.retain(|(name, _)| *name != key);
        self.entries.push((key, value.into()));
    }
}

/// The alignment of a file with this metadata: a power of two.
fn alignment_of(file: &Path, metadata: &Metadata) -> Result<u64> {
    let (key, default) = ALIGNMENT;
    match metadata.get(key) {
        None => Ok(default),
        Some(&Value::U32(alignment)) if alignment.is_power_of_two() => Ok(alignment.into()),
        Some(value) => Err(Error::malformed(
            file,
            None,
            format!("in metadata key `{key}` {value:?}"),
            "a power of two of type U32",
            "The file is damaged, or its writer is: make it again",
        )),
    }
}

/// Conversions from the types of Rust that have one meaning.
macro_rules! from {
    ($($from:ty => $to:ident :: $variant:ident,)*) => {
        $(impl From<$from> for $to {
            fn from(value: $from) -> Self {
                Self::$variant(value.into())
            }
        })*
    };
}

from! {
    u8 => Value::U8, i8 => Value::I8, u16 => Value::U16, i16 => Value::I16, u32 => Value::U32, i32 => Value::I32,
    f32 => Value::F32, bool => Value::Bool, String => Value::String, &str => Value::String, Array => Value::Array,
    u64 => Value::U64, i64 => Value::I64, f64 => Value::F64,
    Vec<String> => Array::String, Vec<i32> => Array::I32, Vec<u32> => Array::U32, Vec<f32> => Array::F32,
}
