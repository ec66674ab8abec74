//! The initramfs: our own init, the few modules it loads, and what it brings into the machine's `/run`.
//!
//! The same inputs give the same bytes (no times, no directory order), so its hash can be a key of a saved machine.
//! It is not compressed: decompressing is slow in a guest under emulation, and disk space is cheap.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::image::kernel;

/// The modules a machine needs before its root is there, and what later code relies on. `overlay` is the file
/// system under test and the machine's own root; `brd` gives the RAM disk for state directories.
const MODULES: [(&str, &str); 10] = [
    // Built into newer kernels, modules in bookworm's.
    ("virtio_pci", ""),
    ("virtio_console", ""),
    ("ext4", ""),
    ("nd_pmem", ""),
    ("virtio_pmem", ""),
    ("squashfs", ""),
    ("overlay", ""),
    // Pages are taken when written, so the size costs nothing: 1 GiB of KiB blocks.
    ("brd", "rd_nr=1 rd_size=1048576 max_part=0"),
    // systemd's first act is to load it; it is unpacked here.
    ("autofs4", ""),
    // Tells QEMU of a panic (GUEST_PANICKED).
    ("pvpanic-pci", ""),
];

/// Where the agent lies in the machine.
pub const AGENT: &str = "/run/vm-test/vm-agent";

const AGENT_UNIT: &str = "\
[Unit]
Description=VM harness agent
DefaultDependencies=no

[Service]
Type=exec
ExecStart=/run/vm-test/vm-agent
# What the agent starts is the host's to end, not systemd's.
KillMode=process
OOMScoreAdjust=-1000
LimitNOFILE=65536
";

/// Units that are left out, since a machine without network, terminals, disks of its own, firmware variables or a next
/// day has no use for them. A unit that an older or newer systemd lacks is masked in vain, which does no harm.
const MASKED: [&str; 46] = [
    // Terminals, and questions to a person at one.
    "getty.target",
    "getty-static.service",
    "getty@.service",
    "serial-getty@.service",
    "systemd-ask-password-console.path",
    "systemd-ask-password-wall.path",
    // Logins. logind has systemd tell the bus of every change of every unit.
    "systemd-logind.service",
    "systemd-user-sessions.service",
    // A next day, or a next boot.
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "fstrim.timer",
    "systemd-tmpfiles-clean.timer",
    "e2scrub_reap.service",
    "systemd-random-seed.service",
    "systemd-pstore.service",
    "systemd-machine-id-commit.service",
    "systemd-hibernate-clear.service",
    // An image that changed under its host: ours is made whole. (ConditionNeedsUpdate= would run them.)
    "ldconfig.service",
    "systemd-hwdb-update.service",
    "systemd-journal-catalog-update.service",
    "systemd-update-done.service",
    "systemd-firstboot.service",
    // A TPM, and measurements into it.
    "systemd-pcrmachine.service",
    "systemd-pcrphase.service",
    "systemd-pcrphase-sysinit.service",
    "systemd-pcrextend.socket",
    "systemd-pcrlock.socket",
    "systemd-tpm2-setup-early.service",
    "systemd-tpm2-setup.service",
    // Network, and what serves other machines or users.
    "systemd-networkd.service",
    "systemd-networkd.socket",
    "systemd-creds.socket",
    "systemd-hostnamed.socket",
    "systemd-sysext.socket",
    "remote-fs.target",
    // Foreign binaries, and modules that nobody here names.
    "proc-sys-fs-binfmt_misc.automount",
    "systemd-binfmt.service",
    "sys-fs-fuse-connections.mount",
    "sys-kernel-config.mount",
    "modprobe@configfs.service",
    "modprobe@drm.service",
    "modprobe@efi_pstore.service",
    "modprobe@fuse.service",
    "dev-hugepages.mount",
];

/// Generators that search for what is not there: each is a program that boot and every daemon-reload run.
const MASKED_GENERATORS: [&str; 13] = [
    "systemd-bless-boot-generator",
    "systemd-cryptsetup-generator",
    "systemd-debug-generator",
    "systemd-fstab-generator",
    "systemd-getty-generator",
    "systemd-gpt-auto-generator",
    "systemd-hibernate-resume-generator",
    "systemd-rc-local-generator",
    "systemd-ssh-generator",
    "systemd-system-update-generator",
    "systemd-sysv-generator",
    "systemd-tpm2-generator",
    "systemd-veritysetup-generator",
];

