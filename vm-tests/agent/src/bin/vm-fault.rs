//! Runs a deploy and does it harm at one of its steps, for the test of `cargo xtask deploy`:
//! `vm-fault STEP[+N] FAULT PROGRAM REQUEST`.
//!
//! PROGRAM (`left4me-deploy`) gets REQUEST on its standard input. It tells each of its steps in a line of JSON; here it is
//! traced, so the harm is done after it has told STEP and before the next system call that changes something, or N such
//! calls later. What it tells is printed, and at the end `fault: done` or `fault: not reached`, and how it ended.
//!
//! | FAULT | What it does |
//! |---|---|
//! | `none` | nothing |
//! | `kill` | kills it by SIGKILL |
//! | `link` | closes the other end of its standard output, as a lost link does |
//! | `full` | fills the disk that `/usr/local` is on |
//! | `read-only` | has the kernel make all disks read-only, as it does after an error |
//! | `clock` | sets the clock ten years ahead |
//! | `second` | runs another deploy with the same request, to its end |
//! | `hang` | prints `fault: ready`, and does not let it go on |
//! | `power` | prints `fault: ready`, and waits for the power to fail |

#[path = "vm-kill/calls.rs"]
mod calls;

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use nix::libc;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

/// What takes the room.
const FILLER: &str = "/usr/local/.vm-fault-filler";

const TEN_YEARS: i64 = 10 * 365 * 24 * 3600;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [step, fault, program, request] = &arguments[..] else {
        bail!("usage: vm-fault STEP[+N] FAULT PROGRAM REQUEST")
    };
    let (step, later) = match step.split_once('+') {
        Some((step, later)) => (step, later.parse().with_context(|| format!("{step}+{later}"))?),
        None => (step.as_str(), 0),
    };
    Traced { step, later, fault, program, request }.run()
}

struct Traced<'a> {
    step: &'a str,
    /// So many changing calls after it.
    later: u32,
    fault: &'a str,
    program: &'a str,
    request: &'a str,
}

/// How far the program is.
enum At {
    Before,
    /// With so many changing calls to go.
    In(u32),
    Done,
}

impl Traced<'_> {
    fn run(&self) -> Result<()> {
        let (output, writer) = std::io::pipe().context("pipe")?;
        let mut command = self.command()?;
        command.stdout(writer);
        #[expect(unsafe_code, reason = "a tracee asks to be traced between fork and exec")]
        // SAFETY: ptrace(2) is a bare system call: no allocation, no lock.
        unsafe {
            command.pre_exec(|| ptrace::traceme().map_err(std::io::Error::from));
        }
        let child = command.spawn().with_context(|| format!("run {}", self.program))?;
        drop(command);
        let pid = Pid::from_raw(i32::try_from(child.id()).context("a process id")?);
        waitpid(pid, None).context("wait for the exec")?;
        ptrace::setoptions(pid, Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_EXITKILL)
            .context("PTRACE_SETOPTIONS")?;
        let (mut at, mut output) = (At::Before, Some(output));
        let mut signal = None;
        let ended = loop {
            ptrace::syscall(pid, signal.take()).context("PTRACE_SYSCALL")?;
            match waitpid(pid, None).context("waitpid")? {
                WaitStatus::PtraceSyscall(_) => {
                    if let Some(changes) = entered(pid, self.step)? {
                        at = match (at, changes) {
                            (At::Before, Call::Step) => At::In(self.later),
                            // The next step, so that there were fewer calls in this one. One without any is harmed by what
                            // comes before the next.
                            (At::In(1..), Call::OtherStep) => At::Done,
                            (At::In(0), Call::Change(name)) => {
                                println!("fault: {} before {name} in {}", self.fault, self.step);
                                if self.harm(pid, &mut output)? {
                                    break "killed".to_owned();
                                }
                                println!("fault: done");
                                At::Done
                            }
                            (At::In(left), Call::Change(_)) => At::In(left - 1),
                            (at, _) => at,
                        };
                    }
                }
                WaitStatus::Exited(_, status) => break format!("status {status}"),
                WaitStatus::Signaled(_, by, _) => break format!("{by}"),
                WaitStatus::Stopped(_, by) => signal = Some(by).filter(|by| *by != Signal::SIGTRAP),
                _ => {}
            }
        };
        if let Some(mut output) = output {
            let mut said = String::new();
            output.read_to_string(&mut said).context("read what it said")?;
            print!("{said}");
        }
        println!("fault: it ended: {ended}");
        Ok(())
    }

    fn command(&self) -> Result<Command> {
        let request = File::open(self.request).with_context(|| format!("open {}", self.request))?;
        #[expect(clippy::disallowed_methods, reason = "a fixture in the guest, not part of the harness")]
        let mut command = Command::new(self.program);
        command.arg("serve").stdin(Stdio::from(request));
        Ok(command)
    }

    /// Whether it was killed.
    fn harm(&self, pid: Pid, output: &mut Option<std::io::PipeReader>) -> Result<bool> {
        match self.fault {
            "none" => {}
            "kill" => {
                println!("fault: done");
                nix::sys::signal::kill(pid, Signal::SIGKILL).context("kill")?;
                waitpid(pid, None).context("wait for its end")?;
                *output = None;
                return Ok(true);
            }
            "link" => drop(output.take()),
            "full" => fill()?,
            "read-only" => read_only()?,
            "clock" => {
                let clock = rustix::time::ClockId::Realtime;
                let mut now = rustix::time::clock_gettime(clock);
                now.tv_sec += TEN_YEARS;
                rustix::time::clock_settime(clock, now).context("clock_settime")?;
            }
            "second" => {
                let ended = self.command()?.stdout(Stdio::piped()).output().context("run a second one")?;
                println!("second: {}", String::from_utf8_lossy(&ended.stdout).trim());
            }
            "hang" => {
                println!("fault: ready");
                std::io::stdout().flush().context("flush")?;
                let ended = waitpid(pid, None).context("wait for its end")?;
                println!("fault: done, {ended:?}");
                *output = None;
                return Ok(true);
            }
            "power" => {
                println!("fault: ready");
                std::io::stdout().flush().context("flush")?;
                loop {
                    rustix::event::pause();
                }
            }
            other => bail!("no fault {other}"),
        }
        Ok(false)
    }
}

