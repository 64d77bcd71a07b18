//! Integer dot products of int8 rows: the sums that W8A8 multiplies by its two scales. Every version gives the same bits.

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod few_avx2;
#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(target_arch = "x86_64")]
mod panel;
#[cfg(target_arch = "x86_64")]
mod panel_avx2;
mod scalar;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod tile;
#[cfg(target_arch = "x86_64")]
mod x86;

use std::sync::OnceLock;

use super::{Isa, Kernel};

/// More columns could overflow the int32 sum: 2¹⁷ products of 128 · 128.
pub const MOST_COLUMNS: usize = (1 << 17) - 1;

/// The rows to multiply. Lengths were checked.
#[derive(Debug, Clone, Copy)]
struct Operands<'a> {
    /// `[n, k]`
    weights: &'a [i8],
    /// `[m, k]`
    x: &'a [i8],
    /// `[m]`: the sum of each row of x.
    x_sums: &'a [i32],
    m: usize,
    n: usize,
    k: usize,
}

/// out `[m, n]` = x · weightsᵀ
type Dot = unsafe fn(Operands<'_>, &mut [i32]);

static TABLE: &[Kernel<Dot>] = &[
    #[cfg(target_arch = "x86_64")]
    Kernel { name: "amx int8", isa: Isa::Amx, supported: super::has_amx, function: amx::amx },
    #[cfg(target_arch = "x86_64")]
    Kernel { name: "avx512 vnni", isa: Isa::Avx512, supported: super::has_vnni, function: x86::avx512_vnni },
    #[cfg(target_arch = "x86_64")]
    Kernel { name: "avx512", isa: Isa::Avx512, supported: super::has_avx512, function: x86::avx512 },
    #[cfg(target_arch = "x86_64")]
    Kernel { name: "avx2", isa: Isa::Avx2, supported: super::has_avx2, function: x86::avx2 },
    #[cfg(target_arch = "aarch64")]
    Kernel { name: "neon dotprod", isa: Isa::Neon, supported: super::has_dot_product, function: neon::dot::<true> },
    #[cfg(target_arch = "aarch64")]
    Kernel { name: "neon", isa: Isa::Neon, supported: super::has_neon, function: neon::dot::<false> },
    Kernel { name: "scalar", isa: Isa::Scalar, supported: || true, function: scalar::dot },
];

/// A version of the loop that this processor can run.
#[derive(Debug, Clone, Copy)]
pub struct DotKernel(&'static Kernel<Dot>);

/// The best version.
pub fn kernel() -> DotKernel {
    static CHOSEN: OnceLock<DotKernel> = OnceLock::new();
    *CHOSEN.get_or_init(|| DotKernel(super::choose(TABLE)))
}

impl DotKernel {
    /// Every version that this processor can run.
    pub fn supported() -> impl Iterator<Item = DotKernel> {
        TABLE.iter().filter(|kernel| kernel.is_supported()).map(DotKernel)
    }

    /// The name in reports.
    pub fn name(self) -> &'static str {
        self.0.name
    }

    /// out = x · weightsᵀ in int32: weights are `[n, k]`, x `[m, k]`, out `[m, n]`, all row-major; m is the length of
    /// `x_sums`, which has the sum of each row of x.
    ///
    /// # Panics
    /// If the lengths do not fit one another.
    pub fn dot(self, weights: &[i8], x: &[i8], x_sums: &[i32], k: usize, out: &mut [i32]) {
        let m = x_sums.len();
        let n = out.len().checked_div(m).unwrap_or(0);
        assert!(out.len() == m * n && x.len() == m * k && (m == 0 || weights.len() == n * k), "shapes fit");
        if m == 0 || n == 0 {
            return;
        }
        // SAFETY: a `DotKernel` is only made of a version that the processor supports; the shapes were just checked.
        unsafe { (self.0.function)(Operands { weights, x, x_sums, m, n, k }, out) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::testing::Noise;

    #[test]
    fn every_version_equals_the_scalar_one_bit_for_bit() {
        let mut noise = Noise::new(2);
        let mut covered = Vec::new();
        for kernel in DotKernel::supported() {
            covered.push(kernel.name());
            for k in [0, 1, 2, 3, 4, 5, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 130, 1023, 1090] {
                for (m, n) in [
                    (0, 1),
                    (1, 0),
                    (1, 1),
                    (1, 4),
                    (1, 7),
                    (2, 3),
                    (3, 9),
                    (4, 4),
                    (5, 13),
                    (9, 8),
                    (8, 33),
                    (14, 64),
                    (27, 20),
                    (16, 32),
                    (17, 31),
                    (33, 40),
                    (64, 16),
                ] {
                    let mut codes = |len: usize| -> Vec<i8> { (0..len).map(|_| noise.next_u64() as i8).collect() };
                    let (weights, x) = (codes(n * k), codes(m * k));
                    check(kernel, &weights, &x, m, n, k);
                }
            }
            // The largest sums: every product is 128 · 128.
            let k = MOST_COLUMNS;
            check(kernel, &vec![-128; k], &vec![-128; k], 1, 1, k);
            check(kernel, &vec![-128; 2 * k], &vec![127; k], 1, 2, k);
        }
        println!("int8 dot products: covered {}", covered.join(", "));
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

    fn check(kernel: DotKernel, weights: &[i8], x: &[i8], m: usize, n: usize, k: usize) {
        let sum = |i: usize, j: usize| -> i64 {
            (0..k).map(|l| i64::from(x[i * k + l]) * i64::from(weights[j * k + l])).sum()
        };
        let sums: Vec<i32> = (0..m).map(|i| x[i * k..][..k].iter().map(|&q| i32::from(q)).sum()).collect();
        let mut out = vec![7; m * n];
        kernel.dot(weights, x, &sums, k, &mut out);
        for (at, found) in out.iter().enumerate() {
            assert_eq!(i64::from(*found), sum(at / n, at % n), "{} m {m} n {n} k {k} at {at}", kernel.name());
        }
    }
}
