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
