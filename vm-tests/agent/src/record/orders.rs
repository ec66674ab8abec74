//! What the other threads send to the watcher, and how they wake it.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use anyhow::{Context, Result};
use rustix::event::{EventfdFlags, eventfd};
use vm_agent::recording::Step;

use super::roles::Watched;

/// What others send to the watcher.
#[derive(Debug)]
pub(super) enum Order {
    /// The process of a user's manager, which makes the processes of the unit under test.
    UserManager(u32),
    /// systemd's view of a unit has changed.
    Unit(Watched, UnitView),
    /// A step is about to begin; answered when the watcher has scanned.
    StepBegins(Step, Sender<()>),
    /// The step's command has ended; answered when the watcher has scanned.
    StepEnded(Step, Sender<()>),
    /// The reset has left something of the mount with this number: ask `holders`. Answered when that is recorded.
    Diagnose(u32, Sender<()>),
    /// The plan is over.
    Finish,
}

/// What the watcher needs to know of a unit.
#[derive(Debug, Clone, Default)]
pub(super) struct UnitView {
    /// 0 if none.
    pub(super) main_pid: u32,
    /// 0 if none.
    pub(super) control_pid: u32,
    pub(super) is_deactivating: bool,
    /// Empty if systemd has not said it, as for a unit that is down; then what it was before stays in use.
    pub(super) control_group: String,
}

/// The way to the watcher.
#[derive(Debug, Clone)]
pub(super) struct Orders {
    sender: Sender<Order>,
    wake: Arc<OwnedFd>,
}

impl Orders {
    /// A way without orders, and its other end.
    ///
    /// # Errors
    /// What eventfd(2) says.
    pub(super) fn new() -> Result<(Self, Receiver<Order>)> {
        let (sender, receiver) = channel();
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).context("eventfd")?;
        Ok((Self { sender, wake: Arc::new(wake) }, receiver))
    }

    /// Readable when there are orders.
    pub(super) fn wake(&self) -> Arc<OwnedFd> {
        self.wake.clone()
    }

    /// Wakes the watcher with this order.
    pub(super) fn send(&self, order: Order) {
        // Fails only when the watcher has ended, which the thread that waits for it learns.
        if self.sender.send(order).is_ok() {
            // Fails only when the counter is full, and then the watcher is awake.
            let _full = rustix::io::write(&*self.wake, &1_u64.to_ne_bytes()).is_err();
        }
    }
}
