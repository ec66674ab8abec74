//! From a machine's configuration to QEMU's arguments: pure, so that a golden file can hold them. And what a QEMU is
//! asked before.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use vm_agent::wire::{PAUSE, SEED};
use xshell::{Shell, cmd};

use crate::host::accel::{Accel, Clock};
use crate::host::process;
use crate::machine::still;

/// The file descriptor on which QEMU finds its end of the agent's channel.
pub const AGENT_FD: i32 = 3;
/// The file descriptor on which QEMU finds its end of QMP.
pub const QMP_FD: i32 = 4;
/// The file descriptor on which QEMU finds its end of the doorbell, the guest's second serial port.
pub const DOORBELL_FD: i32 = 5;

/// The guest's wall clock at boot in virtual time: a fixed one, since a host's would make two runs differ. Later than
/// the build of any systemd in use, which would set the clock forward to that.
const VIRTUAL_EPOCH: &str = "2027-01-01T00:00:00";

/// Everything that TCG emulates, without what only costs there: five-level page tables (a longer walk), virtualization
/// (would load kvm_amd in the guest), SMAP (each access to a program's memory ends two blocks of translated code), and
/// protection keys (each change of their register empties the TLB). Above all without the flags that promise a fast
/// `rep movsb`: TCG takes an instruction for each byte of it, and the kernel copies by words where they are missing
/// (`arch/x86/lib/copy_user_64.S`, `memcpy_64.S`).
const TCG_CPU: &str = "max,la57=off,svm=off,smap=off,pku=off,erms=off,fsrm=off";
/// The same promise in newer processors, as [`Abilities::fast_strings`].
const FAST_STRINGS: [&str; 3] = ["fsrs", "fzrm", "fsrc"];

/// The size of the device that brings a scenario's files in, in bytes: a restored machine must have what the saved
/// one had, whatever the scenario. The file behind it is sparse.
pub const DEPLOY_BYTES: u64 = 256 << 20;

/// What a persistent-memory device's size must be a multiple of (Linux: SUBSECTION_SIZE, 2 MiB on x86).
pub const PMEM_ALIGN: u64 = 2 << 20;

/// Where a machine's RAM is and where it comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ram {
    /// Boots; nothing is kept.
    Fresh,
    /// Boots with its RAM in this file, so that it can be saved.
    Saving(PathBuf),
    /// Starts paused and empty, waits for a saved state, and has a private copy-on-write mapping of this file.
    Restoring(PathBuf),
    /// As that, and what it writes is in the file, so that it can be saved again.
    Continuing(PathBuf),
}

/// What a QEMU can do that another one can't; probed, and not inferred from its version, which distributions patch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Abilities {
    /// `memory-backend-file` has `rom`: RAM can be a private, writable mapping of a file that is opened for reading only
    /// (QEMU 8.2 and newer). Without it the file of a saved machine has to be one that QEMU may write, and does not.
    pub private_readonly: bool,
    /// Its processors can have [`FAST_STRINGS`] (QEMU 8.1 and newer).
    pub fast_strings: bool,
    /// It loads a library that is named to ld.so, and so sees a clock of the host's that stands still (`machine/still.rs`).
    pub still_clock: bool,
}

impl Abilities {
    /// Asks a QEMU.
    ///
    /// # Errors
    /// If it can't be run.
    pub async fn ask(qemu: &Path) -> anyhow::Result<Self> {
        let shell = Shell::new()?;
        let backend = cmd!(shell, "{qemu} -object memory-backend-file,help").into();
        let processors = cmd!(shell, "{qemu} -cpu help").into();
        let deadline = Duration::from_secs(10);
        let still_clock = still::is_seen_by(qemu).await?;
        let backend = process::output(backend, deadline).await?.text();
        let processors = process::output(processors, deadline).await?.text();
        Ok(Self { still_clock, ..Self::parse(&backend, &processors) })
    }

    /// From the list of a memory backend's properties, one a line (`  rom=<OnOffAuto>  - …`), and that of the flags which
    /// processors can have, many a line.
    fn parse(backend: &str, processors: &str) -> Self {
        Self {
            private_readonly: backend.lines().any(|line| line.trim_start().starts_with("rom=")),
            fast_strings: FAST_STRINGS
                .iter()
                .all(|flag| processors.split_ascii_whitespace().any(|word| word == *flag)),
            still_clock: false,
        }
    }
}

