//! Changes to what the data path holds. There is one type for each task that decides on changes.
use std::{fmt, net::IpAddr};

use ipnet::IpNet;

use crate::model::entries::{Endpoint, Peer, PortKind};

/// A change to the peers, as the leases ask for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerChange {
    /// Adds or alters the peer with this subnet, without a moment in which it is not there.
    Put(IpNet, Peer),
    /// Removes the peer with this subnet.
    Remove(IpNet),
}

impl PeerChange {
    /// The peer's subnet.
    pub const fn subnet(&self) -> IpNet {
        match self {
            Self::Put(subnet, _) | Self::Remove(subnet) => *subnet,
        }
    }
}

/// A change to the endpoints and ports of this host, as the learner or the device keeper decides it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LocalChange {
    /// Adds or moves an endpoint. Its port must be attached before.
    PutEndpoint(IpAddr, Endpoint),
    /// Removes an endpoint: its packets take the stack.
    RemoveEndpoint(IpAddr),
    /// Attaches the programs of a port. Attaching what is attached is no error.
    Attach(u32, PortKind),
    /// Detaches the programs of a port on the containers' side. It is no error if none are attached, or if the interface is
    /// gone.
    Detach(u32),
}

/// Whether XDP may redirect frames to an interface. To a data path without XDP it means nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct XdpTargetChange {
    /// Interface index.
    pub port: u32,
    /// It takes such frames now, or takes them no longer.
    pub takes: bool,
}

/// One change to what is in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// To the peers.
    Peer(PeerChange),
    /// To endpoints and ports.
    Local(LocalChange),
    /// To the XDP targets.
    XdpTarget(XdpTargetChange),
}

impl From<PeerChange> for Change {
    fn from(change: PeerChange) -> Self {
        Self::Peer(change)
    }
}

impl From<LocalChange> for Change {
    fn from(change: LocalChange) -> Self {
        Self::Local(change)
    }
}

impl From<XdpTargetChange> for Change {
    fn from(change: XdpTargetChange) -> Self {
        Self::XdpTarget(change)
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Peer(change) => change.fmt(f),
            Self::Local(change) => change.fmt(f),
            Self::XdpTarget(change) => change.fmt(f),
        }
    }
}

impl fmt::Display for PeerChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Put(subnet, peer) => {
                write!(f, "put peer {subnet} via {}", peer.public_ip)?;
                peer.vtep_mac.map_or(Ok(()), |mac| write!(f, " ({mac})"))?;
                let Some(ipv6) = peer.ipv6 else { return Ok(()) };
                write!(f, " and {} via {}", ipv6.subnet, ipv6.public_ip)?;
                ipv6.vtep_mac.map_or(Ok(()), |mac| write!(f, " ({mac})"))
            }
            Self::Remove(subnet) => write!(f, "remove peer {subnet}"),
        }
    }
}

impl fmt::Display for LocalChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PutEndpoint(address, endpoint) => {
                write!(f, "put endpoint {address} on interface {} ({})", endpoint.port, endpoint.mac)
            }
            Self::RemoveEndpoint(address) => write!(f, "remove endpoint {address}"),
            Self::Attach(port, PortKind::Bridge) => write!(f, "attach to bridge {port}"),
            Self::Attach(port, PortKind::Veth) => write!(f, "attach to veth {port}"),
            Self::Attach(port, PortKind::Underlay) => write!(f, "attach to underlay device {port}"),
            Self::Attach(port, PortKind::Device) => write!(f, "attach to tunnel device {port}"),
            Self::Detach(port) => write!(f, "detach from interface {port}"),
        }
    }
}

impl fmt::Display for XdpTargetChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let port = self.port;
        if self.takes {
            write!(f, "let XDP hand frames to interface {port}")
        } else {
            write!(f, "keep XDP from handing frames to interface {port}")
        }
    }
}
