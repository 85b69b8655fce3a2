//! The options of a lab, and the address that every lab has.
use std::net::Ipv4Addr;

/// Address of the underlay's own machine.
pub(crate) const SWITCH: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 254);

/// What a lab's hosts and underlay are like.
#[derive(Clone, Debug)]
pub struct Options {
    /// How many hosts.
    pub hosts: u8,
    /// How many of the hosts, counted from the last, stand behind routers instead of on the switch.
    pub behind_routers: u8,
    /// MTU of the underlay in bytes. [`crate::Host::set_mtu`] can lower it later for one host.
    pub mtu: u32,
    /// Whether the underlay carries one frame per segment with finished checksums, and the receiver has GRO, as with a
    /// real NIC. Otherwise frames of 64 KiB with unfinished checksums cross the underlay whole, as is veth's default.
    pub wire_like: bool,
    /// `rp_filter` of the hosts: 0 off, 1 strict, 2 loose.
    pub rp_filter: u8,
    /// Whether processes of the lab may outlive this one. [`crate::Lab::keep`] then leaves everything in place.
    pub keep: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { hosts: 2, behind_routers: 0, mtu: 1500, wire_like: false, rp_filter: 0, keep: false }
    }
}
