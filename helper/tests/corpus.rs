//! The fuzz targets' corpus as an ordinary test: what libFuzzer has found once stays found.

#[path = "../fuzz/checks.rs"]
mod checks;

use std::path::Path;

#[test]
fn every_file_of_the_corpus_passes_its_check() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    for (name, check) in checks::CHECKS {
        let files: Vec<_> =
            std::fs::read_dir(corpus.join(name)).expect(name).map(|entry| entry.unwrap().path()).collect();
        assert!(files.len() >= 3, "{name} has only {} files", files.len());
        for file in files {
            // A panic names no input: this line does.
            println!("{}", file.display());
            check(&std::fs::read(&file).unwrap());
        }
    }
}

#[test]
fn every_directory_of_the_corpus_and_every_target_is_a_checks() {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    let mut names: Vec<_> = checks::CHECKS.iter().map(|(name, _)| (*name).to_owned()).collect();
    names.sort();
    for (directory, suffix) in [("corpus", ""), ("fuzz_targets", ".rs")] {
        let mut found: Vec<_> = std::fs::read_dir(fuzz.join(directory))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .map(|name| name.strip_suffix(suffix).expect("a target").to_owned())
            .collect();
        found.sort();
        assert_eq!(found, names, "{directory}");
    }
}
