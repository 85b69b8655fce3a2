//! Links, addresses, routes, neighbours and what devices lost, in domain words.
use std::net::IpAddr;

use ipnet::IpNet;

use crate::model::mac::Mac;

/// What a link is, as far as the overlay tells kinds apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkKind {
    /// A bridge.
    Bridge,
    /// One end of a veth pair.
    Veth,
    /// A VXLAN device.
    Vxlan(Vxlan),
    /// A TUN or TAP.
    Tun(Tun),
    /// Anything else, by the kernel's name for it; empty for hardware and loopback.
    Other(String),
}

/// What tells one VXLAN device from another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Vxlan {
    /// VNI; zero for a collect-metadata device.
    pub vni: u32,
    /// UDP port, in the machine's order.
    pub port: u16,
    /// Takes the tunnel key from each packet (`external`).
    pub collect_metadata: bool,
    /// Accepts only the VNIs it was given (Linux 5.18).
    pub vnifilter: bool,
}

/// What tells one TUN from another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tun {
    /// Carries Ethernet frames: a TAP.
    pub is_tap: bool,
    /// Stays when nobody has it open.
    pub is_persistent: bool,
    /// Whoever opens it needs this user id, or CAP_NET_ADMIN; without one anybody may.
    pub owner: Option<u32>,
    /// Several may have it open at once.
    pub is_multi_queue: bool,
}

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Interface index.
    pub index: u32,
    /// Interface name.
    pub name: String,
    /// What it is.
    pub kind: LinkKind,
    /// Index of the bridge (or other master) it is a port of.
    pub master: Option<u32>,
    /// MAC address; `None` where the link has none of six bytes.
    pub mac: Option<Mac>,
    /// MTU in bytes.
    pub mtu: u32,
    /// Administratively up.
    pub up: bool,
    /// Has a carrier: of a veth, both ends are up.
    pub carrier: bool,
    /// Does not resolve neighbours (`arp off`).
    pub noarp: bool,
    /// The other end of a veth, by its index in its own namespace.
    pub peer: Option<u32>,
    /// The other end's namespace, by the id it has in this one; `None` if it is this one.
    pub peer_netns: Option<i32>,
}

/// An address of a link. Only those of IPv4 are listed yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Address {
    /// Interface index.
    pub link: u32,
    /// The address.
    pub address: IpAddr,
    /// Length of its prefix.
    pub prefix_len: u8,
}

impl Address {
    /// The address alone, without others of its prefix.
    pub fn alone(link: u32, address: IpAddr) -> Self {
        Self { link, address, prefix_len: IpNet::from(address).prefix_len() }
    }
}

/// A route. Only those of IPv4 are listed yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// Where it leads; `0.0.0.0/0` for the default route.
    pub destination: IpNet,
    /// Interface index of the way out; `None` for multipath and blackhole routes.
    pub link: Option<u32>,
    /// Next hop.
    pub gateway: Option<IpAddr>,
    /// Preferred source address.
    pub source: Option<IpAddr>,
    /// Metric: lower is preferred.
    pub metric: u32,
    /// Routing table; 254 is `main`.
    pub table: u32,
}

/// Main table (`RT_TABLE_MAIN`).
pub const TABLE_MAIN: u32 = 254;

/// A resolved neighbour: an address seen on a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// Interface index.
    pub link: u32,
    /// The address.
    pub address: IpAddr,
    /// Its MAC address.
    pub mac: Mac,
}

/// An entry of a bridge's forwarding table: a MAC address seen on a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FdbEntry {
    /// Interface index of the bridge.
    pub bridge: u32,
    /// The MAC address.
    pub mac: Mac,
    /// Interface index of the port.
    pub port: u32,
}

/// What a device lost, in packets since it was made; the names are those of `ip -s link`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceLosses {
    /// Interface index.
    pub index: u32,
    /// Interface name.
    pub name: String,
    /// Received broken.
    pub rx_errors: u64,
    /// Received whole, and dropped by the device's driver or before any protocol had it.
    pub rx_dropped: u64,
    /// Not received for want of room in the device's ring.
    pub rx_missed: u64,
    /// Could not be sent.
    pub tx_errors: u64,
    /// Given to the device, and dropped by it.
    pub tx_dropped: u64,
    /// Dropped by its queueing disciplines, before the device had them. Wraps at 2^32 for each.
    pub queue_drops: u64,
    /// The other end is not there, or down.
    pub no_carrier: bool,
}

/// Everything at (nearly) one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostSnapshot {
    /// All links.
    pub links: Vec<Link>,
    /// All IPv4 addresses.
    pub addresses: Vec<Address>,
    /// The routes of table main.
    pub routes: Vec<Route>,
    /// All resolved IPv4 neighbours.
    pub neighbours: Vec<Neighbour>,
    /// The forwarding tables of all bridges, without the bridges' own addresses.
    pub fdb: Vec<FdbEntry>,
}
