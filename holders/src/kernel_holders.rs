//! References that no process has, as far as the kernel tells of them: loop devices, swap files, binfmt_misc's
//! fixed interpreters, overlay layers, uprobes, exports of the NFS server, files that LIO serves as disks.
//!
//! What these files show is text: a path as seen from the reader's root directory, or as the one who set it up
//! wrote it. None says which mount it is on, and what lies in the directory that a mount covers has the same path.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use crate::beneath;
use crate::effect::Mounts;
use crate::kernel;
use crate::mount::{self, Device};
use crate::mountinfo::{self, Mount};
use crate::proc;
use crate::propagation::{self, At, Table};
use crate::report::{Effect, KernelKind};

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
    let tracing = mounts.iter().find(|mount| mount.fstype == "tracefs");
    let probes = tracing.and_then(|tracing| fs::read(tracing.mount_point.join("uprobe_events")).ok());
    files.extend(uprobes(&probes.unwrap_or_default()));
    // Of the caller's network namespace, without the server's own file system.
    let cache = |name| fs::read(format!("/proc/net/rpc/{name}/content")).unwrap_or_default();
    files.extend(exports(&cache("nfsd.export"), &cache("nfsd.fh")));
    files.extend(lio_files(Path::new("/sys/kernel/config/target/core")));
    files
}

/// Reads tracefs's `uprobe_events`: `p:GROUP/NAME PATH:0xOFFSET ARGUMENTS` (uprobetracer.rst). Each has its file by the path
/// that it was given (`kernel/trace/trace_uprobe.c`).
pub(crate) fn uprobes(table: &[u8]) -> Vec<KernelFile> {
    let probe = |line: &[u8]| {
        let line = line.get(1..)?.strip_prefix(b":")?;
        let (name, rest) = line.split_at(line.iter().position(|&byte| byte == b' ')?);
        let path = &rest[1..rest.windows(3).position(|part| part == b":0x")?];
        let name = String::from_utf8_lossy(name).into_owned();
        Some(KernelFile { kind: KernelKind::Uprobe(name), path: OsString::from_vec(path.to_vec()).into() })
    };
    table.split(|&byte| byte == b'\n').filter_map(probe).collect()
}

/// Reads the NFS server's caches, with the kernel's octal escapes: `nfsd.export/content` with `PATH CLIENT(FLAGS)` and
/// `nfsd.fh/content` with `CLIENT TYPE ID PATH`. Both have their paths until they are flushed, by the second for the clients
/// that have asked; an entry that is a comment has run out or forbids, and has its path all the same
/// (`net/sunrpc/cache.c:c_show`).
pub(crate) fn exports(exports: &[u8], handles: &[u8]) -> Vec<KernelFile> {
    let fields = |line: &[u8]| -> Vec<Vec<u8>> {
        let line = line.strip_prefix(b"# ").unwrap_or(line);
        let fields = line.split(|byte| b"\t ".contains(byte)).filter(|field| !field.is_empty());
        fields.map(<[u8]>::to_vec).collect()
    };
    let lines = |table: &[u8]| table.split(|&byte| byte == b'\n').map(fields).collect::<Vec<_>>();
    let exports = lines(exports).into_iter().filter_map(|fields| match fields.as_slice() {
        [path, client, ..] => Some((path.clone(), client.split(|&byte| byte == b'(').next()?.to_vec())),
        _ => None,
    });
    let handles = lines(handles).into_iter().filter_map(|fields| match fields.as_slice() {
        [client, _kind, _id, path] => Some((path.clone(), client.clone())),
        _ => None,
    });
    let mut files: Vec<KernelFile> = Vec::new();
    for (path, client) in exports.chain(handles).filter(|(path, _)| path.starts_with(b"/")) {
        let client = String::from_utf8_lossy(&mount::unescape(&client)).into_owned();
        let file = KernelFile { kind: KernelKind::NfsExport(client), path: mount::path(&path) };
        if !files.contains(&file) {
            files.push(file);
        }
    }
    files
}

/// The files that LIO serves as disks, by the directory `target/core` of configfs.
fn lio_files(core: &Path) -> Vec<KernelFile> {
    let entries = |directory: &Path| fs::read_dir(directory).into_iter().flatten().flatten();
    let adapters = entries(core).filter(|entry| entry.file_name().as_bytes().starts_with(b"fileio_"));
    let stores = adapters.flat_map(|adapter| entries(&adapter.path()));
    let files = stores.filter_map(|store| {
        let path = lio_file(&fs::read(store.path().join("info")).ok()?)?;
        let name = store.file_name().to_string_lossy().into_owned();
        Some(KernelFile { kind: KernelKind::LioFile(name), path })
    });
    files.collect()
}

