//! `compress MODEL`: what flags mean, and what is written where.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use formats::{Access, Format};

use super::args::{CalibrationArgs, CompressArgs, RecipeArgs, WriteArgs};
use super::{Failure, bits, progress, write};
use crate::calibration::{self, Calibration, Origin, Record, Recorded};
use crate::loader::{Checkpoint, whole_name};
use crate::pipeline::{self, Choice};
use crate::pruner::parts::Parts;
use crate::pruner::{Recovery, Solver, Sparsity};
use crate::quantizer::Method;
use crate::quantizer::imatrix::Imatrix;
use crate::recipe::{BlockOptions, Plan, Recipe, Scheme, Target};

pub fn run(args: &CompressArgs) -> Result<(), Failure> {
    let Some(model) = &args.model else { return Err(Failure::Usage("no model given".into())) };
    if let Some(wanted) = bits::asked(args) {
        return bits::run(args, wanted);
    }
    if args.budget.to.is_some() {
        return Err(Failure::Usage(
            "--to is for --target-size, --target-bits and --max-kl without a scheme; name the output with -o".into(),
        ));
    }
    let recipe = recipe_of(&args.recipe)?.ok_or_else(|| {
        Failure::Usage("nothing to do: say how to compress, for instance with --int8 (see --help)".into())
    })?;
    let mut recipe = Recipe { recovery: recovery(&args.calibration), ..recipe };
    let free = args.recipe.method.is_none() && !args.recipe.search && !recipe.prunes();
    if free && args.calibration.calibrate.is_some() && recipe.quantizes() {
        recipe.blocks.method = Method::Best;
    }
    let original = write::open(model, &args.write.common)?;
    let calibration = calibration(&args.calibration, &recipe, &original, &args.write)?;
    let (target, output) = target(&original, &recipe, args.output.as_deref())?;
    let by_text = calibration.is_some() && recipe.quantizes_by_text();
    let job = if by_text { progress::job_with_sums } else { progress::job }(&args.write.common)?;
    let started = Instant::now();
    let reshaped = match recipe.parts.is_empty() {
        true => None,
        false => {
            let choice = match args.write.dry_run {
                true => Choice::Sizes,
                false => Choice::By(calibration.as_ref()),
            };
            pipeline::refuse_output(&original, target, &output, args.write.force || args.write.dry_run)?;
            Some(pipeline::reshape(&original, &recipe.parts, choice, &output, &job)?)
        }
    };
    let checkpoint = reshaped.as_ref().map_or(&original, |reshaped| &reshaped.checkpoint);
    let plan = Plan::new(checkpoint, &recipe, target, &output)?;
    refuse_idle_pruning(&recipe, &plan)?;
    if let Some((calibration, reshaped)) = calibration.as_ref().zip(reshaped.as_ref()).filter(|_| !recipe.calibrates())
        && let (Some(record), false) = (&calibration.record, args.write.dry_run)
    {
        let structure = reshaped.structure.as_ref();
        calibration::Writer::create(record, &original, reshaped.tokens, structure, &BTreeMap::new())?.publish()?;
    }
    if args.calibration.resume && !recipe.blocks.method.chooses_codes() {
        return Err(Failure::Usage("--resume is for choosing codes by a text; expected --method best or gptq".into()));
    }
    let (resume, without) = (args.calibration.resume, &args.calibration.without);
    let without = without.iter().map(|step| (*step).into()).collect();
    let input = write::Input { original: &original, reshaped: reshaped.as_ref(), resume, without, started };
    let calibration = calibration.as_ref().filter(|_| recipe.calibrates() || recipe.quantizes_by_text());
    write::run(&input, &recipe, plan, calibration, &output, &args.write, &job)
}

