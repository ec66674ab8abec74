//! `cargo xtask dist` as it is typed: the same bytes under another umask, in another time zone and from programs of other modes;
//! other bytes for another time, so the comparison sees something.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use tokio::runtime::Builder;
use vm_tests::host::process::{self, Program};

/// An ELF file with no program header: it asks for no loader.
fn program() -> Vec<u8> {
    let mut elf = vec![0; 0x40];
    elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
    elf
}

/// What it packs with this umask and mode of programs, in this time zone and of this time; and what it says.
fn packed(umask: &str, zone: &str, mode: u32, epoch: &str) -> (BTreeMap<String, Vec<u8>>, String) {
    let (programs, target) =
        (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory"));
    for name in ["holders", "l4d2ctl", "left4me-broker", "left4me-overlay", "left4me-web"] {
        let path = programs.path().join(name);
        fs::write(&path, program()).expect("write it");
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("its mode");
    }
    let run = Program::new("sh")
        .args([
            "-c",
            &format!("umask {umask}; exec \"$0\" dist --page --programs \"$1\""),
            env!("CARGO_BIN_EXE_xtask"),
        ])
        .args([programs.path()])
        .env("CARGO_TARGET_DIR", target.path())
        .env("SOURCE_DATE_EPOCH", epoch)
        .env("TZ", zone);
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    let said = runtime.block_on(process::output(run, Duration::from_secs(120)));
    let said = said.unwrap_or_else(|error| panic!("{error}")).text();
    (files(&target.path().join("dist")), said)
}

fn files(directory: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries =
        fs::read_dir(directory).expect("what was packed").map(|entry| entry.expect("an entry").path());
    let read = entries.map(|path| {
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        (name, fs::read(&path).expect("read it"))
    });
    read.collect()
}

#[test]
fn umask_time_zone_and_modes_change_nothing() {
    let (one, said) = packed("022", "UTC", 0o755, "1796000461");
    let (other, _) = packed("077", "Pacific/Auckland", 0o700, "1796000461");
    let (later, _) = packed("022", "UTC", 0o755, "1796000462");
    let names: Vec<&str> = one.keys().map(String::as_str).collect();
    assert_eq!(
        names,
        [
            "SHA256SUMS",
            "left4me-0.1.0-x86_64.tar.zst",
            "left4me-0.1.0.cdx.json",
            "left4me-web-0.1.0-x86_64.tar.zst",
            "left4me-web-0.1.0.cdx.json",
            "left4me-web_0.1.0-1_amd64.deb",
            "left4me_0.1.0-1_amd64.deb"
        ]
    );
    assert!(said.contains("SOURCE_DATE_EPOCH=1796000461, Mon, 30 Nov 2026 01:01:01 +0000"), "{said}");
    let differ = |other: &BTreeMap<String, Vec<u8>>| -> Vec<String> {
        one.keys().filter(|name| one.get(*name) != other.get(*name)).cloned().collect()
    };
    assert_eq!(differ(&other), [""; 0]);
    assert_eq!(differ(&later), names, "another time");
    let list: serde_json::Value = serde_json::from_slice(&one["left4me-0.1.0.cdx.json"]).expect("JSON");
    let components = list["components"].as_array().expect("components");
    let lacks = |field: &str| -> Vec<&str> {
        components
            .iter()
            .filter(|one| one.get(field).is_none())
            .filter_map(|one| one["name"].as_str())
            .collect()
    };
    assert_eq!(lacks("licenses"), [""; 0]);
    // Ours, and what is no crate.
    let ours = ["holders", "left4me-ctl", "left4me-helper", "systemd-bus", "rust-std", "glibc"];
    assert_eq!(lacks("hashes"), ours);
}
