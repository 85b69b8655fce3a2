//! Container to underlay, top to bottom; the steps are those of docs/packet-flow.md, "Out".
use overlay_common::{
    Addr4, Peer, Reason, SETTING_OUTER_DF, SETTING_STACK_ONLY, checksum,
    wire::{self, ETHERNET, IPV4, OVERHEAD, Outer},
};

use crate::{
    count,
    fib::{self, NoNextHop},
    flow,
    frame::Frame as _,
    icmp,
    ipv4::{IPPROTO_UDP, Ipv4, transport_length},
    maps,
    packet::Packet,
    programs::Outcome,
    settings,
};

/// The outer headers and the part of the inner IPv4 header that changes (TTL and checksum), written in one piece.
const WRITTEN: usize = OVERHEAD + 12;

#[inline(always)]
pub(crate) fn encap(packet: &Packet<'_>) -> Result<Outcome, Reason> {
    // Out 1. What is not IPv4 to another host's part of Network is not ours.
    if !packet.is_ipv4() || !packet.pull(ETHERNET + IPV4) {
        return Ok(Outcome::NotOurs);
    }
    let Some(destination) = packet.read::<[u8; 4]>(ETHERNET + 16).map(Addr4::new) else {
        return Ok(Outcome::NotOurs);
    };
    if !settings::in_network(destination) || settings::in_subnet(destination) || is_broadcast(destination) {
        return not_wrapped(packet);
    }
    let inner = packet.ipv4(ETHERNET)?;

    // Out 2. The source must be a container of ours, on this interface.
    if !settings::in_subnet(inner.source) {
        let spoofed = settings::in_network(inner.source);
        return Err(if spoofed { Reason::SourceNotOurs } else { Reason::ForeignSource });
    }
    // The first packet follows the ARP exchange by microseconds, the agent's learning by some ten more: the stack
    // carries what is not learned yet.
    let endpoint = maps::endpoint(inner.source).ok_or(Reason::Unlearned)?;
    if endpoint.ifindex != packet.ifindex() {
        // Replaced under the same address while no agent runs to learn it: nobody is left to be stolen from.
        let gone = !packet.exists(endpoint.ifindex);
        return Err(if gone { Reason::EndpointGone } else { Reason::SourceElsewhere });
    }
    if packet.read::<[u8; 6]>(0) != Some(endpoint.gateway_mac) {
        // Sent to another router on the bridge, or broadcast: the bridge's business.
        return Ok(Outcome::NotOurs);
    }
    if settings::has(SETTING_STACK_ONLY) {
        return Err(Reason::StackOnly);
    }

    // Out 3. One connection, one path.
    if inner.is_fragment() {
        return Err(Reason::InnerFragment);
    }
    if flow::is_noted(packet, ETHERNET, &inner) {
        return Err(Reason::StackFlow);
    }

    // Out 4. Whose subnet is it?
    let Some(peer) = maps::peer(settings::subnet_of(destination)) else {
        return icmp::network_unreachable(packet, &inner);
    };

    // Out 5. The stack answers time exceeded.
    if inner.ttl <= 1 {
        return Err(Reason::TtlExpired);
    }

    // Out 6. Next hop and path MTU, by the length of one segment on the wire.
    let source_port = wire::source_port(packet.hash(), settings::port_min(), settings::port_count());
    let length = wire_length(packet, &inner);
    let next_hop = match fib::next_hop(packet, Addr4::new(peer.outer), source_port, length) {
        Ok(next_hop) => next_hop,
        Err(NoNextHop::Stack) => return Err(Reason::NoNextHop),
        Err(NoNextHop::TooBig(_)) if !inner.dont_fragment() => return Err(Reason::NeedsFragmentation),
        Err(NoNextHop::TooBig(mtu)) => return icmp::fragmentation_needed(packet, &inner, mtu),
    };

    // Out 7. Everything that reads the frame comes before this: the room moves it.
    let size = packet.size(ETHERNET);
    packet.make_room()?;

    // Out 8. From here on the frame is half ours: a failure drops it.
    packet.store(ETHERNET, &written(&inner, &peer, source_port))?;
    count::add_sent(peer.slot, size);
    Ok(Outcome::Carried(Packet::redirect_neighbour(next_hop.ifindex, next_hop.address)))
}

