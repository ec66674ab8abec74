//! Keys, the command line, damaged images, and what a build leaves.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;

use super::build::*;
use super::debian::*;
use super::entry::*;
use super::external::*;
use super::lent::*;
use super::scratch::*;
use super::suite::*;

#[test]
fn an_external_root_gets_a_size_that_a_guest_can_map() {
    let dir = tempfile::tempdir().expect("a temp dir");
    let at = |name: &str| dir.path().join(name);
    let external =
        External { kernel: at("vmlinuz"), modules: at("modules"), root: at("root"), installed: None };
    let refused = |words: &str| {
        let error = block_on(mappable_root(&external, dir.path())).expect_err("a part is missing");
        assert!(error.to_string().contains(words), "{error:#}");
    };
    refused("--kernel");
    std::fs::write(&external.kernel, "").expect("write");
    refused("no modules.dep");
    std::fs::create_dir(&external.modules).expect("mkdir");
    std::fs::write(external.modules.join("modules.dep"), "").expect("write");
    refused("mksquashfs");
    std::fs::write(&external.root, "").expect("write");
    File::options()
        .write(true)
        .open(&external.root)
        .and_then(|file| file.set_len(crate::machine::config::PMEM_ALIGN))
        .expect("length");
    let mappable = block_on(mappable_root(&external, dir.path())).expect("all is there");
    assert_eq!(mappable.root, external.root, "it is mapped as it is");
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(future)
}

#[test]
fn every_input_has_a_key_of_its_own() {
    let base = || Request::default();
    let keys = [
        base().key(),
        Request { suite: Suite::Sid, ..base() }.key(),
        Request { packages: vec!["x".to_owned()], ..base() }.key(),
        Request { mirror: Some("http://mirror.example/debian".to_owned()), ..base() }.key(),
    ];
    let distinct: std::collections::BTreeSet<&str> = keys.iter().map(|key| key.as_str()).collect();
    assert_eq!(distinct.len(), keys.len());
    assert_eq!(keys[0], Request { rebuild: true, ..base() }.key(), "a rebuild makes the same image");
}

#[test]
fn suites_are_named() {
    for suite in Suite::ALL {
        assert_eq!(suite.as_str().parse(), Ok(suite));
    }
    assert_eq!("potato".parse::<Suite>(), Err("\"potato\" is none of bookworm, trixie, sid".to_owned()));
}

