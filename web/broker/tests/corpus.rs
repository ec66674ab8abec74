//! The fuzz target's corpus as an ordinary test, and a little of what libFuzzer does.

#[path = "../../fuzz/checks.rs"]
#[expect(unreachable_pub, reason = "a library of its own for the fuzz target")]
mod checks;

use std::path::Path;

use proptest::prelude::*;

fn corpus() -> Vec<Vec<u8>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus/connection");
    let mut files: Vec<_> =
        std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= 10, "{files:?}");
    files.iter().map(|file| std::fs::read(file).unwrap()).collect()
}

#[test]
fn every_file_of_the_corpus_passes() {
    corpus().iter().for_each(|bytes| checks::connection(bytes));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn what_is_like_the_corpus_passes(
        file in prop::sample::select(corpus()),
        edits in prop::collection::vec((any::<prop::sample::Index>(), 0_usize..4, "[\\x00\"{}:,.a-f0-9/ ]{0,3}"), 0..4),
    ) {
        let bytes = edits.into_iter().fold(file, |mut bytes, (at, taken, put)| {
            let from = at.index(bytes.len() + 1);
            let to = (from + taken).min(bytes.len());
            bytes.splice(from..to, put.into_bytes());
            bytes
        });
        checks::connection(&bytes);
    }
}
