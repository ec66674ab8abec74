//! A manifest that begins with another: how the two are laid over each other.

use std::path::Path;

use anyhow::{Context, Result, bail};

use super::manifest::Manifest;

/// Reads a manifest and the one that it begins with.
pub(super) fn read(file: &Path) -> Result<Manifest> {
    let text = std::fs::read_to_string(file).with_context(|| {
        format!("read {}: a scenario is a directory with a scenario.toml", file.display())
    })?;
    let what = || format!("parse {}", file.display());
    let own: toml::Table = toml::from_str(&text).with_context(what)?;
    if own.contains_key(BASE) {
        let whole = with_base(own, file)?;
        whole.try_into().with_context(|| format!("{}, with its base", what()))
    } else {
        // From the text, so that an error names the line.
        toml::from_str(&text).with_context(what)
    }
}

const BASE: &str = "base";

/// What a base may itself begin with is bounded, so that two that name each other are an error.
const BASES: usize = 4;

/// A manifest laid over its base. Tables are merged, `deploy.trees` of the base come first, any other key replaces the
/// base's. The base's paths are relative to where it lies.
fn with_base(mut own: toml::Table, file: &Path) -> Result<toml::Table> {
    let mut file = file.to_owned();
    for _ in 0..BASES {
        let Some(base) = own.remove(BASE) else { return Ok(own) };
        let base = base.as_str().with_context(|| format!("{}: base: give a path", file.display()))?;
        let directory = file.parent().context("a manifest lies in a directory")?.to_owned();
        file = directory.join(base);
        let text = std::fs::read_to_string(&file).with_context(|| format!("read base {}", file.display()))?;
        let mut base: toml::Table =
            toml::from_str(&text).with_context(|| format!("parse {}", file.display()))?;
        let directory = file.parent().context("a manifest lies in a directory")?;
        make_absolute(&mut base, &std::path::absolute(directory)?);
        merge(&mut base, own);
        own = base;
    }
    bail!("{}: more than {BASES} bases in a row", file.display())
}

fn make_absolute(base: &mut toml::Table, directory: &Path) {
    let join = |value: &mut toml::Value| {
        if let toml::Value::String(path) = value {
            *path = directory.join(&path).to_string_lossy().into_owned();
        }
    };
    let Some(toml::Value::Table(deploy)) = base.get_mut("deploy") else { return };
    if let Some(toml::Value::Array(trees)) = deploy.get_mut("trees") {
        trees.iter_mut().for_each(join);
    }
    if let Some(toml::Value::Table(programs)) = deploy.get_mut("programs") {
        let is_path = |value: &&mut toml::Value| value.as_str().is_some_and(|name| name.contains('/'));
        programs.iter_mut().map(|(_, value)| value).filter(is_path).for_each(join);
    }
}

fn merge(base: &mut toml::Table, over: toml::Table) {
    for (key, value) in over {
        match (base.get_mut(&key), value) {
            (Some(toml::Value::Table(base)), toml::Value::Table(over)) => merge(base, over),
            (Some(toml::Value::Array(base)), toml::Value::Array(over)) if key == "trees" => base.extend(over),
            (_, value) => drop(base.insert(key, value)),
        }
    }
}
