//! An agent with another map layout takes over. Nothing is lost or doubled, and a takeover that breaks off is continued
//! by the next agent.
use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use overlay_common::ABI;
use overlay_lab::{
    Member, Numbered, PingOptions,
    command::sh,
    project::{Next, build_next},
    wait_until,
};

use super::bed::{Bed, Kind, endpoint, ids_in, json, overlay, peers, pins, wait_for};

const SOON: Duration = Duration::from_secs(20);

/// The pins of the program under test on a host, and those of the agent with the next layout.
fn layouts(member: &Member) -> (PathBuf, PathBuf) {
    (pins(member), overlay_host_tests::layout(&member.host, ABI + 1))
}

/// Where this network's maps are filled. The folder above it is shared with other networks, and may stay empty after a crash.
fn filling(member: &Member) -> PathBuf {
    member.host.bpf_root().join("overlay/filling/default")
}

/// Starts the installed agent, which ends by itself, and returns what it has logged since then.
fn ends(member: &mut Member) -> String {
    let before = fs::read_to_string(member.host.agent_log()).unwrap_or_default().len();
    member.start_agent().unwrap();
    wait_until("its end", SOON, || Ok(member.agent()?.status()?.is_some())).unwrap();
    fs::read_to_string(member.host.agent_log()).unwrap().split_off(before)
}

/// Names and ids of the links in a folder of pins.
fn links(pins: &Path) -> Vec<(String, u64)> {
    ids_in(pins).links
}

fn stack_flows(pins: &Path) -> usize {
    let table = super::bed::bpftool(&["map", "dump"], &pins.join("stack_flows"));
    table.as_array().unwrap().len()
}

#[test]
fn another_layout_takes_over_links_maps_and_counters() {
    let next = build_next(Next::Layout).unwrap();
    let mut bed = Bed::new(Kind::Folder, 2);
    bed.learn_all();
    let (a, b) = (bed[0].containers[0].clone(), bed[1].containers[0].clone());
    // There are an endpoint that learning must not touch, and connections that are stack flows.
    let pinned = bed[0].containers[1].clone();
    let address = pinned.address().to_string();
    bed[0].overlay(&["attach", &address, "--port", pinned.port()]).unwrap();
    wait_for("a pinned endpoint", || {
        endpoint(&bed[0], pinned.address()).is_some_and(|row| row["pinned"] == true)
    });
    let large = PingOptions { count: 2, size: 3000, ..PingOptions::default() };
    assert!(a.ping(b.address(), large).unwrap().complete());
    let (present, next_pins) = layouts(&bed[0]);
    let known = (peers(&bed[0]), json(&bed[0], &["endpoints"]));
    let (before, flows, counted) =
        (ids_in(&present), stack_flows(&present), bed[0].counters().unwrap().carried());
    assert!(flows > 0 && !next_pins.exists());

    let streams = [(&a, &b), (&b, &a)].map(|(from, to)| Numbered::start(from, to, 20_000).unwrap());
    assert!(bed[0].end_agent().unwrap().success());
    bed[0].install(&next);
    bed[0].restart_agent().unwrap();
    thread::sleep(Duration::from_millis(200));
    let reports = streams.map(|stream| stream.finish().unwrap());
    for report in reports {
        assert_eq!((report.lost, report.duplicated), (0, 0), "{report:?}");
    }

    // Links and counters are taken over: the links are the same ones with other programs, and the counters and what
    // belongs to them are the same maps.
    let after = ids_in(&next_pins);
    assert_eq!(before.links, after.links);
    for (old, new) in before.programs.iter().zip(&after.programs) {
        assert_ne!(old.1, new.1, "{old:?} was not replaced");
    }
    for (old, new) in before.maps.iter().zip(&after.maps) {
        let shared = matches!(old.0.as_str(), "vteps" | "counters" | "peer_counters");
        assert_eq!(old.1 == new.1, shared, "{old:?} {new:?}");
    }
    assert!(!present.exists() && !filling(&bed[0]).exists());
    assert_eq!((peers(&bed[0]), json(&bed[0], &["endpoints"])), known);
    assert!(stack_flows(&next_pins) >= flows, "{} of {flows} stack flows", stack_flows(&next_pins));
    let now = bed[0].counters().unwrap().carried();
    assert_eq!(now.fast_out - counted.fast_out, reports[0].sent, "{counted:?} {now:?}");
    assert_eq!(now.fast_in - counted.fast_in, reports[1].sent, "{counted:?} {now:?}");
    assert_eq!(now.dropped, counted.dropped);
    // Stack flows remain stack flows. Without their entries the fast path would carry them.
    bed.assert_all_reached();

    // The older agent refuses, says how to return, and leaves no trace.
    bed[0].end_agent().unwrap();
    bed[0].install(overlay());
    let said = ends(&mut bed[0]);
    let words = [
        &format!("{} holds pins", next_pins.display()),
        &format!("(layout {ABI}) does not know"),
        "overlay down --network default",
    ];
    assert!(words.iter().all(|words| said.contains(words)), "{said}");
    assert_eq!(after.links, links(&next_pins));
    bed[0].overlay(&["down"]).unwrap();
    assert!(!bed[0].host.bpf_root().join("overlay").exists());
    bed[0].restart_agent().unwrap();
    bed.learn_all();
}

