//! The encapsulation format of the network, as one concept: how long its headers are, how a received frame's are read and
//! taken off, and how a packet's are written. Each format is a file beside this one.
pub(crate) mod datagram;
mod outer;
mod vxlan;

use overlay_common::{
    ENCAPSULATION_UDP, FlowKey, PEER_ZERO_CHECKSUM6, PeerEntry, Reason, header::protocol, wire,
};

use crate::{
    check::Sender,
    flow,
    frame::Frame,
    ip::{Family, Header as _},
    packet::Packet,
    settings,
    verdict::Answer,
};

/// How packets are encapsulated.
pub(crate) enum Format {
    /// VXLAN (RFC 7348). The kernel's own VXLAN device, overlay0, understands it too.
    Vxlan,
    /// Bare IPv4 in UDP, as flannel's udp backend sends it. No device of the kernel's understands it; overlay0 is a TUN.
    Datagram,
}

/// The network's format. The verifier knows the answer, and leaves the other format's code out of what it loads.
#[inline(always)]
pub(crate) fn format<F: Family>() -> Format {
    if F::IN_DATAGRAMS && settings::encapsulation() == ENCAPSULATION_UDP {
        Format::Datagram
    } else {
        Format::Vxlan
    }
}

/// Bytes that encapsulation adds to a packet.
#[inline(always)]
pub(crate) fn length<F: Family>() -> usize {
    match format::<F>() {
        Format::Vxlan => vxlan::length::<F>(),
        Format::Datagram => datagram::length::<F>(),
    }
}

/// The packet in a datagram to our address and port, and the peer that sent it, if that peer may send it.
#[inline(always)]
pub(crate) fn parse<F: Family>(frame: &impl Frame, outer: &F::Header) -> Answer<(F::Header, Sender)> {
    match format::<F>() {
        Format::Vxlan => vxlan::parse::<F>(frame, outer),
        Format::Datagram => datagram::parse::<F>(frame, outer),
    }
}

/// Whether the tunnel of a peer with these `PEER_*` bits takes outer UDP checksums of zero, as the fast path writes them.
#[inline(always)]
pub(crate) const fn takes_zero_checksum<F: Family>(flags: u16) -> bool {
    !F::ZERO_CHECKSUM_IS_AGREED_ON || flags & PEER_ZERO_CHECKSUM6 != 0
}

/// Takes the outer headers off a frame whose packet is to be delivered. On [`Reason::HeadroomRefused`] the frame is as it
/// was. `is_unchecked` says that the outer UDP checksum is zero.
#[inline(always)]
pub(crate) fn decapsulate<F: Family>(packet: &Packet<'_>, is_unchecked: bool) -> Result<(), Reason> {
    match format::<F>() {
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
    macs: [u16; 6],
) -> Result<(), Reason> {
    match format::<F>() {
        Format::Vxlan => vxlan::encapsulate::<F>(packet, inner, peer, source_port, macs),
        Format::Datagram => datagram::encapsulate::<F>(packet, inner, peer, source_port, macs),
    }
}

/// Source port of the outer UDP header: a hash of the inner connection, so that its packets stay in order and connections
/// spread. `key` is the connection's, of a packet whose IP header is `ip`, whole or with its ports at least.
///
/// The packet keeps the hash, by which the underlay device chooses a queue.
#[inline(always)]
pub(crate) fn source_port<F: Family>(packet: &Packet<'_>, ip: &F::Header, key: &FlowKey<F::Address>) -> u16 {
    let hash = if flow::has_ports::<F>(ip) { hash::<F>(packet, ip, key) } else { packet.hash() };
    wire::source_port(hash, settings::port_min(), settings::port_count())
}

/// The hash of a packet with ports. One of any other is left to the kernel, which looks into tunnels.
#[inline(always)]
fn hash<F: Family>(packet: &Packet<'_>, ip: &F::Header, key: &FlowKey<F::Address>) -> u32 {
    match packet.known_hash() {
        // A TCP socket has a hash, which all of its packets have, and takes another one when they do not get through, and so another
        // path. What a queueing discipline or a receive queue has computed for some packets of a connection and not for others
        // (fq_codel computes none while it is empty) must not count: the connection would have two source ports. Of TCP it
        // does count, where a container forwards what has no socket here: nobody can tell the two kinds apart.
        known if known != 0 && ip.protocol() == protocol::TCP => known,
        _ => {
            let hash = key.hash();
            packet.set_hash(hash);
            hash
        }
    }
}

/// The same of a packet whose IP header is at `offset`, and whose connection nobody has asked for yet.
#[inline(always)]
pub(crate) fn source_port_of<F: Family>(packet: &Packet<'_>, offset: usize, ip: &F::Header) -> u16 {
    source_port::<F>(packet, ip, &flow::key_by_ports::<F>(packet, offset, ip))
}
