//! A moment: the machine of a run, saved at an instant of it, to be looked at as often as one likes.
//!
//! The run is made once more, with its RAM in a file, up to the instant. There the recorder stops everything but the agent and has
//! the machine paused (`vm-tests/agent/src/record/stand.rs`), so a moment is the same bytes whenever and wherever it is made. A
//! moment that is restored is paused; no time of the guest passes but for what it is asked to do.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use vm_agent::recording::{Recording, What};
use vm_agent::wire::{Body, Call, Command, DEPLOY_DEVICE, Exit, Put, Request, Session, Stop, Stream, Until};
use vm_perturb::{Anew, ORDER, ORDER_BYTES, Order, REPORT_BYTES, Report};

use super::given::Given;
use super::guest::{Guest, end_with, restore_from};
use super::inputs::Inputs;
use crate::cache::{self, Key, Lock, Staging};
use crate::host::accel::Clock;
use crate::host::events::{self, Event, Progress};
use crate::machine::config::{DEPLOY_BYTES, Ram};
use crate::machine::guest::Pending;
use crate::machine::saved::{self, MANIFEST, Saved, TRIES, copy_without_zeros};
use crate::machine::state::{NotAtRest, make_steady};
use crate::machine::{Cancel, Machine};
use crate::scenario::bundle::{write_deploy_image, write_request};

/// Goes up when the way a moment is made changes and its inputs do not.
const RECIPE: u32 = 1;

/// How long after the instant the machine is paused, in microseconds of guest time: the first at which the guest is idle. An exit
/// of a large process is in the kernel, where nothing stops it.
const PAUSES_US: [u64; 4] = [200, 5_000, 100_000, 1_000_000];
/// The same after an answer.
const AFTER_ANSWER_US: u64 = 500;

/// Of the run up to the instant, in wall time; and of a look.
const DEADLINE: Duration = Duration::from_secs(900);
/// What a person may look at without an end: a day.
const LOOK_DEADLINE: Duration = Duration::from_secs(24 * 3600);

/// How many moments are kept, of 200 MB each, and how long one beyond that must have been unused.
const KEPT: usize = 6;
const UNUSED: Duration = Duration::from_secs(3600);

const RAM: &str = "ram";
const STATE: &str = "state";
/// What the machine was given its session with.
const DEPLOY: &str = "deploy.img";
const LOGS: &str = "logs";

/// A saved machine at an instant of a run.
#[derive(Debug, Clone)]
pub struct Moment {
    directory: PathBuf,
    saved: Saved,
    pause_us: u64,
    /// What it took to make it; `None` if it was found.
    pub made: Option<Made>,
}

/// Times of the host.
#[derive(Debug, Clone, Copy)]
pub struct Made {
    /// The run up to the instant, from the restored machine on.
    pub run: Duration,
    /// All of it.
    pub whole: Duration,
}

#[derive(Debug, Serialize, Deserialize)]
struct Manifest {
    key: String,
    at_ns: u64,
    pause_us: u64,
}

impl Moment {
    /// The hash of its RAM and of the state of its devices.
    ///
    /// # Errors
    /// If they can't be read.
    pub fn hash(&self) -> Result<String> {
        let hashes = [saved::hash_sparse(&self.saved.ram)?, saved::hash_sparse(&self.saved.state)?];
        Ok(cache::Inputs::new("moment", RECIPE).list("hashes", &hashes).key().as_str().to_owned())
    }

    /// In which of its parts another one of the same instant differs, and where first; empty if in none.
    ///
    /// # Errors
    /// If they can't be read.
    pub fn differences(&self, other: &Self) -> Result<Vec<String>> {
        let mut found = Vec::new();
        if self.pause_us != other.pause_us {
            found.push(format!("paused after {} and after {} us", self.pause_us, other.pause_us));
        }
        let parts =
            [("RAM", &self.saved.ram, &other.saved.ram), ("state", &self.saved.state, &other.saved.state)];
        for (part, one, another) in parts {
            if let Some(at) = saved::first_difference(one, another)? {
                found.push(format!(
                    "{part} from byte {at:#x} on: {} and {}",
                    one.display(),
                    another.display()
                ));
            }
        }
        Ok(found)
    }
}

