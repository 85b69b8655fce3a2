//! IPv6 by a real overlay0, which is the kernel's VXLAN device: what the stack sends, and what it is to receive.
use std::net::UdpSocket;

use aya::programs::TcAttachType;
use nix::sys::socket::SockProtocol;
use overlay_common::{
    Hook::{self, Decap, Receive, Send},
    Reason,
    wire::{ETHERNET, ETHERTYPE_IPV4, ETHERTYPE_IPV6, IPV6},
};

use super::{bed::*, ipv6::*, overlay0::Wire};
use crate::support::{ip, sysctl};

/// overlay0's own address: the base of the subnet.
const BASE6: &str = "fd00:244:0:1::";

/// A host whose overlay0 has its programs, and IPv6.
struct Host<'a> {
    bed: &'a mut Bed,
    /// What enters the stack by overlay0.
    inside: Wire,
    /// The other end of the underlay.
    wire: Wire,
}

fn with_host(test: impl FnOnce(&mut Host<'_>) + std::marker::Send) {
    let settings = |settings: &mut overlay_common::Settings| {
        ip(
            "link add overlay0 address 02:00:00:00:00:01 mtu 1430 type vxlan external dstport 8472 nolearning udp6zerocsumrx",
        );
        ip("link set overlay0 arp off");
        ip("link set overlay0 up");
        settings.device = nix::net::if_::if_nametoindex("overlay0").unwrap();
    };
    with_ipv6(settings, |bed| {
        bed.attach("overlay_receive", "overlay0", TcAttachType::Ingress);
        bed.attach("overlay_send", "overlay0", TcAttachType::Egress);
        bed.attach("overlay_decap", "eth0", TcAttachType::Ingress);
        sysctl("ipv6/conf/overlay0/accept_ra", "0");
        ip(&format!("addr add {BASE6}/128 dev overlay0 nodad"));
        // There is no bridge: what enters the stack for containers ends there.
        ip(&format!("route add blackhole {BASE6}/64 metric 1"));
        let all = |interface| Wire::on(interface, SockProtocol::EthAll);
        test(&mut Host { bed, inside: all("overlay0"), wire: all("wire") });
    });
}

impl Host<'_> {
    /// The next frame of this kind that leaves the host and goes to this address.
    fn left(&self, to: &str) -> Vec<u8> {
        loop {
            let frame = self.wire.next();
            let is_ours = frame[12..ETHERNET] == ETHERTYPE_IPV6 && frame[ETHERNET + 6] == 17;
            if is_ours && frame[ETHERNET + 24..ETHERNET + IPV6] == addr6(to).octets() {
                return frame;
            }
        }
    }

    /// Has the host itself send a datagram, and returns what was counted.
    fn send(&mut self, to: &str) -> Vec<(Hook, Reason)> {
        let socket = UdpSocket::bind((BASE6, 0)).unwrap();
        self.bed.counting(|_| socket.send_to(&[0x5a; 64], (to, 5000)).map(|_| ()).unwrap_or(())).1
    }

    /// Has a frame arrive by the underlay, and returns what was counted.
    fn receive(&mut self, frame: &[u8]) -> Vec<(Hook, Reason)> {
        let wire = &self.wire;
        self.bed.counting(|_| wire.send(frame)).1
    }
}

/// The checksum over a UDP packet in IPv6 with its pseudo-header: zero if the one in it is right.
fn udp6_sum(packet: &[u8]) -> u16 {
    let length = (packet.len() as u32 - IPV6 as u32).to_be_bytes();
    checksum(&[&packet[8..IPV6], &length, &[0, 0, 0, 17], &packet[IPV6..]].concat())
}

#[test]
fn the_stacks_packets_leave_with_the_checksum_that_the_peer_takes() {
    with_host(|host| {
        assert_eq!(host.send(REMOTE6), [(Send, Reason::Carried)]);
        let frame = host.left(PEER6);
        let checksum = &frame[ETHERNET + IPV6 + 6..ETHERNET + IPV6 + 8];
        assert_eq!(checksum, [0; 2], "the peer's lease says that it takes zeros");
        let inner = &frame[ETHERNET + IPV6 + 16..];
        assert_eq!(inner[..6], PEER_VTEP_MAC);
        assert_eq!(inner[ETHERNET + 24..ETHERNET + IPV6], addr6(REMOTE6).octets());

        assert_eq!(host.send(FAR6), [(Send, Reason::Carried)]);
        let frame = host.left(OTHER_PEER6);
        let checksum = &frame[ETHERNET + IPV6 + 6..ETHERNET + IPV6 + 8];
        assert_ne!(checksum, [0; 2], "this peer's lease says nothing of it");
        // The inner checksum is left to the device to finish, and the outer one is right once it is (local checksum offload).
        let mut packet = frame[ETHERNET..].to_vec();
        let inner = &mut packet[IPV6 + 16 + ETHERNET..];
        inner[IPV6 + 6..IPV6 + 8].fill(0);
        let finished = udp6_sum(inner).to_be_bytes();
        inner[IPV6 + 6..IPV6 + 8].copy_from_slice(&finished);
        assert_eq!(udp6_sum(&packet), 0);

        assert_eq!(host.send(NOBODY6), [(Send, Reason::NoPeer)]);
    });
}

#[test]
fn what_the_tunnel_hands_to_the_stack_is_checked() {
    with_host(|host| {
        // To a container that nobody has learned: the fast path leaves it to the stack.
        let packet = udp6(REMOTE6, UNLEARNED6, [5000, 4000], 10);
        let frame = TUNNEL.encapsulate(&packet);
        assert_eq!(host.receive(&frame), [(Decap, Reason::Unlearned), (Receive, Reason::Carried)]);
        let inside = loop {
            let frame = host.inside.next();
            if frame.ends_with(&packet) {
                break frame;
            }
        };
        assert_eq!(inside.len(), ETHERNET + packet.len());
        // A tunnel of one family carries no packets of the other, and the stack takes none of them.
        let mixed = Tunnel6 { inner_type: ETHERTYPE_IPV4, ..TUNNEL };
        let ipv4 = mixed.encapsulate(&udp(REMOTE, UNLEARNED, [5000, 4000], 100));
        assert_eq!(host.receive(&ipv4), [(Decap, Reason::NotIpv6), (Receive, Reason::NotIpv6)]);
        let mixed = Tunnel { inner_type: ETHERTYPE_IPV6, ..Tunnel::default() }.encapsulate(&packet);
        assert_eq!(host.receive(&mixed), [(Decap, Reason::NotIpv4), (Receive, Reason::NotIpv4)]);
    });
}
