//! The verdict of a report: one typed answer, which names only holders that block the unmount.

pub(crate) mod advice;

use std::path::PathBuf;

use crate::mountinfo::Device;
use crate::printable::shown;
use crate::propagation::{Fate, Reason};
use crate::report::{
    Asked, Blocker, Carries, CutShort, Effect, KernelHolder, MountCopy, NamespaceUse, PartialView, Relation,
    Report, Stuck, Suspect,
};

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The caller or its ancestors hold it, and no other process does.
    HeldByYourself {
        /// The caller, its ancestors, or both.
        blockers: Vec<Blocker>,
    },
    /// Processes hold it; the caller or its ancestors may be among them.
    HeldByProcess {
        /// Which, by process id.
        blockers: Vec<Blocker>,
    },
    /// No process holds it, but the kernel does: a loop device, a swap file.
    HeldByKernel {
        /// What.
        holders: Vec<KernelHolder>,
    },
    /// Nothing refers to it, but other mounts lie on it, which is enough for EBUSY.
    Submounts {
        /// Their mount points, the outermost first.
        mounts: Vec<PathBuf>,
    },
    /// An unmount was refused, and nothing that `/proc` shows is the reason.
    NotVisible {
        /// What may carry the reason.
        suspects: Vec<Suspect>,
    },
    /// No inspected process blocks it, but some processes could not be inspected.
    NotAllowed {
        /// How many processes could not be inspected.
        processes: usize,
        /// The verdict if these processes have nothing to do with the mount.
        otherwise: Box<Self>,
    },
    /// No inspected process blocks it, but some are stuck in the kernel so that not all of them could be inspected.
    Stuck {
        /// Which.
        processes: Vec<Stuck>,
        /// The verdict if the rest of them has nothing to do with the mount.
        otherwise: Box<Self>,
    },
    /// No visible process blocks it, but this `/proc` does not list all processes.
    PartialView {
        /// Why.
        view: PartialView,
        /// The verdict if the other processes have nothing to do with the mount.
        otherwise: Box<Self>,
    },
    /// The deadline passed before the end of the scan, and no process inspected by then blocks it.
    CutShort {
        /// How far it came.
        cut: CutShort,
        /// The verdict if the others have nothing to do with the mount.
        otherwise: Box<Self>,
    },
    /// Nothing blocks the unmount. Other namespaces have copies, which go with it.
    OnlyListed {
        /// Which namespaces.
        namespaces: Vec<NamespaceUse>,
    },
    /// Nothing blocks the unmount, but the file system will live on after it: a mount that the unmount does not
    /// reach, or a reference to one.
    Outlives {
        /// The mounts that stay.
        copies: Vec<MountCopy>,
        /// The processes that refer to one of them, or to one that was detached.
        processes: Vec<u32>,
        /// What else refers to it.
        kernel: Vec<KernelHolder>,
    },
    /// The path is no mount point, but the file system that was there is alive.
    AliveElsewhere {
        /// Which file systems.
        devices: Vec<Device>,
        /// Where they are mounted.
        copies: Vec<MountCopy>,
        /// The processes that refer to them.
        processes: Vec<u32>,
        /// What else refers to them.
        kernel: Vec<KernelHolder>,
    },
    /// The path is no mount point, and nothing of an earlier mount was found.
    NotMounted {
        /// The file systems that were asked about ([`crate::Query::of_device`]), of which nothing is left. Empty:
        /// it is not known what was mounted there, so something may be left that has no path.
        devices: Vec<Device>,
    },
    /// It is mounted once, and nobody refers to it.
    Free,
}

