//! What an ONNX file made from a model of another format is made of: the model's tensors, a graph of its family, and in its
//! metadata what its folder says of it.

use std::collections::HashSet;
use std::path::Path;

use formats::onnx::proto::StringStringEntryProto;
use formats::onnx::{Edit, Model};
use formats::{Format, Layout, TensorMeta};

use super::{Tensors, huggingface, onnx};
use crate::dialect::huggingface::{FILES, key};
use crate::dialect::onnx::{self as dialect, Held};
use crate::dialect::{Unsayable, llama_cpp};
use crate::encoding::Encoding;
use crate::family::table::Expected;
use crate::family::{Architecture, Family};
use crate::loader::Checkpoint;
use crate::recipe::{Error, Plan, Quantized, Recipe, Result};

/// Larger files of a folder are left out; a tokenizer of 250,000 tokens takes some 30 MB.
const MOST_CARRIED: usize = 64 << 20;

fn refuse(checkpoint: &Checkpoint, problem: impl Into<String>, next: impl Into<String>) -> Error {
    Error::Dialect { file: checkpoint.path().to_owned(), target: "ONNX", problem: problem.into(), next: next.into() }
}

fn family(checkpoint: &Checkpoint) -> Result<&Family> {
    checkpoint.family().ok_or_else(|| {
        let why = checkpoint.no_family().unwrap_or("its family is not known");
        refuse(checkpoint, why, "Give a folder with the model's config.json, of a supported family")
    })
}

/// The tensors of a checkpoint under their own names.
///
/// # Errors
/// A family that is not known, for which there is no graph.
pub fn tensors(checkpoint: &Checkpoint) -> Result<Tensors> {
    family(checkpoint)?;
    let (tensors, mut notes) = huggingface::named(checkpoint);
    if let Some(lost) = checkpoint.gguf().map(llama_cpp::left_out).filter(|lost| !lost.is_empty()) {
        notes.push(format!("metadata that ONNX has no place for, left out: {}", lost.join(", ")));
    }
    let behind = huggingface::other_files(checkpoint, &[FILES, &["config.json"]].concat())?;
    if !behind.is_empty() {
        notes.push(format!("files that an ONNX file does not carry, left out: {}", behind.join(", ")));
    }
    for (name, file) in checkpoint.companions().files() {
        if file.bytes()?.len() > MOST_CARRIED {
            notes.push(format!("{name}: too large for an ONNX file to carry; left out"));
        }
    }
    Ok(Tensors { files: vec![String::new()], tensors, notes, ..Tensors::default() })
}

/// What the user should know of the planned steps.
pub fn notes(checkpoint: &Checkpoint, plan: &Plan) -> Vec<String> {
    let mut notes = Vec::new();
    if plan.steps.iter().any(|step| matches!(step.encoding, Encoding::Int8Rows { .. } | Encoding::Fp8Rows { .. })) {
        notes.push("the graph multiplies floats by dequantized weights: it does not quantize activations".to_owned());
    }
    let Some(family) = checkpoint.family() else { return notes };
    let tied = matches!(&family.architecture, Architecture::Transformer(t) if t.tied);
    let is_read = |expected: &&Expected| !(tied && expected.name() == "lm_head.weight");
    let names = family.tensors().iter().filter(is_read).flat_map(|expected| &expected.names);
    let read: HashSet<&str> = names.map(String::as_str).collect();
    let unread = plan.steps.iter().map(|step| step.name.as_str()).filter(|name| !read.contains(name));
    let unread: Vec<&str> = unread.collect();
    if !unread.is_empty() {
        notes.push(format!("tensors that the graph does not read, kept in the file: {}", unread.join(", ")));
    }
    notes
}

/// The layouts of the files.
///
/// # Errors
/// Weights that no operator takes, or a file that is too large.
pub fn layouts(
    checkpoint: &Checkpoint,
    recipe: &Recipe,
    plan: &Plan,
    names: &[String],
    metas: &[Vec<TensorMeta>],
    output: &Path,
) -> Result<Vec<Layout>> {
    let family = family(checkpoint)?;
    let held = plan.steps.iter().map(|step| Held { name: &step.name, encoding: step.encoding, parts: &step.parts });
    let held: Vec<Held<'_>> = held.collect();
    let mut model =
        dialect::model(family, &held).map_err(|Unsayable { problem, next }| refuse(checkpoint, problem, next))?;
    let entry = |(key, value)| StringStringEntryProto { key: Some(key), value: Some(value) };
    model.metadata_props = metadata(checkpoint, family, recipe, plan)?.into_iter().map(entry).collect();
    let outputs = plan.steps.iter().flat_map(|step| &step.outputs);
    let edit = Edit { added: outputs.map(|at| (at.file, at.tensor)).collect(), ..Edit::default() };
    onnx::lay_out(output, &Model::new(&model), &[], (names, metas), &edit)
}

/// What the file says of itself: what a safetensors file of ours does, and what the model's folder does.
fn metadata(checkpoint: &Checkpoint, family: &Family, recipe: &Recipe, plan: &Plan) -> Result<Vec<(String, String)>> {
    let mut all = huggingface::file_metadata(checkpoint, recipe, plan);
    all.remove("format");
    all.insert(dialect::own::FAMILY.to_owned(), family.name.to_owned());
    if let Some(config) = checkpoint.config() {
        let config = match recipe.quantized {
            Quantized::Unpack => huggingface::unpacked(config),
            _ => config.clone(),
        };
        all.insert(key("config.json"), config.to_string());
    }
    for (name, file) in checkpoint.companions().files() {
        let text = file.text()?;
        if text.len() <= MOST_CARRIED {
            all.insert(key(name), text);
        }
    }
    if checkpoint.format() == Format::Gguf
        && let Some(tokenizer) = checkpoint.tokenizer_json().ok().flatten()
    {
        all.insert(key("tokenizer.json"), tokenizer.text()?);
    }
    Ok(all.into_iter().collect())
}
