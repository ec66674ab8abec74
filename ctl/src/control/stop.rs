//! A stop, and a reset: what makes one a success, what it may delete after, and what is said of one that is none.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use holders::chain::chain;
use holders::{pasted, shown};
use left4me_helper::busy_note;
use left4me_helper::error::HelperError;
use left4me_helper::mountinfo;
use left4me_helper::purge;
use left4me_helper::state::{InstanceDir, directory_beneath};

use super::run::{Failure, Run, is_missing, superseded};
use crate::report::Exit;
use crate::units::{CLD_EXITED, Ended, ExecRun, Job, Names, Pair, UnitState, Units, UnitsError};

/// What a stop came to, besides what the report has.
struct Stop {
    /// When it began.
    begun: u64,
    /// Why it is none: then nothing may be deleted, whatever seems to be down and unmounted.
    refused: Option<String>,
    /// What went wrong in a stop that is one: the server had to be killed, or an unmount failed. Only what *this* stop
    /// did counts; a unit that was failed before is failed still.
    failed: Vec<String>,
    /// The units when it had ended.
    state: Pair<UnitState>,
}

impl<U: Units> Run<'_, U> {
    pub(super) async fn stop(&mut self) -> Result<(), Failure> {
        let stop = self.stop_units().await?;
        if let Some(refused) = stop.refused {
            return Err(Failure::new(refused));
        }
        if !self.report.still_mounted.is_empty() {
            return Err(self.left_mounted(&stop, "", "unmounts it"));
        }
        if stop.failed.is_empty() {
            return Ok(());
        }
        let mut text = stop.failed.join("; ");
        if stop.state.server.active_state == "failed" {
            text.push_str("; what the server was saving may be lost");
        }
        let failed: Vec<_> = self
            .names
            .each()
            .into_iter()
            .zip(stop.state.each())
            .filter_map(|(unit, state)| (state.active_state == "failed").then_some(unit.as_str()))
            .collect();
        text.push_str(&format!(
            "; `sudo systemctl reset-failed {}` clears the failed state",
            failed.join(" ")
        ));
        Err(Failure::new(text))
    }

    pub(super) async fn reset(&mut self) -> Result<(), Failure> {
        self.require_something().await?;
        let stop = self.stop_units().await?;
        if let Some(refused) = stop.refused {
            // A server can run on an overlay that no table here lists: one that only its own namespace has left.
            return Err(Failure::new(format!("{refused}; nothing was deleted")));
        }
        if !self.report.still_mounted.is_empty() {
            return Err(self.left_mounted(&stop, " and nothing was deleted", "unmounts it and deletes"));
        }
        let begun = (self.host.now_us)();
        let purged = self.purge().await;
        self.report.phases.purge_us = Some((self.host.now_us)().saturating_sub(begun));
        match purged {
            Ok(()) => {
                self.forgive(stop).await;
                Ok(())
            }
            Err(error) => {
                let mut sentences = stop.failed;
                sentences.push(self.not_purged(&error).await);
                Err(Failure::new(sentences.join("; ")))
            }
        }
    }

    /// Refuses an instance that there is nothing of: its name is a slip of the pen, and another one was meant.
    async fn require_something(&mut self) -> Result<(), Failure> {
        let paths = self.instance.paths(&self.host.state_dir);
        let places = [&paths.file, &paths.runtime, &paths.trash];
        if !places.iter().all(|place| is_missing(place)) || !is_all_down(&self.look().await?) {
            return Ok(());
        }
        let [file, runtime, trash] = places.map(|place| place.display());
        let text = format!(
            "there is no instance {}: neither {file} nor {runtime} nor {trash} is there, and {} does not run",
            self.instance, self.names.server
        );
        Err(Failure { exit: Exit::NoSuchUnit, text: Some(text) })
    }

    /// Stops both units and looks at what is left.
    ///
    /// The job is sent to units that do not run, too: it is a no-op there, ends at once, and takes back a start that is
    /// queued or about to be retried.
    async fn stop_units(&mut self) -> Result<Stop, Failure> {
        let begun = (self.host.now_us)();
        let Ended { before, mut result } = self.job(Job::Stop).await?;
        self.report.phases.stop_us = Some((self.host.now_us)().saturating_sub(begun));
        let mut state = self.look().await?;
        let mut job = Job::Stop;
        if result == "done" && !state.server.is_down() && !self.units.requires_overlay(&self.names).await? {
            let Names { server, overlay } = &self.names;
            self.report.notes.push(format!(
                "{server} does not require {overlay} (an older unit, or one that systemd has not read again since: \
                 `sudo systemctl daemon-reload`), so it was stopped by itself"
            ));
            job = Job::StopServer;
            result = self.job(job).await?.result;
            self.report.phases.stop_us = Some((self.host.now_us)().saturating_sub(begun));
            state = self.look().await?;
        }
        self.report.still_mounted = self.still_mounted()?;
        if result == "done" && is_all_down(&state) && self.is_left_from_before(&state, begun) {
            job = Job::Stop;
            (state, result) = self.unmount_what_is_left().await?;
            self.report.phases.stop_us = Some((self.host.now_us)().saturating_sub(begun));
        }
        self.report.phases.umount_us = umount_us(&state, begun);
        let refused = self.refusal(job, &result, &state);
        let failed = self.failures(&before, &state, begun);
        Ok(Stop { begun, refused, failed, state })
    }

    /// Why a stop is none.
    fn refusal(&self, job: Job, result: &str, state: &Pair<UnitState>) -> Option<String> {
        let Names { server, overlay } = &self.names;
        let unit = job.unit(&self.names);
        let now = format!(
            "{server} is {} and {overlay} is {}",
            state.server.active_state, state.overlay.active_state
        );
        match result {
            "done" if is_all_down(state) => None,
            "done" => Some(format!(
                "the stop job of {unit} has ended, and now {now}: somebody has started it meanwhile"
            )),
            "canceled" => Some(superseded(&format!("the stop job of {unit}"), "a start", &now)),
            _ => Some(format!(
                "the stop job of {unit} ended \"{result}\" and {now} (`systemctl status {server} {overlay}` says more)"
            )),
        }
    }

    /// What this stop made fail, a sentence each.
    fn failures(&self, before: &Pair<String>, state: &Pair<UnitState>, begun: u64) -> Vec<String> {
        let mut failures = Vec::new();
        for ((unit, before), state) in self.names.each().into_iter().zip(before.each()).zip(state.each()) {
            if state.active_state != "failed" || before == "failed" {
                continue;
            }
            let why = match state.result.as_str() {
                "timeout" => ": it did not end within its stop timeout and was killed",
                "signal" | "core-dump" => ": a signal has ended it",
                "exit-code" => ": it ended with an error",
                _ => "",
            };
            let mut text = format!("{unit} failed (result {}){why}", state.result);
            if let Some(run) = ran_since(state, begun).find(|run| run.has_failed()) {
                text.push_str(&format!("; {}", self.refused_unmount(unit, run)));
            }
            failures.push(text);
        }
        failures
    }

    /// Whether what is mounted was left by an earlier stop: all is down, the overlay is still there, and no unmount was
    /// tried since this stop began. One that was tried and refused is not tried again.
    fn is_left_from_before(&self, state: &Pair<UnitState>, begun: u64) -> bool {
        let Ok(InstanceDir { paths, .. }) = self.place().map(Arc::as_ref) else { return false };
        let was_tried = state.each().into_iter().any(|state| ran_since(state, begun).next().is_some());
        self.report.still_mounted.contains(&paths.merged) && !was_tried
    }

    /// Unmounts, once, what an earlier stop has left: the overlay's unit, which is down, is started and stopped. That
    /// also is the way of an upgrade, where the server was started by a unit that mounted by itself.
    async fn unmount_what_is_left(&mut self) -> Result<(Pair<UnitState>, String), Failure> {
        // How this ends does not matter: its ExecStopPost runs after a start that failed as well.
        self.job(Job::Mount).await?;
        let Ended { result, .. } = self.job(Job::Stop).await?;
        let mut state = self.look().await?;
        self.report.still_mounted = self.still_mounted()?;
        if self.report.still_mounted.is_empty() {
            let note = "an earlier stop had left the overlay mounted; it is unmounted now";
            self.report.notes.push(note.into());
            if state.overlay.active_state == "failed" {
                // Of a start that could not mount anew, which nobody wanted.
                self.clear_failed(&self.names.overlay.clone()).await?;
                state.overlay.active_state = "inactive".into();
            }
        }
        Ok((state, result))
    }

    /// How an ExecStopPost run of this stop failed, and why, as far as the helper has left a note.
    fn refused_unmount(&self, unit: &str, run: &ExecRun) -> String {
        let is_refused = run.code == CLD_EXITED && run.status == 32;
        let why = match self.busy_note(run) {
            Some(verdict) if is_refused => format!("the umount failed: EBUSY: {verdict}"),
            _ => format!("its journal says why: `journalctl -u {unit}`"),
        };
        format!("ExecStopPost ended with {}: {why}", run.ending())
    }

    /// What the helper found out when its unmount was refused, if it was this run of it.
    fn busy_note(&self, run: &ExecRun) -> Option<String> {
        let runtimes = self.place().ok()?.state.runtime().ok()??;
        let runtime = directory_beneath(runtimes, Path::new(self.instance.as_str())).ok()?;
        busy_note::note_of(runtime, &(run.started_us..=run.exited_us))
    }

    /// Makes a success of a reset that did all it is for: that the server failed in it, or before, is a note, and the
    /// units end inactive. What a kill may have lost was to be deleted anyway.
    async fn forgive(&mut self, stop: Stop) {
        for failure in &stop.failed {
            self.report.notes.push(format!("{failure}; all it wrote was deleted anyway"));
        }
        let names = self.names.clone();
        for (unit, state) in names.each().into_iter().zip(stop.state.each()) {
            if state.active_state != "failed" {
                continue;
            }
            if !stop.failed.iter().any(|failure| failure.starts_with(unit)) {
                self.report.notes.push(format!("{unit} had failed before (result {})", state.result));
            }
            if self.clear_failed(unit).await.is_err() {
                return;
            }
        }
    }

    /// Takes a unit's failed state back, or notes why it stays. The report keeps the result of the stop.
    ///
    /// # Errors
    /// systemd is out of reach, so that nothing more can be asked of it.
    pub(super) async fn clear_failed(&mut self, unit: &str) -> Result<(), UnitsError> {
        if let Err(error) = self.units.reset_failed(unit).await {
            self.report.notes.push(format!("the failed state of {unit} could not be cleared: {error}"));
            return if error.is_out_of_reach() { Err(error) } else { Ok(()) };
        }
        let (active, sub) = ("inactive".into(), "dead".into());
        if unit == self.names.server {
            (self.report.active_state, self.report.sub_state) = (active, sub);
        } else {
            (self.report.overlay.active_state, self.report.overlay.sub_state) = (active, sub);
        }
        Ok(())
    }

    /// Why nothing, or not all, was deleted.
    async fn not_purged(&mut self, error: &HelperError) -> String {
        if let HelperError::StillMounted(mounts) = error {
            self.report.still_mounted.clone_from(mounts);
        }
        let mut text = chain(error);
        if matches!(error, HelperError::Locked(_)) {
            text.insert_str(0, "nothing was deleted: ");
        }
        // Who comes between the stop and the delete has the lock, or has mounted already.
        if let Ok(state) = self.look().await
            && !is_all_down(&state)
        {
            text.push_str(&format!(
                "; {} is {} and {} is {}: somebody has started it meanwhile",
                self.names.server, state.server.active_state, self.names.overlay, state.overlay.active_state
            ));
        }
        text
    }

    async fn purge(&mut self) -> Result<(), HelperError> {
        let (place, tables) = (Arc::clone(self.place()?), self.host.mount_tables.clone());
        let deadline = Instant::now() + self.timeout;
        let purge = move || purge::purge(&place, &tables, deadline);
        if self.host.offload { blocking::unblock(purge).await } else { purge() }
    }

    /// What is mounted there and is not the overlay, as commands that unmount it: below it, the innermost first, and over it.
    fn not_the_overlay(&self) -> Vec<String> {
        let Ok(place) = self.place() else { return Vec::new() };
        let merged = &place.paths.merged;
        let mut others: Vec<&Path> =
            self.report.still_mounted.iter().map(PathBuf::as_path).filter(|mount| mount != merged).collect();
        others.sort_by_key(|mount| std::cmp::Reverse(mount.components().count()));
        // A table that can't be read has failed the stop before this.
        let at_merged = |table: &PathBuf| mountinfo::at(table, merged).ok()?.pop();
        let mut topmost = self.host.mount_tables.iter().filter_map(at_merged);
        let over_it = topmost.any(|mount| mount.fstype != "overlay").then_some(merged.as_path());
        others.into_iter().chain(over_it).map(|mount| format!("`sudo umount {}`", pasted(mount))).collect()
    }

    /// The failure of a stop that left something mounted: what went wrong with it, if anything else did, and what to do.
    fn left_mounted(&self, stop: &Stop, and: &str, what_it_does: &str) -> Failure {
        let mounts: Vec<_> = self.report.still_mounted.iter().map(|path| shown(path)).collect();
        let mut sentences = stop.failed.clone();
        // A unit that was failed before is failed still, and is no failure of this stop; its unmount may be one.
        let overlay = &self.names.overlay;
        if !sentences.iter().any(|sentence| sentence.starts_with(overlay))
            && let Some(run) = ran_since(&stop.state.overlay, stop.begun).find(|run| run.has_failed())
        {
            sentences.push(format!("{overlay}: {}", self.refused_unmount(overlay, run)));
        }
        sentences.push(match mounts.as_slice() {
            [one] => format!("{one} is still mounted{and}"),
            more => format!("{} are still mounted{and}", more.join(", ")),
        });
        let others = self.not_the_overlay();
        if !others.is_empty() {
            sentences.push(format!("unmount first what is not the overlay itself: {}", others.join(", ")));
        }
        sentences.push(format!(
            "once nobody uses it, `sudo l4d2ctl {} {}` {what_it_does}",
            self.report.action.word(),
            self.instance
        ));
        Failure::new(sentences.join("; "))
    }
}

fn is_all_down(state: &Pair<UnitState>) -> bool {
    state.server.is_down() && state.overlay.is_down()
}

/// The unit's ExecStopPost runs that ended since `since_us`; an older one is of an earlier stop.
pub(super) fn ran_since(state: &UnitState, since_us: u64) -> impl Iterator<Item = &ExecRun> {
    state.exec.iter().filter(move |run| run.line == "ExecStopPost" && run.exited_us >= since_us)
}

/// The time of the ExecStopPost runs that began since `since_us`.
pub(super) fn umount_us(state: &Pair<UnitState>, since_us: u64) -> Option<u64> {
    state
        .each()
        .into_iter()
        .flat_map(|state| ran_since(state, since_us))
        .filter(|run| run.started_us >= since_us)
        .map(|run| run.exited_us.saturating_sub(run.started_us))
        .reduce(u64::saturating_add)
}