impl Report {
    /// The verdict on this report.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        Verdict::of(self)
    }

    /// The verdict in a line, as an answer to what was asked.
    #[must_use]
    pub fn line(&self) -> String {
        let verdict = self.verdict();
        let line = verdict.line();
        let (no_mount, alive) = match self.asked {
            Asked::MountPoint => return line,
            Asked::Layer => ("no overlay that can be seen has this layer", "in use as a layer of an overlay"),
            Asked::BlockDevice => ("nothing that can be seen keeps it", "in use"),
        };
        match verdict.of_what_was_seen() {
            seen @ Verdict::NotMounted { .. } => line.replace(&seen.line(), no_mount),
            seen @ Verdict::AliveElsewhere { copies, processes, kernel, .. } => {
                line.replace(&seen.line(), &format!("{alive}: {}", self::alive(copies, processes, kernel)))
            }
            _ => line,
        }
    }
}

impl Verdict {
    fn of(report: &Report) -> Self {
        let seen = Self::of_what_is_seen(report);
        let processes = report.unseen.processes;
        let is_of_all = matches!(
            seen,
            Self::NotVisible { .. }
                | Self::OnlyListed { .. }
                | Self::Outlives { .. }
                | Self::NotMounted { .. }
                | Self::Free
        );
        let stuck = &report.unseen.stuck;
        let seen = match seen {
            seen if is_of_all && processes > 0 => Self::NotAllowed { processes, otherwise: Box::new(seen) },
            seen => seen,
        };
        let seen = match seen {
            seen if is_of_all && !stuck.is_empty() => {
                Self::Stuck { processes: stuck.clone(), otherwise: Box::new(seen) }
            }
            seen => seen,
        };
        let seen = match report.unseen.view {
            Some(view) if seen.blocks_umount() != Some(true) => {
                Self::PartialView { view, otherwise: Box::new(seen) }
            }
            _ => seen,
        };
        match (report.unseen.cut_short, &seen) {
            // A blocker that was found stays one, whatever the rest of the scan would have found.
            (_, Self::HeldByProcess { .. } | Self::HeldByKernel { .. } | Self::Submounts { .. })
            | (None, _) => seen,
            (Some(cut), _) => Self::CutShort { cut, otherwise: Box::new(seen) },
        }
    }

    /// The verdict on the processes that were inspected.
    #[must_use]
    pub fn of_what_was_seen(&self) -> &Self {
        match self {
            Self::NotAllowed { otherwise, .. }
            | Self::Stuck { otherwise, .. }
            | Self::PartialView { otherwise, .. }
            | Self::CutShort { otherwise, .. } => otherwise.of_what_was_seen(),
            seen => seen,
        }
    }

    fn of_what_is_seen(report: &Report) -> Self {
        if report.mount.is_none() {
            let processes = processes_with(report, Effect::KeepsSuperblock);
            let kernel = kernel_with(report, Effect::KeepsSuperblock);
            return if report.copies.is_empty() && processes.is_empty() && kernel.is_empty() {
                Self::NotMounted { devices: report.devices.clone() }
            } else {
                let (devices, copies) = (report.devices.clone(), report.copies.clone());
                Self::AliveElsewhere { devices, copies, processes, kernel }
            };
        }
        let blockers = report.blockers();
        if !blockers.is_empty() {
            return if blockers.iter().all(|blocker| blocker.relation != Relation::Other) {
                Self::HeldByYourself { blockers }
            } else {
                Self::HeldByProcess { blockers }
            };
        }
        let holders = kernel_with(report, Effect::BlocksUmount);
        if !holders.is_empty() {
            return Self::HeldByKernel { holders };
        }
        if !report.submounts.is_empty() {
            let mounts = report.submounts.iter().map(|mount| mount.mount_point.clone()).collect();
            return Self::Submounts { mounts };
        }
        if report.refused {
            return Self::NotVisible { suspects: report.suspects.clone() };
        }
        let surviving = report.copies.iter().filter(|copy| matches!(copy.fate, Some(Fate::Survives(_))));
        let copies: Vec<_> = surviving.cloned().collect();
        let processes = processes_with(report, Effect::KeepsSuperblock);
        let kernel = kernel_with(report, Effect::KeepsSuperblock);
        if !copies.is_empty() || !processes.is_empty() || !kernel.is_empty() {
            return Self::Outlives { copies, processes, kernel };
        }
        if report.copies.is_empty() {
            Self::Free
        } else {
            Self::OnlyListed { namespaces: report.namespaces.clone() }
        }
    }

