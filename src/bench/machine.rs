//! The machine's roof: how fast it reads memory, and how fast it multiplies.

use std::hint::black_box;
use std::time::Instant;

use serde::Serialize;

use crate::runtime::kernels::roof::{Arithmetic, read};
use crate::runtime::kernels::{self, requested};
use crate::threads::Pool;

/// What was measured of a machine, all threads of a pool together. The best of several times: a roof is what can be reached.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Peaks {
    /// Bytes a second that are read from memory, past all caches.
    pub read: f64,
    /// Operations a second, by [`Arithmetic`].
    operations: [f64; Arithmetic::ALL.len()],
}

/// A machine and its roof.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Machine {
    /// The processor's name, where the system tells.
    pub processor: Option<String>,
    /// Cores that this process may use.
    pub cores: usize,
    /// Threads that computed.
    pub threads: usize,
    /// The instruction set that kernels are chosen from.
    pub isa: &'static str,
    /// 10⁹ bytes a second.
    pub read_bandwidth_gb_s: f64,
    /// 10¹² operations a second in f32.
    pub f32_tflops: f64,
    /// 10¹² operations a second in bf16 with sums in f32.
    pub bf16_tflops: f64,
    /// 10¹² operations a second in int8 with sums in int32.
    pub int8_tops: f64,
    /// The loops and their versions.
    pub kernels: Vec<Loop>,
}

/// A loop of which there are versions for several instruction sets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Loop {
    /// What it does.
    pub name: String,
    /// The version that runs here.
    pub kernel: String,
    /// Why that one.
    pub why: String,
}

/// Passes over the buffer, and tries of each arithmetic.
const TRIES: usize = 4;

/// How long one try of arithmetic takes about.
const SECONDS: f64 = 0.02;

impl Peaks {
    /// Measures them. Takes about a second, and up to a gigabyte of memory.
    pub fn measure(pool: &Pool) -> Self {
        Self::over(buffer_bytes(), pool)
    }

    fn over(buffer: usize, pool: &Pool) -> Self {
        let mut operations = Arithmetic::ALL.map(|arithmetic| operations_per_second(arithmetic, pool));
        // bf16 can always be widened and multiplied as f32.
        let float = operations[Arithmetic::Float as usize];
        let bfloat16 = &mut operations[Arithmetic::Bfloat16 as usize];
        *bfloat16 = bfloat16.max(float);
        Self { read: read_bandwidth(buffer, pool), operations }
    }

    /// Operations a second.
    pub fn operations(&self, arithmetic: Arithmetic) -> f64 {
        self.operations[arithmetic as usize]
    }

    /// The higher of each.
    #[must_use]
    pub fn or_higher(self, other: Self) -> Self {
        Self {
            read: self.read.max(other.read),
            operations: std::array::from_fn(|i| self.operations[i].max(other.operations[i])),
        }
    }
}

