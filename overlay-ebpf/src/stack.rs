//! What goes through overlay0: the slow tier. With VXLAN it is the kernel's own tunnel device, the oracle of the fast path;
//! with bare IPv4 in UDP a TUN, whose packets these programs take to the peer themselves.
use aya_ebpf::bindings::TC_ACT_UNSPEC;
use overlay_common::{
    Addr4, Hook, Peer, Reason, SETTING_DIRECT, SETTING_OUTER_DF,
    wire::{DATAGRAM, ETHERNET, IPV4, OUTER_TTL},
};

use crate::{
    check, ecn,
    fib::{self, NextHop, NoWay, Way},
    flow,
    frame::Frame as _,
    ipv4::{IPPROTO_TCP, IPPROTO_UDP, segment_length, transport_length},
    maps, outer,
    packet::Packet,
    settings,
    verdict::{Answer, Exit, Outcome},
};

/// overlay0's egress: which peer, by which way; notes the connection.
#[inline(always)]
pub(crate) fn send(packet: &Packet<'_>) -> Answer<Outcome> {
    let at = settings::device_header();
    if !packet.is_ipv4() || !packet.pull(at + IPV4) {
        // Without a tunnel key a VXLAN device drops it and counts that; at a TUN the agent throws it away.
        return Err(Exit::NotOurs);
    }
    let header: [u8; IPV4] = packet.read(at).ok_or(Exit::NotOurs)?;
    let (source, destination) = addresses(&header);
    if settings::is_another_hosts(source) {
        return Err(Reason::SourceNotOurs.into());
    }
    // No peer is ever in the own subnet: what the route to Network catches when the bridge is gone ends here.
    let peer = maps::peer(destination).ok_or(Reason::NoPeer)?;
    // Only what may also go by the fast path needs a note: containers' connections, but not those of the host, whose
    // addresses are never an endpoint's. IPv4 options are no reason to stop here, and have no place in the fast path.
    if settings::is_container(source)
        && let Ok(ip) = packet.ipv4(at)
    {
        flow::note(packet, Hook::Send, at, &ip);
    }
    if settings::is_udp() {
        return send_datagram(packet, &header, &peer);
    }
    if settings::has(SETTING_DIRECT)
        && let Some(next_hop) = fib::neighbour(packet, &peer, outer::source_port(packet))
    {
        // It has a link header, the device's own, and a router has had it.
        return leave_by(packet, &next_hop);
    }
    // Route, path MTU, fragments and source port are the kernel's.
    let dont_fragment = settings::has(SETTING_OUTER_DF) && fits(packet, &peer);
    packet.set_tunnel(Addr4::new(peer.outer), OUTER_TTL, dont_fragment)?;
    packet.store(0, &peer.vtep_mac)?;
    Ok(Outcome::Carried(TC_ACT_UNSPEC))
}

/// Whether the path takes the packet whole, as far as is known. What is larger must not have DF, even if the network's outer
/// packets have: the kernel would drop it here, and tell nobody but itself.
#[inline(always)]
fn fits(packet: &Packet<'_>, peer: &Peer) -> bool {
    let Ok(ip) = packet.ipv4(ETHERNET) else { return false };
    fib::way(packet, peer, outer::source_port(packet), segment_length(packet, ETHERNET, &ip)).is_ok()
}

