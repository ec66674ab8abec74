//! Finds and opens the virtio-serial port.
//!
//! By its name in sysfs and not by udev's link in `/dev/virtio-ports`: the agent starts before udev does.

use std::fs::{self, File, OpenOptions};
use std::path::Path;

use anyhow::{Context, Result, bail};

/// Opens the port whose name the host gave to its `virtserialport` device.
pub(crate) fn open(name: &str) -> Result<File> {
    const PORTS: &str = "/sys/class/virtio-ports";
    for entry in fs::read_dir(PORTS)
        .with_context(|| format!("read {PORTS}: has the machine a virtio-serial device?"))?
    {
        let entry = entry.with_context(|| format!("read {PORTS}"))?;
        let label = entry.path().join("name");
        if fs::read_to_string(&label).is_ok_and(|found| found.trim_end() == name) {
            let device = Path::new("/dev").join(entry.file_name());
            return OpenOptions::new()
                .read(true)
                .write(true)
                .open(&device)
                .with_context(|| format!("open {}", device.display()));
        }
    }
    bail!("no port named {name} in {PORTS}: start QEMU with -device virtserialport,name={name}")
}
