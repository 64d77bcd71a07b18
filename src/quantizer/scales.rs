//! Scales of the least squared error, for forms that have one scale for some numbers of a row: int8 and FP8 for each row, packed
//! integers for each group. The form and its size are the same; a group that does not become better keeps what rounding to
//! nearest gave it, so that none is worse.

use formats::Dtype;

use super::{Band, Notes, Numbers, Quantizer};
use crate::encoding::plain::{self, Real};
use crate::encoding::{Encoding, fp8};
use crate::simd::{Simd, Task, dispatch};

/// What codes stand for, and how they lie in a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Codes {
    /// A byte each, of two's complement.
    Int8,
    /// Integers of 4 or 8 bits, counted from the least, low bits first.
    Packed(u8),
    /// A byte each, of FP8 E4M3.
    Fp8,
}

/// A quantizer with a search for better scales after it.
#[derive(Debug, Clone, Copy)]
pub struct Searched<Q> {
    /// Rounds to nearest. Of its tensors the first holds codes, the second scales.
    pub nearest: Q,
    /// What its codes stand for.
    pub codes: Codes,
    /// Columns that share a scale; `None` for whole rows.
    pub group: Option<u64>,
}

impl<Q: Quantizer> Quantizer for Searched<Q> {
    fn encoding(&self, input: Dtype) -> Encoding {
        self.nearest.encoding(input)
    }

    fn encode(&self, band: Band<'_>, parts: &mut [Vec<u8>]) -> Notes {
        let notes = self.nearest.encode(band, parts);
        let [bytes, scales, ..] = parts else { unreachable!("these forms have codes and scales") };
        if notes.non_finite.is_some() || band.rows() == 0 {
            return notes;
        }
        let group = self.group.map_or(band.cols, |group| group as usize);
        let codes = self.codes;
        match band.numbers {
            Numbers::F32(numbers) => dispatch(Search { numbers, band, group, codes, bytes, scales }),
            Numbers::F64(numbers) => dispatch(Search { numbers, band, group, codes, bytes, scales }),
        }
        notes
    }
}

/// 1.5 · 2²³: added to a number of less than 2²² and subtracted, it leaves the nearest integer, ties to even.
const MAGIC: f32 = 12_582_912.0;

#[inline(always)]
fn nearest_integer(x: f32, low: f32, high: f32) -> f32 {
    (x.clamp(low, high) + MAGIC) - MAGIC
}

/// The nearest number of FP8, as [`fp8::encode`] finds it.
#[inline(always)]
fn nearest_fp8(x: f32) -> f32 {
    const STEP: f32 = MAGIC / 512.0;
    let x = x.clamp(-fp8::MAX, fp8::MAX);
    let bits = x.to_bits();
    let few = f32::from_bits((bits + 0x7_ffff + (bits >> 20 & 1)) & !0xf_ffff);
    if x.abs() < 1.0 / 64.0 { (x + STEP) - STEP } else { few }
}

impl Codes {
    /// The least and the greatest integer.
    fn ends(self) -> (f32, f32) {
        match self {
            Self::Packed(4) => (-8.0, 7.0),
            _ => (-128.0, 127.0),
        }
    }

    /// What scales are tried, as multiples of the one that just holds the largest number. Few levels profit from cutting large
    /// numbers, many hardly; those of FP8 lie alike from one power of two to the next.
    fn factors(self) -> impl Iterator<Item = f32> {
        let (first, step, count) = match self {
            Self::Packed(4) => (0.55, 0.0125, 44),
            Self::Int8 | Self::Packed(_) => (0.9, 0.0025, 42),
            Self::Fp8 => (0.5, 1.0 / 64.0, 33),
        };
        (0..count).map(move |i| first + step * i as f32)
    }

    /// The number that the code of a column stands for.
    fn level(self, row: &[u8], at: usize) -> f32 {
        match self {
            Self::Int8 => f32::from(row[at] as i8),
            Self::Packed(4) => f32::from(row[at / 2] >> (4 * (at % 2)) & 15) - 8.0,
            Self::Packed(_) => f32::from(row[at]) - 128.0,
            Self::Fp8 => fp8::decode(row[at]),
        }
    }

