//! Rows of features and targets, from a table of text or from tensors.

use std::path::Path;

use formats::{Access, Dtype, Limits, TensorBytes};

use super::{Error, Result};
use crate::encoding::plain::Real;

/// Inputs and what they should give.
#[derive(Debug, Clone, PartialEq)]
pub struct Data {
    /// `[rows, features]`
    pub x: Vec<f64>,
    /// `[rows, targets]`
    pub y: Vec<f64>,
    /// Features of a row.
    pub features: usize,
    /// Targets of a row.
    pub targets: usize,
}

/// Names under which a file may hold features, and targets.
const NAMES: [&[&str]; 2] = [&["x", "X", "features", "inputs"], &["y", "Y", "targets", "outputs", "labels"]];

impl Data {
    /// Reads a .csv file (the last `targets` columns of each line are targets; a heading is allowed), or a .safetensors or
    /// .npz file with tensors `x` `[rows, features]` and `y` `[rows]` or `[rows, targets]`, of floats or whole numbers.
    ///
    /// # Errors
    /// A file that cannot be read or holds something else.
    pub fn read(path: &Path, targets: usize) -> Result<Self> {
        match path.extension().and_then(|ext| ext.to_str()) {
            Some("csv") => from_csv(path, targets),
            Some("safetensors" | "npz") => from_tensors(path),
            _ => Err(wrong(path, "another kind of file", "a .csv, .safetensors or .npz file")),
        }
    }

    /// Rows.
    pub fn rows(&self) -> usize {
        self.y.len() / self.targets.max(1)
    }

    /// Some of the rows.
    pub fn some(&self, rows: &[usize]) -> Self {
        let of =
            |all: &[f64], width: usize| rows.iter().flat_map(|r| &all[r * width..(r + 1) * width]).copied().collect();
        Self { x: of(&self.x, self.features), y: of(&self.y, self.targets), ..*self }
    }

    /// The features in f32, as a chain takes them.
    pub fn inputs(&self) -> Vec<f32> {
        self.x.iter().map(|x| *x as f32).collect()
    }
}

fn wrong(file: &Path, found: impl Into<String>, expected: impl Into<String>) -> Error {
    Error::Data { file: file.to_owned(), found: found.into(), expected: expected.into() }
}

fn from_csv(path: &Path, targets: usize) -> Result<Data> {
    std::fs::metadata(path).map_err(formats::Error::io(path, "open"))?;
    let problem = |e: csv::Error| wrong(path, format!("a problem ({e})"), "lines of numbers with commas between them");
    let reader = csv::ReaderBuilder::new().has_headers(false).trim(csv::Trim::All).from_path(path);
    let (mut x, mut y, mut width) = (Vec::new(), Vec::new(), 0);
    for (i, record) in reader.map_err(problem)?.records().enumerate() {
        let record = record.map_err(problem)?;
        let row: Option<Vec<f64>> =
            record.iter().map(|field| field.parse().ok().filter(|x: &f64| x.is_finite())).collect();
        let Some(row) = row else {
            // A heading.
            if i == 0 {
                continue;
            }
            return Err(wrong(path, format!("something else in line {}", i + 1), "finite numbers"));
        };
        if row.len() <= targets {
            let expected = format!("at least one feature before {targets} targets");
            return Err(wrong(path, format!("{} numbers in line {}", row.len(), i + 1), expected));
        }
        width = row.len() - targets;
        x.extend_from_slice(&row[..width]);
        y.extend_from_slice(&row[width..]);
    }
    if y.is_empty() {
        return Err(wrong(path, "no rows", "lines of numbers with commas between them"));
    }
    Ok(Data { x, y, features: width, targets })
}

/// Whether numbers of this dtype are read.
fn is_number(dtype: Dtype) -> bool {
    dtype.is_float() || matches!(dtype, Dtype::I8 | Dtype::U8 | Dtype::I16 | Dtype::I32 | Dtype::I64)
}

/// The nearest floats.
fn decode(dtype: Dtype, bytes: &[u8], out: &mut [f64]) {
    fn each<const N: usize>(bytes: &[u8], out: &mut [f64], float: impl Fn([u8; N]) -> f64) {
        out.iter_mut().zip(bytes.as_chunks().0).for_each(|(x, b)| *x = float(*b));
    }
    match dtype {
        Dtype::I8 => each(bytes, out, |b| i8::from_le_bytes(b).into()),
        Dtype::U8 => each(bytes, out, |b| u8::from_le_bytes(b).into()),
        Dtype::I16 => each(bytes, out, |b| i16::from_le_bytes(b).into()),
        Dtype::I32 => each(bytes, out, |b| i32::from_le_bytes(b).into()),
        Dtype::I64 => each(bytes, out, |b| i64::from_le_bytes(b) as f64),
        dtype => f64::decode(dtype, bytes, out),
    }
}

fn from_tensors(path: &Path) -> Result<Data> {
    let source = formats::open(path, Access::Mapped, &Limits::default())?;
    let read = |names: &[&str]| {
        let tensors = source.tensors().iter().enumerate();
        let mut found = tensors.filter(|(_, tensor)| names.contains(&tensor.name.as_str()) && is_number(tensor.dtype));
        let (Some((at, tensor)), None) = (found.next(), found.next()) else {
            let all: Vec<&str> = source.tensors().iter().map(|tensor| tensor.name.as_str()).take(10).collect();
            let expected = format!("one tensor of numbers called {}", names.join(" or "));
            return Err(wrong(path, format!("tensors {}", all.join(", ")), expected));
        };
        let mut values = vec![0f64; tensor.elements().unwrap_or(0) as usize];
        decode(tensor.dtype, &TensorBytes::load(&source, at)?, &mut values);
        if let Some(at) = values.iter().position(|x| !x.is_finite()) {
            return Err(wrong(path, format!("NaN or infinity in `{}` at {at}", tensor.name), "finite numbers"));
        }
        Ok((tensor.shape.clone(), values))
    };
    let ((x_shape, x), (y_shape, y)) = (read(NAMES[0])?, read(NAMES[1])?);
    match (x_shape.as_slice(), y_shape.as_slice()) {
        (&[rows, features], &[same, ..]) if rows == same && y_shape.len() <= 2 && !x.is_empty() && !y.is_empty() => {
            Ok(Data { x, targets: y.len() / rows as usize, y, features: features as usize })
        }
        _ => Err(wrong(
            path,
            format!("shapes {x_shape:?} and {y_shape:?}"),
            "[rows, features], and [rows] or [rows, targets]",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn csv_files_are_read_and_misfits_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.csv");
        let read = |text: &str, targets| {
            std::fs::write(&path, text).unwrap();
            Data::read(&path, targets).map_err(|e| e.to_string())
        };
        let data = read("a,b,y\n1, 2, 3\n4,5,6.5\n", 1).unwrap();
        assert_eq!(data, Data { x: vec![1., 2., 4., 5.], y: vec![3., 6.5], features: 2, targets: 1 });
        assert_eq!(read("1,2,3\n4,5,6\n", 2).unwrap().y, [2., 3., 5., 6.]);
        for (text, word) in
            [("", "no rows"), ("1,2\n1,x\n", "line 2"), ("1\n2\n", "1 numbers"), ("1,2\n1,2,3\n", "problem")]
        {
            let error = read(text, 1).unwrap_err();
            assert!(error.contains(word) && error.contains("x.csv"), "{error}");
        }
        assert!(Data::read("missing.csv".as_ref(), 1).unwrap_err().to_string().contains("missing.csv"));
        assert!(Data::read("x.parquet".as_ref(), 1).unwrap_err().to_string().contains(".safetensors"));
    }
}
