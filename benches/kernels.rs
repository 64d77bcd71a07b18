//! Products of activations with a matrix of 2048 × 2048 in each encoding, on one thread: one row of activations (decoding,
//! in bytes of weights a second) and 256 (prefill, in multiplications and additions a second, two for each weight and row).
//!
//! `COMPRESS_ISA=scalar|neon|avx2|avx512|amx cargo bench --bench kernels` measures another version.

mod support;

use std::sync::Arc;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use modelpress::runtime::{Activations, Scratch, linear};
use modelpress::threads::Pool;
use support::{Encoded, normal};

const ROWS: usize = 2048;
const COLS: usize = 2048;

/// Encodings that have kernels of their own.
const ENCODINGS: [&str; 12] =
    ["f32", "f16", "bf16", "int8", "w8a16", "w4a16", "fp8", "q8_0", "q4_0", "q4_k", "q5_k", "q6_k"];

fn products(c: &mut Criterion) {
    let pool = Pool::new(1);
    for (name, tokens) in [("decode", 1), ("prefill", 256)] {
        let mut group = c.benchmark_group(name);
        group.sample_size(20);
        let x = normal(tokens * COLS);
        let mut out = vec![0f32; tokens * ROWS];
        for encoding in ENCODINGS {
            let matrix = Encoded::new(encoding, ROWS, COLS).expect("an encoding that is written");
            group.throughput(match tokens {
                1 => Throughput::Bytes(matrix.parts.iter().map(|part| part.len() as u64).sum()),
                _ => Throughput::Elements(2 * (tokens * ROWS * COLS) as u64),
            });
            let matrix = linear::from_rows(Arc::new(matrix));
            let scratch = if tokens == 1 { Scratch::for_steps() } else { Scratch::default() };
            let method = matrix.method();
            let kernel = if tokens == 1 { method.one } else { method.many };
            group.bench_function(BenchmarkId::new(encoding, kernel), |bencher| {
                // What rounds the activations is part of it, as in a model.
                bencher.iter(|| matrix.forward(&Activations::new(&x, COLS), &mut out, &scratch, &pool));
            });
        }
        group.finish();
    }
}

criterion_group!(benches, products);
criterion_main!(benches);
