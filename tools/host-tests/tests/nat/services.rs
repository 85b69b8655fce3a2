//! The address of a service, which is translated on the client's host, with backends on both hosts and agents that end
//! meanwhile.
use std::net::Ipv4Addr;

use overlay_lab::Backend;

use super::traffic::{
    BOTH, Server, Talk,
    Tier::{Fast, Neither, Stack},
    assert_nothing_invalid, own, promote, publish, strict_bed_of, talk, tiers,
};
use crate::bed::MODES;

const REMOTE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
const LOCAL: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 11);

#[test]
fn a_service_reaches_backends_here_and_there() {
    Backend::ALL.into_iter().for_each(|backend| serve(backend, MODES[0]));
    // The stack of a host meets two kinds of overlay0: a VXLAN device, and the TUN of both other backends.
    [Backend::Vxlan, Backend::HostGw].into_iter().for_each(|backend| serve(backend, MODES[1]));
}

fn serve(backend: Backend, mode: &[&str]) {
    let bed = strict_bed_of(backend, 1, &[&["--ip-masq"][..], mode].concat());
    let (a, remote) = (&bed[0].containers[0], &bed[1].containers[0]);
    let (host, local) = (&bed[0].host, &bed[0].containers[1]);
    let _servers = [Server::of(remote), Server::of(local)];
    publish(host, REMOTE, 80, remote);
    publish(host, LOCAL, 80, local);
    // A host has some route to the services' addresses, and kube-proxy needs the bridge's packets in netfilter.
    host.namespace().ip("route add 10.96.0.0/16 dev eth0").unwrap();
    host.namespace().sysctl("bridge/bridge-nf-call-iptables", "1").unwrap();

    assert_eq!(talk(&bed, a.namespace(), REMOTE, 80), (a.address(), vec![Stack, Fast]));
    assert_eq!(talk(&bed, a.namespace(), LOCAL, 80), (a.address(), vec![Neither, Neither]));
    assert_eq!(talk(&bed, host.namespace(), REMOTE, 80), (own(&bed, 0, 0), vec![Stack, Fast]));
    assert_eq!(talk(&bed, host.namespace(), LOCAL, 80), (host.address(), vec![Neither, Neither]));
    // Unlike a connection to the service, one to the backend itself needs no stack.
    assert_eq!(talk(&bed, a.namespace(), remote.address(), 8080), (a.address(), vec![Fast, Fast]));
    assert_nothing_invalid(&bed);
}

#[test]
fn conversations_live_through_agents_that_end_and_start() {
    Backend::ALL.into_iter().for_each(|backend| converse(backend, MODES[0]));
    // An agent keeps promotions in the same way whatever the backend.
    converse(Backend::Vxlan, MODES[1]);
}

fn converse(backend: Backend, mode: &[&str]) {
    let mut bed = strict_bed_of(backend, 1, &[&["--ip-masq"][..], mode].concat());
    let (a, remote) = (bed[0].containers[0].clone(), bed[1].containers[0].clone());
    let _server = Server::of(&remote);
    publish(&bed[0].host, REMOTE, 80, &remote);
    // The receiving host translates this one, so the flow is recorded at the other place too.
    let gateway = own(&bed, 1, 1);
    publish(&bed[1].host, gateway, 81, &remote);
    let mut talks = Vec::new();
    for protocol in BOTH {
        for (to, port) in [(REMOTE, 80), (gateway, 81)] {
            talks.push(Talk::open(a.namespace(), protocol, to, port).unwrap());
        }
    }
    let mut ask = |bed: &_| {
        for (index, talk) in talks.iter_mut().enumerate() {
            let expected = if index % 2 == 0 { [Stack, Fast] } else { [Fast, Stack] };
            // An agent that starts writes its rules anew, and every connection is asked about again.
            promote(bed, talk).unwrap();
            let tiers = tiers(bed, || {
                for _ in 0..3 {
                    assert_eq!(talk.ask().unwrap(), a.address());
                }
            });
            assert_eq!(tiers, expected, "conversation {index}");
        }
    };
    ask(&bed);
    for host in [0, 1] {
        bed[host].kill_agent().unwrap();
        ask(&bed);
    }
    for host in [0, 1] {
        bed[host].restart_agent().unwrap();
        ask(&bed);
    }
    assert!(bed[0].end_agent().unwrap().success());
    ask(&bed);
    bed[0].restart_agent().unwrap();
    ask(&bed);
    assert_nothing_invalid(&bed);
}
