//! Rotations whose wavelengths are each stretched by a factor of their own, which llama.cpp keeps in tensors.

use crate::family::{Position, Rope, RopeScaling, Transformer};

/// The tensors of factors that a model of llama.cpp's architecture `arch` has, with what each rotation's frequency is divided
/// by.
pub fn rope_factors(arch: &str, t: &Transformer) -> Vec<(&'static str, Vec<f32>)> {
    let Position::Rope(ropes) = &t.position else { return Vec::new() };
    let Some(rope) = ropes.first() else { return Vec::new() };
    match (&rope.scaling, arch) {
        (RopeScaling::Each(factors), "phi3") => {
            vec![("rope_factors_long.weight", factors.to_vec()), ("rope_factors_short.weight", factors.to_vec())]
        }
        (RopeScaling::Long { short, long, .. }, _) => {
            vec![("rope_factors_long.weight", long.to_vec()), ("rope_factors_short.weight", short.to_vec())]
        }
        (RopeScaling::Each(factors), _) => vec![("rope_freqs.weight", factors.to_vec())],
        (RopeScaling::Llama3 { .. }, _) => vec![("rope_freqs.weight", llama3(rope))],
        (RopeScaling::None | RopeScaling::Linear { .. }, _) => Vec::new(),
    }
}

/// Llama 3's factors, in the converter's arithmetic: torch's in f32, in which a quotient of a number by a tensor is the
/// tensor's reciprocal times the number.
fn llama3(rope: &Rope) -> Vec<f32> {
    let RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } = rope.scaling else {
        return Vec::new();
    };
    let factors = (0..rope.dims / 2).map(|i| {
        let exponent = 2.0 * i as f32 / rope.dims as f32;
        let power = f64::from(rope.theta).powf(f64::from(exponent)) as f32;
        let wavelength = 1.0 / (1.0 / power) * (2.0 * std::f32::consts::PI);
        if wavelength < original_context / high_freq_factor {
            1.0
        } else if wavelength > original_context / low_freq_factor {
            factor
        } else {
            let turns = 1.0 / wavelength * original_context;
            let smooth = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
            1.0 / ((1.0 - smooth) / factor + smooth)
        }
    });
    factors.collect()
}
