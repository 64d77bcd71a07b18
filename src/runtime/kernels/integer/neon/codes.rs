//! How each form's codes come into registers: signed, 32 at a time, in the order of columns; and its scales, 256 columns at a time.

use std::arch::aarch64::*;

use formats::Dtype;

use super::super::Operands;
use super::super::expand::{run_scales, six_bits};
use super::{FOUR, SPAN};
use crate::encoding::Form;
use crate::encoding::ggml::nonlinear::LEVELS;
use crate::runtime::kernels::neon::transposed;

/// The scales of a row's runs in a span, and their minima.
#[derive(Clone, Copy)]
pub(super) struct Scales {
    pub scales: [f32; SPAN / 16],
    pub minima: [f32; SPAN / 32],
}

/// A form of rows.
pub(super) trait Codes {
    /// Codes of a run.
    const RUN: usize;
    /// Whether runs have minima.
    const MINIMA: bool;
    /// Bytes of [`SPAN`] columns.
    const BYTES: usize;

    /// Codes 32 · j … of the span at `at`.
    ///
    /// # Safety
    /// They are there; the processor has NEON.
    unsafe fn codes(at: *const u8, j: usize) -> [int8x16_t; 2];

    /// The scales and minima of as many runs of the span at `at` as are in `count` columns.
    ///
    /// # Safety
    /// They are there; the processor has NEON.
    unsafe fn scales(at: *const u8, count: usize, out: &mut Scales);
}

/// A row of weights.
#[derive(Clone, Copy)]
pub(super) struct Row<'a> {
    bytes: &'a [u8],
    /// One for each 32 columns, if they don't lie between the codes.
    scales: &'a [f32],
}

impl Row<'_> {
    /// The start of a span, of which there are `count` columns.
    #[inline(always)]
    pub(super) fn span<C: Codes>(&self, span: usize, count: usize) -> *const u8 {
        self.bytes[span * C::BYTES..][..count * C::BYTES / SPAN].as_ptr()
    }
}

/// Four rows of weights, and their scales where they don't lie between the codes.
pub(super) struct Four<'a> {
    rows: [&'a [u8]; FOUR],
    k: usize,
    scales: Vec<f32>,
}

impl<'a> Four<'a> {
    /// Room for rows of the operands.
    pub(super) fn new(o: &Operands<'a>) -> Self {
        let apart = matches!(o.weights.form, Form::Packed { .. });
        Self { rows: [&[]; FOUR], k: o.k, scales: vec![0.0; if apart { FOUR * o.k / 32 } else { 0 }] }
    }

    /// Takes up `count` rows from `first` on. Rows that there are not are the last one again.
    pub(super) fn take(&mut self, o: &Operands<'a>, first: usize, count: usize) {
        for (i, row) in self.rows.iter_mut().enumerate() {
            let at = first + i.min(count - 1);
            *row = o.weights.row(at);
            if !self.scales.is_empty() {
                run_scales(o.weights, at, o.k, &mut self.scales[i * o.k / 32..][..o.k / 32]);
            }
        }
    }

    /// The rows.
    pub(super) fn rows(&self) -> [Row<'_>; FOUR] {
        let scales = |i: usize| self.scales.get(i * self.k / 32..(i + 1) * self.k / 32).unwrap_or(&[]);
        std::array::from_fn(|i| Row { bytes: self.rows[i], scales: scales(i) })
    }
}

/// The scales and minima of four rows' runs: of a run those of the four lie together.
pub(super) struct ByRun {
    pub scales: [[f32; FOUR]; SPAN / 16],
    pub minima: [[f32; FOUR]; SPAN / 32],
}

impl ByRun {
    /// Room for a span.
    pub(super) fn new() -> Self {
        Self { scales: [[0.0; FOUR]; SPAN / 16], minima: [[0.0; FOUR]; SPAN / 32] }
    }

