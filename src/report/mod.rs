//! One versioned value with everything that a run found out, and its forms: JSON for machines, a table for people.

mod bench;
mod sensitivity;
mod terminal;

use std::path::{Path, PathBuf};

use serde::{Serialize, Serializer};

use crate::check::{Findings, HeldBack, Outputs, WeightError};
use crate::family::reshape::neurons;
use crate::family::{Architecture, Transformer};
use crate::loader::Checkpoint;
use crate::pipeline::{Calibrated, Chosen, Layer, Quantized, Reshaped, Scaled, Scales, Tally};
use crate::pruner::Refit;
use crate::recipe::{Plan, Recipe, Scheme, Target};

pub use bench::{BenchReport, bench_table};
pub use sensitivity::{SensitivityReport, sensitivity_table};
pub use terminal::{bytes, check_table, compress_table, inspect_table, plan_table};

/// The version of the JSON objects' shape.
pub const SCHEMA: u32 = 1;

/// What is said of zeros that are stored like other numbers.
const DENSE: &str = "zeros in a dense file gain nothing";

/// Weights with the largest errors that a report names.
const WORST: usize = 5;

/// What `compress MODEL --json` prints.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    schema: u32,
    version: &'static str,
    recipe: String,
    input: Input,
    output: Place,
    /// Input bytes over output bytes.
    ratio: f64,
    seconds: Seconds,
    weights: Weights,
    /// What was removed, if anything was to be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pruning: Option<Pruned>,
    /// What became of each layer on the calibration text.
    #[serde(skip_serializing_if = "Option::is_none")]
    calibration: Option<Calibration>,
    /// How codes were chosen on the calibration text.
    #[serde(skip_serializing_if = "Option::is_none")]
    codes: Option<Codes>,
    /// How columns were scaled by the calibration text before they were rounded.
    #[serde(skip_serializing_if = "Option::is_none")]
    scales: Option<ScalesReport>,
    /// Which parts of the model were removed.
    #[serde(skip_serializing_if = "Option::is_none")]
    parts: Option<PartsReport>,
    check: Option<Outputs>,
    /// What outputs were compared on.
    text: Option<String>,
    /// Programs that load such a file.
    clients: Vec<String>,
    /// What the user should know.
    notes: Vec<String>,
    /// Why the check failed.
    failures: Vec<String>,
    #[serde(skip)]
    table: Vec<(String, usize, u64, u64)>,
    /// Whether numbers were to stay as they are.
    #[serde(skip)]
    conversion: bool,
}

/// Which parts of the model were removed.
#[derive(Debug, Clone, Serialize)]
struct PartsReport {
    /// Tokens of the calibration text.
    tokens: usize,
    /// Numbers of the original's layers.
    layers_removed: Vec<usize>,
    layers: Remain,
    heads: Remain,
    key_value_heads: Remain,
    /// Of each feed-forward part, or of each of its experts.
    neurons: Remain,
    /// Of each of the original's layers, 1 − the mean cosine of its input and output.
    influence: Vec<f64>,
}

/// How many of something there were, and are.
#[derive(Debug, Clone, Copy, Serialize)]
struct Remain {
    original: usize,
    left: usize,
}

/// A model that was read.
#[derive(Debug, Clone, Serialize)]
struct Input {
    #[serde(serialize_with = "path")]
    path: PathBuf,
    bytes: u64,
    tensors: usize,
}

/// A model that was or would be written.
#[derive(Debug, Clone, Serialize)]
struct Place {
    #[serde(serialize_with = "path")]
    path: PathBuf,
    bytes: u64,
}

fn path<S: Serializer>(path: &Path, out: S) -> Result<S::Ok, S::Error> {
    out.serialize_str(&path.display().to_string())
}

/// How long each stage took.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Seconds {
    /// Reading, quantizing and writing, until the disk has it.
    pub compress: f64,
    /// Comparing.
    pub check: f64,
}

#[derive(Debug, Clone, Serialize)]
struct Weights {
    quantized: usize,
    kept: usize,
    worst: Vec<WeightError>,
}

/// What calibration did.
#[derive(Debug, Clone, Serialize)]
struct Calibration {
    /// Tokens of the text.
    tokens: usize,
    layers: Vec<LayerLoss>,
}

