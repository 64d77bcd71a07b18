//! Instruction sets: which the processor has, which the user allows, and tables of versions of a loop to choose from.

use std::fmt;
use std::sync::OnceLock;

/// An instruction set; of those that one processor has, a later one is a superset of an earlier one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// What every processor has.
    Scalar,
    /// NEON of 64-bit Arm; its dot product where the processor has it.
    Neon,
    /// AVX2 with FMA and F16C.
    Avx2,
    /// AVX-512 F, BW, VL; VNNI where the processor has it.
    Avx512,
    /// AMX: tiles of int8 and bf16, beside AVX-512 with VNNI and BF16.
    Amx,
}

impl Isa {
    /// Every instruction set, the least first.
    pub const ALL: [Isa; 5] = [Isa::Scalar, Isa::Neon, Isa::Avx2, Isa::Avx512, Isa::Amx];

    /// The name in `COMPRESS_ISA`.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Scalar => "scalar",
            Isa::Neon => "neon",
            Isa::Avx2 => "avx2",
            Isa::Avx512 => "avx512",
            Isa::Amx => "amx",
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
#[error("environment variable COMPRESS_ISA is `{0}`; expected scalar, neon, avx2, avx512 or amx")]
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
    /// Whether this processor has that.
    pub(crate) supported: fn() -> bool,
    /// The loop.
    pub(crate) function: F,
}

impl<F> Kernel<F> {
    /// Whether this processor can run it.
    pub fn is_supported(&self) -> bool {
        (self.supported)()
    }
}

/// What `COMPRESS_ISA` allows at most.
pub(crate) fn limit() -> Isa {
    static LIMIT: OnceLock<Isa> = OnceLock::new();
    *LIMIT.get_or_init(|| requested().ok().flatten().unwrap_or(Isa::Amx))
}

/// The best version of a table (the best first, scalar last) that the processor has and `COMPRESS_ISA` allows.
pub(crate) fn choose<F>(table: &'static [Kernel<F>]) -> &'static Kernel<F> {
    let limit = limit();
    let best = table.iter().find(|kernel| kernel.isa <= limit && kernel.is_supported());
    best.unwrap_or(&table[table.len() - 1])
}

#[cfg(target_arch = "x86_64")]
pub(crate) fn has_avx2() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
}

#[cfg(target_arch = "x86_64")]
pub(crate) fn has_avx512() -> bool {
    has_avx2()
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
}

#[cfg(target_arch = "x86_64")]
pub(crate) fn has_vnni() -> bool {
    has_avx512() && is_x86_feature_detected!("avx512vnni")
}

/// Tiles, beside AVX-512 with VNNI and BF16.
#[cfg(target_arch = "x86_64")]
pub(crate) fn has_amx() -> bool {
    static FOUND: OnceLock<bool> = OnceLock::new();
    *FOUND.get_or_init(|| has_vnni() && is_x86_feature_detected!("avx512bf16") && super::amx::is_usable())
}

/// Little-endian, as everything that the kernels read: in a big-endian register lanes lie the other way round.
#[cfg(target_arch = "aarch64")]
pub(crate) fn has_neon() -> bool {
    cfg!(target_endian = "little") && std::arch::is_aarch64_feature_detected!("neon")
}

#[cfg(target_arch = "aarch64")]
pub(crate) fn has_dot_product() -> bool {
    has_neon() && std::arch::is_aarch64_feature_detected!("dotprod")
}
