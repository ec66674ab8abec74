//! A browser that tests look with and act through: Debian's chromium without a window, by its DevTools protocol over a pipe
//! (`--remote-debugging-pipe`), so that no port is open.
//!
//! The pages are files, or those of one server. Whatever a page logs as an error, throws, or asks anybody else for is kept and ends
//! [`Browser::end`] in an error: a page that is right says nothing.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::unix::pipe;
use tokio::time::timeout;
use vm_tests::host::process::{Child, Program, Sink};
use vm_tests::host::tools::{self, BROWSER, Need};

/// For one answer. A browser that starts on a busy host takes seconds, and a page in an emulated machine there more.
const PATIENCE: Duration = Duration::from_secs(300);

/// A browser with one page.
#[derive(Debug)]
pub(crate) struct Browser {
    child: Child,
    to: pipe::Sender,
    from: BufReader<pipe::Receiver>,
    session: Option<String>,
    asked: u64,
    /// How many pages were loaded.
    pub(crate) loads: u64,
    /// What the addresses begin with that a page may ask for.
    ours: Vec<String>,
    /// What pages said that they should not.
    complaints: Vec<String>,
}

impl Browser {
    /// Starts one, with its profile in `scratch`. Its pages are files, and what is below `server`.
    pub(crate) async fn start(scratch: &Path, server: Option<&str>) -> Result<Self> {
        Self::start_with(scratch, server, &[]).await
    }

    /// The same, with more options of chromium's.
    pub(crate) async fn start_with(scratch: &Path, server: Option<&str>, options: &[String]) -> Result<Self> {
        tools::ensure(&[Need::Browser], None, Path::new(env!("CARGO_TARGET_TMPDIR"))).await?;
        let (to, theirs) = pipe::pipe().context("make a pipe")?;
        let (ours, from) = pipe::pipe().context("make a pipe")?;
        let profile = format!("--user-data-dir={}", scratch.join("profile").display());
        let log = std::fs::File::create(scratch.join("browser.log")).context("create the browser's log")?;
        let child = Program::new(BROWSER)
            .args(["--headless", "--disable-gpu", "--no-first-run", "--remote-debugging-pipe", &profile])
            // Its sandbox is not to be had by root, and it opens our own files only. A container's /dev/shm may be small.
            .args(["--no-sandbox", "--disable-dev-shm-usage", "--hide-scrollbars"])
            .args(options)
            .arg("about:blank")
            .stdout(Sink::Null)
            .stderr(Sink::File(log))
            .pass_fd(theirs.into_blocking_fd()?, 3)
            .pass_fd(ours.into_blocking_fd()?, 4)
            .spawn()?;
        let from = BufReader::new(from);
        let ours = ["file:", "about:", "data:"].into_iter().chain(server).map(str::to_owned).collect();
        let mut browser =
            Self { child, to, from, session: None, asked: 0, loads: 0, ours, complaints: Vec::new() };
        let target = browser.ask("Target.createTarget", json!({ "url": "about:blank" })).await?;
        let of = json!({ "targetId": target["targetId"], "flatten": true });
        let attached = browser.ask("Target.attachToTarget", of).await?;
        browser.session = attached["sessionId"].as_str().map(str::to_owned);
        for domain in ["Page", "Runtime", "Log", "Network"] {
            browser.ask(&format!("{domain}.enable"), json!({})).await?;
        }
        browser.size(1500, 1200).await?;
        Ok(browser)
    }

    /// The size of its window, in pixels.
    pub(crate) async fn size(&mut self, width: u32, height: u32) -> Result<()> {
        let size = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": false });
        self.ask("Emulation.setDeviceMetricsOverride", size).await.map(drop)
    }

    /// Opens an address, and waits until it is drawn.
    pub(crate) async fn go(&mut self, url: &str) -> Result<()> {
        // Not the same page with another fragment, which would not load anew.
        for url in ["about:blank", url] {
            let loads = self.loads;
            let went = self.ask("Page.navigate", json!({ "url": url })).await?;
            ensure!(went["errorText"].is_null(), "{url}: {}", went["errorText"]);
            self.loaded_after(loads).await?;
        }
        let drawn = "new Promise((done) => requestAnimationFrame(() => done(location.href)))";
        let at = self.value(drawn).await?;
        let is_ours = |at: &str| at != "about:blank" && self.is_ours(at);
        ensure!(at.as_str().is_some_and(is_ours), "{url}: the page is {at}");
        Ok(())
    }

    /// Waits until a page has been loaded since there were so many.
    pub(crate) async fn loaded_after(&mut self, loads: u64) -> Result<()> {
        let loaded = async {
            while self.loads == loads {
                let message = self.message().await?;
                self.hear(&message);
            }
            Ok(())
        };
        timeout(PATIENCE, loaded).await.context("no page was loaded")?
    }

    fn is_ours(&self, url: &str) -> bool {
        self.ours.iter().any(|ours| url.starts_with(ours))
    }

    /// The value of an expression, once it is there.
    pub(crate) async fn value(&mut self, expression: &str) -> Result<Value> {
        let how = json!({ "expression": expression, "returnByValue": true, "awaitPromise": true });
        let said = self.ask("Runtime.evaluate", how).await?;
        ensure!(said["exceptionDetails"].is_null(), "{expression}: {}", said["exceptionDetails"]);
        Ok(said["result"]["value"].clone())
    }

