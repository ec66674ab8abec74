//! What in the settings of an instance's two units defeats the design: a list of rules over what systemd has loaded,
//! drop-ins included. The rules for other units are in `neighbours.rs`.
//!
//! [`lint`] is pure; `systemd.rs` reads [`UnitSetup`] from the loaded unit. Each rule stands for something that was
//! seen to go wrong, and its finding says what and how to set it right.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use left4me_helper::instance::Instance;
use left4me_helper::unit_end::DEFAULT_WAIT;
use serde::{Deserialize, Serialize};

use crate::actions::DEFAULT_TIMEOUT;

/// How much longer than the helper's own wait a stop phase has to be: the unmount itself, and the writing back of what
/// is dirty.
const MARGIN: Duration = Duration::from_secs(3);

/// mount(2)'s flag, as `MountFlags` has it.
pub(crate) const MS_PRIVATE: u64 = 1 << 18;

/// An instance's mountpoint, by each name that a setting may have for it: the one below
/// [`STATE_DIR`](left4me_helper::instance::STATE_DIR), and, where that is a link, the one that the mount table has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mountpoint(Vec<PathBuf>);

impl Mountpoint {
    /// By these names, the one that is shown first.
    #[must_use]
    pub fn new(names: Vec<PathBuf>) -> Self {
        Self(names)
    }

    /// That of `instance`.
    #[must_use]
    pub fn of(instance: &Instance, state_dir: &Path) -> Self {
        Self(names(state_dir).iter().map(|name| instance.paths(name).merged).collect())
    }

    /// Whether a path is the mountpoint.
    pub(crate) fn is(&self, path: &Path) -> bool {
        self.0.iter().any(|name| name == path)
    }

    /// Whether a path is the mountpoint or lies in it.
    pub(crate) fn holds(&self, path: &Path) -> bool {
        self.0.iter().any(|name| path.starts_with(name))
    }

    /// Whether it is `root` or lies below it.
    pub(crate) fn is_below(&self, root: &Path) -> bool {
        self.0.iter().any(|name| name.starts_with(root))
    }

    /// Whether a path is the runtime directory, in which it is, or lies in that.
    pub(crate) fn has_beside(&self, path: &Path) -> bool {
        self.0.iter().filter_map(|name| name.parent()).any(|runtime| path.starts_with(runtime))
    }
}

/// The names of a directory: the one that is given, and the one that it has without links, if that is another.
#[must_use]
pub fn names(directory: &Path) -> Vec<PathBuf> {
    let real = std::fs::canonicalize(directory).ok().filter(|real| real != directory);
    std::iter::once(directory.to_owned()).chain(real).collect()
}

/// The settings of a server's loaded unit that matter here, as org.freedesktop.systemd1(5) has them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UnitSetup {
    /// The unit's name.
    pub unit: String,
    /// The user that it should run as.
    pub own_user: String,
    /// The instance's mountpoint.
    pub merged: Mountpoint,
    /// The unit's file.
    pub fragment: String,
    /// Its drop-ins.
    pub drop_ins: Vec<String>,
    /// Whether a file was changed since it was loaded.
    pub need_daemon_reload: bool,
    /// `Requires=`.
    pub requires: Vec<String>,
    /// `After=`.
    pub after: Vec<String>,
    /// `User=`; empty if it is not set.
    pub user: String,
    /// Its commands before the server starts and after it has ended, each with its setting.
    pub around: Vec<(&'static str, ExecLine)>,
    /// What its processes see.
    pub sandbox: Sandbox,
    /// `KillMode=`.
    pub kill_mode: String,
    /// `SendSIGKILL=`.
    pub send_sigkill: bool,
    /// `TimeoutStopSec=`; none if it is `infinity`.
    pub timeout_stop: Option<Duration>,
    /// The overlay's unit.
    pub overlay: OverlaySetup,
}

