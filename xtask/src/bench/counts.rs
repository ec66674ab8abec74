//! What to measure, and how often.

use anyhow::Result;
use clap::ValueEnum;
use vm_tests::bench::Requests;
use vm_tests::bench::holders::Rounds;

/// Cycles of a run of it.
pub(super) const CYCLES: u32 = 2;

/// How often 100,000 files are made and purged, at most: a minute or two of the host each.
pub(super) const PURGES: usize = 2;

/// How many machines are restored side by side.
pub(super) const SIDE_BY_SIDE: [usize; 4] = [1, 2, 4, 8];

/// How often `holders` is measured: in virtual time one run is as the next, so these are for what is different within
/// one.
pub(super) const ACCURACY_ROUNDS: Rounds = Rounds { scans: 5, events: 20 };

/// The same with `--quick`.
pub(super) const QUICK_ACCURACY_ROUNDS: Rounds = Rounds { scans: 1, events: 3 };

/// What can be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum What {
    /// Cold boot to the agent, by stage
    Boot,
    /// Restore to the first answer, 1, 2, 4 and 8 machines at once, against a cold boot
    Restore,
    /// A null request, a command, a file of 10 MiB
    Channel,
    /// Cost of an idle and of a busy guest second in virtual time
    Idle,
    /// Spread of a Reset's guest time over runs, with the host idle and busy
    Spread,
    /// A Reset against a `systemctl stop` of a service that does nothing
    Reset,
    /// Cost of the helper's unmount
    Helper,
    /// Delete of 100,000 files, by a Reset and by `rm -rf`; takes some minutes
    Purge,
    /// A moment of a run: made, opened; and `shell --at`, where it is there and where the run is made first
    Moment,
    /// The whole of `cargo xtask vm-test`, everything cached
    Suite,
    /// From an edit of judge, helper and agent to the verdict; the suite of one image, nothing changed and all run anew.
    /// In a copy of the checkout, which is built first; takes half an hour; only if named
    Edit,
    /// From a save of a unit and of the helper to the verdict of `cargo xtask watch`. In the same copy; only if named
    Watch,
    /// `explore`: a run, a failing line again and again (--runs) and made smaller, a whole sweep; takes some minutes; only if named
    Explore,
    /// The operator's page in real time: a page, an answer to Start and Reset, memory; builds it; only if named
    Page,
    /// Accuracy of holders, fuser, lsof and lsns for a mount that is held in 75 ways; cost of a scan; latency of the
    /// watch. On each --image; only if named
    Holders,
}

/// How many samples.
#[derive(Debug, Clone, Copy)]
pub(super) struct Counts {
    pub(super) machines: usize,
    pub(super) spread: usize,
    pub(super) edits: usize,
    pub(super) replays: usize,
    pub(super) requests: Requests,
}

impl Counts {
    pub(super) fn of(quick: bool, runs: Option<usize>) -> Self {
        let (machines, spread, edits, replays) = match (quick, runs) {
            (true, _) => (2, 3, 1, 3),
            (false, Some(runs)) => (runs, runs, runs, runs),
            (false, None) => (5, 20, 3, 20),
        };
        Self {
            machines,
            spread,
            edits,
            replays,
            requests: Requests { pings: 1000, commands: 30, puts: machines },
        }
    }
}

pub(super) fn runs(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("there is no median of nothing".to_owned()),
        Ok(runs) => Ok(runs),
        Err(error) => Err(format!("{error}")),
    }
}
