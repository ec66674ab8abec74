//! `left4me-overlay` as a shell sees it: the help text, the page, and what a wrong command line exits with.

use std::path::Path;

#[path = "support/program.rs"]
mod program;

use program::{run, stdout};

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

#[test]
fn the_helpers_page_has_its_command_line_and_its_statuses() {
    let page = "../deploy/files/usr/local/share/man/man8/left4me-overlay.8";
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(page)).unwrap();
    let plain = text.replace('\\', "");
    let line = ["left4me-overlay", "umount", "--wait", "1", "--end-unit", "3"];
    left4me_helper::arguments::parse(line.map(Into::into)).unwrap();
    for option in ["--wait", "--end-unit", "--help", "--version"] {
        assert!(plain.contains(option), "{option}");
    }
    use left4me_helper::error::{EXIT_FAILED, EXIT_MOUNT, EXIT_OK, EXIT_USAGE};
    for status in [EXIT_OK, EXIT_FAILED, EXIT_USAGE, EXIT_MOUNT] {
        assert!(plain.contains(&format!("\nfB{status}fR\n")), "{status}");
    }
    assert!(plain.contains(left4me_helper::journal::BUSY_MESSAGE_ID));
}