/// What a system call is that begins.
enum Call {
    /// It tells of the step that is looked for, or of another one.
    Step,
    OtherStep,
    /// It changes something.
    Change(libc::c_long),
}

/// The call that the stopped program begins, if it matters.
fn entered(pid: Pid, step: &str) -> Result<Option<Call>> {
    let info = ptrace::syscall_info(pid).context("PTRACE_GET_SYSCALL_INFO")?;
    if info.op != libc::PTRACE_SYSCALL_INFO_ENTRY {
        return Ok(None);
    }
    #[expect(unsafe_code, reason = "a union of the kernel's, whose tag was just looked at")]
    // SAFETY: for this `op` the kernel has filled in `entry`.
    let entry = unsafe { info.u.entry };
    let number = libc::c_long::try_from(entry.nr).context("a system call's number")?;
    let [fd, at, length, ..] = entry.args;
    if number == libc::SYS_write && fd == 1 {
        let text = read(pid, at, length.min(200))?;
        return Ok(match text.strip_prefix("{\"step\":\"").and_then(|rest| rest.split('"').next()) {
            Some(name) if name == step => Some(Call::Step),
            Some(_other) => Some(Call::OtherStep),
            None => None,
        });
    }
    let is_file = number == libc::SYS_write || number == libc::SYS_ftruncate;
    let changes = is_file || !calls::reads_only(pid, number, entry.args)?;
    // A program that is run does what it is run for.
    let runs = [libc::SYS_clone, libc::SYS_clone3, libc::SYS_vfork, libc::SYS_fork].contains(&number);
    Ok((changes || runs).then_some(Call::Change(number)))
}

/// Text of the stopped program's memory.
fn read(pid: Pid, at: u64, length: u64) -> Result<String> {
    let mut bytes = Vec::new();
    while (bytes.len() as u64) < length {
        let word =
            ptrace::read(pid, (at + bytes.len() as u64) as ptrace::AddressType).context("PTRACE_PEEKDATA")?;
        bytes.extend(word.to_ne_bytes());
    }
    bytes.truncate(usize::try_from(length)?);
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Takes all room and all inodes that the disk has.
fn fill() -> Result<()> {
    let mut file =
        OpenOptions::new().append(true).create(true).open(FILLER).with_context(|| FILLER.to_owned())?;
    for size in [1 << 20, 4096, 1] {
        let bytes = vec![b'x'; size];
        loop {
            match file.write_all(&bytes) {
                Ok(()) => {}
                Err(error) if error.kind() == std::io::ErrorKind::StorageFull => break,
                Err(error) => return Err(error).with_context(|| format!("fill {FILLER}")),
            }
        }
    }
    for number in 0.. {
        match File::create(format!("{FILLER}-{number}")) {
            Ok(_empty) => {}
            Err(error) if error.kind() == std::io::ErrorKind::StorageFull => return Ok(()),
            Err(error) => return Err(error).with_context(|| format!("fill {FILLER}")),
        }
    }
    Ok(())
}

/// As the kernel does by itself after an error, with files open (Documentation/admin-guide/sysrq.rst, `u`).
fn read_only() -> Result<()> {
    std::fs::write("/proc/sysrq-trigger", "u").context("write /proc/sysrq-trigger")?;
    // A worker of the kernel's does it; a change of a mount is an event of mountinfo.
    let mountinfo = File::open("/proc/self/mountinfo").context("open /proc/self/mountinfo")?;
    for _ in 0..200 {
        let text = std::fs::read_to_string("/proc/self/mounts").context("read /proc/self/mounts")?;
        let line = text.lines().find(|line| line.split(' ').nth(1) == Some("/usr/local"));
        let options = line.and_then(|line| line.split(' ').nth(3)).context("/usr/local is no mount")?;
        if options.split(',').any(|option| option == "ro") {
            return Ok(());
        }
        let wait = rustix::event::Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
        let mut polled = [rustix::event::PollFd::new(&mountinfo, rustix::event::PollFlags::PRI)];
        rustix::event::poll(&mut polled, Some(&wait)).context("poll /proc/self/mountinfo")?;
    }
    ensure!(false, "/usr/local is still writable");
    Ok(())
}