/// udev's coldplug, of what a unit could wait for; all devices are some hundred processes' worth of rules.
const UDEV_TRIGGER: &str = "\
[Service]
ExecStart=
ExecStart=-udevadm trigger --type=devices --action=add --subsystem-match=block --subsystem-match=net --subsystem-match=virtio-ports
";

/// A directory comes before what is in it.
const DIRECTORIES: [&str; 9] = [
    "dev",
    "modules",
    "vm",
    "vm/vm-test",
    "vm/systemd",
    "vm/systemd/system",
    "vm/systemd/system/sysinit.target.wants",
    "vm/systemd/system/systemd-udev-trigger.service.d",
    "vm/systemd/system-generators",
];

/// Writes the initramfs for a kernel whose modules lie in `modules` (the directory with `modules.dep`).
///
/// # Errors
/// When a module is neither there nor built in, or a file can't be read.
pub fn write(out: &mut impl Write, modules: &Path, init: &Path, agent: &Path) -> Result<()> {
    let read = |name: &str| {
        let path = modules.join(name);
        std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
    };
    let wanted: Vec<&str> = MODULES.iter().map(|(name, _)| *name).collect();
    let order = load_order(&read("modules.dep")?, &read("modules.builtin")?, &wanted)?;

    let mut archive = Archive { out, inode: 1 };
    for directory in DIRECTORIES {
        archive.directory(directory)?;
    }
    archive.file("init", 0o755, &read_bytes(init)?)?;
    for (index, path) in order.iter().enumerate() {
        let file = path.rsplit('/').next().unwrap_or(path);
        let mut module = read_bytes(&modules.join(path))?;
        // Others than xz the guest's kernel unpacks itself.
        let file = match file.strip_suffix(".xz") {
            Some(plain) => {
                module = kernel::unxz(&module).with_context(|| format!("unpack {path}"))?;
                plain
            }
            None => file,
        };
        let name = format!("modules/{index:02}-{file}");
        archive.file(&name, 0o644, &module)?;
        let parameters = MODULES.iter().find(|(module, _)| module_name(path) == module_name(module));
        if let Some((_, parameters)) = parameters.filter(|(_, parameters)| !parameters.is_empty()) {
            archive.file(&format!("{name}.parameters"), 0o644, parameters.as_bytes())?;
        }
    }
    archive.file("vm/vm-test/vm-agent", 0o755, &read_bytes(agent)?)?;
    archive.file("vm/systemd/system/vm-agent.service", 0o644, AGENT_UNIT.as_bytes())?;
    archive.link("vm/systemd/system/sysinit.target.wants/vm-agent.service", "../vm-agent.service")?;
    let trigger = "vm/systemd/system/systemd-udev-trigger.service.d/vm-test.conf";
    archive.file(trigger, 0o644, UDEV_TRIGGER.as_bytes())?;
    for unit in MASKED {
        archive.link(&format!("vm/systemd/system/{unit}"), "/dev/null")?;
    }
    for generator in MASKED_GENERATORS {
        archive.link(&format!("vm/systemd/system-generators/{generator}"), "/dev/null")?;
    }
    archive.end()
}

fn read_bytes(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("read {}", path.display()))
}

/// The name of the module in a path: `kernel/drivers/block/virtio_blk.ko.xz` is `virtio_blk`, and `-` is `_`.
fn module_name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split(".ko").next().unwrap_or(file).replace('-', "_")
}

