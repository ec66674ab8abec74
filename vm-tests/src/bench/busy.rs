//! A host without an idle core.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use anyhow::{Context, Result};

use crate::host::cores;

/// Threads that keep cores of the host busy until this is dropped.
#[derive(Debug)]
pub struct BusyHost {
    over: Arc<AtomicBool>,
    pub(super) threads: Vec<JoinHandle<()>>,
}

impl BusyHost {
    /// Starts one thread for each core.
    ///
    /// # Errors
    /// When a thread can't be started.
    pub fn start() -> Result<Self> {
        Self::with(cores())
    }

    /// Starts so many threads.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn with(threads: usize) -> Result<Self> {
        let mut busy = Self { over: Arc::default(), threads: Vec::new() };
        for number in 0..threads {
            let over = Arc::clone(&busy.over);
            let spin = move || {
                while !over.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            };
            let thread = std::thread::Builder::new().name(format!("busy {number}"));
            busy.threads.push(thread.spawn(spin).context("start a busy thread")?);
        }
        Ok(busy)
    }
}

impl Drop for BusyHost {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                // It has panicked, and is not busy any more.
            }
        }
    }
}
