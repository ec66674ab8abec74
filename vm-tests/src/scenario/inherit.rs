//! A manifest that begins with another: how the two are laid over each other.

use std::path::{Path, PathBuf};

use super::problem::Problem;
use super::tree::{At, Node, Value, parse};

/// The key that names the other.
pub(super) const BASE: &str = "base";

/// What a base may itself begin with is bounded, so that two that name each other are an error.
const BASES: usize = 4;

/// Reads a manifest, laid over the one that it begins with. Tables are merged, `deploy.trees` of the base come first, any
/// other key replaces the base's. The base's paths are relative to where it lies, and `files/` there is the last of its
/// trees.
///
/// # Errors
/// What can't be read or is no TOML.
pub(super) fn read(file: &Path) -> Result<Node, Vec<Problem>> {
    let mut own = parse_file(file).map_err(|why| match why {
        Unread::Missing(why) => {
            let what = format!("{why}: a scenario is a directory with a scenario.toml");
            vec![Problem { file: shown(file), line: 0, column: 0, what }]
        }
        Unread::Wrong(problems) => problems,
    })?;
    let mut seen = vec![own.at.source.directory.clone()];
    for _ in 0..BASES {
        let Some((key, base)) = take_base(&mut own) else { return Ok(own) };
        let Value::String(base) = base.value else {
            return Err(vec![key.problem(format!("{BASE}: give the path of a manifest, in quotes"))]);
        };
        let file = key.source.directory.join(&base);
        let mut base = parse_file(&file).map_err(|why| match why {
            Unread::Missing(why) => vec![key.problem(format!("{BASE} = {base:?}: {}: {why}", shown(&file)))],
            Unread::Wrong(problems) => problems,
        })?;
        make_absolute(&mut base);
        // Manifests in one directory have the same files, which are laid once.
        let directory = base.at.source.directory.clone();
        if !seen.contains(&directory) {
            add_files(&mut base, &key, &directory.join("files"));
            seen.push(directory);
        }
        own = merged(base, own);
    }
    match take_base(&mut own) {
        None => Ok(own),
        Some((key, _)) => Err(vec![key.problem(format!("{BASE}: more than {BASES} bases in a row"))]),
    }
}

fn take_base(manifest: &mut Node) -> Option<(At, Node)> {
    match &mut manifest.value {
        Value::Table(table) => table.remove(BASE),
        _ => None,
    }
}

enum Unread {
    Missing(std::io::Error),
    Wrong(Vec<Problem>),
}

fn parse_file(file: &Path) -> Result<Node, Unread> {
    let text = std::fs::read_to_string(file).map_err(Unread::Missing)?;
    parse(file, shown(file), text).map_err(Unread::Wrong)
}

/// A file as a user would name it: from the working directory, if it lies below.
pub(super) fn shown(file: &Path) -> String {
    let whole = file.canonicalize().or_else(|_gone| std::path::absolute(file)).unwrap_or(file.to_owned());
    let here = std::env::current_dir().and_then(|here| here.canonicalize()).unwrap_or(PathBuf::from("/"));
    whole.strip_prefix(&here).unwrap_or(&whole).display().to_string()
}

/// A table laid over another. What it lacks is missing in the one on top.
fn merged(base: Node, over: Node) -> Node {
    let (Value::Table(mut table), Value::Table(entries)) = (base.value, over.value.clone()) else {
        return over;
    };
    for (name, (key, node)) in entries {
        let value = match (table.remove(&name), node) {
            (Some((_, base)), node)
                if matches!((&base.value, &node.value), (Value::Table(_), Value::Table(_))) =>
            {
                merged(base, node)
            }
            (Some((_, Node { value: Value::Array(base), .. })), Node { at, value: Value::Array(over) })
                if name == TREES =>
            {
                Node { at, value: Value::Array([base, over].concat()) }
            }
            (_, node) => node,
        };
        table.insert(name, (key, value));
    }
    Node { value: Value::Table(table), ..over }
}

const TREES: &str = "trees";

/// Adds a directory to a base's trees, if it is there.
fn add_files(base: &mut Node, at: &At, files: &Path) {
    if !files.is_dir() {
        return;
    }
    let node = |value| Node { at: at.clone(), value };
    let tree = node(Value::String(files.to_string_lossy().into_owned()));
    let Value::Table(table) = &mut base.value else { return };
    let (_, deploy) = table
        .entry("deploy".to_owned())
        .or_insert_with(|| (at.clone(), node(Value::Table(Default::default()))));
    let Value::Table(deploy) = &mut deploy.value else { return };
    let (_, trees) =
        deploy.entry(TREES.to_owned()).or_insert_with(|| (at.clone(), node(Value::Array(Vec::new()))));
    if let Value::Array(trees) = &mut trees.value {
        trees.push(tree);
    }
}

fn make_absolute(base: &mut Node) {
    let join = |node: &mut Node| {
        if let Value::String(path) = &mut node.value {
            let whole: PathBuf = node.at.source.directory.join(&path).components().collect();
            *path = whole.to_string_lossy().into_owned();
        }
    };
    let Some(deploy) = base.entry("deploy") else { return };
    if let Some(Node { value: Value::Array(trees), .. }) = deploy.entry(TREES) {
        trees.iter_mut().for_each(join);
    }
    if let Some(Node { value: Value::Table(programs), .. }) = deploy.entry("programs") {
        let is_path = |node: &&mut Node| matches!(&node.value, Value::String(name) if name.contains('/'));
        programs.values_mut().map(|(_, node)| node).filter(is_path).for_each(join);
    }
}
