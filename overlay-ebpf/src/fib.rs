//! The path to a peer: the next hop on the underlay, whether encapsulation is needed, and whether a packet fits the path.
use aya_ebpf::{
    bindings::{
        BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_SUCCESS, bpf_fib_lookup,
    },
    helpers::generated::bpf_fib_lookup as lookup,
};
use overlay_common::{PeerEntry, SETTING_DIRECT, header::protocol};

use crate::{
    ip::Family,
    kernel::KernelAddress,
    packet::Packet,
    settings::{self, Prefixes},
    tunnel,
};

/// The interface index of the loopback device (`LOOPBACK_IFINDEX` of include/net/flow.h), in every network namespace. A look-up
/// that comes from there is that of a packet which the host itself sends.
const LOOPBACK: u32 = 1;

/// Where a frame leaves.
pub(crate) struct NextHop<A> {
    pub(crate) ifindex: u32,
    /// The peer, or the gateway towards it.
    pub(crate) address: A,
}

/// How a packet reaches its peer.
pub(crate) enum Path<A> {
    /// As it is: the peer is on the same link, and direct routing is asked for.
    Unencapsulated(NextHop<A>),
    /// Encapsulated.
    Encapsulated(NextHop<A>),
}

/// Why there is no path.
pub(crate) enum NoPath {
    /// The path takes inner packets of this many bytes only.
    TooBig(u32),
    /// There is no route, or one of a kind that only the stack can follow (blackhole, a policy, forwarding switched off).
    Stack,
}

/// The path of a packet whose IP packets (one segment's, of a GSO frame) are `length` bytes long. Whether the peer is on
/// the same link is what the kernel's routes say at this moment: it is if no gateway is on the path.
#[inline(always)]
pub(crate) fn path<F: Family>(
    packet: &Packet<'_>,
    peer: &PeerEntry<F::Address>,
    source_port: u16,
    length: u32,
) -> Result<Path<F::Address>, NoPath> {
    if settings::has(SETTING_DIRECT) {
        match next_hop(packet, peer.outer, source_port, length) {
            Ok(next_hop) if next_hop.address == peer.outer => return Ok(Path::Unencapsulated(next_hop)),
            Ok(_) => {}
            Err(NoPath::TooBig(mtu)) => {
                // This answer does not name the next hop.
                if on_link(packet, peer, source_port).is_some() {
                    return Err(NoPath::TooBig(mtu));
                }
            }
            Err(NoPath::Stack) => return Err(NoPath::Stack),
        }
    }
    let overhead = tunnel::length::<F>() as u32;
    match next_hop(packet, peer.outer, source_port, length + overhead) {
        Ok(next_hop) => Ok(Path::Encapsulated(next_hop)),
        Err(NoPath::TooBig(mtu)) => Err(NoPath::TooBig(mtu.saturating_sub(overhead))),
        Err(NoPath::Stack) => Err(NoPath::Stack),
    }
}

/// The peer itself as next hop, if it is on the same link and direct routing is asked for, whatever the packet's length.
#[inline(always)]
pub(crate) fn on_link<A: KernelAddress + Prefixes>(
    packet: &Packet<'_>,
    peer: &PeerEntry<A>,
    source_port: u16,
) -> Option<NextHop<A>> {
    let next_hop =
        settings::has(SETTING_DIRECT).then(|| next_hop_of_any_length(packet, peer, source_port))??;
    (next_hop.address == peer.outer).then_some(next_hop)
}

/// The next hop towards a peer, whatever the packet's length.
#[inline(always)]
pub(crate) fn next_hop_of_any_length<A: KernelAddress + Prefixes>(
    packet: &Packet<'_>,
    peer: &PeerEntry<A>,
    source_port: u16,
) -> Option<NextHop<A>> {
    // With a length of zero the kernel would take the length of the frame at hand.
    next_hop(packet, peer.outer, source_port, 1).ok()
}

/// Whether the host has a route to this address that does not lead into overlay0.
#[inline(always)]
pub(crate) fn is_beside_overlay<A: KernelAddress + Prefixes>(packet: &Packet<'_>, address: A) -> bool {
    next_hop(packet, address, 0, 1).is_ok()
}

/// Asks the kernel for the route to `peer`, with the length of one segment on the wire, so that a path MTU which the
/// kernel learned from ICMP counts too. Nothing is cached: the answer is never stale. The question is that of a packet which
/// the host itself sends, as overlay0's are: policies for such packets (`ip rule add iif lo`) hold for ours, and the route may
/// lead to any device.
#[inline(always)]
fn next_hop<A: KernelAddress + Prefixes>(
    packet: &Packet<'_>,
    peer: A,
    source_port: u16,
    wire_length: u32,
) -> Result<NextHop<A>, NoPath> {
    if wire_length > u32::from(u16::MAX) {
        return Err(NoPath::Stack);
    }
    // SAFETY: integers only, zero is valid for all of them.
    let mut query: bpf_fib_lookup = unsafe { core::mem::zeroed() };
    query.family = A::FAMILY;
    query.l4_protocol = protocol::UDP;
    query.sport = source_port.to_be();
    query.dport = u16::from_ne_bytes(settings::port());
    query.__bindgen_anon_1.tot_len = wire_length as u16;
    query.ifindex = LOOPBACK;
    A::ask(&mut query, A::local(), peer);
    let result = ask(packet, &mut query);
    // An unresolved neighbour is no obstacle: redirect_neighbour resolves it. Leaving that one packet to the stack would
    // move its whole connection there.
    if is_found(result) {
        // The address of a next hop of another family (RFC 9229) is not read here. And a route to the peer that leads into overlay0 would
        // send encapsulated packets into the tunnel again.
        if query.family != A::FAMILY || query.ifindex == settings::device() {
            return Err(NoPath::Stack);
        }
        return Ok(NextHop { ifindex: query.ifindex, address: A::answered(&query) });
    }
    if result == i64::from(BPF_FIB_LKUP_RET_FRAG_NEEDED) {
        // SAFETY: this answer fills in mtu_result.
        return Err(NoPath::TooBig(u32::from(unsafe { query.__bindgen_anon_1.mtu_result })));
    }
    Err(NoPath::Stack)
}

/// Whether the host's routes lead a container's packet to this address into overlay0. They do not where the host has that
/// address itself, or a more specific route, or has forbidden it.
#[inline(always)]
pub(crate) fn leads_into_overlay<A: KernelAddress>(packet: &Packet<'_>, source: A, destination: A) -> bool {
    // SAFETY: integers only, zero is valid for all of them.
    let mut query: bpf_fib_lookup = unsafe { core::mem::zeroed() };
    query.family = A::FAMILY;
    // With a length of zero the kernel would take the length of the frame at hand.
    query.__bindgen_anon_1.tot_len = 1;
    query.ifindex = packet.ifindex();
    A::ask(&mut query, source, destination);
    let result = ask(packet, &mut query);
    is_found(result) && query.ifindex == settings::device()
}

#[inline(always)]
fn ask(packet: &Packet<'_>, query: &mut bpf_fib_lookup) -> i64 {
    let context = aya_ebpf::EbpfContext::as_ptr(packet.context());
    // SAFETY: the query is as long as said.
    unsafe { lookup(context, &raw mut *query, size_of::<bpf_fib_lookup>() as i32, 0) }
}

/// Whether the kernel named a next hop. It need not have resolved it.
#[inline(always)]
fn is_found(result: i64) -> bool {
    result == i64::from(BPF_FIB_LKUP_RET_SUCCESS) || result == i64::from(BPF_FIB_LKUP_RET_NO_NEIGH)
}
