//! Runs a command for the host: its output as it comes, its end, its input, its cancellation.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use vm_agent::wire::{Body, CHUNK, Command, Exit, Stream, Streams};

use crate::account;
use crate::answer::{Answer, lock};

/// How long a cancelled command has between SIGTERM and SIGKILL.
const TERM_GRACE: Duration = Duration::from_secs(2);

/// What another request needs to reach a running command.
#[derive(Debug, Clone)]
pub(crate) struct Control {
    group: Pid,
    pidfd: Arc<OwnedFd>,
    input: Arc<Mutex<Option<File>>>,
}

/// The commands under way, by the request that started them.
pub(crate) type Running = Arc<Mutex<HashMap<u64, Control>>>;

/// A command that was started for a request and can be reached by others.
#[derive(Debug)]
pub(crate) struct Begun {
    started: Started,
    control: Control,
}

/// Starts a command and makes it known under its request's id. To be called by the thread that reads requests, so
/// that input for a command never overtakes its start.
pub(crate) fn begin(command: &Command, running: &Running, id: u64) -> Result<Begun> {
    let mut started = start(command)?;
    let group = Pid::from_child(&started.child);
    let pidfd = Arc::new(pidfd_open(group, PidfdFlags::empty()).context("pidfd_open")?);
    let control = Control { group, pidfd, input: Arc::new(Mutex::new(started.input.take())) };
    lock(running).insert(id, control.clone());
    Ok(Begun { started, control })
}

/// Sends a command's output and returns how it ended, after all of its output was sent.
pub(crate) fn finish(begun: Begun, answer: &Answer, running: &Running, id: u64) -> Result<Body> {
    let Begun { mut started, control } = begun;
    let relayed = relay(&mut started.outputs, control.pidfd.as_fd(), answer);
    if relayed.is_err() {
        // The host is gone: nobody waits for this command.
        end_group(control.group, Signal::KILL);
    }
    let status = started.child.wait().context("wait for the command");
    lock(running).remove(&id);
    relayed?;
    Ok(Body::Exited(exit_of(status?)))
}

/// Gives a running command more input; empty closes its stdin.
pub(crate) fn input(running: &Running, id: u64, bytes: Vec<u8>) -> Result<()> {
    let control = control(running, id)?;
    let mut input = lock(&control.input);
    if bytes.is_empty() {
        *input = None;
        return Ok(());
    }
    match input.as_mut() {
        Some(file) => file.write_all(&bytes).context("write to the command's stdin"),
        None => bail!("the command of request {id} has no open stdin"),
    }
}

/// Gives a running command's terminal another size; the kernel tells whoever has it in the foreground (SIGWINCH).
pub(crate) fn resize(running: &Running, id: u64, rows: u16, columns: u16) -> Result<()> {
    let control = control(running, id)?;
    match lock(&control.input).as_ref() {
        Some(terminal) => set_size(terminal, rows, columns),
        None => bail!("the command of request {id} has no terminal"),
    }
}

fn set_size(terminal: impl AsFd, rows: u16, columns: u16) -> Result<()> {
    let size = rustix::termios::Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    rustix::termios::tcsetwinsize(terminal, size).context("set the terminal's size")
}

/// Ends a running command: SIGTERM to its group, SIGKILL when it has not gone within [`TERM_GRACE`].
pub(crate) fn cancel(running: &Running, id: u64) -> Result<()> {
    let control = control(running, id)?;
    end_group(control.group, Signal::TERM);
    let timeout = Timespec::try_from(TERM_GRACE).context("poll timeout")?;
    let gone = poll(&mut [PollFd::new(&control.pidfd, PollFlags::IN)], Some(&timeout));
    if gone.context("wait for the cancelled command")? == 0 {
        end_group(control.group, Signal::KILL);
    }
    Ok(())
}

/// An id that no command has is the host's mistake, or the command has just ended.
fn control(running: &Running, id: u64) -> Result<Control> {
    match lock(running).get(&id) {
        Some(control) => Ok(control.clone()),
        None => bail!("request {id} runs no command (any more)"),
    }
}

/// A group that is gone already is what was asked for.
fn end_group(group: Pid, signal: Signal) {
    match kill_process_group(group, signal) {
        Ok(()) | Err(_) => (),
    }
}

