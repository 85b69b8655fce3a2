//! What the maps of a family answer, and what look-ups are alike in every family.
use aya_ebpf::btf_maps::Array;
use overlay_common::{Address, EndpointEntry, Flow, FlowKey, KeptNextHop, MARK_BUCKETS, PeerEntry, Vtep};

use crate::settings::Prefixes;

/// A place for a next hop.
pub(crate) struct NextHopPlace<A>(pub(super) *mut KeptNextHop<A>);

impl<A: Address> NextHopPlace<A> {
    /// What is here. Its stamps are equal only if it is the answer to one question: they are read first and last, as they are written.
    #[inline(always)]
    pub(crate) fn read(&self) -> KeptNextHop<A> {
        let place = self.0;
        // SAFETY: an entry of a map that is never freed while the program runs; every bit pattern is valid. Volatile, so that the
        // compiler keeps the order, which is all that counts between programs of one CPU.
        unsafe {
            KeptNextHop {
                begun: (&raw const (*place).begun).read_volatile(),
                jiffies: (&raw const (*place).jiffies).read_volatile(),
                peer: (&raw const (*place).peer).read_volatile(),
                source_port: (&raw const (*place).source_port).read_volatile(),
                ifindex: (&raw const (*place).ifindex).read_volatile(),
                address: (&raw const (*place).address).read_volatile(),
                fits: (&raw const (*place).fits).read_volatile(),
                uses: (&raw const (*place).uses).read_volatile(),
                macs: (&raw const (*place).macs).read_volatile(),
                reserved: 0,
                ended: (&raw const (*place).ended).read_volatile(),
            }
        }
    }

    /// Puts this here.
    #[inline(always)]
    pub(crate) fn write(&self, next_hop: &KeptNextHop<A>) {
        let place = self.0;
        // SAFETY: as in `read`.
        unsafe {
            (&raw mut (*place).begun).write_volatile(next_hop.begun);
            (&raw mut (*place).jiffies).write_volatile(next_hop.jiffies);
            (&raw mut (*place).peer).write_volatile(next_hop.peer);
            (&raw mut (*place).source_port).write_volatile(next_hop.source_port);
            (&raw mut (*place).ifindex).write_volatile(next_hop.ifindex);
            (&raw mut (*place).address).write_volatile(next_hop.address);
            (&raw mut (*place).fits).write_volatile(next_hop.fits);
            (&raw mut (*place).uses).write_volatile(next_hop.uses);
            (&raw mut (*place).macs).write_volatile(next_hop.macs);
            (&raw mut (*place).ended).write_volatile(next_hop.ended);
        }
    }

    /// Says for how many more packets this holds.
    #[inline(always)]
    pub(crate) fn spend(&self, uses: u32) {
        // SAFETY: as in `read`.
        unsafe { (&raw mut (*self.0).uses).write_volatile(uses) };
    }
}

/// What the maps of one family know of an address.
pub(crate) trait Lookups: Prefixes {
    /// The peer whose subnet holds this address of Network.
    fn peer(self) -> Option<PeerEntry<Self>>;

    /// An address of the overlay: leasable, or in a peer's subnet (an operator may have altered the range since that was
    /// leased). Every other address of Network is the host's.
    #[inline(always)]
    fn is_overlays(self) -> bool {
        self.in_network() && (self.is_leasable() || self.peer().is_some())
    }

    /// An address of the overlay that is not in this host's own subnet.
    #[inline(always)]
    fn is_another_hosts(self) -> bool {
        self.is_overlays() && !self.in_subnet()
    }

    /// The peer at this underlay address.
    fn vtep(self) -> Option<Vtep>;

    /// The endpoint with this address.
    fn endpoint(self) -> Option<EndpointEntry>;

    /// Whether a connection may be a stack flow. False is certain. The mark answers without a look-up in the table of stack flows.
    fn may_be_stack_flow(bucket: u32) -> bool;

    /// The stack flow of a connection, if it is one.
    fn stack_flow(key: &FlowKey<Self>) -> Option<&'static mut Flow>;

    /// Makes a connection a stack flow. Fails when the table is full.
    fn insert_stack_flow(key: &FlowKey<Self>, flow: &Flow) -> Result<(), i32>;

    /// The connection of the packet that this CPU has just left to the stack, or zeros.
    fn left() -> Option<&'static mut FlowKey<Self>>;

    /// Where this CPU keeps the next hop to the peer at this underlay address, for this source port.
    fn next_hop_place(self, source_port: u16) -> Option<NextHopPlace<Self>>;

    /// Which packets of this family the fast path carries: a `FAST_PATH_*`.
    fn fast_path() -> u32;
}

/// What a family's look-ups are in its own maps, where all families do the same.
macro_rules! look_ups_in {
    ($vteps:ident, $flows:ident, $marks:ident, $half:ident, $left:ident, $next_hops:ident, $fast_path:ident) => {
        #[inline(always)]
        fn vtep(self) -> Option<Vtep> {
            // SAFETY: as in `peer`.
            unsafe { $vteps.get(self) }.copied()
        }

        #[inline(always)]
        fn may_be_stack_flow(bucket: u32) -> bool {
            let half = $half.get(0).copied().unwrap_or(0) & 1;
            $marks.get(half * MARK_BUCKETS + bucket).is_none_or(|mark| *mark != 0)
        }

        #[inline(always)]
        fn stack_flow(key: &FlowKey<Self>) -> Option<&'static mut Flow> {
            // SAFETY: hash entries are preallocated and never freed while the program runs; `Flow` is two words that several
            // CPUs may write: the last writer wins, and both wrote the present second.
            $flows.get_ptr_mut(key).map(|flow| unsafe { &mut *flow })
        }

        #[inline(always)]
        fn insert_stack_flow(key: &FlowKey<Self>, flow: &Flow) -> Result<(), i32> {
            // The mark is set before, so that no packet misses the entry once it is there, and after it, for the half that the
            // agent may have cleared in between: what the agent reads of the table after clearing lacks this entry only if the
            // entry, and so this second mark, comes later.
            mark(&$marks, key.bucket());
            let inserted = $flows.insert(key, flow, 0);
            mark(&$marks, key.bucket());
            inserted
        }

        #[inline(always)]
        fn left() -> Option<&'static mut FlowKey<Self>> {
            // SAFETY: as in `counter`; a key that is torn equals none, or a connection that is promoted one packet later.
            $left.get_ptr_mut(0).map(|key| unsafe { &mut *key })
        }

        #[inline(always)]
        fn next_hop_place(self, source_port: u16) -> Option<NextHopPlace<Self>> {
            $next_hops.get_ptr_mut(next_hop_place(self, source_port)).map(NextHopPlace)
        }

        #[inline(always)]
        fn fast_path() -> u32 {
            $fast_path.get(0).copied().unwrap_or(FAST_PATH_OFF)
        }
    };
}

/// Marks of stack flows.
pub(super) type FlowMarks = Array<u32, { 2 * MARK_BUCKETS as usize }>;

#[inline(always)]
pub(super) fn mark(marks: &FlowMarks, bucket: u32) {
    for half in [0, 1] {
        if let Some(mark) = marks.get_ptr_mut(half * MARK_BUCKETS + bucket) {
            // SAFETY: a word of a map that is never freed while the program runs; programs write nothing but this.
            unsafe { mark.write_volatile(1) };
        }
    }
}
