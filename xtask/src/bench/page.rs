//! `cargo xtask bench page`: the operator's page as a host gets it, in a guest in real time: a page, an answer, memory.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use vm_tests::bench::{Row, Samples, Unit};
use vm_tests::cache;
use vm_tests::host::accel::{Clock, Wish};
use vm_tests::machine::{Cancel, Machine};
use vm_tests::run::guest::{self, Guest};
use vm_tests::scenario::Scenario;
use vm_tests::workspace::Workspace;

use super::Bench;
use super::rows::target;
use crate::{dist, left4me};

/// What is run in the guest, and what that has in common with the tests'.
const SCRIPT: &str = include_str!("page/measure.pl");
const HTTP: &str = include_str!("../../tests/page/files/http.pl");

/// All rounds of the script, under emulation, on a busy host.
const DEADLINE: Duration = Duration::from_secs(900);

/// Starts the page, with one user.
const ENABLE: &str = "systemd-sysusers && systemctl daemon-reload && \
    systemctl start left4me-broker.socket left4me-web.socket left4me-web.service && \
    echo 'correct horse battery' | /usr/local/libexec/left4me/left4me-web passwd anna";

impl Bench {
    pub(super) async fn page(&mut self) -> Result<()> {
        let Some(guest) = self.clock(Clock::Real) else {
            self.report.notes.push("Page: not measured: it is about real time".to_owned());
            return self.show();
        };
        eprintln!("page");
        let (directory, rounds) = (self.machines("page"), self.counts.machines);
        let rows = measure(&left4me::workspace()?, &guest, rounds, &directory, self.cancel.clone()).await?;
        self.report.rows.extend(rows);
        if self.machine.accel != Wish::Kvm {
            let slow = "page: an emulated processor is several times slower than the host's";
            self.report.notes.push(slow.to_owned());
        }
        self.show()?;
        cache::remove_tree(&directory)
    }
}

/// Measures, and gives the rows.
///
/// # Errors
/// The page cannot be built, or does not do what it is asked for.
async fn measure(
    workspace: &Workspace,
    guest: &Guest,
    rounds: usize,
    directory: &Path,
    cancel: Cancel,
) -> Result<Vec<Row>> {
    let scenario = scenario(workspace, &directory.join("scenario")).await?;
    let directory = directory.join("machine");
    let mut machine = guest::prepare_shell(guest, Some(&scenario), None, &directory, cancel).await?;
    let measured = async {
        sh(&mut machine, ENABLE).await?;
        sh(&mut machine, &format!("perl /measure.pl {rounds}")).await
    };
    let measured = measured.await;
    rows(&samples(&machine.finish(measured).await?)?)
}

/// The product with the files of the page's archive.
async fn scenario(workspace: &Workspace, directory: &Path) -> Result<Scenario> {
    cache::remove_tree(directory)?;
    let root = workspace.root.display();
    let manifest = format!(
        "description = \"The operator's page, measured.\"\nbase = \"{root}/vm-tests/fixtures/product.toml\"\n\
         [expect]\nreset_exit = 0\n"
    );
    let mut files: BTreeMap<PathBuf, (u32, Vec<u8>)> = BTreeMap::new();
    files.insert("scenario.toml".into(), (0o644, manifest.into_bytes()));
    for (path, text) in [("/measure.pl", SCRIPT), ("/http.pl", HTTP)] {
        files.insert(in_guest(path), (0o644, text.as_bytes().to_vec()));
    }
    files
        .extend(dist::page_on_host(workspace).await?.into_iter().map(|(path, file)| (in_guest(&path), file)));
    for (path, (mode, bytes)) in files {
        let path = directory.join(path);
        let write = || {
            fs::create_dir_all(path.parent().unwrap_or(directory))?;
            fs::write(&path, bytes)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(mode))
        };
        write().with_context(|| format!("write {}", path.display()))?;
    }
    Scenario::load(directory)
}

fn in_guest(path: &str) -> PathBuf {
    Path::new("files").join(path.trim_start_matches('/'))
}

async fn sh(machine: &mut Machine, script: &str) -> Result<String> {
    let output = machine.run(&["sh", "-c", script], DEADLINE).await?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.exit.success(), "{script}: {}: {}", output.exit, said.trim());
    Ok(output.text())
}

/// A name and a number a line.
fn samples(said: &str) -> Result<BTreeMap<&str, Samples>> {
    let mut all: BTreeMap<&str, Samples> = BTreeMap::new();
    for line in said.lines() {
        let number =
            line.split_once(' ').and_then(|(name, number)| Some((name, number.parse::<f64>().ok()?)));
        let (name, number) = number.with_context(|| format!("measure.pl said: {line}"))?;
        all.entry(name).or_default().0.push(number);
    }
    Ok(all)
}

fn rows(samples: &BTreeMap<&str, Samples>) -> Result<Vec<Row>> {
    let row = |what: &str, unit, name: &str, divisor: f64| {
        let of = samples.get(name).with_context(|| format!("measure.pl said nothing of {name}"))?;
        anyhow::Ok(Row::new("page", what, unit, of.0.iter().map(|value| value / divisor).collect()))
    };
    let (micros, kib) = (1e6, 1024.0);
    Ok(vec![
        row("/servers with its style and script", Unit::Seconds, "page", micros)?.target(target::PAGE),
        row("  its bytes, KiB", Unit::Count, "bytes", kib)?.target(target::PAGE_KIB),
        row("  of it the HTML", Unit::Seconds, "html", micros)?,
        row("/servers/3, with the journal", Unit::Seconds, "server", micros)?,
        row("the answer to Start and Reset", Unit::Seconds, "answer", micros)?.target(target::ANSWER),
        row("a login", Unit::Seconds, "login", micros)?,
        row("memory of both", Unit::Mebibytes, "memory", kib)?.target(target::PAGE_MIB),
        row("  with 20 tabs", Unit::Mebibytes, "tabs", kib)?.target(target::PAGE_MIB),
        row("  at most, with a login's argon2", Unit::Mebibytes, "tabs.most", kib)?,
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_script_says_is_rows() {
        let said = "login 2000000\nhtml 40000\npage 90000\nbytes 20480\nserver 1\nanswer 50000\nanswer 60000\nmemory 10240\n\
                    memory.most 1\ntabs 20480\ntabs.most 40960\n";
        let rows = rows(&samples(said).expect("samples")).expect("rows");
        let of = |what: &str| rows.iter().find(|row| row.what == what).expect("a row");
        let answer = of("the answer to Start and Reset");
        assert_eq!((answer.median, answer.reached), (0.055, Some(true)));
        assert_eq!((of("  its bytes, KiB").median, of("  with 20 tabs").median), (20.0, 20.0));
        assert!(samples("Died at /measure.pl").is_err());
        assert!(super::rows(&samples("html 1\n").expect("samples")).is_err());
    }
}
