//! `docs/threats.md` names tests and scenarios: each is there, a test in the file that it is said to be in.

use std::path::Path;

/// The text of a file that the threats name: by its path, a test of the helper, or a module of the helper or `l4d2ctl`
/// with its tests.
fn source(root: &Path, file: &str) -> String {
    let stem = file.trim_end_matches(".rs");
    let places = match file {
        native if native.starts_with("native/") => vec![format!("tests/{native}")],
        elsewhere if elsewhere.contains('/') => vec![format!("../{file}")],
        _ => ["src", "../ctl/src"]
            .map(|src| ["", "/mod", "/tests"].map(|end| format!("{src}/{stem}{end}.rs")))
            .concat(),
    };
    let found: Vec<_> =
        places.iter().filter_map(|place| std::fs::read_to_string(root.join(place)).ok()).collect();
    assert!(!found.is_empty(), "no file {file}");
    found.concat()
}

#[test]
fn every_test_that_the_threats_name_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(root.join("../docs/threats.md")).unwrap();
    let rows = text.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| Threat "));
    let mut named = 0;
    for row in rows {
        let tests = row.trim_end_matches('|').rsplit('|').next().unwrap();
        for entry in tests.split(';') {
            let mut words = entry.split('`').skip(1).step_by(2);
            if let Some(corpus) = entry.trim().strip_prefix("corpus ") {
                assert!(
                    root.join("fuzz/corpus").join(corpus.trim_matches('`').trim_end_matches("` ")).is_dir(),
                    "{entry}"
                );
                named += 1;
                continue;
            }
            if let Some(scenarios) = entry.trim().strip_prefix("scenario") {
                for scenario in scenarios.split('`').skip(1).step_by(2) {
                    let manifest = format!("../vm-tests/scenarios/{scenario}/scenario.toml");
                    assert!(root.join(manifest).is_file(), "no scenario {scenario}");
                    named += 1;
                }
                continue;
            }
            let file = words.next().unwrap_or_else(|| panic!("no test: {row}"));
            let source = source(root, file);
            let mut functions = 0;
            for function in words {
                // A function, or a trial by its name.
                let is_there = [format!("fn {function}("), format!("\"{function}\"")];
                assert!(is_there.iter().any(|text| source.contains(text)), "{file} has no {function}");
                functions += 1;
            }
            assert!(functions > 0, "no test: {entry}");
            named += functions;
        }
    }
    assert!(named > 30, "{named}");
}
