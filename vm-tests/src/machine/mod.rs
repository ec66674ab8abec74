//! A running machine: the only owner of a QEMU process.
//!
//! Every wait on a machine is raced against everything that can end it (see [`Machine::race`]), so each way
//! to die has its own message and none can hang. [`Machine::stop`] ends QEMU in bounded steps and proves that
//! nothing is left; `Drop` of the process is only the safety net.

pub mod base;
pub mod config;
mod doorbell;
pub mod guest;
pub mod qemu;
pub mod qmp;
pub mod saved;
mod standing;
pub(crate) mod state;
mod still;

use std::fs::File;
use std::future::Future;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use vm_agent::wire::{Call, Command};

use crate::host::events::{self, Event};
use crate::host::process::{self, Child, Program, Sink};
use crate::host::signals::Interrupted;
use crate::machine::config::{AGENT_FD, Config, DOORBELL_FD, QMP_FD};
use crate::machine::guest::{Guest, GuestError, Output};
use crate::machine::qmp::{Qmp, QmpError, QmpEvent};

/// From QEMU's start to the QMP greeting; it takes 0.05 s, loaded hosts included this is ample.
const QMP_DEADLINE: Duration = Duration::from_secs(20);
/// What each polite step of [`Machine::stop`] may take before the next.
const STOP_STEP: Duration = Duration::from_secs(3);
/// What collecting evidence may take altogether; a guest that is stuck must not hold its report back.
const EVIDENCE_DEADLINE: Duration = Duration::from_secs(20);
/// Within this a guest that can still be asked runs `true`: 0.1 s under emulation on an idle host.
const ALIVE_DEADLINE: Duration = Duration::from_secs(5);

/// Who is waited for, in [`MachineError::Silent`].
pub const GUEST: &str = "the guest";
/// As [`GUEST`].
pub const QEMU: &str = "QEMU";

/// Cancelled once, when the user interrupts.
pub type Cancel = CancellationToken;

