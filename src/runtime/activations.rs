//! Activations, and the forms of them that linear layers multiply.

use std::sync::OnceLock;

use super::kernels::vectorise;
use crate::threads::Pool;

/// The inputs of linear layers: a row for each token. Each form is made when it is first asked for, once, and all layers
/// with the same input share it.
#[derive(Debug)]
pub struct Activations<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    int8: OnceLock<Int8Activations>,
    int8_runs: [OnceLock<Int8Runs>; 2],
    int16_runs: OnceLock<Int16Runs>,
    by_six: OnceLock<Vec<f32>>,
    by_nibble: OnceLock<Vec<f32>>,
    bf16: OnceLock<Bf16Parts>,
}

/// Rows whose numbers of a column lie together in [`Activations::by_six`].
pub const SIX: usize = 6;

/// How loops for many rows want f32 activations to lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// [`Activations::f32`]
    Rows,
    /// [`Activations::by_six`]
    BySix,
    /// [`Activations::bf16`]
    Bf16,
}

/// Columns of int4 codes in 16 words of 32 bits.
pub const NIBBLES: usize = 128;

/// Activations in int8, symmetric, with a scale for each token: value ≈ code · scale.
#[derive(Debug, Clone, PartialEq)]
pub struct Int8Activations {
    /// `[rows, cols]`, and [`PADDING`] zeros.
    pub codes: Vec<i8>,
    /// `[rows]`
    pub scales: Vec<f32>,
    /// `[rows]`: the sum of each row's codes, which kernels for unsigned weights take off.
    pub sums: Vec<i32>,
}

/// Activations as integers with a scale for each 32 features: value ≈ code · scale. The number of features is a multiple of 32.
#[derive(Debug, Clone, PartialEq)]
pub struct Runs<T> {
    /// `[rows, cols]`, and [`PADDING`] zeros.
    pub codes: Vec<T>,
    /// `[rows, cols / 32]`
    pub scales: Vec<f32>,
    /// `[rows, cols / 32]`: the sum of each 32 codes, times their scale.
    pub sums: Vec<f32>,
    /// `[rows, cols / 4]`: the sum of each 4 codes, negated, which kernels for codes that are raised add; and [`PADDING`] zeros.
    pub quads: Vec<i32>,
}

/// Activations in int8.
pub type Int8Runs = Runs<i8>;

/// Activations in int16, 256 times as fine: what is rounded is at most 2⁻¹⁶ of the largest of 32.
pub type Int16Runs = Runs<i16>;

impl<T> Runs<T> {
    /// Whether the lengths fit one another.
    pub fn fits(&self) -> bool {
        let runs = self.scales.len();
        let padded = self.codes.len() >= 32 * runs + PADDING && self.quads.len() >= 8 * runs + PADDING;
        padded && self.sums.len() == runs
    }
}

/// Codes that may be read past the last one.
pub const PADDING: usize = 512;

/// 16 rows of 32 columns.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub struct Bf16Tile(pub [[u16; 32]; 16]);

/// Activations as sums of two bf16 numbers each, the second one for what the first leaves, in tiles that are filled up with zeros.
/// What both leave is below 2⁻¹⁶ of a number. An infinite one leaves a NaN.
#[derive(Debug)]
pub struct Bf16Parts {
    /// `[rows / 16, cols / 32]`: the tile of first numbers and that of second ones.
    tiles: Vec<[Bf16Tile; 2]>,
    /// Tiles from 16 rows to the next.
    across: usize,
}

impl Bf16Parts {
    /// The tiles of rows `16 · i …`, from the first column to the last.
    ///
    /// # Panics
    /// If there are no such rows.
    pub fn block(&self, i: usize) -> &[[Bf16Tile; 2]] {
        &self.tiles[i * self.across..][..self.across]
    }
}

/// Whose scale a feature of a token shares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Share {
    /// The whole token's.
    Token,
    /// That of 32 features.
    Run,
}

impl<'a> Activations<'a> {
    /// `data` is a whole number of rows of `cols` columns; what remains after the last whole row is left out.
    pub fn new(data: &'a [f32], cols: usize) -> Self {
        let rows = data.len().checked_div(cols).unwrap_or(0);
        Self {
            data: &data[..rows * cols],
            rows,
            cols,
            int8: OnceLock::new(),
            int8_runs: Default::default(),
            int16_runs: OnceLock::new(),
            by_six: OnceLock::new(),
            by_nibble: OnceLock::new(),
            bf16: OnceLock::new(),
        }
    }