#[test]
fn what_crashes_on_the_way_to_another_layout_goes_on() {
    let next = build_next(Next::Layout).unwrap();
    let mut bed = Bed::new(Kind::Folder, 2);
    bed.learn_all();
    let (a, b) = (bed[0].containers[0].clone(), bed[1].containers[0].clone());
    let (present, next_pins) = layouts(&bed[0]);
    let places = [
        "shared",
        "filled",
        "committed",
        "one link moved",
        "one program replaced",
        "replaced",
        "half removed",
    ];
    for place in places {
        let crashing = bed[0].host.folder().join("crashing");
        let script = format!("#!/bin/sh\nCRASH_AT='{place}' exec '{}' \"$@\"\n", next.display());
        fs::write(&crashing, script).unwrap();
        fs::set_permissions(&crashing, fs::Permissions::from_mode(0o755)).unwrap();
        let before = links(&present);
        let streams = [(&a, &b), (&b, &a)].map(|(from, to)| Numbered::start(from, to, 5000).unwrap());
        bed[0].end_agent().unwrap();

        bed[0].install(&crashing);
        let said = ends(&mut bed[0]);
        assert!(
            said.contains(&format!("taking over from an agent with map layout {ABI}")),
            "{place}: {said}"
        );
        assert!(!said.contains("following"), "{place}: it did not crash: {said}");
        let committed = !matches!(place, "shared" | "filled");
        assert_eq!(next_pins.join("peers").exists(), committed, "{place}");
        thread::sleep(Duration::from_millis(200));
        if !committed {
            // The maps of the older layout are complete, so its agent may start as if nothing had happened.
            bed[0].install(overlay());
            bed[0].restart_agent().unwrap();
            bed[0].end_agent().unwrap();
            assert_eq!(links(&present), before, "{place}");
        }
        bed[0].install(&next);
        bed[0].restart_agent().unwrap();
        assert_eq!(links(&next_pins), before, "{place}");
        assert!(!present.exists() && !filling(&bed[0]).exists(), "{place}");
        for report in streams.map(|stream| stream.finish().unwrap()) {
            assert_eq!((report.lost, report.duplicated), (0, 0), "{place}: {report:?}");
        }

        bed[0].end_agent().unwrap();
        bed[0].overlay(&["down"]).unwrap();
        bed[0].install(overlay());
        bed[0].restart_agent().unwrap();
        bed.learn_all();
    }
}

#[test]
fn an_older_layout_that_is_not_what_it_says_is_left_alone() {
    let next = build_next(Next::Layout).unwrap();
    let mut bed = Bed::new(Kind::Folder, 2);
    bed.learn_all();
    let (a, b) = (bed[0].containers[0].clone(), bed[1].containers[0].clone());
    let (present, next_pins) = layouts(&bed[0]);
    bed[0].end_agent().unwrap();
    bed[0].install(&next);
    for pin in ["endpoints", "counters"] {
        let (path, aside) = (present.join(pin), present.join("aside"));
        fs::rename(&path, &aside).unwrap();
        sh(&format!(
            "bpftool map create {} type hash key 4 value 8 entries 4 name other flags 0",
            path.display()
        ))
        .unwrap();
        let before = links(&present);
        let said = ends(&mut bed[0]);
        assert!(said.contains(pin) && said.contains("Error") | said.contains("ERROR"), "{said}");
        assert_eq!(links(&present), before);
        assert!(!filling(&bed[0]).exists() && !next_pins.join("peers").exists());
        assert!(a.ping(b.address(), PingOptions::default()).unwrap().complete());
        fs::remove_file(&path).unwrap();
        fs::rename(&aside, &path).unwrap();
    }
    bed[0].restart_agent().unwrap();
    assert!(!present.exists());
    bed.assert_all_reached();
}
