//! The weights that each row, or each group of neighbours within a row, does without.

use super::Pattern;
use crate::encoding::plain::Real;

/// Sets to zero what `pattern` removes of each row: the weights with the least |w| · s, where s is the input's size if
/// `sizes` are given and 1 if not. Of equals those that come first go first.
///
/// A fraction removes ⌊fraction · cols⌋ of each row, whatever is zero already included. Of a last group that is short, as
/// many stay as of a whole one.
pub fn rows<T: Real>(numbers: &mut [T], cols: usize, pattern: Pattern, sizes: Option<&[f32]>) {
    if cols == 0 {
        return;
    }
    let mut scored: Vec<(u64, u32)> = Vec::with_capacity(cols);
    for row in numbers.chunks_exact_mut(cols) {
        let (group, kept) = match pattern {
            Pattern::Fraction(fraction) => (cols, cols - fraction.of(cols as u64) as usize),
            Pattern::Groups { n, m } => (m, n),
        };
        for first in (0..cols).step_by(group) {
            let group = &mut row[first..cols.min(first + group)];
            let removed = group.len().saturating_sub(kept);
            if removed == 0 {
                continue;
            }
            scored.clear();
            let score = |(i, x): (usize, &T)| {
                let size = sizes.map_or(1.0, |sizes| f64::from(sizes[first + i]));
                // The order of floats that are not negative is that of their bits.
                ((x.to_f64().abs() * size).to_bits(), i as u32)
            };
            scored.extend(group.iter().enumerate().map(score));
            scored.select_nth_unstable(removed - 1);
            scored[..removed].iter().for_each(|&(_, i)| group[i as usize] = T::default());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pruned(row: &[f32], pattern: &str, sizes: Option<&[f32]>) -> Vec<f32> {
        let mut numbers = row.to_vec();
        rows(&mut numbers, row.len(), pattern.parse().unwrap(), sizes);
        numbers
    }

    #[test]
    fn the_least_go_and_of_equals_the_first() {
        assert_eq!(pruned(&[3.0, -1.0, 2.0, 1.0, 1.0], "0.5", None), [3.0, 0.0, 2.0, 0.0, 1.0]);
        assert_eq!(pruned(&[3.0, -1.0, 2.0], "0", None), [3.0, -1.0, 2.0]);
        assert_eq!(pruned(&[3.0, -1.0, 2.0], "1", None), [0.0; 3]);
        assert_eq!(pruned(&[3.0, -1.0, 2.0, 0.5], "0.5", Some(&[0.1, 9.0, 1.0, 9.0])), [0.0, -1.0, 0.0, 0.5]);
    }

    #[test]
    fn a_short_last_group_keeps_as_many_as_a_whole_one() {
        let row = [1.0, 2.0, 3.0, 4.0, 3.0, 1.0, 2.0];
        assert_eq!(pruned(&row, "2:4", None), [0.0, 0.0, 3.0, 4.0, 3.0, 0.0, 2.0]);
        assert_eq!(pruned(&row[..6], "2:4", None), [0.0, 0.0, 3.0, 4.0, 3.0, 1.0]);
        assert_eq!(pruned(&row[..5], "1:2", None), [0.0, 2.0, 0.0, 4.0, 3.0]);
    }
}
