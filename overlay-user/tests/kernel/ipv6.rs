//! IPv6, by the same hooks: each program of IPv4 hands it on to one of its own (`overlay_encap` to `overlay_encap6`, and so on).
use etherparse::{IpNumber, PacketBuilder};
use overlay_common::{
    Addr6, FLOW_DELIVERED, FLOW_SENT, FlowKey,
    Hook::{Decap, Encap},
    Reason,
    wire::{DATAGRAM6, ETHERNET, ETHERTYPE_IPV6, IPV6, Outer, UDP, VXLAN, Vxlan},
};

use super::bed::*;

/// What VXLAN adds to a packet of IPv6: outer IPv6, UDP, VXLAN and the inner Ethernet header.
const OVERHEAD6: usize = DATAGRAM6 + VXLAN + ETHERNET;
/// From the first byte of a frame to its inner header.
const INNER6: usize = ETHERNET + OVERHEAD6;
/// Hop limit of what containers send here.
const HOPS: u8 = 64;

fn octets(address: &str) -> [u8; 16] {
    addr6(address).octets()
}

/// A packet of `length` bytes behind a UDP header.
pub fn udp6(source: &str, destination: &str, ports: [u16; 2], length: usize) -> Vec<u8> {
    let payload: Vec<u8> = (0..length).map(|at| at as u8).collect();
    let mut packet = Vec::new();
    PacketBuilder::ipv6(octets(source), octets(destination), HOPS)
        .udp(ports[0], ports[1])
        .write(&mut packet, &payload)
        .unwrap();
    packet
}

/// A packet with this next header.
fn packet6(source: &str, destination: &str, next: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    PacketBuilder::ipv6(octets(source), octets(destination), HOPS)
        .write(&mut packet, IpNumber::IPV6_NO_NEXT_HEADER, payload)
        .unwrap();
    packet[6] = next;
    packet
}

fn frame6(destination: [u8; 6], source: [u8; 6], packet: &[u8]) -> Vec<u8> {
    [destination.as_slice(), &source, &ETHERTYPE_IPV6, packet].concat()
}

fn encap(bed: &mut Bed, packet: &[u8]) -> Outcome {
    bed.run("overlay_encap", bed.container, &frame6(GATEWAY_MAC, CONTAINER_MAC, packet))
}

/// What can differ in a frame of the tunnel that arrives on the underlay.
#[derive(Clone, Copy)]
pub struct Tunnel6 {
    pub source: &'static str,
    pub destination: &'static str,
    pub port: u16,
    pub vni: u32,
    pub class: u8,
    pub mac: [u8; 6],
    pub inner_type: [u8; 2],
}

pub const TUNNEL: Tunnel6 = Tunnel6 {
    source: PEER6,
    destination: LOCAL6,
    port: PORT,
    vni: VNI,
    class: 0,
    mac: VTEP_MAC,
    inner_type: ETHERTYPE_IPV6,
};

impl Tunnel6 {
    pub fn encapsulate(&self, packet: &[u8]) -> Vec<u8> {
        let [_, a, b, c] = self.vni.to_be_bytes();
        let inner =
            [&[0x08, 0, 0, 0, a, b, c, 0], self.mac.as_slice(), &PEER_VTEP_MAC, &self.inner_type, packet]
                .concat();
        let mut outer = Vec::new();
        PacketBuilder::ipv6(octets(self.source), octets(self.destination), 64)
            .udp(51234, self.port)
            .write(&mut outer, &inner)
            .unwrap();
        let [first, second] = (0x6000 | u16::from(self.class) << 4).to_be_bytes();
        (outer[0], outer[1]) = (first, second);
        outer[IPV6 + 6..IPV6 + 8].fill(0);
        frame6(UNDERLAY_MAC, NEXT_HOP_MAC, &outer)
    }

    fn arrives(&self, bed: &mut Bed, packet: &[u8]) -> Outcome {
        bed.run("overlay_decap", bed.underlay, &self.encapsulate(packet))
    }
}

