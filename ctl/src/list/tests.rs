//! The rows, the broken ones too.

use std::fs;

use futures_lite::future::block_on;

use super::*;
use crate::destroy::tests::Play;

fn host() -> (tempfile::TempDir, Host) {
    let directory = tempfile::tempdir().unwrap();
    let state_dir = directory.path().canonicalize().unwrap();
    for name in ["instances", "runtime/3/merged", "runtime/gone"] {
        fs::create_dir_all(state_dir.join(name)).unwrap();
    }
    for (name, text) in [
        ("3.toml", "overlays = [\"tickrate\", \"maps\"]"),
        ("3.env", "L4D2_PORT=27016"),
        ("10.toml", "overlays = []"),
        ("4.toml", "overlays = ["),
        ("4.env", "L4D2_PORT=x"),
        ("5.toml", "overlays = []"),
        ("5.env", "L4D2_PORT='70000'"),
        ("not an instance.toml", "x"),
    ] {
        fs::write(state_dir.join("instances").join(name), text).unwrap();
    }
    let table = state_dir.join("mountinfo");
    let line = format!("1 2 0:3 / {}/runtime/3/merged rw - overlay overlay rw\n", state_dir.display());
    fs::write(&table, line).unwrap();
    (directory, Host { state_dir, mount_tables: vec![table], ..Host::default() })
}

fn report(host: &Host, rows: &[Row]) -> String {
    let errors: Vec<_> = rows.iter().filter_map(|row| row.error.clone()).collect();
    (table(rows) + &errors.join("\n")).replace(host.state_dir.to_str().unwrap(), "/s")
}

#[test]
fn one_whose_files_are_broken_is_a_row_and_not_the_end() {
    let (_directory, host) = host();
    let mut play = Play::of(&["active"]);
    let (rows, unreachable) = block_on(rows(Ok(&mut play), &host)).unwrap();
    assert_eq!(unreachable, None);
    assert_eq!(play.asked.len(), 1, "one question for all: {:?}", play.asked);
    let are_ok: Vec<_> = rows.iter().map(|row| (row.instance.as_str(), row.ok)).collect();
    assert_eq!(are_ok, [("3", true), ("4", false), ("5", false), ("10", true), ("gone", false)]);
    insta::assert_snapshot!(report(&host, &rows));
    insta::assert_snapshot!(serde_json::to_string_pretty(&rows[0]).unwrap());
}

#[test]
fn without_systemd_the_files_are_listed_all_the_same() {
    let (_directory, mut host) = host();
    // Nor may everybody read PID 1's mount table.
    host.mount_tables = vec![host.state_dir.join("none")];
    let error = UnitsError::Unreachable("no bus".into());
    let (mut rows, unreachable) = block_on(rows(Err::<&mut Play, _>(error.clone()), &host)).unwrap();
    assert_eq!(unreachable, Some(error.clone()));
    assert!(rows.iter().all(|row| !row.ok));
    insta::assert_snapshot!(report(&host, &rows));
    tell_each(&mut rows, &error);
    assert!(rows.iter().all(|row| row.error.as_ref().is_some_and(|text| text.contains("no bus"))));
}

#[test]
fn none_at_all() {
    let directory = tempfile::tempdir().unwrap();
    let host = Host { state_dir: directory.path().to_owned(), ..Host::default() };
    let (rows, _) = block_on(rows(Ok(&mut Play::of(&["active"])), &host)).unwrap();
    assert!(rows.is_empty());
    assert_eq!(none(Path::new("/s")), "no instance in /s/instances; `sudo l4d2ctl create ID` makes one\n");
}
