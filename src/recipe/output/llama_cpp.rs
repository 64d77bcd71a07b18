//! What a GGUF file for llama.cpp is made of.

use std::collections::HashSet;

use formats::gguf::{Metadata, Value};
use formats::{Dtype, TensorMeta};

use super::{Tensor, Tensors, huggingface, most_values};
use crate::dialect::huggingface::FILES;
use crate::dialect::llama_cpp::{self as dialect, Unsayable, tokenizer};
use crate::family::table::{Expected, Gguf};
use crate::family::{Architecture, Family, Position, Role, Transformer};
use crate::loader::{Checkpoint, Companion, Piece, Pooling, Tokenizer, matrix};
use crate::recipe::plan::numbers;
use crate::recipe::{Error, Plan, Recipe, Result, Step};

/// Files of a folder that repeat what `tokenizer.json` says.
const REPEATED: &[&str] = &["merges.txt", "tokenizer.model", "vocab.json", "vocab.txt"];

fn refuse(checkpoint: &Checkpoint, problem: impl Into<String>, next: impl Into<String>) -> Error {
    Error::Dialect {
        file: checkpoint.path().to_owned(),
        target: "GGUF for llama.cpp",
        problem: problem.into(),
        next: next.into(),
    }
}

fn family(checkpoint: &Checkpoint) -> Result<(&Family, &Transformer, &'static str)> {
    let Some(family) = checkpoint.family() else {
        let why = checkpoint.no_family().unwrap_or("its family is not known");
        return Err(refuse(checkpoint, why, "Give a folder with the model's config.json, of a supported family"));
    };
    match (&family.architecture, family.gguf) {
        (Architecture::Transformer(t), Some(name)) => Ok((family, t, name)),
        _ => Err(refuse(
            checkpoint,
            format!("llama.cpp has no architecture for a {}", family.name),
            "Write safetensors instead: -o NAME.safetensors",
        )),
    }
}

/// The tensors of a checkpoint as llama.cpp names and orders them.
///
/// # Errors
/// A family that llama.cpp does not have, or that is not known; a model that llama.cpp would compute otherwise.
pub fn tensors(checkpoint: &Checkpoint) -> Result<Tensors> {
    let (family, transformer, arch) = family(checkpoint)?;
    let notes = dialect::differences(family, transformer)
        .map_err(|Unsayable { problem, next }| refuse(checkpoint, problem, next))?;
    let mut tensors = Tensors { files: vec![String::new()], notes, ..Tensors::default() };
    let mut used = vec![false; checkpoint.weights().len()];
    let mut done = HashSet::new();
    let members = dialect::tensors(family);
    for expected in family.tensors() {
        let Some(place) = &expected.gguf else { continue };
        if done.insert(&place.name)
            && let Some(tensor) = tensor(checkpoint, place, &members[place.name.as_str()])
        {
            if !dialect::has_place(arch, &place.name) {
                let problem =
                    format!("llama.cpp has no place for {} in a {arch}, and outputs depend on it", tensor.canonical);
                return Err(refuse(checkpoint, problem, "Write safetensors instead: -o NAME.safetensors"));
            }
            numbers(checkpoint, &tensor.pieces)?;
            tensor.pieces.iter().for_each(|piece| used[piece.weight] = true);
            tensors.tensors.push(tensor);
        }
    }
    let rest = checkpoint.weights().iter().zip(used).filter(|(weight, used)| !used && !family.ignores(&weight.name));
    tensors.notes.extend(rest.map(|(weight, _)| format!("{}: llama.cpp has no place for it; left out", weight.name)));
    if checkpoint.companions().pooling.is_some_and(|pooling| pooling.llama_cpp().is_none()) {
        tensors.notes.push("llama.cpp cannot pool as this model does; choose another with its option --pooling".into());
    }
    let behind = huggingface::other_files(checkpoint, &[FILES, REPEATED, &["config.json"]].concat())?;
    if !behind.is_empty() {
        tensors.notes.push(format!("files that GGUF has no key for, left out: {}", behind.join(", ")));
    }
    for (name, factors) in dialect::rope_factors(arch, transformer) {
        let meta = TensorMeta::new(name, Dtype::F32, vec![factors.len() as u64]);
        tensors.constants.push((meta, factors.iter().flat_map(|x| x.to_le_bytes()).collect()));
    }
    Ok(tensors)
}

/// One tensor of llama.cpp's, of whatever pieces the checkpoint has for its slots: experts one by one or stacked, queries,
/// keys and values in one or apart. `None` if it has none.
fn tensor(checkpoint: &Checkpoint, place: &Gguf, members: &[&Expected]) -> Option<Tensor> {
    let first = members[0];
    let mut pieces: Vec<Piece> = Vec::new();
    for expected in members {
        for slot in &expected.pieces {
            for piece in checkpoint.slot(slot.slot, expected.layer, slot.expert, expected.part)? {
                match pieces.last_mut() {
                    // What follows in the same weight is one piece with it.
                    Some(last) if last.weight == piece.weight && last.rows.end == piece.rows.start => {
                        last.rows.end = piece.rows.end;
                    }
                    _ => pieces.push(Piece { order: place.rows, shift: place.value_shift, ..piece.clone() }),
                }
            }
        }
    }
    let mut shape: Vec<u64> = first.shape.iter().map(|&d| d as u64).collect();
    if first.transposed {
        shape.reverse();
    }
    if place.stacked {
        shape.insert(0, members.len() as u64);
    }
    let role = if place.stacked { Role::Experts } else { first.role };
    if !place.stacked {
        shape[0] = pieces.iter().map(|piece| piece.rows.end - piece.rows.start).sum();
    }
    let (rows, cols) = matrix(role, &shape);
    // A stack of experts has no name in the other dialect.
    let canonical = if place.stacked { &place.name } else { &checkpoint.weights()[pieces.first()?.weight].name };
    Some(Tensor {
        name: place.name.clone(),
        canonical: canonical.clone(),
        role,
        rows,
        cols,
        pieces,
        only: dialect::only_dtype(&place.name, shape.len()),
        shape,
        made: None,
        file: 0,
    })
}

