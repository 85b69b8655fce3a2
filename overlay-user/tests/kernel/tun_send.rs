//! `overlay_send` at a real overlay0: where the stack's packets leave, and in what.
use std::{collections::HashSet, os::fd::AsRawFd as _};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, connect, send, socket,
};
use overlay_common::{
    Addr4, FlowKey,
    Hook::{Encap, Send},
    Reason, SETTING_DIRECT, SETTING_OUTER_DF,
    wire::{self, DATAGRAM},
};

use super::{bed::*, overlay0::*};
use crate::support::ip;

/// A packet that has an identification already, which the stack would give it otherwise.
fn numbered(source: [u8; 4], destination: [u8; 4], length: usize, tos: u8) -> Vec<u8> {
    udp_with(source, destination, [4000, 5000], length, |ip| (ip[1], ip[5]) = (tos, 0x99))
}

/// The same with eight bytes of options, which do nothing (RFC 791 section 3.1).
fn with_options(source: [u8; 4], destination: [u8; 4], length: usize) -> Vec<u8> {
    let mut packet = numbered(source, destination, length, 0);
    packet.splice(20..20, [1; 8]);
    let total = (packet.len() as u16).to_be_bytes();
    packet[0] = 0x47;
    packet[2..4].copy_from_slice(&total);
    packet[10..12].fill(0);
    let sum = checksum(&packet[..28]).to_be_bytes();
    packet[10..12].copy_from_slice(&sum);
    packet
}

/// The packet in a frame as it left by the underlay device, whose headers must be right.
#[track_caller]
fn decapsulated(frame: &[u8], peer: [u8; 4], tos: u8, df: bool) -> &[u8] {
    assert_eq!(frame[..14], ethernet(NEXT_HOP_MAC, UNDERLAY_MAC, &[]));
    let packet = &frame[14..];
    let sliced = etherparse::SlicedPacket::from_ip(packet).unwrap();
    let Some(etherparse::NetSlice::Ipv4(ip)) = sliced.net else { panic!("{packet:02x?}") };
    let header = ip.header();
    assert_eq!((header.source(), header.destination(), header.ttl()), (LOCAL, peer, 64));
    assert_eq!((packet[1], header.dont_fragment()), (tos, df));
    assert_eq!(checksum(&packet[..20]), 0);
    assert_eq!(usize::from(header.total_len()), packet.len());
    let Some(etherparse::TransportSlice::Udp(udp)) = sliced.transport else { panic!("no UDP") };
    assert_eq!((udp.destination_port(), udp.checksum()), (UDP_PORT, 0));
    assert!(udp.source_port() >= 49152);
    assert_eq!(usize::from(udp.length()) + 20, packet.len());
    &packet[DATAGRAM..]
}

#[test]
fn the_stacks_packets_leave_wrapped_and_are_noted() {
    with_tun(0, |host| {
        for (packet, flows) in [
            (numbered(CONTAINER, REMOTE, 10, 0xbb), 1),
            (numbered(CONTAINER, REMOTE, 1472 - 28, 0), 1),
            (numbered([10, 244, 1, 0], REMOTE, 10, 1), 1),
            (numbered(GATEWAY, REMOTE, 10, 1), 1),
            (numbered(CONTAINER, [10, 244, 2, 8], 10, 1), 2),
        ] {
            assert_eq!(host.route(&packet), [(Send, Reason::Carried)]);
            assert_eq!(decapsulated(&host.wire.next(), PEER, packet[1] & 3, false), packet);
            assert_eq!(host.bed.flows().len(), flows, "the host's own connections are never recorded");
        }
        let count = host.bed.tables.counter(Send, Reason::Carried).unwrap();
        assert_eq!((count.packets, count.bytes), (5, 4 * 38 + 1472));
        // The same holds for a packet with options, which the fast path knows nothing of.
        let packet = with_options(CONTAINER, REMOTE, 10);
        assert_eq!(host.route(&packet), [(Send, Reason::Carried)]);
        assert_eq!(decapsulated(&host.wire.next(), PEER, 0, false), packet);
    });
}

