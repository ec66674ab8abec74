//! A server that won't be stopped, for scenarios: `vm-hostile MODE` has the working directory in the mount and does one thing
//! by which a stop can be escaped. `vm-game --hostile MODE` starts it, in the unit.
//!
//! | Mode | What it does |
//! |---|---|
//! | `heirs N` | N processes that each fork an heir, and end, for ever |
//! | `holders N` | N processes whose working directory is the mount |
//! | `long-cwd` | a working directory whose path is longer than PATH_MAX, so that readlink(2) of `/proc/PID/cwd` fails |
//! | `in-flight` | a descriptor of a file in the mount that is in a socket's queue, and nothing else that shows |
//! | `shared-mm P M` | P processes that share one address space (CLONE_VM) of M mappings, one of them of a file in the mount |
//! | `stopped` | a process in the mount that is stopped, and stops itself again whenever it is continued |
//! | `traced` | a process in the mount that is stopped under ptrace(2), and its tracer outside of it |
//! | `slow-save SECS` | on SIGTERM, writes to `slow-save.dat` for so long, and then exits with status 0 |
//!
//! All but the last ignore SIGTERM. When all is set up they make `hostile.ready` in the working directory, and say so on
//! stdout. `traced` needs ptrace(2), which `SystemCallFilter=@system-service` forbids: a scenario has to allow `@debug`.
//!
//! Nothing of it outlives [`LIFETIME_SECS`], so that a test that goes wrong does not keep a machine.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::libc;
use nix::sys::ptrace;
use nix::sys::signal::{SigHandler, SigSet, Signal, kill, raise, signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, alarm, fork};
use rustix::io::IoSlice;
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap, mmap_anonymous, mprotect};
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, sendmsg,
    socketpair,
};

/// Longer than any stop may take.
const LIFETIME_SECS: u32 = 60;

const READY: &str = "hostile.ready";

fn main() -> Result<()> {
    let mode = Mode::parse(std::env::args().skip(1))?;
    let place = std::env::current_dir().context("find the working directory")?;
    if !matches!(mode, Mode::SlowSave(_)) {
        dispose(Signal::SIGTERM, SigHandler::SigIgn)?;
    }
    alarm::set(LIFETIME_SECS);
    let ready = || -> Result<()> {
        let path = place.join(READY);
        File::create(&path).with_context(|| format!("create {}", path.display()))?;
        println!("ready: {mode:?}");
        Ok(())
    };
    match mode {
        Mode::Heirs(count) => heirs(count, ready),
        Mode::Holders(count) => {
            for _ in 1..count {
                start(stay)?;
            }
            ready()?;
            stay()
        }
        Mode::LongCwd => {
            go_deep()?;
            ready()?;
            stay()
        }
        Mode::InFlight => {
            let _queue = put_in_flight()?;
            leave()?;
            ready()?;
            stay()
        }
        Mode::SharedMm(processes, mappings) => {
            map_much(mappings)?;
            leave()?;
            for _ in 1..processes {
                share()?;
            }
            ready()?;
            stay()
        }
        Mode::Stopped => {
            let child = start(|| {
                loop {
                    expect_done(raise(Signal::SIGSTOP));
                }
            })?;
            guard(child, ready)
        }
        Mode::Traced => {
            let child = start(|| {
                if ptrace::traceme().is_err() {
                    end(1);
                }
                expect_done(raise(Signal::SIGSTOP));
                stay()
            })?;
            guard(child, ready)
        }
        Mode::SlowSave(time) => slow_save(time, ready),
    }
}

/// What it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Heirs(u32),
    Holders(u32),
    LongCwd,
    InFlight,
    SharedMm(u32, u32),
    Stopped,
    Traced,
    SlowSave(Duration),
}

impl Mode {
    fn parse(arguments: impl IntoIterator<Item = String>) -> Result<Self> {
        let arguments: Vec<String> = arguments.into_iter().collect();
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let number = |text: &str| -> Result<u32> {
            let number = text.parse().ok().filter(|number| *number > 0);
            number.with_context(|| format!("{text}: not a number from 1 on"))
        };
        Ok(match arguments.as_slice() {
            ["heirs", count] => Self::Heirs(number(count)?),
            ["holders", count] => Self::Holders(number(count)?),
            ["long-cwd"] => Self::LongCwd,
            ["in-flight"] => Self::InFlight,
            ["shared-mm", processes, mappings] => Self::SharedMm(number(processes)?, number(mappings)?),
            ["stopped"] => Self::Stopped,
            ["traced"] => Self::Traced,
            ["slow-save", secs] => Self::SlowSave(Duration::from_secs(number(secs)?.into())),
            _ => bail!(
                "usage: vm-hostile heirs N | holders N | long-cwd | in-flight | shared-mm PROCESSES MAPPINGS | stopped | \
                 traced | slow-save SECS"
            ),
        })
    }
}

