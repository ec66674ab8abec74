//! References that no process has, as far as the kernel tells of them: loop devices, swap files, binfmt_misc's
//! fixed interpreters, overlay layers.
//!
//! What these files show is text: a path as seen from the reader's root directory, or as the one who set it up
//! wrote it. None says which mount it is on.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use crate::mountinfo::{self, Mount};
use crate::report::KernelKind;

/// A file that the kernel holds open by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct KernelFile {
    pub(crate) kind: KernelKind,
    pub(crate) path: PathBuf,
}

/// All of them. `mounts` is the caller's mount table. What is not there or may not be read is left out.
pub(crate) fn kernel_files(mounts: &[Mount]) -> Vec<KernelFile> {
    let mut files = loop_devices();
    files.extend(fs::read("/proc/swaps").map(|table| swap_files(&table)).unwrap_or_default());
    // Only where it is mounted: systemd's automount would mount it for us.
    let binfmt = Path::new("/proc/sys/fs/binfmt_misc");
    if mounts.iter().any(|mount| mount.fstype == "binfmt_misc" && mount.mount_point == binfmt) {
        files.extend(interpreters(binfmt));
    }
    files.extend(mounts.iter().filter(|mount| mount.fstype == "overlay").flat_map(layers));
    files
}

fn loop_devices() -> Vec<KernelFile> {
    let Ok(devices) = fs::read_dir("/sys/block") else { return Vec::new() };
    devices
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok().filter(|name| name.starts_with("loop"))?;
            // Not there while the device has no file.
            let text = fs::read(entry.path().join("loop/backing_file")).ok()?;
            let path = text.strip_suffix(b"\n").unwrap_or(&text).to_vec();
            Some(KernelFile { kind: KernelKind::Loop(name), path: OsString::from_vec(path).into() })
        })
        .collect()
}

/// Reads `/proc/swaps`: a head line, then a path with the kernel's octal escapes, and its type.
pub(crate) fn swap_files(table: &[u8]) -> Vec<KernelFile> {
    table
        .split(|&byte| byte == b'\n')
        .skip(1)
        .filter_map(|line| {
            let mut fields = line.split(u8::is_ascii_whitespace).filter(|field| !field.is_empty());
            let (path, kind) = (fields.next()?, fields.next()?);
            (kind == b"file").then(|| KernelFile { kind: KernelKind::Swap, path: mountinfo::path(path) })
        })
        .collect()
}

fn interpreters(directory: &Path) -> Vec<KernelFile> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            if name == "register" || name == "status" {
                return None;
            }
            let path = fixed_interpreter(&fs::read(entry.path()).ok()?)?;
            Some(KernelFile { kind: KernelKind::BinfmtMisc(name), path })
        })
        .collect()
}

/// The interpreter of an entry whose flags have an F: opened when it was registered (binfmt_misc.rst).
pub(crate) fn fixed_interpreter(entry: &[u8]) -> Option<PathBuf> {
    let field = |name: &[u8]| entry.split(|&byte| byte == b'\n').find_map(|line| line.strip_prefix(name));
    let is_fixed = field(b"flags: ")?.contains(&b'F');
    is_fixed.then(|| OsString::from_vec(field(b"interpreter ").unwrap_or_default().to_vec()).into())
}

/// The absolute paths among an overlay's layers. Names with an escaped colon or comma in them come out wrong, and
/// then match nothing.
pub(crate) fn layers(overlay: &Mount) -> Vec<KernelFile> {
    overlay
        .super_options
        .split(',')
        .filter_map(|option| option.split_once('='))
        .filter(|(name, _)| ["lowerdir", "upperdir", "workdir", "lowerdir+", "datadir+"].contains(name))
        .flat_map(|(_, paths)| paths.split(':'))
        .filter(|path| path.starts_with('/'))
        .map(|path| KernelFile {
            kind: KernelKind::OverlayLayer(overlay.mount_point.clone()),
            path: path.into(),
        })
        .collect()
}

/// The path of a link that may show ` (deleted)` behind it.
pub(crate) fn without_deleted(path: &Path) -> &Path {
    let bytes = path.as_os_str().as_bytes();
    let bytes = bytes.strip_suffix(b" (deleted)").unwrap_or(bytes);
    Path::new(std::ffi::OsStr::from_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_swap_files_only() {
        let table = b"Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n\
                      /dev/vda2                               partition\t1048572\t\t0\t\t-2\n\
                      /srv/a\\040b/swap                        file\t\t1048572\t\t0\t\t-3\n";
        assert_eq!(swap_files(table), [KernelFile { kind: KernelKind::Swap, path: "/srv/a b/swap".into() }]);
        assert_eq!(swap_files(b""), []);
    }

    #[test]
    fn takes_fixed_interpreters_only() {
        let entry = |flags| format!("enabled\ninterpreter /m/bin/qemu\nflags: {flags}\noffset 0\nmagic 7f\n");
        assert_eq!(fixed_interpreter(entry("OCF").as_bytes()), Some("/m/bin/qemu".into()));
        assert_eq!(fixed_interpreter(entry("OC").as_bytes()), None);
        assert_eq!(fixed_interpreter(b"enabled\n"), None);
    }

    #[test]
    fn takes_the_layers_of_an_overlay() {
        let line = b"1 0 0:5 / /merged rw - overlay o rw,lowerdir=/a:/m/b,upperdir=/m/u,workdir=w,index=off";
        let layers: Vec<_> = layers(&mountinfo::parse(line).unwrap()[0]);
        let paths: Vec<_> = layers.iter().map(|layer| layer.path.to_str().unwrap()).collect();
        assert_eq!(paths, ["/a", "/m/b", "/m/u"]);
    }
}