    /// Tokens.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Features.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// `[rows, cols]`, row-major.
    pub fn f32(&self) -> &'a [f32] {
        self.data
    }

    /// Makes a layout on the pool's threads, so that the first one that needs it does not make it while the others wait.
    pub fn lay_out(&self, layout: Layout, pool: &Pool) {
        match layout {
            Layout::Rows => {}
            Layout::BySix => _ = self.by_six(Some(pool)),
            Layout::Bf16 => _ = self.bf16(Some(pool)),
        }
    }

    /// The f32 form by groups of [`SIX`] rows, the last of which may have fewer: of each group, the numbers of column q of all
    /// rows, then those of column q + 1. The group of rows `i ..` begins at `i · cols`. It is made on the pool's threads if
    /// there is one.
    pub fn by_six(&self, pool: Option<&Pool>) -> &[f32] {
        self.by_six.get_or_init(|| {
            let mut out = vec![0.0; self.data.len()];
            let group = SIX * self.cols.max(1);
            let turn = |i: usize, out: &mut [f32]| {
                let x = &self.data[i * group..][..out.len()];
                vectorise(
                    #[inline(always)]
                    || turn(x, self.cols, out),
                );
            };
            match pool {
                Some(pool) => pool.for_each_chunk(&mut out, group, turn),
                None => out.chunks_mut(group).enumerate().for_each(|(i, out)| turn(i, out)),
            }
            out
        })
    }

    /// The f32 form in the order in which int4 codes come out of vectors of 16 words: of each [`NIBBLES`] columns, those of
    /// the words' first codes, then those of their second ones, and so on. Rows are filled up with zeros.
    pub fn by_nibble(&self) -> &[f32] {
        self.by_nibble.get_or_init(|| {
            let width = self.cols.div_ceil(NIBBLES) * NIBBLES;
            let mut out = vec![0.0; self.rows * width];
            for (x, out) in self.data.chunks_exact(self.cols.max(1)).zip(out.chunks_exact_mut(width.max(1))) {
                for (x, out) in x.chunks(NIBBLES).zip(out.chunks_exact_mut(NIBBLES)) {
                    for (at, x) in x.iter().enumerate() {
                        out[at % 8 * 16 + at / 8] = *x;
                    }
                }
            }
            out
        })
    }

    /// The form for tiles of bf16, made on the pool's threads if there is one.
    pub fn bf16(&self, pool: Option<&Pool>) -> &Bf16Parts {
        self.bf16.get_or_init(|| {
            let across = self.cols.div_ceil(32);
            let mut tiles = vec![[Bf16Tile([[0; 32]; 16]); 2]; self.rows.div_ceil(16) * across];
            let split = |block: usize, tiles: &mut [[Bf16Tile; 2]]| {
                let rows = self.data[16 * block * self.cols..].chunks_exact(self.cols.max(1)).take(16);
                vectorise(
                    #[inline(always)]
                    || split_rows(rows, tiles),
                );
            };
            match pool {
                Some(pool) => pool.for_each_chunk(&mut tiles, across, split),
                None => tiles.chunks_mut(across.max(1)).enumerate().for_each(|(block, tiles)| split(block, tiles)),
            }
            Bf16Parts { tiles, across }
        })
    }

    /// The int8 form, as compressed-tensors' dynamic per-token quantization computes it: scale = max |x| / 127.5 (the f32
    /// epsilon for a row of zeros), code = x / scale rounded half to even and clamped to −128 … 127.
    pub fn int8(&self, pool: &Pool) -> &Int8Activations {
        self.int8.get_or_init(|| {
            let mut codes = vec![0; self.data.len() + PADDING];
            let (mut scales, mut sums) = (vec![0.0; self.rows], vec![0; self.rows]);
            let width = self.cols.max(1);
            let lines = self.data.chunks_exact(width).zip(codes.chunks_exact_mut(width));
            let mut lines: Vec<_> = lines.zip(&mut scales).zip(&mut sums).collect();
            pool.for_each_chunk(&mut lines, LINES, |_, lines| {
                for (((x, codes), scale), sum) in lines {
                    (**scale, **sum) = vectorise(
                        #[inline(always)]
                        || round_token(x, codes),
                    );
                }
            });
            if self.cols == 0 {
                scales.fill(f32::EPSILON);
            }
            Int8Activations { codes, scales, sums }
        })
    }

    /// The int8 form with a scale for each 32 features: each 32's own, scale = max |x| / 127 and code = x / scale rounded, as
    /// ggml rounds activations to Q8_0 (with a scale in f32 and not in f16), or the token's, as [`Activations::int8`].
    pub fn int8_runs(&self, share: Share, pool: &Pool) -> &Int8Runs {
        self.int8_runs[share as usize].get_or_init(|| match share {
            Share::Run => self.runs(pool, |_, x, codes, scales| round_runs(x, codes, scales, 127.0)),
            Share::Token => {
                let int8 = self.int8(pool);
                self.runs(pool, |row, _, codes, scales| {
                    codes.copy_from_slice(&int8.codes[row * codes.len()..][..codes.len()]);
                    scales.fill(int8.scales[row]);
                })
            }
        })
    }

    /// The int16 form: of each 32 features scale = max |x| / 32767 and code = x / scale rounded.
    pub fn int16_runs(&self, pool: &Pool) -> &Int16Runs {
        self.int16_runs
            .get_or_init(|| self.runs(pool, |_, x, codes, scales| round_runs(x, codes, scales, f32::from(i16::MAX))))
    }

    /// A form with a scale for each 32 features, of which `round` makes the codes and scales of a row.
    fn runs<T: Code>(&self, pool: &Pool, round: impl Fn(usize, &[f32], &mut [T], &mut [f32]) + Send + Sync) -> Runs<T> {
        let runs = self.data.len() / 32;
        let (mut scales, mut sums) = (vec![0.0; runs], vec![0.0; runs]);
        let mut codes = vec![T::default(); self.data.len() + PADDING];
        let mut quads = vec![0; self.data.len() / 4 + PADDING];
        let width = self.cols.max(32) / 32;
        let lines = self.data.chunks_exact(32 * width).zip(codes.chunks_exact_mut(32 * width));
        let more = quads.chunks_exact_mut(8 * width).zip(scales.chunks_exact_mut(width));
        let mut lines: Vec<_> = lines.zip(more).zip(sums.chunks_exact_mut(width)).collect();
        pool.for_each_chunk(&mut lines, LINES, |piece, lines| {
            for (i, (((x, codes), (quads, scales)), sums)) in lines.iter_mut().enumerate() {
                vectorise(
                    #[inline(always)]
                    || {
                        round(piece * LINES + i, x, codes, scales);
                        add_up(codes, scales, quads, sums);
                    },
                );
            }
        });
        Runs { codes, scales, sums, quads }
    }
}

