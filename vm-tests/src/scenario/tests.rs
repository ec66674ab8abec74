//! Manifests that are right, wrong, and begin with another.

use std::path::PathBuf;

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

/// A scenario with this manifest, and all that is wrong in it.
fn problems_of(text: &str) -> Vec<String> {
    let root = tempfile::tempdir().expect("tempdir");
    std::fs::write(root.path().join("scenario.toml"), text).expect("write");
    let Err(error) = select(&[], &[root.path().display().to_string()], Some(&["l4d2ctl", "vm-game"])) else {
        return Vec::new();
    };
    let wrong = error.downcast::<WrongInput>().expect("wrong input");
    let root = root.path().canonicalize().expect("it is there").display().to_string();
    wrong.problems().iter().map(|problem| problem.to_string().replace(&format!("{root}/"), "")).collect()
}

#[test]
fn manifests() {
    assert_eq!(problems_of(GOOD), [""; 0]);
    let cases = [
        (GOOD.replace("\"/m\"", "\"m\""), "4:9: mount: \"m\": give an absolute path"),
        (GOOD.replace("\"/m\"", "\"/m/\""), "absolute"),
        (GOOD.replace("\"/m\"", "\"/m/../n\""), "absolute"),
        (GOOD.replace("x.service", "x"), "3:8: unit: \"x\": give the full name"),
        (GOOD.replace("x.service", "x.servce"), "did you mean .service?"),
        (GOOD.replace("mount =", "memory_mib = 64\nmount ="), "needs 256 to boot"),
        (GOOD.replace("mount =", "mount_unit = \"x\"\nmount ="), "a service"),
        (GOOD.replace("mount =", "mount_unit = \"m.mount\"\nmount ="), "a service"),
        (GOOD.replace("mount =", "mount_unit = \"x.service\"\nmount ="), "the unit under test"),
        (format!("{GOOD}mount_unit_state = \"failed\""), "14:20: expect.mount_unit_state: whose?"),
        (GOOD.replace("reset = [\"true\"]", "reset = []"), "empty command"),
        (GOOD.replace("reset = [\"true\"]", "reset = \"shutdwn\""), "where a list or \"shutdown\" is wanted"),
        (
            GOOD.replace("reset = [\"true\"]", "reset = \"shutdown\"\ncycles = 2"),
            "cycles: 2: a machine shuts down once",
        ),
        (
            GOOD.replace("reset = [\"true\"]", "reset = \"shutdown\"\nrecover = [[\"true\"]]"),
            "recover: of a machine that shuts down, nothing",
        ),
        (
            GOOD.replace("reset = [\"true\"]", "reset = \"shutdown\"\nuser = \"u\""),
            "user: a shutdown ends the user's manager",
        ),
        (GOOD.replace("mount =", "user = \"root\"\nmount ="), "user: root: its units are"),
        (GOOD.replace("mount =", "user = \"A b\"\nmount ="), "user: \"A b\": give the name of a user"),
        (
            GOOD.replace("unit =", "boot_check = [{ run = [\"true\"] }]\nunit ="),
            "boot_check: after which shutdown?",
        ),
        (format!("{GOOD}shutdown_log = [\"busy\"]"), "expect.shutdown_log: of which shutdown?"),
        (GOOD.replace("unit =", "unti ="), "unit: missing"),
        (GOOD.replace("unit =", "unti ="), "3:1: unti: unknown key: did you mean unit?"),
        (GOOD.replace("mount = \"/m\"", "mount = \"/m\"\nremoved = [\"/m/x\"]"), "reading it"),
        (
            GOOD.replace("unit =", "unknown ="),
            "unknown: unknown key: there are base, boot_check, check, command_timeout_secs",
        ),
        (GOOD.replace("mount = \"/m\"", "mount = \"/m\"\ncycles = 0"), "nothing would be run"),
        (GOOD.replace("exec_stop_post = 0", "exec_stop_post = \"SIGNOT\""), "give a signal as \"SIGTERM\""),
        (GOOD.replace("exec_stop_post = 0", "exec_stop_post = \"SIGTREM\""), "did you mean SIGTERM?"),
        (GOOD.replace("exec_stop_post = 0", "exec_stop_post = 256"), "an exit status is 0 to 255"),
        (
            GOOD.replace("exec_stop_post = 0", "exec_stop_post = []"),
            "a list where an exit status, or a signal",
        ),
        (
            format!("{GOOD}[expect.exec.ExecStpo]\nended = 0"),
            "ExecStpo: no such line: did you mean ExecStop?",
        ),
        (format!("{GOOD}[expect.exec.ExecStop]\nended = \"timeuot\""), "did you mean timeout? give a signal"),
        (
            format!("{GOOD}[expect.exec.ExecStopPost]\nended = 0"),
            "expect.exec_stop_post: exec or mount_unit_exec says",
        ),
        (format!("{GOOD}[expect.mount_unit_exec.ExecStart]\nended = 0"), "expect.mount_unit_exec: whose?"),
        (
            GOOD.replace("mount =", "free_devices = [\"loop0\"]\nmount ="),
            "free_devices[0]: \"loop0\": give an absolute",
        ),
        (format!("{GOOD}kept_devices = [\"/dev/loop0: swapped on\"]"), "give one of free_devices"),
        (format!("{GOOD}[[during]]\nrun = [\"true\"]"), "during[0]: when? give when, a state"),
        (format!("{GOOD}[[during]]\nwhen = \"failed\"\nafter_ms = 5\nrun = [\"true\"]"), "during[0]: when?"),
        (
            format!("{GOOD}[[during]]\nwhen = \"deactivatin/stop\"\nrun = [\"true\"]"),
            "did you mean deactivating?",
        ),
        (format!("{GOOD}[[during]]\nafter_ms = 5\nrun = []"), "during[0].run: an empty command"),
        (format!("{GOOD}verdict = \"held\""), "there are held by a process, "),
        (format!("{GOOD}verdict = \"held by yourslef\""), "did you mean held by yourself?"),
        (format!("{GOOD}umount = \"EBUSI\""), "did you mean EBUSY? there are ok, none, and an errno"),
        (format!("{GOOD}umount = \"ENOTANERRNO\""), "there are ok, none, and an errno"),
        (format!("{GOOD}remount = \"slient\""), "did you mean silent? there are silent, in use, an errno"),
        (format!("{GOOD}remount = \"not tried: tired\""), "not tried: still mounted"),
        (format!("{GOOD}\n[deploy.text]\nx = \"y\""), "deploy.text.x: \"x\": give an absolute path"),
        (format!("{GOOD}\n[deploy]\ntrees = [\"none\"]"), "deploy.trees[0]: no such directory: "),
        (
            format!("{GOOD}\n[deploy.programs]\n\"/x\" = \"./x\""),
            "16:8: deploy.programs.\"/x\": no such file",
        ),
        (format!("{GOOD}\n[deploy.programs]\n\"/x\" = \"l4dctl\""), "did you mean l4d2ctl?"),
        (format!("{GOOD}left_over = [\"/x\"]"), "name it in removed, too"),
        (format!("{GOOD}listed = \"x.service\""), "write [\"x.service\"]"),
        (format!("{GOOD}reset_min_ms = -1"), "-1: give a whole number from 0"),
        (format!("{GOOD}reset_min_ms = 1000"), "no reset takes less than this"),
        (GOOD.replace("\"inactive\"", "\"inactiv\""), "did you mean inactive?"),
        (format!("{GOOD}cycles = 3"), "expect.cycles: unknown key: it is a key of no table"),
        (GOOD.replace("unit =", "verdict = \"none\"\nunit ="), "verdict: unknown key: it is a key of expect"),
        (
            GOOD.replace("[expect]", "[history]\nstep = 1\nwhat = \"w\"\n[expect]"),
            "history.reported: missing",
        ),
        (GOOD.replace("[expect]", "[expects]"), "did you mean expect?"),
        (GOOD.replace("[expect]", "[expect"), "7:8: unclosed table"),
        (format!("{GOOD}\n[[check]]\nrun = []"), "check[0].run: an empty command"),
        (
            format!("{GOOD}\n[[check]]\nrun = [\"true\"]\nstdot = \"x\""),
            "17:1: check[0].stdot: unknown key: did you mean stdout? there are run, status, ",
        ),
    ];
    for (text, words) in cases {
        let problems = problems_of(&text).join("\n");
        assert!(problems.contains(words), "{words} is not in: {problems}");
    }
}

