//! A network whose leasable range is a part of Network: what is outside of it is the host's, but for what a peer has leased.
use overlay_common::{
    Addr4,
    Hook::{Decap, Encap, Receive, Send},
    PeerEntry, Reason, SETTING_DIRECT, SETTING_PART, SETTING_STRICT_PEERS, Settings,
};

use super::bed::*;
use crate::support::ip;

/// This host's network is inside Network, as are its peers' addresses.
fn with_range(flags: u32, test: impl FnOnce(&mut Bed) + std::marker::Send) {
    let alter = |settings: &mut Settings| {
        (settings.network, settings.network_mask) = ([10, 0, 0, 0], [255, 0, 0, 0]);
        settings.leasable_first = u32::from_be_bytes([10, 244, 0, 0]);
        settings.leasable_last = u32::from_be_bytes([10, 244, 99, 255]);
        settings.flags = flags | SETTING_PART;
    };
    with_settings(alter, test);
}

fn encap(bed: &mut Bed, packet: &[u8]) -> Outcome {
    bed.run("overlay_encap", bed.container, &from_container(packet))
}

/// The first address behind the range, and the last before it.
const OUTSIDE: [[u8; 4]; 2] = [[10, 244, 100, 0], [10, 243, 255, 255]];

#[test]
fn destinations_outside_the_range_are_not_ours() {
    with_range(0, |bed| {
        for destination in OUTSIDE.into_iter().chain([LOCAL, PEER, STRANGER]) {
            encap(bed, &udp(CONTAINER, destination, [1, 2], 10)).assert(NEXT, &[]);
        }
        let edges = [[10, 244, 99, 255], [10, 244, 0, 1]];
        for destination in edges {
            encap(bed, &udp(CONTAINER, destination, [1, 2], 10)).assert(REDIRECT, &[(Encap, Reason::NoPeer)]);
        }
        encap(bed, &udp(CONTAINER, REMOTE, [1, 2], 10)).assert(REDIRECT, &[(Encap, Reason::Carried)]);
        // A tunnel packet to a peer stays a forgery.
        encap(bed, &udp(CONTAINER, PEER, [1, PORT], 10)).assert(SHOT, &[(Encap, Reason::ForgedTunnel)]);
    });
}

#[test]
fn sources_outside_the_range_are_foreign_and_those_inside_are_checked() {
    with_range(0, |bed| {
        for source in OUTSIDE.into_iter().chain([PEER]) {
            encap(bed, &udp(source, REMOTE, [1, 2], 10)).assert(NEXT, &[(Encap, Reason::ForeignSource)]);
            let frame = from_container(&udp(source, [192, 0, 2, 1], [1, 2], 10));
            bed.run("overlay_bridge", bed.bridge, &frame).assert(NEXT, &[]);
            let frame = Tunnel::default().encapsulate(&udp(source, CONTAINER, [1, 2], 10));
            bed.take_in(&frame).assert(NEXT, &[(Decap, Reason::ForeignSource)]);
            let frame = ethernet(VTEP_MAC, VTEP_MAC, &udp(source, REMOTE, [1, 2], 10));
            bed.run("overlay_send", bed.underlay, &frame).assert(NEXT, &[(Send, Reason::Carried)]);
        }
        let nobodys = [10, 244, 77, 9];
        for source in [nobodys, FAR] {
            encap(bed, &udp(source, REMOTE, [1, 2], 10)).assert(SHOT, &[(Encap, Reason::SourceNotOurs)]);
            let frame = Tunnel::default().encapsulate(&udp(source, CONTAINER, [1, 2], 10));
            bed.take_in(&frame).assert(SHOT, &[(Decap, Reason::PeerMismatch)]);
        }
    });
    with_range(SETTING_STRICT_PEERS, |bed| {
        let frame = Tunnel::default().encapsulate(&udp(PEER, CONTAINER, [1, 2], 10));
        bed.take_in(&frame).assert(SHOT, &[(Decap, Reason::StrictSource)]);
    });
}

