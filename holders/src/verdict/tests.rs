//! What a report comes to, for every pattern, and how it is said.

use super::*;
use crate::report::samples::*;
use crate::report::{Holder, Kind, Phase, Unseen};

#[test]
fn names_the_pattern() {
    let held_by = |holders| Report { holders, ..mounted() };
    let other = |effect| holder(35259, Relation::Other, effect);
    let submount = mount("90 61 0:50 / /srv/merged/sub rw - tmpfs t rw");
    let copies = |fate| Report { copies: vec![copy(Some(fate))], ..mounted() };
    let in_flight = Suspect { pid: 7, comm: "a".to_owned(), fd: Some(4), carries: Carries::InFlight(1) };
    let cut_short = || Unseen { cut_short: Some(CutShort { processes: 9, left: 1 }), ..mounted().unseen };
    let stuck = |report: Report| {
        let stuck = vec![crate::report::samples::stuck(false)];
        Report { unseen: Unseen { stuck, ..mounted().unseen }, ..report }
    };
    let cut = |report: Report| Report { unseen: cut_short(), ..report };
    let cases: [(&str, Report, &str); 31] = [
        ("nobody", mounted(), "free"),
        ("a process", held_by(vec![other(Effect::BlocksUmount)]), "held-by-process"),
        ("the caller", held_by(vec![holder(1, Relation::Caller, Effect::BlocksUmount)]), "held-by-yourself"),
        (
            "an ancestor",
            held_by(vec![holder(1, Relation::Ancestor, Effect::BlocksUmount)]),
            "held-by-yourself",
        ),
        (
            "the caller and another",
            held_by(vec![holder(1, Relation::Caller, Effect::BlocksUmount), other(Effect::BlocksUmount)]),
            "held-by-process",
        ),
        // The caller's own harmless reference makes nothing of another's.
        (
            "another, while the caller is in a private copy",
            held_by(vec![holder(1, Relation::Caller, Effect::KeepsSuperblock), other(Effect::BlocksUmount)]),
            "held-by-process",
        ),
        ("a process in a private copy", held_by(vec![other(Effect::KeepsSuperblock)]), "outlives"),
        ("the same path, another mount", held_by(vec![other(Effect::Harmless)]), "free"),
        ("an unclear effect is no accusation", held_by(vec![other(Effect::Unclear)]), "free"),
        (
            "a loop device",
            Report { kernel_holders: vec![loop_device(Effect::BlocksUmount)], ..mounted() },
            "held-by-kernel",
        ),
        (
            "a loop device on a copy",
            Report { kernel_holders: vec![loop_device(Effect::KeepsSuperblock)], ..mounted() },
            "outlives",
        ),
        ("a submount", Report { submounts: vec![submount.clone()], ..mounted() }, "submounts"),
        (
            "a submount in use",
            Report { submounts: vec![submount], holders: vec![other(Effect::BlocksSubmount)], ..mounted() },
            "submounts",
        ),
        ("a copy that goes along", copies(Fate::UnmountedAlong), "only-listed"),
        ("a private copy", copies(Fate::Survives(Reason::NotPropagated)), "outlives"),
        ("refused", Report { refused: true, ..mounted() }, "not-visible"),
        (
            "refused, and a copy that goes along",
            Report { refused: true, suspects: vec![in_flight], ..copies(Fate::UnmountedAlong) },
            "not-visible",
        ),
        (
            "processes that could not be inspected",
            Report { unseen: Unseen { processes: 3, ..mounted().unseen }, ..mounted() },
            "not-allowed",
        ),
        ("one that is stuck", stuck(mounted()), "stuck"),
        ("one that is stuck, and refused", stuck(Report { refused: true, ..mounted() }), "stuck"),
        (
            "one that is stuck, and one that holds it",
            stuck(held_by(vec![other(Effect::BlocksUmount)])),
            "held-by-process",
        ),
        ("nobody so far", cut(mounted()), "cut-short"),
        ("nobody so far, and refused", cut(Report { refused: true, ..mounted() }), "cut-short"),
        ("nobody so far at a path", cut(not_mounted()), "cut-short"),
        ("a private copy so far", cut(copies(Fate::Survives(Reason::NotPropagated))), "cut-short"),
        (
            "the caller, so far",
            cut(held_by(vec![holder(1, Relation::Caller, Effect::BlocksUmount)])),
            "cut-short",
        ),
        ("a process, and perhaps others", cut(held_by(vec![other(Effect::BlocksUmount)])), "held-by-process"),
        (
            "some could not be reached, others not inspected",
            Report { unseen: Unseen { processes: 3, ..cut_short() }, ..mounted() },
            "cut-short",
        ),
        ("not mounted", not_mounted(), "not-mounted"),
        (
            "not mounted, but elsewhere",
            Report { copies: vec![copy(None)], ..not_mounted() },
            "alive-elsewhere",
        ),
        (
            "not mounted, but in use",
            Report { holders: vec![other(Effect::KeepsSuperblock)], ..not_mounted() },
            "alive-elsewhere",
        ),
    ];
    for (name, report, word) in cases {
        let verdict = report.verdict();
        assert_eq!(verdict.word(), word, "{name}");
        let line = verdict.line();
        assert!(!line.is_empty() && !line.contains('\n') && !line.ends_with('.'), "{name}: {line}");
        if let Verdict::CutShort { .. } = verdict {
            assert!(line.starts_with("the scan was cut short after 9 processes, 1 not reached; "));
            assert!(!line.contains("nothing blocks") && verdict.blocks_umount() != Some(false), "{line}");
        }
    }
}

