//! Moving a host from flannel to the overlay in place, and back: what flannel left on it, found, noted, and put back.
pub mod connections;
pub mod daemon;
pub mod discover;
pub mod plan;
pub mod record;
pub mod rules;
pub mod switch;
pub mod toll;

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use self::rules::Rules;
use crate::{
    lease::{Backend, Lease},
    netlink::{ClassicTunnel, Forwarding, GatewayRoute, StaticNeighbour},
};

/// What flannel's VXLAN backend and its rules are on a host: enough to make all of it again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flannel {
    /// `flannel.<VNI>`
    pub device: ClassicTunnel,
    /// Its addresses.
    pub addresses: Vec<Ipv4Net>,
    /// Its neighbours: a peer's `.0` and VtepMAC.
    pub neighbours: Vec<StaticNeighbour>,
    /// Its forwarding entries: a peer's VtepMAC and public IP.
    pub forwarding: Vec<Forwarding>,
    /// Routes to peers' subnets: through the device, or plain ones (`DirectRouting`).
    pub routes: Vec<GatewayRoute>,
    /// Its rules in the packet filter.
    pub rules: Rules,
    /// The text of subnet.env, if there was one.
    pub subnet_env: Option<String>,
}

impl Flannel {
    /// What flannel makes for these leases, for a host from which nothing else is known. `direct` are the peers that
    /// it reaches by plain routes, through the device that `device` sends through.
    pub fn of_leases(
        device: ClassicTunnel,
        own: &Lease,
        peers: &[Lease],
        direct: impl Fn(Ipv4Addr) -> bool,
    ) -> Self {
        let mut flannel = Self {
            addresses: vec![host_net(own.subnet.network())],
            neighbours: Vec::new(),
            forwarding: Vec::new(),
            routes: Vec::new(),
            rules: Rules::default(),
            subnet_env: None,
            device,
        };
        for peer in peers {
            let Backend::Vxlan { vtep_mac: mac, .. } = peer.backend else { continue };
            let direct = direct(peer.public_ip);
            let (gateway, interface) = match (&flannel.device.underlay, direct) {
                (Some(underlay), true) => (peer.public_ip, underlay.clone()),
                _ => (peer.subnet.network(), flannel.device.name.clone()),
            };
            let onlink = gateway != peer.public_ip;
            if onlink {
                flannel.neighbours.push(StaticNeighbour { address: gateway, mac });
                flannel.forwarding.push(Forwarding { mac, to: peer.public_ip });
            }
            let destination = peer.subnet;
            flannel.routes.push(GatewayRoute { destination, gateway, interface, onlink, protocol: BOOT });
        }
        flannel
    }

    /// Routes that do not go with the device.
    pub fn direct_routes(&self) -> impl Iterator<Item = &GatewayRoute> {
        self.routes.iter().filter(|route| route.interface != self.device.name)
    }
}

/// `RTPROT_BOOT`: what netlink libraries and `ip route` write.
const BOOT: u8 = 3;

/// One address as a prefix.
fn host_net(address: Ipv4Addr) -> Ipv4Net {
    Ipv4Net::new_assert(address, 32)
}
