//! `docker run --publish`: the port answers at the host's underlay address and at the overlay's `.1`, whoever asks.
use std::net::Ipv4Addr;

use overlay_lab::{Backend, DockerTools, Lab, Namespace};

use super::{
    hosts::{Hosts, assert_learned, assert_talk, heard, own},
    traffic::{
        Tier,
        Tier::{Fast, Neither, Stack},
        tiers,
    },
};

/// The address that a web server sees when a process outside of all containers sends it a request.
fn heard_from(namespace: &Namespace, what: &str) -> Ipv4Addr {
    let busybox = DockerTools::find().unwrap().busybox();
    let (busybox, what) = (busybox.to_str().unwrap(), format!("http://{what}/cgi-bin/who"));
    let words = ["timeout", "5", busybox, "wget", "-q", "-O", "-", &what];
    namespace.exec_words(&words).unwrap().parse().unwrap()
}

#[test]
fn published_ports_answer_everybody() {
    Backend::ALL.into_iter().for_each(answer_everybody);
}

fn answer_everybody(backend: Backend) {
    let hosts = Hosts::new(backend);
    for member in &hosts.members {
        let chain = member.host.exec("iptables -S FORWARD").unwrap();
        assert!(chain.starts_with("-P FORWARD DROP\n"), "{chain}");
    }
    let (here, there) = (&hosts[0], &hosts[1]);
    let web = hosts.dockers[0].run("web", "--publish 8000:80").unwrap();
    let beside = hosts.dockers[0].run("beside", "").unwrap();
    let asks = hosts.dockers[1].run("asks", "").unwrap();
    assert_talk([&web, &asks]);
    assert_learned(here, &web);
    assert_learned(there, &asks);
    let [underlay, gateway] = [here.host.address(), own(here, 1)].map(|address| format!("{address}:8000"));

    let check = |what: &str, work: &dyn Fn() -> Ipv4Addr, by: Ipv4Addr, expected: [Tier; 2]| {
        let mut who = None;
        let seen = tiers(&hosts, || who = Some(work()));
        assert_eq!((who, seen), (Some(by), expected.to_vec()), "{backend:?}: {what}");
    };
    let outside = hosts.lab.switch();
    let [host_here, host_there] = [here, there].map(|member| member.host.namespace());

    check("outside", &|| heard_from(outside, &underlay), Lab::SWITCH, [Neither, Neither]);
    // These packets leave the overlay and are therefore masqueraded.
    check("container there, underlay", &|| heard(&asks, &underlay), there.host.address(), [Neither, Neither]);
    check("container there, .1", &|| heard(&asks, &gateway), asks.address(), [Stack, Fast]);
    check(
        "host there, underlay",
        &|| heard_from(host_there, &underlay),
        there.host.address(),
        [Neither, Neither],
    );
    check("host there, .1", &|| heard_from(host_there, &gateway), own(there, 0), [Stack, Stack]);
    // Docker's own proxy answers these requests, with the host's address.
    for to in [&underlay, &gateway] {
        check("container here", &|| heard(&beside, to), own(here, 1), [Neither, Neither]);
    }
    check(
        "host here, underlay",
        &|| heard_from(host_here, &underlay),
        here.host.address(),
        [Neither, Neither],
    );
    check("host here, .1", &|| heard_from(host_here, &gateway), own(here, 1), [Neither, Neither]);

    // A page and a transfer too long for one packet arrive too.
    assert_eq!(asks.fetch(&gateway).unwrap(), "a page\n");
    for to in [&underlay, &gateway] {
        asks.download(to).unwrap();
    }

    // The port is closed when its container stops.
    web.stop().unwrap();
    assert!(asks.fetch(&gateway).is_err() && asks.fetch(&underlay).is_err());
}
