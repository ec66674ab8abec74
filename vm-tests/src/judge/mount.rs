//! What became of one mount in a cycle, and what of that is not as expected. Pure.

use vm_agent::recording::{Blocker, Diagnosis, Event, Plan, Recording, What};

use super::cycle::{Holder, MountOutcome};
use super::wrong::Wrong;
use crate::scenario::ExpectMount;

impl MountOutcome {
    /// What is not as expected, in words; empty if all is.
    pub(super) fn deviations(&self, expect: &ExpectMount) -> Vec<String> {
        let mut wrong = Wrong::default();
        let holders: Vec<String> = self.holders_at_umount.iter().map(Holder::words).collect();
        wrong.equal("holders at umount", &holders, &expect.holders);
        wrong.equal("still mounted elsewhere", &self.mounted_elsewhere, &expect.mounted_elsewhere);
        wrong.check(self.mounted_before == expect.mounted_before(), self.before_words());
        let umount = self.umount_result();
        match expect.umount.map(|expected| expected.to_string()) {
            Some(expected) => {
                wrong.check(umount == expected, format!("umount2: {umount} instead of {expected}"))
            }
            None => wrong.check(
                expect.mounted || matches!(umount, "ok" | "none"),
                format!("umount2: {umount} instead of ok"),
            ),
        }
        let (verdict, diagnosed) = (self.verdict.words(), self.diagnosed());
        match expect.verdict {
            Some(expected) => wrong.check(
                self.verdict == expected,
                format!("verdict: {verdict} instead of {}{diagnosed}", expected.words()),
            ),
            None => wrong.check(
                self.verdict.is_clean(),
                format!("verdict: {verdict}, and nobody was expected to hold the mount{diagnosed}"),
            ),
        }
        let said = self.said();
        for words in expect.advice.iter().filter(|words| !said.iter().any(|line| line.contains(*words))) {
            wrong.0.push(format!("holders did not say {words:?}: {said:?}"));
        }
        for unit in &expect.listed {
            wrong.check(
                self.listed.contains(unit),
                format!("{unit} was not in a namespace with a copy of the mount; listed: {:?}", self.listed),
            );
        }
        wrong.check(
            self.mounted == expect.mounted,
            format!("the mount is {} after the reset", if self.mounted { "still there" } else { "gone" }),
        );
        let remount = &self.remount;
        match expect.remount.as_ref().map(ToString::to_string) {
            Some(expected) => {
                wrong.check(*remount == expected, format!("remount: {remount} instead of {expected}"));
            }
            None => wrong.check(
                remount == "silent" || remount.starts_with("not tried"),
                format!("the next mount of the same layers: {remount}"),
            ),
        }
        wrong.0
    }

    /// For a cycle in which it was expected to be otherwise.
    fn before_words(&self) -> String {
        match self.elsewhere_before.as_slice() {
            _ if self.mounted_before => "the mount is there when the reset begins".to_owned(),
            [] => "nothing is mounted at the watched path when the reset begins".to_owned(),
            places => format!(
                "nothing is mounted at the watched path when the reset begins, but in another mount namespace: {}",
                places.join(", ")
            ),
        }
    }

    /// What `holders` says, verdict and advice; nothing where it was not asked.
    fn said(&self) -> Vec<&str> {
        let Some(Diagnosis { line, advice, .. }) = &self.diagnosis else { return Vec::new() };
        std::iter::once(line).chain(advice).map(String::as_str).collect()
    }

    /// Who it was, as `holders` says it.
    fn diagnosed(&self) -> String {
        let Some(diagnosis) = &self.diagnosis else { return String::new() };
        let named: Vec<String> = diagnosis.blockers.iter().map(Blocker::named).collect();
        let who = if named.is_empty() { diagnosis.line.clone() } else { named.join("; ") };
        format!(": {who}")
    }
}

/// A recording as if its plan had one mount, that with this number.
pub(crate) fn recording_of(recording: &Recording, number: u32, path: &str) -> Recording {
    let event = |event: &Event| match &event.what {
        What::OfMount { mount, what } if *mount == number => Some(Event { what: (**what).clone(), ..*event }),
        What::OfMount { .. }
        | What::Mounted(_)
        | What::Unmounted
        | What::NotMounted { .. }
        | What::UmountCall(_)
        | What::Scan(_)
        | What::Diagnosis(_)
        | What::EndState(_) => None,
        _ => Some(event.clone()),
    };
    let Recording { plan, kernel, systemd, os, began_ns, events } = recording;
    Recording {
        plan: Plan { mount: Some(path.to_owned()), other_mounts: Vec::new(), ..plan.clone() },
        kernel: kernel.clone(),
        systemd: systemd.clone(),
        os: os.clone(),
        began_ns: *began_ns,
        events: events.iter().filter_map(event).collect(),
    }
}
