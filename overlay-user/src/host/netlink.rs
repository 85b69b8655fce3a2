//! Links, addresses, routes and neighbours of the current network namespace, in domain words. The only place that
//! knows rtnetlink.
mod blackhole;
mod bridging;
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
mod running;
pub mod tc;
mod tc_events;
mod types;
pub mod xfrm;

pub use self::{
    blackhole::BlackholeRoute,
    change::{LinkChange, NewTunnel},
    changes::told,
    classic::{ClassicTunnel, Forwarding, GatewayRoute, StaticNeighbour},
    connection::Netlink,
    error::NetlinkError,
    monitor::{Event, Monitor},
    nftables::{NftablesEvents, generation},
    tc_events::TcEvents,
    types::{
        Address, Bridging, DeviceLosses, FdbEntry, FlaggedAddress, HostSnapshot, Ipv6Address, LAST_METRIC,
        Link, LinkKind, LinkType, Neighbour, Route, TABLE_MAIN, Tun, Vxlan, Way,
    },
};
