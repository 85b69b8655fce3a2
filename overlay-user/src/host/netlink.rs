//! Links, addresses, routes and neighbours of the current network namespace, in domain words. The only place that
//! knows rtnetlink.
mod change;
mod changes;
mod classic;
mod connection;
pub mod conntrack;
mod decode;
mod dump;
mod error;
pub mod generic;
mod monitor;
pub mod namespaces;
mod nftables;
mod raw;
mod read;
pub mod tc;
mod tc_events;
mod types;
pub mod xfrm;

pub use self::{
    change::{LinkChange, NewTunnel},
    changes::told,
    classic::{ClassicTunnel, Forwarding, GatewayRoute, StaticNeighbour},
    connection::Netlink,
    error::NetlinkError,
    monitor::{Event, Monitor},
    nftables::{NftablesEvents, generation},
    tc_events::TcEvents,
    types::{
        Address, DeviceLosses, FdbEntry, FlaggedAddress, HostSnapshot, LAST_METRIC, Link, LinkKind, LinkType,
        Neighbour, Route, TABLE_MAIN, Tun, Vxlan, Way,
    },
};
