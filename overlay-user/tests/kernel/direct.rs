//! Direct routing, container to underlay: what leaves unencapsulated, and what does not.
use overlay_common::{Hook::Encap, Reason};

use super::{bed::*, encap::assert_answer};

const SENT: (overlay_common::Hook, Reason) = (Encap, Reason::Carried);

fn encap(bed: &mut Bed, packet: &[u8]) -> Outcome {
    bed.run("overlay_encap", bed.container, &from_container(packet))
}

/// `packet` with one less in its TTL.
fn routed(mut packet: Vec<u8>) -> Vec<u8> {
    packet[8] -= 1;
    seal(&mut packet);
    packet
}

#[test]
fn to_a_peer_on_the_link_a_packet_leaves_as_it_is() {
    with_direct(0, |bed, _| {
        for tos in [0, 0xbb] {
            let packet = udp_with(CONTAINER, REMOTE, [4000, 5000], 100, |ip| ip[1] = tos);
            let outcome = encap(bed, &packet);
            outcome.assert(REDIRECT, &[SENT]);
            assert_eq!(outcome.frame, from_container(&routed(packet)));
        }
        let traffic = bed.tables.traffic(0).unwrap();
        assert_eq!((traffic.sent_packets, traffic.sent_bytes), (2, 2 * 128));
        // What is not learned yet, and the like, is the stack's all the same.
        encap(bed, &udp(UNLEARNED, REMOTE, [1, 2], 10)).assert(NEXT, &[(Encap, Reason::Unlearned)]);
        // Such a next hop is no neighbour of ours to name (RFC 5549).
        change("route add 10.99.0.2/32 via inet6 fe80::2 dev eth0");
        encap(bed, &udp(CONTAINER, REMOTE, [1, 2], 10)).assert(NEXT, &[(Encap, Reason::NoNextHop)]);
        change("route del 10.99.0.2/32");
        change("addr del 10.99.0.1/24 dev eth0");
        encap(bed, &udp(CONTAINER, REMOTE, [1, 2], 10)).assert(NEXT, &[(Encap, Reason::NoNextHop)]);
    });
}

#[test]
fn to_a_peer_behind_a_gateway_a_packet_leaves_encapsulated() {
    with_direct(0, |bed, fallback| {
        let packet = udp(CONTAINER, FAR, [4000, 5000], 100);
        assert_eq!(encap(bed, &packet).frame, from_container(&routed(packet.clone())), "while on the link");
        behind_a_gateway();
        let outcome = encap(bed, &packet);
        outcome.assert(REDIRECT, &[SENT]);
        let (headers, inside) = outcome.frame.split_at(14 + fallback.overhead());
        assert_eq!(headers[26..34], [LOCAL, OTHER_PEER].concat());
        let port = if fallback == Fallback::Udp { UDP_PORT } else { PORT };
        assert_eq!(headers[36..38], port.to_be_bytes());
        assert_eq!(inside, routed(packet));
        let traffic = bed.tables.traffic(1).unwrap();
        assert_eq!((traffic.sent_packets, traffic.sent_bytes), (2, 2 * 128));
    });
}

#[test]
fn on_the_link_packets_may_be_as_large_as_its_mtu() {
    with_direct(0, |bed, _| {
        encap(bed, &udp(CONTAINER, REMOTE, [1, 2], 1500 - 28)).assert(REDIRECT, &[SENT]);
        // The kernel's own check of a frame allows four bytes more, for a VLAN tag.
        for length in [1501, 1600] {
            let packet = udp(CONTAINER, REMOTE, [1, 2], length - 28);
            let outcome = encap(bed, &packet);
            outcome.assert(REDIRECT, &[(Encap, Reason::TooBig)]);
            assert_answer(&outcome.frame, &packet, 40, 4, 1500);
            let packet = without_df(packet);
            let outcome = encap(bed, &packet);
            outcome.assert(NEXT, &[(Encap, Reason::NeedsFragmentation)]);
            assert_eq!(outcome.frame, from_container(&packet));
        }
        // A path MTU that the kernel knows of, to the peer itself.
        change("route add 10.99.0.2/32 dev eth0 mtu lock 1400");
        let packet = udp(CONTAINER, REMOTE, [1, 2], 1401 - 28);
        assert_answer(&encap(bed, &packet).frame, &packet, 40, 4, 1400);
        encap(bed, &udp(CONTAINER, REMOTE, [1, 2], 1400 - 28)).assert(REDIRECT, &[SENT]);
    });
}

#[test]
fn behind_a_gateway_the_headers_count() {
    with_direct(0, |bed, fallback| {
        behind_a_gateway();
        let mtu = 1500 - fallback.overhead();
        encap(bed, &udp(CONTAINER, FAR, [1, 2], mtu - 28)).assert(REDIRECT, &[SENT]);
        // The second would fit without headers, the third not even so.
        for length in [mtu + 1, 1500, 1501] {
            let packet = udp(CONTAINER, FAR, [1, 2], length - 28);
            let outcome = encap(bed, &packet);
            outcome.assert(REDIRECT, &[(Encap, Reason::TooBig)]);
            assert_answer(&outcome.frame, &packet, 40, 4, mtu as u16);
            encap(bed, &without_df(packet)).assert(NEXT, &[(Encap, Reason::NeedsFragmentation)]);
        }
    });
}

/// Nothing needs headroom here, so a test run's GSO frame passes every step.
#[test]
fn segments_count_not_frames() {
    with_direct(0, |bed, _| {
        let packet = tcp(CONTAINER, REMOTE, [1, 2], 0x10, 2920);
        let frame = from_container(&packet);
        let outcome = bed.run_with(
            "overlay_encap",
            Skb { ifindex: bed.container, gso_segs: 2, gso_size: 1460, ..Skb::default() },
            &frame,
        );
        outcome.assert(REDIRECT, &[SENT]);
        assert_eq!(outcome.frame, from_container(&routed(packet.clone())));
        assert_eq!(bed.tables.traffic(0).unwrap().sent_packets, 2);
        let larger = Skb { ifindex: bed.container, gso_segs: 2, gso_size: 1461, ..Skb::default() };
        let outcome = bed.run_with("overlay_encap", larger, &frame);
        outcome.assert(REDIRECT, &[(Encap, Reason::TooBig)]);
        assert_answer(&outcome.frame, &packet, 40, 4, 1500);
    });
}
