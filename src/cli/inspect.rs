//! `compress inspect`.

use super::args::InspectArgs;
use super::compress::recipe_of;
use super::{Failure, print, print_json};
use crate::loader::{Checkpoint, Options};
use crate::recipe::Recipe;
use crate::report::{Inspection, inspect_table};

pub fn run(args: &InspectArgs) -> Result<(), Failure> {
    let checkpoint = Checkpoint::open(&args.model, &Options::default())?;
    let asked = recipe_of(&args.recipe)?;
    let recipe = asked.or_else(|| Recipe::recorded(&checkpoint));
    let found = Inspection::new(&checkpoint, recipe.as_ref());
    if args.json { print_json(&found) } else { print(&inspect_table(&found)) }
}
