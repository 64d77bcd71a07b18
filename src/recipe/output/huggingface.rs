//! What a Hugging Face folder or file is made of: safetensors files with the weights' own names, `config.json` with its
//! `quantization_config`, and every other file of the folder.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use formats::{Dtype, Format};
use serde_json::{Value, json};

use super::{Tensor, Tensors, from_gguf, most_values};
use crate::dialect::huggingface::{self as dialect, Class, Form, Module};
use crate::dialect::onnx::own;
use crate::encoding::Encoding;
use crate::family::table::Expected;
use crate::family::{Architecture, Family, Role};
use crate::loader::{Checkpoint, INDEX, Piece, SINGLE};
use crate::recipe::{Error, Plan, Quantized, Recipe, Result, Step, Target};

/// Extensions of weight files, which are not copied beside the compressed weights.
const WEIGHTS: &[&str] =
    &["safetensors", "bin", "pt", "pth", "gguf", "onnx", "onnx_data", "h5", "msgpack", "ot", "tflite", "npz", "ckpt"];

/// Folders that hold the original's weights in other formats, or nothing of the model.
const OTHER_FOLDERS: &[&str] = &["onnx", "openvino", "original", "coreml"];

/// The tensors of a checkpoint under their own names, in the shards in which they are if `folder`, else in one file.
///
/// # Errors
/// A GGUF file of an unknown family that is to become a folder, for which there is no config.
pub fn tensors(checkpoint: &Checkpoint, folder: bool) -> Result<Tensors> {
    let own = checkpoint.files().whole_folder && checkpoint.format() == Format::Safetensors;
    let shards = folder && (own || checkpoint.files().index.is_some());
    let files = if shards {
        checkpoint.files().names.iter().map(|name| as_safetensors(name)).collect()
    } else {
        vec![SINGLE.to_owned()]
    };
    let mut notes = Vec::new();
    if let Some(metadata) = checkpoint.gguf() {
        notes = from_gguf::notes(checkpoint, metadata, folder)?;
    }
    if let (true, Format::Onnx, Some(why)) = (folder, checkpoint.format(), checkpoint.no_family()) {
        return Err(Error::Dialect {
            file: checkpoint.path().to_owned(),
            target: "a Hugging Face folder",
            problem: why.to_owned(),
            next: "Its weights alone can be written as one file: NAME.safetensors".to_owned(),
        });
    }
    let (mut tensors, lost) = named(checkpoint);
    notes.extend(lost);
    for tensor in tensors.iter_mut().filter(|_| shards) {
        tensor.file = checkpoint.weights()[tensor.pieces[0].weight].tensors[0].source;
    }
    Ok(Tensors { files, tensors, notes, ..Tensors::default() })
}

/// The tensors of a checkpoint under their own names, in one file; and which of a GGUF file's have none.
pub fn named(checkpoint: &Checkpoint) -> (Vec<Tensor>, Vec<String>) {
    if let Some(family) = checkpoint.family().filter(|_| checkpoint.format() == Format::Gguf) {
        let (tensors, lost) = from_llama_cpp(checkpoint, family);
        let lost = lost.map(|name| format!("{name}: a {} has no place for it; left out", family.name));
        return (tensors, lost.collect());
    }
    let tensors = checkpoint.weights().iter().enumerate().map(|(i, weight)| Tensor {
        name: weight.name.clone(),
        canonical: weight.name.clone(),
        role: weight.role,
        shape: weight.shape.clone(),
        rows: weight.rows,
        cols: weight.cols,
        pieces: vec![Piece::whole(i, weight)],
        only: None,
        made: None,
        file: 0,
    });
    (tensors.collect(), Vec::new())
}

/// The tensors of a checkpoint in one file of this dialect, whatever it is stored as.
///
/// # Errors
/// As [`tensors`].
pub fn stored(checkpoint: &Checkpoint) -> Result<Vec<Tensor>> {
    Ok(tensors(checkpoint, false)?.tensors)
}

/// What a shard is called as safetensors: `pytorch_model-00001-of-00002.bin` is `model-00001-of-00002.safetensors`.
fn as_safetensors(name: &str) -> String {
    match name.rsplit_once('.') {
        Some((_, "safetensors")) | None => name.to_owned(),
        Some((stem, _)) => format!("{}.safetensors", stem.strip_prefix("pytorch_").unwrap_or(stem)),
    }
}

