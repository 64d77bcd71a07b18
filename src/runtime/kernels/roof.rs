//! What a processor can do at most: loops that only read memory, and loops that only multiply. Measured, they are the roof
//! that benchmarks are held against.

use std::fmt;
use std::hint::black_box;
use std::sync::OnceLock;

use super::{Isa, Kernel};

/// Reads all of a buffer and returns a sum that depends on each of its bytes.
type Read = unsafe fn(&[u64]) -> u64;

/// Multiplies and adds in registers so many times over.
#[derive(Debug, Clone, Copy)]
struct Multiply {
    run: unsafe fn(usize),
    /// Multiplications and additions of one time.
    operations: usize,
}

/// The kinds of arithmetic that matrix products are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Arithmetic {
    /// f32, fused multiply and add.
    Float,
    /// bf16 pairs, summed in f32.
    Bfloat16,
    /// 8-bit integers, summed in 32 bits.
    Int8,
}

impl fmt::Display for Arithmetic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Arithmetic::Float => "f32",
            Arithmetic::Bfloat16 => "bf16",
            Arithmetic::Int8 => "int8",
        })
    }
}

static READ: &[Kernel<Read>] = &[
    #[cfg(target_arch = "x86_64")]
    Kernel { name: "avx512", isa: Isa::Avx512, supported: super::has_avx512, function: x86::read_avx512 },
    #[cfg(target_arch = "x86_64")]
    Kernel { name: "avx2", isa: Isa::Avx2, supported: super::has_avx2, function: x86::read_avx2 },
    #[cfg(target_arch = "aarch64")]
    Kernel { name: "neon", isa: Isa::Neon, supported: super::has_neon, function: neon::read },
    Kernel { name: "scalar", isa: Isa::Scalar, supported: || true, function: read_scalar },
];

static FLOAT: &[Kernel<Multiply>] = &[
    #[cfg(target_arch = "x86_64")]
    Kernel { name: "avx512", isa: Isa::Avx512, supported: super::has_avx512, function: x86::FLOAT_AVX512 },
    #[cfg(target_arch = "x86_64")]
    Kernel { name: "avx2 fma", isa: Isa::Avx2, supported: super::has_avx2, function: x86::FLOAT_AVX2 },
    #[cfg(target_arch = "aarch64")]
    Kernel { name: "neon", isa: Isa::Neon, supported: super::has_neon, function: neon::FLOAT },
    Kernel { name: "scalar", isa: Isa::Scalar, supported: || true, function: FLOAT_SCALAR },
];

static INT8: &[Kernel<Multiply>] = &[
    #[cfg(target_arch = "x86_64")]
    Kernel { name: "amx int8", isa: Isa::Amx, supported: super::has_amx, function: x86::INT8_AMX },
    #[cfg(target_arch = "x86_64")]
    Kernel { name: "avx512 vnni", isa: Isa::Avx512, supported: super::has_vnni, function: x86::INT8_VNNI },
    #[cfg(target_arch = "x86_64")]
    Kernel { name: "avx512", isa: Isa::Avx512, supported: super::has_avx512, function: x86::INT8_AVX512 },
    #[cfg(target_arch = "x86_64")]
    Kernel { name: "avx2", isa: Isa::Avx2, supported: super::has_avx2, function: x86::INT8_AVX2 },
    #[cfg(target_arch = "aarch64")]
    Kernel {
        name: "neon dotprod",
        isa: Isa::Neon,
        supported: super::has_dot_product,
        function: neon::INT8_DOT_PRODUCT,
    },
    #[cfg(target_arch = "aarch64")]
    Kernel { name: "neon", isa: Isa::Neon, supported: super::has_neon, function: neon::INT8 },
    Kernel { name: "scalar", isa: Isa::Scalar, supported: || true, function: INT8_SCALAR },
];

