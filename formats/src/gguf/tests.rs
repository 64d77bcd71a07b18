use std::io::Write;
use std::path::{Path, PathBuf};

use proptest::prelude::*;

use super::*;
use crate::source::{Access, Contents, Data};
use crate::{Dtype, Layout, Limits, Payload, TensorMeta};

fn parse(bytes: &[u8]) -> Result<Contents> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    let [mapped, by_offset] = [Access::Mapped, Access::Read]
        .map(|access| read(Path::new("test.gguf"), &Data::open(file.path(), access).unwrap(), &Limits::default()));
    assert_eq!(outcome(&mapped), outcome(&by_offset));
    mapped
}

/// NaN is not equal to itself; its print is.
fn outcome(result: &Result<Contents>) -> String {
    match result {
        Ok(Contents { tensors, places, metadata, payload, .. }) => {
            format!("{tensors:?} {places:?} {metadata:?} {payload:?}")
        }
        Err(err) => err.to_string(),
    }
}

fn refused(bytes: &[u8]) -> String {
    match parse(bytes) {
        Ok(_) => panic!("accepted"),
        Err(err) => {
            assert_eq!(err.kind(), crate::Kind::Input);
            err.to_string()
        }
    }
}

/// The file of a layout, its tensors filled with ones.
fn file_of(layout: &Layout) -> Vec<u8> {
    let mut bytes = vec![0; layout.bytes as usize];
    for (at, run) in &layout.fixed {
        bytes[*at as usize..][..run.len()].copy_from_slice(run);
    }
    for span in &layout.spans {
        bytes[span.start as usize..span.end as usize].fill(1);
    }
    bytes
}

fn metadata_of(contents: &Contents) -> &Metadata {
    match &contents.payload {
        Payload::Gguf(metadata) => metadata,
        _ => panic!("no metadata"),
    }
}

fn small() -> (Vec<TensorMeta>, Metadata) {
    let tensors = vec![
        TensorMeta::new("matrix.weight", Dtype::Q8_0, [3, 64]),
        TensorMeta::new("vector", Dtype::F32, [5]),
        TensorMeta::new("scalar", Dtype::F16, []),
        TensorMeta::new("nothing", Dtype::F32, [0, 7]),
        TensorMeta::new("experts", Dtype::BF16, [2, 3, 4, 1]),
    ];
    let mut metadata = Metadata::default();
    for (key, value) in [
        ("general.architecture", Value::from("llama")),
        ("u8", Value::U8(1)),
        ("i8", Value::I8(-1)),
        ("u16", Value::U16(2)),
        ("i16", Value::I16(-2)),
        ("u32", Value::U32(3)),
        ("i32", Value::I32(-3)),
        ("f32", Value::F32(0.5)),
        ("bool", Value::Bool(true)),
        ("u64", Value::U64(u64::MAX)),
        ("i64", Value::I64(-4)),
        ("f64", Value::F64(0.25)),
        ("general.alignment", Value::U32(64)),
    ] {
        metadata.push(key, value);
    }
    for (key, array) in [
        ("array.u8", Array::U8(vec![1, 2])),
        ("array.i8", Array::I8(vec![-1, 2])),
        ("array.u16", Array::U16(vec![1, 2])),
        ("array.i16", Array::I16(vec![-1, 2])),
        ("array.u32", Array::U32(vec![1, 2])),
        ("array.i32", Array::I32(vec![-1, 2])),
        ("array.f32", Array::F32(vec![1.5])),
        ("array.bool", Array::Bool(vec![true, false])),
        ("array.string", Array::String(vec!["ö".into(), String::new()])),
        ("array.array", Array::Array(vec![Array::U8(vec![3]), Array::String(vec!["x".into()])])),
        ("array.u64", Array::U64(vec![1])),
        ("array.i64", Array::I64(vec![-1])),
        ("array.f64", Array::F64(vec![])),
    ] {
        metadata.push(key, array);
    }
    (tensors, metadata)
}

fn small_file() -> Vec<u8> {
    let (tensors, metadata) = small();
    file_of(&layout(Path::new("out"), &tensors, &metadata).unwrap())
}

#[test]
fn what_is_written_is_read() {
    let (tensors, metadata) = small();
    let layout = layout(Path::new("out"), &tensors, &metadata).unwrap();
    let contents = parse(&file_of(&layout)).unwrap();
    assert_eq!(contents.tensors, tensors);
    assert_eq!(contents.places, layout.spans);
    assert_eq!(metadata_of(&contents), &metadata);
    assert!(contents.places.iter().all(|place| place.start % 64 == 0));
}