/// The checksum of an ICMPv6 message, over its pseudo-header (RFC 4443 section 2.3).
fn icmp6_sum(packet: &[u8]) -> u16 {
    let length = (packet.len() as u32 - IPV6 as u32).to_be_bytes();
    checksum(&[&packet[8..IPV6], &length, &[0, 0, 0, 58], &packet[IPV6..]].concat())
}

#[test]
fn a_packet_to_a_peer_leaves_in_vxlan_over_ipv6() {
    with_ipv6(
        |_| {},
        |bed| {
            let packet = udp6(CONTAINER6, REMOTE6, [4000, 5000], 100);
            let outcome = encap(bed, &packet);
            outcome.assert(REDIRECT, &[(Encap, Reason::Carried)]);
            let frame = &outcome.frame;
            assert_eq!(frame.len(), ETHERNET + packet.len() + OVERHEAD6);
            let port = u16::from_be_bytes([frame[ETHERNET + IPV6], frame[ETHERNET + IPV6 + 1]]);
            assert!(port >= 49152, "{port}");
            let outer = Outer::<Addr6> {
                source: addr6(LOCAL6),
                destination: addr6(PEER6),
                tos: 0,
                identification: 0,
                dont_fragment: false,
                source_port: port,
                port: PORT.to_be_bytes(),
                payload: (OVERHEAD6 - DATAGRAM6 + packet.len()) as u32,
            };
            let ethertype = ETHERTYPE_IPV6;
            let vxlan = Vxlan { vni: VNI, destination_mac: PEER_VTEP_MAC, source_mac: VTEP_MAC, ethertype };
            let mut headers = [0xa5; OVERHEAD6];
            outer.write(headers.first_chunk_mut().unwrap());
            vxlan.write(headers.last_chunk_mut().unwrap());
            assert_eq!(frame[12..ETHERNET], ETHERTYPE_IPV6);
            assert_eq!(frame[ETHERNET..INNER6], headers);
            let mut inner = packet;
            inner[7] -= 1;
            assert_eq!(frame[INNER6..], inner, "hop limit one less, nothing else");
            let traffic = bed.tables.traffic(0).unwrap();
            assert_eq!((traffic.sent_packets, traffic.sent_bytes), (1, 148));
        },
    );
}

#[test]
fn a_packet_from_a_peer_reaches_its_container() {
    with_ipv6(
        |_| {},
        |bed| {
            let packet = udp6(REMOTE6, CONTAINER6, [5000, 4000], 100);
            let outcome = TUNNEL.arrives(bed, &packet);
            outcome.assert(REDIRECT, &[(Decap, Reason::Carried)]);
            assert_eq!(outcome.frame, frame6(CONTAINER_MAC, GATEWAY_MAC, &packet));
            let traffic = bed.tables.traffic(0).unwrap();
            assert_eq!((traffic.received_packets, traffic.received_bytes), (1, 148));
            // IPv4 goes on beside it.
            let ipv4 = Tunnel::default().encapsulate(&udp(REMOTE, CONTAINER, [5000, 4000], 10));
            bed.run("overlay_decap", bed.underlay, &ipv4).assert(REDIRECT, &[(Decap, Reason::Carried)]);
        },
    );
}