static BFLOAT16: &[Kernel<Multiply>] = &[
    #[cfg(target_arch = "x86_64")]
    Kernel { name: "amx bf16", isa: Isa::Amx, supported: super::has_amx, function: x86::BFLOAT16_AMX },
    #[cfg(target_arch = "x86_64")]
    Kernel { name: "avx512 bf16", isa: Isa::Avx512, supported: has_bf16, function: x86::BFLOAT16_AVX512 },
    // Without the instruction, bf16 is widened and multiplied as f32.
    #[cfg(target_arch = "x86_64")]
    Kernel { name: "avx512", isa: Isa::Avx512, supported: super::has_avx512, function: x86::FLOAT_AVX512 },
    #[cfg(target_arch = "x86_64")]
    Kernel { name: "avx2 fma", isa: Isa::Avx2, supported: super::has_avx2, function: x86::FLOAT_AVX2 },
    #[cfg(target_arch = "aarch64")]
    Kernel { name: "neon", isa: Isa::Neon, supported: super::has_neon, function: neon::FLOAT },
    Kernel { name: "scalar", isa: Isa::Scalar, supported: || true, function: FLOAT_SCALAR },
];

#[cfg(target_arch = "x86_64")]
fn has_bf16() -> bool {
    super::has_avx512() && is_x86_feature_detected!("avx512bf16")
}

fn reader() -> &'static Kernel<Read> {
    static CHOSEN: OnceLock<&Kernel<Read>> = OnceLock::new();
    CHOSEN.get_or_init(|| super::choose(READ))
}

/// Reads all of `buffer` as fast as one thread can. The sum is of no use but keeps the reading from being left out.
pub fn read(buffer: &[u64]) -> u64 {
    // SAFETY: `choose` only returns what the processor supports.
    unsafe { (reader().function)(buffer) }
}

impl Arithmetic {
    /// Every kind.
    pub const ALL: [Arithmetic; 3] = [Arithmetic::Float, Arithmetic::Bfloat16, Arithmetic::Int8];

    fn chosen(self) -> &'static Kernel<Multiply> {
        static CHOSEN: [OnceLock<&Kernel<Multiply>>; 3] = [const { OnceLock::new() }; 3];
        let table = match self {
            Arithmetic::Float => FLOAT,
            Arithmetic::Bfloat16 => BFLOAT16,
            Arithmetic::Int8 => INT8,
        };
        CHOSEN[self as usize].get_or_init(|| super::choose(table))
    }

    /// The name of the fastest version that this processor has.
    pub fn kernel(self) -> &'static str {
        self.chosen().name
    }

    /// Multiplies and adds in registers `times` over, on the caller's thread; returns the number of operations, a multiplication
    /// and its addition counted as two.
    pub fn exercise(self, times: usize) -> u64 {
        let Multiply { run, operations } = self.chosen().function;
        // SAFETY: `choose` only returns what the processor supports.
        unsafe { run(times) };
        times as u64 * operations as u64
    }
}

fn read_scalar(buffer: &[u64]) -> u64 {
    let mut sums = [0u64; 8];
    let lines = buffer.chunks_exact(8);
    let rest = lines.remainder().iter().fold(0u64, |sum, x| sum.wrapping_add(*x));
    for line in lines {
        sums.iter_mut().zip(line).for_each(|(sum, x)| *sum = sum.wrapping_add(*x));
    }
    sums.into_iter().fold(rest, u64::wrapping_add)
}

const LANES: usize = 8;

const FLOAT_SCALAR: Multiply = Multiply { run: float_scalar, operations: 2 * LANES };

fn float_scalar(times: usize) {
    let (a, b) = (black_box([0.999f32; LANES]), black_box([1.0f32; LANES]));
    let mut sums = b;
    for _ in 0..times {
        for i in 0..LANES {
            sums[i] = sums[i] * a[i] + b[i];
        }
    }
    black_box(sums);
}

const INT8_SCALAR: Multiply = Multiply { run: int8_scalar, operations: 2 * LANES };

