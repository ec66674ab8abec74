//! Programs that fail, hang, leave a grandchild or are interrupted.

use std::fs::File;
use std::io::Read as _;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::unistd::Pid;
use tokio::io::AsyncReadExt as _;
use xshell::cmd;

use super::capture::*;
use super::error::*;
use super::group::*;
use super::program::*;

/// Runs a test body on the kind of runtime the harness has.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(future)
}

/// A shell script in a directory of its own.
fn fake(script: &str) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().expect("a temp dir");
    let path = dir.path().join("fake");
    std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).expect("write the script");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("chmod the script");
    (dir, path)
}

fn sh(script: &str) -> Program {
    Program::new("/bin/sh").arg("-c").arg(script)
}

const LONG: Duration = Duration::from_secs(20);

#[test]
fn collects_both_streams_and_gives_out_lines() {
    let mut lines = Vec::new();
    let output = block_on(run(sh("echo one; echo two >&2; printf three"), LONG, |stream, line| {
        lines.push((stream, line.to_owned()));
    }))
    .expect("it succeeds");
    assert_eq!(output.stdout, b"one\nthree");
    assert_eq!(output.stderr, b"two\n");
    lines.sort_by_key(|(stream, _)| *stream == Stream::Stderr);
    let expected = [(Stream::Stdout, "one"), (Stream::Stdout, "three"), (Stream::Stderr, "two")];
    assert_eq!(lines, expected.map(|(stream, line)| (stream, line.to_owned())));
}

#[test]
fn a_program_that_hangs_is_ended_at_its_deadline_with_its_children() {
    // It ignores SIGTERM, so that SIGKILL has to come; the grace is what the test waits for.
    let (_dir, path) = fake("echo starting >&2; sleep 1000 & echo $!; exec sleep 1001");
    let mut grandchild = None;
    let result = block_on(run(Program::new(&path), Duration::from_millis(500), |stream, line| {
        if stream == Stream::Stdout {
            grandchild = line.parse::<i32>().ok();
        }
    }));
    let Err(Error::Deadline { stderr_tail, .. }) = result else { panic!("not a deadline: {result:?}") };
    assert_eq!(stderr_tail, "starting");
    assert_dead(grandchild.expect("the script said its child's id"));
}

#[test]
fn a_program_that_ignores_sigterm_gets_sigkill() {
    block_on(async {
        let mut child =
            sh("trap '' TERM; echo ready; while :; do sleep 1000; done").spawn().expect("it starts");
        let mut out = child.take_stdout().expect("a pipe").expect("piped");
        let mut ready = [0; 6];
        out.read_exact(&mut ready).await.expect("it says ready");
        let status = child.kill_group(Duration::from_millis(100)).await.expect("it can be ended");
        assert_eq!(describe(status), "killed by SIGKILL");
        assert_dead(i32::try_from(child.pid()).expect("a pid"));
    });
}

#[test]
fn a_grandchild_that_holds_the_pipe_does_not_hold_us() {
    let started = Instant::now();
    let output = block_on(run(sh("sleep 1000 & echo $!"), LONG, |_, _| {})).expect("the leader succeeds");
    assert!(started.elapsed() < LONG / 2, "waited for the grandchild");
    assert_dead(output.text().trim().parse().expect("a pid"));
}

#[test]
fn a_pipe_held_from_outside_the_group_is_an_error_and_bounded() {
    // The fifo tells that the child has left the group; before that it would be ended with it.
    let (dir, path) = fake("mkfifo $1; setsid sh -c 'echo out > $1; exec sleep 8' - $1 & cat $1");
    let program = Program::new(path).arg(dir.path().join("fifo"));
    let result = block_on(run(program, LONG, |_, _| {}));
    assert!(matches!(result, Err(Error::PipeHeld { .. })), "{result:?}");
}

