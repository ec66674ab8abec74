//! What all tests here stand on: the namespaces, the machine in them, the programs, and what a sound mount is.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use left4me_helper::account::Account;
use left4me_helper::mountinfo;
use rustix::mount::{MountFlags, UnmountFlags, mount_bind, unmount};

pub(crate) use crate::built::{STATE, command, helper, ok, purge, stderr};
use crate::sealed;
use crate::trials::{Test, WhyNot, name_of};

/// The server's user here. It owns nothing on the machine.
pub(crate) const SERVER: Account = Account { uid: 54_321, gid: 54_321 };

/// A test that mounts. `why_not` says what else it takes.
pub(crate) fn as_root<F: Fn() + Send + 'static>(run: F, why_not: fn() -> WhyNot) -> Test {
    let may = || rustix::process::geteuid().is_root();
    Test::new(
        name_of::<F>(),
        run,
        move || {
            if may() { why_not() } else { Some("it mounts, which takes root") }
        },
    )
}

/// For what is done in passing, by a clean-up or an attacker, and may not be possible.
pub(crate) fn may_fail<T, E>(_: Result<T, E>) {}

/// The machine as a test wants it. Made in namespaces of its own only.
pub(crate) struct Host {
    pub(crate) directory: PathBuf,
}

impl Host {
    pub(crate) fn new(name: &str) -> Self {
        assert_eq!(std::process::id(), 1, "this half of a test runs by its other half only");
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        let state = directory.join("state");
        fs::create_dir_all(&directory).unwrap();
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o755)).unwrap();
        // Trees with links to `/` are deleted here: whoever follows one finds that only this directory can be written.
        sealed::seal();
        mount_bind(&directory, &directory).unwrap();
        sealed::set_read_only(&directory, false);
        let host = Self { directory };
        host.clean();
        for part in ["installation", "overlays/maps", "instances", "runtime"] {
            fs::create_dir_all(state.join(part)).unwrap();
        }
        fs::write(state.join("installation/game"), "game").unwrap();
        fs::write(state.join("overlays/maps/map"), "map").unwrap();
        for instance in ["3", "4"] {
            fs::write(state.join(format!("instances/{instance}.toml")), "overlays = [\"maps\"]\n").unwrap();
        }
        let passwd = host.directory.join("passwd");
        // Every instance of these tests has the one user: whose files they are is what matters here.
        let ids: Vec<_> = [3, 4].into_iter().chain(100..150).collect();
        let user = |id: &i32| format!("left4me-{id}:x:{}:{}::/:/none\n", SERVER.uid, SERVER.gid);
        fs::write(&passwd, ids.iter().map(user).collect::<String>()).unwrap();
        mount_bind(&passwd, "/etc/passwd").unwrap();
        let groups = host.directory.join("group");
        let group = |id: &i32| format!("left4me-{id}:x:{}:\n", SERVER.gid);
        fs::write(&groups, ids.iter().map(group).collect::<String>()).unwrap();
        mount_bind(&groups, "/etc/group").unwrap();
        // In these namespaces only: the machine need not have the directory.
        let none: Option<&std::ffi::CStr> = None;
        rustix::mount::mount("tmpfs", "/var/lib", "tmpfs", MountFlags::empty(), none).unwrap();
        fs::create_dir(STATE).unwrap();
        mount_bind(&state, STATE).unwrap();
        host
    }

    fn clean(&self) {
        for name in ["state", "outside"] {
            let path = self.directory.join(name);
            if path.exists() {
                // What a failed test has left immutable; where there is no such thing it fails, and that is fine.
                may_fail(command("chattr").args(["-R", "-f", "-i"]).arg(&path).status());
                ok(command("rm").args(["-rf", "--one-file-system"]).arg(path));
            }
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        for mount in ["3", "4"].iter().flat_map(|instance| mounts_at(&merged(instance))) {
            may_fail(unmount(mount.mount_point, UnmountFlags::empty()));
        }
        may_fail(unmount(STATE, UnmountFlags::empty()));
        self.clean();
    }
}

