//! Routes by which the kernel discards packets (`blackhole`): those of others, and the last resort of this project's own.
use std::net::{IpAddr, Ipv4Addr};

use bytes::{BufMut as _, BytesMut};
use ipnet::IpNet;
use netlink_packet_route::{
    RouteNetlinkMessage,
    route::{RouteMessage, RouteScope, RouteType},
};
use nix::errno::Errno;
use rtnetlink::{RouteMessageBuilder, sys::protocols::NETLINK_ROUTE};
use serde::{Deserialize, Serialize};

use super::{
    connection::Netlink,
    decode,
    dump::dump,
    error::NetlinkError,
    raw::{self, NLM_F_APPEND, NLM_F_CREATE},
    types::{LAST_METRIC, TABLE_MAIN},
};
use crate::model::addr::ipv4;

/// A route of table main, without a metric, by which the kernel discards packets (`blackhole`). flannel makes one with
/// `--ip-blackhole-route`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlackholeRoute {
    /// The destination.
    pub destination: IpNet,
    /// Who made the route: `RTPROT_*` of linux/rtnetlink.h.
    pub protocol: u8,
}

impl Netlink {
    /// The routes of table main that discard packets and have no metric.
    pub async fn blackhole_routes(&self) -> Result<Vec<BlackholeRoute>, NetlinkError> {
        let request = RouteMessageBuilder::<Ipv4Addr>::new().build();
        let messages = dump("list routes", RouteNetlinkMessage::GetRoute(request)).await?;
        let found = messages.iter().filter_map(|message| match message {
            RouteNetlinkMessage::NewRoute(message) if message.header.kind == RouteType::BlackHole => {
                // All but the kind is read as of any other route.
                let mut message = message.clone();
                message.header.kind = RouteType::Unicast;
                let route = decode::route(&message).filter(|it| (it.table, it.metric) == (TABLE_MAIN, 0))?;
                let protocol = message.header.protocol.into();
                Some(BlackholeRoute { destination: route.destination, protocol })
            }
            _ => None,
        });
        Ok(found.collect())
    }

    /// Adds such a route behind others to the same destination, a bridge's among them. It is no error if it is there.
    pub fn append_blackhole_route(&self, route: &BlackholeRoute) -> Result<(), NetlinkError> {
        const RTM_NEWROUTE: u16 = 24;
        const RTN_BLACKHOLE: u8 = 6;
        const RTA_DST: u16 = 1;
        let BlackholeRoute { destination, protocol } = route;
        let action = || format!("add the blackhole route to {destination}");
        let base = ipv4(destination.network()).map_err(|error| NetlinkError::invalid(action(), error))?;
        // struct rtmsg: family, lengths of the two prefixes, type of service, table, protocol, scope (universe), kind, flags.
        let header = [2, destination.prefix_len(), 0, 0, TABLE_MAIN as u8, *protocol, 0, RTN_BLACKHOLE];
        let mut body = BytesMut::from(header.as_slice());
        body.put_u32_ne(0);
        raw::put(&mut body, RTA_DST, &base.octets());
        match raw::request(NETLINK_ROUTE, RTM_NEWROUTE, NLM_F_CREATE | NLM_F_APPEND, &body) {
            Err(error) if error.raw_os_error().map(Errno::from_raw) != Some(Errno::EEXIST) => {
                Err(NetlinkError::io(action(), &error))
            }
            _ => Ok(()),
        }
    }

    /// Removes such a route. It is no error if there is none.
    pub async fn remove_blackhole_route(&self, route: &BlackholeRoute) -> Result<(), NetlinkError> {
        let destination = route.destination;
        self.remove_route_message(
            discarding(destination)?.protocol(route.protocol.into()).build(),
            destination,
        )
        .await
    }

    /// Makes the kernel drop packets to `network`, without an answer to their sender, when no other route leads there.
    /// While the overlay's routes are missing for a moment, its packets must not leave by the default route, and their
    /// senders must not be told that there is no route.
    pub async fn drop_unrouted(&self, network: IpNet) -> Result<(), NetlinkError> {
        let added = self.handle.route().add(last_resort(network)?).replace().execute().await;
        added.map_err(|error| NetlinkError::new(format!("add the blackhole route to {network}"), error))
    }

    /// Undoes [`Netlink::drop_unrouted`]. It is no error if there is no such route.
    pub async fn stop_dropping_unrouted(&self, network: IpNet) -> Result<(), NetlinkError> {
        self.remove_route_message(last_resort(network)?, network).await
    }
}

fn last_resort(network: IpNet) -> Result<RouteMessage, NetlinkError> {
    Ok(discarding(network)?.priority(LAST_METRIC).build())
}

fn discarding(network: IpNet) -> Result<RouteMessageBuilder<IpAddr>, NetlinkError> {
    let builder =
        RouteMessageBuilder::<IpAddr>::new().destination_prefix(network.network(), network.prefix_len());
    let builder = builder
        .map_err(|error| NetlinkError::invalid(format!("name the blackhole route to {network}"), error))?;
    Ok(builder.kind(RouteType::BlackHole).scope(RouteScope::Universe))
}
