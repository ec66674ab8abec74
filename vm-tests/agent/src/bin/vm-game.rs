//! A stand-in for the game server, for scenarios: what srcds_linux is to a mount and to a stop, without the game.
//!
//! The start script `srcds_run` (`vm-tests/fixtures/game`) runs it as `srcds_linux` in `merged`. It holds the mount in
//! every ordinary way: working directory, program, a library mapped as one is, an open log that it keeps writing (so in
//! the upper layer), a mapped content file, the console FIFO as stdin. It has touched memory and threads, since those are
//! what takes time when a process ends: the kernel tears down memory before working directory and descriptors. And
//! it has a UDP socket on its port.
//!
//! SIGTERM has its default disposition, as with the real one. A line on the console goes to the log, and `quit` ends the
//! server. Arguments that it does not know are the real game's and are ignored. Its own:
//!
//! | Argument | What it does |
//! |---|---|
//! | `--memory-mib N` | touches so much memory (default 20; a real server has 300 to 1,000) |
//! | `--threads N` | has so many threads (default 30) |
//! | `--in DIRECTORY` | goes there first |
//! | `--save-secs N` | on SIGTERM, writes to `save.dat` for so long, and then exits with status 0 |
//! | `--late-child` | a child that ignores SIGTERM and ends a second after the game |
//! | `--stubborn-child` | a child that ignores SIGTERM and ends by SIGKILL only |
//! | `--32-bit` | goes on as `srcds_linux32`, a 32-bit program that it makes: the same holds, memory and threads, but it plays and logs nothing |
//! | `--hostile MODE...` | runs `vm-hostile MODE...`; takes all arguments that follow |
//!
//! When all that is so it makes the file `server.ready`. `vm-game --wait-for-ready DIRECTORY` waits for that
//! file: a scenario's start command ends with it, so that a stop never meets a server that is half started.

#[path = "vm-game/program32.rs"]
mod program32;

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::UdpSocket;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, mmap_anonymous};

fn main() -> Result<()> {
    match Request::parse(std::env::args().skip(1))? {
        Request::WaitForReady(upper) => wait_for_ready(&upper),
        Request::Child(manner) => child(manner),
        Request::Serve(options) => serve(&options),
    }
}

/// What the command line asks for.
#[derive(Debug, PartialEq, Eq)]
enum Request {
    WaitForReady(PathBuf),
    Child(Manner),
    Serve(Options),
}

/// What kind of server it is.
#[derive(Debug, PartialEq, Eq)]
struct Options {
    directory: Option<PathBuf>,
    memory_mib: u32,
    threads: u32,
    port: u16,
    save: Option<Duration>,
    is_32_bit: bool,
    child: Option<Manner>,
    /// The arguments of `vm-hostile`; none, no such program.
    hostile: Vec<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            directory: None,
            memory_mib: 20,
            threads: 30,
            port: 27015,
            save: None,
            is_32_bit: false,
            child: None,
            hostile: Vec::new(),
        }
    }
}

/// How a child ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manner {
    /// [`LATE`] after its parent.
    Late,
    /// By SIGKILL only.
    Stubborn,
}

impl Manner {
    fn flag(self) -> &'static str {
        match self {
            Self::Late => "--late-child",
            Self::Stubborn => "--stubborn-child",
        }
    }
}

impl Request {
    fn parse(arguments: impl IntoIterator<Item = String>) -> Result<Self> {
        let mut arguments = arguments.into_iter();
        let mut options = Options::default();
        let mut is_child = false;
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().with_context(|| format!("{argument}: give a value"));
            match argument.as_str() {
                "--wait-for-ready" => return Ok(Self::WaitForReady(value()?.into())),
                "--child" => is_child = true,
                "--in" => options.directory = Some(value()?.into()),
                "--memory-mib" => options.memory_mib = number(&argument, &value()?)?,
                "--threads" => options.threads = number(&argument, &value()?)?,
                "-port" => options.port = number(&argument, &value()?)?,
                "--save-secs" => options.save = Some(Duration::from_secs(number(&argument, &value()?)?)),
                "--32-bit" => options.is_32_bit = true,
                "--late-child" => options.child = Some(Manner::Late),
                "--stubborn-child" => options.child = Some(Manner::Stubborn),
                "--hostile" => {
                    options.hostile = arguments.by_ref().collect();
                    ensure!(!options.hostile.is_empty(), "--hostile: give a mode of vm-hostile");
                }
                _ => {}
            }
        }
        let is_more = options.save.is_some() || options.child.is_some();
        ensure!(!(options.is_32_bit && is_more), "--32-bit: it saves nothing and has no child");
        match options.child {
            Some(manner) if is_child => Ok(Self::Child(manner)),
            None if is_child => bail!("--child: say which, --late-child or --stubborn-child"),
            _ => Ok(Self::Serve(options)),
        }
    }
}