/// The recipe that flags ask for, if they ask for one.
pub fn recipe_of(args: &RecipeArgs) -> Result<Option<Recipe>, Failure> {
    let recipe = match (&args.recipe, scheme_of(args)?) {
        (Some(file), _) => Recipe::read(file)?,
        (None, Some(scheme)) => Recipe::from_flags(scheme, &args.keep, args.embeddings)?,
        (None, None) if args.prune.is_some() || !parts(args).is_empty() => Recipe::as_stored(&args.keep)?,
        (None, None) => return Ok(None),
    };
    let recipe = match sparsity(args)? {
        Some(sparsity) => recipe.pruned(sparsity),
        None => recipe,
    };
    let blocks = block_options(args)?;
    let asked = blocks.pure || blocks.importance.is_some();
    if asked && !recipe.schemes().iter().any(|scheme| matches!(scheme, Scheme::Ggml(_))) {
        return Err(Failure::Usage(
            "--pure and --imatrix are for GGUF's block types; expected a scheme such as q4_k_m".into(),
        ));
    }
    if (args.search || args.method.is_some()) && !recipe.quantizes() {
        return Err(Failure::Usage(
            "--method and --search are for schemes with scales; expected one such as --int4 or q4_k_m".into(),
        ));
    }
    if blocks.method.calibrates() && recipe.prunes() {
        return Err(Failure::Usage(format!(
            "--method {}: what is pruned is not quantized by a text too, which would fill its zeros; expected --method rtn or search with --prune",
            blocks.method
        )));
    }
    if blocks.method == Method::Awq && blocks.importance.is_some() {
        return Err(Failure::Usage(
            "--imatrix: tells how much columns matter as they are, and --method awq scales them; expected one of the two".into(),
        ));
    }
    let grouped = |scheme: &Scheme| matches!(scheme, Scheme::W4A16 | Scheme::W8A16);
    if blocks.group.is_some() && !recipe.schemes().iter().any(grouped) {
        return Err(Failure::Usage("--group-size is for w4a16 and w8a16".into()));
    }
    Ok(Some(Recipe { blocks, parts: parts(args), ..recipe }))
}

/// What flags ask to remove of the model's shape.
fn parts(args: &RecipeArgs) -> Parts {
    Parts { layers: args.prune_layers.clone(), heads: args.prune_heads, neurons: args.prune_neurons }
}

/// What flags ask to remove.
fn sparsity(args: &RecipeArgs) -> Result<Option<Sparsity>, Failure> {
    let Some(pattern) = args.prune else { return Ok(None) };
    let (method, scope) = (args.prune_method.unwrap_or_default(), args.prune_scope.unwrap_or_default());
    Sparsity::new(pattern, method, scope).map(Some).map_err(|e| Failure::Usage(format!("--prune: {e}")))
}

fn recovery(args: &CalibrationArgs) -> Option<Recovery> {
    let solver = args.steps.map_or(Solver::Auto, |steps| Solver::Descent { steps: steps as usize });
    args.recover.then(|| Recovery { ridge: args.ridge.unwrap_or(0.0), solver })
}

/// The calibration that the recipe needs.
fn calibration(
    args: &CalibrationArgs,
    recipe: &Recipe,
    model: &Checkpoint,
    write: &WriteArgs,
) -> Result<Option<Calibration>, Failure> {
    let parts = recipe.parts.need_text();
    let codes = recipe.quantizes_by_text();
    if let (Some(_), true) = (args.calibration.as_ref().or(args.calibration_out.as_ref()), codes) {
        return Err(Failure::Usage(format!(
            "--method {}: leads a text through the model and keeps nothing of it; expected --calibrate TEXT without --calibration and --calibration-out",
            recipe.blocks.method
        )));
    }
    let from = match (&args.calibrate, &args.calibration, recipe.calibrates() || parts || codes) {
        (Some(text), _, true) => {
            let tokens = args.calibrate_tokens as usize;
            Origin::Text(calibration::Options { text: text.clone(), tokens, context: None })
        }
        (None, Some(file), true) => Origin::File(Recorded::open(file, model)?),
        (None, None, true) if parts => return Err(Failure::Usage(
            "--prune-heads, --prune-neurons and --prune-layers N find with a text what matters least; give one with --calibrate, or name layers: --prune-layers 5,6".into(),
        )),
        (None, None, true) if codes => return Err(Failure::Usage(format!(
            "--method {}: looks at the inputs of weights; give a text with --calibrate, or choose --method search",
            recipe.blocks.method
        ))),
        (None, None, true) => return Err(Failure::Usage(
            "--prune-method wanda and sparsegpt, and --recover, look at the inputs of weights; give a text with --calibrate, or prune by magnitude".into(),
        )),
        (None, None, false) if args.calibration_out.is_none() => return Ok(None),
        (_, _, false) => return Err(Failure::Usage(
            "--calibrate: nothing that is asked for looks at a text; expected a scheme with scales, --prune-method wanda or sparsegpt, --recover, --prune-heads, --prune-neurons or --prune-layers N".into(),
        )),
    };
    let record = args.calibration_out.as_ref().map(|path| Record {
        path: path.clone(),
        force: write.force,
        recipe: recipe.describe(),
    });
    if let Some(record) = &record {
        formats::Sink::check(&record.path, formats::Shape::File, record.force)?;
    }
    Ok(Some(Calibration { from, record }))
}

