//! Products of int8 activations with rows of codes that have a scale for each run of 16 or 32: ggml's blocks, and packed
//! integers. A row is expanded, run by run, to one byte a code ([`expand`]), which stays in the first cache; what multiplies
//! it knows no form. Decoding expands each row once for a few rows of x; with many, panels of 32 rows are expanded,
//! transposed to the order in which they are multiplied, and used for all of x.

#[cfg(target_arch = "x86_64")]
mod avx2;
mod expand;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;
#[cfg(target_arch = "x86_64")]
mod x86;

use std::sync::OnceLock;

use super::tiles::Tile;
use super::{Isa, Kernel};
use crate::encoding::Stored;
use crate::runtime::activations::{Int8Runs, Int16Runs, Runs};

pub use expand::Shape;

/// What a version multiplies. Lengths were checked.
struct Operands<'a, T = i8> {
    weights: &'a Stored<'a>,
    shape: Shape,
    x: &'a Runs<T>,
    /// Columns.
    k: usize,
}

/// The tile of x · Wᵀ.
type Product = unsafe fn(&Operands<'_>, &mut Tile<'_>);

static TABLE: &[Kernel<Product>] = &[
    #[cfg(target_arch = "x86_64")]
    Kernel { name: "amx int8", isa: Isa::Amx, supported: super::has_amx, function: x86::amx },
    #[cfg(target_arch = "x86_64")]
    Kernel { name: "avx512 vnni", isa: Isa::Avx512, supported: super::has_vnni, function: x86::avx512_vnni },
    #[cfg(target_arch = "x86_64")]
    Kernel { name: "avx2", isa: Isa::Avx2, supported: super::has_avx2, function: avx2::avx2 },
    #[cfg(target_arch = "aarch64")]
    Kernel {
        name: "neon dotprod",
        isa: Isa::Neon,
        supported: super::has_dot_product,
        function: neon::multiply::<true>,
    },
    #[cfg(target_arch = "aarch64")]
    Kernel { name: "neon", isa: Isa::Neon, supported: super::has_neon, function: neon::multiply::<false> },
    Kernel { name: "scalar", isa: Isa::Scalar, supported: || true, function: portable::scalar },
];

/// A version that this processor can run.
#[derive(Debug, Clone, Copy)]
pub struct RunKernel(&'static Kernel<Product>);

/// The best version.
pub fn kernel() -> RunKernel {
    static CHOSEN: OnceLock<RunKernel> = OnceLock::new();
    *CHOSEN.get_or_init(|| RunKernel(super::choose(TABLE)))
}

/// With fewer rows of x, tiles may have any number of columns; with so many or more, at most [`PANEL`].
pub const FEW: usize = 8;

/// Rows of weights that are multiplied together, with many rows of x.
pub const PANEL: usize = 32;

impl RunKernel {
    /// Every version that this processor can run.
    pub fn supported() -> impl Iterator<Item = RunKernel> {
        TABLE.iter().filter(|kernel| kernel.is_supported()).map(RunKernel)
    }

    /// The name in reports.
    pub fn name(self) -> &'static str {
        self.0.name
    }

    /// A tile of x · Wᵀ.
    ///
    /// # Panics
    /// If the form has no [`Shape`], the tile reaches beyond the operands, or rows are not as long as their form says.
    pub fn multiply(self, weights: &Stored<'_>, x: &Int8Runs, k: usize, tile: &mut Tile<'_>) {
        if let Some(operands) = checked(weights, Shape::of(&weights.form, k), x, k, tile) {
            // SAFETY: a `RunKernel` is only made of a version that the processor supports. Versions take rows of weights by
            // `Stored::row`, which checks its bounds; that weights and x have k columns was just checked.
            unsafe { (self.0.function)(&operands, tile) }
        }
    }
}

/// The operands of a tile of x · Wᵀ, unless it is all zeros, or nothing, and done.
///
/// # Panics
/// As [`RunKernel::multiply`].
fn checked<'a, T>(
    weights: &'a Stored<'a>,
    shape: Option<Shape>,
    x: &'a Runs<T>,
    k: usize,
    tile: &mut Tile<'_>,
) -> Option<Operands<'a, T>> {
    let shape = shape.unwrap_or_else(|| panic!("{:?} is not multiplied as integers", weights.form));
    let rows = x.scales.len() * 32 / k.max(1);
    assert!(k.is_multiple_of(32) && super::float::fits(weights, k), "rows have x's columns");
    assert!(tile.first_row() + tile.rows() <= rows && x.fits(), "x has the tile's rows");
    if k == 0 {
        (0..tile.rows()).for_each(|i| tile.row(i).fill(0.0));
        return None;
    }
    (tile.rows() > 0 && tile.cols() > 0).then_some(Operands { weights, shape, x, k })
}

/// The tile of x · Wᵀ for activations in int16.
type WideProduct = unsafe fn(&Operands<'_, i16>, bool, &mut Tile<'_>);

static WIDE: &[Kernel<WideProduct>] = &[
    #[cfg(target_arch = "x86_64")]
    Kernel { name: "avx2", isa: Isa::Avx2, supported: super::has_avx2, function: avx2::wide },
];

/// A version for activations in int16 that this processor can run.
#[derive(Debug, Clone, Copy)]
pub struct WideKernel(&'static Kernel<WideProduct>);

/// The version for activations in int16, where there is one and it does more products at a time than floating-point ones.
pub fn wide_kernel() -> Option<WideKernel> {
    // Where there are wider floating-point vectors, they are as fast.
    let chosen = kernel();
    WIDE.iter().find(|kernel| kernel.isa == chosen.0.isa && kernel.is_supported()).map(WideKernel)
}

impl WideKernel {
    /// The name in reports.
    pub fn name(self) -> &'static str {
        self.0.name
    }

    /// A tile of x · Wᵀ. In `steps` of a session few rows, of which tiles may have any number of columns, are read as fast as
    /// memory allows; else tiles have at most [`PANEL`] columns, and the order of sums does not depend on how many rows are
    /// multiplied together.
    ///
    /// # Panics
    /// As [`RunKernel::multiply`], the shape being [`Shape::of_integers`].
    pub fn multiply(self, weights: &Stored<'_>, x: &Int16Runs, k: usize, steps: bool, tile: &mut Tile<'_>) {
        if let Some(operands) = checked(weights, Shape::of_integers(&weights.form, k), x, k, tile) {
            // SAFETY: as in `RunKernel::multiply`.
            unsafe { (self.0.function)(&operands, steps, tile) }
        }
    }
}

#[cfg(test)]
mod tests;
