//! A block as a searching quantizer sees it: every type alike.

use formats::Dtype;
use half::f16;

use super::{half, k, legacy, nonlinear, part};

/// Sub-blocks of a block, at most.
pub const MOST: usize = 16;

/// The scales of a block, whose values are d · scale · level − dmin · min for each sub-block. A type of a single scale has one
/// sub-block with the scale 1, and Q4_1 and Q5_1 the minimum 1, whose `dmin` may have either sign. What a type has fewer
/// sub-blocks of is not looked at.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scales {
    /// The factor of all scales.
    pub d: f32,
    /// The factor of all minima.
    pub dmin: f32,
    /// A scale for each sub-block.
    pub scales: [i32; MOST],
    /// A minimum for each sub-block.
    pub mins: [i32; MOST],
}

/// The scales of a block of one of the types that [`write`] writes.
///
/// # Panics
/// If it is of another type or length.
pub fn read(dtype: Dtype, block: &[u8]) -> Scales {
    let mut read = Scales { d: half(block, 0), dmin: 0.0, scales: [1; MOST], mins: [0; MOST] };
    match dtype {
        Dtype::Q8_0 | Dtype::Q4_0 | Dtype::Q5_0 | Dtype::IQ4_NL => {}
        Dtype::Q4_1 | Dtype::Q5_1 => {
            read.dmin = -half(block, 2);
            read.mins = [1; MOST];
        }
        Dtype::Q2_K => {
            (read.d, read.dmin) = (half(block, 80), half(block, 82));
            let both = part::<16>(block, 0);
            read.scales = both.map(|both| i32::from(both & 15));
            read.mins = both.map(|both| i32::from(both >> 4));
        }
        Dtype::Q4_K | Dtype::Q5_K => {
            read.dmin = half(block, 2);
            let (scales, mins) = k::scales_and_mins(part(block, 4));
            for j in 0..8 {
                (read.scales[j], read.mins[j]) = (scales[j].into(), mins[j].into());
            }
        }
        Dtype::Q3_K => {
            read.d = half(block, 108);
            read.scales = k::q3_k_scales(part(block, 96)).map(i32::from);
        }
        Dtype::Q6_K => {
            read.d = half(block, 208);
            read.scales = part::<16>(block, 192).map(|scale| i32::from(scale as i8));
        }
        Dtype::IQ4_XS => {
            for (scale, found) in read.scales.iter_mut().zip(nonlinear::iq4_xs_scales(part(block, 0))) {
                *scale = found.into();
            }
        }
        _ => panic!("{dtype} is not a type that is quantized to"),
    }
    read
}

/// Lays out a block. `d` and `dmin` are numbers of f16; scales and minima are within the type's range; a code is counted from
/// the type's least level, and in Q8_0 from −128.
///
/// # Panics
/// If the type is none that is quantized to, or the codes or the block have another length.
pub fn write(dtype: Dtype, scales: &Scales, codes: &[u8], block: &mut [u8]) {
    fn sized<const N: usize>(codes: &[u8]) -> &[u8; N] {
        assert_eq!(codes.len(), N, "a code for each number");
        part(codes, 0)
    }
    fn block_of<const B: usize>(block: &mut [u8]) -> &mut [u8; B] {
        assert_eq!(block.len(), B, "one block");
        &mut block.as_chunks_mut().0[0]
    }
    let (d, dmin) = (f16::from_f32(scales.d), f16::from_f32(scales.dmin));
    let first = |numbers: &[i32; MOST]| -> [u8; 8] { std::array::from_fn(|j| numbers[j] as u8) };
    match dtype {
        Dtype::Q8_0 => {
            let codes = sized::<32>(codes).map(|code| code.wrapping_sub(128) as i8);
            legacy::pack_q8_0(d, &codes, block_of(block));
        }
        Dtype::Q4_0 => legacy::pack_q4_0(d, sized(codes), block_of(block)),
        Dtype::Q5_0 => legacy::pack_q5_0(d, sized(codes), block_of(block)),
        Dtype::IQ4_NL => nonlinear::pack_iq4_nl(d, sized(codes), block_of(block)),
        Dtype::Q4_1 => legacy::pack_q4_1(d, -dmin, sized(codes), block_of(block)),
        Dtype::Q5_1 => legacy::pack_q5_1(d, -dmin, sized(codes), block_of(block)),
        Dtype::Q2_K => {
            let (scales, mins) = (scales.scales.map(|x| x as u8), scales.mins.map(|x| x as u8));
            k::pack_q2_k(d, dmin, &scales, &mins, sized(codes), block_of(block));
        }
        Dtype::Q4_K => {
            k::pack_q4_k(d, dmin, &first(&scales.scales), &first(&scales.mins), sized(codes), block_of(block));
        }
        Dtype::Q5_K => {
            k::pack_q5_k(d, dmin, &first(&scales.scales), &first(&scales.mins), sized(codes), block_of(block));
        }
        Dtype::Q3_K => {
            k::pack_q3_k(d, &scales.scales.map(|x| (x + 32) as u8), sized(codes), block_of(block));
        }
        Dtype::Q6_K => k::pack_q6_k(d, &scales.scales.map(|x| x as i8), sized(codes), block_of(block)),
        Dtype::IQ4_XS => {
            let scales = first(&scales.scales.map(|x| x + 32));
            nonlinear::pack_iq4_xs(d, &scales, sized(codes), block_of(block));
        }
        _ => panic!("{dtype} is not a type that is quantized to"),
    }
}
