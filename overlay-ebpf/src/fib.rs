//! The way to a peer: the next hop on the underlay, whether encapsulation is needed, and whether a packet fits the path.
use aya_ebpf::{
    bindings::{
        BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_SUCCESS, bpf_fib_lookup,
    },
    helpers::generated::bpf_fib_lookup as lookup,
};
use overlay_common::{Addr4, Peer, SETTING_DIRECT};

use crate::{ipv4::IPPROTO_UDP, packet::Packet, settings};

const AF_INET: u8 = 2;

/// Where a frame leaves.
pub(crate) struct NextHop {
    pub(crate) ifindex: u32,
    /// The peer, or the gateway towards it.
    pub(crate) address: Addr4,
}

/// How a packet reaches its peer.
pub(crate) enum Way {
    /// As it is: the peer is on the same link, and direct routing is asked for.
    Plain(NextHop),
    /// Encapsulated.
    Wrapped(NextHop),
}

/// Why there is none.
pub(crate) enum NoWay {
    /// The path takes inner packets of this many bytes only.
    TooBig(u32),
    /// No route, or one of a kind that the stack knows better (blackhole, a policy, forwarding switched off).
    Stack,
}

/// The way of a packet whose IP packets (one segment's, of a GSO frame) are `length` bytes long. Whether the peer is on
/// the same link is what the kernel's routes say at this moment: no gateway on the way.
#[inline(always)]
pub(crate) fn way(packet: &Packet<'_>, peer: &Peer, source_port: u16, length: u32) -> Result<Way, NoWay> {
    let outer = Addr4::new(peer.outer);
    if settings::has(SETTING_DIRECT) {
        match next_hop(packet, outer, source_port, length) {
            Ok(next_hop) if next_hop.address == outer => return Ok(Way::Plain(next_hop)),
            Ok(_) => {}
            Err(NoWay::TooBig(mtu)) => {
                // This answer does not name the next hop.
                if neighbour(packet, peer, source_port).is_some() {
                    return Err(NoWay::TooBig(mtu));
                }
            }
            Err(NoWay::Stack) => return Err(NoWay::Stack),
        }
    }
    let overhead = settings::overhead() as u32;
    match next_hop(packet, outer, source_port, length + overhead) {
        Ok(next_hop) => Ok(Way::Wrapped(next_hop)),
        Err(NoWay::TooBig(mtu)) => Err(NoWay::TooBig(mtu.saturating_sub(overhead))),
        Err(NoWay::Stack) => Err(NoWay::Stack),
    }
}

/// The peer itself as next hop, if it is on the same link and direct routing is asked for; whatever the packet's length.
#[inline(always)]
pub(crate) fn neighbour(packet: &Packet<'_>, peer: &Peer, source_port: u16) -> Option<NextHop> {
    let outer = Addr4::new(peer.outer);
    let next_hop = settings::has(SETTING_DIRECT).then(|| any_length(packet, peer, source_port))??;
    (next_hop.address == outer).then_some(next_hop)
}

/// The next hop towards a peer, whatever the packet's length.
#[inline(always)]
pub(crate) fn any_length(packet: &Packet<'_>, peer: &Peer, source_port: u16) -> Option<NextHop> {
    // A length of zero would have the kernel judge the frame at hand.
    next_hop(packet, Addr4::new(peer.outer), source_port, 1).ok()
}

/// Asks the kernel for the route to `peer`, with the length of one segment on the wire, so that a path MTU which the
/// kernel learned from ICMP counts too. Nothing is cached: the answer is never stale. Asked as for a packet that came in
/// by the underlay device, not as one bound to leave there: another device may be the way, as it may for overlay0.
#[inline(always)]
fn next_hop(packet: &Packet<'_>, peer: Addr4, source_port: u16, wire_length: u32) -> Result<NextHop, NoWay> {
    if wire_length > u32::from(u16::MAX) {
        return Err(NoWay::Stack);
    }
    // SAFETY: integers only, zero is valid for all of them.
    let mut query: bpf_fib_lookup = unsafe { core::mem::zeroed() };
    query.family = AF_INET;
    query.l4_protocol = IPPROTO_UDP;
    query.sport = source_port.to_be();
    query.dport = u16::from_ne_bytes(settings::port());
    query.__bindgen_anon_1.tot_len = wire_length as u16;
    query.ifindex = settings::underlay();
    query.__bindgen_anon_3.ipv4_src = settings::local();
    query.__bindgen_anon_4.ipv4_dst = peer.raw();
    // SAFETY: the query is as long as said.
    let result = unsafe {
        lookup(
            aya_ebpf::EbpfContext::as_ptr(packet.context()),
            &raw mut query,
            size_of::<bpf_fib_lookup>() as i32,
            0,
        )
    };
    // An unresolved neighbour is no obstacle: redirect_neighbour resolves it. Leaving that one packet to the stack would
    // move its whole connection there.
    if result == i64::from(BPF_FIB_LKUP_RET_SUCCESS) || result == i64::from(BPF_FIB_LKUP_RET_NO_NEIGH) {
        // A next hop of IPv6 (RFC 9229) is none that is read here; overlay0 is no way to a peer, it ends at one.
        if query.family != AF_INET || query.ifindex == settings::device() {
            return Err(NoWay::Stack);
        }
        // SAFETY: the kernel has put the next hop's address there.
        let address = unsafe { query.__bindgen_anon_4.ipv4_dst };
        return Ok(NextHop { ifindex: query.ifindex, address: Addr4::new(address.to_ne_bytes()) });
    }
    if result == i64::from(BPF_FIB_LKUP_RET_FRAG_NEEDED) {
        // SAFETY: this answer fills in mtu_result.
        return Err(NoWay::TooBig(u32::from(unsafe { query.__bindgen_anon_1.mtu_result })));
    }
    Err(NoWay::Stack)
}
