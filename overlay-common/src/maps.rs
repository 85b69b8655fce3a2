//! Keys and values of every BPF map, and the settings the programs are loaded with.
//!
//! Rules: `repr(C)`, byte arrays in network order, explicit padding (the kernel compares keys as raw bytes), a size
//! assert each. IPv6 peers and endpoints will be maps of their own beside these, with keys of 16 bytes.
#[cfg(not(feature = "next-layout"))]
mod entries;
#[cfg(feature = "next-layout")]
#[path = "maps/next.rs"]
mod entries;

pub use entries::{Endpoint, Flow, Peer};

/// Prefix lengths, masks and identities of this host: constants of a loaded program (its `.rodata`, frozen), so the
/// verifier and the JIT see them as such. Replacing them means loading the programs anew, which replaces them atomically.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Base address of Network, the whole overlay.
    pub network: [u8; 4],
    /// Netmask of Network.
    pub network_mask: [u8; 4],
    /// Base address of the subnet this host leased.
    pub subnet: [u8; 4],
    /// Netmask of every leased subnet (SubnetLen of the network's config).
    pub subnet_mask: [u8; 4],
    /// This host's address on the underlay: outer source when sending, outer destination when receiving.
    pub local: [u8; 4],
    /// Interface index of the underlay device, where peers are reached.
    pub underlay: u32,
    /// Interface index of overlay0. Where the stack must not see a packet as one of the underlay device's, it gets it there.
    pub device: u32,
    /// VXLAN network identifier, 24 bits, in the machine's order. Zero where there is none.
    pub vni: u32,
    /// UDP destination port of the tunnel, network order.
    pub port: [u8; 2],
    /// MAC address of overlay0, published in our lease; inner destination of everything we receive.
    pub vtep_mac: [u8; 6],
    /// See the `SETTING_*` bits.
    pub flags: u32,
    /// First source port of the outer UDP header, in the machine's order.
    pub port_min: u16,
    /// Number of source ports from `port_min` on (RFC 7348 section 5 recommends 49152 to 65535).
    pub port_count: u16,
    /// Address that ICMP errors to containers come from: the subnet's first, which subnet.env gives to the bridge. No
    /// interface need have it.
    pub gateway: [u8; 4],
    /// MAC address of the underlay device: what XDP tells this host's frames by, where nobody has judged them before.
    pub underlay_mac: [u8; 6],
    /// What packets to peers are wrapped in: an `ENCAPSULATION_*`.
    pub encapsulation: u8,
    /// Bits of an address behind the prefix of every leased subnet: 32 - SubnetLen.
    pub host_bits: u8,
}

/// VXLAN (RFC 7348): overlay0 is a VXLAN device in collect-metadata mode.
pub const ENCAPSULATION_VXLAN: u8 = 0;
/// Bare IPv4 in UDP, as flannel's udp backend sends it: overlay0 is a TUN.
pub const ENCAPSULATION_UDP: u8 = 1;

/// Set DF in the outer header. Off as flannel has it: on black-holes paths that lose ICMP.
pub const SETTING_OUTER_DF: u32 = 1 << 0;
/// Drop inner sources outside Network even from a known peer (`--peer-check strict`).
pub const SETTING_STRICT_PEERS: u32 = 1 << 1;
/// Leave every packet to the kernel's own tunnel device (`--fast-path off`).
pub const SETTING_STACK_ONLY: u32 = 1 << 2;
/// Reach peers on the same link without encapsulation (`DirectRouting`, host-gw), and take in what they send so.
pub const SETTING_DIRECT: u32 = 1 << 3;
/// Peers are found in `PEER_INDEX`, by the number of their subnet in Network. The loader sets it where that has room.
pub const SETTING_PEER_INDEX: u32 = 1 << 4;
/// Endpoints are found in `ENDPOINT_INDEX`, by the number of their address in the subnet. The loader sets it where that has
/// room.
pub const SETTING_ENDPOINT_INDEX: u32 = 1 << 5;

impl Settings {
    /// How many subnets Network has: the length of `PEER_INDEX`.
    pub const fn subnets(&self) -> u64 {
        1 << (32 - prefix(self.network_mask)).saturating_sub(32 - prefix(self.subnet_mask))
    }

    /// How many addresses the own subnet has: the length of `ENDPOINT_INDEX`.
    pub const fn addresses(&self) -> u64 {
        1 << (32 - prefix(self.subnet_mask))
    }

    /// The number in Network of the subnet that holds `address`; nothing for one outside Network.
    #[inline(always)]
    pub const fn subnet_number(&self, address: Addr4) -> Option<u32> {
        number(address, self.network, self.network_mask, prefix(self.subnet_mask))
    }

