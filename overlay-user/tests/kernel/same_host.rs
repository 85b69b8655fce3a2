//! Frames between two containers of this host, behind one bridge that would only forward them.
use overlay_common::{
    Addr4, ENDPOINT_FOREIGN_EGRESS, EndpointEntry,
    Hook::{Encap, Send},
    Reason, endpoint_bridge_flags,
};

use super::bed::*;

const NEIGHBOUR: [u8; 4] = [10, 244, 1, 3];
const NEIGHBOUR_MAC: [u8; 6] = [0x0a, 0, 0, 0, 0, 0x03];

/// Makes both containers endpoints of the same bridge, the other one at the second port.
fn learn_both(bed: &mut Bed) {
    let flags = endpoint_bridge_flags(bed.bridge);
    bed.learn_with(CONTAINER, bed.container, flags);
    learn_neighbour(bed, bed.wrong_port, flags);
}

fn learn_neighbour(bed: &mut Bed, ifindex: u32, flags: u32) {
    let endpoint = EndpointEntry { ifindex, mac: NEIGHBOUR_MAC, gateway_mac: GATEWAY_MAC, flags };
    bed.tables.endpoints.put(Addr4::new(NEIGHBOUR), endpoint).unwrap();
}

/// A packet as the container sends it to its neighbour.
fn to_neighbour(packet: &[u8]) -> Vec<u8> {
    ethernet(NEIGHBOUR_MAC, CONTAINER_MAC, packet)
}

fn packet() -> Vec<u8> {
    udp(CONTAINER, NEIGHBOUR, [4000, 80], 100)
}

#[track_caller]
fn is_carried(bed: &mut Bed, skb: Skb, frame: &[u8], name: &str) {
    let outcome = bed.run_with("overlay_encap", skb, frame);
    assert_eq!((outcome.verdict, &*outcome.counted), (REDIRECT, &[(Encap, Reason::SameHost)][..]), "{name}");
    assert_eq!(outcome.frame, frame, "{name}");
}

/// The frame is the bridge's: untouched, and not counted.
#[track_caller]
fn is_the_bridges(bed: &mut Bed, frame: &[u8], name: &str) {
    let outcome = bed.run("overlay_encap", bed.container, frame);
    assert_eq!((outcome.verdict, &*outcome.counted), (NEXT, &[][..]), "{name}");
    assert_eq!(outcome.frame, frame, "{name}");
}

#[test]
fn a_frame_for_a_neighbour_is_handed_over_as_it_is() {
    with_each_look_up(|bed, _| {
        learn_both(bed);
        let skb = Skb { ifindex: bed.container, ..Skb::default() };
        let altered = |alter: fn(&mut [u8])| udp_with(CONTAINER, NEIGHBOUR, [4000, 80], 100, alter);
        let mut broken = packet();
        broken[10] ^= 1;
        let mut trailing = packet();
        trailing.extend([0; 6]);
        // A bridge looks at nothing of this.
        for (name, packet) in [
            ("UDP", packet()),
            ("TCP", tcp(CONTAINER, NEIGHBOUR, [4000, 80], 2, 0)),
            ("ICMP", icmp(CONTAINER, NEIGHBOUR, 8, &[0; 8])),
            ("a first fragment", altered(|header| header[6] = 0x20)),
            ("a later fragment", altered(|header| header[7] = 4)),
            ("a TTL of 1", altered(|header| header[8] = 1)),
            ("a TTL of 0", altered(|header| header[8] = 0)),
            ("a checksum that is wrong", broken),
            ("bytes behind the packet", trailing),
        ] {
            is_carried(bed, skb, &to_neighbour(&packet), name);
        }
        let back = ethernet(CONTAINER_MAC, NEIGHBOUR_MAC, &udp(NEIGHBOUR, CONTAINER, [80, 4000], 100));
        is_carried(bed, Skb { ifindex: bed.wrong_port, ..skb }, &back, "the answer");
        assert!(bed.flows().is_empty());
    });
}

#[test]
fn the_mode_of_the_fast_path_counts_only_if_it_is_off() {
    with_bed(|bed| {
        learn_both(bed);
        let skb = Skb { ifindex: bed.container, ..Skb::default() };
        for (fast_path, carries) in
            [(FastPath::On, true), (FastPath::Established, true), (FastPath::Off, false)]
        {
            bed.tables.set_fast_path(fast_path).unwrap();
            if carries {
                is_carried(bed, skb, &to_neighbour(&packet()), "a mode in which the fast path carries");
            } else {
                is_the_bridges(bed, &to_neighbour(&packet()), "off");
            }
        }
    });
}

