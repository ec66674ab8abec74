//! The packages that `cargo xtask dist --page` builds, installed, enabled, used and removed in a machine as docs/page.md says.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use vm_tests::host::process::{self, Program};
use vm_tests::scenario::Scenario;

use crate::booted::Booted;
use crate::browser::Browser;
use crate::postmortem::flow;
use crate::{BUILD, come_in, left4me};

/// Where a machine finds the packages.
const PACKAGES: &str = "/run/vm-test/packages";

/// The heading of the document's commands.
const HEADING: &str = "\n## Install and enable it\n";

/// The servers' package, and the page's.
const DEBS: [&str; 2] = ["left4me_0.1.0-1_amd64.deb", "left4me-web_0.1.0-1_amd64.deb"];

pub(crate) async fn run(scratch: &Path) -> Result<()> {
    let root = left4me::workspace()?.root;
    process::output(Program::new(env!("CARGO_BIN_EXE_xtask")).args(["dist", "--page"]), BUILD).await?;
    let dist = left4me::workspace()?.target.join("dist");
    let packages: String =
        DEBS.iter().map(|deb| format!("\"{PACKAGES}/{deb}\" = \"{}/{deb}\"\n", dist.display())).collect();
    let manifest = format!(
        "description = \"The operator's page from its package: xtask/tests/page.rs uses it.\"\n\
         unit = \"left4me-server@3.service\"\nmount = \"/var/lib/left4me/runtime/3/merged\"\n\
         state_directory = \"/var/lib/left4me\"\nstart = [\"true\"]\nreset = [\"true\"]\n\
         [deploy]\ntrees = [\"{}/vm-tests/fixtures/game\"]\n\
         [deploy.programs]\n\"/usr/local/bin/vm-game\" = \"vm-game\"\n\
         \"/var/lib/left4me/installation/srcds_linux\" = \"vm-game\"\n{packages}\
         [deploy.text]\n\"/etc/apt/apt.conf.d/90yes\" = 'APT::Get::Assume-Yes \"true\";'\n\
         [expect]\nreset_exit = 0\n",
        root.display(),
    );
    let scenario = scratch.join("packaged");
    std::fs::create_dir_all(&scenario).context("make the scenario")?;
    std::fs::write(scenario.join("scenario.toml"), manifest).context("write the scenario")?;
    Scenario::load(&scenario)?;
    let document = std::fs::read_to_string(root.join("docs/page.md")).context("read the document")?;
    let mut machine = Booted::restore(scratch, &scenario).await?;
    let done = used(&mut machine, scratch, &document).await;
    machine.end(done).await
}

async fn used(machine: &mut Booted, scratch: &Path, document: &str) -> Result<()> {
    let [install, enable] = commands(document)?;
    let package = install.lines().next().context("no command that installs")?;
    let host = &mut machine.host;
    host.sh(&format!("cd {PACKAGES} && apt install ./{} && {package}", DEBS[0])).await?;
    // Off until it is enabled.
    host.sh("! systemctl --quiet is-active left4me-web.socket left4me-broker.socket && ! [ -e /run/left4me-broker ]")
        .await?;
    host.sh(&format!("set -e\n{enable}")).await?;
    host.sh("echo 'only for a try' | /usr/libexec/left4me/left4me-web passwd anna").await?;
    // In tenths.
    let rated = host.sh("systemd-analyze security --no-pager --threshold=15 left4me-web.service").await?;
    eprintln!("{}", rated.lines().last().unwrap_or_default());
    // Of the package, as the image has no manual pages unpacked.
    host.sh("dpkg --listfiles left4me-web | grep --quiet /usr/share/man/man8/left4me-web.8.gz").await?;

    let mut browser = Browser::start(scratch, Some(&machine.address)).await?;
    come_in(&mut browser, &machine.address, "anna").await?;
    browser.go(&format!("{}/servers/3", machine.address)).await?;
    flow(&mut browser, "succeeded").await?;
    browser.end().await?;

    let host = &mut machine.host;
    host.sh("apt remove left4me-web").await?;
    let left = host
        .sh("ls /run/left4me-web/socket /run/left4me-broker/socket /usr/libexec/left4me/left4me-web 2>/dev/null; \
             systemctl list-units --plain --no-legend 'left4me-web*' 'left4me-broker*'; \
             test -s /var/lib/left4me-web/jobs.sqlite || echo the database has gone; l4d2ctl list >/dev/null || echo no l4d2ctl")
        .await?;
    ensure!(left.is_empty(), "after the removal: {left}");
    Ok(())
}

/// The document's commands of a host: what installs, and what enables.
fn commands(document: &str) -> Result<[String; 2]> {
    let (_, section) = document.split_once(HEADING).context("docs/page.md has no such heading")?;
    let mut blocks = section.split("```text\n").skip(1).filter_map(|rest| rest.split("```").next());
    let mut next = || blocks.next().map(str::to_owned).context("docs/page.md has no such block");
    Ok([next()?, next()?])
}
