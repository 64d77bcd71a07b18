//! What other quantizers write, and this program reads and does not write.
//!
//! Codes are integers in dense streams of bits, the lowest first, along an input's or an output's axis; what differs is the
//! axis, where scales and zero points lie, and which codes share them.

use std::ops::Range;

use formats::Dtype;

use super::plain::Real;
use super::{Linear, NBits, PartLayout, fp8};

/// A form of another tool. A weight is `[rows, cols]`, outputs by inputs, whatever order it is stored in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Foreign {
    /// GPTQ (AutoGPTQ, GPTQModel): codes `[cols, rows]` packed along the inputs, zero points `[groups, rows]` packed along the
    /// outputs, scales `[groups, rows]`; value = (code − zero) · scale.
    Gptq {
        /// Bits of a code.
        bits: u8,
        /// Inputs that share a scale, where no order says otherwise.
        group: u64,
        /// Whether a last tensor says the group of each input (act-order).
        ordered: bool,
        /// What the first version of the format took from each zero point.
        less: u8,
        /// Dtype of the scales.
        scale: Dtype,
    },
    /// compressed-tensors' `pack-quantized` of any width, with zero points packed along the outputs, or with the group of
    /// each input, or both; value = (code − zero) · scale.
    Packed {
        /// Bits of a code.
        bits: u8,
        /// Columns that share a scale, where no order says otherwise.
        group: u64,
        /// Whether zero points follow; else all are the middle.
        zeros: bool,
        /// Whether a last tensor says the group of each column.
        ordered: bool,
        /// Dtype of the scales.
        scale: Dtype,
    },
    /// bitsandbytes' 4-bit types: codes of the flattened weight, the first of two in the high half of a byte; value = the
    /// type's number · the largest size of its block.
    Blocks4 {
        /// Values that share a scale.
        block: u64,
        /// Where the scales are codes themselves (double quantization): scales that share one, and what is added to all, as
        /// bits of f32.
        nested: Option<(u64, u32)>,
        /// The dtype of the weight that was quantized.
        dtype: Dtype,
    },
    /// bitsandbytes' LLM.int8: value = code · the row's largest size / 127.
    RowMax,
    /// MLX's affine mode: codes packed along the columns; value = code · scale + bias.
    Affine {
        /// Bits of a code.
        bits: u8,
        /// Columns that share a scale and a bias.
        group: u64,
        /// Dtype of both.
        scale: Dtype,
    },
    /// Codes of a byte each with a scale for each tile, whose last row and column may be cut; value = (code − zero) · scale.
    Tiles {
        /// int8, or one of two kinds of FP8.
        codes: Dtype,
        /// Rows and columns of a tile; `u64::MAX` for all of them.
        tile: (u64, u64),
        /// Whether int8 zero points follow, one for each scale.
        zeros: bool,
        /// Dtype of the scales.
        scale: Dtype,
    },
    /// ONNX's DequantizeLinear.
    Linear(Linear),
    /// onnxruntime's MatMulNBits.
    NBits(NBits),
}

impl Foreign {
    /// The name in messages and reports.
    pub fn name(&self) -> String {
        match self {
            Self::Gptq { bits, group, ordered: false, .. } => format!("GPTQ int{bits}, groups of {group}"),
            Self::Gptq { bits, group, .. } => format!("GPTQ int{bits}, groups of {group}, act-order"),
            Self::Packed { bits, group, zeros: true, .. } => format!("int{bits} in groups of {group} with zero points"),
            Self::Packed { bits, group, ordered: true, .. } => format!("int{bits} in groups of {group}, act-order"),
            Self::Packed { bits, group, .. } => format!("int{bits} in groups of {group}"),
            Self::Blocks4 { block, nested: None, .. } => format!("bitsandbytes 4-bit, blocks of {block}"),
            Self::Blocks4 { block, .. } => format!("bitsandbytes 4-bit, blocks of {block}, double quantization"),
            Self::RowMax => "bitsandbytes int8".to_owned(),
            Self::Linear(linear) => linear.name(),
            Self::NBits(blocks) => blocks.name(),
            Self::Affine { bits, group, .. } => format!("MLX int{bits}, groups of {group}"),
            Self::Tiles { codes, tile, zeros, .. } => {
                let kind = if *codes == Dtype::I8 { "int8" } else { "fp8" };
                let zeros = if *zeros { " with zero points" } else { "" };
                let part = match tile {
                    (u64::MAX, u64::MAX) => "tensor".to_owned(),
                    (1, u64::MAX) => "row".to_owned(),
                    (rows, cols) => format!("{rows}×{cols}"),
                };
                format!("{kind} per {part}{zeros}")
            }
        }
    }

