use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use formats::gguf::Metadata;
use formats::{Access, Limits, Payload, Source, TensorMeta};
use proptest::prelude::*;
use safetensors::SafeTensors;

use super::mixture::{Choice, FileType, Model, choose};
use super::*;
use crate::encoding::ggml::{Unpack, unpack};
use crate::quantizer::imatrix::Imatrix;
use crate::simd::{self, Isa};

const TYPES: [Dtype; 12] = [
    Dtype::Q8_0,
    Dtype::Q4_0,
    Dtype::Q4_1,
    Dtype::Q5_0,
    Dtype::Q5_1,
    Dtype::Q2_K,
    Dtype::Q3_K,
    Dtype::Q4_K,
    Dtype::Q5_K,
    Dtype::Q6_K,
    Dtype::IQ4_NL,
    Dtype::IQ4_XS,
];

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name)
}

fn open(path: &Path) -> Arc<Source> {
    formats::open(path, Access::Mapped, &Limits::default()).unwrap()
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect()
}

fn bytes_of(dtype: Dtype, elements: usize) -> usize {
    dtype.bytes_of(elements as u64).unwrap() as usize
}

fn quantized(dtype: Dtype, x: &[f32], weights: Option<&[f32]>) -> Vec<u8> {
    let mut out = vec![0xa5; bytes_of(dtype, x.len())];
    quantize_row(dtype, x, weights, &mut out);
    out
}

fn quantized_on(isa: Isa, dtype: Dtype, x: &[f32], weights: Option<&[f32]>) -> Vec<u8> {
    let mut out = vec![0xa5; bytes_of(dtype, x.len())];
    simd::on(isa, QuantizeRow { dtype, row: Row::new(x, weights), out: &mut out });
    out
}

/// Rows and what ggml made of them: fixtures/ggml/make.py.
#[test]
fn blocks_are_those_of_ggml() {
    let file = std::fs::read(fixture("ggml/quantize.safetensors")).unwrap();
    let fixture = SafeTensors::deserialize(&file).unwrap();
    let mut compared = 0;
    for set in ["query", "down", "edge", "short"] {
        let x = fixture.tensor(&format!("{set}.x")).unwrap();
        let (cols, x) = (x.shape()[1], floats(x.data()));
        let w = floats(fixture.tensor(&format!("{set}.w")).unwrap().data());
        for dtype in TYPES {
            for (suffix, weights) in [("", None), (".w", Some(&w[..]))] {
                let Ok(expected) = fixture.tensor(&format!("{set}.{dtype}{suffix}")) else { continue };
                let blocks = expected.data().chunks(bytes_of(dtype, cols));
                for (row, (x, expected)) in x.chunks(cols).zip(blocks).enumerate() {
                    for isa in simd::supported() {
                        let same = quantized_on(isa, dtype, x, weights) == expected;
                        assert!(same, "{set}, {dtype}{suffix}, row {row}, {isa}");
                    }
                    compared += 1;
                }
            }
        }
    }
    assert_eq!(compared, (6 + 3) * (12 + 10) + 8 * 2 * 12 + 8 * 2 * 6);
}

/// llama-quantize's outputs, where the checkout has them beside it.
fn golden() -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/golden-ggml");
    folder.join("nano-f32.gguf").is_file().then_some(folder)
}

fn nano() -> Model<'static> {
    Model { architecture: "llama", layers: 2, heads: 8, kv_heads: 4, experts: 0 }
}

