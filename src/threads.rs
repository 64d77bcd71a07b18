//! The one pool of threads, handed to everything that computes. Libraries run single-threaded inside it.
//!
//! A token passes through some two hundred matrices in a few hundredths of a second, so that handing out work must not take
//! microseconds: threads that have run out of work look for more for a moment, and only then sleep. Who hands out work takes
//! part in it and does not wait for threads that have not begun, so that a busy machine costs no more than it takes.

use std::any::Any;
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, TryLockError};
use std::thread::{self, JoinHandle};

/// A fixed number of threads that run independent pieces of work.
pub struct Pool {
    shared: Arc<Shared>,
    /// Held by whoever hands out work.
    turn: Mutex<()>,
    workers: Vec<JoinHandle<()>>,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("threads", &self.threads()).finish()
    }
}

/// Times that a thread looks for work before it offers its core to others between looks: some 20 to 40 µs.
const LOOKS: usize = 800;

/// Times that it does so before it sleeps: one to two milliseconds. A virtual machine takes as long to wake a core as to
/// multiply a matrix.
const OFFERS: usize = 5000;

/// Looks between two of which a waiting thread offers its core to others.
const PATIENCE: usize = 200;

/// What the threads share.
struct Shared {
    /// The number of the task in the upper half, [`OPEN`], and the number of workers inside it.
    gate: AtomicU64,
    /// The task, while the gate is open or workers are inside.
    task: Slot,
    /// The next piece.
    next: AtomicUsize,
    /// The first panic of a worker.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    /// Workers that sleep or are about to.
    asleep: AtomicUsize,
    bell: (Mutex<()>, Condvar),
    stop: AtomicBool,
}

/// Workers may enter.
const OPEN: u64 = 1 << 31;
/// One task.
const TASK: u64 = 1 << 32;
/// The workers inside.
const INSIDE: u64 = OPEN - 1;

/// A number of pieces and what runs one of them.
#[derive(Clone, Copy)]
struct Task {
    pieces: usize,
    work: *const (dyn Fn(usize) + Sync),
}

/// The place of the task.
struct Slot(std::cell::UnsafeCell<Option<Task>>);

// SAFETY: the slot is written by the thread that holds `turn`, while the gate is shut and nobody is inside, and read by
// workers that are inside. What the task points to is `Sync`, and lives until nobody is inside: see `Pool::for_each`.
unsafe impl Sync for Slot {}
// SAFETY: the same.
unsafe impl Send for Slot {}

impl Shared {
    /// Runs pieces until none is left.
    fn run(&self, task: Task) {
        loop {
            let piece = self.next.fetch_add(1, Ordering::Relaxed);
            if piece >= task.pieces {
                return;
            }
            // SAFETY: whoever runs a task is inside it or handed it out, and `Pool::for_each` does not return before both have
            // ended.
            unsafe { (*task.work)(piece) };
        }
    }

    /// Enters the task after number `last`, if there is one; its number.
    fn enter(&self, last: u64) -> Option<u64> {
        let gate = self.gate.load(Ordering::SeqCst);
        let open = gate & OPEN != 0 && gate / TASK != last;
        // One that changes meanwhile is looked at again soon.
        let entered = open && self.gate.compare_exchange(gate, gate + 1, Ordering::SeqCst, Ordering::Relaxed).is_ok();
        entered.then_some(gate / TASK)
    }

    /// A worker's life.
    fn work(&self) {
        let mut last = 0;
        loop {
            let mut looks = 0;
            let number = loop {
                if self.stop.load(Ordering::Relaxed) {
                    return;
                }
                if let Some(number) = self.enter(last) {
                    break number;
                }
                looks += 1;
                if looks < LOOKS {
                    std::hint::spin_loop();
                } else if looks < LOOKS + OFFERS {
                    thread::yield_now();
                } else {
                    self.sleep(last);
                    looks = 0;
                }
            };
            last = number;
            // SAFETY: this worker is inside, so that the slot is not written.
            let task = unsafe { *self.task.0.get() };
            if let Some(task) = task
                && let Err(payload) = panic::catch_unwind(AssertUnwindSafe(|| self.run(task)))
            {
                self.panic.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(payload);
            }
            self.gate.fetch_sub(1, Ordering::SeqCst);
        }
    }

