//! One connection, one path: which connections are stack flows, those that the stack has state for, and which of those are
//! promoted to the fast path because the stack has carried them unchanged in both directions.
use overlay_common::{
    FAST_PATH_ESTABLISHED, FLOW_BACKWARD, FLOW_BEGUN_BACKWARD, FLOW_CLOSING, FLOW_DELIVERED, FLOW_FORWARD,
    FLOW_KEPT, FLOW_SENT, Flow, FlowKey, Hook, Reason, after_carrying,
    header::{protocol, tcp},
    is_promoted,
    wire::ETHERNET,
};

use crate::{
    count,
    frame::Frame,
    helpers::tick_ns,
    ip::{Family, Header as _, ICMP_HEADER},
    maps::{Lookups, promotion_epoch},
    packet::Packet,
};

/// A stack flow is refreshed at most once a second: a store per packet would bounce a cache line between CPUs.
const REFRESH_NS: u64 = 1_000_000_000;

/// Length of SCTP's header, before the first chunk (RFC 9260 section 3.1).
const SCTP_HEADER: usize = 12;
/// Chunk type of INIT (RFC 9260 section 3.2).
const SCTP_INIT: u8 = 1;

/// A packet's connection.
struct Connection<F: Family> {
    key: FlowKey<F::Address>,
    /// The key's bucket, computed where the key is made: there its parts are in registers.
    bucket: u32,
    /// The packet is an ICMP error about the connection, which anybody on the way can have sent.
    is_error: bool,
    /// The packet is an echo request. Only who has begun the connection may send one: for the stack's connection tracking, one
    /// from the other side begins a connection of its own, though it looks alike from here.
    is_request: bool,
    /// The key tells the connection from all others between the two addresses.
    is_told_apart: bool,
}

/// The connection of a packet whose IP header is at `offset`. An ICMP error belongs to the connection it quotes
/// (the stack's connection tracking holds it to be related to that one), anything without ports to its address pair.
#[inline(always)]
fn connection<F: Family>(frame: &impl Frame, offset: usize, ip: &F::Header) -> Connection<F> {
    let transport = offset + F::HEADER;
    let of = |ports| {
        let key = FlowKey::new(ip.source(), ip.destination(), ports, ip.protocol());
        Connection { key, bucket: key.bucket(), is_error: false, is_request: false, is_told_apart: true }
    };
    let of_any = || Connection { is_told_apart: false, ..of([[0; 2]; 2]) };
    match ip.protocol() {
        protocol::TCP | protocol::UDP | protocol::SCTP => of(read_ports(frame, transport)),
        protocol if protocol == F::ICMP => match frame.load::<ICMP_HEADER>(transport) {
            // The identifier is what tells two connections apart (RFC 792).
            Some([kind, _, _, _, high, low, _, _]) if F::is_echo(kind) => {
                Connection { is_request: F::is_echo_request(kind), ..of([[high, low]; 2]) }
            }
            Some([kind, ..]) if F::is_error(kind) => match quoted::<F>(frame, transport + ICMP_HEADER) {
                Some(key) => Connection {
                    key,
                    bucket: key.bucket(),
                    is_error: true,
                    is_request: false,
                    is_told_apart: true,
                },
                None => of_any(),
            },
            _ => of_any(),
        },
        _ => of_any(),
    }
}

/// Whether the packet's own ports are in [`Connection::key`]. In a fragment that is not the first there are none, and the others of
/// its datagram must not be told from it.
#[inline(always)]
pub(crate) fn has_ports<F: Family>(ip: &F::Header) -> bool {
    matches!(ip.protocol(), protocol::TCP | protocol::UDP | protocol::SCTP)
        && ip.is_without_options()
        && !ip.is_fragment()
}

/// The key of a packet's connection by its ports, if it has any. Of anything else the key means nothing.
#[inline(always)]
pub(crate) fn key_by_ports<F: Family>(
    frame: &impl Frame,
    offset: usize,
    ip: &F::Header,
) -> FlowKey<F::Address> {
    let ports = if has_ports::<F>(ip) { read_ports(frame, offset + F::HEADER) } else { [[0; 2]; 2] };
    FlowKey::new(ip.source(), ip.destination(), ports, ip.protocol())
}

