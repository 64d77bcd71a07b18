//! int4 by groups and few rows of x, AVX2. Words of 8 codes are transposed as they are, so that a lane is a row of weights and
//! each code costs a shift up and down, a conversion, its scale and an FMA. The order of sums is that of panels.

use std::arch::x86_64::*;

use super::Operands;
use super::panel_avx2::COLUMNS;
use crate::encoding::Form;
use crate::runtime::kernels::tiles::Tile;
use crate::runtime::kernels::transpose::transpose_8;

/// Rows of weights whose sums are added to in turn, in eights, so that none waits for the one before.
const EIGHTS: usize = 4;

/// Whether rows are multiplied here.
pub(super) fn suits(o: &Operands<'_>, rows: usize) -> bool {
    matches!(&o.weights.form, Form::Packed { bits: 4, group, .. } if group.is_multiple_of(64)) && rows < 4
}

/// # Safety
/// As the other versions, for what [`suits`].
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn multiply(o: &Operands<'_>, tile: &mut Tile<'_>) {
    let Form::Packed { group, scales, .. } = &o.weights.form else { return };
    let mut own = vec![0.0; scales.per_row];
    // Of each group, the scales of all rows.
    let mut turned = vec![0.0; scales.per_row * 8 * EIGHTS];
    for j in (0..tile.cols()).step_by(8 * EIGHTS) {
        let count = (8 * EIGHTS).min(tile.cols() - j);
        // Rows that there are not are the last one again, and are not stored.
        let row = |i: usize| o.first + j + i.min(count - 1);
        for i in 0..8 * EIGHTS {
            scales.read(o.weights.position(row(i)), &mut own);
            turned[i..].iter_mut().step_by(8 * EIGHTS).zip(&own).for_each(|(to, scale)| *to = *scale);
        }
        let rows: [&[u8]; 8 * EIGHTS] = std::array::from_fn(|i| o.weights.row(row(i)));
        for i in 0..tile.rows() {
            let x = &o.x.f32()[(tile.first_row() + i) * o.k..][..o.k];
            // SAFETY: the rows have k columns, a multiple of 64, and scales for each group of them.
            let sums = unsafe { dot(&rows, &turned, *group, x) };
            tile.row(i)[j..j + count].copy_from_slice(&sums[..count]);
        }
    }
}

/// # Safety
/// The processor has AVX2 and FMA.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn dot(rows: &[&[u8]; 8 * EIGHTS], scales: &[f32], group: usize, x: &[f32]) -> [f32; 8 * EIGHTS] {
    let mut out = [0.0; 8 * EIGHTS];
    // SAFETY: 32 bytes of each row hold 64 codes, and 8 scales of each group those of eight rows.
    unsafe {
        let mut totals = [_mm256_setzero_ps(); EIGHTS];
        for (block, x) in x.chunks(COLUMNS).enumerate() {
            let mut sums = [_mm256_setzero_ps(); EIGHTS];
            for (step, x) in x.as_chunks::<64>().0.iter().enumerate() {
                let at = block * COLUMNS + 64 * step;
                let mut words = [[0u32; 64]; EIGHTS];
                let mut own = [_mm256_setzero_ps(); EIGHTS];
                for e in 0..EIGHTS {
                    let mut codes = [_mm256_setzero_si256(); 8];
                    for (code, row) in codes.iter_mut().zip(&rows[8 * e..8 * e + 8]) {
                        let here = row[at / 2..][..32].as_ptr();
                        _mm_prefetch::<_MM_HINT_T0>(here.wrapping_add(8 * EIGHTS * row.len()).cast());
                        *code = _mm256_xor_si256(_mm256_loadu_si256(here.cast()), _mm256_set1_epi8(0x88u8 as i8));
                    }
                    transpose_8(codes, words[e].as_mut_ptr().cast(), 32);
                    own[e] = _mm256_loadu_ps(scales[at / group * 8 * EIGHTS + 8 * e..][..8].as_ptr());
                }
                for (w, x) in x.as_chunks::<8>().0.iter().enumerate() {
                    let mut codes = [_mm256_setzero_si256(); EIGHTS];
                    for e in 0..EIGHTS {
                        codes[e] = _mm256_loadu_si256(words[e][8 * w..8 * w + 8].as_ptr().cast());
                    }
                    macro_rules! step {
                        ($i:literal) => {{
                            let x = _mm256_set1_ps(x[$i]);
                            for e in 0..EIGHTS {
                                let code = _mm256_srai_epi32::<28>(_mm256_slli_epi32::<{ 28 - 4 * $i }>(codes[e]));
                                let w = _mm256_mul_ps(_mm256_cvtepi32_ps(code), own[e]);
                                sums[e] = _mm256_fmadd_ps(w, x, sums[e]);
                            }
                        }};
                    }
                    step!(0);
                    step!(1);
                    step!(2);
                    step!(3);
                    step!(4);
                    step!(5);
                    step!(6);
                    step!(7);
                }
            }
            for (total, sum) in totals.iter_mut().zip(sums) {
                *total = if block == 0 { sum } else { _mm256_add_ps(sum, *total) };
            }
        }
        for (out, total) in out.as_chunks_mut::<8>().0.iter_mut().zip(totals) {
            _mm256_storeu_ps(out.as_mut_ptr(), total);
        }
    }
    out
}