/// The scheme that flags name.
fn scheme_of(args: &RecipeArgs) -> Result<Option<Scheme>, Failure> {
    let flags =
        [(args.int8, Scheme::Int8), (args.int4, Scheme::W4A16), (args.f16, Scheme::F16), (args.bf16, Scheme::BF16)];
    let Some(name) = &args.scheme else {
        return Ok(flags.into_iter().find(|(on, _)| *on).map(|(_, scheme)| scheme));
    };
    let unknown = || Failure::Usage(format!("--scheme {name}: no such scheme; there are {}", Scheme::names()));
    Scheme::from_name(name).map(Some).ok_or_else(unknown)
}

fn block_options(args: &RecipeArgs) -> Result<BlockOptions, Failure> {
    let read = |path: &PathBuf| {
        let source = formats::open(path, Access::Mapped, &formats::Limits::default())?;
        Ok::<_, formats::Error>(Arc::new(Imatrix::read(&source)?))
    };
    let importance = args.imatrix.as_ref().map(read).transpose()?;
    let method = args.method.unwrap_or(if args.search { Method::Search } else { Method::Rtn });
    Ok(BlockOptions { pure: args.pure, method, importance, group: args.group_size })
}

/// A model of which nothing can be pruned, for instance one whose matrices are all kept.
fn refuse_idle_pruning(recipe: &Recipe, plan: &Plan) -> Result<(), Failure> {
    if recipe.prunes() && plan.steps.iter().all(|step| step.pruning.is_none()) {
        return Err(Failure::Usage(
            "--prune: there is nothing to prune; expected matrices of linear layers that are floating point and not kept".into(),
        ));
    }
    Ok(())
}

/// What is written, and where: by the output's extension, else by the scheme and by what the input is.
fn target(checkpoint: &Checkpoint, recipe: &Recipe, output: Option<&Path>) -> Result<(Target, PathBuf), Failure> {
    let needed = recipe.schemes().into_iter().find_map(Scheme::container);
    let is_folder = checkpoint.files().whole_folder;
    if let Some(output) = output {
        let extension = output.extension().and_then(|ext| ext.to_str());
        let target = match extension {
            Some("gguf") => Target::File(Format::Gguf),
            Some("safetensors") => Target::File(Format::Safetensors),
            Some("onnx") if needed != Some(Format::Gguf) => Target::File(Format::Onnx),
            Some("npz") if needed != Some(Format::Gguf) => Target::File(Format::Npz),
            Some("pt" | "pth" | "bin") if needed != Some(Format::Gguf) => Target::File(Format::Pytorch),
            _ if needed == Some(Format::Gguf) => {
                return Err(Failure::Usage(format!(
                    "{}: this scheme is stored as GGUF; expected an output that ends in .gguf. Change -o",
                    output.display()
                )));
            }
            _ if is_folder => Target::Folder,
            _ => Target::File(Format::Safetensors),
        };
        return Ok((target, output.to_owned()));
    }
    let target = match (needed, is_folder) {
        (Some(Format::Gguf), _) => Target::File(Format::Gguf),
        _ if checkpoint.format() == Format::Onnx => Target::File(Format::Onnx),
        (_, true) => Target::Folder,
        (_, false) => Target::File(Format::Safetensors),
    };
    Ok((target, beside(checkpoint, target, &recipe.short_name())))
}

/// The path beside the model that an output is given.
pub fn beside(checkpoint: &Checkpoint, target: Target, suffix: &str) -> PathBuf {
    let path = checkpoint.path();
    // A path such as `.` or `..` has no name of its own.
    let named =
        if path.file_name().is_some() { path.to_owned() } else { path.canonicalize().unwrap_or(path.to_owned()) };
    let name = if checkpoint.files().whole_folder { named.file_name() } else { named.file_stem() };
    let name = name.map(|name| whole_name(&name.to_string_lossy())).unwrap_or_default();
    named.with_file_name(match target {
        Target::File(Format::Gguf) => format!("{name}-{suffix}.gguf"),
        Target::File(Format::Onnx) => format!("{name}-{suffix}.onnx"),
        Target::File(_) => format!("{name}-{suffix}.safetensors"),
        Target::Folder => format!("{name}-{suffix}"),
    })
}
