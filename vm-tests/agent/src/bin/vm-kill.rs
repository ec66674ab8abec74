//! Kills the installed helper and a reset before each of their steps, and checks that the next one repairs the state, for
//! scenarios: `vm-kill INSTANCE` prints the steps of mount, umount and reset. The instance's server must not run.
//!
//! A step is a system call that changes something; a kill before one that only reads leaves what the kill before the
//! next step leaves. Which calls only read is a list ([`calls::reads_only`]), and all others are steps, so that nothing is
//! missed by being forgotten. The steps are found by counting: the nth run is killed before its nth step, until one is
//! not killed any more. `helper/tests/native.rs` does the same before every system call, without systemd.

#[path = "vm-kill/calls.rs"]
mod calls;

use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use holders::mountinfo;
use nix::libc;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

const HELPER: &str = "/usr/local/libexec/left4me/left4me-overlay";
const CONTROL: &str = "/usr/local/bin/l4d2ctl";
const RUNTIMES: &str = "/var/lib/left4me/runtime";
/// What the server wrote: all of it has to be there, or nothing of it.
const WRITTEN: [&str; 4] = ["one", "two", "d/three", "d/e/four"];

fn main() -> Result<()> {
    let name = std::env::args().nth(1).context("usage: vm-kill INSTANCE")?;
    let instance = Instance { runtime: Path::new(RUNTIMES).join(&name), name };
    for (what, steps, known) in [
        // The one that makes a mount visible is mount(2) on kernels whose overlayfs knows no other way.
        ("mount", instance.kill_mounts()?, &["mkdirat", "flock", "move_mount|mount"][..]),
        ("umount", instance.kill_umounts()?, &["flock", "umount2", "unlinkat"]),
        ("reset", instance.kill_resets()?, &["flock", "unlinkat", "renameat2"]),
    ] {
        println!("{what}: killed before each of its {} steps: {}", steps.len(), steps.join(" "));
        for known in known {
            let is_there = known.split('|').any(|known| steps.iter().any(|step| step == known));
            ensure!(is_there, "{what} has no step {known}: are they counted?");
        }
    }
    Ok(())
}

struct Instance {
    name: String,
    runtime: PathBuf,
}

impl Instance {
    /// A mount that was killed: the next mount, or an unmount, or a reset goes on from there.
    fn kill_mounts(&self) -> Result<Vec<String>> {
        each_step(&self.helper("mount"), FirstStep::AtOnce, |nth| {
            match nth % 3 {
                0 => self.mount()?,
                1 => {}
                _ if self.is_mounted()? => {}
                _ => return self.reset(),
            }
            self.umount()?;
            self.reset()
        })
    }

    /// An unmount that was killed: what was written is still there.
    fn kill_umounts(&self) -> Result<Vec<String>> {
        self.mount()?;
        write(&self.merged())?;
        let steps = each_step(&self.helper("umount"), FirstStep::AtOnce, |nth| {
            if nth % 2 == 0 {
                self.umount()?;
            }
            self.mount()?;
            ensure!(is_whole(&self.merged()), "{} is not what it was", self.merged().display());
            Ok(())
        })?;
        self.umount()?;
        self.reset()?;
        Ok(steps)
    }

    /// A reset that was killed: never half a layer where a start would use it, and the next one, or a mount and the next
    /// one, ends it.
    fn kill_resets(&self) -> Result<Vec<String>> {
        let upper = self.runtime.join("upper");
        let written = || {
            self.mount()?;
            self.umount()?;
            write(&upper)?;
            // What an earlier reset has left, so that its end is among the steps.
            let left = format!("{RUNTIMES}/.purge-{}/upper/old", self.name);
            fs::create_dir_all(&left).with_context(|| format!("make {left}"))
        };
        written()?;
        let steps = each_step(&self.control("reset"), FirstStep::Openat2, |nth| {
            ensure!(!upper.exists() || is_whole(&upper), "half of {} is left", upper.display());
            if nth % 2 == 0 {
                self.mount()?;
                self.umount()?;
            }
            self.reset()?;
            written()
        })?;
        self.reset()?;
        Ok(steps)
    }

