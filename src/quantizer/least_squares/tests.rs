use std::path::Path;

use formats::Dtype;
use safetensors::SafeTensors;

use super::*;
use crate::linear_algebra::add_product;
use crate::quantizer::{Band, Numbers};

const BEST: Method = Method::Best(Effort { sweeps: 3, compared: true });

/// Normal numbers that are the same everywhere.
fn normal(seed: u64, n: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut uniform = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    (0..n).map(|_| (0..12).map(|_| uniform()).sum()).collect()
}

/// XᵀX / m of X `[tokens, cols]`.
fn products(x: &[f32], cols: usize) -> Vec<f64> {
    let tokens = x.len() / cols;
    let turned: Vec<f64> = (0..cols).flat_map(|j| (0..tokens).map(move |t| f64::from(x[t * cols + j]))).collect();
    let x: Vec<f64> = x.iter().map(|&x| x.into()).collect();
    let mut h = vec![0.0; cols * cols];
    add_product(&mut h, cols, &turned, (&x, cols), (cols, tokens, cols), 1.0 / tokens as f64);
    h
}

/// H of inputs that depend on each other and differ in size.
fn hessian(cols: usize, tokens: usize) -> Vec<f64> {
    let common = cols / 4;
    let (z, mix, noise, sizes) =
        (normal(1, tokens * common), normal(2, common * cols), normal(3, tokens * cols), normal(4, cols));
    let mut x = noise;
    for (x, z) in x.chunks_exact_mut(cols).zip(z.chunks_exact(common)) {
        for (z, mix) in z.iter().zip(mix.chunks_exact(cols)) {
            x.iter_mut().zip(mix).for_each(|(x, mix)| *x += 0.3 * z * mix);
        }
        x.iter_mut().zip(&sizes).for_each(|(x, size)| *x *= (0.7 * size).exp());
    }
    products(&x, cols)
}

const FORMS: [Form; 16] = [
    Form::Int8Rows,
    Form::Fp8Rows,
    Form::Packed { bits: 4, group: 64 },
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
fn encoded(form: Form, w: &[f32], cols: usize, dtype: Dtype, search: bool) -> Vec<Vec<u8>> {
    let rows = w.len() / cols;
    let sizes = Grid::new(form, dtype, cols).row_bytes();
    let mut parts: Vec<Vec<u8>> = sizes.into_iter().map(|n| vec![0; n * rows]).collect();
    let band = Band { numbers: Numbers::F32(w), first_row: 0, cols, dtype };
    form.quantizer(search).encode(band, &mut parts);
    parts
}

/// The values that are stored.
fn decoded(form: Form, parts: &[Vec<u8>], rows: usize, cols: usize, dtype: Dtype) -> Vec<f32> {
    let grid = Grid::new(form, dtype, cols);
    let mut values = vec![0.0; rows * cols];
    for (r, values) in values.chunks_exact_mut(cols).enumerate() {
        let bytes: Vec<&[u8]> =
            grid.row_bytes().iter().zip(parts).map(|(&n, part)| &part[r * n..(r + 1) * n]).collect();
        grid.values(&grid.read(&bytes), values);
    }
    values
}

/// ½ tr(G E H Eᵀ), plainly.
fn plain_loss(w: &[f32], q: &[f32], h: &[f64], g: Option<&[f64]>, cols: usize) -> f64 {
    let rows = w.len() / cols;
    let e: Vec<f64> = w.iter().zip(q).map(|(w, q)| f64::from(*w) - f64::from(*q)).collect();
    let mut eh = vec![0.0; e.len()];
    add_product(&mut eh, cols, &e, (h, cols), (rows, cols, cols), 1.0);
    let mut sum = 0.0;
    for r in 0..rows {
        for k in 0..rows {
            let g = g.map_or(f64::from(u8::from(r == k)), |g| g[r * rows + k]);
            let dot: f64 = e[r * cols..(r + 1) * cols].iter().zip(&eh[k * cols..]).map(|(a, b)| a * b).sum();
            sum += g * dot;
        }
    }
    0.5 * sum
}

#[test]
fn rows_are_read_as_they_were_written_and_unpack_to_what_the_encoding_says() {
    let (rows, cols) = (3, 512);
    let w = normal(7, rows * cols);
    for form in FORMS {
        for (dtype, search) in [(Dtype::F16, false), (Dtype::BF16, true), (Dtype::F32, true)] {
            let grid = Grid::new(form, dtype, cols);
            let parts = encoded(form, &w, cols, dtype, search);
            let mut again = vec![Vec::new(); parts.len()];
            for r in 0..rows {
                let bytes: Vec<&[u8]> =
                    grid.row_bytes().iter().zip(&parts).map(|(&n, part)| &part[r * n..(r + 1) * n]).collect();
                grid.write(&grid.read(&bytes), &mut again);
            }
            assert!(again == parts, "{form:?} {dtype}");
            let Form::Blocks(block) = form else { continue };
            let mut unpacked = vec![0.0; rows * cols];
            crate::encoding::ggml::unpack(block, &parts[0], &mut unpacked);
            assert!(decoded(form, &parts, rows, cols, dtype) == unpacked, "{form:?}");
        }
    }
}

#[test]
fn gptq_is_the_reference_in_float64() {
    let file =
        std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/quantizing/gptq.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&file).unwrap();
    let single = |name: &str| -> Vec<f32> {
        file.tensor(name).unwrap().data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
    };
    let double = |name: &str| -> Vec<f32> {
        file.tensor(name).unwrap().data().as_chunks::<8>().0.iter().map(|b| f64::from_le_bytes(*b) as f32).collect()
    };
    let (rows, cols) = (12, 192);
    let (w, h) = (single("w"), products(&single("x"), cols));
    let pool = Pool::new(2);
    let metric = Metric::new(h.clone(), cols, 0.01, &pool).unwrap();
    let problem = Problem { target: &w, rows, cols, dtype: Dtype::F32, metric: &metric, outputs: None };
    for group in [32, 64] {
        let form = Form::Packed { bits: 4, group };
        let found = solve(form, &problem, Method::Gptq, &pool);
        let ours = decoded(form, &found.parts, rows, cols, Dtype::F32);
        let reference = double(&format!("int4-{group}"));
        let [found, expected] = [&ours, &reference].map(|q| plain_loss(&w, q, &h, None, cols));
        assert!((found / expected - 1.0).abs() < 0.01, "{group}: {found} {expected}");
        // A tie that rounding of H turns changes what follows it in its row.
        let same = ours.iter().zip(&reference).filter(|(a, b)| (*a - *b).abs() < 1e-5).count();
        assert!(same * 100 >= ours.len() * 97, "{group}: {same} of {}", ours.len());
        let best = solve(form, &problem, BEST, &pool);
        let best = plain_loss(&w, &decoded(form, &best.parts, rows, cols, Dtype::F32), &h, None, cols);
        assert!(best < 0.8 * expected, "{group}: {best} {expected}");
    }
}