/// The recorder asks the one, a person reads the other.
#[test]
fn whoever_hides_processes_is_in_the_verdict() {
    let stuck = |is_whole| vec![crate::report::samples::stuck(is_whole)];
    let all = || mounted().unseen;
    let cases: [(&str, Unseen, bool); 11] = [
        ("nothing", all(), false),
        ("a pid namespace", Unseen { view: Some(PartialView::PidNamespace), ..all() }, true),
        ("hidepid=", Unseen { view: Some(PartialView::Hidden), ..all() }, true),
        ("no right to", Unseen { processes: 1, ..all() }, true),
        ("one that is stuck", Unseen { stuck: stuck(true), ..all() }, true),
        ("the memory of one that is stuck", Unseen { stuck: stuck(false), ..all() }, true),
        ("no time", Unseen { cut_short: Some(CutShort { processes: 9, left: 0 }), ..all() }, true),
        ("a namespace", Unseen { namespaces: vec![UNIT], ..all() }, false),
        ("no list of namespaces", Unseen { namespace_list: false, ..all() }, false),
        ("sockets", Unseen { bound_sockets: true, networks: 2, ..all() }, false),
        ("what is not listed", Unseen { references: 3, ..all() }, false),
    ];
    for (name, unseen, hides) in cases {
        assert_eq!(unseen.hides_processes(), hides, "{name}");
        let verdict = Report { unseen, ..mounted() }.verdict();
        assert_eq!(*verdict.of_what_was_seen() != verdict, hides, "{name}: {}", verdict.line());
    }
}

#[test]
fn lines_for_a_person() {
    let by = |relation| Report { holders: vec![holder(35259, relation, Effect::BlocksUmount)], ..mounted() };
    let in_its_end = Holder { phase: Phase::Ending, ..holder(35260, Relation::Other, Effect::BlocksUmount) };
    let ending = Suspect { pid: 7, comm: "srcds_linux".to_owned(), fd: None, carries: Carries::Rest };
    let systemd = |kind| {
        let mut holder = holder(1, Relation::Other, Effect::BlocksUmount);
        (holder.comm, holder.unit, holder.phase) =
            ("systemd".to_owned(), Some("init.scope".to_owned()), Phase::Unknown);
        holder.references[0].kind = kind;
        Report { holders: vec![holder], ..mounted() }
    };
    let mut listening = systemd(Kind::Socket { fd: 40 });
    listening.holders[0].unit = Some("rcon.socket".to_owned());
    let of_a_user = Holder {
        cgroup: "/user.slice/user-1000.slice/user@1000.service/app.slice/game.service".to_owned(),
        unit: Some("game.service".to_owned()),
        phase: Phase::Unknown,
        ..holder(35261, Relation::Other, Effect::BlocksUmount)
    };
    // Whoever has a manager of units may make control groups of any name.
    let named = |unit: &str, phase| Holder {
        cgroup: format!("/user.slice/user-1000.slice/user@1000.service/app.slice/{unit}"),
        unit: Some(unit.to_owned()),
        phase,
        ..holder(35261, Relation::Other, Effect::BlocksUmount)
    };
    let mut of_a_login = named("session-3.scope", Phase::Unknown);
    of_a_login.cgroup = "/user.slice/user-1000.slice/session-3.scope".to_owned();
    let mut with_a_file = holder(35259, Relation::Other, Effect::BlocksUmount);
    with_a_file.references[0].kind = Kind::File { fd: 3 };
    let above = vec!["group-volume".to_owned(), "crypt".to_owned()];
    let below_a_volume = KernelHolder { above, ..loop_device(Effect::BlocksUmount) };
    let mut of_ext4 = private_copy();
    of_ext4.mount.fstype = "ext4".to_owned();
    let on_ext4 = Report { copies: vec![of_ext4], ..mounted() };
    let lines: Vec<String> = [
        systemd(Kind::Socket { fd: 40 }),
        listening,
        Report { holders: vec![of_a_user], ..mounted() },
        Report { holders: vec![named("a;$(reboot).service", Phase::Unknown)], ..mounted() },
        Report { holders: vec![named("-Hevil.service", Phase::Unknown)], ..mounted() },
        Report { holders: vec![with_a_file], ..mounted() },
        Report { holders: vec![of_a_login], ..mounted() },
        Report { stacked: 1, ..on_ext4.clone() },
        on_ext4,
        systemd(Kind::File { fd: 41 }),
        by(Relation::Other),
        by(Relation::Caller),
        by(Relation::Ancestor),
        Report { holders: vec![in_its_end], ..mounted() },
        Report { kernel_holders: vec![loop_device(Effect::BlocksUmount)], ..mounted() },
        Report { kernel_holders: vec![below_a_volume], ..mounted() },
        Report {
            copies: vec![copy(Some(Fate::UnmountedAlong))],
            namespaces: vec![unit_namespace()],
            ..mounted()
        },
        Report { copies: vec![private_copy()], ..mounted() },
        Report { refused: true, ..mounted() },
        Report { refused: true, suspects: vec![ending], ..mounted() },
        Report { unseen: Unseen { processes: 3, ..mounted().unseen }, ..mounted() },
        Report {
            unseen: Unseen {
                processes: 3,
                cut_short: Some(CutShort { processes: 312, left: 40 }),
                ..mounted().unseen
            },
            ..mounted()
        },
        not_mounted(),
        Report { copies: vec![copy(None)], ..not_mounted() },
        mounted(),
    ]
    .iter()
    .flat_map(|report| {
        let verdict = report.verdict();
        let advice = report.advice().into_iter().map(|advice| format!("  - {advice}"));
        std::iter::once(verdict.line()).chain(advice).collect::<Vec<_>>()
    })
    .collect();
    insta::assert_snapshot!(lines.join("\n"));
}
