//! What storing each tensor in each type does, as JSON and as a table.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::terminal::{table, text_of};
use super::{SCHEMA, path};
use crate::pipeline::bits::{Candidates, Thing};
use crate::recipe::Scheme;

/// What `compress inspect --sensitivity --json` prints.
#[derive(Debug, Clone, Serialize)]
pub struct SensitivityReport {
    schema: u32,
    version: &'static str,
    #[serde(serialize_with = "path")]
    model: PathBuf,
    /// Tokens of the calibration text.
    tokens: usize,
    /// The worst first.
    tensors: Vec<Row>,
}

#[derive(Debug, Clone, Serialize)]
struct Row {
    names: Vec<String>,
    values: u64,
    types: Vec<Type>,
}

#[derive(Debug, Clone, Serialize)]
struct Type {
    scheme: &'static str,
    stored_as: String,
    bytes: u64,
    /// What it is foretold to add to the KL divergence of each prediction, in nats; of encoders, to one minus the cosine.
    divergence: f64,
}

/// Bits a number at which tensors are compared.
const COMPARED: f64 = 4.5;

impl SensitivityReport {
    /// What was found.
    pub fn new(model: &Path, tokens: usize, candidates: &Candidates) -> Self {
        let row = |thing: &Thing| Row {
            names: thing.names.clone(),
            values: thing.elements,
            types: thing
                .ways
                .iter()
                .map(|way| Type {
                    scheme: way.scheme.map_or("keep", Scheme::name),
                    stored_as: way.encoding.clone(),
                    bytes: way.bytes,
                    divergence: way.harm,
                })
                .collect(),
        };
        let mut tensors: Vec<Row> = candidates.things.iter().map(row).collect();
        tensors.sort_by(|a, b| b.at(COMPARED).total_cmp(&a.at(COMPARED)));
        let (version, model) = (env!("CARGO_PKG_VERSION"), model.to_owned());
        Self { schema: SCHEMA, version, model, tokens, tensors }
    }
}

impl Row {
    /// The divergence of the type that is nearest to so many bits.
    fn at(&self, bits: f64) -> f64 {
        let off = |kind: &&Type| (8.0 * kind.bytes as f64 / self.values as f64 - bits).abs();
        self.types.iter().min_by(|a, b| off(a).total_cmp(&off(b))).map_or(0.0, |kind| kind.divergence)
    }
}

/// What `compress inspect --sensitivity` prints.
pub fn sensitivity_table(report: &SensitivityReport) -> String {
    let mut kinds: Vec<&str> = Vec::new();
    for kind in report.tensors.iter().flat_map(|row| &row.types) {
        if !kinds.contains(&&kind.stored_as[..]) {
            kinds.push(&kind.stored_as);
        }
    }
    let head: Vec<&str> = ["tensor", "values"].into_iter().chain(kinds.iter().copied()).collect();
    let mut rows = table(&head, 1);
    let mut sums = vec![0.0; kinds.len()];
    for row in &report.tensors {
        let mut cells = vec![row.names.join(" + "), row.values.to_string()];
        for (kind, sum) in kinds.iter().zip(&mut sums) {
            let found = row.types.iter().find(|own| own.stored_as == *kind);
            *sum += found.map_or(0.0, |own| own.divergence);
            cells.push(found.map(|own| format!("{:.2e}", own.divergence)).unwrap_or_default());
        }
        rows.add_row(cells);
    }
    let cells = ["all".to_owned(), String::new()].into_iter().chain(sums.iter().map(|sum| format!("{sum:.2e}")));
    rows.add_row(cells.collect::<Vec<_>>());
    let mut out = format!("{}: foretold divergence by type, from {} tokens\n\n", report.model.display(), report.tokens);
    let _ = write!(out, "{}", text_of(&rows));
    out
}