/// A receiver's queues, and routers that spread connections over paths, go by the source port: packets of one connection with two
/// of them would overtake each other.
#[test]
fn a_connection_has_the_same_source_port_in_both_tiers_and_a_sockets_own_hash_is_heeded() {
    fn packet(number: u16) -> Vec<u8> {
        udp_with(CONTAINER, REMOTE, [4000 + number, 5000], 10, |ip| ip[5] = 0x99)
    }
    with_tun(0, |host| {
        for number in 0..8 {
            let frame = from_container(&packet(number));
            let fast = host.bed.run("overlay_encap", host.bed.container, &frame);
            fast.assert(REDIRECT, &[(Encap, Reason::Carried)]);
            assert_eq!(host.route(&packet(number)), [(Send, Reason::Carried)]);
            assert_eq!(host.wire.next()[34..36], fast.frame[34..36]);
        }
    });
    with_tun(0, |host| {
        // A connected socket has a hash, which is all of its packets' (sk_set_txhash), and which TCP changes to get another path. Of
        // UDP, others compute hashes too, for some packets of a connection and not for others.
        let socket =
            socket(AddressFamily::Inet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Raw).unwrap();
        let [a, b, c, d] = REMOTE;
        connect(socket.as_raw_fd(), &SockaddrIn::new(a, b, c, d, 0)).unwrap();
        let source_port = |packet: &[u8]| {
            send(socket.as_raw_fd(), packet, MsgFlags::empty()).unwrap();
            host.wire.next()[34..36].to_vec()
        };
        let of_tcp: HashSet<_> = (0..8)
            .map(|number| {
                let mut packet = tcp(CONTAINER, REMOTE, [4000 + number, 5000], 0x10, 10);
                packet[5] = 0x99;
                seal(&mut packet);
                source_port(&packet)
            })
            .collect();
        assert_eq!(of_tcp.len(), 1, "{of_tcp:?}");
        for number in 0..8 {
            let ports = [4000 + number, 5000].map(u16::to_be_bytes);
            let hash = FlowKey::new(Addr4::new(CONTAINER), Addr4::new(REMOTE), ports, 17).hash();
            let expected = wire::source_port(hash, 49152, 16384).to_be_bytes();
            assert_eq!(source_port(&packet(number)), expected);
        }
    });
}

#[test]
fn the_stack_cannot_send_in_others_names_or_to_nobody() {
    with_tun(0, |host| {
        for (source, destination, reason) in [
            (FAR, REMOTE, Reason::SourceNotOurs),
            (CONTAINER, [10, 244, 77, 1], Reason::NoPeer),
            (CONTAINER, UNLEARNED, Reason::NoPeer),
        ] {
            assert_eq!(host.route(&numbered(source, destination, 10, 0)), [(Send, reason)]);
        }
        assert!(host.bed.flows().is_empty());
        let packet = numbered(CONTAINER, REMOTE, 10, 0);
        host.route(&packet);
        assert_eq!(decapsulated(&host.wire.next(), PEER, 0, false), packet, "nothing before it");
    });
}