#[test]
fn files_are_those_of_llama_quantize() {
    let Some(folder) = golden() else { return };
    let original = open(&folder.join("nano-f32.gguf"));
    let imatrix = Imatrix::read(&open(&folder.join("nano.imatrix.gguf"))).unwrap();
    let mut files = 0;
    for entry in std::fs::read_dir(&folder).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let Some(name) = name.strip_prefix("nano-").and_then(|name| name.strip_suffix(".gguf")) else { continue };
        let Some((scheme, kind)) = name.split_once('-') else { continue };
        let scheme = match scheme {
            "Q3_K" | "Q4_K" | "Q5_K" => format!("{scheme}_M"),
            _ => scheme.to_owned(),
        };
        let written = open(&folder.join(format!("nano-{name}.gguf")));
        let weighted = kind.ends_with("imatrix");
        let file_type = FileType::from_name(&scheme).unwrap();
        let Payload::Gguf(metadata) = written.payload() else { panic!("GGUF") };
        assert_eq!(metadata.get_u64("general.file_type"), Some(file_type.number().into()), "{name}");
        let choices = choose(file_type, original.tensors(), &nano(), weighted, kind.starts_with("pure"));
        for (i, meta) in original.tensors().iter().enumerate() {
            let at = written.tensors().iter().position(|other| other.name == meta.name).unwrap();
            let dtype = written.tensors()[at].dtype;
            assert_eq!(choices[i], Choice { dtype, instead_of: None }, "{name}: {}", meta.name);
            if dtype == Dtype::F32 {
                assert!(written.bytes(at) == original.bytes(i));
                continue;
            }
            let weights = match weighted {
                true => imatrix.get(meta).unwrap().map(|importance| importance.columns(0)),
                false => None,
            };
            let cols = *meta.shape.last().unwrap() as usize;
            let x = floats(original.bytes(i).unwrap());
            let blocks = written.bytes(at).unwrap().chunks(bytes_of(dtype, cols));
            for (x, expected) in x.chunks(cols).zip(blocks) {
                assert!(quantized(dtype, x, weights) == expected, "{name}: {}", meta.name);
            }
        }
        files += 1;
    }
    assert_eq!(files, 26);
}

fn error(dtype: Dtype, x: &[f32], weights: Option<&[f32]>, blocks: &[u8]) -> Vec<f64> {
    let mut y = vec![0.0; x.len()];
    unpack(dtype, blocks, &mut y);
    let square = |i: usize| weights.map_or(1.0, |w| f64::from(w[i])) * (f64::from(x[i]) - f64::from(y[i])).powi(2);
    let block = dtype.block_elements() as usize;
    let sum = |start: usize| (start..start + block).map(square).sum::<f64>();
    (0..x.len()).step_by(block).map(sum).map(|sum| if sum.is_nan() { f64::INFINITY } else { sum }).collect()
}

/// In no block worse, and in sum better by some percent, on weights of a model and on rows made to be hard.
#[test]
fn the_search_is_never_worse() {
    let file = std::fs::read(fixture("ggml/quantize.safetensors")).unwrap();
    let fixture = SafeTensors::deserialize(&file).unwrap();
    for set in ["query", "down", "edge"] {
        let x = fixture.tensor(&format!("{set}.x")).unwrap();
        let (cols, x) = (x.shape()[1], floats(x.data()));
        let w = floats(fixture.tensor(&format!("{set}.w")).unwrap().data());
        for dtype in TYPES {
            for weights in [None, Some(&w[..])] {
                let (mut before, mut after) = (0.0, 0.0);
                for x in x.chunks(cols) {
                    let plain = error(dtype, x, weights, &quantized(dtype, x, weights));
                    let mut out = vec![0; bytes_of(dtype, cols)];
                    quantize_row_search(dtype, x, weights, &mut out);
                    let searched = error(dtype, x, weights, &out);
                    assert!(plain.iter().zip(&searched).all(|(plain, searched)| searched <= plain), "{set}, {dtype}");
                    before += plain.iter().sum::<f64>();
                    after += searched.iter().sum::<f64>();
                }
                assert!(set == "edge" || after < 0.995 * before, "{set}, {dtype}: {}", after / before);
            }
        }
    }
}

