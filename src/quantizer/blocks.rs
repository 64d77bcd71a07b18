//! ggml's block types, as llama-quantize encodes them, or with a search for better scales.

use formats::Dtype;

use super::{Band, Notes, Numbers, Quantizer, ggml};
use crate::encoding::Encoding;

/// How much each column of a weight matters: the mean square of its inputs, from an importance matrix. Experts that are
/// stacked in one weight have columns each.
#[derive(Debug, Clone)]
pub struct Columns {
    /// For each expert, a number for each column; one entry where there are no experts.
    pub experts: Vec<Vec<f32>>,
    /// Rows of one expert.
    pub rows: u64,
}

/// Blocks of one type.
#[derive(Debug, Clone)]
pub struct Blocks {
    /// The block type.
    pub dtype: Dtype,
    /// Whether scales are searched by least squared error; never worse than without.
    pub search: bool,
    /// What errors are weighted by, if it is known.
    pub importance: Option<Columns>,
}

impl Quantizer for Blocks {
    fn encoding(&self, _: Dtype) -> Encoding {
        Encoding::Plain(self.dtype)
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
        let notes = Notes { non_finite: super::first_non_finite(numbers), ..Notes::default() };
        if notes.non_finite.is_some() || numbers.is_empty() {
            return notes;
        }
        let encode = if self.search { ggml::quantize_row_search } else { ggml::quantize_row };
        let Some(columns) = &self.importance else {
            // Blocks do not depend on their row, so the band is as good as one.
            encode(self.dtype, numbers, None, &mut parts[0]);
            return notes;
        };
        let bytes = parts[0].len() / (numbers.len() / band.cols);
        for (i, (row, out)) in numbers.chunks_exact(band.cols).zip(parts[0].chunks_exact_mut(bytes)).enumerate() {
            let expert = (band.first_row + i as u64) / columns.rows.max(1);
            encode(self.dtype, row, columns.experts.get(expert as usize).map(Vec::as_slice), out);
        }
        notes
    }
}
