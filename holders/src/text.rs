//! A report as text for a person: the verdict first, then the mount, who refers to it, its copies, and what could
//! not be seen.

use std::fmt;

use crate::printable::{printable, shown};
use crate::propagation::{Fate, Reason};
use crate::report::{Blocker, Effect, Holder, MountCopy, NamespaceUse, Reference, Report};
use crate::verdict::Verdict;

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: {}", shown(&self.path), self.line())?;
        for line in self.told() {
            writeln!(f, "  - {line}")?;
        }
        match (&self.mount, &self.lies_on) {
            (Some(mount), _) => writeln!(
                f,
                "mount {} ({}, device {}) in {}",
                mount.id,
                printable(&mount.fstype),
                mount.device,
                self.namespace
            )?,
            (None, Some(mount)) => writeln!(
                f,
                "it lies on the mount at {} ({}, device {}) in {}",
                shown(&mount.mount_point),
                printable(&mount.fstype),
                mount.device,
                self.namespace
            )?,
            (None, None) => {}
        }
        if self.stacked > 0 {
            writeln!(f, "stacked below it at the same path: {} (unmount each)", self.stacked)?;
        }
        // Everything with `#`.
        let all = f.alternate();
        // Where it is known who blocks, what only keeps the file system alive is for later.
        let verdict = self.verdict();
        let is_held = !blockers(&verdict).is_empty();
        let matters = |reference: &&Reference| match reference.effect {
            Effect::Harmless => all,
            Effect::KeepsSuperblock => all || !is_held,
            _ => true,
        };
        let mut others = 0;
        for holder in &self.holders {
            let references: Vec<_> = holder.references.iter().filter(matters).collect();
            match references.is_empty() {
                true => others += 1,
                false => write_holder(f, holder, &references)?,
            }
        }
        if others > 0 {
            let verb = if others == 1 { "does" } else { "do" };
            writeln!(
                f,
                "{others} more on another mount, which {verb} not block the unmount: `holders --all`"
            )?;
        }
        for held in &self.kernel_holders {
            writeln!(f, "{}: {}, {}", held.kind, shown(&held.path), held.effect.word())?;
        }
        for mount in &self.submounts {
            writeln!(f, "submount {} ({})", shown(&mount.mount_point), printable(&mount.fstype))?;
        }
        let goes_along = |copy: &&MountCopy| copy.fate == Some(Fate::UnmountedAlong) && !all;
        let (along, stay): (Vec<&MountCopy>, Vec<&MountCopy>) = self.copies.iter().partition(goes_along);
        for copy in &stay {
            write_copy(f, copy)?;
        }
        let is_shown = |inode| all || stay.iter().any(|copy| copy.namespace.inode == inode);
        for namespace in &self.namespaces {
            if is_shown(namespace.namespace.inode)
                || !along.iter().any(|copy| copy.namespace == namespace.namespace)
            {
                write_namespace(f, namespace)?;
            }
        }
        if !along.is_empty() {
            writeln!(
                f,
                "{} more copies in other namespaces, which go with an unmount: `holders --all`",
                along.len()
            )?;
        }
        let unseen = &self.unseen;
        if let Some(view) = unseen.view {
            writeln!(f, "not all is seen: {view}")?;
        }
        if unseen.processes > 0 {
            writeln!(
                f,
                "not seen: {} of {} processes (run as root: needs CAP_SYS_PTRACE)",
                unseen.processes, self.processes
            )?;
        }
        if unseen.processes > 0 || unseen.view.is_some() {
            writeln!(f, "to see all: `{}` as root on the host, outside any container", self.command())?;
        }
        if unseen.bound_sockets {
            writeln!(f, "not seen: sockets that are bound to a file (needs unix_diag in the kernel)")?;
        }
        if unseen.networks > 0 {
            writeln!(f, "not seen: sockets that are bound in {} other network namespaces", unseen.networks)?;
        }
        for stuck in &unseen.stuck {
            writeln!(f, "not seen: of {stuck}")?;
        }
        if let Some(cut) = unseen.cut_short {
            writeln!(f, "not seen: {cut}")?;
        }
        if unseen.references > 0 {
            writeln!(f, "not listed: {} more references of the same kinds and processes", unseen.references)?;
        }
        for namespace in &unseen.namespaces {
            writeln!(f, "not seen: the mounts of {namespace}, which has no process that could be inspected")?;
        }
        if !unseen.namespace_list {
            writeln!(f, "not seen: namespaces without a process or descriptor (needs Linux 6.12 and root)")?;
        }
        Ok(())
    }
}

impl Report {
    /// What to do, a line each ([`Report::advice`]), with the blockers named as a person wants to be told of them.
    #[must_use]
    pub fn told(&self) -> Vec<String> {
        let (verdict, mut lines) = (self.verdict(), self.advice());
        let blockers = blockers(&verdict);
        let of_all = lines.len().saturating_sub(blockers.len());
        for (line, blocker) in lines.iter_mut().skip(of_all).zip(blockers) {
            let named = line
                .strip_prefix(&*format!("{} ({})", blocker.pid, blocker.comm))
                .and_then(|rest| Some(format!("{}{rest}", self.named(blocker)?)));
            if let Some(named) = named {
                *line = named;
            }
        }
        lines
    }

