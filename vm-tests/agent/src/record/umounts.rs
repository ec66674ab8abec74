//! Every call of umount2(2) in the machine, from the tracepoints `sys_enter_umount` and `sys_exit_umount` (the
//! kernel names them so although they are umount2's).
//!
//! The entry's tracepoint shows the path as a pointer into the caller's memory; an event probe on it reads the string
//! (Documentation/trace/eprobetrace.rst). Where the kernel has none, and where the page is not there, the path is not
//! known. systemd alone unmounts dozens of things while it sets up one service's namespace. Kept are ([`Calls`]), unless
//! they name another path:
//!
//! - calls that failed with EBUSY, by any program;
//! - calls by a process of a unit that runs a program of its own;
//! - calls of the watched path that succeeded, by any program;
//! - not what systemd does between fork and exec, whose comm is in parentheses, `(name)`: systemd 252 meets EBUSY
//!   several times while it sets up a namespace, of mounts that are none of ours;
//! - the call during which, or last before which, the watched path ceased to be a mount point, whatever it names.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::libc;
use vm_agent::recording::{Target, UmountCall};

/// What the tracer wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum TraceLine {
    /// A call began, of this path, where the tracer could read it.
    Entered { tid: u32, comm: String, at_us: u64, path: Option<String> },
    /// A call ended with 0 or a negative errno.
    Returned { tid: u32, comm: String, at_us: u64, result: i64 },
    /// What [`UmountTrace::mark_end`] wrote: nothing comes after it.
    End,
    /// The buffer ran over.
    Lost(String),
}

/// A trace instance of our own, removed when dropped.
#[derive(Debug)]
pub(super) struct UmountTrace {
    /// Before `instance`: an instance with an open pipe cannot be removed.
    pipe: File,
    instance: Instance,
    /// The beginning of a line whose end has not been read yet.
    partial: Vec<u8>,
}

pub(super) const TRACEFS: &str = "/sys/kernel/tracing";
/// One recorder at a time: a second instance of this name is a leftover of one that was killed.
pub(super) const INSTANCE: &str = "vm-agent";
/// The event probe that shows the path of a call, and its name as tracefs has it.
const PROBE: &str = "e:vm_agent/umount_entry syscalls/sys_enter_umount name=+0($name):ustring";
pub(super) const PROBE_EVENT: &str = "vm_agent/umount_entry";
const END: &str = "vm-agent: end of the recording";
/// Lines have the task's name right-aligned in this many bytes (`kernel/trace/trace_output.c`).
const COMM_WIDTH: usize = 16;

impl UmountTrace {
    /// Mounts tracefs where it is not, and traces in an instance, so that other users of the tracer are left
    /// alone.
    ///
    /// # Errors
    /// No tracefs, or a kernel without CONFIG_FTRACE_SYSCALLS.
    pub(super) fn open() -> Result<Self> {
        let instance = Instance::make()?;
        instance.write("trace_clock", "mono")?;
        // Wake the reader for the first event and not for half a buffer of them.
        instance.write("buffer_percent", "0")?;
        let pipe = instance.0.join("trace_pipe");
        let pipe = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(&pipe)
            .with_context(|| format!("open {}", pipe.display()))?;
        let trace = Self { pipe, instance, partial: Vec::new() };
        let entry = match make_probe() {
            Ok(()) => PROBE_EVENT,
            // Without CONFIG_PROBE_EVENTS: the calls, and not their paths.
            Err(_none) => "syscalls/sys_enter_umount",
        };
        for event in [entry, "syscalls/sys_exit_umount"] {
            trace.instance.write(&format!("events/{event}/enable"), "1")?;
        }
        Ok(trace)
    }

    /// Poll it for IN.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }

    /// Takes everything that is there; never waits.
    ///
    /// # Errors
    /// What reading the pipe says.
    pub(super) fn read(&mut self) -> Result<Vec<TraceLine>> {
        let mut buffer = [0; 4096];
        let mut lines = Vec::new();
        loop {
            match self.pipe.read(&mut buffer) {
                Ok(0) => return Ok(lines),
                Ok(length) => take_lines(&mut self.partial, &buffer[..length], &mut lines),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(lines),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context("read trace_pipe"),
            }
        }
    }

