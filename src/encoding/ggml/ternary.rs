//! Types of one to two bits: codes around zero with one scale.

use super::{half, part};

/// value = d · (code − 1). A code is a digit to base 3; a byte holds five as a fraction of 256, the first digit on top.
/// Bytes 0..32 hold elements 0..160 (digit n of byte i is element 32·n + i), 32..48 the next 80, 48..52 the last 16,
/// four to a byte.
pub fn unpack_tq1_0(block: &[u8; 54], out: &mut [f32; 256]) {
    let d = half(block, 52);
    let (first, rest) = out.split_at_mut(160);
    let (second, third) = rest.split_at_mut(80);
    for (bytes, out) in [(&block[..32], first), (&block[32..48], second), (&block[48..52], third)] {
        let mut power = 1u8;
        for out in out.chunks_exact_mut(bytes.len()) {
            for (y, byte) in out.iter_mut().zip(bytes) {
                let digit = (u16::from(byte.wrapping_mul(power)) * 3) >> 8;
                *y = d * f32::from(digit as i8 - 1);
            }
            power = power.wrapping_mul(3);
        }
    }
}

/// value = d · (code − 1); a code has 2 bits. Element 128·h + 32·s + i is bits 2s of byte 32·h + i.
pub fn unpack_tq2_0(block: &[u8; 66], out: &mut [f32; 256]) {
    let d = half(block, 64);
    for (out, bytes) in out.as_chunks_mut::<128>().0.iter_mut().zip(part::<64>(block, 0).as_chunks::<32>().0) {
        for (s, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            for (y, byte) in out.iter_mut().zip(bytes) {
                *y = d * f32::from((byte >> (2 * s) & 3) as i8 - 1);
            }
        }
    }
}

/// value = d or −d: a set bit is d. Element i is bit i % 8 of byte i / 8.
pub fn unpack_q1_0(block: &[u8; 18], out: &mut [f32; 128]) {
    let d = half(block, 0);
    for (out, byte) in out.as_chunks_mut::<8>().0.iter_mut().zip(part::<16>(block, 2)) {
        *out = std::array::from_fn(|i| if byte >> i & 1 == 1 { d } else { -d });
    }
}

/// value = d · (code − 1); a code has 2 bits. Element i is bits 2·(i % 4) of byte i / 4.
pub fn unpack_q2_0(block: &[u8; 18], out: &mut [f32; 64]) {
    let d = half(block, 0);
    for (out, byte) in out.as_chunks_mut::<4>().0.iter_mut().zip(part::<16>(block, 2)) {
        *out = std::array::from_fn(|i| d * f32::from((byte >> (2 * i) & 3) as i8 - 1));
    }
}
