//! The IQ types of one to three bits: super-blocks of 256 elements, whose magnitudes come in groups of 4 or 8 from a fixed
//! grid, with the signs aside.

use half::f16;

use super::grid::{IQ1_S, IQ2_S, IQ2_XS, IQ2_XXS, IQ3_S, IQ3_XXS};
use super::{half, part, word};

/// Eight signs in seven bits: the number of minus signs is even.
fn signs(seven: u32) -> u8 {
    let seven = (seven & 127) as u8;
    seven | (seven.count_ones() as u8 & 1) << 7
}

/// Values ±d · magnitude; a set bit of `signs` is a minus.
fn put(out: &mut [f32], d: f32, magnitudes: impl IntoIterator<Item = i8>, signs: u8) {
    for (j, (y, magnitude)) in out.iter_mut().zip(magnitudes).enumerate() {
        let value = d * f32::from(magnitude);
        *y = if signs >> j & 1 == 1 { -value } else { value };
    }
}

/// Two magnitudes' groups of four as one of eight.
fn pair(first: [i8; 4], second: [i8; 4]) -> impl Iterator<Item = i8> {
    first.into_iter().chain(second)
}

/// 32 elements in 8 bytes: four indices into a grid of 256, then a u32 of four times seven sign bits and, on top, a scale
/// of 4 bits: value = ±d · (scale + ½) / 4 · magnitude.
pub fn unpack_iq2_xxs(block: &[u8; 66], out: &mut [f32; 256]) {
    let d = half(block, 0);
    let groups = part::<64>(block, 2).as_chunks::<8>().0;
    for (out, bytes) in out.as_chunks_mut::<32>().0.iter_mut().zip(groups) {
        let bits = u32::from_le_bytes(*part(bytes, 4));
        let d = d * (0.5 + (bits >> 28) as f32) * 0.25;
        for (l, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            put(out, d, IQ2_XXS[usize::from(bytes[l])], signs(bits >> (7 * l)));
        }
    }
}

/// 8 elements in a u16: nine bits of index into a grid of 512, seven sign bits. A scale of 4 bits for 16 elements:
/// value = ±d · (scale + ½) / 4 · magnitude.
pub fn unpack_iq2_xs(block: &[u8; 74], out: &mut [f32; 256]) {
    let d = half(block, 0);
    let scales = part::<8>(block, 66);
    for (i, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let bits = word(block, 2 + 2 * i);
        let scale = scales[i / 4] >> (i / 2 % 2 * 4) & 15;
        let d = d * (0.5 + f32::from(scale)) * 0.25;
        put(out, d, IQ2_XS[usize::from(bits & 511)], signs(u32::from(bits >> 9)));
    }
}

/// 8 elements with ten bits of index into a grid of 1024 (the low eight first, the high two behind the signs) and eight
/// sign bits. A scale of 4 bits for 16 elements: value = ±d · (scale + ½) / 4 · magnitude.
pub fn unpack_iq2_s(block: &[u8; 82], out: &mut [f32; 256]) {
    let d = half(block, 0);
    let (low, signs) = (part::<32>(block, 2), part::<32>(block, 34));
    let (high, scales) = (part::<8>(block, 66), part::<8>(block, 74));
    for (i, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let index = usize::from(low[i]) | usize::from(high[i / 4] >> (i % 4 * 2) & 3) << 8;
        let scale = scales[i / 4] >> (i / 2 % 2 * 4) & 15;
        let d = d * (0.5 + f32::from(scale)) * 0.25;
        put(out, d, IQ2_S[index], signs[i]);
    }
}

