//! llama.cpp's dialect: its names, its row order for rotated heads, its metadata keys (ggml's `docs/gguf.md`, and what
//! llama.cpp's loader asks for).

mod config;
mod metadata;
mod tokenizer;

use std::collections::HashMap;

use crate::family::table::Expected;
use crate::family::{Family, Position, RopeScaling, Transformer};

pub use config::{CONFIG_KEY, config};
pub use metadata::{architecture, file_type};
pub use tokenizer::tokenizer;

/// What llama.cpp cannot be told, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unsayable {
    /// What it is.
    pub problem: String,
    /// What to do about it.
    pub next: String,
}

/// What llama.cpp divides each rotation's frequency by, where that is not the same for all.
pub fn rope_factors(transformer: &Transformer) -> Option<Vec<f32>> {
    let Position::Rope(ropes) = &transformer.position else { return None };
    let rope = ropes.first()?;
    let (factor, low_freq_factor, high_freq_factor, original_context) = match &rope.scaling {
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
            (*factor, *low_freq_factor, *high_freq_factor, *original_context)
        }
        RopeScaling::Each(factors) => return Some(factors.to_vec()),
        RopeScaling::None | RopeScaling::Linear { .. } => return None,
    };
    let factors = (0..rope.dims / 2).map(|i| {
        let frequency = 1.0 / rope.theta.powf(2.0 * i as f32 / rope.dims as f32);
        let wavelength = 2.0 * std::f32::consts::PI / frequency;
        if wavelength < original_context / high_freq_factor {
            1.0
        } else if wavelength > original_context / low_freq_factor {
            factor
        } else {
            let smooth = (original_context / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
            1.0 / ((1.0 - smooth) / factor + smooth)
        }
    });
    Some(factors.collect())
}

/// For each tensor name of llama.cpp's: the family's tensor, or, of stacked experts, the tensor of each.
pub fn tensors(family: &Family) -> HashMap<&str, Vec<&Expected>> {
    let mut all: HashMap<&str, Vec<&Expected>> = HashMap::new();
    for expected in family.tensors() {
        if let Some(place) = &expected.gguf {
            all.entry(&place.name).or_default().push(expected);
        }
    }
    all
}