    /// Takes up `count` columns of a span.
    ///
    /// # Safety
    /// The processor has NEON.
    #[inline(always)]
    pub(super) unsafe fn take<C: Codes>(&mut self, rows: &[Row<'_>; FOUR], span: usize, count: usize) {
        let mut own = [Scales { scales: [0.0; SPAN / 16], minima: [0.0; SPAN / 32] }; FOUR];
        // SAFETY: the rows have these columns; four numbers are read and written at a time.
        unsafe {
            for (own, row) in own.iter_mut().zip(rows) {
                if row.scales.is_empty() {
                    C::scales(row.span::<C>(span, count), count, own);
                } else {
                    own.scales[..count / 32].copy_from_slice(&row.scales[span * (SPAN / 32)..][..count / 32]);
                }
            }
            let four = |at: [*const f32; FOUR]| {
                let mut words = [vdupq_n_s32(0); FOUR];
                for (word, at) in words.iter_mut().zip(at) {
                    *word = vld1q_s32(at.cast());
                }
                transposed(words)
            };
            for (run, out) in self.scales.as_chunks_mut::<FOUR>().0.iter_mut().enumerate().take(SPAN / C::RUN / FOUR) {
                let [a, b, c, d] = &own;
                let from = [a, b, c, d].map(|own| own.scales[FOUR * run..][..FOUR].as_ptr());
                out.iter_mut().zip(four(from)).for_each(|(out, four)| vst1q_s32(out.as_mut_ptr().cast(), four));
            }
            if C::MINIMA {
                for (run, out) in self.minima.as_chunks_mut::<FOUR>().0.iter_mut().enumerate() {
                    let [a, b, c, d] = &own;
                    let from = [a, b, c, d].map(|own| own.minima[FOUR * run..][..FOUR].as_ptr());
                    out.iter_mut().zip(four(from)).for_each(|(out, four)| vst1q_s32(out.as_mut_ptr().cast(), four));
                }
            }
        }
    }
}

/// An f16.
#[inline(always)]
unsafe fn half(at: *const u8) -> f32 {
    // SAFETY: the caller's promise: 2 bytes.
    unsafe { vgetq_lane_f32::<0>(vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16(at.cast::<u16>().read_unaligned())))) }
}

/// Unsigned codes, lowered by so much.
#[inline(always)]
unsafe fn lowered(codes: [uint8x16_t; 2], bias: i8) -> [int8x16_t; 2] {
    // SAFETY: the instruction set is there.
    unsafe {
        let bias = vdupq_n_s8(bias);
        [vsubq_s8(vreinterpretq_s8_u8(codes[0]), bias), vsubq_s8(vreinterpretq_s8_u8(codes[1]), bias)]
    }
}

/// 16 bytes of nibbles: their low ones, and their high ones.
#[inline(always)]
unsafe fn nibbles(at: *const u8) -> [uint8x16_t; 2] {
    // SAFETY: the caller's promise: 16 bytes.
    unsafe {
        let both = vld1q_u8(at);
        [vandq_u8(both, vdupq_n_u8(15)), vshrq_n_u8::<4>(both)]
    }
}

/// 32 bytes, shifted right.
#[inline(always)]
unsafe fn shifted(at: *const u8, shift: usize) -> [uint8x16_t; 2] {
    // SAFETY: the caller's promise: 32 bytes.
    unsafe {
        let shift = vdupq_n_s8(-(shift as i8));
        [vshlq_u8(vld1q_u8(at), shift), vshlq_u8(vld1q_u8(at.add(16)), shift)]
    }
}

/// The bits of bytes that `mask` has.
#[inline(always)]
unsafe fn masked(bytes: [uint8x16_t; 2], mask: u8) -> [uint8x16_t; 2] {
    // SAFETY: the instruction set is there.
    unsafe { [vandq_u8(bytes[0], vdupq_n_u8(mask)), vandq_u8(bytes[1], vdupq_n_u8(mask))] }
}

/// The lowest bits of `low`, up to PLACE, and above them those of `high`.
#[inline(always)]
unsafe fn joined<const PLACE: i32>(low: [uint8x16_t; 2], high: [uint8x16_t; 2]) -> [uint8x16_t; 2] {
    // SAFETY: the instruction set is there.
    unsafe { [vsliq_n_u8::<PLACE>(low[0], high[0]), vsliq_n_u8::<PLACE>(low[1], high[1])] }
}