#[test]
fn values_are_found_by_key() {
    let (_, metadata) = small();
    assert_eq!(metadata.get_str("general.architecture"), Some("llama"));
    assert_eq!(metadata.get_str("u8"), None);
    assert_eq!(metadata.get_u64("u16"), Some(2));
    assert_eq!(metadata.get_u64("u64"), Some(u64::MAX));
    assert_eq!(metadata.get_u64("i16"), None);
    assert_eq!(metadata.get_f32("f64"), Some(0.25));
    assert_eq!(metadata.get_bool("bool"), Some(true));
    let mut metadata = metadata;
    metadata.push("u8", 9u8);
    assert_eq!(metadata.entries.last(), Some(&("u8".to_owned(), Value::U8(9))));
    assert_eq!(metadata.entries.iter().filter(|(key, _)| key == "u8").count(), 1);
}

#[test]
fn version_2_is_read() {
    let mut bytes = small_file();
    bytes[4] = 2;
    assert_eq!(parse(&bytes).unwrap().tensors, small().0);
}

/// Cuts a file at every offset, flips every bit and every byte of its header: an error or a reading, never a panic.
#[test]
fn damage_never_panics() {
    let bytes = small_file();
    let header = bytes.len() - 512;
    let end_of_data = parse(&bytes).unwrap().places.last().unwrap().end as usize;
    for cut in 0..bytes.len() {
        let result = parse(&bytes[..cut]);
        assert_eq!(result.is_ok(), cut >= end_of_data, "cut at {cut}");
    }
    for at in 0..header {
        for mask in [0x01, 0x80, 0xff] {
            let mut damaged = bytes.clone();
            damaged[at] ^= mask;
            let _ = parse(&damaged);
        }
    }
}

#[test]
fn absurd_counts_are_refused_before_memory_is_taken() {
    let head = |tensors: u64, entries: u64| {
        let mut bytes = b"GGUF\x03\0\0\0".to_vec();
        bytes.extend(tensors.to_le_bytes());
        bytes.extend(entries.to_le_bytes());
        bytes
    };
    assert!(refused(&head(1 << 63, 0)).contains("at most 1000000"));
    assert!(refused(&head(0, 1 << 63)).contains("at most 16000000"));
    assert!(refused(&head(1000, 0)).contains("cut short"));
    assert!(refused(&head(0, 1000)).contains("cut short"));
    let entry = |tail: &[u8]| {
        let mut bytes = head(0, 1);
        bytes.extend(1u64.to_le_bytes());
        bytes.push(b'k');
        bytes.extend(tail);
        bytes.extend([0; 64]);
        bytes
    };
    for len in [1 << 63, u64::MAX, 1 << 40] {
        let string: Vec<u8> = 8u32.to_le_bytes().into_iter().chain(u64::to_le_bytes(len)).collect();
        assert!(refused(&entry(&string)).contains("`k`"));
        for kind in 0..13u32 {
            let array: Vec<u8> =
                [9, kind].into_iter().flat_map(u32::to_le_bytes).chain(u64::to_le_bytes(len)).collect();
            assert!(refused(&entry(&array)).contains("at most 16000000"));
        }
    }
    let nested: Vec<u8> =
        9u32.to_le_bytes().into_iter().chain((0..100_000).flat_map(|_| [9, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0])).collect();
    assert!(refused(&entry(&nested)).contains("nested"));
}

/// Small items in the file, large ones in memory: the limit is on what they take in memory.
#[test]
fn memory_is_bounded_by_the_limit() {
    let mut metadata = Metadata::default();
    metadata.push("k", Array::String(vec![String::new(); 1000]));
    let bytes = file_of(&layout(Path::new("out"), &[], &metadata).unwrap());
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&bytes).unwrap();
    let data = Data::open(file.path(), Access::Mapped).unwrap();
    let limits = Limits { header_bytes: 20_000, ..Limits::default() };
    let err = read(Path::new("x"), &data, &limits).map(drop).unwrap_err().to_string();
    assert!(err.contains("too much memory"), "{err}");
}

/// Replaces the first occurrence of some bytes.
fn replace(bytes: &mut [u8], old: &[u8], new: &[u8]) {
    assert_eq!(old.len(), new.len());
    let at = bytes.windows(old.len()).position(|window| window == old).unwrap();
    bytes[at..at + new.len()].copy_from_slice(new);
}

