//! What the library makes of the machine that this runs on. What this kernel or this user can't do is reported as ignored,
//! with the reason.

use std::process::ExitCode;

use holders::checks::machine;
use libtest_mimic::{Arguments, Completion, Trial};

fn main() -> ExitCode {
    let trial = |name: &str, tried: fn() -> Result<(), &'static str>| {
        Trial::ignorable_test(name, move || {
            Ok(tried().map_or_else(Completion::ignored_with, |()| Completion::Completed))
        })
    };
    let trials = vec![
        trial("the-kernels-list-of-namespaces-has-ours", machine::namespace_list),
        trial("lists-the-same-mounts-as-mountinfo", machine::mounts_by_namespace),
        trial("finds-the-mappings-of-this-program", machine::mappings),
        trial("tells-of-sockets-with-a-file", || {
            machine::bound_sockets(tempfile::tempdir().expect("make a directory").path())
        }),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}
