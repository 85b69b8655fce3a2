//! Links, addresses, routes, neighbours and what devices lost, as the rest of the agent knows them.
use std::{fmt, net::IpAddr};

use ipnet::IpNet;

use crate::model::mac::Mac;

/// The kind of a link, as far as the overlay distinguishes kinds.
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
    /// VNI. It is zero for a collect-metadata device.
    pub vni: u32,
    /// UDP port, in the machine's order.
    pub port: u16,
    /// Whether it takes the tunnel key from each packet (`external`).
    pub collect_metadata: bool,
    /// Whether it accepts only the VNIs that it was given (Linux 5.18).
    pub vnifilter: bool,
}

/// What tells one TUN from another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tun {
    /// Whether it carries Ethernet frames, as a TAP does.
    pub is_tap: bool,
    /// Whether it stays when nobody has it open.
    pub is_persistent: bool,
    /// User id of the owner. Others need CAP_NET_ADMIN to open the device. Without an owner, anybody may open it.
    pub owner: Option<u32>,
    /// Whether several processes may have it open at once.
    pub is_multi_queue: bool,
}

/// What the frames of a link begin with, by the kernel's number (`ARPHRD_*` of linux/if_arp.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkType(pub u16);

impl LinkType {
    /// Ethernet.
    pub const ETHERNET: Self = Self(1);
    /// Loopback, whose frames have an Ethernet header too.
    pub const LOOPBACK: Self = Self(772);
    /// Nothing: packets have no link header (TUN, WireGuard).
    pub const NONE: Self = Self(0xfffe);

    /// Whether frames begin with an Ethernet header.
    pub fn has_ethernet_header(self) -> bool {
        matches!(self, Self::ETHERNET | Self::LOOPBACK)
    }
}

/// The name that `ip link` shows behind `link/`, or the number in brackets.
impl fmt::Display for LinkType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.0 {
            1 => "ether",
            32 => "infiniband",
            512 => "ppp",
            519 => "rawip",
            768 => "ipip",
            769 => "tunnel6",
            772 => "loopback",
            776 => "sit",
            778 => "gre",
            823 => "gre6",
            0xfffe => "none",
            other => return write!(f, "[{other}]"),
        };
        f.write_str(name)
    }
}

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Interface index.
    pub index: u32,
    /// Interface name.
    pub name: String,
    /// Kind of the link.
    pub kind: LinkKind,
    /// What its frames begin with.
    pub link_type: LinkType,
    /// Index of the bridge, or other master, that it is a port of.
    pub master: Option<u32>,
    /// MAC address. `None` if the link has none of six bytes.
    pub mac: Option<Mac>,
    /// MTU in bytes.
    pub mtu: u32,
    /// Whether it is administratively up.
    pub up: bool,
    /// Whether it has a carrier. A veth has one if both ends are up.
    pub carrier: bool,
    /// Whether it does not resolve neighbours (`arp off`).
    pub noarp: bool,
    /// Interface index of a veth's other end, in the namespace of that end.
    pub peer: Option<u32>,
    /// Namespace of a veth's other end, by the id it has in this namespace. `None` if it is this namespace.
    pub peer_netns: Option<i32>,
    /// What a bridge does there, as far as it concerns the frames that it forwards. `None` if this is neither a bridge nor a port
    /// of one, or if the kernel does not tell.
    pub bridging: Option<Bridging>,
}

/// By which settings a bridge does more, or less, to unicast frames than to forward them from one port to another: those of the
/// bridge itself, or those of one port. By the kernel's defaults there are none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bridging(pub Vec<&'static str>);

impl Link {
    /// A link for tests: Ethernet, up, without a master and without a MAC address.
    #[cfg(test)]
    pub(crate) fn example(index: u32, name: &str, kind: LinkKind) -> Self {
        Self {
            index,
            name: name.to_owned(),
            kind,
            link_type: LinkType::ETHERNET,
            master: None,
            mac: None,
            mtu: 1500,
            up: true,
            carrier: true,
            noarp: false,
            peer: None,
            peer_netns: None,
            bridging: None,
        }
    }
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
    /// The prefix that contains this address alone.
    pub fn alone(link: u32, address: IpAddr) -> Self {
        Self { link, address, prefix_len: IpNet::from(address).prefix_len() }
    }
}