/// A packet at a TUN: to the peer by our own doing, so that it needs no agent. The rest goes on to the agent as it is, one
/// segment after the other: what the link cannot take whole, which the kernel fragments behind the agent's socket, and GSO
/// frames of anything but TCP.
#[inline(always)]
fn send_datagram(packet: &Packet<'_>, header: &[u8; IPV4], peer: &Peer) -> Answer<Outcome> {
    if is_wrapped_by_us(packet, header) {
        return Err(Reason::ForgedTunnel.into());
    }
    let source_port = outer::source_port(packet);
    let length = segment(packet, header);
    if let Some(next_hop) = fib::neighbour(packet, peer, source_port)
        && length <= packet.mtu_of(next_hop.ifindex)
    {
        packet.push_link_header()?;
        return leave_by(packet, &next_hop);
    }
    // A TUN has no checksum offload, so what a socket sends many at once (UDP_SEGMENT, Linux 6.11) has its checksums' place
    // noted where it will no longer be; and a container's own tunnel's frame cannot be told of one more tunnel around it.
    // Nor do outer headers hold the length of one beyond 65,535 bytes (BIG TCP).
    if packet.gso_size() != 0 && (header[9] != IPPROTO_TCP || header[2..4] == [0; 2]) {
        return Err(Reason::RoomRefused.into());
    }
    let next_hop = match fib::way(packet, peer, source_port, length) {
        Ok(Way::Wrapped(next_hop)) => next_hop,
        Ok(Way::Plain(_)) | Err(NoWay::Stack) => return Err(Reason::NoNextHop.into()),
        Err(NoWay::TooBig(_)) => {
            // A path MTU the kernel has learned of. Without DF a router on the way fragments, as it does for the kernel.
            let next_hop = fib::any_length(packet, peer, source_port);
            let fits = |next_hop: &NextHop| length + DATAGRAM as u32 <= packet.mtu_of(next_hop.ifindex);
            match next_hop.filter(fits) {
                Some(next_hop) if !settings::has(SETTING_OUTER_DF) => next_hop,
                _ => return Err(Reason::NeedsFragmentation.into()),
            }
        }
    };
    outer::wrap_routed(packet, header, peer, source_port)?;
    leave_by(packet, &next_hop)
}

/// A datagram of this host's own tunnel, which its routes lead into the tunnel: it would never leave it.
#[inline(always)]
fn is_wrapped_by_us(packet: &Packet<'_>, header: &[u8; IPV4]) -> bool {
    let (source, _) = addresses(header);
    header[9] == IPPROTO_UDP
        && source.raw() == settings::local()
        && packet.load(IPV4 + 2) == Some(settings::port())
}

/// Length of one segment's IP packet. One with options is never a GSO frame's.
#[inline(always)]
fn segment(packet: &Packet<'_>, header: &[u8; IPV4]) -> u32 {
    match packet.ipv4(0) {
        Ok(ip) => segment_length(packet, 0, &ip),
        Err(_) if header[0] == 0x45 && packet.gso_size() != 0 => {
            // BIG TCP: the header's length is zero, the segments' will not be.
            packet.gso_size() + IPV4 as u32 + transport_length(packet, IPV4, header[9])
        }
        Err(_) => u32::from(u16::from_be_bytes([header[2], header[3]])),
    }
}

#[inline(always)]
fn leave_by(packet: &Packet<'_>, next_hop: &NextHop) -> Answer<Outcome> {
    packet.forget_route()?;
    Ok(Outcome::Carried(Packet::redirect_neighbour(next_hop.ifindex, next_hop.address)))
}

/// overlay0's ingress: what tier 2 left to the stack (fragments, other devices, connections of the stack) under the same
/// checks. No frame enters the stack unchecked.
#[inline(always)]
pub(crate) fn receive(packet: &Packet<'_>) -> Answer<Outcome> {
    if settings::is_udp() {
        return receive_datagram(packet);
    }
    let Some((vni, outer)) = packet.tunnel() else {
        // The tunnel's frames all have a key; what has none overlay_decap handed over.
        return receive_plain(packet, ETHERNET);
    };
    if vni != settings::vni() {
        return Err(Reason::ForeignVni.into());
    }
    check::known(outer)?;
    // A VLAN tag has been taken off the bytes already, and is the frame's still.
    if !packet.is_ipv4() {
        return Err(Reason::NotIpv4.into());
    }
    if !packet.pull(ETHERNET + IPV4) {
        return Err(Reason::Malformed.into());
    }
    let ethernet: [u8; ETHERNET] = packet.read(0).ok_or(Reason::Malformed)?;
    let (source, destination) = addresses(&packet.read(ETHERNET).ok_or(Reason::Malformed)?);
    may_send(outer, source)?;
    if ethernet[..6] != settings::vtep_mac() {
        return Err(Reason::WrongVtepMac.into());
    }
    if !settings::in_subnet(destination) {
        return Err(Reason::NotOurSubnet.into());
    }
    Ok(Outcome::Carried(TC_ACT_UNSPEC))
}