/// Each of the 32 bits of 4 bytes as a byte, 0 or 1.
#[inline(always)]
unsafe fn single_bits(at: *const u8) -> [uint8x16_t; 2] {
    /// For each code, the byte that has its bit.
    static BYTES: [[u8; 16]; 2] =
        [[0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1], [2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3]];
    // SAFETY: the caller's promise: 4 bytes.
    unsafe {
        let word = vreinterpretq_u8_u32(vdupq_n_u32(at.cast::<u32>().read_unaligned()));
        let bit = vreinterpretq_u8_u64(vdupq_n_u64(0x8040_2010_0804_0201));
        let some = |bytes: &[u8; 16]| vshrq_n_u8::<7>(vtstq_u8(vqtbl1q_u8(word, vld1q_u8(bytes.as_ptr())), bit));
        [some(&BYTES[0]), some(&BYTES[1])]
    }
}

/// The levels that codes stand for.
#[inline(always)]
unsafe fn levels(codes: [uint8x16_t; 2]) -> [int8x16_t; 2] {
    // SAFETY: the instruction set is there; there are 16 levels.
    unsafe {
        let levels = vld1q_s8(LEVELS.as_ptr());
        [vqtbl1q_s8(levels, codes[0]), vqtbl1q_s8(levels, codes[1])]
    }
}

/// Blocks of 32 begin with an f16 scale.
pub(super) trait Block {
    /// Bytes of a block.
    const BYTES: usize;
    /// Whether an f16 minimum follows the scale.
    const MINIMUM: bool;

    /// The codes of the block at `at`.
    ///
    /// # Safety
    /// There is a block; the processor has NEON.
    unsafe fn codes(at: *const u8) -> [int8x16_t; 2];
}

impl<B: Block> Codes for B {
    const RUN: usize = 32;
    const MINIMA: bool = B::MINIMUM;
    const BYTES: usize = 8 * B::BYTES;

    #[inline(always)]
    unsafe fn codes(at: *const u8, j: usize) -> [int8x16_t; 2] {
        // SAFETY: the caller's promise.
        unsafe { B::codes(at.add(j * B::BYTES)) }
    }

    #[inline(always)]
    unsafe fn scales(at: *const u8, count: usize, out: &mut Scales) {
        for j in 0..count / 32 {
            // SAFETY: the caller's promise.
            unsafe {
                let block = at.add(j * B::BYTES);
                out.scales[j] = half(block);
                if B::MINIMUM {
                    // They are added, and are to be taken off.
                    out.minima[j] = -half(block.add(2));
                }
            }
        }
    }
}

struct Q8_0;
struct Q4_0;
struct Q4_1;
struct Q5_0;
struct Q5_1;
struct Iq4Nl;

impl Block for Q8_0 {
    const BYTES: usize = 34;
    const MINIMUM: bool = false;
    #[inline(always)]
    unsafe fn codes(at: *const u8) -> [int8x16_t; 2] {
        // SAFETY: the caller's promise.
        unsafe { [vld1q_s8(at.add(2).cast()), vld1q_s8(at.add(18).cast())] }
    }
}

impl Block for Q4_0 {
    const BYTES: usize = 18;
    const MINIMUM: bool = false;
    #[inline(always)]
    unsafe fn codes(at: *const u8) -> [int8x16_t; 2] {
        // SAFETY: the caller's promise.
        unsafe { lowered(nibbles(at.add(2)), 8) }
    }
}

impl Block for Q4_1 {
    const BYTES: usize = 20;
    const MINIMUM: bool = true;
    #[inline(always)]
    unsafe fn codes(at: *const u8) -> [int8x16_t; 2] {
        // SAFETY: the caller's promise.
        unsafe { lowered(nibbles(at.add(4)), 0) }
    }
}

impl Block for Q5_0 {
    const BYTES: usize = 22;
    const MINIMUM: bool = false;
    #[inline(always)]
    unsafe fn codes(at: *const u8) -> [int8x16_t; 2] {
        // SAFETY: the caller's promise.
        unsafe { lowered(joined::<4>(nibbles(at.add(6)), single_bits(at.add(2))), 16) }
    }
}

