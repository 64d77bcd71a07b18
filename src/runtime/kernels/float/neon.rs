//! NEON. A lane of a sum has the products of every fourth column, so that neither side is transposed: 4 numbers of a row of
//! weights, as f32, are multiplied by 4 of x where they lie. A sum goes through [`COLUMNS`] columns from zero, its lanes are added,
//! and it is added to those before, so that its bits depend on nothing but the columns: not on how many rows there are beside it.

use std::arch::aarch64::*;
use std::cell::Cell;

use formats::Dtype;

use super::{Operands, PANEL, portable};
use crate::encoding::Form;
use crate::runtime::kernels::neon::float_totals;
use crate::runtime::kernels::tiles::Tile;

/// Columns that are multiplied before their sums are added to the others: of a tile of weights they stay in the first cache.
const COLUMNS: usize = 256;

/// Rows of x that use each load of weights that were unpacked. With [`FOUR`], 24 sums, 4 registers of weights and one of x.
const ROWS: usize = 6;

/// Rows of weights whose sums are added together across lanes.
const FOUR: usize = 4;

thread_local! {
    /// Rows of weights, unpacked: COLUMNS columns of PANEL.
    static UNPACKED: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

/// How 16 numbers become f32.
trait Load {
    /// Bytes of 16 numbers.
    const BYTES: usize;
    /// Whether numbers are multiplied by a scale of their group when they are loaded.
    const GROUPS: bool = false;

    /// The numbers at `at`, and of groups times `scale`.
    ///
    /// # Safety
    /// There are [`Load::BYTES`] bytes; the processor has NEON.
    unsafe fn load(at: *const u8, scale: f32) -> [float32x4_t; 4];
}

struct F32;
struct F16;
struct Bf16;
struct Signed;
struct Excess128;
struct Fp8;
struct Int4;

impl Load for F32 {
    const BYTES: usize = 64;
    #[inline(always)]
    unsafe fn load(at: *const u8, _: f32) -> [float32x4_t; 4] {
        // SAFETY: the caller's promise.
        unsafe {
            let at: *const f32 = at.cast();
            [vld1q_f32(at), vld1q_f32(at.add(4)), vld1q_f32(at.add(8)), vld1q_f32(at.add(12))]
        }
    }
}

/// 16 halves, in two registers, as f32.
#[inline(always)]
unsafe fn halves(low: uint16x8_t, high: uint16x8_t) -> [float32x4_t; 4] {
    // SAFETY: the instruction set is there.
    unsafe {
        let (low, high) = (vreinterpretq_f16_u16(low), vreinterpretq_f16_u16(high));
        [
            vcvt_f32_f16(vget_low_f16(low)),
            vcvt_high_f32_f16(low),
            vcvt_f32_f16(vget_low_f16(high)),
            vcvt_high_f32_f16(high),
        ]
    }
}

impl Load for F16 {
    const BYTES: usize = 32;
    #[inline(always)]
    unsafe fn load(at: *const u8, _: f32) -> [float32x4_t; 4] {
        // SAFETY: the caller's promise.
        unsafe { halves(vreinterpretq_u16_u8(vld1q_u8(at)), vreinterpretq_u16_u8(vld1q_u8(at.add(16)))) }
    }
}

/// The upper halves of 16 f32, in two registers.
#[inline(always)]
unsafe fn upper(low: uint16x8_t, high: uint16x8_t) -> [float32x4_t; 4] {
    // SAFETY: the instruction set is there.
    unsafe {
        [
            vreinterpretq_f32_u32(vshll_n_u16::<16>(vget_low_u16(low))),
            vreinterpretq_f32_u32(vshll_high_n_u16::<16>(low)),
            vreinterpretq_f32_u32(vshll_n_u16::<16>(vget_low_u16(high))),
            vreinterpretq_f32_u32(vshll_high_n_u16::<16>(high)),
        ]
    }
}

impl Load for Bf16 {
    const BYTES: usize = 32;
    #[inline(always)]
    unsafe fn load(at: *const u8, _: f32) -> [float32x4_t; 4] {
        // SAFETY: the caller's promise.
        unsafe { upper(vreinterpretq_u16_u8(vld1q_u8(at)), vreinterpretq_u16_u8(vld1q_u8(at.add(16)))) }
    }
}

/// 16 integers as f32.
#[inline(always)]
unsafe fn integers(codes: int8x16_t) -> [float32x4_t; 4] {
    // SAFETY: the instruction set is there.
    unsafe {
        let (low, high) = (vmovl_s8(vget_low_s8(codes)), vmovl_high_s8(codes));
        [
            vcvtq_f32_s32(vmovl_s16(vget_low_s16(low))),
            vcvtq_f32_s32(vmovl_high_s16(low)),
            vcvtq_f32_s32(vmovl_s16(vget_low_s16(high))),
            vcvtq_f32_s32(vmovl_high_s16(high)),
        ]
    }
}

impl Load for Signed {
    const BYTES: usize = 16;
    #[inline(always)]
    unsafe fn load(at: *const u8, _: f32) -> [float32x4_t; 4] {
        // SAFETY: the caller's promise.
        unsafe { integers(vld1q_s8(at.cast())) }
    }
}

impl Load for Excess128 {
    const BYTES: usize = 16;
    #[inline(always)]
    unsafe fn load(at: *const u8, _: f32) -> [float32x4_t; 4] {
        // SAFETY: the caller's promise.
        unsafe { integers(vreinterpretq_s8_u8(veorq_u8(vld1q_u8(at), vdupq_n_u8(128)))) }
    }
}

/// E4M3 has the fields of f16, with fewer bits: moved into their places, it is an f16 that is 2⁸ times too small, subnormal
/// numbers included.
#[inline(always)]
unsafe fn moved(codes: uint16x8_t) -> uint16x8_t {
    // SAFETY: the instruction set is there.
    unsafe {
        // The sign is copied down one bit and taken out of there.
        let signed = vshrq_n_s16::<1>(vshlq_n_s16::<8>(vreinterpretq_s16_u16(codes)));
        let half = vandq_u16(vreinterpretq_u16_s16(signed), vdupq_n_u16(0xbfff));
        let nan = vceqq_u16(vandq_u16(codes, vdupq_n_u16(0x7f)), vdupq_n_u16(0x7f));
        vbslq_u16(nan, vdupq_n_u16(0x7e00), half)
    }
}

impl Load for Fp8 {
    const BYTES: usize = 16;
    #[inline(always)]
    unsafe fn load(at: *const u8, _: f32) -> [float32x4_t; 4] {
        // SAFETY: the caller's promise.
        unsafe {
            let codes = vld1q_u8(at);
            let mut numbers = halves(moved(vmovl_u8(vget_low_u8(codes))), moved(vmovl_high_u8(codes)));
            for number in &mut numbers {
                *number = vmulq_n_f32(*number, 256.0);
            }
            numbers
        }
    }
}

/// The upper two bytes, the higher one first, of −8 … 7 in f32; the lower two are zero.
static NUMBERS: [[u8; 16]; 2] = {
    let mut bytes = [[0; 16]; 2];
    let mut code = 0;
    while code < 16 {
        let bits = (code as f32 - 8.0).to_bits();
        (bytes[0][code], bytes[1][code]) = ((bits >> 24) as u8, (bits >> 16) as u8);
        code += 1;
    }
    bytes
};

impl Load for Int4 {
    const BYTES: usize = 8;
    const GROUPS: bool = true;
    #[inline(always)]
    unsafe fn load(at: *const u8, scale: f32) -> [float32x4_t; 4] {
        // SAFETY: the caller's promise.
        unsafe {
            let (high, low) = (vld1q_u8(NUMBERS[0].as_ptr()), vld1q_u8(NUMBERS[1].as_ptr()));
            let bytes = vcombine_u8(vld1_u8(at), vdup_n_u8(0));
            let codes = vzip1q_u8(vandq_u8(bytes, vdupq_n_u8(15)), vshrq_n_u8::<4>(bytes));
            let (high, low) = (vqtbl1q_u8(high, codes), vqtbl1q_u8(low, codes));
            let (first, second) = (vzip1q_u8(low, high), vzip2q_u8(low, high));
            let mut numbers = upper(vreinterpretq_u16_u8(first), vreinterpretq_u16_u8(second));
            for number in &mut numbers {
                *number = vmulq_n_f32(*number, scale);
            }
            numbers
        }
    }
}

/// Some rows of weights as they are stored.
struct Weights<'a, const N: usize> {
    rows: [&'a [u8]; N],
    /// `[k / group, N]`, if numbers are multiplied by them.
    scales: &'a [f32],
    group: usize,
}

impl<const N: usize> Weights<'_, N> {
    /// The scales of a column.
    #[inline(always)]
    fn scales<L: Load>(&self, column: usize) -> [f32; N] {
        let groups = self.scales.as_chunks::<N>().0;
        if L::GROUPS { groups[column / self.group] } else { [1.0; N] }
    }
}

