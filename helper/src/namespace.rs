//! Whether this process is where its mounts count: in the mount namespace of PID 1.

use std::fs;

use rustix::io::Errno;

use crate::error::HelperError;

/// Whether this process shares PID 1's mount namespace.
///
/// Two namespaces are the same if their inodes agree, while both are alive, as both are here (namespaces(7)). Numbers of
/// namespaces that are gone mean nothing: the kernel gives them out again. The text of the link has the number, and
/// reading it is half the work of a stat, for which the kernel makes the inode.
///
/// # Errors
/// `/proc` is not there, or PID 1 may not be read, which needs root.
pub fn is_pid1s() -> Result<bool, HelperError> {
    let identity = |path: &str| {
        fs::read_link(path).map_err(|error| {
            let source = Errno::from_io_error(&error).unwrap_or(Errno::IO);
            match source {
                Errno::ACCESS | Errno::PERM => HelperError::Pid1Hidden { path: path.into(), source },
                _ => HelperError::Call { call: "readlink", path: path.into(), source },
            }
        })
    };
    Ok(identity("/proc/self/ns/mnt")? == identity("/proc/1/ns/mnt")?)
}
