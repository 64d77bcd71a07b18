//! The little of linear algebra that pruning and quantizing need, by the crate `faer`, in f64; on the caller's thread where no pool is
//! given.

use faer::linalg::matmul::matmul;
use faer::linalg::triangular_inverse::invert_lower_triangular;
use faer::prelude::Solve;
use faer::{Accum, Mat, MatMut, MatRef, Par, Side};

use crate::threads::Pool;

/// out += factor · a · b: a is `[m, k]`, b `[k, n]` with rows `stride` apart, out `[m, n]` with rows `out_stride` apart.
pub fn add_product(
    out: &mut [f64],
    out_stride: usize,
    a: &[f64],
    (b, stride): (&[f64], usize),
    (m, k, n): (usize, usize, usize),
    factor: f64,
) {
    if m == 0 || k == 0 || n == 0 {
        return;
    }
    let a = MatRef::from_row_major_slice(&a[..m * k], m, k);
    let b = MatRef::from_row_major_slice_with_stride(&b[..(k - 1) * stride + n], k, n, stride);
    // By columns and turned: faer 0.24's `from_row_major_slice_with_stride_mut` takes the strides the wrong way round.
    let out = &mut out[..(m - 1) * out_stride + n];
    let out = MatMut::from_column_major_slice_with_stride_mut(out, n, m, out_stride).transpose_mut();
    matmul(out, Accum::Add, a, b, factor, Par::Seq);
}

/// Solves A x = b for each row of `b`, in place: A `[n, n]` is symmetric and positive definite. `false`, and `b` as it was, if
/// it is not.
pub fn solve(a: &[f64], n: usize, b: &mut [f64]) -> bool {
    if n == 0 {
        return true;
    }
    let Ok(factors) = MatRef::from_row_major_slice(a, n, n).llt(Side::Lower) else { return false };
    let rows = b.len() / n;
    // Rows of b are columns of its transpose.
    factors.solve_in_place(MatMut::from_column_major_slice_mut(&mut b[..rows * n], n, rows));
    true
}

/// The upper triangular U `[n, n]` with (A + δI)⁻¹ = Uᵀ U, A + δI being symmetric and positive definite; `None` if it is not.
///
/// With rows and columns in reverse, A = L Lᵀ; then U is L⁻¹ in reverse, and no inverse of A need be formed.
pub fn inverse_factor(a: &[f64], n: usize, delta: f64) -> Option<Vec<f64>> {
    let added = |i: usize, j: usize| if i == j { delta } else { 0.0 };
    let reversed = Mat::from_fn(n, n, |i, j| a[(n - 1 - i) * n + (n - 1 - j)] + added(i, j));
    let factors = reversed.llt(Side::Lower).ok()?;
    drop(reversed);
    let mut inverse = Mat::<f64>::zeros(n, n);
    invert_lower_triangular(inverse.as_mut(), factors.L(), Par::Seq);
    drop(factors);
    let mut u = vec![0.0; n * n];
    for i in 0..n {
        for j in i..n {
            u[i * n + j] = inverse[(n - 1 - i, n - 1 - j)];
        }
    }
    Some(u)
}

/// Rows and columns of a tile of [`inverse_factor_on`]; a fixed number, so that threads do not change sums.
const TILE: usize = 512;

/// [`inverse_factor`] of a large matrix, on all threads.
pub fn inverse_factor_on(a: &[f64], n: usize, delta: f64, pool: &Pool) -> Option<Vec<f64>> {
    if n <= 2 * TILE { inverse_factor(a, n, delta) } else { by_tiles(a, n, delta, TILE, pool) }
}

