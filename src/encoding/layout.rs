//! Which physical tensors a logical weight is made of, and which bytes of each belong to a band.

use std::ops::Range;

use formats::Dtype;

use super::Foreign;

/// How the numbers of a weight are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// One tensor of plain numbers or of ggml blocks along the rows.
    Plain(Dtype),
    /// compressed-tensors' `int-quantized`: int8 codes and one scale for each row; value = code · scale.
    Int8Rows {
        /// Dtype of the scales: that of the original weight.
        scale: Dtype,
    },
    /// compressed-tensors' `pack-quantized`: symmetric integers packed into int32 words, lowest bits first, and one scale for
    /// each group of a row; value = (code − 2^(bits − 1)) · scale.
    PackedInt {
        /// Bits of a code: 4 or 8.
        bits: u8,
        /// Columns that share a scale; divides the columns.
        group: u64,
        /// Dtype of the scales.
        scale: Dtype,
    },
    /// int8 codes and one scale for each column; value = code · scale. For matrices that ONNX stores `[in, out]`: their columns
    /// are outputs.
    Int8Cols {
        /// Dtype of the scales: that of the original weight.
        scale: Dtype,
    },
    /// onnxruntime's MatMulNBits: the codes of [`Encoding::PackedInt`], as bytes and by blocks, and one scale for each block.
    Blocked {
        /// Bits of a code: 4 or 8.
        bits: u8,
        /// Columns of a block; divides the columns.
        group: u64,
        /// Dtype of the scales.
        scale: Dtype,
    },
    /// compressed-tensors' `float-quantized`: FP8 codes and one scale for each row.
    Fp8Rows {
        /// Dtype of the scales.
        scale: Dtype,
    },
    /// FP8 codes with one scale for each tile of rows × columns; value = code · scale.
    Fp8Tiles {
        /// Rows and columns of a tile: 128 × 128 in DeepSeek's checkpoints.
        tile: (u64, u64),
        /// Dtype of the scales.
        scale: Dtype,
    },
    /// AWQ's GEMM form: int4, stored by input feature, eight outputs in a word; scales and zero points by groups of inputs.
    Awq {
        /// Input features that share a scale.
        group: u64,
    },
    /// A form of another tool, which is read and not written.
    Foreign(Foreign),
}

/// The axis of the logical `[out, in]` matrix along which bands are cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Axis {
    /// Output features: rows.
    Out,
    /// Input features: columns.
    In,
}

/// Lines of the band axis.
pub type Lines = Range<u64>;

/// One physical tensor of a logical weight.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartLayout {
    /// Its name.
    pub name: String,
    /// Its dtype.
    pub dtype: Dtype,
    /// Its shape.
    pub shape: Vec<u64>,
    /// Lines of the band axis that one unit of bytes covers; 0 where every line needs the whole tensor.
    lines_per_unit: u64,
    /// Bytes of one unit.
    unit_bytes: u64,
}

impl PartLayout {
    /// The bytes of this tensor that belong to a band. The band begins at a multiple of [`Encoding::line_multiple`].
    pub fn bytes_of(&self, band: &Lines) -> Range<u64> {
        if self.lines_per_unit == 0 {
            return 0..self.unit_bytes;
        }
        let unit = |line: u64| line.div_ceil(self.lines_per_unit) * self.unit_bytes;
        unit(band.start)..unit(band.end)
    }

    /// A tensor that has `per_row` elements for each row of the weight.
    pub(super) fn of_rows(name: String, dtype: Dtype, shape: Vec<u64>, per_row: u64) -> Option<Self> {
        shape.iter().try_fold(1u64, |n, &d| n.checked_mul(d)).and_then(|n| dtype.bytes_of(n))?;
        Some(Self { name, dtype, shape, lines_per_unit: 1, unit_bytes: dtype.bytes_of(per_row)? })
    }

    /// A tensor of which every row of the weight needs all.
    pub(super) fn whole(name: String, dtype: Dtype, shape: Vec<u64>) -> Option<Self> {
        let count = shape.iter().try_fold(1u64, |n, &d| n.checked_mul(d))?;
        Some(Self { name, dtype, shape, lines_per_unit: 0, unit_bytes: dtype.bytes_of(count)? })
    }