/// The moment at so many nanoseconds after the plan of a run began, made if it is not in the cache, whose root is `cache`.
///
/// # Errors
/// A run that repeats itself is needed: in virtual time. An instant after its end.
pub async fn ensure(
    guest: &Guest,
    given: &Given,
    at_ns: u64,
    cache: &Path,
    cancel: Cancel,
) -> Result<Moment> {
    ensure!(
        guest.base.clock == Clock::Virtual,
        "an instant of a run is there again in virtual time only: leave out --clock real and --accel kvm"
    );
    let guest = guest.of_size(given.memory_mib);
    let inputs = Inputs::of(&guest, &given.session)?.key()?;
    let key =
        cache::Inputs::new("moment", RECIPE).text("run", inputs.as_str()).text("at", &at_ns.to_string());
    let wanted = Wanted { up_to: UpTo::Instant(at_ns), given, key: key.key() };
    ensure_wanted(&guest, &wanted, cache, cancel).await
}

/// The moment at which a run's guest has the machine paused by itself, in the middle of its plan, to take another order (see
/// [`vm_perturb::Anew`]); made if it is not in the cache, whose root is `cache`. Nothing is stopped there: what is restored goes
/// on with the order that it is given, see [`restore_to`].
///
/// # Errors
/// As [`ensure`]; a command of the set-up that fails; a run that ends before.
pub async fn ensure_for_orders(
    guest: &Guest,
    given: &Given,
    order: &Order,
    cache: &Path,
    cancel: Cancel,
) -> Result<Moment> {
    ensure!(
        guest.base.clock == Clock::Virtual,
        "a run from a moment is the same each time in virtual time only: leave out --clock real and --accel kvm"
    );
    let guest = guest.of_size(given.memory_mib);
    let inputs = Inputs::of(&guest, &given.session)?.key()?;
    let key = cache::Inputs::new("moment for orders", RECIPE)
        .text("run", inputs.as_str())
        .text("order", &order.to_text()?)
        .key();
    ensure_wanted(&guest, &Wanted { up_to: UpTo::Order(order), given, key }, cache, cancel).await
}

/// Restores such a moment, paused, with an order; see [`report_of`].
///
/// # Errors
/// As [`super::guest::restore`].
pub async fn restore_to(
    guest: &Guest,
    moment: &Moment,
    order: &Order,
    directory: &Path,
    cancel: Cancel,
) -> Result<Machine> {
    std::fs::create_dir_all(directory).with_context(|| format!("create {}", directory.display()))?;
    let deploy = directory.join(DEPLOY);
    write_deploy_image(&deploy, None)?;
    let what = || format!("write {}", deploy.display());
    let file = File::options().write(true).open(&deploy).with_context(what)?;
    file.write_all_at(order.to_text()?.as_bytes(), ORDER_AT).with_context(what)?;
    let (ram, state) = (Ram::Restoring(moment.saved.ram.clone()), &moment.saved.state);
    restore_from(guest, ram, state, deploy, true, directory, cancel).await
}

/// What such a machine has reported; `None` if it has not.
///
/// # Errors
/// If it can't be read, or is none.
pub fn report_of(directory: &Path) -> Result<Option<Report>> {
    let deploy = directory.join(DEPLOY);
    let what = || format!("read a report from {}", deploy.display());
    let mut bytes = vec![0; REPORT_BYTES];
    File::open(&deploy).and_then(|file| file.read_exact_at(&mut bytes, REPORT_AT)).with_context(what)?;
    let text = bytes.split(|byte| *byte == 0).next().filter(|text| !text.is_empty());
    text.map(serde_json::from_slice).transpose().with_context(what)
}

/// Up to where a machine runs that is saved.
#[derive(Debug, Clone, Copy)]
enum UpTo<'a> {
    /// So many nanoseconds after its plan began.
    Instant(u64),
    /// To where it has the machine paused by itself, with this order.
    Order(&'a Order),
}

