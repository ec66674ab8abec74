//! The thread that watches: one poll over every source that has a descriptor, and the scans for who holds what.
//!
//! It scans tasks only while a stop is in flight: from the beginning of the reset step to its end, and
//! whenever a unit is deactivating by itself. All of `/proc` is scanned when the stop begins, when the
//! watched path is mounted or unmounted, when a umount fails and when the reset has ended; the units' own tasks
//! at every exec and exit among them and at every tick of the plan's clock. Otherwise it sleeps, without ticks.
//!
//! It runs SCHED_FIFO. An exec is reported before the new program's first instruction and a failed umount
//! before the call has returned to its caller, so on one processor each scan sees the moment that it is about;
//! the price is that the scanned processes wait meanwhile: [`Scan::cost_ns`] records it.

use std::collections::HashMap;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use holders::scan::{self, Scope};
use nix::errno::Errno;
use nix::libc;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::time::Timespec;
use vm_agent::recording::{
    Kind, Namespace, Plan, Reference, Role, Scan, Step, Target, Task, Trigger, UmountCall, What,
};

use super::alive::{self, Looks};
use super::events::Sink;
use super::fair_share;
use super::mounts::MountWatch;
use super::orders::{Order, Orders, UnitView};
use super::proc_connector::{ProcConnector, ProcessEvent};
use super::roles::{Roles, Watched, parent_of};
use super::umount_target;
use super::umounts::{Calls, TraceLine, UmountTrace, is_before_exec, is_busy};
use super::unit_cgroup;

/// The thread's handle.
#[derive(Debug)]
pub(super) struct Watcher {
    orders: Orders,
    thread: Option<JoinHandle<Result<()>>>,
}

/// A failed umount has all of `/proc` scanned, but within a stop at most this often; in between, the unit's
/// tasks are. A helper that retries every 50 ms is to be recorded, not slowed down tenfold.
const WHOLE_PAUSE_NS: u64 = 1_000_000_000;

/// How long the tracer may take to hand over the last line.
const END_DEADLINE_NS: u64 = 2_000_000_000;

/// Above every ordinary task; among real-time ones there is no need to win.
const FIFO_PRIORITY: i32 = 10;

impl Watcher {
    /// Opens the sources and starts the thread. What the kernel does not offer is recorded as lost.
    ///
    /// # Errors
    /// If mountinfo cannot be watched or no thread be made.
    pub(super) fn start(plan: &Plan, sink: Sink) -> Result<Self> {
        let (orders, receiver) = Orders::new()?;
        let watch = Watch {
            mounts: MountWatch::open(&plan.mount)?,
            connector: or_lost(ProcConnector::open(), "proc-connector", &sink),
            trace: or_lost(UmountTrace::open(), "tracefs", &sink),
            plan: plan.clone(),
            sink,
            orders: receiver,
            wake: orders.wake(),
            unit: UnitView::default(),
            mount_unit: UnitView::default(),
            roles: Roles::default(),
            calls: Calls::default(),
            step: None,
            in_stop: false,
            unit_tasks: HashMap::new(),
            whole_after: 0,
            scan_after_call: false,
            next_tick: None,
            looks: Looks::default(),
            last_scan: None,
            held_back: None,
            end: None,
        };
        let thread = thread::Builder::new().name("watcher".to_owned()).spawn(move || watch.run())?;
        Ok(Self { orders, thread: Some(thread) })
    }

    /// The way to this watcher.
    pub(super) fn orders(&self) -> Orders {
        self.orders.clone()
    }

    /// Returns when the watcher has taken note, and scanned if it has to.
    ///
    /// # Errors
    /// If the watcher has ended early; [`Watcher::finish`] says why.
    pub(super) fn step_begins(&self, step: Step) -> Result<()> {
        self.ask(|answer| Order::StepBegins(step, answer))
    }

    /// As [`Watcher::step_begins`].
    ///
    /// # Errors
    /// As [`Watcher::step_begins`].
    pub(super) fn step_ended(&self, step: Step) -> Result<()> {
        self.ask(|answer| Order::StepEnded(step, answer))
    }

