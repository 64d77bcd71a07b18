//! The weights that a whole matrix, or a model, does without. The numbers of many matrices are not held, let alone sorted:
//! the size at which the cut lies is found digit by digit, by counting, and then the place of the last number that goes.

use std::sync::Mutex;

use formats::Dtype;

use crate::encoding::plain::Real;
use crate::job::{Interrupted, Job};
use crate::loader::{Scratch, View};

/// What goes wrong when weights are looked at.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Reading failed.
    #[error(transparent)]
    Format(#[from] formats::Error),
    /// The user asked to stop.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

/// Where a cut lies in one matrix. Numbers are ordered by size, and equal ones by matrix and by place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    /// Sizes below this are removed. Sizes are told apart by their bits as f64, whose order is theirs.
    size: u64,
    /// Numbers of just this size are removed where they come before this place in the matrix.
    before: u64,
}

impl Cut {
    /// Nothing is removed.
    const NOTHING: Self = Self { size: 0, before: 0 };

    /// Sets to zero what is removed of a run of numbers that begins at place `first` of the matrix.
    pub fn apply<T: Real>(&self, first: u64, numbers: &mut [T]) {
        for (place, x) in (first..).zip(numbers) {
            if self.removes(place, *x) {
                *x = T::default();
            }
        }
    }

    /// Whether the number at this place of the matrix is removed.
    pub fn removes<T: Real>(&self, place: u64, x: T) -> bool {
        let size = size(x);
        size < self.size || size == self.size && place < self.before
    }
}

/// A number's size, as bits in the order of sizes.
fn size<T: Real>(x: T) -> u64 {
    x.to_f64().abs().to_bits()
}

/// A matrix among those that share a cut.
#[derive(Debug)]
pub struct Candidate<'a> {
    /// Its numbers.
    pub view: &'a View,
    /// Rows.
    pub rows: u64,
    /// Columns.
    pub cols: u64,
    /// The dtype in which they are stored.
    pub dtype: Dtype,
}

/// Bits of a digit.
const DIGIT: u32 = 16;

/// Numbers that are read at a time.
const BAND: u64 = 1 << 18;

/// Finds the cut that removes exactly the `count` smallest of all numbers: for each matrix, where it lies there. Reads all
/// numbers once for each of two to four digits and once for equals; holds two tables of counts.
///
/// # Errors
/// A read that fails, an interruption.
pub fn find(matrices: &[Candidate<'_>], count: u64, job: &Job) -> Result<Vec<Cut>, Error> {
    let all: u64 = matrices.iter().map(|matrix| matrix.rows * matrix.cols).sum();
    if count == 0 || all == 0 {
        return Ok(vec![Cut::NOTHING; matrices.len()]);
    }
    let bands = Bands::new(matrices);
    // The rank that is looked for among those numbers whose first digits are the prefix.
    let (mut prefix, mut rank) = (0, count.min(all));
    let digits = matrices.iter().map(|matrix| digits(matrix.dtype)).max().unwrap_or(4);
    for digit in (4 - digits..4).rev() {
        let shift = digit * DIGIT;
        let counts = bands.count(prefix, shift, job)?;
        let mut below = 0;
        let found = counts.iter().position(|n| {
            below += n;
            below >= rank
        });
        // Numbers that are no numbers have digits too, so that there always is one.
        let found = found.unwrap_or(counts.len() - 1);
        rank -= below - counts[found];
        prefix |= (found as u64) << shift;
    }
    let (matrix, place) = bands.find_equal(prefix, rank, job)?;
    let before = |i: usize| match i.cmp(&matrix) {
        std::cmp::Ordering::Less => u64::MAX,
        std::cmp::Ordering::Equal => place + 1,
        std::cmp::Ordering::Greater => 0,
    };
    Ok((0..matrices.len()).map(|i| Cut { size: prefix, before: before(i) }).collect())
}

/// Digits of a size, as f64, that can be other than zero: a sign and eleven bits of exponent, and the dtype's fraction.
fn digits(dtype: Dtype) -> u32 {
    match dtype {
        Dtype::F16 | Dtype::BF16 => 2,
        Dtype::F32 => 3,
        _ => 4,
    }
}

/// Runs of rows of all matrices, in their order.
struct Bands<'a> {
    matrices: &'a [Candidate<'a>],
    /// Matrix, first row, rows.
    bands: Vec<(usize, u64, u64)>,
}

impl<'a> Bands<'a> {
    fn new(matrices: &'a [Candidate<'a>]) -> Self {
        let mut bands = Vec::new();
        for (i, matrix) in matrices.iter().enumerate() {
            let step = (BAND / matrix.cols.max(1)).max(1);
            let firsts = (0..matrix.rows).step_by(step as usize);
            bands.extend(firsts.map(|first| (i, first, step.min(matrix.rows - first))));
        }
        Self { matrices, bands }
    }

    /// The sizes of a band's numbers, in their order.
    fn sizes(&self, band: usize, mut each: impl FnMut(u64), job: &Job) -> Result<(), Error> {
        job.cancel.check()?;
        let (matrix, first, rows) = self.bands[band];
        let matrix = &self.matrices[matrix];
        let count = (rows * matrix.cols) as usize;
        let mut scratch = Scratch::default();
        if matrix.dtype == Dtype::F64 {
            let mut numbers = vec![0f64; count];
            matrix.view.try_read(first as usize, &mut numbers, &mut scratch)?;
            numbers.into_iter().for_each(|x| each(size(x)));
        } else {
            let mut numbers = vec![0f32; count];
            matrix.view.try_read(first as usize, &mut numbers, &mut scratch)?;
            numbers.into_iter().for_each(|x| each(size(x)));
        }
        matrix.view.release(first..first + rows);
        Ok(())
    }

    /// For each digit at `shift`, the numbers that have it and the prefix before it.
    fn count(&self, prefix: u64, shift: u32, job: &Job) -> Result<Vec<u64>, Error> {
        let above = shift + DIGIT;
        let has_prefix = |size: u64| above >= u64::BITS || size >> above == prefix >> above;
        let total = Mutex::new(vec![0u64; 1 << DIGIT]);
        job.pool.try_map(self.bands.len(), |band| {
            let mut counts = vec![0u32; 1 << DIGIT];
            let digit = |size: u64| (size >> shift) as usize & ((1 << DIGIT) - 1);
            self.sizes(band, |size| counts[digit(size)] += u32::from(has_prefix(size)), job)?;
            let mut total = total.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            total.iter_mut().zip(&counts).for_each(|(total, n)| *total += u64::from(*n));
            Ok::<_, Error>(())
        })?;
        Ok(total.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    /// The matrix and the place of the number of this rank, counted from 1, among those of this size.
    fn find_equal(&self, wanted: u64, rank: u64, job: &Job) -> Result<(usize, u64), Error> {
        let counts = job.pool.try_map(self.bands.len(), |band| {
            let mut equal = 0u64;
            self.sizes(band, |size| equal += u64::from(size == wanted), job)?;
            Ok::<_, Error>(equal)
        })?;
        let mut rest = rank;
        let band = counts.iter().position(|&n| {
            let here = rest <= n;
            rest -= if here { 0 } else { n };
            here
        });
        let band = band.unwrap_or(self.bands.len() - 1);
        let (matrix, first, _) = self.bands[band];
        let mut place = first * self.matrices[matrix].cols;
        let mut found = place;
        self.sizes(
            band,
            |size| {
                if size == wanted && rest > 0 {
                    rest -= 1;
                    found = place;
                }
                place += 1;
            },
            job,
        )?;
        Ok((matrix, found))
    }
}
