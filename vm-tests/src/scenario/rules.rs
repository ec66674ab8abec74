//! What serde can't see of a manifest: what a text must look like, and what two keys say together.

use std::path::Path;

use super::execs::ExecLine;
use super::expect::{ACTIVE_STATES, Expect};
use super::explore::Allowed;
use super::manifest::{LEAST_MEMORY_MIB, Manifest};
use super::problem::instead;
use super::reset::Reset;
use super::tree::join;

/// What systemd calls its units, systemd.unit(5).
const UNIT_TYPES: [&str; 11] = [
    ".service",
    ".socket",
    ".device",
    ".mount",
    ".automount",
    ".swap",
    ".target",
    ".path",
    ".timer",
    ".slice",
    ".scope",
];

/// What is wrong in a scenario's manifest: the path of the key, and in words what is wrong with it.
pub(super) fn problems(
    manifest: &Manifest,
    directory: &Path,
    programs: Option<&[&str]>,
) -> Vec<(String, String)> {
    let mut wrong = Wrong::default();
    wrong.units(manifest);
    wrong.user(manifest);
    wrong.paths(manifest);
    wrong.deployed(manifest, directory, programs);
    wrong.commands(manifest);
    wrong.moments(manifest);
    wrong.shutdown(manifest);
    wrong.explored(manifest);
    let least = |value: u64, least: u64| value < least;
    wrong.add(least(manifest.cycles().into(), 1), "cycles", || "0: nothing would be run".to_owned());
    wrong.add(least(manifest.sample_ms, 1), "sample_ms", || "0: give at least 1".to_owned());
    wrong.add(least(manifest.command_timeout_secs, 1), "command_timeout_secs", || {
        "0: give at least 1".to_owned()
    });
    wrong.add(manifest.memory_mib < LEAST_MEMORY_MIB, "memory_mib", || {
        format!("{}: a guest needs {LEAST_MEMORY_MIB} to boot", manifest.memory_mib)
    });
    let Expect { exec, mount_unit_exec, exec_stop_post, .. } = &manifest.expect;
    let mut posts =
        [exec, mount_unit_exec].into_iter().filter_map(|execs| execs.get(&ExecLine::STOP_POST)?.ended);
    wrong.add(exec_stop_post.is_some() && posts.next().is_some(), "expect.exec_stop_post", || {
        "exec or mount_unit_exec says it, too: leave one of them out".to_owned()
    });
    for (index, package) in manifest.packages.iter().enumerate() {
        wrong.add(!is_package_name(package), &format!("packages[{index}]"), || {
            format!("{package:?}: give the name of a Debian package, as \"nfs-kernel-server\"")
        });
    }
    let contradictions = manifest.expect.contradictions();
    wrong.0.extend(contradictions.into_iter().map(|(key, what)| (format!("expect.{key}"), what)));
    wrong.0
}

/// Whether a Debian package can have this name (Debian Policy, 5.6.1).
pub(crate) fn is_package_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"+-.".contains(&byte);
    let begins = name.starts_with(|first: char| first.is_ascii_lowercase() || first.is_ascii_digit());
    begins && name.len() >= 2 && name.bytes().all(allowed)
}

#[derive(Default)]
struct Wrong(Vec<(String, String)>);

impl Wrong {
    fn add(&mut self, is_wrong: bool, path: &str, what: impl FnOnce() -> String) {
        if is_wrong {
            self.0.push((path.to_owned(), what()));
        }
    }

    fn units(&mut self, manifest: &Manifest) {
        let unit = manifest.unit.as_str();
        self.0.extend(not_a_unit(unit).map(|what| ("unit".to_owned(), what)));
        let Some(mount_unit) = manifest.mount_unit.as_deref() else {
            self.add(manifest.expect.mount_unit_state.is_some(), "expect.mount_unit_state", || {
                "whose? give mount_unit, or leave it out".to_owned()
            });
            self.add(!manifest.expect.mount_unit_exec.is_empty(), "expect.mount_unit_exec", || {
                "whose? give mount_unit, or leave it out".to_owned()
            });
            return;
        };
        // Exec lines and a cgroup of its own, which a .mount unit has in other properties.
        self.add(!mount_unit.ends_with(".service"), "mount_unit", || {
            format!("{mount_unit:?}: give the full name of a service, with .service")
        });
        self.add(mount_unit == unit, "mount_unit", || {
            format!("{mount_unit:?} is the unit under test; leave it out where that mounts itself")
        });
    }

