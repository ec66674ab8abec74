//! Tests of the packages as they come out: read back by what did not write them, and held against the list and the tree.

use std::fmt::Write as _;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, SystemTime};

use super::contents::Contents;
use super::*;

const EPOCH: u64 = 1_796_000_461;

fn root() -> PathBuf {
    left4me::workspace().expect("the workspace").root
}

/// Programs of a few bytes.
fn programs() -> BTreeMap<String, Vec<u8>> {
    PACKAGES
        .iter()
        .map(|(name, _package)| ((*name).to_owned(), format!("the program {name}").into_bytes()))
        .collect()
}

/// The archive and the .deb.
fn packed(root: &Path) -> Result<[Vec<u8>; 2]> {
    let packages = packages(root, PRODUCT, &Manifest::read(root)?, &programs(), EPOCH)?;
    let names: Vec<&str> = packages.keys().map(String::as_str).collect();
    assert_eq!(names, ["left4me-0.1.0-x86_64.tar.zst", "left4me_0.1.0-1_amd64.deb"]);
    let mut bytes = packages.into_values();
    Ok([bytes.next().expect("the archive"), bytes.next().expect("the .deb")])
}

fn contents(root: &Path, kind: Kind) -> Contents {
    let manifest = Manifest::read(root).expect("the manifest");
    contents::on_host(root, &manifest, &programs(), kind, &[]).expect("all is there")
}

fn unpacked_zstd(bytes: &[u8]) -> Vec<u8> {
    let mut tar = Vec::new();
    let mut decoder = ruzstd::decoding::StreamingDecoder::new(bytes).expect("zstd");
    decoder.read_to_end(&mut tar).expect("zstd");
    tar
}

fn unpacked_xz(bytes: &[u8]) -> Vec<u8> {
    let mut tar = Vec::new();
    lzma_rust2::XzReader::new(bytes, false).read_to_end(&mut tar).expect("xz");
    tar
}

/// The members of an ar(5) file, by name.
fn members(mut ar: &[u8]) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    ar = ar.strip_prefix(b"!<arch>\n").expect("ar's mark");
    while !ar.is_empty() {
        let (header, rest) = ar.split_at(60);
        let header = std::str::from_utf8(header).expect("a header");
        let size: usize = header[48..58].trim().parse().expect("a size");
        assert_eq!(&header[58..], "`\n");
        found.push((header[..16].trim().to_owned(), rest[..size].to_vec()));
        ar = &rest[size + size % 2..];
    }
    found
}

/// Path, mode, owner and time of each member, but no size.
fn listing(tar: &[u8]) -> String {
    let mut text = String::new();
    for entry in tar::Archive::new(tar).entries().expect("a tar") {
        let entry = entry.expect("an entry");
        let header = entry.header();
        let kind = if header.entry_type().is_dir() { 'd' } else { '-' };
        let number = |number: std::io::Result<u64>| number.expect("a number");
        let owner = (number(header.uid()), number(header.gid()), number(header.mtime()));
        assert_eq!(owner, (0, 0, EPOCH));
        let path = String::from_utf8(entry.path_bytes().into_owned()).expect("a path");
        writeln!(text, "{kind} {:04o} {path}", header.mode().expect("a mode")).expect("written");
    }
    text
}

#[test]
fn the_packages_have_these_files() {
    let [archive, deb] = packed(&root()).expect("packages");
    let members = members(&deb);
    let names: Vec<&str> = members.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["debian-binary", "control.tar.xz", "data.tar.xz"]);
    assert_eq!(members[0].1, b"2.0\n");
    insta::assert_snapshot!("archive", listing(&unpacked_zstd(&archive)));
    insta::assert_snapshot!("control", listing(&unpacked_xz(&members[1].1)));
    insta::assert_snapshot!("deb", listing(&unpacked_xz(&members[2].1)));
}

