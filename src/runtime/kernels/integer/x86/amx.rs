//! Many rows of x, AMX. The panel is that of AVX-512, with codes that are not raised, and a run is a tile of 4 or 8 words instead of
//! 16, since each has its own scales. Sums leave the tiles after each run; they are scaled and added as on AVX-512, in the same
//! order, so that the results are the same bits.

use std::arch::x86_64::*;

use super::super::{Operands, PANEL};
use super::expand::{self, Form16};
use super::panel::{COLUMNS, PANELS, Panel};
use crate::runtime::kernels::amx::{self, ROWS, Sums, Tiles};
use crate::runtime::kernels::tiles::Tile;

/// Runs whose sums are made before they are added: they and the panel's part share the first cache.
const RUNS: usize = 4;

/// # Safety
/// As [`super::amx`].
#[inline(always)]
pub(super) unsafe fn multiply(o: &Operands<'_>, tile: &mut Tile<'_>) {
    assert!(tile.cols() <= PANEL, "a tile is as wide as a panel");
    // SAFETY: the caller's promise.
    unsafe { expand::dispatch(o, Many(tile)) }
}

struct Many<'a, 'b>(&'a mut Tile<'b>);

impl expand::Visitor for Many<'_, '_> {
    #[inline(always)]
    unsafe fn visit<F: Form16>(self, o: &Operands<'_>) {
        // SAFETY: the caller's promise.
        PANELS.with_borrow_mut(|panel| unsafe { run_all::<F>(panel, o, self.0) });
    }
}

/// # Safety
/// As [`super::amx`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn run_all<F: Form16>(panel: &mut Panel, o: &Operands<'_>, tile: &mut Tile<'_>) {
    // SAFETY: the caller's promise.
    unsafe {
        panel.fill::<F>(o, tile);
        if let Some(bias) = o.shape.bias {
            let codes = amx::bytes_of(&mut panel.codes);
            codes.iter_mut().for_each(|code| *code = code.wrapping_sub(1 << bias));
        }
        match (F::RUN, F::MINIMA) {
            (16, _) => all::<16, false>(panel, o, tile),
            (_, false) => all::<32, false>(panel, o, tile),
            (_, true) => all::<32, true>(panel, o, tile),
        }
    }
}

/// # Safety
/// As [`super::amx`]; the panel is the tile's.
#[inline(always)]
unsafe fn all<const RUN: usize, const MINIMA: bool>(panel: &Panel, o: &Operands<'_>, out: &mut Tile<'_>) {
    let m = out.rows();
    let mut tiles = Tiles::new(RUN / 4);
    let mut sums = [Sums([[0i32; PANEL]; ROWS]); RUNS];
    for at in (0..o.k).step_by(COLUMNS) {
        let last = (at + COLUMNS).min(o.k) / RUN;
        let mut i = 0;
        while i < m {
            let rows = ROWS.min(m - i);
            let x = (out.first_row() + i) * o.k;
            let mut run = at / RUN;
            // SAFETY: rows of x and of the tile are taken below m, runs below k.
            unsafe {
                tiles.shape(rows);
                while run < last {
                    let runs = RUNS.min(last - run);
                    let mut r = 0;
                    while r < runs {
                        let column = (run + r) * RUN;
                        let x = o.x.codes.as_ptr().add(x + column).cast::<u8>();
                        let codes = panel.codes.as_ptr().cast::<u8>().add(column * PANEL);
                        if rows > ROWS / 2 {
                            amx::zero::<true>();
                            amx::add_int8::<true>([x, x.add(ROWS / 2 * o.k)], o.k, codes);
                            amx::store::<_, true>(&mut sums[r]);
                        } else {
                            amx::zero::<false>();
                            amx::add_int8::<false>([x, x], o.k, codes);
                            amx::store::<_, false>(&mut sums[r]);
                        }
                        r += 1;
                    }
                    add_all::<RUN, MINIMA>(panel, o, &sums[..runs], run, (i, rows), out);
                    run += runs;
                }
            }
            i += rows;
        }
    }
}