impl Block for Q5_1 {
    const BYTES: usize = 24;
    const MINIMUM: bool = true;
    #[inline(always)]
    unsafe fn codes(at: *const u8) -> [int8x16_t; 2] {
        // SAFETY: the caller's promise.
        unsafe { lowered(joined::<4>(nibbles(at.add(8)), single_bits(at.add(4))), 0) }
    }
}

impl Block for Iq4Nl {
    const BYTES: usize = 18;
    const MINIMUM: bool = false;
    #[inline(always)]
    unsafe fn codes(at: *const u8) -> [int8x16_t; 2] {
        // SAFETY: the caller's promise.
        unsafe { levels(nibbles(at.add(2))) }
    }
}

/// Q4_K, or Q5_K if FIVE.
struct Affine<const FIVE: bool>;

impl<const FIVE: bool> Codes for Affine<FIVE> {
    const RUN: usize = 32;
    const MINIMA: bool = true;
    const BYTES: usize = if FIVE { 176 } else { 144 };

    #[inline(always)]
    unsafe fn codes(at: *const u8, j: usize) -> [int8x16_t; 2] {
        // SAFETY: the caller's promise.
        unsafe {
            let low = shifted(at.add(if FIVE { 48 } else { 16 } + 32 * (j / 2)), 4 * (j % 2));
            let high = if FIVE { masked(shifted(at.add(16), j), 1) } else { [vdupq_n_u8(0); 2] };
            lowered(if FIVE { joined::<4>(low, high) } else { masked(low, 15) }, 0)
        }
    }

    #[inline(always)]
    unsafe fn scales(at: *const u8, _: usize, out: &mut Scales) {
        // SAFETY: the caller's promise: a block, whose head has 16 bytes.
        unsafe {
            let (d, dmin) = (half(at), half(at.add(2)));
            let (scales, minima) = six_bits(std::slice::from_raw_parts(at.add(4), 12));
            for j in 0..8 {
                (out.scales[j], out.minima[j]) = (d * f32::from(scales[j]), dmin * f32::from(minima[j]));
            }
        }
    }
}

/// Q6_K.
struct Q6K;

impl Codes for Q6K {
    const RUN: usize = 16;
    const MINIMA: bool = false;
    const BYTES: usize = 210;

    #[inline(always)]
    unsafe fn codes(at: *const u8, j: usize) -> [int8x16_t; 2] {
        let (half, part) = (j / 4, j % 4);
        // SAFETY: the caller's promise.
        unsafe {
            let low = shifted(at.add(64 * half + 32 * (part % 2)), 4 * (part / 2));
            let high = masked(shifted(at.add(128 + 32 * half), 2 * part), 3);
            lowered(joined::<4>(low, high), 32)
        }
    }

    #[inline(always)]
    unsafe fn scales(at: *const u8, _: usize, out: &mut Scales) {
        // SAFETY: the caller's promise: a block.
        unsafe {
            let d = half(at.add(208));
            for (j, scale) in out.scales.iter_mut().enumerate() {
                *scale = d * f32::from(*at.add(192 + j) as i8);
            }
        }
    }
}

/// Q3_K.
struct Q3K;

impl Codes for Q3K {
    const RUN: usize = 16;
    const MINIMA: bool = false;
    const BYTES: usize = 110;

    #[inline(always)]
    unsafe fn codes(at: *const u8, j: usize) -> [int8x16_t; 2] {
        // SAFETY: the caller's promise.
        unsafe {
            let low = shifted(at.add(32 + 32 * (j / 4)), 2 * (j % 4));
            let high = masked(shifted(at, j), 1);
            lowered(joined::<2>(low, high), 4)
        }
    }