/// Adds to sums what 16 columns of N rows of weights and M rows of x, `stride` apart, give.
///
/// # Safety
/// There are so many; the processor has NEON.
#[inline(always)]
unsafe fn add<L: Load, const M: usize, const N: usize>(
    sums: &mut [[float32x4_t; N]; M],
    weights: [*const u8; N],
    scales: [f32; N],
    x: *const f32,
    stride: usize,
) {
    for (j, (at, scale)) in weights.into_iter().zip(scales).enumerate() {
        // SAFETY: the caller's promise.
        unsafe {
            let weights = L::load(at, scale);
            for (i, sums) in sums.iter_mut().enumerate() {
                for (q, weights) in weights.into_iter().enumerate() {
                    sums[j] = vfmaq_f32(sums[j], weights, vld1q_f32(x.add(i * stride + 4 * q)));
                }
            }
        }
    }
}

/// The products of N rows of weights, a multiple of four, and M rows of x, `k` apart.
///
/// # Safety
/// The rows have k columns, and so many scales if numbers are multiplied by them; the processor has NEON.
#[inline(always)]
unsafe fn products<L: Load, const M: usize, const N: usize>(
    w: &Weights<'_, N>,
    x: *const f32,
    k: usize,
) -> [[f32; N]; M] {
    let mut totals = [[0.0; N]; M];
    // SAFETY: what is read lies below column k; the last columns, if they are fewer than 16, are read from copies, where zeros
    // are behind them.
    unsafe {
        for first in (0..k).step_by(COLUMNS) {
            let end = k.min(first + COLUMNS);
            let mut sums = [[vdupq_n_f32(0.0); N]; M];
            let mut at = first;
            while at + 16 <= end {
                let mut starts = [w.rows[0].as_ptr(); N];
                for (start, row) in starts.iter_mut().zip(w.rows) {
                    *start = row.as_ptr().add(at / 16 * L::BYTES);
                }
                add::<L, M, N>(&mut sums, starts, w.scales::<L>(at), x.add(at), k);
                at += 16;
            }
            if at < end {
                let (mut last_w, mut last_x) = ([[0; 64]; N], [[0.0; 16]; M]);
                let mut starts = [w.rows[0].as_ptr(); N];
                for (j, last) in last_w.iter_mut().enumerate() {
                    let rest = &w.rows[j][at / 16 * L::BYTES..][..(end - at) * L::BYTES / 16];
                    last[..rest.len()].copy_from_slice(rest);
                    starts[j] = last.as_ptr();
                }
                for (i, last) in last_x.iter_mut().enumerate() {
                    std::ptr::copy_nonoverlapping(x.add(i * k + at), last.as_mut_ptr(), end - at);
                }
                add::<L, M, N>(&mut sums, starts, w.scales::<L>(at), last_x.as_ptr().cast(), 16);
            }
            for (sums, totals) in sums.iter().zip(&mut totals) {
                for (sums, totals) in sums.as_chunks::<FOUR>().0.iter().zip(totals.as_chunks_mut::<FOUR>().0) {
                    let mut four = float_totals(*sums);
                    if first > 0 {
                        four = vaddq_f32(four, vld1q_f32(totals.as_ptr()));
                    }
                    vst1q_f32(totals.as_mut_ptr(), four);
                }
            }
        }
    }
    totals
}