    fn merged(&self) -> PathBuf {
        self.runtime.join("merged")
    }

    fn helper(&self, verb: &str) -> [String; 3] {
        [HELPER.to_owned(), verb.to_owned(), self.name.clone()]
    }

    fn control(&self, verb: &str) -> [String; 3] {
        [CONTROL.to_owned(), verb.to_owned(), self.name.clone()]
    }

    fn is_mounted(&self) -> Result<bool> {
        Ok(mountinfo::read_at(1, &self.merged())?.is_some())
    }

    fn mount(&self) -> Result<()> {
        ok(&self.helper("mount"))?;
        ensure!(self.is_mounted()?, "{} is not mounted", self.merged().display());
        let layer = self.merged().join("left4dead2/addons/tickrate.vdf");
        fs::metadata(&layer).with_context(|| format!("stat {}", layer.display()))?;
        Ok(())
    }

    fn umount(&self) -> Result<()> {
        ok(&self.helper("umount"))?;
        ensure!(!self.is_mounted()?, "{} is still mounted", self.merged().display());
        Ok(())
    }

    fn reset(&self) -> Result<()> {
        ok(&self.control("reset"))?;
        let left: Vec<_> = fs::read_dir(RUNTIMES)
            .and_then(|entries| entries.map(|entry| entry.map(|entry| entry.file_name())).collect())
            .with_context(|| format!("read {RUNTIMES}"))?;
        ensure!(left.is_empty(), "left by a reset: {left:?}");
        Ok(())
    }
}

fn write(into: &Path) -> Result<()> {
    for name in WRITTEN {
        let path = into.join(name);
        fs::create_dir_all(path.parent().context("it has a parent")?)
            .and_then(|()| fs::write(&path, "kept"))
            .with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

fn is_whole(layer: &Path) -> bool {
    WRITTEN.iter().all(|name| fs::read(layer.join(name)).is_ok_and(|text| text == b"kept"))
}

fn command(argv: &[String]) -> Result<Command> {
    let (program, arguments) = argv.split_first().context("no program")?;
    #[expect(clippy::disallowed_methods, reason = "a fixture in the guest, not part of the harness")]
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null());
    Ok(command)
}

fn ok(argv: &[String]) -> Result<()> {
    let output = command(argv)?.output().with_context(|| format!("run {}", argv.join(" ")))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}: {}: {}", argv.join(" "), output.status, said.trim());
    Ok(())
}

/// Where a program's own work begins, and in which of its threads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FirstStep {
    /// At its start.
    AtOnce,
    /// With its first openat2(2): by that a reset enters the state directory, after it has talked to systemd.
    Openat2,
}

/// Runs a program again and again, each time killed one step later, and `look`s after each; the names of the steps. The
/// last run is not killed, and looked at too.
fn each_step(argv: &[String], first: FirstStep, look: impl Fn(usize) -> Result<()>) -> Result<Vec<String>> {
    let mut steps = Vec::new();
    loop {
        let nth = steps.len();
        let killed = killed_before(argv, first, nth).with_context(|| format!("trace {}", argv.join(" ")))?;
        let step = killed.clone().unwrap_or_else(|| "its end".to_owned());
        look(nth).with_context(|| format!("{} was killed before its step {nth}, {step}", argv.join(" ")))?;
        match killed {
            Some(step) => steps.push(step),
            None => return Ok(steps),
        }
    }
}

