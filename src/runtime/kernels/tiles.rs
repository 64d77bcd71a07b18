//! Cuts a row-major matrix into tiles that threads write side by side.

use std::marker::PhantomData;

use crate::threads::Pool;

/// A rectangle of a row-major f32 matrix, and the only way to it while it lives.
#[derive(Debug)]
pub struct Tile<'a> {
    first_row: usize,
    first_col: usize,
    rows: usize,
    cols: usize,
    stride: usize,
    start: *mut f32,
    life: PhantomData<&'a mut [f32]>,
}

impl<'a> Tile<'a> {
    /// A whole matrix of `cols` columns; `data` is a whole number of rows.
    ///
    /// # Panics
    /// If it is not.
    pub fn whole(data: &'a mut [f32], cols: usize) -> Self {
        let rows = data.len().checked_div(cols).unwrap_or(0);
        assert_eq!(data.len(), rows * cols, "a whole number of rows");
        Self { first_row: 0, first_col: 0, rows, cols, stride: cols, start: data.as_mut_ptr(), life: PhantomData }
    }

    /// The matrix's row that the tile's first row is.
    pub fn first_row(&self) -> usize {
        self.first_row
    }

    /// The matrix's column that the tile's first column is.
    pub fn first_col(&self) -> usize {
        self.first_col
    }

    /// Rows of the tile.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns of the tile.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Elements from one row to the next.
    pub(super) fn stride(&self) -> usize {
        self.stride
    }

    /// The first element. Rows `i < rows()`, at `i · stride()`, have `cols()` elements each.
    pub(super) fn start(&mut self) -> *mut f32 {
        self.start
    }

    /// A row of the tile.
    ///
    /// # Panics
    /// If `i` is not below [`Tile::rows`].
    pub fn row(&mut self, i: usize) -> &mut [f32] {
        assert!(i < self.rows);
        // SAFETY: the tile's constructor saw that all `rows` rows of `cols` elements lie within the matrix that `life`
        // borrows, no other tile covers them, and `&mut self` keeps this one from giving out two rows at a time.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(i * self.stride), self.cols) }
    }
}

/// The start of a matrix whose tiles several threads write.
struct Start(*mut f32);

// SAFETY: the pointer is only used to make tiles that do not overlap, each by one thread.
unsafe impl Sync for Start {}
// SAFETY: the same.
unsafe impl Send for Start {}

impl Start {
    fn at(&self, offset: usize) -> *mut f32 {
        self.0.wrapping_add(offset)
    }
}

/// The tiles of a matrix, and what is to be done with each.
pub struct Tiles<'a> {
    count: usize,
    /// Is called once for each number below the count.
    work: Box<dyn Fn(usize) + Send + Sync + 'a>,
}

impl<'a> Tiles<'a> {
    /// Of `matrix`, row-major with `cols` columns. Rows are cut where `cuts` says (ascending, from 0 to the number of rows);
    /// columns every `tile_cols` (the last tile may be narrower).
    ///
    /// # Panics
    /// If `cuts` do not ascend, or end anywhere else than at the matrix's end.
    pub fn of(
        matrix: &'a mut [f32],
        cols: usize,
        cuts: Vec<usize>,
        tile_cols: usize,
        work: impl Fn(Tile<'_>) + Send + Sync + 'a,
    ) -> Self {
        assert!(cuts.is_sorted(), "cuts ascend");
        assert_eq!(cuts.last().copied().unwrap_or(0) * cols, matrix.len(), "cuts end at the matrix's end");
        let tile_cols = tile_cols.clamp(1, cols.max(1));
        let (across, start) = (cols.div_ceil(tile_cols), Start(matrix.as_mut_ptr()));
        let count = cuts.len().saturating_sub(1) * across;
        let work = move |i: usize| {
            // Tiles of the same columns follow one another, so that what belongs to the columns stays in the cache.
            let (down, side) = (i % (cuts.len() - 1), i / (cuts.len() - 1));
            let (first_row, first_col) = (cuts[down], side * tile_cols);
            work(Tile {
                first_row,
                first_col,
                rows: cuts[down + 1] - first_row,
                cols: tile_cols.min(cols - first_col),
                stride: cols,
                // The rows end at most where the cuts do and the columns at most at `cols`, so the tile lies in the matrix.
                // Cuts ascend and columns step by `tile_cols`, so no two tiles overlap, and `on` asks for each once.
                start: start.at(first_row * cols + first_col),
                life: PhantomData,
            });
        };
        Self { count, work: Box::new(work) }
    }

    /// Does the work of several matrices on all threads, which wait for one another only at the end.
    pub fn on(pool: &Pool, several: Vec<Self>) {
        let count = several.iter().map(|tiles| tiles.count).sum();
        pool.for_each(count, |mut i| {
            for tiles in &several {
                if i < tiles.count {
                    return (tiles.work)(i);
                }
                i -= tiles.count;
            }
        });
    }
}

/// Cuts `matrix` into [`Tiles`] and runs `work` on each, on all threads.
///
/// # Panics
/// As [`Tiles::of`].
pub fn for_each(
    pool: &Pool,
    matrix: &mut [f32],
    cols: usize,
    cuts: &[usize],
    tile_cols: usize,
    work: impl Fn(Tile<'_>) + Send + Sync,
) {
    Tiles::on(pool, vec![Tiles::of(matrix, cols, cuts.to_vec(), tile_cols, work)]);
}

/// Cuts of `rows` rows every `step`.
pub fn cuts(rows: usize, step: usize) -> Vec<usize> {
    (0..rows).step_by(step.max(1)).chain([rows]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_cover_each_element_once() {
        for threads in [1, 2, 8] {
            let pool = Pool::new(threads);
            for (rows, cols, step, tile_cols) in
                [(0, 5, 3, 2), (7, 5, 3, 2), (1, 1, 1, 1), (9, 4, 100, 100), (4, 0, 2, 2)]
            {
                let mut matrix = vec![0.0; rows * cols];
                for_each(&pool, &mut matrix, cols, &cuts(rows, step), tile_cols, |mut tile| {
                    let (y, x) = (tile.first_row(), tile.first_col());
                    for i in 0..tile.rows() {
                        for (j, value) in tile.row(i).iter_mut().enumerate() {
                            *value += ((y + i) * 100 + x + j + 1) as f32;
                        }
                    }
                });
                for (at, value) in matrix.iter().enumerate() {
                    assert_eq!(*value, ((at / cols) * 100 + at % cols + 1) as f32);
                }
            }
        }
    }

    #[test]
    fn several_matrices_are_done_together() {
        let mut matrices = [vec![0.0; 12], vec![], vec![0.0; 35]];
        let some = matrices.iter_mut().zip([4, 3, 5]).map(|(matrix, cols)| {
            let cuts = cuts(matrix.len() / cols, 2);
            Tiles::of(matrix, cols, cuts, 3, move |mut tile| {
                (0..tile.rows()).for_each(|i| tile.row(i).iter_mut().for_each(|x| *x += cols as f32));
            })
        });
        Tiles::on(&Pool::new(3), some.collect());
        assert_eq!(matrices, [vec![4.0; 12], vec![], vec![5.0; 35]]);
    }

    #[test]
    #[should_panic(expected = "cuts ascend")]
    fn overlapping_tiles_are_refused() {
        for_each(&Pool::new(1), &mut [0.0; 4], 1, &[0, 3, 2, 4], 1, |_| {});
    }
}