    /// Writes a line that comes out as [`TraceLine::End`] behind all that was traced before.
    ///
    /// # Errors
    /// What writing to `trace_marker` says.
    pub(super) fn mark_end(&self) -> Result<()> {
        self.instance.write("trace_marker", END)
    }
}

/// Its directory.
#[derive(Debug)]
struct Instance(PathBuf);

impl Instance {
    fn make() -> Result<Self> {
        let instances = Path::new(TRACEFS).join("instances");
        if !instances.is_dir() {
            let flags = rustix::mount::MountFlags::NOSUID | rustix::mount::MountFlags::NODEV;
            rustix::mount::mount("tracefs", TRACEFS, "tracefs", flags, None).context("mount tracefs")?;
        }
        let instance = instances.join(INSTANCE);
        match fs::remove_dir(&instance) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("remove the old {}", instance.display()));
            }
            _ => {}
        }
        fs::create_dir(&instance).with_context(|| format!("make {}", instance.display()))?;
        Ok(Self(instance))
    }

    fn write(&self, file: &str, text: &str) -> Result<()> {
        let path = self.0.join(file);
        fs::write(&path, text).with_context(|| format!("write {text:?} to {}", path.display()))
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir(&self.0) {
            eprintln!("remove {}: {error}", self.0.display());
        }
        // Not before: it is in use by the instance.
        if let Err(error) = remove_probe() {
            eprintln!("{error:#}");
        }
    }
}

/// Makes [`PROBE`] in place of one that was left.
fn make_probe() -> Result<()> {
    remove_probe()?;
    dynamic_events(PROBE)
}

fn remove_probe() -> Result<()> {
    let is_there = Path::new(TRACEFS).join("events").join(PROBE_EVENT).is_dir();
    if is_there { dynamic_events(&format!("-:{PROBE_EVENT}")) } else { Ok(()) }
}

/// Adds a line; a write from the beginning would remove all others (`kernel/trace/trace_dynevent.c:dyn_event_open`).
fn dynamic_events(line: &str) -> Result<()> {
    use std::io::Write as _;
    let path = Path::new(TRACEFS).join("dynamic_events");
    let write = || File::options().append(true).open(&path)?.write_all(line.as_bytes());
    write().with_context(|| format!("write {line:?} to {}", path.display()))
}

/// Which calls are kept.
#[derive(Debug, Default)]
pub(super) struct Calls {
    under_way: HashMap<u32, Entry>,
    /// The last one that succeeded and was not kept.
    last: Option<(u64, UmountCall)>,
}

#[derive(Debug)]
struct Entry {
    at: u64,
    kept: bool,
    target: Target,
}

impl Calls {
    /// A call begins, by a program of a unit or by somebody else.
    pub(super) fn entered(&mut self, tid: u32, at: u64, by_unit: bool, target: Target) {
        let kept = by_unit && target != Target::Other;
        self.under_way.insert(tid, Entry { at, kept, target });
    }

    /// A call has ended: returns it, with its entry and what that said of its target, if it is kept.
    pub(super) fn returned(&mut self, mut call: UmountCall) -> Option<(u64, UmountCall)> {
        let unseen = Entry { at: call.returned, kept: false, target: Target::Unknown };
        let entry = self.under_way.remove(&call.pid).unwrap_or(unseen);
        call.target = entry.target;
        // What systemd does between fork and exec is in a namespace that it has just made, and unmounts nothing here, even
        // if it is under way at the moment when the watched path is unmounted.
        if is_before_exec(&call.comm) {
            return None;
        }
        let did_it = call.result == 0 && call.target == Target::Mount;
        if entry.kept || did_it || (is_busy(&call) && call.target != Target::Other) {
            if call.result == 0 {
                // An earlier one is not what unmounted.
                self.last = None;
            }
            return Some((entry.at, call));
        }
        if call.result == 0 {
            self.last = Some((entry.at, call));
        }
        None
    }

    /// Whether a call has begun and not ended.
    pub(super) fn is_any_under_way(&self) -> bool {
        !self.under_way.is_empty()
    }

