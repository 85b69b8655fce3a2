//! The constants that the programs are loaded with.
use crate::Addr4;

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
    /// Interface index of overlay0. A packet that the stack must not see as received by the underlay device is handed over there.
    pub device: u32,
    /// VXLAN network identifier, 24 bits, in the machine's order. Zero where there is none.
    pub vni: u32,
    /// UDP destination port of the tunnel, network order.
    pub port: [u8; 2],
    /// MAC address of overlay0, published in our lease: the inner destination of every VXLAN frame that we receive.
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
    /// MAC address of the underlay device. XDP tells by it which frames are for this host; at TC the kernel has told already.
    pub underlay_mac: [u8; 6],
    /// How packets to peers are encapsulated: an `ENCAPSULATION_*`.
    pub encapsulation: u8,
    /// Bits of an address behind the prefix of every leased subnet: 32 - SubnetLen.
    pub host_bits: u8,
    /// First address of the leasable range, in the machine's order. It counts only with `SETTING_PART`, as the last does.
    pub leasable_first: u32,
    /// Last address of the leasable range, in the machine's order.
    pub leasable_last: u32,
}

/// VXLAN (RFC 7348): overlay0 is a VXLAN device in collect-metadata mode.
pub const ENCAPSULATION_VXLAN: u8 = 0;
/// Bare IPv4 in UDP, as flannel's udp backend sends it: overlay0 is a TUN.
pub const ENCAPSULATION_UDP: u8 = 1;

/// Set DF in the outer header. Off by default, as flannel has it: a path that loses ICMP would lose large packets.
pub const SETTING_OUTER_DF: u32 = 1 << 0;
/// Drop inner sources outside Network even from a known peer (`--peer-check strict`).
pub const SETTING_STRICT_PEERS: u32 = 1 << 1;
/// Reach peers on the same link without encapsulation (`DirectRouting`, host-gw), and take in what they send without it.
pub const SETTING_DIRECT: u32 = 1 << 3;
/// Peers are found in `PEER_INDEX`, by the number of their subnet in Network. The loader sets this where the index has room.
pub const SETTING_PEER_INDEX: u32 = 1 << 4;
/// Endpoints are found in `ENDPOINT_INDEX`, by the number of their address in the subnet. The loader sets this where the index
/// has room.
pub const SETTING_ENDPOINT_INDEX: u32 = 1 << 5;
/// The leasable range is only a part of Network. Without this flag the programs compare no address with it.
pub const SETTING_PART: u32 = 1 << 7;
/// overlay0 is down: another device has its UDP port for now. What came without encapsulation and is left to the stack stays the
/// underlay device's, instead of being handed over to overlay0, where it would be dropped.
pub const SETTING_DEVICE_DOWN: u32 = 1 << 8;
/// The network has IPv6, and this host a subnet of it: packets of IPv6 are handed to the programs in `IPV6_PROGRAMS`.
pub const SETTING_IPV6: u32 = 1 << 9;
/// As `SETTING_PART`, of the leasable range of IPv6.
pub const SETTING_PART6: u32 = 1 << 10;

/// In the map `fast_path`: the programs carry all packets that they can.
pub const FAST_PATH_ON: u32 = 0;
/// In the map `fast_path`: a connection that is no stack flow takes the stack, which makes it one. The programs carry it once the
/// stack has carried it in both directions.
pub const FAST_PATH_ESTABLISHED: u32 = 1;
/// In the map `fast_path`: every packet is left to the kernel's own tunnel device.
pub const FAST_PATH_OFF: u32 = 2;

impl Settings {
    /// How many subnets Network has: the length of `PEER_INDEX`.
    pub const fn subnets(&self) -> u64 {
        1 << (32 - prefix(self.network_mask)).saturating_sub(32 - prefix(self.subnet_mask))
    }

    /// How many addresses the own subnet has: the length of `ENDPOINT_INDEX`.
    pub const fn addresses(&self) -> u64 {
        1 << (32 - prefix(self.subnet_mask))
    }

    /// The number in Network of the subnet that holds `address`. None for an address outside Network.
    #[inline(always)]
    pub const fn subnet_number(&self, address: Addr4) -> Option<u32> {
        number(address, self.network, self.network_mask, prefix(self.subnet_mask))
    }

    /// Whether `address`, which is inside Network, is in the leasable range.
    pub const fn is_leasable(&self, address: Addr4) -> bool {
        let number = u32::from_be_bytes(address.octets);
        self.flags & SETTING_PART == 0 || (self.leasable_first <= number && number <= self.leasable_last)
    }

    /// The number of `address` in the own subnet. None for an address outside.
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

const _: () = assert!(size_of::<Settings>() == 68);

#[cfg(test)]
mod tests {
    use super::*;

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
        assert!(settings.is_leasable(Addr4::new([10, 128, 0, 1])), "all of Network is");
        let leasable_first = u32::from_be_bytes([10, 129, 0, 0]);
        let leasable_last = u32::from_be_bytes([10, 129, 2, 127]);
        let part = Settings { flags: SETTING_PART, leasable_first, leasable_last, ..settings };
        let ends = [[10, 128, 255, 255], [10, 129, 0, 0], [10, 129, 2, 127], [10, 129, 2, 128]];
        assert_eq!(ends.map(|end| part.is_leasable(Addr4::new(end))), [false, true, true, false]);
        let whole = Settings { subnet_mask: [255, 0, 0, 0], network_mask: [255, 0, 0, 0], ..settings };
        assert_eq!((whole.subnets(), whole.addresses()), (1, 1 << 24));
    }
}
