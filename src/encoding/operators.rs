//! What ONNX's operators unpack, in all their forms; those that are written have encodings of their own.
//!
//! Definitions: <https://onnx.ai/onnx/operators/onnx__DequantizeLinear.html>, and MatMulNBits of
//! <https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md>.

use std::ops::Range;

use formats::Dtype;

use super::plain::Real;
use super::{PartLayout, fp8};

/// What codes are. Those of less than a byte follow one another, the first in the lowest bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Codes {
    /// Integers.
    Int {
        /// Bits of one: 2, 4, 8, 16 or 32.
        bits: u8,
        /// Whether they are in two's complement.
        signed: bool,
    },
    /// FP8 without infinities, four bits of exponent.
    F8E4M3,
    /// FP8 with five bits of exponent.
    F8E5M2,
}

impl Codes {
    fn bits(self) -> u64 {
        match self {
            Self::Int { bits, .. } => bits.into(),
            _ => 8,
        }
    }

    fn name(self) -> String {
        match self {
            Self::Int { bits, signed } => format!("{}int{bits}", if signed { "" } else { "u" }),
            _ => "fp8".to_owned(),
        }
    }

    /// The dtype of a tensor of them, as a container has it.
    fn dtype(self) -> Dtype {
        match self {
            Self::F8E4M3 => Dtype::F8E4M3,
            Self::F8E5M2 => Dtype::F8E5M2,
            Self::Int { bits: 8, signed: true } => Dtype::I8,
            Self::Int { bits: 16, signed: true } => Dtype::I16,
            Self::Int { bits: 16, .. } => Dtype::U16,
            Self::Int { bits: 32, signed: true } => Dtype::I32,
            Self::Int { bits: 32, .. } => Dtype::U32,
            // Those of less than a byte are carried as bytes.
            Self::Int { .. } => Dtype::U8,
        }
    }

    /// How many elements of [`Codes::dtype`] hold `count` of them.
    fn elements(self, count: u64) -> Option<u64> {
        Some(if self.bits() < 8 { count.checked_mul(self.bits())?.div_ceil(8) } else { count })
    }

    /// Number `i`.
    fn get(self, bytes: &[u8], i: usize) -> f32 {
        match self {
            Self::F8E4M3 => fp8::decode(bytes[i]),
            Self::F8E5M2 => half::f16::from_bits(u16::from(bytes[i]) << 8).to_f32(),
            Self::Int { bits, signed } => {
                let word = match bits {
                    8 => u32::from(bytes[i]),
                    16 => u32::from(u16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]])),
                    32 => u32::from_le_bytes(std::array::from_fn(|byte| bytes[4 * i + byte])),
                    _ => {
                        let at = i * usize::from(bits);
                        u32::from(bytes[at / 8]) >> (at % 8) & ((1 << bits) - 1)
                    }
                };
                let unused = 32 - u32::from(bits);
                if signed { ((word << unused) as i32 >> unused) as f32 } else { word as f32 }
            }
        }
    }
}

/// DequantizeLinear: value = (code − zero) · scale, one scale for all values, for each index of an axis, or for each block
/// along an axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Linear {
    /// Codes, and zero points.
    pub codes: Codes,
    /// The axis's length; 1 for one scale for all.
    pub along: u64,
    /// Values within one index of the axis: the product of the dimensions after it.
    pub inner: u64,
    /// Indices of the axis that share a scale, which then differs along the other axes too; `None` for a scale for each index.
    pub block: Option<u64>,
    /// Whether zero points follow the scales, one for each.
    pub zeros: bool,
    /// Dtype of the scales.
    pub scale: Dtype,
}

impl Linear {
    /// The name in messages and reports.
    pub fn name(&self) -> String {
        let zeros = if self.zeros { " with zero points" } else { "" };
        let shared = match (self.block, self.along) {
            (Some(block), _) => format!("in blocks of {block}"),
            (None, 1) => "per tensor".to_owned(),
            (None, _) => "per channel".to_owned(),
        };
        format!("{} {shared}{zeros}", self.codes.name())
    }