/// The settings of the overlay's unit that matter here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OverlaySetup {
    /// The unit's name.
    pub unit: String,
    /// `loaded`, or why not: then nothing else is known.
    pub load_state: String,
    /// The unit's file.
    pub fragment: String,
    /// Its drop-ins.
    pub drop_ins: Vec<String>,
    /// Whether a file was changed since it was loaded.
    pub need_daemon_reload: bool,
    /// `ExecStart=`.
    pub exec_start: Vec<ExecLine>,
    /// `ExecStopPost=`.
    pub exec_stop_post: Vec<ExecLine>,
    /// `RemainAfterExit=`.
    pub remain_after_exit: bool,
    /// `User=`; empty if it is not set.
    pub user: String,
    /// The settings that are set and give its commands a mount namespace of their own.
    pub namespaced: Vec<&'static str>,
    /// `WorkingDirectory=`; empty if it is not set.
    pub working_directory: PathBuf,
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
    pub(crate) fn mounts_within(&self, merged: &Mountpoint) -> impl Iterator<Item = (&'static str, &Path)> {
        let binds = self.binds.iter().map(|bind| (bind.setting, bind.destination.as_path()));
        let over = self.mounted_over.iter().map(|(setting, path)| (*setting, path.as_path()));
        binds.chain(over).filter(move |(_setting, path)| !merged.is(path) && merged.holds(path))
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// The unit that has the setting, if it is not the server's own.
    pub unit: Option<String>,
    /// The setting.
    pub setting: String,
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

/// Every rule that the instance's own two units break, in the order of the rules.
#[must_use]
pub fn lint(setup: &UnitSetup) -> Vec<Finding> {
    let mut found = Vec::new();
    server_rules(setup, &mut |setting: &str, problem, remedy: &str| {
        found.push(Finding { unit: None, setting: setting.to_owned(), problem, remedy: remedy.to_owned() });
    });
    let unit = &setup.overlay.unit;
    overlay_rules(&setup.overlay, &setup.merged, &mut |setting, problem, remedy: &str| {
        found.push(Finding {
            unit: Some(unit.clone()),
            setting: setting.to_owned(),
            problem,
            remedy: remedy.to_owned(),
        });
    });
    found
}

const RELOAD: &str = "run `sudo systemctl daemon-reload`, then run doctor again";
const AS_SHIPPED: &str = "restore the line as in the shipped unit";
const CHANGED: &str = "the unit's files were changed since systemd loaded them";

fn server_rules(setup: &UnitSetup, find: &mut impl FnMut(&'static str, String, &str)) {
    let overlay = &setup.overlay.unit;
    if setup.need_daemon_reload {
        find("daemon-reload", CHANGED.into(), RELOAD);
    }
    if !setup.requires.contains(overlay) {
        find(
            "Requires",
            format!(
                "the server does not require {overlay}: nothing mounts the overlay, and a stop of that unit does not stop the server"
            ),
            AS_SHIPPED,
        );
    }
    if !setup.after.contains(overlay) {
        find(
            "After",
            format!(
                "not ordered after {overlay}, the server starts before the overlay is mounted, and at a stop it is \
                 unmounted while the server still runs"
            ),
            AS_SHIPPED,
        );
    }
    for (setting, _line) in
        setup.around.iter().filter(|(_, line)| line.argv.iter().any(|word| is_helper(word)))
    {
        find(
            setting,
            format!("a line of an old drop-in runs left4me-overlay; {overlay} does that now"),
            "remove the line",
        );
    }
    if setup.user != setup.own_user {
        let user = if setup.user.is_empty() { "root" } else { &setup.user };
        find(
            "User",
            format!(
                "{user} instead of {}: servers of one user can kill each other, and read each other's files",
                setup.own_user
            ),
            "remove User= from the drop-in",
        );
    }
    if setup.sandbox.mount_flags & MS_PRIVATE != 0 {
        find(
            "MountFlags",
            "private keeps a copy of the overlay alive behind a successful umount, and the next mount finds its \
             upper layer in use"
                .into(),
            "remove the setting",
        );
    }
    for (setting, root) in &setup.sandbox.roots {
        find(
            setting,
            format!(
                "{} gives the server a root of its own, with copies of mounts that umount does not reach",
                root.display()
            ),
            "remove RootDirectory= and RootImage=",
        );
    }
    for bind in setup.sandbox.binds.iter().filter(|bind| setup.merged.holds(&bind.source)) {
        find(
            bind.setting,
            format!("a bind of {} keeps the overlay alive behind a successful umount", bind.source.display()),
            "bind neither the overlay nor anything in it",
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
            format!("{} does not kill the server's children, and they keep the mount busy", setup.kill_mode),
            "use KillMode=control-group",
        ),
        "mixed" => find(
            "KillMode",
            "mixed sends SIGTERM to the main process only: the game below a start script gets only SIGKILL"
                .into(),
            "use KillMode=control-group",
        ),
        _ => {}
    }
    if !setup.send_sigkill {
        find("SendSIGKILL", "a child that ignores SIGTERM stays forever".into(), "remove SendSIGKILL=no");
    }
    match setup.timeout_stop {
        None => find(
            "TimeoutStopSec",
            "infinity: systemd waits forever for a server that does not end, and never kills it".into(),
            "set a time, for example 15s",
        ),
        Some(timeout) if timeout >= DEFAULT_TIMEOUT => find(
            "TimeoutStopSec",
            format!("{} s, and l4d2ctl waits {} s", timeout.as_secs(), DEFAULT_TIMEOUT.as_secs()),
            "set a shorter time, or give l4d2ctl a longer --timeout",
        ),
        Some(_) => {}
    }
}

fn overlay_rules(
    setup: &OverlaySetup,
    merged: &Mountpoint,
    find: &mut impl FnMut(&'static str, String, &str),
) {
    if setup.load_state != "loaded" {
        find(
            "LoadState",
            format!("{}: nothing mounts the overlay", setup.load_state),
            "install the shipped unit, and run `sudo systemctl daemon-reload`",
        );
        return;
    }
    if setup.need_daemon_reload {
        find("daemon-reload", CHANGED.into(), RELOAD);
    }
    exec_rules("ExecStart", "mount", &setup.exec_start, find);
    exec_rules("ExecStopPost", "umount", &setup.exec_stop_post, find);
    if !setup.remain_after_exit {
        find(
            "RemainAfterExit",
            "no: the overlay is unmounted as soon as it is mounted".into(),
            "remove RemainAfterExit=no",
        );
    }
    if !["", "root"].contains(&setup.user.as_str()) {
        find("User", format!("{}, and only root may mount", setup.user), "remove User=");
    }
    for setting in &setup.namespaced {
        find(
            setting,
            "it gives the helper a mount namespace of its own, where the helper refuses to run".into(),
            "remove the setting",
        );
    }
    if merged.holds(&setup.working_directory) {
        find(
            "WorkingDirectory",
            format!(
                "{} lies in the overlay, so the helper itself keeps it busy",
                setup.working_directory.display()
            ),
            "remove the setting",
        );
    }
    let wait = helper_line(&setup.exec_stop_post, "umount").map_or(DEFAULT_WAIT, wait_of);
    if let Some(timeout) = setup.timeout_stop
        && timeout < wait.saturating_add(MARGIN)
    {
        find(
            "TimeoutStopSec",
            format!(
                "{} s, but the helper waits up to {} s before it unmounts, which takes more time",
                timeout.as_secs(),
                wait.as_secs()
            ),
            "set a longer time, or a shorter --wait for the helper",
        );
    }
}

fn exec_rules(
    setting: &'static str,
    verb: &str,
    lines: &[ExecLine],
    find: &mut impl FnMut(&'static str, String, &str),
) {
    let Some(line) = helper_line(lines, verb) else {
        find(setting, format!("no line runs `left4me-overlay {verb}`"), AS_SHIPPED);
        return;
    };
    if line.flags.iter().any(|flag| flag == "ignore-failure") {
        find(setting, format!("the `-` of the {verb} line hides a failure"), "remove the `-`");
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
mod tests;