    /// The watched path is no mount point any more: returns the call that did it if it has ended and was not
    /// kept yet. Those under way will be kept, unless one of them names the path or is the unit's own, and so is the one:
    /// fifty servers' helpers are in this call at once.
    pub(super) fn unmounted(&mut self) -> Option<(u64, UmountCall)> {
        let last = self.last.take();
        if self.under_way.is_empty() {
            return last;
        }
        if !self.under_way.values().any(|entry| entry.kept || entry.target == Target::Mount) {
            self.under_way.values_mut().for_each(|entry| entry.kept = true);
        }
        None
    }
}

/// Whether the call failed with EBUSY.
pub(super) fn is_busy(call: &UmountCall) -> bool {
    call.result == -i64::from(libc::EBUSY)
}

/// Whether a task is systemd's own, between fork and exec (`src/shared/exec-util.c`, `(name)` or `(sd-...)`).
pub(super) fn is_before_exec(comm: &str) -> bool {
    comm.starts_with('(')
}

fn take_lines(partial: &mut Vec<u8>, bytes: &[u8], lines: &mut Vec<TraceLine>) {
    partial.extend(bytes);
    while let Some(end) = partial.iter().position(|&byte| byte == b'\n') {
        lines.extend(parse_line(&partial[..end]));
        partial.drain(..=end);
    }
}

/// Reads one line of `trace_pipe`, `None` for one that is not ours
/// (Documentation/trace/ftrace.rst, "trace_pipe"; Documentation/trace/events.rst):
///
/// ```text
///           umount-9760    [001] .....  1077.679272: sys_umount(name: 0x5601b4a4c2e0, flags: 0)
///           umount-9760    [001] ...2.  1077.679272: umount_entry: (syscalls.sys_enter_umount) name="/m"
///           umount-9760    [001] .....  1077.679281: sys_umount -> 0xfffffffffffffff0
/// ```
///
/// The name may hold anything (dashes, spaces, brackets), so it is taken by its width.
fn parse_line(line: &[u8]) -> Option<TraceLine> {
    if line.starts_with(b"CPU:") {
        return Some(TraceLine::Lost(String::from_utf8_lossy(line).trim().to_owned()));
    }
    let (comm, rest) = line.split_at_checked(COMM_WIDTH)?;
    let comm = String::from_utf8_lossy(comm).trim_start().to_owned();
    let rest = String::from_utf8_lossy(rest.strip_prefix(b"-")?).into_owned();
    let (tid, rest) = rest.split_once(' ')?;
    let tid = tid.parse().ok()?;
    let (_processor, rest) = rest.split_once("] ")?;
    let (_flags, rest) = rest.split_once(' ')?;
    let (seconds, event) = rest.trim_start().split_once(": ")?;
    let at_us = microseconds(seconds)?;

    if event.starts_with("sys_umount(") {
        Some(TraceLine::Entered { tid, comm, at_us, path: None })
    } else if let Some(arguments) = event.strip_prefix("umount_entry: ") {
        // `name=(fault)` where it could not be read.
        let name = arguments.split_once("name=\"").and_then(|(_, name)| name.trim_end().strip_suffix('"'));
        Some(TraceLine::Entered { tid, comm, at_us, path: name.map(str::to_owned) })
    } else if let Some(result) = event.strip_prefix("sys_umount -> 0x") {
        let result = u64::from_str_radix(result.trim_end(), 16).ok()?.cast_signed();
        Some(TraceLine::Returned { tid, comm, at_us, result })
    } else {
        event
            .strip_prefix("tracing_mark_write: ")
            .filter(|text| text.trim_end() == END)
            .map(|_| TraceLine::End)
    }
}

