//! What can't be run as it is typed is exit status 2, with words, before anything is installed, built or booted.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::time::Duration;

use tokio::runtime::Builder;
use vm_tests::host::process::{Program, Sink};

/// The exit code of `xtask --help`.
const WRONG_USAGE: i32 = 2;

/// How `xtask` ends, and what it says.
fn xtask(arguments: &[&str]) -> (Option<i32>, String) {
    printing(arguments, Sink::Null)
}

/// The same with this for its stdout.
fn printing(arguments: &[&str], stdout: Sink) -> (Option<i32>, String) {
    with(Program::new(env!("CARGO_BIN_EXE_xtask")), arguments, stdout)
}

fn with(program: Program, arguments: &[&str], stdout: Sink) -> (Option<i32>, String) {
    let said = tempfile::NamedTempFile::new().expect("a file");
    let target = tempfile::tempdir().expect("a directory");
    let program = program
        .args(arguments)
        // Whoever runs this may not own the one that it was built in.
        .env("CARGO_TARGET_DIR", target.path())
        .stdout(stdout)
        .stderr(Sink::File(said.reopen().expect("open it again")));
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    let ended = runtime.block_on(async {
        let mut child = program.spawn().expect("run xtask");
        tokio::time::timeout(Duration::from_secs(60), child.wait()).await
    });
    let status = ended.expect("it works instead of refusing").expect("a status");
    (status.code(), std::fs::read_to_string(said.path()).expect("read"))
}

#[test]
fn what_cant_be_run_is_wrong_usage_and_says_what_is_wrong() {
    let cases: [(&[&str], &str); 26] = [
        (&["frobnicate"], "unrecognized subcommand"),
        (&["vm-test", "no-such-scenario"], "no-such-scenario"),
        (&["vm-test", "--image", "potato"], "potato"),
        (&["vm-test", "--cycles", "2", "shutdown"], "a machine shuts down once"),
        (&["vm-test", "--shard", "0/4"], "2/4 for the second of four"),
        (&["vm-test", "--shard", "5/4"], "2/4 for the second of four"),
        (&["vm-test", "--shard", "x"], "2/4 for the second of four"),
        (&["vm-test", "--history", "--shard", "1/4"], "cannot be used with"),
        (&["vm-test", "--image", "sid", "--shard", "1/2", "5eac51a"], "2 shards of 1 run"),
        (&["costs", "/no/such"], "read /no/such"),
        (&["vm-test", "--qemu", "/no/such/qemu"], "/no/such/qemu: no such program"),
        (
            &["vm-test", "--kernel", "/no/such", "--modules", "/", "--root", "/"],
            "--kernel /no/such: no such file",
        ),
        (&["shell", "--image", "trixie,sid"], "one suite at a time"),
        (&["vm-test", "--image", "potato"], "bookworm, trixie, sid, nixos"),
        (&["vm-test", "--image", "nixos", "--guest", "/no/such"], "what `nix build .#guest` makes"),
        (&["vm-test", "--guest", "/no/such"], "the guest of --image nixos"),
        (&["vm-test", "--deploy", "deb", "--programs", "/no/such", "product-asks"], "not with --programs"),
        (&["vm-test", "--deploy", "both", "936c8bb"], "for scenarios that deploy the product: 936c8bb: "),
        (&["vm-test", "--image", "nixos,sid", "--guest", "/no/such"], "by itself, without suites"),
        (&["check", "--mutants", "no-such-mutant"], "no mutant no-such-mutant"),
        (&["explore", "shutdown"], "its reset shuts the machine down"),
        (&["explore", "user-unit"], "only what PID 1 starts is traced"),
        (&["explore", "936c8bb", "--holds", "umount"], "write it as left4me-overlay#2:umount2@1=80ms"),
        (&["explore", "936c8bb", "--strategy", "luck"], "there are offsets, one-hold, each-length, pairs"),
        (&["bench", "holders", "boot"], "by itself"),
        (&["bench", "edit", "--programs", "/no/such"], "without --programs"),
    ];
    for (arguments, words) in cases {
        let (code, said) = xtask(arguments);
        assert!(code == Some(WRONG_USAGE) && said.contains(words), "{arguments:?}: {code:?}, {said}");
    }
}

/// The exit code of what could not be tried.
const NO_RESULT: i32 = 69;

#[test]
fn without_nix_and_without_a_guest_it_is_said_what_to_type() {
    let empty = tempfile::tempdir().expect("a directory");
    let arguments = ["vm-test", "--image", "nixos", "overlay-unit"];
    let (code, said) =
        with(Program::new(env!("CARGO_BIN_EXE_xtask")).env("PATH", empty.path()), &arguments, Sink::Null);
    let what = "type `nix build .#guest` where Nix can fetch nixpkgs, and name here what it makes: \
                `cargo xtask vm-test --image nixos --guest result`";
    assert!(
        code == Some(NO_RESULT) && said.contains("no nix on PATH") && said.contains(what),
        "{code:?}, {said}"
    );
}

#[test]
fn a_reader_may_go_before_the_end() {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    // As in `cargo xtask doctor | head -1`, whose end it may have come to or not.
    let (code, said) = printing(&["doctor"], Sink::File(File::from(OwnedFd::from(writer))));
    assert!(!said.contains("panicked") && matches!(code, Some(0 | 1)), "{code:?}, {said}");
}
