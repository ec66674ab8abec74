//! The harness's verdict and that of `holders`, on the same situations.
//!
//! Of an unmount that was refused the harness has `holders`' word, and says more of whom it is about: it knows the unit. Of one
//! that succeeded it says what came of it. Where they answer the same question they say the same; where they differ on
//! purpose, the second table has it.

use holders::mountinfo::{self, Mount};
use holders::namespace::MountNamespace;
use holders::propagation::{Fate, Reason};
use holders::report::{
    Asked, Effect, Holder, KernelHolder, KernelKind, Kind, MountCopy, Phase, Reference, Relation, Report,
    Unseen,
};
use vm_agent::recording::UmountCall;
use vm_agent::recording::{
    self, EndState, Event, Plan, Recording, Remount, Role, Scan, Step, Task, Trigger, What,
};
use vm_agent::recording::{Diagnosis, Why};
use vm_tests::judge::fold;
use vm_tests::scenario::verdict::MountVerdict;

const MERGED: &str = "/srv/merged";
const BUSY: i64 = -16;
/// The thread that calls umount2, and for `holders` the one that asks.
const CALLER: u32 = 9;

/// A task with its working directory in the mount or in a copy of it.
#[derive(Debug, Clone, Copy)]
struct Held {
    pid: u32,
    role: Role,
    relation: Relation,
    effect: Effect,
}

/// What is so when an unmount is tried, and what comes of it.
#[derive(Debug, Clone, Default)]
struct Situation {
    held: Vec<Held>,
    /// Whether a unit's namespace has a copy of the mount, and what an unmount does with that.
    copy: Option<Fate>,
    kernel: bool,
    submount: bool,
    /// What umount2 answered; `None` if nobody called it.
    umount: Option<i64>,
    /// Who called it.
    by: Option<Role>,
    /// Whether the unmounted file system was found in use afterwards.
    in_use: bool,
}

/// One who is held by a reference that blocks.
fn by(pid: u32, role: Role, relation: Relation) -> Vec<Held> {
    vec![Held { pid, role, relation, effect: Effect::BlocksUmount }]
}

fn refused(held: Vec<Held>) -> Situation {
    Situation { held, umount: Some(BUSY), ..Situation::default() }
}

fn unmounted() -> Situation {
    Situation { umount: Some(0), ..Situation::default() }
}

impl Situation {
    /// The harness's verdict: that of a cycle whose recording says this.
    fn recorded(&self) -> MountVerdict {
        let namespace = recording::Namespace { inode: 2, id: None };
        let task = |held: &Held| Task {
            pid: held.pid,
            tid: held.pid,
            comm: "x".to_owned(),
            role: held.role,
            unit: "x.service".to_owned(),
            namespace,
            private_copy: held.effect != Effect::BlocksUmount,
            references: vec![recording::Reference { kind: recording::Kind::Cwd, path: MERGED.to_owned() }],
        };
        let mut tasks: Vec<Task> = self.held.iter().map(task).collect();
        if self.copy.is_some() {
            let bare =
                Held { pid: 50, role: Role::Outside, relation: Relation::Other, effect: Effect::Harmless };
            tasks.push(Task { references: Vec::new(), ..task(&bare) });
        }
        let scan = |trigger, mounted, tasks: &[Task]| {
            What::Scan(Scan { trigger, whole_proc: true, cost_ns: 0, mounted, tasks: tasks.to_vec() })
        };
        let mut whats = vec![What::StepBegins(Step::Reset), scan(Trigger::Exec, true, &tasks)];
        if let Some(result) = self.umount {
            let role = self.by.unwrap_or(Role::Control);
            let target = recording::Target::Mount;
            let call = UmountCall { pid: CALLER, comm: "x".to_owned(), role, returned: 0, result, target };
            whats.push(What::UmountCall(call));
            if result < 0 {
                let role = |pid, _: &str| {
                    self.held.iter().find(|held| held.pid == pid).map_or(Role::Outside, |held| held.role)
                };
                whats.push(What::Diagnosis(Diagnosis::of(&self.report(), Why::UmountFailed, 0, role)));
            }
        }
        let mounted = self.umount != Some(0);
        whats.push(scan(Trigger::End, mounted, if mounted { &tasks } else { &[] }));
        let copy = recording::MountCopy {
            pid: 50,
            comm: "x".to_owned(),
            unit: "x.service".to_owned(),
            namespace,
            mount_points: vec![MERGED.to_owned()],
        };
        let survives = matches!(self.copy, Some(Fate::Survives(_)));
        whats.push(What::EndState(EndState {
            mounted_in: if survives || (mounted && self.copy.is_some()) { vec![copy] } else { Vec::new() },
            processes: Vec::new(),
            failed_units: Vec::new(),
            remount: if mounted {
                Remount::NotTried { why: "still mounted".to_owned() }
            } else {
                Remount::Tried { result: 0, in_use: self.in_use }
            },
        }));
        let events = (0..).zip(whats).map(|(at, what)| Event { at, cycle: 1, what }).collect();
        let plan = Plan {
            unit: "x.service".to_owned(),
            mount: Some(MERGED.to_owned()),
            cycles: 1,
            ..Plan::default()
        };
        let cycles = fold::cycles(&Recording { plan, events, ..Recording::default() });
        cycles.first().expect("a cycle").verdict
    }