    fn explored(&mut self, manifest: &Manifest) {
        let is_held = !manifest.explore.holds.is_empty();
        self.add(is_held && manifest.reset == Reset::Shutdown, "explore.holds", || {
            "a tracer ends with the machine that it shuts down".to_owned()
        });
        self.add(is_held && manifest.user.is_some(), "explore.holds", || {
            "only what PID 1 starts is traced, and the unit is a user's".to_owned()
        });
        for (index, allowed) in manifest.explore.allowed.iter().enumerate() {
            let key = format!("explore.allowed[{index}]");
            let Allowed { reason, client_exit, mount_unit_state, .. } = allowed;
            self.add(reason.trim().is_empty(), &format!("{key}.reason"), || {
                "why is it right? say it in a sentence".to_owned()
            });
            self.add(
                client_exit.is_some() && manifest.explore.client.is_empty(),
                &format!("{key}.client_exit"),
                || "whose? give explore.client, or leave it out".to_owned(),
            );
            self.add(
                mount_unit_state.is_some() && manifest.mount_unit.is_none(),
                &format!("{key}.mount_unit_state"),
                || "whose? give mount_unit, or leave it out".to_owned(),
            );
            let nothing = Allowed { reason: reason.clone(), client_exit: *client_exit, ..Allowed::default() };
            self.add(*allowed == nothing, &key, || "it allows nothing that expect does not".to_owned());
            let wrong = manifest.expect.but(allowed).contradictions();
            let own = manifest.expect.contradictions();
            let wrong = wrong.into_iter().filter(|one| !own.contains(one));
            self.0.extend(wrong.map(|(name, what)| (format!("{key}.{name}"), what)));
        }
    }

    fn user(&mut self, manifest: &Manifest) {
        let Some(user) = manifest.user.as_deref() else { return };
        self.0.extend(not_a_user(user).map(|what| ("user".to_owned(), what)));
        self.add(manifest.reset == Reset::Shutdown, "user", || {
            "a shutdown ends the user's manager before it can be asked what the unit left".to_owned()
        });
    }

    fn paths(&mut self, manifest: &Manifest) {
        let mounts: Vec<&str> =
            manifest.mount.iter().chain(&manifest.other_mounts).map(String::as_str).collect();
        if let Some(path) = &manifest.mount {
            self.absolute("mount", path);
        }
        for (index, path) in manifest.other_mounts.iter().enumerate() {
            let key = format!("other_mounts[{index}]");
            self.absolute(&key, path);
            self.add(manifest.mount.is_none(), &key, || format!("{path:?}: give the first one as mount"));
            let is_twice = mounts.iter().filter(|other| *other == path).count() > 1;
            self.add(is_twice, &key, || format!("{path:?} is watched already"));
        }
        for path in manifest.expect.other_mounts.keys() {
            self.add(!manifest.other_mounts.contains(path), &join("expect.other_mounts", path), || {
                "it is not watched: name it in other_mounts, too".to_owned()
            });
        }
        if let Some(path) = &manifest.state_directory {
            self.absolute("state_directory", path);
        }
        for (index, path) in manifest.removed.iter().enumerate() {
            let key = format!("removed[{index}]");
            self.absolute(&key, path);
            let is_in = |mount: &str| {
                let below = path.strip_prefix(mount).filter(|_| mount.len() > 1);
                below.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            };
            let inside = mounts.iter().any(|mount| is_in(mount));
            self.add(inside, &key, || {
                format!("{path:?} is the mount or lies in it: reading it would hold the mount")
            });
        }
        for (index, path) in manifest.free_devices.iter().enumerate() {
            self.absolute(&format!("free_devices[{index}]"), path);
        }
        for (index, kept) in manifest.expect.kept_devices.iter().enumerate() {
            let device = kept.split_once(": ").map(|(device, _by)| device);
            let is_known = device.is_some_and(|device| manifest.free_devices.iter().any(|one| one == device));
            self.add(!is_known, &format!("expect.kept_devices[{index}]"), || {
                format!("{kept:?}: give one of free_devices and who keeps it, as \"/dev/loop0: swapped on\"")
            });
        }
        for (index, path) in manifest.expect.left_over.iter().enumerate() {
            self.add(!manifest.removed.contains(path), &format!("expect.left_over[{index}]"), || {
                format!("{path:?} is not looked for: name it in removed, too")
            });
        }
    }

    fn deployed(&mut self, manifest: &Manifest, directory: &Path, programs: Option<&[&str]>) {
        let deploy = &manifest.deploy;
        for (index, tree) in deploy.trees.iter().enumerate() {
            let from = directory.join(tree);
            self.add(!from.is_dir(), &format!("deploy.trees[{index}]"), || {
                format!("no such directory: {}", from.display())
            });
        }
        for (to, name) in &deploy.programs {
            let key = join("deploy.programs", to);
            self.absolute(&key, to);
            let from = directory.join(name);
            let is_path = name.contains('/');
            self.add(is_path && !from.is_file(), &key, || format!("no such file: {}", from.display()));
            if let Some(known) = programs {
                self.add(!is_path && !known.contains(&name.as_str()), &key, || {
                    let instead = instead(name, known.iter().copied());
                    format!("{name:?}: no such program: {instead}; or give a path with a / in it")
                });
            }
        }
        for to in deploy.text.keys() {
            self.absolute(&join("deploy.text", to), to);
        }
    }

