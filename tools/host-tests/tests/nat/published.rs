//! Published ports, which are translated at a host's underlay address and at the overlay's `.1`. Clients everywhere
//! connect to them.
use std::net::Ipv4Addr;

use overlay_lab::{Backend, Lab, Namespace};

use super::traffic::{
    Server, Tier,
    Tier::{Fast, HalfStack, Neither, Stack},
    assert_nothing_invalid, own, publish, strict_bed_of, talk,
};
use crate::bed::{Bed, MODES};

/// Ports of the first host that lead to its own first container, and to the other host's.
const HERE: u16 = 8000;
const THERE: u16 = 8001;

fn bed(backend: Backend, rp_filter: u8, agent: &[&str]) -> (Bed, [Server; 2]) {
    let bed = strict_bed_of(backend, rp_filter, agent);
    let servers = [0, 1].map(|host| Server::of(&bed[host].containers[0]));
    for address in [bed[0].host.address(), own(&bed, 0, 1)] {
        publish(&bed[0].host, address, HERE, &bed[0].containers[0]);
        publish(&bed[0].host, address, THERE, &bed[1].containers[0]);
    }
    // A container that connects to its own host may be sent to another container of the same bridge.
    bed[0].host.namespace().sysctl("bridge/bridge-nf-call-iptables", "1").unwrap();
    (bed, servers)
}

/// Connects from `from`, and compares which address the backend saw and which tiers carried the packets.
#[track_caller]
fn check(bed: &Bed, what: &str, from: &Namespace, to: (Ipv4Addr, u16), heard: Ipv4Addr, tiers: [Tier; 2]) {
    assert_eq!(talk(bed, from, to.0, to.1), (heard, tiers.to_vec()), "{what}");
}

#[test]
fn published_ports_answer_everybody_with_masquerading() {
    Backend::ALL.into_iter().for_each(|backend| answer_with_masquerading(backend, MODES[0]));
    // This is the longest test of its kind; which rule translates what does not depend on the backend.
    answer_with_masquerading(Backend::Vxlan, MODES[1]);
}

fn answer_with_masquerading(backend: Backend, mode: &[&str]) {
    // Reverse path filters are strict, as in many distributions.
    let (bed, _servers) = bed(backend, 1, &[&["--ip-masq"][..], mode].concat());
    let (underlay, gateway) = (bed[0].host.address(), own(&bed, 0, 1));
    let (here, there) = (bed[0].host.namespace(), bed[1].host.namespace());
    let [a, b] = [&bed[0].containers[1], &bed[1].containers[1]];
    let outside = bed.lab.switch();
    let expect = |what, from, to, heard, tiers| check(&bed, what, from, to, heard, tiers);

    let to = (underlay, HERE);
    expect("outside, underlay", outside, to, Lab::SWITCH, [Neither, Neither]);
    expect("container there, underlay", b.namespace(), to, bed[1].host.address(), [Neither, Neither]);
    expect("host there, underlay", there, to, bed[1].host.address(), [Neither, Neither]);
    expect("container here, underlay", a.namespace(), to, a.address(), [Neither, Neither]);
    expect("host here, underlay", here, to, underlay, [Neither, Neither]);
    let to = (gateway, HERE);
    expect("container there, .1", b.namespace(), to, b.address(), [Stack, Fast]);
    expect("host there, .1", there, to, own(&bed, 1, 0), [Stack, Stack]);
    expect("container here, .1", a.namespace(), to, a.address(), [Neither, Neither]);
    expect("host here, .1", here, to, gateway, [Neither, Neither]);

    // The backend is on the other host. A packet whose source is not in this subnet is masqueraded, because the answers
    // would not come back through this host otherwise.
    let masked = own(&bed, 0, 0);
    for (address, name) in [(underlay, "underlay"), (gateway, ".1")] {
        let to = (address, THERE);
        let what = format!("{name}, backend there");
        check(&bed, &what, b.namespace(), to, masked, [Stack, Fast]);
        check(&bed, &what, a.namespace(), to, a.address(), [Stack, Fast]);
    }
    expect("outside, backend there", outside, (underlay, THERE), masked, [Stack, Fast]);
    expect("host there, backend there", there, (underlay, THERE), masked, [Stack, Fast]);
    expect("host here, backend there", here, (underlay, THERE), masked, [Stack, Fast]);
    expect("host here, .1, backend there", here, (gateway, THERE), gateway, [Stack, Fast]);
    assert_nothing_invalid(&bed);
}

#[test]
fn without_masquerading_a_container_sees_the_container_that_asks() {
    Backend::ALL.into_iter().for_each(|backend| see_who_asks(backend, MODES[0]));
    // The stack of a host meets two kinds of overlay0: a VXLAN device, and the TUN of both other backends.
    [Backend::Vxlan, Backend::HostGw].into_iter().for_each(|backend| see_who_asks(backend, MODES[1]));
}

fn see_who_asks(backend: Backend, mode: &[&str]) {
    // Reverse path filters are loose, because the request comes over the underlay and the answer leaves over the
    // overlay.
    let (bed, _servers) = bed(backend, 2, mode);
    let (underlay, gateway) = (bed[0].host.address(), own(&bed, 0, 1));
    let b = &bed[1].containers[1];
    bed[1].host.namespace().ip("route add default via 10.99.0.254").unwrap();
    let expect = |what, from, to, heard, tiers| check(&bed, what, from, to, heard, tiers);
    // With direct routing, what a host answers from its own address arrives like any packet of the underlay.
    let there = if backend == Backend::HostGw { Neither } else { HalfStack };
    expect("underlay", b.namespace(), (underlay, HERE), b.address(), [HalfStack, there]);
    expect(".1", b.namespace(), (gateway, HERE), b.address(), [Stack, Fast]);
    expect("outside", bed.lab.switch(), (underlay, HERE), Lab::SWITCH, [Neither, Neither]);
    assert_nothing_invalid(&bed);
}
