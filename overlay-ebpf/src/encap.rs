//! Container to underlay, top to bottom. The steps are those of docs/packet-flow.md, "Out".
use overlay_common::{
    ENDPOINT_FOREIGN_INGRESS, FAST_PATH_OFF, Reason,
    header::{ethernet, protocol, udp},
    wire::ETHERNET,
};

use crate::{
    count::{self, Size},
    fib::{self, NoPath, Path},
    flow,
    frame::Frame as _,
    icmp,
    ip::{Family, Header as _, segment_length},
    maps::Lookups as _,
    packet::Packet,
    same_host,
    settings::{self, Prefixes as _},
    tunnel,
    verdict::{Answer, Exit, Outcome},
};

/// `size` is the packet's, as it is counted.
#[inline(always)]
pub(crate) fn encap<F: Family>(packet: &Packet<'_>, size: Size) -> Answer<Outcome> {
    let answer = carry::<F>(packet, size);
    if let Err(Exit::Because(
        Reason::NeedsFragmentation | Reason::NoNextHop | Reason::HeadroomRefused | Reason::WantsChecksum,
    )) = answer
    {
        flow::keep::<F>(packet, ETHERNET);
    }
    if let Err(why) = &answer {
        let is_for_its_connection = matches!(why, Exit::Because(Reason::StackFlow | Reason::NotEstablished));
        flow::note_left::<F>(packet, ETHERNET, is_for_its_connection);
    }
    answer
}

/// Answers a packet that [`encap`] has handed over for that.
#[inline(always)]
pub(crate) fn answer<F: Family>(packet: &Packet<'_>) -> Answer<Outcome> {
    let answer = icmp::as_wanted::<F>(packet);
    if let Err(Exit::Because(Reason::NeedsFragmentation)) = answer {
        keep_apart::<F>(packet);
    }
    if answer.is_err() {
        flow::note_left::<F>(packet, ETHERNET, false);
    }
    answer
}

/// [`flow::keep`] as a function of its own in the program too: inlined, the compiler keeps the address of a field of the context in a
/// register, which the verifier does not let a program read by.
#[inline(never)]
fn keep_apart<F: Family>(packet: &Packet<'_>) {
    flow::keep::<F>(packet, ETHERNET);
}