/// How a machine ended before it was asked to, or what it failed to do.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// QEMU's process ended by itself.
    #[error("QEMU died: {status}{}", quoted("its stderr", stderr))]
    QemuExited {
        /// Its status in words.
        status: String,
        /// The last lines of its stderr.
        stderr: String,
    },
    /// The guest's kernel panicked.
    #[error("the guest's kernel panicked{}", quoted("console", console))]
    Panicked {
        /// The last lines of the serial console.
        console: String,
    },
    /// The guest shut down or reset itself.
    #[error("the guest shut down ({reason}){}", quoted("console", console))]
    ShutDown {
        /// QEMU's word for why.
        reason: String,
        /// The last lines of the serial console.
        console: String,
    },
    /// A deadline passed.
    #[error("{who} never answered: waited {:.1} s for {waiting_for}{}", after.as_secs_f64(), quoted("console", console))]
    Silent {
        /// Who was waited for: [`GUEST`] or [`QEMU`].
        who: &'static str,
        /// What was waited for.
        waiting_for: String,
        /// For how long.
        after: Duration,
        /// The last lines of the serial console.
        console: String,
    },
    /// The user interrupted.
    #[error("the machine was ended")]
    Interrupted(#[source] Interrupted),
    /// The agent refused or failed.
    #[error("the guest's agent")]
    Guest(#[from] GuestError),
    /// QEMU refused a command.
    #[error("the machine's monitor")]
    Qmp(#[from] QmpError),
}

fn quoted(what: &str, text: &str) -> String {
    if text.is_empty() { format!("; {what}: nothing") } else { format!("; {what}:\n{}", indent(text)) }
}

fn indent(text: &str) -> String {
    text.lines().map(|line| format!("    {line}")).collect::<Vec<_>>().join("\n")
}

/// A machine and its directory of evidence.
#[derive(Debug)]
pub struct Machine {
    child: Child,
    qmp: Qmp,
    events: mpsc::UnboundedReceiver<QmpEvent>,
    guest: Guest,
    doorbell: UnixStream,
    directory: PathBuf,
    cancel: Cancel,
}

impl Machine {
    /// Starts QEMU and connects to its monitor. The directory is made; it gets `serial.log`, `qmp.log`,
    /// `qemu.stderr` and `qemu.pid`. A machine that restores is paused and empty until [`Machine::restore`].
    ///
    /// # Errors
    /// [`MachineError::QemuExited`] with QEMU's own words when it refuses the configuration.
    pub async fn start(qemu: &Path, mut config: Config, directory: &Path, cancel: Cancel) -> Result<Self> {
        std::fs::create_dir_all(directory).with_context(|| format!("create {}", directory.display()))?;
        let log = |name: &str| {
            let path = directory.join(name);
            File::create(&path).with_context(|| format!("create {}", path.display()))
        };
        config.serial_log = directory.join("serial.log");
        let (agent, agent_fd) = socket_pair()?;
        let (monitor, monitor_fd) = socket_pair()?;
        let (doorbell, doorbell_fd) = socket_pair()?;
        let program = Program::new(qemu);
        let program = if config.has_a_still_clock() { still::give(program)? } else { program };
        let child = program
            .args(config.argv())
            .stdout(Sink::File(log("qemu.stdout")?))
            .stderr(Sink::File(log("qemu.stderr")?))
            .pass_fd(agent_fd, AGENT_FD)
            .pass_fd(monitor_fd, QMP_FD)
            .pass_fd(doorbell_fd, DOORBELL_FD)
            .spawn()?;
        let pid = directory.join("qemu.pid");
        std::fs::write(&pid, format!("{}\n", child.pid()))
            .with_context(|| format!("write {}", pid.display()))?;
        let mut started = Starting { child, directory, cancel: cancel.clone() };
        let transcript = log("qmp.log")?;
        let (qmp, events) = started.connect(monitor, transcript).await?;
        let Starting { child, .. } = started;
        let (guest, directory) = (Guest::new(agent), directory.to_owned());
        Ok(Self { child, qmp, events, guest, doorbell, directory, cancel })
    }

    /// Pauses the machine.
    ///
    /// # Errors
    /// What QEMU says.
    pub async fn pause(&mut self) -> Result<(), MachineError> {
        self.monitor("stop", json!({})).await.map(|_nothing| ())
    }

    /// Waits until the guest, whose system is up, has had the machine paused (see [`vm_agent::wire::PAUSE`]). Says nothing to
    /// it. For a machine that was just started.
    ///
    /// # Errors
    /// As [`Machine::race`]; the agent's words if the system does not come up.
    pub async fn paused_by_guest(&mut self, deadline: Duration) -> Result<(), MachineError> {
        let mut failed = self.guest.failed_boot();
        let answer = async move { Err(GuestError::Unexpected(format!("{:?}", failed.next().await?))) };
        let stops = |event: &QmpEvent| event.is_stop().then_some(());
        self.race_with_event("its system to be up", deadline, answer, stops).await?;
        let guest = self.guest();
        // It was said long before; the two come on different sockets.
        self.race("the agent's hello", STOP_STEP, guest.unasked_hello()).await
    }

    /// Writes the state of the devices of a paused machine to `state`; its RAM is in the file it was started
    /// with. Nothing but [`Machine::stop`] makes sense afterwards.
    ///
    /// # Errors
    /// What QEMU says.
    pub async fn save(&mut self, state: File) -> Result<(), MachineError> {
        self.migration_capabilities().await?;
        self.qmp.give("state", state.into()).await?;
        self.monitor("migrate", json!({ "uri": "fd:state" })).await?;
        self.migrated().await
    }

    /// Loads the state of a saved machine's devices. The machine stays paused: what is written to the agent now is
    /// there when it runs (see [`Machine::resume`]).
    ///
    /// # Errors
    /// What QEMU says; a state of another QEMU or another configuration is refused by it.
    pub async fn restore(&mut self, state: File) -> Result<(), MachineError> {
        self.migration_capabilities().await?;
        self.qmp.give("state", state.into()).await?;
        self.monitor("migrate-incoming", json!({ "uri": "fd:state" })).await?;
        self.migrated().await
    }

    /// Rings the doorbell (see [`vm_agent::wire::DOORBELL`]) and returns when QEMU has taken the byte: in a machine that
    /// is paused, its interrupt is then pending.
    ///
    /// # Errors
    /// What QEMU says; [`MachineError::Silent`] if it does not take the byte.
    pub async fn ring(&mut self) -> Result<(), MachineError> {
        match timeout(QMP_DEADLINE, doorbell::ring(&mut self.doorbell)).await {
            Ok(taken) => Ok(taken.map_err(|_gone| GuestError::Closed)?),
            Err(_elapsed) => Err(self.qemu_is_silent("the doorbell's byte to be taken")),
        }
    }

    /// Lets a paused machine run.
    ///
    /// # Errors
    /// What QEMU says.
    pub async fn resume(&mut self) -> Result<(), MachineError> {
        self.monitor("cont", json!({})).await.map(|_nothing| ())
    }

    /// RAM in a shared file is not part of the state, and the end of a migration is an event.
    async fn migration_capabilities(&mut self) -> Result<(), MachineError> {
        let on = |name: &str| json!({ "capability": name, "state": true });
        let capabilities = json!({ "capabilities": [on("x-ignore-shared"), on("events")] });
        self.monitor("migrate-set-capabilities", capabilities).await.map(|_nothing| ())
    }

    /// Waits for the end of the migration under way.
    async fn migrated(&mut self) -> Result<(), MachineError> {
        let ended = async {
            while let Some(event) = self.events.recv().await {
                let status = event.data.get("status").and_then(Value::as_str).unwrap_or_default();
                match (event.name.as_str(), status) {
                    ("MIGRATION", "completed") => return Ok(()),
                    ("MIGRATION", "failed") => {
                        let words = tail(&self.directory.join("qemu.stderr"), 5);
                        return Err(MachineError::Qmp(QmpError::Protocol(format!(
                            "migration failed: {words}"
                        ))));
                    }
                    _ => (),
                }
            }
            Err(exited(self.child.wait().await, &self.directory))
        };
        let first = timeout(QMP_DEADLINE, async {
            tokio::select! {
                biased;
                migrated = ended => migrated,
                () = self.cancel.cancelled() => Err(MachineError::Interrupted(Interrupted::default())),
            }
        });
        match first.await {
            Ok(first) => first,
            Err(_elapsed) => Err(self.qemu_is_silent("the end of a migration")),
        }
    }

    /// QEMU let [`QMP_DEADLINE`] pass.
    fn qemu_is_silent(&self, waiting_for: &str) -> MachineError {
        let console = console_tail(&self.directory);
        MachineError::Silent { who: QEMU, waiting_for: waiting_for.to_owned(), after: QMP_DEADLINE, console }
    }

    /// The agent's channel. Wait on it through [`Machine::race`].
    #[must_use]
    pub fn guest(&self) -> Guest {
        self.guest.clone()
    }

    /// Where the machine's logs are.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// QEMU's process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.pid()
    }

    /// Waits for the agent and checks its protocol number.
    ///
    /// # Errors
    /// See [`Machine::race`].
    pub async fn hello(&mut self, deadline: Duration) -> Result<(), MachineError> {
        let guest = self.guest();
        self.race("the agent's hello", deadline, guest.hello()).await
    }

    /// Runs a command in the guest.
    ///
    /// # Errors
    /// See [`Machine::race`]; a status other than 0 is no error.
    pub async fn run(&mut self, argv: &[&str], deadline: Duration) -> Result<Output, MachineError> {
        let guest = self.guest();
        self.race(&argv.join(" "), deadline, guest.run(argv.iter().copied())).await
    }

    /// Waits for something of the guest's while watching for everything that can end the machine first.
    ///
    /// # Errors
    /// The one [`MachineError`] that happened.
    pub async fn race<T>(
        &mut self,
        waiting_for: &str,
        deadline: Duration,
        answer: impl Future<Output = Result<T, GuestError>>,
    ) -> Result<T, MachineError> {
        self.race_with_event(waiting_for, deadline, answer, |_| None).await
    }

    /// The same; what `wanted` makes of an event of QEMU's is an answer too.
    async fn race_with_event<T>(
        &mut self,
        waiting_for: &str,
        deadline: Duration,
        answer: impl Future<Output = Result<T, GuestError>>,
        wanted: impl Fn(&QmpEvent) -> Option<T>,
    ) -> Result<T, MachineError> {
        let Self { child, events, directory, cancel, .. } = self;
        let is_wanted = |event: &QmpEvent| is_fatal(event) || wanted(event).is_some();
        let first = timeout(deadline, async {
            tokio::select! {
                biased;
                answer = answer => Ok(answer),
                event = next_event(events, is_wanted) => match wanted(&event) {
                    Some(answer) => Ok(Ok(answer)),
                    None => Err(ended(&event, directory)),
                },
                status = child.wait() => Err(exited(status, directory)),
                () = cancel.cancelled() => Err(MachineError::Interrupted(Interrupted::default())),
            }
        });
        let Ok(answer) = first.await else {
            let (waiting_for, console) = (waiting_for.to_owned(), console_tail(directory));
            return Err(MachineError::Silent { who: GUEST, waiting_for, after: deadline, console });
        };
        // The channel closes with QEMU, and its events may come a moment after: they say more.
        match answer? {
            Ok(value) => Ok(value),
            Err(GuestError::Closed) => match timeout(STOP_STEP, child.wait()).await {
                Ok(status) => Err(told_event(events)
                    .map_or_else(|| exited(status, directory), |event| ended(&event, directory))),
                Err(_elapsed) => Err(MachineError::Guest(GuestError::Closed)),
            },
            Err(error) => Err(MachineError::Guest(error)),
        }
    }

    /// Runs a command by which a guest that is shutting down goes on, waits until it is off, and returns the lines that the
    /// console has shown since.
    ///
    /// # Errors
    /// See [`Machine::race`]; its end is none.
    pub async fn go_off(&mut self, go_on: &[&str], deadline: Duration) -> Result<Vec<String>, MachineError> {
        let shown = self.console().len();
        // The agent may be ended before it can answer.
        let command = Command::new(go_on.iter().copied());
        let _answer = self.guest.request(Call::Run(command)).await?;
        match self.race("the guest to power off", deadline, std::future::pending::<Result<(), _>>()).await {
            Err(MachineError::ShutDown { .. }) => {}
            Ok(()) => {}
            Err(error) => return Err(error),
        }
        let console = self.console();
        let since = String::from_utf8_lossy(console.get(shown..).unwrap_or_default());
        Ok(since.lines().map(str::trim_end).filter(|line| !line.is_empty()).map(str::to_owned).collect())
    }

    fn console(&self) -> Vec<u8> {
        std::fs::read(self.directory.join("serial.log")).unwrap_or_default()
    }

    /// Runs a QMP command within [`QMP_DEADLINE`].
    ///
    /// # Errors
    /// [`MachineError::Qmp`], [`MachineError::QemuExited`], [`MachineError::Silent`].
    pub async fn monitor(&mut self, command: &str, arguments: Value) -> Result<Value, MachineError> {
        match timeout(QMP_DEADLINE, self.qmp.execute(command, arguments)).await {
            Ok(Err(QmpError::Closed)) => match timeout(STOP_STEP, self.child.wait()).await {
                Ok(status) => Err(exited(status, &self.directory)),
                Err(_elapsed) => Err(MachineError::Qmp(QmpError::Closed)),
            },
            Ok(answer) => Ok(answer?),
            Err(_elapsed) => Err(self.qemu_is_silent(&format!("QMP {command}"))),
        }
    }

    /// Asks the guest what it was doing and writes the answers beside the logs. For after a failure and before
    /// [`Machine::stop`]; what can't be had is left out, since the failure itself is the news. `units` are
    /// the commands of a shell that show some.
    pub async fn save_evidence(&mut self, units: &str, mount: &str) {
        let look = format!(
            "{units}grep -s ' {mount} ' /proc/[0-9]*/mountinfo; \
             ls -l /proc/[0-9]*/cwd /proc/[0-9]*/root /proc/[0-9]*/exe /proc/[0-9]*/fd 2>/dev/null | grep -F {mount}"
        );
        let questions = [
            (
                "journal.txt",
                vec!["journalctl".to_owned(), "--no-pager".into(), "-o".into(), "short-monotonic".into()],
            ),
            ("unit.txt", vec!["sh".to_owned(), "-c".into(), look]),
        ];
        // One that has panicked, is paused or has lost its agent would be waited for in vain.
        if !matches!(timeout(ALIVE_DEADLINE, self.guest.run(["true"])).await, Ok(Ok(_))) {
            return;
        }
        let deadline = Instant::now() + EVIDENCE_DEADLINE;
        for (file, argv) in questions {
            let answer = timeout_at(deadline, self.guest.run(argv));
            let Ok(Ok(output)) = answer.await else { continue };
            let path = self.directory.join(file);
            if let Err(error) = std::fs::write(&path, [output.stdout, output.stderr].concat()) {
                events::tell(Event::NoEvidence { path, error });
            }
        }
    }

    /// Ends QEMU: QMP `quit`, then SIGTERM, then SIGKILL to its group, each within a bound, and proves that
    /// its process group is empty. The guest is not asked to shut down: nothing it could save outlives it.
    ///
    /// # Errors
    /// When a process of the group is left.
    pub async fn stop(mut self) -> Result<()> {
        let asked = timeout(STOP_STEP, self.qmp.execute("quit", json!({}))).await;
        if asked.is_ok() {
            drop(timeout(STOP_STEP, self.child.exited()).await);
        }
        self.child.kill_group(STOP_STEP).await.map(|_status| ()).context("stop QEMU")
    }

    /// Ends QEMU as [`Machine::stop`] does, whatever came of what was done with it.
    ///
    /// # Errors
    /// That of the result; what stopping says; both if both went wrong.
    pub async fn finish<T>(self, result: Result<T>) -> Result<T> {
        match (result, self.stop().await) {
            (result, Ok(())) => result,
            (Ok(_), Err(left)) => Err(left),
            (Err(error), Err(left)) => Err(error.context(format!("and cleaning up failed: {left:#}"))),
        }
    }
}

struct Starting<'a> {
    child: Child,
    directory: &'a Path,
    cancel: Cancel,
}

