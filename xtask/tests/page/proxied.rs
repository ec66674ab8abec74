//! The page behind a proxy with TLS, by the files that docs/page.md has: Debian's nginx, and its caddy, each in a machine. The browser comes
//! by the proxy's name; what the page believes of it is what the proxy says.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use crate::booted::{self, Booted};
use crate::browser::Browser;
use crate::postmortem::{flow, manifest};
use crate::{come_in, left4me, until};

/// The heading of the document's files.
const HEADING: &str = "\n### From elsewhere, by a proxy with TLS\n";

/// The name that they have for the page.
const NAME: &str = "panel.example.org";

/// A stream says something by itself after 15 s, which would bring what a proxy kept back.
const AT_ONCE: Duration = Duration::from_secs(12);

/// The certificate of the document's nginx, as somebody makes one for a try.
const CERTIFICATE: &str = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 \
     -subj /CN=panel.example.org -keyout /etc/ssl/panel.key -out /etc/ssl/panel.pem 2>/dev/null";

/// What nobody can have without a network: a certificate of somebody else's. A block of its own, before the document's.
const LOCAL: &str = "{\n    local_certs\n    skip_install_trust\n}\n";

/// A proxy, and what is beside the document.
struct Proxy {
    /// Its unit, and how its file begins in the document.
    name: &'static str,
    packages: &'static str,
    file: &'static str,
    group: &'static str,
    before: &'static str,
    prepare: &'static str,
}

pub(crate) async fn nginx(scratch: &Path) -> Result<()> {
    let proxy = Proxy {
        name: "nginx",
        packages: "[\"nginx\", \"openssl\"]",
        file: "/etc/nginx/conf.d/panel.conf",
        group: "www-data",
        before: "",
        prepare: CERTIFICATE,
    };
    run(scratch, &proxy).await
}

pub(crate) async fn caddy(scratch: &Path) -> Result<()> {
    let proxy = Proxy {
        name: "caddy",
        // The image has no /etc/hosts, and caddy asks what `localhost` is.
        packages: "[\"caddy\", \"libnss-myhostname\"]",
        file: "/etc/caddy/Caddyfile",
        group: "caddy",
        before: LOCAL,
        prepare: "true",
    };
    run(scratch, &proxy).await
}

async fn run(scratch: &Path, proxy: &Proxy) -> Result<()> {
    let document = std::fs::read_to_string(left4me::workspace()?.root.join("docs/page.md"));
    let files = files(&document.context("read the document")?)?;
    let text = format!("packages = {}\n{}", proxy.packages, manifest("fixtures/product.toml", false)?);
    let scenario = booted::scenario(scratch, &text, &[]).await?;
    let mut machine = Booted::restore(scratch, &scenario).await?;
    let done = used(&mut machine, scratch, proxy, &files).await;
    machine.end(done).await
}

/// The document's files, each with its path, which is its first line.
fn files(document: &str) -> Result<Vec<(String, String)>> {
    let (_, section) = document.split_once(HEADING).context("docs/page.md has no such heading")?;
    let section = section.split("\n## ").next().unwrap_or(section);
    let blocks = section.split("```").skip(1).step_by(2).filter_map(|block| block.split_once('\n'));
    let named = blocks.filter_map(|(_kind, text)| {
        let path = text.lines().next()?.strip_prefix("# /")?;
        Some((format!("/{path}"), text.to_owned()))
    });
    let named: Vec<_> = named.collect();
    ensure!(named.len() == 4, "docs/page.md has {} files in{HEADING}", named.len());
    Ok(named)
}

async fn used(machine: &mut Booted, scratch: &Path, proxy: &Proxy, files: &[(String, String)]) -> Result<()> {
    let has = |path: &str| files.iter().any(|(name, _)| name == path);
    ensure!(has(proxy.file), "docs/page.md has no {}", proxy.file);
    for (path, text) in files {
        let text = match path.as_str() {
            path if path == proxy.file => format!("{}{text}", proxy.before),
            path if path.starts_with("/etc/systemd/") => text.replace("www-data", proxy.group),
            _of_the_other => continue,
        };
        machine.host.sh(&format!("mkdir -p $(dirname {path})")).await?;
        machine.host.put(path, 0o644, text.as_bytes()).await?;
    }
    machine.enable().await?;
    machine.host.sh(&format!("{} && systemctl restart {}", proxy.prepare, proxy.name)).await?;

    let at = machine.forward(443).await?;
    let address = format!("https://{NAME}");
    let options =
        [format!("--host-resolver-rules=MAP {NAME}:443 {at}"), "--ignore-certificate-errors".to_owned()];
    let mut browser = Browser::start_with(scratch, Some(&address), &options).await?;
    come_in(&mut browser, &address, "anna").await?;
    let cookies = browser.ask("Network.getCookies", json!({})).await?;
    let [cookie] = cookies["cookies"].as_array().context("cookies")?.as_slice() else {
        anyhow::bail!("not one cookie: {cookies}");
    };
    ensure!(cookie["name"] == "__Host-left4me" && cookie["secure"] == true, "{cookie}");
    browser.go(&format!("{address}/servers/3")).await?;
    flow(&mut browser, "succeeded").await?;

    // What changes comes at once, and not with what comes later.
    machine.host.sh("l4d2ctl start 3").await?;
    until(&mut browser, "document.querySelector('#live > p .active')").await?;
    let begun = Instant::now();
    machine.host.sh("systemctl stop left4me-server@3.service").await?;
    until(&mut browser, "document.querySelector('#live > p .inactive')").await?;
    let took = begun.elapsed();
    eprintln!("{}: a Stop is shown {:.1} s after it was asked for", proxy.name, took.as_secs_f64());
    ensure!(took < AT_ONCE, "a Stop is shown after {took:?}: does {} keep back what comes?", proxy.name);

    // Whose address is another one by what the browser says.
    let forged = "fetch('/servers/3/stop', { method: 'POST', redirect: 'manual', \
                  headers: { 'X-Forwarded-For': '198.51.100.9', 'X-Forwarded-Proto': 'http' }, \
                  body: new URLSearchParams(new FormData(document.getElementById('leave'))) }).then((answer) => answer.type)";
    let answer = browser.value(forged).await?;
    ensure!(answer == "opaqueredirect", "a press with headers that it made up: {answer}");
    browser.end().await?;
    for verb in ["login", "start", "reset", "stop"] {
        let said = format!(
            "journalctl --quiet --output=cat LEFT4ME_USER=anna LEFT4ME_PEER=127.0.0.1 LEFT4ME_VERB={verb}"
        );
        let said = machine.host.sh(&said).await?;
        ensure!(!said.is_empty(), "no {verb} of anna from 127.0.0.1 in the journal");
    }
    let others = machine
        .host
        .sh("journalctl --quiet --output=cat LEFT4ME_USER=anna | grep -vF '(127.0.0.1)' || true")
        .await?;
    ensure!(others.is_empty(), "the proxy's clients are others, too: {others}");
    Ok(())
}