    /// Whether it is a graph that says what its tensors mean.
    pub fn is_of_graph(&self) -> bool {
        matches!(self, Self::Linear(_) | Self::NBits(_))
    }

    /// The float that the form's own tool unpacks to.
    pub fn float(&self) -> Dtype {
        match *self {
            Self::Gptq { scale, .. }
            | Self::Packed { scale, .. }
            | Self::Affine { scale, .. }
            | Self::Tiles { scale, .. }
            | Self::Linear(Linear { scale, .. })
            | Self::NBits(NBits { scale, .. }) => scale,
            Self::Blocks4 { dtype, .. } => dtype,
            Self::RowMax => Dtype::F16,
        }
    }

    /// The physical tensors of a weight, in the order in which [`Foreign::unpack`] takes their bytes. `None` if sizes
    /// overflow.
    pub(super) fn parts(&self, name: &str, rows: u64, cols: u64) -> Option<Vec<PartLayout>> {
        let module = name.strip_suffix(".weight").unwrap_or(name);
        let words = |count: u64, bits: u8| Some(count.checked_mul(u64::from(bits))?.div_ceil(32));
        let by_rows = |suffix: &str, dtype, per_row: u64| {
            PartLayout::of_rows(format!("{name}{suffix}"), dtype, vec![rows, per_row], per_row)
        };
        let whole = |name: String, dtype, shape: Vec<u64>| PartLayout::whole(name, dtype, shape);
        let parts = match *self {
            Self::Linear(linear) => return linear.parts(name, rows, cols),
            Self::NBits(blocks) => return blocks.parts(name, rows, cols),
            Self::Gptq { bits, group, ordered, scale, .. } => {
                let groups = cols.div_ceil(group);
                let mut parts = vec![
                    whole(format!("{module}.qweight"), Dtype::I32, vec![words(cols, bits)?, rows]),
                    whole(format!("{module}.qzeros"), Dtype::I32, vec![groups, words(rows, bits)?]),
                    whole(format!("{module}.scales"), scale, vec![groups, rows]),
                ];
                parts.extend(ordered.then(|| whole(format!("{module}.g_idx"), Dtype::I32, vec![cols])));
                parts
            }
            Self::Packed { bits, group, zeros, ordered, scale } => {
                let groups = cols.div_ceil(group);
                let mut parts =
                    vec![by_rows("_packed", Dtype::I32, words(cols, bits)?), by_rows("_scale", scale, groups)];
                if zeros {
                    let shape = vec![words(rows, bits)?, groups];
                    parts.push(whole(format!("{name}_zero_point"), Dtype::I32, shape));
                }
                parts.extend(ordered.then(|| whole(format!("{name}_g_idx"), Dtype::I32, vec![cols])));
                parts
            }
            Self::Blocks4 { block, nested, .. } => {
                let count = rows.checked_mul(cols)?;
                let blocks = count.div_ceil(block);
                let scale = if nested.is_some() { Dtype::U8 } else { Dtype::F32 };
                let mut parts = vec![
                    whole(name.to_owned(), Dtype::U8, vec![count.div_ceil(2), 1]),
                    whole(format!("{name}.absmax"), scale, vec![blocks]),
                    whole(format!("{name}.quant_map"), Dtype::F32, vec![16]),
                ];
                if let Some((block, _)) = nested {
                    parts.push(whole(format!("{name}.nested_absmax"), Dtype::F32, vec![blocks.div_ceil(block)]));
                    parts.push(whole(format!("{name}.nested_quant_map"), Dtype::F32, vec![256]));
                }
                parts
            }
            Self::RowMax => {
                let scales = PartLayout::of_rows(format!("{module}.SCB"), Dtype::F32, vec![rows], 1);
                vec![by_rows("", Dtype::I8, cols), scales]
            }
            Self::Affine { bits, group, scale } => {
                let groups = cols.div_ceil(group);
                let more =
                    |suffix: &str| PartLayout::of_rows(format!("{module}.{suffix}"), scale, vec![rows, groups], groups);
                vec![by_rows("", Dtype::U32, words(cols, bits)?), more("scales"), more("biases")]
            }
            Self::Tiles { codes, tile, zeros, scale } => {
                let shape = vec![rows.div_ceil(tile.0), cols.div_ceil(tile.1)];
                let mut parts = vec![by_rows("", codes, cols), whole(format!("{name}_scale"), scale, shape.clone())];
                parts.extend(zeros.then(|| whole(format!("{name}_zero_point"), Dtype::I8, shape)));
                parts
            }
        };
        parts.into_iter().collect()
    }

