//! VXLAN devices as flannel makes them: with one VNI, and with their peers in the kernel's own tables. They are read
//! completely, so that they can be made again as they were.
use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    link::{InfoData, InfoVxlan, LinkAttribute, LinkInfo, LinkMessage},
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState},
    route::{RouteFlags, RouteMessage, RouteProtocol},
};
use nix::errno::Errno;
use rtnetlink::{LinkMessageBuilder, LinkVxlan, RouteMessageBuilder};
use serde::{Deserialize, Serialize};

use super::{
    connection::Netlink,
    decode,
    dump::{dump, of_family},
    error::NetlinkError,
    types::{LinkKind, TABLE_MAIN},
};
use crate::model::mac::Mac;

/// A VXLAN device with one VNI.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClassicTunnel {
    /// Interface name.
    pub name: String,
    /// VXLAN network identifier.
    pub vni: u32,
    /// UDP port, in the machine's order.
    pub port: u16,
    /// Outer source address, if one is set.
    pub local: Option<IpAddr>,
    /// Name of the device that it sends through, if one is set.
    pub underlay: Option<String>,
    /// MAC address.
    pub mac: Mac,
    /// MTU in bytes.
    pub mtu: u32,
    /// Length of its queue, in packets.
    pub queue_length: u32,
    /// Whether it learns forwarding entries from the packets it receives.
    pub learning: bool,
    /// Whether it fills in the outer UDP checksum.
    pub udp_checksum: bool,
    /// Whether it carries group policies (draft-smith-vxlan-group-policy).
    pub group_policy: bool,
    /// First and last outer source port. Zeros mean the kernel's range.
    pub source_ports: (u16, u16),
}

#[cfg(test)]
impl ClassicTunnel {
    /// A device as flannel makes it, for tests, which set what they are about.
    pub(crate) fn example(name: &str, vni: u32, port: u16) -> Self {
        Self {
            name: name.into(),
            vni,
            port,
            local: None,
            underlay: None,
            mac: Mac([2, 0, 0, 0, 0, 1]),
            mtu: 1450,
            queue_length: 0,
            learning: false,
            udp_checksum: true,
            group_policy: false,
            source_ports: (0, 0),
        }
    }
}

/// A permanent neighbour entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct StaticNeighbour {
    /// The neighbour's address.
    pub address: IpAddr,
    /// The neighbour's MAC address.
    pub mac: Mac,
}

/// Where a VXLAN device sends the frames for a MAC address, as `bridge fdb show dev flannel.1` tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Forwarding {
    /// The MAC address.
    pub mac: Mac,
    /// Outer destination address.
    pub to: IpAddr,
}

/// A route of table main through a gateway.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct GatewayRoute {
    /// The destination.
    pub destination: IpNet,
    /// Next hop.
    pub gateway: IpAddr,
    /// Name of the interface.
    pub interface: String,
    /// Whether the next hop counts as directly reachable on the link even if no prefix of the link contains it (`onlink`).
    pub onlink: bool,
    /// Who made the route: `RTPROT_*` of linux/rtnetlink.h.
    pub protocol: u8,
}

impl Netlink {
    /// All VXLAN devices with a VNI of their own, each with its interface index.
    pub async fn classic_tunnels(&self) -> Result<Vec<(u32, ClassicTunnel)>, NetlinkError> {
        let messages = dump("list links", RouteNetlinkMessage::GetLink(LinkMessage::default())).await?;
        let messages: Vec<&LinkMessage> = messages
            .iter()
            .filter_map(|message| match message {
                RouteNetlinkMessage::NewLink(message) => Some(message),
                _ => None,
            })
            .collect();
        let name =
            |index: u32| messages.iter().filter_map(|one| decode::link(one)).find(|link| link.index == index);
        let named = |index| name(index).map(|link| link.name);
        Ok(messages.iter().filter_map(|message| tunnel(message, named)).collect())
    }