#[test]
fn unencapsulated_packets_from_outside_the_range_are_the_underlays() {
    with_range(SETTING_DIRECT, |bed| {
        let arriving = |source| ethernet(UNDERLAY_MAC, NEXT_HOP_MAC, &udp(source, CONTAINER, [1, 2], 10));
        bed.take_in_unencapsulated(&arriving(PEER)).assert(NEXT, &[]);
        bed.take_in_unencapsulated(&arriving([10, 244, 77, 9])).assert(SHOT, &[(Decap, Reason::UnknownPeer)]);
        bed.take_in_unencapsulated(&arriving(REMOTE)).assert(REDIRECT, &[(Decap, Reason::Carried)]);
        // Nothing with such a source is handed over to overlay0.
        let frame = ethernet(VTEP_MAC, NEXT_HOP_MAC, &udp(PEER, CONTAINER, [1, 2], 10));
        bed.run("overlay_receive", bed.underlay, &frame).assert(SHOT, &[(Receive, Reason::UnknownPeer)]);
    });
}

#[test]
fn the_stacks_deliveries_from_outside_the_range_are_not_recorded() {
    with_range(0, |bed| {
        for (source, flows) in [(PEER, 0), ([10, 244, 100, 7], 0), (REMOTE, 1)] {
            bed.run("overlay_track", bed.container, &from_container(&udp(source, CONTAINER, [1, 2], 10)));
            assert_eq!(bed.flows().len(), flows, "{source:?}");
        }
    });
}

#[test]
fn a_lease_outside_the_range_is_a_peer_as_every_other() {
    with_range(0, |bed| {
        let (subnet, remote) = ([10, 244, 100, 0], [10, 244, 100, 7]);
        let peer =
            PeerEntry { outer: Addr4::new(PEER), vtep_mac: PEER_VTEP_MAC, slot: 0, ..PeerEntry::default() };
        bed.tables.peers.put(Addr4::new(subnet), peer).unwrap();
        encap(bed, &udp(CONTAINER, remote, [1, 2], 10)).assert(REDIRECT, &[(Encap, Reason::Carried)]);
        encap(bed, &udp(remote, REMOTE, [1, 2], 10)).assert(SHOT, &[(Encap, Reason::SourceNotOurs)]);
        let frame = Tunnel::default().encapsulate(&udp(remote, CONTAINER, [1, 2], 10));
        bed.take_in(&frame).assert(REDIRECT, &[(Decap, Reason::Carried)]);
        let stranger = Tunnel { source: OTHER_PEER, ..Tunnel::default() };
        let frame = stranger.encapsulate(&udp(remote, CONTAINER, [1, 2], 10));
        bed.take_in(&frame).assert(SHOT, &[(Decap, Reason::PeerMismatch)]);
    });
}

#[test]
fn a_destination_without_a_peer_is_the_hosts_if_its_routes_do_not_lead_into_overlay0() {
    with_bed(|bed| {
        let nobodys = udp(CONTAINER, [10, 244, 77, 9], [1, 2], 10);
        let mut reason = |prepare: &str, undo: &str| {
            ip(prepare);
            let outcome = encap(bed, &nobodys);
            ip(undo);
            (outcome.verdict, outcome.counted)
        };
        let (is_left, answered) = ((NEXT, vec![]), (REDIRECT, vec![(Encap, Reason::NoPeer)]));
        // A route of the host's owner, an address of the host, and a route that forbids.
        let route = "10.244.77.0/24 via 10.99.0.66";
        assert_eq!(reason(&format!("route add {route}"), &format!("route del {route}")), is_left);
        let address = "10.244.77.9/32 dev eth0";
        assert_eq!(reason(&format!("addr add {address}"), &format!("addr del {address}")), is_left);
        let route = "prohibit 10.244.77.0/24";
        assert_eq!(reason(&format!("route add {route}"), &format!("route del {route}")), is_left);
        assert_eq!(reason("link show dev eth0", "link show dev eth0"), answered);
        // Tunnel packets to a peer are a forgery, wherever they lead.
        let vtep = overlay_common::Vtep { slot: 0 };
        bed.tables.vteps.insert(Addr4::new([10, 244, 77, 9]), vtep, 0).unwrap();
        change("route add 10.244.77.0/24 via 10.99.0.66");
        encap(bed, &udp(CONTAINER, [10, 244, 77, 9], [1, PORT], 10))
            .assert(SHOT, &[(Encap, Reason::ForgedTunnel)]);
    });
}
