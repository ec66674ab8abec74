//! What in a unit's settings defeats the design: a list of rules over what systemd has loaded, drop-ins included. The
//! rules for units other than the server's own are in `neighbours.rs`.
//!
//! [`lint`] is pure; `systemd.rs` reads [`UnitSetup`] from the loaded unit. Each rule stands for something that was
//! seen to go wrong, and its finding says what and how to set it right.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;

use crate::unit_end::DEFAULT_WAIT;

/// How much longer than the helper's own wait a stop phase has to be: the unmount itself, and the writing back of what
/// is dirty.
const MARGIN: Duration = Duration::from_secs(3);

/// mount(2)'s flag, as `MountFlags` has it.
pub(crate) const MS_PRIVATE: u64 = 1 << 18;

/// The settings of a loaded service that matter here, as org.freedesktop.systemd1(5) has them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UnitSetup {
    /// The unit's name.
    pub unit: String,
    /// The instance's mountpoint.
    pub merged: PathBuf,
    /// The unit's file.
    pub fragment: String,
    /// Its drop-ins.
    pub drop_ins: Vec<String>,
    /// Whether a file was changed since it was loaded.
    pub need_daemon_reload: bool,
    /// `ExecStartPre=`.
    pub exec_start_pre: Vec<ExecLine>,
    /// `ExecStopPost=`.
    pub exec_stop_post: Vec<ExecLine>,
    /// What its processes see.
    pub sandbox: Sandbox,
    /// `KillMode=`.
    pub kill_mode: String,
    /// `SendSIGKILL=`.
    pub send_sigkill: bool,
    /// `TimeoutStopSec=`; none if it is `infinity`.
    pub timeout_stop: Option<Duration>,
}

/// The settings that say what a service's processes see of the mounts, and where they begin. Paths that are set twice
/// are there twice.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sandbox {
    /// `MountFlags=`: mount(2)'s propagation flags.
    pub mount_flags: u64,
    /// `RootDirectory=` and `RootImage=`, those that are set, each with its setting.
    pub roots: Vec<(&'static str, PathBuf)>,
    /// `BindPaths=` and `BindReadOnlyPaths=`.
    pub binds: Vec<Bind>,
    /// Everything that is made by a mount at that very path, each with its setting: `ReadOnlyPaths=`,
    /// `ReadWritePaths=`, `InaccessiblePaths=`, `TemporaryFileSystem=`.
    pub mounted_over: Vec<(&'static str, PathBuf)>,
    /// `WorkingDirectory=`; empty if it is not set.
    pub working_directory: PathBuf,
}

impl Sandbox {
    /// What it mounts within `merged`, and so on its own copy of the overlay, each with its setting. A mount at `merged`
    /// itself covers the copy and goes away with it.
    pub(crate) fn mounts_within(&self, merged: &Path) -> impl Iterator<Item = (&'static str, &Path)> {
        let binds = self.binds.iter().map(|bind| (bind.setting, bind.destination.as_path()));
        let over = self.mounted_over.iter().map(|(setting, path)| (*setting, path.as_path()));
        binds.chain(over).filter(move |(_setting, path)| *path != merged && path.starts_with(merged))
    }
}

/// An entry of `BindPaths=` or `BindReadOnlyPaths=`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bind {
    /// Which of the two.
    pub setting: &'static str,
    /// What is bound.
    pub source: PathBuf,
    /// To where.
    pub destination: PathBuf,
}

/// One command of an Exec setting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecLine {
    /// The command with its arguments.
    pub argv: Vec<String>,
    /// `privileged` for `+`, `ignore-failure` for `-`.
    pub flags: Vec<String>,
}

/// Something that defeats the design.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The unit that has the setting, if it is not the server's own.
    pub unit: Option<String>,
    /// The setting.
    pub setting: &'static str,
    /// What it does.
    pub problem: String,
    /// What to write instead.
    pub remedy: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(unit) = &self.unit {
            write!(f, "{unit}: ")?;
        }
        write!(f, "{}: {}; {}", self.setting, self.problem, self.remedy)
    }
}