    /// Makes such a device, and leaves it down. Fails if the device that it sends through does not exist.
    pub async fn create_classic(&self, wanted: &ClassicTunnel) -> Result<(), NetlinkError> {
        let action = || format!("create vxlan device {}", wanted.name);
        let mut builder = LinkMessageBuilder::<LinkVxlan>::new(&wanted.name)
            .id(wanted.vni)
            .port(wanted.port)
            .learning(wanted.learning)
            .udp_csum(wanted.udp_checksum)
            .port_range(wanted.source_ports.0, wanted.source_ports.1)
            .mtu(wanted.mtu)
            .address(wanted.mac.0.to_vec())
            .append_extra_attribute(LinkAttribute::TxQueueLen(wanted.queue_length));
        if let Some(local) = wanted.local {
            builder = match local {
                IpAddr::V4(local) => builder.local(local),
                IpAddr::V6(local) => builder.local6(local),
            };
        }
        if let Some(underlay) = &wanted.underlay {
            let link = self.link_named(underlay).await?.ok_or_else(|| NetlinkError {
                action: action(),
                detail: format!("interface {underlay} is gone"),
                errno: Errno::ENODEV,
            })?;
            builder = builder.dev(link.index);
        }
        if wanted.group_policy {
            builder = builder.gbp();
        }
        let added = self.handle.link().add(builder.build()).execute().await;
        added.map_err(|error| NetlinkError::new(action(), error))
    }

    /// The permanent neighbours of a link.
    pub async fn static_neighbours(&self, link: u32) -> Result<Vec<StaticNeighbour>, NetlinkError> {
        let messages = dump("list neighbours", of_family(AddressFamily::Inet)).await?;
        let of_link = messages.iter().filter_map(new_neighbour).filter(|it| it.header.ifindex == link);
        let permanent = of_link.filter(|it| it.header.state == NeighbourState::Permanent);
        let mut found: Vec<_> = permanent
            .filter_map(decode::neighbour)
            .map(|it| StaticNeighbour { address: it.address, mac: it.mac })
            .collect();
        found.sort_unstable();
        Ok(found)
    }

    /// The forwarding entries of a VXLAN device.
    pub async fn forwarding(&self, link: u32) -> Result<Vec<Forwarding>, NetlinkError> {
        let messages = dump("list forwarding entries", of_family(AddressFamily::Bridge)).await?;
        let of_link = messages.iter().filter_map(new_neighbour).filter(|it| it.header.ifindex == link);
        let mut found: Vec<_> = of_link.filter_map(forwarding).collect();
        found.sort_unstable();
        Ok(found)
    }

    /// The routes of table main that have a gateway and no metric, as flannel's routes are.
    pub async fn gateway_routes(&self) -> Result<Vec<GatewayRoute>, NetlinkError> {
        let links = self.links().await?;
        let request = RouteMessageBuilder::<Ipv4Addr>::new().build();
        let messages = dump("list routes", RouteNetlinkMessage::GetRoute(request)).await?;
        let mut found: Vec<_> = messages
            .iter()
            .filter_map(|message| match message {
                RouteNetlinkMessage::NewRoute(message) => Some(message),
                _ => None,
            })
            .filter_map(|message| {
                let route = decode::route(message).filter(|it| (it.table, it.metric) == (TABLE_MAIN, 0))?;
                let interface = links.iter().find(|link| Some(link.index) == route.link)?;
                Some(GatewayRoute {
                    destination: route.destination,
                    gateway: route.gateway?,
                    interface: interface.name.clone(),
                    onlink: message.header.flags.contains(RouteFlags::Onlink),
                    protocol: message.header.protocol.into(),
                })
            })
            .collect();
        found.sort_unstable();
        Ok(found)
    }

    /// Adds or alters a permanent neighbour.
    pub async fn put_static_neighbour(&self, link: u32, entry: StaticNeighbour) -> Result<(), NetlinkError> {
        let added = self
            .handle
            .neighbours()
            .add(link, entry.address)
            .link_layer_address(&entry.mac.0)
            .state(NeighbourState::Permanent)
            .replace()
            .execute()
            .await;
        added.map_err(|error| NetlinkError::new(format!("add neighbour {}", entry.address), error))
    }

    /// Adds or alters a forwarding entry of a VXLAN device.
    pub async fn put_forwarding(&self, link: u32, entry: Forwarding) -> Result<(), NetlinkError> {
        let added = self
            .handle
            .neighbours()
            .add_bridge(link, &entry.mac.0)
            .destination(entry.to)
            .flags(NeighbourFlags::Own)
            .state(NeighbourState::Permanent)
            .replace()
            .execute()
            .await;
        added.map_err(|error| {
            NetlinkError::new(format!("add the forwarding entry {} to {}", entry.mac, entry.to), error)
        })
    }

