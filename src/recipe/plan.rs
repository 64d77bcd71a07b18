//! The plan: every output tensor's name, dtype, shape and place, from headers alone. Sizes are known before one weight is
//! read.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::path::{Path, PathBuf};

use formats::{Dtype, Format, Layout, TensorMeta};

use super::output::{Tensor, Tensors, exported, gguf, huggingface, llama_cpp, onnx};
use super::{Error, Quantized, Recipe, Result, Scheme, conversion, shards};
use crate::encoding::{Encoding, Lines, PartLayout};
use crate::family::{Architecture, Role};
use crate::loader::{Checkpoint, Piece, View, Weight};
use crate::pruner::{Mask, Scope, Sparsity};
use crate::quantizer::ggml::mixture::{self, Choice, FileType};
use crate::quantizer::least_squares::Form;
use crate::quantizer::{Blocks, Cast, Columns, Quantizer};

/// What is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// One file of a container.
    File(Format),
    /// A Hugging Face folder, complete, with the input's shards.
    Folder,
}

/// Everything about an output that headers can tell.
#[derive(Debug)]
pub struct Plan {
    /// What is written.
    pub target: Target,
    /// The weight files.
    pub files: Vec<PlannedFile>,
    /// What becomes of each weight.
    pub steps: Vec<Step>,
    /// Tensors that the config alone determines: where they go, and their bytes.
    pub constants: Vec<(Output, Vec<u8>)>,
    /// Other files of the folder that are written anew, by name.
    pub written: Vec<(PathBuf, Vec<u8>)>,
    /// Other files of the folder that are copied: their name and where they are.
    pub copied: Vec<(PathBuf, PathBuf)>,
    /// Other files of the folder that are left out, because they hold the original's weights in other formats.
    pub left_out: Vec<PathBuf>,
    /// What the user should know: fallbacks, and what the target cannot hold.
    pub notes: Vec<String>,
}

/// One weight file of the output.
#[derive(Debug)]
pub struct PlannedFile {
    /// Its name within the folder, or the output's own name.
    pub name: String,
    /// The tensors in the order of the layout's spans.
    pub tensors: Vec<TensorMeta>,
    /// Where every byte goes.
    pub layout: Layout,
}

/// What becomes of one weight.
#[derive(Debug)]
pub struct Step {
    /// Its name in the Hugging Face dialect.
    pub name: String,
    /// What it is for.
    pub role: Role,
    /// The input's pieces, stacked row on row.
    pub pieces: Vec<Piece>,
    /// Rows of the logical matrix.
    pub rows: u64,
    /// Columns of the logical matrix.
    pub cols: u64,
    /// The dtype of the input's numbers, or of its bytes if it is no number.
    pub input: Dtype,
    /// Why it is treated so.
    pub decision: Decision,
    /// What is removed of it first.
    pub pruning: Option<Pruning>,
    /// How it is made.
    pub treatment: Treatment,
    /// Whether scales are searched.
    pub search: bool,
    /// What errors of blocks are weighted by.
    pub importance: Option<Columns>,
    /// Whether its codes were chosen before and are those of its pieces.
    pub chosen: bool,
    /// How the output is stored.
    pub encoding: Encoding,
    /// The output's physical tensors.
    pub parts: Vec<PartLayout>,
    /// Where each of them goes.
    pub outputs: Vec<Output>,
}

/// What is removed of a weight.
#[derive(Debug, Clone, PartialEq)]
pub struct Pruning {
    /// What the rule asks for.
    pub sparsity: Sparsity,
    /// How that is found band by band.
    pub mask: Mask,
}

/// Why a weight is treated as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Decision {
    /// The index of the rule that matched.
    pub rule: Option<usize>,
    /// Why that rule's scheme was not or could not be applied.
    pub note: Option<String>,
}

