//! Integers with scales, unpacked: code · scale, a scale for each row or for each group of one.

use super::plain::Real;
use crate::simd::{Simd, Task, dispatch};

/// Unpacks whole rows of `cols` i8 codes, a scale each.
pub fn unpack_rows<T: Real>(codes: &[u8], scales: &[f32], cols: usize, out: &mut [T]) {
    dispatch(UnpackRows { codes, scales, cols, out });
}

/// Unpacks whole rows of `cols` codes of 4 or 8 bits, counted from zero, in groups of `group` with a scale each. A row is
/// whole bytes; of two codes in a byte the first is in the low bits.
pub fn unpack_groups<T: Real>(bits: u8, bytes: &[u8], scales: &[f32], (cols, group): (usize, usize), out: &mut [T]) {
    dispatch(UnpackGroups { bits, bytes, scales, cols, group, out });
}

struct UnpackRows<'a, T> {
    codes: &'a [u8],
    scales: &'a [f32],
    cols: usize,
    out: &'a mut [T],
}

impl<T: Real> Task for UnpackRows<'_, T> {
    type Output = ();

    fn run<S: Simd>(self, simd: S) {
        let Self { codes, scales, cols, out } = self;
        for ((to, codes), &scale) in out.chunks_exact_mut(cols).zip(codes.chunks_exact(cols)).zip(scales) {
            simd.run(
                #[inline(always)]
                || {
                    for (x, &code) in to.iter_mut().zip(codes) {
                        *x = T::from_f32(f32::from(code as i8) * scale);
                    }
                },
            );
        }
    }
}

struct UnpackGroups<'a, T> {
    bits: u8,
    bytes: &'a [u8],
    scales: &'a [f32],
    cols: usize,
    group: usize,
    out: &'a mut [T],
}

impl<T: Real> Task for UnpackGroups<'_, T> {
    type Output = ();

    fn run<S: Simd>(self, simd: S) {
        let Self { bits, bytes, scales, cols, group, out } = self;
        let middle = 1i16 << (bits - 1);
        let value = |code: u8, scale: f32| T::from_f32(f32::from(i16::from(code) - middle) * scale);
        let rows = out.len() / cols.max(1);
        let lines = out.chunks_exact_mut(cols).zip(bytes.chunks_exact(bytes.len() / rows.max(1)));
        for ((to, bytes), scales) in lines.zip(scales.chunks_exact(cols / group)) {
            let paired = bits == 4 && group % 2 == 0;
            simd.run(
                #[inline(always)]
                || match (bits, paired) {
                    (4, true) => {
                        let groups = to.chunks_exact_mut(group).zip(bytes.chunks_exact(group / 2));
                        for ((to, bytes), &scale) in groups.zip(scales) {
                            for (pair, &byte) in to.as_chunks_mut::<2>().0.iter_mut().zip(bytes) {
                                *pair = [value(byte & 15, scale), value(byte >> 4, scale)];
                            }
                        }
                    }
                    (4, false) => {
                        for (i, x) in to.iter_mut().enumerate() {
                            *x = value(bytes[i / 2] >> (4 * (i % 2)) & 15, scales[i / group]);
                        }
                    }
                    _ => {
                        for ((to, codes), &scale) in
                            to.chunks_exact_mut(group).zip(bytes.chunks_exact(group)).zip(scales)
                        {
                            for (x, &code) in to.iter_mut().zip(codes) {
                                *x = value(code, scale);
                            }
                        }
                    }
                },
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::{on, supported};

    #[test]
    fn every_instruction_set_unpacks_the_same() {
        let bytes: Vec<u8> = (0..600u32).map(|i| (i * 37 + i / 7) as u8).collect();
        let scales: Vec<f32> = (1..2000).map(|i| 0.01 * i as f32).collect();
        for isa in supported() {
            for (bits, cols, group) in [(4u8, 60, 20), (4, 30, 5), (8, 60, 20), (4, 100, 100)] {
                let (bits, per_row) = (usize::from(bits), (cols * usize::from(bits)).div_ceil(8));
                let rows = bytes.len() / per_row;
                let mut out = vec![0f32; rows * cols];
                let per = cols / group;
                let (bytes, scales) = (&bytes[..rows * per_row], &scales[..rows * per]);
                on(isa, UnpackGroups { bits: bits as u8, bytes, scales, cols, group, out: &mut out });
                for (at, x) in out.iter().enumerate() {
                    let (r, c) = (at / cols, at % cols);
                    let byte = bytes[r * per_row + c * bits / 8];
                    let code = if bits == 4 { byte >> (4 * (c % 2)) & 15 } else { byte };
                    let expected = (f32::from(code) - (1 << (bits - 1)) as f32) * scales[r * per + c / group];
                    assert_eq!(*x, expected, "{bits} bits, {cols} in {group}, {isa}");
                }
            }
            let mut out = vec![0f32; bytes.len()];
            on(isa, UnpackRows { codes: &bytes, scales: &scales[..10], cols: 60, out: &mut out });
            for (at, x) in out.iter().enumerate() {
                assert_eq!(*x, f32::from(bytes[at] as i8) * scales[at / 60]);
            }
        }
    }
}