    /// The text that a person sees of the first element that matches.
    pub(crate) async fn text(&mut self, selector: &str) -> Result<String> {
        let expression = format!("document.querySelector({}).innerText", json!(selector));
        Ok(self.value(&expression).await?.as_str().unwrap_or_default().to_owned())
    }

    /// Moves the pointer to a place in the window; with `click`, presses there.
    pub(crate) async fn point(&mut self, x: f64, y: f64, click: bool) -> Result<()> {
        let kinds: &[&str] =
            if click { &["mouseMoved", "mousePressed", "mouseReleased"] } else { &["mouseMoved"] };
        for kind in kinds {
            self.mouse(kind, x, y).await?;
        }
        Ok(())
    }

    /// One event of the pointer: `mouseMoved`, `mousePressed`, `mouseReleased`.
    pub(crate) async fn mouse(&mut self, kind: &str, x: f64, y: f64) -> Result<()> {
        let button = if kind == "mouseMoved" { "none" } else { "left" };
        let event = json!({ "type": kind, "x": x, "y": y, "button": button, "clickCount": 1 });
        self.ask("Input.dispatchMouseEvent", event).await.map(drop)
    }

    /// Presses a key: `ArrowRight`, `f`, `Enter`.
    pub(crate) async fn press(&mut self, key: &str) -> Result<()> {
        // What the browser itself does with a key goes by its number and its text.
        let (number, text) = match key {
            "Tab" => (9, ""),
            "Enter" => (13, "\r"),
            "Escape" => (27, ""),
            _ => (0, ""),
        };
        for kind in ["keyDown", "keyUp"] {
            let text = if kind == "keyDown" { text } else { "" };
            let event = json!({ "type": kind, "key": key, "windowsVirtualKeyCode": number, "text": text });
            self.ask("Input.dispatchKeyEvent", event).await?;
        }
        Ok(())
    }

    /// How the page is to be shown: `screen` or `print`, `light` or `dark`.
    pub(crate) async fn show(&mut self, media: &str, scheme: &str) -> Result<()> {
        let features = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
        let how = json!({ "media": media, "features": features });
        self.ask("Emulation.setEmulatedMedia", how).await.map(drop)
    }

    /// Writes the whole page as a picture.
    pub(crate) async fn picture(&mut self, file: &Path) -> Result<()> {
        let how = json!({ "format": "png", "captureBeyondViewport": true });
        let said = self.ask("Page.captureScreenshot", how).await?;
        let text = said["data"].as_str().context("a picture")?;
        let bytes = STANDARD.decode(text).context("a picture is base64")?;
        std::fs::write(file, bytes).with_context(|| format!("write {}", file.display()))
    }

    /// Ends it.
    ///
    /// # Errors
    /// What pages complained of, or asked a network for.
    pub(crate) async fn end(mut self) -> Result<()> {
        self.ask("Browser.close", json!({})).await?;
        timeout(PATIENCE, self.child.wait()).await.context("the browser does not end")??;
        ensure!(self.complaints.is_empty(), "the page said: {}", self.complaints.join("\n"));
        Ok(())
    }

    /// Asks it for something of its DevTools protocol.
    pub(crate) async fn ask(&mut self, method: &str, parameters: Value) -> Result<Value> {
        self.asked += 1;
        let mut message = json!({ "id": self.asked, "method": method, "params": parameters });
        if let Some(session) = &self.session {
            message["sessionId"] = json!(session);
        }
        let mut bytes = serde_json::to_vec(&message)?;
        bytes.push(0);
        self.to.write_all(&bytes).await.with_context(|| format!("ask the browser for {method}"))?;
        let answer =
            timeout(PATIENCE, self.answer()).await.with_context(|| format!("no answer to {method}"))??;
        ensure!(answer["error"].is_null(), "{method}: {}", answer["error"]);
        Ok(answer["result"].clone())
    }

    /// The answer to what was asked last; what comes before is looked at.
    async fn answer(&mut self) -> Result<Value> {
        loop {
            let message = self.message().await?;
            if message["id"] == self.asked {
                return Ok(message);
            }
            self.hear(&message);
        }
    }

    async fn message(&mut self) -> Result<Value> {
        let mut bytes = Vec::new();
        if self.from.read_until(0, &mut bytes).await? == 0 {
            bail!("the browser has ended: see browser.log");
        }
        Ok(serde_json::from_slice(bytes.strip_suffix(&[0]).unwrap_or(&bytes))?)
    }

    fn hear(&mut self, event: &Value) {
        let parameters = &event["params"];
        let complaint = match event["method"].as_str() {
            Some("Page.loadEventFired") => {
                self.loads += 1;
                return;
            }
            Some("Runtime.exceptionThrown") => &parameters["exceptionDetails"],
            Some("Runtime.consoleAPICalled") => &parameters["args"],
            Some("Log.entryAdded") => &parameters["entry"],
            Some("Network.requestWillBeSent") => {
                let url = parameters["request"]["url"].as_str().unwrap_or_default();
                if self.is_ours(url) {
                    return;
                }
                &parameters["request"]
            }
            _ => return,
        };
        self.complaints.push(complaint.to_string());
    }
}