impl Starting<'_> {
    async fn connect(
        &mut self,
        monitor: UnixStream,
        transcript: File,
    ) -> Result<(Qmp, mpsc::UnboundedReceiver<QmpEvent>), MachineError> {
        let first = timeout(QMP_DEADLINE, async {
            tokio::select! {
                biased;
                connected = Qmp::connect(monitor, transcript) => Ok(connected),
                status = self.child.wait() => Err(exited(status, self.directory)),
                () = self.cancel.cancelled() => Err(MachineError::Interrupted(Interrupted::default())),
            }
        });
        let Ok(connected) = first.await else {
            return Err(MachineError::Silent {
                who: QEMU,
                waiting_for: "its monitor".to_owned(),
                after: QMP_DEADLINE,
                console: String::new(),
            });
        };
        match connected? {
            Err(QmpError::Closed) => (),
            connected => return Ok(connected?),
        }
        Err(match timeout(STOP_STEP, self.child.wait()).await {
            Ok(status) => exited(status, self.directory),
            Err(_elapsed) => MachineError::Qmp(QmpError::Closed),
        })
    }
}

/// A connected pair: the host's end for tokio, and the one that QEMU inherits. Nothing lies in the file system,
/// so there is no path to be too long, no name to guess and nothing to remove.
fn socket_pair() -> Result<(UnixStream, OwnedFd)> {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().context("socketpair")?;
    ours.set_nonblocking(true).context("set the socket to non-blocking")?;
    Ok((UnixStream::from_std(ours).context("register the socket")?, theirs.into()))
}

