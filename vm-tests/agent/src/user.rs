//! The user whose manager has the unit under test: made in the guest, with a home directory, a manager and a bus of its own.
//!
//! There is no login: logind is masked in a guest and PAM has no module of it, so the manager is a service that is started
//! (user@.service(5)), and is told what pam_systemd(8) would tell it. It lasts as long as the machine, as that of a user who
//! lingers does.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use vm_agent::wire::Put;

use crate::account::{self, Account};
use crate::{files, run};

/// Of a user that is made: the first that is no system's (`UID_MIN` of login.defs(5)).
const FIRST_UID: u32 = 1000;

/// What a session would give, and the commands of the scenario get.
const MANAGER: &str = "\
[Service]
Environment=XDG_RUNTIME_DIR=/run/user/%i DBUS_SESSION_BUS_ADDRESS=unix:path=/run/user/%i/bus
";

/// As Debian's `dbus-user-session` has them, for an image without.
const BUS: [(&str, &str); 2] = [
    ("/run/systemd/user/dbus.socket", "[Socket]\nListenStream=%t/bus\n"),
    (
        "/run/systemd/user/dbus.service",
        "\
[Unit]
Requires=dbus.socket

[Service]
Type=notify
ExecStart=dbus-daemon --session --address=systemd: --nofork --nopidfile --systemd-activation --syslog-only
",
    ),
];

/// Makes the user, if there is none of this name, gives it its home with all that lies in there, and starts its manager.
///
/// # Errors
/// A command that fails, with what it says.
pub(crate) fn prepare(name: &str) -> Result<()> {
    let what = || format!("make the user {name}");
    let run = |argv: &[&str]| {
        let argv: Vec<String> = argv.iter().map(|word| (*word).to_owned()).collect();
        run::expect_success(&argv).with_context(what)
    };
    if Account::of(name).is_err() {
        let home = format!("/home/{name}");
        run(&["systemd-sysusers", "--inline", &format!("u {name} {FIRST_UID} - {home} /bin/sh")])?;
    }
    let account = Account::of(name)?;
    fs::create_dir_all(&account.home).with_context(|| format!("create {}", account.home))?;
    // Not what a link there leads to.
    run(&["chown", "--recursive", "--no-dereference", &format!("{name}:"), &account.home])?;
    write("/run/systemd/system/user@.service.d/vm-test.conf", MANAGER)?;
    if !Path::new("/usr/lib/systemd/user/dbus.socket").exists() {
        BUS.iter().try_for_each(|(path, text)| write(path, text))?;
        link("/run/systemd/user/sockets.target.wants/dbus.socket", "../dbus.socket")?;
    }
    run(&["systemctl", "daemon-reload"])?;
    run(&["systemctl", "start", &format!("user@{}.service", account.uid)])?;
    account::is_prepared(account);
    Ok(())
}

fn write(path: &str, text: &str) -> Result<()> {
    put(path, text, false)
}

fn link(path: &str, to: &str) -> Result<()> {
    put(path, to, true)
}

fn put(path: &str, text: &str, symlink: bool) -> Result<()> {
    let bytes = text.as_bytes().to_vec();
    files::put(&Put { path: path.to_owned(), mode: 0o644, symlink, offset: 0, last: true, bytes })
}