    /// Whether every row of `cols` values has bytes of its own.
    fn by_rows(&self, cols: u64) -> bool {
        cols.checked_mul(self.codes.bits()).is_some_and(|bits| bits.is_multiple_of(8))
    }

    /// Scales of a weight of so many values.
    fn scales(&self, count: u64) -> Option<u64> {
        match self.block {
            Some(block) => {
                let outer = count.checked_div(self.along.checked_mul(self.inner)?)?;
                outer.checked_mul(self.along.div_ceil(block))?.checked_mul(self.inner)
            }
            None => Some(self.along),
        }
    }

    /// The physical tensors of a weight.
    pub(super) fn parts(&self, name: &str, rows: u64, cols: u64) -> Option<Vec<PartLayout>> {
        let (count, dtype) = (rows.checked_mul(cols)?, self.codes.dtype());
        let codes = match self.by_rows(cols) {
            true => {
                let per_row = self.codes.elements(cols)?;
                PartLayout::of_rows(name.to_owned(), dtype, vec![rows, per_row], per_row)
            }
            false => PartLayout::whole(name.to_owned(), dtype, vec![self.codes.elements(count)?]),
        };
        let scales = self.scales(count)?;
        let whole = |suffix: &str, dtype, count| PartLayout::whole(format!("{name}{suffix}"), dtype, vec![count]);
        let zeros = self.zeros.then(|| whole("_zero_point", dtype, self.codes.elements(scales)?));
        [codes, whole("_scale", self.scale, scales)].into_iter().chain(zeros).collect()
    }

    /// The numbers of some rows, row after row.
    pub(super) fn unpack(&self, parts: &[&[u8]], rows: Range<u64>, cols: u64, out: &mut [f32]) {
        let mut scales = vec![0.0; parts[1].len() / (self.scale.block_bits() / 8) as usize];
        f32::decode(self.scale, parts[1], &mut scales);
        let first = rows.start * cols;
        // Where the first value is: index of the axis, value within it, and all that lies around the axis.
        let (mut index, mut within) = (first / self.inner % self.along, first % self.inner);
        let mut outer = first / self.inner / self.along;
        let skipped = if self.by_rows(cols) { 0 } else { first as usize };
        for (i, x) in out.iter_mut().enumerate() {
            let at = match self.block {
                Some(block) => (outer * self.along.div_ceil(block) + index / block) * self.inner + within,
                None => index,
            } as usize;
            let zero = if self.zeros { self.codes.get(parts[2], at) } else { 0.0 };
            *x = (self.codes.get(parts[0], skipped + i) - zero) * scales[at];
            within += 1;
            if within == self.inner {
                (within, index) = (0, index + 1);
                if index == self.along {
                    (index, outer) = (0, outer + 1);
                }
            }
        }
    }
}

/// MatMulNBits: rows of codes in blocks, the last of which may be cut; value = (code − zero) · scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NBits {
    /// Bits of a code: 2, 4 or 8.
    pub bits: u8,
    /// Columns of a block.
    pub block: u64,
    /// The dtype of zero points, U8 for codes of their own; `None` for the middle.
    pub zeros: Option<Dtype>,
    /// Dtype of the scales.
    pub scale: Dtype,
}

impl NBits {
    /// The name in messages and reports.
    pub fn name(&self) -> String {
        let zeros = if self.zeros.is_some() { " with zero points" } else { "" };
        format!("int{} in blocks of {}{zeros}", self.bits, self.block)
    }

    /// The physical tensors of a weight.
    pub(super) fn parts(&self, name: &str, rows: u64, cols: u64) -> Option<Vec<PartLayout>> {
        let (blocks, bits) = (cols.div_ceil(self.block), u64::from(self.bits));
        let by_rows = |suffix: &str, dtype, per_row: u64| {
            PartLayout::of_rows(format!("{name}{suffix}"), dtype, vec![rows, per_row], per_row)
        };
        let zeros = self.zeros.map(|dtype| match dtype {
            Dtype::U8 => by_rows("_zero_points", dtype, blocks.checked_mul(bits)?.div_ceil(8)),
            _ => by_rows("_zero_points", dtype, blocks),
        });
        let bytes = blocks.checked_mul(self.block.checked_mul(bits)?.div_ceil(8))?;
        [by_rows("", Dtype::U8, bytes), by_rows("_scales", self.scale, blocks)].into_iter().chain(zeros).collect()
    }

