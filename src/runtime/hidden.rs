//! Hidden states of all windows of a text: in memory, or in a temporary file where they would take too much of it.

use std::ops::{Deref, DerefMut};

use formats::Floats;

use super::Error;

/// Hidden states `[tokens, hidden]`.
pub(super) enum Hidden {
    Memory(Vec<f32>),
    File(Floats),
}

impl Hidden {
    /// Room for so many numbers, which may take so many bytes of memory.
    pub fn new(len: usize, memory: u64) -> Result<Self, Error> {
        if 4 * len as u64 <= memory {
            return Ok(Self::Memory(vec![0.0; len]));
        }
        Floats::new(len).map(Self::File).map_err(|e| Error::Weights(Box::new(e)))
    }
}

impl Deref for Hidden {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match self {
            Self::Memory(numbers) => numbers,
            Self::File(numbers) => numbers,
        }
    }
}

impl DerefMut for Hidden {
    fn deref_mut(&mut self) -> &mut [f32] {
        match self {
            Self::Memory(numbers) => numbers,
            Self::File(numbers) => numbers,
        }
    }
}