/// How a step's output is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Treatment {
    /// The bytes are copied.
    Copy,
    /// The numbers are put in another order or written as another float.
    Cast(Dtype),
    /// int8 with a scale for each row.
    Int8,
    /// int8 with a scale for each column, which is found in a first pass over the weight.
    Int8Cols,
    /// Packed integers in groups.
    Packed {
        /// Bits of a code.
        bits: u8,
        /// Columns that share a scale.
        group: u64,
    },
    /// FP8 with a scale for each row.
    Fp8,
    /// ggml's blocks of this type.
    Blocks(Dtype),
}

/// A physical output tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Output {
    /// Index into [`Plan::files`].
    pub file: usize,
    /// Index into the file's tensors.
    pub tensor: usize,
}

impl Step {
    /// What makes the codes; `None` where bytes are copied.
    pub fn quantizer(&self) -> Option<Box<dyn Quantizer>> {
        match self.treatment {
            _ if self.chosen => None,
            Treatment::Cast(dtype) => Some(Box::new(Cast(dtype))),
            Treatment::Blocks(dtype) => {
                Some(Box::new(Blocks { dtype, search: self.search, importance: self.importance.clone() }))
            }
            _ => self.form().map(|form| form.quantizer(self.search)),
        }
    }

    /// The form of its codes; `None` if it is stored without codes.
    pub fn form(&self) -> Option<Form> {
        match self.treatment {
            // The quantizer of columns is made when they have been surveyed.
            Treatment::Copy | Treatment::Cast(_) | Treatment::Int8Cols => None,
            Treatment::Int8 => Some(Form::Int8Rows),
            Treatment::Packed { bits, group } => Some(Form::Packed { bits, group }),
            Treatment::Fp8 => Some(Form::Fp8Rows),
            Treatment::Blocks(dtype) => Some(Form::Blocks(dtype)),
        }
    }

    /// Its codes were chosen: they are those of this weight of the checkpoint that the plan is carried out over.
    pub fn take(&mut self, at: usize, weight: &Weight) {
        self.pieces = vec![Piece::stored(at, weight)];
        self.chosen = true;
    }

    /// Number of values.
    pub fn elements(&self) -> u64 {
        self.rows * self.cols
    }

    /// The bytes of a physical tensor that a band of lines writes.
    pub fn bytes_of(&self, part: usize, lines: &Lines) -> Range<u64> {
        match self.treatment == Treatment::Copy && !self.encoding.is_by_rows() {
            true => self.parts[part].share(lines, self.lines()),
            false => self.parts[part].bytes_of(lines),
        }
    }

    /// The input's bytes of a physical tensor that a band of lines is a copy of.
    ///
    /// # Errors
    /// A read that fails.
    pub fn copied<'a>(
        &self,
        view: &'a View,
        part: usize,
        lines: &Lines,
        buffer: &'a mut Vec<u8>,
    ) -> formats::Result<&'a [u8]> {
        match self.encoding.is_by_rows() {
            true => view.stored(part, lines.clone(), buffer),
            false => view.bytes(part, self.bytes_of(part, lines), buffer),
        }
    }

    /// Lines of the encoding's band axis.
    pub fn lines(&self) -> u64 {
        self.encoding.lines(self.rows, self.cols)
    }

    /// Bytes of all its physical tensors.
    pub fn output_bytes(&self, plan: &Plan) -> u64 {
        self.outputs.iter().map(|at| plan.files[at.file].tensors[at.tensor].bytes().unwrap_or(0)).sum()
    }

    /// Whether the output stores other numbers than the input: codes, or a float that cannot hold all of the input's.
    pub fn is_quantized(&self) -> bool {
        match self.treatment {
            Treatment::Copy => false,
            Treatment::Int8
            | Treatment::Int8Cols
            | Treatment::Packed { .. }
            | Treatment::Fp8
            | Treatment::Blocks(_) => true,
            Treatment::Cast(Dtype::F64) => false,
            Treatment::Cast(Dtype::F32) => self.input == Dtype::F64,
            Treatment::Cast(dtype) => dtype != self.input,
        }
    }
}

