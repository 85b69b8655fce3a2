//! One connection, one path: which connections are stack flows, those that the stack has state for.
use overlay_common::{
    FLOW_BACKWARD, FLOW_CLOSING, FLOW_FORWARD, Flow, FlowKey, Hook, Reason,
    header::{icmp, protocol, tcp},
    wire::{ETHERNET, ETHERTYPE_IPV4, IPV4},
};

use crate::{count, frame::Frame, helpers::now_ns, ipv4::Ipv4, maps, packet::Packet, settings};

/// A stack flow is refreshed at most once a second: a store per packet would bounce a cache line between CPUs.
const REFRESH_NS: u64 = 1_000_000_000;
/// Bytes of a packet's transport header that every ICMP error about it quotes (RFC 792).
const QUOTED: usize = 8;

/// The connection of a packet whose IPv4 header is at `offset`. An ICMP error belongs to the connection it quotes
/// (the stack's connection tracking holds it to be related to that one), anything without ports to its address pair.
#[inline(always)]
fn key(frame: &impl Frame, offset: usize, ip: &Ipv4) -> FlowKey {
    let transport = offset + IPV4;
    let of = |ports| FlowKey::new(ip.source(), ip.destination(), ports, ip.protocol());
    match ip.protocol() {
        protocol::TCP | protocol::UDP | protocol::SCTP => {
            // Ports lie in the linear part, but for odd drivers; reading them there needs no helper's call.
            of(split(frame.read(transport).or_else(|| frame.load(transport)).unwrap_or([0; 4])))
        }
        protocol::ICMP => match frame.load::<{ icmp::LENGTH }>(transport) {
            // The identifier is what tells two connections apart (RFC 792).
            Some([icmp::ECHO_REPLY | icmp::ECHO, _, _, _, high, low, _, _]) => of([[high, low]; 2]),
            Some(
                [
                    icmp::UNREACHABLE
                    | icmp::SOURCE_QUENCH
                    | icmp::REDIRECT
                    | icmp::TIME_EXCEEDED
                    | icmp::PARAMETER_PROBLEM,
                    ..,
                ],
            ) => quoted(frame, transport + icmp::LENGTH).unwrap_or(of([[0; 2]; 2])),
            _ => of([[0; 2]; 2]),
        },
        _ => of([[0; 2]; 2]),
    }
}

/// The connection of the packet that an ICMP error quotes at `offset`.
#[inline(always)]
fn quoted(frame: &impl Frame, offset: usize) -> Option<FlowKey> {
    let bytes: [u8; IPV4 + QUOTED] = frame.load(offset)?;
    let (header, transport) = (Ipv4::new(bytes.first_chunk()?), bytes.last_chunk::<QUOTED>()?);
    if !header.is_without_options() {
        return None;
    }
    let [a, b, c, d, e, f, ..] = *transport;
    let ports = match header.protocol() {
        protocol::TCP | protocol::UDP | protocol::SCTP => split([a, b, c, d]),
        protocol::ICMP => [[e, f]; 2],
        _ => [[0; 2]; 2],
    };
    Some(FlowKey::new(header.source(), header.destination(), ports, header.protocol()))
}

#[inline(always)]
fn split([a, b, c, d]: [u8; 4]) -> [[u8; 2]; 2] {
    [[a, b], [c, d]]
}

/// Whether the packet's connection is a stack flow. Traffic keeps the stack flow alive.
#[inline(always)]
pub(crate) fn is_stacks(frame: &impl Frame, offset: usize, ip: &Ipv4) -> bool {
    let key = key(frame, offset, ip);
    match maps::stack_flow(&key) {
        Some(flow) => {
            refresh(frame, offset, ip, &key, flow);
            true
        }
        None => false,
    }
}

/// Records the connection of a packet that the stack handles as a stack flow.
#[inline(always)]
pub(crate) fn record(packet: &Packet<'_>, hook: Hook, offset: usize, ip: &Ipv4) {
    if ip.is_later_fragment() {
        // A later fragment has no ports. The first one has had the connection recorded.
        return;
    }
    let key = key(packet, offset, ip);
    if let Some(flow) = maps::stack_flow(&key) {
        refresh(packet, offset, ip, &key, flow);
        return;
    }
    let state = next_state(packet, offset, ip, &key, 0);
    let flow = Flow { seen_ns: now_ns(), state, reserved: 0 };
    if maps::insert_stack_flow(&key, &flow).is_err() {
        count::add(hook, Reason::FlowTableFull, packet.size(offset));
        count::report_full(packet.context());
    }
}

/// Records the connection of a packet that the stack delivers to a container, if another host's container sent it: replies to
/// anything outside Network never take the fast path. What the fast path delivers does not pass here (redirect_peer).
#[inline(always)]
pub(crate) fn track(packet: &Packet<'_>) {
    if !packet.carries(ETHERTYPE_IPV4) || !packet.pull(ETHERNET + IPV4) {
        return;
    }
    let Ok(ip) = Ipv4::checked(packet, ETHERNET) else { return };
    if settings::is_another_hosts(ip.source()) {
        record(packet, Hook::Note, ETHERNET, &ip);
    }
}

#[inline(always)]
fn refresh(frame: &impl Frame, offset: usize, ip: &Ipv4, key: &FlowKey, flow: &mut Flow) {
    let now = now_ns();
    if now.wrapping_sub(flow.seen_ns) > REFRESH_NS {
        flow.seen_ns = now;
    }
    let state = next_state(frame, offset, ip, key, flow.state);
    if state != flow.state {
        flow.state = state;
    }
}

/// The state after this packet, which was `state` before.
#[inline(always)]
fn next_state(frame: &impl Frame, offset: usize, ip: &Ipv4, key: &FlowKey, state: u32) -> u32 {
    let mut state = state | direction(key, ip);
    if ip.protocol() == protocol::TCP
        && let Some([flags]) = frame.load::<1>(offset + IPV4 + tcp::offset::FLAGS)
    {
        if flags & tcp::SYN != 0 {
            // Ports are used again: the end of an earlier connection is not the end of this one.
            state &= !FLOW_CLOSING;
        }
        if flags & (tcp::FIN | tcp::RST) != 0 {
            state |= FLOW_CLOSING;
        }
    }
    state
}

/// Which of the key's two addresses sent this packet: a connection with packets from both is more than an attempt.
#[inline(always)]
fn direction(key: &FlowKey, ip: &Ipv4) -> u32 {
    if key.addresses[0] == ip.source().octets { FLOW_FORWARD } else { FLOW_BACKWARD }
}
