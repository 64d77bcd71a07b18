//! Memory that is used again and again.

use std::sync::{Mutex, PoisonError};

/// Buffers that threads borrow and give back. Contents are left from the last use.
#[derive(Debug, Default)]
pub struct Scratch {
    floats: Mutex<Vec<Vec<f32>>>,
    ints: Mutex<Vec<Vec<i32>>>,
}

impl Scratch {
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
