//! What to do about a verdict.

use std::fmt::Write as _;

use super::{Verdict, joined};
use crate::cgroup;
use crate::printable::pasted;
use crate::propagation::Fate;
use crate::report::{Blocker, KernelHolder, KernelKind, Kind, Phase, Relation, Report, Stuck};

/// What can make umount(2) fail although nothing under `/proc` shows it, and how to find out.
pub const NOT_VISIBLE_HINTS: [&str; 8] = [
    "a descriptor in flight over a Unix socket (SCM_RIGHTS): `scm_fds` in /proc/PID/fdinfo/FD of the receiving \
     socket is not 0; end or restart the receiver",
    "a file registered with io_uring, which for some 50 ms outlives a killed process: `UserFiles` in \
     /proc/PID/fdinfo/FD of a ring; for a process that has just ended, unmount at the next event, not in a loop",
    "a thread with descriptors of its own on a kernel without kcmp(2), or a Unix socket on a kernel without unix_diag: \
     `ss -xap`; or one in a network namespace that no process is in any more",
    "events of fanotify that no listener has read: `anon_inode:[fanotify]` in /proc/PID/fd of a virus scanner or the like; \
     have it read them, or end it",
    "a probe by perf_event_open(2) on a program there: end perf, bpftrace or the agent that has set it",
    "a call under way whose path leads there by a link, or a call of the kernel's own: `ps -eLo pid,tid,stat,wchan:32,args` \
     shows which task waits (state D) and where",
    "a process that has just ended or was just started: scan again",
    "the kernel itself: an NFS export of another network namespace (`exportfs -v` there), an nbd, md or device-mapper device \
     over a file there (`lsblk`)",
];

impl Report {
    /// What to do about it: [`Verdict::advice`], and what takes more to know than the verdict has.
    #[must_use]
    pub fn advice(&self) -> Vec<String> {
        let verdict = self.verdict();
        let mut advice = verdict.advice();
        // Removing the mount point takes a copy at that place of another namespace along, if nobody refers to it
        // (`fs/namespace.c:__detach_mounts`); it fails while something is mounted there in this one.
        let (Verdict::Outlives { processes, kernel, .. } | Verdict::AliveElsewhere { processes, kernel, .. }) =
            verdict.of_what_was_seen()
        else {
            return advice;
        };
        let mut surviving =
            self.copies.iter().filter(|copy| copy.fate != Some(Fate::UnmountedAlong)).peekable();
        let is_detached = surviving.peek().is_some()
            && surviving.all(|copy| copy.namespace != self.namespace && copy.mount.mount_point == self.path);
        if is_detached && processes.is_empty() && kernel.is_empty() && self.stacked == 0 {
            let before = if self.mount.is_some() { "after the unmount, " } else { "" };
            advice.push(format!("{before}`rmdir {}` detaches these copies", pasted(&self.path)));
        }
        advice
    }
}

impl Verdict {
    /// What to do about it, one sentence a line; empty if there is nothing to do.
    #[must_use]
    pub fn advice(&self) -> Vec<String> {
        match self {
            Self::HeldByYourself { blockers } => blockers.iter().map(advice_to_yourself).collect(),
            Self::HeldByProcess { blockers } => blockers
                .iter()
                .map(|blocker| match blocker.relation {
                    Relation::Other => advice_about(blocker),
                    Relation::Caller | Relation::Ancestor => advice_to_yourself(blocker),
                })
                .collect(),
            Self::HeldByKernel { holders } => holders.iter().map(advice_about_kernel).collect(),
            Self::Submounts { .. } => vec!["unmount these first, the innermost first".to_owned()],
            Self::NotVisible { .. } => NOT_VISIBLE_HINTS.iter().map(|&hint| hint.to_owned()).collect(),
            Self::NotAllowed { otherwise, .. } | Self::PartialView { otherwise, .. } => otherwise.advice(),
            Self::Stuck { processes, otherwise } => {
                let advice = processes.iter().map(advice_about_stuck);
                advice.chain(otherwise.advice()).collect()
            }
            Self::CutShort { otherwise, .. } => {
                let mut advice = vec!["scan again with more time, by the option --deadline".to_owned()];
                advice.extend(otherwise.advice());
                advice
            }
            Self::OnlyListed { .. } => vec![
                "a process in a mount namespace that has a copy does not refer to the mount; leave these processes \
                 alone"
                    .to_owned(),
            ],
            // What is left of a file system matters only if its layers are mounted again.
            Self::Outlives { copies, .. } | Self::AliveElsewhere { copies, .. }
                if copies.iter().any(|copy| copy.mount.fstype == "overlay") =>
            {
                vec!["until these are gone, a new mount of the same upper layer finds it in use".to_owned()]
            }
            Self::Outlives { .. } | Self::AliveElsewhere { .. } => Vec::new(),
            Self::NotMounted { .. } | Self::Free => Vec::new(),
        }
    }
}

fn advice_to_yourself(blocker: &Blocker) -> String {
    let who = match blocker.relation {
        Relation::Caller => "this process",
        Relation::Ancestor | Relation::Other => "the process that started this one",
    };
    format!("{} ({}) is {who}: {}", blocker.pid, blocker.comm, let_go(&blocker.kinds))
}

