use formats::Dtype;

use super::grid::Grid;
use super::*;
use crate::quantizer::{Band, Numbers};

/// Normal numbers that are the same everywhere.
pub fn normal(seed: u64, n: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut uniform = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    (0..n).map(|_| (0..12).map(|_| uniform()).sum()).collect()
}

/// H of inputs that depend on each other and differ in size.
pub fn hessian(cols: usize, tokens: usize) -> Vec<f64> {
    let common = cols / 4;
    let (z, mix, noise, sizes) =
        (normal(1, tokens * common), normal(2, common * cols), normal(3, tokens * cols), normal(4, cols));
    let mut x = vec![0f64; tokens * cols];
    for t in 0..tokens {
        for j in 0..cols {
            let shared: f32 = (0..common).map(|k| z[t * common + k] * mix[k * cols + j]).sum();
            x[t * cols + j] = f64::from((0.3 * shared + noise[t * cols + j]) * (0.7 * sizes[j]).exp());
        }
    }
    let mut h = vec![0.0; cols * cols];
    for row in x.chunks_exact(cols) {
        for (i, a) in row.iter().enumerate() {
            h[i * cols..(i + 1) * cols].iter_mut().zip(row).for_each(|(h, b)| *h += a * b / tokens as f64);
        }
    }
    h
}

pub const FORMS: [Form; 16] = [
    Form::Int8Rows,
    Form::Fp8Rows,
    Form::Packed { bits: 4, group: 128 },
    Form::Packed { bits: 8, group: 32 },
    Form::Blocks(Dtype::Q8_0),
    Form::Blocks(Dtype::Q4_0),
    Form::Blocks(Dtype::Q4_1),
    Form::Blocks(Dtype::Q5_0),
    Form::Blocks(Dtype::Q5_1),
    Form::Blocks(Dtype::Q2_K),
    Form::Blocks(Dtype::Q3_K),
    Form::Blocks(Dtype::Q4_K),
    Form::Blocks(Dtype::Q5_K),
    Form::Blocks(Dtype::Q6_K),
    Form::Blocks(Dtype::IQ4_NL),
    Form::Blocks(Dtype::IQ4_XS),
];

/// What a quantizer without calibration makes of a matrix.
pub fn encoded(form: Form, w: &[f32], cols: usize, dtype: Dtype, search: bool) -> Vec<Vec<u8>> {
    let rows = w.len() / cols;
    let mut parts: Vec<Vec<u8>> =
        Grid::new(form, dtype, cols).row_bytes().into_iter().map(|n| vec![0; n * rows]).collect();
    let band = Band { numbers: Numbers::F32(w), first_row: 0, cols, dtype };
    form.quantizer(search).encode(band, &mut parts);
    parts
}

#[test]
fn rows_are_read_as_they_were_written() {
    let cols = 512;
    let w = normal(7, 3 * cols);
    for form in FORMS {
        let grid = Grid::new(form, Dtype::F16, cols);
        for search in [false, true] {
            let parts = encoded(form, &w, cols, Dtype::F16, search);
            let mut again = vec![Vec::new(); parts.len()];
            for r in 0..3 {
                let bytes: Vec<&[u8]> =
                    grid.row_bytes().iter().zip(&parts).map(|(&n, part)| &part[r * n..(r + 1) * n]).collect();
                grid.write(&grid.read(&bytes), &mut again);
            }
            assert!(again == parts, "{form:?}");
        }
    }
}

#[test]
fn gptq_is_better_than_rounding_to_nearest() {
    let (rows, cols) = (40, 512);
    let pool = Pool::new(2);
    let metric = Metric::new(hessian(cols, 900), cols, 0.01, &pool).unwrap();
    let w = normal(8, rows * cols);
    let problem = Problem { target: &w, rows, cols, dtype: Dtype::F32, metric: &metric, outputs: None };
    for form in FORMS {
        let nearest = loss(form, &problem, &encoded(form, &w, cols, Dtype::F32, false), &pool);
        let found = solve(form, &problem, Method::Gptq, &pool);
        println!("{form:?}: {nearest:e} → {:e}", found.loss);
        assert!(found.loss < nearest, "{form:?}: {nearest} {}", found.loss);
        assert_eq!(found, solve(form, &problem, Method::Gptq, &Pool::new(1)), "threads change nothing");
        let best = solve(form, &problem, Method::Best, &pool);
        println!("{form:?}: best {:e}", best.loss);
        assert!(best.loss < found.loss, "{form:?}: {} {}", found.loss, best.loss);
    }
}
