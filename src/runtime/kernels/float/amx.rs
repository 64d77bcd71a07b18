//! Many rows of x, AMX. Tiles multiply bf16, which has 8 digits of f32's 24; so x is two bf16 numbers, one for what the other
//! leaves, and so are weights that are not bf16 numbers themselves. What is left out is below 2⁻¹⁶ of a product. Codes are
//! whole numbers below 2⁸ and need no second one; their scales come after the sum of those that share it.
//!
//! f32 weights, which have all their digits, and few rows of x are multiplied as on AVX-512.

use std::arch::x86_64::*;
use std::cell::RefCell;

use formats::Dtype;

use super::x86::{Bf16, Excess128, F16, F32, Fp8, Load, Signed};
use super::{Operands, panel, portable};
use crate::encoding::{Form, Stored};
use crate::runtime::activations::{Bf16Parts, Bf16Tile, Layout};
use crate::runtime::kernels::amx::{self, Line, PANEL, ROWS, Sums, Tiles, bytes_of};
use crate::runtime::kernels::tiles::Tile;
use crate::runtime::kernels::transpose::transpose;

/// Columns that are multiplied before the next ones are: a panel of them stays in the first cache while all of x passes.
const COLUMNS: usize = 512;

/// Columns of a tile.
const STEP: usize = 32;

/// How many rows of x are wanted for rows of this form and length: as tiles, if they are multiplied by them.
pub(super) fn layout(weights: &Stored<'_>, k: usize) -> Layout {
    let tiles = k >= STEP && !matches!(weights.form, Form::Plain(Dtype::F32));
    if tiles { Layout::Bf16 } else { Layout::Rows }
}

/// How a form becomes bf16 numbers.
#[derive(Clone, Copy)]
struct How {
    /// Columns that share a scale, a divisor of [`COLUMNS`].
    span: usize,
    /// What all scales are multiplied by.
    factor: f32,
    /// Whether rows are unpacked to f32 first.
    unpacked: bool,
}

/// 32 rows of weights, as one or two bf16 numbers each, and what is made on the way there.
#[derive(Default)]
struct Panel {
    /// `[k / 2, 32, 2]`, of a multiple of [`STEP`] columns.
    parts: [Vec<Line>; 2],
    /// `[16, COLUMNS]`
    rows: [Vec<u16>; 2],
    /// `[COLUMNS]`
    unpacked: Vec<f32>,
    /// For each span of columns.
    scales: Vec<[f32; PANEL]>,
}

thread_local! {
    static PANELS: RefCell<Panel> = RefCell::default();
}

/// # Safety
/// The processor has AMX and AVX-512 F, BW, VL and BF16, and the process may use them; the operands' rows have k columns, and the
/// tile lies within them.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16,avx2,fma,f16c")]
pub(super) unsafe fn amx(o: &Operands<'_>, tile: &mut Tile<'_>) {
    let whole = How { span: COLUMNS, factor: 1.0, unpacked: false };
    let by = |group: usize| How { span: shared(group, COLUMNS), ..whole };
    // SAFETY: the caller's promise.
    unsafe {
        match &o.weights.form {
            _ if layout(o.weights, o.k) == Layout::Rows || !tile.first_row().is_multiple_of(ROWS / 2) => {
                panel::avx512(o, tile)
            }
            Form::Plain(Dtype::F16) => multiply::<F16, true>(o, whole, tile),
            Form::Plain(Dtype::BF16) => multiply::<Bf16, false>(o, whole, tile),
            Form::Int8(_) => multiply::<Signed, false>(o, whole, tile),
            Form::Fp8(_) => multiply::<Fp8, false>(o, How { factor: 256.0, ..whole }, tile),
            Form::Packed { bits: 8, scales, .. } if scales.per_row == 1 => multiply::<Excess128, false>(o, whole, tile),
            Form::Packed { bits, group, .. } if group.is_multiple_of(STEP) => match bits {
                4 => multiply::<Nibbles, false>(o, by(*group), tile),
                _ => multiply::<Excess128, false>(o, by(*group), tile),
            },
            _ => multiply::<F32, true>(o, How { unpacked: true, ..whole }, tile),
        }
    }
}

/// The greatest divisor of both.
fn shared(a: usize, b: usize) -> usize {
    if b == 0 { a } else { shared(b, a % b) }
}