    /// What `holders` finds while it is still mounted: right after a refusal, else before the call.
    fn report(&self) -> Report {
        let own = MountNamespace { inode: 1, id: None };
        let other = MountNamespace { inode: 2, id: None };
        let merged = mount("61 29 0:42 / /srv/merged rw shared:31 - overlay overlay rw");
        let holder = |held: &Held| Holder {
            pid: held.pid,
            tid: held.pid,
            comm: "x".to_owned(),
            start_time: 1,
            cgroup: String::new(),
            unit: None,
            phase: Phase::Unknown,
            relation: held.relation,
            namespace: Some(other),
            person: None,
            references: vec![Reference {
                kind: Kind::Cwd,
                path: MERGED.into(),
                mount_id: Some(61),
                unique_mount_id: None,
                mount_namespace: Some(other),
                effect: held.effect,
            }],
        };
        let copy = |fate| MountCopy {
            mount: mount("88 70 0:42 / /srv/merged rw master:31 - overlay overlay rw"),
            namespace: other,
            fate: Some(fate),
        };
        let on_loop = KernelHolder {
            kind: KernelKind::Loop("loop0".to_owned()),
            path: "/srv/merged/image".into(),
            effect: Effect::BlocksUmount,
            mounted_at: Vec::new(),
            above: Vec::new(),
        };
        Report {
            path: MERGED.into(),
            asked: Asked::MountPoint,
            namespace: own,
            devices: vec![merged.device],
            mount: Some(merged),
            lies_on: None,
            stacked: 0,
            copies: self.copy.map(copy).into_iter().collect(),
            submounts: self
                .submount
                .then(|| mount("90 61 0:50 / /srv/merged/sub rw - tmpfs t rw"))
                .into_iter()
                .collect(),
            holders: self.held.iter().map(holder).collect(),
            kernel_holders: self.kernel.then_some(on_loop).into_iter().collect(),
            suspects: Vec::new(),
            namespaces: Vec::new(),
            unseen: Unseen::default(),
            refused: self.umount == Some(BUSY),
            processes: 90,
        }
    }
}

fn mount(line: &str) -> Mount {
    mountinfo::parse(line.as_bytes()).expect("a line").remove(0)
}

/// The harness's verdict for each verdict of `holders`.
fn in_the_harness_words(verdict: &holders::Verdict) -> MountVerdict {
    match verdict {
        holders::Verdict::HeldByYourself { .. } => MountVerdict::HeldByYourself,
        holders::Verdict::HeldByProcess { .. } => MountVerdict::HeldByProcess,
        holders::Verdict::HeldByKernel { .. } => MountVerdict::HeldByKernel,
        holders::Verdict::Submounts { .. } => MountVerdict::Submounts,
        holders::Verdict::NotVisible { .. } => MountVerdict::NotVisible,
        // Before the unmount, and after it.
        holders::Verdict::Outlives { .. } | holders::Verdict::AliveElsewhere { .. } => {
            MountVerdict::AliveElsewhere
        }
        holders::Verdict::OnlyListed { .. } => MountVerdict::OnlyListed,
        holders::Verdict::Free | holders::Verdict::NotMounted { .. } => MountVerdict::None,
        // The recorder is root, sees all processes, and has no deadline; who is stuck may hold it or not.
        holders::Verdict::NotAllowed { otherwise, .. }
        | holders::Verdict::Stuck { otherwise, .. }
        | holders::Verdict::PartialView { otherwise, .. }
        | holders::Verdict::CutShort { otherwise, .. } => in_the_harness_words(otherwise),
    }
}

