//! Element types, and the block types of ggml, with their sizes.

use std::fmt;

/// How one tensor's elements are laid out in bytes.
///
/// A container must know how many bytes a tensor takes and nothing more: what the bytes of a block type mean is an
/// encoding's business.
#[allow(missing_docs)] // The variants are the formats' own names.
#[allow(non_camel_case_types)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Dtype {
    Bool,
    F4,
    F6E2M3,
    F6E3M2,
    U8,
    I8,
    F8E5M2,
    F8E4M3,
    F8E8M0,
    F8E4M3Fnuz,
    F8E5M2Fnuz,
    I16,
    U16,
    F16,
    BF16,
    I32,
    U32,
    F32,
    C64,
    F64,
    I64,
    U64,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q8_1,
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_K,
    Q6_K,
    Q8_K,
    IQ2_XXS,
    IQ2_XS,
    IQ3_XXS,
    IQ1_S,
    IQ4_NL,
    IQ3_S,
    IQ2_S,
    IQ4_XS,
    IQ1_M,
    TQ1_0,
    TQ2_0,
    MXFP4,
    NVFP4,
    Q1_0,
    Q2_0,
}

/// One row of the table of types: elements in a block, bits of a block, ggml's number for it.
struct Row {
    dtype: Dtype,
    name: &'static str,
    elements: u64,
    bits: u64,
    ggml: Option<u32>,
}

const fn row(dtype: Dtype, name: &'static str, elements: u64, bits: u64, ggml: Option<u32>) -> Row {
    Row { dtype, name, elements, bits, ggml }
}

/// Sizes from the safetensors README and from ggml's `ggml-common.h`.
const TABLE: &[Row] = &[
    row(Dtype::Bool, "BOOL", 1, 8, None),
    row(Dtype::F4, "F4", 1, 4, None),
    row(Dtype::F6E2M3, "F6_E2M3", 1, 6, None),
    row(Dtype::F6E3M2, "F6_E3M2", 1, 6, None),
    row(Dtype::U8, "U8", 1, 8, None),
    row(Dtype::I8, "I8", 1, 8, Some(24)),
    row(Dtype::F8E5M2, "F8_E5M2", 1, 8, None),
    row(Dtype::F8E4M3, "F8_E4M3", 1, 8, None),
    row(Dtype::F8E8M0, "F8_E8M0", 1, 8, None),
    row(Dtype::F8E4M3Fnuz, "F8_E4M3FNUZ", 1, 8, None),
    row(Dtype::F8E5M2Fnuz, "F8_E5M2FNUZ", 1, 8, None),
    row(Dtype::I16, "I16", 1, 16, Some(25)),
    row(Dtype::U16, "U16", 1, 16, None),
    row(Dtype::F16, "F16", 1, 16, Some(1)),
    row(Dtype::BF16, "BF16", 1, 16, Some(30)),
    row(Dtype::I32, "I32", 1, 32, Some(26)),
    row(Dtype::U32, "U32", 1, 32, None),
    row(Dtype::F32, "F32", 1, 32, Some(0)),
    row(Dtype::C64, "C64", 1, 64, None),
    row(Dtype::F64, "F64", 1, 64, Some(28)),
    row(Dtype::I64, "I64", 1, 64, Some(27)),
    row(Dtype::U64, "U64", 1, 64, None),
    row(Dtype::Q4_0, "Q4_0", 32, 18 * 8, Some(2)),
    row(Dtype::Q4_1, "Q4_1", 32, 20 * 8, Some(3)),
    row(Dtype::Q5_0, "Q5_0", 32, 22 * 8, Some(6)),
    row(Dtype::Q5_1, "Q5_1", 32, 24 * 8, Some(7)),
    row(Dtype::Q8_0, "Q8_0", 32, 34 * 8, Some(8)),
    row(Dtype::Q8_1, "Q8_1", 32, 36 * 8, Some(9)),
    row(Dtype::Q2_K, "Q2_K", 256, 84 * 8, Some(10)),
    row(Dtype::Q3_K, "Q3_K", 256, 110 * 8, Some(11)),
    row(Dtype::Q4_K, "Q4_K", 256, 144 * 8, Some(12)),
    row(Dtype::Q5_K, "Q5_K", 256, 176 * 8, Some(13)),
    row(Dtype::Q6_K, "Q6_K", 256, 210 * 8, Some(14)),
    row(Dtype::Q8_K, "Q8_K", 256, 292 * 8, Some(15)),
    row(Dtype::IQ2_XXS, "IQ2_XXS", 256, 66 * 8, Some(16)),
    row(Dtype::IQ2_XS, "IQ2_XS", 256, 74 * 8, Some(17)),
    row(Dtype::IQ3_XXS, "IQ3_XXS", 256, 98 * 8, Some(18)),
    row(Dtype::IQ1_S, "IQ1_S", 256, 50 * 8, Some(19)),
    row(Dtype::IQ4_NL, "IQ4_NL", 32, 18 * 8, Some(20)),
    row(Dtype::IQ3_S, "IQ3_S", 256, 110 * 8, Some(21)),
    row(Dtype::IQ2_S, "IQ2_S", 256, 82 * 8, Some(22)),
    row(Dtype::IQ4_XS, "IQ4_XS", 256, 136 * 8, Some(23)),
    row(Dtype::IQ1_M, "IQ1_M", 256, 56 * 8, Some(29)),
    row(Dtype::TQ1_0, "TQ1_0", 256, 54 * 8, Some(34)),
    row(Dtype::TQ2_0, "TQ2_0", 256, 66 * 8, Some(35)),
    row(Dtype::MXFP4, "MXFP4", 32, 17 * 8, Some(39)),
    row(Dtype::NVFP4, "NVFP4", 64, 36 * 8, Some(40)),
    row(Dtype::Q1_0, "Q1_0", 128, 18 * 8, Some(41)),
    row(Dtype::Q2_0, "Q2_0", 64, 18 * 8, Some(42)),
];

