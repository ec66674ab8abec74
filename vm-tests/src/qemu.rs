//! From a machine's configuration to QEMU's arguments: pure, so that a golden file can hold them.

use std::ffi::OsString;
use std::path::PathBuf;

use crate::accel::{Accel, Clock};

/// The file descriptor on which QEMU finds its end of the agent's channel.
pub const AGENT_FD: i32 = 3;
/// The file descriptor on which QEMU finds its end of QMP.
pub const QMP_FD: i32 = 4;

/// The guest's wall clock at boot in virtual time, and the seed of what QEMU hands the guest as random: both
/// fixed, since a host's time or entropy in the guest would make two runs differ.
const VIRTUAL_EPOCH: &str = "2026-01-01T00:00:00";

/// What a machine is made of.
#[derive(Debug, Clone)]
pub struct Config {
    /// KVM or emulation.
    pub accel: Accel,
    /// Real or virtual time.
    pub clock: Clock,
    /// Guest RAM.
    pub memory_mib: u32,
    /// bzImage or vmlinux.
    pub kernel: PathBuf,
    /// See [`crate::initramfs`].
    pub initramfs: PathBuf,
    /// The root file system, opened read-only.
    pub root: PathBuf,
    /// Where the serial console is kept.
    pub serial_log: PathBuf,
    /// More words for the kernel's command line.
    pub kernel_args: Vec<String>,
}

impl Config {
    /// The arguments after `qemu-system-x86_64`.
    #[must_use]
    pub fn argv(&self) -> Vec<OsString> {
        let mut argv = Argv::default();
        argv.flag("-nodefaults").flag("-no-user-config").flag("-no-reboot");
        argv.pair("-name", "left4me-vm").pair("-display", "none");
        // A panic stops the machine, so that what it was is still there to look at.
        argv.pair("-action", "panic=pause");
        argv.pair("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny");
        argv.pair("-machine", "q35,vmport=off,smm=off,hpet=off").pair("-smp", "1");
        argv.pair("-m", format!("{}M", self.memory_mib));
        match (self.accel, self.clock) {
            (Accel::Kvm, _) => argv.pair("-accel", "kvm").pair("-cpu", "host"),
            // One thread: the guest has one processor, and icount allows no more.
            (Accel::Tcg, Clock::Real) => {
                argv.pair("-accel", "tcg,thread=single").pair("-cpu", "max,la57=off")
            }
            (Accel::Tcg, Clock::Virtual) => argv
                .pair("-accel", "tcg,thread=single")
                .pair("-icount", "shift=0,sleep=off")
                // No instruction may bring the host's entropy in.
                .pair("-cpu", "max,la57=off,rdrand=off,rdseed=off")
                .pair("-seed", "1"),
        };
        match self.clock {
            Clock::Real => argv.pair("-rtc", "base=utc"),
            Clock::Virtual => argv.pair("-rtc", format!("base={VIRTUAL_EPOCH},clock=vm")),
        };
        argv.path("-kernel", "", &self.kernel, "").path("-initrd", "", &self.initramfs, "");
        argv.pair("-append", self.command_line());
        argv.path("-drive", "if=none,id=root,format=raw,readonly=on,file.locking=off,file=", &self.root, "");
        argv.pair("-device", "virtio-blk-pci,drive=root");
        argv.pair("-device", "virtio-serial-pci,max_ports=2");
        argv.pair("-chardev", format!("socket,id=agent,fd={AGENT_FD}"));
        argv.pair("-device", format!("virtserialport,chardev=agent,name={}", vm_agent::wire::PORT));
        argv.pair("-device", "pvpanic-pci");
        argv.path("-serial", "file:", &self.serial_log, "");
        argv.pair("-chardev", format!("socket,id=qmp,fd={QMP_FD}")).pair("-mon", "chardev=qmp,mode=control");
        argv.0
    }

    /// The kernel's command line.
    fn command_line(&self) -> String {
        let mut words: Vec<&str> = vec![
            "console=ttyS0",
            "loglevel=5",
            // After a panic has told QEMU, and where it can't: reboot at once, which -no-reboot makes an exit.
            "panic=-1",
            "oops=panic",
            "systemd.show_status=no",
            "systemd.firstboot=no",
            "systemd.hostname=guest",
            "systemd.machine_id=6c656674346d65000000000000000001",
        ];
        if self.clock == Clock::Virtual {
            // The TSC counts instructions here: it needs no watchdog, and there is no jitter to collect.
            words.extend(["tsc=reliable", "no_timer_check", "random.trust_cpu=off"]);
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

    /// A value with a path in it. QEMU splits option values at commas; a comma is written twice.
    fn path(&mut self, flag: &str, before: &str, path: &std::path::Path, after: &str) -> &mut Self {
        use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
        let mut bytes = before.as_bytes().to_vec();
        let splits = !before.is_empty() && !before.starts_with("file:");
        for byte in path.as_os_str().as_bytes() {
            bytes.push(*byte);
            if splits && *byte == b',' {
                bytes.push(b',');
            }
        }
        bytes.extend(after.as_bytes());
        self.pair(flag, OsString::from_vec(bytes))
    }
}
