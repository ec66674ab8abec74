//! Who kept the mount: from the calls of umount2(2), what `holders` said of those that were refused, and the scans around
//! the others. Pure.

use vm_agent::recording::{Diagnosis, Found, Why};
use vm_agent::recording::{EBUSY, Event, Role, Scan, Trigger, UmountCall, What};

use super::cycle::Holder;
use crate::scenario::verdict::MountVerdict;

/// What a recording says of the moment of each call.
#[derive(Debug, Clone, Default)]
pub(super) struct Moments<'a> {
    calls: Vec<(u64, &'a UmountCall)>,
    scans: Vec<(u64, &'a Scan)>,
    diagnoses: Vec<(u64, &'a Diagnosis)>,
}

impl<'a> Moments<'a> {
    /// `events` are those before a recovery. `scans` are those in which the unmount is looked for where no call was seen.
    pub(super) fn new(calls: Vec<(u64, &'a UmountCall)>, events: &[&'a Event]) -> Self {
        let scans = events.iter().filter_map(|event| scan_of(event)).collect();
        let diagnoses = events.iter().filter_map(|event| match &event.what {
            What::Diagnosis(diagnosis) => Some((event.at, diagnosis)),
            _ => None,
        });
        Self { calls, scans, diagnoses: diagnoses.collect() }
    }

    /// What `holders` said right after a call that was refused.
    fn diagnosis(&self, at: u64) -> Option<&'a Diagnosis> {
        let next = self.calls.iter().map(|(next, _)| *next).find(|next| *next > at).unwrap_or(u64::MAX);
        let of_it = |(asked, diagnosis): &&(u64, &Diagnosis)| {
            (at..next).contains(asked) && diagnosis.why == Why::UmountFailed
        };
        self.diagnoses.iter().find(of_it).map(|(_, diagnosis)| *diagnosis)
    }

    /// The most telling diagnosis: of the first unmount that was refused, else of what the reset left, else of a stop that
    /// took long.
    pub(super) fn most_telling(&self) -> Option<&'a Diagnosis> {
        [Why::UmountFailed, Why::Left, Why::Late].iter().find_map(|why| {
            self.diagnoses
                .iter()
                .find(|(_, diagnosis)| diagnosis.why == *why)
                .map(|(_, diagnosis)| *diagnosis)
        })
    }

    /// Who held the mount at the moment of each call. A call that was refused has `holders`' word for it. Of one that
    /// succeeded it is the last scan before the call, or during it, since the kernel knows of a process's end before that is
    /// reported. A refusal that came soon after another one was not diagnosed again: the last scan before it, and the first
    /// after it.
    pub(super) fn holders(&self) -> Vec<Holder> {
        if self.calls.is_empty() {
            // Without any call (no tracefs): the last scan that still saw the mount.
            let last = self.scans.iter().rev().find(|(_, scan)| scan.mounted);
            return of_scans(last.map(|(_, scan)| *scan));
        }
        let mut holders = Vec::new();
        for (at, call) in &self.calls {
            if let Some(diagnosis) = self.diagnosis(*at).filter(|_| call.result < 0) {
                holders.extend(diagnosis.blockers.iter().map(Holder::of_blocker));
            } else {
                holders.extend(self.scans_of(*at, call).into_iter().flat_map(in_scan));
            }
        }
        merged(holders)
    }

    fn scans_of(&self, at: u64, call: &UmountCall) -> Vec<&'a Scan> {
        let before = |(scanned, scan): &&(u64, &Scan)| {
            *scanned <= at || (call.result >= 0 && scan.mounted && *scanned <= call.returned)
        };
        let failed = |(scanned, scan): &&(u64, &Scan)| {
            call.result < 0 && *scanned >= at && scan.trigger == Trigger::UmountFailed
        };
        let chosen = [self.scans.iter().rev().find(before), self.scans.iter().find(failed)];
        chosen.into_iter().flatten().map(|(_, scan)| *scan).collect()
    }

    /// The verdict. `holders` are [`Self::holders`]; `lives_on` is whether the file system outlives the mount.
    pub(super) fn verdict(&self, holders: &[Holder], listed: &[String], lives_on: bool) -> MountVerdict {
        let Some((at, call)) = self.calls.iter().find(|(_, call)| call.result == EBUSY) else {
            let unmounted = self.calls.iter().any(|(_, call)| call.result == 0);
            return match () {
                () if lives_on || (unmounted && !holders.is_empty()) => MountVerdict::AliveElsewhere,
                () if !listed.is_empty() => MountVerdict::OnlyListed,
                () => MountVerdict::None,
            };
        };
        match self.diagnosis(*at).map(|diagnosis| diagnosis.found) {
            Some(Found::HeldByKernel) => MountVerdict::HeldByKernel,
            Some(Found::Submounts) => MountVerdict::Submounts,
            _ if holders.is_empty() => MountVerdict::NotVisible,
            // The recorder asks, and so nobody is the one who asks: whose family it is, it is told by the unit.
            _ if holders.iter().all(|holder| is_caller(holder, call)) => MountVerdict::HeldByYourself,
            _ => MountVerdict::HeldByProcess,
        }
    }
}

fn is_caller(holder: &Holder, call: &UmountCall) -> bool {
    let is_control = |role: Role| matches!(role, Role::Control | Role::ControlChild);
    holder.pid == call.pid || (is_control(holder.role) && is_control(call.role))
}

pub(super) fn scan_of(event: &Event) -> Option<(u64, &Scan)> {
    match &event.what {
        What::Scan(scan) => Some((event.at, scan)),
        _ => None,
    }
}

/// Those whom scans saw with a reference.
pub(crate) fn of_scans<'a>(scans: impl IntoIterator<Item = &'a Scan>) -> Vec<Holder> {
    merged(scans.into_iter().flat_map(in_scan).collect())
}

fn in_scan(scan: &Scan) -> impl Iterator<Item = Holder> {
    scan.tasks.iter().filter_map(Holder::of)
}

/// One holder per process: threads and repeated scans say the same again.
fn merged(all: Vec<Holder>) -> Vec<Holder> {
    let mut holders: Vec<Holder> = Vec::new();
    for holder in all {
        match holders.iter_mut().find(|known| known.pid == holder.pid && known.comm == holder.comm) {
            Some(known) => {
                known.kinds.extend(holder.kinds);
                known.kinds.sort_unstable();
                known.kinds.dedup();
                // What `holders` says has more than a scan.
                if known.named.is_empty() {
                    known.named = holder.named;
                }
            }
            None => holders.push(holder),
        }
    }
    holders.sort_by(|one, other| (one.role, &one.comm).cmp(&(other.role, &other.comm)));
    holders
}
