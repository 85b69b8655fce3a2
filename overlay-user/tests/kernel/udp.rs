//! Bare IPv4 in UDP, container to underlay: what `overlay_encap` does differently from VXLAN.
use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use overlay_common::{Addr4, Hook::Encap, PeerEntry, Reason, SETTING_OUTER_DF, wire::DATAGRAM};

use super::{bed::*, encap::assert_answer};

const CARRIED: (overlay_common::Hook, Reason) = (Encap, Reason::Carried);
/// From the first byte of a frame to its inner IPv4 header.
const INSIDE: usize = 14 + DATAGRAM;

fn encap(bed: &mut Bed, packet: &[u8]) -> Outcome {
    bed.run("overlay_encap", bed.container, &from_container(packet))
}

/// Whatever happens to `packet`, nothing must have been changed in it.
#[track_caller]
fn is_left(bed: &mut Bed, packet: &[u8], reason: Reason) {
    let outcome = encap(bed, packet);
    outcome.assert(NEXT, &[(Encap, reason)]);
    assert_eq!(outcome.frame, from_container(packet), "{reason:?}");
}

/// With a range of one source port, flannel's, all that differs from flannel's frame is the UDP checksum.
#[test]
fn a_packet_to_a_peer_leaves_as_flannels_udp_backend_sends_it() {
    let frame = flannels_frame();
    with_settings(
        |settings| {
            bare(settings);
            settings.flags = SETTING_OUTER_DF;
            settings.subnet = [10, 244, 66, 0];
            (settings.port_min, settings.port_count) = (UDP_PORT, 1);
        },
        |bed| {
            let peer = PeerEntry { outer: Addr4::new(PEER), slot: 2, ..PeerEntry::default() };
            bed.tables.peers.put(Addr4::new([10, 244, 31, 0]), peer).unwrap();
            bed.learn([10, 244, 66, 2], bed.container);
            // One hop earlier.
            let mut packet = frame[INSIDE..].to_vec();
            packet[8] += 1;
            seal(&mut packet);
            let outcome = encap(bed, &packet);
            outcome.assert(REDIRECT, &[CARRIED]);
            let (mut ours, mut theirs) = (outcome.frame, frame);
            assert_eq!(ours[..14], TO_BE_RESOLVED);
            assert_eq!(checksum(&ours[14..34]), 0, "outer header checksum");
            // Any identification will do.
            ours[18..20].copy_from_slice(&theirs[18..20]);
            seal(&mut ours[14..]);
            theirs[40..42].fill(0);
            assert_eq!(ours[14..], theirs[14..]);
            let traffic = bed.tables.traffic(2).unwrap();
            assert_eq!((traffic.sent_packets, traffic.sent_bytes), (1, 84));
        },
    );
}

#[test]
fn another_library_reads_the_headers_as_they_are_meant() {
    with_udp(0, |bed| {
        let mut ports = std::collections::HashSet::new();
        for flow in 0..32 {
            let mut packet = udp([10, 244, 1, 2], REMOTE, [4000 + flow, 5000], 101);
            let outcome = encap(bed, &packet);
            outcome.assert(REDIRECT, &[CARRIED]);
            let sliced = SlicedPacket::from_ethernet(&outcome.frame).unwrap();
            let Some(NetSlice::Ipv4(outer)) = sliced.net else { panic!("{:02x?}", outcome.frame) };
            let header = outer.header();
            assert_eq!((header.source(), header.destination()), (LOCAL, PEER));
            assert_eq!((header.ttl(), header.dcp().value(), header.dont_fragment()), (64, 0, false));
            assert_eq!(header.header_checksum(), header.to_header().calc_header_checksum());
            assert_eq!(usize::from(header.total_len()), DATAGRAM + packet.len());
            let Some(TransportSlice::Udp(datagram)) = sliced.transport else { panic!("no UDP") };
            assert_eq!((datagram.destination_port(), datagram.checksum()), (UDP_PORT, 0));
            assert_eq!(usize::from(datagram.length()), 8 + packet.len());
            assert!(datagram.source_port() >= 49152, "{}", datagram.source_port());
            ports.insert(datagram.source_port());
            packet[8] -= 1;
            seal(&mut packet);
            assert_eq!(datagram.payload(), packet, "inner packet: TTL one less, nothing else");
        }
        assert!(ports.len() > 24, "{} of 32 connections have ports of their own", ports.len());
        let traffic = bed.tables.traffic(0).unwrap();
        assert_eq!((traffic.sent_packets, traffic.sent_bytes), (32, 32 * 129));
    });
}

#[test]
fn ecn_is_copied_outwards_and_dscp_is_not() {
    with_udp(0, |bed| {
        for tos in [0b0000_0001, 0b0000_0010, 0b0000_0011, 0b1011_1010] {
            let outcome = encap(bed, &udp_with(CONTAINER, REMOTE, [1, 2], 10, |ip| ip[1] = tos));
            outcome.assert(REDIRECT, &[CARRIED]);
            assert_eq!((outcome.frame[15], outcome.frame[INSIDE + 1]), (tos & 3, tos));
        }
    });
}

