//! Pages of runs in a real browser: they draw what was recorded, answer to pointer and keys, and ask nobody for anything.

#[path = "support/browser.rs"]
mod browser;
#[path = "support/trial.rs"]
mod trial;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use libtest_mimic::Arguments;
use serde_json::Value;
use vm_tests::explore::found::{Alone, Explored, Outcome};
use vm_tests::explore::page::page as explored_page;
use vm_tests::host::process::{self, Program};

use browser::Browser;
use trial::trial;

/// The bug of the postmortem, and its fix.
const SCENARIOS: [&str; 2] = ["936c8bb", "5eac51a"];

/// Of two runs, where none is remembered.
const DEADLINE: Duration = Duration::from_secs(900);

/// The most that a page may have, in bytes.
const MOST: u64 = 1_000_000;

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // One browser at a time.
    arguments.test_threads.get_or_insert(1);
    libtest_mimic::run(&arguments, vec![trial("pages-of-two-runs", pages)]).exit_code()
}

async fn pages(scratch: &Path) -> Result<()> {
    let results = scratch.join("results");
    let asked = ["vm-test", "--image", "trixie", "--results"];
    let run = xtask().args(asked).arg(&results).args(SCENARIOS);
    process::output(run, DEADLINE).await?;
    let [bug, fix] = SCENARIOS.map(|name| results.join("trixie").join(name));
    let two = scratch.join("two.html");
    let command = xtask().arg("report").args([&bug, &fix]).arg("--out").arg(&two);
    let said = process::output(command, DEADLINE).await?.text();
    ensure!(said.trim_end() == two.to_string_lossy(), "it does not say where the page is: {said}");

    let mut browser = Browser::start(scratch, None).await?;
    one(&mut browser, &bug).await?;
    both(&mut browser, &two).await?;
    index(&mut browser, &results).await?;
    search(&mut browser, scratch).await?;
    browser.end().await
}

/// The page of the bug.
async fn one(browser: &mut Browser, results: &Path) -> Result<()> {
    let page = page(results)?;
    open(browser, &page, "").await?;
    let recording = std::fs::read_to_string(results.join("recording.json")).context("read the recording")?;
    let recording: Value = serde_json::from_str(&recording)?;

    // It opens on the instant that decided it, and names who held the mount.
    let (at, pid) = refused(&recording, 1)?;
    let state = browser.text("#state").await?;
    let holder = format!("{pid} left4me-overlay (control)");
    for words in [holder.as_str(), "working directory", "umount: EBUSY", &format!("At {at} ms")] {
        ensure!(state.contains(words), "no {words:?} in the state:\n{state}");
    }
    let wrong = browser.text("#wrong").await?;
    for words in ["umount fails: EBUSY", "held by", "left4me-overlay", "working directory"] {
        ensure!(wrong.contains(words), "no {words:?} above the picture: {wrong}");
    }
    // The whole cycle: as many looks and calls as the recording has of it.
    browser.press("0").await?;
    for (what, selector) in [("scan", "[data-mark^=looked]"), ("umount-call", "[data-mark^=umount]")] {
        let recorded = events(&recording, 1).filter(|event| !event["what"][what].is_null()).count();
        let drawn = count(browser, selector).await?;
        ensure!(recorded > 0 && drawn == recorded, "{what}: {recorded} recorded, {drawn} drawn");
    }
    // A bar for each run of an Exec line; the main process is its ExecStart.
    let runs: Vec<String> = events(&recording, 1)
        .map(|event| &event["what"]["exec"])
        .filter(|exec| !exec.is_null() && exec["line"] != "main")
        .map(|exec| match (&exec["exit"]["Code"], &exec["exit"]["Signal"]) {
            (Value::Null, signal) => format!("signal {signal}"),
            (code, _) => format!("exit status {code}"),
        })
        .collect();
    ensure!(runs.len() == 3, "ExecStartPre, ExecStart and ExecStopPost: {runs:?}");
    for end in &runs {
        let drawn = count(browser, &format!("[data-span=\"{end}\"]")).await?;
        ensure!(drawn > 0, "no bar that says {end:?}");
    }

    // Keys: to the next event, back to what went wrong, to another cycle.
    browser.press("ArrowRight").await?;
    let next = browser.text("#now").await?;
    ensure!(!next.contains(&at) && next.starts_with("cycle 1, "), "the next event is at {next}");
    browser.press("f").await?;
    ensure!(browser.text("#now").await?.contains(&at), "f goes to what went wrong");
    browser.press("]").await?;
    let (second, _) = refused(&recording, 2)?;
    let now = browser.text("#now").await?;
    ensure!(now.contains("cycle 2") && now.contains(&second), "the second cycle: {now}");

    // The pointer: where it is, is what is told, unless an instant is kept. The window is that of the reset.
    open(browser, &page, "cycle=1").await?;
    let (x, y) = place(browser, "[data-mark='umount: EBUSY']").await?;
    browser.point(x, y, true).await?;
    ensure!(!browser.text("#now").await?.contains("kept"), "a click on what is kept lets it go");
    let (left, middle) = place(browser, "[data-span^='active']").await?;
    browser.point(left, middle, false).await?;
    let state = browser.text("#state").await?;
    ensure!(state.contains("srcds_linux") && !state.contains("EBUSY"), "before the stop:\n{state}");

    // The journal is on the same time, as far as the window goes.
    let log = browser.text("#log").await?;
    ensure!(log.contains("target is busy"), "no line of umount in the journal:\n{log}");
    browser.press("f").await?;
    for _ in 0..8 {
        browser.press("+").await?;
    }
    let zoomed = browser.text("#log").await?;
    ensure!(zoomed.len() < log.len(), "the journal goes with the zoom:\n{zoomed}");

    // Dark and light, and on paper.
    let back = "getComputedStyle(document.body).backgroundColor";
    browser.show("screen", "dark").await?;
    let dark = browser.value(back).await?;
    browser.show("print", "light").await?;
    ensure!(dark != browser.value(back).await?, "dark is {dark}, and so is light");
    let tools = browser.value("getComputedStyle(document.getElementById('tools')).display").await?;
    ensure!(tools == "none", "buttons on paper: {tools}");
    browser.show("screen", "light").await
}

