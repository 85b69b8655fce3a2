//! Requests that change links, addresses and routes.
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use bytes::{BufMut, BytesMut};
use netlink_packet_route::{
    link::{AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute},
    route::{RouteMessage, RouteScope},
};
use rtnetlink::{
    AddressMessageBuilder, LinkMessageBuilder, LinkUnspec, LinkVxlan, RouteMessageBuilder,
    sys::protocols::NETLINK_ROUTE,
};

use super::{
    connection::Netlink,
    error::NetlinkError,
    raw::{self, nest, put},
    types::{Address, Route},
};
use crate::model::mac::Mac;

/// A collect-metadata VXLAN device to create.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewTunnel {
    /// Interface name.
    pub name: String,
    /// UDP port, in the machine's order.
    pub port: u16,
    /// MAC address.
    pub mac: Mac,
    /// MTU in bytes.
    pub mtu: u32,
}

/// What to change about a link. `None` leaves a property as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkChange {
    /// MAC address.
    pub mac: Option<Mac>,
    /// MTU in bytes.
    pub mtu: Option<u32>,
    /// Up or down.
    pub up: Option<bool>,
    /// Whether it resolves neighbours.
    pub arp: Option<bool>,
}

impl Netlink {
    /// Creates a collect-metadata VXLAN device, and leaves it down. If the kernel can filter VNIs (since Linux 5.18,
    /// f9c4bb0b245c), the device accepts only those that it is given. An older kernel ignores the attribute, so the caller
    /// must look at the link afterwards.
    pub async fn create_tunnel(&self, tunnel: &NewTunnel) -> Result<(), NetlinkError> {
        let message = LinkMessageBuilder::<LinkVxlan>::new(&tunnel.name)
            .port(tunnel.port)
            .collect_metadata(true)
            .learning(false)
            .udp_csum(false)
            .vnifilter(true)
            .mtu(tunnel.mtu)
            .arp(false)
            .address(tunnel.mac.0.to_vec())
            .build();
        self.handle
            .link()
            .add(message)
            .execute()
            .await
            .map_err(|error| NetlinkError::new(format!("create vxlan device {}", tunnel.name), error))
    }

    /// Makes a filtering VXLAN device accept a VNI. It is no error if it accepts it already. The error is EEXIST if another
    /// device on the same port accepts it.
    pub fn add_vni(&self, link: u32, vni: u32) -> Result<(), NetlinkError> {
        let action = format!("add vni {vni} to the filter of interface {link}");
        let added = raw::request(NETLINK_ROUTE, RTM_NEWTUNNEL, 0, &vni_request(link, vni));
        added.map(drop).map_err(|error| NetlinkError::io(action, &error))
    }

    /// Changes a link.
    pub async fn change_link(&self, link: u32, change: LinkChange) -> Result<(), NetlinkError> {
        let mut builder = LinkUnspec::new_with_index(link);
        if let Some(mac) = change.mac {
            builder = builder.address(mac.0.to_vec());
        }
        if let Some(mtu) = change.mtu {
            builder = builder.mtu(mtu);
        }
        builder = match change.up {
            Some(true) => builder.up(),
            Some(false) => builder.down(),
            None => builder,
        };
        if let Some(arp) = change.arp {
            builder = builder.arp(arp);
        }
        self.handle
            .link()
            .change(builder.build())
            .execute()
            .await
            .map_err(|error| NetlinkError::new(format!("change interface {link}"), error))
    }

