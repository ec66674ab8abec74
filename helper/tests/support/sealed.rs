//! A mount namespace in which nothing can be written, for tests of what deletes.

use std::path::Path;

use nix::libc;

/// Makes every mount of this namespace read-only, and is sure that they are.
///
/// For a namespace that the test has made: nobody else's mounts may be in it.
pub(crate) fn seal() {
    let ours = rustix::fs::readlink("/proc/self/ns/mnt", Vec::new()).expect("our mount namespace");
    let hosts = rustix::fs::readlink("/proc/1/ns/mnt", Vec::new());
    // PID 1 is ourselves or unshare(1), in a PID namespace of its own. On a host it would be the host's.
    let init = std::fs::read_to_string("/proc/1/comm").expect("the name of PID 1");
    assert!(
        std::process::id() == 1 || hosts.is_ok_and(|hosts| hosts == ours),
        "not in namespaces of its own: PID 1 is {init}"
    );
    set_read_only(Path::new("/"), true);
    for path in [Path::new("/"), Path::new(env!("CARGO_MANIFEST_DIR")), &std::env::temp_dir()] {
        let made = std::fs::write(path.join("left4me-test"), "");
        let errno = made.map_err(|error| error.raw_os_error());
        assert_eq!(errno, Err(Some(libc::EROFS)), "{} can be written", path.display());
    }
}

/// Says of a mount, and of all below it, whether it can be written: mount_setattr(2).
pub(crate) fn set_read_only(mount: &Path, is_read_only: bool) {
    const RDONLY: u64 = 1;
    let (set, clear) = if is_read_only { (RDONLY, 0) } else { (0, RDONLY) };
    // struct mount_attr: what is set, what is cleared, propagation, user namespace.
    let attributes: [u64; 4] = [set, clear, 0, 0];
    let path = std::ffi::CString::new(mount.to_str().expect("a path")).expect("no NUL");
    #[expect(unsafe_code, reason = "neither std nor rustix has this call")]
    // SAFETY: path and attributes are alive for the call, which reads them, and the size is the latter's.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            libc::AT_FDCWD,
            path.as_ptr(),
            libc::AT_RECURSIVE,
            &raw const attributes,
            size_of_val(&attributes),
        )
    };
    assert_eq!(result, 0, "mount_setattr {}: {}", mount.display(), std::io::Error::last_os_error());
}
