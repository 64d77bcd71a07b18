//! What every command that writes a model does with its plan: show it, write it, check it, publish it, report.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use formats::{Access, Sink};

use super::args::{Common, WriteArgs};
use super::{Failure, check as check_command, print, print_json, progress};
use crate::calibration;
use crate::check::{self, Findings};
use crate::job::Job;
use crate::loader::{Checkpoint, Options};
use crate::pipeline;
use crate::recipe::{Limits, Plan, Recipe, Scheme, Target};
use crate::report::{PlanReport, Report, Seconds, compress_table, plan_table};

/// Opens the input as the flags say.
pub fn open(model: &Path, common: &Common) -> Result<Arc<Checkpoint>, Failure> {
    Ok(Arc::new(Checkpoint::open(model, &Options { access: access(common), ..Options::default() })?))
}

fn access(common: &Common) -> Access {
    if common.no_mmap { Access::Read } else { Access::Mapped }
}

/// Carries out a plan, after calibrating if there is something to calibrate for, and publishes what it made, if the check passes.
pub fn run(
    checkpoint: &Arc<Checkpoint>,
    recipe: &Recipe,
    mut plan: Plan,
    calibration: Option<&calibration::Options>,
    output: &Path,
    args: &WriteArgs,
) -> Result<(), Failure> {
    if args.dry_run || args.common.verbose {
        let report = PlanReport::new(checkpoint, recipe, &plan, output);
        if args.dry_run && args.common.json {
            return print_json(&report);
        }
        if args.dry_run {
            return print(&plan_table(&report));
        }
        eprint!("{}", plan_table(&report));
    }
    let job = progress::job(&args.common)?;
    let started = Instant::now();
    let calibrated = match calibration {
        Some(options) => {
            pipeline::refuse_output(checkpoint, &plan, output, args.force)?;
            Some(pipeline::calibrate(checkpoint, &mut plan, recipe.recovery, options, output, &job)?)
        }
        None => {
            pipeline::decide(checkpoint, &mut plan, &job)?;
            None
        }
    };
    let source = calibrated.as_ref().map_or(checkpoint, |calibrated| &calibrated.checkpoint);
    let (sink, tally) = pipeline::write(source, &plan, output, args.force, &job)?;
    let mut seconds = Seconds { compress: started.elapsed().as_secs_f64(), check: 0.0 };
    let findings = if args.no_check {
        None
    } else {
        let started = Instant::now();
        let mut found = check_staged(checkpoint, recipe, &plan, &sink, args, &job)?;
        let pruned = plan.steps.iter().zip(&tally.notes).filter(|(step, _)| step.pruning.is_some());
        pruned.for_each(|(step, notes)| found.expect_zeros(&step.name, notes.zeros - notes.zeros_lost));
        seconds.check = started.elapsed().as_secs_f64();
        Some(found)
    };
    let refused = findings.as_ref().filter(|found| !found.outputs.passed() && !args.accept);
    if refused.is_none() {
        job.cancel.check().map_err(pipeline::Error::from)?;
        let started = Instant::now();
        sink.publish()?;
        // The disk had the time of the check too; what it needed beyond that belongs to writing.
        seconds.compress += started.elapsed().as_secs_f64();
    }
    let mut report = Report::new(checkpoint, recipe, &plan, output, &tally, findings.as_ref(), seconds);
    if let Some(calibrated) = &calibrated {
        report.add_calibration(calibrated);
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

/// Opens the sealed output, which has no name yet, and compares it with the original.
fn check_staged(
    original: &Arc<Checkpoint>,
    recipe: &Recipe,
    plan: &Plan,
    sink: &Sink,
    args: &WriteArgs,
    job: &Job,
) -> Result<Findings, Failure> {
    // A single file is the original's own config's: what else lies in the folder may belong to another model.
    let companions = Some(original.companions().clone()).filter(|_| plan.target != Target::Folder);
    let options = Options { access: access(&args.common), companions, ..Options::default() };
    let written = Arc::new(Checkpoint::open(sink.staging(), &options)?);
    let options = check_command::options(&args.check, limits(recipe));
    if recipe.is_conversion()
        && let Some(found) = check::values::compare(original, &written, plan, job)?
    {
        return Ok(found);
    }
    Ok(check::compare(original, &written, &options, job)?)
}

/// The loosest limits of the recipe's schemes, and of pruning.
fn limits(recipe: &Recipe) -> Limits {
    let pruned = recipe.prunes().then_some(Limits::PRUNED);
    recipe.schemes().into_iter().map(Scheme::limits).chain(pruned).fold(Scheme::F16.limits(), Limits::or_looser)
}
