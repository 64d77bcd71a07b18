//! What every command that writes a model does with its plan: show it, write it, check it, publish it, report.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use formats::{Access, Sink};

use super::args::{Common, WriteArgs};
use super::{Failure, check as check_command, print, print_json};
use crate::calibration::{Calibration, Origin};
use crate::check::{self, Findings, HeldBack, Outputs};
use crate::job::Job;
use crate::loader::{Checkpoint, Options};
use crate::pipeline::{self, Calibrated, Quantized, Reshaped, Scaled, Seen, Tally, pack};
use crate::quantizer::Method;
use crate::recipe::{Limits, Plan, Recipe, Scheme, Target};
use crate::report::{PlanReport, Report, Seconds, compress_table, plan_table};

/// Opens the input as the flags say.
pub fn open(model: &Path, common: &Common) -> Result<Arc<Checkpoint>, Failure> {
    Ok(Arc::new(Checkpoint::open(model, &Options { access: access(common), ..Options::default() })?))
}

fn access(common: &Common) -> Access {
    if common.no_mmap { Access::Read } else { Access::Mapped }
}

/// What is read.
pub struct Input<'a> {
    /// The user's model.
    pub original: &'a Arc<Checkpoint>,
    /// That model without some of its parts, if that is what is written.
    pub reshaped: Option<&'a Reshaped>,
    /// Whether to go on from what an earlier run left, and to leave such.
    pub resume: bool,
    /// Steps of quantizing by a text that are left out.
    pub without: Vec<pipeline::quantize::Step>,
    /// When work began.
    pub started: Instant,
}

/// Shows a plan if that is all that is asked for; else carries it out, after calibrating if there is something to calibrate for,
/// and publishes what it made, if the check passes.
pub fn run(
    input: &Input<'_>,
    recipe: &Recipe,
    mut plan: Plan,
    calibration: Option<&Calibration>,
    output: &Path,
    args: &WriteArgs,
    job: &Job,
) -> Result<(), Failure> {
    if show(input, recipe, &mut plan, output, args)? {
        return Ok(());
    }
    make(input, recipe, plan, calibration, output, args, job)?.finish(input, output, args, job)
}

/// Prints a plan if that is asked for; whether it is all that is.
fn show(input: &Input<'_>, recipe: &Recipe, plan: &mut Plan, output: &Path, args: &WriteArgs) -> Result<bool, Failure> {
    let original = input.original;
    let checkpoint = input.reshaped.map_or(original, |reshaped| &reshaped.checkpoint);
    if args.sparse && !pack::is_packable(plan.target) {
        return Err(Failure::Usage(format!(
            "{}: --sparse is for safetensors; expected an output that ends in .safetensors, or a folder",
            output.display()
        )));
    }
    if args.sparse && args.dry_run {
        plan.notes.push(
            "--sparse: the size is that of a dense file; how small it packs is known when zeros are counted".into(),
        );
    }
    if args.dry_run || args.common.verbose {
        let report = PlanReport::new(original, checkpoint, recipe, plan, output);
        if args.dry_run && args.common.json {
            print_json(&report)?;
        } else if args.dry_run {
            print(&plan_table(&report))?;
        } else {
            eprint!("{}", plan_table(&report));
        }
    }
    Ok(args.dry_run)
}

/// An output that is whole and has been looked at, but has no name yet. Dropped, it is removed.
pub struct Made {
    recipe: Recipe,
    plan: Plan,
    sink: Sink,
    tally: Tally,
    packed: Option<u64>,
    findings: Option<Findings>,
    seconds: Seconds,
    quantized: Option<(Quantized, Option<HeldBack>)>,
    scaled: Option<Scaled>,
    calibrated: Option<Calibrated>,
}

