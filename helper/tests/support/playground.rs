//! Where what deletes is tested: in a mount namespace in which nothing can be written but a playground.
//!
//! The trees of these tests hold links to `/` and to where the test runs. A delete that follows one, by a bug or on
//! purpose, finds a read-only machine.

use std::process::Command;

use rustix::mount::{MountFlags, mount};

#[path = "sealed.rs"]
mod sealed;

/// Set in the process that [`run`] starts.
const INSIDE: &str = "LEFT4ME_TEST_PLAYGROUND";

/// Runs the test `name`, as libtest prints it, in a process and namespaces of its own: its processes are gone afterwards,
/// a fresh tmpfs is its temporary directory, and everything else is read-only. The test function calls this, and nothing
/// else; `test` is called in that process.
///
/// Without root the namespaces are a new user namespace's, and `test` is root in there. Where that is not allowed the test
/// says that it did not run.
pub(crate) fn run(name: &str, test: impl FnOnce()) {
    if std::env::var_os(INSIDE).is_some() {
        sealed::seal();
        let none: Option<&std::ffi::CStr> = None;
        mount("tmpfs", std::env::temp_dir(), "tmpfs", MountFlags::empty(), none).expect("mount a tmpfs");
        return test();
    }
    let mut unshare = unshare();
    if !rustix::process::geteuid().is_root()
        && !unshare.arg("true").status().is_ok_and(|status| status.success())
    {
        eprintln!("not run: {name} deletes, which takes namespaces: root, or user namespaces");
        return;
    }
    let output = self::unshare()
        .arg(std::env::current_exe().expect("our own program"))
        .args(["--include-ignored", "--exact", name, "--nocapture", "--test-threads", "1"])
        .env(INSIDE, "1")
        .output()
        .expect("unshare(1) of util-linux");
    let said = String::from_utf8_lossy(&output.stdout);
    eprint!("{}", String::from_utf8_lossy(&output.stderr));
    assert!(
        output.status.success() && said.contains("\ntest result: ok. 1 passed;"),
        "{name}: {}\n{said}",
        output.status
    );
}

#[expect(clippy::disallowed_methods, reason = "a short program, waited for by the test that starts it")]
fn unshare() -> Command {
    let mut unshare = Command::new("unshare");
    if !rustix::process::geteuid().is_root() {
        unshare.args(["--user", "--map-root-user"]);
    }
    unshare.args([
        "--mount",
        "--pid",
        "--fork",
        "--mount-proc",
        "--kill-child",
        "--propagation",
        "private",
        "--",
    ]);
    unshare
}
