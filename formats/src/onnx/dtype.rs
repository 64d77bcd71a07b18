//! ONNX's element types.

use super::proto::tensor_proto::DataType;
use super::proto::tensor_proto::DataType::*;
use crate::Dtype;

const TABLE: &[(DataType, Dtype)] = &[
    (Float, Dtype::F32),
    (Uint8, Dtype::U8),
    (Int8, Dtype::I8),
    (Uint16, Dtype::U16),
    (Int16, Dtype::I16),
    (Int32, Dtype::I32),
    (Int64, Dtype::I64),
    (Bool, Dtype::Bool),
    (Float16, Dtype::F16),
    (Double, Dtype::F64),
    (Uint32, Dtype::U32),
    (Uint64, Dtype::U64),
    (Complex64, Dtype::C64),
    (Bfloat16, Dtype::BF16),
    (Float8E4M3Fn, Dtype::F8E4M3),
    (Float8E4M3Fnuz, Dtype::F8E4M3Fnuz),
    (Float8E5M2, Dtype::F8E5M2),
    (Float8E5M2Fnuz, Dtype::F8E5M2Fnuz),
    (Float8E8M0, Dtype::F8E8M0),
];

/// ONNX's number for a type, where it has one.
pub fn data_type(dtype: Dtype) -> Option<i32> {
    TABLE.iter().find(|(_, own)| *own == dtype).map(|(number, _)| *number as i32)
}

/// The type of a number.
pub(super) fn dtype(data_type: i32) -> Option<Dtype> {
    TABLE.iter().find(|(number, _)| *number as i32 == data_type).map(|(_, own)| *own)
}

/// Bits of an element of a type that is carried as bytes: it fills whole bytes only several at a time, or is one that no other
/// format has.
pub(super) fn bits(data_type: i32) -> Option<u64> {
    match DataType::try_from(data_type).ok()? {
        Uint4 | Int4 | Float4E2M1 => Some(4),
        Uint2 | Int2 => Some(2),
        Float6E2M3 | Float6E3M2 => Some(6),
        Complex128 => Some(128),
        _ => None,
    }
}
