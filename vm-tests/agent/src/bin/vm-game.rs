//! A stand-in for the game server, for scenarios: what srcds is to a mount, without the game.
//!
//! Started inside `merged`, it holds it in every ordinary way: working directory, program, an open log that it
//! writes (so in the upper layer), a mapped file, and a child that does the same. It exits cleanly on SIGTERM,
//! its child first. `--stubborn-child` makes a child that ignores SIGTERM and outlives it, `--late-child` one that does so
//! for a second and then ends, as a server that saves something would. `--in DIRECTORY` goes there first, as srcds_run
//! goes to where it lies, whatever the unit's WorkingDirectory= is.
//!
//! When all that is so it makes the file `server.ready`. `vm-game --wait-for-ready DIRECTORY` waits for that
//! file: a scenario's start command ends with it, so that a stop never meets a server that is half started.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};

use anyhow::{Context, Result, bail};
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::signal::{SigSet, Signal};
use rustix::mm::{MapFlags, ProtFlags, mmap};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let has = |word: &str| arguments.iter().any(|argument| argument == word);
    if let Some(at) = arguments.iter().position(|argument| argument == "--in") {
        let directory = arguments.get(at + 1).context("--in: give a directory")?;
        std::env::set_current_dir(directory).with_context(|| format!("go to {directory}"))?;
    }
    match arguments.as_slice() {
        [wait, directory] if wait == "--wait-for-ready" => wait_for_ready(Path::new(directory)),
        _ if has("--child") => child(Manner::of(&arguments)),
        _ => serve(Manner::of(&arguments)),
    }
}

/// How a child ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manner {
    /// Before its parent.
    Obedient,
    /// [`LATE_MS`] after it.
    Late,
    /// By SIGKILL only.
    Stubborn,
}

impl Manner {
    fn of(arguments: &[String]) -> Self {
        let has = |manner: &Self| arguments.iter().any(|argument| Some(argument.as_str()) == manner.flag());
        [Self::Late, Self::Stubborn].into_iter().find(has).unwrap_or(Self::Obedient)
    }

    fn flag(self) -> Option<&'static str> {
        match self {
            Self::Obedient => None,
            Self::Late => Some("--late-child"),
            Self::Stubborn => Some("--stubborn-child"),
        }
    }
}

/// Of guest time. Less than what a stop grants before anybody is sent another signal.
const LATE_MS: u16 = 1000;

const READY: &str = "server.ready";
const CHILD_READY: &str = "child.ready";

fn wait_for_child() -> Result<()> {
    wait_for(Path::new("."), CHILD_READY)
}

/// In the upper directory: opening something in `merged` would make the waiter a holder. Overlayfs makes the
/// file there by vfs_create, so inotify sees it.
fn wait_for_ready(upper: &Path) -> Result<()> {
    wait_for(upper, READY)
}

fn wait_for(directory: &Path, name: &str) -> Result<()> {
    let events = Inotify::init(InitFlags::IN_CLOEXEC).context("inotify_init")?;
    events
        .add_watch(directory, AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO)
        .with_context(|| format!("watch {}", directory.display()))?;
    while !directory.join(name).exists() {
        let mut polled = [PollFd::new(events.as_fd(), PollFlags::POLLIN)];
        if poll(&mut polled, READY_DEADLINE_MS).context("poll inotify")? == 0 {
            bail!("no {} after {READY_DEADLINE_MS} ms", directory.join(name).display());
        }
        events.read_events().context("read inotify")?;
    }
    Ok(())
}

/// Of guest time; a start takes a few hundred milliseconds under emulation.
const READY_DEADLINE_MS: u16 = 30_000;

fn serve(manner: Manner) -> Result<()> {
    let signals = block(Signal::SIGTERM)?;
    let mut log = hold("server.log")?;
    let (mut child, lifeline) = start_child(manner)?;
    wait_for_child()?;
    writeln!(log, "ready").context("write server.log")?;
    File::create(READY).with_context(|| format!("create {READY}"))?;
    signals.wait().context("wait for SIGTERM")?;
    writeln!(log, "stopping").context("write server.log")?;
    drop(lifeline);
    if manner == Manner::Obedient {
        child.wait().context("wait for the child")?;
    }
    Ok(())
}

/// Lives until its parent closes the pipe, a late one a while longer; a stubborn one until SIGKILL.
fn child(manner: Manner) -> Result<()> {
    let signals = block(Signal::SIGTERM)?;
    let log = hold("child.log")?;
    File::create(CHILD_READY).with_context(|| format!("create {CHILD_READY}"))?;
    if manner == Manner::Stubborn {
        loop {
            signals.wait().context("ignore SIGTERM")?;
        }
    }
    let mut end = Vec::new();
    std::io::stdin().read_to_end(&mut end).context("wait for the parent")?;
    if manner == Manner::Late {
        poll(&mut [], LATE_MS).context("take a while")?;
    }
    drop(log);
    Ok(())
}

fn block(signal: Signal) -> Result<SigSet> {
    let mut set = SigSet::empty();
    set.add(signal);
    set.thread_block().with_context(|| format!("block {signal}"))?;
    Ok(set)
}

fn start_child(manner: Manner) -> Result<(Child, Option<ChildStdin>)> {
    let program = std::env::current_exe().context("find my own program")?;
    #[expect(
        clippy::disallowed_methods,
        reason = "a fixture that behaves like a server, not part of the harness"
    )]
    let mut command = Command::new(program);
    command.arg("--child").args(manner.flag()).stdin(Stdio::piped()).arg0("srcds_linux");
    let mut child = command.spawn().context("start the child")?;
    let lifeline = child.stdin.take();
    Ok((child, lifeline))
}

/// Opens a log in the working directory and maps the game's content file for the life of the process.
fn hold(name: &str) -> Result<File> {
    let log = File::options().create(true).append(true).open(name).with_context(|| format!("open {name}"))?;
    let content: OwnedFd =
        File::open("left4dead2/pak01_dir.vpk").context("open left4dead2/pak01_dir.vpk")?.into();
    #[expect(unsafe_code, reason = "a server maps its content, and there is no safe call for that")]
    // SAFETY: a new private read-only mapping at an address of the kernel's choice; nothing ever reads it.
    let mapped = unsafe { mmap(std::ptr::null_mut(), 4096, ProtFlags::READ, MapFlags::PRIVATE, &content, 0) };
    mapped.context("map left4dead2/pak01_dir.vpk")?;
    Ok(log)
}
