//! Links, addresses, routes and neighbours of the current network namespace, in domain words. The only place that
//! knows rtnetlink.
mod change;
mod classic;
pub mod conntrack;
mod decode;
mod dump;
pub mod generic;
mod monitor;
pub mod namespaces;
mod nftables;
mod raw;
pub mod tc;

use std::{io, net::Ipv4Addr};

use dump::dump;
use futures::TryStreamExt;
use ipnet::Ipv4Net;
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage, address::AddressMessage, link::LinkMessage,
    neighbour::NeighbourMessage, route::RouteMessage, tc::TcMessage,
};
use nix::errno::Errno;
use rtnetlink::RouteMessageBuilder;

pub use change::{LinkChange, NewTunnel};
pub use classic::{ClassicTunnel, Forwarding, GatewayRoute, StaticNeighbour};
pub use monitor::{Event, Monitor};
pub use nftables::Nftables;

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

/// An IPv4 address of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Address {
    /// Interface index.
    pub link: u32,
    /// The address.
    pub address: Ipv4Addr,
    /// Length of its prefix.
    pub prefix_len: u8,
}

/// An IPv4 route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// Where it leads; `0.0.0.0/0` for the default route.
    pub destination: Ipv4Net,
    /// Interface index of the way out; `None` for multipath and blackhole routes.
    pub link: Option<u32>,
    /// Next hop.
    pub gateway: Option<Ipv4Addr>,
    /// Preferred source address.
    pub source: Option<Ipv4Addr>,
    /// Metric: lower is preferred.
    pub metric: u32,
    /// Routing table; 254 is `main`.
    pub table: u32,
}

/// A resolved neighbour: an address seen on a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// Interface index.
    pub link: u32,
    /// The address.
    pub address: Ipv4Addr,
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
pub struct Snapshot {
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

/// The kernel's answer to a request that failed.
#[derive(Debug, thiserror::Error)]
#[error("{action}: {detail}")]
pub struct NetlinkError {
    /// Verb and object, lower case: `list links`.
    pub action: String,
    /// What the kernel said.
    pub detail: String,
    /// Its error number; `UnknownErrno` if it answered something else.
    pub errno: Errno,
}

impl NetlinkError {
    fn new(action: impl Into<String>, error: rtnetlink::Error) -> Self {
        let (detail, errno) = match error {
            rtnetlink::Error::NetlinkError(message) => {
                (message.to_io().to_string(), Errno::from_raw(message.raw_code().abs()))
            }
            other => (other.to_string(), Errno::UnknownErrno),
        };
        Self { action: action.into(), detail, errno }
    }

    /// A stream of events that ended.
    pub fn events(error: &io::Error) -> Self {
        Self::io("read the kernel's events", error)
    }

    fn io(action: impl Into<String>, error: &io::Error) -> Self {
        Self {
            action: action.into(),
            detail: error.to_string(),
            errno: Errno::from_raw(error.raw_os_error().unwrap_or(0)),
        }
    }
}

/// The payload of a message, if it is of this kind.
macro_rules! is {
    ($message:expr, $kind:ident) => {
        match $message {
            RouteNetlinkMessage::$kind(payload) => Some(payload),
            _ => None,
        }
    };
}

/// Main table (`RT_TABLE_MAIN`).
pub const TABLE_MAIN: u32 = 254;

/// A connection to the kernel, in the network namespace of the thread that opened it.
#[derive(Clone, Debug)]
pub struct Netlink {
    handle: rtnetlink::Handle,
}

impl Netlink {
    /// Connects. Must be called inside a tokio runtime; fails when the kernel has no rtnetlink.
    pub fn open() -> Result<Self, NetlinkError> {
        let (connection, handle, _) =
            rtnetlink::new_connection().map_err(|error| NetlinkError::io("open netlink", &error))?;
        tokio::spawn(connection);
        Ok(Self { handle })
    }

    /// Subscribes to changes from now on. For a picture that misses nothing: subscribe, then [`Self::snapshot`], then follow.
    pub fn monitor(&self) -> Result<Monitor, NetlinkError> {
        Monitor::open()
    }

    /// Lists all there is.
    pub async fn snapshot(&self) -> Result<Snapshot, NetlinkError> {
        Ok(Snapshot {
            links: self.links().await?,
            addresses: self.addresses().await?,
            routes: self.routes().await?,
            neighbours: self.neighbours().await?,
            fdb: self.fdb().await?,
        })
    }