impl Plan {
    /// Plans an output from headers.
    ///
    /// # Errors
    /// A model that is quantized already, a scheme that the target's container does not hold, or a model that the target's
    /// dialect cannot say.
    pub fn new(checkpoint: &Checkpoint, recipe: &Recipe, target: Target, output: &Path) -> Result<Self> {
        Self::in_shards(checkpoint, recipe, target, None, output)
    }

    /// Plans a folder whose weight files take at most `most` bytes of tensors each, but for those that hold a single larger
    /// weight; the input's shards, or one file, if that is `None`.
    ///
    /// # Errors
    /// As [`Plan::new`].
    pub fn in_shards(
        checkpoint: &Checkpoint,
        recipe: &Recipe,
        target: Target,
        most: Option<u64>,
        output: &Path,
    ) -> Result<Self> {
        let format = match target {
            Target::File(format) => format,
            Target::Folder => Format::Safetensors,
        };
        conversion::check(checkpoint, recipe, format)?;
        for scheme in recipe.schemes() {
            // What safetensors holds, other files of named tensors hold too.
            let family = if format == Format::Gguf { Format::Gguf } else { Format::Safetensors };
            let graph = format == Format::Onnx && scheme == Scheme::Fp8;
            if scheme.container().is_some_and(|needed| needed != family) || graph {
                let needed = scheme.container().map_or("", Format::name);
                return Err(Error::Usage(format!(
                    "{}: scheme {scheme} is stored as {needed}, and this output is {}. Give an output name that fits with -o",
                    output.display(),
                    format.name()
                )));
            }
        }
        let Tensors { files, tensors, constants, mut notes } = match (checkpoint.format(), format) {
            (Format::Gguf, Format::Gguf) => gguf::tensors(checkpoint),
            (Format::Onnx, Format::Onnx) if !checkpoint.is_exported() => onnx::tensors(checkpoint, recipe)?,
            (_, Format::Onnx) => exported::tensors(checkpoint)?,
            (_, Format::Gguf) => llama_cpp::tensors(checkpoint)?,
            (_, Format::Safetensors | Format::Npz | Format::Pytorch) => {
                huggingface::tensors(checkpoint, target == Target::Folder)?
            }
        };
        notes.extend(checkpoint.remarks());
        let mut plan = Self {
            target,
            files: Vec::new(),
            steps: Vec::new(),
            constants: Vec::new(),
            written: Vec::new(),
            copied: Vec::new(),
            left_out: Vec::new(),
            notes,
        };
        let choices = choices(checkpoint, recipe, &tensors);
        let mut places: Vec<usize> = tensors.iter().map(|tensor| tensor.file).collect();
        for (i, tensor) in tensors.into_iter().enumerate() {
            let choose = |file_type: FileType| choices.get(&file_type).map(|all| all[i]);
            plan.steps.push(step(checkpoint, recipe, format, tensor, &choose, &mut plan.notes)?);
        }
        let widened = plan.steps.iter().filter(|step| format == Format::Npz && step.input == Dtype::BF16);
        match widened.filter(|step| step.encoding == Encoding::Plain(Dtype::F32)).count() {
            0 => {}
            n => plan.notes.push(format!("numpy has no bf16: {n} tensors are widened to f32, which loses nothing")),
        }
        if format == Format::Onnx && checkpoint.onnx().is_none() {
            let notes = exported::notes(checkpoint, &plan);
            plan.notes.extend(notes);
        }
        let mut names = files;
        if let Some(most) = most {
            (places, names) = shards::cut(&plan.steps, most);
        }
        if format == Format::Onnx {
            names = onnx::files(checkpoint, &plan, output);
            places = vec![names.len() - 1; places.len()];
        }
        let metas = plan.place(&places, names.len(), constants);
        plan.lay_out(checkpoint, recipe, format, names, metas, output)?;
        if target == Target::Folder {
            huggingface::folder(checkpoint, recipe, &mut plan)?;
        }
        Ok(plan)
    }