/// Both runs on one page, with a picture of it that is kept.
async fn both(browser: &mut Browser, page: &Path) -> Result<()> {
    open(browser, page, "").await?;
    let second = count(browser, ".second").await?;
    ensure!(second > 5, "{second} bars of the second run");
    let text = browser.text("body").await?;
    for name in SCENARIOS {
        ensure!(text.contains(&format!("trixie/{name}: ")), "no state of {name}:\n{text}");
    }
    let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join("report.png");
    browser.picture(&kept).await?;
    eprintln!("the picture: {}", kept.display());
    Ok(())
}

/// The page of the whole leads to each.
async fn index(browser: &mut Browser, results: &Path) -> Result<()> {
    open(browser, &page(results)?, "").await?;
    ensure!(browser.text("h1").await?.contains("2 passed"), "{}", browser.text("body").await?);
    for name in SCENARIOS {
        let link = browser.value(&format!("document.querySelector('a[href*=\"{name}\"]').href")).await?;
        let file = link.as_str().and_then(|link| link.strip_prefix("file://")).context("a link to a file")?;
        ensure!(Path::new(file).is_file(), "{file} is not there");
    }
    Ok(())
}

/// The page of a search for races: a mark for each run, in the colour of its outcome, in the dark and on paper.
async fn search(browser: &mut Browser, scratch: &Path) -> Result<()> {
    let failure = Outcome {
        shape: vec!["umount#: EBUSY".to_owned()],
        words: "hold sleep for 50.0 ms before it gets SIGTERM".to_owned(),
        line: "sleep:SIGTERM=50ms".to_owned(),
        ..Outcome::default()
    };
    let mut explored = Explored::default();
    explored.scenario = "late-child".to_owned();
    explored.phase_us = 100_000;
    explored.outcomes = vec![Outcome::default(), failure];
    explored.offsets = (-16..16).map(|part| (part * 6_000, usize::from((3..9).contains(&part)))).collect();
    for us in [25_000, 100_000, 400_000] {
        explored.alone.extend((0..20).map(|number| Alone {
            point: format!("sleep:open@{}", number + 1),
            at_us: number * 5_000,
            us,
            outcome: usize::from(number == 7),
        }));
    }
    let results = scratch.join("explored");
    std::fs::create_dir_all(&results).context("make a directory")?;
    std::fs::write(results.join("report.html"), explored_page(&explored)).context("write a page")?;
    open(browser, &page(&results)?, "").await?;
    ensure!(browser.text("h1").await?.contains("one way to fail"), "{}", browser.text("body").await?);
    for (selector, expected) in [
        ("#offsets .mark", 32),
        ("#offsets .bad", 6),
        ("#alone .mark", 60),
        ("#alone [data-failed='3'] .bad", 1),
    ] {
        let drawn = browser.value(&format!("document.querySelectorAll(\"{selector}\").length")).await?;
        ensure!(drawn == expected, "{selector}: {drawn} drawn, not {expected}");
    }
    let colour = "getComputedStyle(document.querySelector('#offsets .bad')).fill";
    browser.show("screen", "dark").await?;
    let dark = browser.value(colour).await?;
    let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join("explored.png");
    browser.picture(&kept).await?;
    browser.show("print", "light").await?;
    ensure!(dark != browser.value(colour).await?, "a failure is {dark} in the dark, and in the light");
    browser.show("screen", "light").await?;
    browser.picture(&Path::new(env!("CARGO_TARGET_TMPDIR")).join("explored-light.png")).await?;
    eprintln!("the picture: {}", kept.display());
    Ok(())
}