fn number<N: std::str::FromStr>(argument: &str, value: &str) -> Result<N> {
    value.parse().ok().with_context(|| format!("{argument} {value}: not a number, or out of range"))
}

/// Of guest time. Less than what a stop grants before anybody is sent another signal.
const LATE: Duration = Duration::from_secs(1);

const READY: &str = "server.ready";
const CHILD_READY: &str = "child.ready";
const HOSTILE_READY: &str = "hostile.ready";

/// Where scenarios deploy it.
const HOSTILE: &str = "/usr/local/bin/vm-hostile";

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
        let mut polled = [PollFd::new(&events, PollFlags::IN)];
        if poll(&mut polled, Some(&READY_DEADLINE)).context("poll inotify")? == 0 {
            bail!("no {} after {} s", directory.join(name).display(), READY_DEADLINE.tv_sec);
        }
        events.read_events().context("read inotify")?;
    }
    Ok(())
}

/// Of guest time; a start takes a few hundred milliseconds under emulation.
const READY_DEADLINE: Timespec = Timespec { tv_sec: 30, tv_nsec: 0 };

fn serve(options: &Options) -> Result<()> {
    if let Some(directory) = &options.directory {
        std::env::set_current_dir(directory).with_context(|| format!("go to {}", directory.display()))?;
    }
    let signals = if options.save.is_some() {
        Some(SignalFd::with_flags(&block()?, SfdFlags::SFD_CLOEXEC)?)
    } else {
        None
    };
    let log = hold("server.log")?;
    let socket = listen(options.port, &log);
    let _child = options.child.map(start_child).transpose()?;
    let _hostile = match options.hostile.as_slice() {
        [] => None,
        arguments => Some(start_hostile(arguments)?),
    };
    if options.is_32_bit {
        let open: Vec<_> = socket.iter().map(AsFd::as_fd).chain([log.as_fd()]).collect();
        return program32::run(options.memory_mib, options.threads, &open);
    }
    map_library()?;
    touch(usize::try_from(u64::from(options.memory_mib) << 20)?)
        .with_context(|| format!("touch {} MiB of memory", options.memory_mib))?;
    start_threads(options.threads)?;
    say(&log, "ready");
    File::create(READY).with_context(|| format!("create {READY}"))?;
    play(&log, socket.as_ref(), signals.as_ref())?;
    if let Some(time) = options.save.filter(|_| signals.is_some()) {
        save(time)?;
    }
    Ok(())
}

/// Serves until `quit` on the console, or a signal.
fn play(log: &File, socket: Option<&UdpSocket>, signals: Option<&SignalFd>) -> Result<()> {
    let console = std::io::stdin();
    let mut console = Some(console.as_fd());
    let mut typed = Vec::new();
    loop {
        let sources = [console, socket.map(AsFd::as_fd), signals.map(AsFd::as_fd)];
        let mut polled: Vec<_> =
            sources.iter().flatten().map(|source| PollFd::new(source, PollFlags::IN)).collect();
        let ready = poll(&mut polled, Some(&FRAME)).context("poll")?;
        if ready == 0 {
            say(log, "a frame");
            continue;
        }
        let mut polled = polled.iter().map(|source| !source.revents().is_empty());
        let mut is_ready =
            sources.map(|source| source.is_some() && polled.next().unwrap_or(false)).into_iter();
        let mut next = || is_ready.next().unwrap_or(false);
        let (has_line, has_datagram, has_signal) = (next(), next(), next());
        if has_signal {
            return Ok(());
        }
        if let (true, Some(socket)) = (has_datagram, socket) {
            // Whatever a client wants, and whatever is wrong with it.
            match socket.recv(&mut [0; 1500]) {
                Ok(_) | Err(_) => {}
            }
        }
        if let (true, Some(open)) = (has_line, console) {
            let mut buffer = [0; 512];
            match rustix::io::read(open, &mut buffer) {
                // No console, as under a unit whose stdin is /dev/null.
                Ok(0) | Err(_) => console = None,
                Ok(length) => typed.extend_from_slice(&buffer[..length]),
            }
            while let Some(end) = typed.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = typed.drain(..=end).collect();
                let line = String::from_utf8_lossy(&line[..end]).into_owned();
                say(log, &line);
                if line == "quit" {
                    return Ok(());
                }
            }
        }
    }
}

