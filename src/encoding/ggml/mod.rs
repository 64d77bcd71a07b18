//! ggml's block types: rows are cut into blocks of 32 to 256 elements, and each block carries its own scales.
//!
//! [`unpack`] gives the values of whole blocks. The `pack_…` functions of the submodules lay out codes and scales that a
//! quantizer chose; each states what its codes mean. Layouts are those of ggml's `ggml-common.h`; where a byte holds
//! several codes, they are a fixed stride apart so that a vector unit can split them.

pub mod float4;
mod grid;
pub mod iq;
pub mod k;
pub mod legacy;
pub mod nonlinear;
pub mod scales;
pub mod ternary;

#[cfg(test)]
mod tests;

use crate::simd::convert;
use crate::simd::{Simd, Task, dispatch};
use formats::Dtype;

/// Unpacks whole blocks: `bytes` are the blocks and `out` their elements, in the order of the row. The values are those
/// of ggml's `dequantize_row_…`, bit for bit.
///
/// # Panics
/// If `dtype` is not a block type ([`Dtype::is_block`]), or the lengths are not those of the same whole number of blocks.
pub fn unpack(dtype: Dtype, bytes: &[u8], out: &mut [f32]) {
    dispatch(Unpack { dtype, bytes, out });
}

/// What [`unpack`] does.
pub(crate) struct Unpack<'a> {
    pub dtype: Dtype,
    pub bytes: &'a [u8],
    pub out: &'a mut [f32],
}

impl Task for Unpack<'_> {
    type Output = ();

    fn run<S: Simd>(self, simd: S) {
        let Self { dtype, bytes, out } = self;
        // A function that is passed as it is would be called, and not be compiled for the instruction set.
        macro_rules! blocks {
            ($unpack:path) => {
                each(
                    simd,
                    bytes,
                    out,
                    #[inline(always)]
                    |block, values| $unpack(block, values),
                )
            };
        }
        match dtype {
            Dtype::Q4_0 => blocks!(legacy::unpack_q4_0),
            Dtype::Q4_1 => blocks!(legacy::unpack_q4_1),
            Dtype::Q5_0 => blocks!(legacy::unpack_q5_0),
            Dtype::Q5_1 => blocks!(legacy::unpack_q5_1),
            Dtype::Q8_0 => blocks!(legacy::unpack_q8_0),
            Dtype::Q8_1 => blocks!(legacy::unpack_q8_1),
            Dtype::Q2_K => blocks!(k::unpack_q2_k),
            Dtype::Q3_K => blocks!(k::unpack_q3_k),
            Dtype::Q4_K => blocks!(k::unpack_q4_k),
            Dtype::Q5_K => blocks!(k::unpack_q5_k),
            Dtype::Q6_K => blocks!(k::unpack_q6_k),
            Dtype::Q8_K => blocks!(k::unpack_q8_k),
            Dtype::IQ2_XXS => blocks!(iq::unpack_iq2_xxs),
            Dtype::IQ2_XS => blocks!(iq::unpack_iq2_xs),
            Dtype::IQ2_S => blocks!(iq::unpack_iq2_s),
            Dtype::IQ3_XXS => blocks!(iq::unpack_iq3_xxs),
            Dtype::IQ3_S => blocks!(iq::unpack_iq3_s),
            Dtype::IQ1_S => blocks!(iq::unpack_iq1_s),
            Dtype::IQ1_M => blocks!(iq::unpack_iq1_m),
            Dtype::IQ4_NL => blocks!(nonlinear::unpack_iq4_nl),
            Dtype::IQ4_XS => blocks!(nonlinear::unpack_iq4_xs),
            Dtype::TQ1_0 => blocks!(ternary::unpack_tq1_0),
            Dtype::TQ2_0 => blocks!(ternary::unpack_tq2_0),
            Dtype::Q1_0 => blocks!(ternary::unpack_q1_0),
            Dtype::Q2_0 => blocks!(ternary::unpack_q2_0),
            Dtype::MXFP4 => blocks!(float4::unpack_mxfp4),
            Dtype::NVFP4 => blocks!(float4::unpack_nvfp4),
            _ => panic!("{dtype} is not a block type of ggml"),
        }
    }
}

/// Unpacks each block of `B` bytes to its `N` elements.
fn each<const B: usize, const N: usize>(
    simd: impl Simd,
    bytes: &[u8],
    out: &mut [f32],
    unpack: impl Fn(&[u8; B], &mut [f32; N]),
) {
    let (blocks, bytes_left) = bytes.as_chunks();
    let (values, values_left) = out.as_chunks_mut();
    let whole = bytes_left.is_empty() && values_left.is_empty() && blocks.len() == values.len();
    assert!(whole, "{} bytes and {} elements are not the same blocks", bytes.len(), out.len());
    simd.run(
        #[inline(always)]
        || {
            for (block, values) in blocks.iter().zip(values) {
                unpack(block, values);
            }
        },
    );
}

/// The `M` bytes of a block from `at` on.
#[inline(always)]
fn part<const M: usize>(block: &[u8], at: usize) -> &[u8; M] {
    let (parts, _) = block[at..].as_chunks();
    &parts[0]
}

/// The f16 of a block at `at`.
#[inline(always)]
fn half(block: &[u8], at: usize) -> f32 {
    convert::widen(word(block, at))
}

/// The u16 of a block at `at`.
#[inline(always)]
fn word(block: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(*part(block, at))
}

/// Puts `parts` one behind the other; together they fill `block`.
#[inline(always)]
fn join(block: &mut [u8], parts: &[&[u8]]) {
    let mut rest = block;
    for part in parts {
        let (here, behind) = rest.split_at_mut(part.len());
        here.copy_from_slice(part);
        rest = behind;
    }
    debug_assert!(rest.is_empty());
}

/// `N` codes of 4 bits from `N / 2` bytes: the low nibbles are the first half, the high ones the second.
#[inline(always)]
fn nibbles<const H: usize, const N: usize>(bytes: &[u8; H]) -> [u8; N] {
    const { assert!(N == 2 * H) };
    let mut codes = [0; N];
    let (low, high) = codes.split_at_mut(H);
    for ((low, high), byte) in low.iter_mut().zip(high).zip(bytes) {
        (*low, *high) = (byte & 15, byte >> 4);
    }
    codes
}

/// The reverse of [`nibbles`]; only the low four bits of a code count.
#[inline(always)]
fn pack_nibbles<const N: usize, const H: usize>(codes: &[u8; N]) -> [u8; H] {
    const { assert!(N == 2 * H) };
    let (low, high) = codes.split_at(H);
    std::array::from_fn(|i| (low[i] & 15) | (high[i] << 4))
}