    #[inline(always)]
    unsafe fn scales(at: *const u8, _: usize, out: &mut Scales) {
        // SAFETY: the caller's promise: a block.
        unsafe {
            let d = half(at.add(108));
            let (low, high) = (at.add(96), at.add(104));
            for (j, scale) in out.scales.iter_mut().enumerate() {
                let own = *low.add(j % 8) >> (j / 8 * 4) & 15 | (*high.add(j % 4) >> (j / 4 * 2) & 3) << 4;
                *scale = d * f32::from(own as i8 - 32);
            }
        }
    }
}

/// IQ4_XS.
struct Iq4Xs;

impl Codes for Iq4Xs {
    const RUN: usize = 32;
    const MINIMA: bool = false;
    const BYTES: usize = 136;

    #[inline(always)]
    unsafe fn codes(at: *const u8, j: usize) -> [int8x16_t; 2] {
        // SAFETY: the caller's promise.
        unsafe { levels(nibbles(at.add(8 + 16 * j))) }
    }

    #[inline(always)]
    unsafe fn scales(at: *const u8, _: usize, out: &mut Scales) {
        // SAFETY: the caller's promise: a block.
        unsafe {
            let (d, high) = (half(at), at.add(2).cast::<u16>().read_unaligned());
            for j in 0..8 {
                let own = *at.add(4 + j / 2) >> (j % 2 * 4) & 15 | ((high >> (2 * j)) as u8 & 3) << 4;
                out.scales[j] = d * f32::from(own as i8 - 32);
            }
        }
    }
}

/// Packed integers of BITS bits, 4 or 8: scales lie apart.
struct Packed<const BITS: usize>;

impl<const BITS: usize> Codes for Packed<BITS> {
    const RUN: usize = 32;
    const MINIMA: bool = false;
    const BYTES: usize = SPAN * BITS / 8;

    #[inline(always)]
    unsafe fn codes(at: *const u8, j: usize) -> [int8x16_t; 2] {
        // SAFETY: the caller's promise.
        unsafe {
            if BITS == 4 {
                let [low, high] = nibbles(at.add(16 * j));
                lowered([vzip1q_u8(low, high), vzip2q_u8(low, high)], 8)
            } else {
                lowered([vld1q_u8(at.add(32 * j)), vld1q_u8(at.add(32 * j + 16))], -128)
            }
        }
    }

    #[inline(always)]
    unsafe fn scales(_: *const u8, _: usize, _: &mut Scales) {}
}

/// What works on any form.
pub(super) trait Visitor {
    /// Works on this one.
    ///
    /// # Safety
    /// As [`super::multiply`].
    unsafe fn visit<C: Codes>(self, o: &Operands<'_>);
}

/// Runs `visitor` on the operands' form.
///
/// # Safety
/// As [`super::multiply`].
pub(super) unsafe fn dispatch(o: &Operands<'_>, visitor: impl Visitor) {
    // SAFETY: the caller's promise.
    unsafe {
        match o.weights.form {
            Form::Blocks(Dtype::Q8_0) => visitor.visit::<Q8_0>(o),
            Form::Blocks(Dtype::Q4_0) => visitor.visit::<Q4_0>(o),
            Form::Blocks(Dtype::Q4_1) => visitor.visit::<Q4_1>(o),
            Form::Blocks(Dtype::Q5_0) => visitor.visit::<Q5_0>(o),
            Form::Blocks(Dtype::Q5_1) => visitor.visit::<Q5_1>(o),
            Form::Blocks(Dtype::IQ4_NL) => visitor.visit::<Iq4Nl>(o),
            Form::Blocks(Dtype::Q4_K) => visitor.visit::<Affine<false>>(o),
            Form::Blocks(Dtype::Q5_K) => visitor.visit::<Affine<true>>(o),
            Form::Blocks(Dtype::Q6_K) => visitor.visit::<Q6K>(o),
            Form::Blocks(Dtype::Q3_K) => visitor.visit::<Q3K>(o),
            Form::Blocks(Dtype::IQ4_XS) => visitor.visit::<Iq4Xs>(o),
            Form::Packed { bits: 4, .. } => visitor.visit::<Packed<4>>(o),
            Form::Packed { bits: 8, .. } => visitor.visit::<Packed<8>>(o),
            _ => unreachable!("the form has a shape"),
        }
    }
}