pub(crate) fn runtime(instance: &str) -> PathBuf {
    Path::new(STATE).join("runtime").join(instance)
}

pub(crate) fn merged(instance: &str) -> PathBuf {
    runtime(instance).join("merged")
}

pub(crate) fn mounts_at(path: &Path) -> Vec<mountinfo::Mount> {
    mountinfo::at(Path::new("/proc/self/mountinfo"), path).unwrap()
}

/// Mounts, and is sure that the overlay is what it is meant to be.
#[track_caller]
pub(crate) fn mount_is_sound(instance: &str) {
    ok(&mut helper(&["mount", instance]));
    assert_eq!(mounts_at(&merged(instance)).len(), 1);
    assert_eq!(fs::read_to_string(merged(instance).join("game")).unwrap(), "game");
    assert_eq!(fs::read_to_string(merged(instance).join("map")).unwrap(), "map");
    let root = fs::metadata(merged(instance)).unwrap();
    assert_eq!((root.uid(), root.gid()), (SERVER.uid, SERVER.gid));
    let upper = fs::metadata(runtime(instance)).unwrap();
    assert_eq!((upper.uid(), upper.gid(), upper.mode() & 0o7777), (0, SERVER.gid, 0o710));
}

#[track_caller]
pub(crate) fn umount_is_sound(instance: &str) {
    ok(&mut helper(&["umount", instance]));
    assert!(mounts_at(&merged(instance)).is_empty());
    assert!(!runtime(instance).join("work/work").exists());
}

#[track_caller]
pub(crate) fn reset_is_sound() {
    ok(&mut purge());
    let left: Vec<_> = fs::read_dir(Path::new(STATE).join("runtime"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert!(left.iter().all(|name| name == "4"), "{left:?}");
}

/// An unmount before anything was made is a success, too.
#[track_caller]
pub(crate) fn umount_is_sound_if_made() {
    ok(&mut helper(&["umount", "3"]));
    assert!(mounts_at(&merged("3")).is_empty());
}

/// A cgroup that looks like the unit's, taken away on drop.
pub(crate) struct Unit(PathBuf);

impl Unit {
    pub(crate) fn new() -> std::io::Result<Self> {
        let root = cgroups().ok_or(std::io::ErrorKind::NotFound)?;
        sealed::set_read_only(root, false);
        // A cgroup is the machine's, and not its namespaces': the name of this test's mount namespace is its own.
        let namespace = fs::metadata("/proc/self/ns/mnt")?.ino();
        let unit = root.join(format!("left4me-test-{namespace}.slice/left4me-server@3.service"));
        fs::create_dir_all(&unit)?;
        Ok(Self(unit))
    }

    /// Puts a program into the unit before it runs, in a session of its own as systemd does.
    pub(crate) fn start(
        &self,
        program: impl AsRef<std::ffi::OsStr>,
        args: &[&str],
        directory: &Path,
    ) -> Child {
        let procs = self.0.join("cgroup.procs");
        command("setsid")
            .args(["sh", "-c", "echo $$ > \"$0\" && cd \"$1\" && shift && exec \"$@\""])
            .arg(procs)
            .arg(directory)
            .arg(program)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }
}

impl Drop for Unit {
    fn drop(&mut self) {
        may_fail(fs::remove_dir(&self.0));
        may_fail(fs::remove_dir(self.0.parent().unwrap()));
    }
}

fn cgroups() -> Option<&'static Path> {
    let roots = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"].map(Path::new);
    roots.into_iter().find(|root| root.join("cgroup.procs").exists())
}

/// Why [`Unit`] can't be made here.
pub(crate) fn why_no_cgroup() -> WhyNot {
    let can = cgroups().is_some_and(|root| {
        let cgroup = root.join(format!("left4me-test-{}.slice", std::process::id()));
        fs::create_dir(&cgroup).and_then(|()| fs::remove_dir(&cgroup)).is_ok()
    });
    (!can).then_some("it makes a cgroup for the unit, which this machine lets nobody do")
}

pub(crate) fn first_line(child: &mut Child) {
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    assert!(!line.is_empty());
}