/// Starts a process that does something for ever, or ends by itself.
fn start(run: impl FnOnce() -> Result<()>) -> Result<Pid> {
    #[expect(unsafe_code, reason = "a process that has no program of its own is what these modes are about")]
    // SAFETY: this process has one thread, so the child may do whatever it may.
    match unsafe { fork() }.context("fork")? {
        ForkResult::Parent { child } => Ok(child),
        ForkResult::Child => {
            // The parent's is not inherited.
            alarm::set(LIFETIME_SECS);
            end(run().map_or(1, |()| 0));
        }
    }
}

/// Ends this process and nothing else: what is buffered is the parent's to write.
fn end(status: i32) -> ! {
    #[expect(unsafe_code, reason = "std knows no exit without a clean-up")]
    // SAFETY: it does not return.
    unsafe {
        libc::_exit(status)
    }
}

/// Does nothing until it is killed.
fn stay() -> Result<()> {
    loop {
        rustix::event::pause();
    }
}

/// For what can only fail by being wrong here, in a process that has nobody to tell.
fn expect_done<E>(result: Result<(), E>) {
    if result.is_err() {
        end(1);
    }
}

fn leave() -> Result<()> {
    std::env::set_current_dir("/").context("go to /")
}

fn dispose(what: Signal, how: SigHandler) -> Result<()> {
    #[expect(unsafe_code, reason = "nix marks it so, as a handler could do anything")]
    // SAFETY: there is no handler.
    unsafe { signal(what, how) }.with_context(|| format!("set the disposition of {what}"))?;
    Ok(())
}

/// Each process is there for as long as a fork takes: whoever lists them and then asks each sees none that is still there.
fn heirs(count: u32, ready: impl FnOnce() -> Result<()>) -> Result<()> {
    // They are reaped by nobody else.
    dispose(Signal::SIGCHLD, SigHandler::SigIgn)?;
    let give_up = Instant::now() + Duration::from_secs(LIFETIME_SECS.into());
    for _ in 0..count {
        start(|| {
            while Instant::now() < give_up {
                #[expect(unsafe_code, reason = "as above")]
                // SAFETY: this process has one thread, so the child may do whatever it may.
                match unsafe { fork() } {
                    Ok(ForkResult::Parent { .. }) => return Ok(()),
                    // The heir goes on. No room for one: tried again until there is.
                    Ok(ForkResult::Child) | Err(_) => {}
                }
            }
            Ok(())
        })?;
    }
    ready()
}

/// Goes down a chain of new directories until no path names the last one.
fn go_deep() -> Result<()> {
    let name = "d".repeat(200);
    for _ in 0..=libc::PATH_MAX / 200 {
        std::fs::create_dir(&name).with_context(|| format!("create {name}"))?;
        std::env::set_current_dir(&name).with_context(|| format!("go to {name}"))?;
    }
    let link = rustix::fs::readlink("/proc/self/cwd", Vec::new());
    ensure!(link.is_err(), "the working directory still has a path: {link:?}");
    Ok(())
}

/// A file of the working directory, open nowhere but in the queue of the returned socket.
fn put_in_flight() -> Result<[rustix::fd::OwnedFd; 2]> {
    let file = File::create("in-flight").context("create in-flight")?;
    let (from, to) = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
        .context("socketpair")?;
    let files = [std::os::fd::AsFd::as_fd(&file)];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut message = SendAncillaryBuffer::new(&mut space);
    ensure!(message.push(SendAncillaryMessage::ScmRights(&files)), "no room for one descriptor");
    sendmsg(&from, &[IoSlice::new(b"x")], &mut message, SendFlags::empty()).context("sendmsg")?;
    Ok([from, to])
}

