//! The next hop on the underlay, and whether a packet fits the path to it.
use aya_ebpf::{
    bindings::{
        BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_SUCCESS, BPF_FIB_LOOKUP_OUTPUT, bpf_fib_lookup,
    },
    helpers::generated::bpf_fib_lookup as lookup,
};
use overlay_common::Addr4;

use crate::{packet::Packet, settings};

const AF_INET: u8 = 2;
const IPPROTO_UDP: u8 = 17;

/// Where an encapsulated frame leaves.
pub(crate) struct NextHop {
    pub(crate) ifindex: u32,
    pub(crate) mac: [u8; 6],
    pub(crate) source_mac: [u8; 6],
}

/// Why there is none.
pub(crate) enum NoNextHop {
    /// The path takes packets of this many bytes only, outer headers included.
    TooBig(u32),
    /// Nothing usable now; the stack knows better (it resolves neighbours, follows policy, reports errors).
    Stack,
}

/// Asks the kernel for the route to `peer` out of the underlay device, with the length of one segment on the wire, so
/// that a path MTU which the kernel learned from ICMP counts too. Nothing is cached: the answer is never stale.
#[inline(always)]
pub(crate) fn next_hop(packet: &Packet<'_>, peer: Addr4, wire_length: u32) -> Result<NextHop, NoNextHop> {
    if wire_length > u32::from(u16::MAX) {
        return Err(NoNextHop::Stack);
    }
    // SAFETY: integers only, zero is valid for all of them.
    let mut query: bpf_fib_lookup = unsafe { core::mem::zeroed() };
    query.family = AF_INET;
    query.l4_protocol = IPPROTO_UDP;
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
            BPF_FIB_LOOKUP_OUTPUT,
        )
    };
    if result == i64::from(BPF_FIB_LKUP_RET_SUCCESS) {
        return Ok(NextHop { ifindex: query.ifindex, mac: query.dmac, source_mac: query.smac });
    }
    if result == i64::from(BPF_FIB_LKUP_RET_FRAG_NEEDED) {
        // SAFETY: this answer fills in mtu_result.
        return Err(NoNextHop::TooBig(u32::from(unsafe { query.__bindgen_anon_1.mtu_result })));
    }
    Err(NoNextHop::Stack)
}