/// # Safety
/// As [`amx`]; L loads what the form has, or f32 if it is unpacked. TWO says whether one bf16 number is not enough.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16,avx2,fma,f16c")]
unsafe fn multiply<L: Load, const TWO: bool>(o: &Operands<'_>, how: How, tile: &mut Tile<'_>) {
    assert!(tile.cols() <= PANEL, "a tile is as wide as a panel");
    let x = o.x.bf16(None);
    PANELS.with_borrow_mut(|panel| {
        let mut tiles = Tiles::new(amx::DEPTH);
        for at in (0..o.k).step_by(COLUMNS) {
            let width = COLUMNS.min(o.k - at);
            // SAFETY: the caller's promise; columns are taken below k.
            unsafe {
                fill::<L, TWO>(o, how, tile, (at, width), panel);
                // Rows that there are not are zeros in x's tiles.
                tiles.shape(ROWS);
                for i in (0..tile.rows()).step_by(ROWS) {
                    let rows = ROWS.min(tile.rows() - i);
                    if rows > ROWS / 2 {
                        block::<TWO, true>(panel, x, how.span, (at, width), (i, rows), tile);
                    } else {
                        block::<TWO, false>(panel, x, how.span, (at, width), (i, rows), tile);
                    }
                }
            }
        }
    });
}

/// Makes the panel of columns `at .. at + width`.
///
/// # Safety
/// As [`multiply`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16,avx2,fma,f16c")]
unsafe fn fill<L: Load, const TWO: bool>(
    o: &Operands<'_>,
    how: How,
    tile: &Tile<'_>,
    (at, width): (usize, usize),
    panel: &mut Panel,
) {
    let parts = 1 + usize::from(TWO);
    panel.unpacked.resize(COLUMNS, 0.0);
    panel.scales.resize(COLUMNS / STEP, [0.0; PANEL]);
    for part in 0..parts {
        panel.parts[part].resize(COLUMNS * PANEL / 32, Line([0; 64]));
        panel.rows[part].resize(16 * COLUMNS, 0);
    }
    for half in 0..2 {
        let count = tile.cols().saturating_sub(16 * half).min(16);
        for j in 0..count {
            let row = o.first + 16 * half + j;
            read_scales(o, how, row, (at, width), 16 * half + j, &mut panel.scales);
            let bytes: &[u8] = if how.unpacked {
                // Pieces that are multiples of every block.
                for (piece, out) in panel.unpacked[..width].chunks_mut(256).enumerate() {
                    portable::unpack_piece(o.weights, row, at + 256 * piece, out);
                }
                bytemuck::cast_slice(&panel.unpacked[..width])
            } else {
                &o.weights.row(row)[at * L::BYTES / 16..][..(width * L::BYTES).div_ceil(16)]
            };
            let [high, low] = &mut panel.rows;
            let low: &mut [u16] = if TWO { &mut low[j * COLUMNS..][..COLUMNS] } else { &mut [] };
            // SAFETY: the caller's promise; the row has bytes for `width` numbers.
            unsafe { convert::<L, TWO>(bytes, width, &mut high[j * COLUMNS..][..COLUMNS], low) };
        }
        for (part, rows) in panel.parts.iter_mut().zip(&panel.rows).take(parts) {
            let to = bytes_of(part);
            for step in (0..width).step_by(STEP) {
                let starts = std::array::from_fn(|j| rows[j * COLUMNS + step..][..STEP].as_ptr().cast());
                let to = &mut to[step * PANEL * 2 + 64 * half..];
                // SAFETY: 32 numbers of each row; 16 steps of 128 bytes end with the buffer, or 64 bytes before.
                unsafe { transpose(&starts, to.as_mut_ptr(), 4 * PANEL) };
            }
        }
    }
}

/// The scales of a row's spans in columns `at .. at + width`, to column `j` of `out`.
fn read_scales(
    o: &Operands<'_>,
    how: How,
    row: usize,
    (at, width): (usize, usize),
    j: usize,
    out: &mut [[f32; PANEL]],
) {
    let mut own = [1.0; COLUMNS / STEP + 1];
    let (mut group, mut first) = (usize::MAX, 0);
    match &o.weights.form {
        // They are in the numbers already.
        _ if how.unpacked => {}
        Form::Int8(scales) | Form::Fp8(scales) => scales.read(o.weights.position(row), &mut own[..1]),
        Form::Packed { scales, .. } if scales.per_row == 1 => scales.read(o.weights.position(row), &mut own[..1]),
        Form::Packed { group: own_group, scales, .. } => {
            (group, first) = (*own_group, at / own_group);
            let groups = (at + width).div_ceil(group) - first;
            scales.read_some(o.weights.position(row), first, &mut own[..groups]);
        }
        _ => {}
    }
    for (span, out) in out.iter_mut().enumerate().take(width.div_ceil(how.span)) {
        out[j] = own[(at + span * how.span) / group - first] * how.factor;
    }
}