/// The paths of `wanted` and all they depend on, dependencies first; what is built in is left out.
fn load_order(dep: &str, builtin: &str, wanted: &[&str]) -> Result<Vec<String>> {
    let builtin: Vec<String> = builtin.lines().map(module_name).collect();
    let mut known = BTreeMap::new();
    for line in dep.lines() {
        if let Some((path, needs)) = line.split_once(':') {
            known.insert(module_name(path), (path, needs.split_whitespace().collect::<Vec<_>>()));
        }
    }
    let mut order: Vec<String> = Vec::new();
    for name in wanted {
        let name = module_name(name);
        match known.get(&name) {
            // modules.dep lists all that a module needs, each before what it needs itself.
            Some((path, needs)) => {
                for path in needs.iter().rev().chain([path]) {
                    if !order.iter().any(|listed| listed == path) {
                        order.push((*path).to_owned());
                    }
                }
            }
            None if builtin.contains(&name) => (),
            None => bail!("the guest's kernel has no module {name}, neither in modules.dep nor built in"),
        }
    }
    Ok(order)
}

/// A cpio archive in the form `newc` (kernel: Documentation/driver-api/early-userspace/buffer-format.rst).
struct Archive<'a, W: Write> {
    out: &'a mut W,
    inode: u32,
}

impl<W: Write> Archive<'_, W> {
    fn directory(&mut self, name: &str) -> Result<()> {
        self.entry(name, 0o040_755, &[])
    }

    fn file(&mut self, name: &str, mode: u32, bytes: &[u8]) -> Result<()> {
        self.entry(name, 0o100_000 | mode, bytes)
    }

    fn link(&mut self, name: &str, target: &str) -> Result<()> {
        self.entry(name, 0o120_777, target.as_bytes())
    }

    fn entry(&mut self, name: &str, mode: u32, bytes: &[u8]) -> Result<()> {
        let size = u32::try_from(bytes.len()).with_context(|| format!("{name} is over 4 GiB"))?;
        let builder = cpio::newc::Builder::new(name).ino(self.inode).mode(mode).nlink(1);
        self.inode += 1;
        let mut writer = builder.write(&mut *self.out, size);
        writer
            .write_all(bytes)
            .and_then(|()| writer.finish().map(|_out| ()))
            .with_context(|| format!("write {name} to the initramfs"))
    }

    fn end(self) -> Result<()> {
        cpio::newc::trailer(self.out).map(|_out| ()).context("end the initramfs")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEP: &str = "\
kernel/drivers/block/virtio_blk.ko.xz:
kernel/drivers/misc/pvpanic/pvpanic-pci.ko.xz: kernel/drivers/misc/pvpanic/pvpanic.ko.xz
kernel/drivers/misc/pvpanic/pvpanic.ko.xz:
kernel/fs/top.ko: kernel/fs/middle.ko kernel/fs/bottom.ko
kernel/fs/middle.ko: kernel/fs/bottom.ko
kernel/fs/bottom.ko:
";

    #[test]
    fn dependencies_come_first_and_once() {
        let order = load_order(DEP, "kernel/fs/ext4/ext4.ko\n", &["pvpanic-pci", "top", "ext4", "middle"]);
        let names: Vec<_> = order.expect("order").iter().map(|path| module_name(path)).collect();
        assert_eq!(names, ["pvpanic", "pvpanic_pci", "bottom", "middle", "top"]);
    }

    #[test]
    fn a_missing_module_is_named() {
        let error = load_order(DEP, "", &["erofs"]).expect_err("erofs is not there");
        assert!(error.to_string().contains("erofs"), "{error}");
    }

    #[test]
    fn the_same_inputs_give_the_same_bytes() {
        let directory = tempfile::tempdir().expect("tempdir");
        let at = |name: &str| directory.path().join(name);
        let files = MODULES.map(|(name, _)| format!("{name}.ko:\n")).concat();
        for (name, text) in
            [("modules.dep", files.as_str()), ("modules.builtin", ""), ("init", "i"), ("agent", "a")]
        {
            std::fs::write(at(name), text).expect(name);
        }
        for (name, _) in MODULES {
            std::fs::write(at(&format!("{name}.ko")), name).expect(name);
        }
        let bytes = || {
            let mut out = Vec::new();
            write(&mut out, directory.path(), &at("init"), &at("agent")).expect("initramfs");
            out
        };
        assert_eq!(bytes(), bytes());
        let text = String::from_utf8_lossy(&bytes()).into_owned();
        for expected in ["modules/06-overlay.ko", "rd_nr=1", "vm/systemd/system/getty.target", "TRAILER!!!"] {
            assert!(text.contains(expected), "{expected}");
        }
    }
}