/// How codes were chosen.
#[derive(Debug, Clone, Serialize)]
struct Codes {
    /// Tokens of the text.
    tokens: usize,
    /// How far from the original the model is on what was held back of it, with these codes and with codes to nearest.
    #[serde(skip_serializing_if = "Option::is_none")]
    held_back: Option<HeldBack>,
    matrices: Vec<CodedMatrix>,
}

#[derive(Debug, Clone, Serialize)]
struct CodedMatrix {
    name: String,
    /// Tokens that its input was learned from.
    tokens: u64,
    /// The share of the correction for errors before it that was taken.
    correction: f64,
    /// How much half the mean squared error of its outputs on held-back tokens is less than by rounding to nearest.
    gain: Option<f64>,
    /// Whether rounding to nearest was better and taken.
    nearest: bool,
}

/// How columns were scaled.
#[derive(Debug, Clone, Serialize)]
struct ScalesReport {
    /// Tokens of the text.
    tokens: usize,
    groups: Vec<ScaledGroup>,
}

/// Matrices that share an input and its scales.
#[derive(Debug, Clone, Serialize)]
struct ScaledGroup {
    matrices: Vec<String>,
    /// The power of the mean size of inputs that columns were multiplied by; 0 if they were not.
    ratio: f64,
    /// The mean squared error of their outputs by rounding to nearest alone.
    nearest: f64,
    /// The same with the scales.
    loss: f64,
}

/// Half the mean squared error of a layer's outputs, by what was done to it.
#[derive(Debug, Clone, Serialize)]
struct LayerLoss {
    name: String,
    /// After pruning; null where the method does not know.
    pruned: Option<f64>,
    /// What was minimised (with the ridge), before and after; and whether that was taken.
    #[serde(skip_serializing_if = "Option::is_none")]
    recovery: Option<Loss>,
}

#[derive(Debug, Clone, Serialize)]
struct Loss {
    before: f64,
    after: f64,
    taken: bool,
}

/// What pruning removed.
#[derive(Debug, Clone, Serialize)]
struct Pruned {
    /// Matrices that were pruned.
    weights: usize,
    /// Their values.
    values: u64,
    /// Those of them that are zero, before they are encoded.
    zeros: u64,
    /// Zeros that the encoding, which has none, made other numbers of.
    zeros_lost: u64,
    /// Bytes that these matrices take as they are written.
    bytes: u64,
    /// Bytes that they would take with a bit for each value and only the others stored.
    bitmask_bytes: u64,
}

impl Pruned {
    fn new(plan: &Plan, tally: &Tally) -> Option<Self> {
        let pruned = plan.steps.iter().zip(&tally.notes).filter(|(step, _)| step.pruning.is_some());
        let mut all = Self { weights: 0, values: 0, zeros: 0, zeros_lost: 0, bytes: 0, bitmask_bytes: 0 };
        for (step, notes) in pruned {
            let bytes = step.output_bytes(plan);
            let kept = step.elements() - (notes.zeros - notes.zeros_lost);
            all.weights += 1;
            all.values += step.elements();
            all.zeros += notes.zeros;
            all.zeros_lost += notes.zeros_lost;
            all.bytes += bytes;
            let stored = u128::from(bytes) * u128::from(kept) / u128::from(step.elements().max(1));
            all.bitmask_bytes += stored as u64 + step.rows * step.cols.div_ceil(8);
        }
        (all.weights > 0).then_some(all)
    }

    /// What the user should know of it.
    fn notes(&self, notes: &mut Vec<String>) {
        let Self { weights, values, zeros, zeros_lost, bytes: dense, bitmask_bytes } = *self;
        let share = 100.0 * zeros as f64 / values.max(1) as f64;
        notes.push(format!("pruned {weights} matrices: {zeros} of {values} values are zero ({share:.2}%)"));
        if zeros_lost > 0 {
            notes.push(format!(
                "{zeros_lost} of these zeros are no longer zero: this encoding has scales and minima, and need not have a zero"
            ));
        }
        notes.push(format!(
            "{DENSE}: they take as much room and time as other numbers. The pruned matrices take {}; with a bit for each value and the rest packed (--sparse) they would take {}",
            bytes(dense),
            bytes(bitmask_bytes)
        ));
    }
}