    /// Adds a route through a gateway. It replaces a route to the same destination.
    pub async fn put_gateway_route(&self, link: u32, route: &GatewayRoute) -> Result<(), NetlinkError> {
        let added = self.handle.route().add(gateway_route(link, route)?).replace().execute().await;
        added.map_err(|error| NetlinkError::new(format!("add the route to {}", route.destination), error))
    }

    /// Removes a route through a gateway. It is no error if there is none.
    pub async fn remove_gateway_route(&self, link: u32, route: &GatewayRoute) -> Result<(), NetlinkError> {
        self.remove_route_message(gateway_route(link, route)?, route.destination).await
    }

    /// Removes a route. It is no error if there is none.
    pub(super) async fn remove_route_message(
        &self,
        route: RouteMessage,
        to: IpNet,
    ) -> Result<(), NetlinkError> {
        match self.handle.route().del(route).execute().await {
            Ok(()) => Ok(()),
            Err(error) => match NetlinkError::new(format!("remove the route to {to}"), error) {
                error if error.errno == Errno::ESRCH => Ok(()),
                error => Err(error),
            },
        }
    }
}

fn gateway_route(link: u32, route: &GatewayRoute) -> Result<RouteMessage, NetlinkError> {
    let GatewayRoute { destination, .. } = route;
    let action = || format!("name the route to {destination}");
    let builder = RouteMessageBuilder::<IpAddr>::new()
        .destination_prefix(destination.network(), destination.prefix_len())
        .map_err(|error| NetlinkError::invalid(action(), error))?
        .gateway(route.gateway)
        .map_err(|error| NetlinkError::invalid(action(), error))?
        .output_interface(link)
        .protocol(RouteProtocol::from(route.protocol));
    Ok(if route.onlink { builder.onlink().build() } else { builder.build() })
}

fn new_neighbour(message: &RouteNetlinkMessage) -> Option<&NeighbourMessage> {
    match message {
        RouteNetlinkMessage::NewNeighbour(message) => Some(message),
        _ => None,
    }
}

fn forwarding(message: &NeighbourMessage) -> Option<Forwarding> {
    if !message.header.flags.contains(NeighbourFlags::Own) {
        return None;
    }
    let to = message.attributes.iter().find_map(|attribute| match attribute {
        // The crate reads an address by the message's family, but the family of these messages is the bridge's.
        NeighbourAttribute::Destination(NeighbourAddress::Other(bytes)) => ip(bytes),
        NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => Some((*address).into()),
        _ => None,
    })?;
    let mac = message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::LinkLayerAddress(bytes) => bytes.as_slice().try_into().ok().map(Mac),
        _ => None,
    })?;
    Some(Forwarding { mac, to })
}

/// An address as the crate gives it, in bytes.
fn ip(bytes: &[u8]) -> Option<IpAddr> {
    <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from)
}

fn tunnel(message: &LinkMessage, name: impl Fn(u32) -> Option<String>) -> Option<(u32, ClassicTunnel)> {
    let link = decode::link(message)?;
    let LinkKind::Vxlan(vxlan) = link.kind else { return None };
    if vxlan.collect_metadata {
        return None;
    }
    let mut tunnel = ClassicTunnel {
        name: link.name,
        vni: vxlan.vni,
        port: vxlan.port,
        local: None,
        underlay: None,
        mac: link.mac?,
        mtu: link.mtu,
        queue_length: 0,
        learning: false,
        udp_checksum: false,
        group_policy: false,
        source_ports: (0, 0),
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::TxQueueLen(length) => tunnel.queue_length = *length,
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    let LinkInfo::Data(InfoData::Vxlan(parameters)) = info else { continue };
                    parameters.iter().for_each(|parameter| set(&mut tunnel, parameter, &name));
                }
            }
            _ => {}
        }
    }
    Some((link.index, tunnel))
}

fn set(tunnel: &mut ClassicTunnel, parameter: &InfoVxlan, name: impl Fn(u32) -> Option<String>) {
    match parameter {
        InfoVxlan::Local(address) => tunnel.local = Some((*address).into()),
        InfoVxlan::Link(index) => tunnel.underlay = name(*index),
        InfoVxlan::Learning(on) => tunnel.learning = *on,
        InfoVxlan::UDPCsum(on) => tunnel.udp_checksum = *on,
        InfoVxlan::Gbp => tunnel.group_policy = true,
        InfoVxlan::PortRange(range) => tunnel.source_ports = *range,
        _ => {}
    }
}
