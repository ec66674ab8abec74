//! Reports for the tests of what is made of them.

use super::*;
use crate::mountinfo;
use crate::propagation::Reason;

pub(crate) const HOST: MountNamespace = MountNamespace { inode: 4026531841, id: Some(1) };
pub(crate) const UNIT: MountNamespace = MountNamespace { inode: 4026532158, id: Some(46) };

pub(crate) fn mount(line: &str) -> Mount {
    mountinfo::parse(line.as_bytes()).unwrap().remove(0)
}

/// An overlay that nobody refers to.
pub(crate) fn mounted() -> Report {
    let merged = mount("61 29 0:42 / /srv/merged rw shared:31 - overlay overlay rw");
    Report {
        path: merged.mount_point.clone(),
        asked: Asked::MountPoint,
        namespace: HOST,
        devices: vec![merged.device],
        mount: Some(merged),
        lies_on: None,
        stacked: 0,
        copies: Vec::new(),
        submounts: Vec::new(),
        holders: Vec::new(),
        kernel_holders: Vec::new(),
        suspects: Vec::new(),
        namespaces: Vec::new(),
        unseen: Unseen { namespace_list: true, ..Unseen::default() },
        refused: false,
        processes: 90,
    }
}

pub(crate) fn not_mounted() -> Report {
    let root = mount("29 1 8:1 / / rw shared:1 - ext4 /dev/vda rw");
    Report { mount: None, lies_on: Some(root), ..mounted() }
}

pub(crate) fn holder(pid: u32, relation: Relation, effect: Effect) -> Holder {
    Holder {
        pid,
        tid: pid,
        comm: "left4me-overlay".to_owned(),
        start_time: 7,
        cgroup: "/system.slice/demo.service".to_owned(),
        unit: Some("demo.service".to_owned()),
        phase: Phase::Stop,
        relation,
        namespace: Some(UNIT),
        person: (effect == Effect::BlocksUmount).then(|| Person {
            command: "left4me-overlay umount 3".to_owned(),
            user: "root".to_owned(),
            age: std::time::Duration::from_secs(12),
        }),
        references: vec![Reference {
            kind: Kind::Cwd,
            path: "/srv/merged".into(),
            mount_id: Some(88),
            unique_mount_id: None,
            mount_namespace: Some(UNIT),
            effect,
        }],
    }
}

pub(crate) fn copy(fate: Option<Fate>) -> MountCopy {
    let mount = mount("88 70 0:42 / /srv/merged rw master:31 - overlay overlay rw");
    MountCopy { mount, namespace: UNIT, fate }
}

pub(crate) fn private_copy() -> MountCopy {
    copy(Some(Fate::Survives(Reason::NotPropagated)))
}

pub(crate) fn unit_namespace() -> NamespaceUse {
    NamespaceUse {
        namespace: UNIT,
        processes: 1,
        member: Some(Member { pid: 310, comm: "systemd-udevd".to_owned(), unit: None }),
        files: vec![(411, 5)],
        binds: vec!["/run/ns".into()],
    }
}

pub(crate) fn stuck(is_whole: bool) -> Stuck {
    Stuck { pid: 451, comm: "srcds_linux".to_owned(), waits_in: "vm_mmap_pgoff".to_owned(), is_whole }
}

pub(crate) fn loop_device(effect: Effect) -> KernelHolder {
    KernelHolder {
        kind: KernelKind::Loop("loop0".to_owned()),
        path: "/srv/merged/image".into(),
        effect,
        mounted_at: vec!["/mnt".into()],
        above: Vec::new(),
    }
}
