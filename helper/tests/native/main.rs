//! The built programs on the machine's own kernel: real overlays, real kills. `attacker.rs` has who fights back.
//!
//! Each test runs its second half in namespaces of its own (mount and PID), made by unshare(1), in which
//! `/var/lib/left4me` is a directory below `target/`. So that half is PID 1 there, the helper finds itself in PID 1's
//! mount namespace, as it demands, and whatever a test leaves goes with the namespaces. All else of the machine is
//! read-only in there. That takes root; without it the tests are ignored, and say so.

mod at_once;
#[path = "../support/built.rs"]
mod built;
mod killed;
mod mounting;
mod resetting;
#[path = "../support/sealed.rs"]
mod sealed;
mod stage;
mod strangers;
#[path = "../support/trials.rs"]
mod trials;
mod waiting;

use std::process::ExitCode;

use stage::{as_root, why_no_cgroup};

fn main() -> ExitCode {
    let tests = [
        as_root(at_once::two_at_once, || None),
        as_root(at_once::fifty_at_once, || None),
        as_root(killed::killed_at_every_step, || None),
        as_root(mounting::a_mount_and_an_unmount, || None),
        as_root(mounting::every_way_to_mount_takes_any_name, || None),
        as_root(mounting::faults_of_the_file_system_are_told_and_mended, || None),
        as_root(resetting::hostile_trees_are_reset, || None),
        as_root(resetting::an_immutable_file_is_named, resetting::why_no_immutable_files),
        as_root(resetting::purge_and_rm_on_100_000_files, || Some("a measurement, of some minutes")),
        as_root(strangers::an_outsider_is_named_at_once, || None),
        as_root(strangers::nobody_else_can_hold_the_lock_or_stand_in_the_mount, || None),
        as_root(strangers::what_is_said_to_nobody_changes_nothing, || None),
        as_root(strangers::what_is_said_to_nobody_in_the_middle_changes_nothing, why_no_cgroup),
        as_root(waiting::what_is_left_of_the_unit_is_waited_for, why_no_cgroup),
        as_root(waiting::a_large_server_that_is_just_ending_is_waited_for, why_no_cgroup),
    ];
    trials::main(&tests, &[(waiting::LARGE_SERVER, waiting::large_server)], Vec::new())
}
