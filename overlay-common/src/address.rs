//! An address, as the maps and the programs have it. Each family's is a type of its own.
use core::net::{IpAddr, Ipv4Addr};

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

const _: () = assert!(size_of::<Addr4>() == 4);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masking_gives_the_subnet() {
        assert_eq!(Addr4::new([10, 244, 7, 9]).masked([255, 255, 255, 0]), Addr4::new([10, 244, 7, 0]));
        assert_eq!(Addr4::new([10, 244, 7, 201]).masked([255, 255, 255, 192]), Addr4::new([10, 244, 7, 192]));
    }
}