/// Units, sysusers.d and the like; manual pages are compressed.
#[test]
fn a_text_is_equal_but_for_paths() {
    let root = root();
    let (archive, deb) = (contents(&root, Kind::Archive), contents(&root, Kind::Deb));
    let text = |contents: &Contents, path: &str| {
        let member = contents.get(path).unwrap_or_else(|| panic!("no {path}"));
        String::from_utf8(member.bytes.clone()).expect("text")
    };
    let mut differ = String::new();
    for (one, other) in [
        (
            "usr/local/lib/systemd/system/left4me-overlay@.service",
            "usr/lib/systemd/system/left4me-overlay@.service",
        ),
        (
            "usr/local/lib/systemd/system/left4me-server@.service",
            "usr/lib/systemd/system/left4me-server@.service",
        ),
        ("usr/local/lib/sysusers.d/left4me.conf", "usr/lib/sysusers.d/left4me.conf"),
        ("usr/local/lib/tmpfiles.d/left4me.conf", "usr/lib/tmpfiles.d/left4me.conf"),
    ] {
        let (archive, deb) = (text(&archive, one), text(&deb, other));
        let shipped = fs::read_to_string(root.join(manifest::TREE).join(one)).expect("the file");
        assert_eq!(archive, shipped, "{one}");
        assert!(!deb.contains("/usr/local"), "{other}");
        assert_eq!(archive.lines().count(), deb.lines().count(), "{other}");
        for (before, after) in archive.lines().zip(deb.lines()).filter(|(before, after)| before != after) {
            assert_eq!(before.replace("/usr/local/", "/usr/"), after, "{other}");
            writeln!(differ, "-{before}\n+{after}").expect("written");
        }
    }
    insta::assert_snapshot!(differ, @r"
    -ExecStart=/usr/local/libexec/left4me/left4me-overlay mount %i
    +ExecStart=/usr/libexec/left4me/left4me-overlay mount %i
    -ExecStopPost=/usr/local/libexec/left4me/left4me-overlay umount --end-unit %i
    +ExecStopPost=/usr/libexec/left4me/left4me-overlay umount --end-unit %i
    ");
}

/// A path on one side only would be a unit that does not start.
#[test]
fn units_run_what_is_packed_beside_them() {
    for kind in [Kind::Archive, Kind::Deb] {
        let contents = contents(&root(), kind);
        let units = contents.iter().filter(|(path, _)| path.ends_with(".service"));
        let mut ours = 0;
        for (path, unit) in units {
            let text = std::str::from_utf8(&unit.bytes).expect("text");
            let commands = text.lines().filter(|line| line.starts_with("Exec"));
            let run = commands.filter_map(|line| line.split_once('=')?.1.split(' ').next());
            for program in run.filter(|program| program.contains("left4me") && !program.starts_with("/var/"))
            {
                let program = program.trim_start_matches(['@', '-', ':', '+', '!', '/']);
                assert!(
                    contents.contains_key(program),
                    "{path} runs /{program}, which is not in the package"
                );
                ours += 1;
            }
        }
        assert_eq!(ours, 2, "{kind:?}");
    }
}

/// A copy of what is packed, at another place, with other modes and times.
fn copied(manifest: &Manifest) -> tempfile::TempDir {
    let copy = tempfile::tempdir().expect("a directory");
    let sources = manifest.files.iter().chain(&manifest.control);
    let sources = sources.map(|(to, file)| manifest.source(to, file).expect("a place"));
    for source in sources.chain([PathBuf::from(manifest::FILE)]) {
        let to = copy.path().join(&source);
        fs::create_dir_all(to.parent().expect("a parent")).expect("create it");
        fs::write(&to, fs::read(root().join(&source)).expect("read it")).expect("write it");
        fs::set_permissions(&to, fs::Permissions::from_mode(0o700)).expect("another mode");
        let file = fs::File::open(&to).expect("open it");
        file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000)).expect("another time");
    }
    copy
}

#[test]
fn directory_modes_and_times_of_the_checkout_change_nothing() {
    let copy = copied(&Manifest::read(&root()).expect("the manifest"));
    assert!(packed(copy.path()).expect("packages") == packed(&root()).expect("packages"), "other bytes");
}

#[test]
fn what_is_missing_is_named() {
    let manifest = Manifest::read(&root()).expect("the manifest");
    let copy = copied(&manifest);
    let unit = "deploy/files/usr/local/lib/systemd/system/left4me-server@.service";
    fs::remove_file(copy.path().join(unit)).expect("delete it");
    let error = format!("{:#}", packed(copy.path()).expect_err("a file is missing"));
    assert!(error.starts_with("{units}/left4me-server@.service: read ") && error.contains(unit), "{error}");

    let mut programs = programs();
    programs.remove("l4d2ctl");
    let error = packages(&root(), PRODUCT, &manifest, &programs, EPOCH).expect_err("a program is missing");
    assert_eq!(format!("{error:#}"), "{bin}/l4d2ctl: no program l4d2ctl was built");
}

