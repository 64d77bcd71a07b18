//! How fast a rotary position embedding turns: what its description means, whoever rotates.

use std::f64::consts::TAU;

use super::{Rope, RopeScaling};

impl Rope {
    /// The angle per position of each pair (i, i + dims/2), in texts of so many positions.
    pub fn frequencies(&self, length: usize) -> Vec<f32> {
        let pairs = self.dims / 2;
        (0..pairs)
            .map(|i| {
                let plain = f64::from(self.theta).powf(-(2.0 * i as f64) / self.dims as f64);
                let scaled = match &self.scaling {
                    RopeScaling::None => plain,
                    RopeScaling::Linear { factor } => plain / f64::from(*factor),
                    RopeScaling::Each(factors) => plain / f64::from(factors[i]),
                    RopeScaling::Long { short, long, original_context, .. } => {
                        plain / f64::from(if length > *original_context { long[i] } else { short[i] })
                    }
                    RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
                        let (low, high) = (f64::from(*low_freq_factor), f64::from(*high_freq_factor));
                        // How often the pair turns within the original context decides; between the bounds, a blend.
                        let turns = f64::from(*original_context) * plain / TAU;
                        let share = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                        (1.0 - share) * plain / f64::from(*factor) + share * plain
                    }
                };
                scaled as f32
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llama3_keeps_short_wavelengths_and_stretches_long_ones() {
        let scaling =
            RopeScaling::Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_context: 8192.0 };
        let plain = Rope { theta: 5e5, dims: 128, scaling: RopeScaling::None }.frequencies(9000);
        let scaled = Rope { theta: 5e5, dims: 128, scaling }.frequencies(9000);
        let ratio: Vec<f32> = plain.iter().zip(&scaled).map(|(p, s)| p / s).collect();
        assert_eq!(ratio[0], 1.0);
        assert!((ratio[63] - 8.0).abs() < 1e-4);
        assert!(ratio.is_sorted() && ratio.iter().any(|r| *r > 1.5 && *r < 7.0));
    }
}