#[test]
fn df_outside_follows_the_setting() {
    for (flags, byte) in [(0, 0), (SETTING_OUTER_DF, 0x40)] {
        with_udp(flags, |bed| {
            assert_eq!(encap(bed, &udp(CONTAINER, REMOTE, [1, 2], 10)).frame[20] & 0x40, byte);
        });
    }
}

#[test]
fn the_exact_mtu_passes_and_one_more_is_answered() {
    with_udp(0, |bed| {
        encap(bed, &udp(CONTAINER, REMOTE, [1, 2], 1472 - 28)).assert(REDIRECT, &[CARRIED]);
        let packet = udp(CONTAINER, REMOTE, [1, 2], 1472 - 28 + 1);
        let outcome = encap(bed, &packet);
        outcome.assert(REDIRECT, &[(Encap, Reason::TooBig)]);
        assert_answer(&outcome.frame, &packet, 40, 4, 1472);
        // Without DF it is the stack's to fragment.
        is_left(bed, &without_df(packet), Reason::NeedsFragmentation);
        change("route add 10.99.0.2/32 dev eth0 mtu lock 1400");
        let packet = udp(CONTAINER, REMOTE, [1, 2], 1372 - 28 + 1);
        assert_answer(&encap(bed, &packet).frame, &packet, 40, 4, 1372);
        encap(bed, &udp(CONTAINER, REMOTE, [1, 2], 1372 - 28)).assert(REDIRECT, &[CARRIED]);
    });
}

/// A test run's GSO frame has no type, so the kernel refuses it headroom once it has been found to fit.
#[test]
fn segments_count_not_frames() {
    with_udp(0, |bed| {
        let packet = tcp(CONTAINER, REMOTE, [1, 2], 0x10, 2864);
        let frame = from_container(&packet);
        for (gso_size, verdict, reason) in
            [(1432, NEXT, Reason::HeadroomRefused), (1433, REDIRECT, Reason::TooBig)]
        {
            let skb = Skb { ifindex: bed.container, gso_segs: 2, gso_size, ..Skb::default() };
            let outcome = bed.run_with("overlay_encap", skb, &frame);
            outcome.assert(verdict, &[(Encap, reason)]);
            match reason {
                Reason::TooBig => assert_answer(&outcome.frame, &packet, 40, 4, 1472),
                _ => assert_eq!(outcome.frame, frame, "refused, hence untouched"),
            }
        }
    });
}

#[test]
fn a_subnet_without_a_peer_is_answered() {
    with_udp(0, |bed| {
        let packet = udp(CONTAINER, [10, 244, 77, 1], [1, 2], 10);
        let outcome = encap(bed, &packet);
        outcome.assert(REDIRECT, &[(Encap, Reason::NoPeer)]);
        assert_answer(&outcome.frame, &packet, 28, 0, 0);
    });
}

#[test]
fn what_the_stack_does_better_goes_to_the_stack_untouched() {
    with_udp(0, |bed| {
        is_left(bed, &udp_with(CONTAINER, REMOTE, [1, 2], 10, |ip| ip[6] = 0x20), Reason::InnerFragment);
        is_left(bed, &udp_with(CONTAINER, REMOTE, [1, 2], 10, |ip| ip[8] = 1), Reason::TtlExpired);
        is_left(bed, &[udp(CONTAINER, REMOTE, [1, 2], 10), vec![0; 6]].concat(), Reason::TrailingBytes);
        is_left(bed, &udp(UNLEARNED, REMOTE, [1, 2], 10), Reason::Unlearned);
        bed.keep_to_stack(CONTAINER, REMOTE, [4000, 5000], 17);
        is_left(bed, &udp(CONTAINER, REMOTE, [4000, 5000], 10), Reason::StackFlow);
        change("addr del 10.99.0.1/24 dev eth0");
        is_left(bed, &udp(CONTAINER, REMOTE, [1, 2], 10), Reason::NoNextHop);
    });
}

#[test]
fn a_container_cannot_send_datagrams_of_the_tunnel() {
    with_udp(0, |bed| {
        for (program, ifindex) in [("overlay_encap", bed.container), ("overlay_bridge", bed.bridge)] {
            let forged = from_container(&udp(CONTAINER, PEER, [4000, UDP_PORT], 60));
            bed.run(program, ifindex, &forged).assert(SHOT, &[(Encap, Reason::ForgedTunnel)]);
            let honest = from_container(&udp(CONTAINER, PEER, [4000, PORT], 60));
            bed.run(program, ifindex, &honest).assert(NEXT, &[]);
        }
    });
}