#[test]
fn the_command_line_is_as_agreed() {
    insta::assert_snapshot!(Request::default().options().join("\n"), @r#"
    --variant=minbase
    --mode=unshare
    --format=tar
    --architectures=amd64
    --include=systemd-sysv,dbus,udev,kmod,e2fsprogs,procps,psmisc,lsof,linux-image-cloud-amd64
    --aptopt=Apt::Install-Recommends "false"
    --customize-hook=echo guest >"$1/etc/hostname" && : >"$1/etc/resolv.conf"
    --dpkgopt=path-exclude=/usr/share/doc/*
    --dpkgopt=path-exclude=/usr/share/man/*
    --dpkgopt=path-exclude=/usr/share/locale/*
    --dpkgopt=path-exclude=/usr/share/info/*
    "#);
}

/// By its words alone: no archive by date was tried (see docs/running.md), one that was made of today's was.
#[test]
fn an_archive_by_date_has_the_updates_of_that_day_and_no_day_is_too_old() {
    let of = |suite, mirror: &str| Request { suite, mirror: Some(mirror.to_owned()), ..Request::default() };
    let sources = |suite, mirror| of(suite, mirror).sources(Path::new("/keys.gpg")).join("\n");
    let dated = "http://snapshot.debian.org/archive/debian/20261101T000000Z/";
    insta::assert_snapshot!(sources(Suite::Trixie, dated), @"
    deb [signed-by=/keys.gpg] http://snapshot.debian.org/archive/debian/20261101T000000Z/ trixie main
    deb [signed-by=/keys.gpg] http://snapshot.debian.org/archive/debian/20261101T000000Z/ trixie-updates main
    deb [signed-by=/keys.gpg] http://snapshot.debian.org/archive/debian-security/20261101T000000Z/ trixie-security main
    ");
    insta::assert_snapshot!(sources(Suite::Bookworm, dated.trim_end_matches('/')), @"
    deb [signed-by=/keys.gpg] http://snapshot.debian.org/archive/debian/20261101T000000Z bookworm main
    deb [signed-by=/keys.gpg] http://snapshot.debian.org/archive/debian/20261101T000000Z bookworm-updates main
    deb [signed-by=/keys.gpg] http://snapshot.debian.org/archive/debian-security/20261101T000000Z bookworm-security main
    ");
    assert_eq!(sources(Suite::Sid, dated), dated, "unstable has neither");
    for whole in
        ["http://mirror.example/debian", "file:///srv/20261101T000000Z/", "http://m/20261101/debian/"]
    {
        assert_eq!(sources(Suite::Trixie, whole), whole);
    }
    let unchecked = |request: Request| {
        request.options().contains(&"--aptopt=Acquire::Check-Valid-Until \"false\"".to_owned())
    };
    assert!(
        unchecked(of(Suite::Trixie, dated)) && unchecked(of(Suite::Trixie, "file:///srv/20261101T000000Z/"))
    );
    assert!(!unchecked(of(Suite::Trixie, "http://mirror.example/debian")) && !unchecked(Request::default()));
    assert_eq!(Request::default().sources(Path::new("/keys.gpg")), [""; 0]);
}

#[test]
fn packages_are_added_and_a_missing_one_is_known_by_its_name() {
    let request = Request { packages: vec!["nfs-kernel-server".to_owned()], ..Request::default() };
    let include = request.options().into_iter().find(|option| option.starts_with("--include="));
    assert!(include.is_some_and(|list| list.ends_with(",linux-image-cloud-amd64,nfs-kernel-server")));
    for (line, package) in [
        ("E: Unable to locate package nfs-kernel-servr", Some("nfs-kernel-servr")),
        ("E: Package 'python2' has no installation candidate", Some("python2")),
        ("E: apt-get update failed", None),
        ("I: Unable to locate package x", None),
    ] {
        assert_eq!(missing_package(line), package, "{line}");
    }
}

#[test]
fn only_installed_packages_count() {
    let text = "Package: a\nStatus: install ok installed\nVersion: 1:2-3\nDescription: x\n Package: y\n\n\
                Package: gone\nStatus: deinstall ok config-files\nVersion: 1\n\n\
                Package: b\nStatus: install ok installed\nVersion: 4\n";
    let expected = [("a", "1:2-3"), ("b", "4")].map(|(name, version)| (name.to_owned(), version.to_owned()));
    assert_eq!(parse_status(text), BTreeMap::from(expected));
    assert_eq!(parse_status(""), BTreeMap::new());
}

#[test]
fn ids_are_lent_by_name_or_number() {
    assert!(lends_ids("x:1:1\nme:100000:65536\n", "me", 1000));
    assert!(lends_ids("1000:100000:65536\n", "me", 1000));
    assert!(!lends_ids("me:100000:1000\n", "me", 1000));
    assert!(!lends_ids("you:100000:65536\nme\n", "me", 1000));
}

/// An image of files that are none, in a directory.
fn fake(dir: &Path) -> Image {
    let modules = dir.join(MODULES).join("6.1-x");
    std::fs::create_dir_all(&modules).expect("a directory");
    std::fs::write(modules.join("modules.dep"), "").expect("write");
    let file = |name: &str| {
        std::fs::write(dir.join(name), name).expect("write");
        (name.to_owned(), FileRecord::of(&dir.join(name)).expect("it is there"))
    };
    let manifest = Manifest {
        recipe: RECIPE,
        key: Request::default().key().as_str().to_owned(),
        suite: Suite::Trixie,
        mirror: None,
        kernel_version: "6.1-x".to_owned(),
        packages: BTreeMap::new(),
        sha256: BTreeMap::new(),
        archive: None,
        files: [ROOT, KERNEL, CONFIG].map(file).into(),
        stages_ms: BTreeMap::new(),
    };
    std::fs::write(dir.join(MANIFEST), serde_json::to_vec(&manifest).expect("json")).expect("write");
    Image::load(dir).expect("it is whole")
}

#[test]
fn a_damaged_image_is_not_taken_for_whole() {
    let dir = tempfile::tempdir().expect("a temp dir");
    let image = fake(dir.path());
    image.verify().expect("it is what was written");
    std::fs::write(&image.kernel, "kernal").expect("write");
    Image::load(dir.path()).expect("the size is the same");
    let error = image.verify().expect_err("the contents are not");
    assert!(error.to_string().contains(KERNEL), "{error:#}");
    std::fs::write(&image.root, "").expect("write");
    Image::load(dir.path()).expect_err("the size is another");
    fake(dir.path());
    std::fs::remove_file(dir.path().join(MANIFEST)).expect("delete");
    Image::load(dir.path()).expect_err("without a manifest");
}

#[test]
fn only_our_own_scratch_is_removed() {
    block_on(remove_scratch(Path::new("/etc"))).expect_err("not a scratch directory");
    let dir = tempfile::Builder::new().prefix(SCRATCH_PREFIX).tempdir().expect("a temp dir");
    std::fs::create_dir(dir.path().join("sub")).expect("a directory");
    block_on(remove_scratch(dir.path())).expect("ours");
    assert!(!dir.path().exists());
    block_on(remove_scratch(dir.path())).expect("gone is fine");
}