/// M rows of x: weights become f32 next to the multiply.
///
/// # Safety
/// As [`neon`], for M rows.
#[inline(always)]
unsafe fn few<L: Load, const M: usize, const N: usize>(o: &Operands<'_>, tile: &mut Tile<'_>) {
    let (k, cols) = (o.k, tile.cols());
    let x = o.x.f32()[tile.first_row() * k..][..M * k].as_ptr();
    let (mut by_group, mut own) = (Vec::new(), Vec::new());
    for j in (0..cols).step_by(N) {
        let count = N.min(cols - j);
        // Rows that there are not are the last one again, and are not stored.
        let row = |i: usize| o.first + j + i.min(count - 1);
        let mut group = 1;
        if let (true, Form::Packed { scales, group: columns, .. }) = (L::GROUPS, &o.weights.form) {
            group = *columns;
            by_group.resize(scales.per_row * N, 0.0);
            own.resize(scales.per_row, 0.0);
            for i in 0..N {
                scales.read(o.weights.position(row(i)), &mut own);
                let groups = by_group.as_chunks_mut::<N>().0.iter_mut();
                groups.zip(&own).for_each(|(group, scale)| group[i] = *scale);
            }
        }
        let mut scales = [1.0; N];
        o.own_scales(j, &mut scales[..count]);
        let w = Weights { rows: std::array::from_fn(|i| o.weights.row(row(i))), scales: &by_group, group };
        // SAFETY: the caller's promise: rows have k columns, as have M of x.
        let totals = unsafe { products::<L, M, N>(&w, x, k) };
        for (i, totals) in totals.into_iter().enumerate() {
            let out = tile.row(i)[j..].iter_mut().zip(totals.into_iter().zip(scales));
            out.for_each(|(out, (total, scale))| *out = total * scale);
        }
    }
}

