//! overlay0 as a TUN, for bare IP in UDP: no device of the kernel's knows that format, so these programs encapsulate what the
//! stack sends, and decapsulate what it is to receive.
use aya_ebpf::bindings::TC_ACT_UNSPEC;
use overlay_common::{
    PeerEntry, Reason, SETTING_DIRECT, SETTING_OUTER_DF,
    header::{protocol, udp},
};

use super::both::{leave_by, may_send, receive_unencapsulated};
use crate::{
    check, ecn,
    fib::{self, NextHop, NoPath, Path},
    frame::Frame as _,
    icmp,
    ip::{Family, Header as _, segment_length, transport_length},
    packet::Packet,
    settings::{self, Prefixes as _},
    tunnel::{self, datagram},
    verdict::{Answer, Outcome},
};

/// Sends the packet to the peer without the agent's help. What is left to the agent gets to it as it is, one segment after the
/// other: packets that the link does not take whole, which the kernel fragments behind the agent's socket, and GSO frames of
/// anything but TCP.
#[inline(always)]
pub(super) fn send<F: Family>(
    packet: &Packet<'_>,
    header: &F::Header,
    peer: &PeerEntry<F::Address>,
) -> Answer<Outcome> {
    if is_own_datagram::<F>(packet, header) {
        return Err(Reason::ForgedTunnel.into());
    }
    let source_port = tunnel::source_port_of::<F>(packet, 0, header);
    let length = longest_segment::<F>(packet, header);
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
    let next_hop = match fib::path::<F>(packet, peer, source_port, length) {
        Ok(Path::Encapsulated(next_hop)) => next_hop,
        Ok(Path::Unencapsulated(_)) | Err(NoPath::Stack) => return Err(Reason::NoNextHop.into()),
        Err(NoPath::TooBig(mtu)) => {
            // A path MTU the kernel has learned of. Without DF a router on the way fragments, as it does for the kernel.
            let next_hop = fib::next_hop_of_any_length(packet, peer, source_port);
            let fits = |next_hop: &NextHop<F::Address>| {
                length + datagram::length::<F>() as u32 <= packet.mtu_of(next_hop.ifindex)
            };
            match next_hop.filter(fits) {
                Some(next_hop) if !settings::has(SETTING_OUTER_DF) => next_hop,
                _ => return refuse::<F>(packet, mtu),
            }
        }
    };
    datagram::encapsulate_forwarded::<F>(packet, header, peer, source_port)?;
    leave_by(packet, &next_hop)
}

/// A packet that the path does not take. With host-gw, overlay0 takes packets as large as the link does, but some paths take less,
/// and only this program knows: a peer behind a router gets datagrams, which are longer by their headers; the underlay's MTU may
/// have become smaller than overlay0's, for a peer on the same link too; and under `--outer-df` the kernel may know of a smaller
/// MTU on the way to a peer behind a router. So the program answers what has DF, as a router would, where the answer finds its way
/// back by overlay0. Everything else is fragmented behind the agent's socket.
#[inline(always)]
fn refuse<F: Family>(packet: &Packet<'_>, mtu: u32) -> Answer<Outcome> {
    match F::Header::checked(packet, 0) {
        Ok(ip) if settings::has(SETTING_DIRECT) && ip.dont_fragment() && ip.source().in_subnet() => {
            icmp::too_big_at_overlay0::<F>(packet, &ip, mtu)
        }
        _ => Err(Reason::NeedsFragmentation.into()),
    }
}

/// A datagram of this host's own tunnel, which the host's routes lead into the tunnel: it would go round for ever.
#[inline(always)]
fn is_own_datagram<F: Family>(packet: &Packet<'_>, header: &F::Header) -> bool {
    header.protocol() == protocol::UDP
        && header.source() == F::Address::local()
        && packet.load(F::HEADER + udp::offset::DESTINATION_PORT) == Some(settings::port())
}

/// Length of one segment's IP packet. A packet with options is never a GSO frame.
#[inline(always)]
fn longest_segment<F: Family>(packet: &Packet<'_>, header: &F::Header) -> u32 {
    match F::Header::checked(packet, 0) {
        Ok(ip) => segment_length::<F>(packet, 0, &ip),
        Err(_) if header.is_without_options() && packet.gso_size() != 0 => {
            // BIG TCP: the header's length is zero, the segments' will not be.
            packet.gso_size() + F::HEADER as u32 + transport_length(packet, F::HEADER, header.protocol())
        }
        Err(_) => u32::from(header.length()),
    }
}

/// A datagram to our port, with its outer headers: from overlay_decap, which leaves it as it came, or from the agent, whose
/// socket took it. Its packet is taken out here, once it has passed the checks.
#[inline(always)]
pub(super) fn receive<F: Family>(packet: &Packet<'_>) -> Answer<Outcome> {
    let inner_at = const { datagram::length::<F>() };
    if !packet.carries(F::ETHERTYPE) {
        return Err(F::OTHER_INSIDE.into());
    }
    if !packet.pull(F::HEADER) {
        return Err(Reason::Malformed.into());
    }
    let outer = F::Header::read(packet, 0).ok_or(Reason::Malformed)?;
    if outer.destination() != F::Address::local() {
        return receive_unencapsulated::<F>(packet, 0);
    }
    if !outer.is_without_options()
        || outer.protocol() != protocol::UDP
        || packet.load(F::HEADER + udp::offset::DESTINATION_PORT) != Some(settings::port())
    {
        return Err(Reason::Malformed.into());
    }
    check::known(outer.source())?;
    if !packet.pull(inner_at + F::HEADER) {
        return Err(Reason::Malformed.into());
    }
    let inner = F::Header::read(packet, inner_at).ok_or(Reason::Malformed)?;
    if !inner.is_whole(packet.len() as usize - inner_at, packet.gso_size()) {
        return Err(Reason::Malformed.into());
    }
    may_send(outer.source(), inner.source())?;
    if !inner.destination().in_subnet() {
        return Err(Reason::NotOurSubnet.into());
    }
    let tos = ecn::decapsulated(outer.tos(), inner.tos())?;
    packet.remove_headers(inner_at).map_err(|_| Reason::Failed)?;
    packet.distrust_checksum();
    if tos != inner.tos() {
        inner.store_tos(packet, 0, tos)?;
    }
    Ok(Outcome::Carried(TC_ACT_UNSPEC))
}

/// Bytes of outer headers that a packet arrives with: none, unless it is addressed to this host.
#[inline(always)]
pub(super) fn outer_length<F: Family>(packet: &Packet<'_>) -> usize {
    let destination: Option<F::Address> = packet.read(F::DESTINATION);
    if destination.is_some_and(|to| to == F::Address::local()) { datagram::length::<F>() } else { 0 }
}
