//! Every ingress mode carries everything, whatever the underlay and the containers are like.
use std::{net::Ipv4Addr, thread, time::Duration};

use overlay_common::{Hook, Reason};
use overlay_lab::{Container, Counters, Host, Lab, Member, Numbered, Options, Store, populate, transfer};
use serde_json::Value;

use super::{
    bed::{Bed, Kind, assert_reaches, endpoint, ids, json, overlay, peers, pings, wait_for},
    foreign::{BYTES, SEGMENT, mixed_with},
    restart::under_packets,
};

/// Agents' options that make XDP redirect into containers.
pub const REDIRECT: [&str; 4] = ["--ingress", "xdp", "--endpoint-gro", "on"];
pub const STRIP: [&str; 2] = ["--ingress", "xdp-strip"];

/// Whether `overlay status` says that a tier is used, and why.
fn tier(member: &Member, name: &str) -> (bool, String) {
    let status = json(member, &["status"]);
    let tiers = status["tiers"].as_array().unwrap();
    let tier = tiers.iter().find(|tier| tier["name"] == name).unwrap();
    (tier["in_use"].as_bool().unwrap(), tier["why"].as_str().unwrap().to_owned())
}

/// How many endpoints XDP may redirect frames to.
pub fn xdp_targets(member: &Member) -> u64 {
    json(member, &["status"])["agent"]["datapath"]["receivers"].as_u64().unwrap()
}

fn learned(member: &Member, container: &Container) {
    wait_for("the endpoint", || endpoint(member, container.address()).is_some());
}

/// How many packets XDP delivered, and how many TC did.
pub fn delivered(counters: &Counters) -> [u64; 2] {
    [Hook::Xdp, Hook::Decap].map(|hook| counters.packets(hook, Reason::Carried))
}

/// Transfers data in both directions, and returns how many of the received packets XDP and TC delivered. Nothing may
/// take the stack or be dropped.
fn transfers(ours: &Member, own: &Container, other: &Container) -> [u64; 2] {
    let before = ours.counters().unwrap();
    transfer(own, other, BYTES).unwrap();
    let between = ours.counters().unwrap();
    let done = transfer(other, own, BYTES).unwrap();
    let after = ours.counters().unwrap();
    println!("  100 MB in in {:?}", done.time);
    let (first, last) = (before.carried(), after.carried());
    assert_eq!((last.stack_in, last.dropped), (first.stack_in, first.dropped), "{after:?}");
    let [xdp, tc] = delivered(&after);
    let [xdp_before, tc_before] = delivered(&between);
    [xdp - xdp_before, tc - tc_before]
}

#[test]
fn flannels_device_and_ours_carry_100_mb_by_xdp_either_way() {
    for wire_like in [false, true] {
        for options in [REDIRECT.as_slice(), &STRIP] {
            println!("wire-like: {wire_like}, {options:?}");
            let bed = mixed_with(wire_like, options);
            assert_reaches(&bed.container, bed.foreign.address());
            assert_reaches(&bed.foreign, bed.container.address());
            learned(&bed.ours, &bed.container);
            let redirects = options.len() == REDIRECT.len();
            if redirects {
                wait_for("the containers' veths to take frames", || xdp_targets(&bed.ours) >= 1);
            }
            let [xdp, tc] = transfers(&bed.ours, &bed.container, &bed.foreign);
            println!("  XDP delivered {xdp}, TC {tc}");
            if wire_like && redirects {
                assert!(xdp >= BYTES / SEGMENT);
            }
        }
    }
}

