//! Activation functions.

use super::exp;
use crate::family::Activation;
use crate::runtime::kernels::vectorise;
use crate::threads::Pool;

/// Elements in a piece of work.
const PIECE: usize = 8192;

/// Replaces each x by f(x).
pub fn apply(f: Activation, x: &mut [f32], pool: &Pool) {
    pool.for_each_chunk(x, PIECE, |_, x| {
        vectorise(
            #[inline(always)]
            || piece(f, x),
        );
    });
}

/// Replaces each x by f(x) · up. The two have the same length.
pub fn gate(f: Activation, x: &mut [f32], up: &[f32], pool: &Pool) {
    pool.for_each_chunk(x, PIECE, |i, x| {
        vectorise(
            #[inline(always)]
            || {
                piece(f, x);
                x.iter_mut().zip(&up[i * PIECE..]).for_each(|(x, up)| *x *= up);
            },
        );
    });
}

/// Replaces each gradient g of f(x) by that of x, g · f′(x). The two have the same length.
pub fn gradient(f: Activation, x: &[f32], g: &mut [f32], pool: &Pool) {
    pool.for_each_chunk(g, PIECE, |i, g| {
        vectorise(
            #[inline(always)]
            || slopes(f, &x[i * PIECE..], g),
        );
    });
}

/// Replaces each gradient g of f(x) · up by that of x, g · up · f′(x), and each up by its gradient, g · f(x). All have the same
/// length.
pub fn gate_gradient(f: Activation, x: &[f32], up: &mut [f32], g: &mut [f32], pool: &Pool) {
    let mut both: Vec<(&mut [f32], &mut [f32])> = up.chunks_mut(PIECE).zip(g.chunks_mut(PIECE)).collect();
    pool.for_each_chunk(&mut both, 1, |i, both| {
        let (up, g) = &mut both[0];
        let mut value = x[i * PIECE..][..g.len()].to_vec();
        vectorise(
            #[inline(always)]
            || {
                piece(f, &mut value);
                for ((up, g), value) in up.iter_mut().zip(g.iter_mut()).zip(&value) {
                    (*up, *g) = (*g * value, *g * *up);
                }
                slopes(f, &x[i * PIECE..], g);
            },
        );
    });
}

/// g · f′(x)
#[inline(always)]
fn slopes(f: Activation, x: &[f32], g: &mut [f32]) {
    /// √(2/π), twice, as in [`piece`]; 1/√(2π).
    const TANH: f32 = 1.595_769;
    const DENSITY: f32 = 0.398_942_3;
    match f {
        Activation::Identity => {}
        Activation::Relu => both(x, g, |x| if x > 0.0 { 1.0 } else { 0.0 }),
        Activation::Gelu => both(x, g, |x| {
            let below = 0.5 * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2));
            below + x * DENSITY * exp(-0.5 * x * x)
        }),
        Activation::GeluTanh => both(x, g, |x| {
            let s = sigmoid(TANH * (x + 0.044_715 * x * x * x));
            s + x * s * (1.0 - s) * TANH * (1.0 + 0.134_145 * x * x)
        }),
        Activation::Silu => both(x, g, |x| {
            let s = sigmoid(x);
            s + x * s * (1.0 - s)
        }),
        Activation::Sigmoid => both(x, g, |x| {
            let s = sigmoid(x);
            s * (1.0 - s)
        }),
        Activation::Tanh => both(x, g, |x| {
            let t = x.tanh();
            1.0 - t * t
        }),
    }
}

#[inline(always)]
fn both(x: &[f32], g: &mut [f32], slope: impl Fn(f32) -> f32) {
    g.iter_mut().zip(x).for_each(|(g, x)| *g *= slope(*x));
}

#[inline(always)]
fn piece(f: Activation, x: &mut [f32]) {
    match f {
        Activation::Identity => {}
        Activation::Relu => each(x, |x| if x < 0.0 { 0.0 } else { x }),
        Activation::Gelu => each(x, |x| 0.5 * x * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2))),
        // ½ (1 + tanh u) = sigmoid(2u), with u = √(2/π) · (x + 0.044715 x³) (Hendrycks and Gimpel, 2016).
        Activation::GeluTanh => each(x, |x| x * sigmoid(1.595_769 * (x + 0.044_715 * x * x * x))),
        Activation::Silu => each(x, |x| x * sigmoid(x)),
        Activation::Sigmoid => each(x, sigmoid),
        Activation::Tanh => each(x, f32::tanh),
    }
}

/// The error function, to 4 · 10⁻⁷ of 1, in a form that compilers vectorise: erfc(x) = exp(−x²) · P(t), t = 1 / (1 + p · x), for
/// x ≥ 0 (the form of Abramowitz and Stegun, 1964, 7.1.26; p and P were fitted anew, of one degree more).
#[inline(always)]
fn erf(x: f32) -> f32 {
    const P: [f32; 6] = [0.301_583_57, 0.390_841_26, -0.041_424_1, 0.759_711_9, -0.518_036_7, 0.107_324_11];
    let size = x.abs();
    let t = 1.0 / (1.0 + 0.55 * size);
    let sum = P.iter().rev().fold(0.0, |sum, p| sum * t + p) * t;
    (1.0 - exp(-size * size) * sum).copysign(x)
}

#[inline(always)]
fn each(x: &mut [f32], f: impl Fn(f32) -> f32) {
    x.iter_mut().for_each(|x| *x = f(*x));
}

#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::testing::{Noise, close};

    #[test]
    fn each_equals_its_definition() {
        let mut x: Vec<f32> = Noise::new(7).vec(20_000).iter().map(|x| x * 10.0).collect();
        x.extend([0.0, 100.0, -100.0]);
        let definition = |f: Activation, x: f64| match f {
            Activation::Relu => x.max(0.0),
            Activation::Gelu => 0.5 * x * libm::erfc(-x / 2f64.sqrt()),
            Activation::GeluTanh => {
                0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
            }
            Activation::Silu => x / (1.0 + (-x).exp()),
            Activation::Tanh => x.tanh(),
            Activation::Sigmoid => 1.0 / (1.0 + (-x).exp()),
            Activation::Identity => x,
        };
        let pool = Pool::new(2);
        for f in [
            Activation::Relu,
            Activation::Gelu,
            Activation::GeluTanh,
            Activation::Silu,
            Activation::Tanh,
            Activation::Sigmoid,
            Activation::Identity,
        ] {
            let expected: Vec<f64> = x.iter().map(|x| definition(f, f64::from(*x))).collect();
            let mut out = x.clone();
            apply(f, &mut out, &pool);
            close(&out, &expected, 1e-5);
            let gated: Vec<f64> = expected.iter().zip(&x).map(|(e, up)| e * f64::from(*up)).collect();
            out.copy_from_slice(&x);
            gate(f, &mut out, &x, &pool);
            close(&out, &gated, 1e-3);
            let mut bad = [f32::NAN];
            apply(f, &mut bad, &pool);
            assert!(bad[0].is_nan(), "{f:?} shows a NaN");
        }
    }

    #[test]
    fn the_error_function_is_libm_s() {
        for i in -60_000..=60_000 {
            let x = i as f32 / 10_000.0;
            let (found, expected) = (f64::from(erf(x)), libm::erf(f64::from(x)));
            assert!((found - expected).abs() < 4e-7, "{x}: {found}, not {expected}");
        }
        assert!(erf(f32::NAN).is_nan());
        assert_eq!([erf(30.0), erf(-30.0)], [1.0, -1.0]);
    }
}
