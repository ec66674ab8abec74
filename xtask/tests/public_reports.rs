//! `docs/public-reports.md` names scenarios, cases of the accuracy benchmark and tests: each is there.

use std::path::Path;

/// What the last cell of a row names: `scenario`, `case` and `test`, each with names in backquotes, by semicolons.
#[test]
fn what_public_reports_name_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let read = |path: &str| {
        std::fs::read_to_string(root.join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
    };
    let (text, cases) = (read("docs/public-reports.md"), read("holders/examples/fixture/cases.rs"));
    let is_row = |line: &&str| {
        line.starts_with("| ") && !line.starts_with("| Report |") && !line.starts_with("| Finding |")
    };
    let mut rows = 0;
    for row in text.lines().filter(is_row) {
        let shown = row.trim_end_matches(" |").rsplit(" | ").next().expect("a last cell");
        for entry in shown.split("; ") {
            let (kind, _) = entry.split_once(' ').unwrap_or_else(|| panic!("{entry:?} of {row}"));
            let mut names = entry.split('`').skip(1).step_by(2).peekable();
            assert!(names.peek().is_some(), "{entry:?} names nothing: {row}");
            match kind {
                "scenario" => names.for_each(|name| {
                    let manifest = format!("vm-tests/scenarios/{name}/scenario.toml");
                    assert!(root.join(&manifest).is_file(), "no {manifest}");
                }),
                "case" => names.for_each(|name| {
                    let is_planted =
                        cases.lines().any(|line| line.trim().ends_with(&format!("(\"{name}\"),")));
                    assert!(is_planted, "no case {name}");
                }),
                "test" => {
                    let file = names.next().expect("a file");
                    let source = read(file);
                    assert!(names.peek().is_some(), "{file} without a test: {row}");
                    names.for_each(|name| {
                        assert!(source.contains(&format!("fn {name}(")), "{file} has no {name}");
                    });
                }
                other => panic!("{other:?} is no scenario, case or test: {row}"),
            }
        }
        rows += 1;
    }
    assert!(rows > 40, "{rows} rows");
}
