//! Every weight of the written file against the original's: how large the error is, in three measures.

use serde::Serialize;

use super::{Error, Result};
use crate::encoding::Rows;
use crate::job::Job;
use crate::loader::{Checkpoint, Fetch, Piece, Scratch, SlotKey, View, Weight};
use crate::simd::{Simd, Task, dispatch};

/// How far a weight is from the original's.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct WeightError {
    /// Its name in the Hugging Face dialect.
    pub name: String,
    /// Signal-to-quantization-noise ratio, 10 · log₁₀(Σw² / Σ(w − ŵ)²), in dB; `None` if the weight is unchanged.
    pub sqnr_db: Option<f64>,
    /// Cosine between the two as vectors; 1 for two of zeros.
    pub cosine: f64,
    /// The largest |w − ŵ|.
    pub max_abs_error: f64,
    /// Whether all written numbers are finite.
    #[serde(skip)]
    pub finite: bool,
    /// How many of the written numbers are zero.
    #[serde(skip)]
    pub zeros: u64,
    /// The written form.
    #[serde(skip)]
    pub encoding: String,
}

/// What the comparison of weights found.
pub struct Table {
    /// The errors, in the original's order.
    pub errors: Vec<WeightError>,
    /// Weights that the written file lacks.
    pub missing: Vec<String>,
}

/// Values in a band: read from both files, compared, dropped.
const BAND: u64 = 1 << 18;

/// Sums over a band or a weight.
#[derive(Debug, Clone, Copy, Default)]
struct Sums {
    signal: f64,
    noise: f64,
    product: f64,
    written: f64,
    largest: f64,
    zeros: u64,
    broken: bool,
}

impl Sums {
    fn add(&mut self, other: &Sums) {
        self.signal += other.signal;
        self.noise += other.noise;
        self.product += other.product;
        self.written += other.written;
        self.largest = self.largest.max(other.largest);
        self.zeros += other.zeros;
        self.broken |= other.broken;
    }

    fn of(original: &[f32], written: &[f32]) -> Self {
        dispatch(Compare { original, written })
    }
}

/// Sums over two runs of numbers: in lanes of f32 over short runs, and in f64 over these.
struct Compare<'a> {
    original: &'a [f32],
    written: &'a [f32],
}

impl Task for Compare<'_> {
    type Output = Sums;

    fn run<S: Simd>(self, simd: S) -> Sums {
        const RUN: usize = 1024;
        let mut sums = Sums::default();
        for (a, b) in self.original.chunks(RUN).zip(self.written.chunks(RUN)) {
            sums.add(&simd.run(
                #[inline(always)]
                || run_sums(a, b),
            ));
        }
        sums
    }
}

#[inline(always)]
fn run_sums(a: &[f32], b: &[f32]) -> Sums {
    const LANES: usize = 16;
    let [mut signal, mut noise, mut product, mut written, mut largest] = [[0f32; LANES]; 5];
    // As integers, of which those of NaN are the largest.
    let mut size = [0u32; LANES];
    let mut zeros = [0u32; LANES];
    let mut add = |a: &[f32; LANES], b: &[f32; LANES]| {
        for i in 0..LANES {
            let difference = a[i] - b[i];
            signal[i] += a[i] * a[i];
            noise[i] += difference * difference;
            product[i] += a[i] * b[i];
            written[i] += b[i] * b[i];
            let difference = difference.abs();
            largest[i] = if difference > largest[i] { difference } else { largest[i] };
            size[i] = size[i].max(b[i].abs().to_bits());
            zeros[i] += u32::from(b[i] == 0.0);
        }
    };
    let (a_runs, a_rest) = a.as_chunks();
    let (b_runs, b_rest) = b.as_chunks();
    for (a, b) in a_runs.iter().zip(b_runs) {
        add(a, b);
    }
    // Zeros add nothing but to their own number.
    let padded = |rest: &[f32]| {
        let mut lanes = [0.0; LANES];
        lanes[..rest.len()].copy_from_slice(rest);
        lanes
    };
    add(&padded(a_rest), &padded(b_rest));
    let total = |lanes: [f32; LANES]| lanes.iter().map(|&x| f64::from(x)).sum::<f64>();
    Sums {
        signal: total(signal),
        noise: total(noise),
        product: total(product),
        written: total(written),
        largest: largest.iter().fold(0.0, |most: f64, &x| most.max(f64::from(x))),
        zeros: u64::from(zeros.iter().sum::<u32>()) - (LANES - b_rest.len()) as u64,
        broken: size.iter().any(|size| *size > f32::MAX.to_bits()),
    }
}

/// A weight that both files have.
struct Pair<'a> {
    weight: &'a Weight,
    other: &'a Weight,
    original: View,
    written: View,
    rows: u64,
    cols: u64,
    band_rows: u64,
}

/// The pieces of a weight that serve slots, and those of another checkpoint that serve the same: experts apart and stacked,
/// matrices by their inputs and by their outputs are then the same numbers. `None` where the other lacks one.
fn by_slots(written: &Checkpoint, serves: &[(SlotKey, Piece)]) -> Option<(Vec<Piece>, Vec<Piece>)> {
    let mut pieces = (Vec::new(), Vec::new());
    for ((slot, layer, expert, part), piece) in serves {
        pieces.0.push(piece.clone());
        pieces.1.extend_from_slice(written.slot(*slot, *layer, *expert, *part)?);
    }
    (!serves.is_empty()).then_some(pieces)
}