    /// Gives every output its place in a file; returns the files' tensors.
    fn place(&mut self, places: &[usize], files: usize, constants: Vec<(TensorMeta, Vec<u8>)>) -> Vec<Vec<TensorMeta>> {
        let mut metas = vec![Vec::new(); files];
        let mut claim = |file: usize, meta: TensorMeta| {
            metas[file].push(meta);
            Output { file, tensor: metas[file].len() - 1 }
        };
        for (step, &file) in self.steps.iter_mut().zip(places) {
            let meta = |part: &PartLayout| TensorMeta::new(part.name.clone(), part.dtype, part.shape.clone());
            let graph = self.target == Target::File(Format::Onnx);
            let file = |meta: &TensorMeta| match graph && !onnx::is_outside(meta) {
                true => 0,
                false => file,
            };
            step.outputs = step.parts.iter().map(meta).map(|meta| claim(file(&meta), meta)).collect();
            if let Encoding::PackedInt { .. } = step.encoding {
                let shape = [step.rows, step.cols].into_iter().flat_map(u64::to_le_bytes).collect();
                match step.outputs.get(2) {
                    Some(&at) if step.treatment != Treatment::Copy => self.constants.push((at, shape)),
                    Some(_) => {}
                    None => {
                        let meta = TensorMeta::new(
                            format!("{}_shape", step.parts[0].name.trim_end_matches("_packed")),
                            Dtype::I64,
                            [2],
                        );
                        self.constants.push((claim(file(&meta), meta), shape));
                    }
                }
            }
        }
        self.constants.extend(constants.into_iter().map(|(meta, bytes)| (claim(0, meta), bytes)));
        metas
    }

    fn lay_out(
        &mut self,
        checkpoint: &Checkpoint,
        recipe: &Recipe,
        format: Format,
        names: Vec<String>,
        metas: Vec<Vec<TensorMeta>>,
        output: &Path,
    ) -> Result<()> {
        if format == Format::Onnx {
            let layouts = match checkpoint.onnx() {
                Some(_) => onnx::layouts(checkpoint, recipe, self, &names, &metas, output)?,
                None => exported::layouts(checkpoint, recipe, self, &names, &metas, output)?,
            };
            let files = names.into_iter().zip(metas).zip(layouts);
            self.files.extend(files.map(|((name, tensors), layout)| PlannedFile { name, tensors, layout }));
            return Ok(());
        }
        for (name, tensors) in names.into_iter().zip(metas) {
            let layout = match format {
                Format::Safetensors => {
                    let metadata = huggingface::file_metadata(checkpoint, recipe, self);
                    formats::safetensors::layout(output, &tensors, &metadata)?
                }
                Format::Gguf => {
                    let metadata = match checkpoint.gguf() {
                        Some(metadata) => gguf::metadata(metadata, recipe, self),
                        None => llama_cpp::metadata(checkpoint, recipe, self)?,
                    };
                    formats::gguf::layout(output, &tensors, &metadata)?
                }
                Format::Npz => formats::npz::layout(output, &tensors)?,
                Format::Pytorch => formats::pytorch::layout(output, &tensors)?,
                Format::Onnx => unreachable!("laid out above, as a whole"),
            };
            self.files.push(PlannedFile { name, tensors, layout });
        }
        Ok(())
    }

    /// Bytes of all weight files.
    pub fn weight_bytes(&self) -> u64 {
        self.files.iter().map(|file| file.layout.bytes).sum()
    }

    /// Bytes of the folder's other files.
    pub fn other_bytes(&self) -> u64 {
        let written: u64 = self.written.iter().map(|(_, bytes)| bytes.len() as u64).sum();
        let copied: u64 = self.copied.iter().filter_map(|(_, from)| Some(from.metadata().ok()?.len())).sum();
        written + copied
    }