struct Wanted<'a> {
    up_to: UpTo<'a>,
    given: &'a Given,
    key: Key,
}

async fn ensure_wanted(guest: &Guest, wanted: &Wanted<'_>, cache: &Path, cancel: Cancel) -> Result<Moment> {
    let key = &wanted.key;
    let moments = cache.join("moments");
    std::fs::create_dir_all(&moments).with_context(|| format!("create {}", moments.display()))?;
    let directory = moments.join(key.short());
    if let Some(moment) = find(&directory, key.as_str()) {
        return Ok(moment);
    }
    let lock = Lock::exclusive(&directory.with_extension("lock"), |who| {
        let (what, who) = ("moment".to_owned(), who.to_owned());
        events::tell(Event::Waiting { what, who, does: "makes" });
    })
    .await?;
    if let Some(moment) = find(&directory, key.as_str()) {
        return Ok(moment);
    }
    let mut tries = Tries::default();
    let begun = Instant::now();
    loop {
        let pause_us = tries.pause_us()?;
        let staging = Staging::begin(&directory, &lock, |_dead: &Path| async { Ok(()) }).await?;
        let made = make(guest, wanted, pause_us, staging.path(), cancel.clone()).await;
        let Some(run) = tries.made(made)? else { continue };
        let at_ns = match wanted.up_to {
            UpTo::Instant(at_ns) => at_ns,
            UpTo::Order(_) => 0,
        };
        let manifest = Manifest { key: key.as_str().to_owned(), at_ns, pause_us };
        let path = staging.path().join(MANIFEST);
        std::fs::write(&path, serde_json::to_vec_pretty(&manifest)?)
            .with_context(|| format!("write {}", path.display()))?;
        staging.commit()?;
        saved::tidy_to(&moments, KEPT, UNUSED)?;
        let moment = find(&directory, key.as_str()).context("a moment that was just made")?;
        return Ok(Moment { made: Some(Made { run, whole: begun.elapsed() }), ..moment });
    }
}

/// The pauses that are tried, in order, each [`TRIES`] times: a guest that is busy is so each time, and what the host's threads
/// did is not. A moment that took the next pause for such a one would be another moment.
#[derive(Debug, Default)]
struct Tries {
    done: usize,
}

impl Tries {
    /// The pause to try now, in microseconds.
    fn pause_us(&self) -> Result<u64> {
        let pause = PAUSES_US.get(self.done / TRIES);
        pause
            .copied()
            .context("the guest is busy for a second after this instant: choose one before or after it")
    }

    /// The moment that was made with it, if one was; the next one is to be tried if the guest was not at rest, as a pause at any other
    /// instant would be the host's.
    fn made<T>(&mut self, made: Result<T>) -> Result<Option<T>> {
        match made {
            Err(error) if error.is::<NotAtRest>() => {
                self.done += 1;
                Ok(None)
            }
            made => made.map(Some),
        }
    }
}

fn find(directory: &Path, key: &str) -> Option<Moment> {
    let path = directory.join(MANIFEST);
    let manifest: Manifest = serde_json::from_slice(&std::fs::read(&path).ok()?).ok()?;
    saved::mark_used(directory).ok()?;
    let saved = Saved { ram: directory.join(RAM), state: directory.join(STATE), hash: manifest.key.clone() };
    let pause_us = manifest.pause_us;
    (manifest.key == key).then(|| Moment { directory: directory.to_owned(), saved, pause_us, made: None })
}

/// Where on the deploy device an order lies that is given to a restored machine: at its end. And where its report.
const ORDER_AT: u64 = DEPLOY_BYTES - ORDER_BYTES as u64;
const REPORT_AT: u64 = ORDER_AT - REPORT_BYTES as u64;

