//! What becomes of an answer that can't be written: no panic, and no status that looks like an answer.

use std::fs::File;
use std::io::Read as _;
use std::process::{Command, Output, Stdio};

/// Every way to have something printed.
const QUESTIONS: [&[&str]; 6] = [
    &["/proc"],
    &["--json", "/proc"],
    &["--help"],
    &["--version"],
    &["ns", "/proc/self/ns/mnt"],
    &["watch", "--rate", "0", "/proc"],
];

fn full() -> Stdio {
    File::options().write(true).open("/dev/full").expect("open /dev/full").into()
}

/// The end of a pipe that nobody reads.
fn unread() -> Stdio {
    let (reader, writer) = std::io::pipe().expect("pipe");
    drop(reader);
    writer.into()
}

#[expect(clippy::disallowed_methods, reason = "the command under test; waited for")]
fn ask(args: &[&str], stdout: Stdio, stderr: Stdio) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_holders"))
        .args(args)
        .stdin(Stdio::null())
        .stdout(stdout)
        .stderr(stderr)
        .spawn()
        .expect("run holders");
    let mut text = Vec::new();
    if let Some(mut stderr) = child.stderr.take() {
        stderr.read_to_end(&mut text).expect("read stderr");
    }
    Output { status: child.wait().expect("wait"), stdout: Vec::new(), stderr: text }
}

#[test]
fn a_full_disk_is_an_error_that_says_so() {
    for args in QUESTIONS {
        let output = ask(args, full(), Stdio::piped());
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {stderr}");
        assert_eq!(stderr, "holders: write to stdout: No space left on device (os error 28)\n", "{args:?}");
    }
}

#[test]
fn a_reader_that_is_gone_gets_no_answer() {
    for args in QUESTIONS {
        let output = ask(args, unread(), Stdio::piped());
        let stderr = String::from_utf8_lossy(&output.stderr);
        // A watch is for as long as somebody reads it.
        let is_watch = args[0] == "watch";
        assert_eq!(output.status.code(), Some(i32::from(!is_watch)), "{args:?}: {stderr}");
        let expected = if is_watch { "" } else { "holders: write to stdout: Broken pipe (os error 32)\n" };
        assert_eq!(stderr, expected, "{args:?}");
    }
}

#[test]
fn nor_does_it_panic_when_it_can_not_even_complain() {
    for args in QUESTIONS {
        assert_eq!(ask(args, full(), full()).status.code(), Some(1), "{args:?}");
        let is_watch = args[0] == "watch";
        assert_eq!(ask(args, unread(), unread()).status.code(), Some(i32::from(!is_watch)), "{args:?}");
    }
    assert_eq!(ask(&["--no-such-option"], Stdio::null(), full()).status.code(), Some(2));
    assert_eq!(ask(&["--no-such-option"], Stdio::null(), unread()).status.code(), Some(2));
}

#[test]
fn a_path_that_is_not_there_is_an_error() {
    let output = ask(&["/no/such/mount"], Stdio::null(), Stdio::piped());
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.starts_with("holders: /no/such/mount: No such file or directory"), "{stderr}");
    assert_eq!(ask(&[""], Stdio::null(), Stdio::piped()).status.code(), Some(2));
}
