//! Numbers in typed fields: where they lie, if they lie as a tensor has them, else put in order.

use super::external::Place;
use super::proto::tensor_proto::DataType;
use super::wire::{Cursor, DAMAGED, Record, Wire};
use crate::unpacked::Unpacked;
use crate::{Error, Result};

const FLOAT: u32 = 4;
const INT32: u32 = 5;
const INT64: u32 = 7;
const DOUBLE: u32 = 10;
const UINT64: u32 = 11;

/// Whether a field of a `TensorProto` holds numbers of one type.
pub(super) fn is_one(number: u32) -> bool {
    [FLOAT, INT32, INT64, DOUBLE, UINT64].contains(&number)
}

/// The typed fields of a tensor.
pub(super) struct Typed<'a> {
    pub name: &'a str,
    pub data_type: i32,
    /// Bytes that the numbers take.
    pub bytes: u64,
    pub records: &'a [Record],
}

impl Typed<'_> {
    /// The field that numbers of the tensor's type are in, and the bytes that each of them fills.
    fn form(&self) -> Option<(u32, usize)> {
        Some(match DataType::try_from(self.data_type).ok()? {
            DataType::Float | DataType::Complex64 => (FLOAT, 4),
            DataType::Double | DataType::Complex128 => (DOUBLE, 8),
            DataType::Int64 => (INT64, 8),
            DataType::Uint64 => (UINT64, 8),
            DataType::Uint32 => (UINT64, 4),
            DataType::Int32 => (INT32, 4),
            DataType::Uint16 | DataType::Int16 | DataType::Float16 | DataType::Bfloat16 => (INT32, 2),
            _ => (INT32, 1),
        })
    }

    /// Where the numbers are.
    pub fn place(&self, cursor: &mut Cursor<'_>, unpacked: &mut Unpacked<'_>) -> Result<Place> {
        let path = cursor.path;
        let wrong = |found: String, expected: String| Error::malformed(path, Some(self.name), found, expected, DAMAGED);
        let Some((number, width)) = self.form() else {
            return Err(wrong(format!("data type {}", self.data_type), "one that ONNX defines".into()));
        };
        if let Some(other) = self.records.iter().find(|record| record.number != number) {
            return Err(wrong(format!("numbers in field {}", other.number), format!("those of its type, in {number}")));
        }
        let is_fixed = number == FLOAT || number == DOUBLE;
        if let ([one], true) = (self.records, is_fixed)
            && one.wire == Wire::Bytes
            && one.value.end - one.value.start == self.bytes
        {
            return Ok(Place::File(one.value.clone()));
        }
        if self.records.is_empty() && self.bytes == 0 {
            return Ok(Place::File(0..0));
        }
        let fit = |cursor: &Cursor<'_>, record: &Record| match (record.wire, is_fixed) {
            (Wire::Bytes, _) | (Wire::Varint, false) => Ok(()),
            (Wire::Four, true) if width == 4 => Ok(()),
            (Wire::Eight, true) if width == 8 => Ok(()),
            _ => Err(cursor.fault(format!("numbers of another kind at byte {}", record.start), "those of the type")),
        };
        unpacked.charge(self.name, self.bytes)?;
        let start = unpacked.start();
        let mut left = self.bytes;
        let mut take = |cursor: &Cursor<'_>, bytes: &[u8]| {
            left = left.checked_sub(bytes.len() as u64).ok_or_else(|| {
                cursor.fault(format!("more numbers than tensor `{}` has", self.name), format!("{} bytes", self.bytes))
            })?;
            unpacked.write(bytes)
        };
        for record in self.records {
            fit(cursor, record)?;
            if is_fixed {
                let mut buffer = [0; 1 << 12];
                let mut at = record.value.start;
                while at < record.value.end {
                    let n = (record.value.end - at).min(buffer.len() as u64) as usize;
                    cursor.fill(at, &mut buffer[..n])?;
                    take(cursor, &buffer[..n])?;
                    at += n as u64;
                }
            } else if record.wire == Wire::Varint {
                take(cursor, &record.varint.to_le_bytes()[..width])?;
            } else {
                cursor.at = record.value.start;
                while cursor.at < record.value.end {
                    let number = cursor.varint(record.value.end)?;
                    take(cursor, &number.to_le_bytes()[..width])?;
                }
            }
        }
        if left > 0 {
            return Err(wrong(
                format!("{} bytes of numbers", self.bytes - left),
                format!("{} for its shape", self.bytes),
            ));
        }
        Ok(Place::Unpacked(unpacked.place(start)?))
    }
}