/// What a machine is made of.
#[derive(Debug, Clone)]
pub struct Config {
    /// What its QEMU can do.
    pub abilities: Abilities,
    /// KVM or emulation.
    pub accel: Accel,
    /// Real or virtual time.
    pub clock: Clock,
    /// Guest RAM.
    pub memory_mib: u32,
    /// Where it is.
    pub ram: Ram,
    /// bzImage or vmlinux.
    pub kernel: PathBuf,
    /// See [`crate::image::initramfs`].
    pub initramfs: PathBuf,
    /// The root file system and its size in bytes, a multiple of [`PMEM_ALIGN`]; never written.
    pub root: (PathBuf, u64),
    /// What brings a scenario's files in, [`DEPLOY_BYTES`] long; never written, unless [`Config::keeps`].
    pub deploy: PathBuf,
    /// Whether the guest may write to `deploy`: a disk that outlives its machine. Any saved machine can be restored so, as
    /// the device is the same.
    pub keeps: bool,
    /// Where the serial console is kept.
    pub serial_log: PathBuf,
    /// More words for the kernel's command line.
    pub kernel_args: Vec<String>,
    /// All that is random in virtual time, in QEMU and in the guest, comes from this.
    pub seed: u64,
}

impl Config {
    /// The arguments after `qemu-system-x86_64`.
    #[must_use]
    pub fn argv(&self) -> Vec<OsString> {
        let mut argv = Argv::default();
        argv.flag("-nodefaults").flag("-no-user-config");
        argv.pair("-name", "vm-test").pair("-display", "none");
        // What ends the guest stops the machine, so that its event is told and what it was is still there to look at.
        let watchdog = if self.pauses_itself() { ",watchdog=pause" } else { "" };
        argv.pair("-action", format!("panic=pause,reboot=shutdown,shutdown=pause{watchdog}"));
        argv.pair("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny");
        let machine = "q35,vmport=off,smm=off,hpet=off";
        // Room for the two persistent-memory devices in the guest's address space.
        let memory = format!("{}M,slots=2,maxmem={}M", self.memory_mib, u64::from(self.memory_mib) + 4096);
        match &self.ram {
            Ram::Fresh => argv.pair("-machine", machine),
            Ram::Saving(file) | Ram::Continuing(file) => {
                argv.backend("ram", file, u64::from(self.memory_mib) << 20, "share=on")
            }
            // Private: any number of machines start from one file at once, and none changes it.
            Ram::Restoring(file) => {
                let how = match self.abilities.private_readonly {
                    true => "share=off,readonly=on,rom=off",
                    false => "share=off",
                };
                argv.backend("ram", file, u64::from(self.memory_mib) << 20, how)
            }
        };
        if self.ram != Ram::Fresh {
            argv.pair("-machine", format!("{machine},memory-backend=ram"));
        }
        if let Ram::Restoring(_) | Ram::Continuing(_) = self.ram {
            argv.pair("-incoming", "defer").flag("-S");
        }
        argv.pair("-m", memory).pair("-smp", "1");
        let mut cpu = TCG_CPU.to_owned();
        if self.abilities.fast_strings {
            cpu.extend(FAST_STRINGS.map(|flag| format!(",{flag}=off")));
        }
        match (self.accel, self.clock) {
            (Accel::Kvm, _) => argv.pair("-accel", "kvm").pair("-cpu", "host"),
            // One thread: the guest has one processor, and icount allows no more.
            (Accel::Tcg, Clock::Real) => argv.pair("-accel", "tcg,thread=single").pair("-cpu", cpu),
            (Accel::Tcg, Clock::Virtual) => argv
                .pair("-accel", "tcg,thread=single")
                .pair("-icount", "shift=0,sleep=off")
                // No instruction may bring the host's entropy in.
                .pair("-cpu", format!("{cpu},rdrand=off,rdseed=off"))
                .pair("-seed", self.seed.to_string()),
        };
        match self.clock {
            // A restored guest is told by the generation id to reseed its random numbers.
            Clock::Real => argv.pair("-rtc", "base=utc").pair("-device", "vmgenid,guid=auto"),
            Clock::Virtual => argv.pair("-rtc", format!("base={VIRTUAL_EPOCH},clock=vm")),
        };
        argv.path("-kernel", "", &self.kernel).path("-initrd", "", &self.initramfs);
        argv.pair("-append", self.command_line());
        // Persistent memory, not disks: a read is a copy within the guest, so no host decides when it completes.
        let (read, kept) = ("share=on,readonly=on", "share=on");
        for (id, file, size, how) in [
            ("root", &self.root.0, self.root.1, read),
            ("deploy", &self.deploy, DEPLOY_BYTES, if self.keeps { kept } else { read }),
        ] {
            argv.backend(id, file, size, how);
            argv.pair("-device", format!("virtio-pmem-pci,memdev={id}"));
        }
        // Without ioeventfd what the guest writes is taken when it says so, and not by another thread some time later.
        argv.pair("-device", "virtio-serial-pci,max_ports=2,ioeventfd=off");
        argv.pair("-chardev", format!("socket,id=agent,fd={AGENT_FD}"));
        argv.pair("-device", format!("virtserialport,chardev=agent,name={}", vm_agent::wire::PORT));
        argv.pair("-device", "pvpanic-pci");
        if self.pauses_itself() {
            argv.pair("-device", "i6300esb");
        }
        argv.path("-serial", "file:", &self.serial_log);
        argv.pair("-chardev", format!("socket,id=doorbell,fd={DOORBELL_FD}"));
        argv.pair("-serial", "chardev:doorbell");
        argv.pair("-chardev", format!("socket,id=qmp,fd={QMP_FD}")).pair("-mon", "chardev=qmp,mode=control");
        argv.0
    }