/// An event that ends a machine and has come already.
fn told_event(events: &mut mpsc::UnboundedReceiver<QmpEvent>) -> Option<QmpEvent> {
    std::iter::from_fn(|| events.try_recv().ok()).find(is_fatal)
}

fn is_fatal(event: &QmpEvent) -> bool {
    matches!(event.name.as_str(), "GUEST_PANICKED" | "SHUTDOWN" | "RESET")
}

/// The next event that is wanted; never, when QEMU is gone (its exit says more).
async fn next_event(
    events: &mut mpsc::UnboundedReceiver<QmpEvent>,
    is_wanted: impl Fn(&QmpEvent) -> bool,
) -> QmpEvent {
    while let Some(event) = events.recv().await {
        if is_wanted(&event) {
            return event;
        }
    }
    std::future::pending().await
}

fn ended(event: &QmpEvent, directory: &Path) -> MachineError {
    // A panic before the pvpanic driver is there shows as a reset.
    if let Some(console) = panic_of(directory) {
        return MachineError::Panicked { console };
    }
    let console = console_tail(directory);
    if event.name == "GUEST_PANICKED" {
        return MachineError::Panicked { console };
    }
    let reason = event.data.get("reason").and_then(Value::as_str).unwrap_or("no reason given").to_owned();
    MachineError::ShutDown { reason, console }
}