    fn store(self, row: &mut [u8], at: usize, level: f32) {
        match self {
            Self::Int8 => row[at] = level as i8 as u8,
            Self::Packed(4) => {
                let shift = 4 * (at % 2);
                row[at / 2] = row[at / 2] & !(15 << shift) | ((level + 8.0) as u8) << shift;
            }
            Self::Packed(_) => row[at] = (level + 128.0) as u8,
            Self::Fp8 => row[at] = fp8::encode(level),
        }
    }

    /// The level nearest to a number.
    #[inline(always)]
    fn nearest(self, x: f32) -> f32 {
        let (low, high) = self.ends();
        if self == Self::Fp8 { nearest_fp8(x) } else { nearest_integer(x, low, high) }
    }

    /// The squared error with a scale, in f32: good enough to choose among scales.
    fn score(self, simd: impl Simd, x: &[f32], scale: f32) -> f32 {
        let (low, high) = self.ends();
        match self {
            Self::Fp8 => score(simd, x, scale, nearest_fp8),
            _ => score(
                simd,
                x,
                scale,
                #[inline(always)]
                |x| nearest_integer(x, low, high),
            ),
        }
    }
}

#[inline(always)]
fn score(simd: impl Simd, x: &[f32], scale: f32, nearest: impl Fn(f32) -> f32) -> f32 {
    simd.run(
        #[inline(always)]
        || {
            let inverse = 1.0 / scale;
            let mut sums = [0f32; 16];
            let (runs, rest) = x.as_chunks::<16>();
            for run in runs {
                for (sum, &x) in sums.iter_mut().zip(run) {
                    let off = x - nearest(x * inverse) * scale;
                    *sum += off * off;
                }
            }
            for (sum, &x) in sums.iter_mut().zip(rest) {
                let off = x - nearest(x * inverse) * scale;
                *sum += off * off;
            }
            sums.iter().sum()
        },
    )
}

/// A band that is encoded, whose scales are to become better.
struct Search<'a, T> {
    numbers: &'a [T],
    band: Band<'a>,
    group: usize,
    codes: Codes,
    bytes: &'a mut [u8],
    scales: &'a mut [u8],
}

impl<T: Real> Task for Search<'_, T> {
    type Output = ();

    fn run<S: Simd>(self, simd: S) {
        let Self { numbers, band, group, codes, bytes, scales } = self;
        let width = (band.dtype.block_bits() / 8) as usize;
        let row_bytes = bytes.len() / band.rows();
        let mut scales = scales.chunks_exact_mut(width);
        let mut work = Work { x: Vec::new(), levels: Vec::new(), found: Vec::new() };
        for (row, codes_of) in numbers.chunks_exact(band.cols).zip(bytes.chunks_exact_mut(row_bytes)) {
            for (g, (part, scale)) in row.chunks(group).zip(&mut scales).enumerate() {
                improve(simd, codes, part, band.dtype, codes_of, g * group, scale, &mut work);
            }
        }
    }
}

/// What a group needs, kept from one to the next.
struct Work {
    x: Vec<f32>,
    levels: Vec<f32>,
    found: Vec<f32>,
}