fn int8_scalar(times: usize) {
    let a = black_box([3i8; LANES]);
    let mut sums = [0i32; LANES];
    for time in 0..times {
        let b = time as i8;
        for i in 0..LANES {
            sums[i] = sums[i].wrapping_add(i32::from(a[i]) * i32::from(b));
        }
    }
    black_box(sums);
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;
    use std::hint::black_box;

    use super::Multiply;
    use crate::runtime::kernels::amx::{self, DEPTH, PANEL, ROWS, Tiles};
    use crate::runtime::kernels::avx2::STREAMS;

    /// Sums that do not wait for one another: more than an instruction's latency in cycles times those begun in one.
    const SUMS: usize = 12;

    /// How far ahead memory is asked for, in numbers: 2 KiB.
    const AHEAD: usize = 256;

    #[target_feature(enable = "avx512f")]
    pub(super) fn read_avx512(buffer: &[u64]) -> u64 {
        let mut sums = [_mm512_setzero_si512(); 8];
        let blocks = buffer.chunks_exact(64);
        let rest = super::read_scalar(blocks.remainder());
        for block in blocks {
            for (i, sum) in sums.iter_mut().enumerate() {
                // SAFETY: 64 numbers are in the block, and 8 are read at 8 · i. Prefetching reads nothing, wherever it points.
                unsafe {
                    _mm_prefetch::<_MM_HINT_T0>(block.as_ptr().wrapping_add(8 * i + AHEAD).cast());
                    *sum = _mm512_add_epi64(*sum, _mm512_loadu_si512(block.as_ptr().add(8 * i).cast()));
                }
            }
        }
        sums.into_iter().fold(rest, |all, sum| all.wrapping_add(_mm512_reduce_add_epi64(sum) as u64))
    }

    #[target_feature(enable = "avx2")]
    pub(super) fn read_avx2(buffer: &[u64]) -> u64 {
        let mut sums = [_mm256_setzero_si256(); 8];
        // As the kernels read rows of weights: memory gives more to several readers than to one.
        let (streams, rest) = buffer.split_at(buffer.len() / (STREAMS * 32) * STREAMS * 32);
        let rest = super::read_scalar(rest);
        let length = streams.len() / STREAMS;
        for at in (0..length).step_by(32) {
            for stream in 0..STREAMS {
                let block = &streams[stream * length + at..][..32];
                for (i, sum) in sums.iter_mut().enumerate() {
                    // SAFETY: 32 numbers are in the block, and 4 are read at 4 · i. Prefetching reads nothing, wherever it points.
                    unsafe {
                        if i % 2 == 0 {
                            _mm_prefetch::<_MM_HINT_T0>(block.as_ptr().wrapping_add(4 * i + AHEAD).cast());
                        }
                        *sum = _mm256_add_epi64(*sum, _mm256_loadu_si256(block.as_ptr().add(4 * i).cast()));
                    }
                }
            }
        }
        let mut lanes = [0u64; 4];
        sums.into_iter().fold(rest, |all, sum| {
            // SAFETY: four numbers of eight bytes are written to as many.
            unsafe { _mm256_storeu_si256(lanes.as_mut_ptr().cast(), sum) };
            lanes.iter().fold(all, |all, lane| all.wrapping_add(*lane))
        })
    }

    pub(super) const FLOAT_AVX512: Multiply = Multiply { run: float_avx512, operations: 2 * 16 * SUMS };

    #[target_feature(enable = "avx512f")]
    fn float_avx512(times: usize) {
        let (a, b) = (_mm512_set1_ps(black_box(0.999)), _mm512_set1_ps(black_box(1.0)));
        let mut sums = black_box([b; SUMS]);
        for _ in 0..times {
            for sum in &mut sums {
                *sum = _mm512_fmadd_ps(*sum, a, b);
            }
        }
        black_box(sums);
    }

    pub(super) const FLOAT_AVX2: Multiply = Multiply { run: float_avx2, operations: 2 * 8 * SUMS };

    #[target_feature(enable = "avx2,fma")]
    fn float_avx2(times: usize) {
        let (a, b) = (_mm256_set1_ps(black_box(0.999)), _mm256_set1_ps(black_box(1.0)));
        let mut sums = black_box([b; SUMS]);
        for _ in 0..times {
            for sum in &mut sums {
                *sum = _mm256_fmadd_ps(*sum, a, b);
            }
        }
        black_box(sums);
    }

    pub(super) const BFLOAT16_AVX512: Multiply = Multiply { run: bfloat16_avx512, operations: 2 * 32 * SUMS };

    #[target_feature(enable = "avx512f,avx512bf16")]
    fn bfloat16_avx512(times: usize) {
        let one = _mm512_set1_ps(black_box(1.0));
        let (a, b) = (_mm512_cvtne2ps_pbh(one, one), _mm512_cvtne2ps_pbh(one, one));
        let mut sums = black_box([one; SUMS]);
        for _ in 0..times {
            for sum in &mut sums {
                *sum = _mm512_dpbf16_ps(*sum, a, b);
            }
        }
        black_box(sums);
    }

    pub(super) const INT8_VNNI: Multiply = Multiply { run: int8_vnni, operations: 2 * 64 * SUMS };

    #[target_feature(enable = "avx512f,avx512vnni")]
    fn int8_vnni(times: usize) {
        let (a, b) = (_mm512_set1_epi8(black_box(3)), _mm512_set1_epi8(black_box(-2)));
        let mut sums = black_box([_mm512_setzero_si512(); SUMS]);
        for _ in 0..times {
            for sum in &mut sums {
                *sum = _mm512_dpbusd_epi32(*sum, a, b);
            }
        }
        black_box(sums);
    }

    pub(super) const INT8_AMX: Multiply = Multiply { run: int8_amx, operations: 2 * ROWS * PANEL * 4 * DEPTH };

    /// # Safety
    /// The processor has AMX, and the process may use it.
    unsafe fn int8_amx(times: usize) {
        let mut tiles = Tiles::new(DEPTH);
        // SAFETY: the caller's promise.
        unsafe {
            tiles.shape(ROWS);
            (0..times).for_each(|_| amx::add_int8_again());
        }
    }

    pub(super) const BFLOAT16_AMX: Multiply = Multiply { run: bfloat16_amx, operations: 2 * ROWS * PANEL * 2 * DEPTH };

    /// # Safety
    /// As [`int8_amx`].
    unsafe fn bfloat16_amx(times: usize) {
        let mut tiles = Tiles::new(DEPTH);
        // SAFETY: the caller's promise.
        unsafe {
            tiles.shape(ROWS);
            (0..times).for_each(|_| amx::add_bf16_again());
        }
    }

    pub(super) const INT8_AVX512: Multiply = Multiply { run: int8_avx512, operations: 2 * 32 * SUMS };

    #[target_feature(enable = "avx512f,avx512bw")]
    fn int8_avx512(times: usize) {
        let a = _mm512_set1_epi16(black_box(3));
        let mut sums = black_box([a; SUMS]);
        for _ in 0..times {
            // The product takes the sum, or one product would serve all.
            for sum in &mut sums {
                *sum = _mm512_add_epi32(*sum, _mm512_madd_epi16(*sum, a));
            }
        }
        black_box(sums);
    }

    pub(super) const INT8_AVX2: Multiply = Multiply { run: int8_avx2, operations: 2 * 16 * SUMS };

    #[target_feature(enable = "avx2")]
    fn int8_avx2(times: usize) {
        let a = _mm256_set1_epi16(black_box(3));
        let mut sums = black_box([a; SUMS]);
        for _ in 0..times {
            for sum in &mut sums {
                *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(*sum, a));
            }
        }
        black_box(sums);
    }
}

