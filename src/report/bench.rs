//! What `compress bench` found: JSON, and tables with a column for each model.

use std::collections::HashSet;
use std::fmt::Write as _;

use serde::Serialize;

use super::SCHEMA;
use super::terminal::{bytes, table, text_of};
use crate::bench::{Machine, Range, Result, Usage};

/// What `compress bench --json` prints.
#[derive(Debug, Clone, Serialize)]
pub struct BenchReport {
    schema: u32,
    version: &'static str,
    machine: Busy,
    /// Times that each model was measured, in turn with the others.
    repeat: usize,
    models: Vec<Result>,
    /// What the user should know, in words.
    notes: Vec<String>,
    /// How each model compares with the first, in words.
    comparisons: Vec<String>,
}

/// A machine, and how busy others kept it.
#[derive(Debug, Clone, Serialize)]
struct Busy {
    #[serde(flatten)]
    machine: Machine,
    busy: bool,
    /// The share of processor time that other programs used.
    others: f64,
    /// The share of processor time that the hypervisor gave to others.
    stolen: f64,
}

/// Repeats that differ by more than this are pointed out.
const SPREAD: f64 = 0.15;

/// Models side by side; more go into a table below.
const COLUMNS: usize = 4;

impl BenchReport {
    /// Puts together what was measured. `usage` is that of the roof's measurement.
    pub fn new(machine: Machine, usage: Usage, repeat: usize, models: Vec<Result>) -> Self {
        let usage = models.iter().fold(usage, |all, model| all.and(model.usage));
        let machine = Busy { machine, busy: usage.is_busy(), others: usage.others(), stolen: usage.stolen() };
        let names = names(&models);
        let comparisons = match (models.split_first(), names.split_first()) {
            (Some((first, others)), Some((first_name, other_names))) => {
                let pairs = others.iter().zip(other_names);
                pairs.map(|(other, name)| comparison(first_name, first, name, other)).collect()
            }
            _ => Vec::new(),
        };
        let notes = notes(&machine, &models, &names);
        Self { schema: SCHEMA, version: env!("CARGO_PKG_VERSION"), machine, repeat, models, notes, comparisons }
    }
}

/// The models' file names; paths where two have the same.
fn names(models: &[Result]) -> Vec<String> {
    let short = |model: &Result| model.path.file_name().map(|name| name.to_string_lossy().into_owned());
    let different: HashSet<_> = models.iter().map(short).collect();
    let unique = different.len() == models.len();
    models.iter().map(|m| short(m).filter(|_| unique).unwrap_or_else(|| m.path.display().to_string())).collect()
}

/// How a model compares with the first, in words.
fn comparison(first_name: &str, first: &Result, name: &str, other: &Result) -> String {
    let ratio = first.bytes as f64 / other.bytes.max(1) as f64;
    let size =
        if ratio >= 1.0 { format!("{ratio:.2} times smaller") } else { format!("{:.2} times larger", 1.0 / ratio) };
    let mut parts = vec![size];
    let mut slower = Vec::new();
    for (what, unit, now) in other.speeds() {
        let Some((_, _, before)) = first.speeds().into_iter().find(|(same, _, _)| *same == what) else { continue };
        let ratio = if before.median > 0.0 { now.median / before.median } else { 0.0 };
        let overlap = now.min <= before.max && before.min <= now.max;
        let within = if overlap { ", within the spread of the repeats" } else { "" };
        if ratio < 1.0 {
            slower.push(what);
            parts.push(format!(
                "{what} SLOWER: {} against {} {unit}, {ratio:.2} times as fast{within}",
                number(now.median),
                number(before.median)
            ));
        } else {
            parts.push(format!("{what} {ratio:.2} times as fast{within}"));
        }
    }
    let verdict = match slower.as_slice() {
        [] => String::new(),
        all => format!(". It is slower than the original in {}", all.join(" and ")),
    };
    format!("{name} against {first_name}: {}{verdict}", parts.join("; "))
}

fn notes(machine: &Busy, models: &[Result], names: &[String]) -> Vec<String> {
    let mut notes = Vec::new();
    if machine.busy {
        notes.push(format!(
            "the machine is busy: other programs used {:.0}% of its processor time and other guests of its host {:.0}%. \
             Times are too long; compare only what one run measured",
            100.0 * machine.others,
            100.0 * machine.stolen
        ));
    }
    for (model, name) in models.iter().zip(names) {
        for (what, _, speed) in model.speeds() {
            if speed.spread() > SPREAD {
                notes.push(format!(
                    "{name}: repeats of {what} differ by {:.0}%; measure more often with --repeat, or on a quieter machine",
                    100.0 * speed.spread()
                ));
            }
        }
        if model.decode.as_ref().is_some_and(|decode| decode.roof_fraction > 1.0) {
            notes.push(format!("{name}: decodes faster than memory is read, so its weights stay in the caches"));
        }
    }
    notes
}