fn microseconds(seconds: &str) -> Option<u64> {
    let (whole, fraction) = seconds.split_once('.')?;
    let fraction = Some(fraction).filter(|fraction| fraction.len() == 6)?;
    whole.parse::<u64>().ok()?.checked_mul(1_000_000)?.checked_add(fraction.parse().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_agent::recording::Role;

    fn entered(tid: u32, comm: &str, at_us: u64) -> Option<TraceLine> {
        Some(TraceLine::Entered { tid, comm: comm.to_owned(), at_us, path: None })
    }

    fn entered_at(path: &str) -> Option<TraceLine> {
        let (comm, path) = ("umount".to_owned(), Some(path.to_owned()));
        Some(TraceLine::Entered { tid: 129, comm, at_us: 2_076_125, path })
    }

    fn returned(tid: u32, comm: &str, at_us: u64, result: i64) -> Option<TraceLine> {
        Some(TraceLine::Returned { tid, comm: comm.to_owned(), at_us, result })
    }

    #[test]
    fn reads_lines() {
        let cases = [
            (
                "          umount-9760    [001] .....  1077.679272: sys_umount(name: 0x5601b4a4c2e0, flags: 0)",
                entered(9760, "umount", 1_077_679_272),
            ),
            (
                "          umount-9760    [001] .....  1077.679281: sys_umount -> 0xfffffffffffffff0",
                returned(9760, "umount", 1_077_679_281, -16),
            ),
            // Linux 7 shows the string, Linux 6.1 has four flags and no migrate-disable.
            (
                " left4me-overlay-1234567 [000] d...    12.000001: sys_umount(name: 0x7f \"/m: sys_umount -> 0x0\", flags: 8)",
                entered(1_234_567, "left4me-overlay", 12_000_001),
            ),
            (
                "  left4me-overla-1234567 [000] d... 12.000001: sys_umount -> 0x0",
                returned(1_234_567, "left4me-overla", 12_000_001, 0),
            ),
            (
                "   a b-1 [000] c-9763    [001] .....  1078.274771: sys_umount -> 0xfffffffffffffffe",
                returned(9763, "a b-1 [000] c", 1_078_274_771, -2),
            ),
            (
                "           <...>-9763    [001] .....     8.274771: sys_umount -> 0x0",
                returned(9763, "<...>", 8_274_771, 0),
            ),
            (
                "          umount-129     [000] ...2.     2.076125: umount_entry: (syscalls.sys_enter_umount) name=\"/mnt/a\"",
                entered_at("/mnt/a"),
            ),
            (
                "          umount-129     [000] ...2.     2.076125: umount_entry: (syscalls.sys_enter_umount) name=\"/a \" name=\"\"",
                entered_at("/a \" name=\""),
            ),
            (
                "          umount-129     [000] ...2.     2.076125: umount_entry: (syscalls.sys_enter_umount) name=(fault)",
                entered(129, "umount", 2_076_125),
            ),
            ("CPU:0 [LOST 12 EVENTS]", Some(TraceLine::Lost("CPU:0 [LOST 12 EVENTS]".to_owned()))),
            (
                "        vm-agent-77      [000] ...1.  1078.301011: tracing_mark_write: vm-agent: end of the recording",
                Some(TraceLine::End),
            ),
            ("        vm-agent-77      [000] ...1.  1078.301011: tracing_mark_write: something else", None),
            ("        vm-agent-77      [000] ...1.  1078.301011: sys_mount -> 0x0", None),
            ("", None),
        ];
        for (line, expected) in cases {
            assert_eq!(parse_line(line.as_bytes()), expected, "{line}");
        }
    }

    #[test]
    fn puts_cut_lines_together() {
        let text = b"          umount-9760    [001] .....  1077.679272: sys_umount(name: 0x1, flags: 0)\n";
        for at in 0..text.len() {
            let (mut partial, mut lines) = (Vec::new(), Vec::new());
            take_lines(&mut partial, &text[..at], &mut lines);
            take_lines(&mut partial, &text[at..], &mut lines);
            assert_eq!(lines.len(), 1, "cut at {at}");
        }
    }

    fn call(pid: u32, returned: u64, result: i64) -> UmountCall {
        UmountCall {
            pid,
            comm: "x".to_owned(),
            role: Role::Outside,
            returned,
            result,
            target: Target::Unknown,
        }
    }

    #[test]
    fn keeps_failed_ones_and_the_units_own() {
        let mut calls = Calls::default();
        calls.entered(1, 10, true, Target::Unknown);
        assert_eq!(calls.returned(call(1, 11, 0)), Some((10, call(1, 11, 0))));
        calls.entered(2, 12, false, Target::Unknown);
        assert_eq!(calls.returned(call(2, 13, 0)), None, "systemd sets up a namespace");
        assert!(is_before_exec("(me-overlay)") && !is_before_exec("left4me-overlay"));
        calls.entered(3, 14, false, Target::Unknown);
        assert_eq!(calls.returned(call(3, 15, -16)), Some((14, call(3, 15, -16))));
        calls.entered(4, 16, false, Target::Unknown);
        assert_eq!(calls.returned(call(4, 17, -22)), None);
        calls.entered(6, 16, false, Target::Unknown);
        let set_up = UmountCall { comm: "(srcds_run)".to_owned(), ..call(6, 17, -16) };
        assert_eq!(calls.returned(set_up), None, "systemd sets up a namespace");
        assert_eq!(
            calls.returned(call(5, 18, -16)),
            Some((18, call(5, 18, -16))),
            "began before the recording"
        );
    }

    #[test]
    fn keeps_the_one_that_unmounted() {
        let mut calls = Calls::default();
        calls.entered(1, 10, false, Target::Unknown);
        assert_eq!(calls.unmounted(), None);
        assert_eq!(
            calls.returned(call(1, 11, 0)),
            Some((10, call(1, 11, 0))),
            "noticed while it was under way"
        );

        calls.entered(2, 20, false, Target::Unknown);
        assert_eq!(calls.returned(call(2, 21, 0)), None);
        assert_eq!(calls.unmounted(), Some((20, call(2, 21, 0))), "noticed after it");
        assert_eq!(calls.unmounted(), None);
        calls.entered(4, 22, true, Target::Unknown);
        calls.entered(5, 23, false, Target::Unknown);
        assert_eq!(calls.unmounted(), None);
        assert_eq!(calls.returned(call(5, 24, 0)), None, "the helper of another one");
        assert_eq!(calls.returned(call(4, 25, 0)), Some((22, call(4, 25, 0))));
        calls.entered(3, 30, false, Target::Unknown);
        assert_eq!(calls.unmounted(), None);
        let set_up = UmountCall { comm: "(nsenter)".to_owned(), ..call(3, 31, 0) };
        assert_eq!(calls.returned(set_up), None, "another server's, under way at that moment");
    }

    #[test]
    fn calls_of_other_paths_are_not_the_mounts() {
        let mut calls = Calls::default();
        let mut one = |by_unit, target, result| {
            calls.entered(1, 10, by_unit, target);
            calls.returned(call(1, 11, result)).map(|(_, call)| call.target)
        };
        for (target, by_unit, result, kept) in [
            (Target::Other, true, 0, false),
            (Target::Other, true, -16, false),
            (Target::Other, false, -16, false),
            (Target::Unknown, true, 0, true),
            (Target::Unknown, false, -16, true),
            (Target::Unknown, false, 0, false),
            (Target::Copy, true, -16, true),
            (Target::Copy, true, 0, true),
            (Target::Copy, false, 0, false),
            (Target::Mount, false, 0, true),
            (Target::Mount, false, -22, false),
            (Target::Mount, true, -22, true),
        ] {
            let is = one(by_unit, target, result);
            assert_eq!(is, kept.then_some(target), "{target:?}, by the unit: {by_unit}, {result}");
        }
    }

    #[test]
    fn of_several_calls_the_one_that_names_the_mount_unmounted_it() {
        let mut calls = Calls::default();
        let with = |pid, target| UmountCall { target, ..call(pid, 20, 0) };
        // A person's, while a server's helper unmounts another one.
        calls.entered(1, 10, false, Target::Mount);
        calls.entered(2, 11, false, Target::Unknown);
        assert_eq!(calls.unmounted(), None);
        assert_eq!(calls.returned(call(2, 20, 0)), None);
        assert_eq!(calls.returned(call(1, 20, 0)), Some((10, with(1, Target::Mount))));
        // The call had returned, and was kept, when the change was read: one before it did not do it.
        calls.entered(3, 30, false, Target::Unknown);
        assert_eq!(calls.returned(call(3, 20, 0)), None);
        calls.entered(4, 31, true, Target::Mount);
        assert_eq!(calls.returned(call(4, 20, 0)), Some((31, with(4, Target::Mount))));
        assert_eq!(calls.unmounted(), None);
        // What is above it, lazily.
        calls.entered(5, 40, true, Target::Other);
        assert_eq!(calls.unmounted(), None);
        assert_eq!(calls.returned(call(5, 20, 0)), Some((40, with(5, Target::Other))));
    }
}