    /// A band's share of all bytes, where they are only copied and no band has bytes of its own.
    pub fn share(&self, band: &Lines, lines: u64) -> Range<u64> {
        let count: u64 = self.shape.iter().product();
        let bytes = u128::from(self.dtype.bytes_of(count).unwrap_or(0));
        let part = |line: u64| (bytes * u128::from(line) / u128::from(lines.max(1))) as u64;
        part(band.start)..part(band.end)
    }

    /// Whether every band needs all of it.
    pub fn is_whole(&self) -> bool {
        self.lines_per_unit == 0
    }
}

/// Why an encoding cannot hold a weight.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{encoding} needs {needs}, and the weight is {rows} × {cols}")]
pub struct Unfit {
    /// The encoding.
    pub encoding: String,
    /// What it needs.
    pub needs: String,
    /// Rows of the weight.
    pub rows: u64,
    /// Columns of the weight.
    pub cols: u64,
}

impl Encoding {
    /// The name in messages and reports.
    pub fn name(&self) -> String {
        match self {
            Self::Plain(dtype) => dtype.name().to_owned(),
            Self::Int8Rows { .. } => "int8 per row".to_owned(),
            Self::Int8Cols { .. } => "int8 per column".to_owned(),
            Self::PackedInt { bits, group, .. } | Self::Blocked { bits, group, .. } => {
                format!("int{bits} in groups of {group}")
            }
            Self::Fp8Rows { .. } => "fp8 per row".to_owned(),
            Self::Fp8Tiles { tile, .. } => format!("fp8 per {}×{}", tile.0, tile.1),
            Self::Awq { group } => format!("AWQ int4, groups of {group}"),
            Self::Foreign(foreign) => foreign.name(),
        }
    }

    /// Whether the numbers are stored as they were, without codes and scales.
    pub fn is_plain(&self) -> bool {
        matches!(self, Self::Plain(dtype) if !dtype.is_block())
    }

    /// Whether every row of a weight has bytes of its own in each physical tensor.
    pub fn is_by_rows(&self) -> bool {
        !matches!(self, Self::Awq { .. } | Self::Foreign(_) | Self::Fp8Tiles { .. })
    }

    /// The axis along which bands are cut.
    pub fn band_axis(&self) -> Axis {
        match self {
            Self::Awq { .. } => Axis::In,
            _ => Axis::Out,
        }
    }

    /// Bands begin at multiples of this many lines, so that no two of them share a byte.
    pub fn line_multiple(&self) -> u64 {
        match self {
            Self::Fp8Tiles { tile, .. } => tile.0,
            Self::Awq { group } => *group,
            _ => 1,
        }
    }

