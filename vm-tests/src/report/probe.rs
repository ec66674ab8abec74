//! The probe's lines of a cycle, in the postmortem's form.

use std::time::Duration;

use vm_agent::recording::{Blocker, Why};
use vm_agent::recording::{Recording, Role, Step, What};

use crate::judge::keepers::of_scans;
use crate::judge::mount::recording_of;

/// The probe's lines of one cycle: seconds since the reset began, whether it is mounted, who holds it. A scan that was of
/// the unit's own processes, and of those outside that an earlier one had seen, says so: others may have come.
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
                let scope = if scan.whole_proc { "" } else { " (the unit's, and who was seen before)" };
                text.push_str(&format!("{time} mounted={mounted} holders=[{}]{scope}\n", holders.join(" ")));
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
