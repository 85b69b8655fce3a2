//! Bare IPv4 in UDP, underlay to container: the classification, at TC and at XDP alike, and what is handed over to overlay0.
use overlay_common::{
    Addr4,
    Hook::{Decap, Xdp},
    PeerEntry, Reason, SETTING_STRICT_PEERS,
};

use super::bed::*;
use crate::support::ip;

const CARRIED: (overlay_common::Hook, Reason) = (Decap, Reason::Carried);
const OURS: Datagram = Datagram { source: PEER, destination: LOCAL, port: UDP_PORT, tos: 0 };

/// Handed over to overlay0 as it came: there it is checked again, and decapsulated.
#[track_caller]
fn is_handed_over(bed: &mut Bed, datagram: Datagram, packet: &[u8], reason: Reason) {
    let frame = datagram.encapsulate(packet);
    let outcome = bed.take_in(&frame);
    outcome.assert(REDIRECT, &[(Decap, reason)]);
    assert_eq!(outcome.frame, frame, "{reason:?}");
}

#[track_caller]
fn is_dropped(bed: &mut Bed, datagram: Datagram, packet: &[u8], reason: Reason) {
    bed.take_in(&datagram.encapsulate(packet)).assert(SHOT, &[(Decap, reason)]);
}

#[test]
fn a_packet_for_a_container_arrives_bare() {
    with_udp(0, |bed| {
        for (packet, source, slot) in [
            (udp(REMOTE, CONTAINER, [5000, 4000], 100), PEER, 0),
            (udp([10, 244, 3, 9], CONTAINER, [5000, 4000], 100), OTHER_PEER, 1),
        ] {
            let frame = Datagram { source, ..OURS }.encapsulate(&packet);
            let delivered = ethernet(CONTAINER_MAC, GATEWAY_MAC, &packet);
            assert_eq!(bed.run("overlay_decap", bed.underlay, &frame).frame, delivered);
            let traffic = bed.tables.traffic(slot).unwrap();
            assert_eq!((traffic.received_packets, traffic.received_bytes), (1, 128));
            bed.take_in(&frame).assert(REDIRECT, &[CARRIED]);
        }
        for hook in [Decap, Xdp] {
            // TC has seen each twice.
            let count = bed.tables.counter(hook, Reason::Carried).unwrap();
            assert_eq!(count.bytes, count.packets * 128, "{hook:?}");
        }
    });
}

/// With the receiver's own MAC address, and this bed's as its peer.
#[test]
fn a_frame_of_flannels_udp_backend_is_understood() {
    let mut frame = flannels_frame();
    frame[..6].copy_from_slice(&UNDERLAY_MAC);
    with_settings(
        |settings| {
            bare(settings);
            (settings.local, settings.subnet) = (PEER, [10, 244, 31, 0]);
        },
        |bed| {
            let peer = PeerEntry { outer: Addr4::new(LOCAL), slot: 2, ..PeerEntry::default() };
            bed.tables.peers.put(Addr4::new([10, 244, 66, 0]), peer).unwrap();
            bed.learn([10, 244, 31, 2], bed.container);
            let outcome = bed.take_in(&frame);
            outcome.assert(REDIRECT, &[CARRIED]);
            assert_eq!(outcome.frame, ethernet(CONTAINER_MAC, GATEWAY_MAC, &frame[42..]));
            frame[5] ^= 1;
            let outcome = bed.take_in(&frame);
            outcome.assert(NEXT, &[]);
            assert_eq!(outcome.frame, frame, "another host's, seen because the interface is promiscuous");
        },
    );
}

