//! The probe's lines of a cycle, in the postmortem's form.

use std::time::Duration;

use vm_agent::recording::{Blocker, Why};
use vm_agent::recording::{Recording, Role, Step, What};

use crate::judge::keepers::of_scans;
use crate::judge::mount::recording_of;

/// What `scan=` means, for the top of the file.
pub(crate) const LEGEND: &str = "# scan=all: of all processes; scan=unit: of the units' own, and of those outside that an earlier one has seen\n";

/// The probe's lines of one cycle: seconds since the reset began, whether it is mounted, who holds it. What a scan was of
/// is in [`LEGEND`]: outside the unit others may have come meanwhile.
pub(crate) fn probe_lines(recording: &Recording, cycle: u32) -> String {
    let mut text = lines(recording, cycle);
    for (number, path) in recording.plan.mounts().filter(|(number, _)| *number > 0) {
        text.push_str(&format!("{path}:\n{}", lines(&recording_of(recording, number, path), cycle)));
    }
    text
}

fn lines(recording: &Recording, cycle: u32) -> String {
    let events = || recording.events.iter().filter(|event| event.cycle == cycle);
    let begin = events()
        .find(|event| matches!(event.what, What::StepBegins(Step::Reset)))
        .map_or(0, |event| event.at);
    // The first scan is made just before the reset begins.
    let time = |at: u64| format!("[t={:5.2}]", Duration::from_nanos(at.saturating_sub(begin)).as_secs_f64());
    let mut text = String::new();
    for event in events() {
        let time = time(event.at);
        match &event.what {
            What::Scan(scan) => {
                let mounted = if scan.mounted { 'Y' } else { 'N' };
                let holders: Vec<String> = of_scans([scan])
                    .iter()
                    .map(|holder| match holder.role {
                        Role::Outside if !holder.unit.is_empty() => {
                            format!("{}({}) of {}", holder.pid, holder.comm, holder.unit)
                        }
                        _ => format!("{}({})", holder.pid, holder.comm),
                    })
                    .collect();
                let scope = if scan.whole_proc { "all " } else { "unit" };
                let holders = holders.join(" ");
                text.push_str(&format!("{time} scan={scope} mounted={mounted} holders=[{holders}]\n"));
            }
            What::Diagnosis(diagnosis) => {
                let why = match diagnosis.why {
                    Why::UmountFailed => "umount: EBUSY",
                    Why::Late => "the stop is late",
                    Why::Left => "after the reset",
                };
                text.push_str(&format!("{time} {why}: {}\n", diagnosis.line));
                let named = diagnosis.blockers.iter().map(Blocker::named);
                named.for_each(|named| text.push_str(&format!("          {named}\n")));
            }
            _ => {}
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use vm_agent::recording::{Found, Scan, Task, Trigger};

    use super::*;
    use crate::judge::samples;

    /// An outside holder stays until it is seen gone, and what was not looked for is not said to be missing.
    #[test]
    fn a_line_says_what_it_is_of() {
        let visitor =
            Task { unit: "visitor.service".to_owned(), ..samples::task(181, "sleep", Role::Outside) };
        let scan = |whole_proc, mounted, tasks| {
            What::Scan(Scan { trigger: Trigger::Tick, whole_proc, cost_ns: 0, mounted, tasks })
        };
        let said = samples::diagnosis(
            Why::UmountFailed,
            Found::HeldByProcess,
            &[samples::holder(181, "sleep", Role::Outside)],
        );
        let mut recording = samples::recording(
            None,
            [
                (0, What::StepBegins(Step::Reset)),
                (0, scan(true, true, vec![visitor.clone()])),
                (20_000_000, scan(false, true, vec![visitor])),
                (30_000_000, What::Diagnosis(said)),
                (40_000_000, scan(true, false, vec![])),
                (50_000_000, What::OfMount { mount: 1, what: Box::new(scan(true, true, vec![])) }),
            ],
        );
        recording.plan.other_mounts = vec!["/other".to_owned()];
        insta::assert_snapshot!("probe", probe_lines(&recording, 1));
    }
}
