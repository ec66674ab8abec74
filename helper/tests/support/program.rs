//! A program of the package under test, run to its end.

use std::process::Output;

#[expect(clippy::disallowed_methods, reason = "a short-lived program of this package, waited for at once")]
pub(crate) fn run(program: &str, args: &[&str]) -> Output {
    std::process::Command::new(program).args(args).output().expect("the binary was built for this test")
}

/// What it printed, of a program that has nothing to complain of.
pub(crate) fn stdout(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(0));
    assert!(output.stderr.is_empty());
    String::from_utf8(output.stdout.clone()).expect("help is UTF-8")
}
