//! The thread that watches: one poll over every source that has a descriptor, and the scans for who holds what.
//!
//! It scans tasks only while a stop is in flight: from the beginning of the reset step to its end, and
//! whenever a unit is deactivating by itself. All of `/proc` is scanned when the stop begins, when the
//! watched path is mounted, and when the reset has ended; the units' own tasks, and who was seen outside, at every exec and
//! exit among them and at every tick of the plan's clock. These scans go by paths, which is cheap and no verdict. When a
//! umount was refused, when the stop takes long, and when a reset has left something, `holders` is asked. Otherwise it
//! sleeps, without ticks.
//!
//! It runs SCHED_FIFO. An exec is reported before the new program's first instruction and a failed umount
//! before the call has returned to its caller, so on one processor each scan sees the moment that it is about;
//! the price is that the scanned processes wait meanwhile: [`Scan::cost_ns`] records it.

mod point;
mod scans;
mod unmounts;

use std::collections::HashMap;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use nix::errno::Errno;
use nix::libc;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::time::Timespec;
use vm_agent::recording::{Plan, Role, Step, Trigger, What, Why};

use self::point::Point;
use super::alive::{self, Looks};
use super::events::Sink;
use super::fair_share;
use super::orders::{Order, Orders, UnitView};
use super::proc_connector::{ProcConnector, ProcessEvent};
use super::processes;
use super::roles::{Roles, Watched, parent_of};
use super::stand::Stand;
use super::umount_target::Callers;
use super::umounts::UmountTrace;
use super::unit_cgroup;

/// The thread's handle.
#[derive(Debug)]
pub(super) struct Watcher {
    orders: Orders,
    thread: Option<JoinHandle<Result<()>>>,
}

/// How long the tracer may take to hand over the last line.
const END_DEADLINE_NS: u64 = 2_000_000_000;

/// Above every ordinary task; among real-time ones there is no need to win.
const FIFO_PRIORITY: i32 = 10;