impl Report {
    /// Puts together what a run found.
    pub fn new(
        checkpoint: &Checkpoint,
        recipe: &Recipe,
        plan: &Plan,
        output: &Path,
        tally: &Tally,
        findings: Option<&Findings>,
        seconds: Seconds,
    ) -> Self {
        let quantized = plan.steps.iter().filter(|step| step.is_quantized()).count();
        let written = plan.weight_bytes();
        let mut notes = plan_notes(checkpoint, plan, recipe);
        let vanished: u64 = tally.notes.iter().map(|notes| notes.vanished).sum();
        if vanished > 0 {
            notes.push(format!("{vanished} values were too small for their new dtype and became zero"));
        }
        let pruning = Pruned::new(plan, tally);
        if let Some(pruning) = &pruning {
            pruning.notes(&mut notes);
        }
        let missing = findings.map_or(&[][..], |findings| &findings.missing);
        // What the plan has said is left out is not said again.
        let said =
            |name: &str| plan.notes.iter().any(|note| note.strip_prefix(name).is_some_and(|n| n.starts_with(':')));
        let missing: Vec<&str> = missing.iter().map(String::as_str).filter(|name| !said(name)).collect();
        if !missing.is_empty() {
            notes.push(format!("not in the output: {}", missing.join(", ")));
        }
        Self {
            schema: SCHEMA,
            version: env!("CARGO_PKG_VERSION"),
            recipe: recipe.describe(),
            input: input(checkpoint),
            output: Place { path: output.to_owned(), bytes: written },
            ratio: checkpoint.bytes() as f64 / written.max(1) as f64,
            seconds,
            weights: Weights {
                quantized,
                kept: plan.steps.len() - quantized,
                worst: findings.map(|findings| worst(&findings.weights)).unwrap_or_default(),
            },
            pruning,
            calibration: None,
            codes: None,
            scales: None,
            parts: None,
            check: findings.map(|findings| findings.outputs.clone()),
            text: findings.map(|findings| findings.source.clone()).filter(|text| !text.is_empty()),
            clients: clients(plan, recipe),
            notes,
            failures: findings.map(|findings| findings.failures.clone()).unwrap_or_default(),
            table: by_encoding(plan),
            conversion: recipe.is_conversion(),
        }
    }
}

impl Report {
    /// Says that the output was packed, to so many bytes.
    pub fn pack(&mut self, bytes: u64) {
        let dense = std::mem::replace(&mut self.output.bytes, bytes);
        self.ratio = self.input.bytes as f64 / bytes.max(1) as f64;
        self.clients = vec!["modelpress".to_owned()];
        self.notes.retain(|note| !note.starts_with(DENSE));
        self.notes.push(format!(
            "tensors that are mostly zero are stored as a bit for each number and those that are not zero: {} instead of {} dense. Only this program reads them; `compress convert` makes a dense file of it",
            terminal::bytes(bytes),
            terminal::bytes(dense)
        ));
    }

    /// Adds which parts were removed.
    pub fn add_parts(&mut self, original: &Checkpoint, reshaped: &Reshaped) {
        let Some(Architecture::Transformer(t)) = original.family().map(|family| &family.architecture) else { return };
        let left = reshaped.remains.architecture(t);
        let layers: Vec<usize> = (0..t.layers).filter(|layer| reshaped.remains.position(*layer).is_none()).collect();
        let numbers = |layers: &[usize]| layers.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let width = |t: &Transformer| neurons(t).1;
        let mut told = Vec::new();
        if !layers.is_empty() {
            told.push(format!("layers {} of {}", numbers(&layers), t.layers));
        }
        if left.heads != t.heads {
            told.push(format!("{} of {} heads of every layer", t.heads - left.heads, t.heads));
        }
        if width(&left) != width(t) {
            told.push(format!("{} of {} neurons of every feed-forward part", width(t) - width(&left), width(t)));
        }
        self.notes.push(format!("removed {}", told.join("; ")));
        if !reshaped.left_out.is_empty() {
            self.notes
                .push(format!("left out, since the family has no such tensors: {}", reshaped.left_out.join(", ")));
        }
        let keep = |original, left| Remain { original, left };
        self.parts = Some(PartsReport {
            tokens: reshaped.tokens,
            layers_removed: layers,
            layers: keep(t.layers, left.layers),
            heads: keep(t.heads, left.heads),
            key_value_heads: keep(t.kv_heads, left.kv_heads),
            neurons: keep(width(t), width(&left)),
            influence: reshaped.structure.as_ref().map(|seen| seen.influence.clone()).unwrap_or_default(),
        });
    }

