//! What the programs for IPv6 have of their own: their constants, and their places in the array that they are called by.
//!
//! The programs for IPv4 are attached, and hand packets of IPv6 on by a tail call. So a hook has one program whichever families
//! there are, the order among other people's programs is one question, and a packet of IPv4 pays nothing.
use crate::{Addr6, Address};

/// Addresses and prefixes of IPv6: constants of a loaded program, like [`Settings`](crate::Settings), which has all that is no
/// address. All zeros where the network has no IPv6.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settings6 {
    /// Base address of IPv6Network, the whole overlay.
    pub network: Addr6,
    /// Netmask of IPv6Network.
    pub network_mask: Addr6,
    /// Base address of the subnet this host leased.
    pub subnet: Addr6,
    /// Netmask of every leased subnet (IPv6SubnetLen of the network's config).
    pub subnet_mask: Addr6,
    /// This host's address on the underlay: outer source when sending, outer destination when receiving.
    pub local: Addr6,
    /// Address that ICMPv6 errors to containers come from: the subnet's first, which subnet.env gives to the bridge.
    pub gateway: Addr6,
    /// First address of the leasable range. It counts only with [`SETTING_PART6`](crate::SETTING_PART6), as the last does.
    pub leasable_first: Addr6,
    /// Last address of the leasable range.
    pub leasable_last: Addr6,
}

impl Settings6 {
    /// Whether these are of a network with IPv6.
    pub fn is_on(&self) -> bool {
        self.subnet_mask != Addr6::default()
    }
}

/// The programs for IPv6. The number of each is its place in `IPV6_PROGRAMS`.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ipv6Program {
    /// Called by `overlay_encap`.
    Encap = 0,
    /// Called by `overlay_bridge`.
    Bridge = 1,
    /// Called by `overlay_decap`.
    Decap = 2,
    /// Called by `overlay_send`.
    Send = 3,
    /// Called by `overlay_receive`.
    Receive = 4,
    /// Called by `overlay_track`.
    Track = 5,
    /// Called by `overlay_encap6` for a packet that is to be answered by ICMPv6: together they would take more of the stack than a
    /// program has.
    Answer = 6,
}

/// Length of `IPV6_PROGRAMS`. There is room for more hooks without a new layout.
pub const IPV6_PROGRAMS: u32 = 16;

impl Ipv6Program {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::Encap, Self::Bridge, Self::Decap, Self::Send, Self::Receive, Self::Track, Self::Answer];

    /// The program's name in the object.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Encap => "overlay_encap6",
            Self::Bridge => "overlay_bridge6",
            Self::Decap => "overlay_decap6",
            Self::Send => "overlay_send6",
            Self::Receive => "overlay_receive6",
            Self::Track => "overlay_track6",
            Self::Answer => "overlay_answer6",
        }
    }
}

/// Whether `address` lies between two others, or is one of them.
#[inline(always)]
pub fn is_between(address: Addr6, first: Addr6, last: Addr6) -> bool {
    let number = |address: Addr6| {
        let (high, low) = address.raw();
        (from_network(high), from_network(low))
    };
    (number(first)..=number(last)).contains(&number(address))
}

/// A half of an address, as [`Address::raw`] gives it, as a number whose order is that of addresses.
#[inline(always)]
const fn from_network(half: u64) -> u64 {
    u64::from_be(half)
}

const _: () = assert!(size_of::<Settings6>() == 128);

#[cfg(test)]
mod tests {
    use super::*;
    use core::net::Ipv6Addr;

    #[test]
    fn addresses_are_in_the_order_of_their_octets() {
        let address = |text: &str| Addr6::from(text.parse::<Ipv6Addr>().unwrap());
        let is_within =
            |text: &str| is_between(address(text), address("fd00:1:2:3::"), address("fd00:1:2:4::ff"));
        for inside in ["fd00:1:2:3::", "fd00:1:2:3:ffff::", "fd00:1:2:4::", "fd00:1:2:4::ff"] {
            assert!(is_within(inside), "{inside}");
        }
        for outside in
            ["fd00:1:2:2:ffff::", "fd00:1:2:4::100", "fd00:1:2:4:1::", "fc00:1:2:3::", "fe00:1:2:3::1"]
        {
            assert!(!is_within(outside), "{outside}");
        }
    }
}
