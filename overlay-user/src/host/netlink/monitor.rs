//! The kernel's notifications as one stream of events, which also tells when some were lost.
use std::net::IpAddr;

use futures::{StreamExt, stream::BoxStream};
use netlink_packet_route::{RouteNetlinkMessage, route::RouteMessage};
use rtnetlink::{
    MulticastGroup, new_multicast_connection,
    packet_core::{NetlinkMessage, NetlinkPayload},
    sys::AsyncSocket,
};
use tokio::task::JoinSet;

use super::{
    bridging, decode,
    error::NetlinkError,
    running::running,
    types::{Address, Bridging, FdbEntry, Link, Neighbour, Route, TABLE_MAIN},
};

/// Something changed in this network namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A link appeared or changed.
    Link(Link),
    /// A link went away, by its index.
    LinkGone(u32),
    /// A bridge tells what it does at one of its ports, by the port's index.
    BridgePort(u32, Bridging),
    /// An IPv4 address appeared.
    Address(Address),
    /// An IPv4 address went away.
    AddressGone(Address),
    /// An IPv4 route of table main appeared.
    Route(Route),
    /// An IPv4 route of table main went away.
    RouteGone(Route),
    /// A neighbour was resolved, or changed its MAC address.
    Neighbour(Neighbour),
    /// A neighbour entry aged out or was removed. The neighbour itself may still exist.
    NeighbourGone(u32, IpAddr),
    /// A bridge saw a MAC address on a port.
    Fdb(FdbEntry),
    /// A bridge forgot a MAC address. The device with this address may still exist.
    FdbGone(FdbEntry),
    /// Events were lost. The receiver must take a snapshot again.
    Lost,
}

/// Size of the socket's buffer: enough for a few thousand events between two reads. The kernel limits it to
/// net.core.rmem_max.
const RECEIVE_BUFFER: i32 = 1 << 20;

/// A subscription to links, addresses, routes, neighbours and bridge forwarding tables. It ends when this is dropped.
pub struct Monitor {
    messages: BoxStream<'static, NetlinkMessage<RouteNetlinkMessage>>,
    _connection: JoinSet<()>,
}

impl Monitor {
    pub(super) fn open() -> Result<Self, NetlinkError> {
        let (mut connection, _, messages) = new_multicast_connection(&[
            MulticastGroup::Link,
            MulticastGroup::Neigh,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv4Route,
        ])
        .map_err(|error| NetlinkError::io("subscribe to netlink events", &error))?;
        let socket = connection.socket_mut().socket_mut();
        if let Err(error) = socket.set_rx_buf_sz(RECEIVE_BUFFER) {
            log::debug!("netlink receive buffer stays at its default: {error}");
        }
        let messages = messages.map(|(message, _)| message).boxed();
        Ok(Self { messages, _connection: running(connection) })
    }

    /// The next event that concerns the overlay. After [`Event::Lost`] the caller must subscribe and take a snapshot again.
    pub async fn next(&mut self) -> Event {
        loop {
            // The stream ends when the socket failed. Then events are lost, too.
            let Some(message) = self.messages.next().await else {
                return Event::Lost;
            };
            let event = match message.payload {
                NetlinkPayload::Overrun(_) => Some(Event::Lost),
                NetlinkPayload::InnerMessage(message) => event(&message),
                _ => None,
            };
            if let Some(event) = event {
                return event;
            }
        }
    }
}

fn event(message: &RouteNetlinkMessage) -> Option<Event> {
    match message {
        RouteNetlinkMessage::NewLink(message) => decode::link(message)
            .map(Event::Link)
            .or_else(|| bridging::of_news(message).map(|(port, bridging)| Event::BridgePort(port, bridging))),
        RouteNetlinkMessage::DelLink(message) => {
            decode::link(message).map(|link| Event::LinkGone(link.index))
        }
        RouteNetlinkMessage::NewAddress(message) => decode::address(message).map(Event::Address),
        RouteNetlinkMessage::DelAddress(message) => decode::address(message).map(Event::AddressGone),
        RouteNetlinkMessage::NewRoute(message) => main_route(message).map(Event::Route),
        RouteNetlinkMessage::DelRoute(message) => main_route(message).map(Event::RouteGone),
        RouteNetlinkMessage::NewNeighbour(message) => decode::neighbour(message)
            .map(Event::Neighbour)
            .or_else(|| decode::fdb_entry(message).map(Event::Fdb)),
        RouteNetlinkMessage::DelNeighbour(message) => decode::neighbour_key(message)
            .map(|(link, address)| Event::NeighbourGone(link, address))
            .or_else(|| decode::fdb_entry(message).map(Event::FdbGone)),
        _ => None,
    }
}

/// As in a snapshot, only routes of table main count. A route of another table does not appear, and when it goes, the
/// same route of table main stays.
fn main_route(message: &RouteMessage) -> Option<Route> {
    decode::route(message).filter(|route| route.table == TABLE_MAIN)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use rtnetlink::RouteMessageBuilder;

    use super::*;

    #[test]
    fn routes_of_other_tables_are_no_events() {
        let route = |table| {
            let destination = Ipv4Addr::new(10, 244, 1, 2);
            let builder = RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(destination, 32);
            builder.output_interface(7).table_id(table).build()
        };
        let new = |table| event(&RouteNetlinkMessage::NewRoute(route(table)));
        let gone = |table| event(&RouteNetlinkMessage::DelRoute(route(table)));
        assert!(matches!(new(TABLE_MAIN), Some(Event::Route(_))));
        assert!(matches!(gone(TABLE_MAIN), Some(Event::RouteGone(_))));
        // The table of a VRF, a table for policies, and a table with a number that does not fit into the header's byte.
        for table in [10, 100, 1000] {
            assert_eq!((new(table), gone(table)), (None, None), "{table}");
        }
    }
}
