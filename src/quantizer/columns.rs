//! int8 with a scale for each column, by the formulas of [`super::Int8Rows`]: a first pass finds the largest of each column, a
//! second one encodes.

use formats::Dtype;
use half::{bf16, f16};

use super::symmetric::int8;
use super::{Band, Notes, Numbers, Quantizer, first_non_finite};
use crate::encoding::Encoding;
use crate::encoding::plain::{self, Real};

/// The largest absolute value of each column.
#[derive(Debug, Clone)]
pub struct Columnar {
    largest: Vec<f64>,
}

impl Columnar {
    /// Of so many columns, of nothing yet.
    pub fn new(cols: u64) -> Self {
        Self { largest: vec![0.0; cols as usize] }
    }

    /// Takes in whole rows.
    pub fn add(&mut self, numbers: Numbers<'_>) {
        match numbers {
            Numbers::F32(numbers) => self.add_all(numbers),
            Numbers::F64(numbers) => self.add_all(numbers),
        }
    }

    fn add_all<T: Real>(&mut self, numbers: &[T]) {
        if self.largest.is_empty() {
            return;
        }
        let mut largest = vec![T::default(); self.largest.len()];
        for row in numbers.chunks_exact(largest.len()) {
            for (most, &x) in largest.iter_mut().zip(row) {
                let size = x.abs();
                *most = if size > *most { size } else { *most };
            }
        }
        for (most, x) in self.largest.iter_mut().zip(largest) {
            *most = most.max(x.to_f64());
        }
    }

    /// Takes in what another saw.
    pub fn merge(&mut self, other: &Self) {
        self.largest.iter_mut().zip(&other.largest).for_each(|(most, x)| *most = most.max(*x));
    }
}

/// Round-to-nearest int8, a scale for each column.
#[derive(Debug, Clone)]
pub struct Int8Cols {
    /// In f64, which holds those of every float.
    scales: Vec<f64>,
}

impl Int8Cols {
    /// With the scales that columns of a weight stored as `dtype` need.
    pub fn new(survey: &Columnar, dtype: Dtype) -> Self {
        Self { scales: survey.largest.iter().map(|&most| int8::scale(most, dtype)).collect() }
    }
}

impl Quantizer for Int8Cols {
    fn encoding(&self, input: Dtype) -> Encoding {
        Encoding::Int8Cols { scale: input }
    }

    fn encode(&self, band: Band<'_>, parts: &mut [Vec<u8>]) -> Notes {
        let [codes, scales, ..] = parts else { unreachable!("this encoding has codes and scales") };
        // Those of all rows are written with the first band.
        if !scales.is_empty() {
            match band.dtype {
                Dtype::F64 => plain::encode(&self.scales, band.dtype, scales),
                _ => {
                    let singles: Vec<f32> = self.scales.iter().map(|&scale| scale as f32).collect();
                    plain::encode(&singles, band.dtype, scales);
                }
            }
        }
        let non_finite = match band.numbers {
            Numbers::F64(numbers) => {
                for (row, codes) in numbers.chunks_exact(band.cols.max(1)).zip(codes.chunks_exact_mut(band.cols.max(1)))
                {
                    for ((to, x), scale) in codes.iter_mut().zip(row).zip(&self.scales) {
                        *to = int8::double(x / scale);
                    }
                }
                first_non_finite(numbers)
            }
            Numbers::F32(numbers) => {
                let scales: Vec<f32> = self.scales.iter().map(|&scale| scale as f32).collect();
                let round: fn(f32) -> f32 = match band.dtype {
                    Dtype::F16 => |x| f16::from_f32(x).to_f32(),
                    Dtype::BF16 => |x| bf16::from_f32(x).to_f32(),
                    _ => |x| x,
                };
                for (row, codes) in numbers.chunks_exact(band.cols.max(1)).zip(codes.chunks_exact_mut(band.cols.max(1)))
                {
                    encode(row, &scales, codes, band.dtype == Dtype::F32, round);
                }
                first_non_finite(numbers)
            }
        };
        Notes { non_finite, ..Notes::default() }
    }
}

fn encode(row: &[f32], scales: &[f32], codes: &mut [u8], exact: bool, round: fn(f32) -> f32) {
    let all = codes.iter_mut().zip(row).zip(scales);
    match exact {
        true => all.for_each(|((to, x), scale)| *to = int8::single(x / scale)),
        false => all.for_each(|((to, x), scale)| *to = int8::single(round(x / scale))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quantizer::Int8Rows;

    /// Columns of a matrix are the rows of its transpose.
    #[test]
    fn columns_get_what_rows_of_the_transpose_get() {
        let (rows, cols) = (37, 21);
        let numbers: Vec<f32> = (0..rows * cols).map(|i| ((i * 7919 % 1013) as f32 - 500.0) * 0.003).collect();
        for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16, Dtype::F64] {
            let stored: Vec<f32> = numbers
                .iter()
                .enumerate()
                .map(|(i, &x)| if i % cols == 3 { 0.0 } else { x })
                .map(|x| match dtype {
                    Dtype::F16 => f16::from_f32(x).to_f32(),
                    Dtype::BF16 => bf16::from_f32(x).to_f32(),
                    _ => x,
                })
                .collect();
            let turned: Vec<f32> =
                (0..cols).flat_map(|c| (0..rows).map(move |r| (r, c))).map(|(r, c)| stored[r * cols + c]).collect();
            let wide = |numbers: &[f32]| numbers.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
            let (stored64, turned64) = (wide(&stored), wide(&turned));
            let pick = |single, double| match dtype {
                Dtype::F64 => Numbers::F64(double),
                _ => Numbers::F32(single),
            };
            let width = dtype.bytes_of(1).unwrap() as usize;
            let band = |numbers, cols| Band { numbers, first_row: 0, cols, dtype };
            let mut expected = [vec![0; rows * cols], vec![0; cols * width]];
            Int8Rows.encode(band(pick(&turned, &turned64), rows), &mut expected);
            let mut survey = Columnar::new(cols as u64);
            for part in [0..10, 10..rows] {
                let mut here = Columnar::new(cols as u64);
                let range = part.start * cols..part.end * cols;
                here.add(pick(&stored[range.clone()], &stored64[range]));
                survey.merge(&here);
            }
            let quantizer = Int8Cols::new(&survey, dtype);
            let mut found = [vec![0; rows * cols], vec![0; cols * width]];
            quantizer.encode(band(pick(&stored, &stored64), cols), &mut found);
            assert_eq!(found[1], expected[1], "{dtype}");
            for (i, code) in found[0].iter().enumerate() {
                assert_eq!(*code, expected[0][i % cols * rows + i / cols], "{dtype} {i}");
            }
        }
    }
}