#[test]
fn nothing_is_left_to_be_filled_in() {
    let [_archive, deb] = packed(&root()).expect("packages");
    let members = members(&deb);
    let mut texts = Vec::new();
    for entry in tar::Archive::new(&*unpacked_xz(&members[1].1)).entries().expect("a tar") {
        let mut text = String::new();
        let mut entry = entry.expect("an entry");
        entry.read_to_string(&mut text).expect("text");
        texts.push(text);
    }
    let changelog = &contents::on_host(
        &root(),
        &Manifest::read(&root()).expect("the manifest"),
        &programs(),
        Kind::Deb,
        &[("version", "1".to_owned()), ("debian_version", "1-1".to_owned()), ("date", "today".to_owned())],
    )
    .expect("all is there")["usr/share/doc/left4me/changelog.Debian.gz"];
    let mut text = String::new();
    flate2::read::GzDecoder::new(&*changelog.bytes).read_to_string(&mut text).expect("gzip");
    assert!(text.starts_with("left4me (1-1) unstable;") && text.ends_with(">  today\n"), "{text}");
    texts.push(text);
    for text in texts {
        for name in ["{version}", "{debian_version}", "{date}", "{installed_kib}"] {
            assert!(!text.contains(name), "{text}");
        }
    }
}

/// No server is touched, and no question is asked.
#[test]
fn dpkgs_scripts_start_and_stop_nothing() {
    for script in ["postinst", "prerm", "postrm"] {
        let text = fs::read_to_string(root().join("deploy/deb").join(script)).expect(script);
        assert!(text.starts_with("#!/bin/sh\n") && text.contains("\nset -e\n"), "{script}");
        for line in text.lines().map(str::trim).filter(|line| !line.starts_with('#')) {
            let called = line.split_once("systemctl ").map(|(_, rest)| rest);
            let harmless =
                called.is_none_or(|rest| rest == "daemon-reload" || rest.starts_with("list-units"));
            assert!(harmless, "{script}: {line}");
            let is_question = line.starts_with("read ") || line.contains("debconf");
            assert!(!is_question && !line.contains("rm -r"), "{script}: {line}");
        }
    }
}

#[test]
fn the_document_names_the_packages() {
    let text = fs::read_to_string(root().join("docs/install.md")).expect("the document");
    let manifest = Manifest::read(&root()).expect("the manifest");
    let mut names: Vec<String> =
        packages(&root(), PRODUCT, &manifest, &programs(), EPOCH).expect("packages").into_keys().collect();
    names.push(format!("left4me-{VERSION}.cdx.json"));
    for name in names {
        assert!(text.contains(&format!("| `{name}` |")), "docs/install.md does not name {name}");
    }
}

#[test]
fn the_licence_is_the_licence() {
    let words =
        |text: &str| text.split_whitespace().filter(|word| *word != ".").collect::<Vec<_>>().join(" ");
    let read = |path: &str| fs::read_to_string(root().join(path)).expect(path);
    let (copyright, licence) = (read("deploy/deb/copyright"), read("LICENSE"));
    let (_, licence) = licence.split_once("Permission is").expect("a licence");
    assert!(copyright.lines().all(|line| !line.is_empty() || !line.starts_with(' ')));
    assert!(words(&copyright).ends_with(&words(licence)), "{copyright}");
}

#[test]
fn the_page_is_a_package_of_its_own_with_all_of_its_units() {
    let root = root();
    let manifest = Manifest::page(&root).expect("the page's list");
    let units =
        fs::read_dir(root.join("web/units")).expect("the units").map(|entry| entry.expect("an entry"));
    let units: Vec<String> = units.map(|unit| unit.file_name().to_string_lossy().into_owned()).collect();
    assert_eq!(units.len(), 4);
    let packed = |kind| contents::on_host(&root, &manifest, &programs(), kind, &[]).expect("all is there");
    for (kind, prefix, libexec) in
        [(Kind::Archive, "usr/local/lib", "/usr/local/libexec"), (Kind::Deb, "usr/lib", "/usr/libexec")]
    {
        let contents = packed(kind);
        for unit in &units {
            let member = &contents[&format!("{prefix}/systemd/system/{unit}")];
            let text = String::from_utf8(member.bytes.clone()).expect("text");
            let name = unit.trim_end_matches(".service");
            let starts = text.contains(&format!("ExecStart={libexec}/left4me/{name} /var/lib/{name}"));
            assert_eq!(starts, unit.ends_with(".service"), "{text}");
        }
    }
    // Nothing of it is in the servers' package, so that one is the same with and without it.
    let names: Vec<_> = contents(&root, Kind::Deb).into_keys().collect();
    assert!(!names.iter().any(|name| packed(Kind::Deb).contains_key(name)), "{names:?}");
}