/// The ports at the beginning of a transport header, or zeros if there are none. They lie in the linear part, but for odd
/// drivers; reading them there needs no helper's call.
#[inline(always)]
fn read_ports(frame: &impl Frame, offset: usize) -> [[u8; 2]; 2] {
    match frame.read::<[u16; 2]>(offset) {
        Some(ports) => ports.map(u16::to_ne_bytes),
        None => split(frame.load(offset).unwrap_or([0; 4])),
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

/// The key of the packet's connection, or why that keeps to the stack. Traffic keeps its stack flow alive. `fast_path` is what the
/// fast path carries, a `FAST_PATH_*`.
#[inline(always)]
pub(crate) fn keeps_to_stack<F: Family>(
    frame: &impl Frame,
    offset: usize,
    ip: &F::Header,
    fast_path: u32,
) -> Result<FlowKey<F::Address>, Reason> {
    let Connection { key, bucket, is_error, is_request, is_told_apart } = connection::<F>(frame, offset, ip);
    // Where the stack decides on every connection, nearly every one is a stack flow, so that a mark would tell nothing.
    let is_for_stack = fast_path == FAST_PATH_ESTABLISHED;
    // What the stack accepted is the connection, and neither an error about it nor all that looks like it.
    if is_for_stack && (is_error || !is_told_apart) {
        return Err(Reason::NotEstablished);
    }
    let known = is_for_stack || F::Address::may_be_stack_flow(bucket);
    let Some(flow) = known.then(|| F::Address::stack_flow(&key)).flatten() else {
        return if is_for_stack { Err(Reason::NotEstablished) } else { Ok(key) };
    };
    let state = next_state::<F>(frame, offset, ip, &key, flow.state);
    refresh(flow, state);
    let is_from_other_side =
        is_request && (direction::<F>(&key, ip) == FLOW_BACKWARD) != (state & FLOW_BEGUN_BACKWARD != 0);
    let is_carried = is_promoted(state, promotion_epoch()) && !(is_for_stack && is_from_other_side);
    if is_carried { Ok(key) } else { Err(Reason::StackFlow) }
}

/// Never promotes the connection of a packet that the fast path cannot carry, and takes a promotion back. The host's connection
/// tracking sees such a packet, so it must see those in the other direction too.
#[inline(always)]
pub(crate) fn keep<F: Family>(frame: &impl Frame, offset: usize) {
    let Ok(ip) = F::Header::checked(frame, offset) else { return };
    let Connection { key, .. } = connection::<F>(frame, offset, &ip);
    if let Some(flow) = F::Address::stack_flow(&key) {
        flow.state |= FLOW_KEPT;
    }
}

/// Notes the connection of a container's packet that the program leaves to the stack, if it does so because of that connection.
/// The stack carries such a packet to overlay0 on the same CPU and without a queue. So [`record`] can tell whether the packet that
/// leaves there is this one, and unaltered. Where packets change the CPU in between (RPS of the bridge, a queue to user space), it
/// cannot tell, and such connections keep to the stack.
#[inline(always)]
pub(crate) fn note_left<F: Family>(packet: &Packet<'_>, offset: usize, is_for_its_connection: bool) {
    let Some(left) = F::Address::left() else { return };
    *left = FlowKey::default();
    // Its header has been checked already.
    if is_for_its_connection && let Some(ip) = F::Header::read(packet, offset) {
        *left = connection::<F>(packet, offset, &ip).key;
    }
}

/// Whether the packet at overlay0's egress belongs to the connection that it belonged to when its container sent it. Its addresses
/// alone cannot tell: those of a translated connection can be another connection's own.
#[inline(always)]
fn is_as_it_was_left<A: Lookups>(key: &FlowKey<A>) -> bool {
    let Some(left) = A::left() else { return false };
    let is_same = left.is(key);
    *left = FlowKey::default();
    is_same
}

/// Records the connection of a packet that the stack handles as a stack flow, or that the stack has carried it once more. The
/// hook tells the direction: what the stack sends passes `Send`, and what it delivers passes `Track`.
#[inline(always)]
pub(crate) fn record<F: Family>(packet: &Packet<'_>, hook: Hook, offset: usize, ip: &F::Header) {
    if ip.is_later_fragment() {
        // A later fragment has no ports. The first one has had the connection recorded.
        return;
    }
    let Connection { key, is_error, .. } = connection::<F>(packet, offset, ip);
    let carried = match hook {
        Hook::Send if !is_as_it_was_left(&key) => 0,
        // That the stack let an error pass says nothing about the connection which the error is about.
        _ if is_error => 0,
        Hook::Send => FLOW_SENT,
        _ => FLOW_DELIVERED,
    };
    let kept = if ip.is_fragment() { FLOW_KEPT } else { 0 };
    let known = F::Address::stack_flow(&key);
    let before = known.as_ref().map_or(0, |flow| flow.state);
    let state = next_state::<F>(packet, offset, ip, &key, before);
    let state = after_carrying(state, promotion_epoch(), carried) | kept;
    if let Some(flow) = known {
        refresh(flow, state);
        return;
    }
    let flow = Flow { seen_ns: tick_ns(), state, reserved: 0 };
    if F::Address::insert_stack_flow(&key, &flow).is_err() {
        count::add(hook, Reason::FlowTableFull, packet.size(offset));
        count::report_full(packet.context());
    }
}

/// Records the connection of a packet that the stack delivers to a container, if another host's container sent it: replies to
/// anything outside Network never take the fast path. What the fast path delivers does not pass here (redirect_peer), or is
/// marked as its delivery.
#[inline(always)]
pub(crate) fn track<F: Family>(packet: &Packet<'_>) {
    if packet.take_delivery_mark() || !packet.carries(F::ETHERTYPE) || !packet.pull(ETHERNET + F::HEADER) {
        return;
    }
    let Ok(ip) = F::Header::checked(packet, ETHERNET) else { return };
    if ip.source().is_another_hosts() {
        record::<F>(packet, Hook::Track, ETHERNET, &ip);
    }
}

#[inline(always)]
fn refresh(flow: &mut Flow, state: u32) {
    let now = tick_ns();
    if now.wrapping_sub(flow.seen_ns) > REFRESH_NS {
        flow.seen_ns = now;
    }
    if state != flow.state {
        flow.state = state;
    }
}

/// The state after this packet, by whichever path, where it was `state` before.
#[inline(always)]
fn next_state<F: Family>(
    frame: &impl Frame,
    offset: usize,
    ip: &F::Header,
    key: &FlowKey<F::Address>,
    state: u32,
) -> u32 {
    let direction = direction::<F>(key, ip);
    let begun = if direction == FLOW_BACKWARD { FLOW_BEGUN_BACKWARD } else { 0 };
    let is_first = state & (FLOW_FORWARD | FLOW_BACKWARD) == 0;
    let mut state = state | direction | if is_first { begun } else { 0 };
    if ip.protocol() == protocol::TCP
        && let Some([flags]) = read_flags(frame, offset + F::HEADER)
    {
        if flags & tcp::SYN != 0 {
            // Ports are used again: the end of an earlier connection is not the end of this one.
            state &= !FLOW_CLOSING;
        }
        if flags & (tcp::SYN | tcp::ACK) == tcp::SYN {
            state = begun_anew(state, begun);
        }
        if flags & (tcp::FIN | tcp::RST) != 0 {
            state |= FLOW_CLOSING;
        }
    }
    // RFC 9260 section 3.3.2: INIT is the first chunk of its packet, and the only one.
    if ip.protocol() == protocol::SCTP && frame.load(offset + F::HEADER + SCTP_HEADER) == Some([SCTP_INIT]) {
        state = begun_anew(state, begun);
    }
    state
}

/// TCP's flags. Where they lie is as in [`read_ports`].
#[inline(always)]
fn read_flags(frame: &impl Frame, transport: usize) -> Option<[u8; 1]> {
    let at = transport + tcp::offset::FLAGS;
    frame.read(at).or_else(|| frame.load(at))
}

/// The state of a connection that begins with the ports of another: what the stack accepted of that one says nothing about this.
#[inline(always)]
const fn begun_anew(state: u32, begun: u32) -> u32 {
    state & !(FLOW_SENT | FLOW_DELIVERED | FLOW_KEPT | FLOW_BEGUN_BACKWARD) | begun
}

/// Which of the key's two addresses sent this packet: a connection with packets from both is more than an attempt.
#[inline(always)]
fn direction<F: Family>(key: &FlowKey<F::Address>, ip: &F::Header) -> u32 {
    if key.addresses[0] == ip.source() { FLOW_FORWARD } else { FLOW_BACKWARD }
}
