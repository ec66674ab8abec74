//! Each rule, and a unit that breaks none.

use proptest::prelude::*;

use super::*;

const MERGED: &str = "/var/lib/left4me/runtime/3/merged";
const OVERLAY: &str = "left4me-overlay@3.service";

/// What the rules are about in the two units.
const SERVER_UNIT: &str =
    include_str!("../../../deploy/files/usr/local/lib/systemd/system/left4me-server@.service");
const OVERLAY_UNIT: &str =
    include_str!("../../../deploy/files/usr/local/lib/systemd/system/left4me-overlay@.service");

fn bind(setting: &'static str, source: &str, destination: &str) -> Bind {
    Bind { setting, source: source.into(), destination: destination.into() }
}

fn line(words: &str) -> ExecLine {
    ExecLine { argv: words.split(' ').map(str::to_owned).collect(), flags: vec![] }
}

/// Every value of a key in a unit file, for instance 3.
fn all(text: &str, key: &str) -> Vec<String> {
    let values = text.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    values.map(|value| value.replace("%i", "3")).collect()
}

fn seconds(text: &str) -> Option<Duration> {
    let value = all(text, "TimeoutStopSec").remove(0);
    Some(Duration::from_secs(value.strip_suffix('s').unwrap().parse().unwrap()))
}

/// The units as they are shipped.
fn shipped() -> UnitSetup {
    let words = |key| all(SERVER_UNIT, key).join(" ").split(' ').map(str::to_owned).collect();
    UnitSetup {
        unit: "left4me-server@3.service".into(),
        own_user: "left4me-3".into(),
        merged: Mountpoint::new(vec![MERGED.into()]),
        requires: words("Requires"),
        after: words("After"),
        user: all(SERVER_UNIT, "User").remove(0),
        around: vec![("ExecStartPre", line("/bin/true"))],
        sandbox: Sandbox {
            mounted_over: vec![("ReadWritePaths", MERGED.into())],
            working_directory: MERGED.into(),
            ..Sandbox::default()
        },
        kill_mode: all(SERVER_UNIT, "KillMode").remove(0),
        send_sigkill: all(SERVER_UNIT, "SendSIGKILL").is_empty(),
        timeout_stop: seconds(SERVER_UNIT),
        overlay: OverlaySetup {
            unit: OVERLAY.into(),
            load_state: "loaded".into(),
            exec_start: all(OVERLAY_UNIT, "ExecStart").iter().map(|words| line(words)).collect(),
            exec_stop_post: all(OVERLAY_UNIT, "ExecStopPost").iter().map(|words| line(words)).collect(),
            remain_after_exit: all(OVERLAY_UNIT, "RemainAfterExit") == ["yes"],
            timeout_stop: seconds(OVERLAY_UNIT),
            ..OverlaySetup::default()
        },
        ..UnitSetup::default()
    }
}

#[test]
fn the_units_as_shipped_are_fine() {
    assert_eq!(lint(&shipped()), []);
}