    /// `scratch-indexer.service: sleep 181 (working directory), pid 451 of root for 3 min`; `None` if too little is known.
    fn named(&self, blocker: &Blocker) -> Option<String> {
        let holders = self.holders.iter().filter(|holder| holder.pid == blocker.pid);
        let person = holders.filter_map(|holder| holder.person.as_ref()).next()?;
        let kinds: Vec<_> = blocker.kinds.iter().map(ToString::to_string).collect();
        Some(person.named(blocker.unit.as_deref(), &kinds, blocker.pid))
    }
}

fn blockers(verdict: &Verdict) -> &[Blocker] {
    match verdict.of_what_was_seen() {
        Verdict::HeldByProcess { blockers } | Verdict::HeldByYourself { blockers } => blockers,
        _ => &[],
    }
}

fn write_holder(f: &mut fmt::Formatter<'_>, holder: &Holder, references: &[&Reference]) -> fmt::Result {
    write!(f, "process {}", holder.pid)?;
    if holder.tid != holder.pid {
        write!(f, " thread {}", holder.tid)?;
    }
    write!(f, " ({})", holder.comm)?;
    if let Some(unit) = &holder.unit {
        write!(f, " of {unit}")?;
    }
    if let Some(phase) = holder.phase.clause() {
        write!(f, ", {phase}")?;
    }
    if let Some(namespace) = holder.namespace {
        write!(f, ", in {namespace}")?;
    }
    writeln!(f)?;
    for reference in references {
        write!(f, "  {} {}", reference.kind, shown(&reference.path))?;
        match (reference.mount_id, reference.mount_namespace) {
            (Some(id), Some(namespace)) if holder.namespace != Some(namespace) => {
                write!(f, " on mount {id} in {namespace}")?;
            }
            (Some(id), None) => write!(f, " on mount {id}, which is in no namespace")?,
            (Some(id), Some(_)) => write!(f, " on mount {id}")?,
            (None, _) => {}
        }
        writeln!(f, ": {}", reference.effect.word())?;
    }
    Ok(())
}

fn write_copy(f: &mut fmt::Formatter<'_>, copy: &MountCopy) -> fmt::Result {
    let fate = match copy.fate {
        Some(Fate::UnmountedAlong) => "goes with an unmount, blocks nothing by itself",
        Some(Fate::Survives(Reason::NotPropagated)) => "private, an unmount does not reach it",
        Some(Fate::Survives(Reason::Elsewhere)) => "bound or moved, an unmount does not reach it",
        Some(Fate::Survives(Reason::HasSubmount)) => "has a mount on it, so an unmount leaves it",
        Some(Fate::Target) | None => "alive",
    };
    let (mount, namespace) = (&copy.mount, copy.namespace);
    writeln!(f, "copy {} at {} in {namespace}: {fate}", mount.id, shown(&mount.mount_point))
}

fn write_namespace(f: &mut fmt::Formatter<'_>, used: &NamespaceUse) -> fmt::Result {
    let processes = if used.processes == 1 { "process" } else { "processes" };
    write!(f, "namespace {}: {} {processes}", used.namespace, used.processes)?;
    if let Some(member) = &used.member {
        write!(f, ", as {} ({})", member.pid, member.comm)?;
        if let Some(unit) = &member.unit {
            write!(f, " of {unit}")?;
        }
    }
    for (pid, fd) in &used.files {
        write!(f, "; kept by descriptor {fd} of {pid}")?;
    }
    for bind in &used.binds {
        write!(f, "; bound at {}", shown(bind))?;
    }
    writeln!(f)
}

#[cfg(test)]
mod tests {
    use crate::propagation::Fate;
    use crate::report::samples::*;
    use crate::report::{CutShort, Effect, Holder, PartialView, Phase, Relation, Report, Unseen};

    #[test]
    fn a_report_as_a_person_sees_it() {
        let report = Report {
            holders: vec![
                holder(35259, Relation::Other, Effect::BlocksUmount),
                holder(35260, Relation::Other, Effect::KeepsSuperblock),
                holder(35262, Relation::Other, Effect::Harmless),
                Holder { phase: Phase::Ending, ..holder(35261, Relation::Other, Effect::BlocksUmount) },
            ],
            kernel_holders: vec![loop_device(Effect::BlocksUmount)],
            submounts: vec![mount("90 61 0:50 / /srv/merged/sub rw - tmpfs t rw")],
            copies: vec![copy(Some(Fate::UnmountedAlong)), private_copy()],
            namespaces: vec![unit_namespace()],
            stacked: 1,
            unseen: Unseen {
                view: Some(PartialView::PidNamespace),
                processes: 2,
                namespaces: vec![UNIT],
                namespace_list: false,
                bound_sockets: true,
                networks: 2,
                stuck: vec![stuck(false)],
                cut_short: Some(CutShort { processes: 90, left: 7 }),
                references: 936,
            },
            ..mounted()
        };
        insta::assert_snapshot!(report.to_string());
        insta::assert_snapshot!("a_report_with_all", format!("{report:#}"));
    }

    #[cfg(feature = "json")]
    #[test]
    fn a_report_as_a_script_sees_it() {
        let report = Report {
            holders: vec![holder(35259, Relation::Other, Effect::BlocksUmount)],
            kernel_holders: vec![loop_device(Effect::BlocksUmount)],
            copies: vec![private_copy()],
            namespaces: vec![unit_namespace()],
            ..mounted()
        };
        insta::assert_snapshot!(format!("{:#}", report.to_json()));
    }
}
