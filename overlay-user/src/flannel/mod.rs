//! Moving a host from flannel to the overlay in place, and back: what flannel left on the host is found and recorded, so that
//! it can be put back.
pub mod connections;
pub mod containers;
pub mod daemon;
pub mod discover;
pub mod disruption;
pub mod plan;
pub mod record;
pub mod rules;
pub mod site;
pub mod switch;
pub mod to_flannel;
pub mod to_overlay;

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use self::rules::Rules;
use crate::{
    host::netlink::{BlackholeRoute, ClassicTunnel, Forwarding, GatewayRoute, StaticNeighbour},
    model::lease::{Lease, LeaseBackend},
};

/// What flannel's VXLAN or host-gw backend and its rules are on a host. This is enough to make all of it again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flannel {
    /// The device `flannel.<VNI>`. With host-gw there is none.
    pub device: Option<ClassicTunnel>,
    /// The device's addresses.
    pub addresses: Vec<IpNet>,
    /// The device's neighbours: each joins a peer's `.0` address to its VtepMAC.
    pub neighbours: Vec<StaticNeighbour>,
    /// The device's forwarding entries: each joins a peer's VtepMAC to its public IP.
    pub forwarding: Vec<Forwarding>,
    /// Routes to peers' subnets. They lead through the device, or are plain ones (`DirectRouting`, host-gw).
    pub routes: Vec<GatewayRoute>,
    /// The route by which the kernel discards packets to the own subnet that no other route takes (`--ip-blackhole-route`).
    #[serde(default)]
    pub blackhole: Option<BlackholeRoute>,
    /// flannel's rules in the packet filter.
    pub rules: Rules,
    /// The text of subnet.env, if there was one.
    pub subnet_env: Option<String>,
}

impl Flannel {
    /// What flannel makes for these leases, on a host of which nothing else is known. `direct` tells which peers flannel
    /// reaches by plain routes, through `underlay`.
    pub fn of_leases(
        device: Option<ClassicTunnel>,
        underlay: &str,
        own: &Lease,
        peers: &[Lease],
        direct: impl Fn(IpAddr) -> bool,
    ) -> Self {
        let mut flannel = Self {
            addresses: device.iter().map(|_| IpNet::from(own.subnet.network())).collect(),
            neighbours: Vec::new(),
            forwarding: Vec::new(),
            routes: Vec::new(),
            blackhole: None,
            rules: Rules::default(),
            subnet_env: None,
            device,
        };
        for peer in peers {
            let (gateway, interface, onlink) = match (&flannel.device, &peer.backend) {
                _ if direct(peer.public_ip) => (peer.public_ip, underlay.to_owned(), false),
                (Some(device), &LeaseBackend::Vxlan { vtep_mac: mac, .. }) => {
                    let address = peer.subnet.network();
                    flannel.neighbours.push(StaticNeighbour { address, mac });
                    flannel.forwarding.push(Forwarding { mac, to: peer.public_ip });
                    (address, device.name.clone(), true)
                }
                _ => continue,
            };
            let destination = peer.subnet;
            flannel.routes.push(GatewayRoute { destination, gateway, interface, onlink, protocol: BOOT });
        }
        flannel
    }

    /// The routes that do not vanish when the device is removed.
    pub fn direct_routes(&self) -> impl Iterator<Item = &GatewayRoute> {
        let device = self.device.as_ref().map(|device| &device.name);
        self.routes.iter().filter(move |route| Some(&route.interface) != device)
    }
}

/// The protocol number `RTPROT_BOOT`, which netlink libraries and `ip route` write into routes.
const BOOT: u8 = 3;