/// 4 elements in a byte, an index into a grid of 256. For 32 elements a u32 of four times seven sign bits and, on top, a
/// scale of 4 bits: value = ±d · (scale + ½) / 2 · magnitude.
pub fn unpack_iq3_xxs(block: &[u8; 98], out: &mut [f32; 256]) {
    let d = half(block, 0);
    let indices = part::<64>(block, 2).as_chunks::<2>().0;
    for (i, (out, &[a, b])) in out.as_chunks_mut::<8>().0.iter_mut().zip(indices).enumerate() {
        let bits = u32::from_le_bytes(*part(block, 66 + i / 4 * 4));
        let d = d * (0.5 + (bits >> 28) as f32) * 0.5;
        put(out, d, pair(IQ3_XXS[usize::from(a)], IQ3_XXS[usize::from(b)]), signs(bits >> (i % 4 * 7)));
    }
}

/// 4 elements with nine bits of index into a grid of 512 (the low eight first, then the high ones), eight sign bits for 8
/// elements, a scale of 4 bits for 32: value = ±d · (2 · scale + 1) · magnitude.
pub fn unpack_iq3_s(block: &[u8; 110], out: &mut [f32; 256]) {
    let d = half(block, 0);
    let low = part::<64>(block, 2).as_chunks::<2>().0;
    let (high, signs, scales) = (part::<8>(block, 66), part::<32>(block, 74), part::<4>(block, 106));
    for (i, (out, &[a, b])) in out.as_chunks_mut::<8>().0.iter_mut().zip(low).enumerate() {
        let high = usize::from(high[i / 4] >> (i % 4 * 2));
        let scale = scales[i / 8] >> (i / 4 % 2 * 4) & 15;
        let d = d * f32::from(1 + 2 * scale);
        let [a, b] = [usize::from(a) | (high & 1) << 8, usize::from(b) | (high >> 1 & 1) << 8];
        put(out, d, pair(IQ3_S[a], IQ3_S[b]), signs[i]);
    }
}

/// What IQ1_S and IQ1_M add to a magnitude of −1, 0 or 1, or take from it.
const DELTA: f32 = 0.125;

/// Values d · (magnitude ± ⅛).
fn put_shifted(out: &mut [f32; 8], d: f32, magnitudes: [i8; 8], minus: bool) {
    let delta = if minus { -DELTA } else { DELTA };
    *out = magnitudes.map(|magnitude| d * (f32::from(magnitude) + delta));
}

/// 8 elements with eleven bits of index into a grid of 2048: eight in a byte, three in the u16 of 32 elements, which has a
/// scale of 3 bits and the sign of the shift above them: value = d · (2 · scale + 1) · (magnitude ± ⅛).
pub fn unpack_iq1_s(block: &[u8; 50], out: &mut [f32; 256]) {
    let d = half(block, 0);
    let low = part::<32>(block, 2);
    for (i, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let bits = word(block, 34 + i / 4 * 2);
        let index = usize::from(low[i]) | usize::from(bits >> (i % 4 * 3) & 7) << 8;
        let d = d * f32::from(2 * (bits >> 12 & 7) + 1);
        put_shifted(out, d, IQ1_S[index], bits >> 15 == 1);
    }
}

/// Like [`unpack_iq1_s`], with a nibble for 8 elements (three bits of index, the sign of the shift), and a scale of 3 bits
/// for 16. The block's `d` is spread over the top nibbles of the four u16 that hold the scales.
pub fn unpack_iq1_m(block: &[u8; 56], out: &mut [f32; 256]) {
    let (low, high) = (part::<32>(block, 0), part::<16>(block, 32));
    let scales = [48, 50, 52, 54].map(|at| word(block, at));
    let d = scales.iter().rev().fold(0, |d, word| d << 4 | word >> 12);
    let d = f16::from_bits(d).to_f32();
    for (i, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let nibble = high[i / 2] >> (i % 2 * 4);
        let index = usize::from(low[i]) | usize::from(nibble & 7) << 8;
        let d = d * f32::from(2 * (scales[i / 8] >> (i / 2 % 4 * 3) & 7) + 1);
        put_shifted(out, d, IQ1_S[index], nibble >> 3 & 1 == 1);
    }
}
