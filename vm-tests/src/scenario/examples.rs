//! The test that docs/scenarios.md has an example and a row for each key of a manifest, and no other key, and that each
//! example is an excerpt of a scenario that the suite runs, or a test explores.

use std::collections::BTreeSet;
use std::path::Path;

use super::keys::{ANY, keys};
use super::tree::{Node, Value, join, parse};

const DOCUMENT: &str = "docs/scenarios.md";

/// Where the suite's scenarios are.
const SCENARIOS: &str = "vm-tests/scenarios/";
/// Where those are that a test explores.
const EXPLORED: &str = "xtask/tests/explore/";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a workspace")
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("read {path}: {error}"))
}

/// The blocks of TOML in a document, and the number of the line before each.
fn blocks(text: &str) -> Vec<(usize, String)> {
    let mut blocks = Vec::new();
    let mut block: Option<(usize, String)> = None;
    for (index, line) in text.lines().enumerate() {
        match &mut block {
            None if line == "```toml" => block = Some((index + 1, String::new())),
            None => {}
            Some(_) if line == "```" => blocks.extend(block.take()),
            Some((_, text)) => *text = format!("{text}{line}\n"),
        }
    }
    blocks
}

/// What is wrong with a block as an excerpt of a manifest of the suite, whose text `manifest` gives.
fn not_an_excerpt(block: &str, manifest: impl Fn(&str) -> Option<String>) -> Option<String> {
    let mut lines = block.lines();
    let path = lines.next().and_then(|line| line.strip_prefix("# ")).unwrap_or_default();
    let is_one = |path: &&str| {
        [SCENARIOS, EXPLORED].iter().any(|root| path.starts_with(root)) && path.ends_with("/scenario.toml")
    };
    let whole = Some(path).filter(is_one);
    let Some(whole) = whole.and_then(manifest) else {
        return Some(format!(
            "a block begins with the manifest that it is from: # {SCENARIOS}<name>/scenario.toml"
        ));
    };
    let mut there = whole.lines();
    let lost = lines.filter(|line| !line.is_empty()).find(|line| !there.any(|one| one == *line))?;
    Some(format!("{path} has no such line, or not in this order: {lost}"))
}

/// The paths of the keys of a table, numbers of lists left out; `into` says which tables have keys of their own.
fn named(node: &Node, path: &str, into: &dyn Fn(&str) -> bool, all: &mut BTreeSet<String>) {
    match &node.value {
        Value::Table(table) if into(&format!("{path}.{ANY}")) => {
            for (_, node) in table.values() {
                named(node, &format!("{path}.{ANY}"), into, all);
            }
        }
        Value::Table(table) if into(path) => {
            for (name, (_, node)) in table {
                let path = join(path, name);
                named(node, &path, into, all);
                all.insert(path);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| named(item, path, into, all)),
        _ => {}
    }
}

/// The names in the first column of the tables whose head is `Key`.
fn rows(text: &str) -> BTreeSet<String> {
    let mut inside = false;
    let mut names = BTreeSet::new();
    for line in text.lines() {
        let cell = line.strip_prefix("| ").and_then(|line| line.split(" |").next());
        match cell.map(str::trim) {
            None if line.starts_with('|') => {}
            None => inside = false,
            Some("Key") => inside = true,
            Some(cell) if inside => names.extend(cell.split('`').skip(1).step_by(2).map(str::to_owned)),
            Some(_) => {}
        }
    }
    names
}

#[test]
fn every_key_has_a_row_and_an_example_that_the_suite_runs() {
    let text = read(DOCUMENT);
    let tables = keys();
    let all: BTreeSet<String> =
        tables.iter().flat_map(|(table, names)| names.iter().map(move |name| join(table, name))).collect();
    let mut wrong = Vec::new();

    let mut shown = BTreeSet::new();
    for (line, block) in blocks(&text) {
        let place = format!("{DOCUMENT}:{line}");
        let manifest = |path: &str| std::fs::read_to_string(root().join(path)).ok();
        wrong.extend(not_an_excerpt(&block, manifest).map(|what| format!("{place}: {what}")));
        match parse(Path::new(DOCUMENT), place, block) {
            Ok(node) => named(&node, "", &|path| tables.contains_key(path), &mut shown),
            Err(problems) => wrong.extend(problems.iter().map(ToString::to_string)),
        }
    }
    wrong.extend(
        shown.difference(&all).map(|key| format!("{DOCUMENT}: an example has {key}, which is no key")),
    );
    let last = |key: &str| key.rsplit('.').next().unwrap_or_default().to_owned();
    // In a table that there may be several of, a key is as it is elsewhere.
    let is_shown =
        |key: &&String| key.contains(&format!(".{ANY}.")) && shown.iter().any(|one| last(one) == last(key));
    wrong.extend(all.difference(&shown).filter(|key| !is_shown(key)).map(|key| {
        format!(
            "{DOCUMENT}: no example has {key}: give it to a scenario in {SCENARIOS}, and show its lines in a block of \
             toml whose first line is `# {SCENARIOS}<name>/scenario.toml`"
        )
    }));

    let rows = rows(&text);
    let has_row =
        |key: &&String| rows.contains(*key) || rows.contains(&last(key)) || tables.contains_key(*key);
    wrong.extend(
        all.iter().filter(|key| !has_row(key)).map(|key| format!("{DOCUMENT}: no table has a row for {key}")),
    );
    let known = |row: &&String| all.iter().any(|key| key == *row || last(key) == **row);
    wrong.extend(rows.iter().filter(|row| !known(row)).map(|row| format!("{DOCUMENT}: {row} is no key")));

    assert!(wrong.is_empty(), "\n  {}\n", wrong.join("\n  "));
}

#[test]
fn an_excerpt_has_a_manifests_lines_in_their_order() {
    let manifest =
        |path: &str| (path == "vm-tests/scenarios/x/scenario.toml").then(|| "a = 1\nb = 2\n".to_owned());
    let from = "# vm-tests/scenarios/x/scenario.toml";
    for (block, words) in [
        (format!("{from}\na = 1\n\nb = 2\n"), None),
        (format!("{from}\nb = 2\n"), None),
        (format!("{from}\nb = 2\na = 1\n"), Some("no such line, or not in this order: a = 1")),
        (format!("{from}\nb = 3\n"), Some("b = 3")),
        ("a = 1\n".to_owned(), Some("begins with the manifest")),
        ("# vm-tests/fixtures/x.toml\na = 1\n".to_owned(), Some("begins with the manifest")),
        ("# vm-tests/scenarios/y/scenario.toml\na = 1\n".to_owned(), Some("begins with the manifest")),
    ] {
        let wrong = not_an_excerpt(&block, manifest);
        let right =
            words.map_or(wrong.is_none(), |words| wrong.as_ref().is_some_and(|wrong| wrong.contains(words)));
        assert!(right, "{block}: {wrong:?}");
    }
    assert_eq!(blocks("```sh\nx\n```\n```toml\na\n```\n"), [(4, "a\n".to_owned())]);
    let names: Vec<String> =
        rows("| Key | M |\n|---|---|\n| `a`, `b.c` | `d` |\n\n| Verdict | M |\n| `e` | f |\n")
            .into_iter()
            .collect();
    assert_eq!(names, ["a", "b.c"]);
}
