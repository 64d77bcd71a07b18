//! ggml's Q8_0, as its reference encoder writes it: d = amax / 127 in f32, codes by the reciprocal of that d, rounded half
//! away from zero; then d is stored as f16.

use formats::Dtype;

use super::{Band, Notes, Numbers, Quantizer};
use crate::encoding::Encoding;

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
        // Blocks do not depend on their row, so the band is as good as one.
        super::ggml::quantize_row(Dtype::Q8_0, numbers, None, &mut parts[0]);
        Notes { non_finite: super::first_non_finite(numbers), ..Notes::default() }
    }
}
