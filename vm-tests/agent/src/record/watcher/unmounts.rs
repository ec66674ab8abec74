//! What the watcher does about calls of umount(2) and changes of the mount table, which bear each other out.

use anyhow::Result;
use vm_agent::recording::{Target, Trigger, UmountCall, What, Why};

use super::Watch;
use super::point::Point;
use crate::record::umount_target;
use crate::record::umounts::{TraceLine, is_before_exec, is_busy};

/// A failed umount has `holders` asked, but within a stop at most this often; in between, the unit's tasks are scanned. A
/// helper that retries every 50 ms is to be recorded, not slowed down tenfold.
const WHOLE_PAUSE_NS: u64 = 1_000_000_000;

impl Watch {
    /// Records umount calls; true when the trace has come to its end.
    pub(super) fn take_calls(&mut self) -> bool {
        let Some(trace) = &mut self.trace else { return false };
        let lines = match trace.read() {
            Ok(lines) => lines,
            Err(error) => {
                self.sink.lost("tracefs", format!("{error:#}"));
                self.trace = None;
                return false;
            }
        };
        for line in lines {
            match line {
                TraceLine::Entered { tid, comm, at_us, path } => {
                    let by_unit = !is_before_exec(&comm) && self.unit_of(tid).is_some();
                    // Before exec it is not kept, whatever it names.
                    let path = path.filter(|_| !is_before_exec(&comm));
                    let caller = path.as_ref().and_then(|_path| self.callers.of(tid, &comm));
                    let at = self.sink.clock.at_us(at_us);
                    for point in &mut self.points {
                        let target = umount_target::of(path.as_deref(), caller, &point.path);
                        point.calls.entered(tid, at, by_unit, target);
                    }
                }
                TraceLine::Returned { tid, comm, at_us, result } => {
                    let returned = self.sink.clock.at_us(at_us);
                    let unit = self.unit_of(tid);
                    let role = self.role(tid, unit);
                    let target = Target::Unknown;
                    let call = UmountCall { pid: tid, comm, role, returned, result, target };
                    self.of_points(|watch, point| watch.take_call(point, call.clone()));
                }
                TraceLine::Lost(why) => self.sink.lost("tracefs", why),
                TraceLine::End => return true,
            }
        }
        false
    }

    fn take_call(&mut self, point: &mut Point, call: UmountCall) {
        let kept = point.calls.returned(call);
        if std::mem::take(&mut point.scan_after_call) && self.in_stop {
            self.scan_the_change(point);
        }
        let Some((at, call)) = kept else { return };
        let failed = is_busy(&call);
        point.sink.send(at, What::UmountCall(call));
        if failed && self.in_stop {
            let now = self.sink.clock.now();
            if point.whole_after <= now {
                point.whole_after = now + WHOLE_PAUSE_NS;
                self.diagnose(point, Why::UmountFailed);
            } else {
                self.scan_point(point, Trigger::UmountFailed, false);
            }
        }
    }

    pub(super) fn take_mounts(&mut self) -> Result<()> {
        let mut failed = Ok(());
        self.of_points(|watch, point| {
            if let Err(error) = watch.take_changes(point) {
                failed = Err(error);
            }
        });
        failed
    }

    fn take_changes(&mut self, point: &mut Point) -> Result<()> {
        let at = self.sink.clock.now();
        let changes = point.mounts.read()?;
        let changed = !changes.is_empty();
        for change in changes {
            if change == What::Unmounted
                && let Some((at, call)) = point.calls.unmounted()
            {
                point.sink.send(at, What::UmountCall(call));
            }
            point.sink.send(at, change);
        }
        if changed && self.in_stop {
            // The kernel reports an unmount before the call returns. Scanning now would add to its time.
            if point.calls.is_any_under_way() {
                point.scan_after_call = true;
            } else {
                self.scan_the_change(point);
            }
        }
        Ok(())
    }

    /// Once the mount is gone only the units' own processes are scanned: all of /proc takes 4 ms of the reset that is being
    /// timed, and whoever else still has something of it is seen at the end of the step.
    fn scan_the_change(&mut self, point: &mut Point) {
        let is_mounted = point.mounts.is_mounted();
        self.scan_point(point, Trigger::Mount, is_mounted);
    }
}
