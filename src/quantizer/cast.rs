//! Narrower floating point: f16, bf16 and f32, rounded to nearest, ties to even.

use formats::Dtype;
use half::f16;

use super::{Band, Notes, Numbers, Quantizer};
use crate::encoding::Encoding;
use crate::encoding::plain::{self, Real};
use crate::simd::{Simd, Task, dispatch};

/// Rounds to a floating-point dtype and counts what that dtype cannot hold.
#[derive(Debug, Clone, Copy)]
pub struct Cast(pub Dtype);

impl Quantizer for Cast {
    fn encoding(&self, _: Dtype) -> Encoding {
        Encoding::Plain(self.0)
    }

    fn encode(&self, band: Band<'_>, parts: &mut [Vec<u8>]) -> Notes {
        match band.numbers {
            Numbers::F32(numbers) => cast(numbers, self.0, &mut parts[0]),
            Numbers::F64(numbers) => cast(numbers, self.0, &mut parts[0]),
        }
    }
}

fn cast<T: Real>(numbers: &[T], dtype: Dtype, out: &mut [u8]) -> Notes {
    plain::encode(numbers, dtype, out);
    let (overflowed, vanished) = dispatch(Count { numbers, bounds: bounds(dtype) });
    Notes { non_finite: super::first_non_finite(numbers), overflowed, vanished, ..Notes::default() }
}

/// Counts the finite numbers that are at least as large, and those other than zero that are at most as small, as bounds.
struct Count<'a, T> {
    numbers: &'a [T],
    bounds: (f64, f64),
}

impl<T: Real> Task for Count<'_, T> {
    type Output = (u64, u64);

    fn run<S: Simd>(self, simd: S) -> (u64, u64) {
        let Self { numbers, bounds: (largest, smallest) } = self;
        simd.run(
            #[inline(always)]
            move || {
                let (mut overflowed, mut vanished) = (0, 0);
                for x in numbers {
                    let size = x.to_f64().abs();
                    overflowed += u64::from((size >= largest) & (size <= f64::MAX));
                    vanished += u64::from((size <= smallest) & (size > 0.0));
                }
                (overflowed, vanished)
            },
        )
    }
}

/// The least size that rounds to infinity, and the largest that rounds to zero.
fn bounds(dtype: Dtype) -> (f64, f64) {
    match dtype {
        // Half a step above the largest number, and half of the smallest (a tie, which goes to even: zero).
        Dtype::F16 => (f16::MAX.to_f64() + 16.0, f16::MIN_POSITIVE_SUBNORMAL.to_f64() / 2.0),
        Dtype::BF16 => (f64::from(f32::from_bits(0x7f7f_8000)), f64::from(f32::from_bits(0x8000))),
        // Half a step above the largest f32, and half of the smallest.
        Dtype::F32 => (f64::from(f32::MAX) + 2f64.powi(103), 2f64.powi(-150)),
        _ => (f64::INFINITY, 0.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::bf16;

    #[test]
    fn overflow_and_vanishing_are_counted_at_their_exact_bounds() {
        for (dtype, narrow) in [
            (Dtype::F16, (|x| f16::from_f32(x).to_f32()) as fn(f32) -> f32),
            (Dtype::BF16, |x| bf16::from_f32(x).to_f32()),
        ] {
            let numbers: Vec<f32> = (0..400_000u32)
                .map(|i| f32::from_bits(i.wrapping_mul(2_654_435_761)))
                .filter(|x| x.is_finite())
                .collect();
            let near =
                [65519.996, 65520.0, -65520.0, 2.9802322e-8, 2.980_233e-8, f32::MAX, 1e-45, 4.6e-41, 4.7e-41, 0.0];
            for numbers in [numbers, near.to_vec()] {
                let mut out = vec![vec![0; 2 * numbers.len()]];
                let band =
                    Band { numbers: Numbers::F32(&numbers), first_row: 0, cols: numbers.len(), dtype: Dtype::F32 };
                let notes = Cast(dtype).encode(band, &mut out);
                let over = numbers.iter().filter(|x| narrow(**x).is_infinite()).count() as u64;
                let gone = numbers.iter().filter(|x| **x != 0.0 && narrow(**x) == 0.0).count() as u64;
                assert_eq!((notes.overflowed, notes.vanished), (over, gone), "{dtype}");
            }
        }
    }
}
