//! What must hold on the machine that this runs on, where its kernel has what it is about and the user may ask for it. The
//! test `machine` calls these and counts what could not be tried.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::Path;

use rustix::io::Errno;

use crate::kernel::{mapped_file, mount_namespace_id, mounts_of};
use crate::mount::{Device, Mount};
use crate::namespace::{MountNamespace, listed};
use crate::unix_diag::{self, BoundSocket};

/// The kernel's list of mount namespaces has our own.
///
/// # Errors
/// Why it can't be tried here.
pub fn namespace_list() -> Result<(), &'static str> {
    match listed() {
        Err(Errno::NOTTY | Errno::PERM) => {
            return Err("no list of namespaces for this user or kernel");
        }
        listed => {
            let own = MountNamespace::of(std::process::id()).unwrap();
            assert!(listed.unwrap().contains(&own), "{own}");
        }
    }
    Ok(())
}

/// The kernel lists the same mounts by calls as by mountinfo.
///
/// # Errors
/// Why it can't be tried here.
pub fn mounts_by_namespace() -> Result<(), &'static str> {
    let own = File::open("/proc/self/ns/mnt").unwrap();
    let listed = mount_namespace_id(own.as_fd()).and_then(mounts_of);
    let mut listed = match listed {
        Err(Errno::NOSYS | Errno::NOTTY | Errno::INVAL | Errno::PERM | Errno::XDEV) => {
            return Err("this kernel lists no mounts by namespace id, or not to this user");
        }
        listed => listed.unwrap(),
    };
    let mut read = crate::mountinfo::read(std::process::id()).unwrap();
    let key = |mount: &Mount| {
        (
            mount.id,
            mount.parent,
            mount.device,
            mount.root.clone(),
            mount.mount_point.clone(),
            mount.propagation,
        )
    };
    listed.sort_by_key(|mount| mount.id);
    read.sort_by_key(|mount| mount.id);
    let read: Vec<_> = read.iter().map(key).collect();
    let listed: Vec<_> = listed.iter().map(key).filter(|mount| read.iter().any(|m| m.0 == mount.0)).collect();
    assert_eq!(listed, read);
    Ok(())
}

/// The kernel tells the mappings of this program one by one as it does by their text.
///
/// # Errors
/// Why it can't be tried here.
pub fn mappings() -> Result<(), &'static str> {
    let maps = File::open("/proc/self/maps").unwrap();
    let first = match mapped_file(maps.as_fd(), 0) {
        Err(Errno::NOTTY | Errno::INVAL) => {
            return Err("this kernel has no PROCMAP_QUERY");
        }
        first => first.unwrap().expect("a program is mapped"),
    };
    assert!(first.end > first.start && first.inode != 0);
    let text = std::fs::read_to_string("/proc/self/maps").unwrap();
    assert!(text.contains(&format!("{:x}-{:x}", first.start, first.end)), "{first:?}\n{text}");
    Ok(())
}

/// The kernel tells which sockets are bound to a file, here to one in this directory.
///
/// # Errors
/// Why it can't be tried here.
pub fn bound_sockets(directory: &Path) -> Result<(), &'static str> {
    let path = directory.join("socket");
    let bound = UnixListener::bind(&path).unwrap();
    let name = format!("holders-test-{}\n0: 2 0 0 1 1 7 /forged", std::process::id());
    let of_no_file = UnixListener::bind_addr(&SocketAddr::from_abstract_name(name).unwrap()).unwrap();
    let (unbound, _other) = UnixStream::pair().unwrap();
    let sockets = match unix_diag::bound_sockets() {
        Err(Errno::NOENT | Errno::AFNOSUPPORT) => {
            return Err("no unix_diag in this kernel, or not for this user");
        }
        sockets => sockets.unwrap(),
    };
    let inode = |socket: &dyn std::os::fd::AsFd| rustix::fs::fstat(socket.as_fd()).unwrap().st_ino;
    let device = rustix::fs::stat(directory).unwrap().st_dev;
    let device = Device { major: rustix::fs::major(device), minor: rustix::fs::minor(device) };
    assert_eq!(sockets.get(&inode(&bound)), Some(&BoundSocket { device, path }));
    assert_eq!(sockets.get(&inode(&of_no_file)), None);
    assert_eq!(sockets.get(&inode(&unbound)), None);
    Ok(())
}
