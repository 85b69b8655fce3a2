//! Without direct routing: what arrives at the underlay device unencapsulated, and in whose name.
use overlay_common::{Addr4, Hook::Decap, PeerEntry, Reason, Settings, Vtep};

use super::bed::*;
use crate::support::ip;

const DROPPED: [(overlay_common::Hook, Reason); 1] = [(Decap, Reason::NotEncapsulated)];
const NOBODYS: [u8; 4] = [10, 244, 99, 1];

/// As it arrives on the underlay device.
fn arriving(source: [u8; 4], destination: [u8; 4]) -> Vec<u8> {
    ethernet(UNDERLAY_MAC, NEXT_HOP_MAC, &udp(source, destination, [1, 2], 10))
}

/// Gives the host an overlay0 with the route to `network`.
fn overlay0(settings: &mut Settings, network: &str) {
    ip("link add overlay0 type veth peer name behind");
    ip("link set behind up");
    ip("link set overlay0 up");
    ip(&format!("route add {network} dev overlay0"));
    settings.device = nix::net::if_::if_nametoindex("overlay0").unwrap();
}

/// Runs `test` on hosts of both modes that encapsulate everything.
fn with_both(network: &str, alter: fn(&mut Settings), test: impl Fn(&mut Bed) + Send + Sync) {
    for encapsulate in [|_: &mut Settings| {}, bare] {
        let alter = |settings: &mut Settings| {
            overlay0(settings, network);
            alter(settings);
            encapsulate(settings);
        };
        with_settings(alter, |bed| test(bed));
    }
}

#[track_caller]
fn is_dropped(bed: &mut Bed, source: [u8; 4], destination: [u8; 4]) {
    let frame = arriving(source, destination);
    let outcome = bed.take_in_unencapsulated(&frame);
    assert_eq!((outcome.verdict, &outcome.counted[..]), (SHOT, &DROPPED[..]), "{source:?} {destination:?}");
    assert_eq!(outcome.frame, frame);
}

#[track_caller]
fn passes(bed: &mut Bed, source: [u8; 4], destination: [u8; 4]) {
    let frame = arriving(source, destination);
    let outcome = bed.take_in_unencapsulated(&frame);
    assert_eq!((outcome.verdict, outcome.counted), (NEXT, vec![]), "{source:?} {destination:?}");
    assert_eq!(outcome.frame, frame);
}

#[test]
fn nobody_speaks_for_a_container_without_encapsulation() {
    with_both(
        "10.244.0.0/16",
        |_| {},
        |bed| {
            for source in [REMOTE, FAR, NOBODYS, CONTAINER, UNLEARNED, GATEWAY, NETWORK] {
                // To a container, learned or not, to the host's own addresses in the subnet, and on to another host.
                for destination in [CONTAINER, UNLEARNED, GATEWAY, [10, 244, 1, 0], [10, 244, 1, 255], REMOTE]
                {
                    is_dropped(bed, source, destination);
                }
            }
            let count = bed.tables.counter(Decap, Reason::NotEncapsulated).unwrap();
            assert_eq!(count.bytes, count.packets * 38, "the packets' own bytes");
            // Whatever else is wrong with the packet.
            let sound = udp(REMOTE, CONTAINER, [1, 2], 10);
            for (at, value) in [(0, 0x46), (0, 0x65), (3, 0), (6, 0x20), (7, 1), (8, 0), (10, 0)] {
                let mut packet = sound.clone();
                packet[at] = value;
                let frame = ethernet(UNDERLAY_MAC, NEXT_HOP_MAC, &packet);
                bed.take_in_unencapsulated(&frame).assert(SHOT, &DROPPED);
            }
            // The stack gives the host's own addresses what a broadcast brings.
            for mac in [[0xff; 6], [1, 0, 0x5e, 0, 0, 1]] {
                let frame = ethernet(mac, NEXT_HOP_MAC, &udp(REMOTE, GATEWAY, [1, 2], 10));
                bed.take_in_unencapsulated(&frame).assert(SHOT, &DROPPED);
            }
        },
    );
}

#[test]
fn what_the_underlay_brings_in_its_own_name_passes_untouched_and_uncounted() {
    with_both(
        "10.244.0.0/16",
        |_| {},
        |bed| {
            for source in [PEER, STRANGER, [192, 0, 2, 1]] {
                for destination in [CONTAINER, UNLEARNED, GATEWAY, LOCAL, REMOTE] {
                    passes(bed, source, destination);
                }
            }
            // A container that is not masqueraded asks a host's own address, or something behind this host.
            for source in [REMOTE, NOBODYS] {
                for destination in [LOCAL, [192, 0, 2, 1], [255; 4], [224, 0, 0, 1], STRANGER] {
                    passes(bed, source, destination);
                }
            }
            let packet = udp(REMOTE, CONTAINER, [1, 2], 10);
            let arp = [&UNDERLAY_MAC[..], &NEXT_HOP_MAC, &[8, 6], &packet].concat();
            let other_mac = ethernet([6, 0, 0, 0, 0, 9], NEXT_HOP_MAC, &packet);
            for frame in [arp, other_mac] {
                let outcome = bed.take_in_unencapsulated(&frame);
                assert_eq!((outcome.verdict, outcome.counted), (NEXT, vec![]));
            }
        },
    );
}

/// Network covers the underlay: the host's own routes tell the underlay's machines from containers.
#[test]
fn machines_of_the_underlay_inside_network_pass() {
    let covering = |settings: &mut Settings| {
        (settings.network, settings.network_mask) = ([10, 0, 0, 0], [255, 0, 0, 0]);
    };
    with_both("10.0.0.0/8", covering, |bed| {
        // On the link, and behind a router.
        ip("route add 10.98.0.0/16 via 10.99.0.2");
        for source in [PEER, OTHER_PEER, STRANGER, [10, 98, 7, 7]] {
            for destination in [CONTAINER, GATEWAY, LOCAL, [10, 98, 7, 8], REMOTE] {
                passes(bed, source, destination);
            }
        }
        passes(bed, REMOTE, LOCAL);
        passes(bed, REMOTE, STRANGER);
        for source in [REMOTE, CONTAINER, NOBODYS, [10, 97, 0, 1]] {
            is_dropped(bed, source, CONTAINER);
            is_dropped(bed, source, REMOTE);
        }
        // A peer's own address passes even if no route but overlay0's leads to it.
        let (outer, base) = (Addr4::new([10, 97, 0, 5]), Addr4::new([10, 244, 5, 0]));
        bed.tables.vteps.insert(outer, Vtep::default(), 0).unwrap();
        bed.tables.peers.put(base, PeerEntry { outer, ..PeerEntry::default() }).unwrap();
        passes(bed, [10, 97, 0, 5], CONTAINER);
        is_dropped(bed, [10, 97, 0, 6], CONTAINER);
        // The route to a leased subnet is overlay0's, whatever other there is; a default route is everybody's.
        ip("route add 10.244.2.0/24 via 10.99.0.2");
        ip("route add default via 10.99.0.2");
        is_dropped(bed, REMOTE, CONTAINER);
        is_dropped(bed, NOBODYS, CONTAINER);
    });
}