#[test]
fn a_container_that_cannot_take_redirected_frames_gets_all_by_tc() {
    let options = Options { wire_like: true, ..Options::default() };
    let bed = Bed::with(Kind::Folder, options, &["--ingress", "xdp"]);
    let (a, b) = bed.pair();
    bed.learn_all();
    assert_eq!(xdp_targets(&bed[0]), 0);
    let [xdp, tc] = transfers(&bed[0], a, b);
    assert!(xdp == 0 && tc >= BYTES / SEGMENT, "XDP delivered {xdp}, TC {tc}");

    // The owner of the container switches GRO on, and off again under traffic, several times.
    for _ in 0..3 {
        a.exec("ethtool -K eth0 gro on").unwrap();
        wait_for("the veth to take frames", || xdp_targets(&bed[0]) == 1);
        let before = delivered(&bed[0].counters().unwrap())[0];
        let stream = thread::spawn({
            let (a, b) = (a.clone(), b.clone());
            move || transfer(&b, &a, 200 << 20)
        });
        wait_for("XDP to deliver", || delivered(&bed[0].counters().unwrap())[0] > before + 1000);
        a.exec("ethtool -K eth0 gro off").unwrap();
        wait_for("the veth to be left to TC", || xdp_targets(&bed[0]) == 0);
        stream.join().unwrap().unwrap();
    }
    // GRO is switched off while the interface is down, of which the kernel sends no event at the host's end.
    a.exec("ethtool -K eth0 gro on").unwrap();
    wait_for("the veth to take frames", || xdp_targets(&bed[0]) == 1);
    let route = format!("ip route replace default via {}", gateway(a));
    for command in ["ip link set eth0 down", "ethtool -K eth0 gro off", "ip link set eth0 up", &route] {
        a.exec(command).unwrap();
    }
    wait_for("the veth to be left to TC", || xdp_targets(&bed[0]) == 0);
    wait_for("the container", || b.ping(a.address(), pings(1)).unwrap().complete());
    let clean = Numbered::start(b, a, 1000).unwrap();
    thread::sleep(Duration::from_millis(300));
    let report = clean.finish().unwrap();
    assert_eq!(report.lost, 0, "{report:?}");
    assert_eq!(bed[0].counters().unwrap().carried().dropped, 0);
}

/// The bridge's address.
fn gateway(container: &Container) -> Ipv4Addr {
    let [a, b, c, _] = container.address().octets();
    Ipv4Addr::new(a, b, c, 1)
}

/// Holds the XDP hook of the host's underlay device, as the loader of another product does, until it is dropped.
fn take_xdp(host: &Host) -> aya::Ebpf {
    host.namespace()
        .enter(|| {
            let (mut ebpf, ..) =
                overlay_user::datapath::load::load_unpinned(&Default::default(), &Default::default())?;
            let program: &mut aya::programs::Xdp = ebpf.program_mut("overlay_xdp").unwrap().try_into()?;
            let index = nix::net::if_::if_nametoindex("eth0")?;
            program.attach_to_if_index(index, aya::programs::xdp::XdpMode::Driver)?;
            Ok(ebpf)
        })
        .unwrap()
}

#[test]
fn xdp_that_another_program_has_is_left_to_it() {
    let mut bed = Bed::with(Kind::Folder, Options { wire_like: true, ..Options::default() }, &[]);
    let (a, b) = (bed[0].containers[0].clone(), bed[1].containers[0].clone());
    bed.learn_all();
    let (used, why) = tier(&bed[0], "xdp");
    assert!(!used && why.contains("not asked for"), "{why}");
    bed[0].end_agent().unwrap();
    let other = take_xdp(&bed[0].host);
    bed.members[0].set_options(&bed.store, &REDIRECT);
    bed[0].restart_agent().unwrap();
    let (used, why) = tier(&bed[0], "xdp");
    assert!(!used && why.contains("eth0 runs another XDP program: overlay_xdp, id "), "{why}");
    let said = bed[0].overlay(&["check", "--iface", "eth0"]).unwrap_or_else(|error| format!("{error:#}"));
    assert!(said.contains("eth0 runs another XDP program"), "{said}");
    assert_reaches(&a, b.address());
    transfer(&b, &a, 10 << 20).unwrap();
    assert_eq!(delivered(&bed[0].counters().unwrap())[0], 0);

    // When the other program goes, ours takes its place at the agent's next start, and not before.
    drop(other);
    assert!(!tier(&bed[0], "xdp").0);
    bed[0].end_agent().unwrap();
    bed[0].restart_agent().unwrap();
    assert!(tier(&bed[0], "xdp").0, "{}", tier(&bed[0], "xdp").1);
    wait_for("the containers' veths to take frames", || xdp_targets(&bed[0]) == 2);
    transfer(&b, &a, 10 << 20).unwrap();
    assert!(delivered(&bed[0].counters().unwrap())[0] > (10 << 20) / 1400);

    // When the network is removed from the host, the program goes too.
    bed[0].end_agent().unwrap();
    bed[0].overlay(&["down"]).unwrap();
    let link: Value = serde_json::from_str(&bed[0].host.exec("ip -j link show dev eth0").unwrap()).unwrap();
    assert!(link[0].get("xdp").is_none(), "{link}");
}

