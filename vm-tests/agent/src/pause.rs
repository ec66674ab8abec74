//! Pauses the machine at an instant of the guest's time that the host has no part in.
//!
//! A request of the host's would arrive whenever the host had time to send it, and QMP's `stop` in the middle of an
//! instruction or of the kernel. A watchdog runs out at an instant of guest time. If the guest is idle then, nothing
//! executes between the timer and the pause: QEMU's main loop runs the timers of an idle guest, and stops the machine
//! before the processor gets a turn (accel/tcg/tcg-accel-ops-rr.c, softmmu/runstate.c). A pvpanic event stops at an
//! instruction, but how far the clock then jumps depends on QEMU's threads.
//!
//! The watchdog is an `i6300esb` (hw/watchdog/wdt_i6300esb.c; Intel 6300ESB I/O Controller Hub, 16): by microseconds. It has two
//! stages of at most 1.006 s each. When it has run out it is as after a reset, so all is set each time.

use std::fs::{self, File};
use std::os::fd::AsFd as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::ptr;
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::mm::{MapFlags, ProtFlags, mmap};

/// Its PCI identity, as sysfs has it.
const IDENTITY: [(&str, &str); 2] = [("vendor", "0x8086"), ("device", "0x25ab")];

/// The configuration register, a word: no interrupt after the first stage, steps of [`STEP_NS`], an action after the second.
const CONFIG: (u64, u16) = (0x60, 0x0007);
/// The lock register, a byte: off, and on.
const LOCK: (u64, [u8; 2]) = (0x68, [0x00, 0x02]);
/// How many nanoseconds a step is: 32 ticks of the PCI bus at 30 ns.
const STEP_NS: u64 = 960;
/// The most steps that a stage can have.
const STEPS_MAX: u64 = 0xf_ffff;

/// The registers in memory: how long each stage is, and where a write to one of those is unlocked by two words.
const STAGES: [usize; 2] = [0x0, 0x4];
const RELOAD: usize = 0xc;
const UNLOCK: [u16; 2] = [0x80, 0x86];

/// The watchdog of this machine, found once and mapped: what it takes when it is wound is an instant of guest time.
static WATCHDOG: OnceLock<Watchdog> = OnceLock::new();

#[derive(Debug)]
struct Watchdog {
    config: File,
    /// The address of its registers in this process.
    registers: usize,
}

/// Finds the watchdog, for [`after`].
///
/// # Errors
/// There is none: the host gives it to machines in virtual time; or sysfs does not let its registers be mapped.
pub(crate) fn prepare() -> Result<()> {
    if WATCHDOG.get().is_none() {
        let watchdog = Watchdog::find().context("the watchdog i6300esb")?;
        // Somebody else's is as good.
        drop(WATCHDOG.set(watchdog));
    }
    Ok(())
}

/// Has the machine paused after this long, at most 2 s. To be called when nothing will be left to do by then: the guest is to
/// be idle.
///
/// # Errors
/// [`prepare`] has not been called, or the kernel refuses.
pub(crate) fn after(delay: Duration) -> Result<()> {
    let watchdog = WATCHDOG.get().context("the watchdog is not prepared")?;
    watchdog.wind(stages(delay)?).context("wind the watchdog")
}

/// The steps of both stages.
fn stages(delay: Duration) -> Result<[u32; 2]> {
    let steps = u64::try_from(delay.as_nanos())? / STEP_NS;
    let stages = [steps / 2, steps - steps / 2];
    ensure!(stages.iter().all(|steps| *steps <= STEPS_MAX), "{delay:?} is longer than a watchdog runs");
    let [first, second] = stages;
    Ok([u32::try_from(first)?, u32::try_from(second)?])
}

impl Watchdog {
    fn find() -> Result<Self> {
        let devices = fs::read_dir("/sys/bus/pci/devices").context("list /sys/bus/pci/devices")?;
        let mut paths = devices.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<PathBuf>>>()?;
        paths.sort();
        let path = paths.into_iter().find(|path| is_it(path)).context("no such device on the PCI bus")?;
        let open = |name: &str| {
            let path = path.join(name);
            let file = File::options().read(true).write(true).open(&path);
            file.with_context(|| format!("open {}", path.display()))
        };
        // Its first line is the memory's begin and end, which need not be a page's.
        let resource = fs::read_to_string(path.join("resource")).context("read its resources")?;
        let begin = resource.split_whitespace().next().and_then(|text| text.strip_prefix("0x"));
        let begin =
            usize::from_str_radix(begin.context("it has no memory")?, 16).context("where its memory is")?;
        let memory = open("resource0")?;
        #[expect(unsafe_code, reason = "a mapping can't be had otherwise")]
        // SAFETY: the kernel chooses the address; the memory is the device's, which nobody else has, and is mapped for good.
        let mapped = unsafe {
            mmap(
                ptr::null_mut(),
                4096,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                memory.as_fd(),
                0,
            )
        };
        let registers = mapped.context("map its registers")?.expose_provenance() + begin % 4096;
        Ok(Self { config: open("config")?, registers })
    }

    fn wind(&self, stages: [u32; 2]) -> Result<()> {
        let (lock, [off, on]) = LOCK;
        self.config.write_all_at(&[off], lock)?;
        let (config, how) = CONFIG;
        self.config.write_all_at(&how.to_le_bytes(), config)?;
        for (register, steps) in STAGES.into_iter().zip(stages) {
            for word in UNLOCK {
                self.write(RELOAD, word);
            }
            self.write(register, steps);
        }
        self.config.write_all_at(&[on], lock)?;
        Ok(())
    }

    fn write<T>(&self, register: usize, value: T) {
        #[expect(unsafe_code, reason = "a device's register is written")]
        // SAFETY: the register is in the page that `find` has mapped and aligned for its type, and no memory of ours.
        unsafe {
            ptr::with_exposed_provenance_mut::<T>(self.registers + register).write_volatile(value);
        }
    }
}

fn is_it(device: &Path) -> bool {
    IDENTITY.iter().all(|(name, value)| {
        fs::read_to_string(device.join(name)).is_ok_and(|text| text.trim_end() == *value)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delay_is_divided_between_the_stages() {
        assert_eq!(stages(Duration::from_micros(96)).expect("short"), [50, 50]);
        assert_eq!(stages(Duration::from_nanos(2900)).expect("odd"), [1, 2]);
        assert_eq!(
            stages(Duration::from_secs(2)).expect("the longest that is asked"),
            [1_041_666, 1_041_667]
        );
        assert!(stages(Duration::from_secs(3)).is_err());
    }
}