#[test]
fn anything_but_our_datagrams_passes_untouched_and_uncounted() {
    with_udp(0, |bed| {
        let packet = udp(REMOTE, CONTAINER, [1, 2], 10);
        let altered = |alter: fn(&mut Vec<u8>)| {
            let mut frame = OURS.encapsulate(&packet);
            alter(&mut frame);
            seal(&mut frame[14..]);
            frame
        };
        for (name, frame) in [
            ("other address", Datagram { destination: [10, 99, 0, 9], ..OURS }.encapsulate(&packet)),
            ("other port", Datagram { port: PORT, ..OURS }.encapsulate(&packet)),
            ("VXLAN", Tunnel::default().encapsulate(&packet)),
            ("not UDP", altered(|frame| frame[23] = 6)),
            ("first outer fragment", altered(|frame| frame[20] = 0x20)),
            ("later outer fragment", altered(|frame| frame[21] = 7)),
            ("UDP length lies", altered(|frame| frame[39] -= 1)),
            ("outer options", altered(|frame| frame[14] = 0x46)),
            ("IPv6", altered(|frame| frame[12..14].copy_from_slice(&[0x86, 0xdd]))),
        ] {
            let outcome = bed.take_in(&frame);
            assert_eq!(outcome.frame, frame, "{name}");
            assert_eq!((outcome.verdict, outcome.counted), (NEXT, vec![]), "{name}");
        }
    });
}

/// The socket that holds the port takes them apart again.
#[test]
fn datagrams_that_gro_has_merged_pass_untouched() {
    with_udp(0, |bed| {
        let packet = udp(REMOTE, CONTAINER, [1, 2], 472);
        let frame = OURS.encapsulate(&[packet.clone(), packet].concat());
        let skb = Skb { ifindex: bed.underlay, gso_segs: 2, gso_size: 500, ..Skb::default() };
        let outcome = bed.run_with("overlay_decap", skb, &frame);
        outcome.assert(NEXT, &[]);
        assert_eq!(outcome.frame, frame);
    });
}

#[test]
fn every_truncation_is_left_alone_or_dropped() {
    with_udp(0, |bed| {
        let packet = udp(REMOTE, CONTAINER, [1, 2], 4);
        let frame = OURS.encapsulate(&packet);
        // The outer lengths lie. The kernel's test run takes no frame shorter than its IPv4 header.
        for length in 34..frame.len() {
            bed.take_in(&frame[..length]).assert(NEXT, &[]);
        }
        // The outer lengths are right, the inner ones lie.
        for length in 0..packet.len() {
            is_dropped(bed, OURS, &packet[..length], Reason::Malformed);
            let stranger = Datagram { source: STRANGER, ..OURS };
            is_dropped(bed, stranger, &packet[..length], Reason::UnknownPeer);
        }
    });
}

#[test]
fn senders_are_checked() {
    with_udp(0, |bed| {
        for (outer, inner, reason) in [
            (STRANGER, REMOTE, Reason::UnknownPeer),
            (STRANGER, [192, 0, 2, 1], Reason::UnknownPeer),
            (LOCAL, REMOTE, Reason::UnknownPeer),
            (OTHER_PEER, REMOTE, Reason::PeerMismatch),
            (PEER, [10, 244, 99, 1], Reason::PeerMismatch),
            (PEER, CONTAINER, Reason::PeerMismatch),
        ] {
            let packet = udp(inner, CONTAINER, [1, 2], 10);
            is_dropped(bed, Datagram { source: outer, ..OURS }, &packet, reason);
        }
        is_handed_over(bed, OURS, &udp(PEER, CONTAINER, [1, 2], 10), Reason::ForeignSource);
    });
    with_udp(SETTING_STRICT_PEERS, |bed| {
        is_dropped(bed, OURS, &udp(PEER, CONTAINER, [1, 2], 10), Reason::StrictSource);
    });
}

#[test]
fn destinations_are_checked() {
    with_udp(0, |bed| {
        for destination in [[10, 244, 3, 1], [192, 0, 2, 1], [255; 4], [224, 0, 0, 1]] {
            is_dropped(bed, OURS, &udp(REMOTE, destination, [1, 2], 10), Reason::NotOurSubnet);
        }
        for destination in [UNLEARNED, GATEWAY] {
            is_handed_over(bed, OURS, &udp(REMOTE, destination, [1, 2], 10), Reason::Unlearned);
        }
    });
}

