//! An address, as the maps and the programs have it. Each family's is a type of its own.
use core::{
    cmp::Ordering,
    hash::{Hash, Hasher},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

/// An address of either family. Its bytes in memory are those in a packet.
pub trait Address: Copy + Default + Eq + 'static {
    /// The bytes as one integer: fit for masking, and for an order that is the same everywhere on a machine.
    type Raw: Copy + Ord;

    /// The bytes as one integer.
    fn raw(self) -> Self::Raw;

    /// 32 bits that depend on all of the address.
    fn folded(self) -> u32;
}

/// An IPv4 address, or the base address of a subnet: the key of peers, VTEPs and endpoints.
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

impl Address for Addr4 {
    type Raw = u32;

    #[inline(always)]
    fn raw(self) -> u32 {
        self.raw()
    }

    #[inline(always)]
    fn folded(self) -> u32 {
        self.raw()
    }
}

impl From<Ipv4Addr> for Addr4 {
    fn from(address: Ipv4Addr) -> Self {
        Self::new(address.octets())
    }
}

impl From<Addr4> for Ipv4Addr {
    fn from(address: Addr4) -> Self {
        address.octets.into()
    }
}

impl From<Addr4> for IpAddr {
    fn from(address: Addr4) -> Self {
        address.octets.into()
    }
}

/// An IPv6 address, or the base address of a subnet: the key of peers, VTEPs and endpoints of IPv6.
///
/// The programs compare its halves as numbers. The comparison that could be derived calls a function that they do not have.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, Default)]
pub struct Addr6 {
    /// The address, in words whose bytes in memory are those in a packet.
    pub words: [u32; 4],
}

impl Addr6 {
    /// Wraps sixteen octets as they stand in a packet.
    #[inline(always)]
    pub const fn new(octets: [u8; 16]) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = octets;
        Self { words: [word(a, b, c, d), word(e, f, g, h), word(i, j, k, l), word(m, n, o, p)] }
    }

    /// The octets as they stand in a packet.
    #[inline(always)]
    pub const fn octets(self) -> [u8; 16] {
        let [[a, b, c, d], [e, f, g, h], [i, j, k, l], [m, n, o, p]] = [
            self.words[0].to_ne_bytes(),
            self.words[1].to_ne_bytes(),
            self.words[2].to_ne_bytes(),
            self.words[3].to_ne_bytes(),
        ];
        [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p]
    }

    /// An address of two halves, whose bytes in memory are those in a packet.
    #[inline(always)]
    pub const fn of_halves([high, low]: [u64; 2]) -> Self {
        let ([a, b, c, d, e, f, g, h], [i, j, k, l, m, n, o, p]) = (high.to_ne_bytes(), low.to_ne_bytes());
        Self::new([a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p])
    }

    /// The base address of the subnet that holds this address.
    #[inline(always)]
    pub const fn masked(self, mask: Self) -> Self {
        let ([a, b, c, d], [e, f, g, h]) = (self.words, mask.words);
        Self { words: [a & e, b & f, c & g, d & h] }
    }

    /// Sum of the address as words of 32 bits in the machine's order, for [`checksum::from_native`](crate::checksum::from_native).
    #[inline(always)]
    pub const fn sum(self) -> u64 {
        let [a, b, c, d] = self.words;
        a as u64 + b as u64 + c as u64 + d as u64
    }
}

#[inline(always)]
const fn word(a: u8, b: u8, c: u8, d: u8) -> u32 {
    u32::from_ne_bytes([a, b, c, d])
}

impl Address for Addr6 {
    type Raw = (u64, u64);

    #[inline(always)]
    fn raw(self) -> (u64, u64) {
        let half =
            |[a, b, c, d]: [u8; 4], [e, f, g, h]: [u8; 4]| u64::from_ne_bytes([a, b, c, d, e, f, g, h]);
        let [a, b, c, d] = self.words.map(u32::to_ne_bytes);
        (half(a, b), half(c, d))
    }

    #[inline(always)]
    fn folded(self) -> u32 {
        let [a, b, c, d] = self.words;
        a ^ b ^ c ^ d
    }
}

impl PartialEq for Addr6 {
    #[inline(always)]
    fn eq(&self, other: &Self) -> bool {
        self.raw() == other.raw()
    }
}

impl Eq for Addr6 {}

impl PartialOrd for Addr6 {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Addr6 {
    fn cmp(&self, other: &Self) -> Ordering {
        self.octets().cmp(&other.octets())
    }
}

impl Hash for Addr6 {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.words.hash(state);
    }
}

impl From<Ipv6Addr> for Addr6 {
    fn from(address: Ipv6Addr) -> Self {
        Self::new(address.octets())
    }
}

impl From<Addr6> for Ipv6Addr {
    fn from(address: Addr6) -> Self {
        address.octets().into()
    }
}

impl From<Addr6> for IpAddr {
    fn from(address: Addr6) -> Self {
        Ipv6Addr::from(address).into()
    }
}

const _: () = assert!(size_of::<Addr4>() == 4 && size_of::<Addr6>() == 16);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masking_gives_the_subnet() {
        assert_eq!(Addr4::new([10, 244, 7, 9]).masked([255, 255, 255, 0]), Addr4::new([10, 244, 7, 0]));
        assert_eq!(Addr4::new([10, 244, 7, 201]).masked([255, 255, 255, 192]), Addr4::new([10, 244, 7, 192]));
    }
    #[test]
    fn an_ipv6_address_keeps_its_octets() {
        let address: Ipv6Addr = "fd00:244:1:2:3:4:5:6".parse().unwrap();
        let ours = Addr6::from(address);
        assert_eq!(Ipv6Addr::from(ours), address);
        let mask = Addr6::from("ffff:ffff:ffff:ffff::".parse::<Ipv6Addr>().unwrap());
        assert_eq!(Ipv6Addr::from(ours.masked(mask)), "fd00:244:1:2::".parse::<Ipv6Addr>().unwrap());
        for place in 0..16 {
            let mut other = address.octets();
            other[place] ^= 1;
            assert_ne!(ours, Addr6::new(other));
            assert_ne!(ours.folded(), Addr6::new(other).folded());
        }
    }
}