/// Rows that are ordinary and rows that are not: zeros of both signs, one value, one number among zeros, subnormals, the
/// largest and the smallest numbers, ties.
fn hard_rows(cols: usize) -> Vec<Vec<f32>> {
    let mut state = 7u64;
    let mut random = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as u32
    };
    let mut row = |f: &mut dyn FnMut(usize, u32) -> f32| -> Vec<f32> { (0..cols).map(|i| f(i, random())).collect() };
    let unit = |bits: u32| (bits as f32 / (1u64 << 31) as f32 - 0.5) * 2.0;
    let finite = |bits: u32| Some(f32::from_bits(bits << 1)).filter(|x| x.is_finite()).unwrap_or(0.0);
    vec![
        row(&mut |_, bits| unit(bits) * 0.1),
        row(&mut |_, bits| unit(bits).powi(5)),
        row(&mut |i, bits| unit(bits) * [1e-30, 1e30, 1.0, 1e-7][i / 16 % 4]),
        row(&mut |i, _| if i % 3 == 0 { -0.0 } else { 0.0 }),
        row(&mut |i, _| if i / 40 % 2 == 0 { 0.75 } else { -3.0 }),
        row(&mut |i, bits| if i % 37 == 5 { unit(bits) } else { 0.0 }),
        row(&mut |_, bits| f32::from_bits(bits & 0x007f_ffff) * unit(bits).signum()),
        row(&mut |i, bits| if i % 2 == 0 { f32::MAX * unit(bits) } else { f32::MIN_POSITIVE }),
        row(&mut |_, bits| (bits % 33) as f32 * 0.5 - 8.0),
        row(&mut |_, bits| finite(bits)),
        row(&mut |_, bits| 1.0 + unit(bits) * 1e-6),
    ]
}

/// Whatever the instruction set, the same bits: encoding, searching and decoding.
#[test]
fn every_instruction_set_gives_the_same_bytes() {
    let covered: Vec<Isa> = simd::supported().collect();
    println!("block types: covered {covered:?}");
    #[cfg(target_arch = "x86_64")]
    assert_eq!(covered.contains(&Isa::Avx2), is_x86_feature_detected!("avx2") && is_x86_feature_detected!("f16c"));
    #[cfg(target_arch = "aarch64")]
    assert!(covered.contains(&Isa::Neon));
    // Neither all blocks of a group nor all of the last one.
    let cols = 3 * 256;
    let weights: Vec<f32> = (0..cols).map(|i| (i * 31 % 17) as f32 * 0.25).collect();
    for (r, x) in hard_rows(cols).iter().enumerate() {
        for dtype in TYPES {
            for weights in [None, Some(&weights[..])] {
                let expected = quantized_on(Isa::Scalar, dtype, x, weights);
                let mut searched = vec![0; expected.len()];
                simd::on(Isa::Scalar, search::SearchRow { dtype, x, weights, out: &mut searched });
                let mut values = vec![0.0; cols];
                simd::on(Isa::Scalar, Unpack { dtype, bytes: &expected, out: &mut values });
                for &isa in &covered {
                    assert!(quantized_on(isa, dtype, x, weights) == expected, "{dtype}, row {r}, {isa}");
                    let mut out = vec![0; expected.len()];
                    simd::on(isa, search::SearchRow { dtype, x, weights, out: &mut out });
                    assert!(out == searched, "{dtype}, row {r}, {isa}, searched");
                    let mut out = vec![0.0; cols];
                    simd::on(isa, Unpack { dtype, bytes: &expected, out: &mut out });
                    let same =
                        out.iter().zip(&values).all(|(a, b)| a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan()));
                    assert!(same, "{dtype}, row {r}, {isa}, decoded");
                }
            }
        }
    }
}

