//! VXLAN devices with one VNI, whose peers stand in the kernel's own tables, as flannel makes them: read whole, so that
//! they can be made again as they were.
use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    link::{InfoData, InfoVxlan, LinkAttribute, LinkInfo, LinkMessage},
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState},
    route::{RouteFlags, RouteMessage, RouteProtocol, RouteScope, RouteType},
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
    /// Outer source address, if it is fixed.
    pub local: Option<IpAddr>,
    /// Name of the device that it sends through, if it is fixed.
    pub underlay: Option<String>,
    /// MAC address.
    pub mac: Mac,
    /// MTU in bytes.
    pub mtu: u32,
    /// Length of its queue, in packets.
    pub queue_length: u32,
    /// Learns forwarding entries from what it receives.
    pub learning: bool,
    /// Fills in the outer UDP checksum.
    pub udp_checksum: bool,
    /// Carries group policies (draft-smith-vxlan-group-policy).
    pub group_policy: bool,
    /// First and last outer source port; zeros take the kernel's range.
    pub source_ports: (u16, u16),
}

/// A neighbour that never ages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct StaticNeighbour {
    /// Its address.
    pub address: IpAddr,
    /// Its MAC address.
    pub mac: Mac,
}

/// Where a VXLAN device sends frames for a MAC address: `bridge fdb show dev flannel.1`.
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
    /// Where it leads.
    pub destination: IpNet,
    /// Next hop.
    pub gateway: IpAddr,
    /// Name of the interface.
    pub interface: String,
    /// The next hop is taken for a neighbour, whatever the addresses say.
    pub onlink: bool,
    /// Who made it: `RTPROT_*` of linux/rtnetlink.h.
    pub protocol: u8,
}

/// Behind every other route to the same destination.
const LAST: u32 = u32::MAX;

impl Netlink {
    /// All VXLAN devices that have a VNI of their own, with their interface indexes.
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

    /// Makes such a device, down. Fails if the device it sends through is not there.
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

    /// The neighbours of a link that never age.
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

    /// The routes of table main that have a gateway and no metric, as flannel's have none.
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

    /// Adds or alters a neighbour that never ages.
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

    /// Adds a route through a gateway, or puts it in the place of one to the same destination.
    pub async fn put_gateway_route(&self, link: u32, route: &GatewayRoute) -> Result<(), NetlinkError> {
        let added = self.handle.route().add(gateway_route(link, route)?).replace().execute().await;
        added.map_err(|error| NetlinkError::new(format!("add the route to {}", route.destination), error))
    }

    /// Removes a route through a gateway. None there is no error.
    pub async fn remove_gateway_route(&self, link: u32, route: &GatewayRoute) -> Result<(), NetlinkError> {
        self.remove_route(gateway_route(link, route)?, route.destination).await
    }

    /// Has packets to `network` dropped, without an answer, where no other route to it is there: what is without a route
    /// for a moment must neither leave by the default route nor be told that there is none.
    pub async fn drop_unrouted(&self, network: IpNet) -> Result<(), NetlinkError> {
        let added = self.handle.route().add(last_resort(network)?).replace().execute().await;
        added.map_err(|error| NetlinkError::new(format!("add the blackhole route to {network}"), error))
    }

    /// Takes that back. None there is no error.
    pub async fn stop_dropping_unrouted(&self, network: IpNet) -> Result<(), NetlinkError> {
        self.remove_route(last_resort(network)?, network).await
    }

    async fn remove_route(&self, route: RouteMessage, to: IpNet) -> Result<(), NetlinkError> {
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

fn last_resort(network: IpNet) -> Result<RouteMessage, NetlinkError> {
    let builder =
        RouteMessageBuilder::<IpAddr>::new().destination_prefix(network.network(), network.prefix_len());
    let builder = builder
        .map_err(|error| NetlinkError::invalid(format!("name the blackhole route to {network}"), error))?;
    Ok(builder.kind(RouteType::BlackHole).scope(RouteScope::Universe).priority(LAST).build())
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
        // The crate knows addresses by the message's family, which is the bridge's.
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

/// An address as bytes.
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
