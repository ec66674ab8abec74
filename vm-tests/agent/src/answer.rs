//! The way back to the host: answers to requests, one port for all threads.

use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vm_agent::wire::{self, Body, Reply};

/// The host's end of a request: where its answers go.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    id: u64,
    port: Arc<Mutex<File>>,
}

impl Answer {
    /// Answers to the request of this id, on the port that all share.
    pub(crate) fn new(id: u64, port: &Arc<Mutex<File>>) -> Self {
        Self { id, port: Arc::clone(port) }
    }

    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    /// Sends one answer. An error means that the host is gone.
    pub(crate) fn send(&self, body: Body) -> io::Result<()> {
        let bytes = wire::encode(&Reply { id: self.id, body })?;
        wire::write_frame(&mut *lock(&self.port), &bytes)
    }
}

/// A mutex whose data stays right when a holder panics: each is one map or one file.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