/// Adds what runs from `first` on give for `rows` rows of the tile from row `i` on.
///
/// # Safety
/// As [`super::amx`]; there are so many runs and rows.
#[inline(always)]
unsafe fn add_all<const RUN: usize, const MINIMA: bool>(
    panel: &Panel,
    o: &Operands<'_>,
    sums: &[Sums<i32>],
    first: usize,
    (i, rows): (usize, usize),
    out: &mut Tile<'_>,
) {
    let mask = |columns: usize| ((1u32 << columns.min(16)) - 1) as __mmask16;
    let masks = [mask(out.cols()), mask(out.cols().saturating_sub(16))];
    let mut row = 0;
    while row < rows {
        let (at, to) = ((out.first_row() + i + row) * o.k / 32 + first * RUN / 32, (i + row) * out.stride());
        // SAFETY: rows are taken below those of x and of the tile.
        unsafe {
            let x = Scales { scales: o.x.scales.as_ptr().add(at), sums: o.x.sums.as_ptr().add(at), width: o.k / 32 };
            let to = out.start().add(to);
            macro_rules! group {
                ($r:literal) => {{
                    add::<$r, RUN, MINIMA>(panel, &x, sums, (row, first), to, out.stride(), masks);
                    row += $r;
                }};
            }
            match rows - row {
                1 => group!(1),
                2 | 3 => group!(2),
                _ => group!(4),
            }
        }
    }
}

/// What belongs to some rows of x, from a run on.
struct Scales {
    scales: *const f32,
    sums: *const f32,
    /// From a row to the next.
    width: usize,
}

/// Adds to R rows of `out`, `stride` apart, what runs from `first` on give, or sets them if that is the first of all.
///
/// # Safety
/// There are so many rows of x, of sums from `row` on and of `out`, which has as many columns as `masks` say.
#[inline(always)]
unsafe fn add<const R: usize, const RUN: usize, const MINIMA: bool>(
    panel: &Panel,
    x: &Scales,
    sums: &[Sums<i32>],
    (row, first): (usize, usize),
    out: *mut f32,
    stride: usize,
    masks: [__mmask16; 2],
) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut totals = [[_mm512_setzero_ps(); 2]; R];
        if first > 0 {
            let mut i = 0;
            while i < R {
                totals[i][0] = _mm512_maskz_loadu_ps(masks[0], out.add(i * stride));
                totals[i][1] = _mm512_maskz_loadu_ps(masks[1], out.wrapping_add(i * stride + 16));
                i += 1;
            }
        }
        let mut run = 0;
        while run < sums.len() {
            let scales = panel.scales.as_ptr().add((first + run) * PANEL);
            let scale = [_mm512_loadu_ps(scales), _mm512_loadu_ps(scales.add(16))];
            let mut i = 0;
            while i < R {
                let x_scale = _mm512_set1_ps(*x.scales.add(i * x.width + run * RUN / 32));
                let own = sums[run].0[row + i].as_ptr();
                let mut v = 0;
                while v < 2 {
                    let sum = _mm512_cvtepi32_ps(_mm512_load_si512(own.add(16 * v).cast()));
                    totals[i][v] = _mm512_fmadd_ps(_mm512_mul_ps(sum, x_scale), scale[v], totals[i][v]);
                    v += 1;
                }
                i += 1;
            }
            if MINIMA {
                let minima = panel.minima.as_ptr().add((first + run) * PANEL);
                let minimum = [_mm512_loadu_ps(minima), _mm512_loadu_ps(minima.add(16))];
                let mut i = 0;
                while i < R {
                    let sum = _mm512_set1_ps(*x.sums.add(i * x.width + run));
                    totals[i][0] = _mm512_fnmadd_ps(minimum[0], sum, totals[i][0]);
                    totals[i][1] = _mm512_fnmadd_ps(minimum[1], sum, totals[i][1]);
                    i += 1;
                }
            }
            run += 1;
        }
        let mut i = 0;
        while i < R {
            _mm512_mask_storeu_ps(out.add(i * stride), masks[0], totals[i][0]);
            _mm512_mask_storeu_ps(out.wrapping_add(i * stride + 16), masks[1], totals[i][1]);
            i += 1;
        }
    }
}
