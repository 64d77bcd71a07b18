//! Plain loops compiled for each instruction set. A [`Simd`] value is the proof that the processor has a set; what runs
//! within [`Simd::run`] is compiled for it, so that the compiler makes its vector instructions of ordinary loops over
//! arrays. Where loops are too intricate for that, [`Lanes`] are sixteen numbers that are sure to lie in registers. Nothing
//! changes but the width: additions keep their order, and products and sums are never fused, since Rust does not contract
//! them. The results are the same bits everywhere.
//!
//! An algorithm is written once, generic over `S: Simd`, as a [`Task`]; [`dispatch`] picks the set at run time. Functions
//! called within `run` must be inlined into it (`#[inline(always)]`) to be compiled for the set.

#[cfg(target_arch = "x86_64")]
mod amx;
pub mod convert;
pub mod lanes;
mod set;

use std::sync::OnceLock;

pub use lanes::{Lanes, Mask};
pub(crate) use set::choose;
pub use set::{Isa, Kernel, UnknownIsa, requested};
#[cfg(target_arch = "x86_64")]
pub(crate) use set::{has_amx, has_avx2, has_avx512, has_vnni};
#[cfg(target_arch = "aarch64")]
pub(crate) use set::{has_dot_product, has_neon};

/// An instruction set that this processor has.
pub trait Simd: Copy + Send + Sync {
    /// Its registers.
    type Lanes: Lanes;

    /// Lanes of these numbers.
    fn load(self, numbers: &[f32; lanes::W]) -> Self::Lanes;

    /// Lanes of one number.
    fn splat(self, x: f32) -> Self::Lanes;

    /// Calls `f`, compiled for the instruction set. `f` itself must be marked `#[inline(always)]`.
    fn run<R>(self, f: impl FnOnce() -> R) -> R;
}

/// What every processor of the target has.
#[derive(Debug, Clone, Copy)]
pub struct Baseline;

impl Simd for Baseline {
    type Lanes = lanes::Array;

    #[inline(always)]
    fn load(self, numbers: &[f32; lanes::W]) -> lanes::Array {
        lanes::Array(*numbers)
    }

    #[inline(always)]
    fn splat(self, x: f32) -> lanes::Array {
        lanes::Array([x; lanes::W])
    }

    #[inline(always)]
    fn run<R>(self, f: impl FnOnce() -> R) -> R {
        f()
    }
}

/// [`Isa::Neon`]
#[cfg(target_arch = "aarch64")]
#[derive(Debug, Clone, Copy)]
pub struct Neon(());

#[cfg(target_arch = "aarch64")]
impl Neon {
    /// `None` where the processor lacks it.
    pub fn new() -> Option<Self> {
        has_neon().then_some(Self(()))
    }
}

#[cfg(target_arch = "aarch64")]
impl Simd for Neon {
    type Lanes = lanes::neon::Registers;

    #[inline(always)]
    fn load(self, numbers: &[f32; lanes::W]) -> Self::Lanes {
        lanes::neon::Registers::load(self, numbers)
    }

    #[inline(always)]
    fn splat(self, x: f32) -> Self::Lanes {
        lanes::neon::Registers::splat(self, x)
    }

    /// Every loop for this target is compiled for NEON.
    #[inline(always)]
    fn run<R>(self, f: impl FnOnce() -> R) -> R {
        f()
    }
}

/// [`Isa::Avx2`]
#[cfg(target_arch = "x86_64")]
#[derive(Debug, Clone, Copy)]
pub struct Avx2(());

#[cfg(target_arch = "x86_64")]
impl Avx2 {
    /// `None` where the processor lacks it.
    pub fn new() -> Option<Self> {
        has_avx2().then_some(Self(()))
    }
}

#[cfg(target_arch = "x86_64")]
impl Simd for Avx2 {
    type Lanes = lanes::avx2::Registers;

    #[inline(always)]
    fn load(self, numbers: &[f32; lanes::W]) -> Self::Lanes {
        lanes::avx2::Registers::load(self, numbers)
    }

    #[inline(always)]
    fn splat(self, x: f32) -> Self::Lanes {
        lanes::avx2::Registers::splat(self, x)
    }

    #[inline(always)]
    fn run<R>(self, f: impl FnOnce() -> R) -> R {
        #[target_feature(enable = "avx2,f16c")]
        fn inner<R>(f: impl FnOnce() -> R) -> R {
            f()
        }
        // SAFETY: there is no `Avx2` unless `new` saw that the processor has these features.
        unsafe { inner(f) }
    }
}

/// [`Isa::Avx512`]
#[cfg(target_arch = "x86_64")]
#[derive(Debug, Clone, Copy)]
pub struct Avx512(());

#[cfg(target_arch = "x86_64")]
impl Avx512 {
    /// `None` where the processor lacks it.
    pub fn new() -> Option<Self> {
        has_avx512().then_some(Self(()))
    }
}

#[cfg(target_arch = "x86_64")]
impl Simd for Avx512 {
    type Lanes = lanes::avx512::Register;

    #[inline(always)]
    fn load(self, numbers: &[f32; lanes::W]) -> Self::Lanes {
        lanes::avx512::Register::load(self, numbers)
    }

    #[inline(always)]
    fn splat(self, x: f32) -> Self::Lanes {
        lanes::avx512::Register::splat(self, x)
    }

    #[inline(always)]
    fn run<R>(self, f: impl FnOnce() -> R) -> R {
        #[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512vl")]
        fn inner<R>(f: impl FnOnce() -> R) -> R {
            f()
        }
        // SAFETY: there is no `Avx512` unless `new` saw that the processor has these features.
        unsafe { inner(f) }
    }
}

/// A piece of work that can be done with any instruction set.
pub trait Task {
    /// What it gives.
    type Output;

    /// Does it.
    fn run<S: Simd>(self, simd: S) -> Self::Output;
}

/// The sets that this processor has, the least first.
pub fn supported() -> impl Iterator<Item = Isa> {
    Isa::ALL.into_iter().filter(|&isa| match isa {
        Isa::Scalar => true,
        #[cfg(target_arch = "aarch64")]
        Isa::Neon => has_neon(),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => has_avx2(),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => has_avx512(),
        #[cfg(target_arch = "x86_64")]
        Isa::Amx => has_amx(),
        #[allow(unreachable_patterns)]
        _ => false,
    })
}

/// The best instruction set that the processor has and `COMPRESS_ISA` allows.
pub fn isa() -> Isa {
    static CHOSEN: OnceLock<Isa> = OnceLock::new();
    let limit = set::limit();
    *CHOSEN.get_or_init(|| supported().filter(|isa| *isa <= limit).last().unwrap_or(Isa::Scalar))
}

/// Does a task with the best set that the processor has and `COMPRESS_ISA` allows.
pub fn dispatch<T: Task>(task: T) -> T::Output {
    on(isa(), task)
}

/// Does a task with a set, or with the next lesser one where the processor lacks it.
pub fn on<T: Task>(isa: Isa, task: T) -> T::Output {
    #[cfg(target_arch = "aarch64")]
    if isa >= Isa::Neon
        && let Some(simd) = Neon::new()
    {
        return task.run(simd);
    }
    #[cfg(target_arch = "x86_64")]
    {
        if isa >= Isa::Avx512
            && let Some(simd) = Avx512::new()
        {
            return task.run(simd);
        }
        if isa >= Isa::Avx2
            && let Some(simd) = Avx2::new()
        {
            return task.run(simd);
        }
    }
    let _ = isa;
    task.run(Baseline)
}