#[test]
fn messages_say_what_is_wrong() {
    let good = small_file();
    let damaged = |old: &[u8], new: &[u8]| {
        let mut bytes = good.clone();
        replace(&mut bytes, old, new);
        refused(&bytes)
    };
    assert!(refused(&[0; 100]).contains("interrupted before it wrote the header"));
    assert!(refused(b"PK\x03\x04").contains("not in GGUF format"));
    assert!(refused(b"GGUF\0\0\0\x03").contains("big-endian"));
    assert!(refused(b"GGUF\x01\0\0\0").contains("Version 1 was given up"));
    assert!(refused(b"GGUF\x09\0\0\0").contains("GGUF version 9"));
    assert!(damaged(b"array.i64", b"array.f64").contains("`array.f64` twice"));
    assert!(damaged(b"vector", b"scalar").contains("`scalar` twice"));
    let kind = [&b"u8"[..], &0u32.to_le_bytes()].concat();
    assert!(damaged(&kind, b"u8\x0d\0\0\0").contains("value type 13"));
    let dtype = |id: u8| [&b"vector\x01\0\0\0\x05\0\0\0\0\0\0\0"[..], &[id, 0, 0, 0]].concat();
    assert!(damaged(&dtype(0), &dtype(77)).contains("tensor `vector`: found ggml type 77"));
    assert!(damaged(&dtype(0), &dtype(31)).contains("gave this type up"));
    assert!(damaged(&dtype(0), &dtype(8)).contains("a multiple of 32, the block of Q8_0"));
    let alignment = |v: u32| [&b"general.alignment"[..], &4u32.to_le_bytes(), &v.to_le_bytes()].concat();
    for bad in [0, 3, 65] {
        assert!(damaged(&alignment(64), &alignment(bad)).contains("a power of two"));
    }
    assert!(damaged(&alignment(64), &alignment(32)).contains("right behind"));
    assert!(damaged(b"bool\x07\0\0\0\x01", b"bool\x07\0\0\0\x02").contains("truth value 2"));
    assert!(damaged("ö".as_bytes(), b"\xff\xff").contains("UTF-8"));
    let shape = |a: u64, b: u64| [&b"matrix.weight\x02\0\0\0"[..], &a.to_le_bytes(), &b.to_le_bytes()].concat();
    assert!(damaged(&shape(64, 3), &shape(1 << 40, 1 << 40)).contains("2^63 elements"));
    assert!(damaged(&shape(64, 3), &shape(1 << 50, 1 << 8)).contains("cut short"));
    let long = |text: &str, len: usize| [&(len as u64).to_le_bytes()[..], text.repeat(len).as_bytes()].concat();
    let head =
        |tensors: u64, entries: u64| [b"GGUF\x03\0\0\0", &tensors.to_le_bytes()[..], &entries.to_le_bytes()].concat();
    assert!(refused(&[head(1, 0), long("x", 64), vec![0; 32]].concat()).contains("a tensor name of 64 bytes"));
    assert!(refused(&[head(0, 1), long("x", 65536), vec![0; 32]].concat()).contains("a metadata key of 65536 bytes"));
    assert!(refused(&[&good[..], &[0]].concat()).contains("1 bytes behind the last tensor"));
}

#[test]
fn what_ggml_cannot_read_is_not_written() {
    let none = Metadata::default();
    let refuse = |meta: TensorMeta| layout(Path::new("out"), &[meta], &none).unwrap_err().to_string();
    assert!(refuse(TensorMeta::new("x".repeat(64), Dtype::F32, [1])).contains("at most 63"));
    assert!(layout(Path::new("out"), &[TensorMeta::new("x".repeat(63), Dtype::F32, [1])], &none).is_ok());
    assert!(refuse(TensorMeta::new("x", Dtype::F32, [1; 5])).contains("at most 4 dimensions"));
    assert!(refuse(TensorMeta::new("x", Dtype::Bool, [1])).contains("BOOL"));
    assert!(refuse(TensorMeta::new("x", Dtype::Q4_K, [256, 128])).contains("256 elements"));
    assert!(refuse(TensorMeta::new("x", Dtype::F32, [1 << 61])).contains("whole blocks"));
    let twice = [TensorMeta::new("x", Dtype::F32, [1]), TensorMeta::new("x", Dtype::F32, [1])];
    assert!(layout(Path::new("out"), &twice, &none).unwrap_err().to_string().contains("twice"));
    let metadata = Metadata { entries: vec![("general.alignment".into(), Value::U32(24))] };
    assert!(layout(Path::new("out"), &[], &metadata).is_err());
    let metadata = Metadata { entries: vec![("k".into(), Value::U32(1)), ("k".into(), Value::U32(2))] };
    assert!(layout(Path::new("out"), &[], &metadata).is_err());
}

