//! What an ONNX file made from an ONNX file is made of: the same graph, with its weights stored otherwise and the nodes that
//! make of them what they were.

use std::path::Path;

use formats::onnx::proto::NodeProto;
use formats::onnx::{Edit, Model, Stored, data_type};
use formats::{Dtype, Layout, TensorMeta};

use super::{Tensor, Tensors};
use crate::dialect::onnx::{self as dialect, ANY_FLOAT, Makings};
use crate::encoding::{Encoding, PartLayout};
use crate::family::Role;
use crate::loader::{Checkpoint, Piece, Weight};
use crate::recipe::{Error, Plan, Quantized, Recipe, Result, Scheme, Step, Treatment};

/// The version of ONNX from which DequantizeLinear has scales along an axis, and Cast knows bf16.
const BY_AXIS: i64 = 13;
/// The versions from which raising a graph's to [`BY_AXIS`] is worth a look.
const RAISED: i64 = 11;
/// The format's version of [`BY_AXIS`], and the first in which an initializer need not be an input.
const IR: (i64, i64) = (7, 4);

fn refuse(checkpoint: &Checkpoint, problem: impl Into<String>, next: impl Into<String>) -> Error {
    Error::Dialect { file: checkpoint.path().to_owned(), target: "ONNX", problem: problem.into(), next: next.into() }
}

fn model(checkpoint: &Checkpoint) -> Result<&Model> {
    checkpoint.onnx().ok_or_else(|| {
        let problem = format!("its graph is not known from {}", checkpoint.format().name());
        refuse(checkpoint, problem, "Write safetensors instead: -o NAME.safetensors")
    })
}

/// The tensors as the graph has them.
///
/// # Errors
/// A model that is no ONNX.
pub fn tensors(checkpoint: &Checkpoint, recipe: &Recipe) -> Result<Tensors> {
    let model = model(checkpoint)?;
    let source = checkpoint.sources()[0].tensors();
    let multiplied = dialect::multiplications(model, source);
    let top = model.constants();
    let unpacked = (recipe.quantized == Quantized::Unpack).then(|| Makings::of(model, source));
    let in_blocks = recipe.schemes().iter().any(|scheme| matches!(scheme, Scheme::W4A16 | Scheme::W8A16));
    let mut notes = Vec::new();
    let tensor = |(i, weight): (usize, &Weight)| {
        let at = weight.tensors[0].tensor;
        let mut role = weight.role;
        if role == Role::Linear && in_blocks && !multiplied.contains_key(&at) && weight.encoding.is_plain() {
            notes.push(format!("{}: not only multiplied by, as MatMulNBits does; kept as it is", weight.name));
            role = Role::Other;
        }
        // Within another graph, or a number in a formula: what it is stays what it is.
        let part_of_formula = role == Role::Other || weight.shape.len() < 2;
        let kept = part_of_formula || !top.contains(&at);
        let only = match weight.encoding {
            Encoding::Plain(dtype) if kept => Some(dtype),
            _ => None,
        };
        let tensor = Tensor {
            name: weight.name.clone(),
            canonical: weight.name.clone(),
            role: if top.contains(&at) { role } else { Role::Other },
            shape: weight.shape.clone(),
            rows: weight.rows,
            cols: weight.cols,
            pieces: vec![Piece::whole(i, weight)],
            only,
            made: None,
            file: 0,
        };
        match unpacked.as_ref().filter(|_| !weight.encoding.is_plain()) {
            Some(makings) => as_float(tensor, makings, at),
            None => tensor,
        }
    };
    let tensors = checkpoint.weights().iter().enumerate().map(tensor).collect();
    Ok(Tensors { files: vec![String::new()], tensors, notes, ..Tensors::default() })
}

/// A weight of codes as the graph takes it in floats: under the name that it can have there, inputs by outputs where it is
/// multiplied by.
fn as_float(tensor: Tensor, makings: &Makings, codes: usize) -> Tensor {
    let Some(making) = makings.get(codes).and_then(<[_]>::first) else { return tensor };
    let name = makings.name(&tensor.name, codes).to_owned();
    let mut tensor = Tensor { name, made: Some(making.dtype), ..tensor };
    if making.is_product() {
        let (rows, cols) = (tensor.cols, tensor.rows);
        tensor.pieces.iter_mut().for_each(|piece| (piece.rows, piece.transpose) = (0..rows, true));
        tensor = Tensor { shape: vec![rows, cols], rows, cols, ..tensor };
    }
    tensor
}

