//! The one pool of threads, handed to everything that computes. Libraries run single-threaded inside it.

use rayon::prelude::*;

/// A fixed number of threads that run independent pieces of work.
#[derive(Debug)]
pub struct Pool {
    threads: usize,
    /// Absent for one thread: the caller's own thread does the work.
    inner: Option<rayon::ThreadPool>,
}

impl Pool {
    /// A pool of `threads` threads; 0 means one for each core that this process may use. If the system gives no
    /// threads, the work runs on the caller's.
    pub fn new(threads: usize) -> Self {
        let threads = match threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            n => n,
        };
        let inner = (threads > 1)
            .then(|| {
                rayon::ThreadPoolBuilder::new()
                    .num_threads(threads)
                    .thread_name(|i| format!("compute-{i}"))
                    .build()
                    .ok()
            })
            .flatten();
        Self { threads: if inner.is_some() { threads } else { 1 }, inner }
    }

    /// Number of threads.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Runs `work(0)` … `work(n - 1)`, each once, in any order, on all threads; returns when all are done.
    pub fn for_each(&self, n: usize, work: impl Fn(usize) + Send + Sync) {
        match &self.inner {
            Some(pool) if n > 1 => pool.install(|| (0..n).into_par_iter().with_max_len(1).for_each(work)),
            _ => (0..n).for_each(work),
        }
    }

    /// Like [`Pool::for_each`], with the results in order of index.
    pub fn map<T: Send>(&self, n: usize, work: impl Fn(usize) -> T + Send + Sync) -> Vec<T> {
        match &self.inner {
            Some(pool) if n > 1 => pool.install(|| (0..n).into_par_iter().with_max_len(1).map(work).collect()),
            _ => (0..n).map(work).collect(),
        }
    }

    /// Like [`Pool::map`], stopping early at an error. Of several errors the one with the lowest index among those
    /// seen is returned.
    pub fn try_map<T: Send, E: Send>(
        &self,
        n: usize,
        work: impl Fn(usize) -> Result<T, E> + Send + Sync,
    ) -> Result<Vec<T>, E> {
        match &self.inner {
            Some(pool) if n > 1 => pool.install(|| (0..n).into_par_iter().with_max_len(1).map(work).collect()),
            _ => (0..n).map(work).collect(),
        }
    }

    /// Cuts `data` into pieces of `size` elements (the last may be shorter) and runs `work(index, piece)` on each.
    pub fn for_each_chunk<T: Send>(&self, data: &mut [T], size: usize, work: impl Fn(usize, &mut [T]) + Send + Sync) {
        let size = size.max(1);
        match &self.inner {
            Some(pool) if data.len() > size => pool.install(|| {
                data.par_chunks_mut(size).enumerate().with_max_len(1).for_each(|(i, piece)| work(i, piece));
            }),
            _ => data.chunks_mut(size).enumerate().for_each(|(i, piece)| work(i, piece)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_piece_runs_once_and_results_keep_their_order() {
        for threads in [1, 2, 8] {
            let pool = Pool::new(threads);
            assert_eq!(pool.map(100, |i| i * i), (0..100).map(|i| i * i).collect::<Vec<_>>());
            let mut data = vec![0usize; 1003];
            pool.for_each_chunk(&mut data, 10, |i, piece| piece.fill(i));
            assert!(data.iter().enumerate().all(|(at, &i)| i == at / 10));
            let err = pool.try_map(10, |i| if i == 3 { Err(i) } else { Ok(i) });
            assert_eq!(err, Err(3));
        }
    }
}
