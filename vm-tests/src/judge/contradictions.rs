//! Where two sources of a recording contradict each other: one of them has lost something. Pure.

use vm_agent::recording::{Event, Target, UmountCall, What};

/// Where mountinfo and the tracer do not bear each other out, each with its cycle: then one of the two has lost
/// something and does not know it. A mount goes by a umount2 that succeeds, of whatever path (`mount --move` apart, which
/// nobody who is recorded does); and such a call of the watched path takes a mount away.
pub(super) fn contradictions(events: &[Event]) -> Vec<(u32, String)> {
    let mut wrong = Vec::new();
    let mut calls: Vec<(&Event, &UmountCall)> = Vec::new();
    for event in events {
        if let What::UmountCall(call) = &event.what
            && call.result == 0
        {
            calls.push((event, call));
        }
    }
    let mut mounts = 0_u32;
    for event in events {
        match &event.what {
            What::Mounted(_) => mounts += 1,
            What::Unmounted => {
                match mounts.checked_sub(1) {
                    Some(left) => mounts = left,
                    None => {
                        wrong.push((event.cycle, "mountinfo: an unmount, and no mount before it".to_owned()));
                    }
                }
                // The last one before, and one of this path if there is any.
                let rank = |(_, (began, call)): &(usize, &(&Event, &UmountCall))| {
                    (call.target == Target::Mount, began.at)
                };
                let before = calls.iter().enumerate().filter(|(_, (began, _))| began.at <= event.at);
                match before.max_by_key(rank).map(|(index, _)| index) {
                    Some(index) => drop(calls.remove(index)),
                    None => wrong.push((
                        event.cycle,
                        "tracefs: the mount went away, and no umount2 was seen that did it".to_owned(),
                    )),
                }
            }
            _ => {}
        }
    }
    let unseen = calls.into_iter().filter(|(_, call)| call.target == Target::Mount);
    wrong.extend(unseen.map(|(event, call)| {
        let words = format!("mountinfo: {} unmounted the mount, and no change of it was seen", call.comm);
        (event.cycle, words)
    }));
    wrong
}
