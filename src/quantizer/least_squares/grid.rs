//! What a form can store, every form alike: levels in sub-blocks of values d · scale · level − dmin · min, where `d` and `dmin`
//! are floats of a dtype, scales and minima small integers. Forms of a single scale have one sub-block to a block with the
//! scale 1, and Q4_1 and Q5_1 the minimum 1, whose `dmin` may have either sign.

use formats::Dtype;
use half::f16;

use super::Form;
use crate::encoding::ggml::nonlinear::LEVELS;
use crate::encoding::ggml::{scales, unpack};
use crate::encoding::{fp8, plain, plain::Real};
use crate::quantizer::ggml::nonlinear;

/// What codes stand for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Levels {
    /// The integers from the first to the last.
    Integers(f32, f32),
    /// The levels of IQ4_NL.
    Nonlinear,
    /// The numbers of FP8 E4M3.
    Fp8,
}

impl Levels {
    /// The level nearest to a number.
    #[inline(always)]
    pub fn nearest(self, x: f32) -> f32 {
        match self {
            // NaN, which 0 · ∞ is, becomes the first.
            Self::Integers(low, high) => x.max(low).min(high).round_ties_even(),
            Self::Nonlinear => nonlinear::level(x),
            Self::Fp8 => fp8::decode(fp8::encode(x)),
        }
    }

    /// The code of a level.
    fn code(self, level: f32) -> u8 {
        match self {
            Self::Integers(low, _) => (level - low) as u8,
            Self::Nonlinear => nonlinear::code(level),
            Self::Fp8 => fp8::encode(level),
        }
    }

    /// The levels at the ends.
    pub fn ends(self) -> [f32; 2] {
        match self {
            Self::Integers(low, high) => [low, high],
            Self::Nonlinear => [f32::from(LEVELS[0]), f32::from(LEVELS[15])],
            Self::Fp8 => [-fp8::MAX, fp8::MAX],
        }
    }
}

/// The minima of a form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Minima {
    /// There are none.
    None,
    /// One for each block, of either sign.
    Free,
    /// From zero to so many times `dmin`.
    Multiples(i32),
}

/// What a form can store in a row.
#[derive(Debug, Clone, Copy)]
pub struct Grid {
    form: Form,
    /// Of `d` and `dmin`.
    dtype: Dtype,
    cols: usize,
    /// Columns of a sub-block.
    pub sub: usize,
    /// Sub-blocks of a block.
    pub per: usize,
    /// What codes stand for.
    pub levels: Levels,
    /// The least and the greatest scale.
    pub scales: [i32; 2],
    /// The minima.
    pub minima: Minima,
    /// Whether `d` may be negative.
    pub signed: bool,
}

/// A row as it is stored.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// For each column.
    pub levels: Vec<f32>,
    /// For each block.
    pub d: Vec<f32>,
    /// For each block.
    pub dmin: Vec<f32>,
    /// For each sub-block.
    pub scales: Vec<i32>,
    /// For each sub-block.
    pub mins: Vec<i32>,
}