#[test]
fn what_containers_may_not_send_is_dropped_and_what_is_not_ours_passes() {
    with_ipv6(
        |_| {},
        |bed| {
            let mut sent = |source: &str, destination: &str, verdict, counted: &[_]| {
                encap(bed, &udp6(source, destination, [1, 2], 10)).assert(verdict, counted);
            };
            sent(REMOTE6, FAR6, SHOT, &[(Encap, Reason::SourceNotOurs)]);
            sent(REMOTE6, "2001:db8::1", SHOT, &[(Encap, Reason::SourceNotOurs)]);
            sent("2001:db8::1", REMOTE6, NEXT, &[(Encap, Reason::ForeignSource)]);
            sent(UNLEARNED6, REMOTE6, NEXT, &[(Encap, Reason::Unlearned)]);
            for beside in ["2001:db8::1", "fe80::1", "ff02::1", GATEWAY6] {
                sent(CONTAINER6, beside, NEXT, &[]);
            }
            sent("fe80::2", "ff02::1:ff00:1", NEXT, &[]);
            let wrong = frame6(GATEWAY_MAC, CONTAINER_MAC, &udp6(CONTAINER6, REMOTE6, [1, 2], 10));
            bed.run("overlay_encap", bed.wrong_port, &wrong)
                .assert(SHOT, &[(Encap, Reason::SourceAtWrongPort)]);
            // A tunnel packet of its own making, to a peer.
            encap(bed, &udp6(CONTAINER6, PEER6, [1, PORT], 10))
                .assert(SHOT, &[(Encap, Reason::ForgedTunnel)]);
        },
    );
}

#[test]
fn what_only_the_stack_can_carry_is_left_to_it() {
    with_ipv6(
        |_| {},
        |bed| {
            let mut left = |packet: &[u8], reason| encap(bed, packet).assert(NEXT, &[(Encap, reason)]);
            for extension in [0, 43, 50, 51, 60, 135, 139, 140] {
                left(&packet6(CONTAINER6, REMOTE6, extension, &[0; 32]), Reason::InnerOptions);
            }
            left(&packet6(CONTAINER6, REMOTE6, 44, &[0; 32]), Reason::InnerFragment);
            for discovery in 133..=137 {
                left(
                    &packet6(CONTAINER6, REMOTE6, 58, &[discovery, 0, 0, 0, 0, 0, 0, 0]),
                    Reason::InnerOptions,
                );
            }
            let mut dying = udp6(CONTAINER6, REMOTE6, [1, 2], 10);
            dying[7] = 1;
            left(&dying, Reason::TtlExpired);
            let whole = udp6(CONTAINER6, REMOTE6, [1, 2], 10);
            left(&[whole.as_slice(), &[0; 4]].concat(), Reason::TrailingBytes);
            encap(bed, &whole[..whole.len() - 1]).assert(SHOT, &[(Encap, Reason::Malformed)]);
            let echo = packet6(CONTAINER6, REMOTE6, 58, &[128, 0, 0, 0, 0, 1, 0, 1]);
            encap(bed, &echo).assert(REDIRECT, &[(Encap, Reason::Carried)]);
        },
    );
}

/// A peer without the flag, as flannel's hosts are: the kernel's tunnel drops a checksum of zero over IPv6 there.
#[test]
fn a_peer_that_wants_checksums_is_left_to_the_stack_both_ways() {
    with_ipv6(
        |_| {},
        |bed| {
            let packet = udp6(CONTAINER6, FAR6, [1, 2], 10);
            encap(bed, &packet).assert(NEXT, &[(Encap, Reason::WantsChecksum)]);
            let back = Tunnel6 { source: OTHER_PEER6, ..TUNNEL };
            let outcome = back.arrives(bed, &udp6(FAR6, CONTAINER6, [2, 1], 10));
            outcome.assert(NEXT, &[(Decap, Reason::WantsChecksum)]);
        },
    );
}