    /// The numbers of some rows of a weight of `cols` columns, row after row. `parts` has the bytes that
    /// [`PartLayout::bytes_of`] these rows names, for each part.
    pub fn unpack(&self, parts: &[&[u8]], rows: Range<u64>, cols: u64, out: &mut [f32]) {
        let (first, count, cols) = (rows.start as usize, (rows.end - rows.start) as usize, cols as usize);
        match *self {
            Self::Linear(linear) => linear.unpack(parts, first as u64..(first + count) as u64, cols as u64, out),
            Self::NBits(blocks) => blocks.unpack(parts, first as u64..(first + count) as u64, cols as u64, out),
            Self::Gptq { bits, group, ordered, less, scale } => {
                let inputs = Inputs { group: group as usize, order: ordered.then(|| parts[3]) };
                let line = parts[2].len() / size(scale) / cols.div_ceil(group as usize).max(1);
                gptq(bits, less, scale, line, [parts[0], parts[1], parts[2]], &inputs, first..first + count, out);
            }
            Self::Packed { bits, group, zeros, ordered, scale } => {
                let columns = Inputs { group: group as usize, order: ordered.then(|| parts[parts.len() - 1]) };
                let groups = cols.div_ceil(group as usize);
                let mut scales = vec![0.0; groups];
                let words = parts[0].len() / count.max(1);
                let lines = out.chunks_exact_mut(cols).zip(parts[0].chunks_exact(words));
                for ((i, (to, codes)), from) in lines.enumerate().zip(parts[1].chunks_exact(groups * size(scale))) {
                    f32::decode(scale, from, &mut scales);
                    let middle = 1 << (bits - 1);
                    let zero = |g: usize| {
                        if zeros { across(parts[2], groups, first + i, g, bits) } else { middle }
                    };
                    let zeros: Vec<u32> = (0..groups).map(zero).collect();
                    for (k, x) in to.iter_mut().enumerate() {
                        let g = columns.of(k);
                        *x = (stream(codes, k, bits) as f32 - zeros[g] as f32) * scales[g];
                    }
                }
            }
            Self::Blocks4 { block, nested, .. } => {
                let mut map = [0.0; 16];
                f32::decode(Dtype::F32, parts[2], &mut map);
                let scale = |at: usize| match nested {
                    None => float(parts[1], at),
                    Some((block, offset)) => {
                        let code = usize::from(parts[1][at]);
                        float(parts[4], code) * float(parts[3], at / block as usize) + f32::from_bits(offset)
                    }
                };
                let mut current = (usize::MAX, 0.0);
                for (n, x) in (first * cols..).zip(out) {
                    let at = n / block as usize;
                    if current.0 != at {
                        current = (at, scale(at));
                    }
                    let byte = parts[0][n / 2];
                    let code = if n % 2 == 0 { byte >> 4 } else { byte & 15 };
                    *x = map[usize::from(code)] * current.1;
                }
            }
            Self::RowMax => {
                for (i, (to, codes)) in out.chunks_exact_mut(cols).zip(parts[0].chunks_exact(cols)).enumerate() {
                    let scale = float(parts[1], i) / 127.0;
                    to.iter_mut().zip(codes).for_each(|(x, &code)| *x = f32::from(code as i8) * scale);
                }
            }
            Self::Affine { bits, group, scale } => {
                let groups = cols.div_ceil(group as usize);
                let words = parts[0].len() / count.max(1);
                let (mut scales, mut biases) = (vec![0.0; groups], vec![0.0; groups]);
                for (i, (to, codes)) in out.chunks_exact_mut(cols).zip(parts[0].chunks_exact(words)).enumerate() {
                    let line = i * groups * size(scale)..(i + 1) * groups * size(scale);
                    f32::decode(scale, &parts[1][line.clone()], &mut scales);
                    f32::decode(scale, &parts[2][line], &mut biases);
                    for (k, x) in to.iter_mut().enumerate() {
                        let g = k / group as usize;
                        *x = stream(codes, k, bits) as f32 * scales[g] + biases[g];
                    }
                }
            }
            Self::Tiles { codes: dtype, tile, zeros, scale } => {
                let across = cols.div_ceil(tile.1 as usize);
                let mut scales = vec![0.0; across];
                for (i, (to, codes)) in out.chunks_exact_mut(cols).zip(parts[0].chunks_exact(cols)).enumerate() {
                    let line = (first + i) / tile.0 as usize * across;
                    let bytes = line * size(scale)..(line + across) * size(scale);
                    f32::decode(scale, &parts[1][bytes], &mut scales);
                    for (k, (x, &code)) in to.iter_mut().zip(codes).enumerate() {
                        let t = k / tile.1 as usize;
                        let zero = if zeros { f32::from(parts[2][line + t] as i8) } else { 0.0 };
                        let number = match dtype {
                            Dtype::F8E4M3 => fp8::decode(code),
                            Dtype::F8E5M2 => half::f16::from_bits(u16::from(code) << 8).to_f32(),
                            _ => f32::from(code as i8),
                        };
                        *x = (number - zero) * scales[t];
                    }
                }
            }
        }
    }
}

