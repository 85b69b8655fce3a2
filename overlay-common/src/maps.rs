//! Keys and values of the BPF maps. A connection's key is in `flow.rs`, an address in `address.rs`.
//!
//! Rules: `repr(C)`, byte arrays in network order, explicit padding (the kernel compares keys as raw bytes), a size
//! assert each. Every address family has maps of its own; what differs between them is the type of an address.
#[cfg(not(feature = "next-layout"))]
mod entries;
#[cfg(feature = "next-layout")]
#[path = "maps/next.rs"]
mod entries;

pub use entries::{EndpointEntry, Flow, PeerEntry};

use crate::Addr4;

/// Value of `VTEPS`: a known peer, by its underlay address.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Vtep {
    /// Index of this peer's counters in `PEER_COUNTERS`. A peer with several subnets has the slot of one of them here.
    pub slot: u32,
}

/// The endpoint was named by an operator or a CNI plugin: learning neither moves nor removes it.
pub const ENDPOINT_PINNED: u32 = 1 << 0;
/// Somebody else has a queueing discipline, a filter or a program at the egress of the endpoint's port. What is delivered goes
/// through that egress, as what the stack delivers does.
pub const ENDPOINT_FOREIGN_EGRESS: u32 = 1 << 1;
/// Somebody else has a filter or a program at the ingress of the endpoint's port. What the container sends is left to the stack
/// when that has seen it, and so is what it is sent: a connection has one path.
pub const ENDPOINT_FOREIGN_INGRESS: u32 = 1 << 2;

/// What `overlay_xdp_strip` writes in front of a frame it has decapsulated, as XDP metadata. `overlay_decap` believes it, since
/// nothing that arrives on a wire has any. It is constant for a peer, since GRO merges only frames with equal metadata. Address,
/// port and VNI keep two networks apart, on one host or one inside the other.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StripMark<A = Addr4> {
    /// Always [`STRIP_MAGIC`].
    pub magic: [u8; 2],
    /// UDP port of the tunnel, network order.
    pub port: [u8; 2],
    /// VXLAN network identifier.
    pub vni: u32,
    /// This host's address on the underlay.
    pub local: A,
    /// Index of the sending peer's counters in `PEER_COUNTERS`.
    pub slot: u32,
}

/// Tells strip marks from the metadata that other programs write.
pub const STRIP_MAGIC: [u8; 2] = *b"ov";

/// The first words of `cb` in a packet that the fast path delivers through the egress of a container's port. The three words
/// behind them are the indexes of the underlay device, of overlay0 and of the port.
pub const DELIVERY_MAGIC: [u32; 2] = [u32::from_be_bytes(*b"over"), u32::from_be_bytes(*b"lay!")];

/// Packets and bytes. Bytes are those of the inner IP packet, without any link header. The headers of a GSO or GRO frame are
/// counted once, though each segment has its own.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Packets; a GSO or GRO frame counts its segments.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}

/// Value of `PEER_COUNTERS`, per CPU: what the fast path carried to and from one peer.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PeerCount {
    /// Encapsulated towards the peer.
    pub sent: Count,
    /// Decapsulated from the peer.
    pub received: Count,
}

const _: () = {
    assert!(size_of::<Vtep>() == 4);
    assert!(size_of::<PeerCount>() == 32);
    // XDP metadata: a multiple of 4, at most 32 (bpf_xdp_adjust_meta before 6.6).
    assert!(size_of::<StripMark>() == 16);
};

/// Default of `--max-peers`.
pub const MAX_PEERS: u32 = 4096;
/// Capacity of `ENDPOINTS` as compiled; the agent sizes it to the subnet.
pub const MAX_ENDPOINTS: u32 = 1024;
/// A Network of more subnets has no `PEER_INDEX`: with 16 bytes for each it would take more than 16 MiB.
pub const MAX_PEER_INDEX: u32 = 1 << 20;
/// A subnet of more addresses has no `ENDPOINT_INDEX`.
pub const MAX_ENDPOINT_INDEX: u32 = 1 << 16;
/// Capacity of `XDP_TARGETS` as compiled; the agent sizes it like `ENDPOINTS`.
pub const MAX_XDP_TARGETS: u32 = 1024;
/// Default of `--max-flows`.
pub const MAX_FLOWS: u32 = 65536;