    /// Whether the guest has the machine paused when it is up (see [`PAUSE`]): one that is saved in virtual time. A restored
    /// machine has the same devices.
    #[must_use]
    pub fn pauses_itself(&self) -> bool {
        self.clock == Clock::Virtual && self.ram != Ram::Fresh
    }

    /// Whether QEMU sees a clock of the host's that stands still: where no time of the host's may get into the guest, if it can.
    #[must_use]
    pub fn has_a_still_clock(&self) -> bool {
        self.clock == Clock::Virtual && self.abilities.still_clock
    }

    /// The kernel's command line.
    fn command_line(&self) -> String {
        let seed = format!("{SEED}{}", self.seed);
        let mut words: Vec<&str> = vec![
            "console=ttyS0",
            "loglevel=5",
            // After a panic has told QEMU, and where it can't: reboot at once, which QEMU is told to take for a shutdown.
            "panic=-1",
            "oops=panic",
            // Self-tests and speculation barriers cost a boot seconds and protect nobody here.
            "mitigations=off",
            "nokaslr",
            // Programs at the same addresses every time: an emulator translates their code once, not at every exec.
            "norandmaps",
            // Hardening and accounting that each page fault and each allocation pay for.
            "init_on_alloc=0",
            "hardened_usercopy=off",
            "cgroup.memory=nokmem",
            "psi=0",
            "cryptomgr.notests=1",
            "initcall_blacklist=jent_mod_init,load_system_certificate_list,init_encrypted",
            "audit=0",
            // Debian's, without bpf, whose start is slow under emulation.
            "lsm=landlock,lockdown,yama,integrity,apparmor",
            "systemd.show_status=no",
            "systemd.condition_needs_update=no",
            "systemd.firstboot=no",
            "systemd.hostname=guest",
            "systemd.machine_id=6c656674346d65000000000000000001",
        ];
        if self.clock == Clock::Virtual {
            // The TSC counts instructions here: it needs no watchdog, and there is no jitter to collect.
            words.extend(["tsc=reliable", "no_timer_check", "random.trust_cpu=off"]);
            words.push(&seed);
        } else {
            // It panics if a timer of its own host comes late (check_timer of arch/x86/kernel/apic/io_apic.c: "IO-APIC + timer doesn't
            // work!"), which it does on a busy one, seen in a boot after a power cut. Under KVM the kernel leaves it out by itself.
            words.push("no_timer_check");
            // A host that has no time for the machine for a second is told as the TSC's fault otherwise, by a warning that no scenario
            // expects (clocksource_watchdog of kernel/time/clocksource.c: "Long readout interval").
            words.push("tsc=nowatchdog");
        }
        if self.pauses_itself() {
            words.push(PAUSE);
        }
        words.extend(self.kernel_args.iter().map(String::as_str));
        words.join(" ")
    }
}

#[derive(Default)]
struct Argv(Vec<OsString>);

impl Argv {
    fn flag(&mut self, flag: &str) -> &mut Self {
        self.0.push(flag.into());
        self
    }