fn exited(status: Result<std::process::ExitStatus, process::Error>, directory: &Path) -> MachineError {
    let status = match status {
        Ok(status) => process::describe(status),
        Err(error) => format!("its status can't be had: {error}"),
    };
    if let Some(console) = panic_of(directory) {
        return MachineError::Panicked { console };
    }
    MachineError::QemuExited { status, stderr: tail(&directory.join("qemu.stderr"), 20) }
}

fn console_tail(directory: &Path) -> String {
    tail(&directory.join("serial.log"), 30)
}

/// The console around a panic: the reason is in its first line, an oops that led to it comes before, and the calls
/// after it are longer than a tail.
fn panic_of(directory: &Path) -> Option<String> {
    let text = std::fs::read(directory.join("serial.log")).ok()?;
    let text = String::from_utf8_lossy(&text);
    let all: Vec<&str> = text.lines().collect();
    let at = all.iter().position(|line| line.contains("Kernel panic"))?;
    Some(all.iter().skip(at.saturating_sub(20)).take(30).copied().collect::<Vec<_>>().join("\n"))
}

/// The last lines of a log; empty if it can't be read.
fn tail(path: &Path, lines: usize) -> String {
    let text = std::fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let all: Vec<&str> = text.lines().collect();
    all.get(all.len().saturating_sub(lines)..).unwrap_or_default().join("\n").trim().to_owned()
}
