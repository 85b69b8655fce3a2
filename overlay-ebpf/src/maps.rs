//! Every map, and the look-ups in them: this file and `maps/ipv6.rs` are all that names a map.
#[macro_use]
mod lookups;
mod ipv6;

use aya_ebpf::{
    bindings::xdp_action::XDP_PASS,
    btf_maps::{Array, DevMapHash, HashMap, PerCpuArray},
    macros::btf_map,
};
use overlay_common::{
    Addr4, Count, EndpointEntry, FAST_PATH_OFF, Flow, FlowKey, KeptNextHop, KeptPort, MARK_BUCKETS,
    MAX_ENDPOINTS, MAX_FLOWS, MAX_PEERS, MAX_XDP_TARGETS, NEXT_HOPS_PLACES, PORTS_PLACES, PeerCount,
    PeerEntry, SETTING_ENDPOINT_INDEX, SETTING_PEER_INDEX, Vtep, next_hop_place,
    reason::{COUNTERS as COUNTERS_LENGTH, REASONS},
};

pub(crate) use self::lookups::Lookups;
use self::lookups::{FlowMarks, NextHopPlace, mark};
use crate::settings::{self, Prefixes as _};

/// Which host holds a subnet. It is preallocated, so an update never fails for want of memory, and a look-up never meets a
/// half-made entry.
#[btf_map]
static PEERS: HashMap<Addr4, PeerEntry, { MAX_PEERS as usize }> = HashMap::new();

/// The same peers, by the number of their subnet in Network. It takes one read, where a hash takes a function's call, a bucket
/// and a chain, each of which is a cache miss where peers are many. Each agent makes it anew, as long as Network has subnets.
#[btf_map]
static PEER_INDEX: Array<PeerEntry, 1> = Array::new();

/// The endpoints, by the number of their address in the subnet.
#[btf_map]
static ENDPOINT_INDEX: Array<EndpointEntry, 1> = Array::new();

/// Which underlay addresses belong to peers at all.
#[btf_map]
static VTEPS: HashMap<Addr4, Vtep, { MAX_PEERS as usize }> = HashMap::new();

/// Where a container's address lives.
#[btf_map]
static ENDPOINTS: HashMap<Addr4, EndpointEntry, { MAX_ENDPOINTS as usize }> = HashMap::new();

/// Connections that the stack has seen. They keep to it until they are promoted. An ordinary hash, not an LRU: an entry that was
/// evicted would be a broken connection.
#[btf_map]
static STACK_FLOWS: HashMap<FlowKey, Flow, { MAX_FLOWS as usize }> = HashMap::new();

/// Marks, by [`FlowKey::bucket`], of what `STACK_FLOWS` may hold: without a mark it need not be asked. There are two halves, of
/// which one counts. Programs set marks in both and clear none. When stack flows have gone, the agent makes the half anew that
/// does not count, and then has it count.
#[btf_map]
static FLOW_MARKS: FlowMarks = Array::new();

/// Which half counts: 0 or 1.
#[btf_map]
static FLOW_MARKS_HALF: Array<u32, 1> = Array::new();

/// The promotion epoch. The agent writes another one when the host's packet filter changes, which takes every promotion back.
#[btf_map]
static PROMOTION_EPOCH: Array<u32, 1> = Array::new();

/// Which packets the fast path carries: a `FAST_PATH_*`. The agent writes it whenever what the host asks for changes, and it holds
/// when the agent is gone.
#[btf_map]
static FAST_PATH: Array<u32, 1> = Array::new();

/// Per CPU: the connection of the packet that `overlay_encap` has just left to the stack, or zeros. It is not pinned: new programs
/// start with none.
#[btf_map]
static LEFT: PerCpuArray<FlowKey, 1> = PerCpuArray::new();

/// Per CPU: next hops that the kernel has just named. Each has one place where it can be, which it shares with others. They are not
/// pinned: new programs start with none.
#[btf_map]
static NEXT_HOPS: PerCpuArray<KeptNextHop, { NEXT_HOPS_PLACES as usize }> = PerCpuArray::new();

/// Per CPU: interfaces that the kernel has just been asked for, by the last bits of their index. They are not pinned: new programs
/// start with none.
#[btf_map]
static PORTS: PerCpuArray<KeptPort, { PORTS_PLACES as usize }> = PerCpuArray::new();

