//! What one scan costs: `holders`, the other tools, and the bare loop, with more and more processes.
//!
//! A process of the crowd is `sleep infinity` with some descriptors open, as a small service has them. Programs are
//! measured whole, from fork to wait; the bare loop, a diagnosis and a sample of two processes within this one. All are
//! taken by turns, after a first turn that is not counted.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs::File;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use serde_json::json;

use crate::bare_loop::{Mappings, bare_loop};
use crate::stage::Stage;
use crate::tools::{self, OTHERS};

/// How many files and how many sockets each process has open besides the three standard streams.
const OPEN: (usize, usize) = (6, 4);

/// Wall and processor time of one run.
type Cost = (Duration, Duration);

pub(crate) fn measure(holders: &Path, rounds: &str, counts: &str) -> Result<(), Box<dyn Error>> {
    let rounds: usize = rounds.parse()?;
    let counts: Vec<usize> = counts.split(',').map(str::parse).collect::<Result<_, _>>()?;
    let stage = Stage::set_up()?;
    stage.mount()?;
    let mut crowd = Crowd::new()?;
    for count in counts {
        crowd.grow(count)?;
        let mut costs: BTreeMap<String, Vec<Cost>> = BTreeMap::new();
        let (mut links, mut links_without_mappings, mut processes) = (0, 0, 0);
        for round in 0..=rounds {
            let mut add = |name: &str, cost: Cost| {
                if round > 0 {
                    costs.entry(name.to_owned()).or_default().push(cost);
                }
            };
            let command = [holders.display().to_string(), stage.merged.display().to_string()];
            add("holders", program(&command)?);
            for tool in OTHERS {
                add(tool, program(&tools::command_line(tool, &stage.merged))?);
            }
            let (read, cost) = within(|| bare_loop(Mappings::AsLinks));
            links = read;
            add("bare loop", cost);
            let (_, cost) = within(|| bare_loop(Mappings::AsText));
            add("bare loop, mappings as text", cost);
            let (read, cost) = within(|| bare_loop(Mappings::NotAtAll));
            links_without_mappings = read;
            add("bare loop without mappings", cost);
            let (report, cost) = within(|| holders::diagnose(&stage.merged));
            processes = report?.processes;
            add("diagnosis", cost);
            let sample = holders::Query::new(&stage.merged).among(crowd.first_two());
            let (report, cost) = within(|| sample.run());
            drop(report?);
            add("sample", cost);
        }
        let costs: serde_json::Map<_, _> = costs
            .into_iter()
            .map(|(name, costs)| {
                let ns = |of: fn(&Cost) -> Duration| -> Vec<u64> {
                    costs.iter().map(|cost| u64::try_from(of(cost).as_nanos()).unwrap_or(u64::MAX)).collect()
                };
                (name, json!({ "wall_ns": ns(|cost| cost.0), "cpu_ns": ns(|cost| cost.1) }))
            })
            .collect();
        println!(
            "{}",
            json!({
                "more_processes": count,
                "processes": processes,
                "links": links,
                "links_without_mappings": links_without_mappings,
                "costs": costs,
            })
        );
    }
    Ok(())
}

fn program(words: &[String]) -> Result<Cost, Box<dyn Error>> {
    let (begun, used) = (now(ClockId::Monotonic), children());
    tools::run(words)?;
    Ok((now(ClockId::Monotonic) - begun, children() - used))
}

fn within<T>(work: impl FnOnce() -> T) -> (T, Cost) {
    let (begun, used) = (now(ClockId::Monotonic), now(ClockId::ProcessCPUTime));
    let done = work();
    (done, (now(ClockId::Monotonic) - begun, now(ClockId::ProcessCPUTime) - used))
}

fn now(clock: ClockId) -> Duration {
    let time = clock_gettime(clock);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or_default())
}

/// Processor time of all children that were waited for. The kernel's sum is exact, only its parts are estimates
/// (`kernel/sched/cputime.c:cputime_adjust`).
#[expect(unsafe_code, reason = "getrusage(2) has no wrapper in rustix")]
fn children() -> Duration {
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: the kernel writes one `rusage`, of which all zero is a valid one.
    let usage = unsafe {
        libc::getrusage(libc::RUSAGE_CHILDREN, usage.as_mut_ptr());
        usage.assume_init()
    };
    let time = |time: libc::timeval| {
        Duration::from_secs(time.tv_sec.unsigned_abs()) + Duration::from_micros(time.tv_usec.unsigned_abs())
    };
    time(usage.ru_utime) + time(usage.ru_stime)
}

/// Processes that do nothing; killed and reaped when dropped.
struct Crowd {
    processes: Vec<Child>,
    /// Inherited by each of them.
    _open: Vec<OwnedFd>,
}

impl Crowd {
    fn new() -> Result<Self, Box<dyn Error>> {
        let mut open: Vec<OwnedFd> = Vec::new();
        for _ in 0..OPEN.0 {
            open.push(rustix::io::dup(File::open("/etc/passwd")?)?);
        }
        for _ in 0..OPEN.1 / 2 {
            let (one, other) = UnixStream::pair()?;
            // A duplicate has no close-on-exec.
            open.push(rustix::io::dup(one)?);
            open.push(rustix::io::dup(other)?);
        }
        Ok(Self { processes: Vec::new(), _open: open })
    }

    fn grow(&mut self, count: usize) -> Result<(), Box<dyn Error>> {
        while self.processes.len() < count {
            let mut sleep = tools::command("sleep");
            sleep.arg("infinity").current_dir("/").stdin(Stdio::null()).stdout(Stdio::null());
            self.processes.push(sleep.spawn()?);
        }
        Ok(())
    }

    fn first_two(&self) -> Vec<u32> {
        self.processes.iter().take(2).map(Child::id).collect()
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        for process in &mut self.processes {
            if let Err(error) = process.kill().and_then(|()| process.wait()) {
                eprintln!("planter: end process {}: {error}", process.id());
            }
        }
    }
}
