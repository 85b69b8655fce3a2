//! A bounded sample of the fuzzer, and the frames that once failed it.
use overlay_fuzz::{FastPath, FuzzOptions, Report, Setup, fuzz, replay, rows};

use super::{SETUPS, overlay};

fn nothing_unexplained(report: &Report) {
    let rows: Vec<_> = report.differences.iter().map(|found| (found.row(), &found.why)).collect();
    assert!(rows.is_empty(), "{rows:#?}");
    assert_eq!(report.unaccounted, 0, "{report:#?}");
}

#[test]
fn our_host_and_the_kernels_deliver_the_same_frames() {
    for Setup { ingress, fast_path } in SETUPS.iter().copied() {
        println!("{ingress:?}, {fast_path:?}");
        let options = FuzzOptions { frames: 20_000, seed: Some(1), ingress, fast_path, json: false };
        let report = fuzz(&options, overlay()).unwrap();
        nothing_unexplained(&report);
        // The sample must have compared something: deliveries by both hosts, and drops by most of the rules.
        assert!(report.frames >= 20_000 && report.delivered > 5_000, "{report:#?}");
        assert!(report.dropped_by_rule.len() >= 4, "{report:#?}");
        let carried = report.accounted.get("decap carried").copied().unwrap_or_default();
        match fast_path {
            FastPath::On => assert!(carried > 2_000, "the fast path carried {carried}: {report:#?}"),
            FastPath::Established => assert_eq!(carried, 0, "nobody has answered: {report:#?}"),
        }
    }
}

#[test]
fn frames_that_once_failed_are_right_now() {
    let rows = rows::rows().unwrap();
    assert!(!rows.is_empty());
    for setup in SETUPS {
        nothing_unexplained(&replay(&rows, *setup, overlay()).unwrap());
    }
}