    /// Lets the watcher take what its sources still have, and ends it.
    ///
    /// # Errors
    /// What ended it early.
    pub(super) fn finish(mut self) -> Result<()> {
        self.end()
    }

    fn end(&mut self) -> Result<()> {
        let Some(thread) = self.thread.take() else { return Ok(()) };
        self.orders.send(Order::Finish);
        thread.join().map_err(|panic| anyhow!("the watcher panicked: {panic:?}"))?
    }

    fn ask(&self, order: impl FnOnce(Sender<()>) -> Order) -> Result<()> {
        let (answer, answered) = channel();
        self.orders.send(order(answer));
        answered.recv().context("the watcher has ended")
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            eprintln!("end the watcher: {error:#}");
        }
    }
}

struct Watch {
    plan: Plan,
    sink: Sink,
    mounts: MountWatch,
    connector: Option<ProcConnector>,
    trace: Option<UmountTrace>,
    orders: Receiver<Order>,
    wake: Arc<OwnedFd>,

    unit: UnitView,
    /// Without a process and never stopping, where the plan has none.
    mount_unit: UnitView,
    roles: Roles,
    calls: Calls,
    step: Option<Step>,
    in_stop: bool,
    /// Processes of the units that were seen during this stop; an exit comes too late to ask.
    unit_tasks: HashMap<u32, Watched>,
    /// From when on a failed umount has all of `/proc` scanned again.
    whole_after: u64,
    /// The mount has changed while a umount was under way: scan when it has returned.
    scan_after_call: bool,
    next_tick: Option<u64>,
    looks: Looks,
    /// What the last scan recorded or held back saw.
    last_scan: Option<(bool, Vec<Task>)>,
    /// The last of a run of ticks that all saw the same.
    held_back: Option<(u64, Scan)>,
    /// When to stop waiting for the tracer's last line, once the plan is over.
    end: Option<u64>,
}

/// Which sources have something.
#[derive(Debug, Clone, Copy, Default)]
struct Ready {
    mounts: bool,
    connector: bool,
    trace: bool,
    orders: bool,
}

impl Watch {
    fn run(mut self) -> Result<()> {
        fair_share::bound();
        if let Err(error) = become_fifo() {
            self.sink.lost("scan", format!("not SCHED_FIFO, scans may come late: {error}"));
        }
        self.take_mounts()?;
        loop {
            let ready = self.wait()?;
            // Families first: what follows asks for roles. Calls before mounts: an unmount asks for its call.
            let trigger = if ready.connector { self.take_processes() } else { None };
            if let Some(trigger) = trigger {
                self.scan(trigger, false);
            }
            if ready.trace && self.take_calls() {
                return Ok(());
            }
            if ready.mounts {
                self.take_mounts()?;
            }
            if ready.orders {
                self.take_orders()?;
            }
            let now = self.sink.clock.now();
            if self.next_tick.is_some_and(|tick| tick <= now) {
                self.scan(Trigger::Tick, false);
            }
            if self.looks.is_due(now) {
                self.look();
            }
            if let Some(deadline) = self.end {
                if self.trace.is_none() {
                    return Ok(());
                }
                if deadline <= now {
                    self.sink.lost("tracefs", "the end of the trace did not come out");
                    return Ok(());
                }
            }
        }
    }

