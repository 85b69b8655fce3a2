//! One connection, one path: which connections the stack has state for.
use aya_ebpf::helpers::bpf_ktime_get_ns;
use overlay_common::{
    Addr4, FLOW_BACKWARD, FLOW_CLOSING, FLOW_FORWARD, Flow, FlowKey, Hook, Reason,
    wire::{ETHERNET, IPV4},
};

use crate::{
    count,
    frame::Frame,
    ipv4::{IPPROTO_TCP as TCP, IPPROTO_UDP as UDP, Ipv4},
    maps,
    packet::Packet,
    settings,
};

const ICMP: u8 = 1;
const SCTP: u8 = 132;
/// SYN in byte 13 of a TCP header (RFC 9293 section 3.1).
const TCP_SYN: u8 = 0x02;
/// FIN and RST in byte 13 of a TCP header.
const TCP_CLOSING: u8 = 0x01 | 0x04;
/// Notes are refreshed at most once a second: a store per packet would bounce a cache line between CPUs.
const REFRESH_NS: u64 = 1_000_000_000;

/// The connection of a packet whose IPv4 header is at `offset`. An ICMP error belongs to the connection it quotes
/// (the stack's connection tracking holds it to be related to that one), anything without ports to its address pair.
#[inline(always)]
pub(crate) fn key(frame: &impl Frame, offset: usize, ip: &Ipv4) -> FlowKey {
    let transport = offset + IPV4;
    match ip.protocol {
        TCP | UDP | SCTP => {
            // Without a helper's call where they lie in the linear part, as they do but for odd drivers.
            let ports = frame.read(transport).or_else(|| frame.load(transport)).unwrap_or([0; 4]);
            FlowKey::new(ip.source, ip.destination, split(ports), ip.protocol)
        }
        ICMP => match frame.load::<8>(transport) {
            // Echo reply and echo: the identifier is what tells two apart (RFC 792).
            Some([0 | 8, _, _, _, high, low, _, _]) => {
                FlowKey::new(ip.source, ip.destination, [[high, low]; 2], ICMP)
            }
            // Destination unreachable, source quench, redirect, time exceeded, parameter problem: errors.
            Some([3 | 4 | 5 | 11 | 12, ..]) => quoted(frame, transport + 8).unwrap_or(FlowKey::new(
                ip.source,
                ip.destination,
                [[0; 2]; 2],
                ICMP,
            )),
            _ => FlowKey::new(ip.source, ip.destination, [[0; 2]; 2], ICMP),
        },
        _ => FlowKey::new(ip.source, ip.destination, [[0; 2]; 2], ip.protocol),
    }
}

/// The connection of the packet that an ICMP error quotes at `offset`.
#[inline(always)]
fn quoted(frame: &impl Frame, offset: usize) -> Option<FlowKey> {
    let bytes: [u8; IPV4 + 8] = frame.load(offset)?;
    if bytes[0] != 0x45 {
        return None;
    }
    let source = Addr4::new([bytes[12], bytes[13], bytes[14], bytes[15]]);
    let destination = Addr4::new([bytes[16], bytes[17], bytes[18], bytes[19]]);
    let ports = match bytes[9] {
        TCP | UDP | SCTP => [[bytes[20], bytes[21]], [bytes[22], bytes[23]]],
        ICMP => [[bytes[24], bytes[25]]; 2],
        _ => [[0; 2]; 2],
    };
    Some(FlowKey::new(source, destination, ports, bytes[9]))
}

#[inline(always)]
fn split([a, b, c, d]: [u8; 4]) -> [[u8; 2]; 2] {
    [[a, b], [c, d]]
}

/// Whether the connection is the stack's. Traffic keeps the note alive.
#[inline(always)]
pub(crate) fn is_noted(frame: &impl Frame, offset: usize, ip: &Ipv4) -> bool {
    let key = key(frame, offset, ip);
    match maps::flow(&key) {
        Some(flow) => {
            refresh(frame, offset, ip, &key, flow);
            true
        }
        None => false,
    }
}

/// Notes the connection of a packet that the stack handles.
#[inline(always)]
pub(crate) fn note(packet: &Packet<'_>, hook: Hook, offset: usize, ip: &Ipv4) {
    if ip.is_later_fragment() {
        // No ports: the first fragment has noted the connection.
        return;
    }
    let key = key(packet, offset, ip);
    if let Some(flow) = maps::flow(&key) {
        refresh(packet, offset, ip, &key, flow);
        return;
    }
    let state = next_state(packet, offset, ip, &key, 0);
    let flow = Flow { seen_ns: now(), state, reserved: 0 };
    if maps::insert_flow(&key, &flow).is_err() {
        count::add(hook, Reason::FlowsFull, packet.size(offset));
        count::report_full(packet.context());
    }
}

/// Notes the connection of a packet that the stack delivers to a container. Only peers' matter: replies to anything
/// outside Network never take the fast path. redirect_peer does not come through here, so what does is the stack's.
#[inline(always)]
pub(crate) fn note_delivery(packet: &Packet<'_>) {
    if !packet.is_ipv4() || !packet.pull(ETHERNET + IPV4) {
        return;
    }
    let Ok(ip) = packet.ipv4(ETHERNET) else { return };
    if settings::is_another_hosts(ip.source) {
        note(packet, Hook::Note, ETHERNET, &ip);
    }
}

#[inline(always)]
fn refresh(frame: &impl Frame, offset: usize, ip: &Ipv4, key: &FlowKey, flow: &mut Flow) {
    let now = now();
    if now.wrapping_sub(flow.seen_ns) > REFRESH_NS {
        flow.seen_ns = now;
    }
    let state = next_state(frame, offset, ip, key, flow.state);
    if state != flow.state {
        flow.state = state;
    }
}

#[inline(always)]
fn next_state(frame: &impl Frame, offset: usize, ip: &Ipv4, key: &FlowKey, state: u32) -> u32 {
    let mut state = state | direction(key, ip);
    if ip.protocol == TCP
        && let Some([flags]) = frame.load::<1>(offset + IPV4 + 13)
    {
        if flags & TCP_SYN != 0 {
            // Ports are used again: the end of an earlier connection is not the end of this one.
            state &= !FLOW_CLOSING;
        }
        if flags & TCP_CLOSING != 0 {
            state |= FLOW_CLOSING;
        }
    }
    state
}

/// Which of the key's two addresses sent this packet: a connection with packets from both is more than an attempt.
#[inline(always)]
fn direction(key: &FlowKey, ip: &Ipv4) -> u32 {
    if key.addresses[0] == ip.source.octets { FLOW_FORWARD } else { FLOW_BACKWARD }
}

#[inline(always)]
fn now() -> u64 {
    // SAFETY: no arguments, no preconditions.
    unsafe { bpf_ktime_get_ns() }
}
