//! One connection, one path: which connections are stack flows, those that the stack has state for.
use overlay_common::{
    FLOW_BACKWARD, FLOW_CLOSING, FLOW_FORWARD, Flow, FlowKey, Hook, Reason,
    header::{protocol, tcp},
    wire::ETHERNET,
};

use crate::{
    count,
    frame::Frame,
    helpers::now_ns,
    ip::{Family, Header as _, ICMP_HEADER},
    maps::Lookups as _,
    packet::Packet,
    settings::Prefixes as _,
};

/// A stack flow is refreshed at most once a second: a store per packet would bounce a cache line between CPUs.
const REFRESH_NS: u64 = 1_000_000_000;

/// The connection of a packet whose IP header is at `offset`. An ICMP error belongs to the connection it quotes
/// (the stack's connection tracking holds it to be related to that one), anything without ports to its address pair.
#[inline(always)]
fn key<F: Family>(frame: &impl Frame, offset: usize, ip: &F::Header) -> FlowKey<F::Address> {
    let transport = offset + F::HEADER;
    let of = |ports| FlowKey::new(ip.source(), ip.destination(), ports, ip.protocol());
    match ip.protocol() {
        protocol::TCP | protocol::UDP | protocol::SCTP => {
            // Ports lie in the linear part, but for odd drivers; reading them there needs no helper's call.
            of(split(frame.read(transport).or_else(|| frame.load(transport)).unwrap_or([0; 4])))
        }
        protocol if protocol == F::ICMP => match frame.load::<ICMP_HEADER>(transport) {
            // The identifier is what tells two connections apart (RFC 792).
            Some([kind, _, _, _, high, low, _, _]) if F::is_echo(kind) => of([[high, low]; 2]),
            Some([kind, ..]) if F::is_error(kind) => {
                quoted::<F>(frame, transport + ICMP_HEADER).unwrap_or(of([[0; 2]; 2]))
            }
            _ => of([[0; 2]; 2]),
        },
        _ => of([[0; 2]; 2]),
    }
}

/// The connection of the packet that an ICMP error quotes at `offset`.
#[inline(always)]
fn quoted<F: Family>(frame: &impl Frame, offset: usize) -> Option<FlowKey<F::Address>> {
    let (header, [a, b, c, d, e, f, ..]) = F::Header::quoted(frame, offset)?;
    if !header.is_without_options() {
        return None;
    }
    let ports = match header.protocol() {
        protocol::TCP | protocol::UDP | protocol::SCTP => split([a, b, c, d]),
        protocol if protocol == F::ICMP => [[e, f]; 2],
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
pub(crate) fn is_stacks<F: Family>(frame: &impl Frame, offset: usize, ip: &F::Header) -> bool {
    let key = key::<F>(frame, offset, ip);
    match F::Address::stack_flow(&key) {
        Some(flow) => {
            refresh::<F>(frame, offset, ip, &key, flow);
            true
        }
        None => false,
    }
}

/// Records the connection of a packet that the stack handles as a stack flow.
#[inline(always)]
pub(crate) fn record<F: Family>(packet: &Packet<'_>, hook: Hook, offset: usize, ip: &F::Header) {
    if ip.is_later_fragment() {
        // A later fragment has no ports. The first one has had the connection recorded.
        return;
    }
    let key = key::<F>(packet, offset, ip);
    if let Some(flow) = F::Address::stack_flow(&key) {
        refresh::<F>(packet, offset, ip, &key, flow);
        return;
    }
    let state = next_state::<F>(packet, offset, ip, &key, 0);
    let flow = Flow { seen_ns: now_ns(), state, reserved: 0 };
    if F::Address::insert_stack_flow(&key, &flow).is_err() {
        count::add(hook, Reason::FlowTableFull, packet.size(offset));
        count::report_full(packet.context());
    }
}

/// Records the connection of a packet that the stack delivers to a container, if another host's container sent it: replies to
/// anything outside Network never take the fast path. What the fast path delivers does not pass here (redirect_peer).
#[inline(always)]
pub(crate) fn track<F: Family>(packet: &Packet<'_>) {
    if !packet.carries(F::ETHERTYPE) || !packet.pull(ETHERNET + F::HEADER) {
        return;
    }
    let Ok(ip) = F::Header::checked(packet, ETHERNET) else { return };
    if ip.source().is_another_hosts() {
        record::<F>(packet, Hook::Track, ETHERNET, &ip);
    }
}

#[inline(always)]
fn refresh<F: Family>(
    frame: &impl Frame,
    offset: usize,
    ip: &F::Header,
    key: &FlowKey<F::Address>,
    flow: &mut Flow,
) {
    let now = now_ns();
    if now.wrapping_sub(flow.seen_ns) > REFRESH_NS {
        flow.seen_ns = now;
    }
    let state = next_state::<F>(frame, offset, ip, key, flow.state);
    if state != flow.state {
        flow.state = state;
    }
}

/// The state after this packet, which was `state` before.
#[inline(always)]
fn next_state<F: Family>(
    frame: &impl Frame,
    offset: usize,
    ip: &F::Header,
    key: &FlowKey<F::Address>,
    state: u32,
) -> u32 {
    let mut state = state | direction::<F>(key, ip);
    if ip.protocol() == protocol::TCP
        && let Some([flags]) = frame.load::<1>(offset + F::HEADER + tcp::offset::FLAGS)
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
fn direction<F: Family>(key: &FlowKey<F::Address>, ip: &F::Header) -> u32 {
    if key.addresses[0] == ip.source() { FLOW_FORWARD } else { FLOW_BACKWARD }
}
