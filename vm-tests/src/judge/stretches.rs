//! Where the time of a slow reset went: the longest stretches in which nothing was recorded, and what lay before and after.
//!
//! For who reads of a deviation and has no recording at hand, as in the log of a CI job. Pure.

use std::time::Duration;

use vm_agent::recording::{Event, MAIN, Recording, Step, Trigger, What};

/// A stretch that is shorter is no news.
const SHORTEST: Duration = Duration::from_millis(200);

/// How many of them are shown.
const SHOWN: usize = 3;

/// A line for each of the longest stretches of a cycle's reset in which nothing happened, the longest first.
pub(super) fn longest(recording: &Recording, cycle: u32) -> Vec<String> {
    let mut moments: Vec<(u64, String)> = recording
        .events
        .iter()
        .filter(|event| event.cycle == cycle)
        .flat_map(|event| words(event).into_iter().chain(end(event)))
        .collect();
    moments.sort_by_key(|(at, _words)| *at);
    let begins = moments.iter().position(|(_at, words)| *words == begin(Step::Reset));
    let ends = moments.iter().position(|(_at, words)| *words == over(Step::Reset));
    let (Some(begins), Some(ends)) = (begins, ends) else { return Vec::new() };
    let reset = moments.get(begins..=ends).unwrap_or_default();
    let mut stretches: Vec<_> = reset
        .windows(2)
        .filter_map(|pair| match pair {
            [(from, before), (to, after)] => Some((Duration::from_nanos(to.abs_diff(*from)), before, after)),
            _ => None,
        })
        .filter(|(length, ..)| *length >= SHORTEST)
        .collect();
    stretches.sort_by_key(|(length, ..)| std::cmp::Reverse(*length));
    let line = |(length, before, after): &(Duration, &String, &String)| {
        format!("{:.3} s of the reset between \"{before}\" and \"{after}\"", length.as_secs_f64())
    };
    stretches.iter().take(SHOWN).map(line).collect()
}

fn begin(step: Step) -> String {
    format!("{step:?} begins").to_lowercase()
}

fn over(step: Step) -> String {
    format!("{step:?} ends").to_lowercase()
}

/// Time and description; none for the recorder's periodic scans, which are no events.
fn words(event: &Event) -> Option<(u64, String)> {
    let words = match &event.what {
        What::StepBegins(step) => begin(*step),
        What::StepEnds(ended) => over(ended.step),
        What::Unit(state) => format!("unit is {}/{}", state.active, state.sub),
        What::MountUnit(state) => format!("mount unit is {}/{}", state.active, state.sub),
        What::Exec(exec) if exec.line == MAIN => return None,
        What::Exec(exec) => format!("{} of {} begins", exec.line, exec.unit),
        What::Mounted(_) => "mounted".to_owned(),
        What::Unmounted => "unmounted".to_owned(),
        What::UmountCall(call) => format!("umount2 by {}", call.comm),
        What::Scan(scan) if scan.trigger == Trigger::Exit => "a process of the unit ends".to_owned(),
        What::Scan(scan) if scan.trigger == Trigger::Exec => "a process of the unit executes".to_owned(),
        What::Coredump { comm, .. } => format!("{comm} dumps core"),
        What::Scan(_)
        | What::Diagnosis(_)
        | What::OfMount { .. }
        | What::LeftOver { .. }
        | What::EndState(_)
        | What::Evidence(_)
        | What::KernelWarning { .. }
        | What::Alive(_)
        | What::DeviceKept { .. }
        | What::StartsForgotten
        | What::Console { .. }
        | What::NotMounted { .. }
        | What::Lost { .. } => return None,
    };
    Some((event.at, words))
}

/// The end of what has a beginning.
fn end(event: &Event) -> Option<(u64, String)> {
    match &event.what {
        What::Exec(exec) if exec.line == MAIN => {
            Some((exec.ended?, format!("the main process of {} ends", exec.unit)))
        }
        What::Exec(exec) => Some((exec.ended?, format!("{} of {} ends", exec.line, exec.unit))),
        What::UmountCall(call) => Some((call.returned, format!("umount2 by {} returns", call.comm))),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use vm_agent::recording::{Exec, Target, UmountCall};
    use vm_agent::wire::Exit;

    use super::super::samples::{ends, recording};
    use super::*;

    const MS: u64 = 1_000_000;

    fn recorded(whats: Vec<(u64, What)>) -> Recording {
        recording(None, whats.into_iter().map(|(ms, what)| (ms * MS, what)))
    }

    #[test]
    fn the_longest_stretches_of_a_reset_are_shown_with_what_lies_around_them() {
        let helper = Exec {
            unit: "x.service".into(),
            line: "ExecStopPost".into(),
            argv: vec!["helper".into()],
            pid: 7,
            ended: Some(3200 * MS),
            exit: Some(Exit::Code(0)),
        };
        let call = UmountCall {
            pid: 7,
            comm: "helper".into(),
            role: vm_agent::recording::Role::Control,
            returned: 3001 * MS,
            result: 0,
            target: Target::Mount,
        };
        let recording = recorded(vec![
            (0, What::StepBegins(Step::Start)),
            (9000, ends(Step::Start)),
            (9000, What::StepBegins(Step::Reset)),
        ]);
        assert_eq!(longest(&recording, 1), [""; 0], "the reset has no end");
        // What began is recorded when it has ended, so not in the order of time.
        let recording = recorded(vec![
            (0, What::StepBegins(Step::Reset)),
            (3000, What::UmountCall(call)),
            (3002, What::Unmounted),
            (500, What::Exec(helper)),
            (3300, ends(Step::Reset)),
        ]);
        assert_eq!(
            longest(&recording, 1),
            [
                "2.500 s of the reset between \"ExecStopPost of x.service begins\" and \"umount2 by helper\"",
                "0.500 s of the reset between \"reset begins\" and \"ExecStopPost of x.service begins\"",
            ],
            "198 and 100 ms are none"
        );
        assert_eq!(longest(&recording, 2), [""; 0], "there is no such cycle");
    }
}