/// Opens a page, with what follows `#`.
async fn open(browser: &mut Browser, page: &Path, fragment: &str) -> Result<()> {
    browser.go(&format!("file://{}#{fragment}", page.display())).await
}

fn xtask() -> Program {
    Program::new(env!("CARGO_BIN_EXE_xtask")).env("INSTA_UPDATE", "no")
}

/// A page, which is small enough to be sent to somebody.
fn page(results: &Path) -> Result<PathBuf> {
    let page = results.join("report.html");
    let bytes = std::fs::metadata(&page).with_context(|| format!("stat {}", page.display()))?.len();
    ensure!(bytes < MOST, "{}: {bytes} bytes", page.display());
    Ok(page)
}

fn events(recording: &Value, cycle: u64) -> impl Iterator<Item = &Value> {
    recording["events"].as_array().into_iter().flatten().filter(move |event| event["cycle"] == cycle)
}

/// The first unmount that was refused in a cycle: when, in milliseconds since the reset began, and the helper's pid.
fn refused(recording: &Value, cycle: u64) -> Result<(String, u64)> {
    let at = |found: Option<&Value>| found.and_then(|event| event["at"].as_f64());
    let reset = at(events(recording, cycle).find(|event| event["what"]["step-begins"] == "reset"));
    let call = at(events(recording, cycle).find(|event| event["what"]["umount-call"]["result"] == -16));
    let helper = events(recording, cycle).find(|event| event["what"]["exec"]["line"] == "ExecStopPost");
    let pid = helper.and_then(|event| event["what"]["exec"]["pid"].as_u64()).context("no ExecStopPost")?;
    let (reset, call) = (reset.context("no reset")?, call.context("no call that was refused")?);
    Ok((format!("{:.3}", (call - reset) / 1e6), pid))
}

async fn count(browser: &mut Browser, selector: &str) -> Result<usize> {
    let drawn = browser.value(&format!("document.querySelectorAll('svg {selector}').length")).await?;
    Ok(usize::try_from(drawn.as_u64().context("a number")?)?)
}

/// The middle of what is drawn, in the window.
async fn place(browser: &mut Browser, selector: &str) -> Result<(f64, f64)> {
    let at = format!(
        "(() => {{ const box = document.querySelector(\"svg {selector}\").getBoundingClientRect(); \
         return [box.x + box.width / 2, box.y + box.height / 2]; }})()"
    );
    let at = browser.value(&at).await?;
    Ok((at[0].as_f64().context("a place")?, at[1].as_f64().context("a place")?))
}
