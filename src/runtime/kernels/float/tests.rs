use formats::Dtype;

use super::*;
use crate::encoding::{Form, Inputs, Scales};
use crate::runtime::testing::{Noise, close};

/// Random rows in every form. Scales are f16 numbers around 1; blocks' own scales are whatever the bits say, if finite.
fn random(noise: &mut Noise, form: &str, n: usize, k: usize, check: impl Fn(&Stored<'_>)) {
    let bytes = |noise: &mut Noise, len: usize| -> Vec<u8> { (0..len).map(|_| noise.next_u64() as u8).collect() };
    let halves = |noise: &mut Noise, len: usize| -> Vec<u8> {
        (0..len).flat_map(|_| half::f16::from_f32(noise.next_f32() + 1.5).to_le_bytes()).collect()
    };
    let scales = halves(noise, n * k.max(1));
    let scales = |per_row: usize| Scales { dtype: Dtype::F16, bytes: &scales[..2 * n * per_row], per_row };
    let (form, bytes): (Form<'_>, Vec<u8>) = match form {
        "f32" => (Form::Plain(Dtype::F32), noise.vec(n * k).iter().flat_map(|x| x.to_le_bytes()).collect()),
        "f16" => (Form::Plain(Dtype::F16), halves(noise, n * k)),
        "bf16" => {
            let numbers = noise.vec(n * k);
            (Form::Plain(Dtype::BF16), numbers.iter().flat_map(|x| half::bf16::from_f32(*x).to_le_bytes()).collect())
        }
        "int8" => (Form::Int8(scales(1)), bytes(noise, n * k)),
        "fp8" => {
            let codes = bytes(noise, n * k);
            (Form::Fp8(scales(1)), codes.iter().map(|code| if code & 0x7f == 0x7f { 0x40 } else { *code }).collect())
        }
        "packed 8 by 32" | "packed 8 by 24" => {
            let group = if form.ends_with("32") { 32 } else { 24 };
            (Form::Packed { bits: 8, group, scales: scales(k / group) }, bytes(noise, n * k))
        }
        "packed 8" => {
            let mut codes = bytes(noise, n * k.div_ceil(4) * 4);
            codes.truncate(n * k.div_ceil(4) * 4);
            (Form::Packed { bits: 8, group: k, scales: scales(1) }, codes)
        }
        group => {
            let group: usize = group.parse().unwrap();
            let scales = scales(k / group);
            (Form::Packed { bits: 4, group, scales }, bytes(noise, n * (k / 2).div_ceil(4) * 4))
        }
    };
    let row_bytes = bytes.len() / n;
    let order: Vec<u32> = (0..n as u32).rev().collect();
    for order in [None, Some(&order[..])] {
        check(&Stored { form, bytes: &bytes, row_bytes, order, inputs: Inputs::Float });
    }
}

#[test]
fn every_version_multiplies_plain_numbers() {
    every_version_multiplies(&[
        ("f16", &[1, 2, 15, 16, 17, 63, 64, 65, 130, 300, 1023]),
        ("bf16", &[1, 3, 15, 16, 17, 63, 64, 65, 130, 300, 1023]),
        ("f32", &[1, 2, 15, 16, 17, 63, 64, 65, 130, 300, 1023]),
    ]);
}

#[test]
fn every_version_multiplies_codes_with_a_scale_for_each_row() {
    every_version_multiplies(&[
        ("int8", &[1, 3, 15, 16, 17, 63, 64, 65, 130, 300, 1023]),
        ("fp8", &[1, 3, 15, 16, 17, 63, 64, 65, 130, 300, 1023]),
        ("packed 8", &[1, 3, 4, 16, 20, 64, 100, 300, 1024]),
    ]);
}

#[test]
fn every_version_multiplies_integers_with_a_scale_for_each_group() {
    every_version_multiplies(&[
        ("128", &[128, 256, 1152]),
        ("32", &[32, 64, 96, 160, 1024]),
        ("8", &[8, 24, 128, 264]),
        ("64", &[64, 320]),
        ("3", &[3, 30]),
        ("40", &[40, 240]),
        ("256", &[256, 768]),
        ("96", &[96, 672]),
        ("packed 8 by 32", &[32, 96, 544]),
        ("packed 8 by 24", &[24, 48]),
    ]);
}

/// Multiplies what is unpacked, in each form and so many columns.
fn every_version_multiplies(forms: &[(&str, &[usize])]) {
    let mut noise = Noise::new(11);
    let mut covered = Vec::new();
    for kernel in RowKernel::supported() {
        covered.push(kernel.name());
        for &(form, ks) in forms {
            for &k in ks {
                for (m, n) in
                    [(1, 1), (1, 5), (2, 3), (3, 2), (4, 1), (5, 3), (7, 2), (8, 17), (13, 32), (17, 18), (35, 3)]
                {
                    random(&mut noise.clone(), form, n, k, |stored| {
                        let x = Noise::new(k as u64).vec(m * k);
                        let mut w = vec![0.0; n * k];
                        unpack(stored, 0, k, &mut w);
                        let expected: Vec<f64> = (0..m * n)
                            .map(|at| {
                                let (x, w) = (&x[at / n * k..][..k], &w[at % n * k..][..k]);
                                x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum()
                            })
                            .collect();
                        let mut out = vec![f32::NAN; m * n];
                        let x = Activations::new(&x, k);
                        kernel.multiply(stored, 0, &x, false, &mut Tile::whole(&mut out, n));
                        let size = w.iter().fold(1.0, |most: f32, w| most.max(w.abs()));
                        close(&out, &expected, f64::from(size) * k as f64 * 1e-6);
                        let mut steps = vec![f32::NAN; m * n];
                        kernel.multiply(stored, 0, &x, true, &mut Tile::whole(&mut steps, n));
                        close(&steps, &expected, f64::from(size) * k as f64 * 1e-6);
                        // A few rows give what they give among others.
                        for first in (0..m.saturating_sub(FEW)).step_by(5) {
                            let mut some = vec![f32::NAN; FEW * n];
                            let x = Activations::new(&x.f32()[first * k..][..FEW * k], k);
                            kernel.multiply(stored, 0, &x, false, &mut Tile::whole(&mut some, n));
                            assert_eq!(some, out[first * n..][..FEW * n], "{form} {k}");
                        }
                        // So does a row alone.
                        for i in 0..m {
                            let mut alone = vec![f32::NAN; n];
                            let x = Activations::new(&x.f32()[i * k..][..k], k);
                            kernel.multiply(stored, 0, &x, false, &mut Tile::whole(&mut alone, n));
                            if m < FEW || kernel.has_one_order() {
                                assert_eq!(alone, out[i * n..][..n], "{form} {k}");
                            }
                        }
                    });
                    noise.next_u64();
                }
            }
        }
    }
    println!("float rows: covered {}", covered.join(", "));
    assert!(covered.contains(&kernel().name()));
    #[cfg(target_arch = "x86_64")]
    for (name, present) in [
        ("avx2", super::super::has_avx2()),
        ("avx512", super::super::has_avx512()),
        ("amx bf16", super::super::has_amx()),
    ] {
        assert_eq!(covered.contains(&name), present, "{name}");
    }
    #[cfg(target_arch = "aarch64")]
    assert_eq!(covered.contains(&"neon"), super::super::has_neon());
}

#[test]
fn every_fp8_code_is_its_number_and_nan_shows() {
    let codes: Vec<u8> = (0..=255).collect();
    let scales = 1f32.to_le_bytes().repeat(256);
    let form = Form::Fp8(Scales { dtype: Dtype::F32, bytes: &scales, per_row: 1 });
    let stored = Stored { form, bytes: &codes, row_bytes: 16, order: None, inputs: Inputs::Float };
    // Rows of 16 and 32 columns, and one of 256, alone and many times, in steps of a session and elsewhere.
    for (k, m, steps) in
        [16, 32, 256].into_iter().flat_map(|k| [(k, 1, false), (k, 1, true), (k, 2, true), (k, 9, false)])
    {
        let n = 256 / k;
        let stored = Stored { row_bytes: k, ..stored };
        for kernel in RowKernel::supported() {
            for at in 0..k {
                let mut x = vec![0.0; m * k];
                x.iter_mut().skip(at).step_by(k).for_each(|x| *x = 1.0);
                let mut out = vec![0.0; m * n];
                kernel.multiply(&stored, 0, &Activations::new(&x, k), steps, &mut Tile::whole(&mut out, n));
                for (row, found) in out.iter().enumerate() {
                    let expected = crate::encoding::fp8::decode(codes[row % n * k + at]);
                    // Rows with a NaN are NaN.
                    let nan = k == 256 || row % n % (128 / k) == 128 / k - 1;
                    assert!(if nan { found.is_nan() } else { *found == expected }, "{row} {at} {}", kernel.name());
                }
            }
        }
    }
    // Without the two NaN, in tiles too.
    let codes: Vec<u8> = (0..=255u8).filter(|code| code & 0x7f != 0x7f).collect();
    let stored = Stored { bytes: &codes, row_bytes: 254, ..stored };
    for kernel in RowKernel::supported() {
        let mut x = vec![0.0; 254 * 254];
        x.iter_mut().step_by(255).for_each(|x| *x = 1.0);
        let mut out = vec![0.0; 254];
        kernel.multiply(&stored, 0, &Activations::new(&x, 254), false, &mut Tile::whole(&mut out, 1));
        for (code, found) in codes.iter().zip(out) {
            assert_eq!(found, crate::encoding::fp8::decode(*code), "{}", kernel.name());
        }
    }
}

#[test]
fn every_version_adds_products_and_a_row_alone_gives_what_it_gives_among_others() {
    let mut noise = Noise::new(12);
    let mut covered = Vec::new();
    for kernel in ADD_TIMES.iter().filter(|kernel| kernel.is_supported()) {
        covered.push(kernel.name);
        let add = kernel.function.function;
        for (m, n, k) in [(1, 1, 1), (2, 300, 17), (7, 5, 40), (13, 700, 16), (6, 256, 33)] {
            let (g, w, before) = (noise.vec(m * (n + 3)), noise.vec(n * k), noise.vec(m * k));
            let expected: Vec<f64> = (0..m * k)
                .map(|at| {
                    let terms = (0..n).map(|l| f64::from(g[at / k * (n + 3) + 2 + l]) * f64::from(w[l * k + at % k]));
                    f64::from(before[at]) + terms.sum::<f64>()
                })
                .collect();
            let mut out = before.clone();
            // SAFETY: supported, and the operands have the tile's rows and columns.
            unsafe { add(&Activations::new(&g, n + 3), 2..n + 2, &w, k, &mut Tile::whole(&mut out, k)) };
            close(&out, &expected, 1e-4);
            for i in 0..m {
                let (row, mut alone) = (&g[i * (n + 3)..][..n + 3], before[i * k..][..k].to_vec());
                // SAFETY: the same.
                unsafe { add(&Activations::new(row, n + 3), 2..n + 2, &w, k, &mut Tile::whole(&mut alone, k)) };
                assert_eq!(alone, out[i * k..][..k], "{} {m} {n} {k}", kernel.name);
            }
        }
    }
    println!("sums of products: covered {}", covered.join(", "));
    assert!(covered.contains(&super::super::choose(ADD_TIMES).name));
}
