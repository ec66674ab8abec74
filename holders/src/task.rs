//! What is worth knowing of a task that holds something: its name, its age, its unit, and what it was started for.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::path::DecInt;

use crate::cgroup;
use crate::printable::printable;
use crate::proc::{LINK_ROOM, number, open_proc, open_task, read_file, read_link, read_start};
use crate::stat::Stat;

/// What systemd started a process for. From its environment (systemd.exec(5), "Environment Variables Set or
/// Propagated by the Service Manager") and its cgroup; nobody is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Not a process of a unit, or it does not show.
    Unknown,
    /// `ExecStart=` or `ExecStartPre=`, which look the same from here.
    Start,
    /// `ExecStop=` or `ExecStopPost=`.
    Stop,
    /// Another Exec line than `ExecStart=`: `ExecStartPost=`, `ExecReload=` or one of those above.
    Control,
    /// Not started by systemd itself, but by one of the unit's processes.
    Child,
    /// It is ending, whatever it was started for: its memory is gone or going, and its environment with it. What it has
    /// open or stands in goes last.
    Ending,
}

/// Whose a holder is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Relation {
    /// The process that asks.
    Caller,
    /// Its parent, or a parent of that, below PID 1.
    Ancestor,
    /// Somebody else.
    Other,
}

/// What a task's own files under `/proc` say of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct About {
    pub(crate) comm: String,
    pub(crate) cgroup: String,
    pub(crate) unit: Option<String>,
}

/// How much is to be known of a task.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Detail {
    /// Its name, its unit and its namespace.
    #[default]
    Name,
    /// Also when its process started, and for what.
    All,
    /// The same but for what, which only its memory tells.
    AllButPhase,
}

/// What is known of a task of which something was found, all of it from the directory through which that was found: an id
/// may be another's a moment later.
#[derive(Debug, Clone)]
pub(crate) struct Known {
    pub(crate) about: About,
    /// See [`crate::report::Holder::start_time`].
    pub(crate) start_time: Option<u64>,
    pub(crate) phase: Phase,
    /// The inode number of its mount namespace.
    pub(crate) namespace: Option<u64>,
}

impl Phase {
    /// A few words; `None` if it is not known.
    #[must_use]
    pub fn word(self) -> Option<&'static str> {
        match self {
            Self::Unknown => None,
            Self::Start => Some("start command"),
            Self::Stop => Some("stop command"),
            Self::Control => Some("control command"),
            Self::Child => Some("child"),
            Self::Ending => Some("ending"),
        }
    }

    /// The same as part of a sentence.
    pub(crate) fn clause(self) -> Option<&'static str> {
        match self {
            Self::Ending => Some("which is ending"),
            other => other.word(),
        }
    }
}

impl Known {
    /// `leader` is the directory of the process, `task` that of the task. `None` if the process is gone, as far as that was
    /// asked.
    pub(crate) fn of(leader: BorrowedFd<'_>, task: BorrowedFd<'_>, pid: u32, detail: Detail) -> Option<Self> {
        let about = about_task(task);
        let (start_time, phase) = match detail {
            Detail::All => (Some(start_time_of(leader)?), phase(task, pid, &about)),
            Detail::AllButPhase => (Some(start_time_of(leader)?), Phase::Unknown),
            Detail::Name => (None, Phase::Unknown),
        };
        Some(Self { about, start_time, phase, namespace: crate::namespace::inode(task).ok() })
    }
}

/// Reads of the task whose directory this is; fields that can't be read are empty.
pub(crate) fn about_task(task: BorrowedFd<'_>) -> About {
    let mut text = Vec::new();
    let mut read = |name: &CStr| {
        let done = read_file(task, name, &mut text);
        done.map(|()| String::from_utf8_lossy(&text).into_owned()).unwrap_or_default()
    };
    let comm = printable(read(c"comm").trim_end_matches('\n'));
    let cgroup = cgroup::path_of(&read(c"cgroup")).unwrap_or_default().to_owned();
    let unit = cgroup::unit_of(&cgroup).map(printable);
    About { comm, cgroup, unit }
}

/// When a process started, in clock ticks since boot; `None` if it is gone.
pub(crate) fn start_time(pid: u32) -> Option<u64> {
    let proc_dir = open_proc().ok()?;
    let process = open_task(proc_dir.as_fd(), DecInt::new(pid).as_c_str()).ok()?;
    start_time_of(process.as_fd())
}

/// The same of the process whose directory this is.
pub(crate) fn start_time_of(process: BorrowedFd<'_>) -> Option<u64> {
    stat(process, |stat| stat.start_time())
}