/// The path in a back store's `info`: `File: PATH  Size: BYTES` (`drivers/target/target_core_file.c`).
pub(crate) fn lio_file(info: &[u8]) -> Option<PathBuf> {
    let find = |text: &[u8], part: &[u8]| text.windows(part.len()).position(|window| window == part);
    let path = &info[find(info, b" File: ")? + 7..];
    Some(OsString::from_vec(path[..find(path, b"  Size: ")?].to_vec()).into())
}

/// What it does to an unmount; `None` if nothing.
///
/// Of a loop device the kernel tells which file system its file is on. Else the path has to do, in the caller's namespace;
/// and where the directory that is covered there has such a file, too, it is unclear which of the two it is.
pub(crate) fn effect_of(file: &KernelFile, known: &Mounts) -> Option<Effect> {
    let Table { namespace, mounts } = &known.tables[0];
    let (on, _) = propagation::containing(mounts, &file.path)?;
    let by_path = || known.effect_by_path(&file.path, *namespace);
    match file.kind {
        KernelKind::Loop(ref name) => {
            let may_be_there = |(at, _): &(At, _)| file.path.starts_with(&known.mount(*at).mount_point);
            if !known.related().iter().any(may_be_there) {
                return None;
            }
            let contain = |mount: &&Mount| file.path.starts_with(&mount.mount_point);
            if mounts.iter().filter(contain).any(Mount::may_hang) {
                return by_path();
            }
            match kernel::device_behind_loop(name) {
                Ok(device) if known.have(device) => known.effect_of_file(device, &file.path, None),
                // Their files have device numbers that no mount has.
                Ok(_) if !["overlay", "btrfs", "bcachefs"].contains(&&*mounts[on].fstype) => None,
                _ => by_path(),
            }
        }
        KernelKind::Swap if CANNOT_SWAP.contains(&&*mounts[on].fstype) => None,
        KernelKind::Swap => {
            let effect = known.effect_at(&file.path, Some(*namespace))?;
            match beneath::is_swapped_to(mounts, on, &file.path) {
                Ok(true) => None,
                Ok(false) => Some(effect),
                Err(_) => Some(Effect::Unclear),
            }
        }
        KernelKind::BinfmtMisc(_)
        | KernelKind::Uprobe(_)
        | KernelKind::NfsExport(_)
        | KernelKind::LioFile(_) => by_path(),
        KernelKind::OverlayLayer(_) => by_path().map(|effect| match effect {
            Effect::Unclear => effect,
            _ => Effect::KeepsSuperblock,
        }),
    }
}

/// File systems without `swap_activate` and `bmap`: a swap file at such a path lies beneath.
const CANNOT_SWAP: [&str; 5] = ["overlay", "tmpfs", "ramfs", "squashfs", "erofs"];

fn loop_devices() -> Vec<KernelFile> {
    let Ok(devices) = fs::read_dir("/sys/block") else { return Vec::new() };
    devices
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok().filter(|name| name.starts_with("loop"))?;
            // Not there while the device has no file.
            let text = fs::read(entry.path().join("loop/backing_file")).ok()?;
            let path = PathBuf::from(OsString::from_vec(text.strip_suffix(b"\n").unwrap_or(&text).to_vec()));
            Some(KernelFile { kind: KernelKind::Loop(name), path: proc::without_deleted(&path).to_owned() })
        })
        .collect()
}

/// A device on top of another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Above {
    /// `None` for a partition, which goes with its device.
    pub(crate) name: Option<String>,
    pub(crate) device: Option<Device>,
}