#[test]
fn both_say_the_same_of_the_same_situation() {
    let helper = || by(CALLER, Role::Control, Relation::Caller);
    let child = || by(30, Role::Child, Relation::Other);
    let private = |held: Held| Held { effect: Effect::KeepsSuperblock, ..held };
    let along = Some(Fate::UnmountedAlong);
    let stays = Some(Fate::Survives(Reason::NotPropagated));
    let cases: Vec<(&str, Situation, MountVerdict)> = vec![
        ("the helper's own directory", refused(helper()), MountVerdict::HeldByYourself),
        (
            "the Exec line's shell, whose child calls umount2",
            Situation { by: Some(Role::ControlChild), ..refused(by(8, Role::Control, Relation::Ancestor)) },
            MountVerdict::HeldByYourself,
        ),
        (
            "umount2's caller in the mount, by hand",
            Situation { by: Some(Role::Outside), ..refused(by(CALLER, Role::Outside, Relation::Caller)) },
            MountVerdict::HeldByYourself,
        ),
        ("a child of the server that stays", refused(child()), MountVerdict::HeldByProcess),
        ("somebody outside", refused(by(40, Role::Outside, Relation::Other)), MountVerdict::HeldByProcess),
        ("the helper and a child", refused([helper(), child()].concat()), MountVerdict::HeldByProcess),
        (
            "a child, and bystanders with a copy",
            Situation { copy: along, ..refused(child()) },
            MountVerdict::HeldByProcess,
        ),
        ("nobody who is seen", refused(Vec::new()), MountVerdict::NotVisible),
        (
            "nobody who is seen, and bystanders with a copy",
            Situation { copy: along, ..refused(Vec::new()) },
            MountVerdict::NotVisible,
        ),
        (
            "the one who is seen is in a private copy, and does not block",
            refused(child().into_iter().map(private).collect()),
            MountVerdict::NotVisible,
        ),
        ("a loop device", Situation { kernel: true, ..refused(Vec::new()) }, MountVerdict::HeldByKernel),
        ("a mount on it", Situation { submount: true, ..refused(Vec::new()) }, MountVerdict::Submounts),
        ("nothing", unmounted(), MountVerdict::None),
        ("bystanders with a copy", Situation { copy: along, ..unmounted() }, MountVerdict::OnlyListed),
        ("a private copy", Situation { copy: stays, ..unmounted() }, MountVerdict::AliveElsewhere),
        (
            "a process in a private copy",
            Situation { held: child().into_iter().map(private).collect(), copy: stays, ..unmounted() },
            MountVerdict::AliveElsewhere,
        ),
        (
            "a process in a detached copy, and layers in use afterwards",
            Situation { held: child().into_iter().map(private).collect(), in_use: true, ..unmounted() },
            MountVerdict::AliveElsewhere,
        ),
    ];
    for (what, situation, expected) in cases {
        assert_eq!(situation.recorded(), expected, "{what}");
        let verdict = situation.report().verdict();
        assert_eq!(in_the_harness_words(&verdict), expected, "{what}: {}", verdict.line());
        let is_busy = situation.umount == Some(BUSY);
        assert_eq!(verdict.blocks_umount(), Some(is_busy), "{what}: umount2 answered otherwise");
    }
}

/// Each of these is a question that the one asks and the other does not.
#[test]
fn where_they_differ_it_is_known() {
    let cases: Vec<(&str, Situation, MountVerdict, MountVerdict)> = vec![
        // All that an Exec line started is the caller's family for the harness: what the unit file is to blame for.
        // `holders` advises the one who asks, and that can't leave for its sibling.
        (
            "a sibling that the same Exec line started",
            refused(by(31, Role::ControlChild, Relation::Other)),
            MountVerdict::HeldByYourself,
            MountVerdict::HeldByProcess,
        ),
        // Outside the unit the recorder knows no families.
        (
            "a person's shell, whose child calls umount2",
            Situation { by: Some(Role::Outside), ..refused(by(41, Role::Outside, Relation::Ancestor)) },
            MountVerdict::HeldByProcess,
            MountVerdict::HeldByYourself,
        ),
        // The harness says what happened, `holders` what would.
        (
            "a process, and nobody tried to unmount",
            Situation { held: by(30, Role::Child, Relation::Other), ..Situation::default() },
            MountVerdict::None,
            MountVerdict::HeldByProcess,
        ),
        (
            "layers in use afterwards, by something that nothing shows",
            Situation { in_use: true, ..unmounted() },
            MountVerdict::AliveElsewhere,
            MountVerdict::None,
        ),
    ];
    for (what, situation, recorded, reported) in cases {
        assert_ne!(recorded, reported);
        assert_eq!(situation.recorded(), recorded, "{what}");
        assert_eq!(in_the_harness_words(&situation.report().verdict()), reported, "{what}");
    }
}