/// A row's `width` numbers as one or two bf16 numbers each, and zeros up to a multiple of [`STEP`].
///
/// # Safety
/// The processor has AVX-512 F, BW, VL and BF16; the row has bytes for so many numbers, and there is room for the result.
#[inline(always)]
unsafe fn convert<L: Load, const TWO: bool>(bytes: &[u8], width: usize, high: &mut [u16], low: &mut [u16]) {
    let mut at = 0;
    while at < width.next_multiple_of(STEP) {
        let count = width.saturating_sub(at).min(16);
        // SAFETY: 16 numbers are read where there are so many, or from a copy; 16 are written.
        unsafe {
            let mask = ((1u32 << count) - 1) as __mmask16;
            let start = bytes.as_ptr().wrapping_add(at * L::BYTES / 16);
            let mut last = [0u8; 64];
            let number = if count == 16 {
                L::load(start)
            } else {
                std::ptr::copy_nonoverlapping(start, last.as_mut_ptr(), (count * L::BYTES).div_ceil(16));
                _mm512_maskz_mov_ps(mask, L::load(last.as_ptr()))
            };
            let first: __m256i = std::mem::transmute(_mm512_cvtneps_pbh(number));
            _mm256_storeu_si256(high[at..][..16].as_mut_ptr().cast(), first);
            if TWO {
                let taken = _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(first)));
                let second: __m256i = std::mem::transmute(_mm512_cvtneps_pbh(_mm512_sub_ps(number, taken)));
                _mm256_storeu_si256(low[at..][..16].as_mut_ptr().cast(), second);
            }
        }
        at += 16;
    }
}

/// `rows` rows of the tile from row `i` on: what columns `at .. at + width` give is added, or set if they are the first.
///
/// # Safety
/// As [`multiply`]; the panel is of these columns, and tiles have the shapes for 32 rows. SECOND says whether there are more than
/// 16 rows.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16,avx2,fma,f16c")]
unsafe fn block<const TWO: bool, const SECOND: bool>(
    panel: &Panel,
    x: &Bf16Parts,
    span: usize,
    (at, width): (usize, usize),
    (i, rows): (usize, usize),
    out: &mut Tile<'_>,
) {
    let first = (out.first_row() + i) / 16;
    let blocks = [x.block(first), if SECOND { x.block(first + 1) } else { &[] }];
    let mask = |columns: usize| ((1u32 << columns.min(16)) - 1) as __mmask16;
    let masks = [mask(out.cols()), mask(out.cols().saturating_sub(16))];
    let mut sums = Sums([[0f32; PANEL]; ROWS]);
    for from in (0..width).step_by(span) {
        // SAFETY: steps are taken below those of x and of the panel; of rows of the tile, its columns are read and written under
        // a mask.
        unsafe {
            amx::zero::<SECOND>();
            for step in (from..(from + span).min(width)).step_by(STEP) {
                let of_x = |part: usize| -> [*const u8; 2] {
                    let tile = |block: &[[Bf16Tile; 2]]| (&raw const block[(at + step) / STEP][part]).cast();
                    [tile(blocks[0]), if SECOND { tile(blocks[1]) } else { std::ptr::null() }]
                };
                let of_panel = |part: usize| panel.parts[part].as_ptr().cast::<u8>().add(step * PANEL * 2);
                amx::add_bf16::<SECOND>(of_x(0), 64, of_panel(0));
                if TWO {
                    amx::add_bf16::<SECOND>(of_x(0), 64, of_panel(1));
                }
                amx::add_bf16::<SECOND>(of_x(1), 64, of_panel(0));
            }
            amx::store::<_, SECOND>(&mut sums);
            let scales = panel.scales[from / span].as_ptr();
            let scales = [_mm512_loadu_ps(scales), _mm512_loadu_ps(scales.add(16))];
            let begun = at + from > 0;
            for (row, sums) in sums.0.iter().enumerate().take(rows) {
                let to = out.start().add((i + row) * out.stride());
                for half in 0..2 {
                    let to = to.wrapping_add(16 * half);
                    let before = if begun { _mm512_maskz_loadu_ps(masks[half], to) } else { _mm512_setzero_ps() };
                    let new = _mm512_load_ps(sums.as_ptr().add(16 * half));
                    _mm512_mask_storeu_ps(to, masks[half], _mm512_fmadd_ps(new, scales[half], before));
                }
            }
        }
    }
}

/// int4: 16 codes in 8 bytes.
struct Nibbles;

impl Load for Nibbles {
    const BYTES: usize = 8;
    #[inline(always)]
    unsafe fn load(at: *const u8) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe {
            let table = _mm512_set_ps(7., 6., 5., 4., 3., 2., 1., 0., -1., -2., -3., -4., -5., -6., -7., -8.);
            let shifts = _mm512_set_epi32(28, 24, 20, 16, 12, 8, 4, 0, 28, 24, 20, 16, 12, 8, 4, 0);
            let low = _mm512_castsi256_si512(_mm256_set1_epi32(at.cast::<i32>().read_unaligned()));
            let high = _mm256_set1_epi32(at.add(4).cast::<i32>().read_unaligned());
            let words = _mm512_inserti64x4::<1>(low, high);
            _mm512_permutexvar_ps(_mm512_srlv_epi32(words, shifts), table)
        }
    }
}