/// A path MTU that the kernel knows of: a router on the path fragments, or the agent's socket does.
#[test]
fn what_is_too_large_for_the_path_is_fragmented_by_a_router_or_by_the_agent() {
    fn packet() -> Vec<u8> {
        numbered(CONTAINER, REMOTE, 1401 - 28 - 28, 2)
    }
    with_tun(0, |host| {
        ip("route add 10.99.0.2/32 dev eth0 mtu lock 1400");
        assert_eq!(host.route(&packet()), [(Send, Reason::Carried)]);
        assert_eq!(decapsulated(&host.wire.next(), PEER, 2, false), packet());
        // The agent fragments what the link itself does not take.
        ip("link set eth0 mtu 1400");
        assert_eq!(host.route(&packet()), [(Send, Reason::NeedsFragmentation)]);
        assert_eq!(host.read(), packet());
        let fits = numbered(CONTAINER, REMOTE, 1400 - 28 - 28, 2);
        assert_eq!(host.route(&fits), [(Send, Reason::Carried)]);
        assert_eq!(decapsulated(&host.wire.next(), PEER, 2, false), fits);
    });
    with_tun(SETTING_OUTER_DF, |host| {
        ip("route add 10.99.0.2/32 dev eth0 mtu lock 1400");
        assert_eq!(host.route(&packet()), [(Send, Reason::NeedsFragmentation)]);
        assert_eq!(host.read(), packet());
        let options = with_options(CONTAINER, REMOTE, 1401 - 28 - 28 - 8);
        assert_eq!(host.route(&options), [(Send, Reason::NeedsFragmentation)]);
        assert_eq!(host.read(), options);
        let fits = numbered(CONTAINER, REMOTE, 1400 - 28 - 28, 2);
        assert_eq!(host.route(&fits), [(Send, Reason::Carried)]);
        assert_eq!(decapsulated(&host.wire.next(), PEER, 2, true), fits);
    });
}

/// The kernel would drop it with DF, and tell nobody but itself.
#[test]
fn a_vxlan_device_sets_df_outside_where_the_path_takes_it() {
    with_vxlan(SETTING_OUTER_DF, |host| {
        // A route's MTU would not do: where that is locked the kernel leaves DF out itself (iptunnel_xmit).
        ip("link set eth0 mtu 1400");
        for (length, flags) in [(1400 - 50 - 28, 0x40), (1401 - 50 - 28, 0x20)] {
            assert_eq!(host.route(&numbered(CONTAINER, REMOTE, length, 0)), [(Send, Reason::Carried)]);
            assert_eq!(host.wire.next()[20] & 0x60, flags, "whole with DF, or the first of two fragments");
        }
    });
    with_vxlan(0, |host| {
        assert_eq!(host.route(&numbered(CONTAINER, REMOTE, 10, 0)), [(Send, Reason::Carried)]);
        assert_eq!(host.wire.next()[20] & 0x60, 0);
    });
}

/// The peers' own addresses inside Network, or a route to them that leads into the tunnel.
#[test]
fn what_is_wrapped_is_not_wrapped_again() {
    with_tun(0, |host| {
        let ours = udp_with(LOCAL, REMOTE, [50000, UDP_PORT], 40, |ip| ip[5] = 0x99);
        assert_eq!(host.route(&ours), [(Send, Reason::ForgedTunnel)]);
        for honest in [
            udp_with(LOCAL, REMOTE, [50000, PORT], 40, |ip| ip[5] = 0x99),
            udp_with(STRANGER, REMOTE, [50000, UDP_PORT], 40, |ip| ip[5] = 0x99),
            udp_with(LOCAL, REMOTE, [50000, UDP_PORT], 40, |ip| (ip[5], ip[9]) = (0x99, 132)),
        ] {
            assert_eq!(host.route(&honest), [(Send, Reason::Carried)]);
            assert_eq!(decapsulated(&host.wire.next(), PEER, 0, false), honest);
        }
        ip("route add 10.99.0.2/32 dev overlay0");
        let packet = numbered(CONTAINER, REMOTE, 10, 0);
        assert_eq!(host.route(&packet), [(Send, Reason::NoNextHop)]);
        assert_eq!(host.read(), packet);
    });
}

