use formats::Dtype;

use super::*;
use crate::encoding::{Form, Inputs, Scales};
use crate::runtime::activations::{Activations, Share};
use crate::runtime::testing::{Noise, close};

const BLOCKS: [Dtype; 11] = [
    Dtype::Q8_0,
    Dtype::Q4_0,
    Dtype::Q4_1,
    Dtype::Q5_0,
    Dtype::Q5_1,
    Dtype::IQ4_NL,
    Dtype::Q4_K,
    Dtype::Q5_K,
    Dtype::Q6_K,
    Dtype::Q3_K,
    Dtype::IQ4_XS,
];

/// The places of f16 numbers in a block.
fn halves(dtype: Dtype) -> &'static [usize] {
    match dtype {
        Dtype::Q4_1 | Dtype::Q5_1 | Dtype::Q4_K | Dtype::Q5_K => &[0, 2],
        Dtype::Q6_K => &[208],
        Dtype::Q3_K => &[108],
        _ => &[0],
    }
}

/// Rows of random blocks, whose scales are between a half and one.
fn blocks(noise: &mut Noise, dtype: Dtype, n: usize, k: usize) -> Vec<u8> {
    let size = dtype.bytes_of(dtype.block_elements()).unwrap() as usize;
    let mut bytes: Vec<u8> = (0..dtype.bytes_of((n * k) as u64).unwrap()).map(|_| noise.next_u64() as u8).collect();
    for block in bytes.chunks_exact_mut(size) {
        for &at in halves(dtype) {
            let scale = half::f16::from_f32(0.75 + noise.next_f32() / 4.0);
            block[at..at + 2].copy_from_slice(&scale.to_le_bytes());
        }
    }
    bytes
}

/// Scales in a dtype that changes with `turn`.
fn scales(noise: &mut Noise, turn: usize, count: usize) -> (Dtype, Vec<u8>) {
    let numbers = noise.vec(count);
    match turn % 3 {
        0 => (Dtype::F32, numbers.iter().flat_map(|x| x.to_le_bytes()).collect()),
        1 => (Dtype::F16, numbers.iter().flat_map(|x| half::f16::from_f32(*x).to_le_bytes()).collect()),
        _ => (Dtype::BF16, numbers.iter().flat_map(|x| half::bf16::from_f32(*x).to_le_bytes()).collect()),
    }
}

/// Every version against the unpacked weights times the activations as they were rounded.
fn check(stored: &Stored<'_>, n: usize, k: usize, m: usize, share: Share, covered: &mut Vec<&'static str>) {
    let data = Noise::new((m * k) as u64).vec(m * k);
    let x = Activations::new(&data, k);
    let runs = x.int8_runs(share, &crate::threads::Pool::new(1));
    let seen: Vec<f64> = (0..m * k).map(|at| f64::from(runs.codes[at]) * f64::from(runs.scales[at / 32])).collect();
    let mut w = vec![0.0; n * k];
    super::super::float::unpack(stored, 0, k, &mut w);
    let product = |at: usize| -> (f64, f64) {
        let terms = seen[at / n * k..][..k].iter().zip(&w[at % n * k..][..k]).map(|(x, w)| x * f64::from(*w));
        terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs()))
    };
    let expected: Vec<(f64, f64)> = (0..m * n).map(product).collect();
    let size = expected.iter().fold(0.0, |most: f64, (_, size)| most.max(*size));
    let expected: Vec<f64> = expected.into_iter().map(|(sum, _)| sum).collect();
    let mut tiles: Option<Vec<f32>> = None;
    for kernel in RunKernel::supported() {
        let mut out = vec![f32::NAN; m * n];
        kernel.multiply(stored, runs, k, &mut Tile::whole(&mut out, n));
        close(&out, &expected, size * 2e-6);
        if kernel.name().starts_with("neon") {
            // A row alone gives what it gives among others.
            for i in 0..m {
                let x = Activations::new(&data[i * k..][..k], k);
                let runs = x.int8_runs(share, &crate::threads::Pool::new(1));
                let mut alone = vec![f32::NAN; n];
                kernel.multiply(stored, runs, k, &mut Tile::whole(&mut alone, n));
                assert_eq!(alone, out[i * n..][..n], "{} {k}", kernel.name());
            }
        }
        covered.push(kernel.name());
        // Tiles keep AVX-512's order of sums.
        match kernel.name() {
            "amx int8" => tiles = Some(out),
            "avx512 vnni" => {
                assert!(tiles.take().is_none_or(|tiles| tiles == out), "{:?} m {m} n {n} k {k}", stored.form)
            }
            _ => {}
        }
    }
}