    /// Bytes that the embeddings and the head of the output take, and that they would take as int8: what is left on the
    /// table for clients that cannot read quantized embeddings.
    pub fn kept_embeddings(&self) -> (u64, u64) {
        let kept = |step: &&Step| matches!(step.role, Role::Embedding | Role::Head) && !step.is_quantized();
        self.steps.iter().filter(kept).fold((0, 0), |(now, int8), step| {
            let width = step.input.block_bits() / 8;
            (now + step.output_bytes(self), int8 + step.elements() + step.rows * width)
        })
    }

    /// Values and bytes by how they are stored.
    pub fn by_encoding(&self) -> BTreeMap<String, (usize, u64, u64)> {
        let mut table = BTreeMap::new();
        for step in &self.steps {
            let row = table.entry(step.encoding.name()).or_insert((0, 0, 0));
            row.0 += 1;
            row.1 += step.elements();
            row.2 += step.output_bytes(self);
        }
        table
    }
}

/// The float in which a tensor stays that is not quantized: its own, but llama.cpp has no use for f64, and numpy has no bf16.
fn kept(format: Format, input: Dtype, only: Option<Dtype>) -> Dtype {
    match (only, format, input) {
        (Some(only), _, _) if input.is_float() => only,
        (_, Format::Gguf, Dtype::F64) | (_, Format::Npz, Dtype::BF16) => Dtype::F32,
        _ => input,
    }
}

/// The dtype of a tensor's numbers: that of its pieces, or one that holds all of theirs.
fn input_dtype(checkpoint: &Checkpoint, tensor: &Tensor) -> Dtype {
    let dtype = |piece: &Piece| match checkpoint.weights()[piece.weight].encoding {
        Encoding::Plain(dtype) if !dtype.is_block() => dtype,
        _ => Dtype::F32,
    };
    let mut dtypes = tensor.pieces.iter().map(dtype);
    let first = dtypes.next().unwrap_or(Dtype::F32);
    dtypes.fold(first, |all, next| match (all, next) {
        (all, next) if all == next => all,
        (Dtype::F64, _) | (_, Dtype::F64) => Dtype::F64,
        _ => Dtype::F32,
    })
}

/// For each of llama-quantize's file types that the recipe names, the type of each tensor.
fn choices(checkpoint: &Checkpoint, recipe: &Recipe, tensors: &[Tensor]) -> HashMap<FileType, Vec<Choice>> {
    let model = match (checkpoint.gguf(), checkpoint.family().map(|family| &family.architecture)) {
        (Some(metadata), _) => gguf::model(metadata),
        (None, Some(Architecture::Transformer(t))) => mixture::Model {
            architecture: checkpoint.family().and_then(|family| family.gguf).unwrap_or_default(),
            layers: t.layers as u64,
            heads: t.heads as u64,
            kv_heads: t.kv_heads as u64,
            experts: t.experts.map_or(0, |experts| experts.count as u64),
        },
        _ => return HashMap::new(),
    };
    let meta = |tensor: &Tensor| {
        let dtype = kept(Format::Gguf, input_dtype(checkpoint, tensor), tensor.only);
        TensorMeta::new(tensor.name.clone(), dtype, tensor.shape.clone())
    };
    let metas: Vec<TensorMeta> = tensors.iter().map(meta).collect();
    let file_types = recipe.schemes().into_iter().filter_map(|scheme| match scheme {
        Scheme::Ggml(file_type) => Some(file_type),
        _ => None,
    });
    let options = &recipe.blocks;
    let choose = |file_type| mixture::choose(file_type, &metas, &model, options.importance.is_some(), options.pure);
    file_types.map(|file_type| (file_type, choose(file_type))).collect()
}

/// What the importance matrix says of a tensor.
fn importance(recipe: &Recipe, tensor: &Tensor) -> Result<Option<Columns>> {
    let Some(matrix) = &recipe.blocks.importance else { return Ok(None) };
    let meta = TensorMeta::new(tensor.name.clone(), Dtype::F32, tensor.shape.clone());
    let found = matrix.get(&meta).map_err(|e| Error::Usage(format!("--imatrix: {e}")))?;
    let experts = if tensor.shape.len() > 2 { tensor.shape[0] } else { 1 };
    Ok(found.map(|found| Columns {
        experts: (0..experts as usize).map(|expert| found.columns(expert).to_vec()).collect(),
        rows: tensor.rows / experts.max(1),
    }))
}