    /// Sleeps until the bell rings, unless there is something to do.
    fn sleep(&self, last: u64) {
        let (lock, bell) = &self.bell;
        let guard = lock.lock().unwrap_or_else(PoisonError::into_inner);
        self.asleep.fetch_add(1, Ordering::SeqCst);
        // Whoever opens the gate looks for sleepers afterwards, so that one of the two sees the other.
        let gate = self.gate.load(Ordering::SeqCst);
        let idle = gate & OPEN == 0 || gate / TASK == last;
        if idle && !self.stop.load(Ordering::SeqCst) {
            drop(bell.wait(guard).unwrap_or_else(PoisonError::into_inner));
        }
        self.asleep.fetch_sub(1, Ordering::SeqCst);
    }

    fn wake(&self) {
        if self.asleep.load(Ordering::SeqCst) > 0 {
            // Whoever counts as asleep holds the lock until it waits.
            drop(self.bell.0.lock().unwrap_or_else(PoisonError::into_inner));
            self.bell.1.notify_all();
        }
    }
}

/// Shuts the gate and waits for those inside, also when a piece of the caller's panics.
struct Close<'a>(&'a Shared);

impl Drop for Close<'_> {
    fn drop(&mut self) {
        // Nobody else takes a piece.
        self.0.next.store(usize::MAX / 2, Ordering::Relaxed);
        self.0.gate.fetch_and(!OPEN, Ordering::SeqCst);
        let mut looks = 0;
        while self.0.gate.load(Ordering::SeqCst) & INSIDE != 0 {
            looks += 1;
            if looks % PATIENCE == 0 { thread::yield_now() } else { std::hint::spin_loop() }
        }
    }
}

impl Pool {
    /// A pool of `threads` threads; 0 means one for each core that this process may use. If the system gives no
    /// threads, the work runs on the caller's.
    pub fn new(threads: usize) -> Self {
        let threads = match threads {
            0 => thread::available_parallelism().map_or(1, usize::from),
            n => n,
        };
        let shared = Arc::new(Shared {
            gate: AtomicU64::new(0),
            task: Slot(std::cell::UnsafeCell::new(None)),
            next: AtomicUsize::new(0),
            panic: Mutex::new(None),
            asleep: AtomicUsize::new(0),
            bell: (Mutex::new(()), Condvar::new()),
            stop: AtomicBool::new(false),
        });
        let worker = |i: usize| {
            let shared = shared.clone();
            thread::Builder::new().name(format!("compute-{i}")).spawn(move || shared.work()).ok()
        };
        let workers = (1..threads).map_while(worker).collect();
        Self { shared, turn: Mutex::new(()), workers }
    }

