//! Wrapping a packet: the room, and the headers that go into it, in either format.
use overlay_common::{
    Peer, Reason, SETTING_OUTER_DF, checksum,
    wire::{self, DATAGRAM, ETHERNET, IPV4, OVERHEAD, Outer, VXLAN, Vxlan},
};

use crate::{
    ipv4::Ipv4,
    packet::{self, Packet},
    settings,
};

/// The part of the inner IPv4 header that a router changes (TTL and checksum), and what stands before it: written in one
/// piece with the outer headers.
const CHANGED: usize = 12;

/// Makes room behind the Ethernet header and writes all headers into it, the inner one with a TTL of one less.
/// On [`Reason::RoomRefused`] the frame is as it was.
#[inline(always)]
pub(crate) fn wrap(packet: &Packet<'_>, inner: &Ipv4, peer: &Peer, source_port: u16) -> Result<(), Reason> {
    let outer = datagram(inner.tos, u32::from(inner.length), peer, source_port);
    if settings::is_udp() {
        packet.make_datagram_room()?;
        let mut bytes = [0; DATAGRAM + CHANGED];
        if let Some(headers) = bytes.first_chunk_mut() {
            outer.write(headers);
        }
        if let Some(changed) = bytes.last_chunk_mut() {
            routed(inner, changed);
        }
        return packet.store(ETHERNET, &bytes);
    }
    packet.make_vxlan_room()?;
    let mut bytes = [0; OVERHEAD + CHANGED];
    if let Some(headers) = bytes.first_chunk_mut() {
        outer.write(headers);
    }
    if let Some(headers) = bytes[DATAGRAM..].first_chunk_mut::<{ VXLAN + ETHERNET }>() {
        let (vni, source_mac) = (settings::vni(), settings::vtep_mac());
        Vxlan { vni, destination_mac: peer.vtep_mac, source_mac }.write(headers);
    }
    if let Some(changed) = bytes.last_chunk_mut() {
        routed(inner, changed);
    }
    packet.store(ETHERNET, &bytes)
}

/// Wraps a packet without link header into a datagram with one. The packet in it stays as it is: a router has had it. On
/// [`Reason::RoomRefused`] it is as it was.
#[inline(always)]
pub(crate) fn wrap_routed(
    packet: &Packet<'_>,
    header: &[u8; IPV4],
    peer: &Peer,
    source_port: u16,
) -> Result<(), Reason> {
    // Refused (EALREADY) where the packet is marked as one in a tunnel. One that has come out of ours is marked still: a
    // veth carries the sender's mark over, which a wire does not. Its segmentation knows all it must.
    if packet.make_datagram_room().is_err() {
        packet.push_keeping_segments(DATAGRAM)?;
    }
    let length = u16::from_be_bytes([header[2], header[3]]);
    let mut bytes = [0; DATAGRAM];
    datagram(header[1], u32::from(length), peer, source_port).write(&mut bytes);
    packet.push_link_header()?;
    packet.store(ETHERNET, &bytes)
}

/// Source port of the outer UDP header: the inner flow's hash, so that its packets stay in order and flows spread.
#[inline(always)]
pub(crate) fn source_port(packet: &Packet<'_>) -> u16 {
    wire::source_port(packet.hash(), settings::port_min(), settings::port_count())
}

/// Takes one from the TTL of a packet that leaves as it is.
#[inline(always)]
pub(crate) fn route(packet: &Packet<'_>, inner: &Ipv4) -> Result<(), Reason> {
    let mut bytes = [0; CHANGED];
    routed(inner, &mut bytes);
    let [.., ttl, protocol, high, low] = bytes;
    packet.store(ETHERNET + 8, &[ttl, protocol, high, low])
}

#[inline(always)]
fn datagram(inner_tos: u8, inner_length: u32, peer: &Peer, source_port: u16) -> Outer {
    Outer {
        source: settings::local().to_ne_bytes(),
        destination: peer.outer,
        // RFC 6040 section 4.1, normal mode: the outer ECN field is a copy of the inner one.
        tos: inner_tos & 0x03,
        identification: packet::random() as u16,
        dont_fragment: settings::has(SETTING_OUTER_DF),
        source_port,
        port: settings::port(),
        payload: inner_length + (settings::overhead() - DATAGRAM) as u32,
    }
}

/// The sending host is a router to the container: it takes one from the TTL (RFC 1812 section 5.3.1).
#[inline(always)]
fn routed(inner: &Ipv4, out: &mut [u8; CHANGED]) {
    let [protocol, ttl] = [inner.protocol, inner.ttl - 1];
    let sum = checksum::update(
        inner.checksum,
        u16::from_be_bytes([inner.ttl, protocol]),
        u16::from_be_bytes([ttl, protocol]),
    );
    out[0] = 0x45;
    out[1] = inner.tos;
    out[2..4].copy_from_slice(&inner.length.to_be_bytes());
    out[4..6].copy_from_slice(&inner.identification);
    out[6..8].copy_from_slice(&inner.fragment.to_be_bytes());
    out[8] = ttl;
    out[9] = protocol;
    out[10..12].copy_from_slice(&sum.to_be_bytes());
}
