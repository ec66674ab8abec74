//! Puts files into the guest.

use std::fs::{self, OpenOptions, Permissions};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use vm_agent::wire::Put;

/// Writes one piece; the last one makes the file appear in place with its mode.
pub(crate) fn put(put: &Put) -> Result<()> {
    let path = Path::new(&put.path);
    ensure!(path.is_absolute(), "put {}: the path must be absolute", put.path);
    let partial = PathBuf::from(format!("{}.vm-put", put.path));
    if put.offset == 0 {
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).with_context(|| format!("create {}", parent.display()))?;
        }
        remove_if_there(&partial)?;
    }
    if put.symlink {
        let target =
            std::str::from_utf8(&put.bytes).with_context(|| format!("put {}: link target", put.path))?;
        symlink(target, &partial).with_context(|| format!("symlink {} -> {target}", partial.display()))?;
    } else {
        let file = OpenOptions::new()
            .write(true)
            .create(put.offset == 0)
            .mode(0o600)
            .open(&partial)
            .with_context(|| format!("open {}", partial.display()))?;
        file.write_all_at(&put.bytes, put.offset).with_context(|| format!("write {}", partial.display()))?;
        if put.last {
            file.set_permissions(Permissions::from_mode(put.mode))
                .with_context(|| format!("chmod {:o} {}", put.mode, partial.display()))?;
        }
    }
    if put.last {
        fs::rename(&partial, path)
            .with_context(|| format!("rename {} to {}", partial.display(), put.path))?;
    }
    Ok(())
}

fn remove_if_there(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", path.display()))
        }
        _ => Ok(()),
    }
}