/// What activations are rounded to.
pub trait Code: Copy + Default + Send + Sync + Into<i32> {
    /// A whole number that fits.
    fn of(x: f32) -> Self;
}

impl Code for i8 {
    #[inline(always)]
    fn of(x: f32) -> Self {
        x as i32 as i8
    }
}

impl Code for i16 {
    #[inline(always)]
    fn of(x: f32) -> Self {
        x as i32 as i16
    }
}

/// Rows that a thread rounds at a time.
const LINES: usize = 8;

/// Rounds to the nearest bf16 number, half to even.
#[inline(always)]
fn round_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1));
    ((if x.is_nan() { bits | 1 << 22 } else { rounded }) >> 16) as u16
}

/// Turns up to [`SIX`] rows into columns.
#[inline(always)]
fn turn(x: &[f32], cols: usize, out: &mut [f32]) {
    if x.len() == SIX * cols {
        let rows: [&[f32]; SIX] = std::array::from_fn(|i| &x[i * cols..][..cols]);
        for (q, out) in out.as_chunks_mut::<SIX>().0.iter_mut().enumerate() {
            out.iter_mut().zip(rows).for_each(|(out, row)| *out = row[q]);
        }
    } else {
        let rows = x.len() / cols.max(1);
        for (q, out) in out.chunks_exact_mut(rows.max(1)).enumerate() {
            out.iter_mut().zip(x[q..].iter().step_by(cols)).for_each(|(out, x)| *out = *x);
        }
    }
}

