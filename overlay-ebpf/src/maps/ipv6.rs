//! The maps of IPv6. Counters, ports, XDP targets and the promotion epoch are those of IPv4 as well.
//!
//! A subnet of IPv6 has too many addresses for a number of each, and IPv6Network may have too many subnets, so peers and endpoints
//! are found by hash.
use aya_ebpf::{
    EbpfContext,
    btf_maps::{Array, HashMap, PerCpuArray, ProgramArray},
    macros::btf_map,
};
use overlay_common::{
    Addr6, EndpointEntry, FAST_PATH_OFF, Flow, FlowKey, IPV6_PROGRAMS as IPV6_PROGRAMS_LENGTH, Ipv6Program,
    KeptNextHop, MARK_BUCKETS, MAX_ENDPOINTS, MAX_FLOWS, MAX_PEERS, NEXT_HOPS_PLACES, PeerEntry, Vtep,
    next_hop_place,
};

use super::lookups::{FlowMarks, Lookups, NextHopPlace, mark};
use crate::settings::Prefixes as _;

/// The programs for IPv6, each at the number of its [`Ipv6Program`]. The map is pinned: it keeps them when the agent is gone.
#[btf_map]
static IPV6_PROGRAMS: ProgramArray<{ IPV6_PROGRAMS_LENGTH as usize }> = ProgramArray::new();

/// Which host holds a subnet, as in `PEERS`.
#[btf_map]
static PEERS6: HashMap<Addr6, PeerEntry<Addr6>, { MAX_PEERS as usize }> = HashMap::new();

/// Which underlay addresses belong to peers at all, as in `VTEPS`.
#[btf_map]
static VTEPS6: HashMap<Addr6, Vtep, { MAX_PEERS as usize }> = HashMap::new();

/// Where a container's address lives, as in `ENDPOINTS`.
#[btf_map]
static ENDPOINTS6: HashMap<Addr6, EndpointEntry, { MAX_ENDPOINTS as usize }> = HashMap::new();

/// Connections that the stack has seen, as in `STACK_FLOWS`.
#[btf_map]
static STACK_FLOWS6: HashMap<FlowKey<Addr6>, Flow, { MAX_FLOWS as usize }> = HashMap::new();

/// Marks of stack flows, as in `FLOW_MARKS`.
#[btf_map]
static FLOW_MARKS6: FlowMarks = Array::new();

/// Which half of them counts, as in `FLOW_MARKS_HALF`.
#[btf_map]
static FLOW_MARKS_HALF6: Array<u32, 1> = Array::new();

/// Which packets the fast path carries, as in `FAST_PATH`: the packet filter may have other rules for IPv6.
#[btf_map]
static FAST_PATH6: Array<u32, 1> = Array::new();

/// The connection of the packet that this CPU has just left to the stack, as in `LEFT`.
#[btf_map]
static LEFT6: PerCpuArray<FlowKey<Addr6>, 1> = PerCpuArray::new();

/// Next hops that the kernel has just named, as in `NEXT_HOPS`.
#[btf_map]
static NEXT_HOPS6: PerCpuArray<KeptNextHop<Addr6>, { NEXT_HOPS_PLACES as usize }> = PerCpuArray::new();

/// The answer that `overlay_encap6` wants of `overlay_answer6` on this CPU: the MTU that the path takes, or zero if there is no route.
#[btf_map]
static ANSWER6: PerCpuArray<u32, 1> = PerCpuArray::new();

/// Goes on in the program that answers the packet, and comes back only if there is none.
#[inline(always)]
pub(crate) fn go_on_answering(context: &impl EbpfContext, mtu: u32) {
    if let Some(answer) = ANSWER6.get_ptr_mut(0) {
        // SAFETY: this CPU's own word. Where one run interrupts another (PREEMPT_RT), a sender may be told another's MTU: it is one
        // of a path from this host all the same.
        unsafe { answer.write_volatile(mtu) };
        go_on_in(context, Ipv6Program::Answer);
    }
}

/// The answer that is wanted.
#[inline(always)]
pub(crate) fn wanted_answer() -> Option<u32> {
    // SAFETY: as above.
    ANSWER6.get_ptr(0).map(|answer| unsafe { answer.read_volatile() })
}

/// Goes on in the program for IPv6 at this hook, and comes back only if there is none.
#[inline(always)]
pub(crate) fn go_on_in(context: &impl EbpfContext, program: Ipv6Program) {
    // SAFETY: no value of this program has anything to be dropped.
    unsafe { IPV6_PROGRAMS.tail_call(context, program as u32) };
}

impl Lookups for Addr6 {
    #[inline(always)]
    fn peer(self) -> Option<PeerEntry<Self>> {
        // SAFETY: copied out at once, as for IPv4.
        unsafe { PEERS6.get(self.subnet()) }.copied()
    }

    #[inline(always)]
    fn endpoint(self) -> Option<EndpointEntry> {
        // SAFETY: as in `peer`.
        unsafe { ENDPOINTS6.get(self) }.copied()
    }

    look_ups_in!(VTEPS6, STACK_FLOWS6, FLOW_MARKS6, FLOW_MARKS_HALF6, LEFT6, NEXT_HOPS6, FAST_PATH6);
}