/// So many mappings, the one of a file in the working directory among them, as the last one in the list: the kernel fills
/// an address space from its upper end.
fn map_much(mappings: u32) -> Result<()> {
    const PAGE: usize = 4096;
    let file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open("mapped")
        .context("create mapped")?;
    file.set_len(PAGE as u64).context("write mapped")?;
    let pages = usize::try_from(mappings)?;
    #[expect(unsafe_code, reason = "mappings are what this is about")]
    // SAFETY: new mappings at addresses of the kernel's choice, and the protection of pages of one of them; nothing ever uses
    // them.
    unsafe {
        mmap(std::ptr::null_mut(), PAGE, ProtFlags::READ, MapFlags::SHARED, &file, 0)
            .context("map the file")?;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        let start = mmap_anonymous(std::ptr::null_mut(), pages * PAGE, ProtFlags::empty(), flags)
            .context("map pages")?;
        // Neighbours with the same protection would be one mapping.
        for page in (0..pages).step_by(2) {
            mprotect(start.byte_add(page * PAGE), PAGE, MprotectFlags::READ).with_context(|| {
                format!("split a mapping for the {page}th time (see /proc/sys/vm/max_map_count)")
            })?;
        }
    }
    Ok(())
}

/// Starts a process that has this one's memory, and a stack of its own in it. It stays for ever, by system calls alone:
/// all else, as the libc's own data, is everybody's.
fn share() -> Result<()> {
    extern "C" fn run(_: *mut libc::c_void) -> libc::c_int {
        #[expect(unsafe_code, reason = "system calls that touch no memory")]
        // SAFETY: they take numbers and give numbers.
        unsafe {
            libc::syscall(libc::SYS_alarm, LIFETIME_SECS);
            loop {
                libc::syscall(libc::SYS_pause);
            }
        }
    }
    const STACK_BYTES: usize = 16 * 1024;
    #[expect(unsafe_code, reason = "std starts threads of one process, and these are processes")]
    // SAFETY: the stack is the new process's alone, for ever. `run` returns never and uses nothing of this process.
    unsafe {
        let flags = MapFlags::PRIVATE | MapFlags::STACK;
        let stack =
            mmap_anonymous(std::ptr::null_mut(), STACK_BYTES, ProtFlags::READ | ProtFlags::WRITE, flags);
        let top = stack.context("map a stack")?.byte_add(STACK_BYTES);
        let pid = libc::clone(run, top, libc::CLONE_VM | libc::SIGCHLD, std::ptr::null_mut());
        ensure!(pid > 0, "clone: {}", std::io::Error::last_os_error());
    }
    Ok(())
}

/// Waits for the child to be stopped, and is then what ends it when its time is over: no alarm ends what is stopped.
fn guard(child: Pid, ready: impl FnOnce() -> Result<()>) -> Result<()> {
    leave()?;
    let status = waitpid(child, Some(WaitPidFlag::WUNTRACED)).context("wait for the child")?;
    ensure!(
        matches!(status, WaitStatus::Stopped(_, Signal::SIGSTOP)),
        "the child is not stopped: {status:?}"
    );
    ready()?;
    alarm::cancel();
    take(Duration::from_secs(LIFETIME_SECS.into()));
    kill(child, Signal::SIGKILL).context("end the child")
}

/// A little at a time, and no waiting for a disk.
fn slow_save(time: Duration, ready: impl FnOnce() -> Result<()>) -> Result<()> {
    let mut set = SigSet::empty();
    set.add(Signal::SIGTERM);
    set.thread_block().context("block SIGTERM")?;
    let signals = SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC).context("signalfd")?;
    ready()?;
    signals.read_signal().context("wait for SIGTERM")?;
    let began = Instant::now();
    let path = Path::new("slow-save.dat");
    let mut file = File::create(path).with_context(|| format!("create {}", path.display()))?;
    while began.elapsed() < time {
        file.write_all(&[b'.'; 100]).with_context(|| format!("write {}", path.display()))?;
        take(Duration::from_millis(5));
    }
    Ok(())
}

#[expect(clippy::disallowed_methods, reason = "the time that it takes is what this program is for")]
fn take(time: Duration) {
    std::thread::sleep(time);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes() {
        let parse = |line: &str| Mode::parse(line.split_whitespace().map(str::to_owned));
        for (line, mode) in [
            ("heirs 8", Mode::Heirs(8)),
            ("holders 1500", Mode::Holders(1500)),
            ("long-cwd", Mode::LongCwd),
            ("in-flight", Mode::InFlight),
            ("shared-mm 200 60000", Mode::SharedMm(200, 60_000)),
            ("stopped", Mode::Stopped),
            ("traced", Mode::Traced),
            ("slow-save 3", Mode::SlowSave(Duration::from_secs(3))),
        ] {
            assert_eq!(parse(line).unwrap(), mode);
        }
        for line in ["", "heirs", "heirs 0", "heirs x", "stopped 1", "shared-mm 3", "peaceful"] {
            parse(line).unwrap_err();
        }
    }
}
