//! ggml's Q8_0, as its reference encoder writes it: d = amax / 127 in f32, codes by the reciprocal of that d, rounded half
//! away from zero; then d is stored as f16.

use formats::Dtype;
use half::f16;

use super::{Band, Notes, Numbers, Quantizer};
use crate::encoding::Encoding;

/// Numbers in a block, and its bytes: an f16 scale and the codes.
const BLOCK: usize = 32;
const BYTES: usize = 34;

/// Round-to-nearest Q8_0.
#[derive(Debug, Clone, Copy)]
pub struct Q8_0;

impl Quantizer for Q8_0 {
    fn encoding(&self, _: Dtype) -> Encoding {
        Encoding::Plain(Dtype::Q8_0)
    }

    fn encode(&self, band: Band<'_>, parts: &mut [Vec<u8>]) -> Notes {
        let narrowed: Vec<f32>;
        let numbers = match band.numbers {
            Numbers::F32(numbers) => numbers,
            // llama.cpp's converter makes f32 of f64 before anything else.
            Numbers::F64(numbers) => {
                narrowed = numbers.iter().map(|&x| x as f32).collect();
                &narrowed
            }
        };
        let (places, _) = parts[0].as_chunks_mut::<BYTES>();
        let (blocks, _) = numbers.as_chunks::<BLOCK>();
        for (place, block) in places.iter_mut().zip(blocks) {
            let amax = block.iter().fold(0f32, |most, x| most.max(x.abs()));
            let d = amax / 127.0;
            let inverse = if d == 0.0 { 0.0 } else { 1.0 / d };
            place[..2].copy_from_slice(&f16::from_f32(d).to_le_bytes());
            for (to, x) in place[2..].iter_mut().zip(block) {
                *to = (x * inverse).round() as i32 as u8;
            }
        }
        Notes { non_finite: super::first_non_finite(numbers), ..Notes::default() }
    }
}
