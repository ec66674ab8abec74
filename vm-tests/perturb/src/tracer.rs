//! The tracer: one loop over what tasks tell, and over the times at which held ones go on.
//!
//! Traced are the command and all that comes of it, what PID 1 starts meanwhile, and the processes that the units of the order have
//! already. PID 1 itself is stopped when it makes a process and at nothing else; its executor, too, goes through up to the
//! program that it becomes, as it makes thousands of calls for itself alone. Processes that were there before are traced
//! without being stopped: from their next signal, fork or exec on their calls are points.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::os::unix::process::CommandExt as _;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::libc::{self, c_int, pid_t};
use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use rustix::time::{ClockId, clock_gettime};
use vm_perturb::{Anew, Order, Packed, Passed, Point, Report};

use crate::calls;
use crate::raw::{self, Go, Status};

/// For how many points there is room from the beginning.
const POINTS: usize = 1024;
/// PID 1 and its threads.
const MANAGER: pid_t = 1;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Stops at events, and none is a point.
    Manager,
    /// On its way from PID 1 to a program.
    Executor,
    /// All of its points are.
    Traced,
}

#[derive(Debug)]
struct Task {
    kind: Kind,
    /// Whether a command of ours made it.
    of_client: bool,
    /// Its name as points have it, with its number among those of that name.
    label: Option<(String, u32)>,
    /// How often each event has come.
    counts: HashMap<String, u32>,
}

/// A task that does not go on yet.
#[derive(Debug, Clone, Copy)]
struct Held {
    until_us: u64,
    how: Go,
    signal: c_int,
}

#[derive(Debug)]
pub(crate) struct Tracer {
    line: Packed,
    /// When a wait ends that nothing else has ended.
    alarm: Option<u64>,
    tasks: HashMap<pid_t, Task>,
    /// How many tasks of each name have a number.
    instances: HashMap<String, u32>,
    held: BTreeMap<pid_t, Held>,
    began_us: u64,
    passed: Vec<Passed>,
}

pub(crate) fn now_us() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    let nanos = u64::try_from(time.tv_nsec).unwrap_or(0);
    u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000 + nanos / 1000
}

impl Tracer {
    /// Begins to trace what is there.
    pub(crate) fn start(order: &Order) -> Result<Self> {
        raw::become_fifo().context("become SCHED_FIFO")?;
        raw::hear_alarms().context("sigaction SIGALRM")?;
        let mut tracer = Self {
            line: Packed::none(),
            alarm: None,
            tasks: HashMap::new(),
            instances: HashMap::new(),
            held: BTreeMap::new(),
            began_us: 0,
            passed: Vec::new(),
        };
        for tid in threads(MANAGER) {
            raw::seize(tid).with_context(|| format!("PTRACE_SEIZE {tid}, of PID 1"))?;
            tracer.add(tid, Kind::Manager, false);
        }
        for tid in of_units(&order.units)? {
            match raw::seize(tid) {
                Ok(()) => {
                    tracer.add(tid, Kind::Traced, false);
                    // In the order of their ids, which is that of their making: who comes to a point first is another one in a run
                    // that differs by a microsecond.
                    tracer.label(tid);
                }
                // It has ended since it was listed.
                Err(nix::errno::Errno::ESRCH) => {}
                Err(errno) => return Err(errno).with_context(|| format!("PTRACE_SEIZE {tid}")),
            }
        }
        Ok(tracer)
    }

    fn add(&mut self, tid: pid_t, kind: Kind, of_client: bool) {
        self.tasks.insert(tid, Task { kind, of_client, label: None, counts: HashMap::new() });
    }

    /// Lets what is traced go on for so long, before anything is begun.
    pub(crate) fn wait_for(&mut self, time: Duration) -> Result<()> {
        let until_us = now_us() + u64::try_from(time.as_micros()).context("a time")?;
        while now_us() < until_us {
            if let Some((tid, status)) = self.next(Some(until_us))? {
                self.take(tid, status)?;
            }
        }
        Ok(())
    }

