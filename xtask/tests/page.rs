//! The operator's page in a real browser, as people use it: by pointer and by keyboard, while its rows are replaced below.
//!
//! The page and the broker are real; the machine is played (`web/examples/played.rs`). Without a browser, both run on a booted one.

#[path = "support/all.rs"]
mod all;
#[path = "page/booted.rs"]
mod booted;
#[path = "support/browser.rs"]
mod browser;
#[path = "deploy/version.rs"]
#[expect(dead_code, reason = "that of the tests of deploys, which need more of it")]
mod deployed;
#[path = "../src/shell/forward.rs"]
mod forward;
#[path = "deploy/host.rs"]
#[expect(dead_code, reason = "that of the tests of deploys, which need more of it")]
mod host;
#[path = "page/kept.rs"]
mod kept;
#[path = "../src/left4me.rs"]
mod left4me;
#[path = "page/packaged.rs"]
mod packaged;
#[path = "page/postmortem.rs"]
mod postmortem;
#[path = "page/proxied.rs"]
mod proxied;
#[path = "page/seen.rs"]
mod seen;
#[path = "support/trial.rs"]
mod trial;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use libtest_mimic::Arguments;
use serde_json::json;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::net::unix::pipe;
use tokio::time::timeout;
use vm_tests::host::process::{self, Child, Program, Sink};
use vm_tests::host::{accel, events, tools};

use all::has_time_for_all;
use browser::Browser;
use trial::trial;

/// For one build of the page.
const BUILD: Duration = Duration::from_secs(900);

/// For what the played machine and the page do at once; an emulated one on a busy host takes its time.
const PATIENCE: Duration = Duration::from_secs(240);

