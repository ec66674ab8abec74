//! What must not depend on the moment of a scan, since that moment is another one with each build of what runs there. Pure.

use vm_agent::recording::{Event, Role, What};

use super::cycle::Holder;

/// Holders by the names that their processes come to have: a child that has been forked and has not yet executed its program
/// still has its parent's name, and whether a scan sees it before or after is a matter of microseconds.
pub(super) fn named_last(mut holders: Vec<Holder>, events: &[&Event]) -> Vec<Holder> {
    let tasks = || {
        events.iter().rev().filter_map(|event| match &event.what {
            What::Scan(scan) => Some(scan.tasks.iter()),
            _ => None,
        })
    };
    for holder in holders.iter_mut().filter(|holder| holder.role == Role::Child) {
        // A thread may have a name of its own.
        let last = tasks().flatten().find(|task| task.pid == holder.pid && task.tid == task.pid);
        if let Some(task) = last {
            holder.comm.clone_from(&task.comm);
        }
    }
    holders.sort_by(|one, other| (one.role, &one.comm).cmp(&(other.role, &other.comm)));
    holders
}

#[cfg(test)]
mod tests {
    use vm_agent::recording::{Scan, Step, Task, Trigger};

    use super::super::fold::cycles;
    use super::super::samples::{ends, recording, task};
    use super::*;

    fn scan(trigger: Trigger, tasks: Vec<Task>) -> What {
        What::Scan(Scan { trigger, whole_proc: false, cost_ns: 0, mounted: true, tasks })
    }

    /// The holders when the stop began: of a shell whose child executes `sleep` before that, after it, or never.
    fn at_stop(child: &str, later: Option<&str>) -> Vec<String> {
        let main = || task(7, "scratchd", Role::Main);
        let mut whats = vec![
            (1, scan(Trigger::Stop, vec![main(), task(8, child, Role::Child)])),
            (2, What::StepBegins(Step::Reset)),
        ];
        whats.extend(later.map(|later| (3, scan(Trigger::Exec, vec![main(), task(8, later, Role::Child)]))));
        whats.push((4, ends(Step::Reset)));
        let cycle = cycles(&recording(None, whats)).remove(0);
        cycle.holders_at_stop.iter().map(Holder::words).collect()
    }

    #[test]
    fn a_child_has_the_name_of_what_it_executes() {
        let slept = ["main scratchd (cwd)", "child sleep (cwd)"];
        assert_eq!(at_stop("sleep", None), slept);
        assert_eq!(at_stop("sleep", Some("sleep")), slept);
        assert_eq!(at_stop("scratchd", Some("sleep")), slept);
        assert_eq!(
            at_stop("scratchd", None),
            ["main scratchd (cwd)", "child scratchd (cwd)"],
            "it never did"
        );
    }
}
