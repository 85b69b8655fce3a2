//! overlay0 as a TUN, for bare IPv4 in UDP: no device of the kernel's knows that format, so these programs encapsulate what the
//! stack sends, and decapsulate what it is to receive.
use aya_ebpf::bindings::TC_ACT_UNSPEC;
use overlay_common::{
    Addr4, Peer, Reason, SETTING_OUTER_DF,
    header::{ipv4, protocol, udp},
    wire::{ETHERTYPE_IPV4, IPV4},
};

use super::{leave_by, may_send, receive_unencapsulated};
use crate::{
    check, ecn,
    fib::{self, NextHop, NoPath, Path},
    frame::Frame as _,
    ipv4::{Ipv4, segment_length, transport_length},
    packet::Packet,
    settings,
    tunnel::{self, datagram},
    verdict::{Answer, Outcome},
};

/// Sends the packet to the peer without the agent's help. What is left to the agent gets to it as it is, one segment after the
/// other: packets that the link does not take whole, which the kernel fragments behind the agent's socket, and GSO frames of
/// anything but TCP.
#[inline(always)]
pub(super) fn send(packet: &Packet<'_>, header: &Ipv4, peer: &Peer) -> Answer<Outcome> {
    if is_own_datagram(packet, header) {
        return Err(Reason::ForgedTunnel.into());
    }
    let source_port = tunnel::source_port(packet);
    let length = longest_segment(packet, header);
    if let Some(next_hop) = fib::on_link(packet, peer, source_port)
        && length <= packet.mtu_of(next_hop.ifindex)
    {
        packet.make_link_header()?;
        return leave_by(packet, &next_hop);
    }
    // A TUN has no checksum offload, so what a socket sends many at once (UDP_SEGMENT, Linux 6.11) has its checksums' place
    // noted where it will no longer be; and a container's own tunnel's frame cannot be told of one more tunnel around it.
    // Nor do outer headers hold the length of one beyond 65,535 bytes (BIG TCP).
    if packet.gso_size() != 0 && (header.protocol() != protocol::TCP || header.length() == 0) {
        return Err(Reason::HeadroomRefused.into());
    }
    let next_hop = match fib::path(packet, peer, source_port, length) {
        Ok(Path::Encapsulated(next_hop)) => next_hop,
        Ok(Path::Unencapsulated(_)) | Err(NoPath::Stack) => return Err(Reason::NoNextHop.into()),
        Err(NoPath::TooBig(_)) => {
            // A path MTU the kernel has learned of. Without DF a router on the way fragments, as it does for the kernel.
            let next_hop = fib::next_hop_of_any_length(packet, peer, source_port);
            let fits =
                |next_hop: &NextHop| length + datagram::LENGTH as u32 <= packet.mtu_of(next_hop.ifindex);
            match next_hop.filter(fits) {
                Some(next_hop) if !settings::has(SETTING_OUTER_DF) => next_hop,
                _ => return Err(Reason::NeedsFragmentation.into()),
            }
        }
    };
    datagram::encapsulate_forwarded(packet, header, peer, source_port)?;
    leave_by(packet, &next_hop)
}

/// A datagram of this host's own tunnel, which the host's routes lead into the tunnel: it would go round for ever.
#[inline(always)]
fn is_own_datagram(packet: &Packet<'_>, header: &Ipv4) -> bool {
    header.protocol() == protocol::UDP
        && header.source().raw() == settings::local()
        && packet.load(IPV4 + udp::offset::DESTINATION_PORT) == Some(settings::port())
}

/// Length of one segment's IP packet. A packet with options is never a GSO frame.
#[inline(always)]
fn longest_segment(packet: &Packet<'_>, header: &Ipv4) -> u32 {
    match Ipv4::checked(packet, 0) {
        Ok(ip) => segment_length(packet, 0, &ip),
        Err(_) if header.is_without_options() && packet.gso_size() != 0 => {
            // BIG TCP: the header's length is zero, the segments' will not be.
            packet.gso_size() + IPV4 as u32 + transport_length(packet, IPV4, header.protocol())
        }
        Err(_) => u32::from(header.length()),
    }
}

/// A datagram to our port, with its outer headers: from overlay_decap, which leaves it as it came, or from the agent, whose
/// socket took it. Its packet is taken out here, once it has passed the checks.
#[inline(always)]
pub(super) fn receive(packet: &Packet<'_>) -> Answer<Outcome> {
    const INNER: usize = datagram::LENGTH;
    if !packet.carries(ETHERTYPE_IPV4) {
        return Err(Reason::NotIpv4.into());
    }
    if !packet.pull(IPV4) {
        return Err(Reason::Malformed.into());
    }
    let outer = Ipv4::read(packet, 0).ok_or(Reason::Malformed)?;
    if outer.destination().raw() != settings::local() {
        return receive_unencapsulated(packet, 0);
    }
    if !outer.is_without_options()
        || outer.protocol() != protocol::UDP
        || packet.load(IPV4 + udp::offset::DESTINATION_PORT) != Some(settings::port())
    {
        return Err(Reason::Malformed.into());
    }
    check::known(outer.source())?;
    if !packet.pull(INNER + IPV4) {
        return Err(Reason::Malformed.into());
    }
    let inner = Ipv4::read(packet, INNER).ok_or(Reason::Malformed)?;
    let length = usize::from(inner.length());
    let available = packet.len() as usize - INNER;
    // What a GSO frame has behind its packet are other packets. Of one beyond 65,535 bytes the length is zero (BIG TCP).
    let is_whole = match packet.gso_size() {
        0 => length >= inner.header_length() && length <= available,
        _ => length == available || length == 0,
    };
    if inner.version() != 4 || inner.header_length() < IPV4 || !is_whole {
        return Err(Reason::Malformed.into());
    }
    may_send(outer.source(), inner.source())?;
    if !settings::in_subnet(inner.destination()) {
        return Err(Reason::NotOurSubnet.into());
    }
    let tos = ecn::decapsulated(outer.tos(), inner.tos())?;
    packet.remove_headers(INNER).map_err(|_| Reason::Failed)?;
    packet.distrust_checksum();
    if tos != inner.tos() {
        inner.store_tos(packet, 0, tos)?;
    }
    Ok(Outcome::Carried(TC_ACT_UNSPEC))
}

/// Bytes of outer headers that a packet arrives with: none, unless it is addressed to this host.
#[inline(always)]
pub(super) fn outer_length(packet: &Packet<'_>) -> usize {
    let destination = packet.read(ipv4::offset::DESTINATION).map(Addr4::new);
    if destination.is_some_and(|to| to.raw() == settings::local()) { datagram::LENGTH } else { 0 }
}
