//! Where what deletes is tested: in a mount namespace in which nothing can be written but a playground.
//!
//! The trees of these tests hold links to `/` and to where the test runs. A delete that follows one, by a bug or on
//! purpose, finds a read-only machine.

use rustix::mount::{MountFlags, mount};

use crate::sealed;
use crate::trials::{Test, WhyNot, name_of, unshare};

/// A test for which a fresh tmpfs is its temporary directory, and everything else is read-only. `why_not` says what
/// else it takes.
///
/// Without root the namespaces are a new user namespace's, and the test is root in there.
pub(crate) fn test<F: Fn() + Send + 'static>(run: F, why_not: fn() -> WhyNot) -> Test {
    let may = || {
        rustix::process::geteuid().is_root()
            || unshare().arg("true").status().is_ok_and(|status| status.success())
    };
    let why = "it deletes, which takes namespaces: root, or user namespaces";
    let why_not = move || why_not().or_else(|| (!may()).then_some(why));
    let inside = move || {
        sealed::seal();
        let none: Option<&std::ffi::CStr> = None;
        mount("tmpfs", std::env::temp_dir(), "tmpfs", MountFlags::empty(), none).expect("mount a tmpfs");
        run();
    };
    Test::new(name_of::<F>(), inside, why_not)
}