/// The tensors of a GGUF file as this dialect holds them: experts one by one, and gpt2's matrices by their inputs. Then the
/// names of what the family does not know; the config says what llama.cpp has tensors for (`rope_freqs`).
fn from_llama_cpp<'a>(
    checkpoint: &'a Checkpoint,
    family: &Family,
) -> (Vec<Tensor>, impl Iterator<Item = &'a str> + use<'a>) {
    let mut used = vec![false; checkpoint.weights().len()];
    let tensor = |expected: &Expected| {
        let stack = expected.gguf.as_ref().filter(|place| place.stacked);
        let at = checkpoint.find(stack.map_or(expected.name(), |place| &place.name))?;
        used[at] = true;
        let weight = &checkpoint.weights()[at];
        let mut piece = Piece::whole(at, weight);
        let (mut rows, mut cols) = (weight.rows, weight.cols);
        if expected.transposed {
            (rows, cols) = (cols, rows);
            (piece.rows, piece.transpose) = (0..rows, true);
        } else if let (Some(_), Some(expert)) = (stack, expected.expert) {
            rows = expected.shape[0] as u64;
            piece.rows = expert as u64 * rows..(expert as u64 + 1) * rows;
        }
        Some(Tensor {
            name: expected.name().to_owned(),
            canonical: expected.name().to_owned(),
            role: expected.role,
            shape: expected.shape.iter().map(|&d| d as u64).collect(),
            rows,
            cols,
            pieces: vec![piece],
            only: None,
            made: None,
            file: 0,
        })
    };
    let tensors = family.tensors().iter().filter_map(tensor).collect();
    let names = checkpoint.weights().iter().map(|weight| weight.name.as_str());
    let rest = names.zip(used).filter(|(name, used)| !used && *name != "rope_freqs.weight");
    (tensors, rest.map(|(name, _)| name))
}

/// The string metadata of a written file: what the input's said, the tool's version, the recipe, and how it is quantized.
/// Nothing that depends on time or place.
pub fn file_metadata(checkpoint: &Checkpoint, recipe: &Recipe, plan: &Plan) -> BTreeMap<String, String> {
    let mut metadata = checkpoint.metadata();
    if checkpoint.is_exported() {
        // What is the folder's is in its files again.
        let carried: Vec<String> =
            dialect::FILES.iter().chain(&["config.json"]).map(|name| dialect::key(name)).collect();
        metadata.retain(|key, _| !carried.contains(key) && key != own::FAMILY);
    }
    // transformers refuses files that do not name the framework.
    metadata.entry("format".into()).or_insert_with(|| "pt".into());
    match recipe.quantized {
        Quantized::Refuse => {}
        Quantized::Unpack => {
            metadata.retain(|key, _| !key.starts_with("modelpress."));
            return metadata;
        }
        Quantized::Keep => {
            // A folder has it in its config.
            if let (Target::File(_), Some(kept)) = (plan.target, kept_quantization(checkpoint)) {
                metadata.insert(dialect::QUANTIZATION.into(), kept.to_string());
            }
            return metadata;
        }
    }
    metadata.insert("modelpress.version".into(), env!("CARGO_PKG_VERSION").into());
    metadata.insert("modelpress.recipe".into(), recipe.describe());
    metadata.insert(dialect::RULES.into(), recipe.to_json());
    if let Some(config) = quantization_config(checkpoint, plan) {
        metadata.insert(dialect::QUANTIZATION.into(), config.to_string());
    }
    metadata
}

/// How the input says that its weights are quantized: a single file in its metadata, a folder in its config.
fn kept_quantization(checkpoint: &Checkpoint) -> Option<Value> {
    let own = checkpoint.metadata();
    let own = own.get(dialect::QUANTIZATION).and_then(|text| serde_json::from_str(text).ok());
    own.or_else(|| checkpoint.config()?.get("quantization_config").cloned())
}

/// A config of the same model with its weights unpacked.
pub fn unpacked(config: &Value) -> Value {
    let mut config = config.clone();
    if let Some(fields) = config.as_object_mut() {
        fields.shift_remove("quantization_config");
    }
    config
}

/// Files that belong to a model and may lie beside a single weight file.
const BESIDE: &[&str] = &[
    "added_tokens.json",
    "chat_template.jinja",
    "generation_config.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
];