/// The caller and its ancestors below PID 1, nearest first.
pub(crate) fn lineage(proc_dir: BorrowedFd<'_>) -> Vec<u32> {
    let mut room = LINK_ROOM;
    // As this `/proc` numbers it, which may be another pid namespace's.
    let own = read_link(proc_dir, c"self", &mut room).ok().and_then(number);
    let mut lineage = vec![own.unwrap_or_else(std::process::id)];
    while let Some(&last) = lineage.last()
        && let Ok(process) = open_task(proc_dir, DecInt::new(last).as_c_str())
        && let Some(parent) = stat(process.as_fd(), |stat| stat.parent())
        && parent > 1
        && !lineage.contains(&parent)
    {
        lineage.push(parent);
    }
    lineage
}

/// Whose the process is, to the caller.
pub(crate) fn relation(lineage: &[u32], pid: u32) -> Relation {
    match lineage.iter().position(|&own| own == pid) {
        Some(0) => Relation::Caller,
        Some(_) => Relation::Ancestor,
        None => Relation::Other,
    }
}

/// The most that is read of an environment, bytes: it may be a quarter of the stack's limit (execve(2)), and is its owner's
/// to choose.
const MOST_ENVIRONMENT: usize = 256 << 10;

/// What systemd started the process for that this task is of.
fn phase(task: BorrowedFd<'_>, pid: u32, about: &About) -> Phase {
    if about.unit.is_none() {
        return Phase::Unknown;
    }
    let mut text = Vec::new();
    let read = read_start(task, c"environ", &mut text, MOST_ENVIRONMENT);
    phase_from(pid, &about.cgroup, if read.is_ok() { &text } else { b"" })
}

/// `$SYSTEMD_EXEC_PID` (since systemd 248) says which process systemd itself started, and is inherited; stop
/// commands alone are told `$SERVICE_RESULT`, and control commands `$MAINPID` (systemd.exec(5)).
pub(crate) fn phase_from(pid: u32, cgroup: &str, environment: &[u8]) -> Phase {
    let mut exec_pid = None;
    let (mut is_stop, mut is_control) = (false, cgroup.ends_with("/.control"));
    for variable in environment.split(|&byte| byte == 0) {
        if let Some(number) = variable.strip_prefix(b"SYSTEMD_EXEC_PID=") {
            exec_pid = std::str::from_utf8(number).ok().and_then(|number| number.parse::<u32>().ok());
        } else if variable.starts_with(b"SERVICE_RESULT=") {
            is_stop = true;
        } else if variable.starts_with(b"MAINPID=") {
            is_control = true;
        }
    }
    match exec_pid {
        Some(started) if started != pid => Phase::Child,
        Some(_) if is_stop => Phase::Stop,
        Some(_) if is_control => Phase::Control,
        Some(_) => Phase::Start,
        None if is_control => Phase::Control,
        None => Phase::Unknown,
    }
}

fn stat<N>(task: BorrowedFd<'_>, field: impl Fn(Stat<'_>) -> Option<N>) -> Option<N> {
    let mut line = Vec::new();
    read_file(task, c"stat", &mut line).ok()?;
    field(Stat::parse(&line)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_tells_the_phase() {
        let unit = "/system.slice/a.service";
        let cases: [(&str, &[u8], Phase); 9] = [
            (unit, b"", Phase::Unknown),
            (unit, b"PATH=/bin\0INVOCATION_ID=1\0", Phase::Unknown),
            (unit, b"SYSTEMD_EXEC_PID=7\0", Phase::Start),
            (unit, b"SYSTEMD_EXEC_PID=7\0SERVICE_RESULT=success\0EXIT_CODE=exited\0", Phase::Stop),
            (unit, b"SYSTEMD_EXEC_PID=7\0MAINPID=5\0", Phase::Control),
            (unit, b"SYSTEMD_EXEC_PID=6\0SERVICE_RESULT=success\0", Phase::Child),
            (unit, b"SYSTEMD_EXEC_PID=x\0", Phase::Unknown),
            ("/system.slice/a.service/.control", b"", Phase::Control),
            ("/system.slice/a.service/.control", b"SYSTEMD_EXEC_PID=7\0SERVICE_RESULT=x\0", Phase::Stop),
        ];
        for (cgroup, environment, expected) in cases {
            assert_eq!(phase_from(7, cgroup, environment), expected, "{cgroup} {environment:?}");
        }
    }

    #[test]
    fn the_caller_leads_its_lineage() {
        let lineage = lineage(open_proc().unwrap().as_fd());
        assert_eq!(lineage[0], std::process::id());
        assert_eq!(lineage.get(1), Some(&std::os::unix::process::parent_id()).filter(|&&parent| parent > 1));
        assert_eq!(relation(&lineage, std::process::id()), Relation::Caller);
        assert_eq!(relation(&lineage, 1), Relation::Other);
    }
}