/// With host-gw, overlay0 takes what the link takes. A datagram to a peer behind a router has 28 bytes more.
#[test]
fn directly_a_full_packet_leaves_plain_and_behind_a_router_its_sender_is_told() {
    fn full(source: [u8; 4], destination: [u8; 4], length: usize, df: u8) -> Vec<u8> {
        udp_with(source, destination, [4000, 5000], length - 28, |ip| (ip[5], ip[6]) = (0x99, df))
    }
    const DF: u8 = 0x40;
    with_tun(SETTING_DIRECT, |host| {
        behind_a_gateway();
        ip("link set overlay0 mtu 1500");
        let packet = full(CONTAINER, REMOTE, 1500, DF);
        assert_eq!(host.route(&packet), [(Send, Reason::Carried)]);
        assert_eq!(host.wire.next()[14..], packet);
        let packet = full(CONTAINER, FAR, 1472, DF);
        assert_eq!(host.route(&packet), [(Send, Reason::Carried)]);
        assert_eq!(decapsulated(&host.wire.next(), OTHER_PEER, 0, false), packet);

        let packet = full(CONTAINER, FAR, 1473, DF);
        assert!(host.route(&packet).contains(&(Send, Reason::TooBig)));
        let answer = host.inside.next();
        assert_eq!((checksum(&answer[..20]), checksum(&answer[20..])), (0, 0));
        // The answer comes from overlay0 of the host that packets of this size do not reach.
        assert_eq!(answer[12..20], [[10, 244, 3, 0], CONTAINER].concat());
        assert_eq!((answer.len(), answer[9], &answer[20..22]), (28 + 40, 1, &[3, 4][..]));
        assert_eq!(answer[26..28], 1472_u16.to_be_bytes());
        assert_eq!(answer[28..], packet[..40]);

        // The agent gets a packet without DF, which may be fragmented, and one whose sender an answer by overlay0 would not reach.
        for packet in [full(CONTAINER, FAR, 1473, 0), full(STRANGER, FAR, 1473, DF)] {
            assert_eq!(host.route(&packet), [(Send, Reason::NeedsFragmentation)]);
            assert_eq!(host.read(), packet);
        }
    });
    // In UDP mode overlay0 knows the length of the headers, and what is narrower still is fragmented.
    with_tun(0, |host| {
        ip("link set eth0 mtu 1400");
        let packet = full(CONTAINER, REMOTE, 1401 - 28, DF);
        assert_eq!(host.route(&packet), [(Send, Reason::NeedsFragmentation)]);
        assert_eq!(host.read(), packet);
    });
}

/// Each port is one more connection for the connection tracking of both hosts.
#[test]
fn many_connections_of_a_vxlan_device_share_a_few_outer_ports() {
    with_vxlan(0, |host| {
        let mut ports = std::collections::HashSet::new();
        for port in 0..600 {
            let packet = udp_with(CONTAINER, REMOTE, [4000 + port, 5000], 10, |ip| ip[5] = 0x99);
            assert_eq!(host.route(&packet), [(Send, Reason::Carried)]);
            let frame = host.wire.next();
            // The next packet of the same connection must not overtake this one.
            host.route(&packet);
            assert_eq!(host.wire.next()[34..36], frame[34..36]);
            ports.insert([frame[34], frame[35]]);
        }
        // 600 balls leave 256 * (1 - e^(-600 / 256)) = 231 of 256 urns with one, by chance.
        assert!((150..=256).contains(&ports.len()), "{}", ports.len());
    });
}

/// The underlay's MTU may have been lowered since overlay0 got its own.
#[test]
fn directly_what_the_link_does_not_take_is_answered_or_goes_on_to_the_agent() {
    with_tun(SETTING_DIRECT, |host| {
        ip("link set eth0 mtu 1400");
        let packet = numbered(CONTAINER, REMOTE, 1401 - 28, 0);
        assert!(host.route(&packet).contains(&(Send, Reason::TooBig)));
        assert_eq!(host.inside.next()[26..28], 1400_u16.to_be_bytes());
        let packet = udp_with(CONTAINER, REMOTE, [4000, 5000], 1401 - 28, |ip| (ip[5], ip[6]) = (0x99, 0));
        assert_eq!(host.route(&packet), [(Send, Reason::NeedsFragmentation)]);
        assert_eq!(host.read(), packet);
        let packet = numbered(CONTAINER, REMOTE, 1400 - 28, 0);
        assert_eq!(host.route(&packet), [(Send, Reason::Carried)]);
        assert_eq!(host.wire.next()[14..], packet);
    });
}

