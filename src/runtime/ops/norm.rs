//! Root mean square and layer normalisation.

use super::sum;
use crate::family::Norm;
use crate::runtime::kernels::vectorise;
use crate::threads::Pool;

/// A normalisation with its gain and shift.
#[derive(Debug, Clone)]
pub struct Normalisation {
    layer: bool,
    eps: f32,
    gain: Vec<f32>,
    shift: Option<Vec<f32>>,
}

impl Normalisation {
    /// `gain`, and `shift` if there is one, have an element for each feature.
    pub fn new(norm: Norm, mut gain: Vec<f32>, shift: Option<Vec<f32>>) -> Self {
        let (layer, eps) = match norm {
            Norm::Rms { eps, offset } => {
                gain.iter_mut().for_each(|gain| *gain += offset);
                (false, eps)
            }
            Norm::Layer { eps } => (true, eps),
        };
        Self { layer, eps, gain, shift }
    }

    /// Normalises each row of `x`, which is a whole number of rows.
    pub fn apply(&self, x: &mut [f32], pool: &Pool) {
        let cols = self.gain.len().max(1);
        // Pieces of a few thousand elements, so that handing them out does not show.
        pool.for_each_chunk(x, (8192 / cols).max(1) * cols, |_, rows| {
            vectorise(
                #[inline(always)]
                || rows.chunks_exact_mut(cols).for_each(|row| self.row(row)),
            );
        });
    }

    /// Turns gradients of normalised rows, `g`, into gradients of the rows `x` that were normalised. Both are a whole number of
    /// rows, as many.
    pub fn gradient(&self, x: &[f32], g: &mut [f32], pool: &Pool) {
        let cols = self.gain.len().max(1);
        let size = (8192 / cols).max(1) * cols;
        pool.for_each_chunk(g, size, |piece, g| {
            vectorise(
                #[inline(always)]
                || {
                    let rows = x[piece * size..].chunks_exact(cols).zip(g.chunks_exact_mut(cols));
                    rows.for_each(|(x, g)| self.gradient_of_row(x, g));
                },
            );
        });
    }

    /// With x̂ = (x − mean) · factor and ĝ = g · gain, the gradient is factor · (ĝ − mean ĝ − x̂ · mean(ĝ · x̂)), where the first
    /// mean counts only if x's was taken off.
    #[inline(always)]
    fn gradient_of_row(&self, x: &[f32], g: &mut [f32]) {
        let count = x.len() as f32;
        let (mean, factor) = self.measure(x);
        g.iter_mut().zip(&self.gain).for_each(|(g, gain)| *g *= gain);
        let along = x.iter().zip(&*g).fold(0.0, |along, (x, g)| along + (x - mean) * factor * g) / count;
        let level = if self.layer { sum(g, |g| g) / count } else { 0.0 };
        g.iter_mut().zip(x).for_each(|(g, x)| *g = factor * (*g - level - (x - mean) * factor * along));
    }

    /// What is taken off a row, and the factor of the rest.
    #[inline(always)]
    fn measure(&self, x: &[f32]) -> (f32, f32) {
        let count = x.len() as f32;
        let mean = if self.layer { sum(x, |x| x) / count } else { 0.0 };
        let variance = sum(x, |x| (x - mean) * (x - mean)) / count;
        (mean, 1.0 / (variance + self.eps).sqrt())
    }

    #[inline(always)]
    fn row(&self, x: &mut [f32]) {
        let (mean, factor) = self.measure(x);
        for (x, gain) in x.iter_mut().zip(&self.gain) {
            *x = (*x - mean) * factor * gain;
        }
        if let Some(shift) = &self.shift {
            x.iter_mut().zip(shift).for_each(|(x, shift)| *x += shift);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::testing::{Noise, close};

    #[test]
    fn both_equal_their_definitions() {
        let mut noise = Noise::new(4);
        for cols in [1, 7, 64, 100] {
            let (gain, shift, x) = (noise.vec(cols), noise.vec(cols), noise.vec(3 * cols));
            let rms: Vec<f64> = x
                .chunks(cols)
                .flat_map(|row| {
                    let mean = row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / cols as f64;
                    let factor = 1.0 / (mean + 1e-3).sqrt();
                    row.iter().zip(&gain).map(move |(x, g)| f64::from(*x) * factor * (f64::from(*g) + 1.0))
                })
                .collect();
            let layer: Vec<f64> =
                x.chunks(cols)
                    .flat_map(|row| {
                        let mean = row.iter().map(|x| f64::from(*x)).sum::<f64>() / cols as f64;
                        let variance = row.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>() / cols as f64;
                        let factor = 1.0 / (variance + 1e-3).sqrt();
                        let shift = &shift;
                        row.iter().zip(&gain).enumerate().map(move |(i, (x, g))| {
                            (f64::from(*x) - mean) * factor * f64::from(*g) + f64::from(shift[i])
                        })
                    })
                    .collect();
            let pool = Pool::new(2);
            let mut out = x.clone();
            Normalisation::new(Norm::Rms { eps: 1e-3, offset: 1.0 }, gain.clone(), None).apply(&mut out, &pool);
            close(&out, &rms, 1e-5);
            out.copy_from_slice(&x);
            Normalisation::new(Norm::Layer { eps: 1e-3 }, gain, Some(shift)).apply(&mut out, &pool);
            close(&out, &layer, 1e-5);
        }
    }
}