/// Carries out a plan, after calibrating if there is something to calibrate for, and checks what it made.
pub fn make(
    input: &Input<'_>,
    recipe: &Recipe,
    mut plan: Plan,
    calibration: Option<&Calibration>,
    output: &Path,
    args: &WriteArgs,
    job: &Job,
) -> Result<Made, Failure> {
    let original = input.original;
    let checkpoint = input.reshaped.map_or(original, |reshaped| &reshaped.checkpoint);
    let by_text = calibration.filter(|_| recipe.quantizes_by_text());
    let text = by_text.and_then(|calibration| match &calibration.from {
        Origin::Text(text) => Some(text),
        Origin::File(_) => None,
    });
    let scaled = match text.filter(|_| recipe.blocks.method == Method::Awq) {
        Some(text) => {
            pipeline::refuse_output(original, plan.target, output, args.force)?;
            Some(pipeline::scale(checkpoint, &mut plan, text, output, job)?)
        }
        None => None,
    };
    let checkpoint = scaled.as_ref().map_or(checkpoint, |scaled| &scaled.checkpoint);
    let quantized = match text.filter(|_| recipe.blocks.method.chooses_codes()) {
        Some(text) => {
            pipeline::refuse_output(original, plan.target, output, args.force)?;
            let (method, resume) = (recipe.blocks.method, input.resume);
            let options = pipeline::quantize::Options { method, text, resume, without: &input.without };
            let quantized = pipeline::quantize(checkpoint, &mut plan, &options, output, job)?;
            let pipeline::Quantized { plain, checkpoint: chosen, held, .. } = &quantized;
            let held = HeldBack::measure(checkpoint, plain, chosen, held, job)?;
            Some((quantized, held))
        }
        _ => None,
    };
    // Never worse than without a text.
    let worse = |held: &HeldBack| held.chosen > held.nearest;
    let (quantized, refused_codes) = match quantized {
        Some((codes, Some(held))) if recipe.blocks.method == Method::Best && worse(&held) => {
            codes.finish();
            plan = Plan::new(checkpoint, &recipe.without_text(), plan.target, output)?;
            plan.notes.push(format!(
                "codes chosen by the text were worse on what was held back of it ({} {:.6}, to nearest {:.6}); rounded to nearest instead",
                held.measure, held.chosen, held.nearest
            ));
            (None, true)
        }
        quantized => (quantized, false),
    };
    let without = recipe.without_text();
    let recipe = if refused_codes { &without } else { recipe };
    let calibrated = match calibration.filter(|_| recipe.calibrates()) {
        Some(calibration) => {
            pipeline::refuse_output(original, plan.target, output, args.force)?;
            if let Some(recorded) = calibration.recorded().filter(|recorded| recorded.recipe() != recipe.describe()) {
                plan.notes.push(format!("--calibration was gathered while doing: {}", recorded.recipe()));
            }
            let structure = input.reshaped.and_then(|reshaped| reshaped.structure.as_ref());
            let seen = Seen { original, structure };
            Some(pipeline::calibrate(checkpoint, &mut plan, recipe.recovery, (calibration, seen), output, job)?)
        }
        None => {
            pipeline::decide(checkpoint, &mut plan, job)?;
            None
        }
    };
    let coded = quantized.as_ref().map(|(quantized, _)| &quantized.checkpoint);
    let source = calibrated.as_ref().map(|calibrated| &calibrated.checkpoint).or(coded).unwrap_or(checkpoint);
    let (sink, tally);
    let mut packed = None;
    if args.sparse {
        pipeline::refuse_output(original, plan.target, output, args.force)?;
        let (dense, notes) = pipeline::write(source, &plan, &pack::dense(output), false, job)?;
        let (smaller, bytes) = pack::pack(&dense, &plan, output, args.force, job)?;
        (sink, tally, packed) = (smaller, notes, Some(bytes));
    } else {
        (sink, tally) = pipeline::write(source, &plan, output, args.force, job)?;
    }
    let mut seconds = Seconds { compress: input.started.elapsed().as_secs_f64(), check: 0.0 };
    let findings = if args.no_check {
        None
    } else {
        let started = Instant::now();
        let mut found = check_staged(original, checkpoint, recipe, &plan, &sink, args, job)?;
        let pruned = plan.steps.iter().zip(&tally.notes).filter(|(step, _)| step.pruning.is_some());
        pruned.for_each(|(step, notes)| found.expect_zeros(&step.name, notes.zeros - notes.zeros_lost));
        seconds.check = started.elapsed().as_secs_f64();
        Some(found)
    };
    Ok(Made { recipe: recipe.clone(), plan, sink, tally, packed, findings, seconds, quantized, scaled, calibrated })
}

