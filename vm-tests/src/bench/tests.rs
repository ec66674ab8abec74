//! Medians, spans, and what a guest reports of its boot.

use super::boot::*;
use super::busy::*;
use super::product::*;
use super::samples::*;

#[test]
fn medians_are_of_the_middle() {
    let median = |samples: &[f64]| Samples(samples.to_vec()).median();
    assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
    assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
    assert!(median(&[]).is_nan());
    assert_eq!(Samples(vec![9.0, 10.0, 11.0]).spread(), 0.2);
    assert_eq!(Samples(vec![2.0, 9.0]).over(&Samples(vec![4.0, 3.0])), Samples(vec![0.5, 3.0]));
}

#[test]
fn a_guest_tells_its_boot_s_times() {
    let log = "[    0.000000] Linux version 6.12\n[    0.771544] Run /init as init process\n";
    assert_eq!(init_secs(log), Some(0.771_544));
    assert_eq!(init_secs("nothing"), None);
    let shown = "UserspaceTimestampMonotonic=1500000\nFinishTimestampMonotonic=0";
    assert_eq!(property_secs(shown, "UserspaceTimestampMonotonic").expect("a time"), 1.5);
    property_secs(shown, "FinishTimestampMonotonic").expect_err("not yet");
    property_secs(shown, "Nothing").expect_err("not there");
}

#[test]
fn what_two_spans_cover_is_taken_away_once() {
    assert_eq!(uncovered(10, 20, vec![]), 10);
    for (spans, own) in [
        (vec![(12, 14), (13, 16)], 6),
        (vec![(13, 14), (12, 16)], 6),
        (vec![(5, 11), (19, 30)], 8),
        (vec![(1, 2), (30, 40)], 10),
        (vec![(0, 40), (15, 16)], 0),
    ] {
        assert_eq!(uncovered(10, 20, spans.clone()), own, "{spans:?}");
    }
}

#[test]
fn busy_threads_end() {
    let busy = BusyHost::start().expect("threads");
    assert_eq!(busy.threads.len(), crate::host::cores());
    drop(busy);
}
