//! A program of somebody else that sees packets before ours is told: its position counts, and not its presence.
use overlay_common::{Hook, Reason};
use overlay_host_tests::hosts::SOON;
use overlay_lab::{Backend, Member, Options, wait_until};

use super::{
    bed::{Bed, Kind, assert_reaches, json, wait_for},
    foreign_program::{NAME, attach},
};

/// Why the tier TC is in use, as `overlay status` says.
fn tier(member: &Member) -> String {
    let status = json(member, &["status"]);
    let tier = status["tiers"].as_array().unwrap().iter().find(|tier| tier["name"] == "tc").unwrap();
    tier["why"].as_str().unwrap().to_owned()
}

/// What `overlay check` warns of about TC at an interface: what it sees, and what it advises.
fn warnings(member: &Member, interface: &str) -> Vec<(String, String)> {
    let findings = json(member, &["check", "--iface", "eth0"]);
    let what = format!("tc at {interface}");
    let wanted = findings.as_array().unwrap().iter();
    let wanted = wanted.filter(|one| one["what"] == what.as_str() && one["level"] == "warn");
    let text = |one: &serde_json::Value, field: &str| one[field].as_str().unwrap().to_owned();
    wanted.map(|one| (text(one, "detail"), text(one, "remedy"))).collect()
}

/// Asserts that status, check and log name somebody else's program in front of one of ours.
#[track_caller]
fn is_told(member: &Member, interface: &str, other: &str, ours: &str) {
    let wanted = [format!("at {interface}, "), other.to_owned(), format!("before {ours}")];
    let has_all = |text: &str| wanted.iter().all(|words| text.contains(words));
    let why = tier(member);
    assert!(has_all(&why), "{why}");
    let warnings = warnings(member, interface);
    assert!(warnings.len() == 1 && has_all(&warnings[0].0), "{warnings:?}");
    assert!(!warnings[0].1.is_empty());
    let told = || {
        let log = std::fs::read_to_string(member.host.agent_log()).unwrap();
        log.lines().filter(|line| line.contains("WARN") && has_all(line)).count()
    };
    // The agent looks every ten seconds.
    wait_until("a line in the log", SOON, || Ok(told() > 0)).unwrap();
    assert_eq!(told(), 1, "once");
    wait_for("the agent's own status", || {
        let status = json(member, &["status"]);
        let told = status["agent"]["in_front"].as_array().unwrap().clone();
        told.iter().any(|one| one["interface"] == interface && one["program"] == ours)
    });
}

#[track_caller]
fn is_quiet(member: &Member, interface: &str) {
    let why = tier(member);
    assert!(!why.contains(&format!("at {interface}, ")), "{why}");
    assert_eq!(warnings(member, interface), []);
}

#[test]
fn a_program_in_front_of_ours_is_told_and_one_behind_is_not() {
    for config in [Backend::Vxlan.config(), Backend::HostGw.config()] {
        let bed = Bed::with_config(Kind::Folder, Options::default(), config, &["--attach", "tcx"]);
        bed.learn_all();
        let (a, b) = bed.pair();
        let host = &bed[0].host;
        let carried = || bed[0].counters().unwrap().packets(Hook::Decap, Reason::Carried);
        is_quiet(&bed[0], "eth0");

        // Behind ours it sees what ours leave to the stack, and takes nothing away.
        let behind = attach(host, "eth0", false);
        is_quiet(&bed[0], "eth0");
        let before = carried();
        assert_reaches(b, a.address());
        assert!(carried() > before);
        drop(behind);

        let front = attach(host, "eth0", true);
        let before = carried();
        let once = overlay_lab::PingOptions { count: 1, ..Default::default() };
        let _ = b.ping(a.address(), once).unwrap();
        assert_eq!(carried(), before, "the chain has ended before ours");
        is_told(&bed[0], "eth0", &format!("TCX program {NAME} (id "), "overlay_decap");
        drop(front);
        is_quiet(&bed[0], "eth0");

        if config == Backend::HostGw.config() {
            continue;
        }
        // At a container's port, too.
        let front = attach(host, a.port(), true);
        is_told(&bed[0], a.port(), &format!("TCX program {NAME} (id "), "overlay_encap");
        wait_for("the stack to have the container's packets", || {
            let row = super::bed::endpoint(&bed[0], a.address()).unwrap();
            row["path"] == "stack" && row["path_why"].as_str().unwrap().contains(NAME)
        });
        drop(front);
        is_quiet(&bed[0], a.port());
    }
}

#[test]
fn with_filters_the_priority_counts_and_whatever_is_attached_by_tcx() {
    let bed = Bed::with(Kind::Folder, Options::default(), &["--attach", "clsact"]);
    bed.learn_all();
    let host = &bed[0].host;
    let file = host.folder().join("ends-it");
    // A classic BPF program of one instruction, `ret 0`, which is TC_ACT_OK.
    std::fs::write(&file, "1,6 0 0 0").unwrap();
    let filter = |verb: &str, priority: u16| {
        let program =
            if verb == "add" { format!("bpf da bytecode-file {}", file.display()) } else { String::new() };
        let line = format!("tc filter {verb} dev eth0 ingress protocol all pref {priority} {program}");
        host.exec(line.trim_end()).unwrap();
    };
    filter("add", 100);
    is_quiet(&bed[0], "eth0");
    filter("add", 3);
    is_told(&bed[0], "eth0", "bpf filter", "overlay_decap");
    let advice = warnings(&bed[0], "eth0").remove(0).1;
    assert!(advice.contains("priority above"), "{advice}");
    filter("delete", 3);
    is_quiet(&bed[0], "eth0");
    // Kernels without TCX have no such programs.
    let status = json(&bed[0], &["status"]);
    let tcx = status["features"].as_array().unwrap().iter().find(|one| one["name"] == "TCX").unwrap();
    if tcx["present"] == true {
        let _last = attach(host, "eth0", false);
        is_told(&bed[0], "eth0", NAME, "overlay_decap");
    }
}
