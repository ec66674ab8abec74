//! Who is not of the unit: one who stands in the mount, one who would, and nobody who reads what is said.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::mount::MountFlags;

use crate::stage::{
    Host, SERVER, Unit, command, first_line, helper, merged, mount_is_sound, mounts_at, ok, runtime, stderr,
    umount_is_sound,
};

pub(crate) fn an_outsider_is_named_at_once() {
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

pub(crate) fn nobody_else_can_hold_the_lock_or_stand_in_the_mount() {
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

pub(crate) fn what_is_said_to_nobody_changes_nothing() {
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
}

pub(crate) fn what_is_said_to_nobody_in_the_middle_changes_nothing() {
    let _host = Host::new("said-in-the-middle");
    let full = || fs::File::options().write(true).open("/dev/full").unwrap();
    let unit = Unit::new().unwrap();
    mount_is_sound("3");
    let mut straggler = unit.start("sh", &["-c", "trap '' TERM; echo; sleep 100"], &merged("3"));
    first_line(&mut straggler);
    let args = ["umount", "--end-unit", "--wait", "1", "3"];
    let status = helper(&args).stdout(full()).stderr(full()).status().unwrap();
    assert_eq!((status.code(), mounts_at(&merged("3")).len()), (Some(0), 0), "in the middle of an unmount");
    straggler.wait().unwrap();
}