/// Files that ggml, llama-quantize and gguf-py wrote, where the checkout has them beside it.
fn golden() -> Vec<PathBuf> {
    let shared = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared");
    let mut files = Vec::new();
    for folder in ["golden-ggml", "golden-wide"] {
        let Ok(entries) = std::fs::read_dir(shared.join(folder)) else { continue };
        for entry in entries {
            let path = entry.unwrap().path();
            files.extend([path.join("reference.gguf"), path]);
        }
    }
    files.retain(|path| path.is_file() && path.extension().is_some_and(|ext| ext == "gguf"));
    files.sort();
    files
}

#[test]
fn laying_out_what_was_read_gives_the_header_that_others_wrote() {
    for path in golden() {
        let data = Data::open(&path, Access::Mapped).unwrap();
        let contents = read(&path, &data, &Limits::default()).unwrap();
        let layout = layout(&path, &contents.tensors, metadata_of(&contents)).unwrap();
        assert_eq!(layout.spans, contents.places, "{}", path.display());
        assert_eq!(layout.bytes, data.len(), "{}", path.display());
        let [(0, header)] = &layout.fixed[..] else { panic!("one run of bytes") };
        let mut original = vec![0; header.len()];
        data.read_at(0, &mut original).unwrap();
        assert!(*header == original, "{}", path.display());
    }
}

fn array() -> impl Strategy<Value = Array> {
    prop_oneof![
        prop::collection::vec(any::<u8>(), 0..9).prop_map(Array::U8),
        prop::collection::vec(any::<i16>(), 0..9).prop_map(Array::I16),
        prop::collection::vec(any::<i32>(), 0..9).prop_map(Array::I32),
        prop::collection::vec(any::<bool>(), 0..9).prop_map(Array::Bool),
        prop::collection::vec(any::<u64>(), 0..9).prop_map(Array::U64),
        prop::collection::vec(-1e30f64..1e30, 0..9).prop_map(Array::F64),
        prop::collection::vec(any::<String>(), 0..9).prop_map(Array::String),
    ]
}

fn value() -> impl Strategy<Value = Value> {
    prop_oneof![
        any::<u32>().prop_map(Value::U32),
        any::<i64>().prop_map(Value::I64),
        (-1e30f32..1e30).prop_map(Value::F32),
        any::<bool>().prop_map(Value::Bool),
        any::<String>().prop_map(Value::String),
        array().prop_map(Value::Array),
        prop::collection::vec(array(), 0..4).prop_map(|arrays| Value::Array(Array::Array(arrays))),
    ]
}

fn tensor() -> impl Strategy<Value = TensorMeta> {
    let dtype = prop::sample::select(vec![Dtype::F32, Dtype::F16, Dtype::I8, Dtype::Q4_0, Dtype::Q6_K, Dtype::IQ1_M]);
    ("[a-z.]{1,20}", dtype, prop::collection::vec(0u64..4, 1..5)).prop_map(|(name, dtype, mut shape)| {
        *shape.last_mut().unwrap() *= dtype.block_elements();
        TensorMeta { name, dtype, shape }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_file_returns(
        tensors in prop::collection::btree_map("[a-z.]{1,20}", tensor(), 0..6),
        entries in prop::collection::btree_map(any::<String>(), value(), 0..6),
        exponent in 0u32..10,
    ) {
        let tensors: Vec<_> = tensors.into_iter().map(|(name, meta)| TensorMeta { name, ..meta }).collect();
        let mut metadata = Metadata { entries: entries.into_iter().collect() };
        metadata.push("general.alignment", 1u32 << exponent);
        let layout = layout(Path::new("out"), &tensors, &metadata).unwrap();
        let contents = parse(&file_of(&layout)).unwrap();
        prop_assert_eq!(metadata_of(&contents), &metadata);
        prop_assert_eq!(contents.tensors, tensors);
        prop_assert_eq!(contents.places, layout.spans);
    }

    #[test]
    fn any_damage_is_an_error_or_a_reading(edits in prop::collection::vec((0usize..900, any::<u8>()), 1..8), cut in 0usize..2000) {
        let mut bytes = small_file();
        for (at, byte) in edits {
            bytes[at] = byte;
        }
        bytes.truncate(bytes.len().min(cut.max(8)));
        let _ = parse(&bytes);
    }
}
