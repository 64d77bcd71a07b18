//! The grids of the IQ types: which groups of magnitudes exist. They are constants of the format, found once by ggml's
//! author; `grids.bin` holds them as `fixtures/ggml/make.py` took them from the Python package `gguf`.
//!
//! The file is the grids one after the other, in the order below. An entry is a little-endian u16 of indices into the few
//! magnitudes of its grid, the first element lowest: 8 times 2 bits or 4 times 4 bits.

const FILE: &[u8; 2 * (256 + 512 + 1024 + 2048 + 256 + 512)] = include_bytes!("grids.bin");

/// Magnitudes of the 2-bit grids, of the 1-bit one, and of the two 3-bit ones.
const TWO: [i8; 3] = [8, 25, 43];
const ONE: [i8; 3] = [-1, 0, 1];
const THREE_XXS: [i8; 8] = [4, 12, 20, 28, 36, 44, 52, 62];
const THREE_S: [i8; 8] = [1, 3, 5, 7, 9, 11, 13, 15];

pub static IQ2_XXS: [[i8; 8]; 256] = grid(0, 2, &TWO);
pub static IQ2_XS: [[i8; 8]; 512] = grid(256, 2, &TWO);
pub static IQ2_S: [[i8; 8]; 1024] = grid(768, 2, &TWO);
pub static IQ1_S: [[i8; 8]; 2048] = grid(1792, 2, &ONE);
pub static IQ3_XXS: [[i8; 4]; 256] = grid(3840, 4, &THREE_XXS);
pub static IQ3_S: [[i8; 4]; 512] = grid(4096, 4, &THREE_S);

/// The `N` entries from entry `first` on, of `W` indices of `bits` bits.
const fn grid<const W: usize, const N: usize>(first: usize, bits: u32, magnitudes: &[i8]) -> [[i8; W]; N] {
    let mut grid = [[0; W]; N];
    let mut n = 0;
    while n < N {
        let at = 2 * (first + n);
        let mut indices = u16::from_le_bytes([FILE[at], FILE[at + 1]]);
        let mut i = 0;
        while i < W {
            grid[n][i] = magnitudes[(indices & ((1 << bits) - 1)) as usize];
            indices >>= bits;
            i += 1;
        }
        n += 1;
    }
    grid
}
