//! Manifests that are right, wrong, and begin with another.

use std::path::{Path, PathBuf};

use anyhow::Result;
use vm_agent::wire::Exit;

use super::manifest::*;
use super::*;
use crate::report::Verdict;

const GOOD: &str = r#"
description = "d"
unit = "x.service"
mount = "/m"
start = ["true"]
reset = ["true"]
[expect]
reset_exit = 0
reset_max_ms = 1000
active_state = "inactive"
exec_stop_post = 0
mounted = false
holders = []
"#;

#[test]
fn manifests() {
    let parse = |text: &str| -> Result<()> { check(&toml::from_str(text)?) };
    parse(GOOD).expect("the plain one");
    let cases = [
        (GOOD.replace("\"/m\"", "\"m\""), "absolute"),
        (GOOD.replace("\"/m\"", "\"/m/\""), "absolute"),
        (GOOD.replace("x.service", "x"), "full name"),
        (GOOD.replace("mount =", "memory_mib = 64\nmount ="), "needs 256 to boot"),
        (GOOD.replace("mount =", "mount_unit = \"x\"\nmount ="), "a service"),
        (GOOD.replace("mount =", "mount_unit = \"m.mount\"\nmount ="), "a service"),
        (GOOD.replace("mount =", "mount_unit = \"x.service\"\nmount ="), "the unit under test"),
        (format!("{GOOD}mount_unit_state = \"failed\""), "whose?"),
        (GOOD.replace("reset = [\"true\"]", "reset = []"), "empty command"),
        (GOOD.replace("unit =", "unti ="), "unti"),
        (GOOD.replace("mount = \"/m\"", "mount = \"/m\"\nremoved = [\"/m/x\"]"), "reading it"),
        (GOOD.replace("mount = \"/m\"", "mount = \"/m\"\ncycles = 0"), "nothing would be run"),
        (
            GOOD.replace("exec_stop_post = 0", "exec_stop_post = \"SIGNOT\""),
            "give an exit status or a signal",
        ),
        (GOOD.replace("holders = []", "holders = []\nverdict = \"held\""), "there are held by a process, "),
        (format!("{GOOD}umount = \"EBUSI\""), "there are ok, none, and an errno"),
        (format!("{GOOD}umount = \"ENOTANERRNO\""), "there are ok, none, and an errno"),
        (format!("{GOOD}remount = \"slient\""), "there are silent, in use, an errno"),
        (format!("{GOOD}remount = \"not tried: tired\""), "not tried: still mounted"),
        (format!("{GOOD}\n[deploy.text]\nx = \"y\""), "deploy.text"),
        (format!("{GOOD}\n[[check]]\nrun = []"), "check: an empty command"),
        (format!("{GOOD}\n[[check]]\nrun = [\"true\"]\nstdot = \"x\""), "stdot"),
    ];
    for (text, words) in cases {
        let error = format!("{:#}", parse(&text).expect_err(words));
        assert!(error.contains(words), "{words} is not in: {error}");
    }
}

#[test]
fn the_words_of_a_umount_and_a_remount_are_kept() {
    let expect = |more: &str| toml::from_str::<Manifest>(&format!("{GOOD}{more}")).expect(more).expect;
    for words in ["ok", "none", "EBUSY", "EINVAL"] {
        let umount = expect(&format!("umount = {words:?}")).umount;
        assert_eq!(umount.expect("it is given").to_string(), words);
    }
    for words in ["silent", "in use", "EBUSY", "not tried: still mounted"] {
        let remount = expect(&format!("remount = {words:?}")).remount;
        assert_eq!(remount.expect("it is given").to_string(), words);
    }
}

