//! The products of a few rows of x and a few rows of weights, written once over a [`Vector`]: a type for each instruction set says
//! how to load and how to multiply.

/// What an instruction set does with a few columns of two rows. Methods may only run where the set is there, and are inlined
/// into the functions below that enable it.
pub(super) trait Vector {
    /// Columns at a time.
    const LANES: usize;
    /// Columns of a row, ready to be multiplied.
    type Row: Copy;
    /// Partial sums.
    type Sums: Copy;

    /// [`Vector::LANES`] columns of x at `at`.
    unsafe fn x(at: *const i8) -> Self::Row;
    /// [`Vector::LANES`] columns of a weight's row at `at`.
    unsafe fn weight(at: *const i8) -> Self::Row;
    unsafe fn zero() -> Self::Sums;
    unsafe fn add(sums: Self::Sums, weight: Self::Row, x: Self::Row) -> Self::Sums;
    /// The total, given the sum of all columns of x.
    unsafe fn total(sums: Self::Sums, x_sum: i32) -> i32;
}

/// The most columns at a time of any instruction set.
const MOST_LANES: usize = 64;

/// Adds the products of LANES columns of M rows of x and N rows of weights. Rows are `stride` apart.
///
/// # Safety
/// There are LANES numbers at each row.
#[inline(always)]
unsafe fn step<V: Vector, const M: usize, const N: usize>(
    w: *const i8,
    x: *const i8,
    stride: usize,
    sums: &mut [[V::Sums; N]; M],
) {
    // Loops and no closures: a closure is a function of its own, without the instruction set of the one around it.
    // SAFETY: the caller's promise.
    unsafe {
        let mut weights = [V::weight(w); N];
        for (j, weight) in weights.iter_mut().enumerate().skip(1) {
            *weight = V::weight(w.add(j * stride));
        }
        for (i, sums) in sums.iter_mut().enumerate() {
            let row = V::x(x.add(i * stride));
            for (sum, weight) in sums.iter_mut().zip(weights) {
                *sum = V::add(*sum, weight, row);
            }
        }
    }
}

/// The dot products of M rows of x and N rows of weights, written to `out`, whose rows are `stride` apart.
///
/// # Safety
/// There are M · k numbers at `x`, N · k at `w`, M sums, and room for the products.
#[inline(always)]
pub(super) unsafe fn tile<V: Vector, const M: usize, const N: usize>(
    w: *const i8,
    x: *const i8,
    x_sums: *const i32,
    k: usize,
    out: *mut i32,
    stride: usize,
) {
    // SAFETY: the columns read are below k in rows below M and N; the last ones, if they are fewer than LANES, are read
    // from copies that are long enough. Zeros there add nothing: a weight counts only together with x.
    unsafe {
        let mut sums = [[V::zero(); N]; M];
        let whole = k - k % V::LANES;
        let mut at = 0;
        while at < whole {
            step::<V, M, N>(w.add(at), x.add(at), k, &mut sums);
            at += V::LANES;
        }
        if whole < k {
            let (mut last_w, mut last_x) = ([[0i8; MOST_LANES]; N], [[0i8; MOST_LANES]; M]);
            for (j, last) in last_w.iter_mut().enumerate() {
                std::ptr::copy_nonoverlapping(w.add(j * k + whole), last.as_mut_ptr(), k - whole);
            }
            for (i, last) in last_x.iter_mut().enumerate() {
                std::ptr::copy_nonoverlapping(x.add(i * k + whole), last.as_mut_ptr(), k - whole);
            }
            step::<V, M, N>(last_w.as_ptr().cast(), last_x.as_ptr().cast(), MOST_LANES, &mut sums);
        }
        for (i, sums) in sums.into_iter().enumerate() {
            for (j, sum) in sums.into_iter().enumerate() {
                *out.add(i * stride + j) = V::total(sum, *x_sums.add(i));
            }
        }
    }
}
