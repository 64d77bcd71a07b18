//! The innermost loops, in versions for several instruction sets. Each kind of loop has a table; the best version that this
//! processor has is picked once, at run time.
//!
//! The environment variable `COMPRESS_ISA` (`scalar`, `avx2`, `avx512`) forbids versions above it. It does not reach the
//! f32 matrix product, which the crate `gemm` dispatches itself.
//!
//! Together with the crate `formats`' memory map and the pool of threads, this is the only place with unsafe code; what it
//! exports is safe.

pub mod convert;
pub mod float;
pub mod gemm;
pub mod int8;
pub mod integer;
pub mod roof;
pub mod tiles;
#[cfg(target_arch = "x86_64")]
mod transpose;

use std::fmt;
use std::sync::OnceLock;

/// An instruction set; a later one is a superset of an earlier one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// What every processor has.
    Scalar,
    /// AVX2 with FMA and F16C.
    Avx2,
    /// AVX-512 F, BW, VL; VNNI where the processor has it.
    Avx512,
}

impl Isa {
    /// Every instruction set, the least first.
    pub const ALL: [Isa; 3] = [Isa::Scalar, Isa::Avx2, Isa::Avx512];

    /// The name in `COMPRESS_ISA`.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Scalar => "scalar",
            Isa::Avx2 => "avx2",
            Isa::Avx512 => "avx512",
        }
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// `COMPRESS_ISA` has a value that is no instruction set.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("environment variable COMPRESS_ISA is `{0}`; expected scalar, avx2 or avx512")]
pub struct UnknownIsa(pub String);

/// The instruction set that `COMPRESS_ISA` names, if it is set. Kernels take an unknown name for unset; a program checks
/// first.
///
/// # Errors
/// The name is unknown.
pub fn requested() -> Result<Option<Isa>, UnknownIsa> {
    let Some(value) = std::env::var_os("COMPRESS_ISA") else { return Ok(None) };
    let value = value.to_string_lossy().into_owned();
    Isa::ALL.into_iter().find(|isa| isa.name() == value).map(Some).ok_or(UnknownIsa(value))
}

/// One version of a loop.
#[derive(Debug)]
pub struct Kernel<F> {
    /// The name in reports.
    pub name: &'static str,
    /// What it needs.
    pub isa: Isa,
    supported: fn() -> bool,
    function: F,
}

impl<F> Kernel<F> {
    /// Whether this processor can run it.
    pub fn is_supported(&self) -> bool {
        (self.supported)()
    }
}

/// The instruction set above which `COMPRESS_ISA` allows none.
fn limit() -> Isa {
    static LIMIT: OnceLock<Isa> = OnceLock::new();
    *LIMIT.get_or_init(|| requested().ok().flatten().unwrap_or(Isa::Avx512))
}

/// The best version of a table (the best first, scalar last) that the processor has and `COMPRESS_ISA` allows.
fn choose<F>(table: &'static [Kernel<F>]) -> &'static Kernel<F> {
    let best = table.iter().find(|kernel| kernel.isa <= limit() && kernel.is_supported());
    best.unwrap_or(&table[table.len() - 1])
}

/// The best instruction set that the processor has and `COMPRESS_ISA` allows.
pub fn isa() -> Isa {
    #[cfg(target_arch = "x86_64")]
    let has = if has_avx512() {
        Isa::Avx512
    } else if has_avx2() {
        Isa::Avx2
    } else {
        Isa::Scalar
    };
    #[cfg(not(target_arch = "x86_64"))]
    let has = Isa::Scalar;
    limit().min(has)
}

/// Runs `work` in the best of several versions, one compiled for each instruction set: loops that are inlined into it become
/// those of the instruction set. The order of sums stays, so every version gives the same bits.
#[inline(always)]
pub fn vectorise<R>(work: impl FnOnce() -> R) -> R {
    #[cfg(target_arch = "x86_64")]
    {
        static BEST: OnceLock<Isa> = OnceLock::new();
        match *BEST.get_or_init(isa) {
            // SAFETY: the processor has it.
            Isa::Avx512 => return unsafe { with_avx512(work) },
            // SAFETY: the processor has it.
            Isa::Avx2 => return unsafe { with_avx2(work) },
            Isa::Scalar => {}
        }
    }
    work()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2")]
fn with_avx512<R>(work: impl FnOnce() -> R) -> R {
    work()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn with_avx2<R>(work: impl FnOnce() -> R) -> R {
    work()
}

/// The loops and the version chosen for each, for reports.
pub fn chosen() -> [(&'static str, &'static str); 4] {
    [
        ("int8 rows", int8::kernel().name()),
        ("blocks and packed integers by int8", integer::kernel().name()),
        ("any weights by f32", float::kernel().name()),
        ("f16 to f32", convert::f16_kernel()),
    ]
}

#[cfg(target_arch = "x86_64")]
fn has_avx2() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
}

#[cfg(target_arch = "x86_64")]
fn has_avx512() -> bool {
    has_avx2()
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
}

#[cfg(target_arch = "x86_64")]
fn has_vnni() -> bool {
    has_avx512() && is_x86_feature_detected!("avx512vnni")
}