/// What a program does before it, or a child of its, unmounts.
fn let_go(kinds: &[Kind]) -> String {
    let first = kinds.iter().map(|kind| match kind {
        Kind::Cwd => "change its working directory first (chdir, or no WorkingDirectory= inside the mount)",
        Kind::Root => "leave that root directory first",
        Kind::Call { .. } => "end the call that waits there first",
        Kind::Exe => "run a program from elsewhere",
        Kind::File { .. } | Kind::Mapping | Kind::Socket { .. } | Kind::RegisteredFile { .. } => {
            "close what it has open there first"
        }
    });
    first.collect::<Vec<_>>().join("; ")
}

/// The command that stops a unit. No unit's name is an option: a user's may begin with a hyphen.
fn stop(unit: &str) -> String {
    let end_of_options = if unit.starts_with('-') { "-- " } else { "" };
    format!("stop {end_of_options}{}", pasted(unit))
}

fn advice_about(blocker: &Blocker) -> String {
    let mut text = format!("{} ({}): ", blocker.pid, blocker.comm);
    // Any coreutils has it; util-linux' waitpid(1) is missing on Debian 12.
    let its_end = format!("its end, by `tail --pid={} -f /dev/null`", blocker.pid);
    // Writing to a String does not fail; the compiler can't know that.
    let written = match (blocker.unit.as_deref(), blocker.phase) {
        (_, Phase::Ending) => write!(text, "it is ending already: wait for {its_end}"),
        (Some(unit), Phase::Stop | Phase::Control) => {
            write!(text, "a command of {unit} itself: {}, or wait for {its_end}", let_go(&blocker.kinds))
        }
        (Some(units), _) if blocker.pid == 1 && units.ends_with(".socket") => write!(
            text,
            "systemd listens there for it: `systemctl {}`, which leaves its service as it is",
            stop(units)
        ),
        (Some("init.scope"), _) if blocker.comm == "systemd" => write!(
            text,
            "systemd has it for a unit, stop that one: `systemctl list-sockets --all` shows the sockets and FIFOs that it \
             listens on and their .socket units; other files are in a unit's descriptor store (`systemd-analyze fdstore UNIT`)"
        ),
        // A login (pam_systemd(8)): a stop of its scope ends all that somebody does there.
        (Some(unit), _) if unit.starts_with("session-") && unit.ends_with(".scope") => write!(
            text,
            "of a login: have whoever it is leave, or end it: `kill -HUP {}`; or wait for {its_end}",
            blocker.pid
        ),
        (Some("init.scope"), _) => write!(text, "it is the first process: do not end it, have it let go"),
        (Some(unit), _) => match cgroup::user_of(&blocker.cgroup) {
            Some(user) => write!(
                text,
                "stop {unit}, which is a user's: `systemctl --user --machine={user}@.host {}`; or wait for {its_end}",
                stop(unit)
            ),
            None => write!(text, "stop its unit, `systemctl {}`, or wait for {its_end}", stop(unit)),
        },
        (None, _) => write!(text, "end it, or wait for {its_end}"),
    };
    debug_assert!(written.is_ok());
    text
}

fn advice_about_stuck(stuck: &Stuck) -> String {
    let Stuck { pid, comm, .. } = stuck;
    format!(
        "{pid} ({comm}) waits in the kernel, perhaps for the server of a file system (FUSE, NFS) that does not answer: \
         `cat /proc/{pid}/task/*/wchan` shows where; have the server answer or end, then ask again. Do not run ps, top or \
         pgrep -f meanwhile, they hang with it"
    )
}

fn advice_about_kernel(holder: &KernelHolder) -> String {
    match &holder.kind {
        KernelKind::Loop(name) => {
            let mut steps = Vec::new();
            if !holder.mounted_at.is_empty() {
                steps.push(format!("unmount {}", joined(holder.mounted_at.iter().map(pasted))));
            }
            steps.extend(holder.above.iter().map(|above| match above.starts_with("md") {
                true => format!("mdadm --stop {}", pasted(format!("/dev/{above}"))),
                false => format!("dmsetup remove {}", pasted(above)),
            }));
            steps.push(format!("losetup -d /dev/{name}"));
            steps.join(", then ")
        }
        KernelKind::Swap => format!("swapoff {}", pasted(&holder.path)),
        KernelKind::BinfmtMisc(name) => {
            format!("echo -1 > {}", pasted(format!("/proc/sys/fs/binfmt_misc/{name}")))
        }
        KernelKind::Uprobe(name) => {
            format!("echo {} >> /sys/kernel/tracing/uprobe_events", pasted(format!("-:{name}")))
        }
        KernelKind::NfsExport(client) => {
            format!("exportfs -u {}, then exportfs -f", pasted(format!("{client}:{}", holder.path.display())))
        }
        KernelKind::LioFile(name) => format!("targetcli /backstores/fileio delete {}", pasted(name)),
        KernelKind::OverlayLayer(at) => format!("unmount {}", pasted(at)),
    }
}