    /// Adds how codes were chosen.
    pub fn add_codes(&mut self, quantized: &Quantized, held_back: Option<HeldBack>) {
        let tokens = quantized.tokens;
        if let Some(HeldBack { measure, tokens, nearest, chosen }) = &held_back {
            let share = if *nearest > 0.0 { format!(", {:.2} of it", chosen / nearest) } else { String::new() };
            self.notes.push(format!(
                "codes chosen by a text: {measure} {chosen:.6} on {tokens} tokens of it that were held back, to nearest {nearest:.6}{share}"
            ));
        }
        let nearest = quantized.chosen.iter().filter(|chosen| chosen.nearest).map(|chosen| chosen.name.as_str());
        let nearest: Vec<&str> = nearest.collect();
        if !nearest.is_empty() {
            self.notes.push(format!(
                "stored as without a text, which was better or said nothing of them: {}",
                nearest.join(", ")
            ));
        }
        let matrix = |chosen: &Chosen| CodedMatrix {
            name: chosen.name.clone(),
            tokens: chosen.tokens,
            correction: chosen.share,
            gain: chosen.gain,
            nearest: chosen.nearest,
        };
        let matrices: Vec<CodedMatrix> = quantized.chosen.iter().map(matrix).collect();
        self.codes = Some(Codes { tokens, held_back, matrices });
    }

    /// Adds how columns were scaled.
    pub fn add_scales(&mut self, scaled: &Scaled) {
        let group = |found: &Scales| {
            let Scales { matrices, ratio, nearest, loss } = found.clone();
            ScaledGroup { matrices, ratio, nearest, loss }
        };
        let groups: Vec<ScaledGroup> = scaled.scales.iter().map(group).collect();
        let shares: Vec<f64> =
            groups.iter().map(|group| if group.nearest > 0.0 { group.loss / group.nearest } else { 1.0 }).collect();
        self.notes.push(match shares.len() {
            0 => "awq: no matrix has an input that could be scaled; rounded to nearest".to_owned(),
            n => format!(
                "awq: {} of {n} inputs scaled; the squared error of their layers' outputs on the text is {:.2} of that of rounding to nearest in the mean",
                groups.iter().filter(|group| group.ratio > 0.0).count(),
                shares.iter().sum::<f64>() / n as f64
            ),
        });
        self.scales = Some(ScalesReport { tokens: scaled.tokens, groups });
    }

    /// Adds what calibration did.
    pub fn add_calibration(&mut self, calibrated: &Calibrated) {
        let loss = |layer: &Layer| LayerLoss {
            name: layer.name.clone(),
            pruned: layer.loss,
            recovery: layer.refit.map(|Refit { before, after, taken }| Loss { before, after, taken }),
        };
        let layers: Vec<LayerLoss> = calibrated.layers.iter().map(loss).collect();
        let refits: Vec<&Loss> = layers.iter().filter_map(|layer| layer.recovery.as_ref()).collect();
        if !refits.is_empty() {
            let sum = |of: fn(&Loss) -> f64| refits.iter().map(|loss| of(loss)).sum::<f64>();
            self.notes.push(format!(
                "recovery: loss of {} layers {:.4e} → {:.4e} in all; {} left as they were",
                refits.len(),
                sum(|loss| loss.before),
                sum(|loss| loss.after),
                refits.iter().filter(|loss| !loss.taken).count()
            ));
        }
        self.calibration = Some(Calibration { tokens: calibrated.tokens, layers });
    }
}

fn input(checkpoint: &Checkpoint) -> Input {
    Input {
        path: checkpoint.path().to_owned(),
        bytes: checkpoint.bytes(),
        tensors: checkpoint.sources().iter().map(|source| source.tensors().len()).sum(),
    }
}

fn by_encoding(plan: &Plan) -> Vec<(String, usize, u64, u64)> {
    plan.by_encoding().into_iter().map(|(name, (count, values, bytes))| (name, count, values, bytes)).collect()
}