fn main() -> ExitCode {
    accel::child_main_if_asked();
    events::listen_to_lines(|line| eprintln!("{line}"));
    let mut arguments = Arguments::from_args();
    // One browser at a time.
    arguments.test_threads.get_or_insert(1);
    let mut trials = vec![
        trial("the-dialog-outlives-the-row-that-opened-it", dialog),
        trial("a-click-is-one-though-the-row-changes-meanwhile", slow_click),
        trial("all-of-it-by-keyboard", keyboard),
        trial("what-changes-is-shown-at-once", changes),
        trial("who-leaves-is-out-and-who-looks-cannot-press", roles),
        trial("tabs-that-nobody-looks-at-keep-none-from-loading", tabs),
        trial("a-journal-stands-still-while-it-is-read", journal),
        trial("pictures", seen::pictures),
        trial("on-a-booted-machine", machine),
        trial("in-a-browser-on-a-booted-machine", postmortem::today),
    ];
    let axe = trial("nothing-that-axe-core-finds-serious", seen::axe);
    trials.push(axe.with_ignored_flag(std::env::var_os(seen::AXE_VAR).is_none()));
    if has_time_for_all() {
        trials.push(trial("the-unit-of-936c8bb-and-a-deploy", postmortem::of_936c8bb));
        trials.push(trial("a-mount-that-somebody-keeps", kept::run));
        trials.push(trial("the-package-on-a-booted-machine", packaged::run));
        trials.push(trial("behind-nginx-as-the-document-has-it", proxied::nginx));
        trials.push(trial("behind-caddy-as-the-document-has-it", proxied::caddy));
        trials.push(trial("what-is-shown-is-systemds-within-a-second", truth));
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// The page with its machine.
struct Page {
    child: Child,
    to: pipe::Sender,
    from: Lines<BufReader<pipe::Receiver>>,
    address: String,
}

impl Page {
    async fn start(scratch: &Path) -> Result<Self> {
        let program = built().await?;
        let (to, theirs) = pipe::pipe().context("make a pipe")?;
        let log = File::create(scratch.join("page.log")).context("create the page's log")?;
        let mut child = Program::new(program)
            .arg(scratch)
            .stdin(File::from(theirs.into_blocking_fd()?))
            .stderr(Sink::File(log))
            .spawn()?;
        let from = child.take_stdout()?.context("the page's output")?;
        let mut from = BufReader::new(from).lines();
        let address = timeout(PATIENCE, from.next_line()).await.context("no address")??;
        let address = address.context("the page has ended: see page.log")?;
        Ok(Self { child, to, from, address })
    }

    /// Has the machine do something; what it answers.
    async fn play(&mut self, line: &str) -> Result<String> {
        self.to.write_all(format!("{line}\n").as_bytes()).await.context("play")?;
        let mut last = String::new();
        loop {
            let said = timeout(PATIENCE, self.from.next_line()).await.context("no answer")??;
            match said.context("the page has ended: see page.log")? {
                said if said == "done" => return Ok(last),
                said => last = said,
            }
        }
    }

    async fn end(mut self) -> Result<()> {
        drop(self.to);
        let ended = timeout(PATIENCE, self.child.wait()).await.context("the page does not end")??;
        ensure!(ended.success(), "the page ended with {ended}: see page.log");
        Ok(())
    }
}

/// The page's program, as it is in the checkout.
async fn built() -> Result<PathBuf> {
    let target = target()?;
    let build = Program::new(tools::cargo())
        .args(["build", "--quiet", "--locked", "-p", "left4me-web", "--example", "played", "--target-dir"])
        .arg(target);
    process::output(build, BUILD).await?;
    Ok(target.join("debug/examples/played"))
}

fn target() -> Result<&'static Path> {
    Path::new(env!("CARGO_TARGET_TMPDIR")).parent().context("cargo's target directory")
}

async fn started(scratch: &Path) -> Result<(Page, Browser)> {
    let page = Page::start(scratch).await?;
    let mut browser = Browser::start(scratch, Some(&page.address)).await?;
    come_in(&mut browser, &page.address, "anna").await?;
    Ok((page, browser))
}

/// By the login's form, where somebody without a session comes to.
async fn come_in(browser: &mut Browser, address: &str, user: &str) -> Result<()> {
    browser.go(&format!("{address}/servers")).await?;
    let at = browser.value("location.pathname").await?;
    ensure!(at == "/login", "without a session the browser is at {at}");
    let fill = format!(
        "document.getElementById('user').value = {user:?}; document.getElementById('password').value = 'only for a try'"
    );
    browser.value(&fill).await?;
    click_to(browser, "#enter", "/servers").await
}

/// Waits until an expression is true, by an observer of the document: nothing is asked again and again.
async fn until(browser: &mut Browser, condition: &str) -> Result<()> {
    let expression = format!(
        "new Promise((done) => {{ const look = () => {{ if ({condition}) {{ watch.disconnect(); done(true); }} }}; \
         const watch = new MutationObserver(look); \
         watch.observe(document, {{ subtree: true, childList: true, attributes: true, characterData: true }}); look(); }})"
    );
    let seen = timeout(PATIENCE, browser.value(&expression)).await;
    let Ok(seen) = seen else {
        anyhow::bail!("never: {condition}");
    };
    ensure!(seen? == true, "{condition}");
    Ok(())
}

/// Clicks in the middle of an element, as a pointer does.
async fn click(browser: &mut Browser, selector: &str) -> Result<()> {
    let (x, y) = middle(browser, selector).await?;
    browser.point(x, y, true).await
}

async fn middle(browser: &mut Browser, selector: &str) -> Result<(f64, f64)> {
    let at = format!(
        "(() => {{ const box = document.querySelector({selector:?}).getBoundingClientRect(); \
         return [box.x + box.width / 2, box.y + box.height / 2]; }})()"
    );
    let at = browser.value(&at).await.with_context(|| format!("where is {selector}?"))?;
    Ok((at[0].as_f64().context("a place")?, at[1].as_f64().context("a place")?))
}

/// People take a tenth of a second for a click, and the row may change meanwhile.
async fn slow_click(scratch: &Path) -> Result<()> {
    let (mut page, mut browser) = started(scratch).await?;
    browser.go(&format!("{}/servers", page.address)).await?;
    until(&mut browser, "document.getElementById('start-3')").await?;
    mark_row(&mut browser).await?;
    let (x, y) = middle(&mut browser, "#start-3").await?;
    browser.mouse("mouseMoved", x, y).await?;
    browser.mouse("mousePressed", x, y).await?;
    page.play("set 4 active").await?;
    // It has come when another stream has it.
    let come = "new Promise((done) => { const stream = new EventSource('/live?page=/servers'); \
                stream.addEventListener('part', (event) => { \
                if (event.data.includes('state active')) { stream.close(); setTimeout(done); } }); })";
    browser.value(come).await?;
    let loads = browser.loads;
    browser.mouse("mouseReleased", x, y).await?;
    is_at(&mut browser, loads, "/servers/3").await?;
    until(&mut browser, "document.querySelector('td .succeeded')").await?;
    ensure!(page.play("done").await? == "start 3", "one start of 3");

    // What came while the pointer was pressed on nothing is shown afterwards.
    browser.go(&format!("{}/servers", page.address)).await?;
    until(&mut browser, "document.querySelector('#row-4 .active')").await?;
    browser.mouse("mousePressed", 2.0, 2.0).await?;
    page.play("set 4 failed").await?;
    browser.value(&come.replace("state active", "state failed")).await?;
    ensure!(browser.value("!!document.querySelector('#row-4 .active')").await? == true, "it does not wait");
    browser.mouse("mouseReleased", 2.0, 2.0).await?;
    until(&mut browser, "document.querySelector('#row-4 .failed')").await?;
    browser.end().await?;
    page.end().await
}

/// Marks the row: one in its place has no mark.
async fn mark_row(browser: &mut Browser) -> Result<()> {
    browser.value("document.getElementById('row-3').marked = true").await.map(drop)
}

const REPLACED: &str = "document.getElementById('row-3') && !document.getElementById('row-3').marked";
const OPEN: &str = "document.getElementById('ask').open";

/// 87d56a0, the second half of the postmortem's fix: the buttons of the dialog work although the row below was replaced.
async fn dialog(scratch: &Path) -> Result<()> {
    let (mut page, mut browser) = started(scratch).await?;
    browser.go(&format!("{}/servers", page.address)).await?;
    page.play("set 3 active").await?;
    until(&mut browser, "document.querySelector('#row-3 .active')").await?;

    // What is asked names the server and what is lost.
    click(&mut browser, "#reset-3").await?;
    until(&mut browser, OPEN).await?;
    let text = browser.text("#ask").await?;
    for words in ["Reset server 3?", "2 files, 3.0 MiB", "active", "deleted", "plays"] {
        ensure!(text.contains(words), "no {words:?} in the dialog: {text}");
    }

    // The row is replaced, and then Cancel and Reset are pressed.
    mark_row(&mut browser).await?;
    page.play("set 3 failed").await?;
    until(&mut browser, REPLACED).await?;
    ensure!(browser.value(OPEN).await? == true, "the dialog went with the row");
    click(&mut browser, "#cancel").await?;
    until(&mut browser, &format!("!{OPEN}")).await?;
    let focused = focused(&mut browser).await?;
    ensure!(focused == "reset-3", "after the dialog, the focus is on the row's button, not on {focused}");

    // The replaced row's button asks, too; and the row is replaced again before the reset.
    click(&mut browser, "#reset-3").await?;
    until(&mut browser, OPEN).await?;
    mark_row(&mut browser).await?;
    page.play("set 3 active").await?;
    until(&mut browser, REPLACED).await?;
    ensure!(page.play("done").await?.is_empty(), "nothing was asked for yet");
    click_to(&mut browser, "#confirm", "/servers/3").await?;
    until(&mut browser, "document.querySelector('td .succeeded')").await?;
    ensure!(page.play("done").await? == "reset 3", "one reset of 3");
    ensure!(browser.text("table").await?.contains("reset"), "the job's row");
    browser.end().await?;
    page.end().await
}

/// Where the focus is, once what was closed has had its say.
async fn focused(browser: &mut Browser) -> Result<String> {
    let then = "new Promise((done) => requestAnimationFrame(() => setTimeout(() => done(document.activeElement.id))))";
    Ok(browser.value(then).await?.as_str().unwrap_or_default().to_owned())
}

/// That the browser has come to a path: a form has been sent, and its answer is there.
async fn is_at(browser: &mut Browser, loads: u64, path: &str) -> Result<()> {
    browser.loaded_after(loads).await.with_context(|| format!("on the way to {path}"))?;
    let at = browser.value("location.pathname").await?;
    ensure!(at == path, "the browser is at {at}, not at {path}");
    Ok(())
}

/// Clicks on what leads to a server's page.
async fn click_to(browser: &mut Browser, selector: &str, path: &str) -> Result<()> {
    let loads = browser.loads;
    click(browser, selector).await?;
    is_at(browser, loads, path).await
}

async fn keyboard(scratch: &Path) -> Result<()> {
    let (mut page, mut browser) = started(scratch).await?;
    browser.go(&format!("{}/servers", page.address)).await?;
    until(&mut browser, "document.getElementById('reset-3')").await?;
    tab_to(&mut browser, "reset-3").await?;
    browser.press("Enter").await?;
    until(&mut browser, OPEN).await?;
    // What deletes is not what Enter does at once, and the focus does not leave the dialog.
    let at = focused(&mut browser).await?;
    ensure!(at == "cancel", "the dialog begins on {at}");
    browser.press("Escape").await?;
    until(&mut browser, &format!("!{OPEN}")).await?;
    let at = focused(&mut browser).await?;
    ensure!(at == "reset-3", "Escape goes back to the button, not to {at}");
    browser.press("Enter").await?;
    until(&mut browser, OPEN).await?;
    // The focus stays where it is while the row is replaced.
    mark_row(&mut browser).await?;
    page.play("set 3 failed").await?;
    until(&mut browser, REPLACED).await?;
    tab_to(&mut browser, "confirm").await?;
    let loads = browser.loads;
    browser.press("Enter").await?;
    is_at(&mut browser, loads, "/servers/3").await?;
    until(&mut browser, "document.querySelector('td .succeeded')").await?;
    ensure!(page.play("done").await? == "reset 3", "one reset of 3");
    browser.end().await?;
    page.end().await
}

/// The page's units in a machine, and their programs, by the recorder.
async fn machine(scratch: &Path) -> Result<()> {
    recorded(scratch, "page", &["press.pl", "taken.pl"]).await
}

/// What the page shows is systemd's, a second later at most, in virtual time.
async fn truth(scratch: &Path) -> Result<()> {
    recorded(scratch, "page-truth", &["truth.pl"]).await
}

async fn recorded(scratch: &Path, directory: &str, scripts: &[&str]) -> Result<()> {
    let root = left4me::workspace()?.root;
    let here = root.join("xtask/tests").join(directory);
    let text = std::fs::read_to_string(here.join("scenario.toml")).context("read the scenario")?;
    let text = text.replace("@ROOT@", &root.display().to_string());
    let snapshot = here.join("outcome.snap");
    let scenario =
        booted::scenario(scratch, &text, snapshot.exists().then_some(snapshot.clone()).as_slice()).await?;
    let shared = root.join("xtask/tests/page/files/http.pl");
    let scripts = scripts.iter().map(|script| here.join("files").join(script));
    for from in scripts.chain([shared]) {
        let to = scenario.join("files").join(from.file_name().context("a script")?);
        std::fs::copy(&from, &to).with_context(|| format!("copy {}", from.display()))?;
    }
    // Durations are not compared: the programs are another build on each host. So what came out is accepted there, and compared here.
    let run = Program::new(env!("CARGO_BIN_EXE_xtask")).env("INSTA_UPDATE", "always");
    let run = run.args(["vm-test", "--image", "trixie", "--results"]).arg(scratch.join("results"));
    process::output(run.arg(&scenario), BUILD).await?;
    // Which states a server goes through that is killed depends on the build, too: then the script alone judges.
    if !snapshot.exists() {
        return Ok(());
    }
    let [came, expected] =
        [&scenario, &here].map(|place| std::fs::read_to_string(place.join("outcome.snap")));
    let (came, expected) = (came.context("read what came out")?, expected.context("read what is expected")?);
    ensure!(came == expected, "not {}/outcome.snap:\n{came}", here.display());
    Ok(())
}

async fn tab_to(browser: &mut Browser, id: &str) -> Result<()> {
    for _ in 0..40 {
        browser.press("Tab").await?;
        if browser.value("document.activeElement.id").await? == id {
            return Ok(());
        }
    }
    anyhow::bail!("Tab does not lead to {id}")
}

async fn changes(scratch: &Path) -> Result<()> {
    let (mut page, mut browser) = started(scratch).await?;
    browser.go(&format!("{}/servers/3", page.address)).await?;
    page.play("hold").await?;
    until(&mut browser, "document.getElementById('start-3')").await?;
    click_to(&mut browser, "#start-3", "/servers/3").await?;
    // While it is under way, the buttons say why they cannot be pressed; and then the job is over, and the server runs.
    until(&mut browser, "document.querySelector('#reset-3[aria-disabled]')").await?;
    let why = browser.text(".why").await?;
    ensure!(why.contains("job 1 (start) is under way"), "{why}");
    page.play("go").await?;
    until(
        &mut browser,
        "document.querySelector('td .succeeded') && document.querySelector('#live > p .active')",
    )
    .await?;
    // It crashes, and nobody here did anything.
    page.play("set 3 failed").await?;
    until(&mut browser, "document.querySelector('#live > p .failed')").await?;
    // A job that fails shows all of it.
    page.play("fail umount: EBUSY: held by 196 (left4me-overlay) <script>throw 1</script>").await?;
    click_to(&mut browser, "#start-3", "/servers/3").await?;
    until(&mut browser, "document.querySelector('td .failed')").await?;
    browser.go(&format!("{}/jobs/2", page.address)).await?;
    let error = browser.text("pre.problem").await?;
    ensure!(error.contains("held by 196 (left4me-overlay) <script>"), "{error}");
    browser.end().await?;
    page.end().await
}

/// Its end is what is seen, and goes along; who reads further up can read.
async fn journal(scratch: &Path) -> Result<()> {
    const AT_ITS_END: &str = "(({ scrollTop, clientHeight, scrollHeight }) => scrollTop > 0 && scrollTop + clientHeight >= scrollHeight - 4)\
                               (document.getElementById('journal'))";
    let (mut page, mut browser) = started(scratch).await?;
    for number in 0..40 {
        page.play(&format!("say line {number}")).await?;
    }
    browser.go(&format!("{}/servers/3", page.address)).await?;
    until(&mut browser, "document.getElementById('journal').innerText.includes('line 39')").await?;
    ensure!(browser.value(AT_ITS_END).await? == true, "the newest line is not seen at first");
    page.play("say something new").await?;
    until(&mut browser, "document.getElementById('journal').innerText.includes('something new')").await?;
    ensure!(browser.value(AT_ITS_END).await? == true, "the newest line is not seen when it comes");

    browser.value("document.getElementById('journal').scrollTop = 20").await?;
    page.play("say more").await?;
    page.play("set 3 active").await?;
    until(&mut browser, "document.querySelector('#live > p .active')").await?;
    let at = browser.value("document.getElementById('journal').scrollTop").await?;
    ensure!(at == 20, "who reads at 20 is at {at}");
    browser.value("document.getElementById('journal').scrollTop = 10000").await?;
    page.play("set 3 failed").await?;
    until(&mut browser, "document.getElementById('journal').innerText.includes('more')").await?;
    ensure!(browser.value(AT_ITS_END).await? == true, "it does not go on");
    browser.end().await?;
    page.end().await
}

/// Without HTTP/2 a browser has six connections to a host, for all of its tabs, and each stream is one.
async fn tabs(scratch: &Path) -> Result<()> {
    let (mut page, mut browser) = started(scratch).await?;
    browser.go(&format!("{}/servers", page.address)).await?;
    until(&mut browser, "document.getElementById('row-3')").await?;
    for _ in 0..8 {
        let tab = json!({ "url": format!("{}/servers/3", page.address) });
        browser.ask("Target.createTarget", tab).await?;
    }
    // Whoever comes back to a tab sees what has changed meanwhile.
    page.play("set 3 active").await?;
    browser.ask("Page.bringToFront", json!({})).await?;
    until(&mut browser, "document.querySelector('#row-3 .active')").await?;
    browser.go(&format!("{}/servers/3", page.address)).await?;
    page.play("set 3 failed").await?;
    until(&mut browser, "document.querySelector('#live > p .failed')").await?;
    browser.end().await?;
    page.end().await
}

/// A page that is open when its session ends goes to the login by itself; and one who looks has no button that does anything.
async fn roles(scratch: &Path) -> Result<()> {
    let (mut page, mut browser) = started(scratch).await?;
    let loads = browser.loads;
    // As from another tab.
    let leave = "fetch('/logout', { method: 'POST', redirect: 'manual', \
                 body: new URLSearchParams(new FormData(document.getElementById('leave'))) }).then(() => true)";
    browser.value(leave).await?;
    is_at(&mut browser, loads, "/login").await?;
    come_in(&mut browser, &page.address, "otto").await?;
    until(&mut browser, "document.querySelector('#row-3 [aria-disabled]')").await?;
    ensure!(browser.text("#leave span").await? == "otto, look", "who is in");
    let why = browser.text("#row-3 .why").await?;
    ensure!(why == "you may look, and not operate", "{why}");
    for button in ["#start-3", "#reset-3"] {
        click(&mut browser, button).await?;
    }
    ensure!(browser.value(OPEN).await? == false, "a question that is not for who looks");
    ensure!(page.play("done").await?.is_empty(), "nothing was done");
    browser.end().await?;
    page.end().await
}