/// Without weights a block depends on nothing but its numbers, however many are handled at once.
#[test]
fn blocks_do_not_depend_on_their_neighbours() {
    let x: Vec<f32> = (0..11 * 256).map(|i| ((i * 7919 % 1013) as f32 - 500.0) * 1e-3).collect();
    for dtype in TYPES {
        let block = dtype.block_elements() as usize;
        let together = quantized(dtype, &x, None);
        let apart: Vec<u8> = x.chunks(block).flat_map(|x| quantized(dtype, x, None)).collect();
        assert!(together == apart, "{dtype}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn any_finite_row_is_quantized(
        bits in prop::collection::vec(any::<u32>(), 256),
        weights in prop::collection::vec(0f32..1e6, 256),
    ) {
        let x: Vec<f32> = bits.into_iter().map(f32::from_bits).map(|x| if x.is_finite() { x } else { 0.0 }).collect();
        for dtype in TYPES {
            for weights in [None, Some(&weights[..])] {
                let _ = quantized(dtype, &x, weights);
                quantize_row_search(dtype, &x, weights, &mut vec![0; bytes_of(dtype, 256)]);
            }
        }
    }
}

#[test]
fn file_types_have_names_and_numbers() {
    let mut numbers: Vec<u32> = FileType::all().map(FileType::number).collect();
    for file_type in FileType::all() {
        assert_eq!(FileType::from_name(file_type.name()), Some(file_type));
        assert_eq!(FileType::from_name(&file_type.name().to_uppercase()), Some(file_type));
    }
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers.len(), 18);
    assert_eq!((FileType::Q4_K_M.number(), FileType::BF16.dtype()), (15, Dtype::BF16));
}

#[derive(serde::Deserialize)]
struct Known {
    name: String,
    architecture: String,
    head: u64,
    output: bool,
    n_embd: u64,
    n_ff: u64,
    n_layer: u64,
    n_head: u64,
    n_head_kv: u64,
    #[serde(default)]
    n_expert: u64,
    types: BTreeMap<String, BTreeMap<String, Vec<i64>>>,
}

impl Known {
    fn tensors(&self) -> Vec<TensorMeta> {
        let tensor = |name: String, shape: &[u64]| TensorMeta::new(name, Dtype::F32, shape);
        let (embd, ff, head) = (self.n_embd, self.n_ff, self.head);
        let mut tensors = vec![tensor("token_embd.weight".into(), &[1000, embd])];
        if self.output {
            tensors.push(tensor("output.weight".into(), &[1000, embd]));
        }
        for i in 0..self.n_layer {
            let mut add = |name: &str, shape: &[u64]| tensors.push(tensor(format!("blk.{i}.{name}"), shape));
            add("attn_norm.weight", &[embd]);
            add("attn_q.weight", &[self.n_head * head, embd]);
            add("attn_k.weight", &[self.n_head_kv * head, embd]);
            add("attn_v.weight", &[self.n_head_kv * head, embd]);
            add("attn_output.weight", &[embd, self.n_head * head]);
            match self.n_expert {
                0 => {
                    add("ffn_gate.weight", &[ff, embd]);
                    add("ffn_up.weight", &[ff, embd]);
                    add("ffn_down.weight", &[embd, ff]);
                }
                experts => {
                    add("ffn_gate_inp.weight", &[experts, embd]);
                    add("ffn_gate_exps.weight", &[experts, ff, embd]);
                    add("ffn_up_exps.weight", &[experts, ff, embd]);
                    add("ffn_down_exps.weight", &[experts, embd, ff]);
                }
            }
        }
        tensors
    }
}