#[test]
fn each_method_is_better_than_the_one_before_it_in_every_form() {
    let (rows, cols) = (70, 512);
    let pool = Pool::new(2);
    let metric = Metric::new(hessian(cols, 900), cols, 0.01, &pool).unwrap();
    let w = normal(8, rows * cols);
    for (form, dtype) in FORMS.into_iter().zip([Dtype::F32, Dtype::F16, Dtype::BF16].into_iter().cycle()) {
        let problem = Problem { target: &w, rows, cols, dtype, metric: &metric, outputs: None };
        let [nearest, searched] = [false, true].map(|search| encoded(form, &w, cols, dtype, search));
        let gptq = solve(form, &problem, Method::Gptq, &pool);
        let best = solve(form, &problem, BEST, &pool);
        for solution in [&gptq, &best] {
            let again = loss(form, &problem, &solution.parts, &pool);
            assert!((solution.loss / again - 1.0).abs() < 1e-4, "{form:?}: {} {again}", solution.loss);
        }
        assert_eq!(gptq, solve(form, &problem, Method::Gptq, &Pool::new(1)), "threads change nothing");
        assert_eq!(best, solve(form, &problem, BEST, &Pool::new(3)), "threads change nothing");
        let others = [&nearest, &searched].map(|parts| loss(form, &problem, parts, &pool));
        println!("{form:?} {dtype}: {others:.4?} {:.4} {:.4}", gptq.loss, best.loss);
        assert!(gptq.loss < others[0], "{form:?}: {} {others:?}", gptq.loss);
        assert!(best.loss < 0.95 * gptq.loss, "{form:?}: {} {}", best.loss, gptq.loss);
        // No row is worse than without calibration.
        let h: Vec<f64> = (0..cols * cols).map(|at| f64::from(metric.h(at / cols)[at % cols])).collect();
        let by_row = |parts: &[Vec<u8>]| -> Vec<f64> {
            let values = decoded(form, parts, rows, cols, dtype);
            let rows = w.chunks_exact(cols).zip(values.chunks_exact(cols));
            rows.map(|(w, q)| plain_loss(w, q, &h, None, cols)).collect()
        };
        let (found, others) = (by_row(&best.parts), [by_row(&nearest), by_row(&searched)]);
        for (r, found) in found.iter().enumerate() {
            assert!(others.iter().all(|other| *found <= other[r] * (1.0 + 1e-4)), "{form:?} row {r}");
        }
    }
}