/// Unpacks columns of a row from one on, without the scale that a row has.
type Unpack = unsafe fn(&Operands<'_>, usize, usize, &mut [f32]);

/// [`Unpack`]
///
/// # Safety
/// The processor has NEON; the columns are below k.
unsafe fn unpack<L: Load>(o: &Operands<'_>, row: usize, first: usize, out: &mut [f32]) {
    let bytes = &o.weights.row(row)[first / 16 * L::BYTES..];
    let mut own = [1.0; COLUMNS / 16 + 1];
    let (mut group, mut first_group) = (usize::MAX, 0);
    if let (true, Form::Packed { scales, group: columns, .. }) = (L::GROUPS, &o.weights.form) {
        (group, first_group) = (*columns, first / columns);
        let groups = (first + out.len()).div_ceil(group) - first_group;
        scales.read_some(o.weights.position(row), first_group, &mut own[..groups]);
    }
    for (i, out) in out.chunks_mut(16).enumerate() {
        let (mut last, mut numbers) = ([0; 64], [0.0; 16]);
        let some = &bytes[i * L::BYTES..][..out.len() * L::BYTES / 16];
        let from = if out.len() == 16 {
            some
        } else {
            last[..some.len()].copy_from_slice(some);
            &last
        };
        // SAFETY: 16 numbers are read and written.
        unsafe {
            let four = L::load(from.as_ptr(), own[(first + 16 * i) / group - first_group]);
            for (to, four) in numbers.as_chunks_mut::<4>().0.iter_mut().zip(four) {
                vst1q_f32(to.as_mut_ptr(), four);
            }
        }
        out.copy_from_slice(&numbers[..out.len()]);
    }
}

/// [`Unpack`] for rarer forms.
unsafe fn unpack_portable(o: &Operands<'_>, row: usize, first: usize, out: &mut [f32]) {
    portable::unpack_piece(o.weights, row, first, out);
}

/// Any number of rows of x: weights are unpacked once for them.
///
/// # Safety
/// As [`neon`].
unsafe fn many(o: &Operands<'_>, tile: &mut Tile<'_>, unpack: Unpack) {
    let mut unpacked = UNPACKED.take();
    unpacked.resize(PANEL * COLUMNS, 0.0);
    for j in (0..tile.cols()).step_by(PANEL) {
        let cols = PANEL.min(tile.cols() - j);
        let mut scales = [1.0; PANEL];
        o.own_scales(j, &mut scales[..cols]);
        for first in (0..o.k).step_by(COLUMNS) {
            let columns = COLUMNS.min(o.k - first);
            for (i, row) in unpacked.chunks_exact_mut(COLUMNS).take(cols).enumerate() {
                // SAFETY: the caller's promise; the columns are below k.
                unsafe { unpack(o, o.first + j + i, first, &mut row[..columns]) };
            }
            for i in (0..tile.rows()).step_by(ROWS) {
                let x = &o.x.f32()[(tile.first_row() + i) * o.k..];
                for at in (0..cols).step_by(FOUR) {
                    let w = &unpacked[at * COLUMNS..][..FOUR * COLUMNS];
                    let here = (i, j + at, FOUR.min(cols - at));
                    let scales = (first + columns == o.k).then(|| &scales[at..at + FOUR]);
                    // SAFETY: rows of x are taken below the tile's, columns below k.
                    unsafe {
                        match tile.rows() - i {
                            1 => add_product::<1>(w, x, (o.k, first, columns), scales, here, tile),
                            2 => add_product::<2>(w, x, (o.k, first, columns), scales, here, tile),
                            3 => add_product::<3>(w, x, (o.k, first, columns), scales, here, tile),
                            4 => add_product::<4>(w, x, (o.k, first, columns), scales, here, tile),
                            5 => add_product::<5>(w, x, (o.k, first, columns), scales, here, tile),
                            _ => add_product::<ROWS>(w, x, (o.k, first, columns), scales, here, tile),
                        }
                    }
                }
            }
        }
    }
    UNPACKED.set(unpacked);
}

/// Adds the products of M rows of x and four unpacked rows of weights to the tile, from column `first` on, which begins it.
///
/// # Safety
/// There are `columns` of the M rows of x, `k` apart, from `first` on, and of weights; the tile has M rows and `width` columns
/// from row `i` and column `j` on; the processor has NEON.
unsafe fn add_product<const M: usize>(
    w: &[f32],
    x: &[f32],
    (k, first, columns): (usize, usize, usize),
    scales: Option<&[f32]>,
    (i, j, width): (usize, usize, usize),
    tile: &mut Tile<'_>,
) {
    debug_assert!(x.len() >= (M - 1) * k + first + columns);
    // SAFETY: the caller's promise; the last columns are read from copies, where zeros are behind them.
    unsafe {
        let (w, x) = (w.as_ptr(), x.as_ptr().add(first));
        let mut sums = [[vdupq_n_f32(0.0); FOUR]; M];
        let whole = columns - columns % 4;
        let mut at = 0;
        while at < whole {
            multiply(&mut sums, w.add(at), COLUMNS, x.add(at), k);
            at += 4;
        }
        if at < columns {
            let (mut last_w, mut last_x) = ([[0.0; 4]; FOUR], [[0.0; 4]; M]);
            for (row, last) in last_w.iter_mut().enumerate() {
                std::ptr::copy_nonoverlapping(w.add(row * COLUMNS + at), last.as_mut_ptr(), columns - at);
            }
            for (row, last) in last_x.iter_mut().enumerate() {
                std::ptr::copy_nonoverlapping(x.add(row * k + at), last.as_mut_ptr(), columns - at);
            }
            multiply(&mut sums, last_w.as_ptr().cast(), 4, last_x.as_ptr().cast(), 4);
        }
        for (row, sums) in sums.into_iter().enumerate() {
            let out = &mut tile.row(i + row)[j..j + width];
            let mut all = [0.0; FOUR];
            let at = if width == FOUR {
                out.as_mut_ptr()
            } else {
                all[..width].copy_from_slice(out);
                all.as_mut_ptr()
            };
            let mut four = float_totals(sums);
            if first > 0 {
                four = vaddq_f32(four, vld1q_f32(at));
            }
            if let Some(scales) = scales {
                four = vmulq_f32(four, vld1q_f32(scales.as_ptr()));
            }
            vst1q_f32(at, four);
            if width < FOUR {
                out.copy_from_slice(&all[..width]);
            }
        }
    }
}

/// Adds to sums what 4 columns of four rows of weights and M rows of x give.
///
/// # Safety
/// There are so many; the processor has NEON.
#[inline(always)]
unsafe fn multiply<const M: usize>(
    sums: &mut [[float32x4_t; FOUR]; M],
    w: *const f32,
    w_stride: usize,
    x: *const f32,
    stride: usize,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut weights = [vdupq_n_f32(0.0); FOUR];
        for (j, weights) in weights.iter_mut().enumerate() {
            *weights = vld1q_f32(w.add(j * w_stride));
        }
        for (i, sums) in sums.iter_mut().enumerate() {
            let x = vld1q_f32(x.add(i * stride));
            for (sum, weights) in sums.iter_mut().zip(weights) {
                *sum = vfmaq_f32(*sum, weights, x);
            }
        }
    }
}

