//! The K types: super-blocks of 256 elements in sub-blocks of 16 or 32. A sub-block's scale, and its minimum where it has
//! one, are small integers times the super-block's f16 `d` and `dmin`.

use half::f16;

use super::{half, join, nibbles, pack_nibbles, part};

/// 256 codes of 2 bits. A half of 128 elements lies in 32 bytes; element 32·s + i of a half is bits 2s of byte i.
#[inline(always)]
fn twos(bytes: &[u8; 64]) -> [u8; 256] {
    let mut codes = [0; 256];
    for (codes, bytes) in codes.as_chunks_mut::<128>().0.iter_mut().zip(bytes.as_chunks::<32>().0) {
        for (s, codes) in codes.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            *codes = bytes.map(|byte| byte >> (2 * s) & 3);
        }
    }
    codes
}

/// The reverse of [`twos`]; only the low two bits of a code count.
#[inline(always)]
fn pack_twos(codes: &[u8; 256]) -> [u8; 64] {
    let mut bytes = [0; 64];
    for (bytes, codes) in bytes.as_chunks_mut::<32>().0.iter_mut().zip(codes.as_chunks::<128>().0) {
        let [a, b, c, d] = [0, 1, 2, 3].map(|s| part::<32>(codes, 32 * s));
        *bytes = std::array::from_fn(|i| a[i] & 3 | (b[i] & 3) << 2 | (c[i] & 3) << 4 | (d[i] & 3) << 6);
    }
    bytes
}

/// 256 codes of 4 bits. 64 elements lie in 32 bytes: the first half in the low nibbles.
#[inline(always)]
fn fours(bytes: &[u8; 128]) -> [u8; 256] {
    let mut codes = [0; 256];
    for (codes, bytes) in codes.as_chunks_mut::<64>().0.iter_mut().zip(bytes.as_chunks::<32>().0) {
        *codes = nibbles(bytes);
    }
    codes
}

/// The reverse of [`fours`]; only the low four bits of a code count.
#[inline(always)]
fn pack_fours(codes: &[u8; 256]) -> [u8; 128] {
    let mut bytes = [0; 128];
    for (bytes, codes) in bytes.as_chunks_mut::<32>().0.iter_mut().zip(codes.as_chunks::<64>().0) {
        *bytes = pack_nibbles(codes);
    }
    bytes
}

/// 256 single bits: that of element 32·s + i is bit s of byte i.
#[inline(always)]
fn ones(bytes: &[u8; 32]) -> [u8; 256] {
    let mut bits = [0; 256];
    for (s, bits) in bits.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        *bits = bytes.map(|byte| byte >> s & 1);
    }
    bits
}

/// The reverse of [`ones`], for bit `at` of each code.
#[inline(always)]
fn pack_ones(codes: &[u8; 256], at: u32) -> [u8; 32] {
    let mut bytes = [0; 32];
    for (s, codes) in codes.as_chunks::<32>().0.iter().enumerate() {
        for (byte, code) in bytes.iter_mut().zip(codes) {
            *byte |= (code >> at & 1) << s;
        }
    }
    bytes
}

/// Values of sub-blocks of `S` elements: d · code − m, with the `d` and `m` that `scale` gives for a sub-block.
#[inline(always)]
fn affine<const S: usize>(codes: &[u8; 256], out: &mut [f32; 256], scale: impl Fn(usize) -> (f32, f32)) {
    for (j, (out, codes)) in out.as_chunks_mut::<S>().0.iter_mut().zip(codes.as_chunks::<S>().0).enumerate() {
        let (d, m) = scale(j);
        for (y, &code) in out.iter_mut().zip(codes) {
            *y = d * f32::from(code) - m;
        }
    }
}

/// Values of sub-blocks of 16 elements: d · (code − `zero`), with the `d` that `scale` gives for a sub-block.
#[inline(always)]
fn symmetric(codes: &[u8; 256], zero: i8, out: &mut [f32; 256], scale: impl Fn(usize) -> f32) {
    for (j, (out, codes)) in out.as_chunks_mut::<16>().0.iter_mut().zip(codes.as_chunks::<16>().0).enumerate() {
        let d = scale(j);
        for (y, &code) in out.iter_mut().zip(codes) {
            *y = d * f32::from(code as i8 - zero);
        }
    }
}

