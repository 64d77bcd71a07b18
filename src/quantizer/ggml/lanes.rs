//! Sub-blocks side by side. ggml's searches are sums over the elements of a sub-block, in order; floating-point sums cannot
//! be reordered without changing bits. So eight sub-blocks are laid side by side and element i of all eight is handled at
//! once: each lane adds in ggml's own order, and the compiler turns the loops over lanes into vector instructions.

/// Sub-blocks that are handled at once.
pub const W: usize = 8;

/// One number of each sub-block.
pub type Lanes = [f32; W];

/// `N` elements of each sub-block: the first of all, the second of all, …
pub type Columns<const N: usize> = [Lanes; N];

/// Lays sub-blocks of `N` elements side by side. Fewer than [`W`] leave the last lanes zero.
pub fn columns<const N: usize>(sub_blocks: &[[f32; N]]) -> Columns<N> {
    let mut columns = [[0.0; W]; N];
    for (lane, sub_block) in sub_blocks.iter().take(W).enumerate() {
        for (column, &x) in columns.iter_mut().zip(sub_block) {
            column[lane] = x;
        }
    }
    columns
}

/// `f` of each lane.
#[inline(always)]
pub fn each(f: impl FnMut(usize) -> f32) -> Lanes {
    std::array::from_fn(f)
}

/// The sum of `f` over the elements of each sub-block, in their order.
#[inline(always)]
pub fn sum<const N: usize>(f: impl Fn(usize, usize) -> f32) -> Lanes {
    let mut sums = [0.0; W];
    for i in 0..N {
        for (lane, sum) in sums.iter_mut().enumerate() {
            *sum += f(i, lane);
        }
    }
    sums
}

/// 1.5 · 2²³: f32 numbers of this size are the integers.
const MAGIC: f32 = 12_582_912.0;

/// The nearest integer, ties to even, if |x| < 2²²; for other numbers what ggml's `nearest_int` makes of their bits.
#[inline(always)]
pub fn nearest(x: f32) -> i32 {
    ((x + MAGIC).to_bits() & 0x007f_ffff) as i32 - 0x0040_0000
}

/// Like [`nearest`], as a float and only for |x| < 2²²: two additions, where an integer would have to be converted.
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

/// [`i32::clamp`] for bounds that are in order, without its check.
#[inline(always)]
pub fn clamp_to(x: i32, low: i32, high: i32) -> i32 {
    x.max(low).min(high)
}

/// The weights of numbers whose columns have the weights `qw`: qw · √(σ² + x²).
pub fn importance<const N: usize>(x: &Columns<N>, qw: &Columns<N>, sigma2: &Lanes) -> Columns<N> {
    let mut w = *qw;
    for (w, x) in w.iter_mut().zip(x) {
        for lane in 0..W {
            w[lane] *= (sigma2[lane] + x[lane] * x[lane]).sqrt();
        }
    }
    w
}