/// As [`inverse_factor`], tile by tile: first L, of which a tile's columns are taken from all that is behind them as soon as they
/// are known; then its inverse X from the rows above, X_i = L_ii⁻¹ (I − Σ L_ik X_k).
fn by_tiles(a: &[f64], n: usize, delta: f64, tile: usize, pool: &Pool) -> Option<Vec<f64>> {
    let mut l: Vec<f64> = a.iter().rev().copied().collect();
    (0..n).for_each(|i| l[i * n + i] += delta);
    let mut diagonal = Vec::new();
    for first in (0..n).step_by(tile) {
        let width = tile.min(n - first);
        let own = Mat::from_fn(width, width, |i, j| l[(first + i) * n + first + j]);
        let factors = own.llt(Side::Lower).ok()?;
        let mut inverse = Mat::<f64>::zeros(width, width);
        invert_lower_triangular(inverse.as_mut(), factors.L(), Par::Seq);
        let lower = |i: usize, j: usize| if j <= i { inverse[(i, j)] } else { 0.0 };
        let turned: Vec<f64> = (0..width * width).map(|at| lower(at % width, at / width)).collect();
        diagonal.push((0..width * width).map(|at| lower(at / width, at % width)).collect::<Vec<_>>());
        // The tiles below: A_i L_kk⁻ᵀ.
        let below = first + width;
        let rest = n - below;
        pool.for_each_chunk(&mut l[below * n..], tile * n, |_, rows| {
            let count = rows.len() / n;
            let old: Vec<f64> = rows.chunks_exact(n).flat_map(|row| &row[first..below]).copied().collect();
            rows.chunks_exact_mut(n).for_each(|row| row[first..below].fill(0.0));
            add_product(&mut rows[first..], n, &old, (&turned, width), (count, width, width), 1.0);
        });
        let panel: Vec<f64> = l[below * n..].chunks_exact(n).flat_map(|row| &row[first..below]).copied().collect();
        let across: Vec<f64> = (0..width * rest).map(|at| panel[at % rest * width + at / rest]).collect();
        pool.for_each_chunk(&mut l[below * n..], tile * n, |i, rows| {
            let (start, count) = (i * tile, rows.len() / n);
            let shape = (count, width, start + count);
            add_product(&mut rows[below..], n, &panel[start * width..], (&across, rest), shape, -1.0);
        });
    }
    let mut x = vec![0.0; n * n];
    for (at, inverse) in diagonal.iter().enumerate() {
        let first = at * tile;
        let width = tile.min(n - first);
        let columns = pool.map(at, |j| {
            let left = j * tile;
            let (depth, rows) = (first - left, first..first + width);
            let l: Vec<f64> = rows.flat_map(|i| &l[i * n + left..i * n + first]).copied().collect();
            let mut sum = vec![0.0; width * tile];
            add_product(&mut sum, tile, &l, (&x[left * n + left..], n), (width, depth, tile), -1.0);
            let mut found = vec![0.0; width * tile];
            add_product(&mut found, tile, inverse, (&sum, tile), (width, width, tile), 1.0);
            found
        });
        for i in 0..width {
            let row = &mut x[(first + i) * n..][..first + width];
            for (to, found) in row.chunks_mut(tile).zip(&columns) {
                to.copy_from_slice(&found[i * tile..][..tile]);
            }
            row[first..].copy_from_slice(&inverse[i * width..(i + 1) * width]);
        }
    }
    x.reverse();
    x.iter().all(|x| x.is_finite()).then_some(x)
}