/// Decides about one tensor of the target's dialect and claims its places.
fn step(
    checkpoint: &Checkpoint,
    recipe: &Recipe,
    format: Format,
    tensor: Tensor,
    choose: &dyn Fn(FileType) -> Option<Choice>,
    notes: &mut Vec<String>,
) -> Result<Step> {
    let importance = importance(recipe, &tensor)?;
    let input = input_dtype(checkpoint, &tensor);
    let Tensor { name, canonical, role, mut shape, mut rows, mut cols, mut pieces, only, made, file: _ } = tensor;
    let weights = checkpoint.weights();
    let stored = &weights[pieces[0].weight];
    let in_out = stored.transposed != pieces[0].transpose;
    let graph = format == Format::Onnx;
    // Only where there is a graph already can it be told to take inputs by outputs.
    let by_outputs = in_out && !(graph && checkpoint.onnx().is_some());
    let (mut decision, wanted) = decide(recipe, &canonical, role, shape.len(), input, by_outputs, checkpoint);
    if decision.note.as_deref() == Some(IN_OUT) {
        notes.push(format!("{canonical}: {IN_OUT}"));
    }
    let pruning = match pruning(recipe, &decision, role, shape.len(), input, cols, in_out) {
        Ok(pruning) => pruning,
        Err(note) => {
            notes.push(format!("{canonical}: {note}"));
            None
        }
    };
    let copies = pruning.is_none()
        && pieces.iter().all(|piece| {
            let other = &weights[piece.weight];
            piece.is_of_rows(other) && other.encoding == stored.encoding
        });
    let unscaled = |dtype: Dtype| match copies && stored.encoding == Encoding::Plain(dtype) {
        true => Treatment::Copy,
        false => Treatment::Cast(dtype),
    };
    let kept = kept(format, conversion::float(checkpoint, stored, format).unwrap_or(input), only);
    let choice = match wanted {
        Some(Scheme::Ggml(file_type)) => choose(file_type),
        _ => None,
    };
    let group = group_for(recipe, if graph && in_out { rows } else { cols });
    let mut treatment = match (wanted, choice.map(|choice| choice.dtype)) {
        _ if recipe.quantized == Quantized::Keep && !stored.encoding.is_plain() => Treatment::Copy,
        (Some(Scheme::F32), _) => unscaled(Dtype::F32),
        (Some(Scheme::F16), _) if only.is_none() => unscaled(Dtype::F16),
        (Some(Scheme::BF16), _) if only.is_none() => unscaled(Dtype::BF16),
        (Some(Scheme::Int8), _) if graph && in_out => Treatment::Int8Cols,
        (Some(Scheme::Int8), _) => Treatment::Int8,
        (Some(Scheme::W4A16), _) => Treatment::Packed { bits: 4, group },
        (Some(Scheme::W8A16), _) => Treatment::Packed { bits: 8, group },
        (Some(Scheme::Fp8), _) => Treatment::Fp8,
        (_, Some(dtype)) if dtype.is_block() => Treatment::Blocks(dtype),
        (_, Some(dtype)) => unscaled(dtype),
        _ => unscaled(kept),
    };
    if treatment != Treatment::Copy {
        numbers(checkpoint, &pieces)?;
    }
    let asked = recipe.blocks.group.unwrap_or(DEFAULT_GROUP);
    if matches!(treatment, Treatment::Packed { .. }) && group != asked && asked != 0 {
        let note = format!("rows of {cols} are no multiple of {asked}; stored in groups of {group}");
        notes.push(format!("{canonical}: {note}"));
        decision.note = Some(note);
    }
    if treatment == Treatment::Int8Cols && recipe.blocks.method.searches() {
        notes.push(format!("{canonical}: scales of columns are not searched"));
    }
    if let Some(Choice { dtype, instead_of: Some(first) }) = choice {
        let note = format!("rows of {cols} do not fill blocks of {first}; stored as {dtype}");
        notes.push(format!("{canonical}: {note}"));
        decision.note = Some(note);
    }
    let encoding_of = |treatment: Treatment| match treatment {
        Treatment::Copy => copied(stored.encoding, format),
        Treatment::Cast(dtype) | Treatment::Blocks(dtype) => Encoding::Plain(dtype),
        Treatment::Int8 => Encoding::Int8Rows { scale: input },
        Treatment::Int8Cols => Encoding::Int8Cols { scale: input },
        Treatment::Packed { bits, group } if graph => Encoding::Blocked { bits, group, scale: input },
        Treatment::Packed { bits, group } => Encoding::PackedInt { bits, group, scale: input },
        Treatment::Fp8 => Encoding::Fp8Rows { scale: input },
    };
    let mut turned = None;
    if let (Treatment::Packed { .. }, true, [piece]) = (treatment, graph && in_out, pieces.as_mut_slice()) {
        // Blocks lie along the inputs.
        turned = Some((rows, cols, shape.clone(), piece.clone()));
        *piece = Piece { rows: 0..cols, transpose: true, ..piece.clone() };
        (rows, cols) = (cols, rows);
        shape = vec![rows, cols];
    }
    let mut parts = encoding_of(treatment).parts(&name, &shape, rows, cols);
    if let Err(unfit) = &parts {
        // The next better type that holds rows of any length.
        let fallback = if format == Format::Gguf { Dtype::F16 } else { input };
        decision.note = Some(format!("{unfit}; stored as {fallback}"));
        notes.push(format!("{canonical}: {unfit}; stored as {fallback}"));
        treatment = unscaled(fallback);
        if let Some((stored_rows, stored_cols, stored_shape, piece)) = turned {
            (rows, cols, shape, pieces) = (stored_rows, stored_cols, stored_shape, vec![piece]);
        }
        parts = encoding_of(treatment).parts(&name, &shape, rows, cols);
    }
    let mut parts =
        parts.map_err(|unfit| Error::Unfit { file: checkpoint.path().to_owned(), name: name.clone(), unfit })?;
    if graph {
        let before = match (checkpoint.onnx(), encoding_of(treatment)) {
            (None, Encoding::Plain(dtype)) => dtype,
            _ => made.unwrap_or(input),
        };
        onnx::name(&mut parts, &name, encoding_of(treatment), before);
    }
    if treatment == Treatment::Copy {
        // The shape of packed integers, where the input has no tensor for it, is a constant.
        parts.truncate(stored.tensors.len());
    }
    let named = match checkpoint.format() {
        Format::Onnx => graph,
        _ => parts.len() > 1 && !graph,
    };
    if treatment == Treatment::Copy && named {
        // What is copied keeps its names and shapes.
        for (part, at) in parts.iter_mut().zip(&stored.tensors) {
            let meta = &checkpoint.sources()[at.source].tensors()[at.tensor];
            (part.name, part.dtype, part.shape) = (meta.name.clone(), meta.dtype, meta.shape.clone());
        }
    }
    let encoding = encoding_of(treatment);
    let search = recipe.blocks.method.searches();
    Ok(Step {
        name: canonical,
        role,
        pieces,
        rows,
        cols,
        input,
        decision,
        pruning,
        treatment,
        search,
        importance,
        chosen: false,
        encoding,
        parts,
        outputs: Vec::new(),
    })
}