    /// The physical tensors of the weight `name` of `shape`, which is a matrix of `rows` × `cols`: its numbers first.
    ///
    /// # Errors
    /// [`Unfit`] if the encoding cannot hold that many columns, or the sizes overflow.
    pub fn parts(&self, name: &str, shape: &[u64], rows: u64, cols: u64) -> Result<Vec<PartLayout>, Unfit> {
        let unfit = |needs: &str| Unfit { encoding: self.name(), needs: needs.to_owned(), rows, cols };
        let too_large = || unfit("a size that can be counted in 64 bits");
        let part = |name: String, dtype: Dtype, shape: Vec<u64>, lines_per_unit: u64, unit: u64| {
            let unit_bytes = dtype.bytes_of(unit)?;
            shape.iter().try_fold(1u64, |n, &d| n.checked_mul(d)).and_then(|n| dtype.bytes_of(n))?;
            Some(PartLayout { name, dtype, shape, lines_per_unit, unit_bytes })
        };
        let parts: Option<Vec<PartLayout>> = match *self {
            Self::Plain(dtype) => {
                let block = dtype.block_elements();
                if !cols.is_multiple_of(block) {
                    return Err(unfit(&format!("rows that are a multiple of {block} long")));
                }
                // Rows of four or six bits each fill whole bytes a few at a time.
                let whole = |lines: &u64| cols.checked_mul(*lines).is_some_and(|n| dtype.bytes_of(n).is_some());
                let lines = (1..=8).find(whole).ok_or_else(too_large)?;
                vec![part(name.to_owned(), dtype, shape.to_vec(), lines, lines * cols)].into_iter().collect()
            }
            Self::Int8Rows { scale } => {
                // The dimensions that make up the rows, and 1 for each that a row covers.
                let mut covered = 1;
                let scale_shape = shape
                    .iter()
                    .map(|&d| {
                        if covered == rows {
                            return 1;
                        }
                        covered *= d;
                        d
                    })
                    .collect();
                vec![
                    part(name.to_owned(), Dtype::I8, shape.to_vec(), 1, cols),
                    part(format!("{name}_scale"), scale, scale_shape, 1, 1),
                ]
                .into_iter()
                .collect()
            }
            Self::Int8Cols { scale } => vec![
                part(name.to_owned(), Dtype::I8, shape.to_vec(), 1, cols),
                // What belongs to the whole belongs to whichever band is the first.
                part(format!("{name}_scale"), scale, vec![cols], u64::MAX, cols),
            ]
            .into_iter()
            .collect(),
            Self::Blocked { bits, group, scale } => {
                let fits = group.is_power_of_two() && group >= 16 && cols.is_multiple_of(group);
                if shape.len() != 2 || !fits || cols == 0 {
                    return Err(unfit(&format!(
                        "a matrix with rows that are a multiple of {group} long, a power of two"
                    )));
                }
                let (blocks, bytes) = (cols / group, group * u64::from(bits) / 8);
                vec![
                    part(name.to_owned(), Dtype::U8, vec![rows, blocks, bytes], 1, blocks * bytes),
                    part(
                        format!("{name}_scales"),
                        scale,
                        vec![rows.checked_mul(blocks).ok_or_else(too_large)?],
                        1,
                        blocks,
                    ),
                ]
                .into_iter()
                .collect()
            }
            Self::PackedInt { bits, group, scale } => {
                if shape.len() != 2 || !cols.is_multiple_of(group.max(1)) || cols == 0 {
                    return Err(unfit(&format!("a matrix with rows that are a multiple of {group} long")));
                }
                let words = cols.checked_mul(u64::from(bits)).ok_or_else(too_large)?.div_ceil(32);
                vec![
                    part(format!("{name}_packed"), Dtype::I32, vec![rows, words], 1, words),
                    part(format!("{name}_scale"), scale, vec![rows, cols / group], 1, cols / group),
                    // Two numbers that belong to the whole: to whichever band is the first.
                    part(format!("{name}_shape"), Dtype::I64, vec![2], u64::MAX, 2),
                ]
                .into_iter()
                .collect()
            }
            Self::Fp8Rows { scale } => {
                if shape.len() != 2 {
                    return Err(unfit("a matrix"));
                }
                vec![
                    part(name.to_owned(), Dtype::F8E4M3, shape.to_vec(), 1, cols),
                    part(format!("{name}_scale"), scale, vec![rows, 1], 1, 1),
                ]
                .into_iter()
                .collect()
            }
            Self::Fp8Tiles { tile, scale } => vec![
                part(name.to_owned(), Dtype::F8E4M3, shape.to_vec(), 1, cols),
                part(
                    format!("{name}_scale_inv"),
                    scale,
                    vec![rows.div_ceil(tile.0), cols.div_ceil(tile.1)],
                    tile.0,
                    cols.div_ceil(tile.1),
                ),
            ]
            .into_iter()
            .collect(),
            Self::Awq { group } => {
                if !rows.is_multiple_of(8) || !cols.is_multiple_of(group) {
                    return Err(unfit(&format!("a multiple of 8 outputs and of {group} inputs")));
                }
                let module = name.strip_suffix(".weight").unwrap_or(name);
                let (words, groups) = (rows / 8, cols / group);
                vec![
                    part(format!("{module}.qweight"), Dtype::I32, vec![cols, words], 1, words),
                    part(format!("{module}.qzeros"), Dtype::I32, vec![groups, words], group, words),
                    part(format!("{module}.scales"), Dtype::F16, vec![groups, rows], group, rows),
                ]
                .into_iter()
                .collect()
            }
            Self::Foreign(foreign) => {
                if shape.len() != 2 && !foreign.is_of_graph() {
                    return Err(unfit("a matrix"));
                }
                foreign.parts(name, rows, cols)
            }
        };
        parts.ok_or_else(too_large)
    }

