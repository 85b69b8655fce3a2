//! Another layout of the same values, for the tests of upgrades. One value has another size; two differ from the present ones
//! only in the order of their fields, so that reading one as the other cannot go unnoticed.
use crate::Addr4;

/// See `entries.rs`.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PeerEntry<A = Addr4> {
    /// Counters.
    pub slot: u32,
    /// The `PEER_*` bits.
    pub flags: u16,
    /// Always zero.
    pub reserved: [u8; 8],
    /// Inner destination MAC.
    pub vtep_mac: [u8; 6],
    /// Underlay address.
    pub outer: A,
}

impl<A> PeerEntry<A> {
    /// See `entries.rs`.
    pub const fn new(outer: A, vtep_mac: [u8; 6], flags: u16, slot: u32) -> Self {
        Self { slot, flags, reserved: [0; 8], vtep_mac, outer }
    }
}

/// See `entries.rs`.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EndpointEntry {
    /// The `ENDPOINT_*` bits.
    pub flags: u32,
    /// The gateway's MAC address.
    pub gateway_mac: [u8; 6],
    /// The container's MAC address.
    pub mac: [u8; 6],
    /// Interface index.
    pub ifindex: u32,
}

/// See `entries.rs`.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flow {
    /// Always zero.
    pub reserved: u32,
    /// The `FLOW_*` bits.
    pub state: u32,
    /// CLOCK_MONOTONIC nanoseconds of the last packet.
    pub seen_ns: u64,
}

const _: () = {
    assert!(size_of::<PeerEntry>() == 24);
    assert!(size_of::<EndpointEntry>() == 20);
    assert!(size_of::<Flow>() == 16);
};
