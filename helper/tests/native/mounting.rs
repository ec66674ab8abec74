//! Mounts and unmounts of one instance: what they make, names that are hard to mount, and a file system that refuses.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use left4me_helper::error::HelperError;
use left4me_helper::overlay::{self, METHODS, Outcome};
use left4me_helper::state::InstanceDir;
use left4me_helper::unit_end::{OfUnit, Wait};
use rustix::mount::{MountFlags, UnmountFlags, mount_bind, unmount};

use crate::stage::{
    Host, SERVER, STATE, helper, merged, mount_is_sound, mounts_at, ok, purge, reset_is_sound, runtime,
    stderr, umount_is_sound, umount_is_sound_if_made,
};

pub(crate) fn a_mount_and_an_unmount() {
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

pub(crate) fn every_way_to_mount_takes_any_name() {
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
                Err(error) => panic!("{method:?} {name:?}: {}", holders::chain::chain(&error)),
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

pub(crate) fn faults_of_the_file_system_are_told_and_mended() {
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