    /// Whether umount(2) fails with EBUSY now; `None` if that is not known.
    #[must_use]
    pub fn blocks_umount(&self) -> Option<bool> {
        match self {
            Self::HeldByYourself { .. }
            | Self::HeldByProcess { .. }
            | Self::HeldByKernel { .. }
            | Self::Submounts { .. }
            | Self::NotVisible { .. } => Some(true),
            Self::NotAllowed { otherwise, .. }
            | Self::Stuck { otherwise, .. }
            | Self::PartialView { otherwise, .. }
            | Self::CutShort { otherwise, .. } => otherwise.blocks_umount().filter(|&blocks| blocks),
            Self::OnlyListed { .. }
            | Self::Outlives { .. }
            | Self::AliveElsewhere { .. }
            | Self::NotMounted { .. }
            | Self::Free => Some(false),
        }
    }

    /// A word for scripts, the same in JSON.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::HeldByYourself { .. } => "held-by-yourself",
            Self::HeldByProcess { .. } => "held-by-process",
            Self::HeldByKernel { .. } => "held-by-kernel",
            Self::Submounts { .. } => "submounts",
            Self::NotVisible { .. } => "not-visible",
            Self::NotAllowed { .. } => "not-allowed",
            Self::Stuck { .. } => "stuck",
            Self::PartialView { .. } => "partial-view",
            Self::CutShort { .. } => "cut-short",
            Self::OnlyListed { .. } => "only-listed",
            Self::Outlives { .. } => "outlives",
            Self::AliveElsewhere { .. } => "alive-elsewhere",
            Self::NotMounted { .. } => "not-mounted",
            Self::Free => "free",
        }
    }

    /// One line for a person: a lower-case fragment with the finding; [`Self::advice`] says what to do.
    #[must_use]
    pub fn line(&self) -> String {
        match self {
            Self::HeldByYourself { blockers } => {
                format!("held by yourself: {}", joined(blockers.iter().map(with_relation)))
            }
            Self::HeldByProcess { blockers } => {
                format!("held by {}", joined(blockers.iter().map(with_relation)))
            }
            Self::HeldByKernel { holders } => format!(
                "held by {}",
                joined(holders.iter().map(|held| format!("{} on {}", held.kind, shown(&held.path))))
            ),
            Self::Submounts { mounts } => format!(
                "nothing refers to it, but {} on it: {}",
                if mounts.len() == 1 { "a mount lies" } else { "mounts lie" },
                joined(mounts.iter().map(|mount| shown(mount)))
            ),
            Self::NotVisible { suspects } if suspects.is_empty() => {
                "held by something that /proc does not show".to_owned()
            }
            Self::NotVisible { suspects } => format!(
                "held by something that /proc does not show, perhaps {}",
                joined(suspects.iter().map(ToString::to_string))
            ),
            Self::NotAllowed { processes, otherwise } => format!(
                "{}, but {} could not be inspected (run as root, outside any container)",
                otherwise.line_so_far(),
                counted(*processes, "process", "processes")
            ),
            Self::Stuck { processes, otherwise } => format!(
                "{}, but not all could be inspected: {}",
                otherwise.line_so_far(),
                joined(processes.iter().map(ToString::to_string))
            ),
            Self::PartialView { view, otherwise } => {
                format!("{view}; {}", otherwise.line_so_far())
            }
            Self::CutShort { cut, otherwise } => format!("{cut}; {}", otherwise.line_so_far()),
            Self::OnlyListed { namespaces } => format!(
                "nothing blocks an unmount; {} listed with a copy, which is unmounted too",
                counted(namespaces.len(), "other mount namespace is", "other mount namespaces are")
            ),
            Self::Outlives { copies, processes, kernel } => {
                format!(
                    "nothing blocks an unmount, but the file system outlives it: {}",
                    alive(copies, processes, kernel)
                )
            }
            Self::AliveElsewhere { devices, copies, processes, kernel } => format!(
                "not mounted here, but file system {} is alive: {}",
                joined(devices.iter().map(ToString::to_string)),
                alive(copies, processes, kernel)
            ),
            Self::NotMounted { devices } if devices.is_empty() => "not mounted".to_owned(),
            Self::NotMounted { devices } => format!(
                "not mounted, and nothing is left of file system {}",
                joined(devices.iter().map(ToString::to_string))
            ),
            Self::Free => "nothing blocks an unmount".to_owned(),
        }
    }

    /// The line of an incomplete scan. It claims nothing about processes that were not inspected.
    fn line_so_far(&self) -> String {
        match self {
            Self::Free | Self::OnlyListed { .. } => "no inspected process blocks the unmount".to_owned(),
            Self::Outlives { copies, processes, kernel } => format!(
                "no inspected process blocks the unmount, and the file system outlives it: {}",
                alive(copies, processes, kernel)
            ),
            Self::NotMounted { .. } => "not mounted, and no inspected process refers to it".to_owned(),
            other => other.line(),
        }
    }
}

