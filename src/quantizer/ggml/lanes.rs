//! Sub-blocks side by side. ggml's searches are sums over the elements of a sub-block, in order; floating-point sums cannot
//! be reordered without changing bits. So sixteen sub-blocks are laid side by side and element i of all is handled at once:
//! each lane adds in ggml's own order.

use half::f16;

use crate::simd::lanes::W;
use crate::simd::{Lanes, Simd, convert};

/// `N` elements of each of sixteen sub-blocks: the first of all, the second of all, …
pub type Columns<S, const N: usize> = [<S as Simd>::Lanes; N];

/// Lays sub-blocks of `N` elements side by side. Fewer than [`W`] leave the last lanes zero.
#[inline(always)]
pub fn columns<S: Simd, const N: usize>(simd: S, sub_blocks: &[[f32; N]]) -> Columns<S, N> {
    let mut turned = [[0.0; W]; N];
    for (lane, sub_block) in sub_blocks.iter().take(W).enumerate() {
        for (column, &x) in turned.iter_mut().zip(sub_block) {
            column[lane] = x;
        }
    }
    let mut columns = [simd.splat(0.0); N];
    for (column, turned) in columns.iter_mut().zip(&turned) {
        *column = simd.load(turned);
    }
    columns
}

/// The sum of each lane's numbers, in their order.
#[inline(always)]
pub fn sum<S: Simd, const N: usize>(simd: S, x: &Columns<S, N>) -> S::Lanes {
    let mut sum = simd.splat(0.0);
    for &x in x {
        sum = sum + x;
    }
    sum
}

/// The products of numbers.
#[inline(always)]
pub fn times<S: Simd, const N: usize>(a: &Columns<S, N>, b: &Columns<S, N>) -> Columns<S, N> {
    let mut products = *a;
    for (product, &b) in products.iter_mut().zip(b) {
        *product = *product * b;
    }
    products
}

/// The weights of numbers whose columns have the weights `qw`: qw · √(σ² + x²).
#[inline(always)]
pub fn importance<S: Simd, const N: usize>(x: &Columns<S, N>, qw: &Columns<S, N>, sigma2: S::Lanes) -> Columns<S, N> {
    let mut w = *qw;
    for (w, &x) in w.iter_mut().zip(x) {
        *w = *w * (sigma2 + x * x).sqrt();
    }
    w
}

/// 1.5 · 2²³: f32 numbers of this size are the integers.
const MAGIC: f32 = 12_582_912.0;

/// The nearest integer, ties to even, of |x| < 2²².
#[inline(always)]
pub fn round(x: f32) -> f32 {
    (x + MAGIC) - MAGIC
}

/// The low byte of an integer |x| < 2²², given as a float; 0 for NaN.
#[inline(always)]
pub fn byte(x: f32) -> u8 {
    (x + MAGIC).to_bits() as u8
}

/// The greater of two numbers; `b` if one is NaN, as the instruction of x86 has it.
#[inline(always)]
pub fn greatest(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

/// The lesser of two numbers; `b` if one is NaN.
#[inline(always)]
pub fn least(a: f32, b: f32) -> f32 {
    if a < b { a } else { b }
}

/// `x` within bounds; NaN becomes `low`.
#[inline(always)]
pub fn clamp(x: f32, low: f32, high: f32) -> f32 {
    least(greatest(x, low), high)
}

/// `f` of each number. A plain loop, which becomes vector instructions where `array::map` does not.
#[inline(always)]
pub fn map<T: Default + Copy, const N: usize>(x: &[f32; N], f: impl Fn(f32) -> T) -> [T; N] {
    let mut out = [T::default(); N];
    for (out, &x) in out.iter_mut().zip(x) {
        *out = f(x);
    }
    out
}

/// The nearest f16.
#[inline(always)]
pub fn to_f16(x: f32) -> f16 {
    f16::from_bits(convert::narrow(x))
}

/// The value of an f16.
#[inline(always)]
pub fn from_f16(x: f16) -> f32 {
    convert::widen(x.to_bits())
}

/// [`i32::clamp`] for bounds that are in order, without its check.
#[inline(always)]
pub fn clamp_to(x: i32, low: i32, high: i32) -> i32 {
    x.max(low).min(high)
}
