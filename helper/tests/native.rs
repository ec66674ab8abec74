//! The built programs on the machine's own kernel: real overlays, real kills. `attacker.rs` has who fights back.
//!
//! Each test runs its second half in namespaces of its own (mount and PID), made by unshare(1), in which
//! `/var/lib/left4me` is a directory below `target/`. So that half is PID 1 there, the helper finds itself in PID 1's
//! mount namespace, as it demands, and whatever a test leaves goes with the namespaces. All else of the machine is
//! read-only in there. That takes root; without it a test says that it did not run.

#[path = "support/sealed.rs"]
mod sealed;

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use left4me_helper::account::Account;
use left4me_helper::error::HelperError;
use left4me_helper::mountinfo;
use left4me_helper::overlay::{self, METHODS, Outcome};
use left4me_helper::state::InstanceDir;
use left4me_helper::unit_end::{OfUnit, Wait};
use nix::sys::ptrace;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use rustix::mount::{MountFlags, UnmountFlags, mount_bind, unmount};

/// The server's user here. It owns nothing on the machine.
const SERVER: Account = Account { uid: 54_321, gid: 54_321 };

const STATE: &str = "/var/lib/left4me";

/// Names this run of this test: a cgroup is the machine's, and not its namespaces'.
const RUN: &str = "LEFT4ME_TEST_RUN";

/// Runs the test function `name` of this file as PID 1 of namespaces of its own.
fn isolated(name: &str) {
    if !rustix::process::geteuid().is_root() {
        eprintln!("not run: {name} mounts overlays, which takes root");
        return;
    }
    let status = command("unshare")
        .args([
            "--mount",
            "--pid",
            "--fork",
            "--mount-proc",
            "--kill-child",
            "--propagation",
            "private",
            "--",
        ])
        .arg(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", name, "--nocapture", "--test-threads", "1"])
        .env(RUN, format!("{}-{name}", std::process::id()))
        .status()
        .expect("unshare(1) of util-linux");
    assert!(status.success(), "{name}: {status}");
}

#[expect(
    clippy::disallowed_methods,
    reason = "short programs, each waited for or killed by the test that starts it"
)]
fn command(program: impl AsRef<std::ffi::OsStr>) -> Command {
    Command::new(program)
}

fn helper(args: &[&str]) -> Command {
    let mut helper = command(env!("CARGO_BIN_EXE_left4me-overlay"));
    helper.args(args);
    helper
}

/// The example program, which cargo builds with the tests.
fn purge() -> Command {
    let programs = Path::new(env!("CARGO_BIN_EXE_left4me-overlay")).parent().unwrap();
    let program = programs.join("examples/purge");
    assert!(program.exists(), "cargo build -p left4me-helper --example purge, or test the whole package");
    let mut purge = command(program);
    purge.args([STATE, "3"]);
    purge
}