/// Plans a folder's other files.
pub fn folder(checkpoint: &Checkpoint, recipe: &Recipe, plan: &mut Plan) -> Result<()> {
    if checkpoint.files().index.is_some() && plan.files[0].name != SINGLE || plan.files.len() > 1 {
        plan.written.push((INDEX.into(), pretty(&index(plan))));
    }
    if let Some((_, config)) = &checkpoint.companions().config {
        let config = config_for(config, checkpoint, recipe, plan);
        plan.written.push(("config.json".into(), pretty(&config)));
    }
    if let Some(metadata) = checkpoint.gguf() {
        plan.written.extend(from_gguf::files(checkpoint, metadata)?);
    }
    if checkpoint.is_exported() {
        for (name, file) in checkpoint.companions().files() {
            plan.written.push((name.into(), file.text()?.into_bytes()));
        }
    }
    if !checkpoint.files().whole_folder {
        let beside = BESIDE.iter().map(|name| (PathBuf::from(name), checkpoint.files().folder.join(name)));
        let own = beside.filter(|(_, path)| checkpoint.format() == Format::Safetensors && path.is_file());
        plan.copied.extend(own);
        return Ok(());
    }
    let Others { mut copied, mut left_out } = others(checkpoint)?;
    let planned: Vec<PathBuf> = plan
        .files
        .iter()
        .map(|file| file.name.clone().into())
        .chain(plan.written.iter().map(|(name, _)| name.clone()))
        .collect();
    copied.retain(|(name, _)| !planned.contains(name));
    left_out.retain(|name| !planned.contains(name));
    plan.copied = copied;
    plan.left_out = left_out;
    Ok(())
}

/// Files of an input folder beside its own weight files.
struct Others {
    /// Those that belong to any form of the model: their names, and where they are.
    copied: Vec<(PathBuf, PathBuf)>,
    /// Those that hold its weights in other formats.
    left_out: Vec<PathBuf>,
}

fn others(checkpoint: &Checkpoint) -> Result<Others> {
    let root = &checkpoint.files().folder;
    let modules = module_folders(root);
    let mut copied = Vec::new();
    let mut left_out = Vec::new();
    walk(root, Path::new(""), &mut |name, is_folder| {
        let first =
            name.components().next().map(|part| part.as_os_str().to_string_lossy().into_owned()).unwrap_or_default();
        if is_folder {
            return !first.starts_with('.') && !OTHER_FOLDERS.contains(&first.as_str());
        }
        if first.starts_with(".git") && first != ".gitattributes" {
            return true;
        }
        let of_a_module = modules.contains(&first) && name.components().count() > 1;
        let is_weights = name.extension().and_then(|ext| ext.to_str()).is_some_and(|ext| WEIGHTS.contains(&ext));
        let is_index = name.to_string_lossy().ends_with(".index.json");
        if (is_weights || is_index) && !of_a_module {
            left_out.push(name.to_owned());
        } else {
            copied.push((name.to_owned(), root.join(name)));
        }
        true
    })
    .map_err(|(path, e)| Error::Format(formats::Error::io(&path, "list")(e)))?;
    copied.sort();
    left_out.sort();
    // The input's own weight files are not left out: they are what the output replaces.
    let names = &checkpoint.files().names;
    let index = checkpoint.files().index.as_ref().and_then(|index| index.path.file_name());
    left_out.retain(|name| !names.iter().any(|own| Path::new(own) == name) && index != Some(name.as_os_str()));
    Ok(Others { copied, left_out })
}

/// The names of an input folder's files that are no weights and none of `known`.
pub fn other_files(checkpoint: &Checkpoint, known: &[&str]) -> Result<Vec<String>> {
    if !checkpoint.files().whole_folder {
        return Ok(Vec::new());
    }
    let names = others(checkpoint)?.copied.into_iter().map(|(name, _)| name.to_string_lossy().into_owned());
    Ok(names.filter(|name| !known.contains(&name.as_str()) && name != ".gitattributes").collect())
}

/// Visits files and folders below `root`, following links to files, but no links to folders, which could lead in circles.
fn walk(
    root: &Path,
    below: &Path,
    visit: &mut impl FnMut(&Path, bool) -> bool,
) -> Result<(), (PathBuf, std::io::Error)> {
    let here = root.join(below);
    let fail = |e| (here.clone(), e);
    for entry in fs::read_dir(&here).map_err(fail)? {
        let entry = entry.map_err(fail)?;
        let name = below.join(entry.file_name());
        let kind = entry.file_type().map_err(fail)?;
        if kind.is_dir() {
            if visit(&name, true) {
                walk(root, &name, visit)?;
            }
        } else if entry.path().is_file() {
            visit(&name, false);
        }
    }
    Ok(())
}

/// The folders of a sentence-transformers model's modules, whose weights belong to the model (`2_Dense/`).
fn module_folders(root: &Path) -> Vec<String> {
    let modules: Option<Value> =
        fs::read(root.join("modules.json")).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
    let modules = modules.as_ref().and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let paths = modules.iter().filter_map(|module| module.get("path")?.as_str());
    paths.filter(|path| !path.is_empty()).map(str::to_owned).collect()
}

