//! GGUF, versions 2 and 3 (ggml's `docs/gguf.md`).

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
