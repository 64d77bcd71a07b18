//! Rows of codes, laid out the same for every form: one byte a code, and a scale (and a minimum, where the form has one) for
//! each run of 16 or 32. value = scale · (code − bias) − minimum.

use std::cell::RefCell;

use formats::Dtype;
use half::f16;

use crate::encoding::ggml::nonlinear::LEVELS;
use crate::encoding::{Form, Stored};

/// How a form's codes are scaled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Codes that share a scale: 16 or 32.
    pub run: usize,
    /// The logarithm of what codes are raised by, or none if they are not.
    pub bias: Option<u32>,
    /// Whether each run has a minimum.
    pub minima: bool,
}

impl Shape {
    /// The shape of a form whose rows of `k` columns can be multiplied as integers, run by run.
    pub fn of(form: &Form<'_>, k: usize) -> Option<Self> {
        let shape = |run, bias, minima| Some(Self { run, bias, minima });
        match form {
            Form::Blocks(Dtype::Q8_0 | Dtype::IQ4_NL | Dtype::IQ4_XS) => shape(32, Some(7), false),
            Form::Blocks(Dtype::Q4_0) => shape(32, Some(3), false),
            Form::Blocks(Dtype::Q5_0) => shape(32, Some(4), false),
            Form::Blocks(Dtype::Q4_1 | Dtype::Q5_1 | Dtype::Q4_K | Dtype::Q5_K) => shape(32, None, true),
            Form::Blocks(Dtype::Q3_K) => shape(16, Some(2), false),
            Form::Blocks(Dtype::Q6_K) => shape(16, Some(5), false),
            Form::Packed { bits, group, .. } if group.is_multiple_of(32) && k.is_multiple_of(32) => {
                shape(32, Some(u32::from(*bits) - 1), false)
            }
            _ => None,
        }
    }

    /// The shape of integers, without blocks, that activations in int16 multiply.
    pub fn of_integers(form: &Form<'_>, k: usize) -> Option<Self> {
        match form {
            Form::Int8(_) if k.is_multiple_of(32) => Some(Self { run: 32, bias: None, minima: false }),
            Form::Packed { .. } => Self::of(form, k),
            _ => None,
        }
    }
}

/// One row, expanded.
#[derive(Debug, Default)]
pub struct Row {
    k: usize,
    /// One byte each, filled up with zeros to a multiple of 512.
    pub codes: Vec<u8>,
    /// One for each run, filled up with zeros to a multiple of 32.
    pub scales: Vec<f32>,
    /// Likewise; zeros where the form has none.
    pub minima: Vec<f32>,
}

thread_local! {
    /// A row for each thread, so that none is made for every few products.
    static ROW: RefCell<Row> = RefCell::default();
}

impl Row {
    /// Room for a row of `k` columns, all zeros.
    pub fn new(k: usize) -> Self {
        let zeros = vec![0.0; k.div_ceil(512) * 32];
        Self { k, codes: vec![0; k.div_ceil(512) * 512], minima: zeros.clone(), scales: zeros }
    }

    /// Runs `work` with the thread's row, which has room for `k` columns and zeros behind them.
    #[inline(always)]
    pub fn with<T>(k: usize, work: impl FnOnce(&mut Row) -> T) -> T {
        ROW.with_borrow_mut(|row| {
            // What is behind the last column is never written but with zeros.
            if row.k != k {
                *row = Row::new(k);
            }
            work(row)
        })
    }
}

