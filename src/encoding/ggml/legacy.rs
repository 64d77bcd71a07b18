//! The first block types: 32 elements with one scale `d`, some with a minimum `m`.

use half::f16;

use super::{half, join, nibbles, pack_nibbles, part};

/// value = d · (code − 8); a code has 4 bits.
#[inline(always)]
pub fn unpack_q4_0(block: &[u8; 18], out: &mut [f32; 32]) {
    let d = half(block, 0);
    let codes = nibbles::<16, 32>(part(block, 2));
    for (y, code) in out.iter_mut().zip(codes) {
        *y = d * f32::from(code as i8 - 8);
    }
}

/// Codes 0 to 15; see [`unpack_q4_0`].
#[inline(always)]
pub fn pack_q4_0(d: f16, codes: &[u8; 32], block: &mut [u8; 18]) {
    join(block, &[&d.to_le_bytes(), &pack_nibbles::<32, 16>(codes)]);
}

/// value = d · code + m; a code has 4 bits.
#[inline(always)]
pub fn unpack_q4_1(block: &[u8; 20], out: &mut [f32; 32]) {
    let (d, m) = (half(block, 0), half(block, 2));
    let codes = nibbles::<16, 32>(part(block, 4));
    for (y, code) in out.iter_mut().zip(codes) {
        *y = d * f32::from(code) + m;
    }
}

/// Codes 0 to 15; see [`unpack_q4_1`].
#[inline(always)]
pub fn pack_q4_1(d: f16, m: f16, codes: &[u8; 32], block: &mut [u8; 20]) {
    join(block, &[&d.to_le_bytes(), &m.to_le_bytes(), &pack_nibbles::<32, 16>(codes)]);
}

/// 32 codes of 5 bits: the fifth bits are those of a little-endian u32, the others are nibbles.
#[inline(always)]
fn fives(high: &[u8; 4], low: &[u8; 16]) -> [u8; 32] {
    let high = u32::from_le_bytes(*high);
    let mut codes = nibbles::<16, 32>(low);
    for (i, code) in codes.iter_mut().enumerate() {
        *code |= ((high >> i) as u8 & 1) << 4;
    }
    codes
}

/// The fifth bits and the nibbles of [`fives`].
#[inline(always)]
fn pack_fives(codes: &[u8; 32]) -> ([u8; 4], [u8; 16]) {
    let high = codes.iter().enumerate().fold(0, |high, (i, &code)| high | u32::from(code >> 4 & 1) << i);
    (high.to_le_bytes(), pack_nibbles(codes))
}

/// value = d · (code − 16); a code has 5 bits.
#[inline(always)]
pub fn unpack_q5_0(block: &[u8; 22], out: &mut [f32; 32]) {
    let d = half(block, 0);
    let codes = fives(part(block, 2), part(block, 6));
    for (y, code) in out.iter_mut().zip(codes) {
        *y = d * f32::from(code as i8 - 16);
    }
}

/// Codes 0 to 31; see [`unpack_q5_0`].
#[inline(always)]
pub fn pack_q5_0(d: f16, codes: &[u8; 32], block: &mut [u8; 22]) {
    let (high, low) = pack_fives(codes);
    join(block, &[&d.to_le_bytes(), &high, &low]);
}

/// value = d · code + m; a code has 5 bits.
#[inline(always)]
pub fn unpack_q5_1(block: &[u8; 24], out: &mut [f32; 32]) {
    let (d, m) = (half(block, 0), half(block, 2));
    let codes = fives(part(block, 4), part(block, 8));
    for (y, code) in out.iter_mut().zip(codes) {
        *y = d * f32::from(code) + m;
    }
}

/// Codes 0 to 31; see [`unpack_q5_1`].
#[inline(always)]
pub fn pack_q5_1(d: f16, m: f16, codes: &[u8; 32], block: &mut [u8; 24]) {
    let (high, low) = pack_fives(codes);
    join(block, &[&d.to_le_bytes(), &m.to_le_bytes(), &high, &low]);
}

/// value = d · code; a code is an i8.
#[inline(always)]
pub fn unpack_q8_0(block: &[u8; 34], out: &mut [f32; 32]) {
    let d = half(block, 0);
    for (y, &code) in out.iter_mut().zip(part::<32>(block, 2)) {
        *y = d * f32::from(code as i8);
    }
}

/// Codes −127 to 127; see [`unpack_q8_0`].
#[inline(always)]
pub fn pack_q8_0(d: f16, codes: &[i8; 32], block: &mut [u8; 34]) {
    join(block, &[&d.to_le_bytes(), &codes.map(|code| code as u8)]);
}

/// value = d · code; a code is an i8. The second f16, d · Σ code, spares products a sum and carries no value.
#[inline(always)]
pub fn unpack_q8_1(block: &[u8; 36], out: &mut [f32; 32]) {
    let d = half(block, 0);
    for (y, &code) in out.iter_mut().zip(part::<32>(block, 4)) {
        *y = d * f32::from(code as i8);
    }
}