/// value = d · scale · code − dmin · min, for 16 sub-blocks of 16; a code has 2 bits, a scale and a minimum 4.
#[inline(always)]
pub fn unpack_q2_k(block: &[u8; 84], out: &mut [f32; 256]) {
    let (d, dmin) = (half(block, 80), half(block, 82));
    let scales = part::<16>(block, 0);
    affine::<16>(&twos(part(block, 16)), out, |j| (d * f32::from(scales[j] & 15), dmin * f32::from(scales[j] >> 4)));
}

/// Codes 0 to 3, scales and minima 0 to 15; see [`unpack_q2_k`].
#[inline(always)]
pub fn pack_q2_k(d: f16, dmin: f16, scales: &[u8; 16], mins: &[u8; 16], codes: &[u8; 256], block: &mut [u8; 84]) {
    let both: [u8; 16] = std::array::from_fn(|j| scales[j] | mins[j] << 4);
    join(block, &[&both, &pack_twos(codes), &d.to_le_bytes(), &dmin.to_le_bytes()]);
}

/// value = d · (scale − 32) · (code − 4), for 16 sub-blocks of 16; a code has 3 bits, a scale 6.
#[inline(always)]
pub fn unpack_q3_k(block: &[u8; 110], out: &mut [f32; 256]) {
    let d = half(block, 108);
    let scales = q3_k_scales(part(block, 96));
    let mut codes = twos(part(block, 32));
    for (code, bit) in codes.iter_mut().zip(ones(part(block, 0))) {
        *code |= bit << 2;
    }
    symmetric(&codes, 4, out, |j| d * f32::from(scales[j]));
}

/// Q3_K's 16 scales of 6 bits, less 32: the low nibbles in eight bytes, then the high bits.
#[inline(always)]
pub fn q3_k_scales(bytes: &[u8; 12]) -> [i8; 16] {
    let (low, high) = (part::<8>(bytes, 0), part::<4>(bytes, 8));
    std::array::from_fn(|j| {
        let scale = low[j % 8] >> (j / 8 * 4) & 15 | (high[j % 4] >> (j / 4 * 2) & 3) << 4;
        scale as i8 - 32
    })
}

/// Codes 0 to 7, scales 0 to 63; see [`unpack_q3_k`].
#[inline(always)]
pub fn pack_q3_k(d: f16, scales: &[u8; 16], codes: &[u8; 256], block: &mut [u8; 110]) {
    let low: [u8; 8] = std::array::from_fn(|j| scales[j] & 15 | scales[j + 8] << 4);
    let high: [u8; 4] =
        std::array::from_fn(|j| (0..4).fold(0, |high, s| high | (scales[j + 4 * s] >> 4 & 3) << (2 * s)));
    join(block, &[&pack_ones(codes, 2), &pack_twos(codes), &low, &high, &d.to_le_bytes()]);
}

/// The 8 scales and 8 minima of 6 bits in 12 bytes: four scales, four minima, then the low nibbles of the others, whose
/// high bits are above the first eight's.
#[inline(always)]
pub fn scales_and_mins(bytes: &[u8; 12]) -> ([u8; 8], [u8; 8]) {
    let [a, b, c] = [0, 4, 8].map(|at| part::<4>(bytes, at));
    let scale = |j: usize| if j < 4 { a[j] & 63 } else { c[j - 4] & 15 | a[j - 4] >> 6 << 4 };
    let min = |j: usize| if j < 4 { b[j] & 63 } else { c[j - 4] >> 4 | b[j - 4] >> 6 << 4 };
    (std::array::from_fn(scale), std::array::from_fn(min))
}

/// The reverse of [`scales_and_mins`].
#[inline(always)]
pub fn pack_scales_and_mins(scales: &[u8; 8], mins: &[u8; 8]) -> [u8; 12] {
    std::array::from_fn(|i| match i {
        0..4 => scales[i] | scales[i + 4] >> 4 << 6,
        4..8 => mins[i - 4] | mins[i] >> 4 << 6,
        _ => scales[i - 4] & 15 | mins[i - 4] << 4,
    })
}