impl Grid {
    /// Of a form, for weights of a dtype with so many columns.
    ///
    /// # Panics
    /// If the form cannot hold so many columns.
    pub fn new(form: Form, dtype: Dtype, cols: usize) -> Self {
        let one = |dtype, sub, levels, signed| Self {
            form,
            dtype,
            cols,
            sub,
            per: 1,
            levels,
            scales: [1, 1],
            minima: Minima::None,
            signed,
        };
        let integers = |zero: i32| Levels::Integers(-zero as f32, (zero - 1) as f32);
        let from_zero = |most: i32| Levels::Integers(0.0, most as f32);
        let grid = match form {
            Form::Int8Rows => one(dtype, cols, integers(128), false),
            Form::Fp8Rows => one(dtype, cols, Levels::Fp8, false),
            Form::Packed { bits, group } => one(dtype, group as usize, integers(1 << (bits - 1)), false),
            Form::Blocks(block) => {
                let single = |levels| one(Dtype::F16, 32, levels, true);
                let affine = |sub, levels, top| Self {
                    sub,
                    per: 256 / sub,
                    scales: [0, top],
                    minima: Minima::Multiples(top),
                    ..one(Dtype::F16, sub, levels, false)
                };
                let symmetric = |sub, levels, top: i32| Self {
                    sub,
                    per: 256 / sub,
                    scales: [-top, top - 1],
                    ..one(Dtype::F16, sub, levels, true)
                };
                match block {
                    Dtype::Q8_0 => single(integers(128)),
                    Dtype::Q4_0 => single(integers(8)),
                    Dtype::Q5_0 => single(integers(16)),
                    Dtype::IQ4_NL => single(Levels::Nonlinear),
                    Dtype::Q4_1 => Self { minima: Minima::Free, ..single(from_zero(15)) },
                    Dtype::Q5_1 => Self { minima: Minima::Free, ..single(from_zero(31)) },
                    Dtype::Q2_K => affine(16, from_zero(3), 15),
                    Dtype::Q4_K => affine(32, from_zero(15), 63),
                    Dtype::Q5_K => affine(32, from_zero(31), 63),
                    Dtype::Q3_K => symmetric(16, integers(4), 32),
                    Dtype::Q6_K => symmetric(16, integers(32), 128),
                    Dtype::IQ4_XS => symmetric(32, Levels::Nonlinear, 32),
                    _ => panic!("{block} is not a type that is quantized to"),
                }
            }
        };
        assert!(grid.sub > 0 && cols.is_multiple_of(grid.block()), "the row is whole blocks");
        grid
    }

    /// The form.
    pub fn form(&self) -> Form {
        self.form
    }

    /// The dtype of `d` and `dmin`.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Columns of a block.
    pub fn block(&self) -> usize {
        self.sub * self.per
    }

    /// Columns of a row.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The number nearest to a scale that `d` or `dmin` can be: the nearest of the dtype, or its largest.
    pub fn stored(&self, x: f32) -> f32 {
        match self.dtype {
            Dtype::F16 => {
                let most = f16::MAX.to_f32();
                f16::from_f32(x.clamp(-most, most)).to_f32()
            }
            Dtype::BF16 => half::bf16::from_f32(x).to_f32(),
            _ => x,
        }
    }

    /// The factor of the levels of a sub-block, and what is taken from their products.
    #[inline(always)]
    pub fn of(&self, row: &Row, j: usize) -> (f32, f32) {
        let b = j / self.per;
        (row.d[b] * row.scales[j] as f32, row.dmin[b] * row.mins[j] as f32)
    }

    /// The values of a row that a reader gets back.
    pub fn values(&self, row: &Row, out: &mut [f32]) {
        let sub_blocks = out.chunks_exact_mut(self.sub).zip(row.levels.chunks_exact(self.sub));
        for (j, (out, levels)) in sub_blocks.enumerate() {
            let (a, b) = self.of(row, j);
            out.iter_mut().zip(levels).for_each(|(out, level)| *out = a * level - b);
        }
    }

    /// Bytes of a row in each part.
    pub fn row_bytes(&self) -> Vec<usize> {
        let of = |dtype: Dtype, n: usize| dtype.bytes_of(n as u64).unwrap_or(0) as usize;
        match self.form {
            Form::Blocks(dtype) => vec![of(dtype, self.cols)],
            Form::Packed { bits, .. } => {
                vec![4 * (self.cols * usize::from(bits)).div_ceil(32), of(self.dtype, self.cols / self.sub)]
            }
            _ => vec![self.cols, of(self.dtype, 1)],
        }
    }

    /// A row of zeros.
    pub fn empty(&self) -> Row {
        let (subs, blocks) = (self.cols / self.sub, self.cols / self.block());
        let level = self.levels.nearest(0.0);
        let min = i32::from(self.minima == Minima::Free);
        Row {
            levels: vec![level; self.cols],
            d: vec![0.0; blocks],
            dmin: vec![0.0; blocks],
            scales: vec![self.scales[1].min(1); subs],
            mins: vec![min; subs],
        }
    }

