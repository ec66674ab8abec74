//! PID 1 of the initramfs: loads modules, puts a tmpfs over the read-only root, brings in the agent and its
//! unit, and switches root to the real init.
//!
//! The root file system stays as it is: what the harness adds lies in `/run`, which systemd keeps when it is a
//! mount already (systemd(1), "mount points set up by the initrd"). Everything is synchronous: a driver's
//! module init has probed its PCI device when finit_module returns.

use std::ffi::{CStr, CString};
use std::fs::{self, File};
use std::io::Write as _;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::symlink;
use std::path::Path;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};
use nix::libc;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
};
use nix::unistd::execv;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::mount::{MountFlags, mount, mount_move};
use rustix::process::{chdir, chroot};
use vm_agent::wire::{DEPLOY_DEVICE, KEPT, SEED, WRITES};

/// Root file systems that are tried, in this order.
const ROOT_TYPES: [&str; 4] = ["squashfs", "erofs", "ext4", "btrfs"];

/// `MODULE_INIT_COMPRESSED_FILE` of linux/module.h, which the nix crate lacks: the kernel decompresses
/// (CONFIG_MODULE_DECOMPRESS, in Debian since 6.6; older kernels come with plain modules).
const INIT_COMPRESSED_FILE: u32 = 4;

/// Of guest time; it takes a few milliseconds.
const DEVICE_DEADLINE: Timespec = Timespec { tv_sec: 30, tv_nsec: 0 };

fn main() {
    let Err(error) = boot();
    // Only the serial console can show the error; ending PID 1 panics the kernel, which the host sees at once.
    let text = format!("vm-init: {error:#}\n");
    let written = File::options()
        .write(true)
        .open("/dev/console")
        .and_then(|mut console| console.write_all(text.as_bytes()));
    drop(written);
}

fn boot() -> Result<std::convert::Infallible> {
    for (kind, at) in [("devtmpfs", "/dev"), ("proc", "/proc"), ("sysfs", "/sys")] {
        mount_new(kind, kind, at, MountFlags::empty(), None)?;
    }
    credit_entropy()?;
    load_modules()?;
    wait_for_device("pmem0")?;
    mount_root("/dev/pmem0", "/new")?;
    bring_in("/vm", "/new/run")?;
    let writes = format!("/new{WRITES}");
    fs::create_dir_all(&writes).with_context(|| format!("create {writes}"))?;
    mount_move("/writes", &writes).with_context(|| format!("move /writes to {writes}"))?;
    for at in ["/dev", "/proc", "/sys"] {
        let to = format!("/new{at}");
        mount_move(at, &to).with_context(|| format!("move {at} to {to}"))?;
    }
    switch_root("/new")
}

/// Gives the kernel's random number generator a fixed seed where the host gives it a number, on the command line: in
/// virtual time nothing random may come in, and without a seed the kernel would run in circles for a second of guest time
/// to make one of its own (drivers/char/random.c:try_to_generate_entropy).
fn credit_entropy() -> Result<()> {
    let line = command_line()?;
    let Some(number) = line.split_whitespace().find_map(|word| word.strip_prefix(SEED)) else {
        return Ok(());
    };
    let number: u64 = number.parse().with_context(|| format!("{SEED}{number}"))?;
    let mut seed = [0; 32];
    seed.as_chunks_mut().0.fill(number.to_le_bytes());
    let seed = Seed { bits: 256, bytes: 32, seed };
    let random = File::options().write(true).open("/dev/random").context("open /dev/random")?;
    #[expect(unsafe_code, reason = "no crate has a safe call for RNDADDENTROPY")]
    // SAFETY: the descriptor is open, and the kernel reads a `rand_pool_info` and the 32 bytes behind it.
    unsafe { rndaddentropy(random.as_raw_fd(), (&raw const seed).cast()) }.context("RNDADDENTROPY")?;
    Ok(())
}

fn command_line() -> Result<String> {
    fs::read_to_string("/proc/cmdline").context("read /proc/cmdline")
}

/// `struct rand_pool_info` of linux/random.h with its buffer.
#[repr(C)]
struct Seed {
    bits: libc::c_int,
    bytes: libc::c_int,
    seed: [u8; 32],
}

nix::ioctl_write_ptr!(
    /// `RNDADDENTROPY` of linux/random.h: its type is the header of `rand_pool_info`, two ints.
    rndaddentropy, b'R', 0x03, [libc::c_int; 2]
);

fn mount_new(source: &str, kind: &str, at: &str, flags: MountFlags, data: Option<&CStr>) -> Result<()> {
    fs::create_dir_all(at).with_context(|| format!("create {at}"))?;
    mount(source, at, kind, flags, data).with_context(|| format!("mount {kind} at {at}"))
}

/// Loads `/modules/<nn>-<name>.ko[.xz|.zst]` in the order of their names, with the parameters that stand in
/// `<file>.parameters` beside it.
fn load_modules() -> Result<()> {
    let mut modules: Vec<_> = fs::read_dir("/modules")
        .context("read /modules")?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<std::io::Result<_>>()
        .context("read /modules")?;
    modules.retain(|path| path.extension().is_none_or(|extension| extension != "parameters"));
    modules.sort();
    for path in modules {
        let plain = path.extension().is_some_and(|extension| extension == "ko");
        let flags = if plain { 0 } else { INIT_COMPRESSED_FILE };
        let parameters = fs::read_to_string(format!("{}.parameters", path.display())).unwrap_or_default();
        let parameters = CString::new(parameters.trim()).context("module parameters")?;
        let file = File::open(&path).with_context(|| format!("open {}", path.display()))?;
        finit_module(&file, &parameters, ModuleInitFlags::from_bits_retain(flags))
            .with_context(|| format!("load {}", path.display()))?;
    }
    Ok(())
}