impl Watcher {
    /// Opens the sources and starts the thread. What the kernel does not offer is recorded as lost.
    ///
    /// # Errors
    /// If mountinfo cannot be watched or no thread be made.
    pub(super) fn start(plan: &Plan, sink: Sink, stand: Stand) -> Result<Self> {
        let (orders, receiver) = Orders::new()?;
        let points = plan.mounts().map(|(number, path)| Point::open(path, sink.of_mount(number)));
        let watch = Watch {
            points: points.collect::<Result<_>>()?,
            connector: or_lost(ProcConnector::open(), "proc-connector", &sink),
            trace: or_lost(UmountTrace::open(), "tracefs", &sink),
            callers: Callers::default(),
            tick_ns: Watch::tick_ns(plan),
            sink,
            orders: receiver,
            wake: orders.wake(),
            unit: UnitView::default(),
            mount_unit: UnitView::default(),
            roles: Roles::default(),
            step: None,
            in_stop: false,
            unit_tasks: HashMap::new(),
            next_tick: None,
            looks: Looks::default(),
            stand,
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

    /// Records what `holders` says of the mount with this number, that a reset has left.
    ///
    /// # Errors
    /// As [`Watcher::step_begins`].
    pub(super) fn diagnose(&self, number: u32) -> Result<()> {
        self.ask(|answer| Order::Diagnose(number, answer))
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
    /// From one scan to the next while a stop is in flight.
    tick_ns: u64,
    sink: Sink,
    /// In the order of [`Plan::mounts`].
    points: Vec<Point>,
    connector: Option<ProcConnector>,
    trace: Option<UmountTrace>,
    /// Who has called umount, and where it was.
    callers: Callers,
    orders: Receiver<Order>,
    wake: Arc<OwnedFd>,

    unit: UnitView,
    /// Without a process and never stopping, where the plan has none.
    mount_unit: UnitView,
    roles: Roles,
    step: Option<Step>,
    in_stop: bool,
    /// Processes of the units that were seen during this stop; an exit comes too late to ask.
    unit_tasks: HashMap<u32, Watched>,
    next_tick: Option<u64>,
    looks: Looks,
    stand: Stand,
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
        self.of_points(|_, point| point.warm_up());
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
            if let Some(look) = self.looks.due(now) {
                self.look();
                if look.is_first {
                    self.of_points(|watch, point| {
                        if point.mounts.is_mounted() {
                            watch.diagnose(point, Why::Late);
                        }
                    });
                }
            }
            if self.stand.is_due(now) {
                let clock = self.sink.clock;
                self.stand.still(clock.now(), || clock.now())?;
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

    /// Does something with each mount point, in their order.
    fn of_points(&mut self, mut act: impl FnMut(&mut Self, &mut Point)) {
        let mut points = std::mem::take(&mut self.points);
        points.iter_mut().for_each(|point| act(self, point));
        self.points = points;
    }

    fn wait(&self) -> Result<Ready> {
        fn fd<'a>(fd: Option<BorrowedFd<'a>>, flags: PollFlags) -> Option<PollFd<'a>> {
            fd.map(|fd| PollFd::from_borrowed_fd(fd, flags))
        }
        // Nor calls after the end's mark: neither is reported without the other.
        // One table has all mount points, and its first reader is told of a change.
        let mounts = self.points.first().filter(|_| self.end.is_none()).map(|point| point.mounts.fd());
        let sources = [
            fd(mounts, PollFlags::PRI),
            fd(self.connector.as_ref().map(ProcConnector::fd), PollFlags::IN),
            fd(self.trace.as_ref().map(UmountTrace::fd), PollFlags::IN),
            Some(PollFd::new(&*self.wake, PollFlags::IN)),
        ];
        let is_there = [mounts.is_some(), self.connector.is_some(), self.trace.is_some(), true];
        let mut fds: Vec<PollFd<'_>> = sources.into_iter().flatten().collect();
        let now = self.sink.clock.now();
        let wake_at = [self.next_tick, self.looks.next(), self.end, Some(self.stand.next())]
            .into_iter()
            .flatten()
            .min();
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
                    let comm = processes::comm(pid).unwrap_or_default();
                    self.sink.send_now(What::Coredump { pid, comm });
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

    fn take_orders(&mut self) -> Result<()> {
        // Reset before reading, so that an order that comes meanwhile wakes again.
        let _nothing = rustix::io::read(&*self.wake, &mut [0; 8]).is_err();
        while let Ok(order) = self.orders.try_recv() {
            match order {
                Order::UserManager(pid) => self.roles.manager(pid),
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
                Order::Diagnose(number, answer) => {
                    let mut numbers = 0..;
                    self.of_points(|watch, point| {
                        if numbers.next() == Some(number) {
                            watch.diagnose(point, Why::Left);
                        }
                    });
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
            Some(Step::During | Step::Check | Step::Recover | Step::BootCheck) => false,
            Some(Step::Start) | None => self.unit.is_deactivating || self.mount_unit.is_deactivating,
        };
        if in_stop == self.in_stop {
            return;
        }
        self.in_stop = in_stop;
        if in_stop {
            self.unit_tasks.clear();
            self.points.iter_mut().for_each(Point::stop_begins);
            self.looks.stop_begins(self.sink.clock.now());
            self.scan(Trigger::Stop, true);
        } else {
            self.looks.stop_ends();
            self.points.iter_mut().for_each(Point::record_held_back);
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
}

fn or_lost<T>(source: Result<T>, name: &str, sink: &Sink) -> Option<T> {
    source.inspect_err(|error| sink.lost(name, format!("{error:#}"))).ok()
}

#[expect(unsafe_code, reason = "neither rustix nor nix has sched_setscheduler")]
fn become_fifo() -> nix::Result<()> {
    let parameters = libc::sched_param { sched_priority: FIFO_PRIORITY };
    // The system call and not the C function, which musl leaves out; 0 is the calling thread. A child inherits it (no
    // SCHED_RESET_ON_FORK): `holders` has one look at every process first, and what it waits for must not be those.
    // SAFETY: the kernel reads one `struct sched_param` from the pointer, which outlives the call.
    let result =
        unsafe { libc::syscall(libc::SYS_sched_setscheduler, 0, libc::SCHED_FIFO, &raw const parameters) };
    Errno::result(result).map(drop)
}
