//! Direct routing, underlay to container, at TC and at XDP alike: what arrives unencapsulated, and who may send it.
use overlay_common::{
    Hook::{Decap, Xdp},
    Reason,
};

use super::bed::*;
use crate::support::ip;

const DELIVERED: (overlay_common::Hook, Reason) = (Decap, Reason::Carried);

/// As it arrives on the underlay device.
fn arriving(packet: &[u8]) -> Vec<u8> {
    ethernet(UNDERLAY_MAC, NEXT_HOP_MAC, packet)
}

#[test]
fn a_plain_packet_of_a_peer_is_delivered() {
    with_direct(0, |bed, _| {
        for (source, slot) in [(REMOTE, 0), (FAR, 1)] {
            let packet = udp_with(source, CONTAINER, [5000, 4000], 100, |ip| ip[1] = 0xbb);
            let frame = arriving(&packet);
            let outcome = bed.run("overlay_decap", bed.underlay, &frame);
            assert_eq!(outcome.frame, ethernet(CONTAINER_MAC, GATEWAY_MAC, &packet));
            let traffic = bed.tables.traffic(slot).unwrap();
            assert_eq!((traffic.received_packets, traffic.received_bytes), (1, 128));
            bed.take_in_unencapsulated(&frame).assert(REDIRECT, &[DELIVERED]);
            let traffic = bed.tables.traffic(slot).unwrap();
            assert_eq!((traffic.received_packets, traffic.received_bytes), (3, 3 * 128), "XDP's too");
        }
        for (hook, packets) in [(Decap, 4), (Xdp, 2)] {
            let count = bed.tables.counter(hook, Reason::Carried).unwrap();
            assert_eq!((count.packets, count.bytes), (packets, packets * 128), "{hook:?}");
        }
        // A GSO frame, which needs no headroom here.
        let frame = arriving(&tcp(REMOTE, CONTAINER, [1, 2], 0x10, 2920));
        let skb = Skb { ifindex: bed.underlay, gso_segs: 2, gso_size: 1460, ..Skb::default() };
        bed.run_with("overlay_decap", skb, &frame).assert(REDIRECT, &[DELIVERED]);
    });
}

#[test]
fn encapsulated_packets_are_understood_beside_plain_ones() {
    with_direct(0, |bed, fallback| {
        let packet = udp(REMOTE, CONTAINER, [5000, 4000], 100);
        let outcome = bed.take_in(&fallback.encapsulate(&packet));
        outcome.assert(REDIRECT, &[DELIVERED]);
        assert_eq!(outcome.frame, ethernet(CONTAINER_MAC, GATEWAY_MAC, &packet));
        let count = bed.tables.counter(Decap, Reason::Carried).unwrap();
        assert_eq!((count.packets, count.bytes), (1, 128));
        // To the kernel's own tunnel untouched; a TUN has none.
        let frame = fallback.encapsulate(&udp(REMOTE, UNLEARNED, [1, 2], 10));
        let outcome = bed.take_in(&frame);
        let verdict = if fallback == Fallback::Udp { REDIRECT } else { NEXT };
        outcome.assert(verdict, &[(Decap, Reason::Unlearned)]);
        assert_eq!(outcome.frame, frame);
        let frame = fallback.encapsulate(&udp(REMOTE, FAR, [1, 2], 10));
        bed.take_in(&frame).assert(SHOT, &[(Decap, Reason::NotOurSubnet)]);
    });
}

/// No outer header says who sent it: the source must be a peer's container's.
#[test]
fn sources_of_plain_packets_are_checked() {
    with_direct(0, |bed, _| {
        for (source, reason) in [
            (UNLEARNED, Reason::PeerMismatch),
            (CONTAINER, Reason::PeerMismatch),
            ([10, 244, 99, 1], Reason::UnknownPeer),
        ] {
            let frame = arriving(&udp(source, CONTAINER, [1, 2], 10));
            bed.take_in_unencapsulated(&frame).assert(SHOT, &[(Decap, reason)]);
        }
    });
}

#[test]
fn what_is_no_containers_packet_to_a_container_passes_untouched_and_uncounted() {
    with_direct(0, |bed, _| {
        let packet = udp(REMOTE, CONTAINER, [1, 2], 40);
        let mut arp = arriving(&packet);
        arp[12..14].copy_from_slice(&[8, 6]);
        let mut other_mac = arriving(&packet);
        other_mac[5] ^= 1;
        for (name, frame) in [
            ("a host's", arriving(&udp(PEER, CONTAINER, [1, 2], 10))),
            ("the internet's", arriving(&udp([192, 0, 2, 1], CONTAINER, [1, 2], 10))),
            ("to this host", arriving(&udp(REMOTE, LOCAL, [1, 2], 10))),
            ("to another subnet", arriving(&udp(REMOTE, FAR, [1, 2], 10))),
            ("ARP", arp),
            ("another host's, seen because the interface is promiscuous", other_mac),
        ] {
            let outcome = bed.take_in_unencapsulated(&frame);
            assert_eq!((outcome.verdict, outcome.counted), (NEXT, vec![]), "{name}");
            assert_eq!(outcome.frame, frame, "{name}");
        }
    });
}

