//! How a lab is to be, and the address that every lab has.
use std::net::Ipv4Addr;

/// Address of the underlay's own machine.
pub(crate) const SWITCH: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 254);

/// How the lab's underlay is.
#[derive(Clone, Debug)]
pub struct Options {
    /// How many hosts.
    pub hosts: u8,
    /// How many of them, the last ones, stand behind routers of their own instead of on the switch.
    pub behind_routers: u8,
    /// MTU of the underlay in bytes; one host's can be lowered later by [`crate::Host::set_mtu`].
    pub mtu: u32,
    /// One frame per segment with finished checksums, and GRO at the receiver, as behind a real NIC. Otherwise veth's
    /// default: 64 KiB frames with unfinished checksums cross the underlay whole.
    pub wire_like: bool,
    /// `rp_filter` of the hosts: 0 off, 1 strict, 2 loose.
    pub rp_filter: u8,
    /// Processes of the lab may outlive this one; [`crate::Lab::keep`] then leaves it all in place.
    pub keep: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { hosts: 2, behind_routers: 0, mtu: 1500, wire_like: false, rp_filter: 0, keep: false }
    }
}