#[test]
fn every_version_multiplies_what_every_block_type_stores() {
    let mut noise = Noise::new(21);
    let mut covered = Vec::new();
    for dtype in BLOCKS {
        let ks: &[usize] =
            if dtype.block_elements() == 32 { &[32, 64, 96, 544, 1056, 2080] } else { &[256, 512, 1280] };
        for &k in ks {
            for (m, n) in [(1, 1), (2, 3), (3, 16), (7, 5), (8, 32), (9, 17), (13, 31), (17, 16), (35, 20)] {
                let bytes = blocks(&mut noise, dtype, n, k);
                let order: Vec<u32> = (0..n as u32).rev().collect();
                for order in [None, Some(&order[..])] {
                    let row_bytes = bytes.len() / n;
                    let form = Form::Blocks(dtype);
                    let stored = Stored { form, bytes: &bytes, row_bytes, order, inputs: Inputs::Int8 };
                    check(&stored, n, k, m, Share::Run, &mut covered);
                }
            }
        }
    }
    covered.sort();
    covered.dedup();
    println!("runs of codes: covered {}", covered.join(", "));
    assert!(covered.contains(&kernel().name()));
    #[cfg(target_arch = "x86_64")]
    for (name, present) in [
        ("avx2", super::super::has_avx2()),
        ("avx512 vnni", super::super::has_vnni()),
        ("amx int8", super::super::has_amx()),
    ] {
        assert_eq!(covered.contains(&name), present, "{name}");
    }
    #[cfg(target_arch = "aarch64")]
    for (name, present) in [("neon", super::super::has_neon()), ("neon dotprod", super::super::has_dot_product())] {
        assert_eq!(covered.contains(&name), present, "{name}");
    }
}

#[test]
fn packed_integers_are_multiplied_by_int8_too() {
    let mut noise = Noise::new(22);
    for (bits, group, k) in
        [(4, 32, 96), (4, 32, 512), (4, 128, 384), (4, 128, 1408), (4, 64, 2112), (8, 32, 64), (8, 160, 160)]
    {
        for (m, n) in [(1, 3), (8, 33 - 1), (10, 7), (16, 8), (49, 19)] {
            let (dtype, scales) = scales(&mut noise, m, n * k / group);
            let bytes: Vec<u8> = (0..n * k * usize::from(bits) / 8).map(|_| noise.next_u64() as u8).collect();
            let scales = Scales { dtype, bytes: &scales, per_row: k / group };
            let row_bytes = bytes.len() / n;
            let form = Form::Packed { bits, group, scales };
            let stored = Stored { form, bytes: &bytes, row_bytes, order: None, inputs: Inputs::Int8 };
            check(&stored, n, k, m, Share::Token, &mut Vec::new());
        }
    }
}

#[test]
fn integers_are_multiplied_by_int16() {
    let Some(kernel) = wide_kernel() else {
        return println!("no version for activations in int16 beside {kernel:?}", kernel = kernel());
    };
    let mut noise = Noise::new(23);
    for (bits, group, k) in [
        (4, 32, 96),
        (4, 32, 128),
        (4, 32, 512),
        (4, 128, 384),
        (4, 128, 1408),
        (4, 64, 2112),
        (8, 32, 64),
        (8, 160, 160),
        (0, 352, 352),
    ] {
        for (m, n) in [(1, 3), (1, 32), (2, 9), (3, 5), (7, 2), (8, 33 - 1), (10, 7)] {
            let (dtype, scales) = scales(&mut noise, m, n * k / group);
            let bytes: Vec<u8> =
                (0..n * k * if bits == 4 { 1 } else { 2 } / 2).map(|_| noise.next_u64() as u8).collect();
            let scales = Scales { dtype, bytes: &scales, per_row: k / group };
            let row_bytes = bytes.len() / n;
            let form = if bits == 0 { Form::Int8(scales) } else { Form::Packed { bits, group, scales } };
            let order: Vec<u32> = (0..n as u32).rev().collect();
            let stored = Stored { form, bytes: &bytes, row_bytes, order: Some(&order), inputs: Inputs::Float };
            let data = noise.vec(m * k);
            let x = Activations::new(&data, k);
            let runs = x.int16_runs(&crate::threads::Pool::new(1));
            let mut w = vec![0.0; n * k];
            super::super::float::unpack(&stored, 0, k, &mut w);
            let expected: Vec<f64> = (0..m * n)
                .map(|at| {
                    let seen = |l: usize| f64::from(runs.codes[l]) * f64::from(runs.scales[l / 32]);
                    (0..k).map(|l| seen(at / n * k + l) * f64::from(w[at % n * k + l])).sum()
                })
                .collect();
            let size = w.iter().fold(0f32, |most, w| most.max(w.abs()));
            let mut out = vec![f32::NAN; m * n];
            for steps in [true, false] {
                kernel.multiply(&stored, runs, k, steps, &mut Tile::whole(&mut out, n));
                close(&out, &expected, f64::from(size) * k as f64 * 1e-6);
            }
            // A row alone gives what it gives among others.
            for i in 0..m {
                let x = Activations::new(&data[i * k..][..k], k);
                let mut alone = vec![f32::NAN; n];
                let runs = x.int16_runs(&crate::threads::Pool::new(1));
                kernel.multiply(&stored, runs, k, false, &mut Tile::whole(&mut alone, n));
                assert_eq!(alone, out[i * n..][..n], "{bits} {group} {k}");
            }
        }
    }
    println!("integers by int16: covered {}", kernel.name());
}