    /// Takes note of a line, and goes on at the next multiple of a time since that instant, both in microseconds: what was done until then
    /// can have taken longer or less long. Nothing is heard of tasks meanwhile: what waits for one of them goes on at another instant, too.
    pub(crate) fn begin_at(&mut self, since_us: u64, every_us: u64, line: Packed) -> Result<()> {
        self.line = line;
        // What came before can't be held.
        self.passed = Vec::with_capacity(POINTS);
        self.alarm = None;
        raw::alarm_after(0).context("setitimer")?;
        let until_us = since_us + ((now_us() - since_us) / every_us + 1) * every_us;
        raw::sleep_until(until_us).context("clock_nanosleep")
    }

    /// Runs the command, and the second client if there is one, and holds tasks as the line has it; returns the command's status
    /// when both have ended.
    pub(crate) fn run(
        mut self,
        command: &[String],
        order: &Order,
        to: Option<&Anew>,
    ) -> Result<(i32, Report)> {
        self.began_us = now_us();
        let offset = self.line.client_us;
        let due = |first: bool| {
            let later = if first { offset.min(0) } else { offset.max(0) };
            self.began_us + later.unsigned_abs()
        };
        let mut commands = vec![Client::new(command, due(true))];
        if !order.client.is_empty() {
            commands.push(Client::new(&order.client, due(false)));
        }
        let mut deadline_us = Some(self.began_us.saturating_add(order.deadline_us));
        while !commands.iter().all(|one| one.ended.is_some()) {
            let now = now_us();
            for one in commands.iter_mut().filter(|one| one.pid.is_none() && one.due_us <= now) {
                one.pid = Some(self.spawn(&one.argv)?);
            }
            self.release(now)?;
            if deadline_us.is_some_and(|deadline| deadline <= now) {
                deadline_us = None;
                crate::write(&self.report(&commands), to)?;
            }
            let waiting = commands.iter().filter(|one| one.pid.is_none()).map(|one| one.due_us);
            let held = self.held.values().map(|held| held.until_us);
            let Some((tid, status)) = self.next(waiting.chain(held).chain(deadline_us).min())? else {
                continue;
            };
            match (status, commands.iter_mut().find(|one| one.pid == Some(tid))) {
                (Status::Exited(code), Some(one)) => one.ended = Some((code, now_us())),
                (Status::Killed(signal), Some(one)) => one.ended = Some((128 + signal, now_us())),
                _ => {}
            }
            self.take(tid, status)?;
        }
        let (status, _) = commands.first().and_then(|one| one.ended).context("no command")?;
        Ok((status, self.report(&commands)))
    }

    fn report(&self, commands: &[Client]) -> Report {
        let ended = |nth: usize| commands.get(nth).and_then(|one| one.ended);
        Report {
            passed: self.passed.clone(),
            took_us: ended(0).map(|(_, at_us)| at_us - self.began_us),
            client: ended(1).map(|(status, _)| status),
        }
    }

    /// The next task that has something to tell; `None` if that time has come first.
    fn next(&mut self, until_us: Option<u64>) -> Result<Option<(pid_t, Status)>> {
        if self.alarm != until_us {
            let us = until_us.map_or(0, |until| until.saturating_sub(now_us()).max(1));
            raw::alarm_after(us).context("setitimer")?;
            self.alarm = until_us;
        }
        raw::wait().context("waitpid")
    }

    fn spawn(&mut self, argv: &[String]) -> Result<pid_t> {
        let (program, arguments) = argv.split_first().context("a command is empty")?;
        #[expect(clippy::disallowed_methods, reason = "a program of the guest, not part of the harness")]
        let mut command = std::process::Command::new(program);
        command.args(arguments);
        #[expect(unsafe_code, reason = "a tracee asks to be traced between fork and exec")]
        // SAFETY: a bare system call: no allocation, no lock.
        unsafe {
            command.pre_exec(raw::trace_me);
        }
        let child = command.spawn().with_context(|| format!("run {}", argv.join(" ")))?;
        let pid = pid_t::try_from(child.id()).context("a process id")?;
        // It stands at its exec, by SIGTRAP, and is told of by the loop.
        self.add(pid, Kind::Traced, true);
        Ok(pid)
    }

