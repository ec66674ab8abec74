//! Doing what was asked for: jobs in threads of their own, which go on whoever leaves, and everybody who watches told of changes.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use left4me_ctl::control;
use left4me_ctl::report::Report;
use left4me_ctl::units::UnitsError;
use left4me_helper::instance::Instance;
use serde::{Deserialize, Serialize};

use crate::host::{Host, Servers};
use crate::jobs::{InTheWay, Job, Jobs, State};
use crate::kept::Kept;
use crate::verbs::{Deed, Ticket};

/// How long a watcher waits for a change at most. Then it is told all the same: so that one who is gone is noticed, and for
/// what systemd does not tell of, which is an instance that is made or destroyed.
const QUIET: Duration = Duration::from_secs(5);

/// What a watcher is told.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// All instances.
    #[serde(flatten)]
    pub servers: Servers,
    /// The jobs of late, oldest first.
    pub jobs: Vec<Job>,
}

/// The machine, the jobs, and who waits for changes.
#[derive(Debug)]
pub struct Work<H> {
    /// The machine.
    pub host: H,
    jobs: Mutex<Jobs>,
    kept: Kept,
    /// Whether no job begins any more.
    is_ending: AtomicBool,
    /// Counts changes.
    version: Mutex<u64>,
    changed: Condvar,
}

impl<H: Host> Work<H> {
    /// With the jobs that are kept in a directory.
    ///
    /// # Errors
    /// They cannot be listed or written.
    pub fn new(host: H, kept: Kept) -> Result<Arc<Self>, String> {
        let (jobs, problems) = kept.all().map_err(|error| format!("list the jobs: {error}"))?;
        problems.iter().for_each(|problem| eprintln!("{problem}"));
        let mut jobs = Jobs::again(jobs);
        jobs.tidy().iter().try_for_each(|old| kept.remove(old))?;
        jobs.all().iter().try_for_each(|job| kept.put(job))?;
        let (version, changed) = (Mutex::new(0), Condvar::new());
        let is_ending = AtomicBool::new(false);
        Ok(Arc::new(Self { host, jobs: Mutex::new(jobs), kept, is_ending, version, changed }))
    }

    /// Begins a job, and does not wait for it.
    ///
    /// # Errors
    /// Another one is in the way.
    pub fn begin(self: &Arc<Self>, deed: Deed, instance: Instance, ticket: Ticket) -> Result<(), Refusal> {
        let mut jobs = locked(&self.jobs);
        if self.is_ending.load(Ordering::SeqCst) {
            return Err(Refusal::Disk("the broker is being stopped: ask again".into()));
        }
        let Some(job) = jobs.begin(deed, instance.as_str(), &ticket, now_ms())? else {
            return Ok(());
        };
        // Known on disk before it begins: what began is interrupted if we end, and not unknown. Nobody sees it before, as nobody
        // else has the lock.
        if let Err(problem) = self.kept.put(&job) {
            jobs.forget(&ticket);
            return Err(Refusal::Disk(problem));
        }
        drop(jobs);
        let work = Arc::clone(self);
        let thread = std::thread::Builder::new().name(format!("{deed} {instance}"));
        let begun = thread.spawn({
            let ticket = ticket.clone();
            move || {
                // A fault of ours is the job's end, too: else nobody could touch the instance again.
                let act = AssertUnwindSafe(|| work.host.act(deed, &instance));
                let report = catch_unwind(act).unwrap_or_else(|_panic| fault(deed, &instance));
                // Seen when it is on disk: an outcome that was shown is there after a restart.
                let mut jobs = locked(&work.jobs);
                let (ended, forgotten) = jobs.end(&ticket, report, now_ms());
                let kept = ended.iter().map(|job| work.kept.put(job));
                let removed = forgotten.iter().map(|old| work.kept.remove(old));
                kept.chain(removed).filter_map(Result::err).for_each(|problem| eprintln!("{problem}"));
                drop(jobs);
                work.has_changed();
            }
        });
        if let Err(error) = begun {
            locked(&self.jobs).forget(&ticket);
            self.kept.remove(&ticket).unwrap_or_else(|problem| eprintln!("{problem}"));
            return Err(Refusal::Disk(format!("start a thread: {error}")));
        }
        self.has_changed();
        Ok(())
    }

    /// Begins no more jobs, and waits for those that are under way: their outcomes are on disk then.
    pub fn end(&self) {
        {
            // Whoever has the lock has begun a job, or sees that none begins.
            let _jobs = locked(&self.jobs);
            self.is_ending.store(true, Ordering::SeqCst);
        }
        let mut version = locked(&self.version);
        while locked(&self.jobs).all().iter().any(|job| job.state == State::Running) {
            version = self.changed.wait(version).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Something has changed: everybody who watches looks.
    pub fn has_changed(&self) {
        *locked(&self.version) += 1;
        self.changed.notify_all();
    }

    /// All that there is.
    #[must_use]
    pub fn seen(&self) -> Seen {
        Seen { servers: self.host.servers(), jobs: locked(&self.jobs).all().to_vec() }
    }

    /// How many changes there were.
    #[must_use]
    pub fn version(&self) -> u64 {
        *locked(&self.version)
    }

    /// Waits for a change after `version`, or for [`QUIET`].
    pub fn wait(&self, version: u64) {
        let is_same = |now: &mut u64| *now == version;
        let waited = self.changed.wait_timeout_while(locked(&self.version), QUIET, is_same);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }
}

fn fault(deed: Deed, instance: &Instance) -> Report {
    let why = "the broker has a fault, its journal has more (`journalctl -u left4me-broker.service`)";
    control::not_begun(deed.action(), instance, &UnitsError::Other(why.into()))
}

/// Why a job does not begin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// Others are in the way.
    Jobs(InTheWay),
    /// It could not be noted, or no thread could be had.
    Disk(String),
}

impl From<InTheWay> for Refusal {
    fn from(way: InTheWay) -> Self {
        Self::Jobs(way)
    }
}

fn locked<T>(what: &Mutex<T>) -> MutexGuard<'_, T> {
    // Whoever panicked had it only for one statement, which leaves it whole.
    what.lock().unwrap_or_else(PoisonError::into_inner)
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