#[test]
fn what_is_known_of_outputs_lowers_the_loss_that_it_defines() {
    let (rows, cols) = (150, 256);
    let pool = Pool::new(2);
    let h = hessian(cols, 500);
    let metric = Metric::new(h.clone(), cols, 0.01, &pool).unwrap();
    let outputs = hessian(rows, 300);
    let w = normal(8, rows * cols);
    for form in [Form::Blocks(Dtype::Q4_K), Form::Packed { bits: 4, group: 64 }, Form::Int8Rows] {
        let alone = Problem { target: &w, rows, cols, dtype: Dtype::F32, metric: &metric, outputs: None };
        let problem = Problem { outputs: Some(&outputs), ..alone };
        let best = solve(form, &problem, BEST, &pool);
        assert_eq!(best, solve(form, &problem, BEST, &Pool::new(1)), "threads change nothing");
        // The same loss in plain f64.
        let g = outputs::normalised(&outputs, rows).unwrap();
        let h: Vec<f64> = (0..cols * cols).map(|at| f64::from(metric.h(at / cols)[at % cols])).collect();
        let plain = plain_loss(&w, &decoded(form, &best.parts, rows, cols, Dtype::F32), &h, Some(&g), cols);
        assert!((best.loss / plain - 1.0).abs() < 1e-3, "{form:?}: {} {plain}", best.loss);
        let by_rows = solve(form, &alone, BEST, &pool);
        let by_rows = loss(form, &problem, &by_rows.parts, &pool);
        println!("{form:?}: {by_rows:e} → {:e}", best.loss);
        assert!(best.loss < by_rows, "{form:?}: {} {by_rows}", best.loss);
        for search in [false, true] {
            let other = loss(form, &problem, &encoded(form, &w, cols, Dtype::F32, search), &pool);
            assert!(best.loss <= other, "{form:?}");
        }
    }
}

#[test]
fn odd_inputs_give_codes_that_are_numbers() {
    let (rows, cols) = (5, 256);
    let pool = Pool::new(2);
    assert!(Metric::new(vec![0.0; cols * cols], cols, 0.01, &pool).is_none());
    assert!(Metric::new(vec![f64::NAN; cols * cols], cols, 0.01, &pool).is_none());
    // One direction; a few features alone; all alike.
    let one: Vec<f64> = (0..cols * cols).map(|at| ((1 + at / cols) * (1 + at % cols)) as f64).collect();
    let few: Vec<f64> =
        (0..cols * cols).map(|at| f64::from(u8::from(at / cols == at % cols && at % cols < 3))).collect();
    let alike = vec![1.0; cols * cols];
    let plain = normal(3, rows * cols);
    let mut mixed = plain.clone();
    mixed[..cols].fill(0.0);
    mixed[cols..2 * cols].fill(-0.37);
    mixed[2 * cols..3 * cols].iter_mut().for_each(|x| *x *= 1e-30);
    mixed[3 * cols..4 * cols].iter_mut().for_each(|x| *x *= 1e4);
    mixed[4 * cols + 17] = 3e4;
    let huge: Vec<f32> = plain.iter().map(|x| 1e30 * x).collect();
    let g = vec![1.0; rows * rows];
    for hessian in [one, few, alike] {
        let metric = Metric::new(hessian, cols, 0.01, &pool).unwrap();
        for target in [&vec![0.0; rows * cols], &mixed, &huge] {
            for outputs in [None, Some(&g[..]), Some(&vec![0.0; rows * rows][..])] {
                let problem = Problem { target, rows, cols, dtype: Dtype::BF16, metric: &metric, outputs };
                for form in FORMS {
                    for method in [Method::Gptq, BEST] {
                        let found = solve(form, &problem, method, &pool);
                        let values = decoded(form, &found.parts, rows, cols, Dtype::BF16);
                        // GPTQ takes the scales of rounding to nearest, which beyond f16 are none.
                        let possible = target[0].abs() < 1e9 || !matches!(form, Form::Blocks(_));
                        if possible || method == BEST {
                            assert!(values.iter().all(|x| x.is_finite()), "{form:?} {method:?}");
                        }
                        for search in [false, true].into_iter().filter(|_| possible && method == BEST) {
                            let other = encoded(form, target, cols, Dtype::BF16, search);
                            let other = loss(form, &problem, &other, &pool);
                            assert!(found.loss <= other * (1.0 + 1e-5), "{form:?} {} {other}", found.loss);
                        }
                    }
                }
            }
        }
    }
}