/// Models whose types llama.cpp's own tests pin: fixtures/ggml/make.py.
#[test]
fn mixtures_are_those_of_llama_cpp() {
    let file = std::fs::read(fixture("ggml/mixtures.json")).unwrap();
    let known: Vec<Known> = serde_json::from_slice(&file).unwrap();
    assert_eq!(known.len(), 5);
    for known in known {
        let (layers, heads, kv_heads, experts) = (known.n_layer, known.n_head, known.n_head_kv, known.n_expert);
        let model = Model { architecture: &known.architecture, layers, heads, kv_heads, experts };
        let tensors = known.tensors();
        assert_eq!(known.types.len(), 18, "{}", known.name);
        for (file_type, exceptions) in &known.types {
            let file_type = FileType::from_name(file_type).unwrap();
            let mut expected = BTreeMap::new();
            for (what, layers) in exceptions {
                let (rest, dtype) = what.split_once(' ').unwrap();
                for layer in layers {
                    let name = if *layer < 0 { rest.to_owned() } else { format!("blk.{layer}.{rest}") };
                    expected.insert(name, Dtype::from_name(dtype).unwrap());
                }
            }
            for (meta, choice) in tensors.iter().zip(choose(file_type, &tensors, &model, false, false)) {
                let kept = meta.shape.len() == 1 || meta.name.contains("gate_inp");
                let most = if kept { Dtype::F32 } else { file_type.dtype() };
                let expected = expected.get(&meta.name).copied().unwrap_or(most);
                assert_eq!(choice.dtype, expected, "{}, {}: {}", known.name, file_type.name(), meta.name);
            }
        }
    }
}

#[test]
fn eight_experts_and_odd_rows_have_rules_of_their_own() {
    let model = Model { architecture: "llama", layers: 32, heads: 32, kv_heads: 8, experts: 8 };
    let one = |file_type, name: &str, shape: &[u64], imatrix| {
        let tensors =
            [TensorMeta::new(name, Dtype::F16, shape), TensorMeta::new("output.weight", Dtype::F16, [8, 256])];
        choose(file_type, &tensors, &model, imatrix, false)[0]
    };
    let plain = |dtype| Choice { dtype, instead_of: None };
    let q4_k_m = FileType::Q4_K_M;
    assert_eq!(one(q4_k_m, "blk.0.attn_v.weight", &[1024, 4096], false), plain(Dtype::Q8_0));
    assert_eq!(one(q4_k_m, "blk.0.attn_k.weight", &[1024, 4096], false), plain(Dtype::Q8_0));
    assert_eq!(one(q4_k_m, "blk.0.attn_output.weight", &[4096, 4096], false), plain(Dtype::Q5_K));
    assert_eq!(one(q4_k_m, "blk.5.ffn_down_exps.weight", &[8, 4096, 14336], false), plain(Dtype::Q4_K));
    assert_eq!(one(q4_k_m, "blk.3.ffn_down_exps.weight", &[8, 4096, 14336], false), plain(Dtype::Q6_K));
    assert_eq!(one(q4_k_m, "blk.0.ffn_gate_inp.weight", &[8, 4096], false), plain(Dtype::F16));
    assert_eq!(one(q4_k_m, "token_embd.weight", &[1000, 4096], false), plain(Dtype::Q4_K));
    assert_eq!(one(FileType::Q4_0, "blk.0.ffn_down_exps.weight", &[8, 4096, 14336], true), plain(Dtype::Q4_1));
    assert_eq!(one(FileType::IQ4_NL, "blk.0.ffn_down_exps.weight", &[8, 4096, 14336], false), plain(Dtype::Q5_K));

    let odd = |file_type, cols| one(file_type, "blk.0.attn_q.weight", &[64, cols], false);
    let instead = |dtype, of| Choice { dtype, instead_of: Some(of) };
    assert_eq!(odd(q4_k_m, 96), instead(Dtype::Q5_0, Dtype::Q4_K));
    assert_eq!(odd(FileType::Q5_K_S, 96), instead(Dtype::Q5_1, Dtype::Q5_K));
    assert_eq!(odd(FileType::Q6_K, 96), instead(Dtype::Q8_0, Dtype::Q6_K));
    assert_eq!(odd(FileType::Q2_K, 96), instead(Dtype::Q4_0, Dtype::Q2_K));
    assert_eq!(odd(FileType::IQ4_XS, 96), instead(Dtype::IQ4_NL, Dtype::IQ4_XS));
    assert_eq!(odd(FileType::Q4_0, 100), instead(Dtype::F16, Dtype::Q4_0));
    assert_eq!(odd(q4_k_m, 100), instead(Dtype::F16, Dtype::Q4_K));
    assert_eq!(one(FileType::F16, "blk.0.attn_q.weight", &[64, 100], false), plain(Dtype::F16));
    assert_eq!(one(q4_k_m, "blk.0.attn_q.weight", &[1, 256], false), plain(Dtype::F16));
    assert_eq!(one(q4_k_m, "blk.0.attn_q.bias", &[64, 256], false), plain(Dtype::F16));
    assert_eq!(one(q4_k_m, "position_embd.weight", &[64, 256], false), plain(Dtype::F16));
}

