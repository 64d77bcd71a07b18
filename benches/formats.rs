//! Opening files: reading and checking the headers of models that others wrote, mapped.

use std::hint::black_box;
use std::path::Path;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use formats::{Access, Limits};

const FILES: [&str; 5] = [
    "kjv-nano/model.safetensors",
    "golden-ggml/nano-Q8_0-pure.gguf",
    "exchange/numbers.npz",
    "exchange/chain-module.pth",
    "exchange/chain-legacy.pt",
];

fn open(c: &mut Criterion) {
    let mut group = c.benchmark_group("open");
    for file in FILES {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(file);
        group.bench_function(BenchmarkId::from_parameter(file), |bencher| {
            bencher.iter(|| black_box(formats::open(&path, Access::Mapped, &Limits::default()).expect("a good file")));
        });
    }
    group.finish();
}

criterion_group!(benches, open);
criterion_main!(benches);