/// Whether a tensor goes into the other file, where there is one.
pub fn is_outside(meta: &TensorMeta) -> bool {
    formats::onnx::is_outside(meta.bytes().unwrap_or(0))
}

/// The names of the files: of the model, and of the one beside it if its numbers were in another or are too many for one.
pub fn files(checkpoint: &Checkpoint, plan: &Plan, output: &Path) -> Vec<String> {
    let name = output.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let bytes = |part: &PartLayout| TensorMeta::new("", part.dtype, part.shape.clone()).bytes().unwrap_or(0);
    let all: u64 = plan.steps.iter().flat_map(|step| &step.parts).map(bytes).sum();
    let beside = format!("{name}.data");
    match checkpoint.onnx().unwrap_or(&Model::default()).goes_outside(all) {
        true => vec![name, beside],
        false => vec![name],
    }
}

/// Gives the parts of a weight their names and shapes in a graph.
pub fn name(parts: &mut [PartLayout], weight: &str, encoding: Encoding, dtype: Dtype) {
    for (part, name) in parts.iter_mut().zip(dialect::part_names(weight, encoding, dtype)) {
        part.name = name;
    }
    if let (Encoding::Int8Rows { .. }, Some(scales)) = (encoding, parts.get_mut(1)) {
        scales.shape = vec![scales.shape.iter().product()];
    }
}

/// The layouts of the files.
///
/// # Errors
/// A graph in which the weights cannot be stored so.
pub fn layouts(
    checkpoint: &Checkpoint,
    recipe: &Recipe,
    plan: &Plan,
    names: &[String],
    metas: &[Vec<TensorMeta>],
    output: &Path,
) -> Result<Vec<Layout>> {
    let model = model(checkpoint)?;
    let source = checkpoint.sources()[0].tensors();
    lay_out(output, model, source, (names, metas), &edit(checkpoint, model, recipe, plan)?)
}

/// The layouts of a graph whose tensors lie in files of these names: the model's, and one beside it if there are two.
pub fn lay_out(
    output: &Path,
    model: &Model,
    source: &[TensorMeta],
    (names, metas): (&[String], &[Vec<TensorMeta>]),
    edit: &Edit,
) -> Result<Vec<Layout>> {
    let files: Vec<&[TensorMeta]> = metas.iter().map(Vec::as_slice).collect();
    Ok(formats::onnx::layouts(output, model, source, &files, names.get(1).map(String::as_str), edit)?)
}

/// What becomes of the graph.
fn edit(checkpoint: &Checkpoint, model: &Model, recipe: &Recipe, plan: &Plan) -> Result<Edit> {
    let source = checkpoint.sources()[0].tensors();
    let multiplied = dialect::multiplications(model, source);
    let top = model.constants();
    let makings = Makings::of(model, source);
    let mut edit = Edit::default();
    let (mut newer, mut blocks) = (None, false);
    for step in &plan.steps {
        let weight = &checkpoint.weights()[step.pieces[0].weight];
        let parts: Vec<(usize, usize)> = step.outputs.iter().map(|at| (at.file, at.tensor)).collect();
        if step.treatment == Treatment::Copy {
            for (tensor, part) in weight.tensors.iter().zip(&parts) {
                let stored = Stored { parts: vec![*part], nodes: Vec::new() };
                edit.constants.insert(tensor.tensor, stored);
            }
            continue;
        }
        let at = weight.tensors[0].tensor;
        if !weight.encoding.is_plain() {
            unpack(checkpoint, &mut edit, &makings, step, weight, parts)?;
            continue;
        }
        if source[at].name != weight.name || !top.contains(&at) {
            let problem = format!("tensor `{}` is made by nodes of the graph or within another graph", weight.name);
            return Err(refuse(checkpoint, problem, "Write it as it is, or safetensors: -o NAME.safetensors"));
        }
        let names: Vec<String> = step.parts.iter().map(|part| part.name.clone()).collect();
        let nodes = match step.treatment {
            Treatment::Packed { bits, group } => {
                let Some(nodes) = multiplied.get(&at) else {
                    let problem = format!("tensor `{}` is not only multiplied by", weight.name);
                    return Err(refuse(checkpoint, problem, "Name it in a rule that keeps it, or take int8"));
                };
                for node in nodes {
                    let by = node.blocked(&names, (bits, group), (step.rows, step.cols));
                    edit.replaced.insert(node.output().to_owned(), by);
                }
                blocks = true;
                Vec::new()
            }
            Treatment::Cast(to) => {
                if [to, step.input].contains(&Dtype::BF16) {
                    newer = newer.or(Some("bf16"));
                }
                cast(&names[0], &weight.name, step.input).into_iter().collect()
            }
            _ => {
                newer = Some("int8 with a scale by channel");
                let axis = if step.treatment == Treatment::Int8Cols { weight.shape.len() - 1 } else { 0 };
                dequantize(model, &names, &weight.name, axis, step.input)
            }
        };
        edit.constants.insert(at, Stored { parts, nodes });
    }
    if edit.constants.values().any(|stored| stored.parts.len() > 1 || !stored.nodes.is_empty()) {
        edit.ir_version = IR.1;
    }
    if let Some(what) = newer.filter(|_| model.opset() < BY_AXIS) {
        raise(checkpoint, model, what)?;
        edit.opsets.push((String::new(), BY_AXIS));
        edit.ir_version = IR.0;
    }
    if blocks {
        edit.opsets.push((dialect::MICROSOFT.to_owned(), 1));
    }
    if !recipe.is_conversion() {
        edit.metadata.push(("modelpress.version".to_owned(), env!("CARGO_PKG_VERSION").to_owned()));
        edit.metadata.push(("modelpress.recipe".to_owned(), recipe.describe()));
    }
    Ok(edit)
}