/// An address of a link, and what the kernel says of its use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlaggedAddress {
    /// The address.
    pub address: Address,
    /// Whether nothing new should use it (`preferred_lft 0`).
    pub is_deprecated: bool,
    /// Whether it has no end: it was set by hand, not leased by DHCP.
    pub is_permanent: bool,
    /// Whether the link has an earlier address of the same prefix.
    pub is_secondary: bool,
}

/// An IPv6 address of a link, and what the kernel says of its use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipv6Address {
    /// Interface index.
    pub link: u32,
    /// The address.
    pub address: IpAddr,
    /// Whether the kernel is still finding out if another host has it, too.
    pub is_tentative: bool,
    /// Whether another host was found to have it, so that it is not used.
    pub is_duplicate: bool,
    /// Whether nothing new should use it (`preferred_lft 0`).
    pub is_deprecated: bool,
    /// Whether it is one of those that change for privacy (RFC 8981).
    pub is_temporary: bool,
    /// Whether it has no end: it was set by hand, not learned from a router or leased.
    pub is_permanent: bool,
}

/// A route of table main that leads further than this host's own links: a default route, or one with a gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Way {
    /// Destination. It is `0.0.0.0/0` for the default route.
    pub destination: IpNet,
    /// Indexes of the interfaces that packets leave by: several for a multipath route.
    pub links: Vec<u32>,
    /// Metric. The route with the lowest is preferred.
    pub metric: u32,
}

/// A route. Only those of IPv4 are listed yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// Destination. It is `0.0.0.0/0` for the default route.
    pub destination: IpNet,
    /// Index of the interface that packets leave by. `None` for multipath and blackhole routes.
    pub link: Option<u32>,
    /// Next hop.
    pub gateway: Option<IpAddr>,
    /// Preferred source address.
    pub source: Option<IpAddr>,
    /// Metric. The route with the lowest is preferred.
    pub metric: u32,
    /// Routing table; 254 is `main`.
    pub table: u32,
}

/// The table `main` (`RT_TABLE_MAIN`).
pub const TABLE_MAIN: u32 = 254;

/// The metric that places a route behind every other route to the same destination.
pub const LAST_METRIC: u32 = u32::MAX;

/// A resolved neighbour: an address that was seen on a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// Interface index.
    pub link: u32,
    /// The address.
    pub address: IpAddr,
    /// The neighbour's MAC address.
    pub mac: Mac,
}

/// An entry of a bridge's forwarding table: a MAC address that was seen on a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FdbEntry {
    /// Interface index of the bridge.
    pub bridge: u32,
    /// The MAC address.
    pub mac: Mac,
    /// Interface index of the port.
    pub port: u32,
}

/// What a device lost, in packets since it was made. The names are those of `ip -s link`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceLosses {
    /// Interface index.
    pub index: u32,
    /// Interface name.
    pub name: String,
    /// Packets that were received with errors.
    pub rx_errors: u64,
    /// Packets that were received without errors, and were dropped by the device's driver or before any protocol saw them.
    pub rx_dropped: u64,
    /// Packets that were not received because the device's ring was full.
    pub rx_missed: u64,
    /// Packets that could not be sent.
    pub tx_errors: u64,
    /// Packets that the device dropped instead of sending them.
    pub tx_dropped: u64,
    /// Packets that its queueing disciplines dropped before the device had them. The kernel's count for each discipline wraps
    /// around at 2^32.
    pub queue_drops: u64,
    /// Packets that were dropped because the other end was missing or down.
    pub no_carrier: bool,
}

/// Everything that exists, at nearly one moment.
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
    /// The forwarding tables of all bridges, without the addresses of the bridges themselves.
    pub fdb: Vec<FdbEntry>,
}