/// The log gets a line as often. A real server writes more, of which a mount sees as much: an open file.
const FRAME: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// A server on a full disk goes on, without its log.
fn say(mut log: &File, line: &str) {
    match writeln!(log, "{line}") {
        Ok(()) | Err(_) => {}
    }
}

/// Writes a little, time and again.
fn save(time: Duration) -> Result<()> {
    let began = Instant::now();
    let mut file = File::create("save.dat").context("create save.dat")?;
    while began.elapsed() < time {
        file.write_all(&[b'.'; 100]).context("write save.dat")?;
        take(SAVE_STEP);
    }
    Ok(())
}

const SAVE_STEP: Duration = Duration::from_millis(10);

#[expect(clippy::disallowed_methods, reason = "a game takes its time, whatever happens")]
fn take(time: Duration) {
    std::thread::sleep(time);
}

/// Lives until its parent's end closes the pipe and a while longer, or until SIGKILL.
fn child(manner: Manner) -> Result<()> {
    let signals = block()?;
    let log = hold("child.log")?;
    File::create(CHILD_READY).with_context(|| format!("create {CHILD_READY}"))?;
    if manner == Manner::Stubborn {
        loop {
            signals.wait().context("ignore SIGTERM")?;
        }
    }
    let mut end = Vec::new();
    std::io::stdin().read_to_end(&mut end).context("wait for the parent")?;
    take(LATE);
    drop(log);
    Ok(())
}

/// SIGTERM, blocked.
fn block() -> Result<SigSet> {
    let mut set = SigSet::empty();
    set.add(Signal::SIGTERM);
    set.thread_block().context("block SIGTERM")?;
    Ok(set)
}

#[expect(
    clippy::disallowed_methods,
    reason = "a fixture that behaves like a server, not part of the harness"
)]
fn start_child(manner: Manner) -> Result<(Child, Option<ChildStdin>)> {
    let program = std::env::current_exe().context("find my own program")?;
    let mut command = Command::new(program);
    let mut child =
        command.args(["--child", manner.flag()]).stdin(Stdio::piped()).spawn().context("start the child")?;
    let lifeline = child.stdin.take();
    wait_for(Path::new("."), CHILD_READY)?;
    Ok((child, lifeline))
}

#[expect(
    clippy::disallowed_methods,
    reason = "a fixture that behaves like a server, not part of the harness"
)]
fn start_hostile(arguments: &[String]) -> Result<Child> {
    let child = Command::new(HOSTILE).args(arguments).stdin(Stdio::null()).spawn();
    let child = child.with_context(|| format!("start {HOSTILE}"))?;
    wait_for(Path::new("."), HOSTILE_READY)?;
    Ok(child)
}

/// A port that somebody else has is no reason to end: the real game takes another one.
fn listen(port: u16, log: &File) -> Option<UdpSocket> {
    let socket = UdpSocket::bind(("0.0.0.0", port));
    match socket.and_then(|socket| socket.set_nonblocking(true).map(|()| socket)) {
        Ok(socket) => Some(socket),
        Err(error) => {
            say(log, &format!("no socket on UDP port {port}: {error}"));
            None
        }
    }
}

/// Opens a log in the working directory and maps the game's content file for the life of the process.
fn hold(name: &str) -> Result<File> {
    let log = File::options().create(true).append(true).open(name).with_context(|| format!("open {name}"))?;
    map("left4dead2/pak01_dir.vpk", &[(ProtFlags::READ, PAGE)])?;
    Ok(log)
}

/// The page of x86.
const PAGE: usize = 4096;

/// As the dynamic loader maps a library: its code, its constants, its data.
fn map_library() -> Result<()> {
    let read = ProtFlags::READ;
    map(
        "left4dead2/bin/server.so",
        &[
            (read, PAGE),
            (read | ProtFlags::EXEC, 40 * PAGE),
            (read, 16 * PAGE),
            (read | ProtFlags::WRITE, 7 * PAGE),
        ],
    )
}