#[track_caller]
fn ok(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", stderr(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// For what is done in passing, by a clean-up or an attacker, and may not be possible.
fn may_fail<T, E>(_: Result<T, E>) {}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The machine as a test wants it. Made after [`isolated`] only.
struct Host {
    directory: PathBuf,
}

impl Host {
    fn new(name: &str) -> Self {
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

fn runtime(instance: &str) -> PathBuf {
    Path::new(STATE).join("runtime").join(instance)
}

fn merged(instance: &str) -> PathBuf {
    runtime(instance).join("merged")
}

fn mounts_at(path: &Path) -> Vec<mountinfo::Mount> {
    mountinfo::at(Path::new("/proc/self/mountinfo"), path).unwrap()
}

/// Mounts, and is sure that the overlay is what it is meant to be.
#[track_caller]
fn mount_is_sound(instance: &str) {
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
fn umount_is_sound(instance: &str) {
    ok(&mut helper(&["umount", instance]));
    assert!(mounts_at(&merged(instance)).is_empty());
    assert!(!runtime(instance).join("work/work").exists());
}

#[track_caller]
fn reset_is_sound() {
    ok(&mut purge());
    let left: Vec<_> = fs::read_dir(Path::new(STATE).join("runtime"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert!(left.iter().all(|name| name == "4"), "{left:?}");
}

#[test]
fn a_mount_and_an_unmount() {
    isolated("inside_a_mount_and_an_unmount");
}

#[test]
#[ignore = "run by a_mount_and_an_unmount"]
fn inside_a_mount_and_an_unmount() {
    let _host = Host::new("simple");
    assert!(ok(&mut helper(&["umount", "3"])).contains("is not mounted"));
    mount_is_sound("3");
    fs::write(merged("3").join("written"), "x").unwrap();
    assert!(ok(&mut helper(&["mount", "3"])).contains("mounted already"));
    // Also without what it was made of: to be stopped it may have to be started.
    let maps = Path::new(STATE).join("overlays/maps");
    fs::rename(&maps, maps.with_extension("away")).unwrap();
    assert!(ok(&mut helper(&["mount", "3"])).contains("mounted already"));
    fs::rename(maps.with_extension("away"), &maps).unwrap();
    // nosuid and nodev: what the server writes is no way to more rights.
    let line = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let line = line.lines().find(|line| line.contains(" /var/lib/left4me/runtime/3/merged ")).unwrap();
    assert!(line.contains("nosuid,nodev"), "{line}");
    // Two on top of each other, as no helper leaves them: one goes for each call.
    mount_bind(merged("3"), merged("3")).unwrap();
    let output = helper(&["umount", "3"]).output().unwrap();
    assert!(stderr(&output).contains("1 more lie at the same place"), "{}", stderr(&output));
    assert_eq!((output.status.code(), mounts_at(&merged("3")).len()), (Some(32), 1));
    // Also by a helper that is started in there, as a `WorkingDirectory=` would have it.
    ok(helper(&["umount", "3"]).current_dir(merged("3")));
    mount_is_sound("3");
    umount_is_sound("3");
    assert!(runtime("3").join("upper/written").exists());
    // Something else at the mountpoint is not ours to take away.
    let none: Option<&std::ffi::CStr> = None;
    rustix::mount::mount("x", merged("3"), "tmpfs", MountFlags::empty(), none).unwrap();
    for verb in ["mount", "umount"] {
        let output = helper(&[verb, "3"]).output().unwrap();
        assert!(stderr(&output).contains("carries a tmpfs mount that is not ours"), "{}", stderr(&output));
    }
    let refused = purge().output().unwrap();
    assert!(stderr(&refused).contains("nothing was deleted"), "{}", stderr(&refused));
    assert!(runtime("3").join("upper/written").exists());
    unmount(merged("3"), UnmountFlags::empty()).unwrap();
    reset_is_sound();
}

#[test]
fn every_way_to_mount_takes_any_name() {
    isolated("inside_every_way_to_mount_takes_any_name");
}

#[test]
#[ignore = "run by every_way_to_mount_takes_any_name"]
fn inside_every_way_to_mount_takes_any_name() {
    let host = Host::new("names");
    let mut tried = 0;
    for name in ["plain", "a:b", "a,index=on", "a\\:b", "sp ace", "new\nline", "-o", "tail\\"] {
        let path = host.directory.join("state").join(name);
        // The names that a wrong split or a wrong unescape would find instead.
        for decoy in ["a", "a:b", "a\\", "b"] {
            fs::create_dir_all(host.directory.join("state").join(decoy).join("installation")).unwrap();
        }
        for part in ["installation", "runtime"] {
            fs::create_dir_all(path.join(part)).unwrap();
        }
        fs::write(path.join("installation/game"), name).unwrap();
        let place = InstanceDir::open(&path, &"3".parse().unwrap()).unwrap();
        let InstanceDir { state, paths } = &place;
        let plan = overlay::plan(paths, vec![state.path().join("installation")]).unwrap();
        for method in METHODS {
            let deadline = Instant::now() + Duration::from_secs(10);
            match overlay::mount_by(&[method], &place, &plan, SERVER, deadline) {
                Ok(outcome) => assert_eq!(outcome, Outcome::Done),
                // This kernel does not know the method.
                Err(HelperError::Mount { source: rustix::io::Errno::NOSYS, .. }) => continue,
                Err(error) => panic!("{method:?} {name:?}: {}", left4me_helper::chain::chain(&error)),
            }
            tried += 1;
            assert_eq!(fs::read_to_string(paths.merged.join("game")).unwrap(), name, "{method:?}");
            fs::write(paths.merged.join("written"), name).unwrap();
            assert_eq!(fs::read_to_string(paths.upper.join("written")).unwrap(), name, "{method:?}");
            fs::remove_file(paths.merged.join("written")).unwrap();
            let mut nobody = OfUnit::new("left4me-test@nobody.service");
            let umounted =
                overlay::umount(&place, &mut nobody, &Wait::default(), &mut |note| panic!("{note}"));
            assert_eq!(umounted.unwrap(), Outcome::Done, "{method:?} {name:?}");
        }
    }
    eprintln!("{tried} of {} mounts: the others by ways that this kernel does not know", 8 * METHODS.len());
    assert!(tried >= 8);
}

#[test]
fn two_at_once() {
    isolated("inside_two_at_once");
}

#[test]
#[ignore = "run by two_at_once"]
fn inside_two_at_once() {
    let _host = Host::new("two");
    let at_once = |verb: &str| {
        let all: Vec<Child> = (0..20)
            .map(|_| helper(&[verb, "3"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
            .collect();
        let said: Vec<_> = all.into_iter().map(|one| one.wait_with_output().unwrap()).collect();
        assert!(said.iter().all(|output| output.status.success()), "{said:?}");
        said.iter().filter(|output| !String::from_utf8_lossy(&output.stdout).contains("not")).count()
    };
    for _ in 0..20 {
        at_once("mount");
        assert_eq!(mounts_at(&merged("3")).len(), 1);
        assert_eq!(at_once("umount"), 1, "one of them unmounted it");
        assert!(mounts_at(&merged("3")).is_empty());
    }
    // Somebody holds instance 3: 4 does not wait for that, 3 does, and says so when its time is up.
    let lock = fs::File::open(runtime("3")).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    mount_is_sound("4");
    umount_is_sound("4");
    let output = helper(&["mount", "--wait", "0", "3"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("still works on this instance"), "{}", stderr(&output));
    // The lock goes with its owner.
    let waiting = helper(&["mount", "--wait", "60", "3"]).stdout(Stdio::null()).spawn().unwrap();
    drop(lock);
    assert!(waiting.wait_with_output().unwrap().status.success());
    umount_is_sound("3");
}

/// Where the counting of system calls begins: at the first one that is not the start-up's. The helper begins with
/// chdir(2), a reset with the openat2(2) of `runtime`.
const FIRST_CALLS: [i64; 2] = [nix::libc::SYS_chdir, nix::libc::SYS_openat2];

#[test]
fn fifty_at_once() {
    isolated("inside_fifty_at_once");
}

#[test]
#[ignore = "run by fifty_at_once"]
fn inside_fifty_at_once() {
    let _host = Host::new("fifty");
    let instances: Vec<_> = (100..150).map(|instance| instance.to_string()).collect();
    for instance in &instances {
        fs::write(Path::new(STATE).join(format!("instances/{instance}.toml")), "overlays = []\n").unwrap();
    }
    for (verb, mounts) in [("mount", 1), ("umount", 0)] {
        let all: Vec<_> = instances
            .iter()
            .map(|instance| helper(&[verb, instance]).stdout(Stdio::null()).spawn().unwrap())
            .collect();
        for child in all {
            let output = child.wait_with_output().unwrap();
            assert!(output.status.success(), "{verb}");
        }
        assert!(instances.iter().all(|instance| mounts_at(&merged(instance)).len() == mounts), "{verb}");
    }
}

#[test]
fn faults_of_the_file_system_are_told_and_mended() {
    isolated("inside_faults_of_the_file_system_are_told_and_mended");
}

#[test]
#[ignore = "run by faults_of_the_file_system_are_told_and_mended"]
fn inside_faults_of_the_file_system_are_told_and_mended() {
    let _host = Host::new("faults");
    let runtimes = Path::new(STATE).join("runtime");
    let tmpfs = |options: &str| {
        let options = std::ffi::CString::new(options).unwrap();
        rustix::mount::mount("tmpfs", &runtimes, "tmpfs", MountFlags::empty(), options.as_c_str()).unwrap();
    };
    // Full: one entry more than there is room for, at each of the steps that make one.
    let mut full = 0;
    for inodes in 1..6 {
        tmpfs(&format!("mode=755,nr_inodes={inodes}"));
        let output = helper(&["mount", "3"]).output().unwrap();
        if !output.status.success() {
            full += 1;
            let said = stderr(&output);
            assert!(said.contains("No space left on device"), "{inodes}: {said}");
            assert!(mounts_at(&merged("3")).is_empty(), "{inodes}");
            rustix::mount::mount_remount(&runtimes, MountFlags::empty(), "nr_inodes=1000").unwrap();
            mount_is_sound("3");
        }
        umount_is_sound("3");
        reset_is_sound();
        unmount(&runtimes, UnmountFlags::empty()).unwrap();
    }
    assert!(full >= 4, "{full} steps had no room");
    // Read-only: told, and a reset deletes nothing and says so.
    tmpfs("mode=755");
    mount_is_sound("3");
    umount_is_sound("3");
    fs::write(runtime("3").join("upper/written"), "kept").unwrap();
    rustix::mount::mount_remount(&runtimes, MountFlags::RDONLY, "").unwrap();
    for output in [helper(&["mount", "3"]).output().unwrap(), purge().output().unwrap()] {
        assert!(!output.status.success());
        assert!(stderr(&output).contains("Read-only file system"), "{}", stderr(&output));
    }
    assert!(mounts_at(&merged("3")).is_empty());
    assert_eq!(fs::read_to_string(runtime("3").join("upper/written")).unwrap(), "kept");
    rustix::mount::mount_remount(&runtimes, MountFlags::empty(), "").unwrap();
    mount_is_sound("3");
    umount_is_sound("3");
    // An overlay that cannot be mounted: its upper layer would lie on a file system that cannot carry one.
    unmount(&runtimes, UnmountFlags::empty()).unwrap();
    let none: Option<&std::ffi::CStr> = None;
    rustix::mount::mount("ramfs", &runtimes, "ramfs", MountFlags::empty(), none).unwrap();
    let output = helper(&["mount", "3"]).output().unwrap();
    // Some kernels take it, with a warning; those that do not end as mount(8) does.
    if !output.status.success() {
        assert_eq!(output.status.code(), Some(32), "{}", stderr(&output));
        assert!(
            stderr(&output).contains("mount overlay on /var/lib/left4me/runtime/3/merged with lowerdir=")
        );
        assert!(mounts_at(&merged("3")).is_empty());
    }
    umount_is_sound_if_made();
    unmount(&runtimes, UnmountFlags::empty()).unwrap();
    mount_is_sound("3");
    umount_is_sound("3");
}

/// A measurement: `cargo test --release -p left4me-helper --test native -- --ignored --nocapture purge_and_rm`, after
/// `cargo build --release -p left4me-helper --example purge`.
#[test]
#[ignore = "a measurement, of some minutes"]
fn purge_and_rm_on_100_000_files() {
    isolated("inside_purge_and_rm_on_100_000_files");
}

#[test]
#[ignore = "run by purge_and_rm_on_100_000_files"]
fn inside_purge_and_rm_on_100_000_files() {
    let _host = Host::new("bench");
    let upper = runtime("3").join("upper");
    let make = |directories: usize, files: usize| {
        for name in ["work", "merged"] {
            fs::create_dir_all(runtime("3").join(name)).unwrap();
        }
        for directory in 0..directories {
            let path = upper.join(directory.to_string());
            fs::create_dir_all(&path).unwrap();
            for file in 0..files {
                fs::write(path.join(file.to_string()), "").unwrap();
            }
        }
    };
    for (directories, files) in [(100, 1000), (1, 100_000), (10_000, 10)] {
        let mut ratios: Vec<f64> = (0..5)
            .map(|_| {
                make(directories, files);
                let ours: f64 = ok(&mut purge()).trim().parse().unwrap();
                make(directories, files);
                let began = Instant::now();
                ok(command("rm").arg("-rf").arg(runtime("3")));
                let theirs = began.elapsed().as_secs_f64();
                eprintln!("{directories} x {files}: purge {ours:.3} s, rm -rf {theirs:.3} s");
                ours / theirs
            })
            .collect();
        ratios.sort_by(f64::total_cmp);
        eprintln!(
            "{directories} x {files}: purge takes {:.2} times as long as rm -rf (median of 5)",
            ratios[2]
        );
        assert!(ratios[2] <= 1.2, "{ratios:?}");
    }
}

/// Runs a program and kills it by SIGKILL as it enters its system call number `nth`, counted from 0 at the first of
/// its own. `false` if it ended before.
#[expect(clippy::zombie_processes, reason = "waitpid(2) reaps it, as a tracee")]
fn killed_at(mut program: Command, nth: usize) -> bool {
    program.stdout(Stdio::null()).stderr(Stdio::null());
    #[expect(unsafe_code, reason = "a tracee asks to be traced between fork and exec")]
    // SAFETY: ptrace(2) is a bare system call: no allocation, no lock.
    unsafe {
        program.pre_exec(|| ptrace::traceme().map_err(std::io::Error::from));
    }
    let child = program.spawn().unwrap();
    let pid = Pid::from_raw(child.id().cast_signed());
    assert!(matches!(waitpid(pid, None).unwrap(), WaitStatus::Stopped(_, Signal::SIGTRAP)));
    ptrace::setoptions(pid, ptrace::Options::PTRACE_O_TRACESYSGOOD | ptrace::Options::PTRACE_O_EXITKILL)
        .unwrap();
    let mut entered = None;
    let mut entry = true;
    loop {
        ptrace::syscall(pid, None).unwrap();
        match waitpid(pid, None).unwrap() {
            WaitStatus::PtraceSyscall(_) if entry => {
                if entered.is_none()
                    && FIRST_CALLS.contains(&ptrace::getregs(pid).unwrap().orig_rax.cast_signed())
                {
                    entered = Some(0);
                }
                if entered == Some(nth) {
                    kill(pid, Signal::SIGKILL).unwrap();
                    assert!(matches!(
                        waitpid(pid, None).unwrap(),
                        WaitStatus::Signaled(_, Signal::SIGKILL, _)
                    ));
                    return true;
                }
                entered = entered.map(|count| count + 1);
                entry = false;
            }
            WaitStatus::PtraceSyscall(_) => entry = true,
            WaitStatus::Exited(_, status) => {
                assert_eq!(status, 0, "it failed by itself");
                return false;
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn killed_at_every_step() {
    isolated("inside_killed_at_every_step");
}

/// Every system call of each program is a step, and a kill before it a case: found by counting, not by luck. The last
/// number is that of a run that was not killed.
#[test]
#[ignore = "run by killed_at_every_step"]
fn inside_killed_at_every_step() {
    let _host = Host::new("kill");
    let mut cases = Vec::new();
    for nth in 0.. {
        let killed = killed_at(helper(&["mount", "3"]), nth);
        // By turns: a second mount goes on from there, or an unmount, or a reset where nothing is mounted yet.
        match nth % 3 {
            0 => mount_is_sound("3"),
            1 => umount_is_sound_if_made(),
            _ if mounts_at(&merged("3")).is_empty() => {}
            _ => mount_is_sound("3"),
        }
        umount_is_sound_if_made();
        reset_is_sound();
        if !killed {
            cases.push(("mount", nth));
            break;
        }
    }
    for nth in 0.. {
        mount_is_sound("3");
        fs::write(merged("3").join("written"), "kept").unwrap();
        let killed = killed_at(helper(&["umount", "3"]), nth);
        if nth % 2 == 0 {
            umount_is_sound("3");
        }
        mount_is_sound("3");
        assert_eq!(fs::read_to_string(merged("3").join("written")).unwrap(), "kept");
        umount_is_sound("3");
        reset_is_sound();
        if !killed {
            cases.push(("umount", nth));
            break;
        }
    }
    for nth in 0.. {
        mount_is_sound("3");
        for index in 0..8 {
            fs::create_dir_all(merged("3").join(format!("{index}/below"))).unwrap();
            fs::write(merged("3").join(format!("{index}/file")), "kept").unwrap();
        }
        umount_is_sound("3");
        // What an earlier reset left, so that deleting that is among the steps.
        fs::create_dir_all(Path::new(STATE).join("runtime/.purge-3/upper/old")).unwrap();
        let killed = killed_at(purge(), nth);
        // Never half a layer where a start would use it: all that the server wrote is there, or nothing of it.
        let upper = runtime("3").join("upper");
        if upper.exists() {
            let whole = (0..8).all(|index| {
                upper.join(format!("{index}/file")).exists() && upper.join(format!("{index}/below")).exists()
            });
            assert!(whole, "after {nth} calls of the reset");
        }
        if nth % 2 == 0 {
            mount_is_sound("3");
            assert!(!Path::new(STATE).join("runtime/.purge-3").exists(), "the mount sweeps what was left");
            umount_is_sound("3");
        }
        reset_is_sound();
        if !killed {
            cases.push(("reset", nth));
            break;
        }
    }
    eprintln!("kills before each system call: {cases:?}");
    assert!(cases.iter().all(|(_, count)| *count > 20), "{cases:?}");
}

/// An unmount before anything was made is a success, too.
#[track_caller]
fn umount_is_sound_if_made() {
    ok(&mut helper(&["umount", "3"]));
    assert!(mounts_at(&merged("3")).is_empty());
}

#[test]
fn hostile_trees_are_reset() {
    isolated("inside_hostile_trees_are_reset");
}

#[test]
#[ignore = "run by hostile_trees_are_reset"]
fn inside_hostile_trees_are_reset() {
    use rustix::fs::{FileType, Mode, mkdirat, mknodat, openat};
    let _host = Host::new("hostile");
    mount_is_sound("3");
    umount_is_sound("3");
    let upper = runtime("3").join("upper");
    let directory = fs::File::open(&upper).unwrap();
    let flags = rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::RDONLY;
    for name in ["a\nb", "\u{1b}[31m", "-rf", "\\", " ", "..."] {
        fs::write(upper.join(name), "").unwrap();
        fs::create_dir(upper.join(format!("{name}d"))).unwrap();
    }
    let odd = rustix::ffi::CString::new(vec![0xff, 0xfe]).unwrap();
    mkdirat(&directory, &odd, Mode::empty()).unwrap();
    for (name, kind, device) in [
        ("whiteout", FileType::CharacterDevice, 0),
        ("disk", FileType::BlockDevice, rustix::fs::makedev(7, 0)),
        ("fifo", FileType::Fifo, 0),
        ("socket", FileType::Socket, 0),
    ] {
        mknodat(&directory, name, kind, Mode::RUSR, device).unwrap();
    }
    fs::write(upper.join("setuid"), "").unwrap();
    fs::set_permissions(upper.join("setuid"), fs::Permissions::from_mode(0o4755)).unwrap();
    let target = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(upper.join("setuid"), "user.x", &[7; 1000], target).unwrap();
    for (name, target) in [("up", "../../.."), ("root", "/"), ("loop", "loop"), ("other", "../../4")] {
        symlink(target, upper.join(name)).unwrap();
    }
    let mut at = openat(&directory, ".", flags, Mode::empty()).unwrap();
    for _ in 0..10_000 {
        mkdirat(&at, "d", Mode::RWXU).unwrap();
        at = openat(&at, "d", flags, Mode::empty()).unwrap();
    }
    drop((at, directory));

    // Immutable is somebody's decision: Reset says which file, and goes on once it is taken back.
    let precious = upper.join("immutable/precious");
    fs::create_dir(upper.join("immutable")).unwrap();
    fs::write(&precious, "").unwrap();
    let file = fs::File::open(&precious).unwrap();
    match rustix::fs::ioctl_setflags(&file, rustix::fs::IFlags::IMMUTABLE) {
        Ok(()) => {
            let output = purge().output().unwrap();
            let said = stderr(&output);
            assert!(
                !output.status.success()
                    && said.contains("runtime/.purge-3/upper/immutable/precious: ")
                    && said.contains("chattr -R -i -a"),
                "{said}"
            );
            assert!(!runtime("3").exists(), "the next start begins anew all the same");
            rustix::fs::ioctl_setflags(&file, rustix::fs::IFlags::empty()).unwrap();
        }
        Err(errno) => eprintln!("not run: an immutable file, which this file system does not have ({errno})"),
    }
    drop(file);
    reset_is_sound();

    // A mount of its own below: nothing goes, and it is named.
    mount_is_sound("3");
    umount_is_sound("3");
    fs::create_dir(upper.join("mine")).unwrap();
    mount_bind(Path::new(STATE).join("installation"), upper.join("mine")).unwrap();
    let output = purge().output().unwrap();
    assert!(stderr(&output).contains("still mounted there: /var/lib/left4me/runtime/3/upper/mine"));
    unmount(upper.join("mine"), UnmountFlags::empty()).unwrap();
    reset_is_sound();
    assert!(Path::new(STATE).join("installation/game").exists());
}

/// A cgroup that looks like the unit's, taken away on drop.
struct Unit(PathBuf);

impl Unit {
    /// `None` where this machine lets nobody make one.
    fn new() -> Option<Self> {
        let root = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"]
            .into_iter()
            .find(|root| Path::new(root).join("cgroup.procs").exists())?;
        sealed::set_read_only(Path::new(root), false);
        let slice = Path::new(root).join(format!("left4me-test-{}.slice", std::env::var(RUN).unwrap()));
        let unit = slice.join("left4me-server@3.service");
        fs::create_dir_all(&unit).ok()?;
        Some(Self(unit))
    }

    /// Puts a program into the unit before it runs, in a session of its own as systemd does.
    fn start(&self, program: impl AsRef<std::ffi::OsStr>, args: &[&str], directory: &Path) -> Child {
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

/// A unit for the tests that need one; says so where there can be none.
fn unit() -> Option<Unit> {
    let unit = Unit::new();
    if unit.is_none() {
        eprintln!("not run: a process in the unit's cgroup: this machine lets us make no cgroup");
    }
    unit
}

fn first_line(child: &mut Child) {
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    assert!(!line.is_empty());
}

#[test]
fn an_outsider_is_named_at_once() {
    isolated("inside_an_outsider_is_named_at_once");
}

#[test]
#[ignore = "run by an_outsider_is_named_at_once"]
fn inside_an_outsider_is_named_at_once() {
    let _host = Host::new("outsider");
    mount_is_sound("3");

    // A journal of our own, for the entry with fields.
    let none: Option<&std::ffi::CStr> = None;
    rustix::mount::mount("tmpfs", "/run", "tmpfs", MountFlags::empty(), none).unwrap();
    fs::create_dir_all("/run/systemd/journal").unwrap();
    let journal = std::os::unix::net::UnixDatagram::bind("/run/systemd/journal/socket").unwrap();
    journal.set_read_timeout(Some(Duration::from_secs(10))).unwrap();

    let mut outsider = command("sh")
        .args(["-c", "echo; read line"])
        .current_dir(merged("3"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    first_line(&mut outsider);
    let began = Instant::now();
    let output = helper(&["umount", "3"]).output().unwrap();
    assert!(began.elapsed() < Duration::from_secs(5));
    assert_eq!(output.status.code(), Some(32));
    let said = stderr(&output);
    assert!(
        said.contains(&format!("EBUSY: held by {} (sh)", outsider.id()))
            && said.contains("working directory"),
        "{said}"
    );
    assert_eq!(said.lines().count(), 1, "{said}");
    let mut entry = [0; 8192];
    let length = journal.recv(&mut entry).unwrap();
    let entry = String::from_utf8(entry[..length].to_vec()).unwrap();
    for field in [
        format!("MESSAGE={}", said.trim_end()),
        format!("MESSAGE_ID={}", left4me_helper::journal::BUSY_MESSAGE_ID),
        "PRIORITY=3".into(),
        "LEFT4ME_INSTANCE=3".into(),
        "LEFT4ME_MOUNT=/var/lib/left4me/runtime/3/merged".into(),
        "LEFT4ME_VERDICT=held-by-process".into(),
        "LEFT4ME_HOLDERS=1".into(),
        format!("LEFT4ME_HOLDER_PID={}", outsider.id()),
    ] {
        assert!(entry.lines().any(|line| line == field), "{field}: {entry}");
    }
    // And for l4d2ctl, until the next mount.
    let note = fs::read_to_string(runtime("3").join("busy")).unwrap();
    assert!(said.trim_end().ends_with(note.lines().nth(1).unwrap()), "{note}");
    drop(outsider.stdin.take());
    outsider.wait().unwrap();
    umount_is_sound("3");
    mount_is_sound("3");
    assert!(!runtime("3").join("busy").exists());
    umount_is_sound("3");
}

#[test]
fn nobody_else_can_hold_the_lock_or_stand_in_the_mount() {
    isolated("inside_nobody_else_can_hold_the_lock_or_stand_in_the_mount");
}

#[test]
#[ignore = "run by nobody_else_can_hold_the_lock_or_stand_in_the_mount"]
fn inside_nobody_else_can_hold_the_lock_or_stand_in_the_mount() {
    let _host = Host::new("others");
    mount_is_sound("3");
    let may = |uid: u32, script: &str| {
        let id = uid.to_string();
        let ids = [format!("--reuid={id}"), format!("--regid={id}"), "--clear-groups".into()];
        command("setpriv")
            .args(ids)
            .args(["sh", "-c", script])
            .stderr(Stdio::null())
            .status()
            .unwrap()
            .success()
    };
    // flock(2) takes any descriptor, and so does a working directory that keeps the mount busy. Another server's user is
    // as much a stranger as anybody.
    for script in [
        "exec 9</var/lib/left4me/runtime/3",
        "cd /var/lib/left4me/runtime/3/merged",
        "cat /var/lib/left4me/runtime/3/merged/game",
        "cd /var/lib/left4me/runtime/3/upper",
    ] {
        assert!(!may(SERVER.uid + 1, script), "another user: {script}");
    }
    assert!(!may(SERVER.uid, "exec 9</var/lib/left4me/runtime/3"), "the server itself has no lock to hold");
    assert!(may(SERVER.uid, "cd /var/lib/left4me/runtime/3/merged && touch written && cat game"));
    assert!(!may(SERVER.uid, "mv /var/lib/left4me/runtime/3/upper /var/lib/left4me/runtime/3/x"));
    umount_is_sound("3");
    // A directory of a version that let others in is closed by the next mount.
    fs::set_permissions(runtime("3"), fs::Permissions::from_mode(0o755)).unwrap();
    mount_is_sound("3");
    umount_is_sound("3");
    // What another user has written there is not given to this server silently, nor kept from it.
    std::os::unix::fs::chown(runtime("3").join("upper"), Some(SERVER.uid + 1), None).unwrap();
    let output = helper(&["mount", "3"]).output().unwrap();
    let said = stderr(&output);
    assert!(output.status.code() == Some(1) && said.contains("belongs to uid 54322"), "{said}");
    // The advice works as it is printed.
    let advice = said.split('`').nth(1).unwrap().trim_start_matches("sudo ");
    ok(command("sh").args(["-c", advice]));
    mount_is_sound("3");
    umount_is_sound("3");
}

#[test]
fn what_is_said_to_nobody_changes_nothing() {
    isolated("inside_what_is_said_to_nobody_changes_nothing");
}

#[test]
#[ignore = "run by what_is_said_to_nobody_changes_nothing"]
fn inside_what_is_said_to_nobody_changes_nothing() {
    let _host = Host::new("said");
    let full = || fs::File::options().write(true).open("/dev/full").unwrap();
    let closed = || Stdio::from(std::io::pipe().unwrap().1);
    for verb in ["mount", "umount", "mount", "umount"] {
        let status = helper(&[verb, "3"]).stdout(full()).stderr(full()).status().unwrap();
        assert_eq!(status.code(), Some(0), "{verb} to a full disk");
        let status = helper(&[verb, "3"]).stdout(closed()).stderr(closed()).status().unwrap();
        assert_eq!(status.code(), Some(0), "{verb} to a reader that is gone");
        assert_eq!(mounts_at(&merged("3")).len(), usize::from(verb == "mount"));
    }
    let Some(unit) = unit() else { return };
    mount_is_sound("3");
    let mut straggler = unit.start("sh", &["-c", "trap '' TERM; echo; sleep 100"], &merged("3"));
    first_line(&mut straggler);
    let args = ["umount", "--end-unit", "--wait", "1", "3"];
    let status = helper(&args).stdout(full()).stderr(full()).status().unwrap();
    assert_eq!((status.code(), mounts_at(&merged("3")).len()), (Some(0), 0), "in the middle of an unmount");
    straggler.wait().unwrap();
}

#[test]
fn what_is_left_of_the_unit_is_waited_for() {
    isolated("inside_what_is_left_of_the_unit_is_waited_for");
}

#[test]
#[ignore = "run by what_is_left_of_the_unit_is_waited_for"]
fn inside_what_is_left_of_the_unit_is_waited_for() {
    let _host = Host::new("left");
    let Some(unit) = unit() else { return };
    let program = env!("CARGO_BIN_EXE_left4me-overlay");

    // Its end is the event, far before the time is up; also for a helper that is one of the unit's processes, as with the
    // unit of 5eac51a. It holds nothing that could be seen: a helper that asks who holds the mount does not wait.
    for is_inside in [false, true] {
        mount_is_sound("3");
        let mut child = unit.start("sh", &["-c", "echo; read line"], Path::new("/"));
        first_line(&mut child);
        let args = ["umount", "--wait", "60", "3"];
        let mut waiting = if is_inside {
            unit.start(program, &args, Path::new("/"))
        } else {
            helper(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
        };
        let mut line = String::new();
        BufReader::new(waiting.stderr.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert!(line.contains(&format!("waiting for {} (sh) of the server's unit", child.id())), "{line}");
        assert_eq!(mounts_at(&merged("3")).len(), 1, "not before it has ended");
        // By a helper that has given up what it does not need.
        let status = fs::read_to_string(format!("/proc/{}/status", waiting.id())).unwrap();
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim();
        for set in ["CapPrm:", "CapEff:"] {
            let capabilities = u64::from_str_radix(field(set), 16).unwrap();
            assert_eq!(capabilities & !left4me_helper::privileges::FOR_UMOUNT.bits(), 0, "{set}");
        }
        assert_eq!(field("NoNewPrivs:"), "1");
        drop(child.stdin.take());
        let output = waiting.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        child.wait().unwrap();
    }

    // One that stays is named, or, where that is asked for, ended: with an heir for ever, stopped, in any number.
    let heirs = "trap '' TERM; (while :; do sh -c 'exec sleep 0.01'; done) & echo; wait; sleep 100";
    for script in ["trap '' TERM; echo; read line; sleep 100", heirs, "echo; kill -STOP $$; sleep 100"] {
        mount_is_sound("3");
        let mut child = unit.start("sh", &["-c", script], &merged("3"));
        first_line(&mut child);
        let output = helper(&["umount", "--wait", "1", "3"]).output().unwrap();
        assert_eq!(output.status.code(), Some(32), "{}", stderr(&output));
        let said = stderr(&output);
        assert!(
            said.contains("have not ended in time") && said.contains(&format!("{} (sh) of ", child.id())),
            "{said}"
        );
        let output = helper(&["umount", "--end-unit", "--wait", "4", "3"]).output().unwrap();
        let said = stderr(&output);
        assert!(output.status.success() && said.contains("killed them (cgroup.kill)"), "{said}");
        child.wait().unwrap();
    }
    mount_is_sound("3");
    umount_is_sound("3");
}

#[test]
fn a_large_server_that_is_just_ending_is_waited_for() {
    isolated("inside_a_large_server_that_is_just_ending_is_waited_for");
}

/// A server of a real size: 300 MiB touched page by page, and 30 threads. It ends by a signal, as a game does.
#[test]
#[ignore = "run by a_large_server_that_is_just_ending_is_waited_for"]
fn the_large_server() {
    let mut memory = vec![0_u8; 300 << 20];
    memory.iter_mut().step_by(4096).for_each(|byte| *byte = 1);
    for _ in 0..30 {
        std::thread::spawn(std::thread::park);
    }
    println!("\nready");
    drop(std::io::stdin().read_line(&mut String::new()));
}

#[test]
#[ignore = "run by a_large_server_that_is_just_ending_is_waited_for"]
fn inside_a_large_server_that_is_just_ending_is_waited_for() {
    let _host = Host::new("large");
    let Some(unit) = unit() else { return };
    let rounds: usize = std::env::var("LEFT4ME_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(8);
    let itself = std::env::current_exe().unwrap();
    let args = ["--ignored", "--exact", "the_large_server", "--nocapture", "--test-threads", "1"];
    let mut refused = Vec::new();
    for round in 0..rounds {
        ok(&mut helper(&["mount", "3"]));
        let mut server = unit.start(&itself, &args, &merged("3"));
        let output = BufReader::new(server.stdout.take().unwrap());
        assert!(output.lines().any(|line| line.unwrap() == "ready"));
        // 0, 10, 20 ms or so after the signal, as the start-up of another program takes.
        kill(Pid::from_raw(server.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
        (0..round % 3).for_each(|_| drop(command("true").status()));
        let output = helper(&["umount", "3"]).output().unwrap();
        if output.status.code() != Some(0) {
            refused.push(format!("{:?} {}", output.status.code(), stderr(&output)));
        }
        server.wait().unwrap();
        umount_is_sound("3");
    }
    assert!(refused.is_empty(), "{} of {rounds} refused: {refused:?}", refused.len());
}
