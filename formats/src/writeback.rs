//! Brings what was written to the disk while more is being made, so that the last sync has little left to do. Systems keep
//! written bytes in memory for long, and the disk would idle until then.

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

/// Bytes after which the disk is sent to work. Less would pay for many small syncs, more would leave much to the last.
const STRIDE: u64 = 64 << 20;

/// A thread that syncs files, started when there is enough to sync.
#[derive(Debug, Default)]
pub(crate) struct Writeback {
    written: AtomicU64,
    thread: Mutex<Option<Syncing>>,
}

/// What a sync that failed was of, and why. The system tells of a failure once only, so it must be kept.
pub(crate) type Failure = (usize, io::Error);

#[derive(Debug)]
struct Syncing {
    files: SyncSender<(usize, Arc<File>)>,
    thread: JoinHandle<Result<(), Failure>>,
}

impl Syncing {
    fn start() -> io::Result<Self> {
        let (files, received) = sync_channel::<(usize, Arc<File>)>(1);
        let thread = std::thread::Builder::new().name("writeback".to_owned()).spawn(move || {
            for (index, file) in received {
                file.sync_data().map_err(|e| (index, e))?;
            }
            Ok(())
        })?;
        Ok(Self { files, thread })
    }
}

impl Writeback {
    /// So many bytes of a file were written.
    pub fn wrote(&self, index: usize, file: &Arc<File>, bytes: u64) {
        let before = self.written.fetch_add(bytes, Ordering::Relaxed);
        if before / STRIDE == (before + bytes) / STRIDE {
            return;
        }
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if thread.is_none() {
            // Without a thread all is left to the last sync.
            *thread = Syncing::start().ok();
        }
        if let Some(syncing) = &*thread {
            // If it is busy, a later call sends what this one would have.
            let _ = syncing.files.try_send((index, file.clone()));
        }
    }

    /// Waits for the syncs that were begun.
    ///
    /// # Errors
    /// One of them failed.
    pub fn finish(&self) -> Result<(), Failure> {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(Syncing { files, thread }) = thread else { return Ok(()) };
        drop(files);
        thread.join().unwrap_or(Ok(()))
    }
}
