//! Processes of the unit that have not ended when it is to be unmounted.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Stdio;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::stage::{
    Host, Unit, command, first_line, helper, merged, mount_is_sound, mounts_at, ok, stderr, umount_is_sound,
};
use crate::trials::INSIDE;

pub(crate) fn what_is_left_of_the_unit_is_waited_for() {
    let _host = Host::new("left");
    let unit = Unit::new().unwrap();
    let program = env!("CARGO_BIN_EXE_left4me-overlay");

    // Its end is the event, far before the time is up; also for a helper that is one of the unit's processes, as with the
    // unit of 5eac51a. It holds nothing that could be seen: a helper that asks who holds the mount does not wait.
    for is_inside in [false, true] {
        mount_is_sound("3");
        let mut child = unit.start("sh", &["-c", "echo; read line"], Path::new("/"));
        first_line(&mut child);
        let args = ["umount", "--wait", "60", "3"];
        let mut waiting = if is_inside {
            unit.start(program, &args, Path::new("/"))
        } else {
            helper(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
        };
        let mut line = String::new();
        BufReader::new(waiting.stderr.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert!(line.contains(&format!("waiting for {} (sh) of the server's unit", child.id())), "{line}");
        assert_eq!(mounts_at(&merged("3")).len(), 1, "not before it has ended");
        // By a helper that has given up what it does not need.
        let status = fs::read_to_string(format!("/proc/{}/status", waiting.id())).unwrap();
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim();
        for set in ["CapPrm:", "CapEff:"] {
            let capabilities = u64::from_str_radix(field(set), 16).unwrap();
            assert_eq!(capabilities & !left4me_helper::privileges::FOR_UMOUNT.bits(), 0, "{set}");
        }
        assert_eq!(field("NoNewPrivs:"), "1");
        drop(child.stdin.take());
        let output = waiting.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        child.wait().unwrap();
    }

    // One that stays is named, or, where that is asked for, ended: with an heir for ever, stopped, in any number.
    let heirs = "trap '' TERM; (while :; do sh -c 'exec sleep 0.01'; done) & echo; wait; sleep 100";
    for script in ["trap '' TERM; echo; read line; sleep 100", heirs, "echo; kill -STOP $$; sleep 100"] {
        mount_is_sound("3");
        let mut child = unit.start("sh", &["-c", script], &merged("3"));
        first_line(&mut child);
        let output = helper(&["umount", "--wait", "1", "3"]).output().unwrap();
        assert_eq!(output.status.code(), Some(32), "{}", stderr(&output));
        let said = stderr(&output);
        assert!(
            said.contains("have not ended in time") && said.contains(&format!("{} (sh) of ", child.id())),
            "{said}"
        );
        let output = helper(&["umount", "--end-unit", "--wait", "4", "3"]).output().unwrap();
        let said = stderr(&output);
        assert!(output.status.success() && said.contains("killed them (cgroup.kill)"), "{said}");
        child.wait().unwrap();
    }
    mount_is_sound("3");
    umount_is_sound("3");
}

/// The name of [`large_server`] as a process of its own.
pub(crate) const LARGE_SERVER: &str = "large-server";

/// A server of a real size: 300 MiB touched page by page, and 30 threads. It ends by a signal, as a game does.
pub(crate) fn large_server() {
    let mut memory = vec![0_u8; 300 << 20];
    memory.iter_mut().step_by(4096).for_each(|byte| *byte = 1);
    for _ in 0..30 {
        std::thread::spawn(std::thread::park);
    }
    println!("ready");
    drop(std::io::stdin().read_line(&mut String::new()));
}

pub(crate) fn a_large_server_that_is_just_ending_is_waited_for() {
    let _host = Host::new("large");
    let unit = Unit::new().unwrap();
    let rounds: usize = std::env::var("LEFT4ME_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(8);
    let itself = std::env::current_exe().unwrap();
    let itself = itself.to_str().unwrap();
    let mut refused = Vec::new();
    for round in 0..rounds {
        ok(&mut helper(&["mount", "3"]));
        let mut server = unit.start("env", &[&format!("{INSIDE}={LARGE_SERVER}"), itself], &merged("3"));
        let output = BufReader::new(server.stdout.take().unwrap());
        assert!(output.lines().any(|line| line.unwrap() == "ready"));
        // 0, 10, 20 ms or so after the signal, as the start-up of another program takes.
        kill(Pid::from_raw(server.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
        (0..round % 3).for_each(|_| drop(command("true").status()));
        let output = helper(&["umount", "3"]).output().unwrap();
        if output.status.code() != Some(0) {
            refused.push(format!("{:?} {}", output.status.code(), stderr(&output)));
        }
        server.wait().unwrap();
        umount_is_sound("3");
    }
    assert!(refused.is_empty(), "{} of {rounds} refused: {refused:?}", refused.len());
}
