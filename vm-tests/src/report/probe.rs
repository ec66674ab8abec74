//! The probe's lines of a cycle, in the postmortem's form.

use std::time::Duration;

use vm_agent::recording::{Recording, Step, What};

use crate::judge::fold::holders;

/// The probe's lines of one cycle, in the postmortem's form: seconds since the reset began.
pub(crate) fn probe_lines(recording: &Recording, cycle: u32) -> String {
    let events = || recording.events.iter().filter(|event| event.cycle == cycle);
    let begin = events()
        .find(|event| matches!(event.what, What::StepBegins(Step::Reset)))
        .map_or(0, |event| event.at);
    let mut text = String::new();
    for event in events() {
        if let What::Scan(scan) = &event.what {
            // The first scan is made just before the reset begins.
            let seconds = Duration::from_nanos(event.at.saturating_sub(begin)).as_secs_f64();
            let mounted = if scan.mounted { 'Y' } else { 'N' };
            let holders: Vec<String> =
                holders([scan]).iter().map(|holder| format!("{}({})", holder.pid, holder.comm)).collect();
            text.push_str(&format!("[t={seconds:5.2}] mounted={mounted} holders=[{}]\n", holders.join(" ")));
        }
    }
    text
}