#[test]
fn an_underlay_that_is_no_place_for_xdp_is_taken_in_by_tc() {
    let lab = Lab::new(Options::default()).unwrap();
    let host = lab.host(0).clone();
    // The NIC becomes a port of a bridge, which gets its name and address, as on hosts of virtual machines.
    for command in [
        "link set eth0 down",
        "link set eth0 name nic0",
        "link add eth0 type bridge",
        "link set nic0 master eth0 up",
        &format!("address del {}/24 dev nic0", host.address()),
        &format!("address add {}/24 dev eth0", host.address()),
        "link set eth0 up",
    ] {
        host.namespace().ip(command).unwrap();
    }
    let store = Store::folder(&lab);
    let members = populate(&lab, overlay(), &store, &STRIP).unwrap();
    let (used, why) = tier(&members[0], "xdp");
    assert!(!used && why == "eth0 is a bridge: frames arrive at its ports", "{why}");
    assert!(tier(&members[1], "xdp").0);
    let (a, b) = (&members[0].containers[0], &members[1].containers[0]);
    wait_for("the peers", || members.iter().all(|member| peers(member).len() == 1));
    assert_reaches(a, b.address());
    transfer(a, b, 10 << 20).unwrap();
    transfer(b, a, 10 << 20).unwrap();
    assert!(delivered(&members[0].counters().unwrap())[1] > (10 << 20) / 1400);
}

/// Packets per second, in each direction. The ring of a veth with XDP holds 256 frames, and a busy machine may be slow
/// to fetch them.
const RATE: u32 = 5_000;

#[test]
fn no_packet_is_lost_when_agents_under_xdp_end_and_start() {
    for options in [REDIRECT.as_slice(), &STRIP] {
        let mut bed = Bed::with(Kind::Folder, Options { wire_like: true, ..Options::default() }, options);
        let (a, b) = (bed[0].containers[0].clone(), bed[1].containers[0].clone());
        bed.learn_all();
        if options.len() == REDIRECT.len() {
            wait_for("the containers' veths to take frames", || xdp_targets(&bed[0]) == 2);
        }
        for round in 0..2 {
            let before = ids(&bed[0]);
            let reports = under_packets(&a, &b, RATE, || {
                bed[0].kill_agent().unwrap();
                thread::sleep(Duration::from_millis(300));
                bed[0].restart_agent().unwrap();
                assert!(bed[0].end_agent().unwrap().success());
                bed[0].restart_agent().unwrap();
            });
            let after = ids(&bed[0]);
            for report in reports {
                println!("{options:?}, round {round}: {report:?}");
                assert_eq!((report.lost, report.duplicated), (0, 0), "{report:?}");
            }
            assert!(before.links.iter().any(|(name, _)| name.starts_with("xdp-")), "{before:?}");
            assert_eq!((&before.maps, &before.links), (&after.maps, &after.links));
            for (old, new) in before.programs.iter().zip(&after.programs) {
                assert!(old.0 == new.0 && old.1 != new.1, "{old:?} was not replaced: {new:?}");
            }
        }
        let counters = bed[0].counters().unwrap();
        assert_eq!(counters.carried().dropped, 0, "{counters:?}");
    }
}

#[test]
fn no_packet_is_lost_when_the_ingress_changes() {
    let mut bed = Bed::with(Kind::Folder, Options { wire_like: true, ..Options::default() }, &[]);
    let (a, b) = (bed[0].containers[0].clone(), bed[1].containers[0].clone());
    bed.learn_all();
    let steps: [(&[&str], bool); 4] =
        [(&REDIRECT, true), (&STRIP, true), (&REDIRECT, true), (&["--ingress", "tc"], false)];
    for (options, used) in steps {
        bed.members[0].set_options(&bed.store, options);
        let reports = under_packets(&a, &b, RATE, || {
            bed[0].end_agent().unwrap();
            bed[0].restart_agent().unwrap();
        });
        assert_eq!(tier(&bed[0], "xdp").0, used);
        for report in reports {
            println!("to {options:?}: {report:?}");
            assert_eq!((report.lost, report.duplicated), (0, 0), "to {options:?}: {report:?}");
        }
    }
    assert_eq!(bed[0].counters().unwrap().carried().dropped, 0);
}
