//! The seams hold what is to come: plans and views for weights that later encodings and dialects will bring.

use std::io::Read;
use std::sync::Arc;

use formats::{Checksum, Dtype, FilePlan, Layout, Sink};
use modelpress::encoding::{Encoding, Rows};
use modelpress::family::RowOrder;
use modelpress::job::Job;
use modelpress::loader::{Checkpoint, Fetch, Options, Piece};
use modelpress::pipeline::Bands;
use modelpress::recipe::{Decision, Plan, PlannedFile, Recipe, Scheme, Step, Target, Treatment};
use safetensors::Dtype::F32;

use crate::support::{f32s, fixture, write_safetensors};

/// A checkpoint of tensors whose values count from zero.
fn counting(tensors: &[(&str, Vec<usize>)]) -> (tempfile::TempDir, Checkpoint) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.safetensors");
    let list: Vec<_> = tensors
        .iter()
        .map(|(name, shape)| {
            let n: usize = shape.iter().product();
            (*name, F32, shape.clone(), f32s((0..n).map(|i| i as f32)))
        })
        .collect();
    write_safetensors(&path, &list);
    let checkpoint = Checkpoint::open(&path, &Options::default()).unwrap();
    (folder, checkpoint)
}

fn read(checkpoint: &Checkpoint, pieces: &[Piece]) -> (usize, usize, Vec<f32>) {
    let view = checkpoint.view(pieces, Fetch::Now).unwrap();
    let mut all = vec![0.0; view.rows() * view.cols()];
    view.read(0, &mut all);
    // Row by row it is the same.
    for row in 0..view.rows() {
        let mut one = vec![0.0; view.cols()];
        view.read(row, &mut one);
        assert_eq!(one, all[row * view.cols()..][..view.cols()]);
    }
    (view.rows(), view.cols(), all)
}

fn piece(weight: usize, rows: std::ops::Range<u64>) -> Piece {
    Piece { weight, rows, order: RowOrder::Same, transpose: false, shift: 0.0 }
}

#[test]
fn stacked_experts_are_many_weights_in_one_tensor_and_one_of_many() {
    let (_folder, checkpoint) =
        counting(&[("experts.weight", vec![3, 2, 4]), ("x.0.weight", vec![2, 4]), ("x.1.weight", vec![2, 4])]);
    // One expert of a stack.
    let stack = checkpoint.find("experts.weight").unwrap();
    assert_eq!(read(&checkpoint, &[piece(stack, 2..4)]), (2, 4, (8..16).map(|i| i as f32).collect()));
    // A stack of single ones.
    let (a, b) = (checkpoint.find("x.0.weight").unwrap(), checkpoint.find("x.1.weight").unwrap());
    let (rows, cols, values) = read(&checkpoint, &[piece(a, 0..2), piece(b, 0..2)]);
    assert_eq!((rows, cols), (4, 4));
    assert_eq!(values[8..], values[..8]);
    let plan =
        Plan::new(&checkpoint, &Recipe::from_flags(Scheme::Int8, &[], false).unwrap(), Target::Folder, "o".as_ref());
    let plan = plan.unwrap();
    let step = plan.steps.iter().find(|step| step.name == "experts.weight").unwrap();
    assert_eq!((step.rows, step.cols, step.parts[1].shape.as_slice()), (6, 4, &[3, 2, 1][..]));
}

#[test]
fn fused_rows_are_three_weights_of_one_tensor() {
    // phi3: 2 query heads, 1 key and 1 value head of 2 rows each.
    let (_folder, checkpoint) = counting(&[("qkv_proj.weight", vec![8, 3])]);
    let parts = [(0..4, 0.0), (4..6, 12.0), (6..8, 18.0)];
    for (rows, first) in parts {
        let n = rows.end - rows.start;
        let (found, cols, values) = read(&checkpoint, &[piece(0, rows)]);
        assert_eq!((found as u64, cols, values[0]), (n, 3, first));
    }
}

#[test]
fn transposed_weights_are_read_by_their_logical_rows() {
    // gpt2 stores [in, out]; 300 columns are more than one band of the reader.
    let (_folder, checkpoint) = counting(&[("h.0.attn.c_attn.weight", vec![300, 5])]);
    let logical = Piece { transpose: true, ..piece(0, 1..4) };
    let (rows, cols, values) = read(&checkpoint, &[logical]);
    assert_eq!((rows, cols), (3, 300));
    for r in 0..3 {
        for k in 0..300 {
            assert_eq!(values[r * 300 + k], (k * 5 + r + 1) as f32);
        }
    }
}

#[test]
fn shifted_values_and_reordered_rows_combine() {
    let (_folder, checkpoint) = counting(&[("q.weight", vec![8, 1])]);
    let pairs = Piece { order: RowOrder::RopePairs { heads: 2 }, shift: 1.0, ..piece(0, 0..8) };
    assert_eq!(read(&checkpoint, &[pairs]).2, [1.0, 3.0, 2.0, 4.0, 5.0, 7.0, 6.0, 8.0]);
}

#[test]
fn a_tied_head_is_one_tensor_in_two_roles() {
    let checkpoint = Checkpoint::open(&fixture("golden/llama3-rope-tied"), &Options::default()).unwrap();
    assert!(checkpoint.find("lm_head.weight").is_none());
    let recipe = Recipe::from_flags(Scheme::Int8, &[], true).unwrap();
    let plan = Plan::new(&checkpoint, &recipe, Target::Folder, "o".as_ref()).unwrap();
    let embeddings: Vec<&Step> =
        plan.steps.iter().filter(|step| step.name.contains("embed") || step.name.contains("head")).collect();
    assert_eq!(embeddings.len(), 1);
    assert!(embeddings[0].is_quantized());
    let (_, config) = plan.written.iter().find(|(name, _)| name.as_os_str() == "config.json").unwrap();
    let config: serde_json::Value = serde_json::from_slice(config).unwrap();
    assert_eq!(config["quantization_config"]["ignore"], serde_json::json!(["lm_head"]));
    assert_eq!(config["quantization_config"]["config_groups"]["group_1"]["targets"], serde_json::json!(["Embedding"]));
}

