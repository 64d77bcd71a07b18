//! What a GGUF file for llama.cpp is made of.

use formats::gguf::{Metadata, Value};
use formats::{Dtype, TensorMeta};

use super::{Tensor, Tensors};
use crate::dialect::llama_cpp::{self as dialect, Unsayable};
use crate::encoding::Encoding;
use crate::family::{Architecture, Family, Role, Transformer};
use crate::loader::{Checkpoint, Piece, Tokenizer, matrix, read_json};
use crate::recipe::{Error, Plan, Recipe, Result};

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
/// A family that llama.cpp does not have, or that is not known.
pub fn tensors(checkpoint: &Checkpoint) -> Result<Tensors> {
    let (family, transformer, arch) = family(checkpoint)?;
    if arch != "llama" {
        return Err(refuse(
            checkpoint,
            format!("a {} cannot be written as GGUF yet", family.name),
            "Supported: llama, mistral. Write safetensors instead: -o NAME.safetensors",
        ));
    }
    if family.tensors().iter().any(|expected| expected.gguf.as_ref().is_some_and(|place| place.stacked)) {
        return Err(refuse(
            checkpoint,
            "llama.cpp stacks the experts of a layer in one tensor",
            "Mixtures of experts cannot be written as GGUF yet; write safetensors",
        ));
    }
    let mut tensors = Tensors { files: vec![String::new()], ..Tensors::default() };
    let mut used = vec![false; checkpoint.weights().len()];
    for expected in family.tensors() {
        let Some(at) = expected.names.iter().find_map(|name| checkpoint.find(name)) else { continue };
        let weight = &checkpoint.weights()[at];
        used[at] = true;
        if expected.role == Role::Experts {
            return Err(refuse(
                checkpoint,
                "its experts are stacked otherwise than llama.cpp stacks them",
                "Mixtures of experts cannot be written as GGUF yet",
            ));
        }
        let Some(place) = &expected.gguf else {
            tensors.notes.push(format!("{}: llama.cpp has no place for it; left out", weight.name));
            continue;
        };
        let mut shape = weight.shape.clone();
        if weight.transposed {
            shape.reverse();
        }
        let (rows, cols) = matrix(expected.role, &shape);
        let piece = Piece {
            weight: at,
            rows: 0..rows,
            order: place.rows,
            transpose: weight.transposed,
            shift: place.value_shift,
        };
        tensors.tensors.push(Tensor {
            name: place.name.clone(),
            canonical: weight.name.clone(),
            role: expected.role,
            shape,
            rows,
            cols,
            pieces: vec![piece],
            file: 0,
        });
    }
    let rest = checkpoint.weights().iter().zip(used).filter(|(weight, used)| !used && !family.ignores(&weight.name));
    tensors.notes.extend(rest.map(|(weight, _)| format!("{}: llama.cpp has no place for it; left out", weight.name)));
    if let Some(factors) = dialect::rope_factors(transformer) {
        let meta = TensorMeta::new("rope_freqs.weight", Dtype::F32, vec![factors.len() as u64]);
        tensors.constants.push((meta, factors.iter().flat_map(|x| x.to_le_bytes()).collect()));
    }
    Ok(tensors)
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
    dialect::architecture(arch, transformer, &mut all);
    let file_types: Vec<u32> =
        recipe.schemes().iter().filter_map(|scheme| Some(scheme.file_type()?.number())).collect();
    let file_type = match file_types.as_slice() {
        [one] => *one,
        _ => dialect::file_type(most(plan)),
    };
    all.push("general.file_type", Value::U32(file_type));
    if plan.steps.iter().any(|step| matches!(step.encoding, Encoding::Plain(dtype) if dtype.is_block())) {
        all.push("general.quantization_version", Value::U32(2));
    }
    let Some(path) = &checkpoint.companions().tokenizer else {
        return Err(refuse(
            checkpoint,
            "there is no tokenizer.json",
            "llama.cpp needs the tokenizer in the file: put tokenizer.json beside the weights",
        ));
    };
    let adds_bos = Tokenizer::read(path)?.bos().is_some();
    dialect::tokenizer(&read_json(path)?, checkpoint.config(), transformer.vocab, adds_bos, &mut all)
        .map_err(|Unsayable { problem, next }| refuse(checkpoint, problem, next))?;
    all.push("modelpress.version", Value::String(env!("CARGO_PKG_VERSION").into()));
    all.push("modelpress.recipe", Value::String(recipe.describe()));
    if let Some(config) = checkpoint.config() {
        all.push(dialect::CONFIG_KEY, Value::String(config.to_string()));
    }
    Ok(all)
}

/// The model's name for people: that of its folder, or of its file.
fn name(checkpoint: &Checkpoint) -> String {
    let path = checkpoint.path();
    let full = path.canonicalize();
    let name = full.as_deref().unwrap_or(path).file_stem().map(|name| name.to_string_lossy().into_owned());
    name.unwrap_or_else(|| "model".into())
}

/// The dtype that most values have.
fn most(plan: &Plan) -> Option<Dtype> {
    let mut values = std::collections::BTreeMap::new();
    for step in &plan.steps {
        if let Encoding::Plain(dtype) = step.encoding {
            *values.entry(dtype).or_insert(0) += step.elements();
        }
    }
    values.into_iter().max_by_key(|(_, n)| *n).map(|(dtype, _)| dtype)
}