/// Splits up to 16 rows.
#[inline(always)]
fn split_rows<'a>(rows: impl Iterator<Item = &'a [f32]>, tiles: &mut [[Bf16Tile; 2]]) {
    for (i, row) in rows.enumerate() {
        for (x, [first, second]) in row.chunks(32).zip(tiles.iter_mut()) {
            for ((x, first), second) in x.iter().zip(&mut first.0[i]).zip(&mut second.0[i]) {
                *first = round_bf16(*x);
                *second = round_bf16(x - f32::from_bits(u32::from(*first) << 16));
            }
        }
    }
}

/// Rounds a token's features; their scale, and the sum of their codes.
#[inline(always)]
fn round_token(x: &[f32], codes: &mut [i8]) -> (f32, i32) {
    let scale = match most(x) / 127.5 {
        0.0 => f32::EPSILON,
        scale => scale,
    };
    for (code, x) in codes.iter_mut().zip(x) {
        *code = round_half_even(x / scale).clamp(-128.0, 127.0) as i32 as i8;
    }
    (scale, codes.iter().map(|&code| i32::from(code)).sum())
}

/// Rounds runs of 32 features to codes of up to `largest`.
#[inline(always)]
fn round_runs<T: Code>(x: &[f32], codes: &mut [T], scales: &mut [f32], largest: f32) {
    for ((x, codes), scale) in x.as_chunks::<32>().0.iter().zip(codes.as_chunks_mut::<32>().0).zip(scales) {
        let most = most(x);
        *scale = most / largest;
        let inverse = if most == 0.0 { 0.0 } else { largest / most };
        for (code, x) in codes.iter_mut().zip(x) {
            *code = T::of(round_half_even(x * inverse));
        }
    }
}

/// The sums of fours, negated, and of runs, scaled.
#[inline(always)]
fn add_up<T: Code>(codes: &[T], scales: &[f32], quads: &mut [i32], sums: &mut [f32]) {
    for (quad, codes) in quads.iter_mut().zip(codes.as_chunks::<4>().0) {
        *quad = -codes.iter().map(|code| (*code).into()).sum::<i32>();
    }
    for ((sum, quads), scale) in sums.iter_mut().zip(quads.as_chunks::<8>().0).zip(scales) {
        *sum = -(quads.iter().sum::<i32>() as f32) * scale;
    }
}

/// max |x|, or NaN if one is: without their sign, the bits of numbers are in their order, and those of NaN above.
#[inline(always)]
fn most(x: &[f32]) -> f32 {
    f32::from_bits(x.iter().fold(0, |most, x| most.max(x.to_bits() & 0x7fff_ffff)))
}