/// Every rule that the server's own unit breaks, in the order of the rules.
#[must_use]
pub fn lint(setup: &UnitSetup) -> Vec<Finding> {
    let mut found = Vec::new();
    let mut find = |setting, problem: String, remedy: &str| {
        found.push(Finding { unit: None, setting, problem, remedy: remedy.to_owned() });
    };
    if setup.need_daemon_reload {
        find(
            "daemon-reload",
            "the unit's files were changed since systemd loaded them".into(),
            "run `systemctl daemon-reload`, then ask again",
        );
    }
    exec_rules("ExecStartPre", "mount", &setup.exec_start_pre, &mut find);
    exec_rules("ExecStopPost", "umount", &setup.exec_stop_post, &mut find);
    let umount = helper_line(&setup.exec_stop_post, "umount");
    if let Some(line) = umount
        && !line.argv.iter().any(|word| word == "--end-unit")
    {
        find(
            "ExecStopPost",
            "a child of the server that ignores SIGTERM keeps the mount busy, as systemd's SIGKILL comes later".into(),
            "add --end-unit to the umount line",
        );
    }
    if setup.sandbox.mount_flags & MS_PRIVATE != 0 {
        find(
            "MountFlags",
            "private keeps a copy of the overlay alive behind a successful umount, and the next mount finds its \
             upper layer in use"
                .into(),
            "take the setting out",
        );
    }
    for (setting, root) in &setup.sandbox.roots {
        find(
            setting,
            format!(
                "{} gives the server a root of its own, with copies of mounts that umount does not reach",
                root.display()
            ),
            "take RootDirectory= and RootImage= out",
        );
    }
    for bind in setup.sandbox.binds.iter().filter(|bind| bind.source.starts_with(&setup.merged)) {
        find(
            bind.setting,
            format!("a bind of {} keeps the overlay alive behind a successful umount", bind.source.display()),
            "bind nothing that is the overlay or lies in it",
        );
    }
    for (setting, path) in setup.sandbox.mounts_within(&setup.merged) {
        find(
            setting,
            format!(
                "a mount at {} lies on the server's copy of the overlay and keeps that alive",
                path.display()
            ),
            "give whole directories outside of merged, or merged itself",
        );
    }
    match setup.kill_mode.as_str() {
        "process" | "none" => find(
            "KillMode",
            format!("{} leaves the server's children alone, and they keep the mount busy", setup.kill_mode),
            "use KillMode=control-group",
        ),
        "mixed" => find(
            "KillMode",
            "mixed sends SIGTERM to the shell only; the server below it hears of the stop when the shell is gone".into(),
            "use KillMode=control-group",
        ),
        _ => {}
    }
    if !setup.send_sigkill {
        find("SendSIGKILL", "a child that ignores SIGTERM stays for ever".into(), "take SendSIGKILL=no out");
    }
    let wait = umount.map_or(DEFAULT_WAIT, wait_of);
    if let Some(timeout) = setup.timeout_stop
        && timeout < wait.saturating_add(MARGIN)
    {
        find(
            "TimeoutStopSec",
            format!(
                "{} s ends the helper before its own wait of {} s does",
                timeout.as_secs(),
                wait.as_secs()
            ),
            "make it longer, or the helper's --wait shorter",
        );
    }
    found
}