    /// Lets those go on whose time is over.
    fn release(&mut self, now: u64) -> Result<()> {
        let due: Vec<pid_t> =
            self.held.iter().filter(|(_, held)| held.until_us <= now).map(|(tid, _)| *tid).collect();
        for tid in due {
            if let Some(Held { how, signal, .. }) = self.held.remove(&tid) {
                raw::go_on(tid, how, signal).with_context(|| format!("let {tid} go on"))?;
            }
        }
        Ok(())
    }

    /// Does with a task what its state asks for.
    fn take(&mut self, tid: pid_t, status: Status) -> Result<()> {
        // Whatever it tells, it does not stand where it was held.
        self.held.remove(&tid);
        let is_new = !self.tasks.contains_key(&tid);
        if is_new && !matches!(status, Status::Exited(_) | Status::Killed(_)) {
            let (kind, of_client) = self.kind_of_new(tid);
            self.add(tid, kind, of_client);
            // One that was made by a task that asked to be traced (PTRACE_TRACEME) has no options before; others have.
            let _has_them = raw::set_options(tid).is_err();
        }
        let kind = self.tasks.get(&tid).map_or(Kind::Traced, |task| task.kind);
        let how = if kind == Kind::Traced { Go::ToCall } else { Go::ToEvent };
        match status {
            Status::Exited(_) | Status::Killed(_) => {
                self.tasks.remove(&tid);
                Ok(())
            }
            Status::Syscall => {
                let info = ptrace::syscall_info(Pid::from_raw(tid));
                let call =
                    info.ok().filter(|info| info.op == libc::PTRACE_SYSCALL_INFO_ENTRY).and_then(|info| {
                        #[expect(
                            unsafe_code,
                            reason = "a union of the kernel's, whose tag was just looked at"
                        )]
                        // SAFETY: for this `op` the kernel has filled in `entry`.
                        let entry = unsafe { info.u.entry };
                        (info.arch == AUDIT_ARCH_X86_64).then(|| calls::point(tid, entry.nr, entry.args))?
                    });
                match call {
                    Some(call) => self.come_to(tid, call.name, call.of, how, 0),
                    None => self.go_on(tid, how, 0),
                }
            }
            Status::Event(libc::PTRACE_EVENT_EXIT, _) if kind == Kind::Traced => {
                self.come_to(tid, "exit", String::new(), how, 0)
            }
            Status::Event(libc::PTRACE_EVENT_EXEC, _) if kind == Kind::Executor && !is_executor(tid) => {
                if let Some(task) = self.tasks.get_mut(&tid) {
                    task.kind = Kind::Traced;
                }
                self.come_to(tid, "start", String::new(), Go::ToCall, 0)
            }
            Status::Event(libc::PTRACE_EVENT_STOP, signal) if signal != libc::SIGTRAP => {
                self.go_on(tid, Go::Listen, 0)
            }
            Status::Event(libc::PTRACE_EVENT_STOP, _) | Status::Signal(libc::SIGSTOP)
                if is_new && kind == Kind::Traced =>
            {
                self.come_to(tid, "born", String::new(), how, 0)
            }
            Status::Signal(libc::SIGSTOP) if is_new => self.go_on(tid, how, 0),
            Status::Event(..) => self.go_on(tid, how, 0),
            // The exec of a command of ours.
            Status::Signal(libc::SIGTRAP)
                if self.tasks.get(&tid).is_some_and(|task| task.counts.is_empty()) =>
            {
                raw::set_options(tid).with_context(|| format!("PTRACE_SETOPTIONS {tid}"))?;
                self.come_to(tid, "start", String::new(), how, 0)
            }
            Status::Signal(signal) if kind == Kind::Traced && signal != libc::SIGCHLD => {
                let name = Signal::try_from(signal).map_or("signal", Signal::as_str);
                self.come_to(tid, name, String::new(), how, signal)
            }
            Status::Signal(signal) => self.go_on(tid, how, signal),
        }
    }

    fn go_on(&self, tid: pid_t, how: Go, signal: c_int) -> Result<()> {
        raw::go_on(tid, how, signal).with_context(|| format!("let {tid} go on"))
    }

    /// What a task is that nobody has told of, and whether it comes of a command of ours: its maker stands, too.
    fn kind_of_new(&self, tid: pid_t) -> (Kind, bool) {
        let status = fs::read_to_string(format!("/proc/{tid}/status")).unwrap_or_default();
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.and_then(|value| value.trim().parse::<pid_t>().ok()).unwrap_or(0)
        };
        let (group, parent) = (field("Tgid"), field("PPid"));
        if group == MANAGER {
            return (Kind::Manager, false);
        }
        let maker = self.tasks.get(&if group == tid { parent } else { group });
        match maker.map(|task| task.kind) {
            Some(Kind::Manager | Kind::Executor) => (Kind::Executor, false),
            _ => (Kind::Traced, maker.is_some_and(|maker| maker.of_client)),
        }
    }

    /// Notes a point, and lets the task go on, at once or later.
    fn come_to(&mut self, tid: pid_t, event: &str, of: String, how: Go, signal: c_int) -> Result<()> {
        let point = self.point(tid, event).to_string();
        let us = self.line.us(&point);
        let at_us = now_us();
        let since = at_us.saturating_sub(self.began_us);
        let of_client = self.tasks.get(&tid).is_some_and(|task| task.of_client);
        self.passed.push(Passed { point, of, at_us: since, held_us: us, of_client });
        if us == 0 {
            return self.go_on(tid, how, signal);
        }
        self.held.insert(tid, Held { until_us: at_us + us, how, signal });
        Ok(())
    }

    fn point(&mut self, tid: pid_t, event: &str) -> Point {
        let (task, instance) = self.label(tid);
        let nth = self.tasks.get_mut(&tid).map_or(1, |known| {
            let nth = known.counts.entry(event.to_owned()).or_default();
            *nth += 1;
            *nth
        });
        Point { task, instance, event: event.to_owned(), nth }
    }

    /// A task's name, and its number among those of that name.
    fn label(&mut self, tid: pid_t) -> (String, u32) {
        let comm = fs::read_to_string(format!("/proc/{tid}/comm")).unwrap_or_default();
        let name = Point::task_name(comm.trim_end());
        let task = self.tasks.entry(tid).or_insert_with(|| Task {
            kind: Kind::Traced,
            of_client: false,
            label: None,
            counts: HashMap::new(),
        });
        if let Some((known, instance)) = &task.label
            && *known == name
        {
            return (name, *instance);
        }
        let instance = self.instances.entry(name.clone()).or_default();
        *instance += 1;
        task.label = Some((name.clone(), *instance));
        task.counts.clear();
        (name, *instance)
    }
}

