//! Values of the tables of peers, endpoints and stack flows: what the programs look up for each packet.
use crate::{Addr4, Addr6};

/// Value of `PEERS`: the host that leased the subnet which is the key. In `PEER_INDEX` an underlay address of zero means that
/// there is no peer.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PeerEntry<A = Addr4> {
    /// The peer's underlay address: outer destination of what we send, outer source of what it sends.
    pub outer: A,
    /// The VtepMAC of the peer's lease: inner destination MAC. A kernel VXLAN device drops any other as PACKET_OTHERHOST.
    /// Zero where no inner frame has one (bare IPv4 in UDP).
    pub vtep_mac: [u8; 6],
    /// See the `PEER_*` bits.
    pub flags: u16,
    /// Index of this peer's counters in `PEER_COUNTERS`. A host has one slot, for its subnets of either family.
    pub slot: u32,
}

impl<A> PeerEntry<A> {
    /// A peer at this underlay address.
    pub const fn new(outer: A, vtep_mac: [u8; 6], flags: u16, slot: u32) -> Self {
        Self { outer, vtep_mac, flags, slot }
    }
}

/// Value of `ENDPOINTS`: a container address of the own subnet, and where it lives. In `ENDPOINT_INDEX` an interface of zero
/// means that there is no endpoint.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EndpointEntry {
    /// Interface index of the host's end of the container's veth.
    pub ifindex: u32,
    /// MAC address inside the container: destination of delivered frames.
    pub mac: [u8; 6],
    /// MAC address of the gateway the container talks to (the bridge's, or the veth's): source of delivered frames, and
    /// destination of the frames that the fast path takes from the container.
    pub gateway_mac: [u8; 6],
    /// See the `ENDPOINT_*` bits, and `ENDPOINT_BRIDGE` for the index that lies above them.
    pub flags: u32,
}

/// Value of `STACK_FLOWS`: a connection that the stack has seen, so that all of it must go through the stack until it is promoted.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flow {
    /// CLOCK_MONOTONIC nanoseconds of the last packet; written at most once a second.
    pub seen_ns: u64,
    /// See the `FLOW_*` bits. Whoever writes it keeps the bits that it does not know.
    pub state: u32,
    /// Always zero so far.
    pub reserved: u32,
}

const _: () = {
    assert!(size_of::<PeerEntry>() == 16);
    assert!(size_of::<PeerEntry<Addr6>>() == 28);
    assert!(size_of::<EndpointEntry>() == 20);
    assert!(size_of::<Flow>() == 16);
};
