//! The encapsulation format of the network, as one concept: how long its headers are, how a received frame's are read and
//! taken off, and how a packet's are written. Each format is a file beside this one.
pub(crate) mod datagram;
mod outer;
mod vxlan;

use overlay_common::{ENCAPSULATION_UDP, PeerEntry, Reason, wire};

use crate::{frame::Frame, ip::Family, packet::Packet, settings, verdict::Answer};

/// How packets are encapsulated.
pub(crate) enum Format {
    /// VXLAN (RFC 7348). The kernel's own VXLAN device, overlay0, understands it too.
    Vxlan,
    /// Bare IPv4 in UDP, as flannel's udp backend sends it. No device of the kernel's understands it; overlay0 is a TUN.
    Datagram,
}

/// The network's format. The verifier knows the answer, and leaves the other format's code out of what it loads.
#[inline(always)]
pub(crate) fn format() -> Format {
    if settings::encapsulation() == ENCAPSULATION_UDP { Format::Datagram } else { Format::Vxlan }
}

/// Bytes that encapsulation adds to a packet.
#[inline(always)]
pub(crate) fn length<F: Family>() -> usize {
    match format() {
        Format::Vxlan => vxlan::length::<F>(),
        Format::Datagram => datagram::length::<F>(),
    }
}

/// The packet in a datagram to our address and port, and the counters' slot of the peer that sent it, if that peer may send
/// it.
#[inline(always)]
pub(crate) fn parse<F: Family>(frame: &impl Frame, outer: &F::Header) -> Answer<(F::Header, u32)> {
    match format() {
        Format::Vxlan => vxlan::parse::<F>(frame, outer),
        Format::Datagram => datagram::parse::<F>(frame, outer),
    }
}

/// Takes the outer headers off a frame whose packet is to be delivered. On [`Reason::HeadroomRefused`] the frame is as it
/// was. `is_unchecked` says that the outer UDP checksum is zero.
#[inline(always)]
pub(crate) fn decapsulate<F: Family>(packet: &Packet<'_>, is_unchecked: bool) -> Result<(), Reason> {
    match format() {
        Format::Vxlan => packet.remove_headers(vxlan::length::<F>())?,
        Format::Datagram => datagram::decapsulate::<F>(packet, is_unchecked)?,
    }
    packet.distrust_checksum();
    Ok(())
}

/// Makes headroom behind the Ethernet header and writes all headers into it, and the inner one with a TTL of one less. On
/// [`Reason::HeadroomRefused`] the frame is as it was.
#[inline(always)]
pub(crate) fn encapsulate<F: Family>(
    packet: &Packet<'_>,
    inner: &F::Header,
    peer: &PeerEntry<F::Address>,
    source_port: u16,
) -> Result<(), Reason> {
    match format() {
        Format::Vxlan => vxlan::encapsulate::<F>(packet, inner, peer, source_port),
        Format::Datagram => datagram::encapsulate::<F>(packet, inner, peer, source_port),
    }
}

/// Source port of the outer UDP header: a hash of the inner connection, so that its packets stay in order and connections
/// spread.
#[inline(always)]
pub(crate) fn source_port(packet: &Packet<'_>) -> u16 {
    wire::source_port(packet.hash(), settings::port_min(), settings::port_count())
}