#[test]
fn headers_that_lie_are_dropped() {
    with_udp(0, |bed| {
        let too_long = udp_with(REMOTE, CONTAINER, [1, 2], 10, |ip| ip[3] += 1);
        let too_short = udp_with(REMOTE, CONTAINER, [1, 2], 10, |ip| ip[3] = 19);
        let mut version = udp(REMOTE, CONTAINER, [1, 2], 10);
        version[0] = 0x65;
        let mut sum = udp(REMOTE, CONTAINER, [1, 2], 10);
        sum[10] ^= 1;
        for packet in [too_long, too_short, version, sum] {
            is_dropped(bed, OURS, &packet, Reason::Malformed);
        }
        // The kernel, not the program, drops what is wrong outside.
        let mut frame = OURS.encapsulate(&udp(REMOTE, CONTAINER, [1, 2], 10));
        frame[24] ^= 1;
        bed.take_in(&frame).assert(NEXT, &[]);
    });
}

#[test]
fn what_the_stack_must_see_is_handed_over_in_its_wrapping() {
    with_udp(0, |bed| {
        let altered = |alter: fn(&mut [u8])| udp_with(REMOTE, CONTAINER, [1, 2], 10, alter);
        is_handed_over(bed, OURS, &altered(|ip| ip[6] = 0x20), Reason::InnerFragment);
        is_handed_over(bed, OURS, &altered(|ip| ip[7] = 1), Reason::InnerFragment);
        is_handed_over(bed, OURS, &altered(|ip| ip[0] = 0x46), Reason::InnerOptions);
        is_handed_over(bed, OURS, &altered(|ip| ip[8] = 1), Reason::TtlExpired);
        is_handed_over(bed, OURS, &altered(|ip| ip[8] = 0), Reason::TtlExpired);
        is_handed_over(bed, OURS, &[altered(|_| {}), vec![0; 6]].concat(), Reason::TrailingBytes);

        bed.keep_to_stack(CONTAINER, REMOTE, [4000, 5000], 17);
        is_handed_over(bed, OURS, &udp(REMOTE, CONTAINER, [5000, 4000], 10), Reason::StackFlow);
        bed.take_in(&OURS.encapsulate(&udp(REMOTE, CONTAINER, [5000, 4001], 10)))
            .assert(REDIRECT, &[CARRIED]);

        // A test run's GSO frame has no type, so the kernel refuses to take headers off it. For datagrams it is not asked, and
        // nobody but the socket gets them: the kernel cuts them apart before that, outer headers and all.
        let datagrams = udp(REMOTE, CONTAINER, [1, 2], 1000);
        for (packet, verdict) in [(tcp(REMOTE, CONTAINER, [1, 2], 0x10, 1000), REDIRECT), (datagrams, NEXT)] {
            let frame = OURS.encapsulate(&packet);
            let skb = Skb { ifindex: bed.underlay, gso_segs: 2, gso_size: 500, ..Skb::default() };
            let outcome = bed.run_with("overlay_decap", skb, &frame);
            outcome.assert(verdict, &[(Decap, Reason::HeadroomRefused)]);
            assert_eq!(outcome.frame, frame);
        }
        assert_eq!(bed.tables.counter(Decap, Reason::HeadroomRefused).unwrap().packets, 4, "segments");

        let packet = udp(REMOTE, CONTAINER, [1, 2], 500);
        change("link set c1 mtu 527");
        is_handed_over(bed, OURS, &packet, Reason::EndpointGone);
        ip("link set c1 mtu 528");
        bed.take_in(&OURS.encapsulate(&packet)).assert(REDIRECT, &[CARRIED]);
        change("link del c1");
        is_handed_over(bed, OURS, &packet, Reason::EndpointGone);
    });
    with_udp(0, |bed| {
        bed.tables.set_fast_path(FastPath::Off).unwrap();
        let packet = udp(REMOTE, CONTAINER, [1, 2], 10);
        is_handed_over(bed, OURS, &packet, Reason::StackOnly);
        is_dropped(bed, Datagram { source: STRANGER, ..OURS }, &packet, Reason::UnknownPeer);
    });
}