#[inline(always)]
fn carry<F: Family>(packet: &Packet<'_>, size: Size) -> Answer<Outcome> {
    // Out 1. What is not of this family, or not to another host's part of the overlay is not ours.
    if !packet.carries(F::ETHERTYPE) || !packet.pull(ETHERNET + F::HEADER) {
        return Err(Exit::NotOurs);
    }
    let inner = F::Header::read(packet, ETHERNET).ok_or(Exit::NotOurs)?;
    let destination = inner.destination();
    if !destination.is_another_hosts() || destination.is_broadcast() {
        if let Some(verdict) = same_host::hand_over::<F>(packet, &inner) {
            return Ok(Outcome::Instead(verdict, Reason::SameHost));
        }
        return check_forgery::<F>(packet, &inner);
    }
    inner.check(packet, ETHERNET).map_err(Reason::from)?;

    // Out 2. The source must be a container of ours, on this interface.
    if !inner.source().in_subnet() {
        let is_spoofed = inner.source().is_overlays();
        return Err(if is_spoofed { Reason::SourceNotOurs } else { Reason::ForeignSource }.into());
    }
    // The first packet follows the ARP exchange by microseconds, the agent's learning by some ten more: the stack
    // carries what is not learned yet.
    let endpoint = inner.source().endpoint().ok_or(Reason::Unlearned)?;
    if endpoint.ifindex != packet.ifindex() {
        // Replaced under the same address while no agent runs to learn it: nobody is left to be stolen from.
        let is_gone = !packet.exists(endpoint.ifindex);
        return Err(if is_gone { Reason::EndpointGone } else { Reason::SourceAtWrongPort }.into());
    }
    let [a, b, c, d, e, f] = endpoint.gateway_mac;
    let gateway = [[a, b], [c, d], [e, f]].map(u16::from_ne_bytes);
    if packet.read(ethernet::offset::DESTINATION) != Some(gateway) {
        // Sent to another router on the bridge, or broadcast: the bridge forwards it.
        return Err(Exit::NotOurs);
    }
    let fast_path = F::Address::fast_path();
    if fast_path == FAST_PATH_OFF {
        return Err(Reason::StackOnly.into());
    }
    // Somebody else's filter or program is behind this one, and must see the packet.
    if endpoint.flags & ENDPOINT_FOREIGN_INGRESS != 0 {
        return Err(Reason::ForeignFilter.into());
    }

    // Out 3. One connection, one path.
    if inner.is_fragment() {
        return Err(Reason::InnerFragment.into());
    }
    let connection = flow::keeps_to_stack::<F>(packet, ETHERNET, &inner, fast_path)?;

    // Out 4. Whose subnet is it?
    let Some(peer) = destination.peer() else {
        if !fib::leads_into_overlay(packet, inner.source(), destination) {
            // The host has an address there, or a route of its own.
            return check_forgery::<F>(packet, &inner);
        }
        return icmp::network_unreachable::<F>(packet, &inner);
    };

    // Out 5. The stack answers time exceeded.
    if inner.ttl() <= 1 {
        return Err(Reason::TtlExpired.into());
    }

    // Out 6. Next hop and path MTU, by the length of one segment; encapsulated, unless the peer is the next hop itself.
    let source_port = tunnel::source_port::<F>(packet, &inner, &connection);
    let length = segment_length::<F>(packet, ETHERNET, &inner);
    let path = match fib::path_of_many::<F>(packet, &peer, source_port, length) {
        Ok(path) => path,
        Err(NoPath::Stack) => return Err(Reason::NoNextHop.into()),
        Err(NoPath::TooBig(_)) if !inner.dont_fragment() => {
            return Err(Reason::NeedsFragmentation.into());
        }
        Err(NoPath::TooBig(mtu)) => return icmp::too_big::<F>(packet, &inner, length, mtu),
    };

    // Out 7. Everything that reads the frame comes before this: making headroom moves it.
    // Out 8. Headers. From here on the frame is half changed: a failure drops it.
    let next_hop = match path {
        Path::Encapsulated(_) if !tunnel::takes_zero_checksum::<F>(peer.flags) => {
            return Err(Reason::WantsChecksum.into());
        }
        Path::Encapsulated(next_hop) => {
            tunnel::encapsulate::<F>(packet, &inner, &peer, source_port, next_hop.macs)?;
            next_hop
        }
        Path::Unencapsulated(next_hop) => {
            inner.store_forwarded(packet, ETHERNET)?;
            next_hop.resolved_by_kernel()
        }
    };
    count::add_sent(peer.slot, size);
    Ok(Outcome::Carried(if next_hop.macs[3..] == [0; 3] {
        Packet::redirect_neighbour(next_hop.ifindex, next_hop.address)
    } else {
        Packet::redirect(next_hop.ifindex)
    }))
}

/// What the bridge hands up the stack, from whichever port it came. Only forgery is looked for: a port's own program has
/// checked all else, and what ports without one send (taps, physical ones, a veth not attached yet) is left to the stack.
#[inline(always)]
pub(crate) fn bridge<F: Family>(packet: &Packet<'_>) -> Answer<Outcome> {
    if !packet.carries(F::ETHERTYPE) || !packet.pull(ETHERNET + F::HEADER) {
        return Err(Exit::NotOurs);
    }
    let header = F::Header::read(packet, ETHERNET).ok_or(Exit::NotOurs)?;
    check_forgery::<F>(packet, &header)
}

/// Drops what a container sends in the name of another host, or of another host's container; everything else is not ours. A
/// packet that the container has encapsulated itself and sends to a peer would be masqueraded, like all that leaves the host,
/// and arrive from this host's address. One that it sends to this host in a peer's name would be taken by the tunnel's socket,
/// which listens on every address. Either would pass the check of peers at its destination. Nothing about the header need have
/// been checked.
#[inline(always)]
fn check_forgery<F: Family>(packet: &Packet<'_>, header: &F::Header) -> Answer<Outcome> {
    // This holds for a packet to a container of the same bridge, too: overlay_track would record its connection, and the other
    // host's real answers to that container would have to take the stack.
    if header.source().is_another_hosts() {
        return Err(Reason::SourceNotOurs.into());
    }
    if header.protocol() != protocol::UDP || header.is_later_fragment() {
        return Err(Exit::NotOurs);
    }
    let port = ETHERNET + header.header_length() + udp::offset::DESTINATION_PORT;
    let is_peers = |address: F::Address| address.vtep().is_some();
    if packet.load(port) == Some(settings::port())
        && (is_peers(header.destination()) || is_peers(header.source()))
    {
        return Err(Reason::ForgedTunnel.into());
    }
    Err(Exit::NotOurs)
}