#[test]
fn an_importance_matrix_is_read() {
    let imatrix = Imatrix::read(&open(&fixture("golden-ggml/nano.imatrix.gguf"))).unwrap();
    assert_eq!((imatrix.len(), imatrix.chunks, imatrix.datasets.len()), (14, 40, 1));
    let file = std::fs::read(fixture("ggml/quantize.safetensors")).unwrap();
    let expected = SafeTensors::deserialize(&file).unwrap();
    for (tensor, set, cols) in [("blk.1.attn_q.weight", "query", 256), ("blk.0.ffn_down.weight", "down", 512)] {
        let importance = imatrix.get(&TensorMeta::new(tensor, Dtype::F32, [64, cols])).unwrap().unwrap();
        assert_eq!(importance.columns(0), floats(expected.tensor(&format!("{set}.w")).unwrap().data()));
    }
    assert_eq!(imatrix.get(&TensorMeta::new("other", Dtype::F32, [64, 256])), Ok(None));
    let err = imatrix.get(&TensorMeta::new("blk.1.attn_q.weight", Dtype::F32, [64, 128])).unwrap_err();
    assert!(err.to_string().contains("found an importance matrix of 256 columns, expected 128"), "{err}");
    let err = Imatrix::read(&open(&fixture("golden-ggml/nano-Q8_0-pure.gguf"))).unwrap_err();
    assert!(err.to_string().contains("llama.cpp's importance matrix"), "{err}");
}

/// An imatrix file of one entry.
fn written(sums: &[f32], counts: &[f32]) -> Result<Imatrix, formats::Error> {
    let tensors = [
        TensorMeta::new(
            "token_embd.weight.in_sum2",
            Dtype::F32,
            [counts.len() as u64, (sums.len() / counts.len()) as u64],
        ),
        TensorMeta::new("token_embd.weight.counts", Dtype::F32, [counts.len() as u64, 1]),
    ];
    let mut metadata = Metadata::default();
    metadata.push("imatrix.chunk_count", 3u32);
    let layout = formats::gguf::layout(Path::new("x"), &tensors, &metadata).unwrap();
    let mut bytes = vec![0; layout.bytes as usize];
    bytes[..layout.fixed[0].1.len()].copy_from_slice(&layout.fixed[0].1);
    for (span, numbers) in layout.spans.iter().zip([sums, counts]) {
        let data: Vec<u8> = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
        bytes[span.start as usize..span.end as usize].copy_from_slice(&data);
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.gguf");
    std::fs::write(&path, bytes).unwrap();
    Imatrix::read(&open(&path))
}

#[test]
fn experts_have_importances_of_their_own() {
    let imatrix = written(&[2.0, 4.0, 6.0, 8.0, 1.0, 1.0], &[2.0, 4.0, 0.0]).unwrap();
    let experts = TensorMeta::new("token_embd.weight", Dtype::F16, [3, 5, 2]);
    let importance = imatrix.get(&experts).unwrap().unwrap();
    assert_eq!([0, 1, 2].map(|expert| importance.columns(expert)), [[1.0, 2.0], [1.5, 2.0], [1.0, 1.0]]);
    let embedding = TensorMeta::new("token_embd.weight", Dtype::F16, [5, 2]);
    assert_eq!(imatrix.get(&embedding), Ok(None));
    assert!(written(&[f32::NAN, 1.0], &[1.0]).unwrap_err().to_string().contains("NaN"));
}