    fn wait(&self) -> Result<Ready> {
        fn fd<'a>(fd: Option<BorrowedFd<'a>>, flags: PollFlags) -> Option<PollFd<'a>> {
            fd.map(|fd| PollFd::from_borrowed_fd(fd, flags))
        }
        // Nor calls after the end's mark: neither is reported without the other.
        let watches_mounts = self.end.is_none();
        let sources = [
            fd(watches_mounts.then(|| self.mounts.fd()), PollFlags::PRI),
            fd(self.connector.as_ref().map(ProcConnector::fd), PollFlags::IN),
            fd(self.trace.as_ref().map(UmountTrace::fd), PollFlags::IN),
            Some(PollFd::new(&*self.wake, PollFlags::IN)),
        ];
        let is_there = [watches_mounts, self.connector.is_some(), self.trace.is_some(), true];
        let mut fds: Vec<PollFd<'_>> = sources.into_iter().flatten().collect();
        let now = self.sink.clock.now();
        let wake_at = [self.next_tick, self.looks.next(), self.end].into_iter().flatten().min();
        let timeout =
            wake_at.map(|at| Timespec::try_from(Duration::from_nanos(at.saturating_sub(now)))).transpose()?;
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => return Ok(Ready::default()),
            Err(error) => return Err(error).context("poll the watcher's sources"),
        }
        let mut polled = fds.iter().map(|fd| !fd.revents().is_empty());
        let [mounts, connector, trace, orders] =
            is_there.map(|there| there && polled.next().unwrap_or(false));
        Ok(Ready { mounts, connector, trace, orders })
    }

    /// Follows forks and exits; the trigger for a scan, if the units' tasks gave one.
    fn take_processes(&mut self) -> Option<Trigger> {
        let read = self.connector.as_ref()?.read();
        let read = match read {
            Ok(read) => read,
            Err(error) => {
                self.sink.lost("proc-connector", format!("{error:#}"));
                self.connector = None;
                return None;
            }
        };
        if read.overrun {
            self.sink.lost("proc-connector", "its buffer ran over (ENOBUFS)");
        }
        let mut trigger = None;
        for event in read.events {
            match event {
                ProcessEvent::Fork { parent, child } => {
                    self.roles.forked(parent, child);
                    if let Some(unit) = self.unit_tasks.get(&parent) {
                        self.unit_tasks.insert(child, *unit);
                    }
                }
                ProcessEvent::Exec { pid } => {
                    if self.in_stop && self.unit_of(pid).is_some() {
                        trigger = Some(Trigger::Exec);
                    }
                }
                ProcessEvent::Coredump { pid } => {
                    // It waits for its parent at the latest, so it is there to be asked.
                    let comm = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
                    self.sink.send_now(What::Coredump { pid, comm: comm.trim_end().to_owned() });
                }
                ProcessEvent::Exit { pid } => {
                    if self.unit_tasks.remove(&pid).is_some() && self.in_stop {
                        trigger = trigger.or(Some(Trigger::Exit));
                    }
                    self.roles.exited(pid);
                }
            }
        }
        trigger
    }

    /// Records umount calls; true when the trace has come to its end.
    fn take_calls(&mut self) -> bool {
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
                    let target = umount_target::of(path.as_deref(), tid, Path::new(&self.plan.mount));
                    self.calls.entered(tid, self.sink.clock.at_us(at_us), by_unit, target);
                }
                TraceLine::Returned { tid, comm, at_us, result } => {
                    let returned = self.sink.clock.at_us(at_us);
                    let unit = self.unit_of(tid);
                    let role = self.role(tid, unit);
                    let target = Target::Unknown;
                    self.take_call(UmountCall { pid: tid, comm, role, returned, result, target });
                }
                TraceLine::Lost(why) => self.sink.lost("tracefs", why),
                TraceLine::End => return true,
            }
        }
        false
    }

    fn take_call(&mut self, call: UmountCall) {
        let kept = self.calls.returned(call);
        if std::mem::take(&mut self.scan_after_call) && self.in_stop {
            self.scan_the_change();
        }
        let Some((at, call)) = kept else { return };
        let failed = is_busy(&call);
        self.sink.send(at, What::UmountCall(call));
        if failed && self.in_stop {
            let now = self.sink.clock.now();
            let whole = self.whole_after <= now;
            if whole {
                self.whole_after = now + WHOLE_PAUSE_NS;
            }
            self.scan(Trigger::UmountFailed, whole);
        }
    }

    fn take_mounts(&mut self) -> Result<()> {
        let at = self.sink.clock.now();
        let changes = self.mounts.read()?;
        let changed = !changes.is_empty();
        for change in changes {
            if change == What::Unmounted
                && let Some((at, call)) = self.calls.unmounted()
            {
                self.sink.send(at, What::UmountCall(call));
            }
            self.sink.send(at, change);
        }
        if changed && self.in_stop {
            // The kernel reports an unmount before the call returns. Scanning now would add to its time.
            if self.calls.is_any_under_way() {
                self.scan_after_call = true;
            } else {
                self.scan_the_change();
            }
        }
        Ok(())
    }

    /// Once the mount is gone only the units' own processes are scanned: all of /proc takes 4 ms of the reset that is being
    /// timed, and whoever else still has something of it is seen at the end of the step.
    fn scan_the_change(&mut self) {
        self.scan(Trigger::Mount, self.mounts.is_mounted());
    }

    fn take_orders(&mut self) -> Result<()> {
        // Reset before reading, so that an order that comes meanwhile wakes again.
        let _nothing = rustix::io::read(&*self.wake, &mut [0; 8]).is_err();
        while let Ok(order) = self.orders.try_recv() {
            match order {
                Order::Unit(watched, unit) => self.take_unit(watched, unit),
                Order::StepBegins(step, answer) => {
                    self.step = Some(step);
                    self.update_stop();
                    // Fails only when the asker has given up.
                    let _gone = answer.send(()).is_err();
                }
                Order::StepEnded(step, answer) => {
                    if step == Step::Reset {
                        self.scan(Trigger::End, true);
                    }
                    self.step = None;
                    self.update_stop();
                    // Fails only when the asker has given up.
                    let _gone = answer.send(()).is_err();
                }
                Order::Finish => self.begin_end()?,
            }
        }
        Ok(())
    }

    fn take_unit(&mut self, watched: Watched, unit: UnitView) {
        let known = match watched {
            Watched::Unit => {
                self.roles.unit(unit.main_pid, unit.control_pid);
                &mut self.unit
            }
            Watched::MountUnit => &mut self.mount_unit,
        };
        let control_group = if unit.control_group.is_empty() {
            std::mem::take(&mut known.control_group)
        } else {
            unit.control_group
        };
        *known = UnitView { control_group, ..unit };
        self.update_stop();
    }

    /// Begins or ends the scans, as the step and the units have it.
    fn update_stop(&mut self) {
        let in_stop = match self.step {
            Some(Step::Reset) => true,
            // What recovers from a failed stop is not measured.
            Some(Step::During | Step::Check | Step::Recover) => false,
            Some(Step::Start) | None => self.unit.is_deactivating || self.mount_unit.is_deactivating,
        };
        if in_stop == self.in_stop {
            return;
        }
        self.in_stop = in_stop;
        if in_stop {
            self.unit_tasks.clear();
            self.whole_after = 0;
            self.last_scan = None;
            self.looks.stop_begins(self.sink.clock.now());
            self.scan(Trigger::Stop, true);
        } else {
            self.looks.stop_ends();
            self.record_held_back();
            self.next_tick = None;
        }
    }

    fn begin_end(&mut self) -> Result<()> {
        self.step = None;
        self.unit.is_deactivating = false;
        self.mount_unit.is_deactivating = false;
        self.update_stop();
        self.take_mounts()?;
        if let Some(trace) = &self.trace
            && let Err(error) = trace.mark_end()
        {
            self.sink.lost("tracefs", format!("{error:#}"));
            self.trace = None;
        }
        self.end = Some(self.sink.clock.now() + END_DEADLINE_NS);
        Ok(())
    }

    /// The unit that a process belongs to.
    fn unit_of(&mut self, pid: u32) -> Option<Watched> {
        let known = self.unit_tasks.get(&pid).copied();
        let unit = known.or_else(|| self.unit_of_cgroup(&unit_cgroup::of(pid)?))?;
        self.unit_tasks.insert(pid, unit);
        Some(unit)
    }

    fn unit_of_cgroup(&self, cgroup: &str) -> Option<Watched> {
        let units = [(&self.unit, Watched::Unit), (&self.mount_unit, Watched::MountUnit)];
        let mut its =
            units.into_iter().filter(|(unit, _)| unit_cgroup::contains(&unit.control_group, cgroup));
        its.next().map(|(_, watched)| watched)
    }

    fn role(&self, pid: u32, unit: Option<Watched>) -> Role {
        unit.map_or(Role::Outside, |unit| self.roles.of(pid, unit, parent_of))
    }

    /// Records who is in the units' cgroups.
    fn look(&mut self) {
        let cgroups = [
            (&*self.unit.control_group, Watched::Unit),
            (&self.mount_unit.control_group, Watched::MountUnit),
        ];
        let alive = alive::processes(cgroups, |pid, unit| self.role(pid, Some(unit)));
        self.sink.send_now(What::Alive(alive));
    }

    /// Scans for who holds the mount and records it. Ticks that see what the scan before saw are held back but
    /// for the last.
    fn scan(&mut self, trigger: Trigger, whole_proc: bool) {
        let at = self.sink.clock.now();
        let mut of_units = unit_cgroup::processes(&self.unit.control_group);
        let of_unit = of_units.len();
        of_units.extend(unit_cgroup::processes(&self.mount_unit.control_group));
        let scope = if whole_proc { Scope::Everything } else { Scope::Pids(&of_units) };
        let found = match scan::scan(Path::new(&self.plan.mount), self.mounts.device(), scope) {
            Ok(found) => found,
            Err(error) => return self.sink.lost("scan", error),
        };
        if found.denied > 0 {
            self.sink.lost("scan", format!("{} processes could not be inspected", found.denied));
        }
        let (of_unit, of_mount_unit) = of_units.split_at(of_unit);
        self.unit_tasks.extend(of_unit.iter().map(|pid| (*pid, Watched::Unit)));
        self.unit_tasks.extend(of_mount_unit.iter().map(|pid| (*pid, Watched::MountUnit)));
        let tasks: Vec<Task> = found.tasks.into_iter().map(|task| self.task(task)).collect();
        let mounted = self.mounts.is_mounted();
        let ended = self.sink.clock.now();
        let scan = Scan { trigger, whole_proc, cost_ns: ended - at, mounted, tasks };
        self.record_scan(at, scan);
        if self.in_stop {
            self.next_tick = Some(ended + self.plan.sample_us * 1000);
        }
    }

    fn record_scan(&mut self, at: u64, scan: Scan) {
        let is_same = self
            .last_scan
            .as_ref()
            .is_some_and(|(mounted, tasks)| *mounted == scan.mounted && *tasks == scan.tasks);
        if scan.trigger == Trigger::Tick && is_same {
            self.held_back = Some((at, scan));
            return;
        }
        self.record_held_back();
        self.last_scan = Some((scan.mounted, scan.tasks.clone()));
        self.sink.send(at, What::Scan(scan));
    }

    fn record_held_back(&mut self) {
        if let Some((at, scan)) = self.held_back.take() {
            self.sink.send(at, What::Scan(scan));
        }
    }

    fn task(&self, task: scan::Task) -> Task {
        let role = self.role(task.pid, self.unit_of_cgroup(&task.cgroup));
        // None only for a task that ended while it was scanned.
        let namespace = task.namespace.map_or(Namespace { inode: 0, id: None }, |namespace| Namespace {
            inode: namespace.inode,
            id: namespace.id,
        });
        let references = task.references.into_iter().map(|reference| Reference {
            kind: kind(reference.kind),
            path: reference.path.to_string_lossy().into_owned(),
        });
        Task {
            pid: task.pid,
            tid: task.tid,
            comm: task.comm,
            role,
            unit: task.unit.unwrap_or_default(),
            namespace,
            private_copy: task.in_other_namespace_with_copy,
            references: references.collect(),
        }
    }
}

fn kind(kind: scan::Kind) -> Kind {
    match kind {
        scan::Kind::Cwd => Kind::Cwd,
        scan::Kind::Root => Kind::Root,
        scan::Kind::Exe => Kind::Exe,
        scan::Kind::File => Kind::File,
        scan::Kind::Mapping => Kind::Mapping,
    }
}

fn or_lost<T>(source: Result<T>, name: &str, sink: &Sink) -> Option<T> {
    source.inspect_err(|error| sink.lost(name, format!("{error:#}"))).ok()
}

#[expect(unsafe_code, reason = "neither rustix nor nix has sched_setscheduler")]
fn become_fifo() -> nix::Result<()> {
    let parameters = libc::sched_param { sched_priority: FIFO_PRIORITY };
    // The system call and not the C function, which musl leaves out; 0 is the calling thread.
    // SAFETY: the kernel reads one `struct sched_param` from the pointer, which outlives the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_sched_setscheduler,
            0,
            libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK,
            &raw const parameters,
        )
    };
    Errno::result(result).map(drop)
}
