//! The postmortem's flow as people went through it, in a browser: Start, Reset, the question, the job's row. With the unit of the
//! time it fails, and the page says by whom; with today's it does not.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use left4me_deployer::client::Wanted;

use crate::all::has_time_for_all;
use crate::booted::{self, Booted};
use crate::browser::Browser;
use crate::deployed;
use crate::{OPEN, click, click_to, come_in, left4me, until};

/// What is in the machine: a scenario and, if it is wanted, a server of a real one's size.
pub(crate) fn manifest(base: &str, is_heavy: bool) -> Result<String> {
    let root = left4me::workspace()?.root;
    let heavy = "[deploy.text]\n\"/var/lib/left4me/instances/3.env\" = \"L4D2_ARGS=--memory-mib 300\\n\"\n";
    let (memory, heavy) = if is_heavy { ("memory_mib = 2048\n", heavy) } else { ("", "") };
    Ok(format!(
        "description = \"The operator's page: xtask/tests/page.rs uses it.\"\nbase = \"{}/vm-tests/{base}\"\n{memory}\
         {heavy}[expect]\nreset_exit = 0\n",
        root.display(),
    ))
}

/// That the newest job on a server's page is this one, and how it is.
pub(crate) fn newest(verb: &str, state: &str) -> String {
    format!(
        "(() => {{ const row = document.querySelector('table tbody tr'); \
         return row?.cells[2].innerText === '{verb}' && row.querySelector('.{state}'); }})()"
    )
}

/// Start, Reset, the question, and the job's row; how long that took from the click.
pub(crate) async fn flow(browser: &mut Browser, state: &str) -> Result<f64> {
    until(browser, "document.querySelector('form button#start-3')").await?;
    click_to(browser, "#start-3", "/servers/3").await?;
    until(browser, &newest("start", "succeeded")).await?;
    until(browser, "document.querySelector('#live > p .active')").await?;
    click(browser, "#reset-3").await?;
    until(browser, OPEN).await?;
    let question = browser.text("#ask").await?;
    ensure!(question.contains("Reset server 3?") && question.contains("It is active"), "{question}");
    let begun = Instant::now();
    click_to(browser, "#confirm", "/servers/3").await?;
    until(browser, &newest("reset", state)).await?;
    Ok(begun.elapsed().as_secs_f64())
}

/// Ten times with all tests, and twice without.
pub(crate) async fn today(scratch: &Path) -> Result<()> {
    let all = has_time_for_all();
    let text = manifest("fixtures/product.toml", all)?;
    let scenario = booted::scenario(scratch, &text, &[]).await?;
    let mut machine = Booted::restore(scratch, &scenario).await?;
    let done = today_in(&mut machine, scratch, if all { 10 } else { 2 }).await;
    machine.end(done).await
}

async fn today_in(machine: &mut Booted, scratch: &Path, times: u32) -> Result<()> {
    machine.enable().await?;
    let mut browser = Browser::start(scratch, Some(&machine.address)).await?;
    come_in(&mut browser, &machine.address, "anna").await?;
    browser.go(&format!("{}/servers/3", machine.address)).await?;
    let mut took = Vec::new();
    for number in 1..=times {
        let one = flow(&mut browser, "succeeded").await.with_context(|| format!("reset {number}"))?;
        eprintln!("reset {number}: {one:.1} s");
        took.push(one);
    }
    took.sort_by(f64::total_cmp);
    let [first, middle, last] = [0, took.len() / 2, took.len() - 1].map(|at| took.get(at).copied());
    eprintln!(
        "{times} resets, from the click to the row, in the time of this emulated machine: median {:.1} s ({:.1} to {:.1})",
        middle.unwrap_or_default(),
        first.unwrap_or_default(),
        last.unwrap_or_default()
    );
    none_has_failed(&mut browser).await?;
    // What its units said is there.
    until(
        &mut browser,
        "document.getElementById('journal')?.innerText.includes('Started left4me-server@3.service')",
    )
    .await?;
    browser.end().await
}

async fn none_has_failed(browser: &mut Browser) -> Result<()> {
    let failed = browser.value("document.querySelectorAll('td .failed, td .interrupted').length").await?;
    ensure!(failed == 0, "{failed} failed rows");
    Ok(())
}

/// The unit and the helper of 936c8bb, and then today's, by a deploy.
pub(crate) async fn of_936c8bb(scratch: &Path) -> Result<()> {
    let text = manifest("scenarios/936c8bb/scenario.toml", has_time_for_all())?;
    let scenario = booted::scenario(scratch, &text, &[]).await?;
    let mut machine = Booted::restore(scratch, &scenario).await?;
    let done = of_936c8bb_in(&mut machine, scratch).await;
    machine.end(done).await
}

async fn of_936c8bb_in(machine: &mut Booted, scratch: &Path) -> Result<()> {
    machine.enable().await?;
    let mut browser = Browser::start(scratch, Some(&machine.address)).await?;
    come_in(&mut browser, &machine.address, "anna").await?;
    let page = format!("{}/servers/3", machine.address);
    browser.go(&page).await?;
    flow(&mut browser, "failed").await?;
    // The helper that held it is gone by then: the row names it all the same, and the line that was refused, and the mount that is left.
    ensure!(!browser.text("#held").await?.is_empty(), "the mount is left");
    let row = browser.text("table tbody tr.error").await?;
    eprintln!("{row}");
    click_to(&mut browser, "table tbody tr a", "/jobs/2").await?;
    let error = browser.text("pre.problem").await?;
    let held = "(left4me-overlay) of left4me-server@3.service: ";
    for words in
        ["ExecStopPost ended with status 32", "/runtime/3/merged is still mounted", held, "working directory"]
    {
        for text in [&row, &error] {
            ensure!(text.contains(words), "no {words:?} in {text}");
        }
    }
    let (_, held) = row.split_once("it was held by ").context("no holder")?;
    ensure!(held.starts_with(|first: char| first.is_ascii_digit()), "no process id: {held}");
    ensure!(held.contains("working directory"), "not how: {held}");

    let root = left4me::workspace()?.root;
    let files = deployed::product(&root, &machine.guest, &machine.deployer)?;
    let version = deployed::version(&files, "the fix");
    let (outcome, seen) = machine.host.deploy(Wanted::Version(&version)).await?;
    ensure!(outcome == left4me_deployer::client::Outcome::Changed, "{outcome:?}: {:?}", seen.lines);
    browser.go(&page).await?;
    until(&mut browser, "document.getElementById('reset-3')").await?;
    click(&mut browser, "#reset-3").await?;
    until(&mut browser, OPEN).await?;
    click_to(&mut browser, "#confirm", "/servers/3").await?;
    until(&mut browser, &newest("reset", "succeeded")).await.context("the reset after the deploy")?;
    for _ in 0..if has_time_for_all() { 3 } else { 1 } {
        flow(&mut browser, "succeeded").await?;
    }
    browser.end().await
}
