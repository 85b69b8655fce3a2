//! Underlay to container: every branch of the classification, at TC and at XDP alike, and what `overlay_decap` does with it.
use overlay_common::{Addr4, Hook::Decap, Reason, SETTING_STRICT_PEERS};

use super::bed::*;
use crate::support::ip;

const CARRIED: (overlay_common::Hook, Reason) = (Decap, Reason::Carried);

fn decap(bed: &mut Bed, tunnel: Tunnel, packet: &[u8]) -> Outcome {
    bed.take_in(&tunnel.encapsulate(packet))
}

fn received(bed: &mut Bed, packet: &[u8]) -> Outcome {
    decap(bed, Tunnel::default(), packet)
}

#[test]
fn a_packet_for_a_container_arrives_bare() {
    with_each_look_up(|bed, remote| {
        let packet = udp(remote, CONTAINER, [5000, 4000], 100);
        let outcome = bed.run("overlay_decap", bed.underlay, &Tunnel::default().encapsulate(&packet));
        outcome.assert(REDIRECT, &[CARRIED]);
        assert_eq!(outcome.frame, ethernet(CONTAINER_MAC, GATEWAY_MAC, &packet));
        let traffic = bed.tables.traffic(0).unwrap();
        assert_eq!((traffic.received_packets, traffic.received_bytes), (1, 128));
    });
}

/// First frame of a capture between two flannel hosts, as their kernels' VXLAN devices wrote it (UDP checksum
/// unfinished, as veth hands it over), but for the addresses' being those of the bed.
#[test]
fn a_frame_of_the_kernels_own_vxlan_device_is_understood() {
    let frame =
        hex("ee411aa19c0bc2f1cadb71990800 4500008605dc000040115fc30a6300010a630002 d87a21180072154c \
        0800000000000100 fa3c344c9cf0524af52a76bf0800 4500005483824000 3f015f3b0af43b020af40802 \
        0800969156600001 65c0026b00000000dc0e080000000000 101112131415161718191a1b1c1d1e1f \
        202122232425262728292a2b2c2d2e2f 3031323334353637");
    assert_eq!(frame.len(), 14 + 134);
    with_settings(
        |settings| {
            settings.local = [10, 99, 0, 2];
            settings.subnet = [10, 244, 8, 0];
            settings.vtep_mac = [0xfa, 0x3c, 0x34, 0x4c, 0x9c, 0xf0];
        },
        |bed| {
            let peer = overlay_common::PeerEntry {
                outer: Addr4::new([10, 99, 0, 1]),
                slot: 2,
                ..Default::default()
            };
            bed.tables.peers.put(overlay_common::Addr4::new([10, 244, 59, 0]), peer).unwrap();
            bed.learn([10, 244, 8, 2], bed.container);
            // A frame for another host's MAC address, seen because the interface is promiscuous, is not ours.
            let outcome = bed.take_in(&frame);
            outcome.assert(NEXT, &[]);
            let mut frame = frame.clone();
            frame[..6].copy_from_slice(&UNDERLAY_MAC);
            let outcome = bed.take_in(&frame);
            outcome.assert(REDIRECT, &[CARRIED]);
            assert_eq!(outcome.frame, ethernet(CONTAINER_MAC, GATEWAY_MAC, &frame[64..]));
        },
    );
}

