//! Tables, words and rows.

use super::*;

#[test]
fn rows_say_whether_their_target_is_reached() {
    let row = Row::new("channel", "null request", Unit::Seconds, Samples(vec![0.0004, 0.0006, 0.002]));
    let shown = line(&row.clone().target(0.001));
    assert!(shown.ends_with("400 µs    600 µs    2.0 ms  target ≤ 1.0 ms: reached"), "{shown}");
    let shown = line(&row.target(0.000_5));
    assert!(shown.ends_with("target ≤ 500 µs: not reached"), "{shown}");
}

#[test]
fn the_spread_is_of_all_runs_together() {
    let rows = spread_rows(&[vec![100, 200], vec![100, 200]], &[vec![110, 200]]).expect("rows");
    let of = |what: &str| rows.iter().find(|row| row.what.starts_with(what)).expect(what).median;
    assert!((of("(max - min)") - 100.0 * 100.0 / 155.0).abs() < 1e-6);
    assert!((of("cycle 1: (max") - 10.0).abs() < 1e-6);
    assert!((of("cycle 1: distinct") - 2.0).abs() < 1e-6);
    assert!((of("cycle 2: distinct") - 1.0).abs() < 1e-6);
}

#[test]
fn the_table_of_edits_has_the_targets() {
    let samples = |samples: [f64; 3]| Samples(samples.to_vec());
    let edits = edit::Edits {
        runs: 37,
        remembered: 35,
        fresh: samples([111.0, 148.0, 120.0]),
        unchanged: samples([3.7, 4.0, 5.0]),
        one: samples([3.0, 3.1, 3.4]),
        judge_build: samples([9.0, 9.5, 9.1]),
        judge: samples([2.5, 2.1, 2.4]),
        helper: samples([11.0, 11.5, 11.25]),
        agent: samples([17.0, 19.0, 18.25]),
        not_passed: std::collections::BTreeSet::new(),
    };
    let shown: Vec<String> = edit_rows(&edits).iter().map(line).collect();
    let expected = [
        "edit     suite, nothing changed: 37 runs, 35 remembered      3    3.70 s    4.00 s    5.00 s  target ≤ 4.00 s: reached",
        "edit     suite, fresh: 37 runs                               3  111.00 s  120.00 s  148.00 s",
        "edit       / their number                                    3    3.00 s    3.24 s    4.00 s  target ≤ 3.24 s: reached",
        "edit     suite, nothing changed / fresh                      3     0.027     0.033     0.042",
        "edit     edit of the judge, the build                        3    9.00 s    9.10 s    9.50 s",
        "edit       and then to 37 verdicts                           3    2.10 s    2.40 s    2.50 s  target ≤ 2.00 s: not reached",
        "edit     edit of the helper, to 5eac51a's verdict            3   11.00 s   11.25 s   11.50 s  target ≤ 12.00 s: reached",
        "edit     edit of the agent, to 5eac51a's verdict             3   17.00 s   18.25 s   19.00 s  target ≤ 18.00 s: not reached",
        "edit     5eac51a, one cycle, nothing to build, fresh         3    3.00 s    3.10 s    3.40 s  target ≤ 3.50 s: reached",
    ];
    assert_eq!(shown, expected);
    let begun = edit::Edits { one: samples([3.0, 3.1, 3.4]), ..edit::Edits::default() };
    assert_eq!(edit_rows(&begun).len(), 1, "what was not measured before an error has no row");
    let notes = edit_notes(&edits);
    assert!(notes.iter().any(|note| note.contains("--test repeatable")), "{notes:?}");
    let failed = edit::Edits { not_passed: ["trixie/5eac51a".to_owned()].into(), ..edits };
    assert!(edit_notes(&failed)[0].ends_with("another duration: trixie/5eac51a"));
}

#[test]
fn each_edit_finds_its_text_in_the_checkout_once() {
    let root = left4me::workspace().expect("the workspace").root;
    for edit in [edit::JUDGE, edit::HELPER, edit::AGENT, watch::UNIT] {
        let text = std::fs::read_to_string(root.join(edit.file)).expect(edit.file);
        let edited = edit.of(&text, "(edit 1)").expect("once");
        assert_eq!(edited.replace(" (edit 1)", ""), text);
        assert_eq!(edited.lines().count(), text.lines().count());
        // In the program, and not in a comment.
        let line = edited.lines().find(|line| line.contains("(edit 1)")).expect("the edit");
        assert!(!line.trim_start().starts_with("//"), "{line}");
    }
    let twice = edit::AGENT.of("open the channel to the host, open the channel to the host", "x");
    assert!(twice.expect_err("twice").to_string().contains("2 times"));
    assert!(edit::AGENT.of("", "x").expect_err("never").to_string().contains("0 times"));
}