    /// Appends a row to the parts.
    pub fn write(&self, row: &Row, parts: &mut [Vec<u8>]) {
        let codes = row.levels.iter().map(|&level| self.levels.code(level));
        let start = parts[0].len();
        parts[0].resize(start + self.row_bytes()[0], 0);
        let out = &mut parts[0][start..];
        match self.form {
            Form::Blocks(dtype) => {
                let codes: Vec<u8> = codes.collect();
                let (block, bytes) = (self.block(), out.len() / row.d.len().max(1));
                for (b, (codes, out)) in codes.chunks_exact(block).zip(out.chunks_exact_mut(bytes)).enumerate() {
                    let mut found = scales::Scales { d: row.d[b], dmin: row.dmin[b], scales: [0; 16], mins: [0; 16] };
                    for j in 0..self.per {
                        found.scales[j] = row.scales[b * self.per + j];
                        found.mins[j] = row.mins[b * self.per + j];
                    }
                    scales::write(dtype, &found, codes, out);
                }
                return;
            }
            Form::Packed { bits: 4, .. } => {
                codes.enumerate().for_each(|(i, code)| out[i / 2] |= code << (4 * (i % 2)));
            }
            Form::Int8Rows => out.iter_mut().zip(codes).for_each(|(out, code)| *out = code.wrapping_sub(128)),
            _ => out.iter_mut().zip(codes).for_each(|(out, code)| *out = code),
        }
        let start = parts[1].len();
        parts[1].resize(start + self.row_bytes()[1], 0);
        plain::encode(&row.d, self.dtype, &mut parts[1][start..]);
    }

    /// A row from its bytes in each part.
    pub fn read(&self, parts: &[&[u8]]) -> Row {
        let mut row = self.empty();
        let mut values = vec![0.0; self.cols];
        match self.form {
            Form::Blocks(dtype) => {
                let bytes = parts[0].len() / row.d.len().max(1);
                for (b, block) in parts[0].chunks_exact(bytes).enumerate() {
                    let found = scales::read(dtype, block);
                    (row.d[b], row.dmin[b]) = (found.d, found.dmin);
                    for j in 0..self.per {
                        row.scales[b * self.per + j] = found.scales[j];
                        row.mins[b * self.per + j] = found.mins[j];
                    }
                }
                unpack(dtype, parts[0], &mut values);
                // Levels are few, and the rounding of their products is far finer than they.
                for j in 0..row.scales.len() {
                    let (a, b) = self.of(&row, j);
                    let columns = j * self.sub..(j + 1) * self.sub;
                    for (level, value) in row.levels[columns.clone()].iter_mut().zip(&values[columns]) {
                        let exact = (f64::from(*value) + f64::from(b)) / f64::from(a);
                        *level = if a == 0.0 { *level } else { self.levels.nearest(exact as f32) };
                    }
                }
            }
            Form::Packed { bits: 4, .. } => {
                let codes = (0..self.cols).map(|i| parts[0][i / 2] >> (4 * (i % 2)) & 15);
                row.levels.iter_mut().zip(codes).for_each(|(level, code)| *level = f32::from(code) - 8.0);
            }
            Form::Packed { .. } => {
                row.levels.iter_mut().zip(parts[0]).for_each(|(level, &code)| *level = f32::from(code) - 128.0);
            }
            Form::Int8Rows => {
                row.levels.iter_mut().zip(parts[0]).for_each(|(level, &code)| *level = f32::from(code as i8));
            }
            Form::Fp8Rows => row.levels.iter_mut().zip(parts[0]).for_each(|(level, &code)| *level = fp8::decode(code)),
        }
        if let [_, scales] = parts {
            f32::decode(self.dtype, scales, &mut row.d);
        }
        row
    }
}