fn half(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// The low nibbles of `from` to the first half of `to`, the high ones to the second.
#[inline(always)]
fn nibbles(from: &[u8], to: &mut [u8]) {
    let (low, high) = to.split_at_mut(from.len());
    for ((byte, low), high) in from.iter().zip(low).zip(high) {
        (*low, *high) = (byte & 15, byte >> 4);
    }
}

/// Adds bit `bit` of each byte of `from`, shifted to `to`'s place `place`.
#[inline(always)]
fn add_bit(from: &[u8], bit: usize, place: u32, to: &mut [u8]) {
    // Closures that iterators are given would be called, and not be compiled for the instruction set.
    for (byte, code) in from.iter().zip(to) {
        *code |= (byte >> bit & 1) << place;
    }
}

/// Codes of 4 bits become the levels that they stand for, raised by 128.
#[inline(always)]
fn to_levels(codes: &mut [u8]) {
    for code in codes {
        *code = LEVELS[usize::from(*code & 15)] as u8 ^ 128;
    }
}

/// The scales and minima of Q4_K and Q5_K: 8 of 6 bits each in 12 bytes, by operations on whole words.
#[inline(always)]
pub(super) fn six_bits(bytes: &[u8]) -> ([u8; 8], [u8; 8]) {
    let word = |i: usize| u32::from_le_bytes([bytes[4 * i], bytes[4 * i + 1], bytes[4 * i + 2], bytes[4 * i + 3]]);
    let (a, b, c) = (word(0), word(1), word(2));
    let (low, high) = (0x3f3f_3f3f, 0x0f0f_0f0f);
    let upper = |word: u32| (word >> 6 & 0x0303_0303) << 4;
    let both = |first: u32, second: u32| (u64::from(first) | u64::from(second) << 32).to_le_bytes();
    (both(a & low, c & high | upper(a)), both(b & low, c >> 4 & high | upper(b)))
}

/// Blocks of 32.
#[inline(always)]
pub(super) fn block_of_32(dtype: Dtype, block: &[u8], codes: &mut [u8], scale: &mut f32, minimum: &mut f32) {
    *scale = half(block, 0);
    let fifth = |codes: &mut [u8], from: &[u8]| {
        for i in 0..32 {
            codes[i] |= (from[i / 8] >> (i % 8) & 1) << 4;
        }
    };
    match dtype {
        Dtype::Q8_0 => {
            for (code, byte) in codes.iter_mut().zip(&block[2..34]) {
                *code = byte ^ 128;
            }
        }
        Dtype::Q4_0 => nibbles(&block[2..18], codes),
        Dtype::IQ4_NL => {
            nibbles(&block[2..18], codes);
            to_levels(codes);
        }
        Dtype::Q4_1 => {
            nibbles(&block[4..20], codes);
            *minimum = -half(block, 2);
        }
        Dtype::Q5_0 => {
            nibbles(&block[6..22], codes);
            fifth(codes, &block[2..6]);
        }
        Dtype::Q5_1 => {
            nibbles(&block[8..24], codes);
            fifth(codes, &block[4..8]);
            *minimum = -half(block, 2);
        }
        _ => unreachable!("{dtype} has no blocks of 32 that are expanded"),
    }
}

/// Blocks of 256.
#[inline(always)]
pub(super) fn block_of_256(dtype: Dtype, block: &[u8], codes: &mut [u8], scales: &mut [f32], minima: &mut [f32]) {
    match dtype {
        Dtype::Q4_K | Dtype::Q5_K => {
            let (d, dmin) = (half(block, 0), half(block, 2));
            let (own_scales, own_minima) = six_bits(&block[4..16]);
            for j in 0..8 {
                (scales[j], minima[j]) = (d * f32::from(own_scales[j]), dmin * f32::from(own_minima[j]));
            }
            let (high, low) = if dtype == Dtype::Q5_K { block[16..].split_at(32) } else { (&[][..], &block[16..]) };
            for (j, (codes, low)) in codes.chunks_exact_mut(64).zip(low.chunks_exact(32)).enumerate() {
                nibbles(low, codes);
                let (first, second) = codes.split_at_mut(32);
                add_bit(high, 2 * j, 4, first);
                add_bit(high, 2 * j + 1, 4, second);
            }
        }
        Dtype::Q6_K => {
            let d = half(block, 208);
            scales.iter_mut().zip(&block[192..208]).for_each(|(scale, own)| *scale = d * f32::from(*own as i8));
            for (h, codes) in codes.chunks_exact_mut(128).enumerate() {
                nibbles(&block[64 * h..][..64], codes);
                for (s, codes) in codes.chunks_exact_mut(32).enumerate() {
                    let high = &block[128 + 32 * h..][..32];
                    for (code, high) in codes.iter_mut().zip(high) {
                        *code |= (high >> (2 * s) & 3) << 4;
                    }
                }
            }
        }
        Dtype::Q3_K => {
            let d = half(block, 108);
            let (low, high) = (&block[96..104], &block[104..108]);
            for (j, scale) in scales.iter_mut().enumerate() {
                let own = low[j % 8] >> (j / 8 * 4) & 15 | (high[j % 4] >> (j / 4 * 2) & 3) << 4;
                *scale = d * f32::from(own as i8 - 32);
            }
            for (s, codes) in codes.chunks_exact_mut(32).enumerate() {
                let two = &block[32 + s / 4 * 32..][..32];
                for (code, two) in codes.iter_mut().zip(two) {
                    *code = two >> (s % 4 * 2) & 3;
                }
                add_bit(&block[..32], s, 2, codes);
            }
        }
        Dtype::IQ4_XS => {
            let (d, high) = (half(block, 0), u16::from_le_bytes([block[2], block[3]]));
            for (j, codes) in codes.chunks_exact_mut(32).enumerate() {
                let own = block[4 + j / 2] >> (j % 2 * 4) & 15 | ((high >> (2 * j)) as u8 & 3) << 4;
                scales[j] = d * f32::from(own as i8 - 32);
                nibbles(&block[8 + 16 * j..][..16], codes);
                to_levels(codes);
            }
        }
        _ => unreachable!("{dtype} has no blocks of 256 that are expanded"),
    }
}

/// Expands row `i` of the matrix. Its form has a [`Shape`].
#[inline(always)]
pub(super) fn row(weights: &Stored<'_>, i: usize, k: usize, out: &mut Row) {
    let bytes = weights.row(i);
    match &weights.form {
        Form::Blocks(dtype) if dtype.block_elements() == 32 => {
            let blocks = bytes.chunks_exact(dtype.bytes_of(32).unwrap_or(1) as usize);
            for (b, block) in blocks.enumerate() {
                let codes = &mut out.codes[32 * b..][..32];
                block_of_32(*dtype, block, codes, &mut out.scales[b], &mut out.minima[b]);
            }
        }
        Form::Blocks(dtype) => {
            let runs = if matches!(dtype, Dtype::Q6_K | Dtype::Q3_K) { 16 } else { 8 };
            let blocks = bytes.chunks_exact(dtype.bytes_of(256).unwrap_or(1) as usize);
            for (b, block) in blocks.enumerate() {
                let (scales, minima) = (&mut out.scales[runs * b..][..runs], &mut out.minima[runs * b..][..runs]);
                block_of_256(*dtype, block, &mut out.codes[256 * b..][..256], scales, minima);
            }
        }
        Form::Packed { bits, .. } => {
            integer_scales(weights, i, k, out);
            if *bits == 8 {
                out.codes[..k].copy_from_slice(&bytes[..k]);
            } else {
                for (pair, byte) in out.codes[..k].chunks_exact_mut(2).zip(bytes) {
                    (pair[0], pair[1]) = (byte & 15, byte >> 4);
                }
            }
        }
        _ => unreachable!("the form has a shape"),
    }
}

/// The scales of a row of integers, one for each 32 columns.
#[inline(always)]
pub(super) fn integer_scales(weights: &Stored<'_>, i: usize, k: usize, out: &mut Row) {
    run_scales(weights, i, k, &mut out.scales);
}

/// The same, as numbers alone.
#[inline(always)]
pub(super) fn run_scales(weights: &Stored<'_>, i: usize, k: usize, out: &mut [f32]) {
    let (group, scales) = match &weights.form {
        Form::Packed { group, scales, .. } => (group, scales),
        Form::Int8(scales) => (&k, scales),
        _ => return,
    };
    let mut own = [0.0; 32];
    let groups = k / group;
    for first in (0..groups).step_by(32) {
        let own = &mut own[..32.min(groups - first)];
        scales.read_some(weights.position(i), first, own);
        let to = &mut out[first * group / 32..][..own.len() * group / 32];
        match group / 32 {
            1 => to.copy_from_slice(own),
            2 => to.as_chunks_mut::<2>().0.iter_mut().zip(own).for_each(|(to, scale)| *to = [*scale; 2]),
            4 => to.as_chunks_mut::<4>().0.iter_mut().zip(own).for_each(|(to, scale)| *to = [*scale; 4]),
            runs => to.chunks_exact_mut(runs).zip(own).for_each(|(to, scale)| to.fill(*scale)),
        }
    }
}
