//! What a piece of long work is given besides its input: threads, a memory budget, a way to tell how far it is, and a way to
//! be stopped. Parameters, never globals.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::threads::Pool;

/// A flag that asks long work to stop. Clones share the flag.
#[derive(Debug, Clone, Default)]
pub struct Cancel(Arc<AtomicBool>);

/// The work was asked to stop and did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("interrupted; nothing was written")]
pub struct Interrupted;

impl Cancel {
    /// Asks the work to stop. Safe to call from a signal handler's thread.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// An error once [`Cancel::cancel`] was called; work checks this at least every few milliseconds of computing.
    pub fn check(&self) -> Result<(), Interrupted> {
        if self.0.load(Ordering::Relaxed) { Err(Interrupted) } else { Ok(()) }
    }
}

/// Where long work tells how far it is.
pub trait Progress: Send + Sync {
    /// A stage begins: its name and how much it has to do, in bytes of weights or in tokens.
    fn begin(&self, stage: &str, total: u64);
    /// So much more of the stage is done. May be called from several threads.
    fn advance(&self, amount: u64);
    /// The stage is over.
    fn end(&self);
}

/// Progress that nobody watches.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {
    fn begin(&self, _: &str, _: u64) {}
    fn advance(&self, _: u64) {}
    fn end(&self) {}
}

/// The surroundings of a piece of work.
#[derive(Clone)]
pub struct Job {
    /// The threads.
    pub pool: Arc<Pool>,
    /// Bytes that may be in use at one time beyond the mapped input.
    pub memory: u64,
    /// Asks the work to stop.
    pub cancel: Cancel,
    /// Is told how far the work is.
    pub progress: Arc<dyn Progress>,
}

impl Job {
    /// The default budget: 512 MiB.
    pub const DEFAULT_MEMORY: u64 = 512 << 20;

    /// Silent work on `threads` threads with the default budget.
    pub fn new(threads: usize) -> Self {
        Self {
            pool: Arc::new(Pool::new(threads)),
            memory: Self::DEFAULT_MEMORY,
            cancel: Cancel::default(),
            progress: Arc::new(Silent),
        }
    }
}