#[test]
fn without_a_route_to_the_peer_the_packet_goes_on_to_the_agent_as_it_is() {
    with_tun(0, |host| {
        ip("addr del 10.99.0.1/24 dev eth0");
        let packet = numbered(CONTAINER, REMOTE, 10, 0);
        assert_eq!(host.route(&packet), [(Send, Reason::NoNextHop)]);
        assert_eq!(host.read(), packet);
    });
}

#[test]
fn directly_the_stacks_packets_leave_plain_to_a_peer_on_the_link() {
    with_tun(SETTING_DIRECT, encapsulated_or_not);
}

#[test]
fn directly_a_vxlan_devices_packets_leave_plain_to_a_peer_on_the_link() {
    with_vxlan(SETTING_DIRECT, encapsulated_or_not);
}

fn encapsulated_or_not(host: &mut Host<'_>) {
    behind_a_gateway();
    let packet = numbered(CONTAINER, REMOTE, 10, 0);
    assert_eq!(host.route(&packet), [(Send, Reason::Carried)]);
    assert_eq!(host.wire.next(), ethernet(NEXT_HOP_MAC, UNDERLAY_MAC, &packet));
    assert_eq!(host.bed.flows().len(), 1);
    let packet = numbered(CONTAINER, FAR, 10, 0);
    assert_eq!(host.route(&packet), [(Send, Reason::Carried)]);
    let frame = host.wire.next();
    if host.agent.is_some() {
        assert_eq!(decapsulated(&frame, OTHER_PEER, 0, false), packet);
    } else {
        assert_eq!(frame[14 + 50..], packet);
        assert_eq!(
            (&frame[26..34], &frame[36..38]),
            ([LOCAL, OTHER_PEER].as_flattened(), &PORT.to_be_bytes()[..])
        );
    }
    assert_eq!(host.bed.flows().len(), 2);
    assert_eq!(host.route(&numbered(FAR, REMOTE, 10, 0)), [(Send, Reason::SourceNotOurs)]);
    assert_eq!(host.route(&numbered(CONTAINER, UNLEARNED, 10, 0)), [(Send, Reason::NoPeer)]);
}

/// A packet that waits for its neighbour still has the stack's route, by overlay0, unless that is taken off.
#[test]
fn a_packet_that_had_to_wait_for_its_neighbour_has_a_whole_ethernet_header() {
    fn resolve(host: &mut Host<'_>) {
        ip("neigh del 10.99.0.2 dev eth0");
        let arp = Wire::on("wire", SockProtocol::EthAll);
        let packet = numbered(CONTAINER, REMOTE, 10, 0);
        assert_eq!(host.route(&packet), [(Send, Reason::Carried)]);
        let question = loop {
            let frame = arp.next();
            if frame[12..14] == [8, 6] {
                break frame;
            }
        };
        // RFC 826: an Ethernet address for an IPv4 address, reply.
        let reply = [
            &UNDERLAY_MAC[..],
            &NEXT_HOP_MAC,
            &[8, 6, 0, 1, 8, 0, 6, 4, 0, 2],
            &NEXT_HOP_MAC,
            &PEER,
            &question[22..32],
        ]
        .concat();
        arp.send(&reply);
        let frame = host.wire.next();
        assert_eq!(frame[..14], ethernet(NEXT_HOP_MAC, UNDERLAY_MAC, &[]));
        assert!(frame.ends_with(&packet));
    }
    with_tun(0, resolve);
    with_tun(SETTING_DIRECT, resolve);
    with_vxlan(SETTING_DIRECT, resolve);
}