#[test]
fn a_port_takes_frames_up_to_its_mtu_and_frames_of_segments() {
    with_bed(|bed| {
        learn_both(bed);
        let skb = Skb { ifindex: bed.container, ..Skb::default() };
        let sized = |length: usize| to_neighbour(&udp(CONTAINER, NEIGHBOUR, [4000, 80], length - 28));
        is_carried(bed, skb, &sized(1500), "as large as the port takes");
        is_the_bridges(bed, &sized(1501), "larger");
        let segments = Skb { gso_segs: 2, gso_size: 1400, ..skb };
        is_carried(bed, segments, &sized(2000), "two segments");
        change("link set c2 mtu 1000");
        is_the_bridges(bed, &sized(1500), "the port takes less now");
        is_carried(bed, skb, &sized(1000), "what it takes");
    });
}

#[test]
fn a_frame_with_another_mac_address_is_the_bridges() {
    with_bed(|bed| {
        learn_both(bed);
        const OTHER: [u8; 6] = [0x0a, 0, 0, 0, 0, 0x77];
        for (name, destination, source) in [
            ("to the gateway", GATEWAY_MAC, CONTAINER_MAC),
            ("to somebody else", OTHER, CONTAINER_MAC),
            ("to itself", CONTAINER_MAC, CONTAINER_MAC),
            ("a broadcast", [0xff; 6], CONTAINER_MAC),
            ("a multicast", [1, 0, 0x5e, 0, 0, 1], CONTAINER_MAC),
            ("from a source that is not learned", NEIGHBOUR_MAC, OTHER),
            ("from a multicast, which the bridge drops", NEIGHBOUR_MAC, [1, 0, 0x5e, 0, 0, 1]),
        ] {
            is_the_bridges(bed, &ethernet(destination, source, &packet()), name);
        }
    });
}

#[test]
fn a_frame_between_endpoints_that_the_bridge_does_more_to_is_the_bridges() {
    with_bed(|bed| {
        let frame = to_neighbour(&packet());
        let (own, other) = (endpoint_bridge_flags(bed.bridge), endpoint_bridge_flags(bed.bridge + 1));
        for (name, first, second) in [
            ("neither is handed on", 0, 0),
            ("the sender is not", 0, own),
            ("the receiver is not", own, 0),
            ("they are behind different bridges", own, other),
            ("other flags are not a bridge", ENDPOINT_FOREIGN_EGRESS, ENDPOINT_FOREIGN_EGRESS),
        ] {
            bed.learn_with(CONTAINER, bed.container, first);
            learn_neighbour(bed, bed.wrong_port, second);
            is_the_bridges(bed, &frame, name);
        }
        bed.learn_with(CONTAINER, bed.container, own);
        learn_neighbour(bed, bed.container, own);
        is_the_bridges(bed, &frame, "both are behind one port");
        learn_neighbour(bed, i32::MAX as u32, own);
        is_the_bridges(bed, &frame, "the receiver's port is gone");
        learn_neighbour(bed, bed.wrong_port, own);
        bed.learn_with(CONTAINER, bed.wrong_port, own);
        is_the_bridges(bed, &frame, "the sender is learned at another port");
        bed.learn_with(CONTAINER, bed.container, own);
        let to_unlearned = to_neighbour(&udp(CONTAINER, UNLEARNED, [4000, 80], 100));
        is_the_bridges(bed, &to_unlearned, "the receiver is not learned");
        let from_unlearned = to_neighbour(&udp(UNLEARNED, NEIGHBOUR, [4000, 80], 100));
        is_the_bridges(bed, &from_unlearned, "the sender is not learned");
        let outside = to_neighbour(&udp([192, 168, 0, 1], NEIGHBOUR, [4000, 80], 100));
        is_the_bridges(bed, &outside, "the source is not the overlay's");
    });
}

#[test]
fn what_is_not_for_a_neighbour_is_what_it_was() {
    with_bed(|bed| {
        learn_both(bed);
        // A source of another host is forged, whatever its frame looks like.
        let forged = to_neighbour(&udp(REMOTE, NEIGHBOUR, [4000, 80], 100));
        bed.run("overlay_encap", bed.container, &forged).assert(SHOT, &[(Encap, Reason::SourceNotOurs)]);
        let remote = from_container(&udp(CONTAINER, REMOTE, [4000, 80], 100));
        bed.run("overlay_encap", bed.container, &remote).assert(REDIRECT, &[(Encap, Reason::Carried)]);
        // Only the program at the sender's port hands frames on.
        let outcome = bed.run("overlay_bridge", bed.bridge, &to_neighbour(&packet()));
        assert_eq!((outcome.verdict, &*outcome.counted), (NEXT, &[][..]));
        let counted = bed.run("overlay_encap", bed.container, &to_neighbour(&packet())).counted;
        assert!(!counted.iter().any(|(hook, _)| *hook == Send), "{counted:?}");
    });
}