#[test]
fn anything_but_our_tunnel_passes_untouched_and_uncounted() {
    with_bed(|bed| {
        let packet = udp(REMOTE, CONTAINER, [1, 2], 10);
        let ours = Tunnel::default();
        let altered = |alter: fn(&mut Vec<u8>)| {
            let mut frame = ours.encapsulate(&packet);
            alter(&mut frame);
            let (_, ip) = frame.split_at_mut(14);
            seal(ip);
            frame
        };
        for (name, frame) in [
            ("other address", Tunnel { destination: [10, 99, 0, 9], ..ours }.encapsulate(&packet)),
            ("other port", Tunnel { port: 4789, ..ours }.encapsulate(&packet)),
            ("other VNI", Tunnel { vni: 2, ..ours }.encapsulate(&packet)),
            ("VNI in the upper byte", Tunnel { vni: 0x0001_0001, ..ours }.encapsulate(&packet)),
            ("no I flag", Tunnel { flags: 0, ..ours }.encapsulate(&packet)),
            ("other flags too", Tunnel { flags: 0x88, ..ours }.encapsulate(&packet)),
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

#[test]
fn every_truncation_is_left_alone_or_dropped_and_never_delivered() {
    with_bed(|bed| {
        let frame = Tunnel::default().encapsulate(&udp(REMOTE, CONTAINER, [1, 2], 4));
        // The kernel's test run takes no frame shorter than its IPv4 header.
        for length in 34..frame.len() {
            // The outer lengths lie.
            let outcome = bed.take_in(&frame[..length]);
            outcome.assert(NEXT, &[]);
            // The outer lengths are right, the inner ones lie.
            if length < 42 {
                continue;
            }
            let mut honest = frame[..length].to_vec();
            honest[16..18].copy_from_slice(&(length as u16 - 14).to_be_bytes());
            honest[38..40].copy_from_slice(&(length as u16 - 34).to_be_bytes());
            seal(&mut honest[14..]);
            let outcome = bed.take_in(&honest);
            assert_ne!(outcome.verdict, REDIRECT, "{length}");
        }
    });
}

#[test]
fn senders_are_checked() {
    with_bed(|bed| {
        let table = [
            ("stranger", STRANGER, REMOTE, SHOT, Reason::UnknownPeer),
            ("stranger, foreign source", STRANGER, [192, 0, 2, 1], SHOT, Reason::UnknownPeer),
            ("another peer's container", OTHER_PEER, REMOTE, SHOT, Reason::PeerMismatch),
            ("nobody's subnet", PEER, [10, 244, 99, 1], SHOT, Reason::PeerMismatch),
            ("our own container", PEER, CONTAINER, SHOT, Reason::PeerMismatch),
            ("our own address", LOCAL, REMOTE, SHOT, Reason::UnknownPeer),
            ("node address", PEER, [10, 99, 0, 2], NEXT, Reason::ForeignSource),
        ];
        for (name, outer, inner, verdict, reason) in table {
            let tunnel = Tunnel { source: outer, ..Tunnel::default() };
            let packet = udp(inner, CONTAINER, [1, 2], 10);
            let outcome = decap(bed, tunnel, &packet);
            assert_eq!((outcome.verdict, outcome.counted), (verdict, vec![(Decap, reason)]), "{name}");
            assert_eq!(outcome.frame, tunnel.encapsulate(&packet), "{name}");
        }
    });
    with_settings(
        |settings| settings.flags = SETTING_STRICT_PEERS,
        |bed| {
            received(bed, &udp([10, 99, 0, 2], CONTAINER, [1, 2], 10))
                .assert(SHOT, &[(Decap, Reason::StrictSource)]);
        },
    );
}

#[test]
fn destinations_are_checked() {
    with_bed(|bed| {
        for (destination, verdict, reason) in [
            (UNLEARNED, NEXT, Reason::Unlearned),
            (GATEWAY, NEXT, Reason::Unlearned),
            ([10, 244, 3, 1], SHOT, Reason::NotOurSubnet),
            ([192, 0, 2, 1], SHOT, Reason::NotOurSubnet),
            ([255, 255, 255, 255], SHOT, Reason::NotOurSubnet),
            ([224, 0, 0, 1], SHOT, Reason::NotOurSubnet),
        ] {
            let packet = udp(REMOTE, destination, [1, 2], 10);
            let outcome = received(bed, &packet);
            outcome.assert(verdict, &[(Decap, reason)]);
            assert_eq!(outcome.frame, Tunnel::default().encapsulate(&packet));
        }
        let tunnel = Tunnel { inner_destination_mac: [0xff; 6], ..Tunnel::default() };
        decap(bed, tunnel, &udp(REMOTE, CONTAINER, [1, 2], 10))
            .assert(SHOT, &[(Decap, Reason::WrongVtepMac)]);
        // From our own tunnel device.
        let mut frame = Tunnel::default().encapsulate(&udp(REMOTE, CONTAINER, [1, 2], 10));
        frame[56..62].copy_from_slice(&VTEP_MAC);
        bed.run("overlay_decap", bed.underlay, &frame).assert(SHOT, &[(Decap, Reason::WrongVtepMac)]);
    });
}

#[test]
fn what_the_stack_must_see_goes_there_in_its_wrapping() {
    with_bed(|bed| {
        let fragment = udp_with(REMOTE, CONTAINER, [1, 2], 10, |ip| ip[6] = 0x20);
        let mut options = udp(REMOTE, CONTAINER, [1, 2], 10);
        options[0] = 0x46;
        let [none, last] = [0, 1].map(|ttl| udp_with(REMOTE, CONTAINER, [1, 2], 10, |ip| ip[8] = ttl));
        let padded = [udp(REMOTE, CONTAINER, [1, 2], 10), vec![0; 6]].concat();
        for (packet, reason) in [
            (fragment, Reason::InnerFragment),
            (options, Reason::InnerOptions),
            (none, Reason::TtlExpired),
            (last, Reason::TtlExpired),
            (padded, Reason::TrailingBytes),
        ] {
            let outcome = received(bed, &packet);
            outcome.assert(NEXT, &[(Decap, reason)]);
            assert_eq!(outcome.frame, Tunnel::default().encapsulate(&packet));
        }
        let arp = Tunnel { inner_type: [0x08, 0x06], ..Tunnel::default() };
        decap(bed, arp, &[0; 28]).assert(NEXT, &[(Decap, Reason::NotIpv4)]);
        decap(bed, Tunnel { source: STRANGER, ..arp }, &[0; 28])
            .assert(SHOT, &[(Decap, Reason::UnknownPeer)]);

        bed.keep_to_stack(CONTAINER, REMOTE, [4000, 5000], 17);
        received(bed, &udp(REMOTE, CONTAINER, [5000, 4000], 10)).assert(NEXT, &[(Decap, Reason::StackFlow)]);
        received(bed, &udp(REMOTE, CONTAINER, [5000, 4001], 10)).assert(REDIRECT, &[CARRIED]);
    });
}

#[test]
fn a_veth_that_is_gone_or_too_small_is_the_stacks_business() {
    with_bed(|bed| {
        let packet = udp(REMOTE, CONTAINER, [1, 2], 500);
        change("link set c1 mtu 500");
        let outcome = received(bed, &packet);
        outcome.assert(NEXT, &[(Decap, Reason::EndpointGone)]);
        ip("link set c1 mtu 1500");
        received(bed, &packet).assert(REDIRECT, &[CARRIED]);
        change("link del c1");
        let outcome = received(bed, &packet);
        outcome.assert(NEXT, &[(Decap, Reason::EndpointGone)]);
        assert_eq!(outcome.frame, Tunnel::default().encapsulate(&packet));
    });
}

/// RFC 6040 figure 4.
#[test]
fn congestion_marks_are_carried_inwards() {
    with_bed(|bed| {
        for (outer, inner, delivered) in [
            (0, 0, Some(0)),
            (3, 1, Some(3)),
            (3, 2, Some(3)),
            (3, 3, Some(3)),
            (3, 0, None),
            (1, 0, Some(0)),
            (1, 2, Some(1)),
            (2, 1, Some(1)),
            (0, 3, Some(3)),
        ] {
            let packet = udp_with(REMOTE, CONTAINER, [1, 2], 10, |ip| ip[1] = inner);
            let outcome = decap(bed, Tunnel { tos: outer, ..Tunnel::default() }, &packet);
            match delivered {
                None => outcome.assert(SHOT, &[(Decap, Reason::NotEctMarked)]),
                Some(ecn) => {
                    outcome.assert(REDIRECT, &[CARRIED]);
                    assert_eq!(outcome.frame[15], ecn, "outer {outer}, inner {inner}");
                    assert_eq!(checksum(&outcome.frame[14..34]), 0);
                }
            }
        }
    });
}

#[test]
fn headers_that_lie_are_dropped() {
    with_bed(|bed| {
        let too_long = udp_with(REMOTE, CONTAINER, [1, 2], 10, |ip| ip[3] += 1);
        let too_short = udp_with(REMOTE, CONTAINER, [1, 2], 10, |ip| ip[3] = 19);
        let mut version = udp(REMOTE, CONTAINER, [1, 2], 10);
        version[0] = 0x65;
        let mut sum = udp(REMOTE, CONTAINER, [1, 2], 10);
        sum[10] ^= 1;
        for packet in [too_long, too_short, version, sum] {
            received(bed, &packet).assert(SHOT, &[(Decap, Reason::Malformed)]);
        }
        // The kernel, not the program, drops what is wrong outside.
        let mut frame = Tunnel::default().encapsulate(&udp(REMOTE, CONTAINER, [1, 2], 10));
        frame[24] ^= 1;
        bed.run("overlay_decap", bed.underlay, &frame).assert(NEXT, &[]);
    });
}

#[test]
fn the_fast_path_can_be_switched_off() {
    with_bed(|bed| {
        bed.tables.set_fast_path(FastPath::Off).unwrap();
        received(bed, &udp(REMOTE, CONTAINER, [1, 2], 10)).assert(NEXT, &[(Decap, Reason::StackOnly)]);
        decap(bed, Tunnel { source: STRANGER, ..Tunnel::default() }, &udp(REMOTE, CONTAINER, [1, 2], 10))
            .assert(SHOT, &[(Decap, Reason::UnknownPeer)]);
    });
}