/// value = d · scale · code − dmin · min, for 8 sub-blocks of 32; a code has 4 bits, a scale and a minimum 6.
#[inline(always)]
pub fn unpack_q4_k(block: &[u8; 144], out: &mut [f32; 256]) {
    let (d, dmin) = (half(block, 0), half(block, 2));
    let (scales, mins) = scales_and_mins(part(block, 4));
    affine::<32>(&fours(part(block, 16)), out, |j| (d * f32::from(scales[j]), dmin * f32::from(mins[j])));
}

/// Codes 0 to 15, scales and minima 0 to 63; see [`unpack_q4_k`].
#[inline(always)]
pub fn pack_q4_k(d: f16, dmin: f16, scales: &[u8; 8], mins: &[u8; 8], codes: &[u8; 256], block: &mut [u8; 144]) {
    let both = pack_scales_and_mins(scales, mins);
    join(block, &[&d.to_le_bytes(), &dmin.to_le_bytes(), &both, &pack_fours(codes)]);
}

/// value = d · scale · code − dmin · min, for 8 sub-blocks of 32; a code has 5 bits, a scale and a minimum 6.
#[inline(always)]
pub fn unpack_q5_k(block: &[u8; 176], out: &mut [f32; 256]) {
    let (d, dmin) = (half(block, 0), half(block, 2));
    let (scales, mins) = scales_and_mins(part(block, 4));
    let mut codes = fours(part(block, 48));
    for (code, bit) in codes.iter_mut().zip(ones(part(block, 16))) {
        *code |= bit << 4;
    }
    affine::<32>(&codes, out, |j| (d * f32::from(scales[j]), dmin * f32::from(mins[j])));
}

/// Codes 0 to 31, scales and minima 0 to 63; see [`unpack_q5_k`].
#[inline(always)]
pub fn pack_q5_k(d: f16, dmin: f16, scales: &[u8; 8], mins: &[u8; 8], codes: &[u8; 256], block: &mut [u8; 176]) {
    let both = pack_scales_and_mins(scales, mins);
    join(block, &[&d.to_le_bytes(), &dmin.to_le_bytes(), &both, &pack_ones(codes, 4), &pack_fours(codes)]);
}

/// value = d · scale · (code − 32), for 16 sub-blocks of 16; a code has 6 bits, a scale is an i8.
#[inline(always)]
pub fn unpack_q6_k(block: &[u8; 210], out: &mut [f32; 256]) {
    let d = half(block, 208);
    let scales = part::<16>(block, 192);
    let mut codes = twos(part(block, 128));
    for (codes, low) in codes.as_chunks_mut::<128>().0.iter_mut().zip(part::<128>(block, 0).as_chunks::<64>().0) {
        for (code, low) in codes.iter_mut().zip(nibbles::<64, 128>(low)) {
            *code = *code << 4 | low;
        }
    }
    symmetric(&codes, 32, out, |j| d * f32::from(scales[j] as i8));
}

/// Codes 0 to 63; see [`unpack_q6_k`].
#[inline(always)]
pub fn pack_q6_k(d: f16, scales: &[i8; 16], codes: &[u8; 256], block: &mut [u8; 210]) {
    let mut low = [0; 128];
    for (low, codes) in low.as_chunks_mut::<64>().0.iter_mut().zip(codes.as_chunks::<128>().0) {
        *low = pack_nibbles(codes);
    }
    let high = pack_twos(&codes.map(|code| code >> 4));
    join(block, &[&low, &high, &scales.map(|scale| scale as u8), &d.to_le_bytes()]);
}

/// value = d · code; a code is an i8 and `d` an f32. The sums of codes behind them carry no value.
#[inline(always)]
pub fn unpack_q8_k(block: &[u8; 292], out: &mut [f32; 256]) {
    let d = f32::from_le_bytes(*part(block, 0));
    for (y, &code) in out.iter_mut().zip(part::<256>(block, 4)) {
        *y = d * f32::from(code as i8);
    }
}
