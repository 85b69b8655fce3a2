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

use crate::{Addr4, Addr6, Address};

/// Value of `VTEPS`: a known peer, by its underlay address.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Vtep {
    /// Index of this peer's counters in `PEER_COUNTERS`. A peer with several subnets has the slot of one of them here.
    pub slot: u32,
}

/// The peer's tunnel takes outer UDP checksums of zero over IPv6, as its lease says (RFC 6935 section 5 allows them to tunnels that
/// agree on it). A peer of IPv4 has no bit: there a checksum of zero is everybody's (RFC 768).
pub const PEER_ZERO_CHECKSUM6: u16 = 1 << 0;

/// The endpoint was named by an operator or a CNI plugin: learning neither moves nor removes it.
pub const ENDPOINT_PINNED: u32 = 1 << 0;
/// Somebody else has a queueing discipline, a filter or a program at the egress of the endpoint's port. What is delivered goes
/// through that egress, as what the stack delivers does.
pub const ENDPOINT_FOREIGN_EGRESS: u32 = 1 << 1;
/// Somebody else has a filter or a program at the ingress of the endpoint's port. What the container sends is left to the stack
/// when that has seen it, and so is what it is sent: a connection has one path.
pub const ENDPOINT_FOREIGN_INGRESS: u32 = 1 << 2;

/// The part of an endpoint's flags that names the bridge whose ports' frames the programs hand on themselves: its interface index,
/// or zero where the bridge or the host would do more to a frame from or to this endpoint than forward it. An endpoint gives and
/// gets such frames only from others with the same number. Agents of earlier builds leave it zero, and their programs ignore it.
pub const ENDPOINT_BRIDGE: u32 = !0 << ENDPOINT_BRIDGE_SHIFT;
const ENDPOINT_BRIDGE_SHIFT: u32 = 8;
/// The greatest interface index of a bridge that the flags have room for. The kernel numbers interfaces one after the other, so
/// none comes near it.
pub const MAX_ENDPOINT_BRIDGE: u32 = ENDPOINT_BRIDGE >> ENDPOINT_BRIDGE_SHIFT;

/// The flags that name this bridge. The index must be no greater than [`MAX_ENDPOINT_BRIDGE`].
pub const fn endpoint_bridge_flags(bridge: u32) -> u32 {
    bridge << ENDPOINT_BRIDGE_SHIFT
}

/// Interface index of the bridge that an endpoint's flags name, or zero.
#[inline(always)]
pub const fn endpoint_bridge(flags: u32) -> u32 {
    (flags & ENDPOINT_BRIDGE) >> ENDPOINT_BRIDGE_SHIFT
}

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

/// Value of `PORTS`, per CPU: an interface of the host that the kernel has just been asked for.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KeptPort {
    /// The tick of the kernel's clock in which it was asked. Zero is none: the clock begins elsewhere (`INITIAL_JIFFIES`).
    pub jiffies: u64,
    /// Its index.
    pub ifindex: u32,
    /// Its MTU in bytes, without the link header.
    pub mtu: u32,
}

/// Places in `PORTS`.
pub const PORTS_PLACES: u32 = 256;

/// Value of `NEXT_HOPS`, per CPU: the next hop that the kernel has just named.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KeptNextHop<A = Addr4> {
    /// [`next_hop_stamp`] of the question. It is the first that is written, and the first that is read.
    pub begun: u64,
    /// The tick of the kernel's clock in which it was asked.
    pub jiffies: u64,
    /// The question: the peer's underlay address.
    pub peer: A,
    /// The question: the outer source port.
    pub source_port: u32,
    /// The answer: the interface.
    pub ifindex: u32,
    /// The answer: the peer itself, or the gateway towards it.
    pub address: A,
    /// The answer: bytes of the longest IP packet that the path takes, as far as is known.
    pub fits: u32,
    /// For how many more packets this holds.
    pub uses: u32,
    /// Destination and source of the Ethernet header, in network order, as the kernel's neighbours had them. Zeros where they are not
    /// known.
    pub macs: [u16; 6],
    /// Always zero.
    pub reserved: u32,
    /// The same as `begun`, but the last that is written, and the last that is read.
    pub ended: u64,
}

/// What an entry of `NEXT_HOPS` for this question begins and ends with. Zero is no question's: a source port is never zero.
#[inline(always)]
pub fn next_hop_stamp<A: Address>(peer: A, source_port: u16) -> u64 {
    u64::from(peer.folded()) << 32 | u64::from(source_port)
}

/// How many next hops each CPU keeps.
pub const NEXT_HOPS_PLACES: u32 = 256;

/// The one place in `NEXT_HOPS` for the next hop to the peer at this underlay address, for this source port. The addresses of
/// neighbouring hosts differ in their last bits, and ports in all.
#[inline(always)]
pub fn next_hop_place<A: Address>(peer: A, source_port: u16) -> u32 {
    (u32::from_be(peer.folded()) ^ u32::from(source_port)) % NEXT_HOPS_PLACES
}

const _: () = {
    assert!(size_of::<KeptNextHop>() == 64);
    assert!(size_of::<KeptNextHop<Addr6>>() == 88);
    assert!(size_of::<KeptPort>() == 16);
    assert!(size_of::<Vtep>() == 4);
    assert!(size_of::<PeerCount>() == 32);
    // XDP metadata: a multiple of 4, at most 32 (bpf_xdp_adjust_meta before 6.6).
    assert!(size_of::<StripMark>() == 16);
    assert!(size_of::<StripMark<Addr6>>() == 28);
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