/// Runs a session up to there, and saves the machine. Returns how long the run took.
async fn make(
    guest: &Guest,
    wanted: &Wanted<'_>,
    pause_us: u64,
    directory: &Path,
    cancel: Cancel,
) -> Result<Duration> {
    let given = wanted.given;
    let progress = Progress::start(&format!("moment of {}", given.name));
    progress.now("running up to it");
    let before = guest.saved()?;
    let (ram, state, deploy) = (directory.join(RAM), directory.join(STATE), directory.join(DEPLOY));
    let needed = u64::from(guest.base.memory_mib) << 20;
    // QEMU maps the file: a page that the disk has no room for would be a SIGBUS in the middle of the run.
    ensure!(
        cache::free_bytes(directory)? > needed,
        "no room for a moment: it needs {} MiB at {}; free some, or set {} to a directory on another disk",
        needed >> 20,
        directory.display(),
        cache::CACHE_VAR
    );
    copy_without_zeros(&before.ram, &ram)?;
    let mut session = given.session.clone();
    match wanted.up_to {
        UpTo::Instant(at_ns) => session.stop = Stop::at(at_ns, pause_us),
        UpTo::Order(order) => {
            let device = DEPLOY_DEVICE.to_owned();
            let anew = Some(Anew { pause_us, device, order_at: ORDER_AT, report_at: REPORT_AT });
            let bytes = Order { anew, ..order.clone() }.to_text()?.into_bytes();
            let path = ORDER.to_owned();
            session.files.push(Put { path, mode: 0o644, symlink: false, offset: 0, last: true, bytes });
        }
    }
    write_deploy_image(&deploy, Some(session))?;
    let logs = directory.join(LOGS);
    let mut machine =
        restore_from(guest, Ram::Continuing(ram), &before.state, deploy, false, &logs, cancel).await?;
    let mut pending = machine.guest().deployed_session();
    let stood = async {
        let begun = Instant::now();
        machine.ring().await?;
        machine.resume().await?;
        let early = machine.paused_or_answered("the moment", DEADLINE, &mut pending).await?;
        if let Some(early) = early {
            bail!("the run ended before that instant{}", said(&early));
        }
        let run = begun.elapsed();
        progress.now("saving it");
        let file = File::create(&state).with_context(|| format!("create {}", state.display()))?;
        machine.save(file).await.context("save the machine")?;
        anyhow::Ok(run)
    }
    .await;
    let run = match stood {
        Ok(run) => run,
        Err(error) => return end_with(machine, error, &given.units, given.mount_or_root()).await,
    };
    machine.stop().await?;
    make_steady(&state)?;
    Ok(run)
}

/// What the commands of a plan said that has ended.
fn said(answer: &Body) -> String {
    let Body::Recorded(recording) = answer else { return String::new() };
    let lines = recording.events.iter().filter_map(|event| match &event.what {
        What::StepEnds(end) => Some(end.stderr.trim()),
        _ => None,
    });
    lines.filter(|said| !said.is_empty()).map(|said| format!("; {said}")).collect()
}

/// A restored moment: paused, whenever it is not asked for something.
#[derive(Debug)]
pub struct Standing {
    machine: Machine,
    deploy: PathBuf,
    session: Pending,
    asked: u64,
}

impl Standing {
    /// Restores a moment, with its logs in `directory`.
    ///
    /// # Errors
    /// What QEMU says.
    pub async fn restore(guest: &Guest, moment: &Moment, directory: &Path, cancel: Cancel) -> Result<Self> {
        std::fs::create_dir_all(directory).with_context(|| format!("create {}", directory.display()))?;
        let deploy = directory.join(DEPLOY);
        // What the guest has read of it is in its own memory.
        copy_without_zeros_anew(&moment.directory.join(DEPLOY), &deploy)?;
        let (ram, state) = (Ram::Restoring(moment.saved.ram.clone()), &moment.saved.state);
        let machine = restore_from(guest, ram, state, deploy.clone(), false, directory, cancel).await?;
        let session = machine.guest().deployed_session();
        Ok(Self { machine, deploy, session, asked: 0 })
    }