/// Puts a float in the place of codes, scales and zero points.
fn unpack(
    checkpoint: &Checkpoint,
    edit: &mut Edit,
    makings: &Makings,
    step: &Step,
    weight: &Weight,
    parts: Vec<(usize, usize)>,
) -> Result<()> {
    let codes = weight.tensors[0].tensor;
    let Some(all) = makings.get(codes) else {
        let problem = format!("tensor `{}` is multiplied as the integers that it is", weight.name);
        return Err(refuse(checkpoint, problem, "Unpack it into another format: -o NAME.safetensors"));
    };
    let name = makings.name(&weight.name, codes);
    let stored = step.parts[0].name.as_str();
    let cast = all.first().filter(|_| stored != name).and_then(|making| cast(stored, name, making.dtype));
    for making in all {
        edit.replaced.insert(making.output().to_owned(), making.unpacked(name));
        edit.replaced.extend(making.converted.clone().map(|scales| (scales, Vec::new())));
    }
    edit.constants.extend(weight.tensors.iter().map(|at| (at.tensor, Stored::default())));
    edit.constants.insert(codes, Stored { parts, nodes: cast.into_iter().collect() });
    Ok(())
}

/// Refuses a graph that would mean something else in the version that this needs.
fn raise(checkpoint: &Checkpoint, model: &Model, what: &str) -> Result<()> {
    let next = format!("Convert it first: onnx.version_converter.convert_version(model, {BY_AXIS})");
    let opset = model.opset();
    let problem = match dialect::changed(model) {
        _ if opset < RAISED => "so much changed since".to_owned(),
        Some(operator) => format!("{operator} changed since"),
        None => return Ok(()),
    };
    let problem = format!("its graph is of opset {opset}, {what} is of {BY_AXIS}, and {problem}");
    Err(refuse(checkpoint, problem, next))
}

/// The node that makes a weight of what is stored in another float.
fn cast(stored: &str, weight: &str, dtype: Dtype) -> Option<NodeProto> {
    let to = dialect::number("to", i64::from(data_type(dtype)?));
    Some(dialect::node("Cast", &[stored], weight, vec![to]))
}

/// The nodes that make a weight of codes and scales.
fn dequantize(model: &Model, names: &[String], weight: &str, axis: usize, dtype: Dtype) -> Vec<NodeProto> {
    let axis = || vec![dialect::number("axis", axis as i64)];
    let (codes, scales) = (names[0].as_str(), names[1].as_str());
    if dtype == Dtype::F32 || model.opset() >= ANY_FLOAT && dtype != Dtype::F64 {
        return vec![dialect::node("DequantizeLinear", &[codes, scales], weight, axis())];
    }
    // Earlier versions, and f64 in all of them, have scales of f32 only.
    let (single, wide) = (format!("{scales}_f32"), format!("{weight}_f32"));
    let first = cast(scales, &single, Dtype::F32);
    let second = dialect::node("DequantizeLinear", &[codes, &single], &wide, axis());
    let third = cast(&wide, weight, dtype);
    first.into_iter().chain([second]).chain(third).collect()
}