#[test]
fn a_machine_shuts_down_once() {
    let root = tempfile::tempdir().expect("tempdir");
    let load = |text: &str| {
        std::fs::write(root.path().join("scenario.toml"), text).expect("write");
        Scenario::load(root.path()).expect("a right one")
    };
    let command = load(GOOD);
    assert_eq!((command.plan(None).cycles, command.plan(Some(3)).cycles), (10, 3));
    assert_eq!(command.plan(None).reset, ["true"]);
    let shutdown = load(&GOOD.replace("reset = [\"true\"]", "reset = \"shutdown\""));
    assert_eq!(shutdown.manifest.reset, Reset::Shutdown);
    assert_eq!((shutdown.plan(None).cycles, shutdown.plan(Some(3)).cycles), (1, 1));
}

#[test]
fn holders_are_words_that_a_cycle_can_have() {
    for (holder, words) in [
        ("control left4me-overlay (cwd)", None),
        ("child Web Content (file, mapping)", None),
        ("contrl left4me-overlay (cwd)", Some("no role contrl: did you mean control?")),
        ("main sh (cdw)", Some("no kind of reference cdw: did you mean cwd?")),
        (
            "mian sh (fils)",
            Some(
                "no role mian: did you mean main? there are main, child, control, control-child, outside; no kind of reference fils: did you mean file?",
            ),
        ),
        ("outside scratch-indexer-2 (cwd)", Some("the kernel keeps 15 bytes of a name: \"scratch-indexer\"")),
        ("sleep", Some("give role, name and kinds")),
        ("outside sleep cwd", Some("give role, name and kinds")),
    ] {
        let text = GOOD.replace("holders = []", &format!("holders = [{holder:?}]"));
        let problems = problems_of(&text).join("\n");
        assert!(words.map_or(problems.is_empty(), |words| problems.contains(words)), "{holder}: {problems}");
    }
}

