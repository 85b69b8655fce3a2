//! Transfers of 100 MB, every byte compared, in every combination of backend, ingress mode and offloads.
use overlay_common::{Hook, Reason};
use overlay_lab::{Backend, Options, transfer};

use crate::bed::{Bed, Kind, json, wait_for};

const BYTES: u64 = 100 << 20;
const INGRESSES: [&[&str]; 3] =
    [&["--ingress", "tc"], &["--ingress", "xdp", "--endpoint-gro", "on"], &["--ingress", "xdp-strip"]];

fn carry(backend: Backend, ingress: &[&str], wire_like: bool) {
    let options = Options { wire_like, ..Options::default() };
    let bed = Bed::with_config(Kind::Folder, options, backend.config(), ingress);
    bed.learn_all();
    let (a, b) = bed.pair();
    let redirects = ingress.contains(&"xdp");
    let status = json(&bed[0], &["status"]);
    let tiers = status["tiers"].as_array().unwrap();
    let xdp = tiers.iter().find(|tier| tier["name"] == "xdp").unwrap();
    assert_eq!(xdp["in_use"], ingress[1] != "tc", "{}", xdp["why"]);
    if redirects {
        wait_for("the containers' veths to take frames", || {
            let xdp_targets = |member| json(member, &["status"])["agent"]["datapath"]["receivers"].clone();
            bed.members.iter().all(|member| xdp_targets(member) == 2)
        });
    }
    let before = bed.members.iter().map(|member| member.counters().unwrap()).collect::<Vec<_>>();
    let times = [(a, b), (b, a)].map(|(from, to)| transfer(from, to, BYTES).unwrap().time);
    println!("{}, {}, wire-like {wire_like}: {times:?}", backend.name(), ingress[1]);
    if ingress[1] == "xdp-strip" && wire_like {
        // The stack's taps at the underlay device see what XDP has decapsulated, and what was never encapsulated.
        let filter = format!("ip src {} and tcp", b.address());
        let capture = bed[0].host.capture("eth0", &filter).unwrap();
        transfer(b, a, 2 << 20).unwrap();
        assert!(capture.lines().unwrap().len() > 10, "nothing was decapsulated before TC");
    }
    for (member, before) in bed.members.iter().zip(before) {
        let after = member.counters().unwrap();
        let (now, then) = (after.carried(), before.carried());
        assert_eq!((now.stack_in, now.dropped), (then.stack_in, then.dropped), "{after:?}");
        // The largest segment has 1460 bytes of payload. Each segment counts, merged or not.
        assert!(now.fast_in - then.fast_in > BYTES / 1460, "{after:?}");
        let by_xdp = after.packets(Hook::Xdp, Reason::Carried);
        // A virtual device leaves checksums unfinished, and such packets are left to TC; a wire finishes them.
        assert_eq!(by_xdp > BYTES / 1460, redirects && wire_like, "XDP delivered {by_xdp}");
    }
}

#[test]
fn vxlan_carries_100_mb_in_every_combination() {
    every(Backend::Vxlan);
}

#[test]
fn udp_carries_100_mb_in_every_combination() {
    every(Backend::Udp);
}

#[test]
fn host_gw_carries_100_mb_in_every_combination() {
    every(Backend::HostGw);
}

fn every(backend: Backend) {
    for wire_like in [false, true] {
        for ingress in INGRESSES {
            carry(backend, ingress, wire_like);
        }
    }
}