/// AWQ's GEMM form: codes `[cols, rows]`, eight outputs in a word in an order of their own, zero points likewise, scales
/// `[groups, rows]`; value = (code − zero) · scale. Each part is whole.
pub fn awq(parts: &[&[u8]], group: u64, rows: Range<u64>, all_rows: u64, cols: u64, out: &mut [f32]) {
    /// Where in its word each of eight outputs lies.
    const PLACE: [u32; 8] = [0, 4, 1, 5, 2, 6, 3, 7];
    let (first, all, cols, group) = (rows.start as usize, all_rows as usize, cols as usize, group as usize);
    let code = |bytes: &[u8], line: usize, r: usize| word(bytes, line * (all / 8) + r / 8) >> (4 * PLACE[r % 8]) & 15;
    let mut scale = [0.0];
    for (i, to) in out.chunks_exact_mut(cols).enumerate() {
        let r = first + i;
        for (g, to) in to.chunks_mut(group).enumerate() {
            let at = 2 * (g * all + r);
            f32::decode(Dtype::F16, &parts[2][at..at + 2], &mut scale);
            let zero = code(parts[1], g, r) as f32;
            for (k, x) in to.iter_mut().enumerate() {
                *x = (code(parts[0], g * group + k, r) as f32 - zero) * scale[0];
            }
        }
    }
}

/// Which group each input belongs to.
struct Inputs<'a> {
    group: usize,
    /// The group of each, as int32, checked by the loader.
    order: Option<&'a [u8]>,
}

impl Inputs<'_> {
    fn of(&self, k: usize) -> usize {
        self.order.map_or(k / self.group, |order| word(order, k) as usize)
    }
}

/// Some rows of a weight whose parts have `line` outputs in a line.
fn gptq(
    bits: u8,
    less: u8,
    scale: Dtype,
    line: usize,
    [codes, zeros, scales]: [&[u8]; 3],
    inputs: &Inputs<'_>,
    rows: Range<usize>,
    out: &mut [f32],
) {
    let count = rows.end - rows.start;
    let groups = scales.len() / size(scale) / line.max(1);
    let cols = out.len() / count.max(1);
    // Zero points and scales of these rows, group by group.
    let mut levels = vec![(0f32, 0f32); groups * count];
    let words = (line * usize::from(bits)).div_ceil(32);
    let mut numbers = vec![0f32; count];
    for (g, levels) in levels.chunks_exact_mut(count.max(1)).enumerate() {
        let at = (g * line + rows.start) * size(scale);
        f32::decode(scale, &scales[at..at + count * size(scale)], &mut numbers);
        let zeros = &zeros[4 * g * words..4 * (g + 1) * words];
        for (i, level) in levels.iter_mut().enumerate() {
            *level = ((stream(zeros, rows.start + i, bits) + u32::from(less)) as f32, numbers[i]);
        }
    }
    for k in 0..cols {
        let levels = &levels[inputs.of(k) * count..][..count];
        for (i, &(zero, scale)) in levels.iter().enumerate() {
            out[i * cols + k] = (across(codes, line, k, rows.start + i, bits) as f32 - zero) * scale;
        }
    }
}

/// Code `i` of a dense stream of bits, the lowest first.
fn stream(bytes: &[u8], i: usize, bits: u8) -> u32 {
    let at = i * usize::from(bits);
    let low = u32::from(bytes[at / 8]);
    let high = bytes.get(at / 8 + 1).map_or(0, |&byte| u32::from(byte));
    (low | high << 8) >> (at % 8) & ((1 << bits) - 1)
}

/// Code `k` of the stream that runs down column `column` of a matrix of words, `line` words in a line.
fn across(bytes: &[u8], line: usize, k: usize, column: usize, bits: u8) -> u32 {
    let at = k * usize::from(bits);
    let low = u64::from(word(bytes, at / 32 * line + column));
    let crosses = at % 32 + usize::from(bits) > 32;
    let high = if crosses { u64::from(word(bytes, (at / 32 + 1) * line + column)) } else { 0 };
    ((low | high << 32) >> (at % 32)) as u32 & ((1 << bits) - 1)
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(std::array::from_fn(|i| bytes[4 * at + i]))
}

fn float(bytes: &[u8], at: usize) -> f32 {
    f32::from_bits(word(bytes, at))
}

fn size(dtype: Dtype) -> usize {
    (dtype.block_bits() / 8) as usize
}