    /// The numbers of some rows, row after row.
    pub(super) fn unpack(&self, parts: &[&[u8]], rows: Range<u64>, cols: u64, out: &mut [f32]) {
        let count = (rows.end - rows.start).max(1) as usize;
        let (cols, block) = (cols as usize, self.block as usize);
        let blocks = cols.div_ceil(block);
        let codes = Codes::Int { bits: self.bits, signed: false };
        let line = |part: usize, row: usize| {
            let bytes = parts[part].len() / count;
            &parts[part][row * bytes..(row + 1) * bytes]
        };
        let (mut scales, mut zeros) = (vec![0.0; blocks], vec![(1 << (self.bits - 1)) as f32; blocks]);
        for (row, to) in out.chunks_exact_mut(cols).enumerate() {
            f32::decode(self.scale, line(1, row), &mut scales);
            match self.zeros {
                Some(Dtype::U8) => {
                    zeros.iter_mut().enumerate().for_each(|(g, zero)| *zero = codes.get(line(2, row), g))
                }
                Some(dtype) => f32::decode(dtype, line(2, row), &mut zeros),
                None => {}
            }
            let bytes = line(0, row);
            for (k, x) in to.iter_mut().enumerate() {
                *x = (codes.get(bytes, k) - zeros[k / block]) * scales[k / block];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_of_every_width_are_numbers() {
        let get = |bits, signed, bytes: &[u8], i| Codes::Int { bits, signed }.get(bytes, i);
        assert_eq!([0, 1, 2, 3].map(|i| get(2, false, &[0b11_10_01_00], i)), [0.0, 1.0, 2.0, 3.0]);
        assert_eq!([0, 1, 2, 3].map(|i| get(2, true, &[0b11_10_01_00], i)), [0.0, 1.0, -2.0, -1.0]);
        assert_eq!([0, 1].map(|i| get(4, false, &[0x8f], i)), [15.0, 8.0]);
        assert_eq!([0, 1].map(|i| get(4, true, &[0x8f], i)), [-1.0, -8.0]);
        assert_eq!([get(8, false, &[200], 0), get(8, true, &[200], 0)], [200.0, -56.0]);
        assert_eq!([get(16, false, &[0, 0xff], 0), get(16, true, &[0, 0xff], 0)], [65280.0, -256.0]);
        assert_eq!(get(32, true, &[0xfe, 0xff, 0xff, 0xff], 0), -2.0);
        assert_eq!([Codes::F8E4M3.get(&[0x38], 0), Codes::F8E5M2.get(&[0x3c], 0)], [1.0, 1.0]);
    }

    /// Along the middle axis of [2, 5, 3], read from the second of rows of 3 on.
    #[test]
    fn scales_lie_where_the_axis_says() {
        let codes: Vec<u8> = (0..30).collect();
        let bytes = |scales: &[f32]| scales.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
        let codes_of = Codes::Int { bits: 8, signed: false };
        let linear = |block| Linear { codes: codes_of, along: 5, inner: 3, block, zeros: false, scale: Dtype::F32 };
        let read = |form: Linear, scales: &[f32]| {
            let mut out = vec![0.0; 27];
            form.unpack(&[&codes[3..], &bytes(scales)], 1..10, 3, &mut out);
            out
        };
        let scales: Vec<f32> = (1..=5).map(|x| x as f32).collect();
        let found = read(linear(None), &scales);
        let expected = (3..30).map(|i| i as f32 * scales[i / 3 % 5]);
        assert!(found.iter().copied().eq(expected));
        // Three blocks of two along it, for each of the other axes' indices.
        let scales: Vec<f32> = (1..=18).map(|x| x as f32).collect();
        let found = read(linear(Some(2)), &scales);
        let expected = (3..30).map(|i| i as f32 * scales[(i / 15 * 3 + i / 3 % 5 / 2) * 3 + i % 3]);
        assert!(found.iter().copied().eq(expected));
        assert_eq!(linear(Some(2)).parts("w", 10, 3).unwrap()[1].shape, [18]);
    }
}
