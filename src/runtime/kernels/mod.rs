//! The innermost loops, in versions for several instruction sets. Each kind of loop has a table; the best version that this
//! processor has is picked once, at run time.
//!
//! The environment variable `COMPRESS_ISA` (`scalar`, `neon`, `avx2`, `avx512`, `amx`) forbids versions above it. It does not reach
//! what the crate `gemm` multiplies, which dispatches itself.
//!
//! Together with `simd`, the pool of threads and the crate `formats`' memory map, this is the only place with unsafe code; what
//! it exports is safe.

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
pub mod float;
pub mod gemm;
pub mod int8;
pub mod integer;
#[cfg(target_arch = "aarch64")]
mod neon;
pub mod roof;
#[cfg(target_arch = "x86_64")]
mod six_avx2;
pub mod tiles;
#[cfg(target_arch = "x86_64")]
mod transpose;

pub use crate::simd::{Isa, Kernel, UnknownIsa, convert, isa, requested};
use crate::simd::{Simd, Task, choose, dispatch};
#[cfg(target_arch = "x86_64")]
use crate::simd::{has_amx, has_avx2, has_avx512, has_vnni};
#[cfg(target_arch = "aarch64")]
use crate::simd::{has_dot_product, has_neon};

/// Runs `work` compiled for the best instruction set: loops that are inlined into it become those of the set. The order of sums
/// stays, so every set gives the same bits.
pub fn vectorise<R>(work: impl FnOnce() -> R) -> R {
    struct Work<F>(F);
    impl<R, F: FnOnce() -> R> Task for Work<F> {
        type Output = R;

        fn run<S: Simd>(self, simd: S) -> R {
            simd.run(self.0)
        }
    }
    dispatch(Work(work))
}

/// The loops and the version chosen for each, for reports.
pub fn chosen() -> [(&'static str, &'static str); 5] {
    [
        ("int8 rows", int8::kernel().name()),
        ("blocks and packed integers by int8", integer::kernel().name()),
        ("any weights by f32", float::kernel().name()),
        ("f16 to f32", convert::f16_kernel()),
        ("f32 matrix products", gemm::kernel()),
    ]
}
