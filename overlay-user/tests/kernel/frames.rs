//! Frames and packets, made by a library that is independent of this project, and the sums in them.
use etherparse::{IpNumber, PacketBuilder};
use overlay_common::wire;

use super::world::*;

/// An IPv4 packet of `length` bytes of payload behind a UDP header.
pub fn udp(source: [u8; 4], destination: [u8; 4], ports: [u16; 2], length: usize) -> Vec<u8> {
    udp_with(source, destination, ports, length, |_| {})
}

/// As [`udp`], with the 20 bytes of the IPv4 header altered before its checksum is made.
pub fn udp_with(
    source: [u8; 4],
    destination: [u8; 4],
    ports: [u16; 2],
    length: usize,
    alter: impl FnOnce(&mut [u8]),
) -> Vec<u8> {
    let mut packet = Vec::new();
    let payload: Vec<u8> = (0..length).map(|at| at as u8).collect();
    PacketBuilder::ipv4(source, destination, 64)
        .udp(ports[0], ports[1])
        .write(&mut packet, &payload)
        .unwrap();
    alter(&mut packet[..20]);
    seal(&mut packet);
    packet
}

/// A TCP packet with these flags (byte 13).
pub fn tcp(source: [u8; 4], destination: [u8; 4], ports: [u16; 2], flags: u8, length: usize) -> Vec<u8> {
    let mut packet = Vec::new();
    PacketBuilder::ipv4(source, destination, 64)
        .tcp(ports[0], ports[1], 1000, 512)
        .write(&mut packet, &vec![0x5a; length])
        .unwrap();
    packet[33] = flags;
    packet[36..38].fill(0);
    let length = (packet.len() as u16 - 20).to_be_bytes();
    let sum = checksum(&[&packet[12..20], &[0, 6], &length, &packet[20..]].concat());
    packet[36..38].copy_from_slice(&sum.to_be_bytes());
    packet
}

/// An ICMP packet of type `kind` about `payload`.
pub fn icmp(source: [u8; 4], destination: [u8; 4], kind: u8, payload: &[u8]) -> Vec<u8> {
    let mut body = vec![kind, 0, 0, 0, 0x12, 0x34, 0, 1];
    body.extend_from_slice(payload);
    let mut packet = Vec::new();
    PacketBuilder::ipv4(source, destination, 64).write(&mut packet, IpNumber::ICMP, &body).unwrap();
    packet
}

/// Writes the IPv4 header's checksum anew.
pub fn seal(packet: &mut [u8]) {
    packet[10..12].fill(0);
    let sum = checksum(&packet[..20]);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
}

/// The Internet checksum, the plain way (RFC 1071 section 4.1).
pub fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// `packet` behind an Ethernet header.
pub fn ethernet(destination: [u8; 6], source: [u8; 6], packet: &[u8]) -> Vec<u8> {
    [destination.as_slice(), &source, &wire::ETHERTYPE_IPV4, packet].concat()
}

/// `packet` as the container sends it to its gateway.
pub fn from_container(packet: &[u8]) -> Vec<u8> {
    ethernet(GATEWAY_MAC, CONTAINER_MAC, packet)
}

/// What `overlay_xdp_strip` writes in front of the frame of the peer with this slot: magic, port, VNI, address, slot.
pub fn strip_mark(slot: u32) -> Vec<u8> {
    [b"ov".as_slice(), &PORT.to_be_bytes(), &VNI.to_ne_bytes(), &LOCAL, &slot.to_ne_bytes()].concat()
}

/// What can differ in a frame that arrives on the underlay.
#[derive(Clone, Copy)]
pub struct Tunnel {
    pub source: [u8; 4],
    pub destination: [u8; 4],
    pub port: u16,
    pub vni: u32,
    pub flags: u8,
    pub tos: u8,
    pub inner_destination_mac: [u8; 6],
    pub inner_type: [u8; 2],
}

impl Default for Tunnel {
    fn default() -> Self {
        Self {
            source: PEER,
            destination: LOCAL,
            port: PORT,
            vni: VNI,
            flags: wire::VXLAN_VNI_VALID,
            tos: 0,
            inner_destination_mac: VTEP_MAC,
            inner_type: wire::ETHERTYPE_IPV4,
        }
    }
}

impl Tunnel {
    /// `packet` in VXLAN, as it arrives on the underlay device.
    pub fn encapsulate(&self, packet: &[u8]) -> Vec<u8> {
        let vni = self.vni.to_be_bytes();
        let vxlan = [self.flags, 0, 0, 0, vni[1], vni[2], vni[3], 0];
        let inner = [&vxlan, self.inner_destination_mac.as_slice(), &PEER_VTEP_MAC, &self.inner_type, packet]
            .concat();
        let mut outer = Vec::new();
        PacketBuilder::ipv4(self.source, self.destination, 64)
            .udp(51234, self.port)
            .write(&mut outer, &inner)
            .unwrap();
        outer[1] = self.tos;
        seal(&mut outer);
        ethernet(UNDERLAY_MAC, NEXT_HOP_MAC, &outer)
    }
}

/// What can differ in a datagram that arrives on the underlay of a network without VXLAN.
#[derive(Clone, Copy)]
pub struct Datagram {
    pub source: [u8; 4],
    pub destination: [u8; 4],
    pub port: u16,
    pub tos: u8,
}

impl Default for Datagram {
    fn default() -> Self {
        Self { source: PEER, destination: LOCAL, port: UDP_PORT, tos: 0 }
    }
}

impl Datagram {
    /// The outer IPv4 packet around these bytes.
    pub fn packet(&self, inside: &[u8]) -> Vec<u8> {
        let mut outer = Vec::new();
        PacketBuilder::ipv4(self.source, self.destination, 64)
            .udp(51234, self.port)
            .write(&mut outer, inside)
            .unwrap();
        outer[1] = self.tos;
        seal(&mut outer);
        outer
    }

    /// The same as it arrives on the underlay device.
    pub fn encapsulate(&self, inside: &[u8]) -> Vec<u8> {
        ethernet(UNDERLAY_MAC, NEXT_HOP_MAC, &self.packet(inside))
    }
}

/// First frame of a capture between two hosts with flannel's udp backend: an echo request of 10.244.66.2 to 10.244.31.2, from
/// 10.99.0.1 to 10.99.0.2. Its UDP checksum is unfinished, as veth hands it over.
pub fn flannels_frame() -> Vec<u8> {
    let frame =
        hex("ee411aa19c0bc2f1cadb71990800 450000707b5240004011aa620a6300010a630002 205d205d005c1536 \
        45000054f1f340003e01d3c90af442020af41f02 0800e3dc549e0001 3fc0026b00000000bb85030000000000 \
        101112131415161718191a1b1c1d1e1f 202122232425262728292a2b2c2d2e2f 3031323334353637");
    assert_eq!((frame.len(), checksum(&frame[42..62]), checksum(&frame[62..])), (14 + 112, 0, 0));
    frame
}

/// The bytes that these digits mean; spaces do not count.
pub fn hex(digits: &str) -> Vec<u8> {
    let digits: String = digits.split_whitespace().collect();
    (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap()).collect()
}

/// `packet` with DF, which etherparse sets, clear.
pub fn without_df(mut packet: Vec<u8>) -> Vec<u8> {
    packet[6] &= !0x40;
    seal(&mut packet);
    packet
}