    /// Keeps a link from generating IPv6 addresses (`addrgenmode none`). The error is EAFNOSUPPORT where IPv6 is off.
    pub async fn no_generated_addresses(&self, link: u32) -> Result<(), NetlinkError> {
        let mode = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
        let attribute = LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![mode])]);
        let message = LinkUnspec::new_with_index(link).append_extra_attribute(attribute);
        self.handle
            .link()
            .change(message.build())
            .execute()
            .await
            .map_err(|error| NetlinkError::new(format!("set addrgenmode of interface {link}"), error))
    }

    /// Removes a link.
    pub async fn remove_link(&self, link: u32) -> Result<(), NetlinkError> {
        self.handle
            .link()
            .del(link)
            .execute()
            .await
            .map_err(|error| NetlinkError::new(format!("remove interface {link}"), error))
    }

    /// Adds an address. It is no error if the link has it already.
    pub async fn put_address(&self, address: Address) -> Result<(), NetlinkError> {
        self.handle
            .address()
            .add(address.link, address.address, address.prefix_len)
            .replace()
            .execute()
            .await
            .map_err(|error| NetlinkError::new(format!("add address {}", address.address), error))
    }

    /// Removes an address.
    pub async fn remove_address(&self, address: Address) -> Result<(), NetlinkError> {
        let Address { link, address: own, prefix_len } = address;
        let message = match own {
            IpAddr::V4(own) => {
                AddressMessageBuilder::<Ipv4Addr>::new().index(link).address(own, prefix_len).build()
            }
            IpAddr::V6(own) => {
                AddressMessageBuilder::<Ipv6Addr>::new().index(link).address(own, prefix_len).build()
            }
        };
        self.handle
            .address()
            .del(message)
            .execute()
            .await
            .map_err(|error| NetlinkError::new(format!("remove address {}", address.address), error))
    }

    /// Adds a route. It replaces a route to the same destination with the same metric.
    pub async fn put_route(&self, route: &Route) -> Result<(), NetlinkError> {
        let action = || format!("add the route to {}", route.destination);
        let message = route_message(route, action)?;
        self.handle
            .route()
            .add(message)
            .replace()
            .execute()
            .await
            .map_err(|error| NetlinkError::new(action(), error))
    }

    /// Removes a route. It is no error if there is none.
    pub async fn remove_route(&self, route: &Route) -> Result<(), NetlinkError> {
        let message = route_message(route, || format!("name the route to {}", route.destination))?;
        self.remove_route_message(message, route.destination).await
    }
}

fn route_message(route: &Route, action: impl Fn() -> String) -> Result<RouteMessage, NetlinkError> {
    let Route { destination, .. } = route;
    let mut builder = RouteMessageBuilder::<IpAddr>::new()
        .destination_prefix(destination.network(), destination.prefix_len())
        .map_err(|error| NetlinkError::invalid(action(), error))?
        .table_id(route.table);
    if let Some(link) = route.link {
        builder = builder.output_interface(link);
    }
    if let Some(gateway) = route.gateway {
        builder = builder.gateway(gateway).map_err(|error| NetlinkError::invalid(action(), error))?;
    }
    if let Some(source) = route.source {
        builder = builder.pref_source(source).map_err(|error| NetlinkError::invalid(action(), error))?;
    }
    if route.metric != 0 {
        builder = builder.priority(route.metric);
    }
    if route.gateway.is_none() {
        builder = builder.scope(RouteScope::Link);
    }
    Ok(builder.build())
}

// From linux/rtnetlink.h and linux/if_link.h. The crates have no tunnel messages yet.
const RTM_NEWTUNNEL: u16 = 120;
const VXLAN_VNIFILTER_ENTRY: u16 = 1;
const VXLAN_VNIFILTER_ENTRY_START: u16 = 1;
/// `AF_BRIDGE`, the family that vxlan_vnifilter.c demands.
const PF_BRIDGE: u8 = 7;

/// `struct tunnel_msg`, followed by one nested filter entry that has a start and no end.
fn vni_request(link: u32, vni: u32) -> BytesMut {
    let mut request = BytesMut::new();
    request.put_slice(&[PF_BRIDGE, 0, 0, 0]);
    request.put_u32_ne(link);
    nest(&mut request, VXLAN_VNIFILTER_ENTRY, |entry| {
        put(entry, VXLAN_VNIFILTER_ENTRY_START, &vni.to_ne_bytes());
    });
    request
}
