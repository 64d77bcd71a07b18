//! Softmax.

use super::{exp, sum};
use crate::runtime::kernels::vectorise;

/// Replaces x by eˣ / Σ eˣ. The greatest element is taken off first, so that nothing overflows.
pub fn softmax(x: &mut [f32]) {
    vectorise(
        #[inline(always)]
        || {
            let most = x.iter().fold(f32::NEG_INFINITY, |most, x| most.max(*x));
            x.iter_mut().for_each(|x| *x = exp(*x - most));
            let total = sum(x, |x| x);
            x.iter_mut().for_each(|x| *x /= total);
        },
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::testing::{Noise, close};

    #[test]
    fn it_equals_its_definition_and_does_not_overflow() {
        let mut noise = Noise::new(6);
        for len in [1, 2, 17, 300] {
            let mut x: Vec<f32> = noise.vec(len).iter().map(|x| x * 20.0 + 1000.0).collect();
            let powers: Vec<f64> = x.iter().map(|x| (f64::from(*x) - 1000.0).exp()).collect();
            let total: f64 = powers.iter().sum();
            softmax(&mut x);
            close(&x, &powers.iter().map(|p| p / total).collect::<Vec<_>>(), 1e-6);
        }
        let mut bad = [0.0, f32::NAN];
        softmax(&mut bad);
        assert!(bad.iter().all(|x| x.is_nan()));
        softmax(&mut []);
    }
}
