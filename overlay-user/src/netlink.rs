//! Links, addresses, routes and neighbours of the current network namespace, in domain words. The only place that
//! knows rtnetlink.
mod change;
mod decode;
mod monitor;

use std::{io, net::Ipv4Addr};

use futures::TryStreamExt;
use ipnet::Ipv4Net;
use netlink_packet_route::{AddressFamily, address::AddressMessage, route::RouteMessage};
use nix::errno::Errno;
use rtnetlink::RouteMessageBuilder;

pub use change::{LinkChange, NewTunnel};
pub use monitor::{Event, Monitor};

use crate::mac::Mac;

/// What a link is, as far as the overlay tells kinds apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkKind {
    /// A bridge.
    Bridge,
    /// One end of a veth pair.
    Veth,
    /// A VXLAN device.
    Vxlan(Vxlan),
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

    fn io(action: impl Into<String>, error: &io::Error) -> Self {
        Self {
            action: action.into(),
            detail: error.to_string(),
            errno: Errno::from_raw(error.raw_os_error().unwrap_or(0)),
        }
    }
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
        let messages = self.handle.link().get().execute();
        let messages: Vec<_> =
            messages.try_collect().await.map_err(|error| NetlinkError::new("list links", error))?;
        Ok(messages.iter().filter_map(decode::link).collect())
    }

    /// The link of that name, if there is one.
    pub async fn link_named(&self, name: &str) -> Result<Option<Link>, NetlinkError> {
        Ok(self.links().await?.into_iter().find(|link| link.name == name))
    }

    /// All IPv4 addresses.
    pub async fn addresses(&self) -> Result<Vec<Address>, NetlinkError> {
        let messages: Vec<AddressMessage> = self
            .handle
            .address()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(|error| NetlinkError::new("list addresses", error))?;
        Ok(messages.iter().filter_map(decode::address).collect())
    }

    /// The IPv4 routes of table main.
    pub async fn routes(&self) -> Result<Vec<Route>, NetlinkError> {
        let request = RouteMessageBuilder::<Ipv4Addr>::new().build();
        let messages: Vec<RouteMessage> = self
            .handle
            .route()
            .get(request)
            .execute()
            .try_collect()
            .await
            .map_err(|error| NetlinkError::new("list routes", error))?;
        let routes = messages.iter().filter_map(decode::route);
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
        let request = self.handle.neighbours().get().set_address_family(AddressFamily::Inet);
        let messages: Vec<_> = request
            .execute()
            .try_collect()
            .await
            .map_err(|error| NetlinkError::new("list neighbours", error))?;
        Ok(messages.iter().filter_map(decode::neighbour).collect())
    }

    /// The forwarding tables of all bridges, without the bridges' own addresses.
    pub async fn fdb(&self) -> Result<Vec<FdbEntry>, NetlinkError> {
        let request = self.handle.neighbours().get().set_address_family(AddressFamily::Bridge);
        let messages: Vec<_> = request
            .execute()
            .try_collect()
            .await
            .map_err(|error| NetlinkError::new("list bridge forwarding tables", error))?;
        Ok(messages.iter().filter_map(decode::fdb_entry).collect())
    }
}