#[test]
fn death_by_a_signal_is_a_failure_with_its_name() {
    let error = block_on(output(sh("echo why >&2; kill -SEGV $$"), LONG)).expect_err("it dies");
    insta::assert_snapshot!(error.to_string(), @r"
    /bin/sh -c 'echo why >&2; kill -SEGV $$': killed by SIGSEGV; its stderr ends:
    why
    ");
}

#[test]
fn a_missing_program_is_named() {
    let error = block_on(output(Program::new("no-such-program-here"), LONG)).expect_err("it is missing");
    insta::assert_snapshot!(error.to_string(), @"program no-such-program-here is not installed");
}

#[test]
fn a_command_of_xshell_keeps_its_words_environment_and_place() {
    let shell = xshell::Shell::new().expect("a working directory");
    shell.change_dir("/");
    let words = ["it's", "two words"];
    let script = "echo $A ${CARGO_MANIFEST_DIR-none}; pwd; for word; do echo $word; done";
    let cmd =
        cmd!(shell, "/bin/sh -c {script} - {words...} '$A'").env("A", "b").env_remove("CARGO_MANIFEST_DIR");
    let program = Program::from(cmd);
    assert_eq!(program.shown().0.last().map(String::as_str), Some("$A"));
    let output = block_on(output(program, LONG)).expect("it succeeds");
    assert_eq!(output.text(), "b none\n/\nit's\ntwo words\n$A\n");
}

#[test]
fn descriptors_arrive_under_the_numbers_asked_for() {
    let file = |text: &str| {
        let dir = tempfile::tempdir().expect("a temp dir");
        let path = dir.path().join("file");
        std::fs::write(&path, text).expect("write");
        OwnedFd::from(File::open(&path).expect("open"))
    };
    // Swapped on purpose: the first is asked for at a number that may be the second's own.
    let (a, b) = (file("a"), file("b"));
    let (at_a, at_b) = (b.as_raw_fd(), a.as_raw_fd());
    let count = "ls /proc/self/fd | wc -l";
    let without = block_on(run(sh(count), LONG, |_, _| {})).expect("it succeeds").text();
    let with = without.trim().parse::<u32>().expect("a number") + 2;
    let script = format!("cat /dev/fd/{at_a}; cat /dev/fd/{at_b}; {count}");
    let program = sh(&script).pass_fd(a, at_a).pass_fd(b, at_b);
    let output = block_on(run(program, LONG, |_, _| {})).expect("it succeeds");
    assert_eq!(output.text().trim(), format!("ab{with}"), "the two passed and nothing else");
}

#[test]
fn output_can_go_to_a_file() {
    let mut log = tempfile::tempfile().expect("a temp file");
    let sink = Sink::File(log.try_clone().expect("a second handle"));
    block_on(async {
        let mut child = sh("echo to the file").stdout(sink).stderr(Sink::Null).spawn().expect("it starts");
        assert!(child.take_stdout().expect("no pipe").is_none());
        assert!(child.wait().await.expect("it ends").success());
        assert!(child.wait().await.expect("a second wait says the same").success());
    });
    let mut text = String::new();
    std::io::Seek::rewind(&mut log).expect("rewind");
    log.read_to_string(&mut text).expect("read");
    assert_eq!(text, "to the file\n");
}

#[test]
fn dropping_a_child_ends_its_group() {
    let pid = block_on(async {
        let mut child = sh("sleep 1000 & echo $!; wait").spawn().expect("it starts");
        let mut out = child.take_stdout().expect("a pipe").expect("piped");
        let mut text = String::new();
        while !text.ends_with('\n') {
            text.push(char::from(out.read_u8().await.expect("the pid")));
        }
        text.trim().parse::<i32>().expect("a pid")
    });
    assert_dead(pid);
}

#[test]
fn command_lines_can_be_pasted() {
    let argv = Argv(["a", "b c", "it's", ""].map(str::to_owned).to_vec());
    assert_eq!(argv.to_string(), r"a 'b c' 'it'\''s' ''");
}

#[test]
fn the_tail_starts_at_a_line() {
    assert_eq!(tail(b"short\n"), "short");
    let long = "0123456789\n".repeat(1000);
    let tail = tail(long.as_bytes());
    assert!(tail.len() <= TAIL_BYTES && tail.starts_with("0123456789\n"), "{}", tail.len());
}

/// A process that was killed is gone or a zombie that its new parent has not collected yet.
fn assert_dead(pid: i32) {
    let Ok(fd) = open_pidfd(Pid::from_raw(pid)) else { return };
    let mut fds = [rustix::event::PollFd::new(&fd, rustix::event::PollFlags::IN)];
    let limit = rustix::event::Timespec { tv_sec: 5, tv_nsec: 0 };
    assert_eq!(rustix::event::poll(&mut fds, Some(&limit)), Ok(1), "process {pid} is alive");
}
