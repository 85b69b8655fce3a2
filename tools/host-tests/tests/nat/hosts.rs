//! The hosts' own traffic over the overlay, through overlay0.
use overlay_lab::Backend;

use super::traffic::{
    Server,
    Tier::{Fast, HalfStack, Neither, Stack},
    assert_nothing_invalid, own, strict_bed_of, talk,
};
use crate::bed::MODES;

#[test]
fn hosts_and_containers_talk_over_the_overlay() {
    Backend::ALL.into_iter().for_each(|backend| talk_over(backend, MODES[0]));
    // Which addresses are a host's own does not depend on the backend.
    talk_over(Backend::Vxlan, MODES[1]);
}

fn talk_over(backend: Backend, mode: &[&str]) {
    let bed = strict_bed_of(backend, 2, mode);
    let (here, there) = (bed[0].host.namespace(), bed[1].host.namespace());
    let (a, b) = bed.pair();
    let [tunnel, bridge, underlay] = [own(&bed, 1, 0), own(&bed, 1, 1), bed[1].host.address()];
    let _servers = [
        Server::of(b),
        Server::start(there, tunnel, 9000),
        Server::start(there, bridge, 9000),
        Server::start(there, underlay, 9000),
    ];
    // A host sends from overlay0's address, so that the answers find it.
    assert_eq!(talk(&bed, here, b.address(), 8080), (own(&bed, 0, 0), vec![Stack, Fast]));
    for to in [tunnel, bridge] {
        assert_eq!(talk(&bed, a.namespace(), to, 9000), (a.address(), vec![Fast, Stack]), "{to}");
        assert_eq!(talk(&bed, here, to, 9000), (own(&bed, 0, 0), vec![Stack, Stack]), "{to}");
    }
    // Packets to a host's own address, even from a container, are carried by the underlay, but only the overlay has a
    // route for the answer. With direct routing, that answer arrives like any packet of the other host itself.
    let here = if backend == Backend::HostGw { Neither } else { HalfStack };
    assert_eq!(talk(&bed, a.namespace(), underlay, 9000), (a.address(), vec![here, HalfStack]));
    assert_nothing_invalid(&bed);
}
