//! 4-bit floating-point types: E2M1 codes with a shared scale of 8 bits.

use super::{nibbles, part};

/// The E2M1 numbers, doubled to be integers; the scales below are halved in turn.
const LEVELS: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// value = 2^(e − 128) · level of the code, for 32 elements; `e` is the block's first byte (E8M0).
pub fn unpack_mxfp4(block: &[u8; 17], out: &mut [f32; 32]) {
    let d = match block[0] {
        // 2^-128 and 2^-127 are subnormal.
        e @ 0..2 => f32::from_bits(0x0020_0000 << e),
        e => f32::from_bits(u32::from(e - 1) << 23),
    };
    for (y, code) in out.iter_mut().zip(nibbles::<16, 32>(part(block, 1))) {
        *y = d * f32::from(LEVELS[usize::from(code)]);
    }
}

/// Half the number of an unsigned E4M3 (bias 7; 0x7f is taken as 0).
fn half_of_e4m3(bits: u8) -> f32 {
    let (exponent, mantissa) = (u32::from(bits >> 3 & 15), f32::from(bits & 7));
    match exponent {
        _ if bits == 0x7f => 0.0,
        0 => mantissa * 2f32.powi(-10),
        _ => (1.0 + mantissa / 8.0) * f32::from_bits((exponent + 127 - 8) << 23),
    }
}

/// value = scale · level of the code, for 4 sub-blocks of 16; the scales (E4M3) are the block's first four bytes.
pub fn unpack_nvfp4(block: &[u8; 36], out: &mut [f32; 64]) {
    let codes = part::<32>(block, 4).as_chunks::<8>().0;
    for ((out, codes), &scale) in out.as_chunks_mut::<16>().0.iter_mut().zip(codes).zip(part::<4>(block, 0)) {
        let d = half_of_e4m3(scale);
        for (y, code) in out.iter_mut().zip(nibbles::<8, 16>(codes)) {
            *y = d * f32::from(LEVELS[usize::from(code)]);
        }
    }
}