#[test]
fn a_manifest_begins_with_its_base() {
    let root = tempfile::tempdir().expect("tempdir");
    let write = |path: &str, text: &str| {
        let path = root.path().join(path);
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("mkdir");
        std::fs::write(path, text).expect("write");
    };
    write(
        "shared/one.toml",
        &format!("{GOOD}\n[deploy]\ntrees = [\"a\"]\n[deploy.programs]\n\"/x\" = \"./x\"\n\"/y\" = \"y\""),
    );
    write("shared/two.toml", "base = \"one.toml\"\ncycles = 3\n[deploy]\ntrees = [\"b\"]");
    write(
        "mine/scenario.toml",
        "base = \"../shared/two.toml\"\ndescription = \"mine\"\n[deploy]\ntrees = [\"c\"]\n\
         [expect]\nactive_state = \"failed\"\nexec_stop_post = \"SIGTERM\"",
    );
    let Manifest { description, unit, cycles, deploy, expect, .. } =
        Scenario::load(&root.path().join("mine")).expect("a good one").manifest;
    assert_eq!((description.as_str(), unit.as_str(), cycles), ("mine", "x.service", 3));
    let shared = |name: &str| root.path().join("mine/../shared").join(name);
    let trees = [shared("a"), shared("b"), PathBuf::from("c")];
    assert_eq!(deploy.trees.len(), 3);
    for (tree, expected) in deploy.trees.iter().zip(trees) {
        let plain = |path: &Path| path.components().collect::<PathBuf>();
        assert_eq!(plain(tree), plain(&expected));
    }
    assert!(deploy.programs["/x"].ends_with("shared/./x"), "{:?}", deploy.programs);
    assert_eq!(deploy.programs["/y"], "y", "a program by name is nobody's path");
    assert_eq!(expect.failed_units(), ["x.service"]);
    assert_eq!(expect.exec_stop_post.and_then(|exit| exit.exit()), Some(Exit::Signal(15)));

    write("loop/scenario.toml", "base = \"scenario.toml\"");
    let error = Scenario::load(&root.path().join("loop")).expect_err("a loop").to_string();
    assert!(error.contains("bases in a row"), "{error}");
}

#[test]
fn a_mount_unit_is_inactive_unless_something_else_is_expected() {
    let root = tempfile::tempdir().expect("tempdir");
    let load = |more: &str| {
        let text = GOOD.replace("mount =", "mount_unit = \"m.service\"\nmount =");
        std::fs::write(root.path().join("scenario.toml"), format!("{text}{more}")).expect("write");
        Scenario::load(root.path()).expect("a good one")
    };
    let left_out = load("");
    assert_eq!(left_out.units(), "x.service m.service");
    assert_eq!(left_out.plan(None).mount_unit.as_deref(), Some("m.service"));
    let expect = left_out.manifest.expect;
    assert_eq!((expect.mount_unit_state(), expect.failed_units()), (Some("inactive"), Vec::new()));

    let expect = load("mount_unit_state = \"failed\"\nother_failed_units = [\"o.service\"]").manifest.expect;
    assert_eq!(expect.mount_unit_state(), Some("failed"));
    assert_eq!(expect.failed_units(), ["m.service", "o.service"]);
}

#[test]
fn a_name_that_is_not_there_lists_what_is() {
    let root = tempfile::tempdir().expect("tempdir");
    std::fs::create_dir(root.path().join("one")).expect("mkdir");
    std::fs::write(root.path().join("one/scenario.toml"), GOOD).expect("write");
    let roots = [root.path().to_owned()];
    let error = select(&roots, &["two".into()]).expect_err("no such scenario");
    assert!(format!("{error:#}").contains("there are one"), "{error:#}");
    assert_eq!(Verdict::of_error(&error).exit_code(), 2);
    assert_eq!(select(&roots, &[]).expect("all").len(), 1);
}

#[test]
fn two_scenarios_of_one_name_would_have_each_others_results() {
    let root = tempfile::tempdir().expect("tempdir");
    for directory in ["a/one", "b/one"] {
        std::fs::create_dir_all(root.path().join(directory)).expect("mkdir");
        std::fs::write(root.path().join(directory).join("scenario.toml"), GOOD).expect("write");
    }
    let path = |directory: &str| root.path().join(directory).to_string_lossy().into_owned();
    let twice = select(&[], &[path("a/one"), path("a/../a/one")]).expect("the same one");
    assert_eq!(twice.len(), 1);
    let error = format!("{:#}", select(&[], &[path("a/one"), path("b/one")]).expect_err("two of one name"));
    assert!(error.contains("two scenarios are named one") && error.contains(&path("b/one")), "{error}");
}
