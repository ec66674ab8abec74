//! The fuzz targets' corpus as an ordinary test: what libFuzzer has found once stays found.

#[path = "../../helper/fuzz/checks.rs"]
#[expect(unreachable_pub, reason = "a library of its own for the fuzz targets")]
mod checks;
#[path = "../../helper/tests/support/playground.rs"]
mod playground;
#[path = "../../helper/tests/support/sealed.rs"]
mod sealed;
#[path = "../../helper/tests/support/trials.rs"]
mod trials;

use std::path::Path;
use std::process::ExitCode;

use libtest_mimic::Trial;
use proptest::prelude::*;

/// The trees that the purge is given hold links to `/` and `..`.
fn main() -> ExitCode {
    let tests = [
        playground::test(every_file_of_the_corpus_passes_its_check, || None),
        playground::test(what_is_like_the_corpus_passes_its_check, || None),
        playground::test(any_scene_passes_its_check, || None),
    ];
    let names = Trial::test("every_directory_of_the_corpus_and_every_target_is_a_checks", || {
        every_directory_of_the_corpus_and_every_target_is_a_checks();
        Ok(())
    });
    trials::main(&tests, &[], vec![names])
}

fn every_file_of_the_corpus_passes_its_check() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../helper/fuzz/corpus");
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

fn every_directory_of_the_corpus_and_every_target_is_a_checks() {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("../helper/fuzz");
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

/// What libFuzzer does, a little of it in every run: a file of the corpus with a few bytes changed.
fn what_is_like_the_corpus_passes_its_check() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../helper/fuzz/corpus");
    for (name, check) in checks::CHECKS {
        let files: Vec<Vec<u8>> = std::fs::read_dir(corpus.join(name))
            .expect(name)
            .map(|entry| std::fs::read(entry.unwrap().path()).unwrap())
            .collect();
        let edit = (any::<prop::sample::Index>(), 0_usize..4, prop::collection::vec(any::<u8>(), 0..4));
        let edited =
            (prop::sample::select(files), prop::collection::vec(edit, 0..4)).prop_map(|(file, edits)| {
                edits.into_iter().fold(file, |mut bytes, (at, taken, put)| {
                    let from = at.index(bytes.len() + 1);
                    let to = (from + taken).min(bytes.len());
                    bytes.splice(from..to, put);
                    bytes
                })
            });
        passes(name, check, edited, ProptestConfig::default().cases);
    }
}

/// The scenes of the planners whose input is made up from bytes, whether or not a file of the corpus is like it. A zero
/// is the plainest of what it picks from, and too many picks out of the ordinary hide each other.
fn any_scene_passes_its_check() {
    let byte = || prop_oneof![3 => Just(0), 2 => any::<u8>()];
    passes("control", checks::control, prop::collection::vec(byte(), 0..80), 2000);
    passes("purge", checks::purge, prop::collection::vec(any::<u8>(), 0..24), 256);
    passes("unit_end", checks::unit_end, prop::collection::vec(byte(), 3..40), 500);
    passes("verdict", checks::verdict, prop::collection::vec(byte(), 1..12), 500);
}

fn passes(name: &str, check: checks::Check, inputs: impl Strategy<Value = Vec<u8>>, cases: u32) {
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases,
        // The failing input is in the message; it belongs into the corpus.
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let ran = runner.run(&inputs, |bytes| {
        check(&bytes);
        Ok(())
    });
    assert!(ran.is_ok(), "{name}: {}", ran.unwrap_err());
}