/// Interfaces, by their index, to which XDP may redirect: veths whose other end takes such frames. The kernel removes an
/// interface that goes.
#[btf_map]
static XDP_TARGETS: DevMapHash<{ MAX_XDP_TARGETS as usize }> = DevMapHash::new();

/// Packets and bytes by hook and reason; see `COUNTERS` in `overlay-common/src/reason.rs`.
#[btf_map]
static COUNTERS: PerCpuArray<Count, { COUNTERS_LENGTH as usize }> = PerCpuArray::new();

/// Packets and bytes by peer.
#[btf_map]
static PEER_COUNTERS: PerCpuArray<PeerCount, { MAX_PEERS as usize }> = PerCpuArray::new();

/// Per CPU: a token bucket for the log lines about each reason and, in the last place, one for ICMP answers. It is not pinned:
/// new programs start with new buckets.
#[btf_map]
static PACE: PerCpuArray<Pace, { REASONS as usize + 1 }> = PerCpuArray::new();

/// A token bucket.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Pace {
    /// CLOCK_MONOTONIC nanoseconds of the last refill.
    pub(crate) refilled_ns: u64,
    /// Tokens left.
    pub(crate) tokens: u64,
}

impl Lookups for Addr4 {
    #[inline(always)]
    fn peer(self) -> Option<PeerEntry> {
        if settings::has(SETTING_PEER_INDEX) {
            // Only an address inside Network has a number.
            let indexed = self.in_network().then(|| PEER_INDEX.get(settings::subnet_number(self)))??;
            let peer = *indexed;
            return (peer.outer.raw() != 0).then_some(peer);
        }
        // SAFETY: copied out at once. User space replaces entries whole; a torn read across a replacement sends one packet
        // to the old or the new address with the other's MAC, which that host drops.
        unsafe { PEERS.get(self.subnet()) }.copied()
    }

    #[inline(always)]
    fn endpoint(self) -> Option<EndpointEntry> {
        if settings::has(SETTING_ENDPOINT_INDEX) {
            let indexed = self.in_subnet().then(|| ENDPOINT_INDEX.get(settings::address_number(self)))??;
            let endpoint = *indexed;
            return (endpoint.ifindex != 0).then_some(endpoint);
        }
        // SAFETY: as in `peer`.
        unsafe { ENDPOINTS.get(self) }.copied()
    }

    look_ups_in!(VTEPS, STACK_FLOWS, FLOW_MARKS, FLOW_MARKS_HALF, LEFT, NEXT_HOPS, FAST_PATH);
}

/// Where this CPU keeps what it knows of an interface, which it shares with others.
#[inline(always)]
pub(crate) fn port(ifindex: u32) -> Option<&'static mut KeptPort> {
    // SAFETY: as in `counter`. Where one run interrupts another (PREEMPT_RT), an answer may be taken for one of this tick that is of
    // an earlier one.
    PORTS.get_ptr_mut(ifindex % PORTS_PLACES).map(|port| unsafe { &mut *port })
}

/// Verdict of an XDP program that hands the frame, as it is when the program ends, to interface `ifindex`. None if that is
/// no XDP target.
#[inline(always)]
pub(crate) fn redirect(ifindex: u32) -> Option<u32> {
    XDP_TARGETS.redirect(ifindex, u64::from(XDP_PASS)).ok()
}

pub(crate) use self::ipv6::{go_on_answering, go_on_in, wanted_answer};

/// The promotion epoch.
#[inline(always)]
pub(crate) fn promotion_epoch() -> u32 {
    PROMOTION_EPOCH.get(0).copied().unwrap_or(0)
}

/// This CPU's counter.
#[inline(always)]
pub(crate) fn counter(index: u32) -> Option<&'static mut Count> {
    // SAFETY: this CPU's own slot, and a program is not preempted by itself on the same CPU and hook; should a nested
    // run (softirq) interleave, one increment may be lost, nothing else.
    COUNTERS.get_ptr_mut(index).map(|count| unsafe { &mut *count })
}

/// This CPU's counters of a peer.
#[inline(always)]
pub(crate) fn peer_counter(slot: u32) -> Option<&'static mut PeerCount> {
    // SAFETY: as in `counter`.
    PEER_COUNTERS.get_ptr_mut(slot).map(|count| unsafe { &mut *count })
}

/// This CPU's bucket.
#[inline(always)]
pub(crate) fn pace(index: u32) -> Option<&'static mut Pace> {
    // SAFETY: as in `counter`.
    PACE.get_ptr_mut(index).map(|pace| unsafe { &mut *pace })
}