/// A plan of one weight in an encoding that nothing writes yet.
fn plan_of(encoding: Encoding, rows: u64, cols: u64) -> Plan {
    let parts = encoding.parts("m.weight", &[rows, cols], rows, cols).unwrap();
    let tensors: Vec<_> =
        parts.iter().map(|part| formats::TensorMeta::new(part.name.clone(), part.dtype, part.shape.clone())).collect();
    let layout = formats::safetensors::layout("o".as_ref(), &tensors, &Default::default()).unwrap();
    let outputs = (0..parts.len()).map(|tensor| modelpress::recipe::Output { file: 0, tensor }).collect();
    let step = Step {
        name: "m.weight".into(),
        role: modelpress::family::Role::Linear,
        pieces: vec![],
        rows,
        cols,
        input: Dtype::F32,
        decision: Decision::default(),
        pruning: None,
        treatment: Treatment::Cast(Dtype::F32),
        chosen: false,
        search: false,
        importance: None,
        encoding,
        parts,
        outputs,
    };
    Plan {
        target: Target::Folder,
        files: vec![PlannedFile { name: "o".into(), tensors, layout }],
        steps: vec![step],
        constants: vec![],
        written: vec![],
        copied: vec![],
        left_out: vec![],
        notes: vec![],
    }
}

#[test]
fn bands_of_tiles_and_of_input_groups_own_every_byte_once() {
    for (encoding, rows, cols, memory) in [
        (Encoding::Fp8Tiles { tile: (128, 128), scale: Dtype::F32 }, 1000, 512, 4 << 20),
        (Encoding::Awq { group: 128 }, 256, 1024, 4 << 20),
        (Encoding::Int8Rows { scale: Dtype::F16 }, 999, 100, 100_000),
        (Encoding::Plain(Dtype::BF16), 77, 96, 10_000),
    ] {
        let plan = plan_of(encoding, rows, cols);
        let mut job = Job::new(1);
        job.memory = memory;
        let bands = Bands::new(&plan, &job).unwrap();
        assert!(bands.len() > 1, "{encoding:?} is cut");
        for (part, meta) in plan.steps[0].parts.iter().zip(&plan.files[0].tensors) {
            let mut end = 0;
            for band in 0..bands.len() {
                let (step, lines) = bands.get(band);
                assert_eq!((step, lines.start % encoding.line_multiple()), (0, 0));
                let bytes = part.bytes_of(&lines);
                assert_eq!(bytes.start, end, "{encoding:?} {}", part.name);
                end = bytes.end;
            }
            assert_eq!(end, meta.bytes().unwrap(), "{encoding:?} {}", part.name);
        }
    }
}

#[test]
fn a_zip_entrys_checksum_is_sealed_when_its_data_are_there() {
    // One stored entry, as a PyTorch file has many: local header, name, data, central directory, its end.
    let (name, data) = (b"data/0", f32s((0..1000).map(|i| i as f32)));
    let mut local = b"PK\x03\x04\x14\x00\x00\x00\x00\x00\x00\x00\x21\x00".to_vec();
    let sizes = |out: &mut Vec<u8>| {
        out.extend([0; 4]);
        out.extend((data.len() as u32).to_le_bytes());
        out.extend((data.len() as u32).to_le_bytes());
        out.extend((name.len() as u16).to_le_bytes());
    };
    let local_crc = local.len() as u64;
    sizes(&mut local);
    local.extend([0, 0]);
    local.extend(name);
    let start = local.len() as u64;
    let end = start + data.len() as u64;
    let mut directory = b"PK\x01\x02\x14\x00\x14\x00\x00\x00\x00\x00\x00\x00\x21\x00".to_vec();
    let directory_crc = end + directory.len() as u64;
    sizes(&mut directory);
    directory.extend([0; 16]);
    directory.extend(name);
    let size = directory.len() as u32;
    directory.extend(b"PK\x05\x06\x00\x00\x00\x00\x01\x00\x01\x00");
    directory.extend(size.to_le_bytes());
    directory.extend((end as u32).to_le_bytes());
    directory.extend([0, 0]);
    let layout = Layout {
        bytes: end + directory.len() as u64,
        fixed: vec![(0, local), (end, directory)],
        spans: std::iter::once(start..end).collect(),
        checksums: vec![Checksum { of: start..end, at: vec![local_crc, directory_crc] }],
    };
    let out = tempfile::tempdir().unwrap();
    let target = out.path().join("x.zip");
    let plan = FilePlan { name: String::new(), layout };
    let mut sink = Sink::create(&target, formats::Shape::File, vec![plan], 0, false).unwrap();
    let sink_ref = Arc::new(&sink);
    sink_ref.write_at(0, 0, 2000, &data[2000..]).unwrap();
    sink_ref.write_at(0, 0, 0, &data[..2000]).unwrap();
    sink.seal().unwrap();
    assert!(!target.exists() && sink.staging().exists());
    sink.publish().unwrap();
    // Another reader checks the sum.
    let mut archive = zip::ZipArchive::new(std::fs::File::open(&target).unwrap()).unwrap();
    let mut found = Vec::new();
    archive.by_name("data/0").unwrap().read_to_end(&mut found).unwrap();
    assert_eq!(found, data);
}
