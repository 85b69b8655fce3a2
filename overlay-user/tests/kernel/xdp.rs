//! What only XDP does: which deliveries it takes, and how it carries them. That it delivers nothing which TC would not deliver
//! is checked by every row of decap.rs.
use overlay_common::{Hook::Xdp, Reason};

use super::bed::*;
use crate::support::ip;

const CARRIED: &[(overlay_common::Hook, Reason)] = &[(Xdp, Reason::Carried)];
const HEADERS: usize = 64;

fn encapsulated(packet: &[u8]) -> Vec<u8> {
    Tunnel::default().encapsulate(packet)
}

/// With an outer checksum of zero, as our hosts and flannel's send it.
fn unchecked(packet: &[u8]) -> Vec<u8> {
    let mut frame = encapsulated(packet);
    frame[40..42].fill(0);
    frame
}

#[test]
fn a_packet_for_a_container_is_handed_to_its_veth() {
    with_bed(|bed| {
        for packet in [
            udp(REMOTE, CONTAINER, [5000, 4000], 100),
            tcp(REMOTE, CONTAINER, [5000, 4000], 0x10, 1410 - 20),
            icmp(REMOTE, CONTAINER, 8, &[7; 56]),
            icmp(REMOTE, CONTAINER, 0, &[]),
        ] {
            let outcome = bed.run_xdp("overlay_xdp", &encapsulated(&packet));
            outcome.assert(XDP_REDIRECT, CARRIED);
            assert_eq!(outcome.frame, ethernet(CONTAINER_MAC, GATEWAY_MAC, &packet));
        }
        let traffic = bed.tables.traffic(0).unwrap();
        assert_eq!((traffic.received_packets, traffic.received_bytes), (4, 128 + 1430 + 84 + 28));
    });
}

#[test]
fn a_packet_for_a_container_is_decapsulated_and_marked() {
    with_bed(|bed| {
        let other = udp([10, 244, 3, 9], CONTAINER, [5000, 4000], 100);
        let tunnel = Tunnel { source: OTHER_PEER, ..Tunnel::default() };
        let mut from_other = tunnel.encapsulate(&other);
        from_other[40..42].fill(0);
        let tcp = tcp(REMOTE, CONTAINER, [5000, 4000], 0x10, 1390);
        for (packet, frame, slot) in [(&tcp, unchecked(&tcp), 0), (&other, from_other, 1)] {
            let outcome = bed.run_xdp("overlay_xdp_strip", &frame);
            // Counted by TC, segment by segment, once GRO has merged.
            outcome.assert(XDP_PASS, &[]);
            let delivered = ethernet(CONTAINER_MAC, GATEWAY_MAC, packet);
            assert_eq!(outcome.frame, [strip_mark(slot), delivered].concat());
        }
        bed.is_left("overlay_xdp_strip", &encapsulated(&tcp), "outer checksum not zero");
    });
}

#[test]
fn congestion_marks_are_carried_inwards() {
    with_bed(|bed| {
        for (outer, inner, delivered) in [(3, 2, 3), (1, 2, 1), (0, 3, 3), (2, 0, 0)] {
            let packet = udp_with(REMOTE, CONTAINER, [1, 2], 10, |ip| ip[1] = 0xb8 | inner);
            let mut frame = Tunnel { tos: outer, ..Tunnel::default() }.encapsulate(&packet);
            frame[40..42].fill(0);
            for (program, start) in [("overlay_xdp", 0), ("overlay_xdp_strip", 16)] {
                let out = bed.run_xdp(program, &frame).frame.split_off(start);
                assert_eq!(out[15], 0xb8 | delivered, "{program}: outer {outer}, inner {inner}");
                assert_eq!(checksum(&out[14..34]), 0, "{program}");
                assert_eq!(out[34..], frame[HEADERS + 20..], "{program}");
            }
        }
        let packet = udp(REMOTE, CONTAINER, [1, 2], 10);
        let lost = Tunnel { tos: 3, ..Tunnel::default() }.encapsulate(&packet);
        bed.is_left("overlay_xdp", &lost, "CE outside, Not-ECT inside: TC drops and counts it");
    });
}

#[test]
fn only_interfaces_that_take_frames_are_handed_any() {
    with_bed(|bed| {
        let frame = encapsulated(&udp(REMOTE, CONTAINER, [1, 2], 500));
        bed.xdp_targets.set(bed.container, false).unwrap();
        bed.is_left("overlay_xdp", &frame, "not proven");
        bed.xdp_targets.set(bed.container, true).unwrap();
        bed.run_xdp("overlay_xdp", &frame).assert(XDP_REDIRECT, CARRIED);
        ip("link set c1 mtu 527");
        bed.is_left("overlay_xdp", &frame, "too small");
        ip("link set c1 mtu 528");
        bed.run_xdp("overlay_xdp", &frame).assert(XDP_REDIRECT, CARRIED);
        ip("link del c1");
        bed.is_left("overlay_xdp", &frame, "gone");
        assert!(bed.xdp_targets.list().unwrap().is_empty(), "the kernel removes what is gone");
    });
}