/// `AUDIT_ARCH_X86_64` of linux/audit.h: the numbers of calls are those of 64-bit programs.
const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;

/// A command of the run.
#[derive(Debug)]
struct Client {
    argv: Vec<String>,
    due_us: u64,
    pid: Option<pid_t>,
    /// Its status, and when.
    ended: Option<(i32, u64)>,
}

impl Client {
    fn new(argv: &[String], due_us: u64) -> Self {
        Self { argv: argv.to_vec(), due_us, pid: None, ended: None }
    }
}

/// Whether a task runs PID 1's program that becomes a unit's (since systemd 255).
fn is_executor(tid: pid_t) -> bool {
    fs::read_link(format!("/proc/{tid}/exe")).is_ok_and(|path| path.ends_with("systemd-executor"))
}

fn threads(pid: pid_t) -> Vec<pid_t> {
    numbers(&format!("/proc/{pid}/task"))
}

/// The names in a directory that are numbers, in order; none of one that is gone.
fn numbers(directory: &str) -> Vec<pid_t> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut all: Vec<pid_t> = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    all.sort_unstable();
    all
}

/// The tasks in the control groups of units.
fn of_units(units: &[String]) -> Result<Vec<pid_t>> {
    let processes = numbers("/proc");
    ensure!(!processes.is_empty(), "/proc has no process");
    let is_of = |pid: &&pid_t| {
        let cgroup = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        cgroup.trim_end().split('/').any(|part| units.iter().any(|unit| unit == part))
    };
    Ok(processes.iter().filter(is_of).flat_map(|pid| threads(*pid)).collect())
}
