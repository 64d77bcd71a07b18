//! Products of f32 with stored rows whose numbers are taken as floating-point ones: plain numbers, and codes that become
//! f32 in registers, next to the multiply. Decoding reads each row once, where it lies.

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod few_avx2;
#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(target_arch = "x86_64")]
mod nibbles;
#[cfg(target_arch = "x86_64")]
mod panel;
#[cfg(target_arch = "x86_64")]
mod panel_avx2;
mod portable;
#[cfg(target_arch = "x86_64")]
mod x86;

use std::sync::OnceLock;

use super::tiles::Tile;
use super::{Isa, Kernel};
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
use crate::encoding::Form;
use crate::encoding::Stored;
use crate::runtime::Activations;

pub use portable::{fits, unpack};

/// What a version multiplies. Lengths were checked.
struct Operands<'a> {
    weights: &'a Stored<'a>,
    x: &'a Activations<'a>,
    /// Columns.
    k: usize,
    /// The row of weights that is the tile's first column.
    first: usize,
    /// Whether a few rows may have an order of sums of their own.
    #[cfg_attr(
        not(target_arch = "x86_64"),
        expect(dead_code, reason = "other versions have one order that serves both")
    )]
    steps: bool,
}

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
impl Operands<'_> {
    /// The scales of the rows of the tile's columns from `j` on, where a row has one; others stay as they are.
    #[inline(always)]
    fn own_scales(&self, j: usize, scales: &mut [f32]) {
        if let Form::Int8(own) | Form::Fp8(own) | Form::Packed { bits: 8, scales: own, .. } = &self.weights.form
            && own.per_row == 1
        {
            for (i, scale) in scales.iter_mut().enumerate() {
                own.read(self.weights.position(self.first + j + i), std::slice::from_mut(scale));
            }
        }
    }
}

/// The tile of x · Wᵀ.
type Rows = unsafe fn(&Operands<'_>, &mut Tile<'_>);