#[test]
fn what_is_not_understood_to_the_end_is_left_to_tc() {
    with_bed(|bed| {
        let echo = echo(8);
        let mut sctp = udp(REMOTE, CONTAINER, [1, 2], 24);
        sctp[9] = 132;
        seal(&mut sctp);
        let mut short = udp(REMOTE, CONTAINER, [1, 2], 0);
        short.truncate(24);
        short[3] = 24;
        seal(&mut short);
        let error = icmp(REMOTE, CONTAINER, 3, &udp(CONTAINER, REMOTE, [1, 2], 0));
        let mut padded = unchecked(&echo);
        padded.extend_from_slice(&[0; 4]);
        let mut tagged = unchecked(&echo);
        tagged.splice(12..12, [0x81, 0, 0, 7]);
        let mut other_mac = unchecked(&echo);
        other_mac[5] ^= 1;
        for (name, frame) in [
            ("a protocol whose checksum may be unfinished", unchecked(&sctp)),
            ("half a transport header", unchecked(&short)),
            ("an ICMP error", unchecked(&error)),
            ("bytes behind the packet", padded),
            ("a VLAN's", tagged),
            ("another host's", other_mac),
        ] {
            bed.is_left("overlay_xdp", &frame, name);
            bed.is_left("overlay_xdp_strip", &frame, name);
        }
    });
}

/// The redirected frame would lose what says that somebody still has to finish the checksum.
#[test]
fn a_checksum_that_a_device_was_to_finish_is_not_taken_for_one() {
    with_bed(|bed| {
        let pseudo = |packet: &[u8], protocol: u8| {
            let length = (packet.len() as u16 - 20).to_be_bytes();
            !checksum(&[&packet[12..20], &[0, protocol], &length].concat())
        };
        for (mut packet, protocol, at) in [
            (tcp(REMOTE, CONTAINER, [1, 2], 0x10, 100), 6, 36),
            (udp(REMOTE, CONTAINER, [1, 2], 100), 17, 26),
        ] {
            bed.run_xdp("overlay_xdp", &encapsulated(&packet)).assert(XDP_REDIRECT, CARRIED);
            let unfinished = pseudo(&packet, protocol);
            packet[at..at + 2].copy_from_slice(&unfinished.to_be_bytes());
            bed.is_left("overlay_xdp", &encapsulated(&packet), "unfinished");
            bed.is_left("overlay_xdp_strip", &unchecked(&packet), "unfinished");
            // Wrong by one is wrong: the container finds out what is redirected, but not what GRO believes.
            packet[at + 1] ^= 1;
            bed.run_xdp("overlay_xdp", &encapsulated(&packet)).assert(XDP_REDIRECT, CARRIED);
            bed.is_left("overlay_xdp_strip", &unchecked(&packet), "wrong");
        }
        let mut none = udp(REMOTE, CONTAINER, [1, 2], 100);
        none[26..28].fill(0);
        bed.run_xdp("overlay_xdp", &encapsulated(&none)).assert(XDP_REDIRECT, CARRIED);
    });
}

/// Strip sums up all there is, in pieces of 512 bytes and below, and only then vouches for it.
#[test]
fn only_data_that_fits_its_checksum_is_unwrapped() {
    with_bed(|bed| {
        ip("link set c1 mtu 3000");
        for length in (0..70).chain([511, 512, 513, 1000, 1023, 1024, 1390, 1391, 2500]) {
            for packet in [
                tcp(REMOTE, CONTAINER, [1, 2], 0x10, length),
                udp(REMOTE, CONTAINER, [1, 2], length),
                echo(length),
            ] {
                let outcome = bed.run_xdp("overlay_xdp_strip", &unchecked(&packet));
                let delivered = ethernet(CONTAINER_MAC, GATEWAY_MAC, &packet);
                assert_eq!(outcome.frame, [strip_mark(0), delivered].concat(), "{length} bytes");
                let mut broken = packet.clone();
                *broken.last_mut().unwrap() ^= 0x40;
                bed.is_left("overlay_xdp_strip", &unchecked(&broken), "broken");
            }
        }
    });
}

/// With a checksum, which the bed's own has not.
fn echo(length: usize) -> Vec<u8> {
    let mut packet = icmp(REMOTE, CONTAINER, 8, &vec![0x77; length]);
    let sum = checksum(&packet[20..]);
    packet[22..24].copy_from_slice(&sum.to_be_bytes());
    packet
}

/// A jumbo frame has its end in buffers that the program cannot read directly.
#[test]
fn a_frame_in_several_buffers_is_carried_whole() {
    with_bed(|bed| {
        ip("link set c1 mtu 9000");
        let packet = tcp(REMOTE, CONTAINER, [1, 2], 0x10, 8000);
        let outcome = bed.run_xdp("overlay_xdp", &encapsulated(&packet));
        outcome.assert(XDP_REDIRECT, CARRIED);
        assert_eq!(outcome.frame, ethernet(CONTAINER_MAC, GATEWAY_MAC, &packet));
        // Strip has to look at all of the data.
        bed.is_left("overlay_xdp_strip", &unchecked(&packet), "in several buffers");
    });
}