fn processes_with(report: &Report, effect: Effect) -> Vec<u32> {
    let holders = report.holders.iter();
    let mut processes: Vec<_> = holders
        .filter(|holder| holder.references.iter().any(|reference| reference.effect == effect))
        .map(|holder| holder.pid)
        .collect();
    processes.dedup();
    processes
}

fn kernel_with(report: &Report, effect: Effect) -> Vec<KernelHolder> {
    report.kernel_holders.iter().filter(|held| held.effect == effect).cloned().collect()
}

fn with_relation(blocker: &Blocker) -> String {
    match blocker.relation {
        Relation::Other => blocker.to_string(),
        Relation::Caller => format!("{blocker} (this process)"),
        Relation::Ancestor => format!("{blocker} (started this process)"),
    }
}

fn alive(copies: &[MountCopy], processes: &[u32], kernel: &[KernelHolder]) -> String {
    let mut parts: Vec<String> = copies
        .iter()
        .map(|copy| {
            let why = match copy.fate {
                Some(Fate::Survives(Reason::NotPropagated)) => "private copy",
                Some(Fate::Survives(Reason::Elsewhere)) => "mount",
                Some(Fate::Survives(Reason::HasSubmount)) => "copy with a mount on it",
                _ => "mount",
            };
            format!("{why} at {} in {}", shown(&copy.mount.mount_point), copy.namespace)
        })
        .collect();
    match processes {
        [] => {}
        [pid] => parts.push(format!("used by process {pid}")),
        pids => parts.push(format!("used by processes {}", joined(pids.iter().map(u32::to_string)))),
    }
    parts.extend(kernel.iter().map(|held| format!("{} on {}", held.kind, shown(&held.path))));
    joined(parts.into_iter())
}

fn joined(parts: impl Iterator<Item = String>) -> String {
    parts.collect::<Vec<_>>().join("; ")
}

fn counted(count: usize, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}

impl std::fmt::Display for Suspect {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { pid, comm, fd, carries } = self;
        match carries {
            Carries::InFlight(count) => write!(f, "{count} descriptors in flight to socket")?,
            Carries::Registered(count) => write!(f, "{count} files registered with io_uring")?,
            Carries::Events => write!(f, "unread events of fanotify group")?,
            Carries::Rest => return write!(f, "{pid} ({comm}), which is ending"),
        }
        if let Some(fd) = fd {
            write!(f, " {fd}")?;
        }
        write!(f, " of {pid} ({comm})")
    }
}

#[cfg(test)]
mod tests;
