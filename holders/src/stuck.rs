//! A process whose memory, or more of it, can't be looked at, as the report names it.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::path::DecInt;

use crate::proc::open_task;
use crate::task;
use crate::walk::{StuckProcess, waits_in};

/// A process that is stuck in the kernel, so that a look at its memory would not come back: while it changes its mappings
/// or reads a page, from a server that does not answer as a rule, or within execve(2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stuck {
    /// Process id.
    pub pid: u32,
    /// Its name.
    pub comm: String,
    /// Where one of its threads waits in the kernel (`/proc/PID/wchan`); empty if that can't be told.
    pub waits_in: String,
    /// Nothing of it can be looked at. Else all but its mappings, its command line and what systemd started it for.
    pub is_whole: bool,
}

impl Stuck {
    pub(crate) fn of(proc_dir: BorrowedFd<'_>, &StuckProcess { pid, is_whole }: &StuckProcess) -> Self {
        let process = open_task(proc_dir, DecInt::new(pid).as_c_str());
        let comm = process.map(|process| task::about_task(process.as_fd()).comm).unwrap_or_default();
        // Not even that can be asked of one in the middle of execve(2).
        let waits_in = if is_whole { String::new() } else { waits_in(proc_dir, pid) };
        Self { pid, comm, waits_in, is_whole }
    }
}

impl fmt::Display for Stuck {
    /// `451 (srcds_linux), which is stuck in the kernel (vm_mmap_pgoff): its mappings`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pid, comm, waits_in, is_whole } = self;
        write!(f, "{pid} ({comm}), which is stuck in the kernel")?;
        if !waits_in.is_empty() {
            write!(f, " ({waits_in})")?;
        }
        f.write_str(if *is_whole { ": all of it" } else { ": its mappings" })
    }
}
