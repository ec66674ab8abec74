//! A mount that somebody keeps: the failed job and the server's page say who, by what, and what to do; and once that is done, the next
//! Reset succeeds. It fails with a page of the server that says only that a mount is left, and with a row that ends before the advice.

use std::path::Path;

use anyhow::{Result, ensure};

use crate::booted::{self, Booted};
use crate::browser::Browser;
use crate::postmortem::{flow, manifest, newest};
use crate::{OPEN, click, click_to, come_in, until};

/// As somebody who looks at a server's files in a shell, outside of the server's units.
const KEEP: &str = "systemd-run --quiet --unit=somebody --working-directory=/var/lib/left4me/runtime/3/merged sleep infinity";

pub(crate) async fn run(scratch: &Path) -> Result<()> {
    let scenario = booted::scenario(scratch, &manifest("fixtures/product.toml", false)?, &[]).await?;
    let mut machine = Booted::restore(scratch, &scenario).await?;
    let done = used(&mut machine, scratch).await;
    machine.end(done).await
}

async fn used(machine: &mut Booted, scratch: &Path) -> Result<()> {
    machine.enable().await?;
    let mut browser = Browser::start(scratch, Some(&machine.address)).await?;
    come_in(&mut browser, &machine.address, "anna").await?;
    let page = format!("{}/servers/3", machine.address);
    browser.go(&page).await?;
    // The server is up once: there is a mount to keep.
    until(&mut browser, "document.querySelector('form button#start-3')").await?;
    click_to(&mut browser, "#start-3", "/servers/3").await?;
    until(&mut browser, &newest("start", "succeeded")).await?;
    machine.host.sh(KEEP).await?;
    let pid = machine.host.sh("systemctl show --value --property=MainPID somebody.service").await?;
    let holder = format!("{} (sleep) of somebody.service", pid.trim());

    reset(&mut browser).await?;
    until(&mut browser, &newest("reset", "failed")).await?;
    let row = browser.text("table tbody tr.error").await?;
    eprintln!("the row: {row}");
    until(&mut browser, "document.getElementById('held')").await?;
    let held = browser.text("#held").await?;
    eprintln!("the server's page: {held}");
    click_to(&mut browser, "table tbody tr a", "/jobs/2").await?;
    let error = browser.text("pre.problem").await?;
    for (place, text) in [("the row", row), ("the server's page", held), ("the job's page", error)] {
        for words in [holder.as_str(), "working directory", "have it leave"] {
            ensure!(text.contains(words), "{place} has no {words:?}: {text}");
        }
    }

    // It leaves, as was advised, and nothing else is needed.
    machine.host.sh("systemctl stop somebody.service").await?;
    browser.go(&page).await?;
    reset(&mut browser).await?;
    until(&mut browser, &newest("reset", "succeeded")).await?;
    until(&mut browser, "!document.getElementById('held')").await?;
    flow(&mut browser, "succeeded").await?;
    browser.end().await
}

async fn reset(browser: &mut Browser) -> Result<()> {
    until(browser, "document.querySelector('a#reset-3')").await?;
    click(browser, "#reset-3").await?;
    until(browser, OPEN).await?;
    click_to(browser, "#confirm", "/servers/3").await
}