/// What the bridge hands up, whichever port it came through: only forgery is judged. A port's own program has judged all
/// else; ports without one (taps, physical ones, a veth not attached yet) are the stack's.
#[inline(always)]
pub(crate) fn bridge(packet: &Packet<'_>) -> Result<Outcome, Reason> {
    if !packet.is_ipv4() || !packet.pull(ETHERNET + IPV4) {
        return Ok(Outcome::NotOurs);
    }
    if let Some(source) = packet.read::<[u8; 4]>(ETHERNET + 12).map(Addr4::new)
        && settings::in_network(source)
        && !settings::in_subnet(source)
    {
        return Err(Reason::SourceNotOurs);
    }
    not_wrapped(packet)
}

/// Not ours, unless a container plays the host: what it wraps itself and sends to a peer is masqueraded, like all that
/// leaves the host, and arrives from this host's address; what it wraps in a peer's name and sends to this host is taken
/// by the tunnel's socket, which listens on every address. Either would pass the peer check at its destination. The
/// header must be readable.
#[inline(always)]
fn not_wrapped(packet: &Packet<'_>) -> Result<Outcome, Reason> {
    let Some(header) = packet.read::<[u8; IPV4]>(ETHERNET) else {
        return Ok(Outcome::NotOurs);
    };
    let is_later_fragment = (header[6] & 0x1f) | header[7] != 0;
    if header[9] != IPPROTO_UDP || is_later_fragment {
        return Ok(Outcome::NotOurs);
    }
    let options = usize::from(header[0] & 0x0f) * 4;
    let [_, _, _, _, _, _, _, _, _, _, _, _, a, b, c, d, e, f, g, h] = header;
    let is_vtep = |octets| maps::vtep(Addr4::new(octets)).is_some();
    if packet.load(ETHERNET + options + 2) == Some(settings::port())
        && (is_vtep([e, f, g, h]) || is_vtep([a, b, c, d]))
    {
        return Err(Reason::ForgedTunnel);
    }
    Ok(Outcome::NotOurs)
}

/// The last address of Network.
#[inline(always)]
fn is_broadcast(address: Addr4) -> bool {
    address.raw() == settings::network() | !settings::network_mask()
}

/// Bytes of the outer IP packet of one segment.
#[inline(always)]
fn wire_length(packet: &Packet<'_>, inner: &Ipv4) -> u32 {
    let segment = packet.gso_size();
    let inner_length = if segment == 0 {
        u32::from(inner.length)
    } else {
        segment + IPV4 as u32 + transport_length(packet, ETHERNET + IPV4, inner.protocol)
    };
    inner_length + OVERHEAD as u32
}

#[inline(always)]
fn written(inner: &Ipv4, peer: &Peer, source_port: u16) -> [u8; WRITTEN] {
    let outer = Outer {
        source: settings::local().to_ne_bytes(),
        destination: peer.outer,
        // RFC 6040 section 4.1, normal mode: the outer ECN field is a copy of the inner one.
        tos: inner.tos & 0x03,
        // SAFETY: no arguments, no preconditions.
        identification: unsafe { aya_ebpf::helpers::bpf_get_prandom_u32() } as u16,
        dont_fragment: settings::has(SETTING_OUTER_DF),
        source_port,
        port: settings::port(),
        vni: settings::vni(),
        inner_destination_mac: peer.vtep_mac,
        inner_source_mac: settings::vtep_mac(),
        inner_length: u32::from(inner.length),
    };
    let mut bytes = [0; WRITTEN];
    if let Some(headers) = bytes.first_chunk_mut() {
        outer.write(headers);
    }

    // The sending host is a router to the container: it takes one from the TTL (RFC 1812 section 5.3.1).
    let [protocol, ttl] = [inner.protocol, inner.ttl - 1];
    let sum = checksum::update(
        inner.checksum,
        u16::from_be_bytes([inner.ttl, protocol]),
        u16::from_be_bytes([ttl, protocol]),
    );
    bytes[OVERHEAD] = 0x45;
    bytes[OVERHEAD + 1] = inner.tos;
    bytes[OVERHEAD + 2..OVERHEAD + 4].copy_from_slice(&inner.length.to_be_bytes());
    bytes[OVERHEAD + 4..OVERHEAD + 6].copy_from_slice(&inner.identification);
    bytes[OVERHEAD + 6..OVERHEAD + 8].copy_from_slice(&inner.fragment.to_be_bytes());
    bytes[OVERHEAD + 8] = ttl;
    bytes[OVERHEAD + 9] = protocol;
    bytes[OVERHEAD + 10..OVERHEAD + 12].copy_from_slice(&sum.to_be_bytes());
    bytes
}
