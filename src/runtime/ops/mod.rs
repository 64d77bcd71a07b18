//! What a transformer computes besides matrix products with weights, in f32; and, of each, how gradients go back through it.

pub mod activation;
pub mod attention;
mod attention_gradient;
pub mod embedding;
pub mod norm;
pub mod rope;
pub mod softmax;

/// Σ f(x), in 4 · 8 partial sums: faster than one, and more exact. PyTorch adds in this order on AVX2, which matters where a
/// last bit decides: activations that are quantized next.
#[inline(always)]
fn sum(x: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [[0.0f32; 8]; 4];
    let (whole, rest) = x.as_chunks::<32>();
    for chunk in whole {
        for (lanes, x) in lanes.iter_mut().zip(chunk.as_chunks::<8>().0) {
            lanes.iter_mut().zip(x).for_each(|(lane, x)| *lane += f(*x));
        }
    }
    let [mut lanes, others @ ..] = lanes;
    for other in others {
        lanes.iter_mut().zip(other).for_each(|(lane, other)| *lane += other);
    }
    let rest: f32 = rest.iter().map(|x| f(*x)).sum();
    lanes.iter().fold(rest, |sum, lane| sum + lane)
}

/// eˣ, within two units in the last place for −87.3 ≤ x ≤ 88; x beyond is taken for the bound, where the result is no more
/// than 2·10⁻³⁸ or no less than 10³⁸. Without branches, so that loops of it are vectorised.
#[inline(always)]
fn exp(x: f32) -> f32 {
    /// 1.5 · 2²³: adding it rounds to a whole number, which is then in the low bits.
    const SHIFT: f32 = 12_582_912.0;
    /// ln 2 in two parts, of which products of the first with small whole numbers are exact.
    const LN2: (f32, f32) = (355.0 / 512.0, -2.121_944_4e-4);

    let x = x.clamp(-87.3, 88.0);
    let shifted = x * std::f32::consts::LOG2_E + SHIFT;
    let n = shifted - SHIFT;
    let r = x - n * LN2.0 - n * LN2.1;
    // Taylor's series; the first term left out is below 6·10⁻⁹ for |r| ≤ ln 2 / 2.
    let mut series = 1.0 / 5040.0;
    for coefficient in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        series = series * r + coefficient;
    }
    let two_to_n = f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23));
    series * two_to_n
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_exact_to_two_units_in_the_last_place() {
        for i in -873_000..=880_000 {
            let x = i as f32 / 10_000.0;
            let expected = f64::from(x).exp();
            let error = (f64::from(exp(x)) - expected).abs() / expected;
            assert!(error < 2.0 * f64::from(f32::EPSILON), "exp({x}): {error:e}");
        }
        assert!(exp(f32::NAN).is_nan());
        assert!(exp(f32::NEG_INFINITY) < 1e-37 && exp(f32::INFINITY) > 1e38);
        assert_eq!(exp(0.0), 1.0);
    }

    #[test]
    fn sums_take_every_element_once() {
        for len in [0, 1, 31, 32, 33, 100] {
            let x: Vec<f32> = (1..=len).map(|i| i as f32).collect();
            assert_eq!(sum(&x, |x| x), (len * (len + 1) / 2) as f32);
        }
    }
}
