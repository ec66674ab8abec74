//! The built programs, as tests run them.

use std::path::Path;
use std::process::{Command, Output};

/// The state directory that they work in: of the test's own mount namespace.
pub(crate) const STATE: &str = "/var/lib/left4me";

#[expect(
    clippy::disallowed_methods,
    reason = "short programs, each waited for or killed by the test that starts it"
)]
pub(crate) fn command(program: impl AsRef<std::ffi::OsStr>) -> Command {
    Command::new(program)
}

pub(crate) fn helper(args: &[&str]) -> Command {
    let mut helper = command(env!("CARGO_BIN_EXE_left4me-overlay"));
    helper.args(args);
    helper
}

/// The example program, which cargo builds with the tests.
pub(crate) fn purge() -> Command {
    let programs = Path::new(env!("CARGO_BIN_EXE_left4me-overlay")).parent().unwrap();
    let program = programs.join("examples/purge");
    assert!(program.exists(), "cargo build -p left4me-helper --example purge, or test the whole package");
    let mut purge = command(program);
    purge.args([STATE, "3"]);
    purge
}

#[track_caller]
pub(crate) fn ok(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", stderr(&output));
    String::from_utf8(output.stdout).unwrap()
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}
