//! Both binaries as a shell sees them: the help text, and what a wrong command line exits with.

use std::process::Output;

#[expect(clippy::disallowed_methods, reason = "a short-lived program of this package, waited for at once")]
fn run(program: &str, args: &[&str]) -> Output {
    std::process::Command::new(program).args(args).output().expect("the binary was built for this test")
}

fn stdout(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(0));
    assert!(output.stderr.is_empty());
    String::from_utf8(output.stdout.clone()).expect("help is UTF-8")
}

#[test]
fn help_of_the_helper() {
    insta::assert_snapshot!(stdout(&run(env!("CARGO_BIN_EXE_left4me-overlay"), &["--help"])));
}

#[test]
fn usage_errors_of_the_helper() {
    for args in [&[][..], &["mount"], &["mount", ".."], &["umount", "-l", "3"], &["mount", "a", "b"]] {
        let output = run(env!("CARGO_BIN_EXE_left4me-overlay"), args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(output.stdout.is_empty());
        assert!(String::from_utf8_lossy(&output.stderr).ends_with("Try: left4me-overlay --help\n"));
    }
}

#[cfg(feature = "dbus")]
#[test]
fn help_of_l4d2ctl() {
    let program = env!("CARGO_BIN_EXE_l4d2ctl");
    let all =
        ["start", "stop", "reset", "status", "doctor"].map(|verb| stdout(&run(program, &[verb, "--help"])));
    insta::assert_snapshot!("l4d2ctl", stdout(&run(program, &["--help"])));
    insta::assert_snapshot!("l4d2ctl_reset", all[2]);
}

#[cfg(feature = "control")]
#[path = "../examples/generate.rs"]
#[expect(dead_code, reason = "its main is the example's")]
mod generate;

#[cfg(feature = "control")]
#[test]
fn the_manual_page_and_the_completions_that_are_shipped_are_those_of_the_program() {
    for (path, content) in generate::files() {
        let shipped = std::fs::read(&path).unwrap_or_default();
        assert!(
            shipped == content,
            "{}: not what the program's command line makes; run `cargo run -p left4me-helper --example generate`",
            path.display()
        );
    }
}

#[cfg(feature = "dbus")]
#[test]
fn usage_errors_of_l4d2ctl() {
    for args in [
        &[][..],
        &["reset"],
        &["reset", "../3"],
        &["status", "3", "--timeout", "0"],
        &["restart", "3"],
        &["stop", "3", "--all"],
    ] {
        assert_eq!(run(env!("CARGO_BIN_EXE_l4d2ctl"), args).status.code(), Some(2), "{args:?}");
    }
}