/// The weights with the lowest signal-to-noise ratio, worst first; unchanged ones are not among them unless all are.
fn worst(errors: &[WeightError]) -> Vec<WeightError> {
    let mut order: Vec<&WeightError> = errors.iter().collect();
    let rank = |e: &WeightError| e.sqnr_db.unwrap_or(f64::INFINITY);
    order.sort_by(|a, b| rank(a).total_cmp(&rank(b)));
    let changed = order.iter().filter(|e| e.sqnr_db.is_some()).count();
    order.truncate(WORST.min(if changed > 0 { changed } else { WORST }));
    order.into_iter().cloned().collect()
}

/// What a plan's reader should know before anything is written.
fn plan_notes(checkpoint: &Checkpoint, plan: &Plan, recipe: &Recipe) -> Vec<String> {
    let mut notes = plan.notes.clone();
    let (now, int8) = plan.kept_embeddings();
    if now > int8 && recipe.schemes().contains(&Scheme::Int8) {
        let kept = match plan.target {
            // A graph that was read unpacks a table before it looks anything up; one of ours does not.
            Target::File(formats::Format::Onnx) if checkpoint.onnx().is_some() => {
                "tables keep their dtype, because every run would unpack all of them"
            }
            Target::File(formats::Format::Onnx) => "embeddings and output head keep their dtype",
            _ => "embeddings and output head keep their dtype, because vLLM cannot read them quantized",
        };
        notes.push(format!("{kept}; --embeddings would save {} more", bytes(now - int8)));
    }
    if !plan.left_out.is_empty() {
        let names: Vec<String> = plan.left_out.iter().map(|name| name.display().to_string()).collect();
        notes.push(format!("not copied, since they hold the original weights: {}", names.join(", ")));
    }
    notes
}

/// Programs that are known to load such an output.
fn clients(plan: &Plan, recipe: &Recipe) -> Vec<String> {
    use crate::family::Role;
    let int8 = |role: Role| plan.steps.iter().any(|step| step.role == role && step.is_quantized());
    let schemes = recipe.schemes();
    let mut clients = vec!["modelpress".to_owned()];
    let mut add = |name: &str| clients.push(name.to_owned());
    match plan.target {
        Target::File(formats::Format::Gguf) => add("llama.cpp and what is built on it (ollama, LM Studio)"),
        Target::File(formats::Format::Onnx) => add("onnxruntime"),
        Target::File(formats::Format::Npz) => add("numpy"),
        Target::File(formats::Format::Pytorch) => add("torch.load with weights_only=True"),
        _ if recipe.is_conversion() && plan.steps.iter().any(|step| !step.encoding.is_plain()) => {
            add("what loads the original");
        }
        _ if schemes.iter().all(|scheme| scheme.is_cast()) => {
            add("transformers");
            add("vLLM");
            add("every reader of safetensors");
        }
        _ if int8(Role::Experts) || int8(Role::Conv) => {}
        Target::Folder => {
            add("transformers with compressed-tensors");
            if !int8(Role::Embedding) && !int8(Role::Head) {
                add("vLLM");
            }
        }
        Target::File(_) => {
            add("transformers with compressed-tensors, beside a config.json with its quantization_config")
        }
    }
    clients
}

/// What `compress MODEL --dry-run --json` prints.
#[derive(Debug, Clone, Serialize)]
pub struct PlanReport {
    schema: u32,
    version: &'static str,
    recipe: String,
    rules: Vec<String>,
    input: Input,
    output: Place,
    ratio: f64,
    tensors: Vec<PlannedWeight>,
    notes: Vec<String>,
}

#[derive(Debug, Clone, Serialize)]
struct PlannedWeight {
    name: String,
    role: &'static str,
    values: u64,
    from: String,
    to: String,
    /// What is removed.
    #[serde(skip_serializing_if = "Option::is_none")]
    prune: Option<String>,
    bytes: u64,
    /// The number of the rule that decided, counted from 1; null if none matched.
    rule: Option<usize>,
    note: Option<String>,
}