#[test]
fn all_that_is_wrong_is_reported_at_once() {
    let root = tempfile::tempdir().expect("tempdir");
    let write = |path: &str, text: &str| {
        let path = root.path().join(path);
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("mkdir");
        std::fs::write(path, text).expect("write");
    };
    write("base.toml", include_str!("horrible/base.toml"));
    write("horrible/scenario.toml", include_str!("horrible/scenario.toml"));
    write("twin/scenario.toml", "base = \"../base.toml\"");
    write("torn/scenario.toml", "description = \"no end\ncycles = = 3\nunit = \"x.service\"\n");
    let names = ["horrible", "twin", "torn", "horible", "nothing-like-it"].map(str::to_owned);
    let error =
        select(&[root.path().to_owned()], &names, Some(&["l4d2ctl", "vm-game"])).expect_err("all wrong");
    assert_eq!(Verdict::of_error(&error).exit_code(), 2);
    let shown = root.path().canonicalize().expect("it is there").display().to_string();
    insta::assert_snapshot!("horrible", format!("{error:#}").replace(&shown, "…"));
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
    for file in ["shared/a/x", "shared/b/x", "shared/files/x", "mine/files/x", "mine/c/x", "shared/x"] {
        write(file, "");
    }
    write("shared/two.toml", "base = \"one.toml\"\ncycles = 3\n[deploy]\ntrees = [\"b\"]");
    write(
        "mine/scenario.toml",
        "base = \"../shared/two.toml\"\ndescription = \"mine\"\n[deploy]\ntrees = [\"c\"]\n\
         [expect]\nactive_state = \"failed\"\nexec_stop_post = \"SIGTERM\"",
    );
    let Manifest { description, unit, cycles, deploy, expect, .. } =
        Scenario::load(&root.path().join("mine")).expect("a good one").manifest;
    assert_eq!((description.as_str(), unit.as_str(), cycles), ("mine", "x.service", Some(3)));
    let shared = root.path().canonicalize().expect("it is there").join("shared");
    let trees = [shared.join("a"), shared.join("b"), shared.join("files"), PathBuf::from("c")];
    assert_eq!(deploy.trees, trees, "files/ of both bases once, and no scenario's own, which come last");
    assert!(deploy.programs["/x"].ends_with("shared/x"), "{:?}", deploy.programs);
    assert_eq!(deploy.programs["/y"], "y", "a program by name is nobody's path");
    assert_eq!(expect.failed_units(), ["x.service"]);
    assert_eq!(expect.exec_stop_post.map(|expected| expected.0), Some(Exit::Signal(15)));

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
    let of_system = "systemctl show x.service m.service; echo; systemctl status --no-pager --full x.service m.service; echo; ";
    assert_eq!(left_out.show_units(), of_system);
    let mut of_user = left_out.clone();
    of_user.manifest.user = Some("u".to_owned());
    of_user.manifest.mount_unit = None;
    let systemctl = "runuser -u u -- systemctl --user";
    assert_eq!(
        of_user.show_units(),
        format!("{systemctl} show x.service; echo; {systemctl} status --no-pager --full x.service; echo; ")
    );
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
    let error = select(&roots, &["onne".into()], None).expect_err("no such scenario");
    assert!(
        format!("{error:#}").contains("no scenario onne: did you mean one? there are one (or give"),
        "{error:#}"
    );
    assert_eq!(Verdict::of_error(&error).exit_code(), 2);
    assert_eq!(select(&roots, &[], None).expect("all").len(), 1);
}

#[test]
fn two_scenarios_of_one_name_would_have_each_others_results() {
    let root = tempfile::tempdir().expect("tempdir");
    for directory in ["a/one", "b/one"] {
        std::fs::create_dir_all(root.path().join(directory)).expect("mkdir");
        std::fs::write(root.path().join(directory).join("scenario.toml"), GOOD).expect("write");
    }
    let path = |directory: &str| root.path().join(directory).to_string_lossy().into_owned();
    let twice = select(&[], &[path("a/one"), path("a/../a/one")], None).expect("the same one");
    assert_eq!(twice.len(), 1);
    let error =
        format!("{:#}", select(&[], &[path("a/one"), path("b/one")], None).expect_err("two of one name"));
    assert!(error.contains("two scenarios are named one") && error.contains(&path("b/one")), "{error}");
}
