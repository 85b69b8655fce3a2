//! `overlay_receive` at a real overlay0: what enters the stack, and as what.
use std::net::{SocketAddrV4, UdpSocket};

use overlay_common::{
    Hook::{Decap, Receive},
    Reason, SETTING_DIRECT, SETTING_STRICT_PEERS,
};

use super::{bed::*, overlay0::*};
use crate::support::ip;

#[test]
fn datagrams_enter_the_stack_unwrapped() {
    with_tun(0, |host| {
        let fragment = udp_with(REMOTE, CONTAINER, [1, 2], 10, |ip| ip[6] = 0x20);
        let mut options = udp(REMOTE, CONTAINER, [1, 2], 10);
        options[0] = 0x46;
        let padded = [udp(REMOTE, CONTAINER, [1, 2], 10), vec![0; 6]].concat();
        // A node's address, which flannel forwards, too.
        let foreign = udp(PEER, CONTAINER, [1, 2], 10);
        for packet in [fragment, options, padded, foreign, udp(REMOTE, CONTAINER, [1, 2], 1472 - 28)] {
            host.enters(&Datagram::default().packet(&packet), &packet);
        }
        let count = host.bed.tables.counter(Receive, Reason::Carried).unwrap();
        assert_eq!((count.packets, count.bytes), (5, 38 * 4 + 6 + 1472));
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
            let packet = |ecn: u8| udp_with(REMOTE, CONTAINER, [1, 2], 10, |ip| ip[1] = 0xb8 | ecn);
            host.enters(&Datagram { tos, ..Datagram::default() }.packet(&packet(inner)), &packet(delivered));
        }
        let marked = Datagram { tos: 3, ..Datagram::default() };
        host.is_dropped(&marked.packet(&udp(REMOTE, CONTAINER, [1, 2], 10)), Reason::NotEctMarked);
    });
}

#[test]
fn datagrams_enter_the_stack_checked() {
    with_tun(0, |host| {
        let ours = Datagram::default();
        for (outer, inner, destination, reason) in [
            (STRANGER, REMOTE, CONTAINER, Reason::UnknownPeer),
            (STRANGER, PEER, CONTAINER, Reason::UnknownPeer),
            (OTHER_PEER, REMOTE, CONTAINER, Reason::PeerMismatch),
            (PEER, UNLEARNED, CONTAINER, Reason::PeerMismatch),
            (PEER, REMOTE, FAR, Reason::NotOurSubnet),
            (PEER, REMOTE, LOCAL, Reason::NotOurSubnet),
        ] {
            let packet = udp(inner, destination, [1, 2], 10);
            host.is_dropped(&Datagram { source: outer, ..ours }.packet(&packet), reason);
        }
        let packet = udp(REMOTE, CONTAINER, [1, 2], 10);
        // Nothing unencapsulated is ours here, whatever its destination.
        host.is_dropped(&packet, Reason::UnknownPeer);
        host.is_dropped(&Datagram { destination: STRANGER, ..ours }.packet(&packet), Reason::UnknownPeer);
        let altered = |at: usize, value: u8| {
            let mut packet = ours.packet(&packet);
            packet[at] = value;
            packet
        };
        host.is_dropped(&altered(0, 0x46), Reason::Malformed);
        host.is_dropped(&altered(9, 6), Reason::Malformed);
        host.is_dropped(&Datagram { port: PORT, ..ours }.packet(&packet), Reason::Malformed);
        host.is_dropped(&altered(0, 0x60), Reason::NotIpv4);
        // Of the inner header: version, header length, total length too short, too long.
        for (at, value) in [(28, 0x65), (28, 0x44), (31, 19), (31, 39), (28, 0x4a)] {
            host.is_dropped(&altered(at, value), Reason::Malformed);
        }
        let whole = ours.packet(&packet);
        for length in 1..whole.len() {
            // Up to the outer addresses nothing says whom it is to.
            host.is_dropped(&whole[..length], Reason::Malformed);
        }
        let stranger = Datagram { source: STRANGER, ..ours }.packet(&packet);
        host.is_dropped(&stranger[..30], Reason::UnknownPeer);
    });
    with_tun(SETTING_STRICT_PEERS, |host| {
        let packet = Datagram::default().packet(&udp(PEER, CONTAINER, [1, 2], 10));
        host.is_dropped(&packet, Reason::StrictSource);
    });
}

#[test]
fn unencapsulated_packets_enter_the_stack_checked() {
    with_tun(SETTING_DIRECT, |host| {
        let packet = udp_with(REMOTE, CONTAINER, [1, 2], 10, |ip| ip[7] = 1);
        host.enters(&packet, &packet);
        let count = host.bed.tables.counter(Receive, Reason::Carried).unwrap();
        assert_eq!((count.packets, count.bytes), (1, 38));
        for (source, destination, reason) in [
            (UNLEARNED, CONTAINER, Reason::PeerMismatch),
            ([10, 244, 99, 1], CONTAINER, Reason::UnknownPeer),
            ([192, 0, 2, 1], CONTAINER, Reason::UnknownPeer),
            (REMOTE, FAR, Reason::NotOurSubnet),
        ] {
            host.is_dropped(&udp(source, destination, [1, 2], 10), reason);
        }
        // The same network takes encapsulated packets, too.
        host.enters(&Datagram::default().packet(&packet), &packet);
    });
}

/// The whole path of what decapsulation leaves to the stack: in at the underlay device, out at a socket of this host.
#[test]
fn what_decapsulation_hands_over_reaches_a_socket() {
    fn unencapsulated(host: &mut Host<'_>) {
        reaches_a_socket(host, |packet| ethernet(UNDERLAY_MAC, NEXT_HOP_MAC, packet));
    }
    fn encapsulated(host: &mut Host<'_>) {
        reaches_a_socket(host, |packet| Datagram::default().encapsulate(packet));
    }
    with_tun(0, encapsulated);
    with_tun(SETTING_DIRECT, encapsulated);
    with_tun(SETTING_DIRECT, unencapsulated);
    with_vxlan(SETTING_DIRECT, unencapsulated);
}

fn reaches_a_socket(host: &mut Host<'_>, encapsulate: fn(&[u8]) -> Vec<u8>) {
    // The stack takes what is for the container itself, so that a socket here can tell.
    ip("addr add 10.244.1.2/32 dev lo");
    let socket = UdpSocket::bind(SocketAddrV4::new(CONTAINER.into(), 4000)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    host.bed.keep_to_stack(REMOTE, CONTAINER, [5000, 4000], 17);
    let packet = udp(REMOTE, CONTAINER, [5000, 4000], 100);
    let mut buffer = [0; 200];
    let (received, counted) = host.bed.counting(|_| {
        host.wire.send(&encapsulate(&packet));
        socket.recv(&mut buffer).unwrap()
    });
    assert_eq!(buffer[..received], packet[28..]);
    assert_eq!(counted, [(Decap, Reason::StackFlow), (Receive, Reason::Carried)]);
}