fn exec_rules(
    setting: &'static str,
    verb: &str,
    lines: &[ExecLine],
    find: &mut impl FnMut(&'static str, String, &str),
) {
    let Some(line) = helper_line(lines, verb) else {
        find(
            setting,
            format!("no line runs `left4me-overlay {verb}`"),
            "restore the line of the unit as it was shipped",
        );
        return;
    };
    if !enters_pid1s_namespace(&line.argv) {
        find(
            setting,
            format!("the {verb} line does not enter PID 1's mount namespace, so the helper refuses to run"),
            "begin it with `+/usr/bin/nsenter --mount=/proc/1/ns/mnt --`",
        );
    }
    if !line.flags.iter().any(|flag| flag == "privileged") {
        find(
            setting,
            format!("the {verb} line runs as the server's user and in its sandbox"),
            "begin it with a `+`",
        );
    }
    if line.flags.iter().any(|flag| flag == "ignore-failure") {
        find(
            setting,
            format!(
                "the `-` of the {verb} line hides that it failed, and a server starts or stops all the same"
            ),
            "take the `-` out",
        );
    }
}

fn helper_line<'a>(lines: &'a [ExecLine], verb: &str) -> Option<&'a ExecLine> {
    lines.iter().find(|line| {
        let mut words = line.argv.iter().skip_while(|word| !is_helper(word));
        words.next().is_some() && words.any(|word| word == verb)
    })
}

fn is_helper(word: &str) -> bool {
    Path::new(word).file_name().is_some_and(|name| name == "left4me-overlay")
}

fn enters_pid1s_namespace(argv: &[String]) -> bool {
    let before: Vec<_> = argv.iter().take_while(|word| !is_helper(word)).map(String::as_str).collect();
    let nsenter =
        before.first().is_some_and(|word| Path::new(word).file_name().is_some_and(|name| name == "nsenter"));
    let mount = before.iter().any(|word| {
        matches!(*word, "--mount=/proc/1/ns/mnt" | "-m/proc/1/ns/mnt")
            || (matches!(*word, "-m" | "--mount" | "-a" | "--all") && targets_pid1(&before))
    });
    nsenter && mount
}

/// nsenter's `--target 1` in each of its spellings.
fn targets_pid1(argv: &[&str]) -> bool {
    argv.iter().any(|word| matches!(*word, "-t1" | "--target=1"))
        || argv.windows(2).any(|pair| matches!(pair, ["-t" | "--target", "1"]))
}

