//! The operator's page on NixOS: not there unless it is enabled, and then with the shipped units.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use crate::{Tree, debians, installed, root};

/// Its four units.
const UNITS: [&str; 4] =
    ["left4me-broker.service", "left4me-broker.socket", "left4me-web.service", "left4me-web.socket"];

/// Where its package has the places of its list.
const PLACES: &[(&str, &str)] =
    &[("{libexec}", "libexec"), ("{man}", "share/man"), ("{doc}", "share/doc/left4me-web")];

/// A proxy's group, and the name that it is known by.
const BEHIND_A_PROXY: &str = "{ services.left4me = { enable = true; page = { enable = true; proxyGroup = \"nginx\"; \
                              hostName = \"panel.example.org\"; }; }; }";

pub(crate) async fn enabled(tree: &Tree) -> Result<()> {
    let without = tree.right(&root().join("xtask/tests/flake/three.nix")).await?;
    ensure!(UNITS.iter().all(|name| without["units"][name].is_null()), "{}", without["units"]);
    ensure!(without["sockets"] == json!([]), "{}", without["sockets"]);

    let plain = tree.file("host.nix", "{ services.left4me = { enable = true; page.enable = true; }; }")?;
    let seen = tree.right(&plain).await?;
    for name in UNITS {
        let (text, shipped) = (debians(&seen, name, &tree.path)?, shipped(name)?);
        ensure!(text == shipped, "{name} is not the shipped one: {text}");
    }
    ensure!(seen["sockets"] == json!(["left4me-broker.socket", "left4me-web.socket"]), "{}", seen["sockets"]);
    let account = json!({ "uid": null, "group": "left4me-web", "extraGroups": [] });
    ensure!(seen["accounts"]["left4me-web"] == account, "{}", seen["accounts"]);
    ensure!(seen["groups"].get("left4me-web").is_some(), "{}", seen["groups"]);

    let seen = tree.right(&tree.file("proxy.nix", BEHIND_A_PROXY)?).await?;
    let added = [
        ("left4me-web.socket", "\n[Socket]\nSocketGroup=nginx\nSocketMode=0660\n"),
        (
            "left4me-web.service",
            "\n[Service]\nExecStart=\nExecStart=/usr/local/libexec/left4me/left4me-web --name panel.example.org \
             /var/lib/left4me-web/jobs.sqlite\n",
        ),
    ];
    for (name, added) in added {
        let text = debians(&seen, name, &tree.path)?;
        ensure!(text == shipped(name)? + added, "{name}: {text}");
    }
    Ok(())
}

fn shipped(name: &str) -> Result<String> {
    fs::read_to_string(root().join("web/units").join(name)).with_context(|| format!("read {name}"))
}

pub(crate) async fn package(tree: &Tree) -> Result<()> {
    installed(tree, "web/manifest.toml", "installPage", PLACES).await.map(drop)
}