/// How a process ended, in wire words.
pub(crate) fn exit_of(status: ExitStatus) -> Exit {
    match (status.code(), status.signal()) {
        (Some(code), _) => Exit::Code(code),
        (None, signal) => Exit::Signal(signal.unwrap_or(0)),
    }
}

#[derive(Debug)]
struct Started {
    child: Child,
    input: Option<File>,
    outputs: Vec<(Stream, File)>,
}

fn start(command: &Command) -> Result<Started> {
    match command.streams {
        Streams::Output => start_with_pipes(command, false),
        Streams::Interactive => start_with_pipes(command, true),
        Streams::Terminal { rows, columns } => start_in_terminal(command, rows, columns),
    }
}

/// Where commands are looked for. The two before the last are where NixOS keeps what Debian has in the others; the last is where
/// the harness puts its own where a guest has none of these.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/run/wrappers/bin:/run/current-system/sw/bin:/run/vm-test/bin";

/// A command with the environment that every command gets, in our own working directory, `/`.
///
/// The program is found here and no directory is given, so that the standard library can use posix_spawn(3): it falls back
/// to fork(2) for a PATH of the child's own and, in a static program, for a directory, and a fork copies page tables.
pub(crate) fn prepare(argv: &[String]) -> Result<std::process::Command> {
    let (name, arguments) = argv.split_first().context("run a command: its argv is empty")?;
    let program = if name.contains('/') { PathBuf::from(name) } else { on_path(name)? };
    #[expect(clippy::disallowed_methods, reason = "with record::command, the agent's only place that spawns")]
    let mut prepared = std::process::Command::new(program);
    prepared
        .arg0(name)
        .args(arguments)
        .env_clear()
        .env("PATH", PATH)
        .env("HOME", "/root")
        .env("LANG", "C.UTF-8")
        .env("SYSTEMD_PAGER", "cat")
        .envs(account::environment())
        .process_group(0);
    Ok(prepared)
}

/// Runs a command that must succeed.
///
/// # Errors
/// It can't be run or fails; with what it says.
pub(crate) fn expect_success(argv: &[String]) -> Result<()> {
    let output =
        prepare(argv)?.stdin(Stdio::null()).output().with_context(|| format!("run {}", argv.join(" ")))?;
    if !output.status.success() {
        let text = [output.stdout, output.stderr].concat();
        let exit = exit_of(output.status);
        bail!("{}: {exit}: {}", argv.join(" "), String::from_utf8_lossy(&text).trim());
    }
    Ok(())
}

/// The first executable file of this name on [`PATH`], as execvp(3) would take it.
fn on_path(name: &str) -> Result<PathBuf> {
    let candidates = PATH.split(':').map(|directory| Path::new(directory).join(name));
    candidates
        .into_iter()
        .find(|path| rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok() && path.is_file())
        .with_context(|| format!("run {name}: no such program in {PATH}"))
}

fn start_with_pipes(command: &Command, interactive: bool) -> Result<Started> {
    let mut child = prepare(&command.argv)?
        .stdin(if interactive { Stdio::piped() } else { Stdio::null() })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("run {}", command.argv.join(" ")))?;
    let input = child.stdin.take().map(|pipe| File::from(OwnedFd::from(pipe)));
    let stdout = child.stdout.take().context("the child's stdout")?;
    let stderr = child.stderr.take().context("the child's stderr")?;
    let outputs = vec![
        (Stream::Stdout, File::from(OwnedFd::from(stdout))),
        (Stream::Stderr, File::from(OwnedFd::from(stderr))),
    ];
    Ok(Started { child, input, outputs })
}

