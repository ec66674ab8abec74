//! How a cycle is reset: by a command, or by the machine's shutdown. Here is what a shutdown is watched with; how the
//! machine then ends is `run/shutdown.rs`.
//!
//! The recorder sees a shutdown through `final.target`, which is there for "late services after all normal services are
//! already terminated and all mounts unmounted" (systemd.special(7)): a unit of ours waits there, so that systemd, its
//! journal and D-Bus can still be asked what they have left. Only then does PID 1 become systemd-shutdown, which kills what
//! is left and unmounts what is left.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error, SeqAccess, Unexpected, Visitor};

/// The word in a manifest for [`Reset::Shutdown`].
pub const SHUTDOWN: &str = "shutdown";

/// What ends a cycle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reset {
    /// A program and its arguments.
    Command(Vec<String>),
    /// The machine is shut down; it is over with all that systemd stops, before systemd-shutdown.
    Shutdown,
}

impl Reset {
    /// The command that the recorder runs.
    #[must_use]
    pub fn argv(&self) -> Vec<String> {
        match self {
            Self::Command(argv) => argv.clone(),
            // Not systemctl poweroff, which asks logind first, that may not be there. The job's mode is that of `systemctl
            // poweroff` (systemctl(1), --job-mode).
            Self::Shutdown => [
                "sh",
                "-c",
                "mkfifo -m 0600 /run/vm-test/stopped /run/vm-test/go &&
                 systemctl --no-block --job-mode=replace-irreversibly start poweroff.target &&
                 read word </run/vm-test/stopped",
            ]
            .map(str::to_owned)
            .to_vec(),
        }
    }

    /// The files that a machine gets for it, path and text.
    #[must_use]
    pub fn files(&self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Command(_) => &[],
            Self::Shutdown => &FILES,
        }
    }

    /// The commands of the set-up that make the files known.
    #[must_use]
    pub fn setup(&self) -> Vec<Vec<String>> {
        match self {
            Self::Command(_) => Vec::new(),
            Self::Shutdown => vec![
                ["chmod", "0755", LAST].map(str::to_owned).to_vec(),
                ["systemctl", "daemon-reload"].map(str::to_owned).to_vec(),
            ],
        }
    }
}

/// Lets a machine go on that waits at `final.target`, and has the kernel's console show all that systemd-shutdown says.
pub const GO_ON: [&str; 3] = ["sh", "-c", "echo 7 >/proc/sys/kernel/printk && echo go >/run/vm-test/go"];

/// The commands of the set-up that have the journal outlive its boot (journald.conf(5), `Storage=auto`).
pub const KEEP_THE_JOURNAL: [&[&str]; 2] = [&["mkdir", "-p", "/var/log/journal"], &["journalctl", "--flush"]];

/// systemd-shutdown runs it when it has unmounted what it could, just before it asks the kernel to power off
/// (systemd-shutdown(8)).
const LAST: &str = "/usr/lib/systemd/system-shutdown/vm-test";

const FILES: [(&str, &str); 6] = [
    (
        "/run/systemd/system/vm-test-stopped.service",
        "\
[Unit]
Description=VM harness: what systemd has left is looked at
DefaultDependencies=no
After=shutdown.target umount.target
Before=final.target

[Service]
Type=oneshot
ExecStart=sh -c 'echo stopped >/run/vm-test/stopped; read word </run/vm-test/go'
",
    ),
    (
        "/run/systemd/system/final.target.d/vm-test.conf",
        "[Unit]\nWants=vm-test-stopped.service\nAfter=vm-test-stopped.service\n",
    ),
    // It would be stopped with all others, at the moment that systemd chooses, and what becomes of the units after that
    // would be told to nobody.
    ("/run/systemd/system/dbus.service.d/vm-test.conf", "[Unit]\nDefaultDependencies=no\n"),
    ("/run/systemd/system/dbus.socket.d/vm-test.conf", "[Unit]\nDefaultDependencies=no\n"),
    // The kernel's own part says nothing of the units, and hangs: it flushes persistent memory, which the root is, after it
    // has reset the virtio device that would do it (seen with Linux 6.12, virtio_pmem_flush in nvdimm_bus_shutdown).
    (LAST, "#!/bin/sh\necho b >/proc/sysrq-trigger\n"),
    // 30 min after which power is cut; where the clock is virtual, a guest that waits for its host is there at once.
    ("/run/systemd/system/poweroff.target.d/vm-test.conf", "[Unit]\nJobTimeoutSec=infinity\n"),
];

impl<'de> Deserialize<'de> for Reset {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Words;

        impl<'de> Visitor<'de> for Words {
            type Value = Reset;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a list or {SHUTDOWN:?}")
            }

            fn visit_str<E: Error>(self, word: &str) -> Result<Reset, E> {
                match word {
                    SHUTDOWN => Ok(Reset::Shutdown),
                    text => Err(E::invalid_type(Unexpected::Str(text), &self)),
                }
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Reset, A::Error> {
                let mut argv = Vec::new();
                while let Some(word) = items.next_element()? {
                    argv.push(word);
                }
                Ok(Reset::Command(argv))
            }
        }
        // A list to whoever wants to know what may stand here.
        deserializer.deserialize_seq(Words)
    }
}