/// As `round_ties_even`, in a form that compilers vectorise, for |x| < 2²².
#[inline(always)]
fn round_half_even(x: f32) -> f32 {
    // Adding 1.5 · 2²³ leaves no bits for a fraction.
    const SHIFT: f32 = 12_582_912.0;
    (x + SHIFT) - SHIFT
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::testing::Noise;

    #[test]
    fn int8_is_symmetric_per_row_and_rounds_half_to_even() {
        let data = [0.0, 0.0, 0.0, 0.0, 127.5, -127.5, 0.5, 1.5, -2.5, 3.0, -6.0, 0.0];
        let x = Activations::new(&data, 4);
        let int8 = x.int8(&Pool::new(1));
        assert_eq!(int8.scales, [f32::EPSILON, 1.0, 6.0 / 127.5]);
        assert_eq!(int8.codes[..12], [0, 0, 0, 0, 127, -128, 0, 2, -53, 64, -128, 0]);
        assert_eq!(int8.sums, [0, 1, -117]);
    }

    #[test]
    fn runs_have_their_own_scales_and_sums() {
        let data: Vec<f32> = (0..128).map(|i| if i < 32 { 0.0 } else { (i % 32) as f32 - 12.0 }).collect();
        let x = Activations::new(&data, 64);
        for share in [Share::Run, Share::Token] {
            let runs = x.int8_runs(share, &Pool::new(2));
            for (at, x) in data.iter().enumerate() {
                let found = f32::from(runs.codes[at]) * runs.scales[at / 32];
                assert!((found - x).abs() <= runs.scales[at / 32] * 0.501, "{share:?} {at}: {found}, not {x}");
            }
            for (run, sum) in runs.sums.iter().enumerate() {
                let codes: i32 = runs.codes[32 * run..][..32].iter().map(|code| i32::from(*code)).sum();
                assert_eq!(*sum, codes as f32 * runs.scales[run]);
            }
            assert_eq!(runs.quads[9], -runs.codes[36..40].iter().map(|code| i32::from(*code)).sum::<i32>());
        }
        assert_eq!(x.int8_runs(Share::Run, &Pool::new(1)).scales, [0.0, 19.0 / 127.0, 19.0 / 127.0, 19.0 / 127.0]);
    }

    #[test]
    fn groups_of_six_rows_are_turned() {
        let mut noise = Noise::new(7);
        for (rows, cols) in [(1, 1), (6, 3), (11, 40), (24, 5), (3, 0)] {
            let data = noise.vec(rows * cols);
            let x = Activations::new(&data, cols);
            for pool in [None, Some(Pool::new(3))] {
                let turned = Activations::new(&data, cols);
                let turned = turned.by_six(pool.as_ref());
                for (at, number) in x.f32().iter().enumerate() {
                    let (row, q) = (at / cols, at % cols);
                    let first = row / SIX * SIX;
                    assert_eq!(*number, turned[first * cols + q * SIX.min(rows - first) + row - first], "{row} {q}");
                }
            }
        }
    }

    #[test]
    fn two_bf16_numbers_are_all_but_a_65536th() {
        let mut noise = Noise::new(31);
        for (rows, cols) in [(1, 1), (16, 32), (17, 33), (40, 100)] {
            let data: Vec<f32> = noise.vec(rows * cols).iter().map(|x| x * (20.0 * x).exp()).collect();
            let x = Activations::new(&data, cols);
            let parts = x.bf16((rows > 20).then(|| Pool::new(2)).as_ref());
            let wide = |part: u16| f32::from_bits(u32::from(part) << 16);
            for block in 0..rows.div_ceil(16) {
                for (step, [first, second]) in parts.block(block).iter().enumerate() {
                    for (at, (a, b)) in first.0.as_flattened().iter().zip(second.0.as_flattened()).enumerate() {
                        let (row, col) = (16 * block + at / 32, 32 * step + at % 32);
                        let x = if row < rows && col < cols { data[row * cols + col] } else { 0.0 };
                        assert_eq!(*a, half::bf16::from_f32(x).to_bits());
                        assert!((wide(*a) + wide(*b) - x).abs() <= x.abs() / 65536.0, "{x}");
                    }
                }
            }
        }
        for x in [0.0, -0.0, f32::NAN, f32::INFINITY, f32::MAX, f32::MIN_POSITIVE, 257.0 / 256.0, 259.0 / 256.0] {
            assert_eq!(round_bf16(x), half::bf16::from_f32(x).to_bits(), "{x}");
        }
    }

    #[test]
    fn int16_is_256_times_as_fine() {
        let data: Vec<f32> = (0..64).map(|i| (i as f32 * 0.7).sin() * if i < 32 { 1.0 } else { 100.0 }).collect();
        let runs = Activations::new(&data, 64).int16_runs(&Pool::new(1)).clone();
        for (at, x) in data.iter().enumerate() {
            let largest = data[at / 32 * 32..][..32].iter().fold(0f32, |most, x| most.max(x.abs()));
            let found = f32::from(runs.codes[at]) * runs.scales[at / 32];
            assert!((found - x).abs() <= largest / 65_000.0, "{at}: {found}, not {x}");
        }
    }

    #[test]
    fn nan_is_not_lost() {
        let mut data = [1.0; 64];
        data[40] = f32::NAN;
        let x = Activations::new(&data, 64);
        assert!(x.int8(&Pool::new(1)).scales[0].is_nan());
        assert!(
            x.int8_runs(Share::Run, &Pool::new(1)).scales[1].is_nan()
                && x.int8_runs(Share::Run, &Pool::new(1)).scales[0] == 1.0 / 127.0
        );
        assert!(x.int16_runs(&Pool::new(1)).scales[1].is_nan());
    }

    #[test]
    fn rounding_is_that_of_the_standard_library() {
        for i in -4000..4000 {
            let x = i as f32 / 16.0;
            assert_eq!(round_half_even(x), x.round_ties_even(), "{x}");
        }
    }
}