/// RFC 6040 figure 4.
#[test]
fn congestion_marks_are_carried_inwards() {
    with_udp(0, |bed| {
        for (tos, inner, delivered) in [
            (0, 0, 0),
            (2, 0, 0),
            (3, 1, 3),
            (3, 2, 3),
            (3, 3, 3),
            (1, 0, 0),
            (1, 2, 1),
            (2, 1, 1),
            (0, 3, 3),
        ] {
            let packet = udp_with(REMOTE, CONTAINER, [1, 2], 10, |ip| ip[1] = 0xb8 | inner);
            let outcome = bed.take_in(&Datagram { tos, ..OURS }.encapsulate(&packet));
            outcome.assert(REDIRECT, &[CARRIED]);
            let expected = udp_with(REMOTE, CONTAINER, [1, 2], 10, |ip| ip[1] = 0xb8 | delivered);
            assert_eq!(outcome.frame[14..], expected, "outer {tos}, inner {inner}");
        }
        let packet = udp(REMOTE, CONTAINER, [1, 2], 10);
        is_dropped(bed, Datagram { tos: 3, ..OURS }, &packet, Reason::NotEctMarked);
    });
}

/// Where the packet had no Ethernet header, the outer one's bytes are not in its place.
#[test]
fn xdp_writes_a_whole_ethernet_header_and_the_note() {
    with_udp(0, |bed| {
        for packet in [
            udp(REMOTE, CONTAINER, [5000, 4000], 100),
            tcp(REMOTE, CONTAINER, [5000, 4000], 0x10, 1432),
            icmp(REMOTE, CONTAINER, 0, &[]),
        ] {
            let delivered = [&CONTAINER_MAC, GATEWAY_MAC.as_slice(), &[8, 0], &packet].concat();
            let mut frame = OURS.encapsulate(&packet);
            let redirected = bed.run_xdp("overlay_xdp", &frame);
            redirected.assert(XDP_REDIRECT, &[(Xdp, Reason::Carried)]);
            assert_eq!(redirected.frame, delivered);
            if packet[9] == 1 {
                // The bed's have no checksum, and strip looks at it.
                continue;
            }
            bed.is_left("overlay_xdp_strip", &frame, "outer checksum not zero");
            frame[40..42].fill(0);
            let stripped = bed.run_xdp("overlay_xdp_strip", &frame);
            stripped.assert(XDP_PASS, &[]);
            // Magic, port, no VNI, address, slot.
            let mark = [b"ov\x20\x5d".as_slice(), &[0; 4], &LOCAL, &[0; 4]].concat();
            assert_eq!(stripped.frame, [mark, delivered].concat());
        }
    });
}

#[test]
fn xdp_leaves_unfinished_and_wrong_checksums_to_tc() {
    with_udp(0, |bed| {
        let unchecked = |packet: &[u8]| {
            let mut frame = OURS.encapsulate(packet);
            frame[40..42].fill(0);
            frame
        };
        for (mut packet, at) in
            [(tcp(REMOTE, CONTAINER, [1, 2], 0x10, 100), 36), (udp(REMOTE, CONTAINER, [1, 2], 100), 26)]
        {
            let length = (packet.len() as u16 - 20).to_be_bytes();
            let pseudo = !checksum(&[&packet[12..20], &[0, packet[9]], &length].concat());
            packet[at..at + 2].copy_from_slice(&pseudo.to_be_bytes());
            bed.is_left("overlay_xdp", &OURS.encapsulate(&packet), "unfinished");
            bed.is_left("overlay_xdp_strip", &unchecked(&packet), "unfinished");
            // Wrong by one is wrong: the container finds out what is redirected, but not what GRO believes.
            packet[at + 1] ^= 1;
            bed.run_xdp("overlay_xdp", &OURS.encapsulate(&packet))
                .assert(XDP_REDIRECT, &[(Xdp, Reason::Carried)]);
            bed.is_left("overlay_xdp_strip", &unchecked(&packet), "wrong");
            bed.run("overlay_decap", bed.underlay, &unchecked(&packet)).assert(REDIRECT, &[CARRIED]);
        }
    });
}