/// Maps parts of a file, one after the other, for the life of the process. Read-only ones are populated, so that the
/// process has pages of the file, and not just a mapping.
fn map(path: &str, parts: &[(ProtFlags, usize)]) -> Result<()> {
    let file: OwnedFd = File::open(path).with_context(|| format!("open {path}"))?.into();
    let mut offset = 0;
    for (protection, length) in parts {
        let flags = MapFlags::PRIVATE | MapFlags::POPULATE;
        #[expect(unsafe_code, reason = "a server maps its files, and there is no safe call for that")]
        // SAFETY: a new private mapping at an address of the kernel's choice; nothing ever uses it.
        let mapped =
            unsafe { mmap(std::ptr::null_mut(), *length, *protection, flags, &file, u64::try_from(offset)?) };
        mapped.with_context(|| format!("map {length} bytes of {path} at {offset}"))?;
        offset += length;
    }
    Ok(())
}

/// Memory of so many bytes, every page of 4 KiB touched on its own, as that of a real server is: with huge pages it would
/// be gone in no time. One system call does it, which costs less under emulation than a fault for each page.
fn touch(bytes: usize) -> rustix::io::Result<()> {
    if bytes == 0 {
        return Ok(());
    }
    #[expect(unsafe_code, reason = "only so is it certain how many pages there are")]
    // SAFETY: a new private mapping at an address of the kernel's choice, and advice about it; nothing ever uses it.
    unsafe {
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        let memory = mmap_anonymous(std::ptr::null_mut(), bytes, ProtFlags::READ | ProtFlags::WRITE, flags)?;
        match madvise(memory, bytes, Advice::LinuxNoHugepage) {
            // A kernel without huge pages does not know the advice.
            Ok(()) | Err(Errno::INVAL) => {}
            Err(errno) => return Err(errno),
        }
        madvise(memory, bytes, Advice::LinuxPopulateWrite)
    }
}

/// Threads beside this one, until there are so many, that wait for work and never get any.
fn start_threads(count: u32) -> Result<()> {
    for _ in 1..count {
        let thread = std::thread::Builder::new().stack_size(STACK_BYTES).spawn(|| {
            loop {
                std::thread::park();
            }
        });
        thread.context("start a thread")?;
    }
    Ok(())
}

const STACK_BYTES: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Request> {
        Request::parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn the_games_own_arguments_are_ignored() {
        let line = "-game left4dead2 -console -usercon +ip 0.0.0.0 -port 27016 +map c1m1_hotel -norestart";
        let expected = Options { port: 27016, ..Options::default() };
        assert_eq!(parse(line).unwrap(), Request::Serve(expected));
        assert_eq!(parse("").unwrap(), Request::Serve(Options::default()));
    }

    #[test]
    fn its_own_are_not() {
        let line = "-game left4dead2 --in /srv --memory-mib 300 --threads 1 --save-secs 2 --late-child";
        let expected = Options {
            directory: Some("/srv".into()),
            memory_mib: 300,
            threads: 1,
            save: Some(Duration::from_secs(2)),
            child: Some(Manner::Late),
            ..Options::default()
        };
        assert_eq!(parse(line).unwrap(), Request::Serve(expected));
        let expected =
            Options { hostile: vec!["heirs".into(), "8".into(), "--threads".into()], ..Options::default() };
        assert_eq!(parse("+map x --hostile heirs 8 --threads").unwrap(), Request::Serve(expected));
        assert_eq!(parse("--child --stubborn-child").unwrap(), Request::Child(Manner::Stubborn));
        assert_eq!(parse("--wait-for-ready /upper").unwrap(), Request::WaitForReady("/upper".into()));
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (line, words) in [
            ("--memory-mib", "--memory-mib: give a value"),
            ("--memory-mib many", "--memory-mib many: not a number"),
            ("-port 70000", "-port 70000: not a number, or out of range"),
            ("--hostile", "--hostile: give a mode"),
            ("--child", "--child: say which"),
            ("--32-bit --late-child", "--32-bit: it saves nothing"),
            ("--wait-for-ready", "--wait-for-ready: give a value"),
        ] {
            let error = parse(line).unwrap_err();
            assert!(error.to_string().contains(words), "{line}: {error}");
        }
    }

    #[test]
    fn memory_is_touched() {
        let resident = || -> u64 {
            let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
            pages.split(' ').nth(1).unwrap().parse().unwrap()
        };
        let before = resident();
        touch(0).unwrap();
        touch(64 << 20).unwrap();
        let pages = resident() - before;
        // Other tests end, and free some, meanwhile.
        assert!(pages >= 60 << 20 >> 12, "{pages} pages more");
    }
}