    /// The number of `address` in the own subnet; nothing for one outside.
    #[inline(always)]
    pub const fn address_number(&self, address: Addr4) -> Option<u32> {
        number(address, self.subnet, self.subnet_mask, 32)
    }
}

const fn prefix(mask: [u8; 4]) -> u32 {
    u32::from_be_bytes(mask).count_ones()
}

/// The bits of `address` between the prefix of `network` and bit `end` from the left, as a number.
const fn number(address: Addr4, network: [u8; 4], mask: [u8; 4], end: u32) -> Option<u32> {
    let (bits, mask) = (u32::from_be_bytes(address.octets), u32::from_be_bytes(mask));
    if bits & mask == u32::from_be_bytes(network) { (bits & !mask).checked_shr(32 - end) } else { None }
}

/// An IPv4 address, or the base address of a subnet of SubnetLen: the key of peers, vteps and endpoints.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Addr4 {
    /// The address.
    pub octets: [u8; 4],
}

impl Addr4 {
    /// Wraps four octets as they stand in a packet.
    #[inline(always)]
    pub const fn new(octets: [u8; 4]) -> Self {
        Self { octets }
    }

    /// The octets as one integer whose in-memory bytes are the packet's: fit for masking and comparing, not for ordering.
    #[inline(always)]
    pub const fn raw(self) -> u32 {
        u32::from_ne_bytes(self.octets)
    }

    /// The base address of the subnet that holds this address.
    #[inline(always)]
    pub const fn masked(self, mask: [u8; 4]) -> Self {
        Self { octets: (self.raw() & u32::from_ne_bytes(mask)).to_ne_bytes() }
    }
}

/// Value of `VTEPS`: a known peer, by its underlay address.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Vtep {
    /// Index of this peer's counters in `PEER_COUNTERS`. A peer with several subnets has the slot of one of them here.
    pub slot: u32,
}

/// Named by an operator or a CNI plugin: learning neither moves nor removes it.
pub const ENDPOINT_PINNED: u32 = 1 << 0;

/// Key of `FLOWS`: a connection, the same for both directions (the lower address, as raw bytes, comes first).
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct FlowKey {
    /// The two addresses, ordered together with their ports.
    pub addresses: [[u8; 4]; 2],
    /// Ports of the two; for ICMP echo the identifier twice; zero for other protocols.
    pub ports: [[u8; 2]; 2],
    /// IP protocol number.
    pub protocol: u8,
    /// Always zero.
    pub reserved: [u8; 3],
}

impl FlowKey {
    /// The key of a packet, and of its replies.
    #[inline(always)]
    pub const fn new(source: Addr4, destination: Addr4, ports: [[u8; 2]; 2], protocol: u8) -> Self {
        let swap = source.raw() > destination.raw()
            || (source.raw() == destination.raw()
                && u16::from_ne_bytes(ports[0]) > u16::from_ne_bytes(ports[1]));
        let (addresses, ports) = if swap {
            ([destination.octets, source.octets], [ports[1], ports[0]])
        } else {
            ([source.octets, destination.octets], ports)
        };
        Self { addresses, ports, protocol, reserved: [0; 3] }
    }

    /// Where in a half of `NOTED` the connection's mark stands.
    #[inline(always)]
    pub const fn bucket(&self) -> u32 {
        // Multiplicative hashing by the golden ratio: the high bits depend on all of the word.
        const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
        let [a, b] = self.addresses;
        let [[c, d], [e, f]] = self.ports;
        let (a, b, ports) = (u32::from_ne_bytes(a), u32::from_ne_bytes(b), u32::from_ne_bytes([c, d, e, f]));
        let word = (a as u64) << 32 | (b ^ ports) as u64;
        (word.wrapping_mul(GOLDEN) >> (64 - NOTED_BUCKETS.trailing_zeros())) as u32
    }
}

/// Marks in each half of `NOTED`.
pub const NOTED_BUCKETS: u32 = 2048;

/// A packet was seen whose source is the key's first address.
pub const FLOW_FORWARD: u32 = 1 << 0;
/// A packet was seen whose source is the key's second address. With both, the connection is an established one.
pub const FLOW_BACKWARD: u32 = 1 << 1;
/// The last TCP packet seen had FIN or RST: the note then lives as long as conntrack keeps a closing connection
/// (120 s at least), no longer as an open one's.
pub const FLOW_CLOSING: u32 = 1 << 2;

/// What `overlay_xdp_strip` writes in front of a frame it has unwrapped, as XDP metadata, and `overlay_decap` believes:
/// nothing that arrives on a wire has any. Constant for a peer, since GRO merges only frames with equal metadata. Address,
/// port and VNI keep two networks apart, on one host or one inside the other.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StripMark {
    /// [`STRIP_MAGIC`].
    pub magic: [u8; 2],
    /// UDP port of the tunnel, network order.
    pub port: [u8; 2],
    /// VXLAN network identifier.
    pub vni: u32,
    /// This host's address on the underlay.
    pub local: [u8; 4],
    /// Index of the sending peer's counters in `PEER_COUNTERS`.
    pub slot: u32,
}

