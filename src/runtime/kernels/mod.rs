//! The innermost loops, in versions for several instruction sets. Each kind of loop has a table; the best version that this
//! processor has is picked once, at run time.
//!
//! The environment variable `COMPRESS_ISA` (`scalar`, `avx2`, `avx512`) forbids versions above it. It does not reach the
//! f32 matrix product, which the crate `gemm` dispatches itself.
//!
//! Together with `simd` and the crate `formats`' memory map, this is the only place with unsafe code; what it exports is safe.

pub mod float;
pub mod gemm;
pub mod int8;
pub mod roof;
pub mod tiles;

use crate::simd::choose;
pub use crate::simd::{Isa, Kernel, UnknownIsa, convert, isa, requested};
#[cfg(target_arch = "x86_64")]
use crate::simd::{has_avx2, has_avx512, has_vnni};

/// The loops and the version chosen for each, for reports.
pub fn chosen() -> [(&'static str, &'static str); 2] {
    [("int8 dot products", int8::kernel().name()), ("f16 to f32", convert::f16_kernel())]
}