/// Runs a program and kills it by SIGKILL before its step number `nth`, counted from 0; returns that step's name. `None`
/// if it ended before, in success.
fn killed_before(argv: &[String], first: FirstStep, nth: usize) -> Result<Option<String>> {
    let mut command = command(argv)?;
    command.stdout(Stdio::null()).stderr(Stdio::null());
    #[expect(unsafe_code, reason = "a tracee asks to be traced between fork and exec")]
    // SAFETY: ptrace(2) is a bare system call: no allocation, no lock.
    unsafe {
        command.pre_exec(|| ptrace::traceme().map_err(std::io::Error::from));
    }
    let child = command.spawn().context("spawn")?;
    let leader = Pid::from_raw(i32::try_from(child.id()).context("a process id")?);
    waitpid(leader, None).context("wait for the exec")?;
    let options = Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_EXITKILL | Options::PTRACE_O_TRACECLONE;
    ptrace::setoptions(leader, options).context("PTRACE_SETOPTIONS")?;
    ptrace::syscall(leader, None).context("PTRACE_SYSCALL")?;
    let mut worker = (first == FirstStep::AtOnce).then_some(leader);
    let mut steps = 0;
    loop {
        let (pid, signal) = match waitpid(None, Some(WaitPidFlag::__WALL)).context("waitpid")? {
            WaitStatus::PtraceSyscall(pid) => {
                let info = ptrace::syscall_info(pid).context("PTRACE_GET_SYSCALL_INFO")?;
                if info.op == libc::PTRACE_SYSCALL_INFO_ENTRY {
                    #[expect(unsafe_code, reason = "a union of the kernel's, whose tag was just looked at")]
                    // SAFETY: for this `op` the kernel has filled in `entry`.
                    let entry = unsafe { info.u.entry };
                    let number = libc::c_long::try_from(entry.nr).context("a system call's number")?;
                    if worker.is_none() && number == libc::SYS_openat2 {
                        worker = Some(pid);
                    }
                    if worker == Some(pid) && !calls::reads_only(pid, number, entry.args)? {
                        if steps == nth {
                            kill(leader)?;
                            return Ok(Some(name(number)));
                        }
                        steps += 1;
                    }
                }
                (pid, None)
            }
            WaitStatus::Exited(pid, status) if pid == leader => {
                ensure!(status == 0, "it ended by itself, with status {status}");
                return Ok(None);
            }
            WaitStatus::Signaled(pid, signal, _) if pid == leader => bail!("it was killed by {signal}"),
            // A new thread begins with SIGSTOP, which is not meant for it.
            WaitStatus::Stopped(pid, Signal::SIGSTOP) => (pid, None),
            WaitStatus::Stopped(pid, signal) => (pid, Some(signal)),
            WaitStatus::PtraceEvent(pid, ..) => (pid, None),
            // A thread's end.
            _ => continue,
        };
        match ptrace::syscall(pid, signal) {
            // Gone with the others, when one of them ended the process.
            Ok(()) | Err(nix::errno::Errno::ESRCH) => {}
            Err(errno) => return Err(errno).context("PTRACE_SYSCALL"),
        }
    }
}

/// Kills the traced process and reaps its threads, the leader last.
fn kill(leader: Pid) -> Result<()> {
    nix::sys::signal::kill(leader, Signal::SIGKILL).context("kill")?;
    loop {
        match waitpid(None, Some(WaitPidFlag::__WALL)).context("wait for its end")? {
            WaitStatus::Signaled(pid, ..) | WaitStatus::Exited(pid, _) if pid == leader => return Ok(()),
            _ => {}
        }
    }
}

/// For the report: the steps that there are today. Another one has its number.
fn name(number: libc::c_long) -> String {
    let name = match number {
        libc::SYS_mkdirat => "mkdirat",
        libc::SYS_unlinkat => "unlinkat",
        libc::SYS_renameat2 => "renameat2",
        libc::SYS_flock => "flock",
        libc::SYS_fchown => "fchown",
        libc::SYS_fchmod => "fchmod",
        libc::SYS_fsopen => "fsopen",
        libc::SYS_fsconfig => "fsconfig",
        libc::SYS_fsmount => "fsmount",
        libc::SYS_move_mount => "move_mount",
        libc::SYS_mount => "mount",
        libc::SYS_umount2 => "umount2",
        _ => return format!("syscall {number}"),
    };
    name.to_owned()
}