/// Compares every weight that is numbers.
///
/// # Errors
/// A weight whose shape differs, no weight in common, a read that fails, an interrupt.
pub fn compare(original: &Checkpoint, written: &Checkpoint, job: &Job) -> Result<Table> {
    let mut missing = Vec::new();
    let mut pairs = Vec::new();
    let serves = original.serves();
    // Without a graph or a family nothing says which side the inputs are.
    let sided = [original, written].iter().all(|side| side.onnx().is_some() || side.family().is_some());
    for (i, weight) in original.weights().iter().enumerate().filter(|(_, weight)| weight.is_numeric()) {
        let of = |j: usize| &written.weights()[j];
        let named = written.find(&weight.name).filter(|&j| of(j).is_numeric());
        let same = |j: &usize| {
            let side = !sided || of(*j).transposed == weight.transposed;
            side && (of(*j).rows, of(*j).cols) == (weight.rows, weight.cols)
        };
        // What is multiplied by inputs as it is in one file is stored by outputs in the other.
        let turned =
            |j: &usize| (of(*j).cols, of(*j).rows, !of(*j).transposed) == (weight.rows, weight.cols, weight.transposed);
        let (ours, theirs) = if let Some(j) = named.filter(same) {
            (vec![Piece::whole(i, weight)], vec![Piece::whole(j, of(j))])
        } else if let Some(pieces) = by_slots(written, &serves[i]) {
            pieces
        } else if let Some(j) = named.filter(turned) {
            let ours = Piece { rows: 0..weight.cols, transpose: true, ..Piece::whole(i, weight) };
            (vec![ours], vec![Piece::whole(j, of(j))])
        } else if let Some(j) = named {
            return Err(Error::Shape {
                file: written.path().to_owned(),
                tensor: weight.name.clone(),
                found: of(j).shape.clone(),
                expected: weight.shape.clone(),
                original: original.path().to_owned(),
            });
        } else {
            missing.push(weight.name.clone());
            continue;
        };
        let other = of(theirs[0].weight);
        let (original, written) = (original.view(&ours, Fetch::Bands)?, written.view(&theirs, Fetch::Bands)?);
        let (rows, cols) = (original.rows() as u64, original.cols() as u64);
        if (written.rows() as u64, written.cols() as u64) != (rows, cols) {
            missing.push(weight.name.clone());
            continue;
        }
        let band_rows = (BAND / cols.max(1)).clamp(1, rows.max(1));
        pairs.push(Pair { weight, other, original, written, rows, cols, band_rows });
    }
    if pairs.is_empty() && !missing.is_empty() {
        return Err(Error::Nothing { written: written.path().to_owned(), original: original.path().to_owned() });
    }
    let tasks: Vec<(usize, u64)> = pairs
        .iter()
        .enumerate()
        .flat_map(|(p, pair)| (0..pair.rows).step_by(pair.band_rows as usize).map(move |row| (p, row)))
        .collect();
    job.progress.begin("check weights", pairs.iter().map(|pair| pair.weight.elements()).sum());
    let sums = job.pool.try_map(tasks.len(), |i| {
        job.cancel.check()?;
        let (p, first) = tasks[i];
        let pair = &pairs[p];
        let rows = pair.band_rows.min(pair.rows - first);
        let mut numbers = vec![0f32; 2 * (rows * pair.cols) as usize];
        let (a, b) = numbers.split_at_mut((rows * pair.cols) as usize);
        let mut scratch = Scratch::default();
        pair.original.try_read(first as usize, a, &mut scratch)?;
        pair.written.try_read(first as usize, b, &mut scratch)?;
        [&pair.original, &pair.written].into_iter().for_each(|view| view.release(first..first + rows));
        job.progress.advance(rows * pair.cols);
        Ok::<_, Error>(Sums::of(a, b))
    });
    job.progress.end();
    let mut totals = vec![Sums::default(); pairs.len()];
    for ((p, _), sums) in tasks.iter().zip(sums?) {
        totals[*p].add(&sums);
    }
    let errors = pairs.iter().zip(&totals).map(|(pair, sums)| finish(pair, sums)).collect();
    Ok(Table { errors, missing })
}

fn finish(pair: &Pair<'_>, sums: &Sums) -> WeightError {
    let sizes = (sums.signal * sums.written).sqrt();
    WeightError {
        name: pair.weight.name.clone(),
        sqnr_db: (sums.noise > 0.0).then(|| 10.0 * (sums.signal / sums.noise).log10()),
        cosine: match (sizes > 0.0, sums.noise > 0.0) {
            // Rounding of the sums must not make two equal weights look different.
            (_, false) => 1.0,
            (true, true) => (sums.product / sizes).min(1.0),
            (false, true) => 0.0,
        },
        max_abs_error: sums.largest,
        finite: !sums.broken,
        zeros: sums.zeros,
        encoding: pair.other.encoding.name(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_agree_with_plain_ones() {
        let a: Vec<f32> = (0..3001).map(|i| ((i * 37 % 101) as f32 - 50.0) * 0.01).collect();
        let b: Vec<f32> = a.iter().enumerate().map(|(i, x)| x + ((i % 7) as f32 - 3.0) * 1e-3).collect();
        let sums = Sums::of(&a, &b);
        let plain = |f: fn(f64, f64) -> f64| a.iter().zip(&b).map(|(&a, &b)| f(a.into(), b.into())).sum::<f64>();
        for (found, expected) in [
            (sums.signal, plain(|a, _| a * a)),
            (sums.noise, plain(|a, b| (a - b) * (a - b))),
            (sums.product, plain(|a, b| a * b)),
            (sums.written, plain(|_, b| b * b)),
        ] {
            assert!((found - expected).abs() <= 1e-5 * expected, "{found} {expected}");
        }
        assert!(!sums.broken && Sums::of(&[1.0; 40], &[f32::NAN; 40]).broken);
    }
}
