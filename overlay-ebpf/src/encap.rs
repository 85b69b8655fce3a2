//! Container to underlay, top to bottom; the steps are those of docs/packet-flow.md, "Out".
use overlay_common::{
    Addr4, Reason, SETTING_STACK_ONLY,
    wire::{ETHERNET, IPV4},
};

use crate::{
    count,
    fib::{self, NoWay, Way},
    flow,
    frame::Frame as _,
    icmp,
    ipv4::{IPPROTO_UDP, segment_length},
    maps, outer,
    packet::Packet,
    settings,
    verdict::{Answer, Exit, Outcome},
};

#[inline(always)]
pub(crate) fn encap(packet: &Packet<'_>) -> Answer<Outcome> {
    // Out 1. What is not IPv4 to another host's part of Network is not ours.
    if !packet.is_ipv4() || !packet.pull(ETHERNET + IPV4) {
        return Err(Exit::NotOurs);
    }
    let destination = packet.read(ETHERNET + 16).map(Addr4::new).ok_or(Exit::NotOurs)?;
    if !settings::in_network(destination) || settings::in_subnet(destination) || is_broadcast(destination) {
        return not_wrapped(packet);
    }
    let inner = packet.ipv4(ETHERNET).map_err(Reason::from)?;

    // Out 2. The source must be a container of ours, on this interface.
    if !settings::in_subnet(inner.source) {
        let spoofed = settings::in_network(inner.source);
        return Err(if spoofed { Reason::SourceNotOurs } else { Reason::ForeignSource }.into());
    }
    // The first packet follows the ARP exchange by microseconds, the agent's learning by some ten more: the stack
    // carries what is not learned yet.
    let endpoint = maps::endpoint(inner.source).ok_or(Reason::Unlearned)?;
    if endpoint.ifindex != packet.ifindex() {
        // Replaced under the same address while no agent runs to learn it: nobody is left to be stolen from.
        let gone = !packet.exists(endpoint.ifindex);
        return Err(if gone { Reason::EndpointGone } else { Reason::SourceElsewhere }.into());
    }
    if packet.read::<[u8; 6]>(0) != Some(endpoint.gateway_mac) {
        // Sent to another router on the bridge, or broadcast: the bridge's business.
        return Err(Exit::NotOurs);
    }
    if settings::has(SETTING_STACK_ONLY) {
        return Err(Reason::StackOnly.into());
    }

    // Out 3. One connection, one path.
    if inner.is_fragment() {
        return Err(Reason::InnerFragment.into());
    }
    if flow::is_noted(packet, ETHERNET, &inner) {
        return Err(Reason::StackFlow.into());
    }

    // Out 4. Whose subnet is it?
    let Some(peer) = maps::peer(destination) else {
        return icmp::network_unreachable(packet, &inner);
    };

    // Out 5. The stack answers time exceeded.
    if inner.ttl <= 1 {
        return Err(Reason::TtlExpired.into());
    }

    // Out 6. Next hop and path MTU, by the length of one segment; encapsulated, unless the peer is the next hop itself.
    let source_port = outer::source_port(packet);
    let way = match fib::way(packet, &peer, source_port, segment_length(packet, ETHERNET, &inner)) {
        Ok(way) => way,
        Err(NoWay::Stack) => return Err(Reason::NoNextHop.into()),
        Err(NoWay::TooBig(_)) if !inner.dont_fragment() => return Err(Reason::NeedsFragmentation.into()),
        Err(NoWay::TooBig(mtu)) => return icmp::fragmentation_needed(packet, &inner, mtu),
    };

    // Out 7. Everything that reads the frame comes before this: the room for outer headers moves it.
    // Out 8. Headers. From here on the frame is half ours: a failure drops it.
    let size = packet.size(ETHERNET);
    let next_hop = match way {
        Way::Wrapped(next_hop) => {
            outer::wrap(packet, &inner, &peer, source_port)?;
            next_hop
        }
        Way::Plain(next_hop) => {
            outer::route(packet, &inner)?;
            next_hop
        }
    };
    count::add_sent(peer.slot, size);
    Ok(Outcome::Carried(Packet::redirect_neighbour(next_hop.ifindex, next_hop.address)))
}

/// What the bridge hands up, whichever port it came through: only forgery is judged. A port's own program has judged all
/// else; ports without one (taps, physical ones, a veth not attached yet) are the stack's.
#[inline(always)]
pub(crate) fn bridge(packet: &Packet<'_>) -> Answer<Outcome> {
    if !packet.is_ipv4() || !packet.pull(ETHERNET + IPV4) {
        return Err(Exit::NotOurs);
    }
    not_wrapped(packet)
}

/// Not ours, unless a container plays another host's container, or the host: what it wraps itself and sends to a peer is
/// masqueraded, like all that leaves the host, and arrives from this host's address; what it wraps in a peer's name and
/// sends to this host is taken by the tunnel's socket, which listens on every address. Either would pass the peer check at
/// its destination. The header must be readable.
#[inline(always)]
fn not_wrapped(packet: &Packet<'_>) -> Answer<Outcome> {
    let header: [u8; IPV4] = packet.read(ETHERNET).ok_or(Exit::NotOurs)?;
    // Whomever it is to, a container of the same bridge too: the answers would be kept to the stack (overlay_note).
    let [.., a, b, c, d, e, f, g, h] = header;
    let source = Addr4::new([a, b, c, d]);
    if settings::is_another_hosts(source) {
        return Err(Reason::SourceNotOurs.into());
    }
    let is_later_fragment = (header[6] & 0x1f) | header[7] != 0;
    if header[9] != IPPROTO_UDP || is_later_fragment {
        return Err(Exit::NotOurs);
    }
    let options = usize::from(header[0] & 0x0f) * 4;
    let is_vtep = |octets| maps::vtep(Addr4::new(octets)).is_some();
    if packet.load(ETHERNET + options + 2) == Some(settings::port())
        && (is_vtep([e, f, g, h]) || is_vtep([a, b, c, d]))
    {
        return Err(Reason::ForgedTunnel.into());
    }
    Err(Exit::NotOurs)
}

/// The last address of Network.
#[inline(always)]
fn is_broadcast(address: Addr4) -> bool {
    address.raw() == settings::network() | !settings::network_mask()
}