impl Machine {
    /// This machine, with the roof that was measured on so many threads.
    pub fn new(peaks: &Peaks, threads: usize) -> Self {
        let tera = |arithmetic| peaks.operations(arithmetic) / 1e12;
        Self {
            processor: processor(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            threads,
            isa: kernels::isa().name(),
            read_bandwidth_gb_s: peaks.read / 1e9,
            f32_tflops: tera(Arithmetic::Float),
            bf16_tflops: tera(Arithmetic::Bfloat16),
            int8_tops: tera(Arithmetic::Int8),
            kernels: loops(),
        }
    }
}

/// The loops of the runtime, and those that measured the roof.
fn loops() -> Vec<Loop> {
    let why = match requested() {
        Ok(Some(limit)) => format!("the best that this processor has and COMPRESS_ISA={limit} allows"),
        _ => "the best that this processor has".to_owned(),
    };
    let chosen = kernels::chosen().into_iter().map(|(name, kernel)| (name.to_owned(), kernel));
    let peaks = Arithmetic::ALL.map(|arithmetic| (format!("the roof of {arithmetic}"), arithmetic.kernel()));
    let all = chosen.chain(peaks).map(|(name, kernel)| {
        let untimed = if kernel.starts_with("amx") { "; tried in an emulator only, and never timed" } else { "" };
        let why = match kernel {
            "the crate gemm" => "it chooses by what the processor has; COMPRESS_ISA does not reach it".to_owned(),
            _ => format!("{why}{untimed}"),
        };
        Loop { name, kernel: kernel.to_owned(), why }
    });
    all.collect()
}

fn read_bandwidth(bytes: usize, pool: &Pool) -> f64 {
    let numbers = bytes / 8;
    let mut buffer = vec![0u64; numbers];
    let part = numbers.div_ceil(pool.threads()).max(1);
    // Pages of nothing but zeros need not exist.
    pool.for_each_chunk(&mut buffer, part, |i, part| part.fill(i as u64 + 1));
    let once = || {
        let start = Instant::now();
        pool.for_each(numbers.div_ceil(part), |i| {
            black_box(read(&buffer[i * part..numbers.min((i + 1) * part)]));
        });
        8.0 * numbers as f64 / start.elapsed().as_secs_f64()
    };
    (0..TRIES).map(|_| once()).fold(0.0, f64::max)
}

/// Four times the last cache, so that little of the buffer is found there; within a quarter of what is free.
fn buffer_bytes() -> usize {
    const LEAST: usize = 256 << 20;
    const MOST: usize = 1 << 30;
    let number = |text: &str| -> Option<usize> {
        let text = text.trim();
        let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
        let unit = if text.ends_with('M') { 1 << 20 } else { 1 << 10 };
        Some(digits.parse::<usize>().ok()? * unit)
    };
    let cache = (0..8)
        .filter_map(|i| std::fs::read_to_string(format!("/sys/devices/system/cpu/cpu0/cache/index{i}/size")).ok())
        .filter_map(|text| number(&text))
        .max();
    let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let free = memory.lines().find_map(|line| number(line.strip_prefix("MemAvailable:")?.trim_end_matches("kB")));
    let wanted = cache.map_or(LEAST, |cache| 4 * cache).clamp(LEAST, MOST);
    free.map_or(wanted, |free| wanted.min(free / 4)).max(1 << 20)
}

fn operations_per_second(arithmetic: Arithmetic, pool: &Pool) -> f64 {
    // As many times as take about so long.
    let mut times = 1 << 10;
    while times < 1 << 40 {
        let start = Instant::now();
        arithmetic.exercise(times);
        let seconds = start.elapsed().as_secs_f64();
        if seconds > SECONDS / 8.0 {
            times = (times as f64 * SECONDS / seconds) as usize + 1;
            break;
        }
        times *= 4;
    }
    let once = || {
        let start = Instant::now();
        let operations: u64 = pool.map(pool.threads(), |_| arithmetic.exercise(times)).into_iter().sum();
        operations as f64 / start.elapsed().as_secs_f64()
    };
    (0..TRIES).map(|_| once()).fold(0.0, f64::max)
}

fn processor() -> Option<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_roof_is_measured() {
        let pool = Pool::new(2);
        let peaks = Peaks::over(16 << 20, &pool);
        assert!(buffer_bytes() >= 1 << 20);
        let machine = Machine::new(&peaks, pool.threads());
        // Between a slow machine of 1995 and the fastest there are.
        assert!((0.01..10_000.0).contains(&machine.read_bandwidth_gb_s), "{machine:?}");
        for tera in [machine.f32_tflops, machine.bf16_tflops, machine.int8_tops] {
            assert!((1e-5..1e4).contains(&tera), "{machine:?}");
        }
        assert!(machine.kernels.iter().any(|kernel| kernel.name == kernels::chosen()[0].0));
        let higher = Peaks { read: 2.0 * peaks.read, ..Peaks::default() };
        let both = peaks.or_higher(higher);
        assert_eq!((both.read, both.operations), (higher.read, peaks.operations));
    }
}
