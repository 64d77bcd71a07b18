//! Choosing the next token.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// Chooses tokens from logits: the likeliest one, or one drawn at random, always the same for the same seed.
#[derive(Debug, Clone)]
pub struct Sampler {
    temperature: f32,
    top_p: f32,
    random: ChaCha8Rng,
}

impl Sampler {
    /// Always the likeliest token.
    pub fn greedy() -> Self {
        Self::new(0.0, 1.0, 0)
    }

    /// Draws from softmax(logits / temperature), of which only the likeliest tokens count whose shares reach `top_p` together
    /// (Holtzman et al., 2020). Temperature 0 is greedy.
    pub fn new(temperature: f32, top_p: f32, seed: u64) -> Self {
        Self { temperature, top_p, random: ChaCha8Rng::seed_from_u64(seed) }
    }

    /// The next token. NaN is never chosen; of equals the first is.
    pub fn choose(&mut self, logits: &[f32]) -> u32 {
        let best = (0..logits.len()).fold(0, |best, i| if above(logits[i], logits[best]) { i } else { best });
        if self.temperature <= 0.0 {
            return best as u32;
        }
        let share = |i: usize| f64::from((logits[i] - logits[best]) / self.temperature).exp();
        let mut shares: Vec<(usize, f64)> =
            (0..logits.len()).map(|i| (i, share(i))).filter(|(_, share)| *share > 0.0).collect();
        // Equals keep their order, so that the draw is the same everywhere.
        shares.sort_by(|a, b| b.1.total_cmp(&a.1));
        let total: f64 = shares.iter().map(|(_, share)| share).sum();
        let mut reached = 0.0;
        let kept = shares.iter().take_while(|(_, share)| {
            let before = reached;
            reached += share;
            before < f64::from(self.top_p) * total
        });
        let kept = kept.count().max(1).min(shares.len());
        let total: f64 = shares[..kept].iter().map(|(_, share)| share).sum();
        // 53 random bits: a number from 0 to 1, 1 excluded.
        let mut left = (self.random.next_u64() >> 11) as f64 / (1u64 << 53) as f64 * total;
        for (i, share) in &shares[..kept] {
            left -= share;
            if left < 0.0 {
                return *i as u32;
            }
        }
        best as u32
    }
}

/// Whether a is greater, or b is NaN.
fn above(a: f32, b: f32) -> bool {
    a > b || (b.is_nan() && !a.is_nan())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn greedy_takes_the_first_of_the_greatest() {
        assert_eq!(Sampler::greedy().choose(&[1.0, 3.0, 3.0, f32::NAN]), 1);
        assert_eq!(Sampler::greedy().choose(&[f32::NAN, -1.0]), 1);
        assert_eq!(Sampler::greedy().choose(&[f32::NAN, f32::NAN]), 0);
    }

    #[test]
    fn draws_follow_the_shares_and_repeat_with_the_seed() {
        let logits = [0.0, 2f32.ln(), 4f32.ln(), f32::NEG_INFINITY];
        let draw = |temperature, top_p, seed| {
            let mut sampler = Sampler::new(temperature, top_p, seed);
            (0..7000).map(|_| sampler.choose(&logits)).collect::<Vec<u32>>()
        };
        let found = draw(1.0, 1.0, 1);
        for (token, expected) in [(0, 1000.0), (1, 2000.0), (2, 4000.0), (3, 0.0)] {
            let count = found.iter().filter(|found| **found == token).count() as f64;
            assert!((count - expected).abs() < 150.0, "{token}: {count}");
        }
        assert_eq!(found, draw(1.0, 1.0, 1));
        assert_ne!(found, draw(1.0, 1.0, 2));
        // 4 of 7 is enough for 0.5; 0.6 needs the second one too.
        assert!(draw(1.0, 0.5, 1).iter().all(|token| *token == 2));
        assert!(draw(1.0, 0.6, 1).iter().all(|token| *token > 0));
        assert!(draw(1.0, 0.0, 1).iter().all(|token| *token == 2));
        assert!(draw(1e-3, 1.0, 1).iter().all(|token| *token == 2));
    }
}
