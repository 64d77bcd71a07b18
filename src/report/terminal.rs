//! Reports as text for people.

use std::collections::HashMap;
use std::fmt::Write as _;

use comfy_table::{CellAlignment, Table, presets};

use super::{Inspection, PlanReport, Report};
use crate::check::{Findings, Outputs, WeightError};

/// A number of bytes in the units in which disks and memory are sold: 22.7 MB.
pub fn bytes(n: u64) -> String {
    bytesize::ByteSize::b(n).display().si().to_string()
}

pub(super) fn table(head: &[&str], right_from: usize) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(head.iter().copied());
    for i in right_from..head.len() {
        if let Some(column) = table.column_mut(i) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

/// A table without the blanks that fill its lines.
pub(super) fn text_of(table: &Table) -> String {
    table.to_string().lines().map(|line| format!("{}\n", line.trim_end())).collect()
}

/// What `compress MODEL` prints.
pub fn compress_table(report: &Report) -> String {
    let mut out = String::new();
    let smaller = if report.conversion { String::new() } else { format!(", {:.2} times smaller", report.ratio) };
    let _ = writeln!(
        out,
        "{}: {} → {}{smaller}\n",
        report.output.path.display(),
        bytes(report.input.bytes),
        bytes(report.output.bytes),
    );
    let mut parts = table(&["stored as", "weights", "values", "bytes"], 1);
    for (name, count, values, size) in &report.table {
        parts.add_row([name.clone(), count.to_string(), values.to_string(), bytes(*size)]);
    }
    out.push_str(&text_of(&parts));
    if let Some(calibration) =
        report.calibration.as_ref().filter(|found| found.layers.iter().any(|l| l.pruned.is_some()))
    {
        let mut rows = table(&["loss of a layer's outputs", "pruned", "recovered"], 1);
        for layer in &calibration.layers {
            let recovered = match &layer.recovery {
                Some(loss) if loss.taken => format!("{:.4e}", loss.after),
                Some(_) => "left as it was".to_owned(),
                None => String::new(),
            };
            let pruned = layer.pruned.map(|loss| format!("{loss:.4e}")).unwrap_or_default();
            rows.add_row([layer.name.clone(), pruned, recovered]);
        }
        out.push('\n');
        out.push_str(&text_of(&rows));
    }
    if !report.weights.worst.is_empty() {
        out.push('\n');
        out.push_str(&worst_table(&report.weights.worst));
    }
    out.push('\n');
    match &report.check {
        Some(outputs) => out.push_str(&outputs_text(outputs, report.text.as_deref().unwrap_or_default())),
        None => out.push_str("Not checked, as asked: nobody knows how good this file is.\n"),
    }
    let rate = |seconds: f64| if seconds > 0.0 { report.input.bytes as f64 / 1e6 / seconds } else { 0.0 };
    let verb = if report.conversion { "convert" } else { "compress" };
    let _ = write!(out, "\n{verb} {:.1} s ({:.0} MB/s)", report.seconds.compress, rate(report.seconds.compress));
    if report.check.is_some() {
        let _ = write!(out, ", check {:.1} s ({:.0} MB/s)", report.seconds.check, rate(report.seconds.check));
    }
    out.push('\n');
    let _ = writeln!(out, "loads in: {}", report.clients.join("; "));
    out.push_str(&notes_text(&report.notes));
    for failure in &report.failures {
        let _ = writeln!(out, "FAILED: {failure}");
    }
    out
}

/// A line for each note; where the same is said of more than three weights, one line that names the first two and counts the rest.
fn notes_text(notes: &[String]) -> String {
    let mut about: HashMap<&str, Vec<&str>> = HashMap::new();
    for (name, said) in notes.iter().filter_map(|note| note.split_once(": ")) {
        about.entry(said).or_default().push(name);
    }
    let mut out = String::new();
    for note in notes {
        let _ = match note.split_once(": ").map(|(name, said)| (name, said, about[said].as_slice())) {
            Some((name, said, [first, second, rest @ ..])) if rest.len() > 1 => match name {
                name if name == *first => writeln!(out, "note: {first}, {second} and {} more: {said}", rest.len()),
                _ => Ok(()),
            },
            _ => writeln!(out, "note: {note}"),
        };
    }
    out
}

fn worst_table(worst: &[WeightError]) -> String {
    let mut rows = table(&["largest errors", "SQNR dB", "cosine", "max |error|"], 1);
    for weight in worst {
        rows.add_row([
            weight.name.clone(),
            weight.sqnr_db.map_or_else(|| "exact".to_owned(), |db| format!("{db:.1}")),
            format!("{:.6}", weight.cosine),
            format!("{:.3e}", weight.max_abs_error),
        ]);
    }
    text_of(&rows)
}

fn outputs_text(outputs: &Outputs, source: &str) -> String {
    let mut out = String::new();
    match outputs {
        Outputs::Language(found) => {
            let kl = &found.kl;
            let _ = writeln!(out, "outputs on {} tokens of {source}:", found.tokens);
            let _ = writeln!(
                out,
                "  perplexity {:.4} → {:.4}, same top token {:.2}%",
                found.original.perplexity,
                found.compressed.perplexity,
                100.0 * found.same_top
            );
            let _ = writeln!(
                out,
                "  KL divergence: mean {:.6} ± {:.6}, median {:.6}, 90% {:.6}, 99% {:.6}, 99.9% {:.6}, max {:.6}",
                kl.mean, kl.standard_error, kl.p50, kl.p90, kl.p99, kl.p999, kl.max
            );
        }
        Outputs::Encoder(found) => {
            let _ = writeln!(out, "embeddings of {} texts of {source}:", found.texts);
            let _ = writeln!(
                out,
                "  cosine: mean {:.6}, least {:.6}; rank correlation of similarities {:.6}",
                found.cosine.mean, found.cosine.min, found.rank_correlation
            );
        }
        Outputs::Chain(found) => {
            let _ = writeln!(out, "outputs of {} rows of {source}:", found.rows);
            let _ =
                writeln!(out, "  mean squared error {:.3e}, relative error {:.3e}", found.mse, found.relative_error);
        }
        Outputs::Values { weights, passed: true } => {
            let _ = writeln!(out, "{weights} weights were compared: every number is the original's, bit for bit.");
        }
        Outputs::Values { weights, .. } => {
            let _ = writeln!(out, "{weights} weights were compared, and numbers differ.");
        }
        Outputs::Weights { why, .. } => {
            let _ = writeln!(out, "Weights were compared, outputs were not: {why}.");
        }
    }
    let _ = writeln!(out, "check {}", if outputs.passed() { "passed" } else { "FAILED" });
    out
}

/// What `compress check` prints.
pub fn check_table(findings: &Findings) -> String {
    let mut out = worst_table(&super::worst(&findings.weights));
    out.push('\n');
    out.push_str(&outputs_text(&findings.outputs, &findings.source));
    if !findings.missing.is_empty() {
        let _ = writeln!(out, "note: not in the compressed file: {}", findings.missing.join(", "));
    }
    for failure in &findings.failures {
        let _ = writeln!(out, "FAILED: {failure}");
    }
    out
}

/// What `compress MODEL --dry-run` prints.
pub fn plan_table(plan: &PlanReport) -> String {
    let mut out = String::new();
    let mut rows = table(&["tensor", "role", "values", "from", "to", "bytes", "rule"], 7);
    for tensor in &plan.tensors {
        let rule = match (&tensor.note, tensor.rule) {
            (Some(note), Some(rule)) => format!("{rule}: {note}"),
            (None, Some(rule)) => rule.to_string(),
            (_, None) => "none".to_owned(),
        };
        let to = match &tensor.prune {
            Some(prune) => format!("{} ({prune})", tensor.to),
            None => tensor.to.clone(),
        };
        rows.add_row([
            tensor.name.clone(),
            tensor.role.to_owned(),
            tensor.values.to_string(),
            tensor.from.clone(),
            to,
            tensor.bytes.to_string(),
            rule,
        ]);
    }
    out.push_str(&text_of(&rows));
    out.push('\n');
    for (i, rule) in plan.rules.iter().enumerate() {
        let _ = writeln!(out, "rule {}: {rule}", i + 1);
    }
    let _ = writeln!(
        out,
        "{}: {} → {} ({} bytes), {:.2} times smaller; nothing was written",
        plan.output.path.display(),
        bytes(plan.input.bytes),
        bytes(plan.output.bytes),
        plan.output.bytes,
        plan.ratio
    );
    out.push_str(&notes_text(&plan.notes));
    out
}

/// What `compress inspect` prints.
pub fn inspect_table(found: &Inspection) -> String {
    let mut out = String::new();
    let _ = writeln!(
        out,
        "{}: {}{}, {}, {} parameters, {}",
        found.path.display(),
        found.format,
        if found.files.len() > 1 { format!(" in {} files", found.files.len()) } else { String::new() },
        found.family.unwrap_or("unknown family"),
        found.parameters,
        bytes(found.bytes)
    );
    if let Some(quantized) = &found.quantized {
        let _ = writeln!(out, "quantized: {quantized}");
    }
    if let Some(recipe) = &found.recipe {
        let _ = writeln!(out, "recipe: {recipe}");
    }
    if let Some(why) = &found.unsupported {
        let _ = writeln!(out, "outputs cannot be computed: {why}");
    }
    for remark in &found.remarks {
        let _ = writeln!(out, "{remark}");
    }
    out.push('\n');
    let mut shares = table(&["stored as", "weights", "values", "bytes"], 1);
    for share in &found.encodings {
        shares.add_row([
            share.encoding.clone(),
            share.weights.to_string(),
            share.values.to_string(),
            bytes(share.bytes),
        ]);
    }
    out.push_str(&text_of(&shares));
    out.push('\n');
    let ruled = found.recipe.is_some();
    let head: &[&str] = if ruled {
        &["tensor", "role", "stored as", "shape", "bytes", "rule"]
    } else {
        &["tensor", "role", "stored as", "shape", "bytes"]
    };
    let mut rows = table(head, head.len());
    for tensor in &found.tensors {
        let shape: Vec<String> = tensor.shape.iter().map(u64::to_string).collect();
        let mut row = vec![
            tensor.name.clone(),
            tensor.role.to_owned(),
            tensor.encoding.clone(),
            shape.join(" × "),
            tensor.bytes.to_string(),
        ];
        row.extend(tensor.rule.clone());
        rows.add_row(row);
    }
    out.push_str(&text_of(&rows));
    out
}

#[cfg(test)]
mod tests {
    use super::notes_text;

    #[test]
    fn what_is_said_of_many_weights_is_said_once() {
        let notes = ["a: kept", "plain", "b: kept", "x: odd", "c: kept", "d: kept", "y: odd"].map(String::from);
        let text = "note: a, b and 2 more: kept\nnote: plain\nnote: x: odd\nnote: y: odd\n";
        assert_eq!(notes_text(&notes), text);
    }
}