    /// Lines of the band axis of a matrix.
    pub fn lines(&self, rows: u64, cols: u64) -> u64 {
        match self.band_axis() {
            Axis::Out => rows,
            Axis::In => cols,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(encoding: Encoding, shape: &[u64], rows: u64, cols: u64) -> Vec<PartLayout> {
        encoding.parts("m.weight", shape, rows, cols).unwrap()
    }

    #[test]
    fn int8_has_a_scale_for_each_row_of_any_shape() {
        let scale = Encoding::Int8Rows { scale: Dtype::BF16 };
        let shapes = [
            (vec![6, 4], 6, 4, vec![6, 1]),
            (vec![3, 2, 4], 6, 4, vec![3, 2, 1]),
            (vec![6, 4, 3, 3], 6, 36, vec![6, 1, 1, 1]),
            (vec![1, 4], 1, 4, vec![1, 1]),
            (vec![1, 1], 1, 1, vec![1, 1]),
            (vec![6, 1], 6, 1, vec![6, 1]),
            (vec![1, 6, 4], 6, 4, vec![1, 6, 1]),
        ];
        for (shape, rows, cols, expected) in shapes {
            let parts = parts(scale, &shape, rows, cols);
            assert_eq!(parts[0].shape, shape);
            assert_eq!(parts[1].shape, expected, "{shape:?}");
            assert_eq!(parts[1].name, "m.weight_scale");
            assert_eq!(parts[1].bytes_of(&(2..5)), 4..10);
        }
    }

    #[test]
    fn fp8_tiles_of_128_share_a_scale_row_and_bands_respect_it() {
        let encoding = Encoding::Fp8Tiles { tile: (128, 128), scale: Dtype::F32 };
        let parts = parts(encoding, &[300, 500], 300, 500);
        assert_eq!(parts[1].shape, [3, 4]);
        assert_eq!(encoding.line_multiple(), 128);
        assert_eq!(parts[0].bytes_of(&(128..300)), 64_000..150_000);
        assert_eq!(parts[1].bytes_of(&(0..128)), 0..16);
        assert_eq!(parts[1].bytes_of(&(128..300)), 16..48);
    }

    #[test]
    fn awq_is_banded_along_its_inputs() {
        let encoding = Encoding::Awq { group: 128 };
        let parts = parts(encoding, &[64, 512], 64, 512);
        assert_eq!((encoding.band_axis(), encoding.lines(64, 512), encoding.line_multiple()), (Axis::In, 512, 128));
        assert_eq!(parts.iter().map(|p| p.shape.clone()).collect::<Vec<_>>(), [vec![512, 8], vec![4, 8], vec![4, 64]]);
        assert_eq!(parts[0].name, "m.qweight");
        let band = 128..384;
        assert_eq!(parts[0].bytes_of(&band), 128 * 32..384 * 32);
        assert_eq!(parts[1].bytes_of(&band), 32..96);
        assert_eq!(parts[2].bytes_of(&band), 128..384);
        assert!(encoding.parts("m.weight", &[64, 500], 64, 500).is_err());
    }

    #[test]
    fn rows_that_end_within_a_byte_go_together() {
        let four = &parts(Encoding::Plain(Dtype::F4), &[6, 3], 6, 3)[0];
        assert_eq!([0..2, 2..4, 0..6].map(|rows| four.bytes_of(&rows)), [0..3, 3..6, 0..9]);
        let six = &parts(Encoding::Plain(Dtype::F6E2M3), &[8], 8, 1)[0];
        assert_eq!([0..1, 1..4, 4..8].map(|rows| six.bytes_of(&rows)), [0..3, 3..3, 3..6]);
        assert!(Encoding::Plain(Dtype::F4).parts("m.weight", &[3, 3], 3, 3).is_err());
    }

    #[test]
    fn blocks_need_whole_rows() {
        let encoding = Encoding::Plain(Dtype::Q8_0);
        assert_eq!(parts(encoding, &[2, 64], 2, 64)[0].bytes_of(&(1..2)), 68..136);
        let unfit = encoding.parts("m.weight", &[2, 48], 2, 48).unwrap_err();
        assert!(unfit.to_string().contains("multiple of 32"), "{unfit}");
    }
}
