//! What the data path holds: peers, endpoints, and the ports that programs are attached to.
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::model::mac::Mac;

/// Another host of the overlay, as its lease says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// Its address on the underlay.
    pub public_ip: IpAddr,
    /// MAC address of its tunnel device, where it has one.
    pub vtep_mac: Option<Mac>,
    /// What is known of it in IPv6, if its lease is one of both families and this host has an IPv6 subnet itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv6: Option<PeerIpv6>,
}

/// The IPv6 half of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerIpv6 {
    /// Its IPv6 subnet.
    pub subnet: IpNet,
    /// Its IPv6 address on the underlay.
    pub public_ip: IpAddr,
    /// MAC address of the tunnel device that takes its packets of IPv6, where it has one: flannel has another device for them.
    pub vtep_mac: Option<Mac>,
}

/// A local container address, and where it lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// Interface index of the host side of its veth, in the agent's network namespace.
    pub port: u32,
    /// MAC address inside the container.
    pub mac: Mac,
    /// MAC address of the gateway it talks to: the bridge's, or the veth's own where there is no bridge.
    pub gateway_mac: Mac,
    /// It was named by an operator or a CNI plugin, not learned.
    pub pinned: bool,
    /// What others have at its port.
    #[serde(default)]
    pub foreign_tc: ForeignTc,
    /// Interface index of the bridge that its port belongs to, if the programs hand frames on between this port and others of the
    /// same bridge. `None` where the bridge or the host would do more to such a frame than forward it.
    #[serde(default)]
    pub bridge: Option<u32>,
}

/// On which sides of a container's port somebody else controls the traffic, by queueing disciplines, filters or programs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForeignTc {
    /// Towards the container: what is delivered goes through the port's egress.
    pub egress: bool,
    /// From the container: its packets are left to the stack.
    pub ingress: bool,
}

/// What an interface is to the overlay, which decides which programs are attached to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum PortKind {
    /// A bridge that holds an address of the own subnet.
    Bridge,
    /// The host side of a container's veth.
    Veth,
    /// The device that reaches the peers. There is only one.
    Underlay,
    /// overlay0. There is only one.
    Device,
}

impl PortKind {
    /// Whether it is on the containers' side, where ports come and go. The other two are the host's own devices.
    pub const fn is_containers(self) -> bool {
        matches!(self, Self::Bridge | Self::Veth)
    }
}