/// The largest eigenvalue of a symmetric matrix without negative ones, or a little more. For large matrices by iteration,
/// enlarged: a step that is its reciprocal diverges only if this is less than half of the largest.
pub fn largest_eigenvalue(a: &[f64], n: usize) -> f64 {
    const SMALL: usize = 512;
    const ITERATIONS: usize = 50;
    const MARGIN: f64 = 1.05;
    let frobenius = a.iter().map(|x| x * x).sum::<f64>().sqrt();
    if n <= SMALL
        && let Ok(all) = MatRef::from_row_major_slice(a, n, n).self_adjoint_eigenvalues(Side::Lower)
    {
        return all.into_iter().fold(0.0, f64::max) * (1.0 + 1e-9);
    }
    // No direction that a matrix of the real world is blind to.
    let mut x: Vec<f64> = (0..n).map(|i| 1.0 + (i * 2_654_435_761 % 1_000) as f64 / 1_000.0).collect();
    let mut largest = 0.0;
    for _ in 0..ITERATIONS {
        let size = x.iter().map(|x| x * x).sum::<f64>().sqrt();
        if size == 0.0 {
            return frobenius;
        }
        x.iter_mut().for_each(|x| *x /= size);
        let y: Vec<f64> = a.chunks_exact(n).map(|row| row.iter().zip(&x).map(|(a, x)| a * x).sum()).collect();
        largest = y.iter().map(|y| y * y).sum::<f64>().sqrt();
        x = y;
    }
    (largest * MARGIN).min(frobenius)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A symmetric positive definite matrix.
    fn definite(n: usize) -> Vec<f64> {
        let b: Vec<f64> = (0..n * n).map(|i| ((i * 31 % 17) as f64 - 8.0) / 8.0).collect();
        let product = |i: usize, j: usize| (0..n).map(|k| b[i * n + k] * b[j * n + k]).sum::<f64>();
        (0..n * n).map(|at| product(at / n, at % n) + if at / n == at % n { 0.5 } else { 0.0 }).collect()
    }

    fn times(a: &[f64], b: &[f64], n: usize) -> Vec<f64> {
        let mut out = vec![0.0; n * n];
        add_product(&mut out, n, a, (b, n), (n, n, n), 1.0);
        out
    }

    #[test]
    fn the_inverse_factor_is_one() {
        let n = 7;
        let a = definite(n);
        let u = inverse_factor(&a, n, 0.0).unwrap();
        let transposed: Vec<f64> = (0..n * n).map(|at| u[at % n * n + at / n]).collect();
        let identity = times(&times(&transposed, &u, n), &a, n);
        for (at, x) in identity.iter().enumerate() {
            assert!((x - f64::from(u8::from(at / n == at % n))).abs() < 1e-9, "{at}: {x}");
            assert!(at / n <= at % n || u[at] == 0.0);
        }
        assert!(inverse_factor(&[0.0; 4], 2, 0.0).is_none());
    }

    #[test]
    fn tiles_give_the_same_factor_on_any_number_of_threads() {
        for (n, tile) in [(7, 2), (20, 6), (24, 8), (5, 8)] {
            let a = definite(n);
            let whole = inverse_factor(&a, n, 0.25).unwrap();
            let tiles = by_tiles(&a, n, 0.25, tile, &Pool::new(1)).unwrap();
            assert_eq!(tiles, by_tiles(&a, n, 0.25, tile, &Pool::new(3)).unwrap());
            assert!(tiles.iter().zip(&whole).all(|(a, b)| (a - b).abs() < 1e-9), "{n} in {tile}");
        }
        assert!(by_tiles(&[0.0; 25], 5, 0.0, 2, &Pool::new(1)).is_none());
        assert_eq!(inverse_factor_on(&[4.0], 1, 0.0, &Pool::new(1)), Some(vec![0.5]));
    }

    #[test]
    fn products_stay_within_their_rows() {
        let (m, k, n, stride) = (3, 2, 4, 7);
        let a: Vec<f64> = (0..m * k).map(|i| i as f64).collect();
        let b: Vec<f64> = (0..k * (n + 1)).map(|i| 1.0 - i as f64).collect();
        let mut out = vec![0.5; m * stride];
        add_product(&mut out, stride, &a, (&b, n + 1), (m, k, n), -2.0);
        for (at, x) in out.iter().enumerate() {
            let (i, j) = (at / stride, at % stride);
            let sum: f64 = (0..k).map(|l| a[i * k + l] * b[l * (n + 1) + j.min(n)]).sum();
            assert_eq!(*x, if j < n { 0.5 - 2.0 * sum } else { 0.5 }, "{i} {j}");
        }
    }

    #[test]
    fn systems_are_solved_row_by_row() {
        let n = 5;
        let a = definite(n);
        let x: Vec<f64> = (0..2 * n).map(|i| i as f64 - 3.0).collect();
        let mut b = vec![0.0; 2 * n];
        add_product(&mut b, n, &x, (&a, n), (2, n, n), 1.0);
        assert!(solve(&a, n, &mut b));
        assert!(b.iter().zip(&x).all(|(b, x)| (b - x).abs() < 1e-9));
    }

    #[test]
    fn the_bound_of_the_largest_eigenvalue_holds() {
        // Eigenvalues 1 and 3.
        let bound = largest_eigenvalue(&[2.0, 1.0, 1.0, 2.0], 2);
        assert!((3.0..3.000_001).contains(&bound), "{bound}");
        assert_eq!(largest_eigenvalue(&[0.0; 4], 2), 0.0);
        // A large one: pairs of features that go together, of which the last pair is the strongest.
        let n = 600;
        let size = |i: usize| 1.0 + (i / 2) as f64 / 100.0;
        let entry = |i: usize, j: usize| if i / 2 == j / 2 { size(i) * if i == j { 2.0 } else { 1.0 } } else { 0.0 };
        let large: Vec<f64> = (0..n * n).map(|at| entry(at / n, at % n)).collect();
        let (bound, largest) = (largest_eigenvalue(&large, n), 3.0 * size(n - 1));
        assert!(bound > 0.9 * largest && bound < 1.06 * largest, "{bound} {largest}");
    }
}