impl Made {
    /// The mean KL divergence of a decoder's predictions, if it was measured.
    pub fn divergence(&self) -> Option<f64> {
        match &self.findings.as_ref()?.outputs {
            Outputs::Language(found) => Some(found.kl.mean),
            _ => None,
        }
    }

    /// Publishes the output if its check passed, or is not to be heeded, and reports.
    pub fn finish(self, input: &Input<'_>, output: &Path, args: &WriteArgs, job: &Job) -> Result<(), Failure> {
        let Self { recipe, plan, sink, tally, packed, findings, mut seconds, quantized, scaled, calibrated } = self;
        let original = input.original;
        let refused = findings.as_ref().filter(|found| !found.outputs.passed() && !args.accept);
        if refused.is_none() {
            job.cancel.check().map_err(pipeline::Error::from)?;
            let started = Instant::now();
            sink.publish()?;
            // The disk had the time of the check too; what it needed beyond that belongs to writing.
            seconds.compress += started.elapsed().as_secs_f64();
        }
        let mut report = Report::new(original, &recipe, &plan, output, &tally, findings.as_ref(), seconds);
        if let Some(bytes) = packed {
            report.pack(bytes);
        }
        if let Some(reshaped) = input.reshaped {
            report.add_parts(original, reshaped);
        }
        if let Some(calibrated) = &calibrated {
            report.add_calibration(calibrated);
        }
        if let Some(scaled) = &scaled {
            report.add_scales(scaled);
        }
        if let Some((quantized, held)) = quantized {
            report.add_codes(&quantized, held);
            if refused.is_none() {
                quantized.finish();
            }
        }
        if args.common.json {
            print_json(&report)?;
        } else if !args.common.quiet {
            print(&compress_table(&report))?;
        }
        let advice = match recipe.is_conversion() {
            true => "Choose a wider --dtype",
            false => "Keep more weights with --keep",
        };
        match refused {
            Some(found) => Err(Failure::Refused(format!(
                "{}: refused and removed: {}. {advice}, loosen the limit, or take it as it is with --accept",
                output.display(),
                found.failures.join("; ")
            ))),
            None => Ok(()),
        }
    }
}

/// Opens the sealed output, which has no name yet, and compares its outputs with the original's and its weights with those that
/// were to be written.
fn check_staged(
    original: &Arc<Checkpoint>,
    source: &Arc<Checkpoint>,
    recipe: &Recipe,
    plan: &Plan,
    sink: &Sink,
    args: &WriteArgs,
    job: &Job,
) -> Result<Findings, Failure> {
    // A single file is the original's own config's: what else lies in the folder may belong to another model.
    let companions = Some(source.companions().clone()).filter(|_| plan.target != Target::Folder);
    let options = Options { access: access(&args.common), companions, ..Options::default() };
    let written = Arc::new(Checkpoint::open(sink.staging(), &options)?);
    let options = check_command::options(&args.check, limits(recipe));
    if recipe.is_conversion()
        && let Some(found) = check::values::compare(original, &written, plan, job)?
    {
        return Ok(found);
    }
    Ok(check::compare_to(source, original, &written, &options, job)?)
}

/// The loosest limits of the recipe's schemes, and of pruning.
fn limits(recipe: &Recipe) -> Limits {
    let pruned = (recipe.prunes() || !recipe.parts.is_empty()).then_some(Limits::PRUNED);
    recipe.schemes().into_iter().map(Scheme::limits).chain(pruned).fold(Scheme::F16.limits(), Limits::or_looser)
}
