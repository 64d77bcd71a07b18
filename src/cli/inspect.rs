//! `compress inspect`.

use std::path::Path;
use std::sync::Arc;

use formats::Format;

use super::args::InspectArgs;
use super::compress::recipe_of;
use super::{Failure, print, print_json, progress, write};
use crate::calibration;
use crate::loader::Checkpoint;
use crate::pipeline::bits::{self, Candidates};
use crate::quantizer::Method;
use crate::recipe::{Recipe, Target};
use crate::report::{Inspection, SensitivityReport, inspect_table, sensitivity_table};

pub fn run(args: &InspectArgs) -> Result<(), Failure> {
    let checkpoint = write::open(&args.model, &args.common)?;
    if let Some(text) = args.calibrate.as_deref().filter(|_| args.sensitivity) {
        return sensitivity(args, &checkpoint, text);
    }
    let asked = recipe_of(&args.recipe)?;
    let recipe = asked.or_else(|| Recipe::recorded(&checkpoint));
    let found = Inspection::new(&checkpoint, recipe.as_ref());
    if args.common.json { print_json(&found) } else { print(&inspect_table(&found)) }
}

fn sensitivity(args: &InspectArgs, checkpoint: &Arc<Checkpoint>, text: &Path) -> Result<(), Failure> {
    let job = progress::job(&args.common)?;
    let target = Target::File(Format::Gguf);
    let mut candidates = Candidates::new(checkpoint, target, Method::Search, Path::new("model.gguf"))?;
    let tokens = args.calibrate_tokens as usize;
    let options = calibration::Options { text: text.to_owned(), tokens, context: None };
    let windows = calibration::windows(checkpoint, &options)?;
    bits::observe(checkpoint, &mut candidates, &windows, &job)?;
    let tokens = windows.iter().map(Vec::len).sum();
    let report = SensitivityReport::new(checkpoint.path(), tokens, &candidates);
    if args.common.json { print_json(&report) } else { print(&sensitivity_table(&report)) }
}
