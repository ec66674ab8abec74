//! Each page, light and dark: as pictures for people to look at, and for axe-core, which says what somebody could not read or reach.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

use crate::browser::Browser;
use crate::{OPEN, Page, click, click_to, started, until};

/// The file of axe-core that browsers have, `axe.min.js`: <https://www.npmjs.com/package/axe-core>. The project has none of its own.
pub(crate) const AXE_VAR: &str = "AXE";

/// What axe-core finds serious or worse, a line each.
const FOUND: &str = "axe.run(document).then((all) => all.violations.filter((one) => ['serious', 'critical'].includes(one.impact)) \
    .map((one) => `${one.id}: ${one.nodes.map((node) => `${node.html} (${node.failureSummary})`).join('; ')}`))";

/// What is done with a page that is shown.
enum Look {
    /// A picture, in a directory.
    Picture(PathBuf),
    /// By axe-core's text; what it found.
    Axe(String, Vec<String>),
}

impl Look {
    async fn at(&mut self, browser: &mut Browser, name: &str) -> Result<()> {
        match self {
            Self::Picture(kept) => browser.picture(&kept.join(format!("{name}.png"))).await,
            Self::Axe(axe, all) => {
                browser.value(&format!("{axe};0")).await.context("load axe-core")?;
                let found = browser.value(FOUND).await?;
                let found = found.as_array().context("what axe-core found")?;
                all.extend(found.iter().map(|one| format!("{name}: {one}")));
                Ok(())
            }
        }
    }
}

/// Pictures of all.
pub(crate) async fn pictures(scratch: &Path) -> Result<()> {
    let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join("page");
    std::fs::create_dir_all(&kept).context("make a directory for pictures")?;
    eprintln!("the pictures: {}", kept.display());
    everywhere(scratch, &mut Look::Picture(kept)).await
}

/// Nothing serious for who sees little, or uses no pointer.
pub(crate) async fn axe(scratch: &Path) -> Result<()> {
    let file =
        std::env::var_os(AXE_VAR).with_context(|| format!("{AXE_VAR}=FILE: the axe.min.js of axe-core"))?;
    let text = std::fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
    let mut look = Look::Axe(text, Vec::new());
    everywhere(scratch, &mut look).await?;
    let Look::Axe(_, found) = look else { return Ok(()) };
    ensure!(found.is_empty(), "axe-core found:\n{}", found.join("\n"));
    Ok(())
}

async fn everywhere(scratch: &Path, look: &mut Look) -> Result<()> {
    let (mut page, mut browser) = started(scratch).await?;
    as_on_a_bad_day(&mut page, &mut browser).await?;
    browser.size(1000, 700).await?;
    for scheme in ["light", "dark"] {
        browser.show("screen", scheme).await?;
        for (name, path) in [
            ("servers", "/servers"),
            ("server", "/servers/3"),
            ("server-held", "/servers/eu-1"),
            ("reset", "/servers/4/reset"),
            ("jobs", "/jobs"),
            ("job", "/jobs/1"),
            ("job-failed", "/jobs/2"),
            ("doctor", "/doctor"),
        ] {
            browser.go(&format!("{}{path}", page.address)).await?;
            look.at(&mut browser, &format!("{name}-{scheme}")).await?;
        }
        browser.size(390, 800).await?;
        for (name, path) in [("servers-small", "/servers"), ("server-small", "/servers/eu-1")] {
            browser.go(&format!("{}{path}", page.address)).await?;
            let wide = browser.value("document.documentElement.scrollWidth").await?;
            ensure!(wide.as_u64() <= Some(390), "{path} is {wide} pixels wide on a telephone of 390");
            look.at(&mut browser, &format!("{name}-{scheme}")).await?;
        }
        browser.size(1000, 700).await?;
        browser.go(&format!("{}/servers", page.address)).await?;
        click(&mut browser, "#reset-4").await?;
        until(&mut browser, OPEN).await?;
        look.at(&mut browser, &format!("dialog-{scheme}")).await?;
    }
    browser.go(&format!("{}/servers", page.address)).await?;
    click_to(&mut browser, "#logout", "/login").await?;
    for scheme in ["light", "dark"] {
        browser.show("screen", scheme).await?;
        look.at(&mut browser, &format!("login-{scheme}")).await?;
    }
    browser.end().await?;
    page.end().await
}

/// A server that runs, one whose job succeeded, and one whose job failed, with a mount that is left.
async fn as_on_a_bad_day(page: &mut Page, browser: &mut Browser) -> Result<()> {
    page.play("set 4 active").await?;
    page.play("players 3 c1m1_hotel").await?;
    page.play("say umount: EBUSY").await?;
    browser.go(&format!("{}/servers/3", page.address)).await?;
    until(browser, "document.getElementById('start-3')").await?;
    click_to(browser, "#start-3", "/servers/3").await?;
    until(browser, "document.querySelector('td .succeeded')").await?;
    let held = "held by 300 (sleep) of somebody.service: working directory: end it or have it leave, then unmount again";
    page.play(&format!("held {held}")).await?;
    page.play(&format!("fail the umount failed: EBUSY: {held}")).await?;
    browser.go(&format!("{}/servers/eu-1", page.address)).await?;
    until(browser, "document.getElementById('start-eu-1')").await?;
    click_to(browser, "#start-eu-1", "/servers/eu-1").await?;
    until(browser, "document.querySelector('td .failed')").await?;
    page.play("mend").await.map(drop)
}