/// A virtio-pmem device becomes a block device in a thread of the kernel's own (nd_async_device_register), so this one can be late.
/// Its node comes before the disk can be opened (block/genhd.c:device_add_disk), and its uevent when it can.
fn wait_for_device(name: &str) -> Result<()> {
    let events = uevents().context("listen to the kernel's uevents")?;
    let device = Path::new("/dev").join(name);
    let what = || format!("open {}", device.display());
    while let Err(error) = File::open(&device) {
        if !matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENXIO | libc::ENODEV)) {
            return Err(error).with_context(what);
        }
        let mut polled = [PollFd::new(&events, PollFlags::IN)];
        if poll(&mut polled, Some(&DEVICE_DEADLINE)).context("poll uevents")? == 0 {
            let limit = DEVICE_DEADLINE.tv_sec;
            return Err(error)
                .with_context(what)
                .with_context(|| format!("no disk after {limit} s: has the machine a virtio-pmem device?"));
        }
        match recv(events.as_raw_fd(), &mut [0; 4096], MsgFlags::empty()) {
            // Some were lost, and all that is wanted of any is to look again.
            Ok(_) | Err(Errno::ENOBUFS) => {}
            Err(error) => return Err(error).context("read uevents"),
        }
    }
    Ok(())
}

/// What the kernel says of devices (netlink(7), NETLINK_KOBJECT_UEVENT): its own group, 1.
fn uevents() -> nix::Result<OwnedFd> {
    let protocol = SockProtocol::NetlinkKObjectUEvent;
    let events = socket(AddressFamily::Netlink, SockType::Datagram, SockFlag::SOCK_CLOEXEC, protocol)?;
    bind(events.as_raw_fd(), &NetlinkAddr::new(0, 1))?;
    Ok(events)
}

/// A tmpfs over the read-only root: the machine may write anywhere and the image stays what it is. With [`KEPT`] it is what
/// another machine has written.
fn mount_root(device: &str, at: &str) -> Result<()> {
    fs::create_dir_all("/lower").context("create /lower")?;
    let mounted =
        ROOT_TYPES.iter().any(|kind| mount(device, "/lower", *kind, MountFlags::RDONLY, None).is_ok());
    if !mounted {
        bail!("mount {device}: it holds none of {ROOT_TYPES:?}, or the kernel lacks the module");
    }
    if command_line()?.split_whitespace().any(|word| word == KEPT) {
        let name = DEPLOY_DEVICE.trim_start_matches("/dev/");
        wait_for_device(name)?;
        // No barriers: to flush the device takes the host, for which a guest in virtual time waits for ever.
        mount_new(DEPLOY_DEVICE, "ext4", "/writes", MountFlags::empty(), Some(c"barrier=0"))?;
    } else {
        mount_new("tmpfs", "tmpfs", "/writes", MountFlags::empty(), Some(c"mode=0755"))?;
    }
    for directory in ["/writes/upper", "/writes/work"] {
        fs::create_dir_all(directory).with_context(|| format!("create {directory}"))?;
    }
    let layers = c"lowerdir=/lower,upperdir=/writes/upper,workdir=/writes/work";
    mount_new("overlay", "overlay", at, MountFlags::empty(), Some(layers))
}

/// Copies the tree `/vm` into the new root's `/run`, a tmpfs that systemd takes over.
fn bring_in(from: &str, to: &str) -> Result<()> {
    mount_new("tmpfs", "tmpfs", to, MountFlags::NOSUID | MountFlags::NODEV, Some(c"mode=0755"))?;
    copy_tree(Path::new(from), Path::new(to))
}

fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    for entry in fs::read_dir(from).with_context(|| format!("read {}", from.display()))? {
        let entry = entry.with_context(|| format!("read {}", from.display()))?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type().with_context(|| format!("stat {}", source.display()))?;
        let copied = if kind.is_dir() {
            fs::create_dir_all(&target).with_context(|| format!("create {}", target.display()))?;
            copy_tree(&source, &target)?;
            continue;
        } else if kind.is_symlink() {
            fs::read_link(&source).and_then(|link| symlink(link, &target))
        } else {
            fs::copy(&source, &target).map(|_length| ())
        };
        copied.with_context(|| format!("copy {} to {}", source.display(), target.display()))?;
    }
    Ok(())
}

fn switch_root(root: &str) -> Result<std::convert::Infallible> {
    chdir(root).with_context(|| format!("enter {root}"))?;
    mount_move(".", "/").context("move the new root to /")?;
    chroot(".").context("chroot to the new root")?;
    chdir("/").context("enter the new root")?;
    for init in ["/sbin/init", "/usr/lib/systemd/systemd", "/init"] {
        // A link that is absolute in the new root (NixOS) resolves now, after chroot.
        if Path::new(init).exists() {
            let path = CString::new(init).context("init's path")?;
            let infallible = execv(&path, &[&path]).with_context(|| format!("exec {init}"))?;
            return Ok(infallible);
        }
    }
    bail!("the root file system has no /sbin/init")
}