/// Other programs write metadata too.
pub const STRIP_MAGIC: [u8; 2] = *b"ov";

/// Packets and bytes. Bytes count the inner IP packet, without any link header; of a GSO or GRO frame they count the
/// headers once, though each segment has its own.
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
    assert!(size_of::<Settings>() == 60);
    assert!(size_of::<Addr4>() == 4);
    assert!(size_of::<Vtep>() == 4);
    assert!(size_of::<FlowKey>() == 16);
    assert!(size_of::<PeerCount>() == 32);
    // XDP metadata: a multiple of 4, at most 32 (bpf_xdp_adjust_meta before 6.6).
    assert!(size_of::<StripMark>() == 16);
};

/// Default of `--max-peers`.
pub const MAX_PEERS: u32 = 4096;
/// Capacity of `ENDPOINTS` as compiled; the agent sizes it to the subnet.
pub const MAX_ENDPOINTS: u32 = 1024;
/// Networks of more subnets have no `PEER_INDEX`: at 16 bytes each it would be of more than 16 MiB.
pub const MAX_PEER_INDEX: u32 = 1 << 20;
/// Subnets of more addresses have no `ENDPOINT_INDEX`.
pub const MAX_ENDPOINT_INDEX: u32 = 1 << 16;
/// Capacity of `RECEIVERS` as compiled; the agent sizes it like `ENDPOINTS`.
pub const MAX_RECEIVERS: u32 = 1024;
/// Default of `--max-flows`.
pub const MAX_FLOWS: u32 = 65536;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flow_key_is_the_same_for_both_directions() {
        let (a, b) = (Addr4::new([10, 244, 1, 2]), Addr4::new([10, 244, 2, 1]));
        let (p, q) = ([0x12, 0x34], [0x00, 0x50]);
        assert_eq!(FlowKey::new(a, b, [p, q], 6), FlowKey::new(b, a, [q, p], 6));
        assert_eq!(FlowKey::new(a, a, [p, q], 6), FlowKey::new(a, a, [q, p], 6));
        assert_ne!(FlowKey::new(a, b, [p, q], 6), FlowKey::new(a, b, [q, p], 6));
        assert_ne!(FlowKey::new(a, b, [p, q], 6), FlowKey::new(a, b, [p, q], 17));
    }

    #[test]
    fn connections_spread_over_the_marks() {
        let (a, b) = (Addr4::new([10, 244, 1, 2]), Addr4::new([10, 244, 2, 1]));
        let bucket = |port: u16| FlowKey::new(a, b, [port.to_be_bytes(), [0, 80]], 6).bucket();
        let mut urns = [0_u32; NOTED_BUCKETS as usize];
        for port in 40000..41000 {
            urns[bucket(port) as usize] += 1;
        }
        // 1000 balls in 2048 urns leave 2048 * (1 - e^(-1000 / 2048)) = 791 with one, by chance.
        let taken = urns.iter().filter(|balls| **balls > 0).count();
        assert!(taken > 700, "{taken}");
    }

    #[test]
    fn subnets_and_addresses_are_numbered() {
        let settings = Settings {
            network: [10, 128, 0, 0],
            network_mask: [255, 128, 0, 0],
            subnet: [10, 129, 2, 64],
            subnet_mask: [255, 255, 255, 192],
            ..Settings::default()
        };
        assert_eq!((settings.subnets(), settings.addresses()), (1 << 17, 64));
        assert_eq!(settings.subnet_number(Addr4::new([10, 128, 0, 63])), Some(0));
        assert_eq!(settings.subnet_number(Addr4::new([10, 255, 255, 192])), Some((1 << 17) - 1));
        assert_eq!(settings.subnet_number(Addr4::new([10, 127, 0, 64])), None);
        assert_eq!(settings.address_number(Addr4::new([10, 129, 2, 66])), Some(2));
        assert_eq!(settings.address_number(Addr4::new([10, 129, 2, 128])), None);
        let whole = Settings { subnet_mask: [255, 0, 0, 0], network_mask: [255, 0, 0, 0], ..settings };
        assert_eq!((whole.subnets(), whole.addresses()), (1, 1 << 24));
    }

    #[test]
    fn masking_gives_the_subnet() {
        assert_eq!(Addr4::new([10, 244, 7, 9]).masked([255, 255, 255, 0]), Addr4::new([10, 244, 7, 0]));
        assert_eq!(Addr4::new([10, 244, 7, 201]).masked([255, 255, 255, 192]), Addr4::new([10, 244, 7, 192]));
    }
}