    /// All links.
    pub async fn links(&self) -> Result<Vec<Link>, NetlinkError> {
        let request = RouteNetlinkMessage::GetLink(LinkMessage::default());
        let messages = dump("list links", request).await?;
        Ok(messages.iter().filter_map(|message| is!(message, NewLink)).filter_map(decode::link).collect())
    }

    /// The link of that name, if there is one.
    pub async fn link_named(&self, name: &str) -> Result<Option<Link>, NetlinkError> {
        Ok(self.links().await?.into_iter().find(|link| link.name == name))
    }

    /// Id of the XDP program that an interface runs, in its driver or behind it; nothing if it runs none.
    pub async fn xdp_program(&self, link: u32) -> Result<Option<u32>, NetlinkError> {
        let messages: Vec<_> = self
            .handle
            .link()
            .get()
            .match_index(link)
            .execute()
            .try_collect()
            .await
            .map_err(|error| NetlinkError::new(format!("ask for interface {link}"), error))?;
        Ok(messages.iter().find_map(decode::xdp_program))
    }

    /// All IPv4 addresses.
    pub async fn addresses(&self) -> Result<Vec<Address>, NetlinkError> {
        let request = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        let messages = dump("list addresses", request).await?;
        Ok(messages
            .iter()
            .filter_map(|message| is!(message, NewAddress))
            .filter_map(decode::address)
            .collect())
    }

    /// The IPv4 routes of table main.
    pub async fn routes(&self) -> Result<Vec<Route>, NetlinkError> {
        let request = RouteMessageBuilder::<Ipv4Addr>::new().build();
        let messages = dump("list routes", RouteNetlinkMessage::GetRoute(request)).await?;
        let routes = messages.iter().filter_map(|message| is!(message, NewRoute)).filter_map(decode::route);
        Ok(routes.filter(|route| route.table == TABLE_MAIN).collect())
    }

    /// The route the kernel would take to an address, or an error when there is none.
    pub async fn route_to(&self, address: Ipv4Addr) -> Result<Route, NetlinkError> {
        let action = || format!("find the route to {address}");
        let request = RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(address, 32).build();
        let messages: Vec<RouteMessage> = self
            .handle
            .route()
            .get(request)
            .execute()
            .try_collect()
            .await
            .map_err(|error| NetlinkError::new(action(), error))?;
        messages.iter().find_map(decode::route).ok_or_else(|| NetlinkError {
            action: action(),
            detail: "the kernel named none".into(),
            errno: Errno::ENETUNREACH,
        })
    }

    /// All resolved IPv4 neighbours.
    pub async fn neighbours(&self) -> Result<Vec<Neighbour>, NetlinkError> {
        let messages = dump("list neighbours", of_family(AddressFamily::Inet)).await?;
        let messages = messages.iter().filter_map(|message| is!(message, NewNeighbour));
        Ok(messages.filter_map(decode::neighbour).collect())
    }

    /// The forwarding tables of all bridges, without the bridges' own addresses.
    pub async fn fdb(&self) -> Result<Vec<FdbEntry>, NetlinkError> {
        let messages = dump("list bridge forwarding tables", of_family(AddressFamily::Bridge)).await?;
        let messages = messages.iter().filter_map(|message| is!(message, NewNeighbour));
        Ok(messages.filter_map(decode::fdb_entry).collect())
    }

    /// What each device and its queues lost, all devices.
    pub async fn losses(&self) -> Result<Vec<DeviceLosses>, NetlinkError> {
        let links = dump("list links", RouteNetlinkMessage::GetLink(LinkMessage::default())).await?;
        let request = RouteNetlinkMessage::GetQueueDiscipline(TcMessage::default());
        let queues = dump("list queueing disciplines", request).await?;
        let drops: Vec<_> = queues
            .iter()
            .filter_map(|message| is!(message, NewQueueDiscipline))
            .map(decode::queue_drops)
            .collect();
        let links = links.iter().filter_map(|message| is!(message, NewLink));
        let mut losses: Vec<DeviceLosses> = links.filter_map(decode::losses).collect();
        for device in &mut losses {
            let of = drops.iter().filter(|(index, _)| *index == device.index);
            device.queue_drops = of.map(|(_, drops)| drops).sum();
        }
        Ok(losses)
    }
}

fn of_family(family: AddressFamily) -> RouteNetlinkMessage {
    let mut request = NeighbourMessage::default();
    request.header.family = family;
    RouteNetlinkMessage::GetNeighbour(request)
}