/// JSON as people read it.
pub fn pretty(value: &Value) -> Vec<u8> {
    let mut text = format!("{value:#}");
    text.push('\n');
    text.into_bytes()
}

/// The index of a sharded model.
fn index(plan: &Plan) -> Value {
    let mut map = BTreeMap::new();
    let mut total = 0;
    for file in &plan.files {
        for tensor in &file.tensors {
            map.insert(tensor.name.clone(), file.name.clone());
            total += tensor.bytes().unwrap_or(0);
        }
    }
    json!({"metadata": {"total_size": total}, "weight_map": map})
}

/// The config with what the plan changes: how the weights are quantized, and the dtype if all of them have a new one.
fn config_for(config: &Value, checkpoint: &Checkpoint, recipe: &Recipe, plan: &Plan) -> Value {
    let mut config = config.clone();
    let Some(fields) = config.as_object_mut() else { return config };
    let quantization = match recipe.quantized {
        Quantized::Refuse => quantization_config(checkpoint, plan),
        Quantized::Keep => kept_quantization(checkpoint),
        Quantized::Unpack => None,
    };
    match quantization {
        Some(quantization) => fields.insert("quantization_config".into(), quantization),
        None => fields.shift_remove("quantization_config"),
    };
    let silent = !fields.contains_key("torch_dtype") && !fields.contains_key("dtype");
    let most = most_values(plan).filter(|_| silent && checkpoint.format() == Format::Gguf);
    if let Some(dtype) = only_dtype(plan).or(most.and_then(torch_name)) {
        let key = if fields.contains_key("torch_dtype") { "torch_dtype" } else { "dtype" };
        fields.insert(key.into(), dtype.into());
    }
    config
}

/// torch's name of the float that all of the output's numbers have, if it is one and not the input's.
fn only_dtype(plan: &Plan) -> Option<&'static str> {
    let mut floats = plan.steps.iter().filter_map(|step| match step.encoding {
        Encoding::Plain(dtype) if dtype.is_float() => Some((dtype, step.input)),
        _ => None,
    });
    let (dtype, _) = floats.next()?;
    let changed = plan.steps.iter().any(|step| step.encoding != Encoding::Plain(step.input));
    let all = plan.steps.iter().all(|step| match step.encoding {
        Encoding::Plain(other) => other == dtype || !other.is_float(),
        _ => false,
    });
    torch_name(dtype).filter(|_| all && changed)
}

/// torch's name of a float.
fn torch_name(dtype: Dtype) -> Option<&'static str> {
    match dtype {
        Dtype::F16 => Some("float16"),
        Dtype::BF16 => Some("bfloat16"),
        Dtype::F32 => Some("float32"),
        _ => None,
    }
}

/// compressed-tensors' description of the output's quantized weights; `None` if it has none.
fn quantization_config(checkpoint: &Checkpoint, plan: &Plan) -> Option<Value> {
    let is_matrix = |step: &&Step| {
        let axes = if matches!(step.encoding, Encoding::Blocked { .. }) { 3 } else { 2 };
        step.name.ends_with(".weight") && step.parts[0].shape.len() == axes
    };
    let modules = plan.steps.iter().filter(is_matrix).filter_map(|step| {
        let class = match step.role {
            Role::Norm | Role::Bias | Role::Other | Role::Conv => return None,
            Role::Embedding => Class::Embedding,
            Role::Linear | Role::Head | Role::Experts | Role::Router => Class::Linear,
        };
        let name = step.name.strip_suffix(".weight")?.to_owned();
        let form = match step.encoding {
            Encoding::Int8Rows { .. } => Some(Form::Int8),
            Encoding::PackedInt { bits, group, .. } | Encoding::Blocked { bits, group, .. } => {
                Some(Form::Packed { bits, group: (group < step.cols).then_some(group) })
            }
            Encoding::Fp8Rows { .. } => Some(Form::Fp8),
            _ => None,
        };
        Some(Module { name, class, form })
    });
    let mut modules: Vec<Module> = modules.collect();
    let tied = checkpoint
        .family()
        .is_some_and(|family| matches!(&family.architecture, Architecture::Transformer(t) if t.causal && t.tied));
    // A tied head is a module of its own with no tensor in the file.
    if tied && checkpoint.find("lm_head.weight").is_none() {
        modules.push(Module { name: "lm_head".to_owned(), class: Class::Linear, form: None });
    }
    dialect::quantization_config(&modules)
}
