//! A report as JSON. Paths are lossily UTF-8; what is not known is null.

use std::path::Path;

use serde_json::{Value, json};

use crate::mountinfo::Mount;
use crate::namespace::MountNamespace;
use crate::ns::NamespaceReport;
use crate::propagation::{Fate, Reason};
use crate::report::{
    Carries, CutShort, Holder, KernelHolder, Kind, Member, MountCopy, NamespaceUse, PartialView, Reference,
    Relation, Report, Stuck, Suspect,
};
use crate::verdict::Verdict;

impl Report {
    /// The whole report with its verdict, as one object.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let verdict = self.verdict();
        json!({
            "path": path(&self.path),
            "verdict": verdict.word(),
            "otherwise": match &verdict {
                Verdict::NotAllowed { .. } | Verdict::Stuck { .. } | Verdict::CutShort { .. } | Verdict::PartialView { .. } => Some(verdict.of_what_was_seen().word()),
                _ => None,
            },
            "line": self.line(),
            "advice": self.advice(),
            "blocks_umount": verdict.blocks_umount(),
            "command": self.command(),
            "namespace": namespace(self.namespace),
            "mount": self.mount.as_ref().map(mount),
            "lies_on": self.lies_on.as_ref().map(mount),
            "stacked": self.stacked,
            "devices": self.devices.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "copies": self.copies.iter().map(copy).collect::<Vec<_>>(),
            "submounts": self.submounts.iter().map(mount).collect::<Vec<_>>(),
            "holders": self.holders.iter().map(holder).collect::<Vec<_>>(),
            "kernel_holders": self.kernel_holders.iter().map(kernel_holder).collect::<Vec<_>>(),
            "suspects": self.suspects.iter().map(suspect).collect::<Vec<_>>(),
            "namespaces": self.namespaces.iter().map(namespace_use).collect::<Vec<_>>(),
            "processes": self.processes,
            "unseen": {
                "view": self.unseen.view.map(|view| match view {
                    PartialView::PidNamespace => "pid-namespace",
                    PartialView::Hidden => "hidden",
                }),
                "processes": self.unseen.processes,
                "namespaces": self.unseen.namespaces.iter().copied().map(namespace).collect::<Vec<_>>(),
                "namespaces_were_listed": self.unseen.namespace_list,
                "cut_short": self.unseen.cut_short.map(cut_short),
                "stuck": self.unseen.stuck.iter().map(stuck).collect::<Vec<_>>(),
                "references": self.unseen.references,
                "bound_sockets": self.unseen.bound_sockets,
                "networks": self.unseen.networks,
            },
        })
    }
}

fn path(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn namespace(namespace: MountNamespace) -> Value {
    json!({ "inode": namespace.inode, "id": namespace.id })
}

fn mount(mount: &Mount) -> Value {
    json!({
        "id": mount.id,
        "parent": mount.parent,
        "device": mount.device.to_string(),
        "root": path(&mount.root),
        "mount_point": path(&mount.mount_point),
        "type": mount.fstype,
        "shared": mount.propagation.shared,
        "master": mount.propagation.master,
    })
}

fn copy(copy: &MountCopy) -> Value {
    let fate = copy.fate.map(|fate| match fate {
        Fate::Target => "target",
        Fate::UnmountedAlong => "unmounted-along",
        Fate::Survives(Reason::NotPropagated) => "survives-private",
        Fate::Survives(Reason::Elsewhere) => "survives-elsewhere",
        Fate::Survives(Reason::HasSubmount) => "survives-submount",
    });
    json!({ "mount": mount(&copy.mount), "namespace": namespace(copy.namespace), "fate": fate })
}

fn holder(holder: &Holder) -> Value {
    json!({
        "pid": holder.pid,
        "tid": holder.tid,
        "comm": holder.comm,
        "start_time": holder.start_time,
        "cgroup": holder.cgroup,
        "unit": holder.unit,
        "phase": holder.phase.word(),
        "relation": match holder.relation {
            Relation::Caller => "caller",
            Relation::Ancestor => "ancestor",
            Relation::Other => "other",
        },
        "namespace": holder.namespace.map(namespace),
        "command": holder.person.as_ref().map(|person| &person.command),
        "user": holder.person.as_ref().map(|person| &person.user),
        "age_secs": holder.person.as_ref().map(|person| person.age.as_secs()),
        "references": holder.references.iter().map(reference).collect::<Vec<_>>(),
    })
}

fn reference(reference: &Reference) -> Value {
    json!({
        "kind": reference.kind.word(),
        "fd": match reference.kind {
            Kind::File { fd } | Kind::Socket { fd } | Kind::RegisteredFile { ring: fd } => Some(fd),
            Kind::Cwd | Kind::Root | Kind::Exe | Kind::Mapping | Kind::Call { .. } => None,
        },
        "path": path(&reference.path),
        "mount_id": reference.mount_id,
        "unique_mount_id": reference.unique_mount_id,
        "mount_namespace": reference.mount_namespace.map(namespace),
        "effect": reference.effect.word(),
    })
}

fn kernel_holder(held: &KernelHolder) -> Value {
    json!({
        "what": held.kind.to_string(),
        "path": path(&held.path),
        "effect": held.effect.word(),
        "above": held.above,
        "mounted_at": held.mounted_at.iter().map(|at| path(at)).collect::<Vec<_>>(),
    })
}

fn suspect(suspect: &Suspect) -> Value {
    let (what, count) = match suspect.carries {
        Carries::InFlight(count) => ("descriptors-in-flight", Some(count)),
        Carries::Registered(count) => ("io_uring-files", Some(count)),
        Carries::Events => ("fanotify-events", None),
        Carries::Rest => ("ending", None),
    };
    json!({ "pid": suspect.pid, "comm": suspect.comm, "fd": suspect.fd, "carries": what, "count": count })
}

impl NamespaceReport {
    /// The whole report, as one object.
    #[must_use]
    pub fn to_json(&self) -> Value {
        json!({
            "namespace": namespace(self.namespace),
            "members": self.members.iter().map(member).collect::<Vec<_>>(),
            "files": self.files.iter().map(|(of, fd)| json!({ "member": member(of), "fd": fd })).collect::<Vec<_>>(),
            "binds": self.binds.iter().map(|bind| path(bind)).collect::<Vec<_>>(),
            "mounts": self.mounts,
            "denied": self.denied,
            "cut_short": self.cut_short.map(cut_short),
        })
    }
}

fn stuck(stuck: &Stuck) -> Value {
    let Stuck { pid, comm, waits_in, is_whole } = stuck;
    json!({ "pid": pid, "comm": comm, "waits_in": waits_in, "whole": is_whole })
}

fn cut_short(cut: CutShort) -> Value {
    json!({ "processes": cut.processes, "left": cut.left })
}

fn member(member: &Member) -> Value {
    json!({ "pid": member.pid, "comm": member.comm, "unit": member.unit })
}

fn namespace_use(used: &NamespaceUse) -> Value {
    json!({
        "namespace": namespace(used.namespace),
        "processes": used.processes,
        "member": used.member.as_ref().map(member),
        "files": used.files.iter().map(|(pid, fd)| json!({ "pid": pid, "fd": fd })).collect::<Vec<_>>(),
        "binds": used.binds.iter().map(|bind| path(bind)).collect::<Vec<_>>(),
    })
}