/// Three digits that count.
fn number(x: f64) -> String {
    let digits = match x.abs() {
        x if x >= 99.95 => 0,
        x if x >= 9.995 => 1,
        x if x >= 0.9995 => 2,
        _ => 3,
    };
    if x != 0.0 && x.abs() < 0.01 { format!("{x:.2e}") } else { format!("{x:.digits$}") }
}

/// The median, and the least and the most where there is more than one.
fn spread(median: f64, [min, max]: [f64; 2]) -> String {
    let Range { median, min, max } = Range { median, min, max };
    if min == max { number(median) } else { format!("{} ({} – {})", number(median), number(min), number(max)) }
}

fn percent(x: f64) -> String {
    format!("{:.0}%", 100.0 * x)
}

/// A line of the table: what it tells, and how a model answers.
type Line = (&'static str, fn(&Result) -> Option<String>);

const LINES: &[Line] = &[
    ("file", |m| Some(bytes(m.bytes))),
    ("load, s", |m| Some(spread(m.load_seconds, m.load_seconds_range))),
    ("prompt + decoded tokens", |m| Some(format!("{} + {}", m.prefill.as_ref()?.tokens, m.decode.as_ref()?.tokens))),
    ("prefill, tokens/s", |m| m.prefill.as_ref().map(|p| spread(p.tokens_per_second, p.range))),
    ("  of peak arithmetic", |m| m.prefill.as_ref().map(|p| percent(p.peak_fraction))),
    ("first token, s", |m| m.prefill.as_ref().map(|p| spread(p.first_token_seconds, p.first_token_seconds_range))),
    ("decode, tokens/s", |m| m.decode.as_ref().map(|d| spread(d.tokens_per_second, d.range))),
    ("  of the memory's roof", |m| m.decode.as_ref().map(|d| percent(d.roof_fraction))),
    ("  read for a token", |m| m.decode.as_ref().map(|d| bytes(d.bytes_per_token))),
    ("sentences × tokens", |m| m.encode.as_ref().map(|e| format!("{} × {}", e.sentences, e.tokens))),
    ("sentences/s", |m| m.encode.as_ref().map(|e| spread(e.sentences_per_second, e.range))),
    ("  of peak arithmetic ", |m| m.encode.as_ref().map(|e| percent(e.peak_fraction))),
    ("one sentence, s", |m| m.encode.as_ref().map(|e| spread(e.latency_seconds, e.latency_seconds_range))),
    ("rows", |m| m.predict.as_ref().map(|p| p.rows.to_string())),
    ("rows/s", |m| m.predict.as_ref().map(|p| spread(p.rows_per_second, p.range))),
    ("  of peak arithmetic  ", |m| m.predict.as_ref().map(|p| percent(p.peak_fraction))),
    ("peak memory", |m| m.peak_memory_bytes.map(bytes)),
    ("  of it, not mapped", |m| m.anonymous_memory_bytes.map(bytes)),
];

/// What `compress bench` prints.
pub fn bench_table(report: &BenchReport, with_kernels: bool) -> String {
    let mut out = String::new();
    let Busy { machine, .. } = &report.machine;
    let _ = writeln!(
        out,
        "{}, {} cores, {} threads, {}: reads {:.1} GB/s; at most {} f32, {} bf16, {} int8 operations/s",
        machine.processor.as_deref().unwrap_or("processor of unknown name"),
        machine.cores,
        machine.threads,
        machine.isa,
        machine.read_bandwidth_gb_s,
        tera(machine.f32_tflops),
        tera(machine.bf16_tflops),
        tera(machine.int8_tops),
    );
    if with_kernels {
        out.push('\n');
        let mut loops = table(&["loop", "version", "why"], 3);
        for kernel in &machine.kernels {
            loops.add_row([&kernel.name, &kernel.kernel, &kernel.why]);
        }
        out.push_str(&text_of(&loops));
    }
    let names = names(&report.models);
    for (models, names) in report.models.chunks(COLUMNS).zip(names.chunks(COLUMNS)) {
        out.push('\n');
        let head: Vec<&str> = std::iter::once("").chain(names.iter().map(String::as_str)).collect();
        let mut rows = table(&head, 1);
        for (what, of) in LINES {
            let cells: Vec<Option<String>> = models.iter().map(of).collect();
            if cells.iter().any(Option::is_some) {
                let cells = cells.into_iter().map(|cell| cell.unwrap_or_else(|| "–".to_owned()));
                rows.add_row(std::iter::once((*what).to_owned()).chain(cells));
            }
        }
        out.push_str(&text_of(&rows));
    }
    if with_kernels && !report.models.is_empty() {
        out.push('\n');
        let mut rows = table(&["model", "stored as", "multiplied as", "decode by", "prefill by"], 5);
        for (model, name) in report.models.iter().zip(&names) {
            for kernel in &model.kernels {
                rows.add_row([name, &kernel.encoding, &kernel.arithmetic, kernel.decode, kernel.prefill]);
            }
        }
        out.push_str(&text_of(&rows));
    }
    if report.repeat > 1 && !report.models.is_empty() {
        let _ = writeln!(out, "\nmedian (least – most) of {} rounds, the models in turn", report.repeat);
    }
    for line in &report.comparisons {
        let _ = writeln!(out, "{line}");
    }
    for note in &report.notes {
        let _ = writeln!(out, "note: {note}");
    }
    out
}

/// A number of operations in the prefixes of large numbers.
fn tera(tera: f64) -> String {
    if tera >= 1.0 { format!("{tera:.2} T") } else { format!("{:.0} G", 1000.0 * tera) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::{Decode, Prefill};

    fn model(path: &str, bytes: u64, prefill: [f64; 3], decode: [f64; 3]) -> Result {
        let [median, min, max] = prefill;
        Result {
            path: path.into(),
            bytes,
            load_seconds: 0.5,
            load_seconds_range: [0.4, 0.6],
            peak_memory_bytes: Some(3_000_000),
            anonymous_memory_bytes: None,
            kernels: Vec::new(),
            prefill: Some(Prefill {
                tokens: 512,
                tokens_per_second: median,
                range: [min, max],
                peak_fraction: 0.25,
                first_token_seconds: 5.0,
                first_token_seconds_range: [5.0, 5.0],
            }),
            decode: Some(Decode {
                tokens: 64,
                tokens_per_second: decode[0],
                range: [decode[1], decode[2]],
                roof_fraction: 0.5,
                bytes_per_token: 1_000_000,
            }),
            encode: None,
            predict: None,
            usage: Usage { total: 1000, own: 900, idle: 100, stolen: 0 },
        }
    }

    fn machine() -> Machine {
        Machine {
            processor: None,
            cores: 2,
            threads: 2,
            isa: "avx2",
            read_bandwidth_gb_s: 20.0,
            f32_tflops: 0.3,
            bf16_tflops: 0.3,
            int8_tops: 1.5,
            kernels: Vec::new(),
        }
    }

    #[test]
    fn a_model_that_is_slower_than_the_original_is_said_to_be() {
        let first = model("m/a", 2_000_000, [100.0, 90.0, 110.0], [10.0, 9.5, 10.5]);
        let slower = model("m/b", 1_000_000, [80.0, 70.0, 95.0], [20.0, 19.0, 21.0]);
        let report = BenchReport::new(machine(), Usage::default(), 3, vec![first.clone(), slower]);
        let text = bench_table(&report, false);
        assert!(text.contains("b against a: 2.00 times smaller; prefill SLOWER: 80.0 against 100 tokens/s, 0.80 times as fast, within the spread of the repeats; decode 2.00 times as fast. It is slower than the original in prefill\n"), "{text}");
        let faster = model("n/a", 4_000_000, [100.0, 90.0, 110.0], [10.0, 9.5, 10.5]);
        let report = BenchReport::new(machine(), Usage::default(), 3, vec![first, faster]);
        let text = bench_table(&report, true);
        assert!(text.contains("n/a against m/a: 2.00 times larger; prefill 1.00 times as fast"), "{text}");
        assert!(!text.contains("slower"), "{text}");
    }

    #[test]
    fn a_busy_machine_and_unequal_repeats_are_pointed_out() {
        let quiet = BenchReport::new(machine(), Usage::default(), 1, vec![model("a", 1, [1.0; 3], [1.0; 3])]);
        assert!(quiet.notes.is_empty() && !quiet.machine.busy, "{:?}", quiet.notes);
        let usage = Usage { total: 1000, own: 200, idle: 100, stolen: 100 };
        let report = BenchReport::new(machine(), usage, 1, vec![model("a", 1, [1.0, 0.5, 1.0], [1.0; 3])]);
        let text = bench_table(&report, false);
        assert!(text.contains("the machine is busy: other programs used 30% of its processor time"), "{text}");
        assert!(text.contains("a: repeats of prefill differ by 50%"), "{text}");
    }

    #[test]
    fn numbers_have_three_digits_that_count() {
        let found: Vec<String> = [0.0, 0.00123, 0.0123, 1.234, 12.34, 1234.5].into_iter().map(number).collect();
        assert_eq!(found, ["0.000", "1.23e-3", "0.012", "1.23", "12.3", "1234"]);
    }
}