#[cfg(target_arch = "aarch64")]
mod neon {
    use std::arch::aarch64::*;
    use std::hint::black_box;

    use super::Multiply;
    use crate::runtime::kernels::neon::dot;

    /// Sums that do not wait for one another: four begun in a cycle, of four cycles each.
    const SUMS: usize = 16;

    #[target_feature(enable = "neon")]
    pub(super) fn read(buffer: &[u64]) -> u64 {
        let mut sums = [vdupq_n_u64(0); 8];
        let blocks = buffer.chunks_exact(16);
        let rest = super::read_scalar(blocks.remainder());
        for block in blocks {
            for (sum, pair) in sums.iter_mut().zip(block.as_chunks::<2>().0) {
                // SAFETY: two numbers are read.
                *sum = vaddq_u64(*sum, unsafe { vld1q_u64(pair.as_ptr()) });
            }
        }
        sums.into_iter().fold(rest, |all, sum| all.wrapping_add(vaddvq_u64(sum)))
    }

    pub(super) const FLOAT: Multiply = Multiply { run: float, operations: 2 * 4 * SUMS };

    #[target_feature(enable = "neon")]
    fn float(times: usize) {
        let (a, b) = (vdupq_n_f32(black_box(0.999)), vdupq_n_f32(black_box(1.0)));
        let mut sums = black_box([b; SUMS]);
        for _ in 0..times {
            for sum in &mut sums {
                *sum = vfmaq_f32(*sum, a, b);
            }
        }
        black_box(sums);
    }