/// The encoding of bytes that are copied: packed integers and ONNX's blocks of them are the same bytes.
fn copied(stored: Encoding, format: Format) -> Encoding {
    match (stored, format == Format::Onnx) {
        (Encoding::PackedInt { bits, group, scale }, true) => Encoding::Blocked { bits, group, scale },
        (Encoding::Blocked { bits, group, scale }, false) => Encoding::PackedInt { bits, group, scale },
        _ => stored,
    }
}

/// Refuses what is to be taken for numbers and is none.
pub(super) fn numbers(checkpoint: &Checkpoint, pieces: &[Piece]) -> Result<()> {
    match pieces.iter().map(|piece| &checkpoint.weights()[piece.weight]).find(|weight| !weight.is_numeric()) {
        None => Ok(()),
        Some(odd) => Err(Error::NoNumbers {
            file: checkpoint.path().to_owned(),
            name: odd.name.clone(),
            found: odd.encoding.name(),
        }),
    }
}

/// What the rule that decided about a weight removes of it; in words, why it cannot.
fn pruning(
    recipe: &Recipe,
    decision: &Decision,
    role: Role,
    rank: usize,
    input: Dtype,
    cols: u64,
    in_out: bool,
) -> Result<Option<Pruning>, String> {
    let Some(rule) = decision.rule.map(|rule| &recipe.rules[rule]) else { return Ok(None) };
    let named = rule.name.is_some() || rule.role.is_some();
    let takes = matches!(role, Role::Linear | Role::Experts) || named && !matches!(role, Role::Norm | Role::Bias);
    let Some(sparsity) = rule.prune.filter(|_| takes && rank > 1 && cols > 1 && input.is_float()) else {
        return Ok(None);
    };
    let mask = match sparsity.scope {
        _ if sparsity.method.calibrates() || recipe.recovery.is_some() => Mask::Undecided,
        Scope::Row if in_out => return Err(format!("stored [in, out], not by outputs; not pruned: {sparsity}")),
        Scope::Row => Mask::Rows(sparsity.pattern),
        Scope::Tensor | Scope::Global => Mask::Undecided,
    };
    Ok(Some(Pruning { sparsity, mask }))
}

