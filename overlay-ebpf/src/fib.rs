//! The next hop on the underlay, and whether a packet fits the path to it.
use aya_ebpf::{
    bindings::{
        BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_SUCCESS, bpf_fib_lookup,
    },
    helpers::generated::bpf_fib_lookup as lookup,
};
use overlay_common::Addr4;

use crate::{ipv4::IPPROTO_UDP, packet::Packet, settings};

const AF_INET: u8 = 2;

/// Where an encapsulated frame leaves.
pub(crate) struct NextHop {
    pub(crate) ifindex: u32,
    /// The peer, or the gateway towards it.
    pub(crate) address: Addr4,
}

/// Why there is none.
pub(crate) enum NoNextHop {
    /// The path takes packets of this many bytes only, outer headers included.
    TooBig(u32),
    /// No route, or one of a kind that the stack knows better (blackhole, a policy, forwarding switched off).
    Stack,
}

/// Asks the kernel for the route to `peer`, with the length of one segment on the wire, so that a path MTU which the
/// kernel learned from ICMP counts too. Nothing is cached: the answer is never stale. Asked as for a packet that came in
/// by the underlay device, not as one bound to leave there: another device may be the way, as it may for overlay0.
#[inline(always)]
pub(crate) fn next_hop(
    packet: &Packet<'_>,
    peer: Addr4,
    source_port: u16,
    wire_length: u32,
) -> Result<NextHop, NoNextHop> {
    if wire_length > u32::from(u16::MAX) {
        return Err(NoNextHop::Stack);
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
        // SAFETY: the kernel has put the next hop's address there.
        let address = unsafe { query.__bindgen_anon_4.ipv4_dst };
        return Ok(NextHop { ifindex: query.ifindex, address: Addr4::new(address.to_ne_bytes()) });
    }
    if result == i64::from(BPF_FIB_LKUP_RET_FRAG_NEEDED) {
        // SAFETY: this answer fills in mtu_result.
        return Err(NoNextHop::TooBig(u32::from(unsafe { query.__bindgen_anon_1.mtu_result })));
    }
    Err(NoNextHop::Stack)
}