/// # Safety
/// As [`neon`].
#[inline(always)]
unsafe fn stored<L: Load>(o: &Operands<'_>, tile: &mut Tile<'_>) {
    // SAFETY: the caller's promise.
    unsafe {
        match tile.rows() {
            // The scales of eight groups would not leave room in registers.
            1 if L::GROUPS => few::<L, 1, FOUR>(o, tile),
            1 => few::<L, 1, { 2 * FOUR }>(o, tile),
            2 => few::<L, 2, FOUR>(o, tile),
            3 => few::<L, 3, FOUR>(o, tile),
            _ => many(o, tile, unpack::<L>),
        }
    }
}

/// # Safety
/// The processor has NEON; the operands' rows have k columns, and the tile lies within them.
pub(super) unsafe fn neon(o: &Operands<'_>, tile: &mut Tile<'_>) {
    // SAFETY: the caller's promise.
    unsafe {
        match &o.weights.form {
            Form::Plain(Dtype::F32) => stored::<F32>(o, tile),
            Form::Plain(Dtype::F16) => stored::<F16>(o, tile),
            Form::Plain(Dtype::BF16) => stored::<Bf16>(o, tile),
            Form::Int8(_) => stored::<Signed>(o, tile),
            Form::Fp8(_) => stored::<Fp8>(o, tile),
            Form::Packed { bits: 8, scales, .. } if scales.per_row == 1 => stored::<Excess128>(o, tile),
            Form::Packed { bits: 4, group, .. } if group.is_multiple_of(16) => stored::<Int4>(o, tile),
            _ => many(o, tile, unpack_portable),
        }
    }
}
