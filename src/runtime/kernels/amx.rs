//! Tiles: eight registers of 16 lines of 64 bytes. Four hold the sums of up to 32 rows of x and 32 rows of weights, two the rows
//! of x, two those of weights, as a panel has them: words of neighbouring columns, [k / 4][32][4] of int8 or [k / 2][32][2] of
//! bf16.
//!
//! The compiler knows nothing of tiles and never touches them, so that what they hold stays from one function of this file to
//! the next.

use std::arch::asm;

/// Rows of weights in a panel.
pub const PANEL: usize = 32;

/// Rows of x that are multiplied at a time, in two tiles.
pub const ROWS: usize = 32;

/// Words of a row of x in a tile.
pub const DEPTH: usize = 16;

/// A line of a tile, or of what tiles are loaded from.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub struct Line(pub [u8; 64]);

/// The bytes of lines.
pub fn bytes_of(lines: &mut [Line]) -> &mut [u8] {
    // SAFETY: a line is 64 bytes without padding, any of which are a line.
    unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), 64 * lines.len()) }
}

/// Sums that left their tiles: for each row of x, one for each row of weights.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub struct Sums<T>(pub [[T; PANEL]; ROWS]);

/// What LDTILECFG reads.
#[repr(C, align(64))]
struct Shapes {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    line_bytes: [u16; 16],
    lines: [u8; 16],
}

/// The shapes of this thread's tiles. They are given back when this is dropped, so that there is nothing to keep when threads
/// are switched.
pub struct Tiles {
    rows: usize,
    depth: usize,
}

impl Tiles {
    /// Shapes for rows of `depth` words at a time, at most [`DEPTH`].
    pub fn new(depth: usize) -> Self {
        Self { rows: 0, depth: depth.min(DEPTH) }
    }

    /// Makes the tiles' shapes those for so many rows of x, at most [`ROWS`]. What tiles hold is lost.
    ///
    /// # Safety
    /// The processor has AMX, and the process may use it.
    pub unsafe fn shape(&mut self, rows: usize) {
        if rows == self.rows {
            return;
        }
        self.rows = rows;
        let mut shapes = Shapes { palette: 1, start_row: 0, reserved: [0; 14], line_bytes: [0; 16], lines: [0; 16] };
        let half = ROWS / 2;
        let (first, second) = (rows.min(half), rows.min(ROWS).saturating_sub(half));
        let mut set = |tile: usize, lines: usize, words: usize| {
            if lines > 0 {
                (shapes.lines[tile], shapes.line_bytes[tile]) = (lines as u8, 4 * words as u16);
            }
        };
        for side in 0..2 {
            set(side, first, 16);
            set(2 + side, second, 16);
            set(4 + side, if side == 0 { first } else { second }, self.depth);
            set(6 + side, self.depth, 16);
        }
        // SAFETY: 64 bytes are read; the shapes are within those of palette 1.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &shapes, options(nostack, readonly)) };
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        if self.rows > 0 {
            // SAFETY: there is AMX, since shapes were set.
            unsafe { asm!("tilerelease", options(nostack, nomem)) };
        }
    }
}

/// Sets the sums to zero.
///
/// # Safety
/// Tiles have shapes, those of the second 16 rows too if TWO.
#[inline(always)]
pub unsafe fn zero<const TWO: bool>() {
    // SAFETY: the caller's promise.
    unsafe {
        asm!("tilezero tmm0", "tilezero tmm1", options(nostack, nomem));
        if TWO {
            asm!("tilezero tmm2", "tilezero tmm3", options(nostack, nomem));
        }
    }
}

/// Writes the sums to `out`, or to the rows of it that the tiles' shapes have.
///
/// # Safety
/// As [`zero`].
#[inline(always)]
pub unsafe fn store<T, const TWO: bool>(out: &mut Sums<T>) {
    const { assert!(size_of::<T>() == 4) };
    let out = out.0.as_mut_ptr();
    // SAFETY: the caller's promise; 32 rows of 128 bytes.
    unsafe {
        asm!(
            "tilestored [{out} + {step}], tmm0",
            "tilestored [{out} + {step} + 64], tmm1",
            out = in(reg) out, step = in(reg) 4 * PANEL, options(nostack),
        );
        if TWO {
            asm!(
                "tilestored [{out} + {step}], tmm2",
                "tilestored [{out} + {step} + 64], tmm3",
                out = in(reg) out.add(ROWS / 2), step = in(reg) 4 * PANEL, options(nostack),
            );
        }
    }
}

macro_rules! product {
    ($(#[$doc:meta])* $name:ident, $again:ident, $instruction:literal) => {
        $(#[$doc])*
        ///
        /// # Safety
        /// As [`zero`]; there are as many words as the tiles' shapes have at each row of x, and as many lines of a panel.
        #[inline(always)]
        pub unsafe fn $name<const TWO: bool>(x: [*const u8; 2], stride: usize, panel: *const u8) {
            // SAFETY: the caller's promise.
            unsafe {
                asm!(
                    "tileloadd tmm6, [{panel} + {step}]",
                    "tileloadd tmm4, [{x} + {stride}]",
                    concat!($instruction, " tmm0, tmm4, tmm6"),
                    "tileloadd tmm7, [{panel} + {step} + 64]",
                    concat!($instruction, " tmm1, tmm4, tmm7"),
                    panel = in(reg) panel, step = in(reg) 4 * PANEL, x = in(reg) x[0], stride = in(reg) stride,
                    options(nostack, readonly),
                );
                if TWO {
                    asm!(
                        "tileloadd tmm5, [{x} + {stride}]",
                        concat!($instruction, " tmm2, tmm5, tmm6"),
                        concat!($instruction, " tmm3, tmm5, tmm7"),
                        x = in(reg) x[1], stride = in(reg) stride, options(nostack, readonly),
                    );
                }
            }
        }

        /// The same of what the tiles hold, without loading.
        ///
        /// # Safety
        /// Tiles have the shapes for 32 rows.
        #[inline(always)]
        pub unsafe fn $again() {
            // SAFETY: the caller's promise.
            unsafe {
                asm!(
                    concat!($instruction, " tmm0, tmm4, tmm6"),
                    concat!($instruction, " tmm1, tmm4, tmm7"),
                    concat!($instruction, " tmm2, tmm5, tmm6"),
                    concat!($instruction, " tmm3, tmm5, tmm7"),
                    options(nostack, nomem),
                );
            }
        }
    };
}

product! {
    /// Adds the products of int8 numbers: `x` has the first and the 17th row, `stride` bytes from a row to the next.
    add_int8, add_int8_again, "tdpbssd"
}
product! {
    /// Adds the products of bf16 numbers: `x` has the first and the 17th row, `stride` bytes from a row to the next.
    add_bf16, add_bf16_again, "tdpbf16ps"
}