#[test]
fn each_rule_finds_what_it_is_for() {
    type Break = fn(&mut UnitSetup);
    let of_the_server: [(Break, &[&str]); 21] = [
        (|unit| unit.need_daemon_reload = true, &["daemon-reload"]),
        (|unit| unit.requires.clear(), &["Requires"]),
        (|unit| unit.after.clear(), &["After"]),
        (
            |unit| unit.around.push(("ExecStartPre", line("nsenter -- /x/left4me-overlay mount 3"))),
            &["ExecStartPre"],
        ),
        (
            |unit| unit.around.push(("ExecStopPost", line("/x/left4me-overlay umount --end-unit 3"))),
            &["ExecStopPost"],
        ),
        (|unit| unit.user = "left4me".into(), &["User"]),
        (|unit| unit.user.clear(), &["User"]),
        (|unit| unit.sandbox.mount_flags = 1 << 18, &["MountFlags"]),
        (|unit| unit.sandbox.mount_flags = 1 << 19, &[]),
        (|unit| unit.sandbox.roots.push(("RootImage", "/srv/root.img".into())), &["RootImage"]),
        (|unit| unit.sandbox.binds.push(bind("BindPaths", &format!("{MERGED}/x"), "/mnt")), &["BindPaths"]),
        (
            |unit| unit.sandbox.binds.push(bind("BindReadOnlyPaths", "/srv", &format!("{MERGED}/x"))),
            &["BindReadOnlyPaths"],
        ),
        // Propagation unmounts the copy in such a bind with the original.
        (|unit| unit.sandbox.binds.push(bind("BindPaths", "/var/lib/left4me", "/mnt")), &[]),
        (|unit| unit.sandbox.binds.push(bind("BindPaths", "/srv/maps", "/srv/maps")), &[]),
        (
            |unit| unit.sandbox.mounted_over.push(("TemporaryFileSystem", format!("{MERGED}/x").into())),
            &["TemporaryFileSystem"],
        ),
        (|unit| unit.kill_mode = "process".into(), &["KillMode"]),
        (|unit| unit.kill_mode = "mixed".into(), &["KillMode"]),
        (|unit| unit.send_sigkill = false, &["SendSIGKILL"]),
        (|unit| unit.timeout_stop = None, &["TimeoutStopSec"]),
        (|unit| unit.timeout_stop = Some(DEFAULT_TIMEOUT), &["TimeoutStopSec"]),
        (|unit| unit.timeout_stop = Some(Duration::from_secs(5)), &[]),
    ];
    let of_the_overlay: [(Break, &[&str]); 14] = [
        (|unit| unit.overlay.load_state = "not-found".into(), &["LoadState"]),
        (|unit| unit.overlay.need_daemon_reload = true, &["daemon-reload"]),
        (|unit| unit.overlay.exec_start.clear(), &["ExecStart"]),
        (|unit| unit.overlay.exec_stop_post.clear(), &["ExecStopPost"]),
        (|unit| unit.overlay.exec_stop_post[0].argv[1] = "mount".into(), &["ExecStopPost"]),
        (|unit| unit.overlay.exec_stop_post[0].flags.push("ignore-failure".into()), &["ExecStopPost"]),
        (|unit| unit.overlay.remain_after_exit = false, &["RemainAfterExit"]),
        (|unit| unit.overlay.user = "left4me-3".into(), &["User"]),
        (|unit| unit.overlay.namespaced = vec!["PrivateTmp", "ProtectHome"], &["PrivateTmp", "ProtectHome"]),
        (|unit| unit.overlay.working_directory = MERGED.into(), &["WorkingDirectory"]),
        (|unit| unit.overlay.timeout_stop = Some(Duration::from_secs(12)), &["TimeoutStopSec"]),
        (
            |unit| {
                unit.overlay.timeout_stop = Some(Duration::from_secs(12));
                unit.overlay.exec_stop_post[0].argv.insert(2, "--wait=1".into());
            },
            &[],
        ),
        (
            |unit| unit.overlay.exec_stop_post[0].argv.push(format!("--wait={}", u64::MAX)),
            &["TimeoutStopSec"],
        ),
        (|unit| unit.overlay.timeout_stop = None, &[]),
    ];
    let server = of_the_server.into_iter().map(|row| (None, row));
    let overlay = of_the_overlay.into_iter().map(|row| (Some(OVERLAY), row));
    let mut told = String::new();
    for (number, (of, (change, expected))) in server.chain(overlay).enumerate() {
        let mut setup = shipped();
        change(&mut setup);
        let found = lint(&setup);
        let settings: Vec<_> = found.iter().map(|finding| finding.setting.as_str()).collect();
        assert_eq!(settings, expected, "row {number}: {found:?}");
        assert!(found.iter().all(|finding| finding.unit.as_deref() == of), "row {number}: {found:?}");
        assert!(found.iter().all(|finding| !finding.to_string().contains('\n')));
        told.extend(found.iter().map(|finding| format!("{finding}\n")));
    }
    insta::assert_snapshot!(told);
}

#[test]
fn several_at_once_are_all_told() {
    let setup = UnitSetup { kill_mode: "none".into(), ..UnitSetup::default() };
    let settings: Vec<_> = lint(&setup).into_iter().map(|finding| finding.setting).collect();
    let expected = ["Requires", "After", "KillMode", "SendSIGKILL", "TimeoutStopSec", "LoadState"];
    assert_eq!(settings, expected);
}

#[test]
fn where_the_state_directory_is_a_link_both_of_its_names_count() {
    let parent = tempfile::tempdir().unwrap();
    let (real, link) = (parent.path().canonicalize().unwrap().join("real"), parent.path().join("link"));
    std::fs::create_dir(&real).unwrap();
    std::os::unix::fs::symlink(&real, &link).unwrap();
    let merged = Mountpoint::of(&"3".parse().unwrap(), &link);
    for name in [&link, &real] {
        let source = name.join("runtime/3/merged/maps");
        let binds = vec![bind("BindPaths", source.to_str().unwrap(), "/mnt")];
        let sandbox = Sandbox { binds, ..Sandbox::default() };
        let setup = UnitSetup { sandbox, merged: merged.clone(), ..shipped() };
        assert_eq!(lint(&setup).len(), 1, "{}", name.display());
    }
    assert_eq!(names(&real), [real]);
}

proptest! {
    #[test]
    fn never_panics(words in prop::collection::vec("(--wait=?)?([a-z0-9/=é]{0,8}|[0-9]{17,21})|left4me-overlay|umount|-m", 0..6)) {
        let line = ExecLine { argv: words, flags: vec![] };
        let overlay = OverlaySetup {
            exec_stop_post: vec![line.clone()],
            timeout_stop: Some(Duration::ZERO),
            ..shipped().overlay
        };
        let setup = UnitSetup { overlay, around: vec![("ExecStop", line.clone())], ..shipped() };
        let found = lint(&setup);
        prop_assert!(!found.is_empty());
        let is_old = found.iter().any(|finding| finding.setting == "ExecStop");
        prop_assert_eq!(is_old, line.argv.iter().any(|word| is_helper(word)));
    }
}
