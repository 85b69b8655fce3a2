//! The kernel's notifications as one stream of events, with a clear word when some were lost.
use std::net::Ipv4Addr;

use futures::{StreamExt, stream::BoxStream};
use netlink_packet_route::RouteNetlinkMessage;
use rtnetlink::{
    MulticastGroup, new_multicast_connection,
    packet_core::{NetlinkMessage, NetlinkPayload},
    sys::AsyncSocket,
};

use super::{Address, FdbEntry, Link, Neighbour, NetlinkError, Route, decode};

/// Something changed in this network namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A link appeared or changed.
    Link(Link),
    /// A link went away, by its index.
    LinkGone(u32),
    /// An IPv4 address appeared.
    Address(Address),
    /// An IPv4 address went away.
    AddressGone(Address),
    /// An IPv4 route appeared.
    Route(Route),
    /// An IPv4 route went away.
    RouteGone(Route),
    /// A neighbour was resolved, or changed its MAC address.
    Neighbour(Neighbour),
    /// A neighbour entry aged out or was removed. Says nothing about the neighbour.
    NeighbourGone(u32, Ipv4Addr),
    /// A bridge saw a MAC address on a port.
    Fdb(FdbEntry),
    /// A bridge forgot a MAC address. Says nothing about its holder.
    FdbGone(FdbEntry),
    /// Events were lost: take a snapshot again.
    Lost,
}

/// Enough for a few thousand events between two reads; the kernel caps it at net.core.rmem_max.
const RECEIVE_BUFFER: i32 = 1 << 20;

/// A subscription to links, addresses, routes, neighbours and bridge forwarding tables. Ends with its drop.
pub struct Monitor {
    messages: BoxStream<'static, NetlinkMessage<RouteNetlinkMessage>>,
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
        tokio::spawn(connection);
        Ok(Self { messages: messages.map(|(message, _)| message).boxed() })
    }

    /// The next event that matters. After [`Event::Lost`] the picture is stale: subscribe and take a snapshot again.
    pub async fn next(&mut self) -> Event {
        loop {
            // The stream ends when the socket failed, which loses events just as well.
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
        RouteNetlinkMessage::NewLink(message) => decode::link(message).map(Event::Link),
        RouteNetlinkMessage::DelLink(message) => {
            decode::link(message).map(|link| Event::LinkGone(link.index))
        }
        RouteNetlinkMessage::NewAddress(message) => decode::address(message).map(Event::Address),
        RouteNetlinkMessage::DelAddress(message) => decode::address(message).map(Event::AddressGone),
        RouteNetlinkMessage::NewRoute(message) => decode::route(message).map(Event::Route),
        RouteNetlinkMessage::DelRoute(message) => decode::route(message).map(Event::RouteGone),
        RouteNetlinkMessage::NewNeighbour(message) => decode::neighbour(message)
            .map(Event::Neighbour)
            .or_else(|| decode::fdb_entry(message).map(Event::Fdb)),
        RouteNetlinkMessage::DelNeighbour(message) => decode::neighbour_key(message)
            .map(|(link, address)| Event::NeighbourGone(link, address))
            .or_else(|| decode::fdb_entry(message).map(Event::FdbGone)),
        _ => None,
    }
}