/// `setsid --ctty` of util-linux makes the terminal the controlling one, which would take unsafe code here.
fn start_in_terminal(command: &Command, rows: u16, columns: u16) -> Result<Started> {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    let host =
        openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).context("open /dev/ptmx")?;
    grantpt(&host).context("grantpt")?;
    unlockpt(&host).context("unlockpt")?;
    let name = ptsname(&host, Vec::new()).context("ptsname")?;
    let name = name.to_str().context("ptsname")?.to_owned();
    set_size(&host, rows, columns)?;
    let terminal =
        File::options().read(true).write(true).open(&name).with_context(|| format!("open {name}"))?;

    let mut argv: Vec<String> = ["setsid", "--ctty", "--wait", "--"].map(str::to_owned).to_vec();
    argv.extend(command.argv.iter().cloned());
    let mut prepared = prepare(&argv)?;
    let child = prepared
        .current_dir(home())
        .env("TERM", "xterm-256color")
        .stdin(terminal.try_clone().context("duplicate the terminal")?)
        .stdout(terminal.try_clone().context("duplicate the terminal")?)
        .stderr(terminal)
        .spawn()
        .with_context(|| format!("run {}", argv.join(" ")))?;
    let host = File::from(host);
    let input = host.try_clone().context("duplicate the terminal")?;
    Ok(Started { child, input: Some(input), outputs: vec![(Stream::Stdout, host)] })
}

/// Where a terminal's shell begins: root's home, if there is one that may be entered.
fn home() -> &'static str {
    let root = rustix::fs::access("/root", rustix::fs::Access::EXEC_OK);
    if root.is_ok() { "/root" } else { "/" }
}

/// Sends output as it comes until the command has ended and what it left in its pipes is sent. A descendant
/// that keeps a pipe open is not waited for: the command is over when its process is.
fn relay(outputs: &mut Vec<(Stream, File)>, pidfd: BorrowedFd<'_>, answer: &Answer) -> Result<()> {
    let mut buffer = vec![0; CHUNK];
    loop {
        let mut polled: Vec<PollFd<'_>> = vec![PollFd::new(&pidfd, PollFlags::IN)];
        polled.extend(outputs.iter().map(|(_, file)| PollFd::new(file, PollFlags::IN)));
        match poll(&mut polled, None) {
            Err(rustix::io::Errno::INTR) => continue,
            other => other.context("poll the command's output")?,
        };
        let ready: Vec<bool> = polled.iter().map(|fd| !fd.revents().is_empty()).collect();
        let mut any_output = false;
        let mut index = 0;
        let mut broken = None;
        outputs.retain_mut(|(stream, file)| {
            index += 1;
            if !ready.get(index).copied().unwrap_or(false) || broken.is_some() {
                return true;
            }
            // A terminal whose last user is gone reads as EIO: the end.
            let length = file.read(&mut buffer).unwrap_or(0);
            any_output |= length > 0;
            if length > 0 {
                let bytes = buffer.get(..length).unwrap_or_default().to_vec();
                broken = answer.send(Body::Output { stream: *stream, bytes }).err();
            }
            length > 0
        });
        if let Some(error) = broken {
            return Err(error).context("send output to the host");
        }
        if ready.first().copied().unwrap_or(true) && !any_output {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use vm_agent::wire::{self, Reply};

    use super::*;

    /// What a command in a terminal of 24 lines prints, which is resized before it reads a line.
    fn resized(rows: u16, columns: u16) -> String {
        let argv = ["sh", "-c", "stty size; read line; stty size"].map(str::to_owned).to_vec();
        let command = Command { argv, streams: Streams::Terminal { rows: 24, columns: 80 } };
        let (running, id) = (Running::default(), 7);
        let begun = begin(&command, &running, id).expect("begin");
        resize(&running, id, rows, columns).expect("resize");
        input(&running, id, b"\n".to_vec()).expect("input");
        let mut port = tempfile::tempfile().expect("a file");
        let answers = Arc::new(Mutex::new(port.try_clone().expect("duplicate")));
        finish(begun, &Answer::new(id, &answers), &running, id).expect("finish");
        std::io::Seek::rewind(&mut port).expect("rewind");
        let mut bytes = Vec::new();
        while let Ok(frame) = wire::read_frame(&mut port) {
            let reply: Reply = wire::decode(&frame).expect("a reply");
            if let Body::Output { bytes: more, .. } = reply.body {
                bytes.extend(more);
            }
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }

    #[test]
    fn a_terminal_is_resized_while_its_command_runs() {
        let text = resized(50, 132);
        assert!(text.trim_end().ends_with("50 132"), "{text:?}");
    }

    #[test]
    fn what_has_ended_has_no_terminal() {
        let error = resize(&Running::default(), 1, 50, 132).expect_err("there is none");
        assert!(error.to_string().contains("request 1"), "{error:#}");
    }
}