/// The metadata of a GGUF file.
///
/// # Errors
/// A tokenizer that llama.cpp does not have, or none at all.
pub fn metadata(checkpoint: &Checkpoint, recipe: &Recipe, plan: &Plan) -> Result<Metadata> {
    let (_, transformer, arch) = family(checkpoint)?;
    let mut all = Metadata::default();
    all.push("general.architecture", Value::String(arch.into()));
    all.push("general.type", Value::String("model".into()));
    all.push("general.name", Value::String(name(checkpoint)));
    dialect::architecture(arch, transformer, checkpoint.config(), &mut all);
    if let Some(pooling) = checkpoint.companions().pooling.and_then(Pooling::llama_cpp) {
        all.push(format!("{arch}.pooling_type"), Value::U32(pooling));
    }
    let file_types: Vec<u32> =
        recipe.schemes().iter().filter_map(|scheme| Some(scheme.file_type()?.number())).collect();
    let file_type = match file_types.as_slice() {
        [one] => *one,
        _ => dialect::file_type(most_values(plan)),
    };
    all.push("general.file_type", Value::U32(file_type));
    all.push("general.quantization_version", Value::U32(2));
    add_tokenizer(checkpoint, transformer.vocab, &mut all)?;
    all.push("modelpress.version", Value::String(env!("CARGO_PKG_VERSION").into()));
    if !recipe.is_conversion() {
        all.push("modelpress.recipe", Value::String(recipe.describe()));
    }
    // Positions that are not counted from 0 are written as if they were, so that the config no longer fits.
    let counted = !matches!(transformer.position, Position::Learned { offset: 1.. });
    if let Some(config) = checkpoint.config().filter(|_| counted) {
        all.push(dialect::CONFIG_KEY, Value::String(huggingface::unpacked(config).to_string()));
    }
    if let Some(dtype) = widened(plan) {
        all.push(dialect::WIDENED_KEY, Value::String(dtype.name().into()));
    }
    Ok(all)
}

/// The tokenizer's keys, and the files as they are, so that they return. What is written is read again, without those files,
/// and cuts some texts as the original does.
fn add_tokenizer(checkpoint: &Checkpoint, vocab: usize, all: &mut Metadata) -> Result<()> {
    let companions = checkpoint.companions();
    let Some(file) = companions.file("tokenizer.json") else {
        return Err(refuse(
            checkpoint,
            "there is no tokenizer.json",
            "llama.cpp needs the tokenizer in the file: put tokenizer.json beside the weights",
        ));
    };
    let tokenizer = Tokenizer::read(file)?;
    let (first, last) = tokenizer.around();
    let config = companions.file("tokenizer_config.json").map(Companion::json).transpose()?;
    let chat_template = companions.file("chat_template.jinja").map(Companion::text).transpose()?;
    let original = tokenizer::Original {
        json: &file.json()?,
        config: config.as_ref(),
        model: checkpoint.config(),
        chat_template: chat_template.as_deref(),
        vocab,
        first,
        last,
    };
    tokenizer::write(&original, all).map_err(|Unsayable { problem, next }| refuse(checkpoint, problem, next))?;
    let rebuilt = tokenizer::tokenizer_json(all).map_err(|problem| refuse(checkpoint, problem, "Write safetensors"))?;
    let rebuilt = rebuilt.map(|json| Tokenizer::read(&Companion::within(file.path(), json.to_string()))).transpose()?;
    if let Some(text) = rebuilt.and_then(|rebuilt| tokenizer.differs(&rebuilt)) {
        return Err(refuse(
            checkpoint,
            format!("llama.cpp would cut texts into other tokens than its tokenizer.json does, such as {text:?}"),
            "Write safetensors instead: -o NAME.safetensors",
        ));
    }
    for (name, file) in companions.files() {
        tokenizer::carry(name, file.text()?, all);
    }
    Ok(())
}

/// The model's name for people: that of its folder, or of its file.
fn name(checkpoint: &Checkpoint) -> String {
    let path = checkpoint.path();
    let full = path.canonicalize();
    let name = full.as_deref().unwrap_or(path).file_stem().map(|name| name.to_string_lossy().into_owned());
    name.unwrap_or_else(|| "model".into())
}

/// The dtype that everything had which had to become f32, if it was one.
fn widened(plan: &Plan) -> Option<Dtype> {
    let only = |step: &&Step| dialect::only_dtype(&step.parts[0].name, step.parts[0].shape.len()).is_some();
    let mut dtypes: Vec<Dtype> = plan.steps.iter().filter(only).map(|step| step.input).collect();
    dtypes.dedup();
    match dtypes.as_slice() {
        [one] if *one != Dtype::F32 => Some(*one),
        _ => None,
    }
}
