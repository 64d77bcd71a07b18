//! Encoding a matrix of 64 × 2048 numbers in each form that is written, and unpacking it again, on one thread; in bytes of f32
//! a second.

mod support;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use modelpress::encoding::Rows;
use support::{Encoded, Source, quantizers};

const ROWS: usize = 64;
const COLS: usize = 2048;

fn encode(c: &mut Criterion) {
    let mut group = c.benchmark_group("encode");
    group.sample_size(20).throughput(Throughput::Bytes((4 * ROWS * COLS) as u64));
    let source = Source::new(ROWS, COLS);
    for (name, quantizer) in quantizers() {
        let mut parts = source.buffers(&*quantizer);
        group.bench_function(BenchmarkId::from_parameter(name), |bencher| {
            bencher.iter(|| source.encode(&*quantizer, &mut parts));
        });
    }
    group.finish();
}

fn unpack(c: &mut Criterion) {
    let mut group = c.benchmark_group("unpack");
    group.sample_size(20).throughput(Throughput::Bytes((4 * ROWS * COLS) as u64));
    let mut out = vec![0f32; ROWS * COLS];
    for (name, _) in quantizers() {
        let Some(matrix) = Encoded::new(&name, ROWS, COLS) else { continue };
        group.bench_function(BenchmarkId::from_parameter(name), |bencher| {
            bencher.iter(|| matrix.read(0, &mut out));
        });
    }
    group.finish();
}

criterion_group!(benches, encode, unpack);
criterion_main!(benches);
