//! Resets: trees that are hard to delete, and how long a large one takes.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::time::Instant;

use rustix::fs::{IFlags, ioctl_setflags};
use rustix::mount::{UnmountFlags, mount_bind, unmount};

use crate::stage::{
    Host, STATE, command, mount_is_sound, ok, purge, reset_is_sound, runtime, stderr, umount_is_sound,
};
use crate::trials::WhyNot;

pub(crate) fn hostile_trees_are_reset() {
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

/// Immutable is somebody's decision: Reset says which file, and goes on once it is taken back.
pub(crate) fn an_immutable_file_is_named() {
    let _host = Host::new("immutable");
    mount_is_sound("3");
    umount_is_sound("3");
    let precious = runtime("3").join("upper/immutable/precious");
    fs::create_dir(precious.parent().unwrap()).unwrap();
    fs::write(&precious, "").unwrap();
    let file = fs::File::open(&precious).unwrap();
    ioctl_setflags(&file, IFlags::IMMUTABLE).unwrap();
    let output = purge().output().unwrap();
    let said = stderr(&output);
    assert!(
        !output.status.success()
            && said.contains("runtime/.purge-3/upper/immutable/precious: ")
            && said.contains("chattr -R -i -a"),
        "{said}"
    );
    assert!(!runtime("3").exists(), "the next start begins anew all the same");
    ioctl_setflags(&file, IFlags::empty()).unwrap();
    drop(file);
    reset_is_sound();
}

/// Why no file can be made immutable where [`Host`] has its directories.
pub(crate) fn why_no_immutable_files() -> WhyNot {
    let file = tempfile::tempfile_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let can = ioctl_setflags(&file, IFlags::IMMUTABLE).and_then(|()| ioctl_setflags(&file, IFlags::empty()));
    can.is_err().then_some("it makes a file immutable, which takes root and a file system that can")
}

/// A measurement: `cargo test --release -p left4me-helper --test native -- --ignored --nocapture purge_and_rm`, after
/// `cargo build --release -p left4me-helper --example purge`.
pub(crate) fn purge_and_rm_on_100_000_files() {
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