#[test]
fn unencapsulated_headers_that_lie_are_dropped() {
    with_direct(0, |bed, _| {
        let altered = |alter: fn(&mut [u8])| udp_with(REMOTE, CONTAINER, [1, 2], 10, alter);
        let mut sum = altered(|_| {});
        sum[10] ^= 1;
        for packet in [altered(|ip| ip[3] += 1), altered(|ip| ip[3] = 19), altered(|ip| ip[0] = 0x65), sum] {
            bed.take_in_unencapsulated(&arriving(&packet)).assert(SHOT, &[(Decap, Reason::Malformed)]);
        }
        let frame = arriving(&altered(|_| {}));
        for length in 34..frame.len() {
            bed.take_in_unencapsulated(&frame[..length]).assert(SHOT, &[(Decap, Reason::Malformed)]);
        }
    });
}

#[test]
fn unencapsulated_packets_that_the_stack_must_see_are_handed_over() {
    with_direct(0, |bed, fallback| {
        let handed_over = |bed: &mut Bed, packet: &[u8], reason: Reason| {
            let outcome = bed.take_in_unencapsulated(&arriving(packet));
            outcome.assert(REDIRECT, &[(Decap, reason)]);
            assert_eq!(outcome.frame, fallback.handed_over(arriving(packet)), "{reason:?}");
        };
        let altered = |alter: fn(&mut [u8])| udp_with(REMOTE, CONTAINER, [1, 2], 10, alter);
        handed_over(bed, &altered(|ip| ip[6] = 0x20), Reason::InnerFragment);
        handed_over(bed, &altered(|ip| ip[7] = 1), Reason::InnerFragment);
        handed_over(bed, &altered(|ip| ip[0] = 0x46), Reason::InnerOptions);
        handed_over(bed, &altered(|ip| ip[8] = 1), Reason::TtlExpired);
        handed_over(bed, &altered(|ip| ip[8] = 0), Reason::TtlExpired);
        handed_over(bed, &[altered(|_| {}), vec![0; 6]].concat(), Reason::TrailingBytes);
        for destination in [UNLEARNED, GATEWAY, [10, 244, 1, 0]] {
            handed_over(bed, &udp(REMOTE, destination, [1, 2], 10), Reason::Unlearned);
        }
        bed.keep_to_stack(CONTAINER, REMOTE, [4000, 5000], 17);
        handed_over(bed, &udp(REMOTE, CONTAINER, [5000, 4000], 10), Reason::StackFlow);
        bed.take_in_unencapsulated(&arriving(&udp(REMOTE, CONTAINER, [5000, 4001], 10)))
            .assert(REDIRECT, &[DELIVERED]);
        let packet = udp(REMOTE, CONTAINER, [1, 2], 500);
        change("link set c1 mtu 527");
        handed_over(bed, &packet, Reason::EndpointGone);
        ip("link set c1 mtu 528");
        bed.take_in_unencapsulated(&arriving(&packet)).assert(REDIRECT, &[DELIVERED]);
        change("link del c1");
        handed_over(bed, &packet, Reason::EndpointGone);
    });
    with_direct(0, |bed, fallback| {
        bed.tables.set_fast_path(FastPath::Off).unwrap();
        let frame = arriving(&udp(REMOTE, CONTAINER, [1, 2], 10));
        let outcome = bed.take_in_unencapsulated(&frame);
        outcome.assert(REDIRECT, &[(Decap, Reason::StackOnly)]);
        assert_eq!(outcome.frame, fallback.handed_over(frame));
        let frame = arriving(&udp(UNLEARNED, CONTAINER, [1, 2], 10));
        bed.take_in_unencapsulated(&frame).assert(SHOT, &[(Decap, Reason::PeerMismatch)]);
    });
}

/// What a device is still to finish loses what says so when it is redirected.
#[test]
fn xdp_leaves_plain_packets_that_it_does_not_understand_to_the_end() {
    with_direct(0, |bed, _| {
        let mut unfinished = tcp(REMOTE, CONTAINER, [1, 2], 0x10, 100);
        let length = (unfinished.len() as u16 - 20).to_be_bytes();
        let pseudo = !checksum(&[&unfinished[12..20], &[0, 6], &length].concat());
        unfinished[36..38].copy_from_slice(&pseudo.to_be_bytes());
        let error = icmp(REMOTE, CONTAINER, 3, &udp(CONTAINER, REMOTE, [1, 2], 0));
        for packet in [unfinished, error] {
            bed.is_left("overlay_xdp", &arriving(&packet), "TC's");
            bed.run("overlay_decap", bed.underlay, &arriving(&packet)).assert(REDIRECT, &[DELIVERED]);
        }
    });
}