/// The devices on top of one, the topmost first, by sysfs's `class/block`: `NAME/holders`, and partitions as `NAME/NAMEp1`.
pub(crate) fn above(class: &Path, name: &str) -> Vec<Above> {
    let text = |path: PathBuf| fs::read_to_string(path).ok().map(|text| text.trim_end().to_owned());
    let names = |directory: PathBuf| {
        let entries = fs::read_dir(directory).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect::<Vec<_>>()
    };
    let directory = class.join(name);
    let partitions = names(directory.clone()).into_iter().filter(|one| one.starts_with(&format!("{name}p")));
    let on_top = names(directory.join("holders"));
    let mut all: Vec<Above> = Vec::new();
    for (other, is_partition) in
        partitions.map(|one| (one, true)).chain(on_top.into_iter().map(|one| (one, false)))
    {
        for further in above(class, &other) {
            if !all.contains(&further) {
                all.push(further);
            }
        }
        let device = text(class.join(&other).join("dev")).and_then(|text| {
            let (major, minor) = text.split_once(':')?;
            Some(Device { major: major.parse().ok()?, minor: minor.parse().ok()? })
        });
        let shown = text(class.join(&other).join("dm/name")).unwrap_or(other);
        all.push(Above { name: (!is_partition).then_some(shown), device });
    }
    all
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

/// The overlays that have this layer, in all namespaces whose tables tell options.
pub(crate) fn overlays_with(layer: &Path, tables: &[Table]) -> Vec<Device> {
    let mounts = tables.iter().flat_map(|table| &table.mounts).filter(|mount| mount.fstype == "overlay");
    let with = mounts.filter(|mount| layers(mount).iter().any(|known| known.path == layer));
    let mut devices: Vec<Device> = Vec::new();
    for mount in with {
        if !devices.contains(&mount.device) {
            devices.push(mount.device);
        }
    }
    devices
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
    fn takes_what_lies_on_top_of_a_device() {
        let class = tempfile::tempdir().unwrap();
        let put = |path: &str, text: &str| {
            let path = class.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        // A file with one partition, encrypted, and a volume on that. Each partition is a device of the class, too.
        put("loop0/loop0p1/dev", "259:0\n");
        put("loop0p1/dev", "259:0\n");
        put("loop0p1/holders/dm-0", "");
        put("dm-0/dev", "253:0\n");
        put("dm-0/dm/name", "crypt\n");
        put("dm-0/holders/dm-1", "");
        put("dm-1/dev", "253:1\n");
        put("dm-1/dm/name", "group-volume\n");
        let device = |major, minor| Some(Device { major, minor });
        let one = |name: Option<&str>, device| Above { name: name.map(str::to_owned), device };
        let expected = [
            one(Some("group-volume"), device(253, 1)),
            one(Some("crypt"), device(253, 0)),
            one(None, device(259, 0)),
        ];
        assert_eq!(above(class.path(), "loop0"), expected);
        assert_eq!(above(class.path(), "loop1"), []);
    }

    #[test]
    fn takes_what_probes_exports_and_back_stores_show() {
        let table = b"p:uprobes/p_sh_0x0 /m/a b:0x0000000000004245 arg1=%ax\nr:x/y /m/c:0x10(2)\nnoise\n";
        let kind = |name: &str| KernelKind::Uprobe(name.to_owned());
        let file = |kind, path: &str| KernelFile { kind, path: path.into() };
        assert_eq!(uprobes(table), [file(kind("uprobes/p_sh_0x0"), "/m/a b"), file(kind("x/y"), "/m/c")]);
        // As nfs-utils and knfsd have it (`fs/nfsd/export.c:svc_export_show`).
        let table = b"#path domain(flags)\n/m/a\\040b\t192.168.0.0/16(rw,no_root_squash,sync,uuid=1:2)\n/m\t*(ro)\n# x\n\
                      # /m/late\t*()\n";
        // `fs/nfsd/export.c:expkey_show`.
        let handles =
            b"#domain fsidtype fsid [path]\n* 1 0x07000000 /m\n* 1 0x08000000 /m/c\\011d\n# * 1 0x09000000\n";
        let kind = |client: &str| KernelKind::NfsExport(client.to_owned());
        let expected = [
            file(kind("192.168.0.0/16"), "/m/a b"),
            file(kind("*"), "/m"),
            file(kind("*"), "/m/late"),
            file(kind("*"), "/m/c\td"),
        ];
        assert_eq!(exports(table, handles), expected);
        let info = b"Status: ACTIVATED  Max Queue Depth: 128  SectorSize: 512  HwMaxSectors: 16384\n        \
                     TCM FILEIO ID: 0        File: /m/disk 1.img  Size: 1048576  Mode: O_DSYNC Async: 0\n";
        assert_eq!(lio_file(info), Some("/m/disk 1.img".into()));
        assert_eq!((uprobes(b""), exports(b"", b""), lio_file(b"")), (vec![], vec![], None));
    }

    #[test]
    fn takes_the_layers_of_an_overlay() {
        let line = b"1 0 0:5 / /merged rw - overlay o rw,lowerdir=/a:/m/b,upperdir=/m/u,workdir=w,index=off";
        let layers: Vec<_> = layers(&mountinfo::parse(line).unwrap()[0]);
        let paths: Vec<_> = layers.iter().map(|layer| layer.path.to_str().unwrap()).collect();
        assert_eq!(paths, ["/a", "/m/b", "/m/u"]);
    }
}
