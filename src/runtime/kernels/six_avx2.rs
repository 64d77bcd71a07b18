//! The inner loop of f32 products, AVX2: 6 rows of x, and a panel of 16 rows of weights. All 12 sums stay in registers; each
//! load of weights serves 6 rows, each number of x 16.

use std::arch::x86_64::*;

/// Rows of weights in a panel: the numbers of column q of all of them, then those of column q + 1.
pub(super) const PANEL: usize = 16;

/// Columns that are multiplied before the next ones are: a panel of them stays in the first cache while all of x passes.
pub(super) const COLUMNS: usize = 256;

/// Where a product goes.
#[derive(Clone, Copy)]
pub(super) struct Out {
    pub at: *mut f32,
    /// From a row to the next.
    pub stride: usize,
    /// Columns: at most a panel's.
    pub width: usize,
    /// Whether it is added to what is there.
    pub begun: bool,
}

/// Up to 6 rows of x, the numbers of column q of all of them together, times a panel of as many columns, and times `scales`.
///
/// # Safety
/// The processor has AVX2 and FMA; the panel has x's columns, scales are as many as the panel has rows, and `out` has `count` rows.
#[inline(always)]
pub(super) unsafe fn rows(panel: *const f32, x: &[f32], count: usize, scales: Option<&[f32]>, out: Out) {
    // SAFETY: the caller's promise.
    unsafe {
        match count {
            1 => exactly::<1>(panel, x, scales, out),
            2 => exactly::<2>(panel, x, scales, out),
            3 => exactly::<3>(panel, x, scales, out),
            4 => exactly::<4>(panel, x, scales, out),
            5 => exactly::<5>(panel, x, scales, out),
            _ => exactly::<6>(panel, x, scales, out),
        }
    }
}

/// # Safety
/// As [`rows`].
#[inline(always)]
unsafe fn exactly<const R: usize>(panel: *const f32, x: &[f32], scales: Option<&[f32]>, out: Out) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut sums = [[_mm256_setzero_ps(); 2]; R];
        let mut weights = panel;
        macro_rules! column {
            ($x:expr) => {
                let own = [_mm256_loadu_ps(weights), _mm256_loadu_ps(weights.add(8))];
                weights = weights.add(PANEL);
                let mut i = 0;
                while i < R {
                    let x = _mm256_set1_ps($x[i]);
                    sums[i][0] = _mm256_fmadd_ps(own[0], x, sums[i][0]);
                    sums[i][1] = _mm256_fmadd_ps(own[1], x, sums[i][1]);
                    i += 1;
                }
            };
        }
        let (fours, rest) = x.as_chunks::<R>().0.as_chunks::<4>();
        for four in fours {
            column!(four[0]);
            column!(four[1]);
            column!(four[2]);
            column!(four[3]);
        }
        for x in rest {
            column!(x);
        }
        for (i, [mut low, mut high]) in sums.into_iter().enumerate() {
            let to = out.at.add(i * out.stride);
            let mut all = [0.0; PANEL];
            let here = if out.width == PANEL { to } else { all.as_mut_ptr() };
            if out.begun {
                if out.width < PANEL {
                    std::ptr::copy_nonoverlapping(to, here, out.width);
                }
                low = _mm256_add_ps(low, _mm256_loadu_ps(here));
                high = _mm256_add_ps(high, _mm256_loadu_ps(here.add(8)));
            }
            if let Some(scales) = scales {
                low = _mm256_mul_ps(low, _mm256_loadu_ps(scales.as_ptr()));
                high = _mm256_mul_ps(high, _mm256_loadu_ps(scales.as_ptr().add(8)));
            }
            _mm256_storeu_ps(here, low);
            _mm256_storeu_ps(here.add(8), high);
            if out.width < PANEL {
                std::ptr::copy_nonoverlapping(here, to, out.width);
            }
        }
    }
}
