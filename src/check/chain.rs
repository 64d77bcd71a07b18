//! Chains of linear layers: how far outputs move.

use std::path::Path;
use std::sync::Arc;

use formats::{Access, Limits};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use rand_distr::{Distribution, StandardNormal};
use serde::Serialize;

use super::statistics::cosine;
use super::{Error, Options, Result};
use crate::encoding::plain::Real;
use crate::job::Job;
use crate::loader::Checkpoint;
use crate::runtime;

/// Feeds the same inputs to both chains.
///
/// # Errors
/// As [`super::compare`].
pub fn compare(
    original: &Arc<Checkpoint>,
    written: &Arc<Checkpoint>,
    options: &Options,
    job: &Job,
    failures: &mut Vec<String>,
) -> Result<(Comparison, String)> {
    let chains = [runtime::load_chain(original)?, runtime::load_chain(written)?];
    let features = chains[0].shape().widths.first().copied().unwrap_or(0);
    let inputs = inputs(options.text.as_deref(), features)?;
    job.progress.begin("check outputs", 2);
    let outputs = chains.iter().enumerate().map(|(number, chain)| {
        let y = chain.predict(&inputs.values, number, &mut runtime::Unobserved, job);
        job.progress.advance(1);
        y
    });
    let outputs = outputs.collect::<Result<Vec<_>, _>>();
    job.progress.end();
    let outputs = outputs?;
    let found = Comparison::of(inputs.rows, &outputs[0], &outputs[1], options.limits.min_cosine);
    if !found.passed {
        failures.push(format!(
            "the outputs' relative error is {:.4}, and their cosine is below its limit of {}",
            found.relative_error, options.limits.min_cosine
        ));
    }
    Ok((found, inputs.name))
}

/// What the comparison of two chains found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Comparison {
    /// Rows of input.
    pub rows: usize,
    /// Mean of (y − ŷ)² over all outputs of all rows.
    pub mse: f64,
    /// ‖y − ŷ‖ / ‖y‖ over all outputs of all rows.
    pub relative_error: f64,
    /// Whether the cosine between all outputs of both, as two vectors, is within its limit.
    pub passed: bool,
}

impl Comparison {
    /// Compares outputs.
    pub fn of(rows: usize, original: &[f32], compressed: &[f32], min_cosine: f64) -> Self {
        let pairs = || original.iter().zip(compressed).map(|(&a, &b)| (f64::from(a), f64::from(b)));
        let noise: f64 = pairs().map(|(a, b)| (a - b) * (a - b)).sum();
        let signal: f64 = pairs().map(|(a, _)| a * a).sum();
        let relative_error = match (signal > 0.0, noise > 0.0) {
            (true, _) => (noise / signal).sqrt(),
            (false, false) => 0.0,
            (false, true) => f64::INFINITY,
        };
        Self {
            rows,
            mse: noise / original.len().max(1) as f64,
            relative_error,
            passed: noise.is_finite() && cosine(original, compressed) >= min_cosine,
        }
    }
}

/// Rows of standard normal inputs where none are given.
const NORMAL_ROWS: usize = 1024;

/// Inputs, and where they are from.
pub struct Inputs {
    /// Row after row.
    pub values: Vec<f32>,
    /// Number of rows.
    pub rows: usize,
    /// The file's name, or what was drawn.
    pub name: String,
}

/// Standard normal inputs, row after row, and the number of rows. Always the same.
pub fn normal_inputs(features: usize) -> (Vec<f32>, usize) {
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    (StandardNormal.sample_iter(&mut rng).take(NORMAL_ROWS * features).collect(), NORMAL_ROWS)
}

