//! Looking up embeddings.

use crate::runtime::Linear;
use crate::threads::Pool;

/// The tables whose rows make up the first hidden state. Each has as many columns as the hidden state.
pub struct Tables<'a> {
    /// By token.
    pub tokens: &'a dyn Linear,
    /// Factor of the token's row.
    pub scale: f32,
    /// By position, and the row of the first token's position.
    pub positions: Option<(&'a dyn Linear, usize)>,
    /// By token type; row 0 is added.
    pub types: Option<&'a dyn Linear>,
}

/// Writes the first hidden state of each token of a sequence to `out` `[tokens, hidden]`. Tokens and positions are within
/// their tables.
pub fn embed(tables: &Tables<'_>, tokens: &[u32], out: &mut [f32], pool: &Pool) {
    let hidden = tables.tokens.in_features().max(1);
    const ROWS: usize = 32;
    pool.for_each_chunk(out, ROWS * hidden, |piece, out| {
        let mut other = vec![0.0; hidden];
        for (i, row) in out.chunks_exact_mut(hidden).enumerate() {
            let at = piece * ROWS + i;
            tables.tokens.row(tokens[at] as usize, row);
            if tables.scale != 1.0 {
                row.iter_mut().for_each(|x| *x *= tables.scale);
            }
            let position = tables.positions.map(|(table, offset)| (table, at + offset));
            for (table, index) in position.into_iter().chain(tables.types.map(|table| (table, 0))) {
                table.row(index, &mut other);
                row.iter_mut().zip(&other).for_each(|(x, other)| *x += other);
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::linear::from_rows;
    use crate::runtime::testing::Matrix;
    use std::sync::Arc;

    #[test]
    fn rows_of_all_tables_are_added() {
        let table = |data: &[f32]| from_rows(Arc::new(Matrix::packed(data, 2)));
        let (tokens, positions, types) =
            (table(&[1., 2., 3., 4.]), table(&[0., 0., 10., 20., 30., 40.]), table(&[100., 200.]));
        let tables = Tables { tokens: &*tokens, scale: 2.0, positions: Some((&*positions, 1)), types: Some(&*types) };
        let mut out = [0.0; 4];
        embed(&tables, &[1, 0], &mut out, &Pool::new(1));
        assert_eq!(out, [116., 228., 132., 244.]);
    }
}