    fn pair(&mut self, flag: &str, value: impl Into<OsString>) -> &mut Self {
        self.0.extend([flag.into(), value.into()]);
        self
    }

    /// RAM that is a file.
    fn backend(&mut self, id: &str, file: &Path, size: u64, how: &str) -> &mut Self {
        let before = format!("memory-backend-file,id={id},size={size},{how},mem-path=");
        self.path("-object", &before, file)
    }

    /// A value that ends in a path. QEMU splits the values of options with properties at commas, and takes two for
    /// one.
    fn path(&mut self, flag: &str, before: &str, path: &Path) -> &mut Self {
        use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
        let mut bytes = before.as_bytes().to_vec();
        let splits = before.contains('=');
        for byte in path.as_os_str().as_bytes() {
            bytes.push(*byte);
            if splits && *byte == b',' {
                bytes.push(b',');
            }
        }
        self.pair(flag, OsString::from_vec(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(accel: Accel, clock: Clock, ram: Ram) -> Config {
        Config {
            abilities: Abilities::default(),
            accel,
            clock,
            memory_mib: 512,
            ram,
            kernel: "/cache/vmlinuz".into(),
            initramfs: "/cache/initramfs.img".into(),
            root: ("/cache/a,b/root.squashfs".into(), 160 << 20),
            deploy: "/run/deploy.img".into(),
            keeps: false,
            serial_log: "/run/serial.log".into(),
            kernel_args: vec!["quiet".into()],
            seed: 1,
        }
    }

    #[test]
    fn abilities_are_read_from_the_lists() {
        let list = |last: &str| format!("memory-backend-file options:\n  readonly=<bool>\n  {last}\n");
        let rom = list("rom=<OnOffAuto>        - Whether to create Read Only Memory (ROM)");
        let flags = "Recognized CPUID flags:\n  fsgsbase fsrc fsrm\n  fsrs fzrm\n";
        let abilities =
            |private_readonly, fast_strings| Abilities { private_readonly, fast_strings, still_clock: false };
        assert_eq!(Abilities::parse(&rom, flags), abilities(true, true));
        assert_eq!(Abilities::parse(&list("prom=<bool>"), "  fsrc fsrm fsrs\n"), abilities(false, false));
    }

    #[test]
    fn arguments() {
        let golden = |accel, clock, ram| {
            let argv = config(accel, clock, ram).argv();
            let words: Vec<_> = argv.iter().map(|word| word.to_string_lossy().into_owned()).collect();
            // One option a line, so that a difference is a line.
            words.join(" ").replace(" -", "\n-")
        };
        insta::assert_snapshot!(
            "tcg-virtual-saving",
            golden(Accel::Tcg, Clock::Virtual, Ram::Saving("/saved/ram".into()))
        );
        insta::assert_snapshot!(
            "tcg-real-restoring",
            golden(Accel::Tcg, Clock::Real, Ram::Restoring("/saved/ram".into()))
        );
        let able = Config {
            abilities: Abilities { private_readonly: true, fast_strings: true, still_clock: true },
            ..config(Accel::Tcg, Clock::Virtual, Ram::Restoring("/saved/ram".into()))
        };
        let argv: Vec<_> = able.argv().iter().map(|word| word.to_string_lossy().into_owned()).collect();
        assert!(argv.join(" ").contains("size=536870912,share=off,readonly=on,rom=off,mem-path=/saved/ram"));
        assert!(argv.join(" ").contains(",fsrm=off,fsrs=off,fzrm=off,fsrc=off,rdrand=off"));
        let continuing = Config { ram: Ram::Continuing("/saved/ram".into()), ..able.clone() }.argv();
        let differs = continuing.iter().zip(&argv).filter(|(one, other)| &&*one.to_string_lossy() != other);
        assert_eq!(differs.count(), 1, "its RAM is shared, and no more");
        let keeps = Config { keeps: true, ..able }.argv();
        let keeps: Vec<_> = keeps.iter().map(|word| word.to_string_lossy().into_owned()).collect();
        let differ: Vec<_> = keeps.iter().zip(&argv).filter(|(one, other)| one != other).collect();
        assert_eq!(differ.len(), 1, "{differ:?}");
        assert!(keeps.join(" ").contains("id=deploy,size=268435456,share=on,mem-path=/run/deploy.img"));
        insta::assert_snapshot!("kvm-real-fresh", golden(Accel::Kvm, Clock::Real, Ram::Fresh));
    }
}
