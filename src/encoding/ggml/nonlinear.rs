//! Types whose 4-bit codes stand for the levels of a fixed table, denser around zero.

use half::f16;

use super::{half, join, nibbles, pack_nibbles, part, word};

/// The levels of IQ4_NL and IQ4_XS (`kvalues_iq4nl`).
pub const LEVELS: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// value = d · level of the code, for 32 elements.
#[inline(always)]
pub fn unpack_iq4_nl(block: &[u8; 18], out: &mut [f32; 32]) {
    let d = half(block, 0);
    for (y, code) in out.iter_mut().zip(nibbles::<16, 32>(part(block, 2))) {
        *y = d * f32::from(LEVELS[usize::from(code)]);
    }
}

/// Codes 0 to 15; see [`unpack_iq4_nl`].
#[inline(always)]
pub fn pack_iq4_nl(d: f16, codes: &[u8; 32], block: &mut [u8; 18]) {
    join(block, &[&d.to_le_bytes(), &pack_nibbles::<32, 16>(codes)]);
}

/// value = d · (scale − 32) · level of the code, for 8 sub-blocks of 32; a scale has 6 bits.
#[inline(always)]
pub fn unpack_iq4_xs(block: &[u8; 136], out: &mut [f32; 256]) {
    let d = half(block, 0);
    let scales = iq4_xs_scales(part(block, 0));
    let codes = part::<128>(block, 8).as_chunks::<16>().0;
    for (j, (out, codes)) in out.as_chunks_mut::<32>().0.iter_mut().zip(codes).enumerate() {
        let d = d * f32::from(scales[j]);
        for (y, code) in out.iter_mut().zip(nibbles::<16, 32>(codes)) {
            *y = d * f32::from(LEVELS[usize::from(code)]);
        }
    }
}

/// IQ4_XS's scales, less 32, of a block's first eight bytes.
#[inline(always)]
pub fn iq4_xs_scales(bytes: &[u8; 8]) -> [i8; 8] {
    let (high, low) = (word(bytes, 2), part::<4>(bytes, 4));
    std::array::from_fn(|j| {
        let scale = low[j / 2] >> (j % 2 * 4) & 15 | ((high >> (2 * j)) as u8 & 3) << 4;
        scale as i8 - 32
    })
}

/// Codes 0 to 15, scales 0 to 63; see [`unpack_iq4_xs`].
#[inline(always)]
pub fn pack_iq4_xs(d: f16, scales: &[u8; 8], codes: &[u8; 256], block: &mut [u8; 136]) {
    let high = (0..8).fold(0, |high, j| high | u16::from(scales[j] >> 4 & 3) << (2 * j));
    let low: [u8; 4] = std::array::from_fn(|j| scales[2 * j] & 15 | scales[2 * j + 1] << 4);
    let mut packed = [0; 128];
    for (packed, codes) in packed.as_chunks_mut::<16>().0.iter_mut().zip(codes.as_chunks::<32>().0) {
        *packed = pack_nibbles(codes);
    }
    join(block, &[&d.to_le_bytes(), &high.to_le_bytes(), &low, &packed]);
}