/// How few and how many rows of x are multiplied.
#[derive(Debug, Clone, Copy)]
struct Forms {
    few: Rows,
    /// If it differs.
    many: Option<Rows>,
    /// Whether many rows of x are multiplied, by so many columns, as two bf16 numbers each.
    tiles: fn(&Stored<'_>, usize) -> bool,
}

static TABLE: &[Kernel<Forms>] = &[
    #[cfg(target_arch = "x86_64")]
    Kernel {
        name: "amx bf16",
        isa: Isa::Amx,
        supported: super::has_amx,
        function: Forms { few: x86::avx512, many: Some(amx::amx), tiles: amx::suits },
    },
    #[cfg(target_arch = "x86_64")]
    Kernel {
        name: "avx512",
        isa: Isa::Avx512,
        supported: super::has_avx512,
        function: Forms { few: x86::avx512, many: Some(panel::avx512), tiles: |_, _| false },
    },
    #[cfg(target_arch = "x86_64")]
    Kernel {
        name: "avx2",
        isa: Isa::Avx2,
        supported: super::has_avx2,
        function: Forms { few: panel_avx2::avx2, many: None, tiles: |_, _| false },
    },
    #[cfg(target_arch = "aarch64")]
    Kernel {
        name: "neon",
        isa: Isa::Neon,
        supported: super::has_neon,
        function: Forms { few: neon::neon, many: None },
    },
    Kernel {
        name: "scalar",
        isa: Isa::Scalar,
        supported: || true,
        function: Forms { few: portable::scalar, many: None, tiles: |_, _| false },
    },
];

/// A version that this processor can run.
#[derive(Debug, Clone, Copy)]
pub struct RowKernel(&'static Kernel<Forms>);

/// The best version.
pub fn kernel() -> RowKernel {
    static CHOSEN: OnceLock<RowKernel> = OnceLock::new();
    *CHOSEN.get_or_init(|| RowKernel(super::choose(TABLE)))
}

/// With fewer rows of x, tiles may have any number of columns; with so many or more, at most [`PANEL`].
pub const FEW: usize = 8;

/// The most columns of a tile of many rows.
pub const PANEL: usize = 32;

impl RowKernel {
    /// Every version that this processor can run.
    pub fn supported() -> impl Iterator<Item = RowKernel> {
        TABLE.iter().filter(|kernel| kernel.is_supported()).map(RowKernel)
    }

    /// The name in reports.
    pub fn name(self) -> &'static str {
        self.0.name
    }

    /// Whether a row of x alone gives the same bits as among [`FEW`] rows or more.
    pub fn has_one_order(self) -> bool {
        self.0.function.many.is_none()
    }

    /// Whether many rows of x, of `k` columns, are multiplied in tiles of bf16.
    pub fn uses_tiles(self, weights: &Stored<'_>, k: usize) -> bool {
        (self.0.function.tiles)(weights, k)
    }

    /// A tile of x · Wᵀ. With [`FEW`] rows or more, it has at most [`PANEL`] columns. The tile's first column is row `first` of
    /// the weights. In `steps` of a session a few rows are read as fast as memory allows; else the order of sums does not depend
    /// on how many rows are multiplied together.
    ///
    /// # Panics
    /// If the tile reaches beyond the operands, or rows are not as long as their form says.
    pub fn multiply(self, weights: &Stored<'_>, first: usize, x: &Activations<'_>, steps: bool, tile: &mut Tile<'_>) {
        let k = x.cols();
        assert!(tile.first_row() + tile.rows() <= x.rows(), "x has the tile's rows");
        assert!(fits(weights, k), "rows have x's columns");
        if k == 0 {
            (0..tile.rows()).for_each(|i| tile.row(i).fill(0.0));
        } else if tile.rows() > 0 && tile.cols() > 0 {
            let Forms { few, many, .. } = self.0.function;
            let function = many.filter(|_| tile.rows() >= FEW).unwrap_or(few);
            // SAFETY: a `RowKernel` is only made of a version that the processor supports. Versions take rows of weights by
            // `Stored::row`, which checks its bounds; that rows are long enough for k columns was just checked.
            unsafe { function(&Operands { weights, x, k, first, steps }, tile) }
        }
    }
}

/// out += g · w.
type AddTimes = unsafe fn(&[f32], usize, &[f32], usize, usize, &mut Tile<'_>);

static ADD_TIMES: &[Kernel<AddTimes>] = &[
    #[cfg(target_arch = "x86_64")]
    Kernel { name: "avx2", isa: Isa::Avx2, supported: super::has_avx2, function: panel_avx2::add_times },
    Kernel { name: "scalar", isa: Isa::Scalar, supported: || true, function: portable::add_times },
];

/// The tile of out += g · w, where g has rows of `n` columns, `stride` apart, the first of which is the tile's first row, and w
/// `n` rows, `k` apart, the first column being the tile's. Sums go through rows of w one by one, so that they do not depend on
/// how many rows g has.
///
/// # Panics
/// If the operands do not reach as far as the tile.
pub fn add_times(g: &[f32], stride: usize, w: &[f32], k: usize, n: usize, tile: &mut Tile<'_>) {
    static CHOSEN: OnceLock<&Kernel<AddTimes>> = OnceLock::new();
    if n == 0 || tile.rows() == 0 || tile.cols() == 0 {
        return;
    }
    assert!((tile.rows() - 1) * stride + n <= g.len(), "g has the tile's rows");
    assert!((n - 1) * k + tile.cols() <= w.len(), "w has the tile's columns");
    // SAFETY: `choose` returns what the processor supports; the lengths were just checked.
    unsafe { (CHOSEN.get_or_init(|| super::choose(ADD_TIMES)).function)(g, stride, w, k, n, tile) }
}

#[cfg(test)]
mod tests;
