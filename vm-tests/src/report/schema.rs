//! The test that docs/report.md has every key of `report.json`, and no other.
//!
//! By a sample that has something of everything, and not by a schema derived from the types: the document is for people,
//! and a derived schema needs a crate that every type of the recording would have to know.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use serde_json::Value;
use vm_agent::recording::{Found, Why};
use vm_agent::recording::{MountCopy, Namespace, Remount, Role, UnitState};
use vm_agent::wire::Exit;

use super::{Report, SCHEMA, ScenarioReport, Verdict};
use crate::judge::cycle::MountOutcome;
use crate::judge::cycle::{Before, Cycle, ExecOutcome, MountUnit, Ran};
use crate::judge::samples;
use crate::run::one::Stages;
use crate::run::shard::Share;
use crate::scenario::History;

/// A report in which no list is empty and nothing is `null`.
fn full() -> Report {
    let words = || vec!["x".to_owned()];
    let holder = || samples::holder(1, "x", Role::Main);
    let exec = ExecOutcome {
        unit: "x.service".to_owned(),
        line: "ExecStop".to_owned(),
        program: "x".to_owned(),
        exit: Some(Exit::Code(0)),
        duration_ns: Some(1),
        in_reset_ns: Some(1),
        timed_out: false,
        alive: words(),
    };
    let copy = MountCopy {
        pid: 1,
        comm: "x".to_owned(),
        unit: "x.service".to_owned(),
        namespace: Namespace { inode: 1, id: Some(1) },
        mount_points: words(),
    };
    let ran = Ran {
        index: 0,
        command: words(),
        exit: Some(Exit::Code(0)),
        duration_ns: 1,
        stdout: String::new(),
        stderr: String::new(),
    };
    let clean = samples::clean();
    let mut end = clean.end.clone().expect("a clean cycle has an end");
    (end.mounted_in, end.processes, end.failed_units) = (vec![copy], vec![(1, "x".to_owned())], words());
    end.remount = Remount::Tried { result: 0, in_use: false };
    let mut cycle = Cycle {
        before: Before { active: "active".to_owned(), mounted: true, elsewhere: words() },
        mount_unit: Some(MountUnit { name: "y.service".to_owned(), state: UnitState::default() }),
        states: words(),
        execs: vec![exec.clone()],
        mains: vec![exec],
        holders_at_stop: vec![holder()],
        holders_at_umount: vec![holder()],
        listed: words(),
        diagnosis: Some(samples::diagnosis(Why::Late, Found::HeldByProcess, &[holder()])),
        end: Some(end),
        kernel_warnings: words(),
        core_dumps: words(),
        left_over: words(),
        kept_devices: words(),
        shutdown_log: Some(words()),
        lost: words(),
        during: vec![ran.clone()],
        checks: vec![ran.clone()],
        boot_checks: vec![ran],
        ..clean
    };
    let other = MountOutcome::of("/x", &cycle);
    cycle.other_mounts =
        vec![MountOutcome { elsewhere_before: words(), mounted_elsewhere: words(), ..other }];
    let scenario = ScenarioReport {
        guest: "trixie".to_owned(),
        name: "x".to_owned(),
        description: "x".to_owned(),
        history: Some(History { step: 1, what: "x".to_owned(), reported: "x".to_owned() }),
        verdict: Verdict::Failed,
        why: words(),
        story: words(),
        evidence: PathBuf::from("x"),
        kernel: "x".to_owned(),
        systemd: "x".to_owned(),
        os: "x".to_owned(),
        recording_sha256: "eb9ea95ae404".repeat(6)[..64].to_owned(),
        inputs_sha256: "x".to_owned(),
        remembered_s: Some(3 * 3600),
        stages: Stages::default(),
        cycles: vec![cycle],
        first: None,
        look: Some("cycle 1: umount fails".to_owned()),
    };
    Report {
        schema: SCHEMA,
        accelerator: "x".to_owned(),
        clock: "virtual".to_owned(),
        guests: BTreeMap::from([("trixie".to_owned(), "x".to_owned())]),
        scenarios: vec![scenario],
        shard: Some(Share { number: 1, of: 2, runs_of_all: 3 }),
    }
}

/// Every key by its path, `scenarios[].why`. What the document describes once is followed once: an exit, the names of
/// guests, the second unit, the holders at the stop, what another mount has in common with the first.
fn keys(value: &Value, path: &str, all: &mut BTreeSet<String>) {
    const LEAVES: [&str; 7] = [
        "exit",
        "guests",
        "mount_unit.state",
        "holders_at_stop",
        "other_mounts[].umounts",
        "other_mounts[].holders_at_umount",
        "other_mounts[].diagnosis",
    ];
    if LEAVES.iter().any(|leaf| path.ends_with(leaf)) {
        return;
    }
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                keys(value, &path, all);
                all.insert(path);
            }
        }
        Value::Array(items) => {
            assert!(!items.is_empty(), "{path} is empty: give the sample something of it");
            items.iter().for_each(|item| keys(item, &format!("{path}[]"), all));
        }
        Value::Null => panic!("{path} is null: give the sample something of it"),
        _ => {}
    }
}

/// The keys that the document's tables have, each below the path in its heading.
fn documented(text: &str) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    let mut place = String::new();
    for line in text.lines() {
        let quoted =
            |text: &str| -> Vec<String> { text.split('`').skip(1).step_by(2).map(str::to_owned).collect() };
        if line.starts_with("## ") {
            place = quoted(line).first().map(|path| format!("{path}.")).unwrap_or_default();
        } else if let Some(row) = line.strip_prefix("| `") {
            let cell = row.split(" |").next().unwrap_or_default();
            all.extend(quoted(&format!("`{cell}")).iter().map(|key| format!("{place}{key}")));
        }
    }
    all
}

#[test]
fn the_document_has_every_key_and_no_other() {
    let mut written = BTreeSet::new();
    keys(&serde_json::to_value(full()).expect("JSON"), "", &mut written);
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/report.md");
    let documented = documented(&std::fs::read_to_string(file).expect("docs/report.md"));
    let missing: Vec<_> = written.difference(&documented).collect();
    let unknown: Vec<_> = documented.difference(&written).collect();
    assert!(
        missing.is_empty() && unknown.is_empty(),
        "not in docs/report.md: {missing:?}; only there: {unknown:?}"
    );
}