impl PlanReport {
    /// Describes a plan.
    pub fn new(original: &Checkpoint, checkpoint: &Checkpoint, recipe: &Recipe, plan: &Plan, output: &Path) -> Self {
        let written = plan.weight_bytes();
        let tensors = plan.steps.iter().map(|step| PlannedWeight {
            name: step.name.clone(),
            role: step.role.name(),
            values: step.elements(),
            from: checkpoint.weights()[step.pieces[0].weight].encoding.name(),
            to: step.encoding.name(),
            prune: step.pruning.as_ref().map(|pruning| pruning.sparsity.to_string()),
            bytes: step.output_bytes(plan),
            rule: step.decision.rule.map(|rule| rule + 1),
            note: step.decision.note.clone(),
        });
        Self {
            schema: SCHEMA,
            version: env!("CARGO_PKG_VERSION"),
            recipe: recipe.describe(),
            rules: recipe.rules.iter().map(crate::recipe::Rule::describe).collect(),
            input: input(original),
            output: Place { path: output.to_owned(), bytes: written },
            ratio: original.bytes() as f64 / written.max(1) as f64,
            tensors: tensors.collect(),
            notes: plan_notes(checkpoint, plan, recipe),
        }
    }
}

/// What `compress inspect --json` prints.
#[derive(Debug, Clone, Serialize)]
pub struct Inspection {
    schema: u32,
    #[serde(serialize_with = "path")]
    path: PathBuf,
    format: &'static str,
    /// The weight files.
    files: Vec<String>,
    family: Option<&'static str>,
    /// Why outputs cannot be computed.
    unsupported: Option<String>,
    /// Config fields that this version does not know.
    unknown_config_fields: Vec<String>,
    /// Tensors that the family does not have, without effect on its outputs.
    unused_tensors: Vec<String>,
    #[serde(skip)]
    remarks: Vec<String>,
    quantized: Option<String>,
    recipe: Option<String>,
    parameters: u64,
    bytes: u64,
    encodings: Vec<EncodingShare>,
    tensors: Vec<InspectedWeight>,
}

#[derive(Debug, Clone, Serialize)]
struct EncodingShare {
    encoding: String,
    weights: usize,
    values: u64,
    bytes: u64,
}

#[derive(Debug, Clone, Serialize)]
struct InspectedWeight {
    name: String,
    role: &'static str,
    encoding: String,
    shape: Vec<u64>,
    bytes: u64,
    /// The rule that decides about it, if the file or the call names a recipe.
    rule: Option<String>,
}

impl Inspection {
    /// Describes a model; with a recipe, also which rule decides about which weight.
    pub fn new(checkpoint: &Checkpoint, recipe: Option<&Recipe>) -> Self {
        let model = checkpoint.family().map(|family| family.kind);
        let mut encodings: Vec<EncodingShare> = Vec::new();
        let mut tensors = Vec::new();
        for weight in checkpoint.weights() {
            let places = weight.tensors.iter().map(|at| checkpoint.sources()[at.source].place(at.tensor));
            let size = places.map(|place| place.end - place.start).sum();
            let name = weight.encoding.name();
            match encodings.iter_mut().find(|share| share.encoding == name) {
                Some(share) => {
                    share.weights += 1;
                    share.values += weight.elements();
                    share.bytes += size;
                }
                None => encodings.push(EncodingShare {
                    encoding: name.clone(),
                    weights: 1,
                    values: weight.elements(),
                    bytes: size,
                }),
            }
            let rule = recipe.map(|recipe| {
                let rule = recipe.rules.iter().find(|rule| rule.matches(&weight.name, weight.role, model));
                rule.map_or_else(|| "(none: kept)".to_owned(), crate::recipe::Rule::describe)
            });
            tensors.push(InspectedWeight {
                name: weight.name.clone(),
                role: weight.role.name(),
                encoding: name,
                shape: weight.shape.clone(),
                bytes: size,
                rule,
            });
        }
        encodings.sort_by_key(|share| std::cmp::Reverse(share.bytes));
        Self {
            schema: SCHEMA,
            path: checkpoint.path().to_owned(),
            format: checkpoint.format().name(),
            files: checkpoint.files().names.clone(),
            family: checkpoint.family().map(|family| family.name),
            unsupported: checkpoint.no_family().map(str::to_owned),
            unknown_config_fields: checkpoint.family().map(|family| family.config.unknown.clone()).unwrap_or_default(),
            unused_tensors: checkpoint.unused().into_iter().map(str::to_owned).collect(),
            remarks: checkpoint.remarks(),
            quantized: checkpoint.quantized(),
            recipe: recipe.map(Recipe::describe),
            parameters: checkpoint.parameters(),
            bytes: checkpoint.bytes(),
            encodings,
            tensors,
        }
    }
}
