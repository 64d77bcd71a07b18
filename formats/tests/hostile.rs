//! The fuzz targets' property on damaged seeds, for some seconds, with a count of the memory that it takes.
//!
//! `MODELPRESS_FUZZ_SECONDS` and `MODELPRESS_FUZZ_SEED` make it longer or another one.

// Helpers of a test are a test too.
#![allow(clippy::unwrap_used)]

#[path = "../fuzz/harness.rs"]
mod harness;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use peak_alloc::PeakAlloc;

#[global_allocator]
static ALLOCATED: PeakAlloc = PeakAlloc;

/// What a damaged file of a few kilobytes may make a reader take.
const MOST_MEGABYTES: f32 = 100.0;

/// xorshift64*: any sequence that looks random serves.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }
}

/// Numbers that counts, lengths, types and offsets are confused by.
const NUMBERS: [u64; 16] =
    [0, 1, 2, 7, 8, 9, 31, 64, 0x7f, 0xffff, 0x7fff_ffff, 0xffff_ffff, 1 << 40, (1 << 63) - 1, 1 << 63, u64::MAX];

/// Words that mean something to one of the formats.
const WORDS: [&str; 20] = [
    "GGUF",
    "general.alignment",
    "general.architecture",
    "\"dtype\":\"F4\"",
    "\"data_offsets\":[0,18446744073709551615]",
    "\"shape\":[4294967296,4294967296]",
    "__metadata__",
    "{",
    "}",
    "[",
    "-1",
    "1e999",
    "PK\u{1}\u{2}",
    "PK\u{3}\u{4}",
    "PK\u{5}\u{6}",
    "'>f4'",
    "True",
    "ctorch._utils\n_rebuild_tensor_v2\n",
    "h\0h\u{1}tu",
    "data.pkl",
];

fn damage(bytes: &mut Vec<u8>, other: &[u8], random: &mut Random) {
    let at = random.below(bytes.len());
    let rest = bytes.len() - at;
    match random.below(9) {
        0 => bytes.truncate(at),
        1 if rest > 0 => bytes[at] ^= 1 << random.below(8),
        2 if rest > 0 => bytes[at] = random.next() as u8,
        3 if rest >= 4 => bytes[at..at + 4].copy_from_slice(&(NUMBERS[random.below(16)] as u32).to_le_bytes()),
        4 if rest >= 8 => bytes[at..at + 8].copy_from_slice(&NUMBERS[random.below(16)].to_le_bytes()),
        5 => {
            let word = WORDS[random.below(WORDS.len())].bytes();
            let end = at + random.below(2) * word.len().min(rest);
            bytes.splice(at..end, word);
        }
        6 => {
            let end = at + random.below(rest.min(64));
            bytes.drain(at..end);
        }
        7 => {
            let copy = bytes[at..at + random.below(rest.min(256))].to_vec();
            let to = random.below(bytes.len());
            bytes.splice(to..to, copy);
        }
        _ => {
            let from = random.below(other.len());
            bytes.truncate(at);
            bytes.extend_from_slice(&other[from..]);
        }
    }
}

fn seeds(format: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(format);
    let mut seeds: Vec<_> = std::fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.clone(), std::fs::read(path).unwrap()))
        .collect();
    seeds.sort();
    seeds
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

/// One test, since what is allocated is counted for the whole process.
#[test]
fn damaged_files_are_refused_or_read_and_take_little_memory() {
    for format in ["gguf", "safetensors", "npz", "pytorch", "onnx"] {
        let seeds = seeds(format);
        assert!(seeds.len() >= 3, "{format} has seeds");
        for (path, bytes) in &seeds {
            let source = modelpress_formats::open(path, Default::default(), &Default::default());
            assert!(source.is_ok(), "{}: {:?}", path.display(), source.err());
            harness::open(bytes);
        }
        let mut random = Random(number("MODELPRESS_FUZZ_SEED", 1) | 1 << 32);
        let end = Instant::now() + Duration::from_secs(number("MODELPRESS_FUZZ_SECONDS", 4));
        let mut runs = 0u64;
        ALLOCATED.reset_peak_usage();
        while Instant::now() < end {
            let mut bytes = seeds[random.below(seeds.len())].1.clone();
            let other = &seeds[random.below(seeds.len())].1;
            for _ in 0..1 + random.below(5) {
                damage(&mut bytes, other, &mut random);
            }
            let survived = catch_unwind(AssertUnwindSafe(|| harness::open(&bytes))).is_ok();
            let peak = ALLOCATED.peak_usage_as_mb();
            if !survived || peak > MOST_MEGABYTES {
                let kept = std::env::temp_dir().join(format!("hostile.{format}"));
                std::fs::write(&kept, &bytes).unwrap();
                panic!("{format}: run {runs}, peak {peak} MB; the file is {}", kept.display());
            }
            runs += 1;
        }
        println!("{format}: {runs} damaged files, at most {:.1} MB allocated", ALLOCATED.peak_usage_as_mb());
        assert!(runs > 100, "{format}: {runs} runs");
    }
}