#[test]
fn what_arrives_is_checked() {
    with_ipv6(
        |_| {},
        |bed| {
            let packet = udp6(REMOTE6, CONTAINER6, [5000, 4000], 10);
            let mut arrives = |tunnel: Tunnel6, packet: &[u8], verdict, counted: &[_]| {
                tunnel.arrives(bed, packet).assert(verdict, counted);
            };
            let dropped = |reason| [(Decap, reason)];
            arrives(Tunnel6 { source: STRANGER6, ..TUNNEL }, &packet, SHOT, &dropped(Reason::UnknownPeer));
            arrives(Tunnel6 { source: OTHER_PEER6, ..TUNNEL }, &packet, SHOT, &dropped(Reason::PeerMismatch));
            arrives(Tunnel6 { mac: [2; 6], ..TUNNEL }, &packet, SHOT, &dropped(Reason::WrongVtepMac));
            let elsewhere = udp6(REMOTE6, FAR6, [1, 2], 10);
            arrives(TUNNEL, &elsewhere, SHOT, &dropped(Reason::NotOurSubnet));
            let foreign = udp6("2001:db8::1", CONTAINER6, [1, 2], 10);
            arrives(TUNNEL, &foreign, NEXT, &dropped(Reason::ForeignSource));
            arrives(Tunnel6 { inner_type: [8, 0], ..TUNNEL }, &packet, NEXT, &dropped(Reason::NotIpv6));
            // What is not the tunnel's passes.
            for tunnel in [
                Tunnel6 { vni: VNI + 1, ..TUNNEL },
                Tunnel6 { port: PORT + 1, ..TUNNEL },
                Tunnel6 { destination: "fd99::77", ..TUNNEL },
            ] {
                arrives(tunnel, &packet, NEXT, &[]);
            }
            // IPv6 in a tunnel of IPv4 is nobody's here.
            let mixed = Tunnel { inner_type: ETHERTYPE_IPV6, ..Tunnel::default() }.encapsulate(&packet);
            bed.run("overlay_decap", bed.underlay, &mixed).assert(NEXT, &[(Decap, Reason::NotIpv4)]);
            // Plain packets in a container's name.
            let plain = frame6(UNDERLAY_MAC, NEXT_HOP_MAC, &packet);
            bed.run("overlay_decap", bed.underlay, &plain).assert(SHOT, &[(Decap, Reason::NotEncapsulated)]);
        },
    );
}

#[test]
fn congestion_marks_cross_the_tunnel() {
    with_ipv6(
        |_| {},
        |bed| {
            let marked = |class: u8| {
                let mut packet = udp6(REMOTE6, CONTAINER6, [5000, 4000], 10);
                packet[1] = class << 4;
                packet
            };
            let outcome = Tunnel6 { class: 3, ..TUNNEL }.arrives(bed, &marked(2));
            outcome.assert(REDIRECT, &[(Decap, Reason::Carried)]);
            assert_eq!(
                outcome.frame[ETHERNET..],
                marked(3),
                "ECT(0) is marked now, and nothing else is changed"
            );
            let lost = Tunnel6 { class: 3, ..TUNNEL }.arrives(bed, &marked(0));
            lost.assert(SHOT, &[(Decap, Reason::NotEctMarked)]);
            let mut sent = udp6(CONTAINER6, REMOTE6, [1, 2], 10);
            sent[1] = 2 << 4;
            let frame = encap(bed, &sent).frame;
            assert_eq!(
                frame[ETHERNET..ETHERNET + 2],
                [0x60, 0x20],
                "the outer field is a copy of the inner one"
            );
        },
    );
}

#[test]
fn a_container_is_told_of_a_path_that_is_too_small_and_of_a_subnet_that_nobody_has() {
    with_ipv6(
        |_| {},
        |bed| {
            let answered = |bed: &mut Bed, packet: &[u8], reason, kind: [u8; 2], mtu: u32, quote: usize| {
                let outcome = encap(bed, packet);
                outcome.assert(REDIRECT, &[(Encap, reason)]);
                let frame = &outcome.frame;
                assert_eq!(frame[..ETHERNET], frame6(CONTAINER_MAC, GATEWAY_MAC, &[])[..]);
                let answer = &frame[ETHERNET..];
                assert_eq!(answer[8..24], octets(GATEWAY6));
                assert_eq!(answer[24..40], octets(CONTAINER6));
                assert_eq!((answer[6], answer[7]), (58, 64));
                assert_eq!(answer[IPV6..IPV6 + 2], kind);
                assert_eq!(answer[IPV6 + 4..IPV6 + 8], mtu.to_be_bytes());
                assert_eq!(answer[IPV6 + 8..], packet[..quote]);
                assert_eq!(icmp6_sum(answer), 0);
                assert_eq!(usize::from(u16::from_be_bytes([answer[4], answer[5]])), answer.len() - IPV6);
            };
            let fits = 1500 - OVERHEAD6;
            let whole = udp6(CONTAINER6, REMOTE6, [1, 2], fits - IPV6 - UDP);
            encap(bed, &whole).assert(REDIRECT, &[(Encap, Reason::Carried)]);
            let large = udp6(CONTAINER6, REMOTE6, [1, 2], fits - IPV6 - UDP + 1);
            answered(bed, &large, Reason::TooBig, [2, 0], fits as u32, IPV6 + 20);
            let nowhere = udp6(CONTAINER6, NOBODY6, [1, 2], 4);
            answered(bed, &nowhere, Reason::NoPeer, [1, 0], 0, IPV6 + 8);
            // No error about an error.
            let error = packet6(CONTAINER6, NOBODY6, 58, &[1, 0, 0, 0, 0, 0, 0, 0]);
            let outcome = encap(bed, &error);
            outcome.assert(SHOT, &[(Encap, Reason::NoPeer), (Encap, Reason::AnswerWithheld)]);
        },
    );
}

