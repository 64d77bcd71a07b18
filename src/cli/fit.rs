//! `compress fit`: data becomes a linear layer, which is opened again and evaluated before it gets its name.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;

use formats::{Dtype, FilePlan, Shape, Sink, TensorMeta};
use serde::Serialize;

use super::args::FitArgs;
use super::{Failure, print, print_json, progress};
use crate::fit::{self, Data, Evaluation, Fitted, Loss, Options};
use crate::job::Job;
use crate::loader::Checkpoint;
use crate::pruner::Solver;
use crate::report::SCHEMA;
use crate::runtime;

/// What `compress fit --json` prints.
#[derive(Debug, Serialize)]
struct Report {
    schema: u32,
    version: &'static str,
    data: String,
    rows: usize,
    features: usize,
    targets: usize,
    output: String,
    loss: Loss,
    /// On the rows that were fitted to, by the written file.
    train: Option<Evaluation>,
    /// On the others, by the written file; null if there are none.
    held_out: Option<Evaluation>,
}

pub fn run(args: &FitArgs) -> Result<(), Failure> {
    if args.output.extension().is_none_or(|ext| ext != "safetensors") {
        let output = args.output.display();
        return Err(Failure::Usage(format!("{output}: expected an output that ends in .safetensors. Change -o")));
    }
    Sink::check(&args.output, Shape::File, args.force)?;
    let job = progress::job(&args.common)?;
    let data = Data::read(&args.data, args.targets as usize)?;
    let solver = args.steps.map_or(Solver::Auto, |steps| Solver::Descent { steps: steps as usize });
    let options = Options { ridge: args.ridge, split: args.split, seed: args.seed, solver };
    let fitted = fit::fit(&data, &options, &job)?;
    let sink = write(args, &data, &fitted)?;
    let [train, held_out] = [&fitted.train, &fitted.held_out].map(|part| evaluate(sink.staging(), part, &job));
    let report = Report {
        schema: SCHEMA,
        version: env!("CARGO_PKG_VERSION"),
        data: args.data.display().to_string(),
        rows: data.rows(),
        features: data.features,
        targets: data.targets,
        output: args.output.display().to_string(),
        loss: fitted.loss,
        train: train?,
        held_out: held_out?,
    };
    sink.publish()?;
    if args.common.json {
        print_json(&report)
    } else if args.common.quiet {
        Ok(())
    } else {
        print(&text(&report))
    }
}

/// Stages the layer as a chain of one.
fn write(args: &FitArgs, data: &Data, fitted: &Fitted) -> Result<Sink, Failure> {
    let shape = vec![data.targets as u64, data.features as u64];
    let meta = TensorMeta::new("0.weight", Dtype::F32, shape);
    let words = [
        ("format", "pt".to_owned()),
        ("modelpress.version", env!("CARGO_PKG_VERSION").to_owned()),
        ("modelpress.fit", format!("ridge {}, split {}, seed {}", args.ridge, args.split, args.seed)),
    ];
    let metadata: BTreeMap<String, String> = words.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    let layout = formats::safetensors::layout(&args.output, &[meta], &metadata)?;
    let plan = FilePlan { name: String::new(), layout };
    let mut sink = Sink::create(&args.output, Shape::File, vec![plan], 0, args.force)?;
    sink.write_at(0, 0, 0, &fitted.bytes())?;
    sink.seal()?;
    Ok(sink)
}

/// What the written file predicts of some rows, against what they say.
fn evaluate(written: &Path, data: &Data, job: &Job) -> Result<Option<Evaluation>, Failure> {
    let companions = Some(crate::loader::Companions::default());
    let options = crate::loader::Options { companions, ..crate::loader::Options::default() };
    let chain = runtime::load_chain(&Arc::new(Checkpoint::open(written, &options)?))?;
    let predictions = chain.predict(&data.inputs(), 0, &mut runtime::Unobserved, job)?;
    Ok(fit::evaluate(data, &predictions))
}

fn text(report: &Report) -> String {
    let mut out = String::new();
    let _ = writeln!(
        out,
        "{}: {} features → {} targets, from {} rows of {}",
        report.output, report.features, report.targets, report.rows, report.data
    );
    let _ = writeln!(out, "  loss {:.6e} → {:.6e}", report.loss.before, report.loss.after);
    for (name, part) in [("fitted to", &report.train), ("held out", &report.held_out)] {
        let Some(found) = part else { continue };
        let r2 = found.r2.map(|r2| format!(", R² {r2:.6}")).unwrap_or_default();
        let _ = writeln!(out, "  {name}: {} rows, mean squared error {:.6e}{r2}", found.rows, found.mse);
    }
    out
}
