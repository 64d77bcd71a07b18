//! Memory that is used again and again.

use std::sync::{Mutex, PoisonError};

/// Buffers that threads borrow and give back. Contents are left from the last use.
#[derive(Debug, Default)]
pub struct Scratch {
    steps: bool,
    floats: Mutex<Vec<Vec<f32>>>,
    ints: Mutex<Vec<Vec<i32>>>,
}

impl Scratch {
    /// For the steps of a session: a few rows of activations are multiplied in whatever order of sums reads weights fastest.
    /// Elsewhere the order is the same however many rows are multiplied together, so that results do not depend on the memory
    /// that there is.
    pub fn for_steps() -> Self {
        Self { steps: true, ..Self::default() }
    }

    /// Whether it is for the steps of a session.
    pub fn is_for_steps(&self) -> bool {
        self.steps
    }

    /// Runs `work` with a buffer of `len` numbers.
    pub fn floats<T>(&self, len: usize, work: impl FnOnce(&mut [f32]) -> T) -> T {
        with(&self.floats, len, work)
    }

    /// Runs `work` with a buffer of `len` numbers.
    pub fn ints<T>(&self, len: usize, work: impl FnOnce(&mut [i32]) -> T) -> T {
        with(&self.ints, len, work)
    }
}

fn with<N: Clone + Default, T>(free: &Mutex<Vec<Vec<N>>>, len: usize, work: impl FnOnce(&mut [N]) -> T) -> T {
    // A panic elsewhere leaves at most a buffer out of the list.
    let lock = || free.lock().unwrap_or_else(PoisonError::into_inner);
    let mut buffer = lock().pop().unwrap_or_default();
    if buffer.len() < len {
        buffer.resize(len, N::default());
    }
    let result = work(&mut buffer[..len]);
    lock().push(buffer);
    result
}