/// RFC 8200 section 5: no sender goes below 1280 bytes. Over a path that takes less, the tunnel's datagrams are fragmented.
#[test]
fn nobody_is_told_less_than_every_link_takes() {
    with_ipv6(
        |_| {},
        |bed| {
            crate::support::ip(&format!("route add {PEER6}/128 dev eth0 mtu lock 1320"));
            let small = udp6(CONTAINER6, REMOTE6, [1, 2], 1280 - IPV6 - UDP);
            encap(bed, &small).assert(NEXT, &[(Encap, Reason::NeedsFragmentation)]);
            let outcome = encap(bed, &udp6(CONTAINER6, REMOTE6, [1, 2], 1281 - IPV6 - UDP));
            outcome.assert(REDIRECT, &[(Encap, Reason::TooBig)]);
            assert_eq!(outcome.frame[ETHERNET + IPV6 + 4..ETHERNET + IPV6 + 8], 1280u32.to_be_bytes());
        },
    );
}

#[test]
fn a_connection_of_the_stack_keeps_to_it_until_it_is_promoted() {
    with_ipv6(
        |_| {},
        |bed| {
            let key = FlowKey::new(
                addr6(CONTAINER6),
                addr6(REMOTE6),
                [4000u16.to_be_bytes(), 5000u16.to_be_bytes()],
                17,
            );
            let out = udp6(CONTAINER6, REMOTE6, [4000, 5000], 10);
            let back = udp6(REMOTE6, CONTAINER6, [5000, 4000], 10);
            bed.tables.ipv6.as_mut().unwrap().stack_flows.insert(key, Default::default()).unwrap();
            encap(bed, &out).assert(NEXT, &[(Encap, Reason::StackFlow)]);
            TUNNEL.arrives(bed, &back).assert(NEXT, &[(Decap, Reason::StackFlow)]);
            let flows = &mut bed.tables.ipv6.as_mut().unwrap().stack_flows;
            let mut flow = flows.get(&key).unwrap();
            flow.state |= FLOW_SENT | FLOW_DELIVERED;
            flows.insert(key, flow).unwrap();
            encap(bed, &out).assert(REDIRECT, &[(Encap, Reason::Carried)]);
            TUNNEL.arrives(bed, &back).assert(REDIRECT, &[(Decap, Reason::Carried)]);
        },
    );
}

/// Without the flag in the settings nothing is handed on, whatever is in the maps.
#[test]
fn without_ipv6_its_packets_are_not_ours() {
    with_bed(|bed| {
        let packet = udp6(CONTAINER6, REMOTE6, [4000, 5000], 10);
        encap(bed, &packet).assert(NEXT, &[]);
        TUNNEL.arrives(bed, &udp6(REMOTE6, CONTAINER6, [5000, 4000], 10)).assert(NEXT, &[]);
        bed.run("overlay_send", bed.device, &frame6(VTEP_MAC, VTEP_MAC, &packet)).assert(NEXT, &[]);
    });
}
