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

use std::ops::Range;
use std::sync::OnceLock;

use super::tiles::Tile;
use super::{Isa, Kernel};
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
use crate::encoding::Form;
use crate::encoding::Stored;
use crate::runtime::Activations;
use crate::runtime::activations::Layout;
#[cfg(doc)]
use crate::runtime::activations::SIX;

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
    /// How many rows of x, of so many columns, are wanted.
    layout: fn(&Stored<'_>, usize) -> Layout,
}

static TABLE: &[Kernel<Forms>] = &[
    #[cfg(target_arch = "x86_64")]
    Kernel {
        name: "amx bf16",
        isa: Isa::Amx,
        supported: super::has_amx,
        function: Forms { few: x86::avx512, many: Some(amx::amx), layout: amx::layout },
    },
    #[cfg(target_arch = "x86_64")]
    Kernel {
        name: "avx512",
        isa: Isa::Avx512,
        supported: super::has_avx512,
        function: Forms { few: x86::avx512, many: Some(panel::avx512), layout: |_, _| Layout::Rows },
    },
    #[cfg(target_arch = "x86_64")]
    Kernel {
        name: "avx2",
        isa: Isa::Avx2,
        supported: super::has_avx2,
        function: Forms { few: panel_avx2::avx2, many: None, layout: |_, _| Layout::BySix },
    },
    #[cfg(target_arch = "aarch64")]
    Kernel {
        name: "neon",
        isa: Isa::Neon,
        supported: super::has_neon,
        function: Forms { few: neon::neon, many: None, layout: |_, _| Layout::Rows },
    },
    Kernel {
        name: "scalar",
        isa: Isa::Scalar,
        supported: || true,
        function: Forms { few: portable::scalar, many: None, layout: |_, _| Layout::Rows },
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

    /// How many rows of x, of `k` columns, are wanted.
    pub fn layout(self, weights: &Stored<'_>, k: usize) -> Layout {
        (self.0.function.layout)(weights, k)
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

/// out += g · w, and how g is wanted.
#[derive(Debug, Clone, Copy)]
struct AddTimes {
    layout: Layout,
    function: unsafe fn(&Activations<'_>, Range<usize>, &[f32], usize, &mut Tile<'_>),
}

static ADD_TIMES: &[Kernel<AddTimes>] = &[
    #[cfg(target_arch = "x86_64")]
    Kernel {
        name: "avx2",
        isa: Isa::Avx2,
        supported: super::has_avx2,
        function: AddTimes { layout: Layout::BySix, function: panel_avx2::add_times },
    },
    Kernel {
        name: "scalar",
        isa: Isa::Scalar,
        supported: || true,
        function: AddTimes { layout: Layout::Rows, function: portable::add_times },
    },
];

fn adding() -> AddTimes {
    static CHOSEN: OnceLock<AddTimes> = OnceLock::new();
    *CHOSEN.get_or_init(|| super::choose(ADD_TIMES).function)
}

/// How [`add_times`] wants g.
pub fn add_times_layout() -> Layout {
    adding().layout
}

/// The tile of out += g · w over `columns` of g, of which w has one row each, `stride` apart, the first number being that of the
/// tile's first column. Sums go through rows of w one by one, so that they do not depend on how many rows g has.
///
/// # Panics
/// If the operands do not reach as far as the tile, or the tile begins or ends within a group of [`SIX`] rows of g.
pub fn add_times(g: &Activations<'_>, columns: Range<usize>, w: &[f32], stride: usize, tile: &mut Tile<'_>) {
    if columns.is_empty() || tile.rows() == 0 || tile.cols() == 0 {
        return;
    }
    assert!(tile.first_row() + tile.rows() <= g.rows() && columns.end <= g.cols(), "g has the tile's rows");
    assert!((columns.len() - 1) * stride + tile.cols() <= w.len(), "w has the tile's columns");
    // SAFETY: `choose` returns what the processor supports; the lengths were just checked.
    unsafe { (adding().function)(g, columns, w, stride, tile) }
}

#[cfg(test)]
mod tests;