/// Reads inputs from a .safetensors file (its only matrix of `features` columns) or a .csv file (`features` numbers a line,
/// a heading allowed), or draws standard normal ones, always the same.
///
/// # Errors
/// A file that cannot be read or does not fit.
pub fn inputs(path: Option<&Path>, features: usize) -> Result<Inputs> {
    let Some(path) = path else {
        let (values, rows) = normal_inputs(features);
        return Ok(Inputs { values, rows, name: "standard normal inputs".to_owned() });
    };
    let values = match path.extension().and_then(|ext| ext.to_str()) {
        Some("csv") => from_csv(path, features)?,
        _ => from_safetensors(path, features)?,
    };
    if values.is_empty() {
        return Err(wrong(path, "no rows".to_owned(), features));
    }
    Ok(Inputs { rows: values.len() / features, values, name: path.display().to_string() })
}

fn wrong(file: &Path, found: String, features: usize) -> Error {
    Error::Text {
        file: file.to_owned(),
        found,
        expected: format!("rows of {features} finite numbers, as the first layer takes"),
        next: "Give inputs as .csv or .safetensors with --text, or leave it out for standard normal ones".to_owned(),
    }
}

fn from_csv(path: &Path, features: usize) -> Result<Vec<f32>> {
    let reader = csv::ReaderBuilder::new().has_headers(false).trim(csv::Trim::All).from_path(path);
    let mut reader = reader.map_err(|e| wrong(path, format!("a problem ({e})"), features))?;
    let mut values = Vec::new();
    for (i, record) in reader.records().enumerate() {
        let record = record.map_err(|e| wrong(path, format!("a problem ({e})"), features))?;
        let row: Option<Vec<f32>> =
            record.iter().map(|field| field.parse().ok().filter(|x: &f32| x.is_finite())).collect();
        match row {
            Some(row) if row.len() == features => values.extend(row),
            Some(row) => return Err(wrong(path, format!("{} numbers in line {}", row.len(), i + 1), features)),
            None if i == 0 => {}
            None => return Err(wrong(path, format!("something else in line {}", i + 1), features)),
        }
    }
    Ok(values)
}

fn from_safetensors(path: &Path, features: usize) -> Result<Vec<f32>> {
    let source = formats::open(path, Access::Mapped, &Limits::default())?;
    let fits = |tensor: &formats::TensorMeta| tensor.dtype.is_float() && tensor.matrix().1 == features as u64;
    let matching: Vec<usize> =
        source.tensors().iter().enumerate().filter(|(_, tensor)| fits(tensor)).map(|(i, _)| i).collect();
    let &[only] = matching.as_slice() else {
        return Err(wrong(path, format!("{} tensors with that many columns", matching.len()), features));
    };
    let tensor = &source.tensors()[only];
    let bytes = formats::TensorBytes::load(&source, only)?;
    let mut values = vec![0f32; tensor.elements().unwrap_or(0) as usize];
    f32::decode(tensor.dtype, &bytes, &mut values);
    if let Some(at) = values.iter().position(|x| !x.is_finite()) {
        return Err(wrong(path, format!("NaN or infinity in row {}", at / features), features));
    }
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn csv_rows_are_read_and_misfits_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.csv");
        let read = |text: &str| {
            std::fs::write(&path, text).unwrap();
            inputs(Some(&path), 2).map(|found| (found.rows, found.values)).map_err(|e| e.to_string())
        };
        assert_eq!(read("a, b\n1, 2\n3,4.5\n").unwrap(), (2, vec![1.0, 2.0, 3.0, 4.5]));
        assert_eq!(read("1,2\n").unwrap().0, 1);
        for bad in ["1,2,3\n", "1,2\n3,x\n", "", "1,2\n3,inf\n"] {
            let error = read(bad).unwrap_err();
            assert!(error.contains("x.csv") && error.contains("2 finite numbers"), "{error}");
        }
    }

    #[test]
    fn drawn_inputs_are_always_the_same_and_normal() {
        let (a, b) = (inputs(None, 3).unwrap(), inputs(None, 3).unwrap());
        assert_eq!(a.values, b.values);
        let mean = a.values.iter().sum::<f32>() / a.values.len() as f32;
        let square = a.values.iter().map(|x| x * x).sum::<f32>() / a.values.len() as f32;
        assert!(mean.abs() < 0.1 && (square - 1.0).abs() < 0.1);
    }
}
