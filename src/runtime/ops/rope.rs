//! Rotary position embedding (Su et al., 2021): pairs (i, i + dims/2) of a head are turned by position · frequency.

use std::ops::Range;

use crate::family::{Rope, RopeScaling};
use crate::threads::Pool;

/// Cosines and sines of every position.
#[derive(Debug, Clone)]
pub struct Rotation {
    half: usize,
    /// The first position.
    first: usize,
    /// `[positions, half]`: cosine and sine.
    turns: Vec<(f32, f32)>,
    /// Where long texts turn otherwise: the length that they exceed, and their turns.
    long: Option<(usize, Vec<(f32, f32)>)>,
}

impl Rotation {
    /// The rotation of these positions.
    pub fn new(rope: &Rope, positions: Range<usize>) -> Self {
        let (factor, original) = match rope.scaling {
            RopeScaling::Long { attention_factor, original_context, .. } => {
                (f64::from(attention_factor), Some(original_context))
            }
            _ => (1.0, None),
        };
        let turns = |length: usize| {
            let frequencies = rope.frequencies(length);
            let angles = positions.clone().flat_map(|position| {
                // The angle is rounded to f32 as in the reference; its cosine then deserves all digits.
                frequencies.iter().map(move |frequency| position as f32 * frequency).collect::<Vec<_>>()
            });
            let turn = |angle: f32| {
                let (sin, cos) = f64::from(angle).sin_cos();
                ((cos * factor) as f32, (sin * factor) as f32)
            };
            angles.map(turn).collect()
        };
        let long = original.map(|original| (original, turns(original + 1)));
        Self { half: rope.dims / 2, first: positions.start, turns: turns(0), long }
    }

    /// Rotates each head of each row of `x` `[rows, heads · head_dim]`. `starts` are the rows at which sequences begin, and
    /// the number of rows; `firsts` the positions of the sequences' first rows; `lengths` how long their texts are in all.
    pub fn apply(
        &self,
        x: &mut [f32],
        head_dim: usize,
        starts: &[usize],
        firsts: &[usize],
        lengths: &[usize],
        pool: &Pool,
    ) {
        self.turn(x, head_dim, (starts, firsts, lengths), 1.0, pool);
    }

    /// Turns gradients of rotated heads into gradients of the heads: rotates them back, with the same factor. Arguments are
    /// those of [`Rotation::apply`].
    pub fn gradient(
        &self,
        g: &mut [f32],
        head_dim: usize,
        starts: &[usize],
        firsts: &[usize],
        lengths: &[usize],
        pool: &Pool,
    ) {
        self.turn(g, head_dim, (starts, firsts, lengths), -1.0, pool);
    }

    fn turn(
        &self,
        x: &mut [f32],
        head_dim: usize,
        (starts, firsts, lengths): (&[usize], &[usize], &[usize]),
        way: f32,
        pool: &Pool,
    ) {
        let rows = starts.last().copied().unwrap_or(0);
        let cols = x.len().checked_div(rows).unwrap_or(0);
        if cols == 0 || self.half == 0 {
            return;
        }
        const ROWS: usize = 16;
        pool.for_each_chunk(x, ROWS * cols, |piece, x| {
            for (i, row) in x.chunks_exact_mut(cols).enumerate() {
                let at = piece * ROWS + i;
                let sequence = starts.partition_point(|start| *start <= at) - 1;
                let position = firsts[sequence] + at - starts[sequence];
                let turns = match &self.long {
                    Some((original, long)) if lengths[sequence] > *original => long,
                    _ => &self.turns,
                };
                let turns = &turns[(position - self.first) * self.half..][..self.half];
                for head in row.chunks_exact_mut(head_dim) {
                    let (first, second) = head.split_at_mut(self.half);
                    for ((a, b), (cos, sin)) in first.iter_mut().zip(second).zip(turns) {
                        let sin = way * sin;
                        (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
                    }
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::testing::{Noise, close};

    #[test]
    fn pairs_turn_by_their_position_within_their_sequence() {
        let mut noise = Noise::new(5);
        // Only 6 of 8 dimensions turn; two heads; sequences of 3, 0 and 20 positions.
        let rope = Rope { theta: 100.0, dims: 6, scaling: RopeScaling::Linear { factor: 2.0 } };
        let (starts, cols) = ([0, 3, 3, 23], 16);
        let x = noise.vec(23 * cols);
        let mut expected: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
        for row in 0..23 {
            let position = if row < 3 { row + 7 } else { row - 3 + 5 } as f64;
            for head in 0..2 {
                for i in 0..3 {
                    let angle = position * 100f64.powf(-2.0 * i as f64 / 6.0) / 2.0;
                    let at = row * cols + head * 8 + i;
                    let (a, b) = (f64::from(x[at]), f64::from(x[at + 3]));
                    expected[at] = a * angle.cos() - b * angle.sin();
                    expected[at + 3] = b * angle.cos() + a * angle.sin();
                }
            }
        }
        let mut out = x;
        Rotation::new(&rope, 5..25).apply(&mut out, 8, &starts, &[7, 9, 5], &[10, 9, 25], &Pool::new(2));
        close(&out, &expected, 1e-5);
    }
}