/// The helper's `--wait`, seconds.
fn wait_of(line: &ExecLine) -> Duration {
    let given =
        line.argv.iter().zip(line.argv.iter().skip(1).map(Some).chain([None])).find_map(|(word, next)| {
            match word.strip_prefix("--wait") {
                Some("") => next?.parse().ok(),
                Some(value) => value.strip_prefix('=')?.parse().ok(),
                None => None,
            }
        });
    given.map_or(DEFAULT_WAIT, Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MERGED: &str = "/var/lib/left4me/runtime/3/merged";

    fn bind(setting: &'static str, source: &str, destination: &str) -> Bind {
        Bind { setting, source: source.into(), destination: destination.into() }
    }

    fn words(line: &str) -> Vec<String> {
        line.split(' ').map(str::to_owned).collect()
    }

    /// The unit as it is shipped, read from its file.
    fn shipped() -> UnitSetup {
        let text = include_str!("../../deploy/files/usr/local/lib/systemd/system/left4me-server@.service");
        let all = |key: &str| {
            text.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('=')).collect::<Vec<_>>()
        };
        let exec = |key: &str| {
            let line = all(key)[0].replace("%i", "3");
            let argv = words(line.strip_prefix('+').expect("privileged"));
            vec![ExecLine { argv, flags: vec!["privileged".into()] }]
        };
        let timeout = all("TimeoutStopSec")[0].strip_suffix('s').unwrap().parse().unwrap();
        UnitSetup {
            unit: "left4me-server@3.service".into(),
            merged: MERGED.into(),
            exec_start_pre: exec("ExecStartPre"),
            exec_stop_post: exec("ExecStopPost"),
            sandbox: Sandbox {
                mounted_over: vec![("ReadWritePaths", MERGED.into())],
                working_directory: MERGED.into(),
                ..Sandbox::default()
            },
            kill_mode: all("KillMode")[0].into(),
            send_sigkill: all("SendSIGKILL").is_empty(),
            timeout_stop: Some(Duration::from_secs(timeout)),
            ..UnitSetup::default()
        }
    }

    #[test]
    fn the_unit_as_shipped_is_fine() {
        assert_eq!(lint(&shipped()), []);
    }

    #[test]
    fn each_rule_finds_what_it_is_for() {
        type Break = fn(&mut UnitSetup);
        let table: [(Break, &[&str]); 22] = [
            (|unit| unit.need_daemon_reload = true, &["daemon-reload"]),
            (|unit| unit.exec_start_pre.clear(), &["ExecStartPre"]),
            (|unit| unit.exec_stop_post.clear(), &["ExecStopPost"]),
            (
                |unit| unit.exec_stop_post[0].argv = words("/x/left4me-overlay umount --end-unit 3"),
                &["ExecStopPost"],
            ),
            (
                |unit| {
                    unit.exec_stop_post[0].argv =
                        words("/usr/bin/nsenter -m /x/left4me-overlay umount --end-unit 3")
                },
                &["ExecStopPost"],
            ),
            (
                |unit| {
                    unit.exec_stop_post[0].argv =
                        words("/usr/bin/nsenter -t 1 -m /x/left4me-overlay umount --end-unit 3")
                },
                &[],
            ),
            (|unit| unit.exec_stop_post[0].argv.retain(|word| word != "--end-unit"), &["ExecStopPost"]),
            (|unit| unit.exec_start_pre[0].flags.clear(), &["ExecStartPre"]),
            (|unit| unit.exec_stop_post[0].flags.push("ignore-failure".into()), &["ExecStopPost"]),
            (|unit| unit.sandbox.mount_flags = 1 << 18, &["MountFlags"]),
            (|unit| unit.sandbox.mount_flags = 1 << 19, &[]),
            (|unit| unit.sandbox.roots.push(("RootImage", "/srv/root.img".into())), &["RootImage"]),
            (
                |unit| unit.sandbox.binds.push(bind("BindPaths", &format!("{MERGED}/x"), "/mnt")),
                &["BindPaths"],
            ),
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
            (|unit| unit.send_sigkill = false, &["SendSIGKILL"]),
            (|unit| unit.timeout_stop = Some(Duration::from_secs(5)), &["TimeoutStopSec"]),
            (
                |unit| {
                    unit.timeout_stop = Some(Duration::from_secs(5));
                    unit.exec_stop_post[0].argv.insert(5, "--wait=1".into());
                },
                &[],
            ),
            (|unit| unit.exec_stop_post[0].argv.push(format!("--wait={}", u64::MAX)), &["TimeoutStopSec"]),
        ];
        for (number, (change, expected)) in table.into_iter().enumerate() {
            let mut setup = shipped();
            change(&mut setup);
            let found = lint(&setup);
            let settings: Vec<_> = found.iter().map(|finding| finding.setting).collect();
            assert_eq!(settings, expected, "row {number}: {found:?}");
            assert!(found.iter().all(|finding| !finding.to_string().contains('\n')));
        }
    }

    #[test]
    fn several_at_once_are_all_told() {
        let setup = UnitSetup { kill_mode: "none".into(), ..UnitSetup::default() };
        let settings: Vec<_> = lint(&setup).iter().map(|finding| finding.setting).collect();
        assert_eq!(settings, ["ExecStartPre", "ExecStopPost", "KillMode", "SendSIGKILL"]);
    }

    proptest! {
        #[test]
        fn never_panics(words in prop::collection::vec("(--wait=?)?([a-z0-9/=é]{0,8}|[0-9]{17,21})|left4me-overlay|umount|-m", 0..6)) {
            let line = ExecLine { argv: words, flags: vec![] };
            let setup = UnitSetup { exec_stop_post: vec![line], timeout_stop: Some(Duration::ZERO), ..shipped() };
            prop_assert!(!lint(&setup).is_empty());
        }
    }
}
