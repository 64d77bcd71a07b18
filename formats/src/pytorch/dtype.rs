//! What torch calls its types and the storages of each.

use crate::Dtype;

/// Type, storage class (those that have no class of their own lie in untyped storages), torch's name of the type.
const TABLE: &[(Dtype, Option<&str>, &str)] = &[
    (Dtype::F64, Some("DoubleStorage"), "float64"),
    (Dtype::F32, Some("FloatStorage"), "float32"),
    (Dtype::F16, Some("HalfStorage"), "float16"),
    (Dtype::BF16, Some("BFloat16Storage"), "bfloat16"),
    (Dtype::I64, Some("LongStorage"), "int64"),
    (Dtype::I32, Some("IntStorage"), "int32"),
    (Dtype::I16, Some("ShortStorage"), "int16"),
    (Dtype::I8, Some("CharStorage"), "int8"),
    (Dtype::U8, Some("ByteStorage"), "uint8"),
    (Dtype::Bool, Some("BoolStorage"), "bool"),
    (Dtype::C64, Some("ComplexFloatStorage"), "complex64"),
    (Dtype::U16, None, "uint16"),
    (Dtype::U32, None, "uint32"),
    (Dtype::U64, None, "uint64"),
    (Dtype::F8E4M3, None, "float8_e4m3fn"),
    (Dtype::F8E5M2, None, "float8_e5m2"),
    (Dtype::F8E4M3Fnuz, None, "float8_e4m3fnuz"),
    (Dtype::F8E5M2Fnuz, None, "float8_e5m2fnuz"),
    (Dtype::F8E8M0, None, "float8_e8m0fnu"),
];

/// The type of a storage class.
pub(super) fn of_storage(class: &str) -> Option<Dtype> {
    TABLE.iter().find(|(_, name, _)| *name == Some(class)).map(|(dtype, ..)| *dtype)
}

/// The type of a name in `torch`.
pub(super) fn of_name(name: &str) -> Option<Dtype> {
    TABLE.iter().find(|(_, _, own)| *own == name).map(|(dtype, ..)| *dtype)
}

/// The storage class and the name of a type.
pub(super) fn names(dtype: Dtype) -> Option<(Option<&'static str>, &'static str)> {
    TABLE.iter().find(|(own, ..)| *own == dtype).map(|(_, class, name)| (*class, *name))
}