    /// Does something and pauses the machine again. Output goes to `show` as it comes.
    ///
    /// # Errors
    /// [`GuestError::Failed`](crate::machine::guest::GuestError::Failed) by [`MachineError`](crate::machine::MachineError) if
    /// the guest can't do it; then it still stands.
    pub async fn ask(&mut self, call: Call, show: impl FnMut(Stream, &[u8])) -> Result<Body> {
        // Those of the channel count up from 1.
        self.asked += 1;
        let id = (1 << 32) + self.asked;
        let call = Call::ThenPause { after_us: AFTER_ANSWER_US, call: Box::new(call) };
        write_request(&self.deploy, Some(Request { id, call }))?;
        let mut pending = self.machine.guest().unasked_answer(id);
        self.machine.ring().await?;
        self.machine.resume().await?;
        let waiting_for = "the guest to answer and to stand still";
        Ok(self.machine.answered_and_paused(waiting_for, LOOK_DEADLINE, &mut pending, show).await?)
    }

    /// Runs a command.
    ///
    /// # Errors
    /// As [`Standing::ask`].
    pub async fn run(&mut self, command: Command, show: impl FnMut(Stream, &[u8])) -> Result<Exit> {
        match self.ask(Call::Run(command), show).await? {
            Body::Exited(exit) => Ok(exit),
            other => bail!("unexpected answer from the guest: {other:?}"),
        }
    }

    /// Puts files.
    ///
    /// # Errors
    /// As [`Standing::ask`].
    pub async fn put(&mut self, files: Vec<Put>) -> Result<()> {
        let session = Session { files, ..Session::default() };
        self.ask(Call::Session(Box::new(session)), |_, _| ()).await.map(drop)
    }

    /// Lets the guest go on; returns since when it stands still again, in nanoseconds since the plan began, or `None` if the
    /// plan has ended.
    ///
    /// # Errors
    /// As [`Standing::ask`].
    pub async fn go(&mut self, until: Until) -> Result<Option<u64>> {
        match self.ask(Call::Go(until), |_, _| ()).await? {
            Body::Stands(since) => Ok(since),
            other => bail!("unexpected answer from the guest: {other:?}"),
        }
    }

    /// The recording of a run that has ended, see [`Standing::go`]; it is on its way when the machine is paused.
    ///
    /// # Errors
    /// What kept the guest from making one.
    pub async fn recording(&mut self) -> Result<Recording> {
        self.machine.resume().await?;
        match self.machine.race("the recording", DEADLINE, self.session.next()).await? {
            Body::Recorded(recording) => Ok(*recording),
            other => bail!("unexpected answer from the guest: {other:?}"),
        }
    }

    /// The machine, for a shell in which time passes.
    pub fn machine(&mut self) -> &mut Machine {
        &mut self.machine
    }

    /// Ends the machine, whatever came of what was done with it.
    ///
    /// # Errors
    /// As [`Machine::finish`].
    pub async fn finish<T>(self, result: Result<T>) -> Result<T> {
        self.machine.finish(result).await
    }
}

fn copy_without_zeros_anew(from: &Path, to: &Path) -> Result<()> {
    match std::fs::remove_file(to) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("delete {}", to.display()));
        }
        _gone => {}
    }
    copy_without_zeros(from, to)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn not_at_rest() -> Result<()> {
        Err(NotAtRest::of("interrupt_request", 2, 0).into())
    }

    #[test]
    fn a_pause_that_the_host_disturbed_is_tried_again_and_is_the_same_moment() {
        let mut tries = Tries::default();
        assert!(tries.made(not_at_rest()).expect("to be tried again").is_none());
        assert_eq!(tries.pause_us().expect("one"), PAUSES_US[0]);
        assert!(tries.made(Ok(())).expect("made").is_some());
        assert!(tries.made::<()>(Err(anyhow::anyhow!("no room"))).is_err());
    }

    #[test]
    fn a_guest_that_is_busy_is_paused_later_and_at_last_not_at_all() {
        let mut tries = Tries::default();
        let mut tried = Vec::new();
        while let Ok(pause_us) = tries.pause_us() {
            tried.push(pause_us);
            assert!(tries.made(not_at_rest()).expect("to be tried again").is_none());
        }
        tried.dedup();
        assert_eq!(tried, PAUSES_US);
        assert_eq!(tries.done, PAUSES_US.len() * TRIES);
    }
}
