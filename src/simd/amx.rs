//! Whether AMX is there: the processor has tiles, the system keeps them when it switches threads, and Linux lets this process
//! use them, which it has to be asked for.

use std::arch::x86_64::{__cpuid_count, _xgetbv};

/// Bits of CPUID's leaf 7, EDX.
const TILES: u32 = 1 << 24 | 1 << 25 | 1 << 22;

/// The configuration of tiles and what they hold, in XCR0.
const STATE: u64 = 1 << 17 | 1 << 18;

/// The processor has tiles, products of int8 and products of bf16, and this process may use them. The processor has AVX-512,
/// and with it the leaf and the register that are read here.
pub(super) fn is_usable() -> bool {
    let features = __cpuid_count(7, 0).edx;
    // SAFETY: a processor with AVX-512 has XGETBV.
    features & TILES == TILES && unsafe { enabled() } & STATE == STATE && permitted()
}

/// The states that the system keeps.
#[target_feature(enable = "xsave")]
fn enabled() -> u64 {
    // SAFETY: register 0 is there where XGETBV is.
    unsafe { _xgetbv(0) }
}

/// Asks Linux, which grows a thread's saved state when it first uses a tile, and only if it was asked before. What was granted
/// holds for all threads of the process.
#[cfg(target_os = "linux")]
fn permitted() -> bool {
    const ARCH_PRCTL: i64 = 158;
    const ARCH_REQ_XCOMP_PERM: i64 = 0x1023;
    const TILE_DATA: i64 = 18;
    let mut found = ARCH_PRCTL;
    // SAFETY: a system call that takes two numbers and reads or writes no memory; a kernel that does not know it says so.
    unsafe {
        std::arch::asm!(
            "syscall",
            inout("rax") found,
            in("rdi") ARCH_REQ_XCOMP_PERM,
            in("rsi") TILE_DATA,
            out("rcx") _,
            out("r11") _,
            options(nostack, nomem),
        );
    }
    found == 0
}

#[cfg(not(target_os = "linux"))]
fn permitted() -> bool {
    false
}