/// Columns that share a scale where nothing else is asked for.
const DEFAULT_GROUP: u64 = 128;

/// The group size for rows of so many columns: the one that is asked for, the next smaller common one that divides them, or
/// whole rows.
fn group_for(recipe: &Recipe, cols: u64) -> u64 {
    let asked = recipe.blocks.group.unwrap_or(DEFAULT_GROUP);
    let fits = |group: &u64| *group > 0 && cols.is_multiple_of(*group);
    let smaller = [64, 32].into_iter().filter(|group| *group < asked);
    [asked].into_iter().chain(smaller).find(fits).unwrap_or(cols)
}

/// Why gpt2's matrices stay as they are: one scale for each stored row would be one for each input, which integer products
/// cannot use, and no reader of compressed-tensors takes its Conv1D for a linear layer.
const IN_OUT: &str = "stored [in, out], which this scheme, with scales for each output, does not hold; kept as it is. A GGUF scheme \
                      takes it: --scheme q8_0 -o model.gguf";

/// The scheme that the recipe gives to a weight, if that scheme can take it.
fn decide(
    recipe: &Recipe,
    name: &str,
    role: Role,
    rank: usize,
    input: Dtype,
    in_out: bool,
    checkpoint: &Checkpoint,
) -> (Decision, Option<Scheme>) {
    let model = checkpoint.family().map(|family| family.kind);
    let rule = recipe.rules.iter().position(|rule| rule.matches(name, role, model));
    let scheme = rule.and_then(|rule| recipe.rules[rule].scheme);
    let note = match scheme {
        Some(Scheme::Int8 | Scheme::W4A16 | Scheme::W8A16 | Scheme::Fp8) if in_out => Some(IN_OUT.to_owned()),
        Some(_) if !input.is_float() => Some(format!("{input} is not floating point")),
        Some(scheme) if !scheme.is_cast() && rank < 2 => Some(format!("{scheme} is for matrices")),
        _ => None,
    };
    // A cast of what is no number is not worth a word.
    let silent = note.is_some() && scheme.is_some_and(Scheme::is_cast);
    let scheme = scheme.filter(|_| note.is_none());
    (Decision { rule, note: note.filter(|_| !silent) }, scheme)
}
