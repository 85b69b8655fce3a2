//! Requests that read what exists: links, addresses, routes, neighbours, forwarding tables, and counts of lost packets.
use std::net::{IpAddr, Ipv4Addr};

use futures::TryStreamExt as _;
use ipnet::IpNet;
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage, address::AddressMessage, link::LinkMessage, route::RouteMessage,
    tc::TcMessage,
};
use nix::errno::Errno;
use rtnetlink::RouteMessageBuilder;

use super::{
    connection::Netlink,
    decode,
    dump::{dump, of_family},
    error::NetlinkError,
    types::{
        Address, DeviceLosses, FdbEntry, FlaggedAddress, HostSnapshot, Ipv6Address, Link, Neighbour, Route,
        TABLE_MAIN, Way,
    },
};

/// The payload of a message, if it is of this kind.
macro_rules! is {
    ($message:expr, $kind:ident) => {
        match $message {
            RouteNetlinkMessage::$kind(payload) => Some(payload),
            _ => None,
        }
    };
}

impl Netlink {
    /// Lists everything at once.
    pub async fn snapshot(&self) -> Result<HostSnapshot, NetlinkError> {
        Ok(HostSnapshot {
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

    /// The link with this name, if there is one.
    pub async fn link_named(&self, name: &str) -> Result<Option<Link>, NetlinkError> {
        Ok(self.links().await?.into_iter().find(|link| link.name == name))
    }

    /// Id of the XDP program that an interface runs, whether in its driver or generically. `None` if it runs none.
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

    /// All IPv4 addresses, in the kernel's order, with what it says of their use.
    pub async fn flagged_addresses(&self) -> Result<Vec<FlaggedAddress>, NetlinkError> {
        let request = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        let messages = dump("list addresses", request).await?;
        let messages = messages.iter().filter_map(|message| is!(message, NewAddress));
        Ok(messages.filter_map(decode::flagged_address).collect())
    }

    /// All IPv6 addresses, with what the kernel says of their use. There are none where it has no IPv6.
    pub async fn ipv6_addresses(&self) -> Result<Vec<Ipv6Address>, NetlinkError> {
        let request = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        let messages = dump("list addresses", request).await?;
        let messages = messages.iter().filter_map(|message| is!(message, NewAddress));
        Ok(messages.filter_map(decode::ipv6_address).collect())
    }

    /// The IPv4 routes of table main that lead further than this host's own links, in the kernel's order.
    pub async fn ways(&self) -> Result<Vec<Way>, NetlinkError> {
        let request = RouteMessageBuilder::<Ipv4Addr>::new().build();
        let messages = dump("list routes", RouteNetlinkMessage::GetRoute(request)).await?;
        Ok(messages.iter().filter_map(|message| is!(message, NewRoute)).filter_map(decode::way).collect())
    }

    /// The IPv4 routes of table main.
    pub async fn routes(&self) -> Result<Vec<Route>, NetlinkError> {
        let request = RouteMessageBuilder::<Ipv4Addr>::new().build();
        let messages = dump("list routes", RouteNetlinkMessage::GetRoute(request)).await?;
        let routes = messages.iter().filter_map(|message| is!(message, NewRoute)).filter_map(decode::route);
        Ok(routes.filter(|route| route.table == TABLE_MAIN).collect())
    }

    /// The route that the kernel would take to an address. It is an error if there is none.
    pub async fn route_to(&self, address: IpAddr) -> Result<Route, NetlinkError> {
        let action = || format!("find the route to {address}");
        let request = RouteMessageBuilder::<IpAddr>::new()
            .destination_prefix(address, IpNet::from(address).prefix_len())
            .map_err(|error| NetlinkError::invalid(action(), error))?
            .build();
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

    /// The forwarding tables of all bridges, without the addresses of the bridges themselves.
    pub async fn fdb(&self) -> Result<Vec<FdbEntry>, NetlinkError> {
        let messages = dump("list bridge forwarding tables", of_family(AddressFamily::Bridge)).await?;
        let messages = messages.iter().filter_map(|message| is!(message, NewNeighbour));
        Ok(messages.filter_map(decode::fdb_entry).collect())
    }

    /// What each device and its queueing disciplines lost, for all devices.
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