/// A datagram to our port, with its outer headers, at a TUN: from overlay_decap, which leaves it as it came, or from the
/// agent, whose socket took it. Unwrapped here, once it has passed the checks.
#[inline(always)]
fn receive_datagram(packet: &Packet<'_>) -> Answer<Outcome> {
    const INSIDE: usize = DATAGRAM;
    if !packet.is_ipv4() {
        return Err(Reason::NotIpv4.into());
    }
    if !packet.pull(IPV4) {
        return Err(Reason::Malformed.into());
    }
    let header: [u8; IPV4] = packet.read(0).ok_or(Reason::Malformed)?;
    let (outer, to) = addresses(&header);
    if to.raw() != settings::local() {
        return receive_plain(packet, 0);
    }
    if header[0] != 0x45 || header[9] != IPPROTO_UDP || packet.load(IPV4 + 2) != Some(settings::port()) {
        return Err(Reason::Malformed.into());
    }
    check::known(outer)?;
    if !packet.pull(INSIDE + IPV4) {
        return Err(Reason::Malformed.into());
    }
    let inner: [u8; IPV4] = packet.read(INSIDE).ok_or(Reason::Malformed)?;
    let header_length = usize::from(inner[0] & 0x0f) * 4;
    let length = usize::from(u16::from_be_bytes([inner[2], inner[3]]));
    let available = packet.len() as usize - INSIDE;
    // What a GSO frame has behind its packet are other packets. Of one beyond 65,535 bytes the length is zero (BIG TCP).
    let is_whole = match packet.gso_size() {
        0 => length >= header_length && length <= available,
        _ => length == available || length == 0,
    };
    if inner[0] >> 4 != 4 || header_length < IPV4 || !is_whole {
        return Err(Reason::Malformed.into());
    }
    let (source, destination) = addresses(&inner);
    may_send(outer, source)?;
    if !settings::in_subnet(destination) {
        return Err(Reason::NotOurSubnet.into());
    }
    let tos = ecn::unwrapped(header[1], inner[1])?;
    packet.take_room(INSIDE).map_err(|_| Reason::Failed)?;
    packet.distrust_checksum();
    if tos != inner[1] {
        let sum = u16::from_be_bytes([inner[10], inner[11]]);
        packet.store(1, &[tos])?;
        packet.store(10, &ecn::checksum(sum, inner[0], inner[1], tos))?;
    }
    Ok(Outcome::Carried(TC_ACT_UNSPEC))
}

/// Bytes of the outer headers that a packet arrives at overlay0 with: the kernel's own tunnel has taken them off already.
#[inline(always)]
pub(crate) fn wrapping(packet: &Packet<'_>) -> usize {
    let is_wrapped = settings::is_udp() && packet.read(16) == Some(settings::local().to_ne_bytes());
    if is_wrapped { DATAGRAM } else { 0 }
}

/// What came without encapsulation, its IP header at `offset`, and was handed over by `overlay_decap`.
#[inline(always)]
fn receive_plain(packet: &Packet<'_>, offset: usize) -> Answer<Outcome> {
    if !settings::has(SETTING_DIRECT) || !packet.is_ipv4() || !packet.pull(offset + IPV4) {
        return Err(Reason::UnknownPeer.into());
    }
    let (source, destination) = addresses(&packet.read(offset).ok_or(Reason::Malformed)?);
    check::plain(source).map_err(|exit| match exit {
        // What has a source outside Network is not handed over.
        Exit::NotOurs => Reason::UnknownPeer,
        Exit::Because(reason) => reason,
    })?;
    if !settings::in_subnet(destination) {
        return Err(Reason::NotOurSubnet.into());
    }
    Ok(Outcome::Carried(TC_ACT_UNSPEC))
}

/// Whether the peer at this underlay address may send a packet with this source into the stack.
#[inline(always)]
fn may_send(outer: Addr4, source: Addr4) -> Result<(), Reason> {
    match check::peer(outer, source) {
        Ok(_) | Err(Reason::ForeignSource) => Ok(()),
        Err(reason) => Err(reason),
    }
}

/// Verdict that has a frame of the underlay device arrive at overlay0. A VXLAN device's are addressed to its own MAC.
#[inline(always)]
pub(crate) fn hand_over(packet: &Packet<'_>) -> Result<i32, Reason> {
    if !settings::is_udp() {
        packet.store(0, &settings::vtep_mac())?;
        packet.accept();
    }
    Ok(Packet::redirect_in(settings::device()))
}

/// Source and destination.
#[inline(always)]
fn addresses(header: &[u8; IPV4]) -> (Addr4, Addr4) {
    let [.., a, b, c, d, e, f, g, h] = *header;
    (Addr4::new([a, b, c, d]), Addr4::new([e, f, g, h]))
}