    fn commands(&mut self, manifest: &Manifest) {
        let reset = manifest.reset.argv();
        let single = [("start".to_owned(), &manifest.start), ("reset".to_owned(), &reset)];
        let lists = [("setup", &manifest.setup), ("recover", &manifest.recover)];
        let listed = lists.into_iter().flat_map(|(key, list)| {
            list.iter().enumerate().map(move |(index, argv)| (format!("{key}[{index}]"), argv))
        });
        let checks = manifest.check.iter().enumerate();
        let checks = checks.map(|(index, check)| (format!("check[{index}].run"), &check.run));
        let boot_checks = manifest.boot_check.iter().enumerate();
        let boot_checks = boot_checks.map(|(index, check)| (format!("boot_check[{index}].run"), &check.run));
        let checks = checks.chain(boot_checks);
        let during = manifest.during.iter().enumerate();
        let during = during.map(|(index, during)| (format!("during[{index}].run"), &during.run));
        for (key, argv) in single.into_iter().chain(listed).chain(checks).chain(during) {
            let words = || "an empty command: give a program and its arguments".to_owned();
            self.add(argv.first().is_none_or(String::is_empty), &key, words);
        }
    }

    fn moments(&mut self, manifest: &Manifest) {
        for (index, during) in manifest.during.iter().enumerate() {
            let key = format!("during[{index}]");
            let moments = usize::from(during.when.is_some()) + usize::from(during.after_ms.is_some());
            self.add(moments != 1, &key, || {
                "when? give when, a state as \"deactivating\", or after_ms, a time after the reset's begin"
                    .to_owned()
            });
            let active = during.when.as_deref().map(|state| state.split('/').next().unwrap_or_default());
            if let Some(active) = active.filter(|active| !ACTIVE_STATES.contains(active)) {
                self.add(true, &format!("{key}.when"), || {
                    format!("{active:?}: no ActiveState: {}", instead(active, ACTIVE_STATES))
                });
            }
        }
    }

    fn shutdown(&mut self, manifest: &Manifest) {
        if manifest.reset != Reset::Shutdown {
            let is_there = !manifest.expect.shutdown_log.is_empty();
            self.add(is_there, "expect.shutdown_log", || {
                "of which shutdown? give reset = \"shutdown\"".to_owned()
            });
            self.add(!manifest.boot_check.is_empty(), "boot_check", || {
                "after which shutdown? give reset = \"shutdown\"".to_owned()
            });
            return;
        }
        self.add(manifest.cycles() > 1, "cycles", || {
            format!("{}: a machine shuts down once: give 1, or leave it out", manifest.cycles())
        });
        self.add(!manifest.recover.is_empty(), "recover", || {
            "of a machine that shuts down, nothing is to recover: leave it out, or give []".to_owned()
        });
    }

    fn absolute(&mut self, key: &str, path: &str) {
        self.0.extend(not_absolute(path).map(|what| (key.to_owned(), what)));
    }
}

/// What is wrong with a path of the guest.
pub(super) fn not_absolute(path: &str) -> Option<String> {
    let is = path.starts_with('/')
        && !path.ends_with('/')
        && !path.split('/').skip(1).any(|part| matches!(part, "" | "." | ".."));
    (!is).then(|| format!("{path:?}: give an absolute path, without a final slash, . or .."))
}

/// What is wrong with the name of a user. Of the names that there are, those that a shell takes as they are.
pub(super) fn not_a_user(name: &str) -> Option<String> {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_-".contains(&byte);
    let begins = name.starts_with(|first: char| first.is_ascii_lowercase() || first == '_');
    match name {
        "root" => Some("root: its units are taken for the system's: leave it out".to_owned()),
        // What useradd(8) takes.
        _ if begins && name.len() <= 32 && name.bytes().all(allowed) => None,
        _ => Some(format!("{name:?}: give the name of a user, as \"alice\"")),
    }
}

/// What is wrong with the full name of a unit.
pub(super) fn not_a_unit(name: &str) -> Option<String> {
    if UNIT_TYPES.iter().any(|suffix| name.strip_suffix(suffix).is_some_and(|stem| !stem.is_empty())) {
        return None;
    }
    Some(match name.rfind('.').and_then(|dot| name.get(dot..)) {
        Some(suffix) => format!("{name:?}: no unit ends so: {}", instead(suffix, UNIT_TYPES)),
        None => format!("{name:?}: give the full name, with .service"),
    })
}
