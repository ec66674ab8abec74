//! A booted machine that has the page, with a port of loopback that leads to it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use vm_tests::host::accel::Clock;
use vm_tests::image::{Suite, programs};
use vm_tests::machine::Cancel;
use vm_tests::run::guest::{self, Guest};
use vm_tests::run::prepare::{Machines, prepare_one};
use vm_tests::scenario::{Scenario, Wanted};

use crate::forward::{self, Forward};
use crate::host::Host;
use crate::{BUILD, left4me, target};
use vm_tests::host::process::{self, Program};
use vm_tests::host::tools;

/// Where the page listens in a machine.
const PAGE: &str = "0:/run/left4me-web/socket";

/// The page's programs.
pub(crate) const PROGRAMS: [&str; 2] = ["left4me-web", "left4me-broker"];

/// A machine, what it was restored from, and the page's address.
pub(crate) struct Booted {
    pub(crate) host: Host,
    pub(crate) guest: Guest,
    pub(crate) deployer: PathBuf,
    pub(crate) address: String,
}

impl Booted {
    /// One with a scenario's files, after its set-up.
    pub(crate) async fn restore(scratch: &Path, scenario: &Path) -> Result<Self> {
        let workspace = left4me::workspace()?;
        let scenario = Scenario::load(scenario)?;
        let machines =
            Machines { suites: vec![Suite::Trixie], clock: Some(Clock::Real), ..Machines::default() };
        let wanted = Wanted::by(std::slice::from_ref(&scenario));
        let results = scratch.join("results");
        let guest = prepare_one(&workspace, &machines, &wanted, &results, Cancel::new()).await?;
        let deployer = programs::program(&workspace, "left4me-deployer", "left4me-deploy").await?;
        let directory = scratch.join("machine");
        let machine = guest::prepare_shell(&guest, Some(&scenario), None, &directory, Cancel::new()).await?;
        let page: Forward = PAGE.parse()?;
        let address = forward::begin(&page, machine.guest()).await?;
        let host = Host::of(machine, &deployer).await?;
        Ok(Self { host, guest, deployer, address: format!("http://{address}") })
    }

    /// A port of loopback that leads to one of the machine's.
    pub(crate) async fn forward(&self, port: u16) -> Result<SocketAddr> {
        forward::begin(&format!("0:{port}").parse()?, self.host.machine.guest()).await
    }

    /// Starts the page, with one user.
    pub(crate) async fn enable(&mut self) -> Result<()> {
        let script = "systemd-sysusers --inline 'u left4me-web - Page' && systemctl daemon-reload && \
                      systemctl start left4me-broker.socket left4me-web.socket left4me-web.service && \
                      echo 'only for a try' | /usr/local/libexec/left4me/left4me-web passwd anna";
        self.host.sh(script).await.map(drop)
    }

    /// Ends it; of a failure, what the machine says of itself is kept.
    pub(crate) async fn end(self, result: Result<()>) -> Result<()> {
        match result {
            Ok(()) => self.host.stop().await,
            Err(error) => Err(self.host.evidence(error).await),
        }
    }
}

/// Writes a scenario with the page's programs and units beside what its manifest has. The programs are this host's build, so its glibc
/// must not be newer than the guest's.
pub(crate) async fn scenario(scratch: &Path, manifest: &str, more: &[PathBuf]) -> Result<PathBuf> {
    let root = left4me::workspace()?.root;
    let scenario = scratch.join("page");
    let (libexec, units) = ("files/usr/local/libexec/left4me", "files/etc/systemd/system");
    for directory in [libexec, units] {
        std::fs::create_dir_all(scenario.join(directory)).context("make the scenario")?;
    }
    std::fs::write(scenario.join("scenario.toml"), manifest).context("write the scenario")?;
    let mut copies: BTreeMap<PathBuf, PathBuf> = BTreeMap::new();
    for unit in ["left4me-web", "left4me-broker"] {
        for kind in ["socket", "service"] {
            let name = format!("{unit}.{kind}");
            copies.insert(scenario.join(units).join(&name), root.join("web/units").join(&name));
        }
    }
    let target = target()?;
    let packages = ["-p", "left4me-web", "-p", "left4me-broker"];
    let build = Program::new(tools::cargo()).args(["build", "--quiet", "--locked"]).args(packages);
    process::output(build.arg("--bins").arg("--target-dir").arg(target), BUILD).await?;
    for program in PROGRAMS {
        copies.insert(scenario.join(libexec).join(program), target.join("debug").join(program));
    }
    for from in more {
        let name = from.file_name().with_context(|| format!("{}: no name", from.display()))?;
        copies.insert(scenario.join(name), from.clone());
    }
    for (to, from) in copies {
        std::fs::copy(&from, &to).with_context(|| format!("copy {}", from.display()))?;
    }
    Ok(scenario)
}