    /// Number of threads.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Runs `work(0)` … `work(n - 1)`, each once, in any order, on all threads; returns when all are done. Within a piece of
    /// work, and while another thread hands out work, it is the caller's thread alone that runs them.
    ///
    /// # Panics
    /// If a piece of work does.
    pub fn for_each(&self, n: usize, work: impl Fn(usize) + Send + Sync) {
        // One piece may hand out work of its own.
        if n < 2 || self.workers.is_empty() {
            return (0..n).for_each(work);
        }
        let turn = match self.turn.try_lock() {
            Ok(turn) => Some(turn),
            Err(TryLockError::Poisoned(turn)) => Some(turn.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        };
        if turn.is_none() {
            return (0..n).for_each(work);
        }
        let work: &(dyn Fn(usize) + Sync) = &work;
        // SAFETY: the lifetime alone changes. `Close` does not let this call end before everybody has left the task, and
        // nobody enters it afterwards.
        let work: &'static (dyn Fn(usize) + Sync) = unsafe { std::mem::transmute(work) };
        let task = Task { pieces: n, work };
        let shared = &*self.shared;
        // SAFETY: this thread holds `turn`; the gate is shut and nobody is inside, or the last `Close` would still wait.
        unsafe { *shared.task.0.get() = Some(task) };
        shared.next.store(0, Ordering::Relaxed);
        let close = Close(shared);
        // The number is never 0, which workers begin with.
        let number = ((shared.gate.load(Ordering::Relaxed) / TASK + 1) & (TASK - 1)).max(1);
        shared.gate.store((number * TASK) | OPEN, Ordering::SeqCst);
        shared.wake();
        shared.run(task);
        drop(close);
        if let Some(payload) = shared.panic.lock().unwrap_or_else(PoisonError::into_inner).take() {
            panic::resume_unwind(payload);
        }
    }

    /// Like [`Pool::for_each`], with the results in order of index.
    pub fn map<T: Send>(&self, n: usize, work: impl Fn(usize) -> T + Send + Sync) -> Vec<T> {
        let mut results: Vec<Option<T>> = (0..n).map(|_| None).collect();
        self.for_each_chunk(&mut results, 1, |i, result| result[0] = Some(work(i)));
        results.into_iter().flatten().collect()
    }

    /// Like [`Pool::map`], stopping early at an error. Of several errors the one with the lowest index among those
    /// seen is returned.
    pub fn try_map<T: Send, E: Send>(
        &self,
        n: usize,
        work: impl Fn(usize) -> Result<T, E> + Send + Sync,
    ) -> Result<Vec<T>, E> {
        let failed = AtomicBool::new(false);
        let mut results: Vec<Option<Result<T, E>>> = (0..n).map(|_| None).collect();
        self.for_each_chunk(&mut results, 1, |i, result| {
            if !failed.load(Ordering::Relaxed) {
                let own = work(i);
                failed.fetch_or(own.is_err(), Ordering::Relaxed);
                result[0] = Some(own);
            }
        });
        results.into_iter().flatten().collect()
    }

    /// Cuts `data` into pieces of `size` elements (the last may be shorter) and runs `work(index, piece)` on each.
    pub fn for_each_chunk<T: Send>(&self, data: &mut [T], size: usize, work: impl Fn(usize, &mut [T]) + Send + Sync) {
        let size = size.max(1);
        let (start, len) = (Start(data.as_mut_ptr()), data.len());
        self.for_each(len.div_ceil(size), |i| {
            let first = i * size;
            // SAFETY: the piece lies within `data`, which is borrowed until `for_each` returns; each index runs once, and
            // pieces of different indices do not overlap.
            let piece = unsafe { std::slice::from_raw_parts_mut(start.at(first), size.min(len - first)) };
            work(i, piece);
        });
    }
}

/// The start of a slice whose pieces several threads write.
struct Start<T>(*mut T);

// SAFETY: the pointer is only used to make pieces that do not overlap, each for one thread.
unsafe impl<T: Send> Sync for Start<T> {}
// SAFETY: the same.
unsafe impl<T: Send> Send for Start<T> {}

impl<T> Start<T> {
    fn at(&self, offset: usize) -> *mut T {
        self.0.wrapping_add(offset)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        drop(self.shared.bell.0.lock().unwrap_or_else(PoisonError::into_inner));
        self.shared.bell.1.notify_all();
        for worker in self.workers.drain(..) {
            // A worker that panicked outside of work has nothing more to say.
            drop(worker.join());
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

    #[test]
    fn many_small_tasks_in_a_row_each_run_whole() {
        let pool = Pool::new(4);
        let count = AtomicUsize::new(0);
        for round in 0..20_000 {
            let before = count.load(Ordering::SeqCst);
            pool.for_each(round % 7, |_| {
                count.fetch_add(1, Ordering::SeqCst);
            });
            assert_eq!(count.load(Ordering::SeqCst) - before, round % 7);
            if round % 1000 == 0 {
                // Long enough for all to fall asleep.
                thread::sleep(std::time::Duration::from_millis(1));
            }
        }
    }

    #[test]
    fn work_within_work_and_from_several_threads_runs_too() {
        let pool = Pool::new(3);
        let count = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        pool.for_each(5, |_| {
                            pool.for_each(3, |_| {
                                count.fetch_add(1, Ordering::Relaxed);
                            });
                        });
                    }
                });
            }
        });
        assert_eq!(count.into_inner(), 4 * 200 * 15);
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_goes_on() {
        for threads in [1, 2, 5] {
            let pool = Pool::new(threads);
            for bad in [0, 7, 19] {
                let result = panic::catch_unwind(AssertUnwindSafe(|| {
                    pool.for_each(20, |i| assert!(i != bad, "piece {bad}"));
                }));
                assert!(result.is_err());
                assert_eq!(pool.map(50, |i| i).len(), 50);
            }
        }
    }
}
