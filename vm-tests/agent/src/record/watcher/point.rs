//! A mount point under watch, and what is kept of it between two events.

use std::path::PathBuf;

use anyhow::Result;
use holders::Query;
use vm_agent::recording::{Scan, Task, Trigger, What};

use crate::record::events::Sink;
use crate::record::mounts::MountWatch;
use crate::record::umounts::Calls;

/// A mount point under watch.
pub(super) struct Point {
    pub(super) path: PathBuf,
    /// Marks its events as this one's.
    pub(super) sink: Sink,
    pub(super) mounts: MountWatch,
    pub(super) calls: Calls,
    /// From when on a failed umount has `holders` asked again.
    pub(super) whole_after: u64,
    /// The mount has changed while a umount was under way: scan when it has returned.
    pub(super) scan_after_call: bool,
    /// Processes outside the units that the last whole scan saw with a reference.
    pub(super) outside: Vec<u32>,
    /// What the last scan recorded or held back saw.
    last_scan: Option<(bool, Vec<Task>)>,
    /// The last of a run of ticks that all saw the same.
    held_back: Option<(u64, Scan)>,
}

impl Point {
    pub(super) fn open(path: &str, sink: Sink) -> Result<Self> {
        Ok(Self {
            path: path.into(),
            sink,
            mounts: MountWatch::open(path)?,
            calls: Calls::default(),
            whole_after: 0,
            scan_after_call: false,
            outside: Vec::new(),
            last_scan: None,
            held_back: None,
        })
    }

    pub(super) fn stop_begins(&mut self) {
        self.whole_after = 0;
        self.last_scan = None;
        self.outside.clear();
    }

    /// Asks `holders` once for nothing: the first time takes three times as long, since its code is not in memory yet.
    pub(super) fn warm_up(&self) {
        if let Err(error) = Query::new(&self.path).after_ebusy().run() {
            self.sink.lost("scan", format!("{error:#}"));
        }
    }

    pub(super) fn record_scan(&mut self, at: u64, scan: Scan) {
        let is_same = self
            .last_scan
            .as_ref()
            .is_some_and(|(mounted, tasks)| *mounted == scan.mounted && *tasks == scan.tasks);
        if scan.trigger == Trigger::Tick && is_same {
            self.held_back = Some((at, scan));
            return;
        }
        self.record_held_back();
        self.last_scan = Some((scan.mounted, scan.tasks.clone()));
        self.sink.send(at, What::Scan(scan));
    }

    pub(super) fn record_held_back(&mut self) {
        if let Some((at, scan)) = self.held_back.take() {
            self.sink.send(at, What::Scan(scan));
        }
    }
}