impl Dtype {
    fn row(self) -> &'static Row {
        &TABLE[self as usize]
    }

    /// The name that the formats use: `F32`, `BF16`, `Q4_K`.
    pub fn name(self) -> &'static str {
        self.row().name
    }

    /// The type of a name, exactly as [`Dtype::name`] spells it.
    pub fn from_name(name: &str) -> Option<Self> {
        TABLE.iter().find(|row| row.name == name).map(|row| row.dtype)
    }

    /// ggml's number for the type, where it has one.
    pub fn ggml_id(self) -> Option<u32> {
        self.row().ggml
    }

    /// The type of a ggml number.
    pub fn from_ggml_id(id: u32) -> Option<Self> {
        TABLE.iter().find(|row| row.ggml == Some(id)).map(|row| row.dtype)
    }

    /// Elements of one block: 1 for plain types.
    pub fn block_elements(self) -> u64 {
        self.row().elements
    }

    /// Bits of one block (of one element for plain types).
    pub fn block_bits(self) -> u64 {
        self.row().bits
    }

    /// Bytes of `elements` elements, or `None` if they do not fill whole blocks and bytes or overflow 64 bits.
    pub fn bytes_of(self, elements: u64) -> Option<u64> {
        let row = self.row();
        if !elements.is_multiple_of(row.elements) {
            return None;
        }
        let bits = (elements / row.elements).checked_mul(row.bits)?;
        bits.is_multiple_of(8).then_some(bits / 8)
    }

    /// Whether the type is a block type of ggml.
    pub fn is_block(self) -> bool {
        self.row().elements > 1
    }

    /// Whether the type is a floating-point type that a quantizer takes as input: f64, f32, f16 or bf16.
    pub fn is_float(self) -> bool {
        matches!(self, Dtype::F64 | Dtype::F32 | Dtype::F16 | Dtype::BF16)
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_the_order_of_the_enum() {
        for (i, row) in TABLE.iter().enumerate() {
            assert_eq!(row.dtype as usize, i, "{}", row.name);
            assert_eq!(Dtype::from_name(row.name), Some(row.dtype));
        }
    }

    #[test]
    fn sizes_are_checked() {
        assert_eq!(Dtype::F32.bytes_of(3), Some(12));
        assert_eq!(Dtype::F4.bytes_of(3), None);
        assert_eq!(Dtype::Q8_0.bytes_of(64), Some(68));
        assert_eq!(Dtype::Q8_0.bytes_of(33), None);
        assert_eq!(Dtype::F64.bytes_of(u64::MAX), None);
    }
}