/// Finds a better scale for a group whose codes begin at column `first` of its row, if there is one.
#[allow(clippy::too_many_arguments)] // All of one group.
fn improve<T: Real>(
    simd: impl Simd,
    codes: Codes,
    numbers: &[T],
    dtype: Dtype,
    row: &mut [u8],
    first: usize,
    place: &mut [u8],
    work: &mut Work,
) {
    let mut stored = [0f64];
    f64::decode(dtype, place, &mut stored);
    // What a reader makes of a code: one product, in f32 but for f64.
    let value = |level: f32, scale: f64| match dtype {
        Dtype::F64 => f64::from(level) * scale,
        _ => f64::from(level * scale as f32),
    };
    let error = |levels: &[f32], scale: f64| -> f64 {
        numbers.iter().zip(levels).map(|(x, &level)| (x.to_f64() - value(level, scale)).powi(2)).sum()
    };
    let Work { x, levels, found } = work;
    levels.clear();
    levels.extend((0..numbers.len()).map(|i| codes.level(row, first + i)));
    let mut least = error(levels, stored[0]);
    if least == 0.0 {
        return;
    }
    x.clear();
    x.extend(numbers.iter().map(|x| x.to_f32()));
    let scored = codes.factors().map(|factor| (factor, codes.score(simd, x, stored[0] as f32 * factor)));
    let Some((factor, _)) = scored.min_by(|a, b| a.1.total_cmp(&b.1)) else { return };
    let mut best = None;
    let mut scale = stored[0] * f64::from(factor);
    for _ in 0..3 {
        let mut rounded = [0u8; 8];
        let rounded = &mut rounded[..place.len()];
        plain::encode(&[scale], dtype, rounded);
        let mut exact = [0f64];
        f64::decode(dtype, rounded, &mut exact);
        let [now] = exact;
        if !now.is_finite() || now <= 0.0 {
            break;
        }
        found.clear();
        found.extend(numbers.iter().map(|x| codes.nearest((x.to_f64() / now) as f32)));
        let off = error(found, now);
        if off < least {
            least = off;
            std::mem::swap(levels, found);
            best = Some(now);
        } else if best.is_some() {
            break;
        }
        // The best scale for these codes; the next round finds the best codes for it.
        let codes = if best == Some(now) { &*levels } else { &*found };
        let (above, below) = numbers.iter().zip(codes).fold((0.0, 0.0), |(above, below), (x, &level)| {
            (above + x.to_f64() * f64::from(level), below + f64::from(level).powi(2))
        });
        scale = above / below;
    }
    if let Some(scale) = best {
        plain::encode(&[scale], dtype, place);
        levels.iter().enumerate().for_each(|(i, &level)| codes.store(row, first + i, level));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::quantizer::{Fp8Rows, Int8Rows, PackedInt};

    #[test]
    fn the_fast_roundings_are_the_codes() {
        for i in 0..400_000u32 {
            let x = (i as f32 - 200_000.0) * 0.002_3;
            assert_eq!(nearest_fp8(x), fp8::decode(fp8::encode(x)), "{x}");
            assert_eq!(nearest_fp8(x / 4096.0), fp8::decode(fp8::encode(x / 4096.0)), "{x}");
            assert_eq!(Codes::Packed(4).nearest(x), x.clamp(-8.0, 7.0).round_ties_even());
        }
    }

    /// A form, its group, and how it is encoded without and with a search.
    type Form = (Codes, u64, Box<dyn Quantizer>, Box<dyn Quantizer>);

    fn forms(cols: u64, group: u64) -> Vec<Form> {
        let packed = |bits| -> Form {
            let (codes, nearest) = (Codes::Packed(bits), PackedInt { bits, group });
            (codes, group, Box::new(nearest), Box::new(Searched { nearest, codes, group: Some(group) }))
        };
        let int8 = Searched { nearest: Int8Rows, codes: Codes::Int8, group: None };
        let fp8 = Searched { nearest: Fp8Rows, codes: Codes::Fp8, group: None };
        vec![
            packed(4),
            packed(8),
            (Codes::Int8, cols, Box::new(Int8Rows), Box::new(int8)),
            (Codes::Fp8, cols, Box::new(Fp8Rows), Box::new(fp8)),
        ]
    }

    /// The squared error of each group, of what is stored.
    fn errors(codes: Codes, numbers: &[f64], cols: usize, group: usize, dtype: Dtype, parts: &[Vec<u8>]) -> Vec<f64> {
        let rows = numbers.len() / cols;
        let row_bytes = parts[0].len() / rows;
        let mut scales = vec![0f64; rows * cols / group];
        f64::decode(dtype, &parts[1], &mut scales);
        let at = |row: usize, col: usize| {
            let level = codes.level(&parts[0][row * row_bytes..][..row_bytes], col);
            let scale = scales[(row * cols + col) / group];
            let value = if dtype == Dtype::F64 { f64::from(level) * scale } else { f64::from(level * scale as f32) };
            (numbers[row * cols + col] - value).powi(2)
        };
        let groups = (0..numbers.len()).step_by(group);
        groups.map(|first| (first..first + group).map(|i| at(i / cols, i % cols)).sum()).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]
        /// In every form, dtype and group: no group is worse, and many are better.
        #[test]
        fn no_group_is_worse(
            (cols, group) in prop::sample::select(vec![(64usize, 32usize), (64, 64), (25, 5), (7, 7), (96, 96), (1, 1)]),
            dtype in prop::sample::select(vec![Dtype::F32, Dtype::F16, Dtype::BF16, Dtype::F64]),
            size in prop::sample::select(vec![1e-7, 1e-3, 0.05, 1.0, 300.0]),
            seed in prop::collection::vec(-1.0f64..1.0, 3 * 96),
            power in 1i32..6,
        ) {
            let mut numbers: Vec<f64> = seed[..3 * cols].iter().map(|x| x.powi(power) * size).collect();
            let mut bytes = vec![0; numbers.len() * (dtype.block_bits() / 8) as usize];
            plain::encode(&numbers, dtype, &mut bytes);
            f64::decode(dtype, &bytes, &mut numbers);
            let single: Vec<f32> = numbers.iter().map(|&x| x as f32).collect();
            let all = if dtype == Dtype::F64 { Numbers::F64(&numbers) } else { Numbers::F32(&single) };
            let band = Band { numbers: all, first_row: 0, cols, dtype };
            for (codes, group, plainly, searched) in forms(cols as u64, group as u64) {
                let encoding = plainly.encoding(dtype);
                let layouts = encoding.parts("w", &[3, cols as u64], 3, cols as u64).unwrap();
                let sizes = layouts[..2].iter().map(|part| vec![0u8; part.bytes_of(&(0..3)).end as usize]);
                let mut old: Vec<Vec<u8>> = sizes.collect();
                let mut new = old.clone();
                plainly.encode(band, &mut old);
                searched.encode(band, &mut new);
                let error = |parts: &[Vec<u8>]| errors(codes, &numbers, cols, group as usize, dtype, parts);
                for (new, old) in error(&new).into_iter().zip(error(&old)) {
                    prop_assert!(new <= old, "{codes:?} {dtype}: {new:e} {old:e}");
                }
            }
        }
    }

    #[test]
    fn normal_numbers_become_better_in_every_form() {
        let numbers: Vec<f32> = (0..8 * 128u32)
            .map(|i| {
                (0..12)
                    .map(|k| {
                        (i.wrapping_mul(2_654_435_761).wrapping_add(k * 40_503_719) >> 8) as f32 / (1 << 24) as f32
                            - 0.5
                    })
                    .sum::<f32>()
            })
            .collect();
        let exact: Vec<f64> = numbers.iter().map(|&x| x.into()).collect();
        let band = Band { numbers: Numbers::F32(&numbers), first_row: 0, cols: 128, dtype: Dtype::F32 };
        for (codes, group, plainly, searched) in forms(128, 128) {
            let layouts = plainly.encoding(Dtype::F32).parts("w", &[8, 128], 8, 128).unwrap();
            let mut old: Vec<Vec<u8>> =
                layouts[..2].iter().map(|part| vec![0; part.bytes_of(&(0..8)).end as usize]).collect();
            let mut new = old.clone();
            plainly.encode(band, &mut old);
            searched.encode(band, &mut new);
            let total =
                |parts: &[Vec<u8>]| errors(codes, &exact, 128, group as usize, Dtype::F32, parts).iter().sum::<f64>();
            println!("{codes:?}: {:e} → {:e}", total(&old), total(&new));
            assert!(total(&new) < total(&old), "{codes:?}");
        }
    }
}