    pub(super) const INT8_DOT_PRODUCT: Multiply = Multiply { run: int8::<true>, operations: 2 * 16 * SUMS };

    pub(super) const INT8: Multiply = Multiply { run: int8::<false>, operations: 2 * 16 * SUMS };

    /// # Safety
    /// The processor has NEON, and the dot product if PRODUCT says so.
    unsafe fn int8<const PRODUCT: bool>(times: usize) {
        // SAFETY: the caller's promise.
        unsafe {
            let a = vdupq_n_s8(black_box(3));
            let mut sums = black_box([vdupq_n_s32(0); SUMS]);
            for _ in 0..times {
                // The product takes the sum, or one product would serve all.
                for sum in &mut sums {
                    *sum = dot::<PRODUCT>(*sum, vreinterpretq_s8_s32(*sum), a);
                }
            }
            black_box(sums);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_version_reads_all_of_a_buffer() {
        let buffer: Vec<u64> = (0..1003u64).map(|i| i.wrapping_mul(0x9e37_79b9_7f4a_7c15)).collect();
        for kernel in READ.iter().filter(|kernel| kernel.is_supported()) {
            for len in [0, 1, 7, 8, 31, 32, 63, 64, 65, 1003] {
                let expected = buffer[..len].iter().fold(0u64, |sum, x| sum.wrapping_add(*x));
                // SAFETY: supported.
                assert_eq!(unsafe { (kernel.function)(&buffer[..len]) }, expected, "{} {len}", kernel.name);
            }
        }
        assert_eq!(read(&buffer[..3]), buffer[0].wrapping_add(buffer[1]).wrapping_add(buffer[2]));
    }

    #[test]
    fn every_version_multiplies_as_often_as_it_is_told() {
        for (table, least) in [(FLOAT, 16), (BFLOAT16, 16), (INT8, 16)] {
            for kernel in table.iter().filter(|kernel| kernel.is_supported()) {
                let Multiply { run, operations } = kernel.function;
                // As many operations of each.
                let seconds = |size: u32| {
                    let times = (1usize << size).div_ceil(operations);
                    let mut all: Vec<f64> = (0..5)
                        .map(|_| {
                            let start = std::time::Instant::now();
                            // SAFETY: supported.
                            unsafe { run(times) };
                            start.elapsed().as_secs_f64()
                        })
                        .collect();
                    all.sort_by(f64::total_cmp);
                    all[0]
                };
                assert!(operations >= least);
                // A loop that was optimised away takes no longer for being longer.
                assert!(seconds(27) > 8.0 * seconds(19), "{}", kernel.name);
            }
        }
        assert_eq!(Arithmetic::Int8.exercise(0), 0);
        assert!(Arithmetic::ALL.iter().all(|kind| kind.exercise(3) >= 48));
    }
}
